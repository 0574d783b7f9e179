"""Methods without a game: statistics of activations, norms of weights, chance.

activation, apoz    mean absolute activation; share of activations above zero. No rows.
l1, l2              norms of the weights that make the unit, BatchNormalization's scale folded in. No data at all.
random              uniform, seeded.

Source: Hu et al. 2016 (apoz), Li et al. 2017 (l1). Differs: the norms are those of every weight that makes the unit (a
residual channel has several), with the scale of a BatchNormalization behind it.
"""

from __future__ import annotations

import numpy as np

from onnxshap.calibrate import channel_means
from onnxshap.core import FloatArray, ImageIndex, Values
from onnxshap.game import Setting
from onnxshap.graph import is_op
from onnxshap.groups import Group
from onnxshap.methods.base import Tell, Whole, per_unit, sites_of
from onnxshap.shapes.constants import CHANNELS, is_stored, norm_scale, static_values


def activations(transform: str) -> Whole:
    """Return the method that averages a transform of the activations."""

    def method(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
        places = [(s.tensor, s.axis) for s in sites_of(setting, group)]
        return per_unit(setting, group, channel_means(setting.traced, setting.data, places, transform))

    return Whole(method)


def norm(order: int) -> Whole:
    """Return the method that takes a norm of the weights."""

    def method(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
        totals = np.zeros(setting.traced.labels.n_units)
        own = np.zeros(setting.traced.labels.n_units + 1, np.bool_)  # no unit is the last
        own[group.units] = True
        for (tensor, axis), producer in setting.traced.labels.trace.producers.items():
            units = setting.traced.labels.units(tensor, axis)
            if not own[units].any():
                continue
            powers = _weight_powers(setting, tensor, axis, producer, order)
            for slot in range(units.shape[1]):
                real = units[:, slot] >= 0
                np.add.at(totals, units[real, slot], powers[real])
        return Values(totals[group.units] ** (1 / order), np.zeros(len(group)))

    return Whole(method)


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
    return powers * (_batch_norm_scale(setting, tensor) if axis == CHANNELS else 1.0) ** order


def _batch_norm_scale(setting: Setting, tensor: str) -> FloatArray | float:
    shaped = setting.traced.shaped
    for node in (shaped.graph.nodes[index] for index in shaped.readers.get(tensor, ())):
        if is_op(node, "BatchNormalization") and node.input[0] == tensor and is_stored(node, shaped.constants):
            return np.abs(norm_scale(shaped.graph.model, setting.traced.backend, node))
    return 1.0


def random(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
    """Return uniform values."""
    return Values(rng.random(len(group)), np.zeros(len(group)))
