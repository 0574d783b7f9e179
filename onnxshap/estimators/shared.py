"""Shapley values by permutations that all images share: the paper's code, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshap.core import Game, Values
from onnxshap.errors import BudgetError
from onnxshap.estimators.rows import (
    NO_UNITS,
    Reduce,
    draw_orders,
    end_payoffs,
    image_blocks,
    over_images,
    walk_gains,
)


@dataclass(frozen=True)
class SharedPermutation:
    """Shapley values estimated from walks full -> empty along the same few permutations for every image.

    Attributes:
        permutations: independent uniform permutations, shared by all images.
        reduce: "mean" over images, or the "mean+2std" of the paper's experiments.

    Call:
        Returns phi float64[n_units], with "mean" summing to v(all) - v(none); stderr float64[n_units], the standard
        error over images (0 with one). It does *not* cover the noise of the permutations, which no image averages out:
        `Permutation` is many times more exact for the same rows. evals is
        n_images * (2 + permutations * (n_units - 1)).

    Raises:
        BudgetError: `permutations` < 1.

    Source: Ancona, Oeztireli, Gross 2020, as in TorchPruner's ShapleyAttributionMetric; differs: the empty coalition is
    evaluated once per image, not once per walk.

    >>> class Additive:
    ...     n_units, n_images = 3, 2
    ...     def __call__(self, images, coalitions):
    ...         return coalitions @ np.array([3.0, 2.0, 1.0]) * (1 + images)
    >>> SharedPermutation()(Additive(), np.random.default_rng(0)).phi
    array([4.5, 3. , 1.5])
    """

    permutations: int = 5
    reduce: Reduce = "mean"

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise BudgetError(f"permutations is {self.permutations}; at least one is needed")

    def __call__(self, game: Game, rng: np.random.Generator) -> Values:  # noqa: D102
        n, walks = game.n_units, self.permutations
        if n == 0:
            return NO_UNITS
        orders = draw_orders(rng, n, walks, antithetic=False)
        images = np.arange(game.n_images)
        full, empty = end_payoffs(game, images)
        phi = np.empty((game.n_images, n))
        for block in image_blocks(game.n_images, walks * (n - 1), n):
            owner = np.repeat(images[block], walks)
            tiled = np.tile(orders, (len(images[block]), 1))
            gains = walk_gains(game, owner, tiled, full[owner], empty[owner], n - 1)
            phi[block] = gains.reshape(-1, walks, n).mean(axis=1)
        return over_images(phi, evals=game.n_images * (2 + walks * (n - 1)), reduce=self.reduce)
