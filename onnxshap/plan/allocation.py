"""How a budget is shared out over the groups: by the losses at their widths, or the same share of every group.

Where the loss at every width of every group is known (`curves`), widths are narrowed step by step, the least loss per
share of the budget first, with the exact cost of every step next to the present widths of the neighbours. Where it is
not, shares are uniform over the groups: comparing values across groups is unreliable (a group's values are measured
with the others intact), and uniform widths are a strong baseline. The budget is met, never overshot.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

from onnxshap.core import BoolArray
from onnxshap.plan.budget import Budget, Measure, excess, fits
from onnxshap.plan.widths import Planner

_MISSES = 64
_STEPS = 40


def by_loss(planner: Planner, budget: Budget, measure: Measure) -> dict[str, BoolArray]:
    """Narrow the groups step by step, least loss per share of the budget first; then widen what still fits."""
    widths = [len(c.units) for c in planner.candidates]

    def over_at(widths: Sequence[int]) -> float:
        return excess(measure(planner.at(widths)), budget)

    def at(k: int, width: int) -> list[int]:
        return [*widths[:k], width, *widths[k + 1 :]]

    def step(k: int, over: float) -> tuple[float, float, int] | None:
        """Return the least loss per share of a next width of a group, what that saves, and the width; None: no next."""
        found = None
        for width in planner.narrowings(k, widths[k]):
            saved = over - over_at(at(k, width))
            lost = planner.loss(k, width) - planner.loss(k, widths[k])
            rate = lost / saved if saved > 0 else math.inf
            if found is None or rate < found[0]:
                found = rate, saved, width
        return found

    over = over_at(widths)
    # rates only rise while neighbours get narrower: a rate that is still the least once brought up to date is the least
    queue = [(-math.inf, k) for k in range(len(widths))]
    while over > 0 and queue:
        _, k = heapq.heappop(queue)
        if (found := step(k, over)) is None:
            continue
        rate, saved, width = found
        if queue and (rate, k) > queue[0]:
            if math.isinf(rate) and math.isinf(queue[0][0]) and queue[0][0] > 0:
                break
            heapq.heappush(queue, (rate, k))
            continue
        widths, over = at(k, width), over - saved
        heapq.heappush(queue, (rate, k))
    if over > 0:
        return uniform(planner, budget, measure)
    open_groups = set(range(len(widths)))
    while open_groups:
        gains = {k: planner.loss(k, widths[k]) - planner.loss(k, planner.wider(k, widths[k])) for k in open_groups}
        k = max(gains, key=lambda i: (gains[i], -i))
        wider = planner.wider(k, widths[k])
        if wider > widths[k] and over_at(at(k, wider)) == 0:
            widths = at(k, wider)
        else:
            open_groups.remove(k)
    for k, one in enumerate(planner.candidates):  # a rank that pays no more since others got narrower
        if one.most is not None and widths[k] < len(one.units) and over_at(at(k, len(one.units))) == 0:
            widths = at(k, len(one.units))
    return planner.at(widths)


def uniform(planner: Planner, budget: Budget, measure: Measure) -> dict[str, BoolArray]:
    """Keep the same share of every group, then widen the relatively narrowest."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(measure(planner.at(planner.widths(middle))), budget) else (low, middle)
    return _filled(planner, planner.widths(low), budget, measure)


def _filled(planner: Planner, widths: list[int], budget: Budget, measure: Measure) -> dict[str, BoolArray]:
    """Widen groups one step at a time, the relatively narrowest first, while the budget holds.

    Steps that fit are found many at a time; after some that do not, the rest is left: what it could add is little.
    """
    shut: set[int] = set()
    while len(shut) < _MISSES:
        steps = _steps(planner, widths, shut)
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


def _steps(planner: Planner, widths: Sequence[int], shut: set[int]) -> Iterator[tuple[int, int]]:
    """Yield group and new width of one step after the other, the relatively narrowest of the groups not shut first."""
    sizes = [len(c.units) for c in planner.candidates]
    heap = [(widths[k] / size, k, widths[k]) for k, size in enumerate(sizes) if k not in shut and widths[k] < size]
    heapq.heapify(heap)
    while heap:
        _, k, width = heapq.heappop(heap)
        wider = planner.wider(k, width)
        if wider < sizes[k]:
            heapq.heappush(heap, (wider / sizes[k], k, wider))
        yield k, wider


def _after(widths: Sequence[int], steps: Sequence[tuple[int, int]]) -> list[int]:
    found = list(widths)
    for k, width in steps:
        found[k] = width
    return found
