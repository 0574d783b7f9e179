"""A model and data as they are given -> a traced model and checked data for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap import payoffs, streams
from onnxshap.arguments import worded
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import mixes_rows
from onnxshap.core import Dataset, IntArray
from onnxshap.data import DataLike, InputSpec, are_whole, as_dataset, check_data, random_data
from onnxshap.errors import BudgetError, DataError, ModelError, OnnxshapError
from onnxshap.graph import Source, read
from onnxshap.opening.layouts import at_data, laid_by_data, placed_by_ops, samples_of, scorable
from onnxshap.payoffs.checked import NO_CLASS, are_probabilities, class_axis
from onnxshap.shapes import input_specs
from onnxshap.tracing import Traced

ModelLike = str | Path | bytes | ModelProto | Source | Traced
RANDOM_IMAGES = 32
RANDOM_NUMBERS = 2**27
"""Fewer images are drawn where they would hold more numbers than that: 1 GiB while they are made."""


def calibration(traced: Traced, data: DataLike | None, *, labels: str | Path | None = None, seed: int = 0) -> Dataset:
    """Return checked data for a model; random inputs where none are given.

    Raises:
        DataError: the data do not fit the model.
    """
    shaped, specs, batch = traced.shaped, traced.shaped.specs, traced.batch
    axes = {name: axis for name in shaped.inputs if (axis := shaped.batch_axis(name)) is not None}
    sizes = {name: shaped.inputs[name][axis] for name, axis in axes.items()}
    if odd := next((name for name, size in sizes.items() if size != batch), None):
        raise DataError(
            f"input {odd!r} has {sizes[odd]} entries on axis {axes[odd]}, {next(iter(sizes))!r} {batch}; "
            "a batch must have as many images in every input: export it so, or as a constant"
        )
    if batch > 1 and (whole := next((name for name in shaped.inputs if name not in axes), None)):
        raise DataError(
            f"input {whole!r} has no axis for the images, and the file fixes a batch of {batch}; "
            "export it with a batch of 1, or with a free one"
        )
    if data is None:
        fixed = {n: replace(s, shape=shaped.inputs[n]) for n, s in specs.items()}
        numbers = sum(math.prod(length or 1 for length in spec.entry) for spec in fixed.values())
        return random_data(fixed, min(RANDOM_IMAGES, max(batch, RANDOM_NUMBERS // max(1, numbers))), seed)
    return _with_classes(traced, as_dataset(data, specs, labels=labels, seed=seed))


def _with_classes(traced: Traced, data: Dataset) -> Dataset:
    """Return data whose labels, if they are one-hot along the classes of an output, are class indices.

    So they are if they are smoothed: shares of 1 of which one is more than a half. Images none of whose positions has
    a class are left out.
    """
    if (labels := data.labels) is None or labels.ndim < 2:
        return data
    if (classes := payoffs.as_classes(labels)) is not None:
        empty = np.isin(classes, NO_CLASS).reshape(len(labels), -1).all(axis=1) & (labels.size > len(labels))
        if empty.all():
            raise DataError(f"{data.source}: no position of any image has a class; give labels, or none at all")
        if empty.any():
            kept = data.take(np.flatnonzero(~empty))
            return replace(kept, source=f"{data.source}, {int(empty.sum())} without labels left out")
    for name, batch in zip(traced.outputs, traced.output_axes, strict=True):
        shape = [size for axis, size in enumerate(traced.shaped.shapes[name]) if axis != batch]
        axis = class_axis(labels.ndim, None)
        fits = list(labels.shape[1:]) == shape and shape[axis - 1] > 1
        if fits and are_probabilities(np.moveaxis(labels, axis, 0)) and (labels.max(axis=axis) > 0.5).all():
            return replace(data, labels=labels.argmax(axis=axis))
    return data


def open_model(
    model: ModelLike, data: DataLike | None, *, labels: str | Path | None = None, seed: int = 0,
    backend: OrtBackend | None = None, input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    own: bool = False,
) -> tuple[Traced, Dataset]:  # fmt: skip
    """Return a traced model and checked calibration data; free dimensions are taken from the data.

    It ends where it chooses (`endings`), unless its `own` outputs are wanted: by a payoff of the user's.

    Raises:
        ModelError: the model cannot be read, traced or run.
        DataError: the data do not fit it.
        OnnxshapError: the seed is negative.
    """
    if seed < 0:
        raise OnnxshapError(f"--seed is {seed}; give 0 or more")
    if isinstance(model, Traced):
        return model, calibration(model, data, labels=labels, seed=seed)
    source = read(model)
    shapes = dict(input_shapes or {})
    if data is not None:
        placed = placed_by_ops(source, shapes, backend, own=own)
        specs = input_specs(source.model) if placed is None else placed.shaped.specs
        reading = partial(_read, source, shapes, data, labels=labels, seed=seed, backend=backend, own=own)
        try:
            return reading(specs, placed)
        except (DataError, ModelError):
            if (other := laid_by_data(specs, data, seed)) is None:
                raise
            try:
                return reading(other, None)
            except (DataError, ModelError):  # what is wrong with them as they are declared is told
                pass
            raise
    traced = scorable(source, input_shapes=shapes, backend=backend, own=own)
    checked = calibration(traced, None, seed=seed)
    if traced.shaped.graph.lifted.nodes:  # the branches that these inputs take
        samples = samples_of(checked, traced.shaped.specs)
        taken = scorable(source, input_shapes=traced.shaped.inputs, backend=backend, samples=samples, own=own)
        left = {name: why for name, why in taken.shaped.whole.items() if why != traced.shaped.whole.get(name)}
        told = "random inputs decide: the If that gives {!r}: {}; give --data"
        notes = [worded(told.format(name, why)) for name, why in left.items()]
        traced = replace(taken, shaped=replace(taken.shaped, notes=(*taken.shaped.notes, *notes)))
    return traced, checked


def _read(
    source: Source, shapes: Mapping[str, Sequence[int | None]], data: DataLike, specs: Mapping[str, InputSpec],
    placed: Traced | None, *, labels: str | Path | None, seed: int, backend: OrtBackend | None, own: bool,
) -> tuple[Traced, Dataset]:  # fmt: skip
    """Return a traced model and data that lie as specs say, or where ops tell otherwise as they do."""
    checked = as_dataset(data, specs, labels=labels, seed=seed, wholes=True)
    whole = are_whole(checked.inputs, specs)
    if whole:
        specs = {name: spec.whole for name, spec in specs.items()}
    traced = placed
    if whole or traced is None or traced.shaped.graph.lifted.nodes:
        traced = at_data(source, shapes, checked, specs, backend, own=own)
    if whole:
        _check_mixed(traced, checked)
    elif any(spec.batch != traced.shaped.batch_axis(name) for name, spec in specs.items()):
        specs = traced.shaped.specs
        checked = check_data(checked, specs)
        told = traced.notes
        traced = at_data(source, shapes, checked, specs, backend, own=own)
        if all(spec.batch is None for spec in specs.values()):  # all that was given is one sample
            traced = replace(traced, shaped=replace(traced.shaped, notes=told))
    return traced, _with_classes(traced, checked)


def _check_mixed(traced: Traced, data: Dataset) -> None:
    """Refuse samples of several rows of which each gives what it gives alone: rows are samples then.

    Raises:
        DataError: the rows of axis 0 of the inputs do not depend on each other.
    """
    if not mixes_rows(traced, data):
        raise DataError(
            f"{data.source}: entries have an axis in front of those of one image, and the model gives for each of its "
            "rows what it gives for it alone: rows are images; join both axes, x.reshape(-1, *x.shape[2:])"
        )


def sample(data: Dataset, count: int, seed: int) -> Dataset:
    """Return at most `count` images in random order, so that any first ones of them are a sample too."""
    return data.take(drawn(data, count, seed))


def drawn(data: Dataset, count: int, seed: int) -> IntArray:
    """Return the numbers of the images that `sample` returns, int64[count at most].

    Raises:
        BudgetError: `count` is less than 1.
    """
    if count < 1:
        raise BudgetError(f"--samples is {count}; give at least 1 image")
    return streams.stream(seed, streams.SAMPLE).permutation(len(data))[:count]
