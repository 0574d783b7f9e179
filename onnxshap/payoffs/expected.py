"""The accuracy that changed outputs are expected to lose, by the original's own probabilities.

One label tells little of an image whose class has changed: it was right and is wrong now, the other way round, or wrong
both times. The original says what that is worth in the mean: the probability that it gives to its own class, less that
which it gives to the other one, once its probabilities are calibrated. An image that stands between two classes costs
next to nothing then, whichever its label is.

Source: Rao 1945, Blackwell 1947 (an expectation in place of a draw varies less); Guo et al. 2017 (one temperature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxshap.core import Array, BoolArray, FloatArray, IntArray
from onnxshap.payoffs.builtin import Accuracy, scores_of
from onnxshap.payoffs.checked import class_labels, log_probabilities, shifted_scores

_IMAGES = 4096
"""That a temperature is fitted on, at most."""
_COLDEST, _HOTTEST = 2.0**-10, 2.0**3
"""Temperatures, in units of how far classes are below the best one in the mean: it alone is likely; all are, alike."""
_HALVINGS = 10


@dataclass(frozen=True)
class Expectation:
    """What is expected of outputs of which an image has one class (`Accuracy.whole`).

    Attributes:
        judge: knows where the class scores are.
        reference: the original's outputs.
        temperature: what its scores are divided by, as logits, to be calibrated.

    >>> scores = np.log([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.3, 0.7]])
    >>> lost, changed = Expectation(Accuracy(), [scores], 1.0).lost([scores[[1, 2, 1, 3]]])
    >>> lost.round(2).tolist(), changed.tolist()
    ([0.0, 0.1, 0.4, 0.0], [False, True, True, False])
    """

    judge: Accuracy
    reference: Sequence[Array]
    temperature: float

    @classmethod
    def of(cls, judge: Accuracy, reference: Sequence[Array], labels: Array) -> Expectation:
        """Return what is expected of outputs, given the original's and the labels, which calibrate them.

        Raises:
            DataError: as `judge`.
        """
        some = slice(None, None, -(-len(labels) // _IMAGES))  # of all kinds, however they are sorted
        logits = _logits(judge, [value[some] for value in reference])
        classes = class_labels(labels[some], logits.shape, f"output {judge.output}", payoff=judge.name)
        return cls(judge, reference, _temperature(logits, classes))

    def lost(self, outputs: Sequence[Array]) -> tuple[FloatArray, BoolArray]:
        """Return what images are expected to lose, float64[rows] from 0 to 1, and whether their class has changed."""
        own, now = self._own, _rows(self.judge, outputs).argmax(axis=0)
        changed, lost = own != now, np.zeros(len(own))
        logits = _logits(self.judge, [value[changed] for value in self.reference])
        given = log_probabilities(logits / self.temperature, probabilities=False)
        before, after = (np.take_along_axis(given, at[None, changed], axis=0)[0] for at in (own, now))
        lost[changed] = np.exp(before) - np.exp(after)
        return lost, changed

    @cached_property
    def _own(self) -> IntArray:
        """The original's classes, int64[rows]."""
        return np.asarray(_rows(self.judge, self.reference).argmax(axis=0), np.int64)


def _temperature(logits: FloatArray, classes: IntArray) -> float:
    """Return the temperature that makes labels the likeliest, one more among them that may be any class.

    It keeps few labels, all of them right, from being taken for certainty.

    Args:
        logits: float64[classes, rows], none above 0.
        classes: the labels, int64[rows].
    """
    told = np.take_along_axis(logits, classes[None], axis=0)
    wanted = (told.sum() + logits.mean()) / (told.size + 1)  # the likeliest expects of labels what they are in the mean
    apart = -float(logits.mean()) or 1.0
    low, high = _COLDEST * apart, _HOTTEST * apart
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        given = np.exp(log_probabilities(logits / middle, probabilities=False))
        low, high = (middle, high) if (given * logits).sum(axis=0).mean() > wanted else (low, middle)
    return math.sqrt(low * high)


def _logits(judge: Accuracy, outputs: Sequence[Array]) -> FloatArray:
    """Return class scores as logits float64[classes, rows], the largest of a row 0; rows side by side sum faster."""
    logits, _ = shifted_scores(_rows(judge, outputs), probabilities=judge.probabilities)
    return np.ascontiguousarray(logits)


def _rows(judge: Accuracy, outputs: Sequence[Array]) -> FloatArray:
    """Return class scores float64[classes, rows] of outputs with one position a row."""
    scores = scores_of(judge, outputs)
    return scores.reshape(*scores.shape[:2])
