"""Exact Shapley values by enumeration, for small groups and as the oracle of the sampling estimators."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from onnxshap.core import FloatArray, Game, IntArray
from onnxshap.errors import BudgetError
from onnxshap.estimators.images import FixedCost, Schedule
from onnxshap.estimators.rows import evaluate_each, image_blocks


@dataclass(frozen=True)
class Exact(FixedCost):
    """Exact Shapley values: all 2^n coalitions on every image.

    Attributes:
        max_units: the largest group that is accepted; a unit more doubles the work.

    Call:
        Returns phi float64[n_units], the mean over images, summing to v(all) - v(none); stderr float64[n_units] is the
        standard error over images (0 with one image): each image's value is exact, the images are a sample. evals is
        n_images * 2^n. `rng` is not used.

    Raises:
        BudgetError: the game has more than `max_units` units.

    Source: Shapley 1953.

    >>> class Gloves:  # one left glove, two right ones; a pair is worth 1
    ...     n_units, n_images = 3, 1
    ...     def __call__(self, images, coalitions):
    ...         return np.minimum(coalitions[:, 0], coalitions[:, 1:].sum(axis=1)).astype(float)
    >>> Exact()(Gloves(), np.random.default_rng(0)).phi.round(4)
    array([0.6667, 0.1667, 0.1667])
    """

    max_units: int = 16

    def cost(self, n_units: int) -> int:  # noqa: D102
        n = n_units
        if n > self.max_units:
            raise BudgetError(
                f"exact Shapley values of {n} units need 2^{n} coalitions per image, more than the "
                f"2^{self.max_units} that are run; use the method shapley, or include only groups of {self.max_units} "
                "units or less"
            )
        return 1 << n

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        n, images = game.n_units, schedule.images
        count = 2**n
        members = (np.arange(count)[:, None] >> np.arange(n)) & 1 == 1
        table = members.astype(np.float32)
        weights = _shapley_weights(members.sum(axis=1), n)
        signed = np.where(members, weights[:, :1], weights[:, 1:])
        phi = np.empty((len(images), n))
        for block in image_blocks(len(images), count, n):
            payoffs = evaluate_each(game, images[block], count, lambda rows: table[rows])
            phi[block] = [row @ signed for row in payoffs]  # one by one: no result depends on the others of its block
        return phi


def _shapley_weights(sizes: IntArray, n: int) -> FloatArray:
    """Return float64[coalitions, 2]: how v(T) counts for a member of T, and for a unit outside.

    phi_c = sum over S without c of w(|S|) (v(S with c) - v(S)), w(s) = 1 / (n C(n - 1, s)); so T counts w(|T| - 1) for
    its members and -w(|T|) for the others.
    """
    w = np.array([1 / (n * comb(n - 1, size)) for size in range(n)] + [0.0])  # w[-1], w[n]: nobody in, nobody outside
    return np.stack([w[sizes - 1], -w[sizes]], axis=1)
