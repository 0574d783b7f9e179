"""The pipeline on one page: trace -> score -> plan -> cut -> verify -> measure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap import __version__, payoffs
from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend, provider_of
from onnxshap.bases import Bases, Turned, check_basis, form_of
from onnxshap.calibrate import free_batch, rows_apart, run_all, site_means, usual_batch
from onnxshap.clock import Clock
from onnxshap.core import Array, BoolArray, Dataset, FloatArray, Payoff, Values
from onnxshap.data import DataLike
from onnxshap.distill.tuning import Tuning
from onnxshap.endings import complete
from onnxshap.errors import BudgetError, DataError, OnnxshapError
from onnxshap.game import Setting
from onnxshap.graph import read, save
from onnxshap.graph.declared import rightly_declared
from onnxshap.graph.writing import digest, file_size, put_in
from onnxshap.groups import Group
from onnxshap.measure import Figures, label_notes, latencies, notes_on, scores, unchanged
from onnxshap.methods import GAMELESS, METHODS
from onnxshap.methods.base import Tell
from onnxshap.methods.ranking import ranks
from onnxshap.opening import (
    REPAIR_IMAGES,
    SAMPLES,
    ModelLike,
    choose_payoff,
    groups_to_cut,
    hold_out,
    in_bases,
    judged,
    open_model,
    readable,
    reference_of,
    sample,
    samples_of,
    scorable,
)
from onnxshap.plan import Budget, Candidate, check_reachable, make_plan, unvalued
from onnxshap.plan.cutter import (
    REFITS,
    Cut,
    Cutter,
    check_images,
    check_names,
    check_tunable,
    check_tuning,
    repair_for,
    shares,
)
from onnxshap.plan.judging import Drop, Judge, check_drop, check_share
from onnxshap.plan.latency import within_latency
from onnxshap.plan.search import within_drop
from onnxshap.progress import Progress, silent
from onnxshap.repair import Refit, emptied
from onnxshap.scoring import DECIDED, Rules, score_groups
from onnxshap.scoring.jobs import fingerprint
from onnxshap.scoring.journal import Journal
from onnxshap.scoring.runners import Cluster, Processes, Runner
from onnxshap.shapes import input_specs
from onnxshap.slices import removed_slices
from onnxshap.tracing import Keep, Traced, trace
from onnxshap.verify import Verified

BASELINES = ("mean", "zero")
STATISTICS_SAMPLES = 1024
"""Calibration images for methods that play no game, which run every image once."""
_ONE_BY_ONE = (
    "every coalition was a run of its own, for the images of a batch are not known to be apart in this file; one with "
    "a free batch, or a method without a game (--method recon), takes less"
)
_BESIDE = (
    "what a sample gives depends on those that it is run with, so axis 0 of the inputs is no batch of samples in this "
    "file, and all that is found holds for such mixtures at best; give every sample an axis 0 of its own ([n, steps, "
    "features] for an input [steps, features]), or export it with a batch in front"
)
_EMPTIED = (
    "what is cut leaves zeros there, for integers are summed up to integers and take no means; the same net quantised "
    "in QDQ form, or after the cut, keeps more"
)
WORK = 4 * 10**13
"""Multiply-accumulates that scoring may take by default, about a quarter of an hour on two cores."""


@dataclass(frozen=True)
class Scores:
    """Values of every group, and how they came about.

    Attributes:
        values: group name -> values.
        method: the method's name.
        payoff: the payoff's name; None for methods that use none.
        seed: the seed.
        images: calibration images used.
        source: where they came from.
        model: sha256 of the model they belong to, in the form that its units are of (`bases.form_of`).
        notes: what the user should know of how the model was taken.
        basis: whether units that linear ops alone touch were put into principal bases, or taken as they are (`own`).
        bases: those of the groups whose units are combinations of the file's.
    """

    values: Mapping[str, Values]
    method: str
    payoff: str | None
    seed: int
    images: int
    source: str
    model: str
    notes: tuple[str, ...] = ()
    basis: str = "own"
    bases: Bases = field(default_factory=dict, repr=False)

    def order(self, *, refitted: bool) -> dict[str, FloatArray]:
        """Return what units are cut by, group name -> float64[n_units], lowest first; `methods.ranking` says why."""
        return {name: ranks(self.method, value, refitted=refitted) for name, value in self.values.items()}

    @property
    def evals(self) -> int:
        """(image, coalition) rows evaluated."""
        return sum(v.evals for v in self.values.values())


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`.

    Attributes:
        model: the cut model.
        keep: the plan: group name -> bool[n_units].
        scores: the values it rests on.
        traced: the original, traced.
        before, after: figures of the original and of the cut model.
        removed_slices: the cut in names and indices of the input file.
        verified: the cut model against its masked twin.
        repair: what was done about what the cut left behind.
        refits: what least squares did to every layer.
        seconds: per stage.
        eval_images, eval_source: how many images the scores before and after are means of, and where they came from.
        allocation: how widths were shared out.
        drop: what is lost on the held-out images, where `max_drop` asked.
        tuning: what distillation did.
        unchanged: whether the outputs that judge are the original's to the bit, though units went.
        turned: names of the groups that were put into another basis first: their units, in values, plan and slices, are
            combinations of the file's (`bases`). Those of which nothing is cut are in the model as in the file.
    """

    model: ModelProto = field(repr=False)
    keep: Mapping[str, BoolArray] = field(repr=False)
    scores: Scores = field(repr=False)
    traced: Traced = field(repr=False)
    before: Figures
    after: Figures
    removed_slices: list[dict[str, object]] = field(repr=False)
    verified: Verified
    repair: str
    refits: list[Refit] = field(repr=False)
    seconds: Mapping[str, float]
    eval_images: int
    eval_source: str
    allocation: str = "uniform"
    drop: Drop | None = None
    tuning: Tuning | None = None
    unchanged: bool = False
    turned: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the model was taken, scored and judged."""
        judged = notes_on(self.after.score, self.eval_source if self.unchanged else None)
        empty = [] if self.repair == "none" else emptied(self.traced, self.traced.alive(self.keep))
        some = ", ".join(empty[:3]) + (f" and {len(empty) - 3} more" if len(empty) > 3 else "")
        left = [f"{some}: {_EMPTIED}"] if empty else []
        return tuple(dict.fromkeys((*self.traced.notes, *self.scores.notes, *self.before.notes, *judged, *left)))


@checked
def score(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    method: str = "shapley",
    payoff: str | Callable[..., object] | None = None,
    baseline: str = "mean",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    samples: int | None = None,
    max_evals: int | None = None,
    max_seconds: float | None = None,
    decided: float = DECIDED,
    seed: int = 0,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    journal: str | Path | None = None,
    workers: int = 0,
    cluster: str | None = None,
    progress: Progress = silent,
    basis: str | None = None,
) -> Scores:
    """Return the values of every group of a model; higher = keep.

    Args:
        model: a path, bytes, a ModelProto, or what `trace` returned.
        data: a path, arrays by input name, one array, or a Dataset; None = random inputs.
        labels: a path with the labels, where `data` has none.
        method: one of `METHODS`.
        payoff: ce, kl, mse, joint, accuracy, or a callable (outputs, labels) -> float[rows]; None = by data and
            outputs. A callable may also give one number for all images together (mean average precision, word error
            rate, F1); a row of the game is then a run of all of them, and shapley-regression the method to take.
        baseline: what masks put in a removed channel's place: its calibration `mean`, or `zero`.
        include: globs of group or node names; empty = all.
        exclude: the same, left whole.
        samples: most calibration images to score with; None = 128, fewer where they would take more than
            `WORK` multiply-accumulates, 1024 for methods without a game (the result says how many were used).
        max_evals: most (image, coalition) rows, shared by the groups in proportion to their units.
        max_seconds: most wall-clock time, shared in proportion to what their rows take; every group gets one image at
            least.
        decided: a group ends early when the expected share of misplaced units, were half of them cut, is below; 0 =
            never. The values tell which rule ended each group (`core.Values.stopped`).
        seed: of all randomness.
        backend: provider, threads and memory.
        input_shapes: for inputs with free dimensions, where there is no data.
        journal: where results are kept as they come, so that a killed run goes on; the caller deletes it.
        workers: processes of this machine to score with, 0 = this one alone; the values are the same.
        cluster: address of a dask.distributed scheduler to score with.
        progress: told after every block of images.
        basis: `principal` values the units that `prune` cuts by default (its `basis`), combinations of the file's where
            linear ops alone touch them; the values carry them along. `own` (None) values the file's.

    Raises:
        ModelError, DataError, BudgetError: as their names say.
    """
    check_basis(basis)
    traced, dataset = open_model(
        model, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
    )
    groups, free = groups_to_cut(traced, include, exclude), free_batch(traced)
    moved: Turned | None = None
    if basis == "principal":
        moved, free = in_bases(traced, free, groups, sample(dataset, REPAIR_IMAGES, seed))
    setting = _setting(free, sample(dataset, affordable(traced, groups, samples, method), seed), payoff, baseline)
    rules = Rules(max_evals, max_seconds, decided)
    return _score(setting, traced, groups, method, seed, rules, progress, journal, workers, cluster, moved)


def affordable(traced: Traced, groups: Sequence[Group], samples: int | None, method: str = "shapley") -> int:
    """Return how many images to score with: as many as asked for, else 128 or what `WORK` allows, at least one.

    An image takes two rows a unit, each at most one run of the model; methods without a game take 1024 images.
    """
    if samples is not None:
        return samples
    if method in GAMELESS:
        return STATISTICS_SAMPLES
    rows = 2 * sum(len(g) for g in groups)
    return max(1, min(SAMPLES, WORK // max(1, rows * traced.cost.macs())))


def _setting(free: Traced, data: Dataset, payoff: str | Callable[..., object] | None, baseline: str) -> Setting:
    reference = reference_of(free, free.shaped.graph.model, data)
    if baseline not in BASELINES:
        raise OnnxshapError(f"baseline {baseline!r} is unknown; choose one of {', '.join(BASELINES)}")
    chosen = choose_payoff(payoff, reference, data, free)
    means = site_means(free, data) if baseline == "mean" else {}
    return Setting(free, data, chosen, reference, means)


def _score(
    setting: Setting, traced: Traced, groups: Sequence[Group], method: str, seed: int, rules: Rules, progress: Progress,
    journal: str | Path | None, workers: int, cluster: str | None, moved: Turned | None = None,
) -> Scores:  # fmt: skip
    """Return the values of groups; those of a model in other bases, as it was `moved`, belong to that form of it."""
    if method not in METHODS:
        raise OnnxshapError(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    bases = {} if moved is None else moved.bases
    model = form_of(digest(complete(traced, traced.source)), bases)
    kept = None if journal is None else Journal(journal, _header(setting, groups, model, method, seed, rules))
    values = score_groups(
        setting, groups, method, seed, rules, lambda done, total: progress("score", done, total), kept,
        _runner(setting, method, workers, cluster),
    )  # fmt: skip
    used = setting.payoff.name if any(v.evals for v in values.values()) else None
    doubts = label_notes(setting.payoff, setting.reference, setting.data.labels)
    notes = (*traced.notes, *doubts, *(() if used is None else _notes_on_rows(setting)))
    basis = "own" if moved is None else "principal"
    return Scores(values, method, used, seed, len(setting.data), setting.data.source, model, notes, basis, bases)


def _notes_on_rows(setting: Setting) -> tuple[str, ...]:
    """Return what a game's values suffer from: that rows do not share a run, or that they should not."""
    traced, data = setting.traced, setting.data
    single = () if traced.shaped.free_batch else (_ONE_BY_ONE,)
    alone = traced.shaped.apart or traced.labels.trace.shares_ranges
    known = alone or (single and traced.batch == 1)  # and heeded
    return single if known or rows_apart(traced, data) else (*single, _BESIDE)


