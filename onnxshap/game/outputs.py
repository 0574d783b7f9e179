"""From the outputs that rows change to their payoffs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxshap.core import Array, FloatArray, ImageIndex
from onnxshap.game.setting import Setting

_NUMBERS = 2**15
"""Numbers of the outputs that a payoff gets at a time: what it makes of them stays in the processor's cache."""


def payoffs(setting: Setting, changed: Mapping[int, Array], images: ImageIndex) -> FloatArray:
    """Return the payoffs of rows, float64[rows].

    Args:
        setting: of the games.
        changed: number of a model output -> its values for the rows; the others are as in the original model.
        images: int64[rows].
    """
    a_row = sum(int(np.prod(value.shape[1:])) for value in setting.reference)
    size = max(8, _NUMBERS // max(1, a_row))
    found = np.empty(len(images))
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        reference = [np.take(value, images[rows], axis=0) for value in setting.reference]
        outputs = [changed[k][rows] if k in changed else value for k, value in enumerate(reference)]
        labels = None if setting.data.labels is None else setting.data.labels[images[rows]]
        found[rows] = setting.payoff(outputs, reference, labels)
    return found
