"""What a model loses at many budgets, by one method or several: one set of values and of curves for all budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap import api, payoffs
from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend
from onnxshap.bases import Turned, check_basis
from onnxshap.calibrate import free_batch, run_all, usual_batch
from onnxshap.clock import Clock
from onnxshap.core import Array, Dataset, FloatArray, Payoff
from onnxshap.data import DataLike
from onnxshap.endings import complete
from onnxshap.errors import BudgetError
from onnxshap.graph.writing import file_size
from onnxshap.groups import Group
from onnxshap.measure import Figures, label_notes, latencies, notes_on, scores, unchanged
from onnxshap.opening import REPAIR_IMAGES, ModelLike, groups_to_cut, hold_out, in_bases, open_model, sample
from onnxshap.plan import Budget, check_reachable, unvalued
from onnxshap.plan.cutter import Cut, Cutter, shares
from onnxshap.plan.judging import Drop, Judge
from onnxshap.plan.options import REFITS, check_options, check_repairable, repair_for
from onnxshap.progress import Progress, silent
from onnxshap.reference import judged
from onnxshap.scoring import DECIDED
from onnxshap.tracing import Keep, Traced
from onnxshap.valuing import Scores, check_method, check_values, principal

KEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the multiply-accumulates, where none are given."""
_SEEN = (
    "the values may rest on images that are held out here, on which less is lost then than on others; --eval-data "
    "gives some that nothing saw"
)


@dataclass(frozen=True)
class Point:
    """A model cut to one budget.

    Attributes:
        keep_macs: the budget, a share of the multiply-accumulates.
        figures: of the cut model, its scores on the held-out images.
        latency: its milliseconds as a share of the original's, both measured in turn.
        drop: what it loses on the held-out images.
    """

    keep_macs: float
    figures: Figures
    latency: float
    drop: Drop


@dataclass(frozen=True)
class Curve:
    """The points of one method.

    Attributes:
        method: its name.
        repair: what was done about what the cuts left behind.
        allocation: how widths were shared out.
        evals: (image, coalition) rows of the scoring.
        points: widest first.
        seconds: per stage.
    """

    method: str
    repair: str
    allocation: str
    evals: int
    points: Sequence[Point]
    seconds: Mapping[str, float]

    def knee(self) -> Point | None:
        """Return the point after which more is lost for what is saved: farthest from the chord, None where none is."""
        macs = np.array([1.0, *(p.keep_macs for p in self.points)])
        number = knee(macs, np.array([0.0, *(p.drop.mean for p in self.points)]))
        return None if number is None else self.points[number - 1]

    def within(self, most: float) -> Point | None:
        """Return the narrowest point whose mean loss and one standard error of it are at most `most`, if any."""
        return next((p for p in reversed(self.points) if p.drop.bound <= most), None)


@dataclass(frozen=True)
class Sweep:
    """What `sweep` found.

    Attributes:
        before: figures of the original.
        curves: one a method.
        score: what is judged: accuracy, agreement with the original, or the payoff's name.
        left_out: budgets that cannot be reached, and why.
        images, source: calibration images, and where they came from.
        eval_images, eval_source: the same of the held-out ones.
        notes: what the user should know of how the model was taken, scored and judged.
        turned: names of the groups that were put into another basis first (`bases`).
    """

    before: Figures
    curves: Sequence[Curve]
    score: str
    left_out: Mapping[float, str]
    images: int
    source: str
    eval_images: int
    eval_source: str
    notes: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()


def knee(shares: FloatArray, losses: FloatArray) -> int | None:
    """Return the place farthest from the chord of a falling curve, on axes from 0 to 1; None where it bulges nowhere.

    Args:
        shares: what is kept, from the whole to the least.
        losses: what is lost at each.

    >>> knee(np.array([1.0, 0.8, 0.6, 0.4, 0.2]), np.array([0.0, 0.01, 0.02, 0.1, 0.5]))
    3
    >>> knee(np.array([1.0, 0.5, 0.2]), np.array([0.0, 0.4, 0.5])) is None
    True
    """
    if len(shares) < 3 or not losses[-1] > losses[0] or not shares[0] > shares[-1]:
        return None
    saved = (shares[0] - shares) / (shares[0] - shares[-1])
    lost = (losses - losses[0]) / (losses[-1] - losses[0])
    best = int(np.argmax(saved - lost))
    return best if saved[best] - lost[best] > 1e-9 else None


