"""Shapley values by size-corrected regression, for payoffs that are one number for all images together."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from onnxshap.core import CoalitionMatrix, FloatArray, Game, IntArray
from onnxshap.errors import BudgetError
from onnxshap.estimators.images import PerImage, Schedule, Scope, draw_key
from onnxshap.estimators.rows import evaluate_each, image_blocks

_DEGREE = 5
_RIDGE = 0.05
"""In units of the Gram matrix's mean diagonal, at two coalitions a unit; it falls with the square of their number."""


@dataclass(frozen=True)
class Regression(PerImage):
    """Shapley values as the weighted linear fit to the payoffs of coalitions that all images share.

    What a payoff owes to the mere size of a coalition is most of its variance, and its Shapley value is known: the same
    for every unit. So a smooth mean over sizes (a polynomial through v(none) and v(all)) is taken out before the fit.
    Coalitions come in pairs with their complements, sizes uniform, without the two ends; where all 2^n fit into the
    budget all are taken, and the values are exact.

    Attributes:
        per_unit: coalitions per unit, at most; `max_evals` sets fewer. Below 2 the fit has fewer rows than unknowns.

    Call:
        Returns phi float64[n_units], summing to v(all) - v(none); stderr float64[n_units], the standard error over
        images (0 with one), which does not cover the choice of coalitions. evals is n_images * (2 + coalitions).

    Raises:
        BudgetError: fewer than 2 n_units coalitions an image.

    Source: Lundberg and Lee 2017 (KernelSHAP), Musco and Witter 2025 (sizes uniform, paired); differs: the size-mean
    control variate, without which networks, concave in the size, leave it worse than a few permutations.

    >>> class Gloves:  # one left glove, two right ones
    ...     n_units, n_images = 3, 1
    ...     def __call__(self, images, coalitions):
    ...         return np.minimum(coalitions[:, 0], coalitions[:, 1:].sum(axis=1)).astype(float)
    >>> Regression()(Gloves(), np.random.default_rng(0)).phi.round(4)
    array([0.6667, 0.1667, 0.1667])
    """

    per_unit: int = 10

    @property
    def decidable(self) -> bool:
        """No: images do not average the choice of coalitions out."""
        return False

    def plan(self, scope: Scope, rng: np.random.Generator) -> Schedule:  # noqa: D102
        n, n_images, max_evals = scope.n_units, scope.n_images, scope.max_evals
        most = self.per_unit * n if max_evals is None else min(self.per_unit * n, max_evals // n_images - 2)
        everything = 2**n - 2 if n < 31 else 2**31
        if most < min(2 * n, everything):
            least = n_images * (2 + min(2 * n, everything))
            raise BudgetError(
                f"max_evals is {max_evals}, less than two coalitions a unit on {n_images} images; raise it to {least} "
                "or more, or use fewer images",
                least,
            )
        count = everything if everything <= most else most - most % 2
        short = count < min(self.per_unit * n - self.per_unit * n % 2, everything)
        rows = np.full(n_images, 2 + count)
        return Schedule(np.arange(n_images), np.full(n_images, count), rows, draw_key(rng), short)

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        n, count = game.n_units, int(schedule.walks[0])
        drawn, weights = _coalitions(n, count, np.random.default_rng(schedule.key))
        table = np.concatenate([np.ones((1, n), np.float32), np.zeros((1, n), np.float32), drawn])
        solve = _solution(table, weights)
        phi = np.empty((len(schedule), n))
        for block in image_blocks(len(schedule), len(table), n):
            payoffs = evaluate_each(game, schedule.images[block], len(table), lambda rows: table[rows])
            phi[block] = [solve @ row for row in payoffs]  # one by one: no result depends on the others of its block
        return phi


def _coalitions(n: int, count: int, rng: np.random.Generator) -> tuple[CoalitionMatrix, FloatArray]:
    """Return coalitions float32[count, n] without the two ends, and their weights in the fit."""
    kernel = np.array([0.0, *(1 / (s * (n - s)) for s in range(1, n)), 0.0])
    if n < 31 and count == 2**n - 2:
        members = (np.arange(1, 2**n - 1)[:, None] >> np.arange(n)) & 1 == 1
        sizes = members.sum(axis=1)
        return members.astype(np.float32), kernel[sizes] / np.array([comb(n, int(s)) for s in sizes])
    sizes = rng.integers(1, n, count // 2)
    ranks = rng.permuted(np.tile(np.arange(n), (count // 2, 1)), axis=1)
    half = ranks < sizes[:, None]
    members = np.concatenate([half, ~half])
    return members.astype(np.float32), kernel[members.sum(axis=1)]


def _solution(table: CoalitionMatrix, weights: FloatArray) -> FloatArray:
    """Return float64[n, coalitions]: payoffs -> values; the first two coalitions are the full and the empty one.

    With m the size mean through both ends, phi = (v(all) - v(none)) / n + fit of v - m, whose values sum to zero.
    """
    n = table.shape[1]
    smooth, from_payoffs = _size_mean(table.sum(axis=1).astype(np.int64), n)
    centred = table[2:].astype(np.float64) - table[2:].mean(axis=1, dtype=np.float64)[:, None]
    turned = centred.T * weights
    gram = turned @ centred
    ridge = _RIDGE * (2 * n / (len(table) - 2)) ** 2 * np.trace(gram) / n if len(table) < 2**n else 0.0
    # the fit lives where values sum to zero; ones in the other direction make it solvable
    fit = np.linalg.solve(gram + ridge * np.eye(n) + np.ones((n, n)) * (np.trace(gram) / n + 1e-30), turned)
    found = np.concatenate([np.zeros((n, 2)), fit], axis=1) - (fit @ smooth[2:]) @ from_payoffs
    found -= found.mean(axis=0)
    found[:, 0] += 1 / n
    found[:, 1] -= 1 / n
    return np.asarray(found)


def _size_mean(sizes: IntArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Return the mean at each coalition's size, smooth over sizes, as a product [coalitions, k] @ [k, payoffs].

    A polynomial of the share x = size / n that passes through both ends: the line between them plus x (1 - x) q(x),
    with q fitted by least squares.
    """
    x = sizes / n
    inner = (sizes > 0) & (sizes < n)
    degree = min(_DEGREE - 2, len(np.unique(sizes[inner])) - 1)
    basis = (x * (1 - x))[:, None] * np.polynomial.legendre.legvander(2 * x - 1, max(degree, 0))
    fit = np.linalg.pinv(basis)
    ends = np.zeros((2, len(x)))
    ends[0, 0] = ends[1, 1] = 1
    line = np.stack([x, 1 - x], axis=1)
    return np.concatenate([line, basis], axis=1), np.concatenate([ends, fit - (fit @ line) @ ends])
