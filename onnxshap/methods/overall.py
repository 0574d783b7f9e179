"""The game of a payoff that is one number for all images together: mean average precision, word error rate, F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from onnxshap.core import Array, CoalitionMatrix, FloatArray, ImageIndex
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.payoffs import OverAll


@dataclass
class _Recorder:
    """Keeps the outputs of rows; the labels it is given are the images' numbers."""

    parts: list[tuple[Array, list[Array]]] = field(default_factory=list)
    name: ClassVar[str] = "recorder"

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        assert labels is not None
        self.parts.append((labels, [np.array(value) for value in outputs]))
        return np.zeros(len(labels))

    def take(self) -> list[Array]:
        """Return the outputs in the order of the images, and forget them."""
        order = np.argsort(np.concatenate([labels for labels, _ in self.parts]))
        columns = zip(*(outputs for _, outputs in self.parts), strict=True)
        found = [np.concatenate(values)[order] for values in columns]
        self.parts.clear()
        return found


class OverallGame:
    """A game with one image, which stands for all of them: a row is a run of the whole data set.

    Attributes:
        evals: runs of single images so far.
    """

    n_images = 1

    def __init__(self, setting: Setting, group: Group) -> None:
        """Open the game of the images."""
        assert isinstance(setting.payoff, OverAll)
        self._payoff, self._labels = setting.payoff, setting.data.labels
        self._recorder, self._images = _Recorder(), np.arange(len(setting.data))
        numbered = replace(setting.data, labels=self._images)
        self._game = GroupGame(replace(setting, payoff=self._recorder, data=numbered), group)
        self.n_units = len(group)

    @property
    def evals(self) -> int:
        """Runs of single images so far."""
        return self._game.evals

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        """Return the payoff of every coalition, float64[rows].

        Raises:
            DataError: the user's function fails.
        """
        found = np.empty(len(coalitions))
        for row, coalition in enumerate(coalitions):
            self._game(self._images, np.repeat(coalition[None], len(self._images), axis=0))
            found[row] = self._payoff.value(self._recorder.take(), self._labels)
        return found
