"""What a changed model loses on held-out images, and what it may lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxshap import payoffs
from onnxshap.calibrate import run_all
from onnxshap.core import Array, BoolArray, Dataset, FloatArray, Payoff
from onnxshap.errors import BudgetError, DataError
from onnxshap.plan.cutter import Cut
from onnxshap.tracing import Traced

_MISCALIBRATED = 0.15
"""By how much the original's probabilities may be off, in the mean over the images whose class changes."""


@dataclass(frozen=True)
class Estimate:
    """What images that nobody saw lose.

    Attributes:
        mean: the estimate.
        stderr: its standard error.
    """

    mean: float
    stderr: float


@dataclass(frozen=True)
class Drop:
    """What a cut model loses on held-out images.

    Attributes:
        name: of what: accuracy, agreement with the original, or the payoff's name.
        mean: the mean loss over the images.
        stderr: its standard error, image by image against the original.
        images: how many.
        expected: what is expected of other images, where more is known of that than these two.
    """

    name: str
    mean: float
    stderr: float
    images: int
    expected: Estimate | None = None

    @property
    def estimate(self) -> Estimate:
        """What other images lose."""
        return Estimate(self.mean, self.stderr) if self.expected is None else self.expected

    @property
    def bound(self) -> float:
        """The estimate and one standard error: the loss on other images is below with a chance of about 84 %.

        A gain counts as no loss: of many cuts tried, the one that seems to gain is the luckiest, as a rule.
        """
        return max(self.estimate.mean, 0.0) + self.estimate.stderr

    def __str__(self) -> str:
        """Return it as messages write it."""
        measured = f"{self.mean:.3g} +- {self.stderr:.2g} {self.name}"
        if self.expected is None:
            return measured
        return f"{measured} ({self.expected.mean:.3g} +- {self.expected.stderr:.2g} expected of others)"


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
        found = Drop(name, float(lost.mean()), _stderr(lost), len(lost))
        if not (isinstance(judge, payoffs.Accuracy) and judge.whole(self.reference)):
            return found
        least = 1 / max(1, len(lost))  # no image lost of a few: of so many others one may be
        found = replace(found, stderr=max(found.stderr, least))
        expectation = self._expectations.get(name)
        if expectation is None or len(lost) < 2:
            return found
        expected = _estimated(lost, *expectation.lost(outputs))
        return replace(found, expected=replace(expected, stderr=math.hypot(expected.stderr, least)))

    @cached_property
    def _expectations(self) -> dict[str, payoffs.Expectation]:
        """What is expected of class scores, by their measure, where there are labels to calibrate it by."""
        labels = self.data.labels
        return {
            name: payoffs.Expectation.of(judge, self.reference, labels)
            for name, judge in self.measures.items()
            if labels is not None and isinstance(judge, payoffs.Accuracy)
        }


def _stderr(values: FloatArray) -> float:
    """Return the standard error of a mean over images."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")


def _estimated(lost: FloatArray, expected: FloatArray, changed: BoolArray) -> Estimate:
    """Return what other images lose, given what these lose and were expected to.

    The difference of both is noise of the labels, and what probabilities are off by in the mean: a normal distribution
    about 0 as wide as `_MISCALIBRATED` of the images whose class changed (empirical Bayes; Efron and Morris 1973). Few
    labels leave the expectation as it is, many replace it.

    Args:
        lost: by the labels, float64[images] from -1 to 1.
        expected: by the original's probabilities, float64[images].
        changed: whether the class changed.
    """
    off, noise = (_MISCALIBRATED * float(changed.mean())) ** 2, _stderr(lost - expected) ** 2
    weight = off / (off + noise) if off > 0 else 0.0
    mean = float(expected.mean()) + weight * float((lost - expected).mean())
    return Estimate(mean, math.sqrt(_stderr(expected) ** 2 + weight * noise))


def check_drop(most: float | None) -> None:
    """Refuse a loss that cannot be meant.

    Raises:
        BudgetError: it is no number from 0 on.
    """
    if most is not None and not 0 <= most < float("inf"):
        raise BudgetError(f"--max-drop is {most:g}; give 0 or more, in units of the score")


def check_share(judge: Judge, most: float) -> None:
    """Refuse a loss that no share can have: a percentage, most likely.

    Raises:
        BudgetError: it is 1 or more, of accuracy or agreement.
    """
    if most >= 1 and all(isinstance(one, payoffs.Accuracy) for one in judge.measures.values()):
        raise BudgetError(f"--max-drop is {most:g}, but {judge.name} is a share, at most 1; give 0.01 for a hundredth")
