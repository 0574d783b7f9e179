"""Every `--method` by name: a function from a setting and a group to values. Higher = keep.

shapley             mean over images of the marginal contributions along each image's own permutations
permutation-shared  the same, with the paper's few permutations that all images share (for comparison)
exact               Shapley values by enumeration, up to 16 units a group
loo                 what removing the one unit costs
taylor, taylor-signed, taylor-sq, fisher
                    first-order estimates of that cost, gradients by float masks
sensitivity         size of the payoff's gradient over a channel's positions
recon               error that a refit of the layers behind leaves when the unit goes, greedily from the cheapest on
activation, apoz    mean absolute activation; share of activations above zero
l1, l2              norms of the weights that make the unit, BatchNormalization's scale folded in
random              uniform, seeded
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxshap.core import Estimator, Values
from onnxshap.estimators import Exact, Fisher, LeaveOneOut, Permutation, SharedPermutation, Taylor
from onnxshap.game import GroupGame, Setting
from onnxshap.groups import Group
from onnxshap.methods.base import Method
from onnxshap.methods.recon import recon
from onnxshap.methods.sensitivity import sensitivity
from onnxshap.methods.statistics import activations, norm, random

__all__ = ["GAMELESS", "METHODS", "Method"]


def _played(estimator: Estimator, *, baseline: str | None = None) -> Method:
    def method(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None) -> Values:
        chosen = replace(setting, means={}) if baseline == "zero" else setting
        limited = replace(estimator, max_evals=max_evals) if isinstance(estimator, Permutation) else estimator
        return limited(GroupGame(chosen, group), rng)

    return method


METHODS: dict[str, Method] = {
    "shapley": _played(Permutation()),
    "permutation-shared": _played(SharedPermutation()),
    "exact": _played(Exact()),
    "loo": _played(LeaveOneOut()),
    "taylor": _played(Taylor("abs"), baseline="zero"),
    "taylor-signed": _played(Taylor("signed"), baseline="zero"),
    "taylor-sq": _played(Taylor("square"), baseline="zero"),
    "fisher": _played(Fisher(), baseline="zero"),
    "recon": recon,
    "sensitivity": sensitivity,
    "activation": activations("abs"),
    "apoz": activations("positive"),
    "l1": norm(1),
    "l2": norm(2),
    "random": random,
}
"""Name -> method."""

GAMELESS = frozenset({"recon", "activation", "apoz", "l1", "l2", "random"})
"""Methods that evaluate no rows: an image costs them one run at most, so they take more images."""
