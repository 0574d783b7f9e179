"""Least-squares repair: after the cut, every linear op is refitted to give what it gave before.

Layer by layer from input to output, on the cut model's own inputs (earlier layers repaired already), against the
original model's pre-activations: ridge regression toward the present weights, closed form, from Gram matrices in
float64. Where an op's output goes into a residual sum, it is fitted so that the *sum* comes out right, which also
repairs what the skip path lost. The ridge is chosen on held-out images, layer by layer; a layer whose held-out error no
ridge lowers is left as it is.

Source: He et al. 2017 (channel pruning, eq. 3), Hoerl and Kennard 1970; differs: ridge toward the present weights,
sum targets, sequential on repaired inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.calibrate import batches
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.errors import DataError
from onnxshap.graph import array, attributes, extract, is_op, tensor
from onnxshap.labels import Liveness, Site, Weight
from onnxshap.shapes import static_values
from onnxshap.taps import patches, taps
from onnxshap.tracing import Keep, Traced

ROWS = 15_000
"""Patches a layer is fitted on, about; more where a layer has more coefficients."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge candidates, in units of the mean squared input."""
MAX_COEFFICIENTS = 6_000
"""Coefficients per output above which a layer is left alone (the Gram matrix would not fit)."""
_HELD_OUT = 5
FEWEST_IMAGES = 20


