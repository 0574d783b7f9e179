"""Choices by numbers that are there beforehand.

Hypothesis fills most of a run with copies of what it drew before, a part of it put into the place of another: of 300
nets that were drawn choice by choice most were made of few ops. Of one array of bytes it draws a new one each time, and
shrinks it as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BYTES = 800
"""Choices that are not the simplest ones; more than nets of 20 ops need."""


@dataclass
class Tape:
    """Numbers 0 to 255, each of which decides one thing; 0 is the simplest choice, and all behind the end are."""

    left: Iterator[int]

    def integer(self, low: int, high: int) -> int:
        """Return a number of at most 256 following ones, all about as often."""
        return low + next(self.left, 0) % (high - low + 1)

    def flag(self) -> bool:
        return bool(self.integer(0, 1))

    def one_of(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def order(self, options: Sequence[int]) -> list[int]:
        """Return the options in any order."""
        left = list(options)
        return [left.pop(self.integer(0, len(left) - 1)) for _ in range(len(left))]

    def subset(self, options: Sequence[int], most: int) -> list[int]:
        """Return at least one of the options, in any order."""
        return self.order(options)[: self.integer(1, max(1, most))]
