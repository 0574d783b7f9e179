"""Leave-one-out by the distance of the outputs to the original's, at once and in rounds.

loo-logit            mean over images of the squared distance that removing the one unit makes; n + 1 rows an image
loo-logit-iterated   the same in seven rounds: a seventh of the units goes, the rest is measured again without them, by
                     KL to the original where the outputs are class scores; about 4 n rows an image

Source: Molchanov et al. 2017 (the oracle); differs: the distance of the outputs instead of the change of the loss,
which changes sign and cancels over images. A unit's value in rounds is the distance reached when it has gone, so that
values rank by round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxshap import payoffs
from onnxshap.core import BoolArray, FloatArray, ImageIndex, Payoff, Values
from onnxshap.estimators.rows import evaluate_each, image_blocks
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.methods.base import Tell

ROUNDS = 7


def distance(setting: Setting) -> Payoff:
    """Return the payoff that is minus the squared distance of the outputs to the original's."""
    return payoffs.choose("mse", setting.reference, None, setting.traced.outputs)


def divergence(setting: Setting) -> Payoff:
    """Return what compares with the original without labels: minus KL of class scores, else `distance`, or both."""
    return payoffs.choose(None, setting.reference, None, setting.traced.outputs)


def _ends(n: int) -> list[int]:
    """Return how many of so many units have gone after each round."""
    return [round(n * k / ROUNDS) for k in range(1, ROUNDS + 1)]


def rows_of_rounds(n_units: int) -> int:
    """Return the rows that an image takes: one for every unit that is left, round after round."""
    return sum(n_units - gone for gone in [0, *_ends(n_units)[:-1]])


def iterated(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
    """Return the distance reached when each unit has gone, in rounds (see the module)."""
    n = len(group)
    game = GroupGame(replace(setting, payoff=divergence(setting)), group)
    phi, present, reached = np.zeros(n), np.ones(n, np.bool_), 0.0
    for number, end in enumerate(_ends(n)):
        tell(number / ROUNDS)
        lost = _lost(game, images, present)
        for unit in sorted(np.flatnonzero(present), key=lambda u: (lost[u], u))[: end - int((~present).sum())]:
            reached = max(reached, float(lost[unit]))
            phi[unit] = reached
            present[unit] = False
    return Values(phi, np.zeros(n), game.evals)


def _lost(game: GroupGame, images: ImageIndex, present: BoolArray) -> FloatArray:
    """Return minus the mean payoff without the units that are gone and one more, float64[n]."""
    left = np.flatnonzero(present)
    base = present.astype(np.float32)
    table = np.repeat(base[None], len(left), axis=0)
    table[np.arange(len(left)), left] = 0
    total = np.zeros(len(left))
    for block in image_blocks(len(images), len(table), len(base)):
        total += evaluate_each(game, images[block], len(table), lambda rows: table[rows]).sum(axis=0)
    found = np.full(len(base), np.inf)
    found[left] = -total / len(images)
    return found