@dataclass(frozen=True)
class Refit:
    """What the repair did to one layer.

    Attributes:
        node: the layer's name.
        before, after: mean squared error of its held-out outputs over their variance.
        ridge: the ridge chosen; None = left as it was.
    """

    node: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class _Layer:
    """A linear op of the cut model, as a regression.

    Attributes:
        index: its node in the cut model.
        x, y: tensors in and out (`y` after the bias, under its name in both models).
        channels, outputs: channel axes of `x` and `y`.
        weight: how it multiplies.
        bias: name of the constant added to `y`, None where there is none yet or cannot be one.
        target: the tensor to get right: `y`, or the residual sum that it goes into.
        addend: what is added to `y` in that sum.
        affine: per-channel scale and shift between `y` and the sum.
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


def refit(
    traced: Traced,
    free: Traced,
    keep: Keep,
    small: ModelProto,
    data: Dataset,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ModelProto, list[Refit]]:
    """Return the cut model with its linear ops refitted, and what became of each.

    Args:
        traced: the original, as in its file.
        free: the original for evaluation (`calibrate.free_batch`).
        keep: the plan.
        small: the cut model before `graph.finish` (`rewrite.cut`), means folded.
        data: calibration images; a fifth of them is held out to choose the ridge.
        seed: draws the patches.
        progress: told after every layer.

    Raises:
        DataError: fewer than 20 images.
    """
    if len(data) < FEWEST_IMAGES:
        raise DataError(
            f"lstsq needs at least {FEWEST_IMAGES} images, there are {len(data)}; give more, or --repair fold"
        )
    model = ModelProto()
    model.CopyFrom(small)
    live = traced.alive(keep)
    layers = _layers(traced, model, live)
    fitter = _Fitter(free, live, model, data, seed)
    targets = fitter.targets(layers)
    reports = []
    for number, layer in enumerate(layers):
        report = fitter.fit(layer, targets[layer.y])
        if report is not None:
            reports.append(report)
        progress(number + 1, len(layers))
    return model, reports


# --- which ops, and what they should give -----------------------------------------------------------------------------


def _layers(traced: Traced, model: ModelProto, live: Liveness) -> list[_Layer]:
    """Return the linear ops of the cut model behind the first cut, in order, with their targets."""
    produced = {o: k for k, node in enumerate(model.graph.node) for o in node.output}
    readers: dict[str, list[int]] = {}
    for k, node in enumerate(model.graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(k)
    stored = {t.name: t.dims for t in model.graph.initializer}
    graph_outputs = {o.name for o in model.graph.output}
    changed = _behind_cuts(traced, live)
    layers: list[_Layer] = []
    for site in traced.labels.trace.linear:
        y = traced.shaped.graph.nodes[site.node].output[0]
        if y not in changed or y not in produced or site.weight is None:
            continue
        index, bias = produced[y], None
        node = model.graph.node[index]
        if is_op(node, "Add") and node.name == f"{y}.fold":
            index, bias = produced[node.input[0]], node.input[1]
        elif site.weight.bias is not None and len(node.input) > site.weight.bias[0]:
            bias = node.input[site.weight.bias[0]] or None
        if bias is not None and (bias not in stored or math.prod(stored[bias]) != _width(live, site, y, traced)):
            continue  # a computed or broadcast bias: what the op adds is not known
        layers.append(_Layer(index, site.tensor, y, site.axis, site.weight.out, site.weight, bias, y))
    layers.sort(key=lambda layer: layer.index)
    result = []
    for number, layer in enumerate(layers):
        found = None
        if layer.y not in graph_outputs:
            found = _residual_sum(traced, model, layer, readers, produced, graph_outputs)
        if found is not None and found.addend is not None:
            # the last op to be refitted answers for the sum
            pending = {later.index for later in layers[number:]}
            if pending & _ancestors(model, found.addend, produced):
                found = None
        result.append(found or layer)
    return result


def _width(live: Liveness, site: Site, y: str, traced: Traced) -> int:
    assert site.weight is not None
    return live.width(y, site.weight.out, traced.shaped.shapes[y][site.weight.out])


def _behind_cuts(traced: Traced, live: Liveness) -> set[str]:
    """Return the tensors whose values a plan changes."""
    changed: set[str] = set()
    cut_sites = {(s.node, s.input) for s in traced.labels.trace.sites if live.cut(s.tensor, s.axis)}
    for index, node in enumerate(traced.shaped.graph.nodes):
        if any(name in changed for name in node.input) or any(place[0] == index for place in cut_sites):
            changed.update(node.output)
    return changed


def _ancestors(model: ModelProto, name: str, produced: Mapping[str, int]) -> set[int]:
    found: set[int] = set()
    pending = [name]
    while pending:
        k = produced.get(pending.pop())
        if k is not None and k not in found:
            found.add(k)
            pending.extend(model.graph.node[k].input)
    return found


def _residual_sum(
    traced: Traced,
    model: ModelProto,
    layer: _Layer,
    readers: Mapping[str, list[int]],
    produced: Mapping[str, int],
    graph_outputs: set[str],
) -> _Layer | None:
    """Return the layer with the residual sum behind it as its target, None where its output goes elsewhere."""
    name, affine = layer.y, None
    while len(readers.get(name, ())) == 1:
        node = model.graph.node[readers[name][0]]
        if is_op(node, "BatchNormalization") and affine is None and node.input[0] == name:
            values = static_values(model, traced.backend, list(node.input[1:5]))
            scale, shift, mean, variance = (values[n].astype(np.float64) for n in node.input[1:5])
            scale = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
            if (np.abs(scale) < 1e-6 * np.abs(scale).max()).any():
                return None
            affine = scale, shift - mean * scale
        elif is_op(node, "Add", "Sum") and len(node.input) == 2:
            other = node.input[1] if node.input[0] == name else node.input[0]
            same = traced.shaped.shapes.get(other) == traced.shaped.shapes.get(layer.y)
            if other == name or other not in produced or not same or other in traced.shaped.constants:
                return None
            return replace(layer, target=node.output[0], addend=other, affine=affine)
        else:
            return None
        name = node.output[0]
        if name in graph_outputs:
            return None
    return None


# --- regression ------------------------------------------------------------------------------------------------------


@dataclass
class _Gram:
    """Sums over rows of a grouped regression: inputs x inputs, inputs x outputs, outputs squared, rows."""

    xx: FloatArray
    xy: FloatArray
    yy: FloatArray
    y: FloatArray
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, inputs: int, outputs: int) -> _Gram:
        shape = groups, inputs
        return cls(
            np.zeros((*shape, inputs)),
            np.zeros((*shape, outputs)),
            np.zeros((groups, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, x: FloatArray, y: FloatArray) -> None:
        """Add rows: x [groups, rows, inputs], y [groups, rows, outputs]."""
        turned = x.transpose(0, 2, 1)
        self.xx += turned @ x
        self.xy += turned @ y
        self.yy += (y**2).sum(axis=1)
        self.y += y.sum(axis=1)
        self.rows += x.shape[1]

    def plus(self, other: _Gram) -> _Gram:
        """Return the sums over both."""
        return _Gram(
            self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.y + other.y, self.rows + other.rows
        )

    def error(self, coefficients: FloatArray) -> float:
        """Return the mean squared error of [groups, inputs, outputs], over the variance of the outputs."""
        explained = (coefficients * (self.xx @ coefficients - 2 * self.xy)).sum()
        variance = float((self.yy - self.y**2 / max(1, self.rows)).sum())
        return float(explained + self.yy.sum()) / max(variance, 1e-30)

    def solve(self, old: FloatArray, ridge: float, penalised: int) -> FloatArray:
        """Return the ridge solution toward `old`; the last coefficient (the bias) is hardly penalised."""
        diagonal = np.einsum("gii->gi", self.xx)
        strength = ridge * diagonal[:, :penalised].mean(axis=1, keepdims=True)
        penalty = np.full(diagonal.shape, 1.0) * strength
        penalty[:, penalised:] *= 1e-3
        system = self.xx + np.eye(self.xx.shape[1]) * (penalty + 1e-12 * diagonal.max() + 1e-30)[:, None, :]
        return old + np.linalg.solve(system, self.xy - self.xx @ old)


@dataclass
class _Fitter:
    """Fits layers of one model, in order."""

    free: Traced
    live: Liveness
    model: ModelProto
    data: Dataset
    seed: int

    def __post_init__(self) -> None:
        self._stored = {t.name: t for t in self.model.graph.initializer}
        self._kinds = {i.name: i.type.tensor_type.elem_type for i in self.model.graph.input}
        images = len(self.data)
        order = np.random.default_rng([self.seed, 3]).permutation(images)
        self._held_out = np.zeros(images, np.bool_)
        self._held_out[order[: max(1, images // _HELD_OUT)]] = True

    def _chunks(self, names: Sequence[str]) -> Iterator[tuple[int, NDArray[np.bool_], Mapping[str, Array]]]:
        """Yield the number, the held-out flags and the feeds of pieces of the data, small enough for all `names`."""
        shapes = self.free.shaped.shapes
        size = sum(4 * math.prod(shapes.get(n, ())) for n in names) // self.free.batch + 1
        start = 0
        for number, (count, feeds) in enumerate(batches(self.free, self.data, int(np.clip(2**28 // size, 1, 32)))):
            yield number, self._held_out[start : start + count], feeds
            start += count

    def _positions(self, layer: _Layer, chunk: int, total: int) -> NDArray[np.intp]:
        """Return which flat output positions of a chunk's images are rows of a layer's regression, sorted."""
        rows = max(ROWS, 3 * self._inputs(layer))
        count = min(total, math.ceil(rows / max(1, len(self.data))))
        rng = np.random.default_rng([self.seed, 4, layer.index, chunk])
        return np.sort(rng.choice(total, count, replace=False))

    def _inputs(self, layer: _Layer) -> int:
        return int(self._coefficients(layer).shape[1])

    def _coefficients(self, layer: _Layer) -> FloatArray:
        """Return the present weights as [groups, inputs x taps, outputs of a group]."""
        node, w = self.model.graph.node[layer.index], layer.weight
        name = node.input[w.input]
        if name in self._stored:
            values = array(self._stored[name])
        else:
            values = static_values(self.model, self.free.backend, [name])[name]
        kernel = np.moveaxis(values.astype(np.float64), (w.sums, w.makes), (0, 1))
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

    def _write(self, layer: _Layer, coefficients: FloatArray, bias: FloatArray | None) -> None:
        node, w = self.model.graph.node[layer.index], layer.weight
        name = node.input[w.input]
        values = (
            array(self._stored[name])
            if name in self._stored
            else static_values(self.model, self.free.backend, [name])[name]
        )
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

    def _bias(self, layer: _Layer) -> FloatArray | None:
        """Return the present bias float64[outputs]; zeros where one can be added, None where none can."""
        outputs = self._coefficients(layer)
        width = outputs.shape[0] * outputs.shape[2]
        if layer.bias is not None:
            old = array(self._stored[layer.bias]).astype(np.float64)
            factor = layer.weight.bias[1] if layer.weight.bias is not None else 1.0
            return old.ravel() * factor
        return np.zeros(width) if self._free_bias(layer) else None

    def _free_bias(self, layer: _Layer) -> bool:
        slot, node = layer.weight.bias, self.model.graph.node[layer.index]
        return slot is not None and (len(node.input) <= slot[0] or not node.input[slot[0]])

    def targets(self, layers: Sequence[_Layer]) -> dict[str, list[FloatArray]]:
        """Return, by layer output and chunk, the original's values [positions, live outputs] of the layer's rows."""
        found: dict[str, list[FloatArray]] = {layer.y: [] for layer in layers}
        wanted = list(dict.fromkeys(layer.target for layer in layers))
        if not wanted:
            return found
        source = self.free.shaped.graph.model
        session = self.free.backend.session(extract(source, self._kinds, {n: self._kind(n) for n in wanted}))
        for number, flags, feeds in self._chunks(wanted):
            values = dict(zip(wanted, session.run(feeds), strict=True))
            for layer in layers:
                alive = self.live.axis(layer.target, layer.outputs)
                at = self._positions(layer, number, self._total(layer))
                chosen = _rows(values[layer.target][: len(flags)], layer.outputs, at)
                found[layer.y].append(chosen if alive is None else chosen[..., alive])
        return found

    def _kind(self, name: str) -> int:
        return self.free.shaped.kinds.get(name, TensorProto.FLOAT)

    def fit(self, layer: _Layer, targets: Sequence[FloatArray]) -> Refit | None:
        """Refit one layer in place; None where it is too large to."""
        old, bias = self._coefficients(layer), self._bias(layer)
        groups, inputs, outputs = old.shape
        if inputs > MAX_COEFFICIENTS:
            return None
        node = self.model.graph.node[layer.index]
        with_bias = int(bias is not None)
        present = old if bias is None else np.concatenate([old, bias.reshape(groups, 1, outputs)], axis=1)
        grams = [_Gram.zeros(groups, inputs + with_bias, outputs) for _ in range(2)]
        names = [layer.x, *([layer.addend] if layer.addend else [])]
        part = extract(self.model, self._kinds, {n: self._kind(n) for n in names})
        session = self.free.backend.session(part)
        for number, flags, feeds in self._chunks([layer.x, layer.y, *names]):
            values = session.run(feeds)
            wanted = targets[number]
            x = np.moveaxis(values[0], layer.channels, 1) if values[0].ndim > 1 else values[0][:, None]
            at = self._positions(layer, number, self._total(layer))
            if layer.addend is not None:
                wanted = wanted - _rows(values[1][: len(flags)], layer.outputs, at)
            if layer.affine is not None:
                wanted = (wanted - layer.affine[1]) / layer.affine[0]
            design = self._design(layer, node, x[: len(flags)], at)
            for gram, chosen in zip(grams, (~flags, flags), strict=True):
                if chosen.any():
                    gram.add(*self._grouped(design[chosen], wanted[chosen], groups, with_bias))
        train, held_out = grams
        judge = held_out if held_out.rows else train
        before = judge.error(present)
        trials = {ridge: judge.error(train.solve(present, ridge, inputs)) for ridge in RIDGES}
        best = min(trials, key=lambda ridge: trials[ridge])
        name = node.name or layer.y
        if not trials[best] < before:
            return Refit(name, before, before, None)
        solved = train.plus(held_out).solve(present, best, inputs)
        self._write(layer, solved[:, :inputs], solved[:, inputs:].reshape(-1) if with_bias else None)
        return Refit(name, before, trials[best], best)

    def _total(self, layer: _Layer) -> int:
        shape = self.free.shaped.shapes[layer.y]
        return math.prod(shape) // (shape[0] * shape[layer.outputs]) if len(shape) > 1 else 1

    def _design(self, layer: _Layer, node: NodeProto, x: Array, at: NDArray[np.intp]) -> Array:
        """Return the regression's inputs [images, positions, channels, taps]."""
        if is_op(node, "Conv", "ConvTranspose"):
            shapes = self.free.shaped.shapes
            kernel = self.free.shaped.shapes[node.input[1]][2:] if node.input[1] in shapes else ()
            reads = taps(node.op_type, attributes(node), x.shape[2:], shapes[layer.y][2:], kernel)[at]
            return patches(x, reads).transpose(0, 2, 1, 3)
        flat = x.reshape(*x.shape[:2], -1)[:, :, at]
        return flat.transpose(0, 2, 1)[..., None]

    @staticmethod
    def _grouped(design: Array, wanted: Array, groups: int, with_bias: int) -> tuple[FloatArray, FloatArray]:
        """Return rows as [groups, rows, inputs + bias] and [groups, rows, outputs]."""
        channels, taps_ = design.shape[2:]
        x = design.reshape(-1, groups, channels // groups * taps_).transpose(1, 0, 2).astype(np.float64)
        if with_bias:
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
        y = wanted.reshape(len(x[0]), groups, -1).transpose(1, 0, 2).astype(np.float64)
        return x, y


def _rows(values: Array, channels: int, at: NDArray[np.intp]) -> FloatArray:
    """Return [images, positions, channels] at flat positions of a tensor whose axis 0 is the images."""
    moved = np.moveaxis(values, channels, 1) if values.ndim > 1 else values[:, None]
    flat = moved.reshape(*moved.shape[:2], -1)[:, :, at]
    return np.asarray(flat.transpose(0, 2, 1), np.float64)