@checked
def sweep(
    model: ModelLike,
    data: DataLike,
    *,
    labels: str | Path | None = None,
    eval_data: DataLike | None = None,
    methods: Sequence[str] | None = None,
    keep: Sequence[float] = KEEP,
    multiple_of: int | None = None,
    min_units: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    payoff: str | Callable[..., object] | None = None,
    baseline: str = "mean",
    repair: str | None = None,
    basis: str | None = None,
    allocation: str | None = None,
    distill_seconds: float | None = None,
    samples: int | None = None,
    max_evals: int | None = None,
    max_seconds: float | None = None,
    decided: float = DECIDED,
    seed: int = 0,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    workers: int = 0,
    cluster: str | None = None,
    progress: Progress = silent,
    values: Scores | None = None,
) -> Sweep:
    """Return what is lost, and what is saved, at every budget: one scoring and one set of curves a method.

    Args:
        model: as in `api.prune`, and so is everything that is not said here.
        data: calibration data.
        eval_data: held-out data to judge by; None = two fifths of `data` are held out.
        methods: names of `METHODS`, one curve each; None = the one that `score` takes by default.
        keep: budgets, shares of the multiply-accumulates; those that cannot be reached are left out.
        values: values of an earlier run instead of scoring; their method is the only one then.

    Raises:
        ModelError, DataError, BudgetError, VerifyError: as in `api.prune`; BudgetError also where no budget can be
            reached.
    """
    check_options(repair, allocation, distill_seconds)
    check_basis(basis, values.basis if isinstance(values, Scores) else None)
    for name in methods or ():
        check_method(name)
    chosen = [None] if methods is None else list(dict.fromkeys(methods))
    if not chosen or not keep:
        raise BudgetError("a sweep needs a method and a budget; give --method and --keep, or neither")
    budgets = {k: Budget(macs=k, multiple_of=multiple_of, min_units=min_units) for k in sorted(set(keep))[::-1]}
    progress("trace", 0, 1)
    traced, dataset = open_model(
        model, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
    )
    groups = groups_to_cut(traced, include, exclude)
    if values is not None:
        check_values(values, traced, groups)
        chosen = [values.method]
    left_out = _unreachable(traced, groups, budgets)
    if len(left_out) == len(budgets):
        raise BudgetError(next(iter(left_out.values())))
    dataset, held_out = hold_out(traced, dataset, eval_data, seed, "a sweep")
    free, repaired_on = free_batch(traced), sample(dataset, REPAIR_IMAGES, seed)
    check_repairable(free, repaired_on, repair, allocation)
    refitted = repair_for(repair, len(repaired_on)) in REFITS
    moved: Turned | None = None
    if principal(basis, values, refitted=refitted):
        moved, free = in_bases(traced, free, groups, repaired_on, None if values is None else values.bases)
        traced = moved.traced
    bench = _Bench.of(traced, held_out, payoff)
    progress("trace", 1, 1)
    curves: list[Curve] = []
    plans: list[Keep] = []
    notes = [*traced.notes]
    if values is not None and eval_data is None:
        notes.append(_SEEN)
    if dataset.labels is None:  # else those that score tell
        notes += label_notes(bench.payoff, bench.judge.reference, held_out.labels)
    total = len(chosen) * (len(budgets) - len(left_out))
    for method in chosen:
        clock = Clock()
        scored = partial(
            api.score, method=method, payoff=payoff, baseline=baseline, samples=samples, max_evals=max_evals,
            max_seconds=max_seconds, decided=decided, seed=seed, workers=workers, cluster=cluster, progress=progress,
        )  # fmt: skip
        with clock.stage("score"):
            found = scored(traced, dataset, include=include, exclude=exclude) if values is None else values
        notes += found.notes
        told, same = _only(progress, "curves", "distill"), partial(scored, method=found.method)
        cutter = Cutter(
            traced, free, groups, found.order(refitted=refitted), repaired_on, repair, allocation, seed, told, clock,
            rescore=partial(_rescored, same, dataset, refitted) if values is None else None,
            tuning_seconds=distill_seconds, payoff=payoffs.unlabelled(payoff), turned=moved,
        )  # fmt: skip
        points: list[Point] = []
        for share, budget in budgets.items():
            if share not in left_out:
                plan = cutter.plan(budget)
                plans.append(plan)
                progress("sweep", len(curves) * total // len(chosen) + len(points), total)
                points.append(bench.point(share, cutter.cut(plan, dataset), clock))
        curves.append(
            Curve(found.method, str(cutter.repair), str(cutter.allocation), found.evals, points, clock.seconds)
        )
    progress("sweep", total, total)
    notes += api.notes_on_zeros(traced, plans) if any(c.repair != "none" for c in curves) else ()
    every = [point.figures.score for curve in curves for point in curve.points]
    worst = {name: float(np.min([score[name] for score in every])) for name in every[0]}  # NaN, if one is
    notes += notes_on(worst, held_out.source if bench.still and all(bench.still) else None)
    return Sweep(
        bench.before(), curves, bench.judge.name, left_out, len(dataset), dataset.source, len(held_out),
        held_out.source, tuple(dict.fromkeys(notes)), () if moved is None else moved.groups,
    )  # fmt: skip


def _rescored(scored: Callable[..., Scores], data: Dataset, refitted: bool, part: Traced) -> dict[str, FloatArray]:
    """Return what units of a model cut so far are cut by."""
    return scored(part, data).order(refitted=refitted)


def _unreachable(traced: Traced, groups: Sequence[Group], budgets: Mapping[float, Budget]) -> dict[float, str]:
    """Return the budgets that the least widths exceed, and why."""
    blank = unvalued(groups)
    found = {}
    for share, budget in budgets.items():
        try:
            check_reachable(blank, budget, lambda plan: shares(traced, plan), copies=traced.cost.copies)
        except BudgetError as error:
            found[share] = str(error)
    return found


def _only(progress: Progress, *wanted: str) -> Progress:
    """Return a progress that shows some stages."""

    def tell(stage: str, done: int, total: int) -> None:
        if stage in wanted:
            progress(stage, done, total)

    return tell


@dataclass
class _Bench:
    """Measures cut models against the original on held-out images; `still`: whose outputs are its to the bit."""

    judge: Judge
    payoff: Payoff
    labels: Array | None
    whole_ms: list[float] = field(default_factory=list)
    still: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, traced: Traced, data: Dataset, payoff: str | Callable[..., object] | None) -> _Bench:
        reference, fitted = judged(traced, data, payoff)
        return cls(Judge.of(traced, data, reference, fitted), fitted, data.labels)

    def point(self, share: float, cut: Cut, clock: Clock) -> Point:
        traced, data = self.judge.traced, self.judge.data
        with clock.stage("measure"):
            models = [complete(traced, model) for model in (traced.source, cut.model)]
            whole, ms = latencies(traced.backend, models, usual_batch(traced, data))
            self.whole_ms.append(whole)
            outputs = run_all(traced, cut.model, data)
            if any(not kept.all() for kept in cut.keep.values()):
                self.still.append(unchanged(outputs, self.judge.reference))
            macs = traced.cost.macs(traced.alive(cut.keep))
            figures = self._figures(cut.model, macs, cut.params, outputs, ms)
            return Point(share, figures, ms / whole, self.judge.lost(outputs))

    def before(self) -> Figures:
        traced = self.judge.traced
        cost, ms = traced.cost, float(np.median(self.whole_ms))
        return self._figures(traced.source, cost.macs(), cost.params(), self.judge.reference, ms)

    def _figures(self, model: ModelProto, macs: int, params: int, outputs: Sequence[Array], ms: float) -> Figures:
        traced, reference = self.judge.traced, self.judge.reference
        found = scores(outputs, reference, self.labels, traced.outputs, self.payoff)
        return Figures(macs, params, file_size(complete(traced, model)), ms, found)
