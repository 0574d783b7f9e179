"""The walk over the layers of a cut model: rows of each regression, and where the solution goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshap.calibrate import batches
from onnxshap.constants import static_values
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.graph import array, attributes, is_op, tensor
from onnxshap.labels import Liveness, Weight
from onnxshap.masking import Means
from onnxshap.repair.regression import FULL, Effort, Refit, Response, Rows, Single, require_images, solve
from onnxshap.repair.targets import Layer, find_layers
from onnxshap.repair.transfer import transfer
from onnxshap.repair.walk import Walk
from onnxshap.rewrite import cut
from onnxshap.taps import patches, taps
from onnxshap.tracing import Keep, Traced

MAX_COEFFICIENTS = 6_000
"""Coefficients per output above which a layer is left alone (the Gram matrix would not fit)."""
_HELD_OUT = 5
_BATCH_BYTES = 2**26
"""Of the largest tensor that a batch of images may make."""


def refit(
    traced: Traced,
    free: Traced,
    keep: Keep,
    means: Means,
    data: Dataset,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    nearest: bool = False,
    effort: Effort = FULL,
    feeds: Sequence[Mapping[str, Array]] = (),
) -> tuple[ModelProto, list[Refit]]:
    """Return the cut model (before `graph.finish`) with its linear ops refitted, and what became of each.

    Args:
        traced: the original, as in its file.
        free: the original for evaluation (`calibrate.free_batch`).
        keep: the plan.
        means: what removed channels leave in their consumers' biases (`calibrate.site_means`).
        data: calibration images; a fifth of them is held out to choose the ridge.
        seed: draws the patches.
        progress: told after every layer.
        nearest: only the layers that lose inputs themselves, not those behind them.
        effort: how much is spent on a layer.
        feeds: `data` in batches, with tensors that the plan leaves as they are (`walk.border`): nothing before them
            is computed again.

    Raises:
        DataError: fewer than 20 images.
    """
    require_images(len(data))
    model, live = cut(free, keep, means), traced.alive(keep)
    layers = find_layers(traced, model, live)
    if nearest:
        layers = [layer for layer in layers if live.cut(layer.x, layer.channels)]
    fitter = _Fitter(free, live, model, data, seed, layers, effort, feeds)
    reports = []
    for number, layer in enumerate(layers):
        report = fitter.fit(layer)
        if report is not None:
            reports.append(report)
        progress(number + 1, len(layers))
    return (model if traced is free else transfer(model, cut(traced, keep, means))), reports


def batch_size(free: Traced, names: Sequence[str]) -> int:
    """Return how many images a batch may hold, by the largest of some tensors."""
    largest = max((4 * math.prod(free.shaped.shapes[n]) for n in names), default=1)
    return int(np.clip(_BATCH_BYTES * free.batch // max(1, largest), 1, 32))


@dataclass
class _Fitter:
    """Fits layers of one model, in order."""

    free: Traced
    live: Liveness
    model: ModelProto
    data: Dataset
    seed: int
    layers: Sequence[Layer]
    effort: Effort
    feeds: Sequence[Mapping[str, Array]]

    def __post_init__(self) -> None:
        self._stored = {t.name: t for t in self.model.graph.initializer}
        images = len(self.data)
        order = np.random.default_rng([self.seed, 3]).permutation(images)
        held_out = np.zeros(images, np.bool_)
        held_out[order[: max(1, images // _HELD_OUT)]] = True
        size = batch_size(self.free, [n for layer in self.layers for n in (layer.x, layer.y)])
        feeds = self.feeds or [dict(part) for _, part in batches(self.free, self.data, size)]
        starts = np.cumsum([0, *(_images(part) for part in feeds)])
        # a fixed batch is filled up with repeats
        self._flags = [np.resize(held_out[s:], _images(part)) for s, part in zip(starts, feeds, strict=False)]
        self._original = Walk(self.free, self.free.shaped.graph.model, feeds)
        self._present = Walk(self.free, self.model, feeds)

    def _positions(self, layer: Layer, chunk: int, inputs: int) -> NDArray[np.intp]:
        """Return which flat output positions of a chunk's images are rows of a layer's regression, sorted."""
        total = self._total(layer)
        count = min(total, math.ceil(self.effort.needed(inputs) / max(1, len(self.data))))
        rng = np.random.default_rng([self.seed, 4, layer.index, chunk])
        return np.sort(rng.choice(total, count, replace=False))

    def _weights(self, layer: Layer) -> Array:
        """Return the present weights as they stand in the graph, or are computed there."""
        name = self.model.graph.node[layer.index].input[layer.weight.input]
        if name in self._stored:
            return array(self._stored[name])
        return static_values(self.model, self.free.backend, [name])[name]

    def _coefficients(self, layer: Layer) -> FloatArray:
        """Return the present weights as [groups, inputs x taps, outputs of a group]."""
        node, w = self.model.graph.node[layer.index], layer.weight
        kernel = np.moveaxis(self._weights(layer).astype(np.float64), (w.sums, w.makes), (0, 1))
        kernel = kernel.reshape(*kernel.shape[:2], -1).transpose(0, 2, 1) * w.scale
        groups = self._groups(node, w)
        ins, taps_, outs = kernel.shape
        if groups == 1:
            return kernel.reshape(1, ins * taps_, outs)
        if w.sums == 1:  # Conv: the inputs of one group, all outputs
            split = kernel.reshape(ins, taps_, groups, outs // groups).transpose(2, 0, 1, 3)
        else:  # ConvTranspose: all inputs, the outputs of one group
            split = kernel.reshape(groups, ins // groups, taps_, outs)
        return split.reshape(groups, -1, split.shape[-1])

    @staticmethod
    def _groups(node: NodeProto, weight: Weight) -> int:
        return int(attributes(node).get("group", 1)) if weight.groups > 1 else 1

    def _write(self, layer: Layer, coefficients: FloatArray, bias: FloatArray | None) -> None:
        node, w = self.model.graph.node[layer.index], layer.weight
        values = self._weights(layer)
        moved = np.moveaxis(values, (w.sums, w.makes), (0, 1)).shape
        groups = self._groups(node, w)
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
        if name not in self._stored:
            name = hint
            while name in self._stored:
                name += "_"
            node.input[number] = name
            self._stored[name] = self.model.graph.initializer.add()
        self._stored[name].CopyFrom(tensor(name, values))

    def _bias(self, layer: Layer, width: int) -> FloatArray | None:
        """Return the present bias float64[width]; zeros where one can be added, None where none can."""
        if layer.bias is not None:
            old = array(self._stored[layer.bias]).astype(np.float64)
            factor = layer.weight.bias[1] if layer.weight.bias is not None else 1.0
            return old.ravel() * factor
        return np.zeros(width) if self._free_bias(layer) else None

    def _free_bias(self, layer: Layer) -> bool:
        slot, node = layer.weight.bias, self.model.graph.node[layer.index]
        return slot is not None and (len(node.input) <= slot[0] or not node.input[slot[0]])

    def fit(self, layer: Layer) -> Refit | None:
        """Refit one layer in place; None where it is too large to."""
        old = self._coefficients(layer)
        groups, inputs, outputs = old.shape
        bias = self._bias(layer, groups * outputs)
        if inputs > MAX_COEFFICIENTS:
            return None
        node = self.model.graph.node[layer.index]
        with_bias = int(bias is not None)
        present = old if bias is None else np.concatenate([old, bias.reshape(groups, 1, outputs)], axis=1)
        scale, shift = layer.affine or (np.ones(groups * outputs), np.zeros(groups * outputs))
        response = Response(scale.reshape(groups, 1, -1), shift.reshape(groups, 1, -1), layer.flat)
        rows = Rows(response), Rows(response)
        names = [layer.x, *([layer.addend] if layer.addend else [])]
        alive = self.live.axis(layer.target, layer.outputs)
        pairs = zip(self._flags, self._original([layer.target]), self._present(names), strict=True)
        for number, (flags, (target,), (source, *addend)) in enumerate(pairs):
            at = self._positions(layer, number, inputs)
            design = self._design(layer, node, _channels_second(source, layer.channels), at)
            wanted = _rows(target, layer.outputs, at)
            wanted = wanted if alive is None else wanted[..., alive]
            added = [_rows(values, layer.outputs, at) for values in addend]
            held = _of_rows(flags, len(design))
            for part, chosen in zip(rows, (~held, held), strict=True):
                if chosen.any():
                    part.add(
                        _inputs_of(design[chosen], groups, with_bias),
                        *(_outputs_of(values[chosen], groups) for values in (wanted, *added)),
                    )
        solved, before, after, ridge = solve(*rows, present, inputs, self.effort)
        if ridge is not None:
            self._write(layer, solved[:, :inputs], solved[:, inputs:].reshape(-1) if with_bias else None)
        return Refit(node.name or layer.y, before, after, ridge)

    def _total(self, layer: Layer) -> int:
        shape = self.free.shaped.shapes[layer.y]
        return math.prod(shape) // (shape[0] * shape[layer.outputs]) if len(shape) > 1 else 1

    def _design(self, layer: Layer, node: NodeProto, x: Array, at: NDArray[np.intp]) -> Array:
        """Return the regression's inputs [images, positions, channels, taps]."""
        if is_op(node, "Conv", "ConvTranspose"):
            shapes = self.free.shaped.shapes
            kernel = self.free.shaped.shapes[node.input[1]][2:] if node.input[1] in shapes else ()
            reads = taps(node.op_type, attributes(node), x.shape[2:], shapes[layer.y][2:], kernel)[at]
            return patches(x, reads).transpose(0, 2, 1, 3)
        flat = x.reshape(*x.shape[:2], -1)[:, :, at]
        return flat.transpose(0, 2, 1)[..., None]


