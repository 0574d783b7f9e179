"""What a payoff reads, checked: outputs and labels as numbers that are finite and of the shapes that they need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxshap.core import Array, BoolArray, FloatArray, IntArray
from onnxshap.errors import DataError, ShapeError

_FLOOR = 1e-12
"""Probabilities below it count as it: a softmax that underflows to 0 costs 27.6 nats, not infinitely many."""
CLOSE = 1e-3
"""How far rows of probabilities may be from summing to 1, and embeddings from unit length; half precision needs it."""
NO_CLASS = (255, -1, -100)
"""Labels of positions that are left out of the mean (VOC and Cityscapes, most other data sets, torch)."""
_MANY = 256
"""Classes that are summed faster where they lie side by side."""
_OVERFLOW = "run that row alone and look for an overflow (half precision) or an input out of range"


def once(values: Array) -> Array:
    """Return one row of values that are the same for every row (a view of one, `np.broadcast_to`), else all of them."""
    return values[:1] if values.ndim and len(values) > 1 and values.strides[0] == 0 else values


def class_axis(rank: int, axis: int | None) -> int:
    """Return the class axis: `axis`, or by rank [n, C], [n, T, C], [n, C, H, W], [n, C, D, H, W]."""
    if axis is None:
        return 2 if rank == 3 else 1
    return axis + rank if axis < 0 else axis


def class_scores(output: Array, axis: int | None, where: str) -> FloatArray:
    """Return class scores float64[classes, rows, *positions], finite; few classes lie apart, for sums are faster so."""
    axis_ = class_axis(output.ndim, axis)
    if not 1 <= axis_ < output.ndim:
        raise DataError(f"{where}: shape {text_of(output.shape)} has no class axis {axis_}: use payoff 'mse'")
    scores = finite(output, where).transpose(axis_, *(k for k in range(output.ndim) if k != axis_))
    return scores if axis_ == output.ndim - 1 and len(scores) >= _MANY else np.ascontiguousarray(scores)


def both_classes(output: Array, where: str, *, probabilities: bool) -> FloatArray:
    """Return the scores float64[2, rows, *positions] of the two classes that every entry of an output tells apart.

    >>> both_classes(np.array([[0.75], [1.0]]), "output 'p'", probabilities=True).tolist()
    [[[0.25], [0.0]], [[0.75], [1.0]]]
    """
    second = finite(output, where)
    return np.stack([1.0 - second if probabilities else np.zeros_like(second), second])


def are_probabilities(scores: FloatArray) -> bool:
    """Return whether float64[classes, ...] are nonnegative and sum to 1 over the classes."""
    return bool((scores >= 0.0).all() and (np.abs(scores.sum(axis=0) - 1.0) <= CLOSE).all())


def shifted_scores(scores: FloatArray, *, probabilities: bool) -> tuple[FloatArray, FloatArray]:
    """Return logits float64[classes, ...] with a maximum of 0, and what normalises them, float64[...]."""
    # A distribution's logarithm is a valid set of logits: normalising it again takes the rounding of its sum away.
    logits = np.log(np.maximum(scores, _FLOOR)) if probabilities else scores
    shifted = logits - logits.max(axis=0)
    return shifted, np.log(class_sum(np.exp(shifted)))


def class_sum(values: FloatArray) -> FloatArray:
    """Return the sum of float64[classes, ...] over the classes, one after the other: numpy adds a lone row in pairs.

    So a row is worth the same to the last bit beside others and alone.
    """
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    summed = np.add.accumulate(flat, axis=0)[-1] if flat.shape[1] == 1 else flat.sum(axis=0)
    return np.asarray(summed).reshape(values.shape[1:])


def log_probabilities(scores: FloatArray, *, probabilities: bool) -> FloatArray:
    """Return log probabilities float64[classes, ...] that sum to 1 within rounding."""
    shifted, norm = shifted_scores(scores, probabilities=probabilities)
    shifted -= norm
    return shifted


def as_classes(labels: Array | None) -> Array | None:
    """Return labels that can be class indices as such: integers, or floats that are whole numbers; else None.

    Frameworks want floats as the targets of a sigmoid, and tables hold all numbers as floats.

    >>> as_classes(np.array([1.0, 0.0])).dtype.kind, as_classes(np.array([0.5, 0.0])), as_classes(None)
    ('i', None, None)
    """
    if labels is None or labels.dtype.kind in "iub":
        return labels
    whole = np.isfinite(labels).all() and (labels == np.floor(labels)).all() and (np.abs(labels) < 2**31).all()
    return labels.astype(np.int64) if whole else None


def as_two(labels: Array | None) -> Array | None:
    """Return labels that tell two classes apart, 0 and 1 (positions of no class beside them); else None.

    >>> as_two(np.array([[1.0, 255.0], [0.0, 1.0]])).tolist(), as_two(np.array([1, -1])), as_two(np.array([2, 0]))
    ([[1, 255], [0, 1]], None, None)
    """
    classes = as_classes(labels)
    if classes is None:
        return None
    kept = classes[~left_out(classes, 2)]
    return classes if (kept == 0).any() and np.isin(kept, (0, 1)).all() else None


def class_labels(labels: Array | None, scores: tuple[int, ...], where: str, *, payoff: str) -> IntArray:
    """Return labels as int64[rows, *positions], each a class of scores [classes, rows, *positions].

    Of maps some positions may be left out: `NO_CLASS` stay as they are where they are no classes.
    """
    if labels is None:
        raise DataError(f"payoff {payoff!r}: there are no labels: give them, or use 'kl', which needs none")
    given, labels = np.asarray(labels), as_classes(np.asarray(labels))
    if labels is None:
        raise DataError(
            f"payoff {payoff!r}: labels are {given.dtype}: give integer class indices, or use 'mse' for float targets"
        )
    if not fits(labels.shape, scores[1:]):
        raise DataError(
            f"labels: shape {text_of(labels.shape)} for {where}: give one class index a row and position, "
            f"shape {text_of(scores[1:])}"
        )
    classes = scores[0]
    bad = labels[((labels < 0) | (labels >= classes)) & ~(left_out(labels, classes))]
    if len(bad):  # not where: these may be images that were drawn, in an order of their own
        raise DataError(
            f"labels: {bad[0]} is not in [0, {classes}), the classes of {where}: number the classes as the model does, "
            "from 0"
        )
    return labels.astype(np.int64).reshape(scores[1:])


def left_out(labels: Array, classes: int) -> BoolArray:
    """Return which positions of label maps are of no class, as the usual data sets and frameworks write it.

    >>> left_out(np.array([[0, 255, -100], [1, 2, -1]]), 3).tolist()
    [[False, True, True], [False, False, True]]
    """
    if labels.ndim < 2 or labels.size == len(labels):
        return np.zeros(labels.shape, np.bool_)
    return np.isin(labels, NO_CLASS) & ((labels < 0) | (labels >= classes))


def float_targets(labels: Array | None, output: tuple[int, ...], where: str) -> FloatArray:
    """Return labels as finite float64 of the output's shape."""
    if labels is None:
        raise DataError("payoff 'mse': there are no labels to compare with: give float targets of the output's shape")
    labels = np.asarray(labels)
    if not fits(labels.shape, output):
        raise DataError(
            f"payoff 'mse': targets of shape {text_of(labels.shape)} for {where}: "
            f"give targets of shape {text_of(output)}"
        )
    return finite(labels, "labels", "give finite targets, or leave that row out").reshape(output)


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether two shapes have the same rows and, but for axes of length 1, the same positions."""

    def long(axes: tuple[int, ...]) -> list[int]:
        return [length for length in axes if length != 1]

    return shape[:1] == wanted[:1] and long(shape[1:]) == long(wanted[1:])


def check_shape(output: Array, reference: Array, where: str) -> None:
    """Refuse an output that cannot be compared with the original's."""
    if output.shape != reference.shape:
        raise ShapeError(
            f"{where}: shape {text_of(output.shape)}, but {text_of(reference.shape)} from the original model: "
            "outputs whose shape depends on what is computed cannot be compared; give labels and use 'ce', or a payoff "
            "of your own, or choose without one (method l2, allocation uniform, a budget of shares)"
        )