def _header(
    setting: Setting, groups: Sequence[Group], model: str, method: str, seed: int, rules: Rules
) -> dict[str, str | int | None]:
    """Return all that the results of a job depend on, as a journal keeps it."""
    backend = setting.traced.backend
    return {
        "version": __version__,
        "model": model,
        "seed": seed,  # which decides on the images, too
        "data": fingerprint(setting.data),
        "method": method,
        "payoff": _told(setting),
        "baseline": "mean" if setting.means else "zero",
        "max-evals": rules.max_evals,
        "choice of groups": " ".join(g.name for g in groups),
        "provider": provider_of(backend),
        "memory": backend.memory,
    }


def _told(setting: Setting) -> str:
    """Return what tells a payoff from others: its fields, or what a user's function gives for some outputs."""
    payoff, reference, labels = setting.payoff, setting.reference, setting.data.labels
    if payoff.name in payoffs.NAMES:
        return repr(payoff)
    turned = [value[::-1] for value in reference]  # the originals may all be worth the same
    values = [payoff(outputs, reference, labels) for outputs in (reference, turned)]
    return f"{payoff.name} {hashlib.sha256(np.stack(values).tobytes()).hexdigest()}"


def _runner(setting: Setting, method: str, workers: int, cluster: str | None) -> Callable[[Tell], Runner] | None:
    """Return what makes the runner; methods without a game run in this process, with all of its threads."""
    if workers < 0:
        raise OnnxshapError(f"workers is {workers}; give 0 (this process alone) or more")
    if cluster == "":
        raise OnnxshapError("the cluster's address is empty; give one like tcp://host:8786, or leave it out")
    if workers and cluster:
        raise OnnxshapError("give workers or a cluster, not both")
    if method in GAMELESS:
        return None
    if cluster:
        return lambda tell: Cluster(setting, method, cluster)
    return (lambda tell: Processes(setting, method, workers)) if workers else None


