"""Budgets that only a real model can tell: milliseconds, and what is lost on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto

from onnxshap import payoffs
from onnxshap.calibrate import run_all, usual_batch
from onnxshap.core import Array, BoolArray, Dataset, FloatArray, Payoff
from onnxshap.endings import complete
from onnxshap.errors import BudgetError, DataError
from onnxshap.measure import latencies
from onnxshap.plan import Budget, smallest
from onnxshap.plan.cutter import Cut, Cutter, shares
from onnxshap.tracing import Traced

_STEPS = 7
_FILLS = 16
"""Most groups that are tried one step wider, once bisection ends below a latency."""
_NEAR = 0.9
"""Share of a latency from which a trial is timed again."""
_FULL = 0.97
"""Share of a latency that is near enough."""
_ALIGNMENTS = (None, 8, 16)
"""Steps of the widths that are tried for a latency: the default, then those of AVX2 and AVX-512."""
_TRIALS = _STEPS * len(_ALIGNMENTS) + _FILLS


@dataclass(frozen=True)
class Drop:
    """What a cut model loses on held-out images.

    Attributes:
        name: of what: accuracy, agreement with the original, or the payoff's name.
        mean: the mean loss over the images.
        stderr: its standard error, image by image against the original.
        images: how many.
    """

    name: str
    mean: float
    stderr: float
    images: int

    @property
    def bound(self) -> float:
        """The mean and one standard error: the loss on other images is below with a chance of about 84 %."""
        return self.mean + self.stderr

    def __str__(self) -> str:
        """Return it as messages write it."""
        return f"{self.mean:.3g} +- {self.stderr:.2g} {self.name}"


@dataclass(frozen=True)
class Judge:
    """Compares a cut model with the original, image by image.

    Attributes:
        traced: the original.
        data: held-out images.
        reference: the original's outputs on them.
        measures: what counts, by how it is called; where there are several, the one that loses most.
    """

    traced: Traced
    data: Dataset
    reference: Sequence[Array]
    measures: Mapping[str, Payoff]

    @property
    def name(self) -> str:
        """What is judged."""
        return ", ".join(self.measures)

    @classmethod
    def of(cls, traced: Traced, data: Dataset, reference: Sequence[Array], payoff: Payoff) -> Judge:
        """Return the judge of accuracy (with labels), of agreement (of class scores), else of the payoff.

        Outputs that count jointly are judged one by one.
        """
        if isinstance(payoff, payoffs.Joint):
            every = {name: one for name, (_, one) in payoff.by_name(traced.outputs).items()}
            return cls(traced, replace(data, labels=None), reference, every)
        if payoff.name in payoffs.NAMES and payoff.name != "mse":
            labels = payoffs.as_classes(data.labels)
            try:
                top = payoffs.choose("accuracy", reference, labels, traced.outputs)
            except DataError:
                pass  # no classes: the payoff itself is judged
            else:
                data = data if labels is not None else replace(data, labels=None)
                return cls(traced, data, reference, {"agreement" if labels is None else "accuracy": top})
        return cls(traced, data, reference, {payoff.name: payoff})

    def drop(self, cut: Cut) -> Drop:
        """Return what a cut model loses."""
        return self.lost(run_all(self.traced, cut.model, self.data))

    def lost(self, outputs: Sequence[Array]) -> Drop:
        """Return what a model loses whose outputs on the images are these."""
        return max((self._lost(name, outputs) for name in self.measures), key=lambda drop: drop.bound)

    def _lost(self, name: str, outputs: Sequence[Array]) -> Drop:
        judge = self.measures[name]
        whole, cut = (judge(o, self.reference, self.data.labels) for o in (self.reference, outputs))
        lost: FloatArray = np.asarray(whole, np.float64) - np.asarray(cut, np.float64)
        stderr = float(lost.std(ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else float("inf")
        if isinstance(judge, payoffs.Accuracy) and judge.whole(self.reference):
            stderr = max(stderr, 1 / max(1, len(lost)))  # no image lost of a few: of so many others one may be
        return Drop(name, float(lost.mean()), stderr, len(lost))


def check_drop(most: float | None) -> None:
    """Refuse a loss that cannot be meant.

    Raises:
        BudgetError: it is no number from 0 on.
    """
    if most is not None and not 0 <= most < float("inf"):
        raise BudgetError(f"max-drop is {most:g}; give 0 or more, in units of the score")


def check_share(judge: Judge, most: float) -> None:
    """Refuse a loss that no share can have: a percentage, most likely.

    Raises:
        BudgetError: it is 1 or more, of accuracy or agreement.
    """
    if most >= 1 and all(isinstance(one, payoffs.Accuracy) for one in judge.measures.values()):
        raise BudgetError(f"max-drop is {most:g}, but {judge.name} is a share, at most 1; give 0.01 for a hundredth")


def _tightened(budget: Budget, share: float) -> Budget:
    return replace(budget, macs=min(share, budget.macs or 1.0))


def _smallest(cutter: Cutter, budget: Budget) -> float:
    """Return the least share of the MACs that a plan can reach."""
    return shares(cutter.traced, smallest([(g.name, g.units) for g in cutter.groups], budget))["macs"]


def within_drop(cutter: Cutter, budget: Budget, judge: Judge, most: float, check: Dataset) -> tuple[Cut, Drop]:
    """Return the smallest model found that loses at most `most`, repair included, and what it loses.

    Bisection over the share of the multiply-accumulates, from one set of values; a model counts as within where the
    mean loss and one standard error of it are. Where none is, and steps of the widths are not given, the least cut was
    of several units at a time: cuts of single ones are tried then.

    Raises:
        BudgetError: not even the least cut is within, or a share given beside it is not reached within.
    """
    check_drop(most)
    least = _smallest(cutter, budget)
    found, mildest = _narrowest(cutter, budget, judge, most, check, least)
    if found is None and mildest is not None and budget.multiple_of is None:
        single = replace(budget, multiple_of=1)
        found, mildest = _narrowest(cutter, single, judge, most, check, least if budget.shares else mildest.share)
    cutter.progress("search", _STEPS, _STEPS)
    if found is not None:
        return found.cut, found.drop
    if budget.shares and mildest is not None:
        raise BudgetError(f"max-drop {most:g}: the budget beside it already loses {mildest.drop}; ask for less")
    lost = f"even {mildest.share:.1%} of the MACs loses {mildest.drop}" if mildest else f"more {judge.name} is lost"
    raise BudgetError(
        f"max-drop {most:g}: {lost} on {len(judge.data)} held-out images; allow more, or give more images (--data, "
        "--eval-data)"
    )


@dataclass(frozen=True)
class _Judged:
    """A cut model, the share of the multiply-accumulates that it keeps, and what it loses."""

    cut: Cut
    share: float
    drop: Drop


def _narrowest(
    cutter: Cutter, budget: Budget, judge: Judge, most: float, check: Dataset, low: float
) -> tuple[_Judged | None, _Judged | None]:
    """Return the smallest cut found that is within, and the last that is not: the mildest, where none is.

    Args:
        cutter, budget, judge, most, check: as those of `within_drop`.
        low: the share of the multiply-accumulates to search from; a share given beside is tried first, and alone where
            it is not within.
    """
    best, beyond, high = None, None, budget.macs or 1.0
    trials = [high] if budget.shares else []
    for number in range(_STEPS):
        share = trials.pop() if trials else (low + high) / 2
        cutter.progress("search", number, _STEPS)
        cut = cutter.cut(cutter.plan(_tightened(budget, share)), check)
        found = _Judged(cut, shares(cutter.traced, cut.keep)["macs"], judge.drop(cut))
        if found.drop.bound <= most:
            best, high = found, share
        else:
            beyond, low = found, share
            if budget.shares and best is None:
                break
    return best, beyond


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
            f"target-latency {target:g} ms cannot be reached: the smallest allowed model runs in "
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
        model = self.cutter.rough(keep)
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
                f"target-latency {self.target:g} ms: the model already runs in {whole:.3g} ms; ask for less"
            )
        self.wholes.append(whole)
        return small / whole * self.whole


def _bisected(stopwatch: _Stopwatch, budget: Budget) -> _Timed | None:
    """Return the largest share of the multiply-accumulates found that is within the target, None where none is."""
    cutter = stopwatch.cutter
    low, high = _smallest(cutter, budget), budget.macs or 1.0
    if low > high:
        return None
    tightened = _tightened(budget, low)
    best = stopwatch(tightened, cutter.plan(tightened))
    if best.taken > stopwatch.target:
        return None
    if budget.shares or stopwatch.whole <= stopwatch.target:  # what else is asked for may be enough
        tightened = _tightened(budget, high)
        if (widest := stopwatch(tightened, cutter.plan(tightened))).taken <= stopwatch.target:
            return widest
    for _ in range(_STEPS - 1):
        tightened = _tightened(budget, (low + high) / 2)
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
