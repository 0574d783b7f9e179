"""The pass: Convs become Convs in groups, where these run faster here, measured in turn with the whole ones.

What is taken together saves most for what it loses, weighed on some images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxshap.calibrate import run_all
from onnxshap.core import Dataset
from onnxshap.graph import attributes, extract, finish
from onnxshap.measure import latencies
from onnxshap.payoffs import Fidelity
from onnxshap.pivoting.convs import Dense, Wanted
from onnxshap.pivoting.grouping import grouped, zeroed
from onnxshap.pivoting.permuting import Classes, orders, permuted
from onnxshap.progress import Progress
from onnxshap.repair import QUICK, Refit, refit_edited, rematch_edited
from onnxshap.repair.transfer import transfer
from onnxshap.tracing import Traced
from onnxshap.verify import Verified, check_loads, verify_twin

WEIGHED = 200
"""Images on which layers are weighed against each other."""
_FASTER = 0.95
"""Share of the time with fewer groups that more of them may take."""
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
    fidelity = Fidelity.of(run_all(traced, traced.source, data), traced.outputs)
    model, found = placed_model(free, placed), list[float]()
    for number, one in enumerate(wanted):
        progress("weigh", number, len(wanted))
        made = grouped(model.shaped.graph.model, {one.conv.y: one.groups})
        if repair == "lstsq":
            refit_edited(model, made, [one.conv.index], data, nearest=True, effort=QUICK)
        lost = fidelity.lost(run_all(free, made, data))
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
