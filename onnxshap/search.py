"""Budgets that only a real model can tell: milliseconds, and what is lost on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxshap import payoffs
from onnxshap.calibrate import run_all, usual_batch
from onnxshap.core import Array, Dataset, FloatArray, Payoff
from onnxshap.cutter import Cut, Cutter, shares
from onnxshap.errors import BudgetError, DataError
from onnxshap.measure import latencies
from onnxshap.plan import Budget, smallest
from onnxshap.tracing import Traced

_STEPS = 7


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


@dataclass(frozen=True)
class Judge:
    """Compares a cut model with the original, image by image.

    Attributes:
        traced: the original.
        data: held-out images.
        reference: the original's outputs on them.
        payoff: what counts.
        name: how it is called.
    """

    traced: Traced
    data: Dataset
    reference: Sequence[Array]
    payoff: Payoff
    name: str

    @classmethod
    def of(cls, traced: Traced, data: Dataset, reference: Sequence[Array], payoff: Payoff) -> Judge:
        """Return the judge of accuracy (with labels), of agreement (of class scores), else of the payoff."""
        names = [o.name for o in traced.shaped.graph.model.graph.output]
        if payoff.name in payoffs.NAMES and payoff.name != "mse":
            labels = data.labels if data.labels is not None and data.labels.dtype.kind in "iub" else None
            try:
                top = payoffs.choose("accuracy", reference, labels, names)
            except DataError:
                pass  # no classes: the payoff itself is judged
            else:
                data = data if labels is not None else replace(data, labels=None)
                return cls(traced, data, reference, top, "agreement" if labels is None else "accuracy")
        return cls(traced, data, reference, payoff, payoff.name)

    def drop(self, cut: Cut) -> Drop:
        """Return what a cut model loses."""
        return self.lost(run_all(self.traced, cut.model, self.data))

    def lost(self, outputs: Sequence[Array]) -> Drop:
        """Return what a model loses whose outputs on the images are these."""
        lost = self._scores(self.reference) - self._scores(outputs)
        stderr = float(lost.std(ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else float("inf")
        return Drop(self.name, float(lost.mean()), stderr, len(lost))

    def _scores(self, outputs: Sequence[Array]) -> FloatArray:
        return np.asarray(self.payoff(outputs, self.reference, self.data.labels), np.float64)


def _tightened(budget: Budget, share: float) -> Budget:
    return replace(budget, macs=min(share, budget.macs or 1.0))


def _smallest(cutter: Cutter, budget: Budget) -> float:
    """Return the least share of the MACs that a plan can reach."""
    return shares(cutter.traced, smallest([(g.name, g.units) for g in cutter.groups], budget))["macs"]


def within_drop(cutter: Cutter, budget: Budget, judge: Judge, most: float, check: Dataset) -> tuple[Cut, Drop]:
    """Return the smallest model found that loses at most `most`, repair included, and what it loses.

    Bisection over the share of the multiply-accumulates, from one set of values; a model counts as within where the
    mean loss and one standard error of it are.

    Raises:
        BudgetError: not even the least cut is within, or a share given beside it is not reached within.
    """
    if most < 0:
        raise BudgetError(f"max-drop is {most:g}; give 0 or more, in units of the score")
    low, high = _smallest(cutter, budget), budget.macs or 1.0
    best: tuple[Cut, Drop] | None = None
    least: Drop | None = None
    trials = [high] if budget.shares else []
    for number in range(_STEPS):
        share = trials.pop() if trials else (low + high) / 2
        cutter.progress("search", number, _STEPS)
        cut = cutter.cut(cutter.plan(_tightened(budget, share)), check)
        found = judge.drop(cut)
        if found.bound <= most:
            best, high = (cut, found), share
        elif budget.shares and number == 0:
            raise BudgetError(
                f"max-drop {most:g}: the budget beside it already loses {found.mean:.3g} +- {found.stderr:.2g} "
                f"{judge.name}; ask for less"
            )
        else:
            least, low = found, share
    cutter.progress("search", _STEPS, _STEPS)
    if best is None:
        lost = f"{least.mean:.3g} +- {least.stderr:.2g}" if least else "more"
        raise BudgetError(
            f"max-drop {most:g}: even {low:.1%} of the MACs loses {lost} {judge.name} on {len(judge.data)} held-out "
            "images; allow more, or give more images (--data, --eval-data)"
        )
    return best


def within_latency(cutter: Cutter, budget: Budget, target: float, data: Dataset) -> Budget:
    """Return the widest budget found whose model runs in `target` milliseconds.

    Bisection over the share of the multiply-accumulates; every trial is a real file, run in turn with the original. How
    the two compare is what counts, times the original's median over all trials so far: a machine that is busier during
    one trial than during another does not decide.

    Raises:
        BudgetError: the original is fast enough, or the smallest allowed model is too slow.
    """
    traced = cutter.traced
    feeds = usual_batch(traced, data)
    wholes: list[float] = []

    def milliseconds(share: float) -> float:
        small = cutter.rough(cutter.plan(_tightened(budget, share)))
        whole, found = latencies(traced.backend, [traced.source, small], feeds)
        wholes.append(whole)
        return found / whole * float(np.median(wholes))

    low, high = _smallest(cutter, budget), budget.macs or 1.0
    fastest = milliseconds(low)
    (whole,) = wholes
    if not 0 < target < whole:
        raise BudgetError(f"target-latency {target:g} ms: the model already runs in {whole:.3g} ms; ask for less")
    if fastest > target:
        raise BudgetError(
            f"target-latency {target:g} ms cannot be reached: the smallest allowed model runs in {fastest:.3g} ms "
            f"(the original in {whole:.3g}); allow more, or lower --min-units or --multiple-of"
        )
    for number in range(_STEPS):
        cutter.progress("search", number, _STEPS)
        share = (low + high) / 2
        if milliseconds(share) <= target:
            low = share
        else:
            high = share
    cutter.progress("search", _STEPS, _STEPS)
    return _tightened(budget, low)
