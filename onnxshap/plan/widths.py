"""Widths of groups -> plan: which widths a budget's steps allow, and which units stay at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import BoolArray, FloatArray
from onnxshap.groups import Group
from onnxshap.plan.budget import Budget


@dataclass(frozen=True)
class Candidate:
    """A group as the planner sees it.

    Attributes:
        name: its name.
        units: unit ids.
        phi: the values of the units, higher = keep.
        loss: what is lost at width w, float64[units + 1], not increasing; None = unknown.
    """

    name: str
    units: NDArray[np.intp]
    phi: FloatArray
    loss: FloatArray | None = None


def unvalued(groups: Sequence[Group]) -> list[Candidate]:
    """Return groups as candidates while their values are not known: all units alike."""
    return [Candidate(g.name, g.units, np.zeros(len(g))) for g in groups]


class Planner:
    """Makes plans of widths.

    Args:
        candidates: the groups that may be cut.
        budget: its steps and its least width.
        covers: sets of unit ids, of each of which one stays; those with units of other groups are no matter.
    """

    def __init__(self, candidates: Sequence[Candidate], budget: Budget, covers: Sequence[NDArray[np.intp]]) -> None:
        self.candidates, self._budget, self._whole = list(candidates), budget, frozenset[int]()
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
        """Return the width of every group at a share, rounded down to its step; of those left whole all of it."""
        sizes = [len(c.units) for c in self.candidates]
        return [n if k in self._whole else self._width(n, share * n, math.floor) for k, n in enumerate(sizes)]

    def rounded(self, share: float) -> list[int]:
        """Return the width of every group at a share, rounded to the nearest step."""
        return [self._width(len(c.units), share * len(c.units), round) for c in self.candidates]

    def _width(self, size: int, wanted: float, rounding: Callable[[float], int]) -> int:
        step = self._budget.step(size)
        least = -(-self._budget.min_units // step) * step
        return min(size, max(step, least, rounding(wanted / step + 1e-9) * step))

    def narrower(self, k: int, width: int) -> int | None:
        """Return the next width of a group below, None where there is none."""
        if k in self._whole:
            return None
        step = self._budget.step(len(self.candidates[k].units))
        below = (width - 1) // step * step
        return below if below >= max(1, step, self._budget.min_units) else None

    def wider(self, k: int, width: int) -> int:
        """Return the next width of a group above, the same where there is none."""
        size = len(self.candidates[k].units)
        step = self._budget.step(size)
        return min(size, (width // step + 1) * step)

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
