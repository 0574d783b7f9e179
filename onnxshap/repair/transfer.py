"""Weights from one form of a cut model to another."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper

from onnxshap.graph import is_op


def transfer(source: ModelProto, target: ModelProto) -> ModelProto:
    """Give `target` the floating-point initializers of `source`, and codes, in place, and return it.

    The two forms differ in what spells the batch size out: integers, and nodes that compute them. Nodes that read an
    initializer which the target does not have yet (a new bias, an unfolded weight) read it there too.
    """
    stored = {t.name: t for t in target.graph.initializer}
    added, codes = set(), {node.input[0] for node in source.graph.node if is_op(node, "DequantizeLinear")}
    for item in source.graph.initializer:
        if item.name not in codes and np.dtype(helper.tensor_dtype_to_np_dtype(item.data_type)).kind in "iubO":
            continue
        if item.name not in stored:
            added.add(item.name)
        (stored[item.name] if item.name in stored else target.graph.initializer.add()).CopyFrom(item)
    nodes = {tuple(node.output): node for node in target.graph.node}
    for theirs in source.graph.node:
        for k, name in enumerate(theirs.input):
            if name in added:
                ours = nodes[tuple(theirs.output)]
                ours.input.extend([""] * (k + 1 - len(ours.input)))
                ours.input[k] = name
    return target
