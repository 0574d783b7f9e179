"""Per-channel mean and variance of what a layer gives, made what they were.

What BatchNormalization re-estimation does for a net in training, for one whose BatchNormalization is folded into the
weights: channel by channel a scale and a shift, from moments alone, so that a handful of images will do. Sums keep
their variance where least squares lets it shrink, but no direction is corrected.

Source: Sun et al. 2017 (bias correction), Jordan et al. 2022 (REPAIR: renormalising what an edit of the weights has
made of the activations); differs: where the layer's output goes into a residual sum, the moments are those of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnxshap.core import FloatArray

FEWEST_ROWS = 20
"""Values of a channel from which a variance is told."""
_LARGEST = 10.0
"""No channel is scaled by more, nor by less than its inverse: what is left of some channels is noise."""


@dataclass
class Moments:
    """Sums over the values of channels: u is what a layer gives, a is added to it, t is what the sum should be."""

    rows: int = 0
    _sums: dict[str, FloatArray] = field(default_factory=dict)

    def add(self, u: FloatArray, t: FloatArray, a: FloatArray | None) -> None:
        """Take in values float64[rows, channels]."""
        self.rows += len(u)
        found = {"u": u.sum(axis=0), "uu": (u * u).sum(axis=0), "t": t.sum(axis=0), "tt": (t * t).sum(axis=0)}
        if a is not None:
            found |= {"a": a.sum(axis=0), "aa": (a * a).sum(axis=0), "ua": (u * a).sum(axis=0)}
        for name, values in found.items():
            self._sums[name] = self._sums.get(name, np.zeros_like(values)) + values

    def scale_and_shift(self) -> tuple[FloatArray, FloatArray]:
        """Return c and d of each channel, such that c u + d + a has the mean and the variance of t.

        Where no c > 0 does, the mean alone is made right; where values are not finite, nothing is.
        """
        mean = {name: values / self.rows for name, values in self._sums.items()}
        nothing = np.zeros_like(mean["u"])
        u, t, a = mean["u"], mean["t"], mean.get("a", nothing)
        spread = mean["uu"] - u * u
        wanted = mean["tt"] - t * t
        added = mean.get("aa", nothing) - a * a
        shared = mean.get("ua", nothing) - u * a
        # c^2 var(u) + 2 c cov(u, a) + var(a) = var(t)
        inside = shared * shared - spread * (added - wanted)
        told = (spread > 1e-10 * wanted) & (inside >= 0) & (self.rows >= FEWEST_ROWS)
        root = (np.sqrt(np.where(told, inside, 0)) - shared) / np.where(told, spread, 1)
        scale = np.where(told & (root > 0), np.clip(root, 1 / _LARGEST, _LARGEST), 1.0)
        shift = t - a - scale * u
        return scale, np.where(np.isfinite(shift), shift, 0.0)