@checked
def prune(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    eval_data: DataLike | None = None,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_units: float | None = None,
    keep_bytes: float | None = None,
    target_latency: float | None = None,
    max_drop: float | None = None,
    multiple_of: int | None = None,
    min_units: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    method: str = "shapley",
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
    values: Scores | None = None,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    journal: str | Path | None = None,
    workers: int = 0,
    cluster: str | None = None,
    output: str | Path | None = None,
    beside: Callable[[Pruned], AbstractContextManager[object]] = nullcontext,
    progress: Progress = silent,
) -> Pruned:
    """Return a smaller model with the same inputs and outputs, verified, and what was done.

    Args:
        model: as in `score`, and so are `data`, `labels`, `method`, `payoff`, `baseline`, `include`, `exclude`,
            `samples`, `max_evals`, `max_seconds`, `decided` (at the cut of the budget), `seed`, `backend`,
            `input_shapes`, `journal`, `workers`, `cluster` and `progress`.
        eval_data: held-out data for the scores before and after; default the calibration data.
        keep_macs, keep_params, keep_bytes: share of the whole that may stay; all that are given hold.
        keep_units: share of every group that stays, no search.
        target_latency: most milliseconds a run of one image (or of the file's fixed batch) may take, measured.
        max_drop: the smallest model that loses at most this on `eval_data`, else on two fifths of `data` held out:
            accuracy where there are labels, agreement with the original's classes, or else the payoff.
        multiple_of: step of the widths; None = 8 or 4 for wide groups, what runtimes run well, finer where that leaves
            a tenth of the budget unused.
        min_units: least width of a group.
        repair: what is done about what the cut leaves behind: `lstsq` refits the consumers, `distill` (needs torch)
            then tunes all weights against the original, `fold` puts calibration means into the consumers' biases
            and re-estimates means and variances, `none`; None = lstsq where there are data for it, fold where
            they are fewer, none where there are none.
        basis: `principal` puts units that linear ops alone touch (of heads, queries and keys, linear trunks) into the
            basis in which a cut loses least (`bases`), `own` takes all as they are; None = principal with lstsq and
            distill, where there are data; with `values`, theirs.
        allocation: how widths are shared out: `curves`, by what each group loses at each width with the repair
            that follows, measured, `uniform`, the same share of every group, or `iterative`, curves in rounds: cut
            part of the way and repair, then score and measure again, and of all plans the one that loses least
            on images that were not fitted on; None = curves with lstsq, where they take no more than
            `cutter.WORK` multiply-accumulates.
        distill_seconds: most seconds that `distill` tunes a model for; where they cut its schedule short, how far it
            gets is up to the machine; None = eight minutes.
        values: values of an earlier run instead of scoring.
        output: where to write the model; whole or not at all, after all checks.
        beside: what the model is written inside of: a report that appears with it, or not at all.

    Raises:
        ModelError, DataError, BudgetError: as their names say.
        VerifyError: the cut model is not what its masked twin computes; nothing was written.
    """
    clock = Clock()
    budget = Budget(keep_units, keep_macs, keep_params, multiple_of, min_units, keep_bytes)
    check_names(repair, allocation)
    check_basis(basis, values.basis if isinstance(values, Scores) else None)
    if keep_units is not None:
        allocation = "uniform"  # it says every width
    check_drop(max_drop)
    if target_latency is not None and not 0 < target_latency < float("inf"):
        raise BudgetError(f"target-latency is {target_latency:g}; give milliseconds, above 0")
    with clock.stage("trace"):
        progress("trace", 0, 1)
        source = readable(model, output, data, labels, eval_data)
        traced, dataset = open_model(
            source, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
        )
        groups = groups_to_cut(traced, include, exclude)
        if values is not None:
            check_values(values, traced, groups)
        blank = unvalued(groups)
        _check_budget(traced, blank, budget, searched=max_drop is not None or target_latency is not None)
        free = free_batch(traced)
        if repair == "distill":
            check_tuning(distill_seconds)
            check_tunable(free, dataset)
        dataset, held_out = hold_out(traced, dataset, eval_data, seed, None if max_drop is None else "max-drop")
        check_images(repair, allocation, min(len(dataset), REPAIR_IMAGES))
        progress("trace", 1, 1)
    repaired_on = sample(dataset, REPAIR_IMAGES, seed)
    # what noise leaves behind is not what images do
    repair = "none" if data is None and repair is None else repair_for(repair, len(repaired_on))
    moved: Turned | None = None
    if principal(basis, values, refitted=repair in REFITS and data is not None):
        with clock.stage("basis"):
            moved, free = in_bases(traced, free, groups, repaired_on, None if values is None else values.bases)
            traced = moved.traced
    with clock.stage("score"):
        scored = sample(dataset, affordable(traced, groups, samples, method), seed)
        setting, reference, judge = _settled(traced, free, scored, held_out, payoff, baseline)
        judges = [judge]
        if payoff is None and scored.labels is None and held_out.labels is not None:
            judges += _by_labels(traced, held_out, reference, strict=max_drop is not None)
        against = None
        if max_drop is not None:
            against = Judge.of(traced, held_out, reference, judges[-1])
            check_share(against, max_drop)
        play = partial(_score, method=method, seed=seed, progress=progress, workers=workers, cluster=cluster)
        if values is None:
            rules = Rules(max_evals, max_seconds, decided, _likely_widths(traced, blank, budget))
            found = play(setting, traced, groups, rules=rules, journal=journal, moved=moved)
        else:
            found = values
    order = found.order(refitted=repair in REFITS)

    def again(part: Traced) -> dict[str, FloatArray]:
        known = payoff if callable(payoff) else setting.payoff.name
        cut = _setting(free_batch(part), setting.data, known, baseline)
        rescored = play(cut, part, part.groups, rules=Rules(max_evals, max_seconds, decided), journal=None)
        return rescored.order(refitted=repair in REFITS)

    cutter = Cutter(
        traced, free, groups, order, repaired_on, repair, allocation, seed, progress, clock,
        rescore=again if values is None else None, tuning_seconds=distill_seconds,
        payoff=payoffs.unlabelled(setting.payoff.name),  # decided once, on the images that score
        turned=moved,
    )  # fmt: skip
    lost: Drop | None = None
    plan: Keep | None = None
    if target_latency is not None:
        budget, plan = within_latency(cutter, budget, target_latency, held_out, alone=max_drop is None)
    if max_drop is None or against is None:
        result = cutter.cut(cutter.plan(budget) if plan is None else plan, dataset)
    else:
        result, lost = within_drop(cutter, budget, against, max_drop, dataset)
    with clock.stage("measure"):
        progress("cut", 2, 3)
        before, after, still = _figures(traced, result, held_out, reference, judges)
        progress("cut", 3, 3)
    small = rightly_declared(complete(traced, result.model))
    done = Pruned(
        put_in(small), result.keep, found, traced, before, after, removed_slices(traced, result.keep),
        result.verified, str(cutter.repair), result.refits, clock.seconds, len(held_out), held_out.source,
        str(cutter.allocation), lost, result.tuning, still, () if moved is None else moved.groups,
    )  # fmt: skip
    if output is not None:
        with beside(done):
            save(small, output, external=bool(traced.files))
    return done


