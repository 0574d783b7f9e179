"""First-order scores, with gradients taken from float masks: no backward pass, no training framework.

With v the payoff of one image and m the mask of unit c, d_c = (v(1) - v(1 - eps e_c)) / eps -> dv/dm_c = - sum over
positions of g z (g = dL/dz, v = -L): the payoff lost when c is removed, to first order; higher = keep. One image costs
n_units + 1 rows. Where the game fills a removed unit with its mean instead of zeros, z - mean(z) takes the place of z:
the centred variants of these scores are the same estimators on such a game.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from onnxshap.core import FloatArray, Game, Values
from onnxshap.estimators.images import FixedCost, Schedule
from onnxshap.estimators.rows import over_images, single_drops

EPS = 2.0**-7
"""Default step of the mask. The truncation error grows with eps, float32 rounding of the payoff with 1 / eps: against
the exact gradients of a small trained convolutional net, the relative error of d was .0049 at 2^-6, .0026 at 2^-7,
.0023 at 2^-8, .0036 at 2^-9, .0085 at 2^-10 and .13 at 2^-14. Taken on the side that forgives coarser arithmetic; a
power of two, so that 1 - eps and the division are exact."""


@dataclass(frozen=True)
class Taylor(FixedCost):
    """First-order Taylor scores from the slopes d_c of the payoff along the masks (see the module).

    Attributes:
        kind: "abs": mean over images of |d_c|; "signed": mean of d_c; "square": mean over batches of (mean of d_c over
            the batch)^2, the gate after BN of Molchanov 2019.
        eps: step of the mask, 0 < eps <= 1; 1 is leave-one-out.
        batch: images per batch of "square", at most: consecutive ones, split evenly. 1: no averaging before the square.

    Call:
        Returns phi float64[n_units] in payoff units ("square": their squares); stderr float64[n_units], the standard
        error over images ("square": over batches), 0 with one. evals is n_images * (n_units + 1). `rng` is not used.

    Source: Molchanov et al. 2017 ("abs", signs as in TorchPruner), Molchanov et al. 2019 ("square", Taylor FO).

    >>> class Additive:
    ...     n_units, n_images = 2, 2
    ...     def __call__(self, images, coalitions):
    ...         return coalitions @ np.array([3.0, 2.0]) * (1 - 2 * images)
    >>> {kind: Taylor(kind)(Additive(), np.random.default_rng(0)).phi for kind in ("abs", "signed", "square")}
    {'abs': array([3., 2.]), 'signed': array([0., 0.]), 'square': array([0., 0.])}
    """

    kind: Literal["abs", "signed", "square"] = "abs"
    eps: float = EPS
    batch: int = 32

    def cost(self, n_units: int) -> int:  # noqa: D102
        return n_units + 1

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        return single_drops(game, schedule.images, self.eps)

    def reduce(self, per_image: FloatArray, schedule: Schedule) -> Values:  # noqa: D102
        evals, scores = int(schedule.rows.sum()), self._scores(per_image)
        if self.kind == "square":
            return over_images(scores, evals)
        return over_images(scores, evals, kinds=schedule.kinds)

    def _scores(self, slopes: FloatArray) -> FloatArray:
        match self.kind:
            case "abs":
                return np.abs(slopes)
            case "signed":
                return slopes
            case "square":
                batches = np.array_split(slopes, -(-len(slopes) // self.batch))
                return np.stack([batch.mean(axis=0) for batch in batches]) ** 2
            case _:
                assert_never(self.kind)


@dataclass(frozen=True)
class Fisher(FixedCost):
    """Mean over images of d_c^2, the diagonal of the empirical Fisher information of the masks (see the module).

    Attributes:
        eps: step of the mask, 0 < eps <= 1.

    Call:
        Returns phi float64[n_units] in squared payoff units; stderr float64[n_units], the standard error over images (0
        with one). evals is n_images * (n_units + 1). `rng` is not used.

    Source: Theis et al. 2018 (Fisher pruning), without their factor 1/2. The centred variant is this on a game that
    fills with means.

    >>> class Additive:
    ...     n_units, n_images = 2, 2
    ...     def __call__(self, images, coalitions):
    ...         return coalitions @ np.array([3.0, 2.0]) * (1 - 2 * images)
    >>> Fisher()(Additive(), np.random.default_rng(0)).phi
    array([9., 4.])
    """

    eps: float = EPS

    def cost(self, n_units: int) -> int:  # noqa: D102
        return n_units + 1

    def per_image(self, game: Game, schedule: Schedule) -> FloatArray:  # noqa: D102
        return single_drops(game, schedule.images, self.eps) ** 2
