"""Leave-one-out: what the payoff loses when one unit goes and all others stay."""

from __future__ import annotations

from dataclasses import dataclass

from onnxshap.core import FloatArray, Game
from onnxshap.estimators.images import FixedCost, Schedule
from onnxshap.estimators.rows import single_drops


@dataclass(frozen=True)
class LeaveOneOut(FixedCost):
    """v(all) - v(all without c) for every unit c, mean over images.

    Call:
        Returns phi float64[n_units], in payoff units; it sums to nothing in particular (redundant units all get
        little). stderr float64[n_units] is the standard error over images (0 with one). evals is
        n_images * (n_units + 1). `rng` is not used.

    Source: Molchanov et al. 2017, there the "oracle"; it keeps the absolute value of the change, here the sign stays,
    so that a unit whose removal helps ranks last.

    >>> import numpy as np
    >>> class Gloves:  # one left glove, two right ones: no right glove is missed
    ...     n_units, n_images = 3, 1
    ...     def __call__(self, images, coalitions):
    ...         return np.minimum(coalitions[:, 0], coalitions[:, 1:].sum(axis=1)).astype(float)
    >>> LeaveOneOut()(Gloves(), np.random.default_rng(0)).phi
    array([1., 0., 0.])
    """

    def cost(self, n_units: int) -> int:  # noqa: D102
        return n_units + 1

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        return single_drops(game, schedule.images, step=1.0)
