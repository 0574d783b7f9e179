"""How many rows a run takes: found by measuring the first runs, which do real work already."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxshap.backend import Backend, threads_of

_TRIES = 3
"""Runs of each size; the fastest counts, for the first one of a size also allocates."""
CACHE = 2**22
_NEAR = 2**20
"""Bytes of the cache next to a core, half of it: rows that it holds are the first guess."""
_FEWEST = 8
"""Rows below which nothing is tried, unless the guess is: what a run takes besides its rows is not in its time."""
_MOST = 4096
_STEPS = (0, 1, -1, 2, -2)
"""Doublings of the guess, in the order they are tried."""


@dataclass
class Pace:
    """A search over a few sizes around a guess.

    Rows do not depend on each other, so the values do not depend on the sizes that are tried.

    Attributes:
        guess: rows a run to start from.
        most: rows a run at most.
        fixed: keep to the guess.
        clock: seconds that runs are measured in.
    """

    guess: int
    most: int
    fixed: bool = False
    clock: Callable[[], float] = time.perf_counter
    _seen: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, backend: Backend, largest: int, *, most: int = _MOST, fixed: bool = False) -> Pace:
        """Return the search for rows whose largest tensor takes some bytes each; fixed: as many rows as memory allows.

        The guess is what lets the largest tensor stay in the core's own cache.
        """
        most = int(np.clip(backend.memory // 8 // largest, 1, most))
        guess = most if fixed else int(np.clip(round(_NEAR / largest), min(4, most), min(1024, most)))
        # what a single thread takes is its own time, whatever else is done on the machine
        alone = threads_of(backend) == 1 and not backend.on_device and os.name == "posix"
        return cls(guess, most, fixed, time.thread_time if alone else time.perf_counter)

    @property
    def rows(self) -> int:
        """Rows of the next run."""
        if self.fixed:
            return self.guess
        for size in self._sizes():
            if len(self._seen.get(size, ())) < _TRIES:
                return size
        return min(self._seen, key=lambda size: (min(self._seen[size]), size))

    @contextlib.contextmanager
    def timing(self, rows: int) -> Iterator[None]:
        """Take the time of a run of some rows."""
        start = self.clock()
        yield
        self.tell(rows, self.clock() - start)

    def tell(self, rows: int, seconds: float) -> None:
        """Take the time of a run; those of another size (the last rows of a block) say nothing."""
        if not self.fixed and rows in self._sizes() and len(self._seen.setdefault(rows, [])) < _TRIES:
            self._seen[rows].append(seconds / rows)

    def _sizes(self) -> list[int]:
        found = [int(self.guess * 2.0**step) for step in _STEPS]
        return [size for size in dict.fromkeys(found) if min(self.guess, _FEWEST) <= size <= self.most] or [self.guess]
