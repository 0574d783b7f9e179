"""Sizes of free axes that fit each other, found by what onnxruntime says when it refuses others.

A model may want states of half the sides of its picture, or as many masks as there are positions of two inputs
together. The first node that does not run names two sizes that do not go together, or what it read tells them: what
brings one to the other is tried on the axes that reach that node, and where another node refuses later, or none does,
that was right.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from onnxshap.data import InputSpec
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
_VAIN = 2
"""How often axes are changed to no use."""
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

    def met(self, place: int, sizes: Mapping[str, Shape]) -> Sequence[Shape]:
        """Return the shapes that a node reads at sizes at which it refuses, of vectors of sizes what they hold."""


class _Refused:
    """Sizes that a node refused, and what has not been tried on them."""

    def __init__(
        self, sizes: Mapping[str, Shape], place: int, message: str, met: Sequence[Shape], sets: Sequence[Axes],
        reaching: Collection[str], held: Collection[Axes],
    ) -> None:  # fmt: skip
        """Take sizes, the place of the node, what it said and the shapes that it read.

        Args:
            sizes, place, message, met: those.
            sets: axes that may change.
            reaching: the inputs that it depends on.
            held: axes that nodes before it want as they are, as far as is known.
        """
        self.place, self.told = place, (message, met)
        self.unlike = sum(a != b for a, b in _pairs(met))
        """How many sizes do not go together, as far as shapes tell that are compared axis by axis."""
        self.held, self.vain = set(held), Counter[Axes](held)
        """Axes that were changed to no use: a node before refused; that, or this one said the same, how often."""
        self._sizes = sizes
        able = [axes for axes in sets if not {name for name, _ in axes}.isdisjoint(reaching)]
        self._direct = deque(_direct(sizes, met, [axes[0] for axes in able if len(axes) == 1]))
        first = next((name for name in sizes if any(name == own for axes in sets for own, _ in axes)), "")
        apart = [[axes for axes in able if any(name == first for name, _ in axes) == led] for led in (False, True)]
        changes = _changes(message, met)
        self._moves = deque((change, axes) for some in apart for change in changes for axes in some)
        self._late = deque[tuple[Change, Axes]]()

    def next(self) -> tuple[Axes, dict[str, Shape]] | None:
        """Return axes, and the sizes with these changed; None where nothing is left."""
        while self._direct:
            wanted = self._direct.popleft()
            if (found := _resized(self._sizes, wanted)) is not None:
                return tuple(wanted), found
        while self._moves or self._late:
            late = not self._moves
            change, axes = (self._late if late else self._moves).popleft()
            if self.vain[axes] >= _VAIN:
                continue
            if not late and self.vain[axes]:
                self._late.append((change, axes))
            elif (found := _changed(self._sizes, axes, change)) is not None:
                return axes, found
        return None


def fitting(probe: Probed, start: Mapping[str, Shape], sets: Sequence[Axes], tries: int) -> Run | None:
    """Return a run at sizes that fit, None where none were found.

    Nodes run in the order of the file, so sizes are the better the later the node is that refuses them, and of those
    that one node refuses the more of what it reads goes together. All that it may mean is tried on all sets of axes, on
    those last that were of no use; then worse sizes are gone on with.

    Args:
        probe: the model.
        start: sizes that are changed; they are tried first.
        sets: axes that are changed together, in the order in which that is tried.
        tries: most runs.
    """
    axes, sizes = Axes(), dict(start)
    seen = set[tuple[tuple[str, Shape], ...]]()
    waiting: list[tuple[int, int, int, _Refused]] = []
    for number in range(tries):
        seen.add(tuple(sizes.items()))
        try:
            return probe.run(sizes)
        except (ModelError, DataError) as error:
            place, message = probe.refusing(error), _said(error)
            met = [] if place is None else probe.met(place, sizes)
        best = waiting[0][-1] if waiting else None
        back = best is not None and (place is None or place < best.place)
        same = best is not None and (place, (message, met)) == (best.place, best.told)
        if best is not None and (back or same):
            best.vain[axes] += 1
            best.held |= {axes} if back else set()
        if place is not None and not same:
            held = () if best is None or back else best.held
            found = _Refused(sizes, place, message, met, sets, probe.reaching(place), held)
            heapq.heappush(waiting, (-place, found.unlike, number, found))
        while waiting:
            move = waiting[0][-1].next()
            if move is None:
                heapq.heappop(waiting)
            elif tuple(move[1].items()) not in seen:
                axes, sizes = move
                break
        else:
            break
    return None


def _direct(sizes: Mapping[str, Shape], met: Sequence[Shape], axes: Sequence[Axis]) -> Iterator[dict[Axis, int]]:
    """Yield sizes of axes by which one of two shapes becomes the other, where an input goes in as it is.

    Those of an input of just that shape all at once; then each that is as long as what does not fit.
    """
    for name in dict.fromkeys(name for name, _ in axes):
        for one, other in itertools.permutations(_shapes(met), 2):
            if sizes[name] == one and len(one) == len(other):
                yield {(name, axis): other[axis] for own, axis in axes if own == name and other[axis] != one[axis]}
    unlike = [pair for both in _unlike(met) for pair in (both, both[::-1])]
    for name, axis in axes:
        yield from ({(name, axis): wanted} for own, wanted in unlike if sizes[name][axis] == own)


def _changed(sizes: Mapping[str, Shape], axes: Axes, change: Change) -> dict[str, Shape] | None:
    """Return sizes of which some axes are changed, None as `_resized`, or where a division leaves a rest."""
    times, over, more = change
    if any(times * sizes[name][axis] % over for name, axis in axes):
        return None
    return _resized(sizes, {(name, axis): times * sizes[name][axis] // over + more for name, axis in axes})


def _resized(sizes: Mapping[str, Shape], wanted: Mapping[Axis, int]) -> dict[str, Shape] | None:
    """Return sizes of which some are others; None where one would be too long, or have one entry or none.

    One entry is stretched to whatever it meets, so a model that takes it takes others, and what is cut may not.
    """
    if not wanted or not all(1 < size <= _LARGEST for size in wanted.values()):
        return None
    made = {n: tuple(wanted.get((n, axis), size) for axis, size in enumerate(shape)) for n, shape in sizes.items()}
    return made if numbers(made) <= MOST else None


def numbers(sizes: Mapping[str, Shape]) -> int:
    """Return how many numbers inputs of some sizes hold."""
    return sum(map(math.prod, sizes.values()))


def _said(error: Exception) -> str:
    """Return what a node said, without the numbers that are no sizes."""
    return _PLACE.sub("", str(error).rpartition("Status Message:")[2])


def _changes(message: str, met: Sequence[Shape]) -> list[Change]:
    """Return what may bring the sizes together that a node names or met, likely ones first.

    By the ratio of two of them, by their difference, to one of them, by the ratio again, upwards. Two shapes are
    compared axis by axis, other sizes each with the next one.

    >>> _changes("mismatched dimensions of 64 and 32", [])[:6]
    [(32, 64, 0), (1, 1, -32), (1, 1, 32), (0, 1, 64), (0, 1, 32), (64, 32, 0)]
    >>> _changes("invalid expand shape", [(2, 64, 8), (2, 6, 8)])[:2]
    [(6, 64, 0), (1, 1, -58)]
    """
    said = [n for n in map(int, re.findall(r"\d+", message)) if n > 1][:_SAID]
    unlike = list(dict.fromkeys((*_unlike(met), *((a, b) for a, b in itertools.pairwise(said) if a != b))))
    lower, higher = ([(f(pair), g(pair), 0) for pair in unlike] for f, g in ((min, max), (max, min)))
    apart = [(1, 1, b - a) for a, b in (*unlike, *(pair[::-1] for pair in unlike))]
    values = [(0, 1, size) for size in dict.fromkeys((*said, *itertools.chain(*unlike)))]
    return list(dict.fromkeys([*lower, *apart, *values, *higher, *_BLIND]))


def _unlike(met: Sequence[Shape]) -> list[tuple[int, int]]:
    """Return the sizes that differ, from the last axis on; one entry goes with all."""
    return [(a, b) for a, b in _pairs(met) if a != b and min(a, b) > 1]


def _pairs(met: Sequence[Shape]) -> list[tuple[int, int]]:
    """Return the sizes of the first two shapes of some axes, from the last one on."""
    return list(zip(*(shape[::-1] for shape in _shapes(met)), strict=False))


def _shapes(met: Sequence[Shape]) -> list[Shape]:
    """Return the first two shapes of some axes, none where there is one."""
    found = [shape for shape in met if shape][:2]
    return found if len(found) == 2 else []


def sets_of(specs: Mapping[str, InputSpec], axes: Sequence[Axis]) -> list[tuple[Axis, ...]]:
    """Return axes that may follow one size: those of one name, all of an input, each; of the last inputs first.

    The first one, a picture or a sentence, is what the others are made for.
    """
    order = axes[::-1]
    called, found = by_name(specs, order), dict[tuple[Axis, ...], None]()
    named = {key: title for key, title in called.items() if specs[key[0]].symbols[key[1] :][:1] not in ((), ("",))}
    for alike in (named, {key: key[0] for key in order}, {key: key for key in order}):
        for kind in dict.fromkeys(alike.values()):
            found[tuple(key for key in order if alike.get(key) == kind)] = None
    return list(found)


def by_name(specs: Mapping[str, InputSpec], free: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Return input and axis -> what the axis is called, or failing that where it lies."""
    return {(name, axis): specs[name].symbols[axis] or f"{axis - len(specs[name].shape)}" for name, axis in free}
