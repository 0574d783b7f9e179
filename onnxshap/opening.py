"""What every job starts with: a traced model, checked data for it, the original's outputs, a payoff that fits them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap import payoffs, streams
from onnxshap.backend import OrtBackend
from onnxshap.bases import Bases, Turned, turned
from onnxshap.calibrate import free_batch, mixes_rows, run_all
from onnxshap.core import Array, Dataset, Payoff
from onnxshap.data import DataLike, InputSpec, are_whole, as_dataset, check_data, feeds_of, random_data
from onnxshap.endings import ended, gives_classes
from onnxshap.errors import BudgetError, DataError, ModelError, OnnxshapError
from onnxshap.graph import Source, read
from onnxshap.groups import Group, select
from onnxshap.outputs import check_outputs
from onnxshap.payoffs.checked import NO_CLASS, are_probabilities, class_axis
from onnxshap.shapes import check_names, input_specs
from onnxshap.tracing import Traced, trace

ModelLike = str | Path | bytes | ModelProto | Source | Traced
RANDOM_IMAGES = 32
RANDOM_NUMBERS = 2**27
"""Fewer images are drawn where they would hold more numbers than that: 1 GiB while they are made."""
SAMPLES = 128
"""Calibration images to score with, where nothing else is said."""
REPAIR_IMAGES = 1024
"""Most calibration images to measure curves and to refit with."""
_ODD = "they may be no values for this model; give --data"
FEWEST_DIVIDED = 40
"""Images of which two fifths may be held out."""


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
        raise OnnxshapError(f"seed is {seed}; give 0 or more")
    if isinstance(model, Traced):
        return model, calibration(model, data, labels=labels, seed=seed)
    source = read(model)
    shapes = dict(input_shapes or {})
    if data is not None:
        placed = _placed(source, shapes, backend, own=own)
        specs = input_specs(source.model) if placed is None else placed.shaped.specs
        reading = partial(_read, source, shapes, data, labels=labels, seed=seed, backend=backend, own=own)
        try:
            return reading(specs, placed)
        except (DataError, ModelError):
            if (other := _laid_by_data(specs, data, seed)) is None:
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
        notes = (f"random inputs decide: the If that gives {name!r}: {why}; give --data" for name, why in left.items())
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
        traced = _at_data(source, shapes, checked, specs, backend, own=own)
    if whole:
        _check_mixed(traced, checked)
    elif any(spec.batch != traced.shaped.batch_axis(name) for name, spec in specs.items()):
        specs = traced.shaped.specs
        checked = check_data(checked, specs)
        told = traced.notes
        traced = _at_data(source, shapes, checked, specs, backend, own=own)
        if all(spec.batch is None for spec in specs.values()):  # all that was given is one sample
            traced = replace(traced, shaped=replace(traced.shaped, notes=told))
    return traced, _with_classes(traced, checked)


def _laid_by_data(specs: Mapping[str, InputSpec], data: DataLike, seed: int) -> Mapping[str, InputSpec] | None:
    """Return specs whose images lie where the sizes of data tell, None where these tell nothing new.

    That is the one axis, of size 1 or free, without which an input has the sizes of an entry; axis 0 where no other
    is. So images of steps are found that neither a name nor an op tells of (`[steps, 1, features]`).
    """
    sized = {n: InputSpec(n, s.dtype, (None,) * max(1, len(s.shape))) for n, s in specs.items()}
    try:
        given = as_dataset(data, sized, seed=seed).inputs
    except DataError:
        return None
    found = dict[str, InputSpec]()
    for name, spec in specs.items():
        entry = given[name].shape[1:]
        fitting = [
            axis for axis, size in enumerate(spec.shape)
            if size in (None, 1) and all(
                own in (None, there)
                for own, there in zip((*spec.shape[:axis], *spec.shape[axis + 1 :]), entry, strict=True)
            )
        ]  # fmt: skip
        behind = [axis for axis in fitting if axis]
        if len(behind or fitting) != 1:
            return None
        found[name] = replace(spec, batch=(behind or fitting)[0])
    return found if any(found[name].batch != spec.batch for name, spec in specs.items()) else None


def _at_data(
    source: Source, given: Mapping[str, Sequence[int | None]], data: Dataset, specs: Mapping[str, InputSpec],
    backend: OrtBackend | None, *, own: bool,
) -> Traced:  # fmt: skip
    """Return a model traced at the sizes of data, which lie as specs say; where they lie else, ops may tell."""
    samples = samples_of(data, specs)
    _check_shapes(given, specs, samples[0], data.source)
    shapes = {name: value.shape for name, value in samples[0].items()}
    axes, declared = ({n: s.batch for n, s in some.items()} for some in (specs, input_specs(source.model)))
    told = None if axes == declared and any(axis is not None for axis in axes.values()) else axes
    return scorable(source, input_shapes=shapes, backend=backend, samples=samples, own=own, batch_axes=told)


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


def _placed(
    source: Source, shapes: Mapping[str, Sequence[int | None]], backend: OrtBackend | None, *, own: bool
) -> Traced | None:
    """Return the traced model where only its ops tell how data have to lie; None where they lie as it declares.

    That is where all sizes are fixed and axis 0 holds several of something.
    """
    specs = input_specs(source.model)
    check_names(shapes, specs)
    several = any(not spec.batch and spec.shape and (spec.shape[0] or 0) > 1 for spec in specs.values())
    if not several or any(None in spec.shape for spec in specs.values()):
        return None
    try:
        return scorable(source, input_shapes=shapes, backend=backend, own=own)
    except ModelError:  # it may run on the data alone
        return None


def scorable(
    source: Source, *, input_shapes: Mapping[str, Sequence[int | None]], backend: OrtBackend | None = None,
    samples: Sequence[Mapping[str, Array]] = (), own: bool = False, batch_axes: Mapping[str, int | None] | None = None,
) -> Traced:  # fmt: skip
    """Return a traced model, without the choices that it ends in unless its `own` outputs are wanted."""
    again = partial(trace, input_shapes=input_shapes, backend=backend, samples=samples, batch_axes=batch_axes)
    traced = again(source)
    if own or (parts := ended(traced)) is None:
        return traced
    head, tail = parts
    return replace(again(replace(source, model=head)), tail=tail)


def _check_shapes(
    given: Mapping[str, Sequence[int | None]], specs: Mapping[str, InputSpec], sample: Mapping[str, Array], source: str
) -> None:
    """Refuse shapes that are given beside data and say something else."""
    check_names(given, specs)
    for name, shape in given.items():
        own, batch = sample[name].shape, specs[name].batch
        if len(shape) != len(own) or any(
            axis != batch and size not in (None, own[axis]) for axis, size in enumerate(shape)
        ):
            raise DataError(f"{source}: {name!r} is {list(own)}, the shape given {list(shape)}; leave one of them out")


def samples_of(data: Dataset, specs: Mapping[str, InputSpec]) -> list[dict[str, Array]]:
    """Return some of the data as a model takes it, one image at a time, or as many as the file fixes."""
    batch = {name: spec.batch for name, spec in specs.items()}
    step = max([1, *(s.shape[a] or 1 for s in specs.values() if (a := s.batch) is not None)])
    index = np.resize(np.arange(len(data)), step * max(1, min(len(data), SAMPLES) // step)).reshape(-1, step)
    return [feeds_of(data.take(images).inputs, batch) for images in index]


def sample(data: Dataset, count: int, seed: int) -> Dataset:
    """Return at most `count` images in random order, so that any first ones of them are a sample too."""
    if count < 1:
        raise BudgetError(f"samples is {count}; give at least 1 image")
    return data.take(streams.stream(seed, streams.SAMPLE).permutation(len(data))[:count])


def reference_of(traced: Traced, model: ModelProto, data: Dataset) -> list[Array]:
    """Return the outputs of the original model, which have to be finite.

    Raises:
        DataError: the model does not run on the data (an index beyond a table), or gives NaN or Inf.
    """
    with _told_of(data):
        reference = run_all(traced, model, data)
    for item, value in zip(model.graph.output, reference, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise DataError(
                f"{data.source}: output {item.name!r} of the original model has NaN or Inf on it; "
                f"{_ODD if data.source == 'random' else 'check the data'}"
            )
    return reference


@contextlib.contextmanager
def _told_of(data: Dataset) -> Iterator[None]:
    """Turn what a model says of values that it does not take into an error of the data."""
    try:
        yield
    except ModelError as error:
        advice = _ODD if data.source == "random" else "check its values"
        raise DataError(f"{data.source}: {error}; {advice}") from error


def in_bases(
    traced: Traced, free: Traced, groups: Sequence[Group], data: Dataset, given: Bases | None = None
) -> tuple[Turned, Traced]:
    """Return a model in other bases (`bases`), and that form of it for evaluation.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut.
        data: calibration inputs.
        given: the bases that values of an earlier run are of.

    Raises:
        DataError: the model does not run on the data, or the values are of bases that it does not bear.
    """
    with _told_of(data):
        moved = turned(traced, free, groups, data, given)
    return moved, free_batch(moved.traced) if moved.groups else free


def choose_payoff(
    payoff: str | Callable[..., object] | None, reference: Sequence[Array], data: Dataset, traced: Traced
) -> Payoff:
    """Return the payoff fitted to the data, a user's function as one; a refusal says which data.

    By default an output is class scores where the model itself takes the largest of them.
    """
    if isinstance(payoff, payoffs.Custom | payoffs.OverAll):
        return payoff
    if callable(payoff):
        return payoffs.custom(payoff, reference, data.labels)
    if payoff is None and data.labels is None and gives_classes(traced):
        payoff = "kl"
    try:
        return payoffs.choose(payoff, reference, data.labels, traced.outputs)
    except DataError as error:
        raise DataError(f"{data.source}: {error}") from error


def judged(traced: Traced, data: Dataset, payoff: str | Callable[..., object] | None) -> tuple[list[Array], Payoff]:
    """Return the original's outputs and the payoff fitted to them: called before the long part, for it may refuse.

    Raises:
        DataError: as `reference_of`, or the payoff does not fit the data.
    """
    reference = reference_of(traced, traced.source, data)
    return reference, choose_payoff(payoff, reference, data, traced)


def hold_out(
    traced: Traced, data: Dataset, eval_data: DataLike | None, seed: int, dividing: str | None = None
) -> tuple[Dataset, Dataset]:
    """Return the images to cut and repair with, and those to judge by.

    Args:
        traced: the model.
        data: calibration images.
        eval_data: what to judge by; None = the calibration images.
        seed: of the division.
        dividing: what cannot judge by the images that it worked with: two fifths of them are held out, where
            `eval_data` is None.

    Raises:
        DataError: the data do not fit the model, or are too few to divide.
    """
    if eval_data is not None:
        return data, calibration(traced, eval_data, seed=seed)
    return (data, data) if dividing is None else _divided(data, seed, dividing)


def _divided(data: Dataset, seed: int, what: str) -> tuple[Dataset, Dataset]:
    if len(data) < FEWEST_DIVIDED:
        if data.source == "random" and data.labels is None:
            raise DataError(
                f"no data: {what} judges by images that nothing else sees, and random inputs tell nothing of what is "
                f"lost; give --data, at least {FEWEST_DIVIDED} images, or --eval-data"
            )
        raise DataError(
            f"{data.source}: {what} holds two fifths of the images out; there are {len(data)}, give at least "
            f"{FEWEST_DIVIDED}, or --eval-data"
        )
    order = streams.stream(seed, streams.HELD_OUT).permutation(len(data))
    split = 3 * len(data) // 5
    kept, held_out = (data.take(np.sort(part)) for part in (order[:split], order[split:]))
    return kept, replace(held_out, source=f"{data.source}, held out")


def readable(
    model: ModelLike, output: str | Path | None, data: DataLike | None, labels: str | Path | None,
    eval_data: DataLike | None,
) -> Source | Traced:  # fmt: skip
    """Return a model to open, once it is sure that an output path can be written and replaces nothing that is read.

    Raises:
        ModelError: as `read` and `outputs.check_outputs`.
    """
    found = model if isinstance(model, Traced) else read(model)
    check_outputs({"output": output}, found, {"data": data, "labels": labels, "eval_data": eval_data})
    return found


def groups_to_cut(traced: Traced, include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
    """Return the groups of a model that may be cut, those that `groups.select` chooses.

    Raises:
        BudgetError: there is none.
    """
    groups = select(traced.groups, include, exclude) if traced.groups else []
    if not groups:
        raise BudgetError(f"nothing can be cut: {_why_nothing(traced)}")
    return groups


def _why_nothing(traced: Traced) -> str:
    """Return why a model has nothing to cut."""
    if traced.groups:
        return "--include and --exclude leave no group"
    reasons = list(dict.fromkeys(f"{f.tensor!r}: {f.reason}" for f in traced.frozen))
    return "; ".join(reasons[:3]) or "no weights make an axis (no Conv, Gemm or MatMul with constant weights)"
