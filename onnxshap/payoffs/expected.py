"""The accuracy that changed outputs are expected to lose, by the original's own probabilities.

One label tells little of an image whose class has changed: it was right and is wrong now, the other way round, or wrong
both times. The original says what that is worth in the mean: the probability that it gives to its own class, less that
which it gives to the other one, once its probabilities are calibrated. An image that stands between two classes costs
next to nothing then, whichever its label is.

Source: Rao 1945, Blackwell 1947 (an expectation in place of a draw varies less); Guo et al. 2017 (one temperature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxshap.core import Array, BoolArray, FloatArray
from onnxshap.payoffs.builtin import Accuracy, scores_of
from onnxshap.payoffs.checked import class_labels, log_probabilities, once, shifted_scores

_TEMPERATURES = tuple(2.0 ** (k / 4) for k in range(-12, 13))
_IMAGES = 4096
"""That a temperature is fitted on, at most."""


@dataclass(frozen=True)
class Expectation:
    """What is expected of outputs of which an image has one class (`Accuracy.whole`).

    Attributes:
        judge: knows where the class scores are.
        scores: the original's, float64[classes, rows].
        temperature: what they are divided by, as logits, to be calibrated.

    >>> scores = np.log([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7]])
    >>> lost, changed = Expectation(Accuracy(), scores.T, 1.0).lost([scores[:, ::-1]])
    >>> lost.round(2).tolist(), changed.tolist()
    ([0.8, 0.1, 0.4], [True, True, True])
    """

    judge: Accuracy
    scores: FloatArray
    temperature: float

    @classmethod
    def of(cls, judge: Accuracy, reference: Sequence[Array], labels: Array) -> Expectation:
        """Return what is expected of outputs, given the original's and the labels, which calibrate them.

        Raises:
            DataError: as `judge`.
        """
        scores = _rows(judge, [once(value) for value in reference])
        classes = class_labels(labels, scores.shape, f"output {judge.output}", payoff=judge.name)[:_IMAGES]
        some = cls(judge, np.broadcast_to(scores, (len(scores), len(labels)))[:, :_IMAGES], 1.0)

        def surprise(temperature: float) -> float:
            given = cls(judge, some.scores, temperature).log_probabilities()
            return -float(np.take_along_axis(given, classes[None], axis=0).mean())

        return cls(judge, scores, min(_TEMPERATURES, key=surprise))

    def log_probabilities(self) -> FloatArray:
        """Return those of the original, calibrated: float64[classes, rows]."""
        logits, _ = shifted_scores(self.scores, probabilities=self.judge.probabilities)
        return log_probabilities(logits / self.temperature, probabilities=False)

    def lost(self, outputs: Sequence[Array]) -> tuple[FloatArray, BoolArray]:
        """Return what images are expected to lose, float64[rows] from 0 to 1, and whether their class has changed."""
        now, own = _rows(self.judge, outputs).argmax(axis=0), self.scores.argmax(axis=0)
        given = np.broadcast_to(self.log_probabilities(), (len(self.scores), len(now)))
        own = np.broadcast_to(own, now.shape)
        before, after = (np.exp(np.take_along_axis(given, at[None], axis=0)[0]) for at in (own, now))
        return before - after, now != own


def _rows(judge: Accuracy, outputs: Sequence[Array]) -> FloatArray:
    """Return class scores float64[classes, rows] of outputs with one position a row."""
    scores = scores_of(judge, outputs)
    return scores.reshape(*scores.shape[:2])
