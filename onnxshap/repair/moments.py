"""Per-channel mean and variance of what a layer gives, made what they were.

What BatchNormalization re-estimation does for a net in training, for one whose BatchNormalization is folded into the
weights: channel by channel a scale and a shift, from moments alone, so that a handful of images will do. No direction
is corrected. Of the scale that gives the variance back and that of least squares, which lets it shrink to what the two
have in common, it is the geometric mean: the first passes on at full strength what is left of a channel, noise for the
most part behind many cuts, the second lets the signal fade from layer to layer. Where no layer follows the variance is
given back: class scores are compared with each other, and one that is scaled down is no longer chosen.

Source: Sun et al. 2017 (bias correction), Jordan et al. 2022 (REPAIR: renormalising what an edit of the weights has
made of the activations); differs: where the layer's output goes into a residual sum, the moments are those of the sum,
and a scale falls with the root of the correlation, where images are enough to tell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxshap.core import FloatArray

FEWEST_ROWS = 3
"""Values of a channel from which a variance is told: those of one image behind a pooling layer, so not many."""
FEWEST_CORRELATED = 20
"""Images from which it is told how much a channel has in common with what it was."""
_LARGEST = 10.0
"""No channel is scaled by more, nor by less than its inverse: what is left of some channels is noise."""
_STILL = 1e-13
"""Of the mean square: a channel with a smaller variance is constant, but for the rounding of float32."""


@dataclass
class Moments:
    """Sums over the values of channels: u is what a layer gives, a is added to it, t is what the sum should be."""

    rows: int = 0
    _sums: dict[str, FloatArray] = field(default_factory=dict)

    def add(self, u: FloatArray, t: FloatArray, a: FloatArray | None) -> None:
        """Take in values float64[rows, channels]."""
        self.rows += len(u)
        found = {"u": u.sum(axis=0), "uu": (u * u).sum(axis=0), "t": t.sum(axis=0), "tt": (t * t).sum(axis=0)}
        found["ut"] = (u * t).sum(axis=0)
        if a is not None:
            found |= {"a": a.sum(axis=0), "aa": (a * a).sum(axis=0), "ua": (u * a).sum(axis=0)}
        for name, values in found.items():
            self._sums[name] = self._sums.get(name, np.zeros_like(values)) + values

    def shift(self, scale: FloatArray) -> FloatArray:
        """Return d of each channel, such that scale u + d + a has the mean of t; 0 where values are not finite."""
        mean = self._means
        found = mean["t"] - mean.get("a", 0.0) - scale * mean["u"]
        return np.where(np.isfinite(found), found, 0.0)

    @property
    def _means(self) -> dict[str, FloatArray]:
        return {name: values / self.rows for name, values in self._sums.items()}

    def spreads(self, shifted: bool = True) -> FloatArray:
        """Return float64[5, channels]: var(u), var(t), var(a), cov(u, a), cov(u, t); not `shifted`: about 0."""
        mean = self._means
        nothing = np.zeros_like(mean["u"])
        u, t, a = (mean["u"], mean["t"], mean.get("a", nothing)) if shifted else (nothing, nothing, nothing)
        return np.stack([
            _variance(mean["uu"], u), _variance(mean["tt"], t), mean.get("aa", nothing) - a * a,
            mean.get("ua", nothing) - u * a, mean["ut"] - u * t,
        ])  # fmt: skip


def _variance(square: FloatArray, mean: FloatArray) -> FloatArray:
    """Return mean squares less squared means, 0 where no more is left than rounding leaves of a constant."""
    found = square - mean * mean
    return np.asarray(np.where(found > _STILL * square, found, 0.0))


def pooled_scale(every: Sequence[Moments], correlated: bool = False, shifted: bool = True) -> FloatArray:
    """Return c > 0 of each channel, such that c u + d + a has the variance of t, over all rows, about means of each.

    Where u takes away from a, two may: one of them turns the sum's sign, so it is that nearer to the least squares of
    t - a by u: the lower one where u falls as t rises. 1 where no such c is, where rows are few, and where values are
    not finite.

    Args:
        every: the moments of layers with one weight.
        correlated: let c fall with the root of what least squares makes of it, to a root of `_LARGEST` at the most.
        shifted: whether there is a d. Without one c moves the means too: squares take the place of variances.
    """
    rows = sum(moments.rows for moments in every)
    pooled = sum(moments.rows / rows * moments.spreads(shifted) for moments in every)
    spread, wanted, added, shared, common = np.asarray(pooled)
    # c^2 var(u) + 2 c cov(u, a) + var(a) = var(t)
    inside = shared * shared - spread * (added - wanted)
    told = (spread > 1e-10 * wanted) & (inside >= 0) & (rows >= FEWEST_ROWS)
    over = np.where(told, spread, 1)
    apart = np.sqrt(np.where(told, inside, 0))
    low, high = (-apart - shared) / over, (apart - shared) / over
    root = np.where((low > 0) & (common < 0), low, high)
    scale = np.where(told & (root > 0), np.clip(root, 1 / _LARGEST, _LARGEST), 1.0)
    if not correlated:
        return scale
    nearest = np.clip(np.where(told, common - shared, 0) / over, scale / _LARGEST, scale * _LARGEST)
    return np.where(told & (root > 0), np.sqrt(scale * nearest), 1.0)
