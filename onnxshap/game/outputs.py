"""From the outputs that rows change to their payoffs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxshap.core import Array, FloatArray, ImageIndex
from onnxshap.game.setting import Setting


def payoffs(setting: Setting, changed: Mapping[int, Array], images: ImageIndex) -> FloatArray:
    """Return the payoffs of rows, float64[rows].

    Args:
        setting: of the games.
        changed: number of a model output -> its values for the rows; the others are as in the original model.
        images: int64[rows].
    """
    reference: Sequence[Array] = [value[images] for value in setting.reference]
    labels = setting.data.labels
    outputs = [changed.get(number, value) for number, value in enumerate(reference)]
    return setting.payoff(outputs, reference, None if labels is None else labels[images])
