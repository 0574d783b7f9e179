"""The one gate of all data: names, dtypes, shapes, lengths, NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxshap.core import Array, Dataset
from onnxshap.data.spec import InputSpec, names_of
from onnxshap.errors import DataError, told


def check_data(
    data: Dataset, specs: Mapping[str, InputSpec], labels_from: str | None = None, *, wholes: bool = False
) -> Dataset:
    """Return the data set in the model's dtypes, contiguous, its inputs in the order of `specs`.

    Casts that keep the values are silent: between floats, between integers (and from bool) where every value fits.
    Integers for a float input are refused, uint8 above all: only the user knows how they were scaled in training.
    Integer labels come back as int64, float labels as they are; `labels_from` is the file that they came from, where
    that is not the data's. With `wholes` entries may also have all the axes of the inputs (`are_whole`).

    Raises:
        DataError: wrong, missing or extra names; dtypes or shapes that are not the model's; no images; arrays or
            labels of different lengths; NaN or Inf.
    """
    where = data.source
    if not specs:
        raise DataError(f"{where}: the model has no inputs to feed: give a model that reads its data from an input")
    if set(data.inputs) != set(specs):
        extra = [name for name in data.inputs if name not in specs]
        remedy = f"leave out {names_of(extra)}" if set(data.inputs) > set(specs) else "name the arrays as the inputs"
        raise DataError(f"{where}: has {names_of(data.inputs)}, the model's inputs are {names_of(specs)}: {remedy}")
    if wholes and are_whole(data.inputs, specs):
        specs = {name: spec.whole for name, spec in specs.items()}
    inputs = {name: _fit(data.inputs[name], spec, f"{where}: {name!r}") for name, spec in specs.items()}
    once = {
        name
        for name, spec in specs.items()
        if spec.batch is None and np.ndim(data.inputs[name]) < len(inputs[name].shape)
    }
    most = max((len(array) for name, array in inputs.items() if name not in once), default=1)
    inputs |= {name: np.repeat(inputs[name], most, axis=0) for name in once}
    lengths = {name: len(array) for name, array in inputs.items()}
    if len(set(lengths.values())) > 1:
        have = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: arrays of different lengths ({have}): give every input one entry an image")
    labels = None if data.labels is None else _fit_labels(data.labels, next(iter(lengths.values())), where, labels_from)
    return Dataset(inputs, labels, where)


def are_whole(inputs: Mapping[str, Any], specs: Mapping[str, InputSpec]) -> bool:
    """Return whether arrays hold whole inputs along axis 0: `[n, steps, features]` for `[steps, features]`.

    Not where an input has a batch on another axis, and not where none of the inputs has one anyway.
    """
    if any(spec.batch for spec in specs.values()) or not any(s.batch == 0 and s.shape for s in specs.values()):
        return False
    shapes = {name: as_array(inputs[name], repr(name)).shape for name in specs}
    return all(
        _matches(shapes[name], (None, *spec.shape)) or (spec.batch is None and _matches(shapes[name], spec.shape))
        for name, spec in specs.items()
    )


def _fit(value: Any, spec: InputSpec, where: str) -> Array:
    """Return one input as a finite, contiguous array[n, ...] in the model's dtype."""
    array = as_array(value, where)
    if spec.batch is None and _matches(array.shape, spec.shape):
        array = array[None]
    wanted = (None, *spec.entry)
    free = ", ".join(["n", *("?" if length is None else str(length) for length in wanted[1:])])
    if array.ndim != len(wanted):
        hint = "give one entry an image along axis 0"
        if array.ndim == len(wanted) - 1 and _matches(array.shape, wanted[1:]):
            hint = "one image alone needs an axis in front, x[None]"
        elif array.ndim == len(wanted) - 1 and (axis := _missing_axis(array.shape, wanted)) is not None:
            hint = f"axis {axis} is missing, np.expand_dims(x, {axis}) adds it"
        elif array.ndim == 2 and math.prod(length or 0 for length in wanted[1:]) == array.shape[1]:
            hint = f"rows look like images laid out flat, x.reshape({', '.join(map(str, (-1, *wanted[1:])))})"
        if spec.batch and array.ndim == len(wanted) + 1 and array.shape[spec.batch + 1] == 1:
            hint = f"leave out axis {spec.batch + 1}, of its batch: x.squeeze({spec.batch + 1})"
        if spec.batch == 0 and array.ndim == len(wanted) + 1 and _matches(array.shape[2:], wanted[1:]):
            hint += ", x.reshape(-1, *x.shape[2:]) where axes 0 and 1 both count images"
        raise DataError(f"{where}: shape {list(array.shape)}, the model wants [{free}]: {hint}")
    if not _matches(array.shape[1:], wanted[1:]):
        axis = next(i for i in range(1, array.ndim) if not _matches(array.shape[i : i + 1], wanted[i : i + 1]))
        hint = "reshape or resize it"
        for order, name in (((0, 3, 1, 2), "NCHW"), ((0, 2, 3, 1), "NHWC")):
            if array.ndim == 4 and _matches([array.shape[i] for i in order[1:]], wanted[1:]):
                hint = f"it looks transposed, use x.transpose{order} for {name}"
        raise DataError(
            f"{where}: shape {list(array.shape)}, the model wants [{free}]: axis {axis} has {array.shape[axis]} "
            f"entries, not {wanted[axis]}; {hint}"
        )
    if not array.size:
        raise DataError(f"{where}: shape {list(array.shape)} is empty: give at least one image")
    return _finite(_cast(array, spec.dtype, where), where)


