"""Data in batches as a model takes them, and what it gives with the images in front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from onnx import TensorProto

from onnxshap.core import Array, Dataset
from onnxshap.data import feeds_of
from onnxshap.graph import extract
from onnxshap.graph.structure import reads
from onnxshap.tracing import Traced

_MOST = 32
"""Images of a batch at most."""
_LIVE = 8
"""Tensors as large as the largest that a run may hold at a time, about: a dense block's, a few branches'."""


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


def usual_batch(traced: Traced, data: Dataset) -> dict[str, Array]:
    """Return feeds as a model is used and its latency measured: one image, or the batch that the file fixes."""
    count = 1 if traced.shaped.free_batch else traced.batch
    return feeds_of(data.take(np.resize(np.arange(len(data)), count)).inputs, traced.shaped.batch_axes)


def usual_size(traced: Traced) -> int:
    """Return how many images at a time are run for the outputs alone, as far as the memory goes."""
    return fitting(traced, lambda sizes: _LIVE * max(sizes))


def fitting(traced: Traced, held: Callable[[list[int]], int]) -> int:
    """Return how many images at a time the memory holds, given what a run holds of one, of the bytes of all tensors."""
    shaped = traced.shaped
    sizes = bytes_per_image(
        traced, [name for node in shaped.graph.nodes for name in node.output if name in shaped.shapes]
    )
    return int(np.clip(traced.backend.memory // held([1, *sizes]), 1, _MOST))


def activations(
    free: Traced, names: Sequence[str], data: Dataset, most: int, share: int
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield tensors of a model over batches of images, and how many images each holds.

    Args:
        free: the model for evaluation.
        names: the tensors.
        data: calibration inputs.
        most: images of a batch at most.
        share: of the memory, what these tensors of one batch may take, as 1 / share.
    """
    model = free.shaped.graph.model
    given = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    part = extract(model, given, {name: free.shaped.kinds.get(name, TensorProto.FLOAT) for name in names})
    session = free.backend.session(part, frugal=True)
    size = free.backend.memory // (share * max(1, sum(bytes_per_image(free, names))))
    for count, feeds in batches(free, data, max(1, min(most, size))):
        yield count, dict(zip(names, session.run({n: feeds[n] for n in session.inputs}), strict=True))


def live_bytes(traced: Traced) -> int:
    """Return the most bytes that a run of the whole model holds of one image at a time, about, but for what is fed."""
    graph, known = traced.shaped.graph, traced.shaped.shapes
    last = {name: place for place, node in enumerate(graph.nodes) for name in (*node.output, *reads(node))}
    made = {name: place for place, node in enumerate(graph.nodes) for name in node.output if name in known}
    kept = frozenset(traced.outputs)
    change = np.zeros(len(graph.nodes) + 2, np.int64)
    for (name, place), size in zip(made.items(), bytes_per_image(traced, list(made)), strict=True):
        change[place] += size
        # what a node reads is there along with what it gives
        change[len(graph.nodes) if name in kept else last[name] + 1] -= size
    return int(change.cumsum().max())


def bytes_per_image(traced: Traced, names: Sequence[str]) -> list[int]:
    """Return the bytes that one image's part of each tensor takes, at least 1."""
    shapes = (traced.shaped.shapes.get(name, ()) for name in names)
    return [4 * math.prod(shape) // traced.batch + 1 for shape in shapes]
