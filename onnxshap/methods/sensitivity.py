"""Sensitivity: the size of the payoff's gradient over a channel's positions, without a backward pass."""

from __future__ import annotations

import numpy as np

from onnxshap.core import ImageIndex, Values
from onnxshap.estimators.rows import single_drops
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.methods.base import Tell, sites_of

_PROBE_STEP = 2.0**-6
_PROBES = 8


def rows_of_probes(n_units: int) -> int:
    """Return the rows that an image takes: one for every unit and one for all of them, probe by probe."""
    return _PROBES * (n_units + 1)


def sensitivity(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
    """Return the mean over images of the gradient's size over each channel's positions.

    Source: TorchPruner's sensitivity, sum over h, w of abs(g). Differs: without a backward pass the derivative along
    random signs r is measured, and the root of its mean square over eight draws of r is the L2 norm of g over the
    positions (Hutchinson 1990); one draw alone ranks wide layers hardly better than chance.
    """
    squares, evals = np.zeros((len(images), len(group))), 0
    for number in range(_PROBES):
        tell(number / _PROBES)
        probe = {}
        for site in sites_of(setting, group):
            shape = list(setting.traced.shaped.shapes[site.tensor])
            place = setting.traced.images(site.tensor)
            if place is not None:
                shape[place.axis] = place.outer * place.inner
            probe[site.tensor, site.axis] = rng.choice(np.array([-1.0, 1.0], np.float32), shape)
        game = GroupGame(setting, group, probe)
        squares += single_drops(game, images, _PROBE_STEP) ** 2 / _PROBES
        evals += game.evals
    slopes = np.sqrt(squares)
    stderr = slopes.std(axis=0, ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.zeros(len(group))
    return Values(slopes.mean(axis=0), stderr, evals)
