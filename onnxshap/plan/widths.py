"""Widths of groups -> plan: which widths a budget's steps allow, and which units stay at each."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from onnxshap.blocks import BLOCK
from onnxshap.core import BoolArray, FloatArray
from onnxshap.groups import Group
from onnxshap.plan.budget import Budget

NARROWEST = 8
"""Of the most that a rank may be, the part that it is not cut below."""
_ROUNDING = 1e-9
"""Of units, by which a share may seem to be below a width that it is."""


@dataclass(frozen=True)
class Candidate:
    """A group as the planner sees it.

    Attributes:
        name: its name.
        units: unit ids.
        phi: the values of the units, higher = keep.
        loss: what is lost at width w, float64[units + 1], not increasing; None = unknown.
        most: the widest width below the whole that may save anything: of the rank of a layer; None = any may.
    """

    name: str
    units: NDArray[np.intp]
    phi: FloatArray
    loss: FloatArray | None = None
    most: int | None = None

    @property
    def size(self) -> int:
        """What a step of the widths goes by."""
        return len(self.units) if self.most is None else self.most

    @property
    def least(self) -> int:
        """The narrowest width: of a rank that which is measured, for below it what is lost rises steeply."""
        return 1 if self.most is None else -(-self.most // NARROWEST)


def unvalued(groups: Sequence[Group], most: Mapping[str, int] = MappingProxyType({})) -> list[Candidate]:
    """Return groups as candidates while their values are not known: all units alike; `most` of ranks, by name."""
    return [Candidate(g.name, g.units, np.zeros(len(g)), most=most.get(g.name)) for g in groups]


def _allowed(one: Candidate, budget: Budget) -> list[int]:
    """Return the widths that a group may have by a budget, ascending; the last is all of it."""
    least = max(budget.min_units, one.least)
    return [*(n for n in budget.widths(one.size) if least <= n < len(one.units)), len(one.units)]


class Planner:
    """Makes plans of widths.

    Args:
        candidates: the groups that may be cut.
        budget: its steps and its least width.
        covers: sets of unit ids, of each of which one stays; those with units of other groups are no matter.
    """

    def __init__(self, candidates: Sequence[Candidate], budget: Budget, covers: Sequence[NDArray[np.intp]]) -> None:
        self.candidates, self._whole = list(candidates), frozenset[int]()
        self._allowed = [_allowed(one, budget) for one in candidates]
        # all units in a row, group after group: their group, and their rank in it; equal values stay in their order
        self._ends = np.cumsum([len(c.units) for c in candidates], dtype=np.intp)
        self._group = np.repeat(np.arange(len(candidates)), [len(c.units) for c in candidates])
        ranks = [np.argsort(np.argsort(-c.phi, kind="stable"), kind="stable") for c in candidates]
        self._rank = np.concatenate([*ranks, np.empty(0, np.intp)])
        places = {int(u): k for k, u in enumerate(u for c in candidates for u in c.units)}
        self._covers = [np.array([places[int(u)] for u in c]) for c in covers if all(int(u) in places for u in c)]
        self._members = np.concatenate([*self._covers, np.empty(0, np.intp)]).astype(np.intp)
        self._starts = np.cumsum([0, *map(len, self._covers)])[:-1].astype(np.intp)

    def without(self, whole: Iterable[int]) -> Planner:
        """Return the same that leaves some groups whole."""
        found = copy(self)
        found._whole = frozenset(whole)
        return found

    def widths(self, share: float) -> list[int]:
        """Return the width of every group at a share, the next below that may be; of those left whole all of it."""
        sizes = [len(c.units) for c in self.candidates]
        return [n if k in self._whole else self._width(k, share, nearest=False) for k, n in enumerate(sizes)]

    def rounded(self, share: float) -> list[int]:
        """Return the width of every group at a share, the nearest that may be."""
        return [self._width(k, share, nearest=True) for k in range(len(self.candidates))]

    def _width(self, k: int, share: float, *, nearest: bool) -> int:
        one, widths = self.candidates[k], self._allowed[k]
        if share >= 1:
            return len(one.units)
        wanted = share * one.size + _ROUNDING
        at = max(0, bisect.bisect_right(widths, wanted) - 1)
        if nearest and at + 1 < len(widths) and widths[at + 1] - wanted <= wanted - widths[at]:
            at += 1
        return widths[at]

    def narrower(self, k: int, width: int) -> int | None:
        """Return the next width of a group below, None where there is none."""
        at = bisect.bisect_left(self._allowed[k], width)
        return self._allowed[k][at - 1] if at and k not in self._whole else None

    def narrowings(self, k: int, width: int, *, blocks: bool = False) -> Iterator[int]:
        """Yield the widths below that may be the next: of a rank all, for only some of them save anything.

        Where steps are to save `blocks`, all that are within the first one, too.
        """
        while (below := self.narrower(k, width)) is not None:
            yield below
            if self.candidates[k].most is None and not (blocks and below <= BLOCK):
                return
            width = below

    def wider(self, k: int, width: int) -> int:
        """Return the next width of a group above, the same where there is none."""
        at = bisect.bisect_right(self._allowed[k], width)
        return self._allowed[k][at] if at < len(self._allowed[k]) else width

    def loss(self, k: int, width: int) -> float:
        """Return what a group loses at a width."""
        loss = self.candidates[k].loss
        assert loss is not None
        return float(loss[width])

    def at(self, widths: Sequence[int]) -> dict[str, BoolArray]:
        """Return the plan that keeps the best units of every group, and one of every cover."""
        flags = self._rank < np.asarray(widths, np.intp)[self._group]
        covered = np.logical_or.reduceat(flags[self._members], self._starts) if self._covers else np.empty(0, np.bool_)
        for cover in (self._covers[k] for k in np.flatnonzero(~covered)):
            if not flags[cover].any():
                flags[max(cover, key=self._worth)] = True
        bounds = itertools.pairwise([0, *self._ends.tolist()])
        return {c.name: flags[start:end] for c, (start, end) in zip(self.candidates, bounds, strict=True)}

    def _worth(self, place: int) -> tuple[float, int]:
        group = self._group[place]
        unit = place - (self._ends[group] - len(self.candidates[group].units))
        return float(self.candidates[group].phi[unit]), -int(unit)
