"""Every `--method` by name: a function from a setting and a group to values. Higher = keep.

shapley             mean over images of the marginal contributions along each image's own permutations
permutation-shared  the same, with the paper's few permutations that all images share (for comparison)
exact               Shapley values by enumeration, up to 16 units a group
loo                 what removing the one unit costs
taylor, taylor-signed, taylor-sq, fisher
                    first-order estimates of that cost, gradients by float masks
sensitivity         size of the payoff's gradient over a channel's positions
activation, apoz    mean absolute activation; share of activations above zero
l1, l2              norms of the weights that make the unit, BatchNormalization's scale folded in
random              uniform, seeded
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxshap.calibrate import channel_means
from onnxshap.core import Estimator, FloatArray, Values
from onnxshap.estimators import Exact, Fisher, LeaveOneOut, Permutation, SharedPermutation, Taylor
from onnxshap.estimators.rows import single_drops
from onnxshap.game import GroupGame, Setting
from onnxshap.graph import attributes, is_op
from onnxshap.groups import Group
from onnxshap.labels import Site
from onnxshap.shapes import static_values

Method = Callable[[Setting, Group, np.random.Generator, int | None], Values]
"""Setting, group, randomness, most rows (None = no limit) -> values."""
_PROBE_STEP = 2.0**-6
_PROBES = 8


def _played(estimator: Estimator, *, baseline: str | None = None) -> Method:
    def method(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None) -> Values:
        chosen = replace(setting, means={}) if baseline == "zero" else setting
        limited = replace(estimator, max_evals=max_evals) if isinstance(estimator, Permutation) else estimator
        return limited(GroupGame(chosen, group), rng)

    return method


def _sites(setting: Setting, group: Group) -> list[Site]:
    labels = setting.traced.labels
    return [s for s in labels.trace.sites if np.isin(labels.units(s.tensor, s.axis), group.units).any()]


def _per_unit(setting: Setting, group: Group, found: dict[tuple[str, int], FloatArray]) -> Values:
    """Return the mean over all positions of each unit, of figures of some axes."""
    totals, counts = np.zeros(setting.traced.labels.n_units), np.zeros(setting.traced.labels.n_units)
    for (tensor, axis), figures in found.items():
        units = setting.traced.labels.units(tensor, axis)
        for slot in range(units.shape[1]):
            real = units[:, slot] >= 0
            np.add.at(totals, units[real, slot], figures[real])
            np.add.at(counts, units[real, slot], 1)
    means = totals[group.units] / np.maximum(counts[group.units], 1)
    return Values(means, np.zeros(len(group)))


def _activations(transform: str) -> Method:
    def method(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None) -> Values:
        places = [(s.tensor, s.axis) for s in _sites(setting, group)]
        return _per_unit(setting, group, channel_means(setting.traced, setting.data, places, transform))

    return method


def _sensitivity(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None) -> Values:
    """Return the mean over images of the gradient's size over each channel's positions.

    Source: TorchPruner's sensitivity, sum over h, w of abs(g). Differs: without a backward pass the derivative along
    random signs r is measured, and the root of its mean square over eight draws of r is the L2 norm of g over the
    positions (Hutchinson 1990); one draw alone ranks wide layers hardly better than chance.
    """
    squares, evals = np.zeros((len(setting.data), len(group))), 0
    for _ in range(_PROBES):
        probe = {}
        for site in _sites(setting, group):
            shape = list(setting.traced.shaped.shapes[site.tensor])
            batch = setting.traced.batch_axis(site.tensor)
            if batch is not None:
                shape[batch] = 1
            probe[site.tensor, site.axis] = rng.choice(np.array([-1.0, 1.0], np.float32), shape)
        game = GroupGame(setting, group, probe)
        squares += single_drops(game, _PROBE_STEP) ** 2 / _PROBES
        evals += game.evals
    slopes = np.sqrt(squares)
    stderr = slopes.std(axis=0, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.zeros(len(group))
    return Values(slopes.mean(axis=0), stderr, evals)


def _norm(order: int) -> Method:
    def method(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None) -> Values:
        totals = np.zeros(setting.traced.labels.n_units)
        for (tensor, axis), producer in setting.traced.labels.trace.producers.items():
            units = setting.traced.labels.units(tensor, axis)
            if not np.isin(units, group.units).any():
                continue
            powers = _weight_powers(setting, tensor, axis, producer, order)
            for slot in range(units.shape[1]):
                real = units[:, slot] >= 0
                np.add.at(totals, units[real, slot], powers[real])
        return Values(totals[group.units] ** (1 / order), np.zeros(len(group)))

    return method


def _weight_powers(setting: Setting, tensor: str, axis: int, producer: int, order: int) -> FloatArray:
    """Return, for every position of a made axis, the sum of abs(weight) ** order, with BatchNormalization's scale."""
    traced = setting.traced
    node = traced.shaped.graph.nodes[producer]
    made = traced.labels.axis(tensor, axis)
    assert made is not None
    powers = np.zeros(len(made))
    constants = [n for n in node.input if n in traced.shaped.constants and len(traced.shaped.shapes[n]) >= 2]
    for name, values in static_values(traced.shaped.graph.model, traced.backend, constants).items():
        for k in range(values.ndim):
            classes = traced.labels.axis(name, k)
            if classes is not None and np.array_equal(classes, made):
                others = tuple(a for a in range(values.ndim) if a != k)
                powers += (np.abs(values.astype(np.float64)) ** order).sum(axis=others)
                break
    return powers * _batch_norm_scale(setting, tensor) ** order


def _batch_norm_scale(setting: Setting, tensor: str) -> FloatArray | float:
    for node in setting.traced.shaped.graph.nodes:
        if is_op(node, "BatchNormalization") and node.input[0] == tensor:
            names = [node.input[1], node.input[4]]
            found = static_values(setting.traced.shaped.graph.model, setting.traced.backend, names)
            scale, variance = (found[n].astype(np.float64) for n in names)
            return np.asarray(np.abs(scale) / np.sqrt(variance + attributes(node).get("epsilon", 1e-5)))
    return 1.0


def _random(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None) -> Values:
    return Values(rng.random(len(group)), np.zeros(len(group)))


METHODS: dict[str, Method] = {
    "shapley": _played(Permutation()),
    "permutation-shared": _played(SharedPermutation()),
    "exact": _played(Exact()),
    "loo": _played(LeaveOneOut()),
    "taylor": _played(Taylor("abs"), baseline="zero"),
    "taylor-signed": _played(Taylor("signed"), baseline="zero"),
    "taylor-sq": _played(Taylor("square"), baseline="zero"),
    "fisher": _played(Fisher(), baseline="zero"),
    "sensitivity": _sensitivity,
    "activation": _activations("abs"),
    "apoz": _activations("positive"),
    "l1": _norm(1),
    "l2": _norm(2),
    "random": _random,
}
"""Name -> method."""
