"""What a changed model loses on held-out images, and what it may lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxshap import payoffs
from onnxshap.calibrate import run_all
from onnxshap.core import Array, Dataset, FloatArray, Payoff
from onnxshap.errors import BudgetError, DataError
from onnxshap.plan.cutter import Cut
from onnxshap.tracing import Traced


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
        raise BudgetError(f"--max-drop is {most:g}; give 0 or more, in units of the score")


def check_share(judge: Judge, most: float) -> None:
    """Refuse a loss that no share can have: a percentage, most likely.

    Raises:
        BudgetError: it is 1 or more, of accuracy or agreement.
    """
    if most >= 1 and all(isinstance(one, payoffs.Accuracy) for one in judge.measures.values()):
        raise BudgetError(f"--max-drop is {most:g}, but {judge.name} is a share, at most 1; give 0.01 for a hundredth")