def _check_budget(traced: Traced, blank: Sequence[Candidate], budget: Budget, *, searched: bool) -> None:
    """Refuse a budget that no plan meets, before anything is scored, or one that leaves a search nothing to do."""
    if budget.units is not None and searched:
        raise BudgetError("keep-units leaves nothing to search; give --max-drop or --target-latency without it")
    if budget.units is not None or budget.shares or not searched:
        check_reachable(blank, budget, lambda plan: shares(traced, plan), copies=traced.cost.copies)


def _settled(
    traced: Traced, free: Traced, data: Dataset, held_out: Dataset, payoff: str | Callable[..., object] | None,
    baseline: str,
) -> tuple[Setting, list[Array], Payoff]:  # fmt: skip
    """Return what is scored in, the original's outputs on the images that judge, and the payoff that judges by them.

    The payoff is the same for both, chosen by those that judge: they are more, as a rule. Where only one of the two has
    labels, it is chosen by those that score.
    """
    if (held_out.labels is None) == (data.labels is None):
        reference, judge = judged(traced, held_out, payoff)
        return _setting(free, data, _known(judge), baseline), reference, judge
    setting = _setting(free, data, payoff, baseline)
    reference, judge = judged(traced, held_out, _known(setting.payoff))
    return setting, reference, judge


