"""From the outputs that rows change to their payoffs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from onnxshap.core import Array, BoolArray, CoalitionMatrix, FloatArray, ImageIndex
from onnxshap.game.setting import Setting

_NUMBERS = 2**16
"""Numbers of the outputs that a payoff gets at a time: what it makes of them stays in the processor's cache."""
_MANY = 256
"""Rows of an image that are worth a call of their own."""


def payoffs(
    setting: Setting, changed: Mapping[int, Array], images: ImageIndex, coalitions: CoalitionMatrix | None = None
) -> FloatArray:
    """Return the payoffs of rows, float64[rows].

    Without any unit a model may divide zero by zero (an embedding by its length). No plan gets there, but every walk
    ends there: what is not finite then counts as zero.

    Args:
        setting: of the games.
        changed: number of a model output -> its values for the rows; the others are as in the original model.
        images: int64[rows].
        coalitions: float32[rows, n_units]; None: every row has some unit.
    """
    emptied = np.zeros(0, np.bool_) if coalitions is None else (coalitions == 0).all(axis=1)
    if emptied.any():
        changed = {k: _zero_where(value, emptied) for k, value in changed.items()}
    a_row = sum(int(np.prod(value.shape[1:])) for value in setting.reference)
    size = max(8, _NUMBERS // max(1, a_row))
    found = np.empty(len(images))
    for rows in _parts(images, size):
        chosen = images[rows]
        reference = [_of_images(value, chosen) for value in setting.reference]
        outputs = [changed[k][rows] if k in changed else value[chosen] for k, value in enumerate(setting.reference)]
        labels = None if setting.data.labels is None else setting.data.labels[chosen]
        found[rows] = setting.payoff(outputs, reference, labels)
    return found


def _parts(images: ImageIndex, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` rows, of one image each where there are many of every image."""
    changes = (np.flatnonzero(np.diff(images)) + 1).tolist()
    ends = [*changes, len(images)] if len(images) >= _MANY * (1 + len(changes)) else [len(images)]
    for start, end in zip([0, *ends], ends, strict=False):
        for first in range(start, end, size):
            yield slice(first, min(first + size, end))


def _of_images(value: Array, images: ImageIndex) -> Array:
    """Return the values of rows' images; where these are one, a view of its value, by which payoffs see that."""
    if (images == images[0]).all():
        return np.broadcast_to(value[images[0]], (len(images), *value.shape[1:]))
    return np.take(value, images, axis=0)


def _zero_where(value: Array, rows: BoolArray) -> Array:
    """Return a value with zeros in place of what is not finite in some rows."""
    if value.dtype.kind != "f" or np.isfinite(value).all():
        return value
    return np.where(rows.reshape(-1, *[1] * (value.ndim - 1)) & ~np.isfinite(value), 0, value).astype(value.dtype)
