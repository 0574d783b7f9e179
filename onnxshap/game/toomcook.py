"""Convolution along one axis with fewer products: the bilinear algorithms of Toom and Cook, as Winograd turned them.

`m` neighbouring outputs of a filter of `r` taps take m + r - 1 products instead of m x r: y = A [(G g) * (B d)], where
d are the m + r - 1 inputs that they read. (S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray,
Fast Algorithms for Convolutional Neural Networks, 2016.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

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
    if r == 1:
        return np.eye(t), np.ones((t, 1)), np.eye(t)

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

    With a stride, taps and inputs fall into as many phases: each is a convolution of stride 1, of every second tap over
    every second input for a stride of 2, and the sum over phases is the sum over what their products give.

    Attributes:
        m: outputs of a tile.
        size: of the input.
        out: of the output.
        kernel: taps.
        dilation: between the taps; 1 where there is a stride.
        before: padding.
        stride: between the outputs.
    """

    m: int
    size: int
    out: int
    kernel: int
    dilation: int
    before: int
    stride: int = 1

    @property
    def products(self) -> int:
        """Of a tile, t."""
        return sum(self.m + len(taps) - 1 for taps in self._phases)

    @property
    def tiles(self) -> int:
        """Of the axis."""
        return len(self._firsts)

    @property
    def taps(self) -> FloatArray:
        """What is applied to the taps, float64[t, kernel]."""
        found = []
        for taps in self._phases:
            part = np.zeros((self.m + len(taps) - 1, self.kernel))
            part[:, taps] = algorithm(self.m, len(taps))[1]
            found.append(part)
        return np.concatenate(found)

    @property
    def inputs(self) -> FloatArray:
        """What is applied to the axis, float64[t, tiles, size]: from what it has to what the tiles multiply."""
        found, step = [], self.dilation * self.stride
        for phase, taps in enumerate(self._phases):
            inputs, _, _ = algorithm(self.m, len(taps))
            part = np.zeros((len(inputs), self.tiles, self.size))
            for tile, first in enumerate(self._firsts):
                for k in range(len(inputs)):
                    if 0 <= (place := self.stride * first - self.before + phase + k * step) < self.size:
                        part[:, tile, place] = inputs[:, k]
            found.append(part)
        return np.concatenate(found)

    @property
    def outputs(self) -> FloatArray:
        """What is applied to the products, float64[out, t, tiles]."""
        products = np.concatenate([algorithm(self.m, len(taps))[2] for taps in self._phases], axis=1)
        found = np.zeros((self.out, self.products, self.tiles))
        for tile, first in enumerate(self._firsts):
            for k in range(self.m):
                if (place := first + k * self.dilation) < self.out:
                    found[place, :, tile] = products[k]
        return found

    @property
    def _phases(self) -> list[range]:
        """The taps of every phase."""
        return [range(phase, self.kernel, self.stride) for phase in range(min(self.stride, self.kernel))]

    @cached_property
    def _firsts(self) -> list[int]:
        """The first output of every tile; outputs whose taps have nothing in common are in tiles of their own."""
        lanes = [range(first, self.out, self.dilation) for first in range(min(self.dilation, self.out))]
        return [places[k] for places in lanes for k in range(0, len(places), self.m)]


def tilings(size: int, out: int, kernel: int, dilation: int, before: int, stride: int = 1) -> list[Tiling]:
    """Return the ways to take an axis in tiles, of one output or more; none if there are many taps.

    There is none either with a stride and a dilation, which hardly ever come together.

    >>> [(way.m, way.products, way.tiles) for way in tilings(7, 7, kernel=3, dilation=1, before=1)]
    [(1, 3, 7), (2, 4, 4), (3, 5, 3), (4, 6, 2)]
    >>> [(way.m, way.products, way.tiles) for way in tilings(8, 4, kernel=3, dilation=1, before=1, stride=2)]
    [(1, 3, 4), (2, 5, 2), (3, 7, 2), (4, 9, 1)]
    """
    if min(stride, dilation) > 1:
        return []
    taps = -(-kernel // stride)  # of the phase that has most
    most = 1 if taps == 1 else MOST + 1 - taps
    return [Tiling(m, size, out, kernel, dilation, before, stride) for m in range(1, min(out, most) + 1)]
