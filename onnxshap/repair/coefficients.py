"""The constants of a cut model's layers, read and written as regressions see them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from onnxshap.core import Array, FloatArray
from onnxshap.graph import array, is_op, tensor
from onnxshap.repair.targets import Layer
from onnxshap.shapes.constants import static_values
from onnxshap.tracing import Traced


class Coefficients:
    """Weights and biases of the layers of a cut model, which is changed in place."""

    def __init__(self, free: Traced, model: ModelProto) -> None:
        self.free, self.model = free, model
        self._stored = {t.name: t for t in model.graph.initializer}
        self._produced = {o: node for node in model.graph.node for o in node.output}
        self._readers = Counter(name for node in model.graph.node for name in node.input)

    def sets(self, layers: Sequence[Layer]) -> list[list[Layer]]:
        """Return layers in order, those together that multiply with one stored weight; without those that may not be.

        What is stored once for several nodes a refit of one layer would store again: such layers are refitted together,
        and left where that cannot be, because what they share is for more than these layers, or they are not alike.
        """
        at = {(layer.index, layer.weight.input): layer for layer in layers}
        uses: dict[str, list[tuple[str, Layer | None]]] = {}
        for index, node in enumerate(self.model.graph.node):
            for k, name in enumerate(node.input):
                if (kept := self._kept(name)) and not is_op(node, "Identity"):
                    uses.setdefault(self._source(kept), []).append((kept, at.get((index, k))))

        def together(layer: Layer) -> list[Layer]:
            """Return the layers to change at once with one, in order: itself first; none where it is to be left."""
            stored = self._stored_for(self.model.graph.node[layer.index].input[layer.weight.input])
            users = [user for s in stored for name, user in uses.get(self._source(s), ()) if self._equal(name, s)]
            if len(users) == len(stored):
                return [layer]
            found = [user for user in users if user is not None]
            return found if len(found) == len(users) and all(_alike(layer, other) for other in found) else []

        return [found for layer in layers if (found := together(layer))[:1] == [layer]]

    def _source(self, name: str) -> str:
        return self.free.shaped.graph.origin.get(name, name)

    def _stored_for(self, name: str) -> list[str]:
        """Return the initializers that a tensor is computed from; of floating point alone, if it is not one itself."""
        found, pending = dict[str, None](), [name]
        while pending:
            name = pending.pop()
            if name in self._stored:
                found[name] = None
            elif name in self._produced:
                pending.extend(self._produced[name].input)
        return [n for n in found if len(found) == 1 or array(self._stored[n]).dtype.kind == "f"]

    def _kept(self, name: str) -> str:
        """Return the initializer that a tensor is, Identity nodes passed; empty where it is computed."""
        while name in self._produced and is_op(self._produced[name], "Identity"):
            name = self._produced[name].input[0]
        return name if name in self._stored else ""

    def _equal(self, one: str, other: str) -> bool:
        return one == other or np.array_equal(array(self._stored[one]), array(self._stored[other]))

    def _weights(self, layer: Layer) -> Array:
        """Return the present weights as they stand in the graph, or are computed there."""
        name = self.model.graph.node[layer.index].input[layer.weight.input]
        if name in self._stored:
            return array(self._stored[name])
        return static_values(self.model, self.free.backend, [name])[name]

    def read(self, layer: Layer) -> FloatArray:
        """Return the present weights as [groups, inputs x taps, outputs of a group]."""
        w = layer.weight
        kernel = np.moveaxis(self._weights(layer).astype(np.float64), (w.sums, w.makes), (0, 1))
        kernel = kernel.reshape(*kernel.shape[:2], -1).transpose(0, 2, 1) * w.scale
        groups = w.groups
        ins, taps_, outs = kernel.shape
        if groups == 1:
            return kernel.reshape(1, ins * taps_, outs)
        if w.sums == 1:  # Conv: the inputs of one group, all outputs
            split = kernel.reshape(ins, taps_, groups, outs // groups).transpose(2, 0, 1, 3)
        else:  # ConvTranspose: all inputs, the outputs of one group
            split = kernel.reshape(groups, ins // groups, taps_, outs)
        return split.reshape(groups, -1, split.shape[-1])

    def write(self, layer: Layer, coefficients: FloatArray, bias: FloatArray | None) -> None:
        """Store [groups, inputs x taps, outputs of a group] and the bias, None where there is none."""
        node, w = self.model.graph.node[layer.index], layer.weight
        values = self._weights(layer)
        moved = np.moveaxis(values, (w.sums, w.makes), (0, 1)).shape
        groups = w.groups
        taps_ = math.prod(moved[2:])
        outs = coefficients.shape[2]
        split = coefficients.reshape(groups, -1, taps_, outs)
        if groups == 1:
            kernel = split[0]
        elif w.sums == 1:
            kernel = split.transpose(1, 2, 0, 3).reshape(split.shape[1], taps_, groups * outs)
        else:
            kernel = split.reshape(-1, taps_, outs)
        back = np.moveaxis((kernel / w.scale).transpose(0, 2, 1).reshape(moved), (0, 1), (w.sums, w.makes))
        self._store(node, w.input, f"{layer.y}.weight", back.astype(values.dtype))
        if bias is None:
            return
        if layer.bias is not None:
            old = array(self._stored[layer.bias])
            factor = w.bias[1] if w.bias is not None else 1.0
            self._stored[layer.bias].CopyFrom(tensor(layer.bias, (bias / factor).reshape(old.shape).astype(old.dtype)))
        elif w.bias is not None:
            while len(node.input) <= w.bias[0]:
                node.input.append("")
            self._store(node, w.bias[0], f"{layer.y}.bias", (bias / w.bias[1]).astype(values.dtype))

    def _store(self, node: NodeProto, number: int, hint: str, values: Array) -> None:
        name = node.input[number]
        if (kept := self._kept(name)) and self._readers[name] == self._readers[kept] == 1:
            name = kept
        if name not in self._stored:
            name = hint
            while name in self._stored:
                name += "_"
            node.input[number] = name
            self._stored[name] = self.model.graph.initializer.add()
        self._stored[name].CopyFrom(tensor(name, values))

    def bias(self, layer: Layer, width: int) -> FloatArray | None:
        """Return the present bias float64[width]; zeros where one can be added, None where none can."""
        if layer.bias is not None:
            old = array(self._stored[layer.bias]).astype(np.float64)
            factor = layer.weight.bias[1] if layer.weight.bias is not None else 1.0
            return old.ravel() * factor
        return np.zeros(width) if self._free_bias(layer) else None

    def _free_bias(self, layer: Layer) -> bool:
        slot, node = layer.weight.bias, self.model.graph.node[layer.index]
        return slot is not None and (len(node.input) <= slot[0] or not node.input[slot[0]])


def _alike(one: Layer, other: Layer) -> bool:
    """Return whether two layers with one weight are one regression: read alike, multiplied alike."""
    return one.affine is None and other.affine is None and one.flat == other.flat and one.weight == other.weight
