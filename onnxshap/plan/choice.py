"""Which units stay: values + costs + budget -> plan.

Where the loss at every width of every group is known (`curves`), widths are narrowed step by step, the least loss per
share of the budget first, with the exact cost of every step next to the present widths of the neighbours. Where it is
not, shares are uniform over the groups: comparing values across groups is unreliable (a group's values are measured
with the others intact), and uniform widths are a strong baseline. The budget is met, never overshot.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxshap.arguments import check_fields, checked
from onnxshap.core import BoolArray, FloatArray
from onnxshap.errors import BudgetError
from onnxshap.tracing import Keep

Measure = Callable[[Keep], Mapping[str, float]]
"""Plan -> share kept of `macs`, `params` and `bytes`."""
_MISSES = 64
_STEPS = 40
_MUCH = 0.9
"""Share of a budget that is used, below which widths are taken in finer steps."""


@dataclass(frozen=True)
class Budget:
    """What may stay; shares are of the whole model, in (0, 1].

    Attributes:
        units: share of every group, no search.
        macs: share of the multiply-accumulates.
        params: share of the parameters.
        bytes: share of the bytes of the constants.
        multiple_of: widths are multiples of it where a group is at least twice as wide, else of its half, and so on;
            None = 8, 4 or 1 by width, finer where such steps leave much of the budget unused.
        min_units: no group gets narrower.
        finer: how often the steps by width are halved.
    """

    units: float | None = None
    macs: float | None = None
    params: float | None = None
    multiple_of: int | None = None
    min_units: int = 1
    bytes: float | None = None
    finer: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("units", "macs", "params", "bytes"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise BudgetError(f"keep-{name} is {share:g}; give the share to keep, above 0 and at most 1")
        if self.multiple_of is not None and self.multiple_of < 1:
            raise BudgetError(f"multiple-of is {self.multiple_of}; give a width of at least 1")
        if self.min_units < 1:
            raise BudgetError(f"min-units is {self.min_units}; no group can be emptied, give at least 1")
        if self.finer < 0:
            raise BudgetError(f"finer is {self.finer}; give how often steps are halved, 0 or more")

    @property
    def shares(self) -> dict[str, float]:
        """The shares that need a search."""
        return {name: share for name in ("macs", "params", "bytes") if (share := getattr(self, name)) is not None}

    def step(self, units: int) -> int:
        """Return the width step of a group."""
        if self.multiple_of is None:
            return max(1, (8 if units >= 64 else 4 if units >= 16 else 1) >> self.finer)
        step = self.multiple_of
        while step > 1 and units < 2 * step:
            step //= 2
        return step


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


def check_reachable(candidates: Sequence[Candidate], budget: Budget, measure: Measure, *, copies: bool = True) -> None:
    """Refuse a budget that no values can meet, before they are computed; those of `candidates` do not matter.

    `copies` is as in `make_plan`.

    Raises:
        BudgetError: there is no budget, or the smallest widths exceed it.
    """
    planner = _Planner(candidates, budget, ())
    if budget.units is None and not budget.shares:
        raise BudgetError("no budget: give --keep-macs, --keep-params, --keep-bytes or --keep-units")
    if budget.units is not None:
        return _check(measure(planner.at(planner.rounded(budget.units))), budget)
    least = measure(planner.at(planner.widths(0.0)))
    if copies and not fits(least, budget):
        planner = _leaving(planner, budget, measure)
        least = measure(planner.at(planner.widths(0.0)))
    if not fits(least, budget) and (finer := _finer(candidates, budget)) is not None:
        return check_reachable(candidates, finer, measure, copies=copies)
    return _check(least, budget)


def smallest(groups: Sequence[tuple[str, NDArray[np.intp]]], budget: Budget) -> dict[str, BoolArray]:
    """Return the plan of the least widths that a budget's step and `min_units` allow; groups as (name, unit ids)."""
    planner = _Planner([Candidate(name, units, np.zeros(len(units))) for name, units in groups], budget, ())
    return planner.at(planner.widths(0.0))


