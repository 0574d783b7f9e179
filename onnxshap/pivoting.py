"""Matrix pivoting: Convs become Convs in groups, their channels in the order in which the groups explain most.

Channels change places on every tensor they are on, which changes nothing but the order of sums (`permuting`), so that
little of a Conv's outputs is lost with all but k diagonal blocks of its weights (`pivots`). The blocks stay: a
Conv(group=k) with 1/k of the multiply-accumulates; what the dropped ones gave is made up for by least squares
(`repair`), layer by layer on the new model's own inputs, against what the original gave. A Conv is taken only where its
form in groups runs faster here, measured in turn with the whole one: runtimes are slow on narrow groups.

Source: Sredojevic et al. 2017 (matrix pivoting); differs: no training, refitted weights, measured times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxshap import api, payoffs
from onnxshap.api import ModelLike, Progress, silent
from onnxshap.backend import OrtBackend, provider_of
from onnxshap.calibrate import free_batch, run_all, usual_batch
from onnxshap.core import Array, Dataset, Payoff
from onnxshap.data import DataLike
from onnxshap.errors import BudgetError, ModelError, OnnxshapError
from onnxshap.graph import attributes, data_path, extract, finish, save
from onnxshap.measure import Figures, latencies, scores
from onnxshap.permuting import Classes, nobody_moved, orders, peers, permuted
from onnxshap.pivots import Dense, Ladder, Wanted, arrange, choose, find_convs, grouped, saved, zeroed
from onnxshap.repair import FEWEST_IMAGES, QUICK, Refit, refit_edited, rematch_edited
from onnxshap.repair.transfer import transfer
from onnxshap.search import Drop, Judge
from onnxshap.tracing import Traced
from onnxshap.verify import Verified, check_loads, verify_twin
from onnxshap.weights import file_size, put_in

GROUPS = (2,)
"""Numbers of groups that are tried by default."""
REPAIRS = ("lstsq", "fold", "none")
_WEIGHED = 200
"""Images on which layers are weighed against each other."""
_SEEN = 300
"""Images that the covariances of channels are taken over."""
_FASTER = 0.95
"""Share of the time with fewer groups that more of them may take."""
_ATTEMPTS = 5
"""Models that are made to find the one that loses no more than it may."""
_LIGHTEST = 1e-3
"""Least weight of a layer, as a share of the heaviest: what costs nothing on some images costs something on others."""


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one Conv alone at its sizes, medians of runs in turn; groups -> time, 1 = as it was."""

    milliseconds: Mapping[int, float]

    def faster(self) -> tuple[int, ...]:
        """Return the numbers of groups each of which is faster than the fewer ones before it."""
        found, least = [], self.milliseconds[1]
        for groups in sorted(self.milliseconds):
            if groups > 1 and self.milliseconds[groups] <= _FASTER * least:
                found.append(groups)
                least = self.milliseconds[groups]
        return tuple(found)


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
    """

    model: ModelProto
    splits: Sequence[Split]
    left: Sequence[str]
    before: Figures
    after: Figures
    drop: Drop
    permuted: Verified
    verified: Verified
    repair: str
    refits: Sequence[Refit]
    images: int
    source: str
    eval_images: int
    eval_source: str
    provider: str
    threads: int


# --- the pass --------------------------------------------------------------------------------------------------------


def possible(conv: Dense, groups: Sequence[int], multiple_of: int) -> tuple[int, ...]:
    """Return the numbers of groups that leave widths that are multiples of `multiple_of`, ascending."""
    return tuple(k for k in sorted(set(groups)) if all(width % (k * multiple_of) == 0 for width in conv.widths))


def time_convs(traced: Traced, convs: Sequence[tuple[Dense, Sequence[int]]]) -> Iterator[Timed]:
    """Yield what each Conv takes alone, whole and in some numbers of groups; equal ones are measured once."""
    shaped, known = traced.shaped, dict[tuple[object, ...], Timed]()
    for conv, counts in convs:
        node = shaped.graph.nodes[conv.index]
        given = sorted((name, str(value)) for name, value in attributes(node).items())
        key = (tuple(counts), shaped.shapes[conv.x], shaped.shapes[conv.w], len(node.input), *given)
        if key not in known:
            kinds = [shaped.kinds.get(name, TensorProto.FLOAT) for name in (conv.x, conv.y)]
            alone = extract(shaped.graph.model, {conv.x: kinds[0]}, {conv.y: kinds[1]})
            values = np.random.default_rng(0).normal(size=shaped.shapes[conv.x])
            feeds = {conv.x: values.astype(helper.tensor_dtype_to_np_dtype(kinds[0]))}
            models = [alone, *(grouped(alone, {conv.y: k}) for k in counts)]
            times = latencies(traced.backend, models, feeds)
            known[key] = Timed(dict(zip((1, *counts), times, strict=True)))
        yield known[key]


def placed_model(traced: Traced, placed: Classes) -> Traced:
    """Return a form of a model with its channels in other places; `source` is still the original."""
    graph = traced.shaped.graph
    model = permuted(graph.model, orders(traced.labels, placed))
    return replace(traced, shaped=replace(traced.shaped, graph=replace(graph, model=model)))


def weigh(
    traced: Traced,
    free: Traced,
    wanted: Sequence[Wanted],
    placed: Classes,
    data: Dataset,
    repair: str,
    progress: Progress,
) -> list[float]:
    """Return what each Conv's outputs are worth: what the model's lose when it alone is split, over what it loses.

    One run of the model, and one quick refit of the Conv, each; by the payoff that fits without labels.
    """
    names = [o.name for o in traced.shaped.graph.model.graph.output]
    reference = run_all(traced, traced.source, data)
    payoff = payoffs.choose(None, reference, None, names)
    best = float(np.mean(payoff(reference, reference, None)))
    model, found = placed_model(free, placed), list[float]()
    for number, one in enumerate(wanted):
        progress("weigh", number, len(wanted))
        made = grouped(model.shaped.graph.model, {one.conv.y: one.groups})
        if repair == "lstsq":
            refit_edited(model, made, [one.conv.index], data, nearest=True, effort=QUICK)
        lost = best - float(np.mean(payoff(run_all(free, made, data), reference, None)))
        found.append(lost / max(1 - one.conv.explained(one.groups, placed), 1e-6))
    progress("weigh", len(wanted), len(wanted))
    least = max(_LIGHTEST * max(found, default=0.0), 1e-12)
    return [max(weight, least) for weight in found]


def split_convs(
    traced: Traced,
    free: Traced,
    chosen: Mapping[str, int],
    placed: Classes,
    data: Dataset,
    repair: str,
    seed: int,
    progress: Progress,
) -> tuple[ModelProto, Verified, Verified, list[Refit]]:
    """Return the model with Convs in groups, repaired, how exact its permutation and its split are, and the refits.

    Args:
        traced, free: the model, as in its file and for evaluation.
        chosen: outputs of Convs -> groups.
        placed: the placement of the channels.
        data: images to repair and to verify with.
        repair: one of `REPAIRS`.
        seed: draws the rows of the refits.
        progress: told after every layer.

    Raises:
        VerifyError: a form of the model does not compute what it should.
    """
    graph = traced.shaped.graph
    moved, names = placed_model(traced, placed), ("model in groups", "its twin with zeros off the diagonal blocks")
    same = finish(moved.shaped.graph.model, graph)
    exact = verify_twin(traced, same, traced.source, data, ("permuted model", "the original"))
    made = grouped(moved.shaped.graph.model, chosen)
    twin = finish(zeroed(moved.shaped.graph.model, chosen), graph)
    verified = verify_twin(traced, finish(made, graph), twin, data, names)
    refits: list[Refit] = []
    if repair != "none" and chosen:
        original = moved if free is traced else placed_model(free, placed)
        model = made if free is traced else grouped(original.shaped.graph.model, chosen)
        edited = [k for k, node in enumerate(graph.nodes) if node.output and node.output[0] in chosen]

        def tell(done: int, total: int) -> None:
            progress("repair", done, total)

        if repair == "lstsq":
            refits = refit_edited(original, model, edited, data, seed, tell)
        else:
            rematch_edited(original, model, edited, data, tell)
        made = model if free is traced else transfer(model, made)
    done = finish(made, graph)
    check_loads(traced, done)
    return done, exact, verified, refits


# --- the job ---------------------------------------------------------------------------------------------------------


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
    payoff: str | None = None,
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
    _check(groups, keep_macs, max_drop, multiple_of, repair)
    progress("trace", 0, 1)
    traced, dataset = api.open_model(model, data, labels=labels, seed=seed, backend=backend, input_shapes=input_shapes)
    if output is not None and data_path(output).resolve() in [file.resolve() for file in traced.files]:
        raise ModelError(f"{data_path(output)}: would replace data of the model; choose another output path")
    free = free_batch(traced)
    held_out = dataset if eval_data is None else api.calibration(traced, eval_data, seed=seed)
    if max_drop is not None and eval_data is None:
        dataset, held_out = api.divided(dataset, seed)
    names = [o.name for o in traced.shaped.graph.model.graph.output]
    reference = api.reference_of(traced, traced.source, held_out)
    judge = api.choose_payoff(payoff, reference, held_out, names)
    repaired_on = api.sample(dataset, api.REPAIR_IMAGES, seed)
    enough = len(repaired_on) >= FEWEST_IMAGES
    repair = repair or ("none" if data is None else "lstsq" if enough else "fold")
    progress("trace", 1, 1)

    movable = peers(traced.labels)
    every = list(find_convs(traced, free, repaired_on.take(slice(0, _SEEN)), movable))
    convs, left = [c for c in every if isinstance(c, Dense)], [c for c in every if isinstance(c, str)]
    convs = _selected(convs, include, exclude)
    steps, times = _steps(traced, convs, groups, multiple_of, timed, left, progress)
    convs = [c for c in convs if steps[c.y]]
    total = traced.cost.macs()
    if not convs:
        why = left[0] if left else "it has no Conv in one group with constant weights"
        raise BudgetError(f"no Conv can be split with a gain; {why}{_more(left)}")
    reachable = total - sum(saved(c, steps[c.y][-1]) for c in convs)
    if keep_macs is not None and reachable > keep_macs * total:
        raise BudgetError(
            f"keep-macs {keep_macs:g} cannot be reached: with every Conv split that gains {reachable / total:.3f} "
            "stays; ask for more, or allow more --groups"
        )

    rng, placed = np.random.default_rng([seed, 7]), nobody_moved(traced.labels)
    wanted = [Wanted(c, steps[c.y][-1]) for c in convs]
    placed = arrange(wanted, movable, placed, rng)
    runs = api.WORK // max(1, len(convs) * total)
    weights = weigh(
        traced, free, wanted, placed, repaired_on.take(slice(0, max(FEWEST_IMAGES, min(_WEIGHED, runs)))), repair,
        progress,
    )  # fmt: skip
    ladders = [Ladder(c, steps[c.y], weight) for c, weight in zip(convs, weights, strict=True)]
    against = Judge.of(traced, held_out, reference, judge)

    def attempt(least: int) -> _Attempt:
        """Return the model in which Convs are split until so many multiply-accumulates are saved."""
        draws = np.random.default_rng([seed, 8])
        chosen, best = choose(ladders, least, movable, placed, draws, lambda done, of: progress("search", done, of))
        made, exact, verified, refits = split_convs(traced, free, chosen, best, repaired_on, repair, seed, progress)
        outputs = run_all(traced, made, held_out)
        return _Attempt(chosen, best, made, exact, verified, refits, outputs, against.lost(outputs))

    least = 0 if keep_macs is None else int(np.ceil((1 - keep_macs) * total))
    if max_drop is None:
        found = attempt(total - reachable if keep_macs is None else least)
    else:
        found = _within(attempt, least, total - reachable, max_drop)
    made, chosen = found.model, found.chosen
    splits = [_split(c, chosen[c.y], found.placed, traced, times.get(c.y)) for c in convs if c.y in chosen]
    left += [f"{c.name}: the budget is met without it" for c in convs if c.y not in chosen]
    before, after = _figures(traced, made, chosen, convs, held_out, [reference, found.outputs], judge)
    if timed and not (after.latency_ms or 0) < (before.latency_ms or 0):
        raise BudgetError(
            f"nothing is gained: with {len(splits)} Convs in groups the model runs in {after.latency_ms:.3g} ms, "
            f"as it was in {before.latency_ms:.3g}; give --untimed for fewer multiply-accumulates all the same"
        )
    if output is not None:
        save(made, output, external=bool(traced.files))
    return Pivoted(
        put_in(made), splits, left, before, after, found.lost, found.exact, found.verified, repair, found.refits,
        len(dataset), dataset.source, len(held_out), held_out.source, provider_of(traced.backend),
        traced.backend.threads if isinstance(traced.backend, OrtBackend) else 0,
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


def _check(
    groups: Sequence[int], keep_macs: float | None, max_drop: float | None, multiple_of: int, repair: str | None
) -> None:
    """Refuse what cannot be meant.

    Raises:
        BudgetError, OnnxshapError: an option is out of its range, or unknown.
    """
    if not groups or min(groups) < 2:
        raise BudgetError(f"groups is {', '.join(map(str, groups)) or 'empty'}; give numbers of groups, at least 2")
    if keep_macs is not None and not 0 < keep_macs <= 1:
        raise BudgetError(f"keep-macs is {keep_macs:g}; give the share to keep, above 0 and at most 1")
    if max_drop is not None and max_drop < 0:
        raise BudgetError(f"max-drop is {max_drop:g}; give 0 or more, in units of the score")
    if multiple_of < 1:
        raise BudgetError(f"multiple-of is {multiple_of}; give a width of at least 1")
    if repair is not None and repair not in REPAIRS:
        raise OnnxshapError(f"repair {repair!r} is not one for pivoting; choose one of {', '.join(REPAIRS)}")


def _selected(convs: Sequence[Dense], include: Sequence[str], exclude: Sequence[str]) -> list[Dense]:
    """Return the Convs whose names match a pattern of `include` and none of `exclude`.

    Raises:
        ModelError: a pattern matches nothing.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(c.name, pattern) for c in convs):
            names = ", ".join(c.name for c in convs[:5]) or "none"
            raise ModelError(f"pattern {pattern!r} matches no Conv that can be split; those are {names}, ...")
    return [
        c
        for c in convs
        if (not include or any(fnmatchcase(c.name, p) for p in include))
        and not any(fnmatchcase(c.name, p) for p in exclude)
    ]


