"""How many epochs there is time for, how large a step of them is, and its rate."""

from __future__ import annotations

import math
import time

from onnxshap.core import IntArray
from onnxshap.distill.feeds import BATCH

FEWER = 20
"""Images of a step where time allows less than half of the epochs: steps are what is missing then. MobileNetV2 learns
in 30 epochs of 20 what it learns in 60 of 50."""
_TIMED = 3
"""Epochs after which what they took tells how many there will be."""


class Schedule:
    """The epochs of a tuning; its clock starts when it is made.

    Args:
        epochs: the most that are wanted.
        seconds: the time that there is.
        allowed: how many epochs it seems to allow, until it is known better.
    """

    def __init__(self, epochs: int, seconds: float, allowed: float) -> None:
        self.planned = max(1, min(epochs, int(allowed)))
        """How many epochs there will be."""
        self._epochs, self._seconds, self._started = epochs, seconds, time.perf_counter()
        self._images = BATCH if 2 * allowed >= epochs else FEWER

    def batches(self, order: IntArray) -> list[IntArray]:
        """Return the images of an epoch, step by step."""
        return [order[start : start + self._images] for start in range(0, len(order), self._images)]

    def rate(self, highest: float, epochs: float) -> float:
        """Return the rate of a step after so many epochs: a short rise to the highest, then a cosine."""
        done = epochs / self.planned
        return highest * min(1.0, 20 * done + 0.05) * 0.5 * (1 + math.cos(math.pi * done))

    def take(self, epoch: int) -> None:
        """Plan anew once an epoch is over: a machine may get busier meanwhile."""
        if epoch >= _TIMED:
            taken = time.perf_counter() - self._started
            self.planned = max(epoch, min(self._epochs, int(self._seconds / taken * epoch)))

    def end_with(self, epoch: int) -> None:
        """Let an epoch be the last."""
        self.planned = epoch
