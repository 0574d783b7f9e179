"""What methods have in common: their signature, and figures of axes as figures of units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxshap.core import FloatArray, Values
from onnxshap.game import Setting
from onnxshap.groups import Group
from onnxshap.labels import Site

Method = Callable[[Setting, Group, np.random.Generator, int | None], Values]
"""Setting, group, randomness, most rows (None = no limit) -> values."""


def sites_of(setting: Setting, group: Group) -> list[Site]:
    """Return the places where units of a group are summed away."""
    labels = setting.traced.labels
    return [s for s in labels.trace.sites if np.isin(labels.units(s.tensor, s.axis), group.units).any()]


def per_unit(setting: Setting, group: Group, found: dict[tuple[str, int], FloatArray]) -> Values:
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