def _steps(
    traced: Traced, convs: Sequence[Dense], groups: Sequence[int], multiple_of: int, timed: bool, left: list[str],
    progress: Progress,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Timed]]:  # fmt: skip
    """Return the numbers of groups that each Conv may have and its times, by its output; tell `left` why not."""
    counts = {c.y: possible(c, groups, multiple_of) for c in convs}
    tried = [(c, counts[c.y]) for c in convs if counts[c.y]]
    for c in convs:
        if not counts[c.y]:
            outs, ins = c.widths
            left.append(f"{c.name}: groups of {ins} to {outs} channels would not be multiples of {multiple_of}")
    times: dict[str, Timed] = {}
    for number, found in enumerate(time_convs(traced, tried) if timed else ()):
        progress("time", number, len(tried))
        conv, _ = tried[number]
        times[conv.y] = found
        counts[conv.y] = found.faster()
        if not counts[conv.y]:
            told = ", ".join(f"{ms:.3g} ms in {k}" for k, ms in found.milliseconds.items() if k > 1)
            left.append(f"{conv.name}: not faster in groups ({told}, {found.milliseconds[1]:.3g} whole)")
    return counts, times


def _more(left: Sequence[str]) -> str:
    return f", and {len(left) - 1} more" if len(left) > 1 else ""


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
    names = [o.name for o in traced.shaped.graph.model.graph.output]
    times = latencies(traced.backend, [traced.source, made], usual_batch(traced, data))
    fewer = [(c, chosen[c.y]) for c in convs if c.y in chosen]
    gone = sum(
        int(np.prod(shape)) - int(np.prod(shape)) // k for c, k in fewer for shape in [traced.shaped.shapes[c.w]]
    )
    cost = traced.cost
    macs = (cost.macs(), cost.macs() - sum(saved(c, k) for c, k in fewer))
    params = (cost.params(), cost.params() - gone)
    before, after = (
        Figures(m, p, file_size(one), ms, scores(found, outputs[0], data.labels, names, judge))
        for m, p, one, ms, found in zip(macs, params, (traced.source, made), times, outputs, strict=True)
    )
    return before, after
