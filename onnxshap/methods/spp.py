"""`spp`: structured probabilistic pruning. Every unit has a probability to go, moved by its rank round after round.

A round draws a coalition for every image from the present probabilities, and measures what each unit is worth in such
company: the slope of the payoff on its presence, by ridge regression over the rows so far, newer rounds counting more.
Units are ranked by it, from the least worth, and the probability to go of rank r moves by

    delta(r) = A exp(-alpha r)                     up to r = N = -log(u) / alpha
               2 u A - A exp(-alpha (2 N - r))     beyond, so that delta is 0 at the number wanted, then negative
    alpha = (log 2 - log u) / wanted

so a decision can be taken back until a probability reaches 1, which is final. It ends when as many units as wanted are
gone, here half of them, or after 40 rounds. phi is minus the probability, among equals the last slope.

Source: Wang et al. 2017 (SPP; u = .25). Differs: nothing is trained between the rounds, so the rank is by the payoff
and not by norms; A = .2 for the fewer rounds.
Cost: two rows an image and round, at most 80 an image, however many units.
"""

from __future__ import annotations

import numpy as np

from onnxshap.core import FloatArray, ImageIndex, Values
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.methods.base import Tell

ROUNDS = 40
STEP = 0.2
"""A: the largest move of a probability in a round."""
SHAPE = 0.25
"""u."""
_FORGET = 0.8
_RIDGE = 0.1


def moves(n: int, wanted: int) -> FloatArray:
    """Return delta(r) for the ranks 0 .. n - 1, of which `wanted` are to go.

    >>> moves(6, 3).round(3).tolist()
    [0.2, 0.1, 0.05, 0.0, -0.1, -0.2]
    """
    alpha = (np.log(2) - np.log(SHAPE)) / wanted
    turn = -np.log(SHAPE) / alpha
    ranks = np.arange(n)
    mirrored = 2 * SHAPE * STEP - STEP * np.exp(-alpha * (2 * turn - ranks))
    return np.asarray(np.maximum(np.where(ranks <= turn, STEP * np.exp(-alpha * ranks), mirrored), -STEP))


def rows_of_pairs(n_units: int) -> int:
    """Return the rows that an image takes at most: a pair a round."""
    return 2 * ROUNDS


def spp(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
    """Return minus the probability to go of every unit (see the module)."""
    n, wanted = len(group), len(group) // 2
    if n < 2:
        return Values(np.zeros(n), np.zeros(n))
    game, delta = GroupGame(setting, group), moves(n, wanted)
    gone, evals = np.zeros(n), 0
    slopes: FloatArray = np.zeros(n)
    gram, moment = np.zeros((n, n)), np.zeros(n)
    owners = np.repeat(images, 2)
    for number in range(ROUNDS):
        tell(number / ROUNDS)
        # a pair of coalitions an image; its difference needs no offset of the image
        present = rng.random((len(owners), n)) >= np.clip(gone, 0.05, 0.95)
        present[:, gone >= 1] = False
        payoffs = game(owners, present.astype(np.float32))
        evals += len(owners)
        x = present[::2].astype(np.float64) - present[1::2]
        y = payoffs[::2] - payoffs[1::2]
        gram = _FORGET * gram + x.T @ x / len(x)
        moment = _FORGET * moment + x.T @ y / len(x)
        scale = (
            float(np.trace(gram)) / n or 1.0
        )  # 0 where the coalitions of every image were alike: nothing is known yet
        slopes = np.asarray(np.linalg.solve(gram + _RIDGE * scale * np.eye(n), moment), np.float64)
        open_ = np.flatnonzero(gone < 1)
        ranked = open_[np.argsort(slopes[open_], kind="stable")]
        already = n - len(open_)
        gone[ranked] = np.clip(gone[ranked] + delta[already : already + len(ranked)], 0, 1)
        if np.count_nonzero(gone >= 1) >= wanted:
            break
    order = np.lexsort((slopes, -gone))
    spread = np.empty(n)
    spread[order] = np.linspace(0, 1e-6, n)
    return Values(spread - gone, np.zeros(n), evals)
