"""From values and a budget to a verified, repaired model; one cutter serves many budgets of one set of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from onnx import ModelProto

from onnxshap.bases import Turned
from onnxshap.calibrate import free_batch, means_of_sites, site_means
from onnxshap.clock import Clock
from onnxshap.core import BoolArray, Dataset, FloatArray
from onnxshap.cost import parameters
from onnxshap.distill.tuning import SECONDS, Tuning, divided
from onnxshap.errors import OnnxshapError
from onnxshap.factors import Factored, LowRank
from onnxshap.factors.pairs import Samples
from onnxshap.graph import finish
from onnxshap.groups import Group
from onnxshap.masking import Means
from onnxshap.plan import Budget, Candidate, check_reachable, fits, make_plan, smallest, unvalued, wider_plans
from onnxshap.plan.curves import affordable, loss_curves, steps
from onnxshap.plan.options import REFITS, check_images, check_options, repair_for
from onnxshap.plan.rounds import CutModel, eased
from onnxshap.plan.trials import Trials
from onnxshap.progress import Progress, silent
from onnxshap.repair import Refit, refit, rematch
from onnxshap.rewrite import Removal, small_model
from onnxshap.tracing import Traced
from onnxshap.verify import Verified, check_loads, verify

ROUNDS = 2
"""Of the allocation `iterative`."""
WORK = 10**13
"""Multiply-accumulates that measuring the curves may take by default, a few minutes on two cores."""


def shares(traced: Traced, keep: Mapping[str, BoolArray]) -> dict[str, float]:
    """Return what a plan keeps, as shares of the whole; `work` is that of the multiply-accumulates in full blocks."""
    return traced.cost.shares(traced.alive(keep))


def check_within_reach(
    budget: Budget, traced: Traced, groups: Sequence[Group], most: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Refuse a budget that no plan meets, before anything is scored; `most` is of ranks (`Candidate`), by name.

    Raises:
        BudgetError: even the least widths exceed it, or it asks for nothing.
    """
    check_reachable(unvalued(groups, most), budget, partial(shares, traced), copies=traced.cost.copies)


@dataclass(frozen=True)
class Cut:
    """One cut model.

    Attributes:
        keep: the plan: group name -> bool[n_units].
        model: the model, repaired.
        params: its parameters as stored, with biases that repair added and what stands for removed positions (the plan,
            and its budget, are without).
        verified: the cut model before any refit against its masked twin.
        refits: what least squares did to every layer.
        tuning: what distillation did after it.
        source: what was cut: it holds the large weights that the model may still name.
        macs: its multiply-accumulates.
        low_rank: the layers that became two.
    """

    keep: Mapping[str, BoolArray]
    model: ModelProto
    params: int
    verified: Verified
    refits: list[Refit]
    tuning: Tuning | None
    source: Traced
    macs: int
    low_rank: tuple[LowRank, ...] = ()

    def units(self, groups: Sequence[Group]) -> dict[str, BoolArray]:
        """Return the plan of some groups alone: without the ranks of layers."""
        return {group.name: self.keep[group.name] for group in groups if group.name in self.keep}


