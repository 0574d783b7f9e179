"""Which ops of a cut model are refitted, and what each of them has to get right."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto, NodeProto

from onnxshap.codes import INTEGERS, on_codes, recodable
from onnxshap.core import Array, FloatArray
from onnxshap.graph import array, attributes, is_op
from onnxshap.graph.structure import order, reads
from onnxshap.labels import Liveness, Site, Weight
from onnxshap.repair.coded import Coded
from onnxshap.repair.recurrent import refittable
from onnxshap.shapes.constants import CHANNELS, constants_of, is_stored, norm_affine
from onnxshap.tracing import Traced


@dataclass(frozen=True)
class Layer:
    """A linear op of the cut model, as a regression.

    Attributes:
        index: its node in the cut model.
        x, y: tensors in and out (`y` after the bias, under its name in both models).
        channels, outputs: channel axes of `x` and `y`.
        weight: how it multiplies, in as many groups as the cut model has.
        bias: name of the constant added to `y`, or of what a DequantizeLinear makes of constants; None where there is
            none yet or cannot be one.
        target: the tensor to get right: `y`, or what a BatchNormalization or a residual sum makes of it.
        addend: what is added on the way, None = nothing.
        affine: per-channel scale and shift on the way, before the addend.
        flat: what reads the target tells values below the first and above the second apart from neither.
    """

    index: int
    x: str
    y: str
    channels: int
    outputs: int
    weight: Weight
    bias: str | None
    target: str
    addend: str | None = None
    affine: tuple[FloatArray, FloatArray] | None = None
    flat: tuple[float, float] = (-math.inf, math.inf)

    def scale_and_shift(self, width: int) -> tuple[FloatArray, FloatArray]:
        """Return `affine` of so many channels; nothing is scaled or shifted where there is none."""
        return self.affine or (np.ones(width), np.zeros(width))


def find_layers(traced: Traced, model: ModelProto, live: Liveness, edited: Collection[int] = ()) -> list[Layer]:
    """Return the linear ops of a changed model behind the first change, in order, with their targets.

    Args:
        traced: the original.
        model: the cut model (`rewrite.cut`).
        live: what is left.
        edited: nodes of the original that have become others, though no unit of theirs is gone (Convs in groups).
    """
    return _Finder(traced, model, live, edited).layers()


def changed_by(traced: Traced, live: Liveness, edited: Collection[int] = ()) -> set[str]:
    """Return the tensors whose values a plan or an edit changes; arguments as for `find_layers`."""
    changed: set[str] = set()
    cut = {s.node for s in traced.labels.trace.sites if live.cut(s.tensor, s.axis)}.union(edited)
    for index, (node, names) in enumerate(zip(traced.shaped.graph.nodes, traced.shaped.reads, strict=True)):
        if index in cut or not changed.isdisjoint(names):
            changed.update(node.output)
    return changed


def unfitted(traced: Traced, live: Liveness) -> list[str]:
    """Return nodes whose weights are cut and which are no regression: nothing restores what they gave.

    Those in loops, those whose weights are codes but not constants of a DequantizeLinear, and recurrent ones that share
    their weights; a norm has no weights between its channels.
    """
    nodes, shapes, found = traced.shaped.graph.nodes, traced.shaped.shapes, dict[str, None]()
    for site in traced.labels.trace.sites:
        node = nodes[site.node]
        weights = [i for i in node.input if i in traced.shaped.constants and len(shapes[i]) > 1]
        left = not refittable(traced, site.node)
        if site.weight is not None:
            left = _as_they_are(traced, site) or bool(traced.depth(node.output[0]))
        if (
            left
            and live.cut(site.tensor, site.axis)
            and any(live.cut(i, axis) for i in weights for axis in range(len(shapes[i])))
        ):
            found[node.name or node.output[0]] = None
    return list(found)


def emptied(traced: Traced, live: Liveness) -> list[str]:
    """Return nodes that sum up codes of which some are cut: their sums are codes or integers, no mean can be added."""
    nodes, kinds = traced.shaped.graph.nodes, traced.shaped.kinds
    sites = [s for s in traced.labels.trace.sites if kinds.get(s.tensor) in INTEGERS and live.cut(s.tensor, s.axis)]
    return list(dict.fromkeys(nodes[s.node].name or nodes[s.node].output[0] for s in sites))


def _as_they_are(traced: Traced, site: Site) -> bool:
    """Return whether the weights of a site are codes that are not made anew."""
    return on_codes(traced.shaped, site) and not recodable(traced.shaped, site)


@dataclass
class _Finder:
    traced: Traced
    model: ModelProto
    live: Liveness
    edited: Collection[int] = ()
    readers: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.produced = {o: k for k, node in enumerate(self.model.graph.node) for o in node.output}
        for k, node in enumerate(self.model.graph.node):
            for name in reads(node):
                self.readers.setdefault(name, []).append(k)
        self.stored = {t.name: t for t in self.model.graph.initializer}
        self.outputs = {o.name for o in self.model.graph.output}
        self.constants = constants_of(self.model)

    def layers(self) -> list[Layer]:
        changed = changed_by(self.traced, self.live, self.edited)
        layers: list[Layer] = []
        for site in self.traced.labels.trace.linear:
            original = self.traced.shaped.graph.nodes[site.node]
            y = original.output[0]
            if y not in changed or y not in self.produced or site.weight is None or _as_they_are(self.traced, site):
                continue
            if self.traced.depth(y):
                continue  # inside a loop it answers for many iterations, and for what they hand on to each other
            index, bias = self.produced[y], None
            node = self.model.graph.node[index]
            if is_op(node, "Add") and not is_op(original, "Add"):  # means folded behind the op
                index, bias = self.produced[node.input[0]], node.input[1]
            elif site.weight.bias is not None and len(node.input) > site.weight.bias[0]:
                bias = node.input[site.weight.bias[0]] or None
            if bias is not None and not self._per_channel(bias, site, y):
                continue  # a computed or broadcast bias: what the op adds is not known
            weight = replace(site.weight, groups=int(attributes(node).get("group", 1)))
            layers.append(Layer(index, site.tensor, y, site.axis, weight.out, weight, bias, y))
        layers.sort(key=lambda layer: layer.index)
        result, latest = [], self._latest({layer.index for layer in layers})
        for layer in layers:
            found = self._aimed(layer)
            # the last op to be refitted answers for the sum
            if found.addend is not None and latest.get(found.addend, -1) >= layer.index:
                found = layer
            result.append(replace(found, flat=self._flat(found.target)))
        return result

    def _per_channel(self, bias: str, site: Site, y: str) -> bool:
        assert site.weight is not None
        width = self.live.width(y, site.weight.out, self.traced.shaped.shapes[y][site.weight.out])
        stored = self.stored.get(bias)
        if stored is None and bias in self.produced:
            coded = Coded.of(self.model.graph.node[self.produced[bias]], self.stored)
            stored = None if coded is None else coded.codes
        return stored is not None and math.prod(stored.dims) == width

    def _latest(self, chosen: Collection[int]) -> dict[str, int]:
        """Return tensor -> the last of some nodes of the cut model that it depends on, if there is one."""
        nodes, found = self.model.graph.node, dict[str, int]()
        places = order(nodes)
        assert places is not None
        for k in places:
            before = (found[name] for name in reads(nodes[k]) if name in found)
            if (last := max(before, default=-1)) >= 0 or k in chosen:
                found.update(dict.fromkeys(nodes[k].output, max(last, k if k in chosen else -1)))
        return found

    def _aimed(self, layer: Layer) -> Layer:
        """Return the layer with what BatchNormalization and a residual sum make of its output as the target."""
        aimed, name = layer, layer.y
        while name not in self.outputs and len(self.readers.get(name, ())) == 1:
            node = self.model.graph.node[self.readers[name][0]]
            if self.traced.depth(node.output[0]):
                break
            if is_op(node, "BatchNormalization") and aimed is layer and node.input[0] == name:
                affine = self._affine(node) if layer.outputs == CHANNELS else None
                if affine is None:
                    return layer
                aimed = replace(layer, target=node.output[0], affine=affine)
                name = node.output[0]
            elif is_op(node, "Add", "Sum") and len(node.input) == 2:
                other = node.input[1] if node.input[0] == name else node.input[0]
                same = self.traced.shaped.shapes.get(other) == self.traced.shaped.shapes.get(layer.y)
                computed = other in self.produced and other not in self.traced.shaped.constants
                return (
                    replace(aimed, target=node.output[0], addend=other)
                    if computed and same and other != name
                    else aimed
                )
            else:
                break
        return aimed

    def _affine(self, node: NodeProto) -> tuple[FloatArray, FloatArray] | None:
        if not is_stored(node, self.constants):
            return None
        scale, shift = norm_affine(self.model, self.traced.backend, node)
        return None if (np.abs(scale) < 1e-6 * np.abs(scale).max()).any() else (scale, shift)

    def _flat(self, name: str) -> tuple[float, float]:
        """Return the bounds outside of which nothing that reads a tensor tells its values apart."""
        low, high = math.inf, -math.inf
        for k in self.readers.get(name, ()) if name not in self.outputs else ():
            found = self._flat_of(self.model.graph.node[k], name)
            low, high = min(low, found[0]), max(high, found[1])
        return (low, high) if low < high else (-math.inf, math.inf)

    def _flat_of(self, node: NodeProto, name: str) -> tuple[float, float]:
        if is_op(node, *_MONOTONE) and node.input[0] == name:
            return self._flat(node.output[0])
        if is_op(node, "Relu"):
            return 0.0, math.inf
        given = attributes(node)
        if is_op(node, "Clip"):
            low, high = (
                self._number(node.input[k]) if len(node.input) > k and node.input[k] else given.get(key, default)
                for k, key, default in ((1, "min", -math.inf), (2, "max", math.inf))
            )
            if low is not None and high is not None:
                return float(low), float(high)
        if is_op(node, "HardSigmoid"):
            alpha, beta = given.get("alpha", 0.2), given.get("beta", 0.5)
            return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else (-math.inf, math.inf)
        if is_op(node, "HardSwish"):
            return -3.0, math.inf
        return -math.inf, math.inf

    def _number(self, name: str) -> float | None:
        values: Array | None = array(self.stored[name]) if name in self.stored else None
        return float(values.ravel()[0]) if values is not None and values.size == 1 else None


_MONOTONE = ("Flatten", "Identity", "MaxPool", "GlobalMaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""They move or choose values, whatever a monotone function makes of them."""