@checked
def make_plan(
    candidates: Sequence[Candidate],
    budget: Budget,
    measure: Measure,
    covers: Sequence[NDArray[np.intp]] = (),
    *,
    copies: bool = True,
) -> dict[str, BoolArray]:
    """Return the plan: group name -> bool[n_units], True = stays.

    Args:
        candidates: the groups that may be cut.
        budget: what may stay; several shares hold together.
        measure: plan -> shares kept.
        covers: sets of unit ids, of each of which one stays.
        copies: whether a cut may make copies of shared weights (`Cost.copies`): then less may be more.

    Raises:
        BudgetError: there is nothing to cut, or the smallest allowed plan exceeds the budget.
    """
    if not candidates:
        raise BudgetError("nothing can be cut: no group of units is left; see `onnxshap inspect` for the reasons")
    planner = _Planner(candidates, budget, covers)
    if budget.units is not None:
        keep = planner.at(planner.rounded(budget.units))
        _check(measure(keep), budget)
        return keep
    if not budget.shares:
        raise BudgetError("no budget: give --keep-macs, --keep-params, --keep-bytes or --keep-units")
    planner = _leaving(planner, budget, measure) if copies else planner
    least, finer = measure(planner.at(planner.widths(0.0))), _finer(candidates, budget)
    if finer is None:
        _check(least, budget)
    elif not fits(least, budget):
        return make_plan(candidates, finer, measure, covers, copies=copies)
    search = _allocated if all(c.loss is not None for c in candidates) else _uniform
    keep = search(planner, budget, measure)
    if finer is None or _used(measure(keep), budget):
        return keep
    return make_plan(candidates, finer, measure, covers, copies=copies)


