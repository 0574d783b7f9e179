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
from collections.abc import Callable, Iterator, Sequence

from onnxshap.core import BoolArray
from onnxshap.plan.budget import Budget, Measure, excess, fits
from onnxshap.plan.widths import Planner

_MISSES = 64
_STEPS = 40


def by_loss(planner: Planner, budget: Budget, measure: Measure, pace: float = 0.0) -> dict[str, BoolArray]:
    """Narrow the groups step by step, least loss per share of the budget first; then widen what still fits.

    `pace` is the share of the work (`Cost.work`, in place of the budget's) in what a step saves.
    """

    def over(widths: Sequence[int]) -> float:
        return excess(measure(planner.at(widths)), budget)

    def load(widths: Sequence[int]) -> tuple[float, float]:
        kept = measure(planner.at(widths))
        above = excess(kept, budget)
        return above, (1 - pace) * above + (pace * kept["work"] if pace else 0.0)

    widths = _narrowed(planner, load, blocks=pace > 0)
    return uniform(planner, budget, measure) if widths is None else planner.at(_widened(planner, widths, over))


def _narrowed(
    planner: Planner, load: Callable[[Sequence[int]], tuple[float, float]], *, blocks: bool
) -> list[int] | None:
    """Return the widths of groups narrowed until a budget is met, None where no step leads there.

    `load` tells by how much widths exceed it, and what steps are to save; whether they are to save full `blocks`.
    """
    widths = [len(c.units) for c in planner.candidates]

    def step(k: int, present: float) -> tuple[float, list[int], tuple[float, float]] | None:
        """Return the least loss per share saved of a next width of a group, the widths then, and their load.

        None where there is no next one.
        """
        found = None
        for width in planner.narrowings(k, widths[k], blocks=blocks):
            then = load(next_widths := _at(widths, k, width))
            saved = present - then[1]
            lost = planner.loss(k, width) - planner.loss(k, widths[k])
            rate = lost / saved if saved > 0 else math.inf
            if found is None or rate < found[0]:
                found = rate, next_widths, then
        return found

    above, present = load(widths)
    # rates only rise while neighbours get narrower: a rate that is still the least once brought up to date is the least
    queue = [(-math.inf, k) for k in range(len(widths))]
    while above > 0 and queue:
        _, k = heapq.heappop(queue)
        if (found := step(k, present)) is None:
            continue
        rate, next_widths, then = found
        if queue and (rate, k) > queue[0]:
            if math.isinf(rate) and math.isinf(queue[0][0]) and queue[0][0] > 0:
                break
            heapq.heappush(queue, (rate, k))
            continue
        widths, (above, present) = next_widths, then
        heapq.heappush(queue, (rate, k))
    return None if above > 0 else widths


def _widened(planner: Planner, widths: list[int], over: Callable[[Sequence[int]], float]) -> list[int]:
    """Return the widths of groups widened while a budget still holds, those first that gain most by a step."""
    open_groups = set(range(len(widths)))
    while open_groups:
        gains = {k: planner.loss(k, widths[k]) - planner.loss(k, planner.wider(k, widths[k])) for k in open_groups}
        k = max(gains, key=lambda i: (gains[i], -i))
        wider = planner.wider(k, widths[k])
        if wider > widths[k] and over(_at(widths, k, wider)) == 0:
            widths = _at(widths, k, wider)
        else:
            open_groups.remove(k)
    for k, one in enumerate(planner.candidates):  # a rank that pays no more since others got narrower
        if one.most is not None and widths[k] < len(one.units) and over(_at(widths, k, len(one.units))) == 0:
            widths = _at(widths, k, len(one.units))
    return widths


def _at(widths: Sequence[int], k: int, width: int) -> list[int]:
    """Return the widths with another one of group `k`."""
    return [*widths[:k], width, *widths[k + 1 :]]


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
