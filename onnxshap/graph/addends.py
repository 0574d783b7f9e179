"""Constants that are added one right behind the other: what a cut folds into a layer goes into the bias it has.

Where a layer is a MatMul and an Add, what removed channels leave behind is another Add between the two, and repair
refits that one. In the file it would cost a pass over the layer's output, and keep runtimes from fusing the Add.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from onnxshap.core import Array
from onnxshap.graph.nodes import array
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import keep_only, reads
from onnxshap.graph.weights import is_kept, set_values


def merge_addends(graph: GraphProto, stored: Container[str], fixed: Container[str]) -> None:
    """Add constants that passes made to stored ones that are added right behind them, and drop the Adds of the first.

    Args:
        graph: a graph, changed in place; its nodes are in topological order.
        stored: initializers of the model that was edited; others are what passes made.
        fixed: those that keep their values.
    """
    constants = {t.name: t for t in graph.initializer}
    read = Counter([*(name for node in graph.node for name in reads(node)), *(o.name for o in graph.output)])
    made, gone = dict[str, tuple[str, str]](), set[str]()
    for node in graph.node:
        result, constant = _addends(node, constants)
        if not constant or read[constant] > 1:
            continue
        if constant not in stored:
            made[node.output[0]] = result, constant
        elif result in made and read[result] == 1 and constant not in fixed:
            source, extra = made[result]
            total = _sum(constants[constant], constants[extra])
            if total is not None:
                set_values(constants[constant], total)
                node.input[:] = [source if name == result else name for name in node.input]
                gone.add(result)
    keep_only(graph.node, lambda node: gone.isdisjoint(node.output))


def _addends(node: NodeProto, constants: Mapping[str, TensorProto]) -> tuple[str, str]:
    """Return what an Add is given and the constant that it adds, nothing where it is no such Add."""
    if is_op(node, "Add") and not node.attribute:  # before opset 7 one says how it is stretched
        for given, added in (node.input, reversed(node.input)):
            if added in constants and given not in constants:
                return given, added
    return "", ""


def _sum(constant: TensorProto, extra: TensorProto) -> Array | None:
    """Return both added up, None where the first has fewer entries than the sum, or of types that numpy has not."""
    if is_kept(constant) or is_kept(extra):
        return None
    ours, theirs = array(constant), array(extra)
    if ours.dtype.kind != "f" or np.broadcast_shapes(ours.shape, theirs.shape) != ours.shape:
        return None
    return (ours.astype(np.float64) + theirs.astype(np.float64)).astype(ours.dtype)
