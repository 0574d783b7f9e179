"""What a runtime makes of widths: it computes channels in full blocks, whatever a layer has of the last one.

onnxruntime keeps the channels of Convs in blocks of 16 with AVX-512, of 8 with AVX2, and its matrix products make 16
columns together with either: a layer of 20 or 24 filters takes as long as one of 32. Whole blocks of 16 are whole
blocks of 8, so plans that go by 16 suit both, and are the same wherever they are made. Below one block a Conv of
several taps takes less time for fewer inputs, in fours, which it reads as they lie; other layers do not.
"""

from __future__ import annotations

import numpy as np

from onnxshap.core import FloatArray

BLOCK = 16
"""Channels that are computed together."""
PART = 4
"""The step of widths below a block, and where blocks are too coarse."""
_READING = 1.3
"""Time that a channel below a block takes to be read over that of one in a block."""
_NARROWEST = 8
"""Of a group, the part that it is not cut below within a block: nothing is measured there (`plan.curves`)."""


def full(units: int) -> list[int]:
    """Return the widths of a group that fill blocks, and parts of the first one, ascending; narrow ones have every.

    >>> full(72), full(24), full(5)
    ([12, 16, 32, 48, 64], [4, 8, 12, 16], [1, 2, 3, 4, 5])
    """
    if units < BLOCK:
        return list(range(1, units + 1))
    parts = [width for width in range(PART, BLOCK, PART) if width * _NARROWEST >= units]
    return [*parts, *range(BLOCK, units + 1, BLOCK)]


def filled(widths: FloatArray) -> FloatArray:
    """Return widths as they take time, channels beside those that a layer has among them; 1 stays 1.

    Below a block what is made takes as long as a block, and what is read as long as 1.3 times as many (measured): the
    root of both, for most channels are made once and read once.

    >>> filled(np.array([1.0, 4, 8, 12, 16, 20, 33])).round(1).tolist()
    [1.0, 9.1, 12.9, 15.8, 16.0, 32.0, 48.0]
    """
    part = np.minimum(BLOCK, np.sqrt(_READING * BLOCK * widths))
    return np.where(widths <= 1, widths, np.where(widths < BLOCK, part, np.ceil(widths / BLOCK) * BLOCK))
