"""Convolution along one axis with fewer products: the bilinear algorithms of Toom and Cook, as Winograd turned them.

`m` neighbouring outputs of a filter of `r` taps take m + r - 1 products instead of m x r: y = A [(G g) * (B d)], where
d are the m + r - 1 inputs that they read. (S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray,
Fast Algorithms for Convolutional Neural Networks, 2016.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.core import FloatArray

MOST = 6
"""Products of a tile at most: with more, what is added up before and after is lost in rounding."""
_POINTS: dict[int, tuple[float, ...]] = {2: (0.0,), 4: (0.0, 1.0, -1.0), 6: (0.0, 0.7, -0.7, 1.4, -1.4)}
_POINTS |= {t: _POINTS[t + t % 2][: t - 1] for t in (1, 3, 5)}
"""Where polynomials are evaluated, besides at infinity: near each other they round least (half as much as 0, 1, 2)."""


@functools.cache
def algorithm(m: int, r: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return what is applied to inputs float64[t, t], to taps float64[t, r] and to products float64[m, t]; t = m+r-1.

    The product of two polynomials is found by evaluating both, multiplying, and interpolating; turned round (Tellegen),
    that is the correlation of one's coefficients with what the other is to be multiplied with.

    >>> inputs, taps, products = algorithm(2, 3)
    >>> d, g = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.0, -1.0])
    >>> np.round(products @ ((taps @ g) * (inputs @ d)), 6).tolist()
    [-2.0, -2.0]
    """
    t = m + r - 1

    def evaluated(count: int) -> FloatArray:
        """Return what takes `count` coefficients to values, float64[t, count]; at infinity the highest one."""
        finite = np.vander(np.array(_POINTS[t]), count, increasing=True)
        return np.vstack([finite, np.eye(count)[-1:]])

    inputs = np.linalg.inv(evaluated(t)).T
    scale = np.abs(inputs).max(axis=1)  # products are the same whichever of both factors is multiplied by a number
    return inputs / scale[:, None], evaluated(r) * scale[:, None], evaluated(m).T


@dataclass(frozen=True)
class Tiling:
    """One axis of a convolution in tiles.

    Attributes:
        tiles: of the axis.
        inputs: float64[t, tiles, size], from what the axis has to what the tiles multiply.
        taps: float64[t, r].
        outputs: float64[size of the output, t, tiles].
    """

    tiles: int
    inputs: FloatArray
    taps: FloatArray
    outputs: FloatArray

    @property
    def products(self) -> int:
        """Of a tile."""
        return len(self.taps)


def tilings(size: int, out: int, kernel: int, dilation: int, before: int) -> Sequence[Tiling]:
    """Return the ways to take an axis of a convolution of stride 1 in tiles, of one output or more; none of many taps.

    Args:
        size: of the input.
        out: of the output.
        kernel: taps.
        dilation: between the taps.
        before: padding.
    """
    most = 1 if kernel == 1 else MOST + 1 - kernel
    return [_tiling(m, size, out, kernel, dilation, before) for m in range(1, min(out, most) + 1)]


def _tiling(m: int, size: int, out: int, kernel: int, dilation: int, before: int) -> Tiling:
    inputs, taps, products = algorithm(m, kernel)
    lanes = [range(first, out, dilation) for first in range(min(dilation, out))]  # what no taps have in common
    firsts = [places[k] for places in lanes for k in range(0, len(places), m)]
    spread = np.zeros((len(taps), len(firsts), size))
    gathered = np.zeros((out, len(taps), len(firsts)))
    for tile, first in enumerate(firsts):
        for k in range(len(taps)):
            if 0 <= (place := first - before + k * dilation) < size:
                spread[:, tile, place] = inputs[:, k]
        for k in range(m):
            if (place := first + k * dilation) < out:
                gathered[place, :, tile] = products[k]
    return Tiling(len(firsts), spread, taps, gathered)
