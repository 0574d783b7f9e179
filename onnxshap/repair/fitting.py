"""The walk over the layers of a cut model: rows of each regression, and where the solution goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from onnxshap import streams
from onnxshap.blas import threads_for
from onnxshap.calibrate import batches
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.errors import ModelError
from onnxshap.graph import attributes, is_op
from onnxshap.graph.structure import between, copied, reads
from onnxshap.labels import Liveness
from onnxshap.masking import Means
from onnxshap.repair.coefficients import Coefficients
from onnxshap.repair.moments import FEWEST_CORRELATED, FEWEST_ROWS, Moments, pooled_scale
from onnxshap.repair.recurrent import Gates, Recurrent, Seen, Weights, find_recurrent, parts_of
from onnxshap.repair.regression import FULL, MAX_COEFFICIENTS, Effort, Refit, Response, Rows, require_images, solve
from onnxshap.repair.systems import Single
from onnxshap.repair.targets import Layer, changed_by, find_layers
from onnxshap.repair.transfer import transfer
from onnxshap.rewrite import cut
from onnxshap.shapes.constants import static_values
from onnxshap.shapes.images import Images
from onnxshap.taps import patches, taps
from onnxshap.tracing import Keep, Traced
from onnxshap.walk import Repeated, Room, Steps, Walk

_T = TypeVar("_T")
_COPIES = 6
"""Of a layer's coefficients that are there at a time, in float64; of very many inputs, moments are matched where these
do not fit into the memory."""
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
    original: Repeated | None = None,
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
        original: a walk through `free` over `data` in batches, which may hold tensors that the plan leaves as they are
            (`border`): nothing before them is computed again, nor what the walk gave an earlier refit.

    Raises:
        DataError: fewer than 5 images.
    """
    require_images(len(data))
    fitter = _fitter(traced, free, keep, means, data, seed, effort, original, nearest)
    reports = fitter.fitted(progress)
    return _in_file(traced, free, keep, means, fitter.model), reports


