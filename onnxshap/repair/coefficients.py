"""The constants of a cut model's layers, read and written as regressions see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.codes import moves
from onnxshap.core import Array, FloatArray
from onnxshap.graph import Names, array, is_op, tensor
from onnxshap.graph.weights import as_stored, set_values
from onnxshap.labels.kernels import by_group, ungrouped
from onnxshap.repair.coded import Coded
from onnxshap.repair.targets import Layer
from onnxshap.shapes.constants import static_values
from onnxshap.tracing import Traced

_DECODER = "DequantizeLinear"


@dataclass(frozen=True)
class _Origin:
    """The initializers that a weight is, or is computed from, and the nodes on the way."""

    stored: frozenset[str]
    nodes: frozenset[int]


class Coefficients:
    """Weights and biases of the layers of a cut model, which is changed in place."""

    def __init__(self, free: Traced, model: ModelProto) -> None:
        self.free, self.model = free, model
        self._stored, self._names = {t.name: t for t in model.graph.initializer}, Names(model.graph)
        self._produced = {o: k for k, node in enumerate(model.graph.node) for o in node.output}
        self._readers: dict[str, list[int]] = {}
        for k, node in enumerate(model.graph.node):
            for name in node.input:
                self._readers.setdefault(name, []).append(k)

    def sets(self, layers: Sequence[Layer]) -> list[list[Layer]]:
        """Return layers in order, those together that multiply with one stored weight; without those that may not be.

        What is stored once for several nodes a refit of one layer would store again: such layers are refitted together,
        and left where that cannot be, because what they share is for more than these layers, or they are not alike.
        """
        origins = {layer.index: self._origin(self._weight_name(layer)) for layer in layers}
        copies: dict[str, list[str]] = {}
        for name in self._stored:
            copies.setdefault(self._source(name), []).append(name)
        sources = {index: frozenset(map(self._source, origin.stored)) for index, origin in origins.items()}
        related: dict[frozenset[str], list[Layer]] = {}
        for layer in layers:
            related.setdefault(sources[layer.index], []).append(layer)

        def together(layer: Layer) -> list[Layer]:
            """Return the layers to change at once with one, in order; none where it is to be left."""
            own = origins[layer.index]
            equal = {c for s in own.stored for c in copies[self._source(s)] if self._equal(c, s)}
            found = [other for other in related[sources[layer.index]] if origins[other.index].stored <= equal]
            inside = {other.index for other in found}.union(*(origins[other.index].nodes for other in found))
            passed = equal.union(*(self.model.graph.node[k].output for k in inside if k not in origins))
            readers = {k for name in passed for k in self._readers.get(name, ())}
            alone = all(k in inside or is_op(self.model.graph.node[k], "Shape", "Size") for k in readers)
            return found if alone and all(self._alike(layer, other) for other in found) else []

        return [found for layer in layers if (found := together(layer))[:1] == [layer]]

    def _source(self, name: str) -> str:
        return self.free.shaped.graph.origin.get(name, name)

    def _weight_name(self, layer: Layer) -> str:
        name: str = self.model.graph.node[layer.index].input[layer.weight.input]
        return name

    def _origin(self, name: str) -> _Origin:
        """Return what a tensor is made of; of codes alone, where there are some, else of floating point.

        A scale that others have, too, is no weight that is shared.
        """
        stored, nodes, pending = set[str](), set[int](), [name]
        while pending:
            name = pending.pop()
            if name in self._stored:
                stored.add(name)
            elif (k := self._produced.get(name)) is not None:
                nodes.add(k)
                pending.extend(self.model.graph.node[k].input)
        if len(stored) > 1:
            codes = {self.model.graph.node[k].input[0] for k in nodes if is_op(self.model.graph.node[k], _DECODER)}
            stored = stored & codes or {n for n in stored if array(self._stored[n]).dtype.kind == "f"}
        return _Origin(frozenset(stored), frozenset(nodes))

    def _equal(self, one: str, other: str) -> bool:
        return one == other or np.array_equal(array(self._stored[one]), array(self._stored[other]))

    def _alike(self, one: Layer, other: Layer) -> bool:
        """Return whether two layers with one weight are one regression: read alike, multiplied alike."""
        return one is other or (
            one.affine is None
            and other.affine is None
            and one.flat == other.flat
            and one.weight == other.weight
            and np.array_equal(self._weights(one), self._weights(other))
        )

    def _weights(self, layer: Layer) -> Array:
        """Return the present weights as they stand in the graph, or are computed there."""
        name = self._weight_name(layer)
        if name in self._stored:
            return array(self._stored[name])
        return static_values(self.model, self.free.backend, [name])[name]

    def read(self, layer: Layer) -> FloatArray:
        """Return the present weights as [groups, inputs x taps, outputs of a group]."""
        return _by_group(self._weights(layer), layer)

    def rounded(self, layer: Layer, coefficients: FloatArray) -> FloatArray | None:
        """Return coefficients as `read`, once they are stored as codes; None where the layer's weights are none."""
        coded = self._coded(self._weight_name(layer))
        if coded is None:
            return None
        made = coded.refilled(ungrouped(coefficients, layer.weight, self._weights(layer)))
        return None if made is None else _by_group(coded.decoded(*made), layer)

    def write(self, layers: Sequence[Layer], coefficients: FloatArray, biases: Sequence[FloatArray]) -> bool:
        """Store [groups, inputs x taps, outputs of a group] of layers with one weight, and their biases, if any.

        Return whether that was done: all is left as it is where the types of what is stored do not hold it.
        """
        w, old = layers[0].weight, self._weights(layers[0])
        values = ungrouped(coefficients, w, old)
        if self._coded(self._weight_name(layers[0])) is not None:
            return self._write_codes(layers, values, biases)
        back = as_stored(values, old.dtype)
        shifts = [self._as_bias(layer, b, old.dtype) for layer, b in zip(layers, biases, strict=False)]
        fitting = [shift for shift in shifts if shift is not None]
        if back is None or len(fitting) < len(shifts):
            return False
        made = ""
        for layer in layers:
            node = self.model.graph.node[layer.index]
            if made:  # computed of what is stored once for all of them: stored once again
                node.input[w.input] = made
            elif not self.store(node, w.input, f"{layer.y}.weight", back):
                made = node.input[w.input]
        for layer, shift in zip(layers, fitting, strict=False):
            self._write_bias(layer, shift)
        return True

    def _coded(self, name: str) -> Coded | None:
        """Return the stored codes that a tensor is made of, laid out or not; None where it is made of something else.

        Numbers of the codes, laid out alike, tell where they lie.
        """
        moved = moves(name, self._maker)
        source = moved[-1].input[0] if moved else name
        coded = Coded.of(self._maker(source), self._stored)
        if coded is None or not moved:
            return coded
        part = ModelProto(ir_version=self.model.ir_version, opset_import=self.model.opset_import)
        part.graph.node.extend(reversed(moved))
        part.graph.initializer.extend(self._stored[n] for node in moved for n in node.input[1:] if n in self._stored)
        numbers = np.arange(math.prod(coded.codes.dims)).reshape(coded.codes.dims)
        part.graph.initializer.append(tensor(source, numbers))
        return replace(coded, places=static_values(part, self.free.backend, [name])[name])

    def _maker(self, name: str) -> NodeProto | None:
        k = self._produced.get(name)
        return None if k is None else self.model.graph.node[k]

    def _write_codes(self, layers: Sequence[Layer], values: FloatArray, biases: Sequence[FloatArray]) -> bool:
        """Store weights of codes, and biases, as `write`."""
        found: list[tuple[TensorProto, Array]] = []
        for number, layer in enumerate(layers):
            coded = self._coded(self._weight_name(layer))
            made = None if coded is None else coded.refilled(values)
            if coded is None or made is None:
                return False
            found += zip((coded.codes, coded.scale), made, strict=True)
            if layer.bias is None:
                continue
            bias = biases[number] / self._factor(layer) if biases else self._constant(layer.bias)
            old = array(coded.scale).astype(np.float64)
            ratio = np.divide(made[1], old, out=np.ones(old.shape), where=old != 0)
            new = self._bias_codes(layer.bias, bias, ratio)
            if new is None:
                return False
            found += new
        for item, stored in found:
            set_values(item, stored)
        return True

    def _bias_codes(self, name: str, values: FloatArray, ratio: FloatArray) -> list[tuple[TensorProto, Array]] | None:
        """Return what is stored for a bias float64[width] behind weights of codes; None where it cannot be.

        Codes, and their scales, of one bias alone: else what reads them too would get them.
        """
        if name in self._stored:
            own = as_stored(values.reshape(tuple(self._stored[name].dims)), array(self._stored[name]).dtype)
            return None if own is None else [(self._stored[name], own)]
        coded = self._coded(name)
        shared = coded is None or any(len(self._readers[t.name]) > 1 for t in (coded.codes, coded.scale))
        made = None if coded is None or shared or len(self._readers[name]) > 1 else coded.rescaled(values, ratio)
        return None if coded is None or made is None else list(zip((coded.codes, coded.scale), made, strict=True))

    def _constant(self, name: str) -> FloatArray:
        """Return a constant as it is stored, or is computed, float64."""
        if name in self._stored:
            return array(self._stored[name]).astype(np.float64)
        return static_values(self.model, self.free.backend, [name])[name].astype(np.float64)

    @staticmethod
    def _factor(layer: Layer) -> float:
        return layer.weight.bias[1] if layer.weight.bias is not None else 1.0

    def _as_bias(self, layer: Layer, bias: FloatArray, dtype: np.dtype[Any]) -> Array | None:
        """Return a bias float64[width] as it is stored, one that is new in `dtype`; None where it does not fit."""
        own = bias / self._factor(layer)
        if layer.bias is None:
            return as_stored(own, dtype)
        old = array(self._stored[layer.bias])
        return as_stored(own.reshape(old.shape), old.dtype)

    def _write_bias(self, layer: Layer, values: Array) -> None:
        node, w = self.model.graph.node[layer.index], layer.weight
        if layer.bias is not None:
            set_values(self._stored[layer.bias], values)
        elif w.bias is not None:
            while len(node.input) <= w.bias[0]:
                node.input.append("")
            self.store(node, w.bias[0], f"{layer.y}.bias", values)

    def store(self, node: NodeProto, number: int, wish: str, values: Array) -> bool:
        """Store an input of a node where it is stored, else under a new name; return whether it was."""
        name = node.input[number]
        while (k := self._produced.get(name)) is not None and is_op(self.model.graph.node[k], "Identity"):
            if len(self._readers[name]) > 1:
                break
            name = self.model.graph.node[k].input[0]
        there = name in self._stored
        if not there:
            node.input[number] = name = self._names.new(wish)
            self._stored[name] = self.model.graph.initializer.add(name=name)
        set_values(self._stored[name], values)
        return there

    def biases(self, layers: Sequence[Layer], width: int) -> list[FloatArray]:
        """Return the biases that layers with one weight have or may get; none where one of them may not."""
        found = [self._bias(layer, width) for layer in layers]
        return [bias for bias in found if bias is not None] if all(bias is not None for bias in found) else []

    def _bias(self, layer: Layer, width: int) -> FloatArray | None:
        """Return the present bias float64[width]; zeros where one can be added, None where none can."""
        if layer.bias is not None:
            return self._constant(layer.bias).ravel() * self._factor(layer)
        return np.zeros(width) if self._free_bias(layer) else None

    def _free_bias(self, layer: Layer) -> bool:
        """Return whether a layer without a bias may get one; an op on codes would no longer be fused with one."""
        slot, node = layer.weight.bias, self.model.graph.node[layer.index]
        if self._coded(self._weight_name(layer)) is not None:
            return False
        return slot is not None and (len(node.input) <= slot[0] or not node.input[slot[0]])


def _by_group(values: Array, layer: Layer) -> FloatArray:
    """Return weights as [groups, inputs x taps, outputs of a group]."""
    found = by_group(values, layer.weight)
    groups, ins, taps, outs = found.shape
    return found.reshape(groups, ins * taps, outs)
