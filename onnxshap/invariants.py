"""Constants that every iteration of a Loop or Scan hands on as they are: its body reads them from outside instead.

Exporters without captured values (tf2onnx) carry the weights of a recurrent cell through its loop that way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from onnx import GraphProto, NodeProto, helper

from onnxshap.branches import names_in, rename
from onnxshap.lifting import body, is_loop
from onnxshap.structure import graphs_of, refill, used_names


def read_from_outside(graph: GraphProto) -> None:
    """Take such states out of the loops of a graph and of the graphs in its nodes, the innermost first."""
    parts = list(graphs_of(graph))
    stored = {t.name for part in parts for t in part.initializer}
    stored.update(n.output[0] for part in parts for n in part.node if n.op_type == "Constant")
    for part in reversed(parts):
        nodes: list[NodeProto] = []
        for node in part.node:
            nodes += [node, *_taken_out(node, stored)] if is_loop(node) else [node]
        if len(nodes) > len(part.node):
            refill(part.node, nodes)


def _taken_out(loop: NodeProto, stored: Collection[str]) -> Iterator[NodeProto]:
    """Take them out of one loop; yield nodes that give what the loop gave for them."""
    inside = body(loop)
    counters = 2 if loop.op_type == "Loop" else 0
    if len(loop.input) != len(inside.input):
        return  # a Scan of the first opset that had one, with lengths
    scanned = next((a.i for a in loop.attribute if a.name == "num_scan_inputs"), 0)
    states = len(loop.input) - counters - scanned
    sources = {n.output[0]: n.input[0] for n in inside.node if _is_identity(n)}
    handed = [item.name for item in inside.output]
    taken = names_in(inside)
    for state in reversed(range(states)):
        outer, given = loop.input[counters + state], inside.input[counters + state].name
        place = counters // 2 + state
        source = handed[place]
        while source in sources:
            source = sources[source]
        alone = len(inside.output) - counters // 2 == 1  # a loop gives something
        others = handed[:place] + handed[place + 1 :]
        if source != given or outer not in stored or outer in taken or alone or given in others:
            continue
        result = loop.output[state] if state < len(loop.output) else ""
        del inside.input[counters + state], inside.output[place], handed[place], loop.input[counters + state]
        del loop.output[state : state + 1]
        for node in inside.node:
            rename(node, {given: outer})
        if result:
            yield helper.make_node("Identity", [outer], [result], name=result)
    used = used_names(inside)
    refill(inside.node, [n for n in inside.node if not _is_identity(n) or n.output[0] in used])


def _is_identity(node: NodeProto) -> bool:
    return node.op_type == "Identity" and node.domain in ("", "ai.onnx")