def _leaving(planner: _Planner, budget: Budget, measure: Measure) -> _Planner:
    """Return a planner that leaves those groups whole whose least width takes a budget nowhere.

    Layers that share a weight which they cut differently get a copy each: that may be more than the one weight was.
    Such groups are looked for one after the other, among the least widths and, where several have to stay for any to
    help, among whole groups; MACs only ever fall.
    """
    if set(budget.shares) <= {"macs"}:
        return planner
    whole, least = [len(c.units) for c in planner.candidates], planner.widths(0.0)

    def no_worse(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        over, more = (
            sum(max(0.0, kept[name] - share) for name, share in budget.shares.items()) for kept in (one, other)
        )
        return over < more or all(one[name] <= other[name] for name in budget.shares)

    def greedily(widths: list[int], others: Sequence[int]) -> tuple[list[int], Mapping[str, float]]:
        kept = measure(planner.at(widths))
        for k, other in enumerate(others):
            tried = [*widths[:k], other, *widths[k + 1 :]]
            if other != widths[k] and no_worse(found := measure(planner.at(tried)), kept):
                widths, kept = tried, found
        return widths, kept

    widths, kept = greedily(least, whole)
    others, found = greedily(whole, least)
    if not no_worse(kept, found):
        widths = others
    return planner.without({k for k, width in enumerate(widths) if width > least[k]})


def _finer(candidates: Sequence[Candidate], budget: Budget) -> Budget | None:
    """Return the budget with steps of half the size, None where steps are the user's or 1 already."""
    coarse = budget.multiple_of is None and any(budget.step(len(c.units)) > 1 for c in candidates)
    return replace(budget, finer=budget.finer + 1) if coarse else None


def plans_at(
    candidates: Sequence[Candidate], covers: Sequence[NDArray[np.intp]]
) -> Callable[[Mapping[str, int]], dict[str, BoolArray]]:
    """Return what makes plans of widths: the best units of every group, and one of every cover; others stay whole."""
    planner = _Planner(candidates, Budget(), covers)
    return lambda widths: planner.at([widths.get(c.name, len(c.units)) for c in candidates])


def wider_plans(
    candidates: Sequence[Candidate], budget: Budget, keep: Keep
) -> Iterator[tuple[str, dict[str, BoolArray]]]:
    """Yield group and plan with that group one step wider, for every group that is cut; what stays goes on staying.

    In the order in which steps are worth taking: the greatest gain by the curves first, else the relatively narrowest.
    """
    planner = _Planner(candidates, budget, ())
    widths = [int(keep[c.name].sum()) for c in candidates]

    def order(k: int) -> tuple[float, int]:
        if candidates[k].loss is None:
            return widths[k] / len(candidates[k].units), k
        return planner.loss(k, planner.wider(k, widths[k])) - planner.loss(k, widths[k]), k

    for k in sorted((k for k, c in enumerate(candidates) if widths[k] < len(c.units)), key=order):
        flags = keep[candidates[k].name].copy()
        cut = np.flatnonzero(~flags)
        flags[cut[np.argsort(-candidates[k].phi[cut], kind="stable")][: planner.wider(k, widths[k]) - widths[k]]] = True
        yield candidates[k].name, {**keep, candidates[k].name: flags}


def fits(kept: Mapping[str, float], budget: Budget) -> bool:
    """Return whether the shares that a plan keeps are within a budget."""
    return all(kept[name] <= share + 1e-12 for name, share in budget.shares.items())


def _used(kept: Mapping[str, float], budget: Budget) -> bool:
    """Return whether a plan keeps about as much as it may."""
    return any(kept[name] >= _MUCH * share for name, share in budget.shares.items())


def _check(kept: Mapping[str, float], budget: Budget) -> None:
    for name, share in budget.shares.items():
        if kept[name] > share + 1e-12:
            raise BudgetError(
                f"keep-{name} {share:g} cannot be reached: the smallest allowed plan keeps {kept[name]:.3f}; "
                "ask for more, lower --min-units or --multiple-of, or exclude less"
            )


def _allocated(planner: _Planner, budget: Budget, measure: Measure) -> dict[str, BoolArray]:
    """Narrow the groups step by step, least loss per share of the budget first; then widen what still fits."""
    widths = [len(c.units) for c in planner.candidates]

    def excess(widths: Sequence[int]) -> float:
        kept = measure(planner.at(widths))
        return sum(max(0.0, kept[name] - share - 1e-12) for name, share in budget.shares.items())

    def at(k: int, width: int) -> list[int]:
        return [*widths[:k], width, *widths[k + 1 :]]

    over = excess(widths)
    # rates only rise while neighbours get narrower: a rate that is still the least once brought up to date is the least
    queue = [(-math.inf, k) for k in range(len(widths))]
    while over > 0 and queue:
        _, k = heapq.heappop(queue)
        width = planner.narrower(k, widths[k])
        if width is None:
            continue
        saved = over - excess(at(k, width))
        lost = planner.loss(k, width) - planner.loss(k, widths[k])
        rate = lost / saved if saved > 0 else math.inf
        if queue and (rate, k) > queue[0]:
            if math.isinf(rate) and math.isinf(queue[0][0]) and queue[0][0] > 0:
                break
            heapq.heappush(queue, (rate, k))
            continue
        widths, over = at(k, width), over - saved
        heapq.heappush(queue, (rate, k))
    if over > 0:
        return _uniform(planner, budget, measure)
    open_groups = set(range(len(widths)))
    while open_groups:
        gains = {k: planner.loss(k, widths[k]) - planner.loss(k, planner.wider(k, widths[k])) for k in open_groups}
        k = max(gains, key=lambda i: (gains[i], -i))
        wider = planner.wider(k, widths[k])
        if wider > widths[k] and excess(at(k, wider)) == 0:
            widths = at(k, wider)
        else:
            open_groups.remove(k)
    return planner.at(widths)


def _uniform(planner: _Planner, budget: Budget, measure: Measure) -> dict[str, BoolArray]:
    """Keep the same share of every group, then widen the relatively narrowest."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(measure(planner.at(planner.widths(middle))), budget) else (low, middle)
    return _filled(planner, planner.widths(low), budget, measure)


def _filled(planner: _Planner, widths: list[int], budget: Budget, measure: Measure) -> dict[str, BoolArray]:
    """Widen groups one step at a time, the relatively narrowest first, while the budget holds.

    Steps that fit are found many at a time; after some that do not, the rest is left: what it could add is little.
    """
    shut: set[int] = set()
    while len(shut) < _MISSES:
        steps = _steps(planner, widths, budget, shut)
        taken: list[tuple[int, int]] = []
        low, within = 0, True
        while within and (more := list(itertools.islice(steps, max(1, len(taken))))):
            low = len(taken)
            taken += more
            within = fits(measure(planner.at(_after(widths, taken))), budget)
        low, high = (len(taken), len(taken)) if within else (low, len(taken) - 1)
        while low < high:
            middle = (low + high + 1) // 2
            within = fits(measure(planner.at(_after(widths, taken[:middle]))), budget)
            low, high = (middle, high) if within else (low, middle - 1)
        widths = _after(widths, taken[:low])
        if low == len(taken):
            break
        shut.add(taken[low][0])
    return planner.at(widths)


def _steps(planner: _Planner, widths: Sequence[int], budget: Budget, shut: set[int]) -> Iterator[tuple[int, int]]:
    """Yield group and new width of one step after the other, the relatively narrowest of the groups not shut first."""
    sizes = [len(c.units) for c in planner.candidates]
    heap = [(widths[k] / size, k, widths[k]) for k, size in enumerate(sizes) if k not in shut and widths[k] < size]
    heapq.heapify(heap)
    while heap:
        _, k, width = heapq.heappop(heap)
        wider = min(sizes[k], width + budget.step(sizes[k]))
        if wider < sizes[k]:
            heapq.heappush(heap, (wider / sizes[k], k, wider))
        yield k, wider


def _after(widths: Sequence[int], steps: Sequence[tuple[int, int]]) -> list[int]:
    found = list(widths)
    for k, width in steps:
        found[k] = width
    return found


class _Planner:
    """Widths -> plan."""

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

    def without(self, whole: Iterable[int]) -> _Planner:
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
