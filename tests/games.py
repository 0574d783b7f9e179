"""Cooperative games with known values: closed forms, the two "max" nets of TorchPruner, and a slow obvious oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np

from onnxshap.core import CoalitionMatrix, FloatArray, Game, ImageIndex


@dataclass(frozen=True)
class FunctionGame:
    """A game from any row-wise function (images int64[rows], coalitions float32[rows, n]) -> float64[rows]."""

    n_units: int
    n_images: int
    payoff: Callable[[ImageIndex, CoalitionMatrix], FloatArray]

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        return self.payoff(images, coalitions)


@dataclass(frozen=True)
class TableGame:
    """A game from float64[n_images, 2^n]: column sum of 2^c over the units c that stay; whole units only."""

    table: FloatArray

    @property
    def n_units(self) -> int:
        return int(self.table.shape[1]).bit_length() - 1

    @property
    def n_images(self) -> int:
        return len(self.table)

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        assert np.isin(coalitions, (0, 1)).all(), "a table knows whole units only"
        column = coalitions.astype(np.int64) @ 2 ** np.arange(self.n_units)
        return np.asarray(self.table[images, column], np.float64)


@dataclass
class Witness:
    """A game that plays another one, checks what it is given, and remembers it."""

    game: Game
    calls: list[tuple[ImageIndex, CoalitionMatrix]] = field(default_factory=list)

    @property
    def n_units(self) -> int:
        return self.game.n_units

    @property
    def n_images(self) -> int:
        return self.game.n_images

    @property
    def rows(self) -> int:
        return sum(len(images) for images, _ in self.calls)

    @property
    def images(self) -> ImageIndex:
        return np.concatenate([images for images, _ in self.calls])

    @property
    def coalitions(self) -> CoalitionMatrix:
        return np.concatenate([coalitions for _, coalitions in self.calls])

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        assert images.dtype == np.int64
        assert coalitions.dtype == np.float32
        assert coalitions.shape == (len(images), self.n_units)
        assert len(images) > 0
        assert ((images >= 0) & (images < self.n_images)).all()
        self.calls.append((images.copy(), coalitions.copy()))
        return self.game(images, coalitions)


@dataclass(frozen=True)
class Solved:
    """A game with what is known about it: exact Shapley values, leave-one-out, units that are equal or do nothing."""

    game: Game
    phi: Sequence[float]
    loo: Sequence[float]
    twins: tuple[tuple[int, int], ...] = ()
    dummies: tuple[int, ...] = ()


def additive(weights: FloatArray, offset: float = 0.0) -> FunctionGame:
    """v = offset + the weights[image] of the units that stay; float masks scale them, no BLAS."""
    w = np.asarray(weights, np.float64)
    return FunctionGame(w.shape[1], len(w), lambda images, s: offset + (s * w[images]).sum(axis=1))


def unanimity(n: int, carrier: Sequence[int]) -> FunctionGame:
    """1 if the whole carrier stays, else 0: every one of its units is worth 1 / |carrier|."""
    return FunctionGame(n, 1, lambda _, s: s[:, list(carrier)].prod(axis=1).astype(np.float64))


def gloves(left: int, right: int) -> FunctionGame:
    """Pairs that can be made of left gloves (the first units) and right gloves."""
    return FunctionGame(
        left + right, 1, lambda _, s: np.minimum(s[:, :left].sum(axis=1), s[:, left:].sum(axis=1)).astype(np.float64)
    )


def majority(n: int) -> FunctionGame:
    """1 if more than half of the units stay: every one is worth 1 / n."""
    return FunctionGame(n, 1, lambda _, s: (s.sum(axis=1) > n / 2).astype(np.float64))


def max_net(output_weights: Sequence[float]) -> FunctionGame:
    """Minus the squared error of ReLU nets that compute max(x, y); four images, masks on the four hidden units."""
    inputs = np.array([(0, 1), (1, 0), (1, 2), (2, 1)], np.float64)
    hidden = np.maximum(inputs @ np.array([(-0.5, 0.5), (1, -1), (1, 1), (1, 1)]).T, 0)
    target, out = inputs.max(axis=1), np.array(output_weights)
    return FunctionGame(4, 4, lambda images, s: -(((s * hidden[images] * out).sum(axis=1) - target[images]) ** 2))


SOLVED = {
    "additive": Solved(
        additive(np.array([(1.0, -2.0, 0.5, 0.0), (3.0, -2.0, 0.0, 0.0), (2.0, 1.0, 0.25, 0.0)]), offset=7),
        phi=(2, -1, 0.25, 0),
        loo=(2, -1, 0.25, 0),
        dummies=(3,),
    ),
    "unanimity": Solved(
        unanimity(5, (0, 2, 3)), (1 / 3, 0, 1 / 3, 1 / 3, 0), (1, 0, 1, 1, 0), ((0, 2), (2, 3)), (1, 4)
    ),
    "gloves": Solved(gloves(1, 2), (2 / 3, 1 / 6, 1 / 6), (1, 0, 0), ((1, 2),)),
    "majority": Solved(majority(5), (0.2,) * 5, (0,) * 5, ((0, 1), (1, 4))),
    "max_v1": Solved(max_net((1, 0.5, 0.5, 0)), (0.375, 0.375, 1.75, 0), (0.125, 0.125, 1.25, 0), dummies=(3,)),
    "max_v2": Solved(max_net((1, 0.5, 0.5, -0.1)), (0.425, 0.425, 2.0, -0.4), (0.225, 0.225, 1.75, -0.05)),
}


def brute_force(game: Game) -> FloatArray:
    """Return exact Shapley values float64[n_images, n] as the mean over all n! orders of arrival, one row at a time."""

    def value(image: int, coalition: FloatArray) -> float:
        return float(game(np.array([image]), coalition[None].astype(np.float32))[0])

    orders = list(permutations(range(game.n_units)))
    phi = np.zeros((game.n_images, game.n_units))
    for image in range(game.n_images):
        for order in orders:
            coalition = np.zeros(game.n_units)
            for unit in order:
                before = value(image, coalition)
                coalition[unit] = 1
                phi[image, unit] += value(image, coalition) - before
    return phi / len(orders)
