"""What a model loses at many budgets, by one method or several: one set of values and of curves for all budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from onnxshap import api, factors, payoffs
from onnxshap.arguments import checked, worded
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch
from onnxshap.clock import Clock
from onnxshap.core import Dataset, FloatArray, Payoff
from onnxshap.data import DataLike
from onnxshap.errors import BudgetError
from onnxshap.evaluation import Evaluation
from onnxshap.factors import LowRank
from onnxshap.game import Setting
from onnxshap.groups import Group
from onnxshap.measure import Figures, notes_on
from onnxshap.opening import Given, ModelLike, Subject, prepared, sample
from onnxshap.plan import Budget
from onnxshap.plan.cutter import Cut, Cutter, check_within_reach
from onnxshap.plan.judging import Drop
from onnxshap.plan.options import Asked
from onnxshap.progress import Progress, Say, silent, wordless
from onnxshap.reference import reference_of
from onnxshap.scores import Ordering, Scores, basis_of
from onnxshap.scoring import DECIDED, Rules
from onnxshap.tracing import Keep, Traced
from onnxshap.valuing import METHOD, Scoring, check_method, shared_out

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
        low_rank: the layers that became two.
    """

    keep_macs: float
    figures: Figures
    latency: float
    drop: Drop
    low_rank: tuple[LowRank, ...] = ()


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
        """Return the narrowest point whose expected loss and one standard error of it are at most `most`, if any."""
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
    low_rank: str | None = None,
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
    say: Say = wordless,
) -> Sweep:
    """Return what is lost, and what is saved, at every budget: one scoring and one set of curves a method.

    Args:
        model: as in `api.prune`, and so is everything that is not said here.
        data: calibration data.
        eval_data: held-out data to judge by; None = two fifths of `data` are held out.
        methods: names of `METHODS`, one curve each; None = the one that `prune` takes by default.
        keep: budgets, shares of the multiply-accumulates; those that cannot be reached are left out.
        values: values of an earlier run instead of scoring; their method is the only one then.

    Raises:
        ModelError, DataError, BudgetError, VerifyError: as in `api.prune`; BudgetError also where no budget can be
            reached.
    """
    asked = Asked(repair, basis, allocation, low_rank, distill_seconds).settled(basis_of(values))
    for name in methods or ():
        check_method(name)
    chosen = [METHOD] if methods is None else list(dict.fromkeys(methods))
    if not chosen or not keep:
        raise BudgetError("a sweep needs a method and a budget; give --method and --keep, or neither")
    budgets = {k: Budget(macs=k, multiple_of=multiple_of, min_units=min_units) for k in sorted(set(keep))[::-1]}
    given, left_out = Given(model, data, labels, eval_data, payoff, seed, backend, input_shapes), dict[float, str]()

    def check(traced: Traced, groups: Sequence[Group], most: Mapping[str, int]) -> None:
        left_out.update(_unreachable(budgets, traced, groups, most))

    subject = prepared(given, asked, check, values, "a sweep", progress, Clock(), include=include, exclude=exclude)
    groups, chosen = subject.groups, chosen if values is None else [values.method]
    budgets = {share: budget for share, budget in budgets.items() if share not in left_out}
    bench = _Bench(Evaluation.of(subject.traced, subject.held_out, payoff), len(chosen) * len(budgets), progress)
    curves: list[Curve] = []
    notes = [*subject.traced.notes]
    settled = Scoring(METHOD, seed, Rules(max_evals, max_seconds, decided), progress, workers, cluster)
    settled = settled.noting(subject.turned if basis == "principal" else None)
    if methods is None and values is None:
        settled = settled.in_reach(subject.traced, groups, samples, payoff, refitted=subject.refitted)
        chosen, samples = [settled.method], settled.images(subject.traced, groups, samples)
    notes += settled.notes
    for text in settled.notes:
        say(text)
    if values is not None and eval_data is None:
        notes.append(worded(_SEEN))
    if subject.data.labels is None:  # else those that score tell
        notes += bench.evaluation.doubts()
    score = partial(
        api.score, payoff=payoff, baseline=baseline, samples=samples, max_evals=max_evals, decided=decided, seed=seed,
        workers=workers, cluster=cluster, progress=progress, say=say,
    )  # fmt: skip
    seen = sample(subject.data, settled.images(subject.traced, groups, samples), seed)
    setting = partial(_setting, seen=seen, payoff=bench.evaluation.payoffs[0])
    for method in chosen:
        played, rest = shared_out(max_seconds, method, refitted=subject.refitted)
        by_method = partial(score, method=method, max_seconds=played)
        ranking, clock = _Ranking(subject, by_method, setting, Ordering(progress, rest)), Clock()
        with clock.stage("score"):
            found = values
            if found is None:
                found = by_method(subject.traced, subject.data, include=include, exclude=exclude)
            order = ranking.order(found, groups, lambda: subject.free)
        cutter = subject.cutter(
            order, seed, _only(progress, "curves", "distill"), clock,
            rescore=ranking.again if values is None else None, payoff=payoffs.unlabelled(payoff),
            method=found.method,
        )  # fmt: skip
        curves.append(bench.curve(found, cutter, budgets, subject.data))
        notes += [*found.notes, *ranking.ordering.notes]
    progress("sweep", bench.total, bench.total)
    notes += api.notes_on_zeros(subject.traced, bench.plans) if subject.repair != "none" else ()
    notes += api.notes_on_steps(multiple_of, bench.plans)
    notes += bench.notes(curves)
    two = any(point.low_rank for curve in curves for point in curve.points)
    notes += map(worded, factors.notes_on(low_rank, two, subject.unsplit))
    held_out = subject.held_out
    return Sweep(
        bench.before(), curves, bench.evaluation.judge.name, left_out, len(subject.data), subject.data.source,
        len(held_out), held_out.source, tuple(dict.fromkeys(notes)),
        () if subject.turned is None else subject.turned.groups,
    )  # fmt: skip


