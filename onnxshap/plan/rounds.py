"""Cutting in rounds: a model that was cut and repaired as one of its own, its findings in terms of the original.

Score - cut - repair - score again: what a unit is worth, and what a group loses at a width, changes once the others are
narrow and their consumers refitted. A round's values and curves are carried back to the units of the original, so that
the planner, its budget and its widths are those of one cut.

Source: Ancona et al. 2020 (layer by layer, output to input); differs: all groups a little in every round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnxshap.calibrate import free_batch
from onnxshap.core import FloatArray, IntArray
from onnxshap.errors import ModelError
from onnxshap.factors.pairs import Samples
from onnxshap.graph import array
from onnxshap.groups import Group
from onnxshap.plan import Budget
from onnxshap.rewrite import small_model
from onnxshap.tracing import Keep, Traced, trace_form


def eased(budget: Budget, part: float) -> Budget:
    """Return the budget after a part of the way, in equal ratios.

    >>> eased(Budget(macs=0.25), 0.5).macs
    0.5
    """
    return replace(budget, **{name: share**part for name, share in budget.shares.items()})


@dataclass(frozen=True)
class CutModel:
    """A cut model.

    Attributes:
        traced, free: the model, as in its file and for evaluation.
        groups: those that are groups of the original, with all the units kept.
        kept: group name -> the original's units, in the order of the group's here.
    """

    traced: Traced
    free: Traced
    groups: Sequence[Group]
    kept: Mapping[str, IntArray]

    @classmethod
    def of(
        cls, traced: Traced, groups: Sequence[Group], keep: Keep, model: ModelProto, samples: Samples = ()
    ) -> CutModel:  # fmt: skip
        """Return a cut and repaired model.

        Args:
            traced: the original.
            groups: its groups that may be cut.
            keep: the plan.
            model: the model.
            samples: inputs that the original was traced with, beside its sizes.

        Raises:
            ModelError: units do not come in the order of the original's.
        """
        cut = trace_form(traced, model, samples)
        widths = {g.name: len(g) for g in cut.groups}
        kept = {g.name: np.flatnonzero(keep[g.name]) for g in groups}
        kept = {name: units for name, units in kept.items() if widths.get(name) == len(units)}
        _check_order(traced, keep, kept, samples)
        return cls(cut, free_batch(cut), [g for g in cut.groups if g.name in kept], kept)

    def values(self, found: Mapping[str, FloatArray], before: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return values found here for the original's units: those that went before come after all others."""
        values = dict(before)
        for name, units in self.kept.items():
            old, new = before[name], found[name]
            values[name] = old - old.max() + new.min() - 1.0
            values[name][units] = new
        return values

    def curves(
        self, found: Mapping[str, FloatArray], before: Mapping[str, FloatArray], keep: Keep
    ) -> dict[str, FloatArray]:
        """Return losses found here at the widths of the original's groups; nothing is lost down to the present ones.

        Where nothing was found the earlier losses stand.
        """
        curves = {}
        for name, old in before.items():
            width = int(keep[name].sum())
            curves[name] = np.maximum(old - old[width], 0.0)
            if name in found:
                curves[name][: width + 1] = found[name]
        return curves


def _check_order(traced: Traced, keep: Keep, kept: Mapping[str, IntArray], samples: Samples) -> None:
    """Hold a second cut of the cut model against one cut by both plans.

    Raises:
        ModelError: they have other weights.
    """
    rough = trace_form(traced, small_model(traced, keep, {}), samples)
    rng = np.random.default_rng(0)
    second = {g.name: np.ones(len(g), np.bool_) for g in rough.groups}
    both = {name: flags.copy() for name, flags in keep.items()}
    for name, units in kept.items():
        gone = rng.permutation(len(units))[: len(units) // 2]
        second[name][gone] = False
        both[name][units[gone]] = False
    if _weights(small_model(rough, second, {})) != _weights(small_model(traced, both, {})):
        raise ModelError(
            "--allocation iterative: the units of this model do not keep their order when it is cut; use curves"
        )


def _weights(model: ModelProto) -> list[tuple[tuple[int, ...], bytes]]:
    values = [array(t) for t in model.graph.initializer]
    return sorted((value.shape, value.tobytes()) for value in values if value.dtype.kind == "f")