def _inputs_of(design: Array, groups: int, with_bias: int) -> Single:
    """Return [images, positions, channels, taps] as rows float32[groups, rows, inputs + bias]."""
    channels, taps_ = design.shape[2:]
    x = design.reshape(-1, groups, channels // groups * taps_).transpose(1, 0, 2).astype(np.float32)
    return np.concatenate([x, np.ones((*x.shape[:2], 1), np.float32)], axis=2) if with_bias else x


def _outputs_of(values: FloatArray, groups: int) -> FloatArray:
    """Return [images, positions, channels] as rows float64[groups, rows, outputs]."""
    return values.reshape(-1, groups, values.shape[-1] // groups).transpose(1, 0, 2)


def _rows(values: Array, channels: int, at: NDArray[np.intp]) -> FloatArray:
    """Return [images, positions, channels] at flat positions of a tensor whose axis 0 is the images."""
    moved = _channels_second(values, channels)
    flat = moved.reshape(*moved.shape[:2], -1)[:, :, at]
    return np.asarray(flat.transpose(0, 2, 1), np.float64)


def _channels_second(values: Array, channels: int) -> Array:
    return np.moveaxis(values, channels, 1) if values.ndim > 1 else values[:, None]


def _images(feeds: Mapping[str, Array]) -> int:
    return len(next(iter(feeds.values())))


def _of_rows(flags: NDArray[np.bool_], rows: int) -> NDArray[np.bool_]:
    """Return the flags of the entries of an axis 0 that may hold several entries an image (windows, heads)."""
    return np.repeat(flags, rows // len(flags)) if rows % len(flags) == 0 else np.resize(flags, rows)
