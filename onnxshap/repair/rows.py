"""How values of tensors lie as rows of a regression: flat output positions of the images, channels last."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import Array, FloatArray
from onnxshap.repair.systems import Single
from onnxshap.shapes.images import Images


def inputs_of(design: Array, groups: int, own: Single) -> Single:
    """Return [..., channels, taps] as rows float32[groups, rows, inputs + biases]."""
    channels, taps_ = design.shape[-2:]
    x = design.reshape(-1, groups, channels // groups * taps_).transpose(1, 0, 2)
    found = np.empty((*x.shape[:2], x.shape[2] + len(own)), np.float32)
    found[:, :, : x.shape[2]], found[:, :, x.shape[2] :] = x, own
    return found


def outputs_of(values: Array, groups: int) -> Array:
    """Return [..., channels] as rows [groups, rows, outputs]."""
    return values.reshape(-1, groups, values.shape[-1] // groups).transpose(1, 0, 2)


def rows_at(values: Array, channels: int, at: NDArray[np.intp]) -> Array:
    """Return [images, positions, channels] at flat positions of a tensor whose axis 0 is the images.

    They are of float32 where all its numbers are of that.
    """
    moved = channels_second(values, channels)
    flat = moved.reshape(*moved.shape[:2], -1)[:, :, at].transpose(0, 2, 1)
    return flat.astype(np.float32 if values.dtype in (np.float16, np.float32) else np.float64, copy=False)


def every_row(values: Array, channels: int) -> FloatArray:
    """Return [rows, channels] of all positions of a tensor."""
    moved = np.moveaxis(values, channels, -1)
    return moved.reshape(-1, moved.shape[-1]).astype(np.float64)


def scaled(values: Array, channels: int, factor: FloatArray, offset: FloatArray) -> Array:
    """Return a tensor with its channels scaled and shifted."""
    changed = np.moveaxis(np.moveaxis(values, channels, -1) * factor + offset, -1, channels)
    return np.ascontiguousarray(changed, values.dtype)


def channels_second(values: Array, channels: int) -> Array:
    """Return a tensor with its channels on axis 1; one of nothing else is that of one image."""
    return np.moveaxis(values, channels, 1) if values.ndim > 1 else values[None]


def flags_of(flags: NDArray[np.bool_], rows: int, place: Images | None = None) -> NDArray[np.bool_]:
    """Return the flags of the entries of an axis that may hold several entries an image (windows, heads, steps).

    Those of an image lie side by side unless its place says otherwise; of what is around it a cut may have left less.
    """
    if rows % len(flags):
        return np.resize(flags, rows)
    inner = rows // len(flags) if place is None or place.outer == 1 else place.inner
    return flags[np.arange(rows) // inner % len(flags)]
