"""Bodies of If, Loop and Scan: which may be lifted, which stay whole and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from onnxshap.backend import Backend
from onnxshap.core import Array
from onnxshap.graph import Graph, extract, is_op
from onnxshap.graph.lifting import BRANCHES, body, entered, handed, is_if, is_loop, is_open, liftable
from onnxshap.graph.loops import controls, deciding
from onnxshap.shapes.folding import Shape

_CHOOSABLE = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
    )
)
"""Element types of which onnxruntime has a Where."""


def why_whole(node: NodeProto, lifted: Sequence[NodeProto]) -> str:
    """Return why no cut goes through an If."""
    missing = [branch for branch in BRANCHES if branch not in liftable(node)]
    if node.output[0] in {one.output[0] for one in lifted}:
        kept = [branch for branch in BRANCHES if handed(body(node, branch)) is None]
        if not kept:
            return "its branches give tensors of other shapes or types"
    else:
        kept = list(BRANCHES)
    if set(kept) <= set(missing):
        return f"its {kept[0]} draws random numbers or stores sparse ones, and stays whole"
    names = " and ".join(kept)
    return f"its {names} stays whole: not taken by the inputs, or not to be run at these sizes"


def why_loop_whole(node: NodeProto) -> str:
    """Return why no cut goes through a Loop or Scan."""
    if not liftable(node):
        return "its body draws random numbers, stores sparse ones, or is of an opset before 9, and stays whole"
    return "its body stays whole: it is not run at these sizes, or not as often each time"


def decided_by(graph: Graph, inputs: Collection[str]) -> bool:
    """Return whether the values of some inputs decide which branch of an If is run, or how often a loop is."""
    nodes = (*graph.nodes, *graph.lifted.nodes)
    open_ = entered(graph.nodes)
    loops = [n for n in nodes if is_open(n, open_)]
    wanted = {n.input[0] for n in nodes if is_if(n)}
    wanted.update(name for loop in loops for name in controls(loop))
    wanted.update(name for n in nodes if is_loop(n) and n not in loops for name in n.input[:2] if n.op_type == "Loop")
    return not deciding(graph.nodes, loops, wanted).isdisjoint(inputs)


def alike_handed(node: NodeProto, graph: Graph, runs: Sequence[Mapping[str, Shape]], kinds: Mapping[str, int]) -> bool:
    """Return whether both bodies of a lifted If hand tensors of one shape and type through, for every output."""
    present = next((n for n in graph.nodes if n.output[0] == node.output[0] and is_op(n, "If")), None)
    sides = [None if present is None else handed(body(present, branch)) for branch in BRANCHES]
    if present is None or sides[0] is None or sides[1] is None:
        return False
    ranks = [len(known.get(present.input[0], ())) for known in runs]
    for yes, no, output in zip(sides[0], sides[1], present.output, strict=True):
        names = [yes, no, *([output] if output else [])]
        if len({kinds.get(name) for name in names}) > 1 or kinds.get(yes) not in _CHOOSABLE:
            return False
        for rank, known in zip(ranks, runs, strict=True):
            if len({known.get(name) for name in names}) > 1 or len(known.get(yes, ())) < rank:
                return False
    return True


def open_bodies(
    graph: Graph, done: Collection[str], samples: Sequence[Mapping[str, Array]], backend: Backend
) -> dict[str, list[str]]:
    """Return first output -> bodies, of the nodes that may be lifted and were not tried."""
    open_ = entered(graph.nodes)
    left = [n for n in graph.nodes if (is_if(n) or (is_loop(n) and not is_open(n, open_))) and n.output[0] not in done]
    found = {n.output[0]: liftable(n) for n in left}
    choices = [n for n in left if is_if(n)]
    if samples and choices:
        taken = _taken(graph, {n.input[0] for n in choices}, samples, backend)
        for node in choices:
            wanted = {BRANCHES[0] if value else BRANCHES[1] for value in taken[node.input[0]]}
            found[node.output[0]] = [branch for branch in found[node.output[0]] if branch in wanted]
    return {name: bodies for name, bodies in found.items() if bodies}


def _taken(
    graph: Graph, conditions: Collection[str], samples: Sequence[Mapping[str, Array]], backend: Backend
) -> dict[str, set[bool]]:
    """Return the values that conditions have on samples."""
    computed = sorted(name for name in conditions if name not in samples[0])
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.model.graph.input}
    found: dict[str, set[bool]] = {name: set() for name in conditions}
    session = (
        backend.session(extract(graph.model, kinds, dict.fromkeys(computed, TensorProto.BOOL))) if computed else None
    )
    for sample in samples:
        values = dict(sample)
        if session is not None:
            values |= zip(computed, session.run({n: sample[n] for n in session.inputs}), strict=True)
        for name in conditions:  # one value, or one an iteration of the loops around it
            found[name].update(np.ravel(values[name]).astype(np.bool_).tolist())
    return found


def attempts(branches: Mapping[str, list[str]]) -> Iterator[dict[str, list[str]]]:
    """Yield what may be lifted at once, best first: all of it, then of the first If alone, both bodies or one."""
    name = next(iter(branches))
    if len(branches) > 1:
        yield dict(branches)
    yield {name: branches[name]}
    if len(branches[name]) > 1:
        yield from ({name: [branch]} for branch in branches[name])
