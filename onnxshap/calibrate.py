"""Runs models over data sets, and statistics of activations reduced inside the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxshap.arguments import checked
from onnxshap.backend import Session
from onnxshap.codes import foldable
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.data import feeds_of
from onnxshap.errors import DataError, ModelError
from onnxshap.graph import extract, tensor
from onnxshap.graph.structure import copied
from onnxshap.labels.fixups import give
from onnxshap.masking import SiteKey
from onnxshap.shapes.batching import freed_model, steady_model
from onnxshap.tracing import Traced

_STATISTICS = "onnxshap.statistics."
_TOLD = 16
"""Images that tell whether a batch mixes them."""
_ROUNDED = 5e-3
"""Of the largest output, what may be rounding: a code of 8 bits, as kernels differ from batch to batch on a device."""
_MOST = 32
"""Images of a batch at most."""
_LIVE = 8
"""Tensors as large as the largest that a run may hold at a time, about: a dense block's, a few branches'."""
_POSITIONS = 256
"""Of an image, about as many as covariances are taken over."""


def free_batch(traced: Traced) -> Traced:
    """Return the same model for evaluation, any number of images at a time where the model allows it.

    Where their axis is free, a Squeeze of all axes of size 1 would take it from a single image; the axes are named.
    Exporters write sizes with the batch spelled out, and constants for one image; `batching` makes them follow it.
    Whether that worked, and whether images are apart on another axis than 0 (steps come first), is measured: two
    images at once must give what they give one by one, else the model is left alone, evaluated at its own batch size.
    """
    shaped = traced.shaped
    if any(shaped.batch_axis(name) is None for name in shaped.inputs):
        return traced
    free = all(spec.shape[shaped.batch_axis(name) or 0] is None for name, spec in shaped.specs.items())
    model = (steady_model(shaped) or shaped.graph.model) if free else freed_model(shaped)
    if model is None or (shaped.free_batch and model is shaped.graph.model):
        return traced
    freed = replace(traced, shaped=replace(shaped, graph=replace(shaped.graph, model=model), free_batch=True))
    return freed if shaped.free_batch or _same_rows(traced, freed) else traced


def _same_rows(traced: Traced, freed: Traced) -> bool:
    """Return whether two batches of random images at once give what they give one by one, whatever the other is.

    What an image gives must not change by a bit with what lies beside it: a mask that is taken from the first image for
    all of them may make less of a difference than rounding does.
    """
    rng = np.random.default_rng(0)
    inputs = traced.shaped.graph.model.graph.input
    kinds = {i.name: np.dtype(helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)) for i in inputs}

    def drawn() -> dict[str, Array]:
        return {
            name: (rng.normal(size=shape) if kinds[name].kind == "f" else rng.integers(0, 2, shape)).astype(kinds[name])
            for name, shape in traced.shaped.inputs.items()
        }

    def both(one: Mapping[str, Array], two: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.concatenate([one[name], two[name]], traced.shaped.batch_axis(name) or 0) for name in one}

    first, second, other = drawn(), drawn(), drawn()
    try:
        one = traced.backend.session(traced.shaped.graph.model)
        apart = [by_image(traced, one.run(feeds)) for feeds in (first, second)]
        session = freed.backend.session(freed.shaped.graph.model)
        together, before, behind = (
            by_image(freed, session.run(both(*pair))) for pair in ((first, second), (first, other), (other, second))
        )
    except ModelError:
        return False
    return all(
        a.ndim
        and t.shape == (2 * len(a), *a.shape[1:]) == x.shape == y.shape
        and np.allclose(t, np.concatenate([a, b]), rtol=1e-4, atol=1e-5, equal_nan=True)
        and t[: len(a)].tobytes() == x[: len(a)].tobytes()
        and t[len(a) :].tobytes() == y[len(a) :].tobytes()
        for a, b, t, x, y in zip(*apart, together, before, behind, strict=True)
    )


def rows_apart(traced: Traced, data: Dataset) -> bool:
    """Return whether images give together what each gives alone, as far as the first `_TOLD` tell.

    At every place of a batch: a running sum along it tells the first image nothing of the rest, an extreme nothing the
    image that has it. A file says of its batch only that it is free; what is made free here is held to more
    (`free_batch`).
    """
    first = data.take(slice(_TOLD))
    session = traced.backend.session(traced.shaped.graph.model)
    together = list(_rows(traced, session, first))
    alone = [next(_rows(traced, session, first.take(np.array([image])))) for image in range(len(first))]
    for a, b in zip(zip(*together, strict=True), zip(*alone, strict=True), strict=True):
        if len({value.shape[1:] for value in (*a, *b)}) > 1:
            return False
        found, wanted = np.concatenate(a), np.concatenate(b)
        if found.dtype.kind in "fiub":
            rounded = _ROUNDED * float(np.abs(found).max(initial=0))
            if not np.allclose(found, wanted, rtol=0, atol=rounded):
                return False
    return True


def mixes_rows(traced: Traced, data: Dataset) -> bool:
    """Return whether a row of axis 0 gives something else with other rows beside, or nothing of its own.

    Args:
        traced: a model that takes a whole input for a sample.
        data: of which the first two samples tell, by what each gives with half of its rows those of the other.
    """
    first = {name: value[0] for name, value in data.inputs.items()}
    second = {name: value[1] if len(data) > 1 else np.roll(value[0], 1, axis=0) for name, value in data.inputs.items()}
    lengths = {len(value) for value in first.values() if value.ndim}
    if len(lengths) > 1:
        return True
    rows = lengths.pop()
    half = rows // 2
    joined = {n: np.concatenate([v[:half], second[n][half:]]) if v.ndim else v for n, v in first.items()}
    session = traced.backend.session(traced.shaped.graph.model)
    try:
        every = [session.run(feeds) for feeds in (first, second, joined)]
    except ModelError:  # they do not go with one another
        return True
    return not all(
        a.shape == b.shape == c.shape
        and a.shape[:1] == (rows,)
        and all(
            np.allclose(x, y, rtol=0, atol=1e-3 * np.abs(x).max(initial=0))
            for x, y in ((a[:half], c[:half]), (b[half:], c[half:]))
        )
        for a, b, c in zip(*every, strict=True)
        if a.dtype.kind in "fiu"
    )


def batches(traced: Traced, data: Dataset, size: int, least: int = 1) -> Iterator[tuple[int, Mapping[str, Array]]]:
    """Yield feeds of consecutive images and how many images they hold.

    A fixed batch is filled up with repeats, and a free one of less than `least` images, if it may be of several. Where
    all images of a batch share a range of codes it is of one: each is rounded as in the game, and as it is alone.
    """
    fixed, apart = not traced.shaped.free_batch, traced.shaped.apart
    step = traced.batch if fixed else 1 if apart or traced.labels.trace.shares_ranges else size
    fewest = step if fixed else 1 if apart else least
    for start in range(0, len(data), step):
        part = data.take(slice(start, start + step))
        filled = part if len(part) >= fewest else part.take(np.resize(np.arange(len(part)), fewest))
        yield len(part), feeds_of(filled.inputs, traced.shaped.batch_axes)


def bytes_per_image(traced: Traced, names: Sequence[str]) -> list[int]:
    """Return the bytes that one image's part of each tensor takes, at least 1."""
    shapes = (traced.shaped.shapes.get(name, ()) for name in names)
    return [4 * int(np.prod(shape)) // traced.batch + 1 for shape in shapes]


def usual_size(traced: Traced) -> int:
    """Return how many images at a time are run for the outputs alone, as far as the memory goes."""
    return _fitting(traced, lambda sizes: _LIVE * max(sizes))


def _fitting(traced: Traced, held: Callable[[list[int]], int]) -> int:
    """Return how many images at a time the memory holds, given what a run holds of one, of the bytes of all tensors."""
    shaped = traced.shaped
    sizes = bytes_per_image(
        traced, [name for node in shaped.graph.nodes for name in node.output if name in shaped.shapes]
    )
    return int(np.clip(traced.backend.memory // held([1, *sizes]), 1, _MOST))


def usual_batch(traced: Traced, data: Dataset) -> dict[str, Array]:
    """Return feeds as a model is used and its latency measured: one image, or the batch that the file fixes."""
    count = 1 if traced.shaped.free_batch else traced.batch
    return feeds_of(data.take(np.resize(np.arange(len(data)), count)).inputs, traced.shaped.batch_axes)


def by_image(
    traced: Traced,
    outputs: Sequence[Array],
    numbers: Sequence[int] | None = None,
    moveaxis: Callable[[Array, int, int], Array] = np.moveaxis,
    images: int | None = None,
) -> list[Array]:
    """Return outputs with the images on axis 0, wherever the model has them.

    Where a model is run with one image and an output has no axis for it, all of it is that image's. Where the images
    share an axis with positions ([images x steps, classes]), these get one of their own.

    Args:
        traced: the model.
        outputs: of it.
        numbers: those of its outputs that are given; default all of them.
        moveaxis: moves an axis of what they are.
        images: how many they hold; default as many as there are at the sizes that the model was traced at.
    """

    def moved(value: Array, name: str) -> Array:
        place = traced.images(name)
        if place is None:
            return value[None] if traced.single and not (value.ndim and len(value) == 1) else value
        if place.alone:
            return moveaxis(value, place.axis, 0) if place.axis else value
        size = value.shape[place.axis]
        count = images or size // (place.outer * place.inner)
        inner, rest = divmod(size, count * place.outer)
        if rest or (inner > 1) != (place.inner > 1):
            return value
        own = [part for part, wide in ((place.outer, place.outer > 1), (count, True), (inner, inner > 1)) if wide]
        apart = value.reshape(*value.shape[: place.axis], *own, *value.shape[place.axis + 1 :])
        return moveaxis(apart, place.axis + (place.outer > 1), 0)

    names = traced.outputs if numbers is None else [traced.outputs[k] for k in numbers]
    return [moved(value, name) for value, name in zip(outputs, names, strict=True)]


def run_all(
    traced: Traced,
    model: ModelProto,
    data: Dataset,
    extra: Mapping[str, Array] | None = None,
    *,
    optimize: bool = True,
) -> list[Array]:
    """Return the outputs of `model`, a form of the traced one, on all images.

    Args:
        traced: tells the batch sizes allowed.
        model: what to run.
        data: n images.
        extra: further feeds, the same for every batch (mask rows of 1).
        optimize: let onnxruntime fuse nodes.

    Returns:
        One array an output, [n, ...].

    Raises:
        DataError: an output has no entry for every image.
        ModelError: an output is no tensor.
    """
    session = traced.backend.session(_unnoted(model), optimize=optimize)
    if 0 in session.kinds:
        name = session.outputs[list(session.kinds).index(0)]
        raise ModelError(
            f"output {name!r} is no tensor (a sequence or a map), by which a model cannot be judged; export it "
            "without, or as an array (skl2onnx: zipmap=False)"
        )
    columns = list(zip(*_rows(traced, session, data, extra), strict=True))
    for name, column in zip(session.outputs, columns, strict=True):
        sizes = list(dict.fromkeys(value.shape[1:] for value in column))
        if len(sizes) > 1:
            raise DataError(
                f"output {name!r} is {list(sizes[0])} for some images and {list(sizes[1])} for others (as many as are "
                "found in them), which cannot be compared; export the model without what selects (NonMaxSuppression), "
                "or give images alike in size"
            )
    return [np.concatenate(column) for column in columns]


def _unnoted(model: ModelProto) -> ModelProto:
    """Return a model without the shapes that its exporter noted, which may be those of one batch alone.

    onnxruntime believes them where it fuses nodes, and then takes no other batch.
    """
    if not model.graph.value_info:
        return model
    bare = copied(model)
    del bare.graph.value_info[:]
    return bare


def _rows(
    traced: Traced, session: Session, data: Dataset, extra: Mapping[str, Array] | None = None
) -> Iterator[list[Array]]:
    """Yield the outputs of batches of images, each [images, ...]; the rest is as in `run_all`."""
    for count, feeds in batches(traced, data, usual_size(traced), least=2):  # of one image a Squeeze may take the axis
        rows = traced.shaped.count(feeds)
        outputs = by_image(traced, session.run({**feeds, **(extra or {})}), images=rows)
        for name, value in zip(session.outputs, outputs, strict=True):
            if value.ndim == 0 or len(value) != rows:
                raise DataError(
                    f"output {name!r} has shape {list(value.shape)} for {rows} images, no axis of which is known to be "
                    "theirs; export the model with a free batch that every output has"
                )
        yield [value[:count] for value in outputs]


def channel_means(
    traced: Traced, data: Dataset, places: Sequence[tuple[str, int]], transform: str = "identity"
) -> dict[tuple[str, int], FloatArray]:
    """Return the mean over images and positions of every channel of some tensors, and over iterations inside loops.

    Args:
        traced: a model whose batch is free, if it can be (`free_batch`).
        data: calibration images.
        places: tensors and their channel axes.
        transform: what is averaged: identity, `abs`, `square`, or `positive` (1 where > 0).

    Returns:
        (tensor, axis) -> float64[n]; none of tensors in a body in a body, whose iterations differ in number.
    """
    todo = [place for place in dict.fromkeys(places) if traced.depth(place[0]) < 2]
    if not todo:
        return {}
    session = traced.backend.session(_averaging(traced, todo, transform))
    sums, total = [np.zeros(traced.shaped.shapes[name][axis]) for name, axis in todo], 0
    for count, feeds in batches(traced, data, _fitting(traced, sum)):  # onnxruntime may average all of them in the end
        total += count
        for k, (found, (name, _)) in enumerate(zip(session.run(feeds), todo, strict=True)):
            whole = found.astype(np.float64)
            if traced.depth(name):
                whole = whole.mean(axis=0) if len(whole) else np.zeros(whole.shape[1:])
            sums[k] += whole * count if traced.batch_axis(name) is None else whole[:count].sum(axis=0)
    return {place: s / total for place, s in zip(todo, sums, strict=True)}


def _averaging(traced: Traced, places: Sequence[tuple[str, int]], transform: str) -> ModelProto:
    """Return a model whose outputs are what `channel_means` sums up: [images, n] each, or [n] without images."""
    shaped = traced.shaped
    model = ModelProto()
    model.CopyFrom(shaped.graph.model)
    graph = model.graph
    names, outputs = shaped.graph.names(), dict[str, int]()

    def put(kind: str, inputs: Sequence[str], wish: str, **given: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [made := names.new(wish)], **given))
        return made

    def constant(wish: str, values: Array) -> str:
        graph.initializer.append(tensor(names.new(wish), values))
        return graph.initializer[-1].name

    for number, (name, axis) in enumerate(places):
        base, batch = f"{_STATISTICS}{number}", traced.batch_axis(name)
        source = put("Cast", [name], f"{base}.x", to=TensorProto.FLOAT)
        if transform == "abs":
            source = put("Abs", [source], f"{base}.t")
        elif transform == "square":
            source = put("Mul", [source, source], f"{base}.t")
        elif transform == "positive":
            source = put("Sign", [put("Relu", [source], f"{base}.relu")], f"{base}.t")
        axes = [a for a in range(len(shaped.shapes[name])) if a not in (axis, batch)]
        if axes:
            source = put("ReduceMean", [source], f"{base}.mean", keepdims=0)
            give(graph.node[-1], "axes", axes, partial(constant, f"{base}.mean.axes"), shaped.graph.opset)
        if batch is not None and batch > axis:
            source = put("Transpose", [source], f"{base}.turned", perm=[1, 0])
        outputs[source] = TensorProto.FLOAT
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    return extract(model, kinds, outputs)


def channel_covariances(traced: Traced, data: Dataset, names: Sequence[str]) -> dict[str, FloatArray]:
    """Return the covariance of the channels, on axis 1, of some tensors over images and positions.

    Args:
        traced: a model whose batch is free, if it can be (`free_batch`).
        data: calibration images.
        names: the tensors, channels on axis 1.

    Returns:
        tensor -> float64[channels, channels].
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    shaped = traced.shaped
    kinds = {i.name: i.type.tensor_type.elem_type for i in shaped.graph.model.graph.input}
    part = extract(shaped.graph.model, kinds, {n: shaped.kinds.get(n, TensorProto.FLOAT) for n in wanted})
    session = traced.backend.session(part)
    rows, sums, products = dict.fromkeys(wanted, 0), dict[str, FloatArray](), dict[str, FloatArray]()
    for _, feeds in batches(traced, data, min(8, _fitting(traced, sum))):
        for name, found in zip(wanted, session.run(feeds), strict=True):
            flat = found.reshape(*found.shape[:2], -1)
            flat = flat[:, :, :: max(1, flat.shape[2] // _POSITIONS)]
            x = flat.transpose(1, 0, 2).reshape(flat.shape[1], -1).astype(np.float64)
            rows[name] += x.shape[1]
            sums[name] = sums.get(name, 0.0) + x.sum(axis=1)
            products[name] = products.get(name, 0.0) + x @ x.T
    means = {name: sums[name] / rows[name] for name in wanted}
    return {name: products[name] / rows[name] - np.outer(mean, mean) for name, mean in means.items()}


@checked
def site_means(traced: Traced, data: Dataset) -> dict[SiteKey, FloatArray]:
    """Return, for every site whose consumer can take them up, the calibration mean of each channel.

    A branch of an If that the data do not take may give anything; what is not finite there counts as 0.
    """
    sites = [s for s in traced.labels.trace.sites if foldable(traced.shaped, s)]
    sites = [s for s in sites if (traced.labels.units(s.tensor, s.axis) >= 0).any()]
    means = channel_means(traced, data, [(s.tensor, s.axis) for s in sites])
    found = [((s.node, s.input), means[s.tensor, s.axis]) for s in sites if (s.tensor, s.axis) in means]
    return {key: np.nan_to_num(values, posinf=0.0, neginf=0.0) for key, values in found}
