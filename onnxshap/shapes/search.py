"""Sizes of free axes that fit each other, found by what onnxruntime says when it refuses others.

A model may want states of half the sides of its picture, or as many masks as there are positions of two inputs
together. The first node that does not run names two sizes that do not go together: what brings one to the other is
tried on the axes that reach that node, and where another node refuses later, or none does, that was right.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from onnxshap.errors import DataError, ModelError
from onnxshap.shapes.dims import Axis, Shape
from onnxshap.shapes.folding import Run

MOST = 2**24
"""Numbers of all inputs together, of sizes that nobody gave."""
_LARGEST = 4096
"""No axis is longer than that, of those that are tried."""
_PLACE = re.compile(r"\b(?:axis|dim|dimension)\s+\d+", re.IGNORECASE)
"""Numbers that are no sizes."""
_SAID = 12
"""Sizes that a message is read for."""
_BLIND = ((0, 1, 1), (1, 2, 0), (2, 1, 0), (1, 4, 0), (1, 8, 0), (1, 16, 0))
"""What is tried where no size said helps: times, over, and what is added."""

Axes = tuple[Axis, ...]
"""Some that are changed together."""
Change = tuple[int, int, int]
"""What is made of a size: it is multiplied, divided without a rest, and added to."""


class Probed(Protocol):
    """A model that runs, or refuses to."""

    def run(self, sizes: Mapping[str, Shape]) -> Run:
        """Return a run at sizes of its inputs; raises a ModelError or a DataError where it refuses them."""

    def refusing(self, error: Exception) -> int | None:
        """Return the place of the node that refused, None where the error names none."""

    def reaching(self, place: int) -> Sequence[str]:
        """Return the inputs that a node depends on."""


class _Refused:
    """Sizes that a node refused, and what has not been tried on them."""

    def __init__(
        self, sizes: Mapping[str, Shape], place: int, message: str, sets: Sequence[Axes], reaching: Collection[str],
        held: Collection[Axes],
    ) -> None:  # fmt: skip
        """Take sizes, the place of the node and what it said.

        Args:
            sizes, place, message: those.
            sets: axes that may change.
            reaching: the inputs that it depends on.
            held: axes that nodes before it want as they are, as far as is known.
        """
        self.place, self.message = place, message
        self.held, self.idle = set(held), set[Axes]()
        """Axes that were changed to no use: a node before refused, or this one said the same."""
        self._sizes = sizes
        able = [axes for axes in sets if not {name for name, _ in axes}.isdisjoint(reaching)]
        self._moves = deque((change, axes) for change in _changes(message) for axes in able)
        self._late = deque[tuple[Change, Axes]]()

    def next(self) -> tuple[Axes, dict[str, Shape]] | None:
        """Return axes, and the sizes with these changed; None where nothing is left."""
        while self._moves or self._late:
            late = not self._moves
            change, axes = (self._late if late else self._moves).popleft()
            if not late and (axes in self.idle or axes in self.held):
                self._late.append((change, axes))
            elif (found := _changed(self._sizes, axes, change)) is not None:
                return axes, found
        return None


def fitting(probe: Probed, start: Mapping[str, Shape], sets: Sequence[Axes], tries: int) -> Run | None:
    """Return a run at sizes that fit, None where none were found.

    Nodes run in the order of the file, so sizes are the better the later the node is that refuses them; of those that
    one node refuses the first ones are gone on with. All that its message may mean is tried on all sets of axes, on
    those last that were of no use; then worse sizes are gone on with.

    Args:
        probe: the model.
        start: sizes that are changed; they are tried first.
        sets: axes that are changed together, in the order in which that is tried.
        tries: most runs.
    """
    axes, sizes = Axes(), dict(start)
    seen = set[tuple[tuple[str, Shape], ...]]()
    waiting: list[tuple[int, int, _Refused]] = []
    for number in range(tries):
        seen.add(tuple(sizes.items()))
        try:
            return probe.run(sizes)
        except (ModelError, DataError) as error:
            place, message = probe.refusing(error), _said(error)
        best = waiting[0][2] if waiting else None
        back = best is not None and (place is None or place < best.place)
        if best is not None and back:
            best.held.add(axes)
        if best is not None and (place, message) == (best.place, best.message):
            best.idle.add(axes)
        elif place is not None:
            held = () if best is None or back else best.held
            found = _Refused(sizes, place, message, sets, probe.reaching(place), held)
            heapq.heappush(waiting, (-place, number, found))
        while waiting:
            move = waiting[0][2].next()
            if move is None:
                heapq.heappop(waiting)
            elif tuple(move[1].items()) not in seen:
                axes, sizes = move
                break
        else:
            break
    return None


def _changed(sizes: Mapping[str, Shape], axes: Axes, change: Change) -> dict[str, Shape] | None:
    """Return sizes of which some axes are changed; None where one would be too long, or have one entry or none.

    One entry is stretched to whatever it meets, so a model that takes it takes others, and what is cut may not.
    """
    times, over, more = change
    found = {name: list(shape) for name, shape in sizes.items()}
    for name, axis in axes:
        size, rest = divmod(times * found[name][axis], over)
        if rest or not 1 < size + more <= _LARGEST:
            return None
        found[name][axis] = size + more
    made = {name: tuple(shape) for name, shape in found.items()}
    return made if numbers(made) <= MOST else None


def numbers(sizes: Mapping[str, Shape]) -> int:
    """Return how many numbers inputs of some sizes hold."""
    return sum(map(math.prod, sizes.values()))


def _said(error: Exception) -> str:
    """Return what a node said, without the numbers that are no sizes."""
    return _PLACE.sub("", str(error).rpartition("Status Message:")[2])


def _changes(message: str) -> list[Change]:
    """Return what may bring the sizes together that a node names, likely ones first.

    By the ratio of two of them, by their difference, to one of them, by the ratio again, upwards. Two shapes are
    compared entry by entry, other sizes each with the next one.

    >>> _changes("mismatched dimensions of 64 and 32")[:6]
    [(32, 64, 0), (1, 1, -32), (1, 1, 32), (0, 1, 64), (0, 1, 32), (64, 32, 0)]
    """
    shapes = [re.findall(r"\d+", found) for found in re.findall(r"\{([-\d,\s]+)\}", message)]
    said = [n for n in map(int, re.findall(r"\d+", message)) if n > 1][:_SAID]
    pairs = [(int(a), int(b)) for a, b in zip(*shapes[:2], strict=False)] if len(shapes) > 1 else []
    unlike = [(a, b) for a, b in dict.fromkeys((*pairs, *itertools.pairwise(said))) if a != b and min(a, b) > 1]
    lower, higher = ([(f(pair), g(pair), 0) for pair in unlike] for f, g in ((min, max), (max, min)))
    apart = [(1, 1, b - a) for a, b in (*unlike, *(pair[::-1] for pair in unlike))]
    values = [(0, 1, size) for size in said]
    return list(dict.fromkeys([*lower, *apart, *values, *higher, *_BLIND]))
