"""Which units stay: values + costs + budget -> plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxshap.arguments import checked
from onnxshap.core import BoolArray
from onnxshap.errors import BudgetError
from onnxshap.plan.allocation import by_loss, uniform
from onnxshap.plan.budget import FINEST, Budget, Measure, check_asked, check_kept, fits, tightest, uses_up
from onnxshap.plan.widths import Candidate, Planner
from onnxshap.tracing import Keep

_PACES = (0.0, 0.5, 1.0)
"""Shares that work has in what steps save (`allocation.by_loss`), each of which makes a plan in full blocks; only the
first where a budget is not held by the multiply-accumulates: parameters are not saved where time is."""
_MARGIN = 1.5
"""What the last multiply-accumulates cost over the mean of those saved, in loss; 2 where it grows as their square."""


def check_reachable(candidates: Sequence[Candidate], budget: Budget, measure: Measure, *, copies: bool = True) -> None:
    """Refuse a budget that no values can meet, before they are computed; those of `candidates` do not matter.

    `copies` is as in `make_plan`.

    Raises:
        BudgetError: there is no budget, or the smallest widths exceed it.
    """
    check_asked(budget)
    planner = Planner(candidates, budget, ())
    if budget.units is not None:
        return check_kept(measure(planner.at(planner.rounded(budget.units))), budget)
    least = measure(planner.at(planner.widths(0.0)))
    if copies and not fits(least, budget):
        planner = _leaving(planner, budget, measure)
        least = measure(planner.at(planner.widths(0.0)))
    if not fits(least, budget) and (finer := _finer(candidates, budget)) is not None:
        return check_reachable(candidates, finer, measure, copies=copies)
    return check_kept(least, budget)


def smallest(candidates: Sequence[Candidate], budget: Budget) -> dict[str, BoolArray]:
    """Return the plan of the least widths that a budget's step and `min_units` allow."""
    planner = Planner(candidates, budget, ())
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
    check_asked(budget)
    known = all(c.loss is not None for c in candidates)
    budget = budget if known else replace(budget, evenly=True)
    planner = Planner(candidates, budget, covers)
    if budget.units is not None:
        keep = planner.at(planner.rounded(budget.units))
        check_kept(measure(keep), budget)
        return keep
    planner = _leaving(planner, budget, measure) if copies else planner
    least, finer = measure(planner.at(planner.widths(0.0))), _finer(candidates, budget)
    if finer is None:
        check_kept(least, budget)
    elif not fits(least, budget):
        return make_plan(candidates, finer, measure, covers, copies=copies)
    if known and finer is not None and not budget.finer:
        fine = make_plan(candidates, finer, measure, covers, copies=copies)
        tight = tightest(measure(fine), budget)
        paced = (by_loss(planner, budget, measure, pace) for pace in (_PACES if tight == "macs" else _PACES[:1]))
        plans = [keep for keep in paced if uses_up(measure(keep), budget)]  # less than that was not asked for
        return _cheapest(planner, [*plans, fine], measure, tight)
    keep = by_loss(planner, budget, measure) if known else uniform(planner, budget, measure)
    if finer is None or uses_up(measure(keep), budget):
        return keep
    return make_plan(candidates, finer, measure, covers, copies=copies)


def _cheapest(
    planner: Planner, plans: Sequence[dict[str, BoolArray]], measure: Measure, tight: str
) -> dict[str, BoolArray]:
    """Return the plan that costs least in loss and time together; the last one, in the finest widths, sets the price.

    A budget asks for its `tight` share to be saved at what that loses: the last plan's loss over what it saves is the
    mean price, `_MARGIN` of it about that of the last of it. Work (`Cost.work`) counts at that price.
    """
    kept, lost = [measure(keep) for keep in plans], [_lost(planner, keep) for keep in plans]
    saved = 1 - kept[-1][tight]
    price = _MARGIN * lost[-1] / saved if saved > 0 else 0.0
    costs = [loss + price * shares.get("work", 0.0) for loss, shares in zip(lost, kept, strict=True)]
    return plans[int(np.argmin(costs))]


def _lost(planner: Planner, keep: Keep) -> float:
    """Return what the groups of a plan lose, summed up as if each were cut alone."""
    return sum(planner.loss(k, int(keep[c.name].sum())) for k, c in enumerate(planner.candidates))


def _leaving(planner: Planner, budget: Budget, measure: Measure) -> Planner:
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
    """Return the budget with the next finer widths, None where they are the user's or single units already."""
    if budget.multiple_of is not None:
        return None
    finer = (replace(budget, finer=n) for n in range(budget.finer + 1, FINEST + 1))
    return next((one for one in finer if any(_differ(one, budget, c.size) for c in candidates)), None)


def _differ(one: Budget, other: Budget, units: int) -> bool:
    """Return whether a group has other widths by two budgets."""
    return list(one.widths(units)) != list(other.widths(units))


def plans_at(
    candidates: Sequence[Candidate], covers: Sequence[NDArray[np.intp]]
) -> Callable[[Mapping[str, int]], dict[str, BoolArray]]:
    """Return what makes plans of widths: the best units of every group, and one of every cover; others stay whole."""
    planner = Planner(candidates, Budget(), covers)
    return lambda widths: planner.at([widths.get(c.name, len(c.units)) for c in candidates])


def wider_plans(
    candidates: Sequence[Candidate], budget: Budget, keep: Keep
) -> Iterator[tuple[str, dict[str, BoolArray]]]:
    """Yield group and plan with that group one step wider, for every group that is cut; what stays goes on staying.

    In the order in which steps are worth taking: the greatest gain by the curves first, else the relatively narrowest.
    By fours at most: who asks measures what a step takes, and full blocks are too few to come near a time.
    """
    planner = Planner(candidates, replace(budget, finer=max(1, budget.finer)), ())
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
