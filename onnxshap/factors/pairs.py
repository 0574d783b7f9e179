"""A layer as two, in the graph: its nodes, their attributes and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import AttributeProto, NodeProto, helper

from onnxshap.core import Array, FloatArray
from onnxshap.cost import Split
from onnxshap.factors.layers import Layer
from onnxshap.graph import finish
from onnxshap.graph.structure import copied, keep_only, refill, used_names
from onnxshap.graph.weights import Kept, initializer
from onnxshap.tracing import Traced, trace_form

Samples = Sequence[Mapping[str, Array]]
_NEUTRAL = {"strides": 1, "dilations": 1, "pads": 0}
"""Attributes of a Conv with a value an axis, and what that is where nothing is done along it."""


@dataclass(frozen=True)
class Part:
    """A layer as two.

    Attributes:
        layer: the one.
        columns, rows: the weights of the two, [rank, inputs, height, 1] and [outputs, rank, 1, width].
        energy: what the channels between count, float64[rank].
        split, node: the names of what is new; `node` is that of the first, or of its output.
    """

    layer: Layer
    columns: FloatArray
    rows: FloatArray
    energy: FloatArray
    split: Split
    node: str

    def nodes(self, node: NodeProto) -> list[NodeProto]:
        """Return the two in place of the one, whose name and output the second one keeps."""
        first, second, layer = copied(node), copied(node), self.layer
        given = {layer.how.input: self.split.columns, layer.input: node.input[layer.input]}
        first.input[:] = [given[k] for k in sorted(given)]
        first.output[:] = [self.split.between]
        second.input[layer.how.input], second.input[layer.input] = self.split.rows, self.split.between
        first.name = self.node
        row = [1] if layer.shape[3] > 1 else []
        column = [axis for axis in range(layer.taps) if axis not in row]
        for made, axes, others in ((first, column, ("alpha", "beta")), (second, row, ("transA",))):
            kept = [a for a in made.attribute if a.name not in others]
            refill(made.attribute, _along(kept, layer, axes) if layer.taps else kept)
        return [first, second]

    def weights(self) -> dict[str, Array]:
        """Return the weights of the two by name, as that of the one lies, and of its type."""
        how, found = self.layer.how, dict[str, Array]()
        for name, values in ((self.split.columns, self.columns), (self.split.rows, self.rows)):
            moved = values.swapaxes(0, 1)  # in, out, taps
            lying = np.moveaxis(moved.reshape(moved.shape[: 2 + self.layer.taps]), (0, 1), (how.sums, how.makes))
            with np.errstate(over="ignore"):  # what does not fit into a half is seen in the outputs (`bearing`)
                found[name] = np.ascontiguousarray(lying, helper.tensor_dtype_to_np_dtype(self.layer.kind))
        return found


def _along(given: Sequence[AttributeProto], layer: Layer, axes: Sequence[int]) -> list[AttributeProto]:
    """Return the attributes of a Conv along some axes: on the others it has those of a kernel of 1."""
    size = list(layer.shape[2 : 2 + layer.taps])
    wanted: dict[str, list[int]] = {"kernel_shape": [n if axis in axes else 1 for axis, n in enumerate(size)]}
    for one in given:
        if one.name in _NEUTRAL:
            neutral = _NEUTRAL[one.name]
            wanted[one.name] = [n if k % layer.taps in axes else neutral for k, n in enumerate(one.ints)]
    kept = [copied(a) for a in given if a.name not in wanted]
    return [*kept, *(helper.make_attribute(name, values) for name, values in wanted.items())]


def traced_again(traced: Traced, parts: Sequence[Part], samples: Samples) -> Traced:
    """Return a traced model with some layers as pairs; `source` is still the original."""
    if not parts:
        return traced
    graph = traced.shaped.graph
    made, kept = copied(graph.model), Kept(graph.kept)
    at = {part.layer.node: part for part in parts}
    nodes = [n for k, node in enumerate(graph.nodes) for n in (at[k].nodes(node) if k in at else [node])]
    refill(made.graph.node, nodes)
    gone = {part.layer.weight for part in parts} - used_names(made.graph)
    keep_only(made.graph.initializer, lambda item: item.name not in gone)
    for part in parts:
        for name, values in part.weights().items():
            made.graph.initializer.append(initializer(name, values, kept))
    found = trace_form(traced, finish(made, graph), samples)
    return replace(
        found, source=traced.source, files=traced.files, tail=traced.tail, path=traced.path,
        splits=tuple(part.split for part in parts),
    )  # fmt: skip
