"""The nouns every floor shares: array aliases, data, games and values. No behaviour beyond their own invariants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""A tensor of any dtype."""
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
CoalitionMatrix = NDArray[np.float32]
"""float32[rows, n_units]: a coalition a row; 1 = the unit stays, 0 = it is removed, between = scaled."""
ImageIndex = NDArray[np.int64]
"""int64[rows]: which calibration image a row is evaluated on."""


@dataclass(frozen=True)
class Dataset:
    """Calibration or evaluation inputs, one entry of every array per image.

    Attributes:
        inputs: model input name -> array[n, ...] in the model's dtype.
        labels: int64[n] class indices, float targets[n, ...], or None.
        source: where it came from, for the report ("random", a path, "module:function").
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    source: str = "memory"

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: IntArray | slice) -> Dataset:
        """Return the images at `index`, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return Dataset({k: v[index] for k, v in self.inputs.items()}, labels, self.source)


class Payoff(Protocol):
    """Outputs of a batch of rows -> float64[rows], higher is better."""

    @property
    def name(self) -> str:
        """The name a user gives and the report prints."""

    def __call__(self, outputs: Sequence[Array], reference: Sequence[Array], labels: Array | None) -> FloatArray:
        """Return float64[rows]; `reference` are the original outputs for the same rows, `labels` the targets."""


class Game(Protocol):
    """A cooperative game per image: the units of one group are the players."""

    @property
    def n_units(self) -> int:
        """Players."""

    @property
    def n_images(self) -> int:
        """Images; every one is a game of its own, the values are their mean."""

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        """Return the payoff float64[rows] of `coalitions` float32[rows, n_units] on `images` int64[rows]."""


@dataclass(frozen=True)
class Values:
    """Scores of the units of one group; higher = keep.

    Attributes:
        phi: float64[n_units], in payoff units for game-based methods.
        stderr: float64[n_units], standard error over images; 0 where the method is exact.
        evals: (image, coalition) rows that were evaluated.
        images: calibration images they rest on; 0 where nobody counted.
        stopped: which rule ended the scoring: samples (all images were used), max-evals, max-seconds or decided.
        spread: float64[n_units], standard deviation over the images (of all, not of a sample of them); None where
            nobody took it.
    """

    phi: FloatArray
    stderr: FloatArray
    evals: int = 0
    images: int = field(default=0, repr=False)
    stopped: str = field(default="", repr=False)
    spread: FloatArray | None = field(default=None, repr=False, compare=False)


class Estimator(Protocol):
    """A method that plays a game; hyperparameters are its fields, data come in the call."""

    def __call__(self, game: Game, rng: np.random.Generator) -> Values:
        """Return the values of the game's units; `rng` is the only source of randomness."""