def rematch(
    traced: Traced,
    free: Traced,
    keep: Keep,
    means: Means,
    data: Dataset,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelProto:
    """Return the cut model (before `graph.finish`) with its channels' means and variances made what they were.

    Args:
        traced, free, keep, means, progress: as for `refit`.
        data: calibration images.
    """
    fitter = _fitter(traced, free, keep, means, data)
    fitter.matched(progress)
    return _in_file(traced, free, keep, means, fitter.model)


def refit_edited(
    free: Traced,
    model: ModelProto,
    edited: Collection[int],
    data: Dataset,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    nearest: bool = False,
    effort: Effort = FULL,
) -> list[Refit]:
    """Refit, in place, the linear ops of a form of the original in which some nodes have become others.

    Args:
        free: the original for evaluation (`calibrate.free_batch`).
        model: its form with Convs in groups, say; every tensor as wide as before.
        edited: the nodes that are no longer the original's.
        data, seed, progress, effort: as for `refit`.
        nearest: those nodes alone, not the layers behind them.

    Raises:
        DataError: fewer than 5 images.
    """
    require_images(len(data))
    return _edited_fitter(free, model, edited, data, seed, effort, nearest).fitted(progress)


def rematch_edited(
    free: Traced,
    model: ModelProto,
    edited: Collection[int],
    data: Dataset,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make, in place, the channels' means and variances what they were; arguments as for `refit_edited`."""
    fitter = _edited_fitter(free, model, edited, data)
    fitter.matched(progress)


def _edited_fitter(
    free: Traced,
    model: ModelProto,
    edited: Collection[int],
    data: Dataset,
    seed: int = 0,
    effort: Effort = FULL,
    nearest: bool = False,
) -> _Fitter:
    live = free.alive({})
    layers = find_layers(free, model, live, edited)
    if nearest:
        names = {free.shaped.graph.nodes[index].output[0] for index in edited}
        layers = [layer for layer in layers if layer.y in names]
    return _Fitter(free, live, model, data, seed, layers, [], effort)


def _fitter(
    traced: Traced,
    free: Traced,
    keep: Keep,
    means: Means,
    data: Dataset,
    seed: int = 0,
    effort: Effort = FULL,
    original: Repeated | None = None,
    nearest: bool = False,
) -> _Fitter:
    """Return what fits the layers of the cut model."""
    model, live = cut(free, keep, means), traced.alive(keep)
    layers = find_layers(traced, model, live)
    if nearest:
        layers = [layer for layer in layers if live.cut(layer.x, layer.channels)]
    recurrent = find_recurrent(free, model, live, changed_by(free, live), nearest=nearest)
    return _Fitter(free, live, model, data, seed, layers, recurrent, effort, original)


def _in_file(traced: Traced, free: Traced, keep: Keep, means: Means, model: ModelProto) -> ModelProto:
    """Return the cut model in the form of its file, from that for evaluation."""
    return model if traced is free else transfer(model, cut(traced, keep, means))


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
    recurrent: Sequence[Recurrent]
    effort: Effort
    original: Repeated | None = None

    def __post_init__(self) -> None:
        self._constants = Coefficients(self.free, self.model)
        images = len(self.data)
        order = streams.stream(self.seed, streams.REFIT_IMAGES).permutation(images)
        held_out = np.zeros(images, np.bool_)
        held_out[order[: max(1, images // _HELD_OUT)]] = True
        read = [n for layer in self.layers for n in (layer.x, layer.y)] + [layer.x for layer in self.recurrent]
        feeds = (
            [part for _, part in batches(self.free, self.data, batch_size(self.free, read))]
            if self.original is None
            else self.original.walk.batches
        )
        starts = np.cumsum([0, *(self.free.shaped.count(part) for part in feeds)])
        # a fixed batch is filled up with repeats
        self._flags = [
            np.resize(held_out[s:], self.free.shaped.count(part)) for s, part in zip(starts, feeds, strict=False)
        ]
        whole = self.free.shaped.graph.model
        told = _telling_states(whole, self.recurrent)
        # what both walks hold fits into the memory together, unless one is repeated: it goes the same way every time
        room = Room(self.free.backend.memory) if self.original is None else None
        self._original: Steps
        if self.original is None or told is not whole:
            self._original = Walk(self.free, told, feeds, room)
        else:
            self._original = self.original.again()
        self._present = Walk(self.free, self.model, feeds, room, self.live)
        behind = [*(layer.x for layer in self.layers), *(layer.x for layer in self.recurrent)]
        self._read = {name for node in between(self.model.graph.node, (), behind) for name in node.output}

    def _positions(self, layer: Layer, chunk: int, inputs: int, total: int) -> NDArray[np.intp]:
        """Return which of so many flat output positions of a chunk's images are rows of a regression, sorted."""
        count = min(total, math.ceil(self.effort.needed(inputs) / max(1, len(self.data))))
        rng = streams.stream(self.seed, streams.REFIT_ROWS, layer.index, chunk)
        return np.sort(rng.choice(total, count, replace=False))

    def matched(self, progress: Callable[[int, int], None]) -> None:
        """Match the moments of one layer after the other, from input to output, those with one weight at once."""
        sets = self._constants.sets(self.layers)
        _in_order([(layers[0].index, partial(self.match, layers)) for layers in sets], progress)

    def fitted(self, progress: Callable[[int, int], None]) -> list[Refit]:
        """Refit one layer after the other, as `matched`, and return what became of each."""
        steps: list[tuple[int, Callable[[], Refit | None]]] = [
            (layers[0].index, partial(self.fit, layers)) for layers in self._constants.sets(self.layers)
        ]
        steps += [(layer.index, partial(self.fit_recurrent, layer)) for layer in self.recurrent]
        return [report for report in _in_order(steps, progress) if report is not None]

    def fit(self, layers: list[Layer]) -> Refit | None:
        """Refit layers with one weight, each with a bias of its own, in place.

        Where they are too large to, their moments are matched, and None is returned; where they never run, None.
        """
        first = layers[0]
        old = self._constants.read(first)
        groups, inputs, outputs = old.shape
        if inputs > MAX_COEFFICIENTS and _COPIES * old.nbytes > self.free.backend.memory:
            self.match(layers)
            return None
        biases = self._biases(layers, groups * outputs)
        present = np.concatenate([old, *(bias.reshape(groups, 1, outputs) for bias in biases)], axis=1)
        scale, shift = _affine(first, groups * outputs)
        response = Response(scale.reshape(groups, 1, -1), shift.reshape(groups, 1, -1), first.flat)
        rows = Rows(response), Rows(response)
        for number, layer in enumerate(layers):
            own = np.eye(len(layers), dtype=np.float32)[number] if biases else np.empty(0, np.float32)
            self._add_rows(rows, layer, groups, inputs, own, any(other.addend for other in layers))
        if not len(rows[0]):
            return None
        with threads_for(inputs):
            solved, before, after, ridge = solve(*rows, present, inputs, self.effort)
        if after < before:
            fitted = [solved[:, inputs + number].reshape(-1) for number in range(len(biases))]
            self._constants.write(layers, solved[:, :inputs], fitted)
            self._go_on(layers)
        return Refit(self.model.graph.node[first.index].name or first.y, before, after, ridge)

    def _biases(self, layers: Sequence[Layer], width: int) -> list[FloatArray]:
        """Return the biases that layers with one weight have or may get; none where one of them may not."""
        found = [self._constants.bias(layer, width) for layer in layers]
        return [bias for bias in found if bias is not None] if all(bias is not None for bias in found) else []

    def _add_rows(
        self, rows: tuple[Rows, Rows], layer: Layer, groups: int, inputs: int, own: Single, addends: bool
    ) -> None:
        """Add a layer's rows to those that are fitted and those held out; `own` are the inputs of the biases."""
        node = self.model.graph.node[layer.index]
        names = [layer.x, *([layer.addend] if layer.addend else [])]
        pairs = zip(self._flags, self._original([layer.target]), self._present(names), strict=True)
        for number, (flags, (target,), (source, *addend)) in enumerate(pairs):
            target = self.live.narrowed(layer.target, target)
            if not (target.size and source.size):
                continue  # as many as the data tell, and these tell of none
            at = self._positions(layer, number, inputs, math.prod(_channels_second(target, layer.outputs).shape[2:]))
            design = self._design(layer, node, _channels_second(source, layer.channels), at)
            wanted = _rows(target, layer.outputs, at)
            if len(design) != len(wanted):
                continue  # those of the cut model tell of others
            added = [_rows(values, layer.outputs, at) for values in addend]
            if addends and not added:
                added = [np.zeros_like(wanted)]
            held = self._of_images(flags, layer, target.shape, at)
            for part, chosen in zip(rows, (~held, held), strict=True):
                if chosen.any():
                    part.add(
                        _inputs_of(design[chosen], groups, own),
                        *(_outputs_of(values[chosen], groups) for values in (wanted, *added)),
                    )

    def _of_images(
        self, flags: NDArray[np.bool_], layer: Layer, shape: Sequence[int], at: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Return the flags of a target's rows, those of their images: bool[axis 0] or bool[axis 0, positions].

        Images lie on another axis behind a Transpose (steps first), or share one with steps, windows or heads.
        """
        rest = [axis for axis in range(len(shape)) if axis != layer.outputs]
        place = self.free.images(layer.target)
        if place is None or place.axis not in rest:
            return _of_rows(flags, shape[rest[0]] if rest else len(flags))
        own = _of_rows(flags, shape[place.axis], place)
        if place.axis == rest[0]:
            return own
        along = own.reshape([-1 if axis == place.axis else 1 for axis in rest])
        return np.broadcast_to(along, [shape[axis] for axis in rest]).reshape(shape[rest[0]], -1)[:, at]

    def fit_recurrent(self, layer: Recurrent) -> Refit:
        """Refit the weights of a recurrent op, in place."""
        node, kept = self.model.graph.node[layer.index], self.live.axis(layer.states_weight, 2)
        whole = Weights.of(self.free.shaped.graph.model, layer.node, self.free)
        present = Weights.of(self.model, node, self.free)
        gates = Gates(layer, whole, present, np.ones(whole.r.shape[2], np.bool_) if kept is None else kept)
        parts = [(part, (Rows(Response()), Rows(Response()))) for part in parts_of(layer)]
        for number, (flags, seen) in enumerate(zip(self._flags, self._seen(layer), strict=True)):
            held_out = _of_rows(flags, seen.x.shape[1], self.free.images(layer.x))
            for part, rows in parts:
                count = math.ceil(self.effort.needed(gates.inputs(part)) / max(1, len(self.data)))
                rng = streams.stream(self.seed, streams.REFIT_ROWS, layer.index, number)
                gates.add(part, rows, seen, held_out, min(1.0, count / len(seen.x)), rng)
        errors, ridges = list[tuple[float, float]](), list[float]()
        for part, rows in parts:
            solved, was, now, ridge = solve(*rows, gates.present(part), gates.inputs(part), self.effort)
            gates.take(part, solved)
            errors.append((was, now))
            ridges += [] if ridge is None else [ridge]
        before, after = (float(np.mean(column)) for column in zip(*errors, strict=True))
        if any(now < was for was, now in errors):
            gates.store(node, self._constants.store)
            self._present.rewired([layer.index])
        return Refit(layer.name, before, after, max(ridges, default=None))

    def _seen(self, layer: Recurrent) -> Iterator[Seen]:
        """Yield what a recurrent op sees, batch by batch."""
        given = [name for name in (layer.start, layer.lengths) if name]
        fixed = static_values(
            self.free.shaped.graph.model, self.free.backend, [n for n in given if n in self.free.shaped.constants]
        )
        asked = [layer.x, layer.states, *(name for name in given if name not in fixed)]
        for values, (x,) in zip(self._original(asked), self._present([layer.x]), strict=True):
            found = fixed | dict(zip(asked, values, strict=True))
            yield Seen(found[layer.x], x, found[layer.states], found.get(layer.start), found.get(layer.lengths))

    def match(self, layers: list[Layer]) -> None:
        """Make the mean and the variance of the channels of layers with one weight what they were, in place.

        The scale is one for all of them, a compromise with least squares where layers follow (`moments`). A few values
        tell neither mean nor variance.
        """
        old = self._constants.read(layers[0])
        groups, _, outputs = old.shape
        scale, shift = _affine(layers[0], groups * outputs)
        biases = self._biases(layers, groups * outputs)
        every = [self._moments(layer, scale, shift, shifted=bool(biases)) for layer in layers]
        if any(moments.rows < FEWEST_ROWS for moments in every):
            return
        inner = any(layer.y in self._read for layer in layers)
        enough = len(self.data) >= FEWEST_CORRELATED
        factor = pooled_scale(every, correlated=inner and enough, shifted=bool(biases))
        nothing = np.zeros(len(factor))
        offsets = [(factor * shift + m.shift(factor) - shift) / scale if biases else nothing for m in every]
        matched = [bias * factor + offset for bias, offset in zip(biases, offsets, strict=False)]
        self._constants.write(layers, old * factor.reshape(groups, 1, outputs), matched)
        for layer, offset in zip(layers, offsets, strict=True):
            self._present.edited(layer.y, partial(_scaled, channels=layer.outputs, factor=factor, offset=offset))
        self._go_on(layers)

    def _moments(self, layer: Layer, scale: FloatArray, shift: FloatArray, *, shifted: bool) -> Moments:
        """Return those of a layer's outputs, and of what they should be; not `shifted`: of both without the shift."""
        names = [layer.y, *([layer.addend] if layer.addend else [])]
        moments = Moments()
        for (target,), values in zip(self._original([layer.target]), self._present(names), strict=True):
            target = self.live.narrowed(layer.target, target)
            wanted, given, *added = (_every_row(v, layer.outputs) for v in (target, *values))
            if len(wanted) != len(given):
                continue  # as in `_add_rows`
            u, t = (given * scale + shift, wanted) if shifted else (given * scale, wanted - shift)
            moments.add(u, t, added[0] if added else None)
        return moments

    def _go_on(self, layers: Sequence[Layer]) -> None:
        """Go on with the weights that layers got.

        What is held is computed again where one of several layers that were changed at once lies behind another.
        """
        self._present.rewired(layer.index for layer in layers)
        changed = {layer.y for layer in layers} if len(layers) > 1 else set[str]()
        for node in self.model.graph.node if changed else ():
            if not changed.isdisjoint(reads(node)):
                changed.update(node.output)
        if any(name in changed for layer in layers for name in (layer.x, layer.addend)):
            self._present.restart()

    def _design(self, layer: Layer, node: NodeProto, x: Array, at: NDArray[np.intp]) -> Array:
        """Return the regression's inputs [images, positions, channels, taps]."""
        if is_op(node, "Conv", "ConvTranspose"):
            shapes = self.free.shaped.shapes
            kernel = shapes[node.input[1]][2:] if node.input[1] in shapes else ()
            made = self.live.shape(layer.y, shapes[layer.y])[2:]
            read = taps(node.op_type, attributes(node), x.shape[2:], made, kernel)
            if at.max(initial=0) >= len(read):
                raise ModelError(
                    f"{node.op_type} {node.name or node.output[0]!r} runs along the axis of the batch, and takes "
                    "another one for the images; export the model with that one called the batch, or use --repair fold"
                )
            return patches(x, read[at]).transpose(0, 2, 1, 3)
        flat = x.reshape(*x.shape[:2], -1)[:, :, at]
        return flat.transpose(0, 2, 1)[..., None]


def _in_order(steps: Sequence[tuple[int, Callable[[], _T]]], progress: Callable[[int, int], None]) -> list[_T]:
    """Take steps in the order of their nodes, and return what they give."""
    found = list[_T]()
    for _, step in sorted(steps, key=lambda step: step[0]):
        found.append(step())
        progress(len(found), len(steps))
    return found


def _telling_states(model: ModelProto, layers: Sequence[Recurrent]) -> ModelProto:
    """Return a model whose recurrent ops give all their states."""
    produced = {o for node in model.graph.node for o in node.output}
    untold = {tuple(layer.node.output)[1:]: layer.node for layer in layers if layer.states not in produced}
    told = copied(model) if untold else model
    for node in told.graph.node if untold else ():
        if not node.output[0] and tuple(node.output)[1:] in untold:
            node.CopyFrom(untold[tuple(node.output)[1:]])
    return told


def _affine(layer: Layer, width: int) -> tuple[FloatArray, FloatArray]:
    return layer.affine or (np.ones(width), np.zeros(width))


def _inputs_of(design: Array, groups: int, own: Single) -> Single:
    """Return [..., channels, taps] as rows float32[groups, rows, inputs + biases]."""
    channels, taps_ = design.shape[-2:]
    x = design.reshape(-1, groups, channels // groups * taps_).transpose(1, 0, 2).astype(np.float32)
    return np.concatenate([x, np.broadcast_to(own, (*x.shape[:2], len(own)))], axis=2) if len(own) else x


def _outputs_of(values: Array, groups: int) -> Array:
    """Return [..., channels] as rows [groups, rows, outputs]."""
    return values.reshape(-1, groups, values.shape[-1] // groups).transpose(1, 0, 2)


def _rows(values: Array, channels: int, at: NDArray[np.intp]) -> Array:
    """Return [images, positions, channels] at flat positions of a tensor whose axis 0 is the images.

    They are of float32 where all its numbers are of that.
    """
    moved = _channels_second(values, channels)
    flat = moved.reshape(*moved.shape[:2], -1)[:, :, at].transpose(0, 2, 1)
    return flat.astype(np.float32 if values.dtype in (np.float16, np.float32) else np.float64, copy=False)


def _every_row(values: Array, channels: int) -> FloatArray:
    """Return [rows, channels] of all positions of a tensor."""
    moved = np.moveaxis(values, channels, -1)
    return moved.reshape(-1, moved.shape[-1]).astype(np.float64)


def _channels_last(values: Array, channels: int, change: Callable[[Array], Array]) -> Array:
    """Return a tensor changed with its channels on the last axis."""
    changed = np.moveaxis(change(np.moveaxis(values, channels, -1)), -1, channels)
    return np.ascontiguousarray(changed, values.dtype)


def _scaled(values: Array, channels: int, factor: FloatArray, offset: FloatArray) -> Array:
    """Return a tensor with its channels scaled and shifted."""
    return _channels_last(values, channels, lambda v: v * factor + offset)


def _channels_second(values: Array, channels: int) -> Array:
    """Return a tensor with its channels on axis 1; one of nothing else is that of one image."""
    return np.moveaxis(values, channels, 1) if values.ndim > 1 else values[None]


def _of_rows(flags: NDArray[np.bool_], rows: int, place: Images | None = None) -> NDArray[np.bool_]:
    """Return the flags of the entries of an axis that may hold several entries an image (windows, heads, steps).

    Those of an image lie side by side unless its place says otherwise; of what is around it a cut may have left less.
    """
    if rows % len(flags):
        return np.resize(flags, rows)
    inner = rows // len(flags) if place is None or place.outer == 1 else place.inner
    return flags[np.arange(rows) // inner % len(flags)]