def _by_labels(traced: Traced, data: Dataset, reference: Sequence[Array], *, strict: bool) -> list[Payoff]:
    """Return the payoff that labels are for which only the images that judge have; none where they fit no output.

    Raises:
        DataError: they fit none, and are to judge (`strict`).
    """
    try:
        return [choose_payoff(None, reference, data, traced)]
    except DataError:
        if strict:
            raise
        return []


def _likely_widths(traced: Traced, blank: Sequence[Candidate], budget: Budget) -> dict[str, int]:
    """Return how many units of every group a budget leaves, before values are known; half the MACs where it says none.

    Where a cut is likely, values have to tell units apart (`Rules`).
    """
    half = budget if budget.units is not None or budget.shares else replace(budget, macs=0.5)
    likely = make_plan(blank, half, lambda plan: shares(traced, plan), traced.covers, copies=traced.cost.copies)
    return {name: int(kept.sum()) for name, kept in likely.items()}


def _known(payoff: Payoff) -> str | Payoff:
    """Return what makes the same payoff on other data: its name, if it has one."""
    return payoff.name if payoff.name in payoffs.NAMES else payoff


def principal(basis: str | None, values: Scores | None, *, refitted: bool) -> bool:
    """Return whether units are put into principal bases: as asked, as values are, else where a refit follows."""
    if values is not None:
        return bool(values.bases)
    return basis == "principal" or (basis is None and refitted)


