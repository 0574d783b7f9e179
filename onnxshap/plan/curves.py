"""What every group loses at every width, measured with the repair that follows: the planner's curves.

One group at a time, the others whole: cut to a width, the layers that lose inputs refitted, the outputs compared with
the original's on images that were not fitted on (KL divergence of the class scores, else the squared error over the
variance). What lies before a group is computed once for all its widths. Between measured widths the curve is
interpolated, between few of them by what the units count (`filled`): on straight lines the losses of small cuts would
be overstated, and those between narrow widths by much more. The lower convex hull takes their place, so that the
planner's step-by-step choice is the best one for a sum of such losses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from onnx import ModelProto, TensorProto

from onnxshap.calibrate import batches, by_image
from onnxshap.core import Array, BoolArray, Dataset, FloatArray
from onnxshap.graph import extract
from onnxshap.graph.structure import used_names
from onnxshap.groups import Group
from onnxshap.plan.choice import plans_at
from onnxshap.plan.trials import FEWEST_FITTED, FITTED, Trials
from onnxshap.plan.widths import Candidate
from onnxshap.repair import QUICK, batch_size, border, refit
from onnxshap.tracing import Traced
from onnxshap.walk import Repeated, Room, Walk, sizes_of

FRACTIONS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
"""Widths measured, as shares of a group."""
FEW = (0.75, 0.5, 0.25, 0.125)
"""Those of the ranks of layers, as shares of the most that pays, and of groups where all would take too long."""
FEWEST = (0.5, 0.25)
"""Those measured where these would, too."""
_BEYOND = 2.5
"""How often the work that is affordable the least may take: widths by nothing cost more than minutes."""
_WALKING = 3
"""Inside of a group, who share what is left of the memory: a walk, what is kept of it, and that of the cut model."""
_LEAST = 1e-12
"""Of the energy of all channels, and of the largest loss, what is taken for nothing."""
IMAGES = 500
"""Most images used, three fifths to fit, the others to judge."""


def affordable(traced: Traced, groups: Sequence[Group], images: int, work: float) -> tuple[int, tuple[float, ...]]:
    """Return how many images, and which widths, measuring may take; (0, ()) where not even the least is affordable.

    A width costs about half a run of the model on the images judged by (what lies behind the group), two on those
    fitted on through the layers next to it, and the regressions.
    """
    regressions = sum(_regressions(traced, group) for group in groups)
    share = 0.6 * (1 - FITTED) + FITTED * min(1.0, 3 / max(1, len(groups)))
    tiers = ((IMAGES, FRACTIONS), (200, FRACTIONS), (200, FEW), (100, FEW), (100, FEWEST))
    for count, fractions in tiers:
        used = min(images, count)
        runs = len(groups) * used * share * traced.cost.macs()
        most = _BEYOND * work if (count, fractions) == tiers[-1] else work
        if len(fractions) * (runs + 3 * regressions) <= most and used * FITTED >= FEWEST_FITTED:
            return used, fractions
    return 0, ()


def _regressions(traced: Traced, group: Group) -> float:
    """Return the multiply-accumulates of the equations of the layers that read a group, once."""
    needed = ((float(QUICK.needed(inputs)), inputs) for _, inputs in traced.fan_ins(group))
    return sum(rows * inputs * min(rows, inputs) for rows, inputs in needed)


def loss_curves(
    traced: Traced,
    groups: Sequence[Group],
    values: Mapping[str, FloatArray],
    trials: Trials,
    fractions: Sequence[float] = FRACTIONS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    most: Mapping[str, int] = MappingProxyType({}),
    *,
    cumulative: bool = False,
) -> dict[str, FloatArray]:
    """Return, for every group, the loss at each width: float64[units + 1], convex and not increasing.

    Args:
        traced: the model.
        groups: the groups that may be cut.
        values: group name -> phi; the lowest go first.
        trials: refit its cuts and tell what they lose.
        fractions: the widths to measure.
        progress: told after every width.
        most: name of a group that is the rank of a layer -> the widest that pays, of which at most `FEW` are.
        cumulative: whether values are what is lost once each unit has gone and all those before it, not of it alone;
            those of ranks never are.
    """
    free = trials.free
    whole: dict[str, BoolArray] = {g.name: np.ones(len(g), np.bool_) for g in traced.groups}
    plan_at = plans_at([Candidate(g.name, g.units, values[g.name]) for g in groups], traced.covers)
    parts, total, done = (trials.fitted, trials.judged), steps(groups, fractions, most), itertools.count(1)
    before = [_Before(free, part, free.backend.memory * len(part) // sum(map(len, parts))) for part in parts]

    def measured(group: Group) -> FloatArray:  # what it holds is let go of before the next group's is made
        unchanged, points = _unchanged(free, group, whole), {len(group): 0.0}
        fit_on, judge_on = (part.of(unchanged) for part in before)
        left = (free.backend.memory - sum(part.taken for part in before)) // _WALKING
        walk = Repeated(Walk(free, free.shaped.graph.model, fit_on, Room(left)), left)
        for fraction in _fractions(group, fractions, most):
            width = round(fraction * most.get(group.name, len(group)))
            if 0 < width < len(group) and width not in points:
                plan = whole | plan_at({group.name: width})
                removal = trials.removal(plan)
                model, _ = refit(removal, trials.fitted, trials.seed, nearest=True, effort=QUICK, original=walk)
                points[width] = trials.loss(_outputs(free, model, judge_on, len(trials.judged)))
            progress(next(done), total)
        if group.name in most or len(fractions) <= len(FEW):
            energy = _energy(values[group.name], cumulative=cumulative and group.name not in most)
            points = filled(points, energy)
        return convex(points, len(group))

    return {group.name: measured(group) for group in groups}


def steps(groups: Sequence[Group], fractions: Sequence[float], most: Mapping[str, int]) -> int:
    """Return how many widths `loss_curves` measures; the arguments are its."""
    return sum(len(_fractions(group, fractions, most)) for group in groups)


def _fractions(group: Group, fractions: Sequence[float], most: Mapping[str, int]) -> Sequence[float]:
    return FEW if group.name in most and len(fractions) > len(FEW) else fractions


def _unchanged(free: Traced, group: Group, whole: Mapping[str, BoolArray]) -> list[str]:
    """Return the tensors that no cut of a group changes and that its ops read."""
    one = np.zeros(len(group), np.bool_)
    one[:1] = True
    return [n for n in border(free, free.alive({**whole, group.name: one})) if n in free.shaped.shapes]


class _Before:
    """What lies before a group, on some images, in batches.

    Attributes:
        taken: bytes of it that are held.
    """

    def __init__(self, free: Traced, data: Dataset, memory: int) -> None:
        size = batch_size(free, [o for node in free.shaped.graph.nodes for o in node.output if o in free.shaped.shapes])
        self._inputs = [dict(feeds) for _, feeds in batches(free, data, size)]
        self._walk = Walk(free, free.shaped.graph.model, self._inputs, Room(memory))
        self._memory, self.taken = memory, 0

    def of(self, names: Sequence[str]) -> list[dict[str, Array]]:
        """Return the inputs and the values of some tensors, which are read behind; the inputs where that is much."""
        beside = 0 if self._walk.holds(names) else self._walk.bytes(names)
        if self._walk.taken + beside > self._memory:
            self.taken = self._walk.taken
            return self._inputs
        values = [dict(zip(names, own, strict=True)) for own in self._walk(names)]
        self.taken = self._walk.taken + beside
        return [{**feeds, **own} for feeds, own in zip(self._inputs, values, strict=True)]


def _energy(phi: FloatArray, *, cumulative: bool) -> FloatArray:
    """Return what units count, one by one, falling, float64[units]: of `cumulative` values what each adds."""
    falling = np.sort(phi)[::-1]
    return np.maximum(falling - np.append(falling[1:], 0.0) if cumulative else falling, 0.0)


def _outputs(free: Traced, model: ModelProto, batches_: Sequence[Mapping[str, Array]], images: int) -> list[Array]:
    """Return the outputs of a cut model from what lies before the cut, one array an output, [images, ...]."""
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    names = [n for n in batches_[0] if n in kinds or n in used_names(model.graph)]
    given = {n: kinds.get(n) or free.shaped.kinds.get(n, TensorProto.FLOAT) for n in names}
    outputs = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    session = free.backend.session(extract(model, given, outputs, {**free.shaped.declared, **sizes_of(batches_)}))
    parts = [by_image(free, session.run({n: feeds[n] for n in session.inputs})) for feeds in batches_]
    return [np.concatenate(column)[:images] for column in zip(*parts, strict=True)]


def filled(points: Mapping[int, float], energy: FloatArray) -> dict[int, float]:
    """Return measured losses with those between, which go with a power of the energy that is lost.

    Above the widest that was measured they are proportional to it; below the narrowest nothing is told.

    Args:
        points: width -> loss, with the whole one's, 0, among them.
        energy: what each channel counts, falling, float64[units].

    >>> found = filled({8: 0.0, 4: 1.0, 2: 16.0}, np.array([8.0, 4, 2, 1, 0.5, 0.25, 0.125, 0.125]))
    >>> {width: round(loss, 3) for width, loss in found.items()}
    {2: 16.0, 3: 4.0, 4: 1.0, 5: 0.5, 6: 0.25, 7: 0.125, 8: 0.0}
    """
    units = len(energy)
    lost = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    known = np.array(sorted(width for width in points if width < units)[::-1], np.intp)
    if not len(known) or not lost[0] > 0:
        return dict(points)
    x, losses = np.log(np.maximum(lost / lost[0], _LEAST)), np.array([points[width] for width in known])
    if not losses.max() > 0:
        return dict(points)
    y = np.log(np.maximum(np.maximum.accumulate(losses) / losses.max(), _LEAST))
    least = 2 * np.log(_LEAST)  # far below, for a slope of 1
    places, heights = np.append(x[known[0]] + least, x[known]), np.append(y[0] + least, y)
    between = np.exp(np.interp(x, places, heights)) * losses.max()
    return {width: float(between[width]) for width in range(known[-1], units)} | dict(points)


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
