"""The pipeline on one page: trace -> score -> plan -> cut -> verify -> measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from onnx import ModelProto

from onnxshap import factors, payoffs
from onnxshap.arguments import checked, listed, worded
from onnxshap.backend import OrtBackend
from onnxshap.bases import Turned, check_basis
from onnxshap.calibrate import free_batch
from onnxshap.clock import Clock
from onnxshap.core import BoolArray, FloatArray, IntArray, Payoff
from onnxshap.data import DataLike
from onnxshap.distill.tuning import Tuning
from onnxshap.endings import complete
from onnxshap.errors import BudgetError, DataError
from onnxshap.evaluation import Evaluation
from onnxshap.factors import LowRank
from onnxshap.game import Setting
from onnxshap.graph import save
from onnxshap.graph.declared import rightly_declared
from onnxshap.graph.writing import put_in
from onnxshap.groups import Group
from onnxshap.measure import Figures, notes_on
from onnxshap.methods.ranking import CANCELLING
from onnxshap.opening import REPAIR_IMAGES, Given, ModelLike, Subject, drawn, groups_to_cut, in_bases, prepared, sample
from onnxshap.plan import Budget, make_plan, unvalued
from onnxshap.plan.cutter import Cut, Cutter, check_within_reach, shares
from onnxshap.plan.judging import Drop, check_drop, check_share
from onnxshap.plan.latency import check_latency, within_latency
from onnxshap.plan.options import Asked
from onnxshap.plan.search import within_drop
from onnxshap.progress import Progress, Say, silent, wordless
from onnxshap.reference import choose_payoff
from onnxshap.repair import Refit, emptied
from onnxshap.scores import Ordering, Scores, basis_of
from onnxshap.scoring import DECIDED, Rules
from onnxshap.slices import removed_slices
from onnxshap.tracing import Keep, Traced
from onnxshap.valuing import METHOD, Scoring, known_payoff, setting_for
from onnxshap.verify import Verified

_EMPTIED = (
    "what is cut leaves zeros there, for integers are summed up to integers and take no means; the same net quantised "
    "in QDQ form, or after the cut, keeps more"
)


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
            combinations of the file's (`bases`). Those of which nothing is cut are in the model as in the file,
            unless layers became two.
        low_rank: the layers that became two (`factors`), where `low_rank` asked; None = it did not.
        notes: what the user should know of how the model was taken, scored and judged.
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
    low_rank: tuple[LowRank, ...] | None = None
    notes: tuple[str, ...] = ()


def notes_on_zeros(traced: Traced, plans: Sequence[Keep]) -> tuple[str, ...]:
    """Return which layers of integers read zeros, not means, in place of what plans remove, if any do."""
    found = list(dict.fromkeys(name for plan in plans for name in emptied(traced, traced.alive(plan))))
    return (f"{listed(found)}: {_EMPTIED}",) if found else ()


def notes_on_steps(multiple_of: int | None, plans: Sequence[Keep]) -> tuple[str, ...]:
    """Return which groups are too narrow for the step that was asked for, and were cut by a part of it."""
    step = multiple_of or 1
    found = {
        name: f"group {name!r} keeps {kept.sum()} of {len(kept)}"
        for plan in plans
        for name, kept in plan.items()
        if len(kept) < 2 * step and not kept.all() and kept.sum() % step
    }
    if not found:
        return ()
    some = next(iter(found.values())) + (f", {len(found) - 1} more are like it" if len(found) > 1 else "")
    note = (
        f"{some}: groups of fewer than {2 * step} units go by halves, quarters and so on of --multiple-of {step}; "
        "--exclude leaves them whole"
    )
    return (worded(note),)


@checked
def score(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    method: str | None = None,
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
    say: Say = wordless,
) -> Scores:
    """Return the values of every group of a model; higher = keep.

    Args:
        model: a path, bytes, a ModelProto, or what `trace` returned.
        data: a path, arrays by input name, one array, or a Dataset; None = random inputs.
        labels: a path with the labels, where `data` has none.
        method: one of `METHODS`; None = `shapley`, or where nothing limits it and one image alone would take longer
            than `valuing.MOST`, `recon` (a note says so); before a refit sooner, by `valuing.ASIDE`.
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
        say: told before the scoring what should be known of it: what took the method's place, that the time is for few
            images, what a game that takes minutes takes. What is told of the result, its notes tell too.

    Raises:
        ModelError, DataError, BudgetError: as their names say.
    """
    check_basis(basis)
    rules = Rules(max_evals, max_seconds, decided)
    scoring = Scoring(method or METHOD, seed, rules, progress, workers, cluster, journal, say=say)
    given = Given(model, data, labels, payoff=payoff, seed=seed, backend=backend, input_shapes=input_shapes)
    traced, dataset = given.open()
    groups, free = groups_to_cut(traced, include, exclude), free_batch(traced)
    moved: Turned | None = None
    if basis == "principal":
        moved, free = in_bases(traced, free, groups, sample(dataset, REPAIR_IMAGES, seed))
        scoring = scoring.noting(moved)
    scoring = scoring.in_reach(traced, groups, method, samples, payoff)
    if samples is None:
        scoring = scoring.noting_few(traced, groups, len(dataset))
    scored = sample(dataset, scoring.images(traced, groups, samples), seed)
    setting = setting_for(free, scored, payoff, baseline, played=scoring.plays)
    return scoring.of(setting, traced, groups, moved)


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
    method: str | None = None,
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
    values: Scores | None = None,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    journal: str | Path | None = None,
    workers: int = 0,
    cluster: str | None = None,
    output: str | Path | None = None,
    beside: Callable[[Pruned], AbstractContextManager[object]] = nullcontext,
    progress: Progress = silent,
    say: Say = wordless,
) -> Pruned:
    """Return a smaller model with the same inputs and outputs, verified, and what was done.

    Args:
        model: as in `score`, and so are `data`, `labels`, `method`, `payoff`, `baseline`, `include`, `exclude`,
            `samples`, `max_evals`, `max_seconds`, `decided` (at the cut of the budget), `seed`, `backend`,
            `input_shapes`, `journal`, `workers`, `cluster`, `progress` and `say`.
        eval_data: held-out data for the scores before and after; default the calibration data.
        keep_macs, keep_params, keep_bytes: share of the whole that may stay; all that are given hold.
        keep_units: share of every group that stays, no search.
        target_latency: most milliseconds a run of one image (or of the file's fixed batch) may take, measured.
        max_drop: the smallest model that loses at most this on `eval_data`, else on two fifths of `data` held out:
            accuracy where there are labels, agreement with the original's classes, or else the payoff.
        multiple_of: step of the widths, half of it where a group is not twice as wide, and so on; None = what fills
            the blocks of channels that runtimes compute together (`blocks`), or finer steps where these lose less than
            the time is worth.
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
        low_rank: `spatial` lets a dense Conv become two, along the height of its kernel and along its width, with less
            channels between than its rank, where that loses less than cutting filters alone; `all` lets other
            linear layers (1 x 1 Convs, Gemms and MatMuls with constants) become two, as well; ranks and widths are
            shared out together, by curves, and what is cut is refitted; None = no layer is split.
        distill_seconds: most seconds that `distill` tunes a model for; where they cut its schedule short, how far it
            gets is up to the machine; None = eight minutes.
        values: values of an earlier run instead of scoring.
        output: where to write the model; whole or not at all, after all checks.
        beside: what the model is written inside of: a report that appears with it, or not at all.

    Raises:
        ModelError, DataError, BudgetError: as their names say.
        VerifyError: the cut model is not what its masked twin computes; nothing was written.
    """
    clock, searched = Clock(), max_drop is not None or target_latency is not None
    budget = Budget(keep_units, keep_macs, keep_params, multiple_of, min_units, keep_bytes)
    scoring = Scoring(method or METHOD, seed, Rules(max_evals, max_seconds, decided), progress, workers, cluster)
    asked = Asked(repair, basis, allocation, low_rank, distill_seconds)
    asked = asked.settled(basis_of(values), uniform=keep_units is not None)
    check_drop(max_drop)
    check_latency(target_latency)
    given = Given(model, data, labels, eval_data, payoff, seed, backend, input_shapes, output)
    subject = prepared(
        given, asked, partial(_check_budget, budget, searched=searched), values,
        None if max_drop is None else "--max-drop", progress, clock, include=include, exclude=exclude,
    )  # fmt: skip
    groups, scoring = subject.groups, scoring.noting(subject.turned if basis == "principal" else None)
    with clock.stage("score"):
        scoring = scoring.in_reach(subject.traced, groups, method, samples, payoff, values, refitted=subject.refitted)
        if subject.refitted and values is None and samples is None:
            scoring = scoring.noting_few(subject.traced, groups, len(subject.data))
        if subject.refitted:
            scoring = scoring.noting_memory(subject.free, subject.groups, subject.repaired_on)
        scoring, seconds = scoring.ordered(refitted=subject.refitted)
        ordering = Ordering(progress, seconds)
        scored = drawn(subject.data, scoring.images(subject.traced, groups, samples), seed)
        played = values is None and scoring.plays
        setting, evaluation = _settled(subject, scored, payoff, baseline, strict=max_drop is not None, played=played)
        if max_drop is not None:
            check_share(evaluation.judge, max_drop)
        found = values
        if found is None:
            likely = replace(scoring.rules, keep=_likely_widths(subject, budget))
            first = replace(scoring, rules=likely, journal=journal, say=say)
            found = first.of(setting, subject.traced, groups, subject.turned)

    def again(part: Traced) -> dict[str, FloatArray]:
        known = payoff if callable(payoff) else setting.payoff.name
        cut = setting_for(free_batch(part), setting.data, known, baseline, played=scoring.plays)
        return cut_order(scoring.of(cut, part, part.groups), subject, part.groups, lambda: cut, ordering)

    with clock.stage("score"):
        order = cut_order(found, subject, groups, lambda: setting, ordering)
    cutter = subject.cutter(
        order, seed, progress, clock, rescore=again if values is None else None,
        payoff=payoffs.unlabelled(setting.payoff.name), method=found.method,  # decided once, on the images that score
    )  # fmt: skip
    result, lost = _cut(cutter, budget, target_latency, max_drop, subject, evaluation)
    found = replace(found, notes=(*found.notes, *ordering.notes))
    with clock.stage("measure"):
        progress("measure", 0, 1)
        before, after, still = _figures(evaluation, result)
        progress("measure", 1, 1)
    traced, held_out, keep = subject.traced, subject.held_out, result.units(subject.traced.groups)
    split = None if low_rank is None else result.low_rank
    notes = [*traced.notes, *found.notes, *before.notes, *notes_on(after.score, held_out.source if still else None)]
    notes += notes_on_zeros(traced, [keep]) if cutter.repair != "none" else ()
    notes += notes_on_steps(multiple_of, [keep])
    notes += map(worded, factors.notes_on(low_rank, bool(split), subject.unsplit))
    small = rightly_declared(complete(traced, result.model))
    done = Pruned(
        put_in(small), keep, found, traced, before, after, removed_slices(traced, keep),
        result.verified, str(cutter.repair), result.refits, clock.seconds, len(held_out), held_out.source,
        str(cutter.allocation), lost, result.tuning, still, () if subject.turned is None else subject.turned.groups,
        split, tuple(dict.fromkeys(notes)),
    )  # fmt: skip
    if output is not None:
        with beside(done):
            save(small, output, external=bool(traced.files))
    return done


def cut_order(
    found: Scores, subject: Subject, groups: Sequence[Group], setting: Callable[[], Setting],
    ordering: Ordering | None = None,
) -> dict[str, FloatArray]:  # fmt: skip
    """Return what units are cut by, group name -> float64[n_units], lowest first (`Scores.order`).

    Args:
        found: their values.
        subject: tells whether a refit follows, and on which images.
        groups: those that are cut, of the subject's model or of one cut from it.
        setting: gives that model with its outputs on other images, none of those that judge; asked where they tell.
        ordering: whom the work is told, and how long it takes at most.
    """
    told = subject.refitted and found.method in CANCELLING
    return found.order(groups, replace(setting(), data=subject.repaired_on) if told else None, ordering)


def _check_budget(
    budget: Budget, traced: Traced, groups: Sequence[Group], most: Mapping[str, int], *, searched: bool
) -> None:
    """Refuse a budget that no plan meets, before anything is scored, or one that leaves a search nothing to do."""
    if budget.units is not None and searched:
        raise BudgetError("--keep-units leaves nothing to search; give --max-drop or --target-latency without it")
    if budget.units is not None or budget.shares or not searched:
        check_within_reach(budget, traced, groups, most)


def _settled(
    subject: Subject,
    scored: IntArray,
    payoff: str | Callable[..., object] | None,
    baseline: str,
    *,
    strict: bool,
    played: bool,
) -> tuple[Setting, Evaluation]:
    """Return what is scored in, on some of the data (by number), and what cut models are judged by.

    The first payoff that judges is that of scoring, chosen by the images that judge: they are more, as a rule. Where
    only one of the two has labels, it is chosen by those that score; if those that judge have them, what their labels
    are for comes second (`_by_labels`).

    Where no game is played on images that judge, too, the original's outputs on them count for both: a game is played
    on the form for evaluation, whose outputs may round otherwise.
    """
    traced, free, held_out, data = subject.traced, subject.free, subject.held_out, subject.data.take(scored)
    if (held_out.labels is None) == (data.labels is None):
        evaluation = Evaluation.of(traced, held_out, payoff)
        known = None if played or held_out is not subject.data else [one[scored] for one in evaluation.reference]
        first = known_payoff(evaluation.payoffs[0])
        return setting_for(free, data, first, baseline, played=played, reference=known), evaluation
    setting = setting_for(free, data, payoff, baseline, played=played)
    evaluation = Evaluation.of(traced, held_out, known_payoff(setting.payoff))
    if payoff is None and held_out.labels is not None:
        evaluation = evaluation.with_payoffs(_by_labels(evaluation, strict=strict))
    return setting, evaluation


def _by_labels(evaluation: Evaluation, *, strict: bool) -> list[Payoff]:
    """Return the payoff that labels are for which only the images that judge have; none where they fit no output.

    Raises:
        DataError: they fit none, and are to judge (`strict`).
    """
    try:
        return [choose_payoff(None, evaluation.reference, evaluation.data, evaluation.traced)]
    except DataError:
        if strict:
            raise
        return []


def _likely_widths(subject: Subject, budget: Budget) -> dict[str, int]:
    """Return how many units of every group a budget leaves, before values are known; half the MACs where it says none.

    Where a cut is likely, values have to tell units apart (`Rules`).
    """
    half = budget if budget.units is not None or budget.shares else replace(budget, macs=0.5)
    traced, groups, most = subject.planned
    likely = make_plan(unvalued(groups, most), half, partial(shares, traced), traced.covers, copies=traced.cost.copies)
    return {group.name: int(likely[group.name].sum()) for group in subject.groups}


def _cut(
    cutter: Cutter, budget: Budget, target_latency: float | None, max_drop: float | None, subject: Subject,
    evaluation: Evaluation,
) -> tuple[Cut, Drop | None]:  # fmt: skip
    """Return the model cut to a budget, and what it loses where that is searched by."""
    plan: Keep | None = None
    if target_latency is not None:
        budget, plan = within_latency(cutter, budget, target_latency, subject.held_out, alone=max_drop is None)
    if max_drop is not None:
        return within_drop(cutter, budget, evaluation.judge, max_drop, subject.data)
    return cutter.cut(cutter.plan(budget) if plan is None else plan, subject.data), None


def _figures(evaluation: Evaluation, result: Cut) -> tuple[Figures, Figures, bool]:
    """Return the figures before and after, and whether the outputs are the same to the bit though units went."""
    traced, outputs = evaluation.traced, evaluation.outputs(result.model)
    whole, small = evaluation.latencies(result.model)
    cost = traced.cost
    doubts = evaluation.doubts(first=1)  # of the labels that score, the values tell
    before = evaluation.figures(traced.source, evaluation.reference, cost.macs(), cost.params(), whole)
    after = evaluation.figures(result.model, outputs, result.macs, result.params, small)
    cut = any(not kept.all() for kept in result.keep.values())
    return replace(before, notes=doubts), replace(after, notes=doubts), evaluation.unchanged(outputs) and cut
