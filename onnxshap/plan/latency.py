"""The widest model that runs in a number of milliseconds, measured in turn with the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto

from onnxshap.calibrate import usual_batch
from onnxshap.core import Array, BoolArray, Dataset
from onnxshap.endings import complete
from onnxshap.errors import BudgetError
from onnxshap.measure import latencies
from onnxshap.plan import Budget
from onnxshap.plan.cutter import Cutter
from onnxshap.plan.search import STEPS, least_share, tightened_to

_FILLS = 16
"""Most groups that are tried one step wider, once bisection ends below a latency."""
_NEAR = 0.9
"""Share of a latency from which a trial is timed again."""
_FULL = 0.97
"""Share of a latency that is near enough."""
_ALIGNMENTS = (None, 8, 16)
"""Steps of the widths that are tried for a latency: the default, then those of AVX2 and AVX-512."""
_TRIALS = STEPS * len(_ALIGNMENTS) + _FILLS


def check_latency(target: float | None) -> None:
    """Refuse a time that cannot be meant.

    Raises:
        BudgetError: it is no number above 0.
    """
    if target is not None and not 0 < target < float("inf"):
        raise BudgetError(f"--target-latency is {target:g}; give milliseconds, above 0")


def within_latency(
    cutter: Cutter, budget: Budget, target: float, data: Dataset, *, alone: bool = True
) -> tuple[Budget, dict[str, BoolArray]]:
    """Return the widest budget found whose model runs in `target` milliseconds, and the widest plan.

    Bisection over the share of the multiply-accumulates; every trial is a real file, run in turn with the original. How
    the two compare is what counts, times the original's median over all trials so far: a machine that is busier during
    one trial than during another does not decide. Which step of the widths is worth most depends on the layers and on
    the machine's vectors: unless one is given, several are tried, and the plan that loses least counts. Time falls in
    jumps, where a layer's last vector goes, so a share may leave much of the target unused: then groups are widened one
    by one while the file stays within it.

    Raises:
        BudgetError: the smallest allowed model is too slow, or the original is fast enough and nothing else is asked
            for (`alone`).
    """
    stopwatch = _Stopwatch(cutter, usual_batch(cutter.traced, data), target, alone and not budget.shares)
    steps = _ALIGNMENTS if budget.multiple_of is None else (budget.multiple_of,)
    found = [trial for step in steps if (trial := _bisected(stopwatch, replace(budget, multiple_of=step))) is not None]
    if not found:
        raise BudgetError(
            f"--target-latency {target:g} ms cannot be reached: the smallest allowed model runs in "
            f"{stopwatch.least:.3g} ms (the original in {stopwatch.whole:.3g}); allow more, or lower --min-units or "
            "--multiple-of"
        )
    best = _filled(stopwatch, min(found, key=lambda trial: cutter.lost(trial.keep)), budget)
    cutter.progress("search", 1, 1)
    return best.budget, best.keep


@dataclass(frozen=True)
class _Timed:
    """A plan within a budget, and the milliseconds that its model takes."""

    budget: Budget
    keep: dict[str, BoolArray]
    taken: float


@dataclass
class _Stopwatch:
    """Times plans.

    Attributes:
        cutter: what makes models of them.
        feeds: one batch.
        target: milliseconds.
        alone: whether there is nothing to do where the original takes no longer.
        wholes: what the original took, time by time.
        least: the least milliseconds so far.
        trials: how many there were.
    """

    cutter: Cutter
    feeds: Mapping[str, Array]
    target: float
    alone: bool
    wholes: list[float] = field(default_factory=list)
    least: float = float("inf")
    trials: int = 0

    @property
    def whole(self) -> float:
        """The original's milliseconds."""
        return float(np.median(self.wholes))

    def __call__(self, budget: Budget, keep: dict[str, BoolArray]) -> _Timed:
        """Return what a plan takes: what seems to be just within the target is timed again, because luck chose it."""
        self.trials += 1
        self.cutter.progress("search", self.trials, max(self.trials + 1, _TRIALS))
        model, _weights = self.cutter.rough(keep)  # held while it is timed
        taken = self._once(model)
        if _NEAR * self.target < taken <= self.target:
            taken = (taken + self._once(model)) / 2
        self.least = min(self.least, taken)
        return _Timed(budget, keep, taken)

    def _once(self, model: ModelProto) -> float:
        traced = self.cutter.traced
        files = [complete(traced, one) for one in (traced.source, model)]
        whole, small = latencies(traced.backend, files, self.feeds)
        if self.alone and not 0 < self.target < whole and not self.wholes:
            raise BudgetError(
                f"--target-latency {self.target:g} ms: the model already runs in {whole:.3g} ms; ask for less"
            )
        self.wholes.append(whole)
        return small / whole * self.whole


def _bisected(stopwatch: _Stopwatch, budget: Budget) -> _Timed | None:
    """Return the largest share of the multiply-accumulates found that is within the target, None where none is."""
    cutter = stopwatch.cutter
    low, high = least_share(cutter, budget), budget.macs or 1.0
    if low > high:
        return None
    tightened = tightened_to(budget, low)
    best = stopwatch(tightened, cutter.plan(tightened))
    if best.taken > stopwatch.target:
        return None
    if budget.shares or stopwatch.whole <= stopwatch.target:  # what else is asked for may be enough
        tightened = tightened_to(budget, high)
        if (widest := stopwatch(tightened, cutter.plan(tightened))).taken <= stopwatch.target:
            return widest
    for _ in range(STEPS - 1):
        tightened = tightened_to(budget, (low + high) / 2)
        trial = stopwatch(tightened, cutter.plan(tightened))
        if trial.taken <= stopwatch.target:
            low, best = (low + high) / 2, trial
        else:
            high = (low + high) / 2
    return best


def _filled(stopwatch: _Stopwatch, best: _Timed, budget: Budget) -> _Timed:
    """Return a plan whose groups are widened one by one, within the budget, until the target is used."""
    budget = replace(budget, multiple_of=best.budget.multiple_of)
    shut: set[str] = set()
    for _ in range(_FILLS):
        wider = stopwatch.cutter.wider(best.keep, budget)
        name, keep = next(((name, keep) for name, keep in wider if name not in shut), ("", None))
        if best.taken >= _FULL * stopwatch.target or keep is None:
            break
        trial = stopwatch(best.budget, keep)
        if trial.taken <= stopwatch.target:
            best = trial
        else:
            shut.add(name)
    return best
