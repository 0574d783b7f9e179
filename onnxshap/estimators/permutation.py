"""Shapley values by permutations, every image walking its own: the default estimator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshap.core import FloatArray, Game, IntArray
from onnxshap.errors import BudgetError
from onnxshap.estimators.images import PerImage, Schedule, Scope, draw_images, draw_key
from onnxshap.estimators.rows import (
    Reduce,
    draw_orders,
    end_payoffs,
    image_blocks,
    latin_order,
    walk_gains,
)


@dataclass(frozen=True)
class Permutation(PerImage):
    """Shapley values estimated from walks full -> empty, an antithetic pair of permutations of its own per image.

    Attributes:
        pairs: pairs of walks per image (single walks when not `antithetic`: twice as many).
        antithetic: the second walk of a pair is the first one reversed; exact for games of pairwise interactions.
        max_evals: (image, coalition) rows at most, counting the full and the empty coalition of every image used; None:
            all images, all pairs. A smaller budget is spent in rounds: first one walk for every image, then their
            second walks, then second pairs; where it does not reach all images, random ones are used. Where the game
            knows which images are alike, every kind gets its share of them, and pairs come before further images.
        reduction: "mean" over images, or "mean+2std" (mean plus two population standard deviations over images).
        min_units: coalitions smaller than this, but for the empty one, are not evaluated (a cut never gets there): the
            last `min_units` units of a walk share equally what they are worth together. Cheaper, and sums still hold,
            but dummies get a share; 0 and 1 evaluate all.
        min_share: the same, as a share of the units; the larger of the two counts.
        max_share: coalitions of more than this share of the units, but for the full one, are not evaluated: the first
            units of a walk share equally what they are worth together, which is little where networks have units to
            spare. Cheaper and less noisy, sums still hold, but values are drawn toward their mean: with 0.5, by 2 to
            12 % of their variance in squared error on layers of a VGG-like net (`benchmarks/estimators.md`).
        stratified: the first walks of n_units images in a row put every unit once into every place (the rows of a
            random Latin square), so that no unit's mean depends on which sizes of coalitions it met. Every walk alone
            is a uniform permutation still; the standard errors, which take images as independent, err on the safe side.

    Call:
        Returns phi float64[n_units], with "mean" summing to the mean of v(all) - v(none) over the images used; stderr
        float64[n_units], the standard error over images (0 with one): the images' own spread and the sampling noise;
        evals. One image costs 2 + walks * (n_units - 1) rows: v(all) and v(none) are evaluated once.

    Raises:
        BudgetError: `pairs` < 1, or `max_evals` is less than one walk, n_units + 1 rows without `min_units`.

    Source: Castro, Gomez, Tejada 2009 (ApproShapley), Ancona et al. 2020; strata: Castro et al. 2017; truncation:
    Ghorbani and Zou 2019 (there once the payoff is near v(none), here by size). Differs: fresh permutations for every
    image instead of the same for all, and antithetic pairs (Mitchell et al. 2022). Distinct images come before second
    permutations because the spread between images is the larger part of the error, unless they are drawn by their kinds
    (systematic sampling, Madow and Madow 1944), which takes most of it.

    >>> class Bonus:  # v = s0 + s0 s1
    ...     n_units, n_images = 2, 1
    ...     def __call__(self, images, coalitions):
    ...         return (coalitions[:, 0] + coalitions[:, 0] * coalitions[:, 1]).astype(float)
    >>> Permutation()(Bonus(), np.random.default_rng(0))
    Values(phi=array([1.5, 0.5]), stderr=array([0., 0.]), evals=4)
    """

    pairs: int = 1
    antithetic: bool = True
    max_evals: int | None = None
    reduction: Reduce = "mean"
    min_units: int = 0
    min_share: float = 0.0
    max_share: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise BudgetError(f"pairs is {self.pairs}; every image needs at least one pair of walks")

    def plan(self, scope: Scope, rng: np.random.Generator) -> Schedule:  # noqa: D102
        n_images, alike = scope.n_images, scope.alike
        budgets = [budget for budget in (self.max_evals, scope.max_evals) if budget is not None]
        inner = self._inner(scope.n_units)
        most, first = 2 * self.pairs, 2 + inner
        whole = n_images * (2 + most * inner)
        budget = min(budgets, default=whole)
        if budget < first:
            raise BudgetError(
                f"max_evals is {budget}, less than one walk ({first} evaluations); raise it to {first} or more, "
                f"{n_images * first} for one walk on each of the {n_images} images",
                first,
            )
        key = draw_key(rng)
        least = 1 if alike is None or not self.antithetic else 2
        used = min(n_images, budget // (first + (least - 1) * inner))
        left = budget - used * (first + (least - 1) * inner)
        if used < n_images and left >= first:  # one walk more, where pairs come first
            walks = np.append(np.full(used, least), 1)
        else:
            further = min(left // inner, used * (most - least)) if inner else 0
            walks = least + (further + np.arange(used)) // used  # as even as can be
        images = draw_images(n_images, len(walks), rng, alike)
        return Schedule(images, walks, 2 + inner * walks, key, budget < whole, alike)

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        n, images, walks = game.n_units, schedule.images, schedule.walks
        inner = self._inner(n)
        first = self._first(n) if inner else 0
        full, empty = end_payoffs(game, images)
        phi = np.empty((len(images), n))
        for block in image_blocks(len(images), inner * int(walks.max()), n):
            counts = walks[block]
            orders = np.concatenate([
                self._orders(schedule.key, image, n, count)
                for image, count in zip(images[block].tolist(), counts.tolist(), strict=True)
            ])  # fmt: skip
            owner = np.repeat(np.arange(block.start, block.stop), counts)
            gains = walk_gains(game, images[owner], orders, full[owner], empty[owner], inner, first)
            phi[block] = np.add.reduceat(gains, np.cumsum(counts) - counts) / counts[:, None]
        return phi

    @property
    def decidable(self) -> bool:
        """Whether it is the mean that ranks the units: the standard error is that of the mean."""
        return self.reduction == "mean"

    def _orders(self, key: int, image: int, n: int, count: int) -> IntArray:
        if not self.stratified:
            return draw_orders(np.random.default_rng([key, image]), n, count, antithetic=self.antithetic)
        fresh = (count + 1) // 2 if self.antithetic else count
        orders = np.stack([latin_order(key, image, walk, n) for walk in range(fresh)])
        if self.antithetic:
            orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(2 * fresh, n)
        return orders[:count]

    def _inner(self, n_units: int) -> int:
        """Return how many coalitions of a walk are evaluated besides the full and the empty one."""
        last = n_units - max(1, self.min_units, round(self.min_share * n_units))
        return max(0, last - self._first(n_units))

    def _first(self, n_units: int) -> int:
        """Return how many units are removed before the first of them."""
        return max(0, n_units - 1 - int(self.max_share * n_units))