def check_values(values: object, traced: Traced, groups: Sequence[Group]) -> None:
    """Refuse values of another model or without some groups.

    Raises:
        DataError: they are such, or no values at all.
    """
    if not isinstance(values, Scores):
        raise DataError(
            f"values: {type(values).__name__} given; give what `score` returns (`report.read_values` reads its file)"
        )
    if values.model != form_of(digest(complete(traced, traced.source)), values.bases):
        raise DataError("the values belong to another model; score this one, or give the model they were made for")
    for group in groups:
        if group.name not in values.values or len(values.values[group.name].phi) != len(group):
            raise DataError(f"the values lack group {group.name!r}; score the model without --include and --exclude")


def _figures(
    traced: Traced, result: Cut, data: Dataset, reference: Sequence[Array], judges: Sequence[Payoff]
) -> tuple[Figures, Figures, bool]:
    """Return the figures before and after, and whether the outputs are the same to the bit though units went.

    Each judge gives its scores; what two give by one name is the first one's. Labels are the others'.
    """
    outputs = run_all(traced, result.model, data)
    same = unchanged(outputs, reference)
    cut = any(not kept.all() for kept in result.keep.values())
    models = [complete(traced, model) for model in (traced.source, result.model)]
    times = latencies(traced.backend, models, usual_batch(traced, data))
    cost, macs = traced.cost, traced.cost.macs(traced.alive(result.keep))
    doubts = tuple(note for judge in judges[1:] for note in label_notes(judge, reference, data.labels))

    def figures(model: ModelProto, found: Sequence[Array], macs: int, params: int, latency: float) -> Figures:
        score = dict[str, float]()
        for judge in reversed(judges):
            score |= scores(found, reference, data.labels, traced.outputs, judge)
        return Figures(macs, params, file_size(model), latency, score, doubts)

    return (
        figures(models[0], reference, cost.macs(), cost.params(), times[0]),
        figures(models[1], outputs, macs, result.params, times[1]),
        same and cut,
    )


