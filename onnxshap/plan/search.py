"""The smallest model that loses no more than it may on held-out images."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxshap.core import Dataset
from onnxshap.errors import BudgetError
from onnxshap.plan import Budget
from onnxshap.plan.cutter import Cut, Cutter, shares
from onnxshap.plan.judging import Drop, Judge

STEPS = 7
"""Trials of a bisection over the share of the multiply-accumulates."""


def tightened_to(budget: Budget, share: float) -> Budget:
    """Return a budget that also keeps to a share of the multiply-accumulates."""
    return replace(budget, macs=min(share, budget.macs or 1.0))


def least_share(cutter: Cutter, budget: Budget) -> float:
    """Return the least share of the MACs that a plan can reach."""
    return shares(cutter.traced, cutter.smallest(budget))["macs"]


def within_drop(cutter: Cutter, budget: Budget, judge: Judge, most: float, check: Dataset) -> tuple[Cut, Drop]:
    """Return the smallest model found that loses at most `most`, repair included, and what it loses.

    Bisection over the share of the multiply-accumulates, from one set of values; a model counts as within where the
    loss expected of other images and one standard error of it are (`Drop.bound`). Where none is, and steps of the
    widths are not given, the least cut was of several units at a time: cuts of single ones are tried then.

    Args:
        cutter: makes the models.
        budget: what is asked for beside.
        judge: tells what they lose.
        most: what they may lose, `check_drop` and `check_share` permitting.
        check: data that every model is verified on.

    Raises:
        BudgetError: not even the least cut is within, or a share given beside it is not reached within.
    """
    least = least_share(cutter, budget)
    found = _narrowest(cutter, budget, judge, most, check, least)
    if not found.within(most) and budget.multiple_of is None:
        single = replace(budget, multiple_of=1)
        found = _narrowest(cutter, single, judge, most, check, least if budget.shares else found.share)
    cutter.progress("search", STEPS, STEPS)
    if found.within(most):
        return found.cut, found.drop
    if budget.shares:
        raise BudgetError(f"--max-drop {most:g}: the budget beside it already loses {found.drop}; ask for less")
    raise BudgetError(
        f"--max-drop {most:g}: even {found.share:.1%} of the MACs loses {found.drop} on {len(judge.data)} held-out "
        "images; allow more, or give more images (--data, --eval-data)"
    )


@dataclass(frozen=True)
class _Judged:
    """A cut model, the share of the multiply-accumulates that it keeps, and what it loses."""

    cut: Cut
    share: float
    drop: Drop

    def within(self, most: float) -> bool:
        """Return whether it loses at most `most`; what is not known (NaN) is more."""
        return self.drop.bound <= most


def _narrowest(cutter: Cutter, budget: Budget, judge: Judge, most: float, check: Dataset, low: float) -> _Judged:
    """Return the smallest cut found that is within, the mildest one tried where none is.

    Args:
        cutter, budget, judge, most, check: as those of `within_drop`.
        low: the share of the multiply-accumulates to search from; a share given beside is tried first, and alone where
            it is not within.
    """
    found: _Judged | None = None
    high = budget.macs or 1.0
    for number in range(STEPS):
        share = high if budget.shares and number == 0 else (low + high) / 2
        cutter.progress("search", number, STEPS)
        cut = cutter.cut(cutter.plan(tightened_to(budget, share)), check)
        trial = _Judged(cut, shares(cutter.traced, cut.keep)["macs"], judge.drop(cut))
        low, high = (low, share) if trial.within(most) else (share, high)
        if found is None or trial.within(most) or not found.within(most):
            found = trial
        if budget.shares and not found.within(most):
            break
    assert found is not None
    return found