def _missing_axis(shape: Sequence[int], wanted: Sequence[int | None]) -> int | None:
    """Return where an axis of one entry makes a shape the one that is wanted; None where none, or several, do."""
    places = [k for k in range(1, len(wanted)) if _matches([*shape[:k], 1, *shape[k:]], wanted)]
    return places[0] if len(places) == 1 else None


def _matches(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Return whether a shape of the same rank has every dim that is not free."""
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    """Return the array in another dtype where that keeps its values (floats: their meaning)."""
    dtype = np.dtype(dtype)
    have, want = array.dtype, dtype
    if want.kind == "O" and have.kind in "OU":
        return np.ascontiguousarray(array, dtype=want)
    if have == want or (have.kind == want.kind == "f"):
        with np.errstate(over="ignore"):  # what overflows becomes Inf, and that is refused
            return np.ascontiguousarray(array, dtype=want)
    if have.kind in "biu" and want.kind in "iu":
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(want)
        if low < limits.min or high > limits.max:
            raise DataError(f"{where}: values {low}..{high} do not fit the model's {want}: give values that do")
        return np.ascontiguousarray(array, dtype=want)
    title, hint = ("strings", "give strings") if want.kind == "O" else (str(want), f"give {want} values")
    if have.kind in "biu" and want.kind == "f":
        hint = f"x.astype({want.name!r}) if the model was trained on such values"
        if have == np.uint8:
            hint = f"scale it as in training, for example x.astype({want.name!r}) / 255"
    raise DataError(f"{where}: is {have}, the model wants {title}: {hint}")


def _finite(array: Array, where: str) -> Array:
    """Return the array, whose floats have to be finite."""
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise DataError(f"{where}: NaN or Inf (in {array.dtype}) in row {row}: leave that row out or mend it")
    return array


def check_count(labels: Array, n: int, where: str, labels_from: str | None = None) -> None:
    """Refuse labels that are not one an image.

    Raises:
        DataError: there are more or fewer, or their images are not along axis 0.
    """
    if labels.ndim and len(labels) == n:
        return
    given = f"{len(labels)} labels" if labels.ndim == 1 else f"labels of shape {list(labels.shape)}"
    of = "" if labels_from is None else f" of {where}"
    raise DataError(f"{labels_from or where}: {given} for {n} images{of}: give one label an image")


def _fit_labels(value: Any, n: int, data: str, labels_from: str | None) -> Array:
    """Return n labels as int64 or finite floats."""
    where = labels_from or data
    labels = as_array(value, f"{where}: labels")
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where}: labels are {labels.dtype}: give integer class indices or float targets")
    check_count(labels, n, data, labels_from)
    if labels.dtype.kind == "f":
        return _finite(labels, f"{where}: labels")
    if labels.dtype == np.uint64 and labels.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{where}: labels go up to {labels.max()}: give class indices, or float targets")
    return labels.astype(np.int64)


def as_array(value: Any, where: str) -> Array:
    """Return any array-like (lists, tensors of other frameworks) as an array of numbers or strings."""
    if np.ma.is_masked(value):
        raise DataError(
            f"{where}: some entries are masked, and a model reads all: give x.filled(...) of a value for them"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: cannot be made an array ({told(error)}): give a NumPy array") from error
    if array.dtype == object and not all(isinstance(entry, str) for entry in array.flat):
        raise DataError(f"{where}: {type(value).__name__} of Python objects: give a NumPy array of numbers")
    return array