@checked
def compare(
    model: ModelLike,
    other: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    payoff: str | Callable[..., object] | None = None,
    seed: int = 0,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> list[Figures]:
    """Return the figures of a model and, side by side on the same data, of another with the same inputs and outputs.

    Raises:
        ModelError, DataError: a model cannot be read or run, or the data or outputs do not fit.
    """
    traced, dataset = open_model(
        model, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
    )
    every = [traced]
    if other is not None:
        second = other if isinstance(other, Traced) else read(other)
        theirs = input_specs(second.source if isinstance(second, Traced) else second.model)
        if set(theirs) != set(dataset.inputs):
            have = ", ".join(map(repr, theirs))
            raise DataError(f"the second model's inputs are {have}, not those of the first; compare models of one kind")
        ours = input_specs(traced.source)
        if odd := next((n for n, spec in theirs.items() if len(spec.shape) != len(ours[n].shape)), None):
            raise DataError(
                f"the second model's input {odd!r} has {len(theirs[odd].shape)} dimensions, the first's "
                f"{len(ours[odd].shape)}; compare models of one kind"
            )
        axes = traced.shaped.batch_axes
        samples = samples_of(dataset, {n: replace(spec, batch=axes.get(n, spec.batch)) for n, spec in theirs.items()})
        sizes = {name: value.shape for name, value in samples[0].items()}
        whole = None if any(axis is not None for axis in axes.values()) else axes
        same = second if isinstance(second, Traced) else scorable(
            second, input_shapes=sizes, backend=backend, samples=samples, own=traced.tail is None, batch_axes=whole
        )  # fmt: skip
        every.append(same)
        if (same.tail is None) != (traced.tail is None):  # one does not end in choices alone
            again = partial(trace, input_shapes=sizes, backend=backend, samples=samples, batch_axes=whole)
            every = [again(complete(t, t.source)) for t in every]
            traced = every[0]
    outputs = [run_all(t, t.source, dataset) for t in every]
    fitted = choose_payoff(payoff, outputs[0], dataset, traced)
    for found in outputs[1:]:
        if [a.shape for a in found] != [a.shape for a in outputs[0]]:
            raise DataError("the two models have outputs of other shapes; compare models with the same outputs")
    # whether the scores of classes are probabilities may differ, what compares with the first model is its own
    own = [choose_payoff("ce", found, dataset, traced) if fitted.name == "ce" else fitted for found in outputs]
    models = [complete(t, t.source) for t in every]
    times = latencies(traced.backend, models, usual_batch(traced, dataset))
    doubts = tuple(label_notes(own[0], outputs[0], dataset.labels))
    return [
        Figures(
            t.cost.macs(),
            t.cost.params(),
            file_size(model),
            ms,
            scores(out, outputs[0], dataset.labels, traced.outputs, judge),
            (*t.notes, *doubts),
        )
        for t, model, out, ms, judge in zip(every, models, outputs, times, own, strict=True)
    ]