@dataclass
class Cutter:
    """Cuts one model by one set of values.

    Attributes:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut.
        values: group name -> float64[n_units], the lowest go first.
        data: images to measure curves, to repair and to verify with.
        repair: one of `REPAIRS`; None = lstsq where there are data for it, else fold.
        allocation: how widths are shared out, one of `ALLOCATIONS`; None = curves where they are affordable and the
            repair is lstsq or distill, else uniform. Iterative is curves in rounds: part of the way, then values and
            curves of the model cut and repaired so far; of the plans of all rounds the one that loses least.
        seed: of all randomness.
        progress: told what is going on.
        clock: told how long it took.
        curves: what groups lose at each width; measured where a plan first needs them, unless given.
        rescore: values of the groups of a model cut so far, for iterative; None = the values given stay.
        tuning_seconds: most seconds that distillation takes, of each model; None = `tuning.SECONDS`.
        payoff: what curves and distillation compare outputs by, one of `payoffs.UNLABELLED`; None = what fits.
        turned: how groups of the model were put into other bases, if some were: those of which nothing is cut are
            written as in the file.
        factored: the model with layers as two, which is what is cut then, and its groups, with their ranks behind the
            others, `groups`; `values` tell of the others alone.
        samples: gives inputs that the model was traced with, for iterative.
        cumulative: whether values are what is lost once each unit has gone and all those before it (`loss_curves`).
    """

    traced: Traced
    free: Traced
    groups: Sequence[Group]
    values: Mapping[str, FloatArray]
    data: Dataset
    repair: str | None = None
    allocation: str | None = None
    seed: int = 0
    progress: Progress = silent
    clock: Clock = field(default_factory=Clock)
    curves: Mapping[str, FloatArray] | None = None
    rescore: Callable[[Traced], Mapping[str, FloatArray]] | None = None
    tuning_seconds: float | None = None
    payoff: str | None = None
    turned: Turned | None = None
    factored: Factored | None = None
    samples: Callable[[], Samples] = tuple
    cumulative: bool = False
    _means: Means = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Settle what was left open.

        Raises:
            OnnxshapError: an unknown repair or allocation, or curves without images enough.
        """
        check_options(self.repair, self.allocation, self.tuning_seconds)
        if self.factored is not None:
            self.traced, self.free, self.groups = self.factored.traced, self.factored.free, self.factored.groups
            self.values = {**self.values, **self.factored.values}
        self.repair = repair_for(self.repair, len(self.data))
        asked = self.allocation in ("curves", "iterative")
        check_images(self.repair, self.allocation, len(self.data))
        images, self._fractions = affordable(self.traced, self.groups, len(self.data), float("inf") if asked else WORK)
        if self.allocation is None:
            self.allocation = "curves" if images and self.repair in REFITS else "uniform"
        if self.factored is not None and (self.allocation != "curves" or self.repair not in REFITS):
            raise OnnxshapError("--low-rank needs --allocation curves and a refit; ask for both, or leave it out")
        self._images = images
        self._fitted = self.data
        if self.repair == "distill":  # what judges the tuning is kept from the repair before it
            self._fitted = self.data.take(divided(len(self.data), self.seed)[0])
        if self.repair != "none":
            self._means = site_means(self.free, self._fitted)

    def plan(self, budget: Budget) -> dict[str, BoolArray]:
        """Return the plan for a budget.

        Raises:
            BudgetError: it cannot be met.
        """
        values, curves = self.values, self._curves() if self.allocation != "uniform" and budget.units is None else {}
        plans = [self._planned(budget, values, curves)]
        for number in range(1, ROUNDS if curves and self.allocation == "iterative" else 1):
            values, curves = self._after(self._planned(eased(budget, number / ROUNDS), values, curves), values, curves)
            plans.append(self._planned(budget, values, curves))
        return plans[0] if len(plans) == 1 else self._least_lost(plans)

    def _least_lost(self, plans: Sequence[dict[str, BoolArray]]) -> dict[str, BoolArray]:
        """Return the plan that loses least once refitted."""
        with self.clock.stage("curves"):
            return min(plans, key=self._trials(self.free).of_plan)

    def lost(self, keep: Mapping[str, BoolArray]) -> float:
        """Return what a plan loses, to compare plans: by the curves where there are some, else the MACs."""
        if not self.curves:
            return 1 - shares(self.traced, keep)["macs"]
        return float(sum(self.curves[name][int(kept.sum())] for name, kept in keep.items()))

    def wider(self, keep: Mapping[str, BoolArray], budget: Budget) -> Iterator[tuple[str, dict[str, BoolArray]]]:
        """Yield group and plan with that group one step wider than in `keep`, the most useful first.

        Plans that exceed a share which the budget has are left out.
        """
        candidates = self._candidates(self.values, self.curves or {})
        for name, plan in wider_plans(candidates, budget, keep):
            if fits(shares(self.traced, plan), budget):
                yield name, plan

    def _planned(
        self, budget: Budget, values: Mapping[str, FloatArray], curves: Mapping[str, FloatArray]
    ) -> dict[str, BoolArray]:
        with self.clock.stage("plan"):
            return make_plan(
                self._candidates(values, curves),
                budget,
                partial(shares, self.traced),
                self.traced.covers,
                copies=self.traced.cost.copies,
            )

    def smallest(self, budget: Budget) -> dict[str, BoolArray]:
        """Return the plan of the least widths that a budget's step and `min_units` allow."""
        return smallest(self._candidates(self.values, {}), budget)

    def _candidates(self, values: Mapping[str, FloatArray], curves: Mapping[str, FloatArray]) -> list[Candidate]:
        most = {} if self.factored is None else self.factored.most
        return [Candidate(g.name, g.units, values[g.name], curves.get(g.name), most.get(g.name)) for g in self.groups]

    def _curves(self) -> Mapping[str, FloatArray]:
        if self.curves is None:
            with self.clock.stage("curves"):
                if self.factored is None:
                    self.curves = self._measured(self.traced, self.groups, self.values, self._trials(self.free))
                else:
                    self.curves = self._of_factored(self.factored)
        return self.curves

    def _of_factored(self, made: Factored) -> dict[str, FloatArray]:
        """Return the curves of the original's groups, on the original, and behind them those of ranks.

        Pairs at full rank take more than one layer, and are refitted one after the other.
        """
        names = {group.name for group in self.groups}
        groups = [group for group in made.original.groups if group.name in names]
        ranks = [group for group in self.groups if group.name in made.most]
        first, second = (steps(some, self._fractions, made.most) for some in (groups, ranks))
        whole, trials = self._trials(made.original_free), self._trials(self.free)
        return {
            **self._measured(made.original, groups, self.values, whole, (0, first + second)),
            **self._measured(self.traced, ranks, self.values, trials, (first, first + second)),
        }

    def _after(
        self, keep: Mapping[str, BoolArray], values: Mapping[str, FloatArray], curves: Mapping[str, FloatArray]
    ) -> tuple[Mapping[str, FloatArray], Mapping[str, FloatArray]]:
        """Return values and curves once the model is cut by a plan and repaired."""
        with self.clock.stage("repair"):
            removal = Removal(self.traced, self.free, keep, self._means)
            made = removal.in_file() if self.repair == "none" else self._repaired(removal)[0]
            model = finish(made, self.traced.shaped.graph)
            part = CutModel.of(self.traced, self.groups, keep, model, self.samples())
        found = {name: values[name][units] for name, units in part.kept.items()}
        if self.rescore is not None:
            with self.clock.stage("score"):
                found = {**found, **self.rescore(part.traced)}
        with self.clock.stage("curves"):
            lost = self._measured(part.traced, part.groups, found, self._trials(part.free, self.free))
        return part.values(found, values), part.curves(lost, curves, keep)

    def _measured(
        self,
        traced: Traced,
        groups: Sequence[Group],
        values: Mapping[str, FloatArray],
        trials: Trials,
        of: tuple[int, int] = (0, 0),
    ) -> dict[str, FloatArray]:
        """Return what groups of the model lose at each width, or of the model cut so far.

        `of` tells how many widths were measured before, and how many there are in all; (0, 0) = these alone.
        """

        def tell(done: int, total: int) -> None:
            self.progress("curves", of[0] + done, of[1] or total)

        most = {} if self.factored is None else self.factored.most
        return loss_curves(traced, groups, values, trials, self._fractions, tell, most, cumulative=self.cumulative)

    def _trials(self, free: Traced, original: Traced | None = None) -> Trials:
        """Return the trials of a model, for whose outputs an original's may count."""
        return Trials.of(free, self.data.take(slice(0, self._images)), self.seed, original, self.payoff)

    def rough(self, keep: Mapping[str, BoolArray]) -> tuple[ModelProto, Traced]:
        """Return the cut model before any refit, and what holds the large weights that it may still name."""
        if self.factored is None:
            return small_model(self.traced, keep, self._means), self.traced
        removal = self._removal(keep)
        return small_model(removal.traced, removal.keep, removal.means), removal.traced

    def _removal(self, keep: Mapping[str, BoolArray]) -> Removal:
        """Return what a plan takes out of the model, of which it leaves in their form the groups and layers not cut."""
        traced, free = self.traced, self.free
        if self.factored is not None:
            traced, free = self.factored.written(keep)
            means = means_of_sites(self.traced, self._means, traced)
            names = {group.name for group in traced.groups}
            return Removal(traced, free, {name: kept for name, kept in keep.items() if name in names}, means)
        if self.turned is not None:
            traced = self.turned.only([name for name in self.turned.groups if not keep[name].all()])
            free = free if traced is self.traced else free_batch(traced)
        return Removal(traced, free, keep, self._means)

    def cut(self, keep: Mapping[str, BoolArray], check: Dataset | None = None) -> Cut:
        """Return the cut model, verified (on `check`, if given) and repaired.

        Raises:
            VerifyError: the cut model is not what its masked twin computes.
        """
        with self.clock.stage("cut"):
            self.progress("cut", 0, 2)
            removal = self._removal(keep)
            graph = removal.traced.shaped.graph
            small = small_model(removal.traced, removal.keep, removal.means)
        with self.clock.stage("verify"):
            self.progress("cut", 1, 2)
            checked = verify(removal, small, self.data if check is None else check)
            self.progress("cut", 2, 2)
        layers: list[Refit] = []
        tuning: Tuning | None = None
        if self.repair != "none":
            with self.clock.stage("repair"):
                repaired, layers = self._repaired(removal)
            if self.repair == "distill":
                with self.clock.stage("distill"):
                    repaired, tuning = _tuned(self, removal, repaired)
            with self.clock.stage("repair"):
                small = finish(repaired, graph)
                check_loads(removal.traced, small)
        whole, low_rank = self.traced, () if self.factored is None else self.factored.told(keep)
        file = whole if self.factored is None else self.factored.original
        params = file.cost.params() - file.stored_params + file.twofold_params + parameters(small)
        macs = whole.cost.macs(whole.alive(keep))
        return Cut(keep, small, params, checked, layers, tuning, removal.traced, macs, low_rank)

    def _repaired(self, removal: Removal) -> tuple[ModelProto, list[Refit]]:
        """Return the cut model with its channels' moments or its layers' responses made what they were."""

        def tell(done: int, total: int) -> None:
            self.progress("repair", done, total)

        if self.repair == "fold":
            return rematch(removal, self._fitted, tell), []
        return refit(removal, self._fitted, self.seed, tell)


def _tuned(cutter: Cutter, removal: Removal, refitted: ModelProto) -> tuple[ModelProto, Tuning]:
    """Return the refitted model, all of its weights tuned, and what that did."""
    from onnxshap.distill.tuner import distill  # needs torch

    return distill(
        removal, refitted, cutter.data, cutter.seed,
        seconds=SECONDS if cutter.tuning_seconds is None else cutter.tuning_seconds,
        progress=lambda done, total: cutter.progress("distill", done, total), payoff=cutter.payoff,
    )  # fmt: skip
