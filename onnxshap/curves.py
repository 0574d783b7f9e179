"""What every group loses at every width, measured with the repair that follows: the planner's curves.

One group at a time, the others whole: cut to a width, the layers that lose inputs refitted, the outputs compared with
the original's on images that were not fitted on (KL divergence of the class scores, else the squared error over the
variance). Between the measured widths the curve is interpolated and replaced by its lower convex hull, so that the
planner's step-by-step choice is the best one for a sum of such losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxshap import payoffs
from onnxshap.calibrate import run_all, site_means
from onnxshap.core import BoolArray, Dataset, FloatArray
from onnxshap.groups import Group
from onnxshap.repair import FEWEST_IMAGES, QUICK, refit
from onnxshap.tracing import Traced

FRACTIONS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Widths measured, as shares of a group."""
FEW = (0.75, 0.5, 0.25)
"""Those measured where all of them would take too long."""
IMAGES = 500
"""Most images used, three fifths to fit, the others to judge."""
_FIT = 0.6


def affordable(traced: Traced, groups: Sequence[Group], images: int, work: float) -> tuple[int, tuple[float, ...]]:
    """Return how many images, and which widths, measuring may take; (0, ()) where not even the least is affordable.

    A width costs about two runs of the model on the images fitted on, one on the others, and the regressions.
    """
    regressions = sum(_regressions(traced, group) for group in groups)
    for count, fractions in ((IMAGES, FRACTIONS), (200, FRACTIONS), (200, FEW), (100, FEW)):
        used = min(images, count)
        runs = len(groups) * used * (1 + _FIT) * traced.cost.macs()
        if len(fractions) * (runs + 3 * regressions) <= work and used * _FIT >= FEWEST_IMAGES:
            return used, fractions
    return 0, ()


def _regressions(traced: Traced, group: Group) -> float:
    """Return the multiply-accumulates of the Gram matrices of the layers that read a group, once."""
    total, labels = 0.0, traced.labels
    for site in labels.trace.sites:
        if site.weight is None or not np.isin(labels.units(site.tensor, site.axis), group.units).any():
            continue
        shape = traced.shaped.shapes[traced.shaped.graph.nodes[site.node].input[site.weight.input]]
        inputs = math.prod(shape) // shape[site.weight.makes]
        total += QUICK.needed(inputs) * float(inputs) ** 2
    return total


def loss_curves(
    traced: Traced,
    free: Traced,
    groups: Sequence[Group],
    values: Mapping[str, FloatArray],
    data: Dataset,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, FloatArray]:
    """Return, for every group, the loss at each width: float64[units + 1], convex and not increasing.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: the groups that may be cut.
        values: group name -> phi; the lowest go first.
        data: calibration images.
        fractions: the widths to measure.
        seed: divides the images.
        progress: told after every width.
    """
    order = np.random.default_rng([seed, 5]).permutation(len(data))
    split = max(FEWEST_IMAGES, round(_FIT * len(data)))
    fitted, judged = (data.take(np.sort(part)) for part in (order[:split], order[split:]))
    names = [o.name for o in free.shaped.graph.model.graph.output]
    reference = run_all(free, free.shaped.graph.model, judged)
    payoff = payoffs.choose(None, reference, None, names)
    best = float(np.mean(payoff(reference, reference, None)))
    means = site_means(free, fitted)
    whole: dict[str, BoolArray] = {g.name: np.ones(len(g), np.bool_) for g in traced.groups}
    curves = {}
    for number, group in enumerate(groups):
        ranked = np.argsort(-values[group.name], kind="stable")
        points = {len(group): 0.0}
        for k, fraction in enumerate(fractions):
            width = round(fraction * len(group))
            if 0 < width < len(group) and width not in points:
                keep = np.zeros(len(group), np.bool_)
                keep[ranked[:width]] = True
                model, _ = refit(
                    free, free, {**whole, group.name: keep}, means, fitted, seed, nearest=True, effort=QUICK
                )
                found = run_all(free, model, judged)
                points[width] = max(0.0, best - float(np.mean(payoff(found, reference, None))))
            progress(number * len(fractions) + k + 1, len(groups) * len(fractions))
        curves[group.name] = convex(points, len(group))
    return curves


def convex(points: Mapping[int, float], units: int) -> FloatArray:
    """Return the lower convex hull of measured losses, float64[units + 1]; below the narrowest the slope goes on.

    Args:
        points: width -> loss, with (units, 0) among them.
        units: the full width.

    >>> convex({4: 0.0, 2: 3.0, 1: 4.0}, 4).tolist()
    [5.0, 3.75, 2.5, 1.25, 0.0]
    """
    widths = np.array(sorted(points))
    losses = np.maximum.accumulate(np.array([points[w] for w in widths])[::-1])[::-1]
    if len(widths) > 1:
        slope = (losses[0] - losses[1]) / (widths[1] - widths[0])
        widths = np.concatenate([[0], widths])
        losses = np.concatenate([[losses[0] + slope * widths[1]], losses])
    hull: list[int] = []
    for k in range(len(widths)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (losses[b] - losses[a]) * (widths[k] - widths[a]) < (losses[k] - losses[a]) * (widths[b] - widths[a]):
                break
            hull.pop()
        hull.append(k)
    return np.interp(np.arange(units + 1), widths[hull], losses[hull])
