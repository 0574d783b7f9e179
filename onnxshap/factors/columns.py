"""What Convs read, seen through a column of their kernels: how its values go together, and from column to column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.calibrate import activations
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.factors.layers import Layer
from onnxshap.tracing import Traced

IMAGES = 500
"""Most inputs that moments are taken over."""
_FEWEST = 64
"""Inputs after which there are enough of them, if there are `_ROWS` rows of each."""
_ROWS = 20_000
_BATCH = 16
"""Most inputs at a time, fewer where the memory does not hold them."""


@dataclass
class Columns:
    """Moments of what a layer reads.

    Attributes:
        rows: how many columns were seen.
        values: their sum, float64[inputs * height].
        products: the sum of their outer products.
        beside: float64[width]: the sum of the inner products of those so many columns of the kernel apart.
        pairs: int[width]: how many of these there were.
        finite: whether all values were; moments are of the lines added at once with no other.
    """

    rows: int
    values: FloatArray
    products: FloatArray
    beside: FloatArray
    pairs: FloatArray
    finite: bool = True

    @classmethod
    def of(cls, layer: Layer) -> Columns:
        """Return those of a layer of which nothing was seen."""
        _, inputs, height, width = layer.shape
        size = inputs * height
        return cls(0, np.zeros(size), np.zeros((size, size)), np.zeros(width), np.zeros(width))

    def add(self, lines: FloatArray, dilation: int) -> None:
        """Add lines of columns, float64[lines, positions, inputs * height]."""
        flat = lines.reshape(-1, lines.shape[2])
        self.rows += len(flat)
        if not np.isfinite(flat).all():
            self.finite = False
            return
        self.values += flat.sum(axis=0)
        self.products += flat.T @ flat
        for k in range(len(self.beside)):
            apart = k * dilation
            one, other = lines[:, : lines.shape[1] - apart], lines[:, apart:]
            if one.size:
                self.beside[k] += float(np.vdot(one, other))
                self.pairs[k] += one.shape[0] * one.shape[1]

    @property
    def covariance(self) -> FloatArray:
        """Their covariance, as if some more varied alike in all directions: few rows tell the weakest ones badly."""
        size, mean = len(self.values), self.values / max(1, self.rows)
        found = self.products / max(1, self.rows) - np.outer(mean, mean)
        return np.asarray((self.rows * found + np.trace(found) * np.eye(size)) / (self.rows + size))

    @property
    def correlation(self) -> FloatArray:
        """How columns of the kernel see the same, float64[width, width]: 1 for a column and itself."""
        mean = self.values / max(1, self.rows)
        apart = self.beside / np.maximum(1, self.pairs) - float(mean @ mean)
        shares = np.where(self.pairs > 0, apart / max(apart[0], 1e-30), 0.0)
        places = np.arange(len(shares))
        return np.asarray(shares[np.abs(places[:, None] - places)])


def lines_of(x: Array, layer: Layer, most: int) -> FloatArray:
    """Return what columns of a layer's kernel see, float64[lines, positions, inputs * height], padding and all.

    Args:
        x: what it reads (`Layer.seen`), [images, inputs, height, width].
        layer: the layer.
        most: lines at most, evenly spread.
    """
    _, _, height, width = layer.shape
    axes = zip(layer.sizes, (height, width), layer.strides, layer.dilations, layer.pads, strict=True)
    around = [
        (pad, max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - pad - size))
        for (size, out), kernel, stride, dilation, pad in axes
    ]
    padded = np.pad(x, ((0, 0), (0, 0), *around))
    high_out = (padded.shape[2] - (height - 1) * layer.dilations[0] - 1) // layer.strides[0] + 1
    at = np.arange(high_out)[:, None] * layer.strides[0] + np.arange(height) * layer.dilations[0]
    number = np.arange(len(x) * high_out)
    number = number[:: max(1, -(-len(number) // max(1, most)))]
    images, rows = np.divmod(number, high_out)
    lines = padded[images[:, None], :, at[rows], :]  # [lines, height, inputs, positions]
    return np.ascontiguousarray(lines.transpose(0, 3, 2, 1).reshape(len(number), padded.shape[3], -1), np.float64)


def columns_of(
    free: Traced, layers: Sequence[Layer], data: Dataset, progress: Callable[[int], None] = lambda images: None
) -> list[Columns]:
    """Return the moments of what some layers read.

    Args:
        free: the model for evaluation.
        layers: its layers.
        data: calibration inputs; as many as are needed are used.
        progress: told how many these are, after every batch.
    """
    names = list(dict.fromkeys(layer.source for layer in layers))
    found, images = [Columns.of(layer) for layer in layers], 0
    for count, values in activations(free, names, data, _BATCH, share=8):
        if images >= _FEWEST and all(one.rows >= _ROWS for one in found):
            break
        images += count
        progress(images)
        for one, layer in zip(found, layers, strict=True):
            x = layer.seen(values[layer.source])
            one.add(lines_of(x, layer, -(-_ROWS * count // (_FEWEST * x.shape[3]))), layer.dilations[1])
    return found
