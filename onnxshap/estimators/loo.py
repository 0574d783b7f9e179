"""Leave-one-out: what the payoff loses when one unit goes and all others stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxshap.core import Game, Values
from onnxshap.estimators.rows import NO_UNITS, over_images, single_drops


@dataclass(frozen=True)
class LeaveOneOut:
    """v(all) - v(all without c) for every unit c, mean over images.

    Call:
        Returns phi float64[n_units], in payoff units; it sums to nothing in particular (redundant units all get
        little). stderr float64[n_units] is the standard error over images (0 with one). evals is
        n_images * (n_units + 1). `rng` is not used.

    Source: Molchanov et al. 2017, there the "oracle"; it keeps the absolute value of the change, here the sign stays,
    so that a unit whose removal helps ranks last.

    >>> class Gloves:  # one left glove, two right ones: no right glove is missed
    ...     n_units, n_images = 3, 1
    ...     def __call__(self, images, coalitions):
    ...         return np.minimum(coalitions[:, 0], coalitions[:, 1:].sum(axis=1)).astype(float)
    >>> LeaveOneOut()(Gloves(), np.random.default_rng(0)).phi
    array([1., 0., 0.])
    """

    def __call__(self, game: Game, rng: np.random.Generator) -> Values:  # noqa: D102
        if game.n_units == 0:
            return NO_UNITS
        return over_images(single_drops(game, step=1.0), evals=game.n_images * (game.n_units + 1))
