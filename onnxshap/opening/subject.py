"""What is cut: a model, its groups, and the images of every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxshap.bases import Bases, Turned, turned
from onnxshap.calibrate import free_batch
from onnxshap.clock import Clock
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.errors import BudgetError
from onnxshap.factors import Factored, factored
from onnxshap.groups import Group, select
from onnxshap.methods.ranking import cumulative
from onnxshap.opening.given import Given
from onnxshap.opening.layouts import samples_of
from onnxshap.opening.reading import sample
from onnxshap.plan.cutter import Cutter
from onnxshap.plan.options import REFITS, Asked, check_repairable, repair_for
from onnxshap.progress import Progress
from onnxshap.reference import errors_of_data
from onnxshap.tracing import Traced

REPAIR_IMAGES = 1024
"""Most calibration images to measure curves and to refit with."""


def groups_to_cut(traced: Traced, include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
    """Return the groups of a model that may be cut, those that `groups.select` chooses.

    Raises:
        BudgetError: there is none.
    """
    groups = select(traced.groups, include, exclude) if traced.groups else []
    if not groups:
        why = "--include and --exclude leave no group" if traced.groups else traced.why_nothing
        raise BudgetError(f"nothing can be cut: {why}")
    return groups


def in_bases(
    traced: Traced, free: Traced, groups: Sequence[Group], data: Dataset, given: Bases | None = None
) -> tuple[Turned, Traced]:
    """Return a model in other bases (`bases`), and that form of it for evaluation.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut.
        data: calibration inputs.
        given: the bases that values of an earlier run are of.

    Raises:
        DataError: the model does not run on the data, or the values are of bases that it does not bear.
    """
    with errors_of_data(data):
        moved = turned(traced, free, groups, data, given)
    return moved, free_batch(moved.traced) if moved.groups else free


@dataclass(frozen=True)
class Subject:
    """What is cut, by which repair, and the images of every step.

    Attributes:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut.
        data: calibration images.
        held_out: the images that judge.
        repaired_on: calibration images to measure curves and to repair with.
        asked: how it is to be cut.
        repair: the repair that this comes to, one of `plan.options.REPAIRS`.
        turned: how groups were put into other bases, if some were.
        factored: how layers were made two, if some were, for what plans and cuts.
        unsplit: the names of layers that could not be, and why.
    """

    traced: Traced
    free: Traced
    groups: Sequence[Group]
    data: Dataset
    held_out: Dataset
    repaired_on: Dataset
    asked: Asked
    repair: str
    turned: Turned | None = None
    factored: Factored | None = None
    unsplit: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, given: Given, traced: Traced, data: Dataset, groups: Sequence[Group], asked: Asked, dividing: str | None
    ) -> Subject:
        """Return what is cut of an opened model.

        Args:
            given: what the job is given.
            traced, data: as `given.open` returned them.
            groups: those that may be cut.
            asked: how it is to be cut.
            dividing: as for `Given.divide`.

        Raises:
            ModelError, DataError, OnnxshapError: as `Given.divide` and `plan.options.check_repairable`.
        """
        free = free_batch(traced)
        data, held_out = given.divide(traced, data, dividing)
        repaired_on = sample(data, REPAIR_IMAGES, given.seed)
        check_repairable(free, repaired_on, asked.repair, asked.allocation, asked.low_rank)
        repair = repair_for(asked.repair, len(repaired_on), noise=given.data is None)
        return cls(traced, free, groups, data, held_out, repaired_on, asked, repair)

    @property
    def refitted(self) -> bool:
        """Whether the layers behind the cut are refitted."""
        return self.repair in REFITS

    @property
    def planned(self) -> tuple[Traced, Sequence[Group], Mapping[str, int]]:
        """What plans are of: the model, its groups, those of ranks behind, and the most with which these pay."""
        made = self.factored
        return (self.traced, self.groups, {}) if made is None else (made.traced, made.groups, made.most)

    def in_bases(self, bases: Bases | None = None) -> Subject:
        """Return it with the model in other bases: those given, else the ones in which a cut loses least."""
        moved, free = in_bases(self.traced, self.free, self.groups, self.repaired_on, bases)
        return replace(self, traced=moved.traced, free=free, turned=moved)

    def split(self, low_rank: str, progress: Progress) -> Subject:
        """Return it with layers as two, which may be cut to less than their rank (`factors`).

        Args:
            low_rank: which, one of `factors.LOW_RANK`.
            progress: told how far that is.

        Raises:
            DataError: the model does not run on the data.
        """
        given = self.samples()
        with errors_of_data(self.repaired_on):
            made = factored(self.traced, self.free, self.groups, self.repaired_on, low_rank, given, progress)
        return replace(self, factored=made if made.most else None, unsplit=made.left)

    def samples(self) -> list[dict[str, Array]]:
        """Return inputs that the model is meant for, to trace forms of it with."""
        return samples_of(self.repaired_on, self.traced.shaped.specs)

    def cutter(
        self, order: Mapping[str, FloatArray], seed: int, progress: Progress, clock: Clock, *,
        rescore: Callable[[Traced], Mapping[str, FloatArray]] | None, payoff: str | None, method: str,
    ) -> Cutter:  # fmt: skip
        """Return what cuts it; the arguments are those of `Cutter`, `order` its values, made by `method`."""
        return Cutter(
            self.traced, self.free, self.groups, order, self.repaired_on, self.repair, self.asked.allocation, seed,
            progress, clock, rescore=rescore, tuning_seconds=self.asked.distill_seconds, payoff=payoff,
            turned=self.turned, factored=self.factored, samples=self.samples,
            cumulative=cumulative(method, refitted=self.refitted),
        )  # fmt: skip
