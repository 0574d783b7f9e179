"""What distillation sees and did; apart from it, because that needs torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshap import streams
from onnxshap.core import IntArray
from onnxshap.errors import DataError

SECONDS = 480.0
"""Most seconds of tuning, unless said otherwise."""
_FEWEST = 25
"""Of which four fifths are tuned on, and five are left to judge by."""
_HELD_OUT = 50
"""Images enough to judge by; where they are few, a fifth, where they are many, a tenth."""


@dataclass(frozen=True)
class Tuning:
    """What the tuning did.

    Attributes:
        epochs: epochs run.
        best: the epoch whose weights were kept; 0 = the start.
        before, after: held-out losses of the outputs.
        device: where torch ran, cpu or cuda.
    """

    epochs: int
    best: int
    before: float
    after: float
    device: str = "cpu"


def divided(images: int, seed: int) -> tuple[IntArray, IntArray]:
    """Return the images that are tuned on, and those held out to judge by: no repair before it may see these either.

    Raises:
        DataError: there are too few.
    """
    if images < _FEWEST:
        raise DataError(f"distill needs at least {_FEWEST} images, there are {images}; give more")
    order = streams.stream(seed, streams.TUNING_IMAGES).permutation(images)
    held = max(images // 10, min(images // 5, _HELD_OUT))
    return np.sort(order[held:]), np.sort(order[:held])
