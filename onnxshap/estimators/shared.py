"""Shapley values by permutations that all images share: the paper's code, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshap.core import FloatArray, Game
from onnxshap.errors import BudgetError
from onnxshap.estimators.images import PerImage, Schedule, Scope, draw_key, fixed_cost
from onnxshap.estimators.rows import (
    Reduce,
    draw_orders,
    end_payoffs,
    image_blocks,
    walk_gains,
)


@dataclass(frozen=True)
class SharedPermutation(PerImage):
    """Shapley values estimated from walks full -> empty along the same few permutations for every image.

    Attributes:
        permutations: independent uniform permutations, shared by all images.
        reduction: "mean" over images, or the "mean+2std" of the paper's experiments.

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
    reduction: Reduce = "mean"

    def __post_init__(self) -> None:
        if self.permutations < 1:
            raise BudgetError(f"permutations is {self.permutations}; at least one is needed")

    @property
    def decidable(self) -> bool:
        """No: images do not average the noise of the permutations out."""
        return False

    def plan(self, scope: Scope, rng: np.random.Generator) -> Schedule:  # noqa: D102
        key = draw_key(rng)
        return fixed_cost(scope, 2 + self.permutations * (scope.n_units - 1), rng, key)

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        n, walks, images = game.n_units, self.permutations, schedule.images
        orders = draw_orders(np.random.default_rng(schedule.key), n, walks, antithetic=False)
        full, empty = end_payoffs(game, images)
        phi = np.empty((len(images), n))
        for block in image_blocks(len(images), walks * (n - 1), n):
            owner = np.repeat(np.arange(block.start, block.stop), walks)
            tiled = np.tile(orders, (block.stop - block.start, 1))
            gains = walk_gains(game, images[owner], tiled, full[owner], empty[owner], n - 1)
            phi[block] = gains.reshape(-1, walks, n).mean(axis=1)
        return phi
