"""From a file and a wish to a verified file: what `onnxshap pivot` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap import streams, valuing
from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend, provider_of, threads_of
from onnxshap.calibrate import free_batch, run_all, usual_batch
from onnxshap.core import Array, Dataset, Payoff
from onnxshap.cost import parameters
from onnxshap.data import DataLike
from onnxshap.endings import complete
from onnxshap.errors import BudgetError, OnnxshapError
from onnxshap.graph import save
from onnxshap.graph.writing import file_size, put_in
from onnxshap.measure import Figures, label_notes, latencies, notes_on, scores, unchanged
from onnxshap.opening import REPAIR_IMAGES, ModelLike, hold_out, open_model, readable, sample
from onnxshap.pivoting.arranging import arrange
from onnxshap.pivoting.choosing import Ladder, choose, saved
from onnxshap.pivoting.convs import Dense, Wanted
from onnxshap.pivoting.permuting import Classes, nobody_moved, peers
from onnxshap.pivoting.selecting import Allowed, find_splittable
from onnxshap.pivoting.splitting import WEIGHED, Timed, split_convs, weigh
from onnxshap.plan.judging import Drop, Judge, check_drop
from onnxshap.plan.options import repair_for
from onnxshap.plan.trials import FEWEST_FITTED
from onnxshap.progress import Progress, silent
from onnxshap.reference import judged
from onnxshap.repair import Refit
from onnxshap.tracing import Traced
from onnxshap.verify import Verified

GROUPS = (2,)
"""Numbers of groups that are tried by default."""
REPAIRS = ("lstsq", "fold", "none")
_SEEN = 300
"""Images that the covariances of channels are taken over."""
_ATTEMPTS = 5
"""Models that are made to find the one that loses no more than it may."""


@dataclass(frozen=True)
class Split:
    """A Conv that is in groups now.

    Attributes:
        name: its node's name.
        groups: how many.
        explained: share of its outputs' variance that the groups explain, by the covariances of its inputs.
        kept: share of its energy on the diagonal blocks.
        unsorted: the first share, had its channels kept their order.
        macs: multiply-accumulates an image before.
        times: milliseconds of it alone, whole and in groups; None = not measured.
    """

    name: str
    groups: int
    explained: float
    kept: float
    unsorted: float
    macs: int
    times: tuple[float, float] | None


@dataclass(frozen=True)
class Pivoted:
    """The result of `pivot`.

    Attributes:
        model: the model with Convs in groups.
        splits: those Convs.
        left: why others stay, one line each.
        before, after: figures of the original and of the new model.
        drop: what is lost on the evaluation images.
        permuted: the original with its channels in another order against the original.
        verified: the new model before the refit against the permuted one with zeros off its diagonal blocks.
        repair: what was done about the blocks that were dropped.
        refits: what least squares did to every layer.
        images, source: calibration images, and where they came from.
        eval_images, eval_source: the same of the evaluation images.
        provider, threads: what times were measured with; 0 = all cores.
        notes: what the user should know of how the model was taken and judged.
    """

    model: ModelProto = field(repr=False)
    splits: Sequence[Split]
    left: Sequence[str]
    before: Figures
    after: Figures
    drop: Drop
    permuted: Verified
    verified: Verified
    repair: str
    refits: Sequence[Refit] = field(repr=False)
    images: int
    source: str
    eval_images: int
    eval_source: str
    provider: str
    threads: int
    notes: tuple[str, ...] = ()


@checked
def pivot(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    labels: str | Path | None = None,
    eval_data: DataLike | None = None,
    groups: Sequence[int] = GROUPS,
    keep_macs: float | None = None,
    max_drop: float | None = None,
    multiple_of: int = 4,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    timed: bool = True,
    repair: str | None = None,
    payoff: str | Callable[..., object] | None = None,
    seed: int = 0,
    backend: OrtBackend | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> Pivoted:
    """Return a model whose Convs are in groups where that is faster, with the same inputs and outputs, verified.

    Args:
        model: as in `api.prune`, and so are `data`, `labels`, `payoff`, `seed`, `backend` and `input_shapes`.
        eval_data: data for the scores before and after; default the calibration data.
        groups: numbers of groups that a Conv may have.
        keep_macs: share of the multiply-accumulates that may stay: Convs are left whole as long as it is met; None =
            every Conv is split that gains.
        max_drop: as many Convs are split as lose at most this, repair and one standard error included, on `eval_data`,
            else on two fifths of `data` held out: accuracy, or what `api.prune` takes.
        multiple_of: widths of a group are multiples of it.
        include: globs of the names of Convs; empty = all.
        exclude: the same, left whole.
        timed: only Convs that are measured faster alone, and only a model that is faster with all of them; without,
            whatever the time, and one seed gives the same bytes.
        repair: what is done about the blocks that are dropped: `lstsq` refits the layers, `fold` re-estimates means and
            variances, `none`; None = lstsq where there are data for it, fold where they are fewer, none without.
        output: where to write the model; whole or not at all, after all checks.
        progress: told what is going on.

    Raises:
        ModelError, DataError, OnnxshapError: as in `api.prune`.
        BudgetError: no Conv can be split with a gain, too few can for `keep_macs`, or too many have to be for
            `max_drop`; or all of them together gain nothing.
        VerifyError: a form of the model does not compute what it should; nothing was written.
    """
    allowed = Allowed(groups, multiple_of, include, exclude, timed)
    _check(keep_macs, max_drop, repair)
    progress("trace", 0, 1)
    source = readable(model, output, data, labels, eval_data)
    traced, dataset = open_model(
        source, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes, own=callable(payoff)
    )
    free = free_batch(traced)
    dataset, held_out = hold_out(traced, dataset, eval_data, seed, None if max_drop is None else "max-drop")
    reference, judge = judged(traced, held_out, payoff)
    repaired_on = sample(dataset, REPAIR_IMAGES, seed)
    repair = "none" if data is None and repair is None else repair_for(repair, len(repaired_on))
    progress("trace", 1, 1)

    movable = peers(traced.labels)
    splittable = find_splittable(traced, free, repaired_on.take(slice(0, _SEEN)), movable, allowed, progress)
    convs, total, most = splittable.convs, traced.cost.macs(), splittable.most_saved
    if keep_macs is not None and total - most > keep_macs * total:
        raise BudgetError(
            f"keep-macs {keep_macs:g} cannot be reached: with every Conv split that gains {1 - most / total:.3f} "
            "stays; ask for more, or allow more --groups"
        )

    rng, placed = streams.stream(seed, streams.ARRANGEMENT), nobody_moved(traced.labels)
    wanted = [Wanted(c, splittable.groups[c.y][-1]) for c in convs]
    placed = arrange(wanted, movable, placed, rng)
    runs = valuing.WORK // max(1, len(convs) * total)
    weights = weigh(
        traced, free, wanted, placed, repaired_on.take(slice(0, max(FEWEST_FITTED, min(WEIGHED, runs)))), repair,
        progress,
    )  # fmt: skip
    ladders = [Ladder(c, splittable.groups[c.y], weight) for c, weight in zip(convs, weights, strict=True)]
    against = Judge.of(traced, held_out, reference, judge)

    def attempt(least: int) -> _Attempt:
        """Return the model in which Convs are split until so many multiply-accumulates are saved."""
        draws = streams.stream(seed, streams.SPLITTING)
        chosen, best = choose(ladders, least, movable, placed, draws, lambda done, of: progress("search", done, of))
        made, exact, verified, refits = split_convs(traced, free, chosen, best, repaired_on, repair, seed, progress)
        outputs = run_all(traced, made, held_out)
        return _Attempt(chosen, best, made, exact, verified, refits, outputs, against.lost(outputs))

    least = 0 if keep_macs is None else int(np.ceil((1 - keep_macs) * total))
    if max_drop is None:
        found = attempt(most if keep_macs is None else least)
    else:
        found = _within(attempt, least, most, max_drop)
    made, chosen = found.model, found.chosen
    splits = [_split(c, chosen[c.y], found.placed, traced, splittable.times.get(c.y)) for c in convs if c.y in chosen]
    left = [*splittable.left, *(f"{c.name}: the budget is met without it" for c in convs if c.y not in chosen)]
    before, after = _figures(traced, made, chosen, convs, held_out, [reference, found.outputs], judge)
    if timed and not (after.latency_ms or 0) < (before.latency_ms or 0):
        raise BudgetError(
            f"nothing is gained: with {len(splits)} Convs in groups the model runs in {after.latency_ms:.3g} ms, "
            f"as it was in {before.latency_ms:.3g}; give --untimed for fewer multiply-accumulates all the same"
        )
    still = held_out.source if unchanged(found.outputs, reference) else None
    made = complete(traced, made)
    if output is not None:
        save(made, output, external=bool(traced.files))
    return Pivoted(
        put_in(made), splits, left, before, after, found.lost, found.exact, found.verified, repair, found.refits,
        len(dataset), dataset.source, len(held_out), held_out.source, provider_of(traced.backend),
        threads_of(traced.backend),
        (*traced.notes, *label_notes(judge, reference, held_out.labels), *notes_on(after.score, still)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Attempt:
    """One model with Convs in groups: which, by their outputs, the placement, how exact it is, and what it loses."""

    chosen: Mapping[str, int]
    placed: Classes
    model: ModelProto
    exact: Verified
    verified: Verified
    refits: Sequence[Refit]
    outputs: Sequence[Array]
    lost: Drop


def _within(attempt: Callable[[int], _Attempt], least: int, most: int, drop: float) -> _Attempt:
    """Return the attempt found that saves most and loses at most `drop`; bisection over what is saved.

    Args:
        attempt: saved multiply-accumulates -> the model.
        least: those that have to be saved, 0 = any.
        most: those that can be.
        drop: the most that may be lost, one standard error included.

    Raises:
        BudgetError: none is within.
    """
    found = attempt(most)
    if found.lost.bound <= drop:
        return found
    best, low, high = None, least, most
    for number in range(_ATTEMPTS):
        middle = low if least and number == 0 else (low + high) // 2
        found = attempt(middle)
        if found.chosen and found.lost.bound <= drop:
            best, low = found, middle
        elif middle == low:
            break
        else:
            high = middle
    if best is None:
        raise BudgetError(
            f"max-drop {drop:g}: with {len(found.chosen)} Convs split {found.lost.mean:.3g} +- {found.lost.stderr:.2g} "
            f"{found.lost.name} is lost; allow more"
        )
    return best


def _check(keep_macs: float | None, max_drop: float | None, repair: str | None) -> None:
    """Refuse what cannot be meant.

    Raises:
        BudgetError, OnnxshapError: an option is out of its range, or unknown.
    """
    if keep_macs is not None and not 0 < keep_macs <= 1:
        raise BudgetError(f"keep-macs is {keep_macs:g}; give the share to keep, above 0 and at most 1")
    check_drop(max_drop)
    if repair is not None and repair not in REPAIRS:
        raise OnnxshapError(f"repair {repair!r} is not one for pivoting; choose one of {', '.join(REPAIRS)}")


def _split(conv: Dense, groups: int, placed: Classes, traced: Traced, times: Timed | None) -> Split:
    unsorted = conv.explained(groups, nobody_moved(traced.labels))
    both = None if times is None else (times.milliseconds[1], times.milliseconds[groups])
    return Split(
        conv.name, groups, conv.explained(groups, placed), conv.kept(groups, placed), unsorted, conv.macs, both
    )


def _figures(
    traced: Traced,
    made: ModelProto,
    chosen: Mapping[str, int],
    convs: Sequence[Dense],
    data: Dataset,
    outputs: Sequence[Sequence[Array]],
    judge: Payoff,
) -> tuple[Figures, Figures]:
    models = [complete(traced, model) for model in (traced.source, made)]
    times = latencies(traced.backend, models, usual_batch(traced, data))
    fewer = [(c, chosen[c.y]) for c in convs if c.y in chosen]
    cost, gone = traced.cost, traced.stored_params - parameters(made)
    macs = (cost.macs(), cost.macs() - sum(saved(c, k) for c, k in fewer))
    params = (cost.params(), cost.params() - gone)
    before, after = (
        Figures(m, p, file_size(one), ms, scores(found, outputs[0], data.labels, traced.outputs, judge))
        for m, p, one, ms, found in zip(macs, params, models, times, outputs, strict=True)
    )
    return before, after
