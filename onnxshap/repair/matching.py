"""The means and variances of layers' channels made what they were, on both models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxshap.core import FloatArray
from onnxshap.repair.moments import FEWEST_CORRELATED, FEWEST_ROWS, Moments, pooled_scale
from onnxshap.repair.rows import every_row, scaled
from onnxshap.repair.targets import Layer
from onnxshap.repair.walks import Walks


def match(walks: Walks, layers: Sequence[Layer]) -> None:
    """Make the mean and the variance of the channels of layers with one weight what they were, in place.

    The scale is one for all of them, a compromise with least squares where layers follow (`moments`). A few values
    tell neither mean nor variance.
    """
    old = walks.coefficients.read(layers[0])
    groups, _, outputs = old.shape
    scale, shift = layers[0].scale_and_shift(groups * outputs)
    biases = walks.coefficients.biases(layers, groups * outputs)
    every = [_moments(walks, layer, scale, shift, shifted=bool(biases)) for layer in layers]
    if any(moments.rows < FEWEST_ROWS for moments in every):
        return
    inner = any(walks.is_read(layer) for layer in layers)
    enough = walks.images >= FEWEST_CORRELATED
    factor = pooled_scale(every, correlated=inner and enough, shifted=bool(biases))
    nothing = np.zeros(len(factor))
    offsets = [(factor * shift + m.shift(factor) - shift) / scale if biases else nothing for m in every]
    matched = [bias * factor + offset for bias, offset in zip(biases, offsets, strict=False)]
    if not walks.coefficients.write(layers, old * factor.reshape(groups, 1, outputs), matched):
        return
    for layer, offset in zip(layers, offsets, strict=True):
        walks.present.edited(layer.y, partial(scaled, channels=layer.outputs, factor=factor, offset=offset))
    walks.go_on(layers)


def _moments(walks: Walks, layer: Layer, scale: FloatArray, shift: FloatArray, *, shifted: bool) -> Moments:
    """Return those of a layer's outputs, and of what they should be; not `shifted`: of both without the shift."""
    moments = Moments()
    for target, values in walks.compared(layer, layer.y):
        wanted, given, *added = (every_row(v, layer.outputs) for v in (target, *values))
        if len(wanted) != len(given):
            continue  # the data tell how many there are, and those of the cut model tell of others
        u, t = (given * scale + shift, wanted) if shifted else (given * scale, wanted - shift)
        moments.add(u, t, added[0] if added else None)
    return moments
