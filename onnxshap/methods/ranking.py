"""What order units are cut in, where that is not the order of their values.

The contribution of a unit has either sign, image by image, and both cancel in the mean: a unit that helps half of the
images as much as it harms the others has the value of one that does nothing. Where zeros are left behind, that is what
removing it costs. Where consumers are refitted to give what they gave before, it is not: both signs are needed again,
and a unit without any effect, dead or constant, is the cheapest of all. So a cut that is refitted takes units by the
mean plus two standard deviations over the images, the reduction of the experiments in Ancona et al. 2020; the values
stay the means, which share out the payoff.
"""

from __future__ import annotations

import numpy as np

from onnxshap.core import FloatArray, Values

CANCELLING = frozenset({"exact", "shapley", "shapley-independent", "shapley-stratified", "shapley-truncated"})
"""Methods whose values are means over images of contributions of either sign."""


def ranked_by(method: str, *, refitted: bool) -> str:
    """Return what units are ranked by, in words."""
    return "value + 2 std over images" if refitted and method in CANCELLING else "value"


def ranks(method: str, values: Values, *, refitted: bool) -> FloatArray:
    """Return float64[n_units], lowest first to go.

    Args:
        method: what made the values.
        values: those of one group.
        refitted: whether least squares follows the cut.
    """
    if ranked_by(method, refitted=refitted) == "value" or values.images < 2:
        return values.phi
    spread: FloatArray = values.stderr * np.sqrt(values.images - 1)
    return values.phi + 2 * spread
