"""From a file and a wish to a verified file: what `onnxshap pivot` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxshap.arguments import checked
from onnxshap.backend import OrtBackend, provider_of, threads_of
from onnxshap.calibrate import free_batch
from onnxshap.cost import parameters
from onnxshap.data import DataLike
from onnxshap.endings import complete
from onnxshap.errors import BudgetError, OnnxshapError
from onnxshap.evaluation import Evaluation
from onnxshap.graph import save
from onnxshap.graph.writing import put_in
from onnxshap.measure import Figures
from onnxshap.opening import REPAIR_IMAGES, Given, ModelLike, sample
from onnxshap.pivoting.attempts import Attempt, Attempts
from onnxshap.pivoting.choosing import saved
from onnxshap.pivoting.convs import Dense
from onnxshap.pivoting.permuting import Classes, nobody_moved, peers
from onnxshap.pivoting.selecting import Allowed, find_splittable
from onnxshap.pivoting.splitting import Timed
from onnxshap.plan.judging import Drop, check_drop
from onnxshap.plan.options import repair_for
from onnxshap.progress import Progress, silent
from onnxshap.repair import Refit
from onnxshap.tracing import Traced
from onnxshap.verify import Verified

GROUPS = (2,)
"""Numbers of groups that are tried by default."""
REPAIRS = ("lstsq", "fold", "none")
_SEEN = 300
"""Images that the covariances of channels are taken over."""


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
    given = Given(model, data, labels, eval_data, payoff, seed, backend, input_shapes, output)
    traced, dataset, evaluation = given.judged(None if max_drop is None else "--max-drop")
    free = free_batch(traced)
    repaired_on = sample(dataset, REPAIR_IMAGES, seed)
    repair = repair_for(repair, len(repaired_on), noise=data is None)
    progress("trace", 1, 1)
    movable = peers(traced.labels)
    splittable = find_splittable(traced, free, repaired_on.take(slice(0, _SEEN)), movable, allowed, progress)
    least, most = _least_saved(keep_macs, traced.cost.macs(), splittable.most_saved), splittable.most_saved
    attempts = Attempts.of(evaluation, free, repaired_on, repair, seed, progress, splittable, movable)
    if max_drop is None:
        found = attempts.saving(most if keep_macs is None else least)
    else:
        found = attempts.within(least, most, max_drop)
    split = [c for c in splittable.convs if c.y in found.chosen]
    splits = [_split(c, found.chosen[c.y], found.placed, traced, splittable.times.get(c.y)) for c in split]
    whole = [c.name for c in splittable.convs if c.y not in found.chosen]
    before, after = _figures(evaluation, found, split)
    if timed and not (after.latency_ms or 0) < (before.latency_ms or 0):
        raise BudgetError(
            f"nothing is gained: with {len(splits)} Convs in groups the model runs in {after.latency_ms:.3g} ms, "
            f"as it was in {before.latency_ms:.3g}; give --untimed for fewer multiply-accumulates all the same"
        )
    made = complete(traced, found.model)
    if output is not None:
        save(made, output, external=bool(traced.files))
    return Pivoted(
        put_in(made), splits, [*splittable.left, *(f"{name}: the budget is met without it" for name in whole)],
        before, after, found.lost, found.exact, found.verified, repair, found.refits, len(dataset), dataset.source,
        len(evaluation.data), evaluation.data.source, provider_of(traced.backend), threads_of(traced.backend),
        evaluation.notes(after.score, found.outputs),
    )  # fmt: skip


def _check(keep_macs: float | None, max_drop: float | None, repair: str | None) -> None:
    """Refuse what cannot be meant.

    Raises:
        BudgetError, OnnxshapError: an option is out of its range, or unknown.
    """
    if keep_macs is not None and not 0 < keep_macs <= 1:
        raise BudgetError(f"--keep-macs is {keep_macs:g}; give the share to keep, above 0 and at most 1")
    check_drop(max_drop)
    if repair is not None and repair not in REPAIRS:
        raise OnnxshapError(f"repair {repair!r} is not one for pivoting; choose one of {', '.join(REPAIRS)}")


def _split(conv: Dense, groups: int, placed: Classes, traced: Traced, times: Timed | None) -> Split:
    unsorted = conv.explained(groups, nobody_moved(traced.labels))
    both = None if times is None else (times.milliseconds[1], times.milliseconds[groups])
    return Split(
        conv.name, groups, conv.explained(groups, placed), conv.kept(groups, placed), unsorted, conv.macs, both
    )


def _figures(evaluation: Evaluation, found: Attempt, split: Sequence[Dense]) -> tuple[Figures, Figures]:
    """Return the figures before and after."""
    traced, cost = evaluation.traced, evaluation.traced.cost
    whole, apart = evaluation.latencies(found.model)
    macs = cost.macs() - sum(saved(conv, found.chosen[conv.y]) for conv in split)
    params = cost.params() - traced.stored_params + traced.twofold_params + parameters(found.model)
    return (
        evaluation.figures(traced.source, evaluation.reference, cost.macs(), cost.params(), whole),
        evaluation.figures(found.model, found.outputs, macs, params, apart),
    )


def _least_saved(keep_macs: float | None, total: int, most: int) -> int:
    """Return the multiply-accumulates that have to be saved.

    Raises:
        BudgetError: more than can be.
    """
    if keep_macs is None:
        return 0
    if total - most > keep_macs * total:
        raise BudgetError(
            f"--keep-macs {keep_macs:g} cannot be reached: with every Conv split that gains {1 - most / total:.3f} "
            "stays; ask for more, or allow more --groups"
        )
    return int(np.ceil((1 - keep_macs) * total))
