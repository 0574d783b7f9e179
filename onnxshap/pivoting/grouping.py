"""Models with Convs in groups, and their twins with zeros off the diagonal blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.graph import array
from onnxshap.graph.structure import copied
from onnxshap.graph.weights import set_values
from onnxshap.labels.fixups import set_attribute


def grouped(model: ModelProto, chosen: Mapping[str, int]) -> ModelProto:
    """Return a form of a model with Convs, by their outputs' names, in groups: the weights of their diagonal blocks."""
    made = copied(model)
    for node, weights, groups in _chosen_convs(made, chosen):
        parts = np.split(array(weights), groups)
        blocks = [np.split(part, groups, 1)[k] for k, part in enumerate(parts)]
        set_values(weights, np.concatenate(blocks))
        set_attribute(node, "group", groups)
    return made


def zeroed(model: ModelProto, chosen: Mapping[str, int]) -> ModelProto:
    """Return what `grouped` computes without groups: the same Convs with zeros off their diagonal blocks."""
    made = copied(model)
    for _, weights, groups in _chosen_convs(made, chosen):
        values = array(weights)
        outs, ins = (np.arange(size) * groups // size for size in values.shape[:2])
        on = (outs[:, None] == ins).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
        set_values(weights, np.where(on, values, 0).astype(values.dtype))
    return made


def _chosen_convs(model: ModelProto, chosen: Mapping[str, int]) -> Iterator[tuple[NodeProto, TensorProto, int]]:
    """Yield the Convs that get several groups, their weights, to be changed in place, and how many."""
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.output and (groups := chosen.get(node.output[0], 1)) > 1:
            yield node, stored[node.input[1]], groups