def finite(array: Array, where: str, remedy: str = _OVERFLOW) -> FloatArray:
    """Return the array as float64, which has to be finite."""
    given, values = np.asarray(array), np.asarray(array, dtype=np.float64)
    finite = np.isfinite(given if given.dtype.kind == "f" else values)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0]) if values.ndim else 0
        raise DataError(f"{where}: NaN or Inf in row {row}: {remedy}")
    return values


def row_mean(values: FloatArray) -> FloatArray:
    """Return the mean float64[rows] over all but axis 0."""
    mean: FloatArray = values.reshape(len(values), math.prod(values.shape[1:])).mean(axis=1)
    return mean


def labelled_mean(values: FloatArray, labels: IntArray, classes: int) -> FloatArray:
    """Return the mean float64[rows] over the positions that have a class; 0 where none has."""
    away = left_out(labels, classes).reshape(values.shape)
    if not away.any():
        return row_mean(values)
    rows = len(values)
    kept = ~away.reshape(rows, -1)
    return np.asarray((values.reshape(rows, -1) * kept).sum(axis=1) / np.maximum(1, kept.sum(axis=1)))


def any_of(names: Sequence[str]) -> str:
    """Return names as a message lists them.

    >>> any_of(["ce", "kl", "mse"])
    "'ce', 'kl' or 'mse'"
    """
    return ", ".join(repr(name) for name in names[:-1]) + f" or {names[-1]!r}"


def text_of(shape: Sequence[int]) -> str:
    """Return a shape as messages write it."""
    return "[" + ", ".join(str(length) for length in shape) + "]"
