"""Two models held to each other where they choose by what they compute, and rounding tips some of the choices.

A class of the largest score, boxes that overlap by half, the ten best: of near ties one model takes this and another
that, and what is made of them has nothing in common then. So all that choices are made by is compared, and with it the
outputs, once the one model takes over the choices of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from onnxshap.calibrate import batches, usual_size
from onnxshap.core import Array, Dataset
from onnxshap.endings import REALS, jumps
from onnxshap.errors import ModelError
from onnxshap.graph import is_op
from onnxshap.graph.names import Names
from onnxshap.graph.structure import copied, keep_only, subgraphs
from onnxshap.tracing import Traced
from onnxshap.verify.errors import Verified, compare

_STEPS = ("Ceil", "Floor", "Mod", "Round", "Sign")
"""Ops that give real numbers and are no continuous functions."""


@dataclass(frozen=True)
class Form:
    """A form of a model that can be run.

    Attributes:
        traced: tells what it may be fed.
        model: what is run.
        extra: further feeds, the same for every batch.
    """

    traced: Traced
    model: ModelProto
    extra: Mapping[str, Array] = field(default_factory=dict)


def chosen_alike(traced: Traced, made: ModelProto, twin: Form, data: Dataset) -> Verified | None:
    """Return how far a model is from its twin before every choice and, with the twin's choices, in its outputs.

    Args:
        traced: the original, as it is in its file; tells what `made` may be fed.
        made: the model.
        twin: what should compute the same.
        data: real inputs.

    Returns:
        None where the two choose the same, or not among the same.
    """
    pairs = _both(traced, made, twin, data, _choosing(traced, made, twin.model))
    if pairs is None:
        return None
    largest = [np.array([max(_magnitude(wanted[k]) for _, wanted in pairs)]) for k in range(len(pairs[0][0]))]
    found = []
    for got, wanted in pairs:
        finite = [_finite(a, b) for a, b in zip(got, wanted, strict=True)]
        found.append(compare([a for a, _ in finite], [b for _, b in finite], largest))
    return Verified(
        max(f.max_abs_err for f in found),
        max(f.rel_err for f in found),
        len(data),
        float(np.median([f.typical for f in found])),
    )


def _choosing(traced: Traced, made: ModelProto, twin: ModelProto) -> list[NodeProto]:
    """Return the nodes of both that make something of real numbers which jumps."""
    kinds, known = traced.shaped.kinds, _computed(made)

    def steps(node: NodeProto) -> bool:
        return is_op(node, *_STEPS) and any(kinds.get(name) in REALS for name in node.input)

    return [
        node
        for node in twin.graph.node
        if (jumps(node, kinds) or steps(node))
        and not any(subgraphs(node))
        and known.issuperset(name for name in node.output if name)
    ]


def _computed(model: ModelProto) -> set[str]:
    return {o for node in model.graph.node for o in node.output}


def _both(
    traced: Traced, made: ModelProto, twin: Form, data: Dataset, nodes: Sequence[NodeProto]
) -> list[tuple[list[Array], list[Array]]] | None:
    """Return what both compute, batch by batch, with the twin's choices; None as `chosen_alike` does."""
    kinds, known = traced.shaped.kinds, _computed(made) & _computed(twin.model)
    chosen = {
        node.output[0]: [o for o in node.output if o and (kinds.get(o) not in REALS or is_op(node, *_STEPS))]
        for node in nodes
    }
    reads = {node.output[0]: [name for name in node.input if name in known] for node in nodes}
    try:
        own = traced.backend.session(_telling(made, chain(*chosen.values())))
        told = traced.backend.session(_telling(twin.model, chain(*chosen.values(), *reads.values())))
        runs = []
        for _, feeds in batches(traced, data, usual_size(traced), least=2):
            first, second = own.run(feeds), told.run({**feeds, **twin.extra})
            runs.append(
                (feeds, dict(zip(own.outputs, first, strict=True)), dict(zip(told.outputs, second, strict=True)))
            )
        # of what is cut the two choose among different things: channel by channel, where a step is no tie of others
        alike = [n for n, names in chosen.items() if all(a[o].shape == b[o].shape for _, a, b in runs for o in names)]
        taken = {o for n in alike for o in chosen[n]}
        if all(np.array_equal(a[o], b[o], equal_nan=b[o].dtype.kind == "f") for _, a, b in runs for o in taken):
            return None
        model = _taking(_telling(made, chain(*(reads[n] for n in alike))), {o: runs[0][2][o].dtype for o in taken})
        session = traced.backend.session(model)
        return [
            (session.run({**feeds, **{o: b[o] for o in taken}}), [b[name] for name in session.outputs])
            for feeds, _, b in runs
        ]
    except ModelError:  # what the twin chooses is not there to be chosen
        return None


def _telling(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Return a model that gives some of its tensors, too."""
    made = copied(model)
    known = {o.name for o in made.graph.output}
    made.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    return made


def _taking(model: ModelProto, kinds: Mapping[str, np.dtype[Any]]) -> ModelProto:
    """Return a model that is given some of its tensors instead of making them."""
    made = copied(model)
    names = Names(made.graph)
    for node in made.graph.node:
        for k, name in enumerate(node.output):
            if name in kinds:
                node.output[k] = names.new(f"{name}.own")
    keep_only(made.graph.output, lambda output: output.name not in kinds)
    made.graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
        for name, dtype in sorted(kinds.items())
    )
    return made


def _magnitude(value: Array) -> float:
    whole = np.abs(value.astype(np.float64)) if value.dtype.kind in "fiub" else np.zeros(0)
    return float(whole[np.isfinite(whole)].max(initial=0.0))


def _finite(got: Array, wanted: Array) -> tuple[Array, Array]:
    """Return two arrays without what is infinite in both, alike."""
    if got.shape != wanted.shape or wanted.dtype.kind != "f":
        return got, wanted
    same = np.isinf(wanted) & (got == wanted)
    return np.where(same, 0, got), np.where(same, 0, wanted)