def _setting(free: Traced, seen: Dataset, payoff: Payoff) -> Setting:
    """Return a form of a model for evaluation with what it gives for images that the cut may see."""
    return Setting(free, seen, payoff, reference_of(free, free.shaped.graph.model, seen))


@dataclass(frozen=True)
class _Ranking:
    """What the cuts of one method go by.

    Attributes:
        subject: what is cut.
        score: values the units of a model on some data.
        setting: form of a model for evaluation -> what the order of a refit is told by.
        ordering: the work of finding that order.
    """

    subject: Subject
    score: Callable[..., Scores]
    setting: Callable[[Traced], Setting]
    ordering: Ordering

    def order(self, found: Scores, groups: Sequence[Group], free: Callable[[], Traced]) -> dict[str, FloatArray]:
        """Return what units are cut by, given their values and, where it is asked for, their model for evaluation."""
        return api.cut_order(found, self.subject, groups, lambda: self.setting(free()), self.ordering)

    def again(self, part: Traced) -> dict[str, FloatArray]:
        """Return what units of a model cut so far are cut by."""
        found = self.score(part, self.subject.data, say=wordless)
        return self.order(found, part.groups, lambda: free_batch(part))


def _unreachable(
    budgets: Mapping[float, Budget], traced: Traced, groups: Sequence[Group], most: Mapping[str, int]
) -> dict[float, str]:
    """Return the budgets that the least widths exceed, and why; `most` is of ranks (`Candidate`), by name.

    Raises:
        BudgetError: all of them are such.
    """
    found = {}
    for share, budget in budgets.items():
        try:
            check_within_reach(budget, traced, groups, most)
        except BudgetError as error:
            found[share] = worded(str(error))
    if len(found) == len(budgets):
        raise BudgetError(next(iter(found.values())))
    return found


def _only(progress: Progress, *wanted: str) -> Progress:
    """Return a progress that shows some stages."""

    def tell(stage: str, done: int, total: int) -> None:
        if stage in wanted:
            progress(stage, done, total)

    return tell


@dataclass
class _Bench:
    """Measures cut models against the original, and keeps what all of them tell.

    Attributes:
        evaluation: the original on the images that judge.
        total: how many cuts there will be.
        progress: told before each.
        whole_ms: the original's milliseconds, each time.
        still: whether outputs were the original's to the bit, where units went.
        plans: what was kept.
    """

    evaluation: Evaluation
    total: int
    progress: Progress
    whole_ms: list[float] = field(default_factory=list)
    still: list[bool] = field(default_factory=list)
    plans: list[Keep] = field(default_factory=list)

    def curve(self, found: Scores, cutter: Cutter, budgets: Mapping[float, Budget], data: Dataset) -> Curve:
        """Return the points of one method, whose cuts are verified on some data."""
        points: list[Point] = []
        for share, budget in budgets.items():
            plan = cutter.plan(budget)
            self.progress("sweep", len(self.plans), self.total)
            points.append(self._point(share, cutter.cut(plan, data), cutter.clock))
        repair, allocation = str(cutter.repair), str(cutter.allocation)
        return Curve(found.method, repair, allocation, found.evals, points, cutter.clock.seconds)

    def notes(self, curves: Sequence[Curve]) -> Iterator[str]:
        """Yield what the user should know of the scores of all points."""
        every = [point.figures.score for curve in curves for point in curve.points]
        worst = {name: float(np.min([score[name] for score in every])) for name in every[0]}  # NaN, if one is
        return notes_on(worst, self.evaluation.data.source if self.still and all(self.still) else None)

    def _point(self, share: float, cut: Cut, clock: Clock) -> Point:
        evaluation = self.evaluation
        with clock.stage("measure"):
            whole, ms = evaluation.latencies(cut.model)
            self.whole_ms.append(whole)
            self.plans.append(cut.units(evaluation.traced.groups))
            outputs = evaluation.outputs(cut.model)
            if any(not kept.all() for kept in cut.keep.values()):
                self.still.append(evaluation.unchanged(outputs))
            figures = evaluation.figures(cut.model, outputs, cut.macs, cut.params, ms)
            return Point(share, figures, ms / whole, evaluation.judge.lost(outputs), cut.low_rank)

    def before(self) -> Figures:
        traced, reference = self.evaluation.traced, self.evaluation.reference
        cost, ms = traced.cost, float(np.median(self.whole_ms))
        return self.evaluation.figures(traced.source, reference, cost.macs(), cost.params(), ms)
