"""Loops that fill sequences as often as the file says: what every iteration does stands in the graph around them.

Exporters write them where a tensor is split at places that they list; rules tell of axes, and a sequence has none, so
what is read of one is found once it is known what fills it (`sequences`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from onnxshap.graph.branches import Moved, inlined, rename
from onnxshap.graph.lifting import body
from onnxshap.graph.names import Names
from onnxshap.graph.nodes import array, attributes, tensor
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import reads, refill, subgraphs

_MOST = 64
"""Iterations that are written out."""
_SMALL = 8
"""Real numbers that are no weights."""


def unroll(graph: GraphProto, moved: Moved) -> None:
    """Put its iterations in place of each Loop of a graph that holds a sequence, no weights and runs a known times.

    Args:
        graph: a graph without Constant nodes, changed in place.
        moved: told of every tensor that is moved.
    """
    stored = {t.name: t for t in graph.initializer}
    times = {n.output[0]: found for n in graph.node if is_op(n, "Loop") if (found := _times(n, stored)) is not None}
    if not times:
        return
    taken, nodes = Names(graph), list[NodeProto]()
    for node in graph.node:
        if node.output[0] in times:
            nodes += _written_out(graph, node, times[node.output[0]], taken, moved)
        else:
            nodes.append(node)
    refill(graph.node, nodes)


def _written_out(graph: GraphProto, loop: NodeProto, times: int, taken: Names, moved: Moved) -> list[NodeProto]:
    """Return the nodes of all iterations of a loop."""
    inside, where = body(loop), moved.inside(loop, "body")
    nodes, states = list[NodeProto](), list(loop.input[2:])
    for number in range(times):
        if number:
            taken.again(inside)
        ends = number == times - 1
        outputs = [name or taken.new(f"{loop.output[0]}.unread") for name in ("", *loop.output)] if ends else []
        part = inlined(inside, where, taken, graph, moved, outputs)
        counted, going, *given = part.inputs
        for name, item, value in zip((counted, going), inside.input, (number, True), strict=False):
            rank = len(item.type.tensor_type.shape.dim)  # as onnxruntime has it: one entry where an axis is declared
            graph.initializer.append(tensor(name, np.full((1,) * rank, value)))
        for node in part.nodes:
            rename(node, dict(zip(given, states, strict=True)))
        nodes += part.nodes
        states = part.outputs[1:]
    taken.replaced(loop)
    return nodes


def _times(loop: NodeProto, stored: Mapping[str, TensorProto]) -> int | None:
    """Return how often a loop runs that is to be written out; None of any other."""
    inside = body(loop)
    own = {**stored, **{t.name: t for t in inside.initializer}}
    own |= {n.output[0]: value for n in inside.node if (value := _constant(n)) is not None}
    if not _fills(inside, len(loop.input) - 2, len(loop.output)) or loop.input[0] not in stored:
        return None
    small = all(_is_small(own[name]) for name in _constants_read(inside, own))
    if not small or not _goes_on(loop, inside, stored, own):
        return None
    times = int(array(stored[loop.input[0]]).item())
    return times if 0 < times <= _MOST else None


def _fills(inside: GraphProto, states: int, outputs: int) -> bool:
    """Return whether a body holds a sequence, makes all that it hands on anew, and gives nothing else."""
    made = {name for node in inside.node for name in node.output}
    handed = [item.name for item in inside.output]
    sequence = any(item.type.WhichOneof("value") == "sequence_type" for item in inside.input)
    new = made.issuperset(handed[1:]) and len(set(handed)) == len(handed)
    plain = not any(True for node in inside.node for _ in subgraphs(node))
    return sequence and new and plain and len(handed) == 1 + states == 1 + outputs


def _goes_on(
    loop: NodeProto, inside: GraphProto, stored: Mapping[str, TensorProto], own: Mapping[str, TensorProto]
) -> bool:
    """Return whether nothing ends a loop before it has run as often as it is told.

    Args:
        loop, inside: it, and its body.
        stored, own: what is stored around the body, and in it too: both may give different things one name.
    """
    sources = {n.output[0]: n.input[0] for n in inside.node if is_op(n, "Identity")}
    name = inside.output[0].name
    while name in sources:
        name = sources[name]
    on = name == inside.input[1].name or (name in own and bool(array(own[name]).all()))
    starts = all(given in stored and bool(array(stored[given]).all()) for given in filter(None, loop.input[1:2]))
    return on and starts


def _constant(node: NodeProto) -> TensorProto | None:
    given = attributes(node) if is_op(node, "Constant") else {}
    return given.get("value")


def _constants_read(inside: GraphProto, own: Collection[str]) -> list[str]:
    return [name for node in inside.node for name in (*reads(node), *node.output) if name in own]


def _is_small(stored: TensorProto) -> bool:
    integers = stored.data_type in (TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64)
    return integers or int(np.prod(stored.dims)) <= _SMALL
