"""Constants that every iteration of a Loop or Scan hands on as they are: its body reads them from outside instead.

Exporters without captured values (tf2onnx) carry the weights of a recurrent cell through its loop that way.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import GraphProto, NodeProto

from onnxshap.graph.branches import Moved, rename
from onnxshap.graph.lifting import body, is_loop
from onnxshap.graph.loops import leading
from onnxshap.graph.names import Names
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import graphs_of, keep_only, used_names


def read_from_outside(graph: GraphProto, moved: Moved) -> None:
    """Take such states out of the loops of a graph and of the graphs in its nodes, where nothing reads them behind.

    Args:
        graph: a graph, changed in place.
        moved: told of loops that are called otherwise then (nodes are named by their first outputs), and of the places
            of what they read.
    """
    parts = list(graphs_of(graph))
    stored = {t.name for part in parts for t in part.initializer}
    stored.update(n.output[0] for part in parts for n in part.node if n.op_type == "Constant")
    for part in parts:
        used = used_names(part)
        for node in part.node:
            if is_loop(node):
                _take_out(node, stored, used, moved)


def _take_out(loop: NodeProto, stored: Collection[str], used: Collection[str], moved: Moved) -> None:
    inside = body(loop)
    if len(loop.input) != len(inside.input):
        return  # a Scan of the first opset that had one, with lengths
    first, states = leading(loop)
    sources = {n.output[0]: n.input[0] for n in inside.node if is_op(n, "Identity")}
    handed, taken = [item.name for item in inside.output], Names(inside)
    found, called, places = {}, loop.output[0], list(range(len(loop.input)))
    for state in reversed(range(states)):
        outer, given = loop.input[first + state], inside.input[first + state].name
        place = first // 2 + state
        source = handed[place]
        while source in sources:
            source = sources[source]
        others = handed[:place] + handed[place + 1 :]
        read = any(name in used for name in loop.output[state : state + 1])
        gives = len(others) > first // 2  # a loop gives something
        if source == given and outer in stored and outer not in taken and given not in others and gives and not read:
            found[given] = outer
            del inside.input[first + state], inside.output[place], handed[place]
            del loop.input[first + state], places[first + state], loop.output[state : state + 1]
    if found:
        if loop.output[0] != called:
            moved.rename(loop.output[0], called)
        moved.places |= {(loop.output[0], k): place for k, place in enumerate(places) if k != place}
        for node in inside.node:
            rename(node, found)
        left = used_names(inside)
        keep_only(inside.node, lambda n: not is_op(n, "Identity") or n.output[0] in left)
