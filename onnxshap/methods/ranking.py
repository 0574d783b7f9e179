"""What order units are cut in, where that is not the order of their values.

The contribution of a unit has either sign, image by image, and both cancel in the mean: a unit that helps half of the
images as much as it harms the others has the value of one that does nothing. Where zeros are left behind, that is what
removing it costs. Where consumers are refitted to give what they gave before, it is not: both signs are needed again,
and a unit without any effect, dead or constant, is the cheapest of all. So a cut that is refitted counts units by the
mean plus two standard deviations over the images, the reduction of the experiments in Ancona et al. 2020; the values
stay the means, which share out the payoff.

Nor does a refit lose all that a unit is worth, only what those left cannot give in its place. Shapley values share what
two copies have in common between them, so that both look cheap and both go. So units go one by one, the cheapest first,
at the price of what is lost of the worth of all that have gone: the error of the best refit of the layers behind, as
`recon` counts it, in which all that a unit gives costs the geometric mean of its variance and what the unit is worth.
By worth alone much was lost where many units went: it is found with the others there, on images few enough that its
spread is half noise, and the layers behind have to give what they gave before.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxshap.core import FloatArray, Values
from onnxshap.game import Setting
from onnxshap.groups import Group
from onnxshap.methods.base import Tell, untold
from onnxshap.methods.elimination import eliminate
from onnxshap.methods.recon import regressions

CANCELLING = frozenset(
    {"exact", "shapley", "shapley-independent", "shapley-quick", "shapley-stratified", "shapley-truncated"}
)
"""Methods whose values are means over images of contributions of either sign."""
FEWEST = 20
"""Images below which values are noise, mostly that of the one or two images that matter: what a unit gives the layers
behind counts in the place of its worth then."""
SPREAD = "value + 2 std over images"
_LEFT_OVER = f"{SPREAD}, less what the units left make up for"
_ALONE = f"what the units left do not make up for (values of less than {FEWEST} images are noise)"
_LEAST = 1e-3
"""Of the most that a unit of a group is worth: what is worth less, or nothing, counts as that; and of a unit's worth,
what is lost whoever is left."""


def ranked_by(method: str, *, refitted: bool, images: Collection[int] = ()) -> str:
    """Return what units are ranked by, in words; values of groups are of so many images (0 where nobody counted)."""
    if not refitted or method not in CANCELLING:
        return "value"
    noisy = {few(count) for count in images}
    if noisy == {True, False}:
        return f"{_LEFT_OVER}, or, of some groups, {_ALONE}"
    return _ALONE if True in noisy else _LEFT_OVER


def cumulative(method: str, *, refitted: bool) -> bool:
    """Return whether what units are cut by is what is lost once each has gone and all those before it (`eliminate`)."""
    return method == "recon" or (refitted and method in CANCELLING)


def few(images: int) -> bool:
    """Return whether values of so many images (0 where nobody counted) are noise."""
    return 0 < images < FEWEST


def ranks(method: str, values: Values, *, refitted: bool) -> FloatArray:
    """Return what units count, float64[n_units]: lowest first to go, unless a refit follows (`left_over`).

    Args:
        method: what made the values.
        values: those of one group.
        refitted: whether least squares follows the cut.
    """
    if not (refitted and method in CANCELLING) or values.images < 2:
        return values.phi
    # files of earlier versions hold the standard error alone, of images taken as independent
    spread = values.stderr * np.sqrt(values.images - 1) if values.spread is None else values.spread
    return np.asarray(values.phi + 2 * spread)


def left_over(
    setting: Setting, group: Group, worth: FloatArray | None, rng: np.random.Generator, tell: Tell = untold
) -> FloatArray:
    """Return what is lost of the worth of units once each went, the cheapest first, and the layers behind are refitted.

    Args:
        setting: gives the model and the images that the layers are refitted on.
        group: whose units they are.
        worth: float64[n_units], as `ranks` gives it for a refit; None = what a unit gives the layers behind.
        rng: draws the rows.
        tell: told how much is done.

    Returns:
        float64[n_units], lowest first to go; what no layer tells of goes by its worth.
    """
    if worth is None:
        return eliminate(*regressions(setting, group, rng, tell=tell))
    least = _LEAST * max(0.0, float(worth.max()))
    counted = np.maximum(worth, least) if least > 0 else np.ones(len(worth))
    counted = counted / counted.sum()  # as shares, like what units give: whatever the payoff is in units of
    problems, fixed = regressions(setting, group, rng, tell=tell, worth=counted)
    if not problems and not fixed.any():
        return worth  # nor is anything refitted there: what is worth little, or harms, is told apart
    return eliminate(problems, fixed + _LEAST * counted)
