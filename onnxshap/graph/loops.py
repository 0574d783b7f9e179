"""Loop and Scan nodes whose bodies stand in the main graph (`lifting`): what lies inside, the border, and the way back.

What depends on an `Enter` is in a body, all else is outside of it, or may be: it is the same at every iteration. A
tensor of a body that somebody wants to see leaves it as one more scan output, an entry an iteration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorShapeProto, helper

from onnxshap.graph.branches import rename
from onnxshap.graph.lifting import body, entered, handed, is_enter, is_open, put_back
from onnxshap.graph.names import Names
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import copied, graphs_of, order, reads, subgraphs


def depths(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """Return name -> in how many bodies it is made, of the tensors that are made in one.

    Args:
        nodes: those of a graph, each behind what it reads.
    """
    return {name: len(around) for name, around in _around(nodes).items()}


def _around(nodes: Sequence[NodeProto]) -> dict[str, tuple[int, ...]]:
    """Return name -> the Loop and Scan nodes in whose bodies it is made, outermost first."""
    ends = {given: k for k, given in _open_loops(nodes)}
    around: dict[int, set[int]] = {k: set() for k in ends.values()}
    while True:
        found: dict[str, set[int]] = {}
        before = {k: set(others) for k, others in around.items()}
        for k, node in enumerate(nodes):
            inside = set[int]().union(*(found.get(name, ()) for name in reads(node))) - {k}
            if is_enter(node) and (end := ends.get(tuple(node.output))) is not None:
                inside |= {end, *around[end]}
            if k in around:
                around[k] |= inside
            found.update((name, inside) for name in node.output if name and inside)
        if around == before:  # whatever is in a body is in all bodies that its loop is in
            return {name: tuple(sorted(inside, reverse=True)) for name, inside in found.items()}


def _open_loops(nodes: Sequence[NodeProto]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the Loop and Scan nodes whose bodies stand beside them, and the names of what those are given."""
    given = entered(nodes)
    for k, node in enumerate(nodes):
        if is_open(node, given):
            yield k, tuple(i.name for i in body(node).input)


# --- the way back ----------------------------------------------------------------------------------------------------


def closed(model: ModelProto, wanted: Collection[str] = ()) -> ModelProto:
    """Return a model that can be run: all that depends on an Enter is in the body that it was in.

    Args:
        model: any model; one without an Enter is returned as it is.
        wanted: names of tensors that stay what they are called, like the outputs of the model. Those made in bodies
            have more axes in front, one a body around them: the iterations, the outermost body's first.
    """
    if not any(is_enter(node) for node in model.graph.node):
        return model
    made = copied(model)
    graph = made.graph
    places = order(graph.node)
    assert places is not None
    nodes = [copied(graph.node[k]) for k in places]
    around = _around(nodes)
    seen = [name for name in dict.fromkeys([*(o.name for o in graph.output), *wanted]) if name in around]
    taken = Names(graph)
    inner = {name: taken.new(f"{name}.inside") for name in seen}
    if inner:
        for item in [i for k, _ in _open_loops(nodes) for i in body(nodes[k]).input]:
            item.name = inner.get(item.name, item.name)
        for node in nodes:
            rename(node, inner)
    inside = {inner.get(name, name) for name in around}
    for name in seen:
        current = inner[name]
        for k in reversed(around[name]):
            out = name if k == around[name][0] else taken.new(f"{name}.entries")
            _add_scan_output(nodes[k], current, taken.new(f"{name}.handed"), out)
            inside.add(current)
            current = out
    put_back(graph, nodes, [], frozenset(o for node in nodes for o in node.output if o not in inside))
    ranks = {inner.get(item.name, item.name): copied(item) for item in graph.value_info}
    del graph.value_info[:]
    for part in (part for node in graph.node for place in subgraphs(node) for part in graphs_of(place)):
        for name in (name for node in part.node for name in node.output if name in ranks):
            part.value_info.add().CopyFrom(ranks[name])
            part.value_info[-1].name = name
    return made


def _add_scan_output(node: NodeProto, source: str, handed: str, output: str) -> None:
    """Let a tensor out of a body: its entries of all iterations, on an axis in front."""
    inside = body(node)
    inside.node.append(helper.make_node("Identity", [source], [handed]))
    inside.output.add(name=handed)
    node.output.append(output)
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)


# --- the border ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """A tensor of a body and one that holds the same.

    Attributes:
        inner: in the body.
        outer: what the Loop or Scan reads (`in`) or gives (`out`), or what the body gives for the next iteration
            (`on`), in place of `inner`.
        way: one of these.
        axis: of `outer`, along which the iterations lie; None = there are none, every axis is one of `inner`.
    """

    inner: str
    outer: str
    way: Literal["in", "on", "out"]
    axis: int | None = None


def passages(node: NodeProto) -> Iterator[Passage]:
    """Yield all passages of a Loop or Scan whose body stands beside it, those of absent tensors left out."""
    given, handed = [i.name for i in body(node).input], handed_on(node)
    axes: dict[str, Sequence[int]] = {a.name: a.ints for a in node.attribute if a.type == AttributeProto.INTS}
    first, states = leading(node)
    slices = len(given) - first - states
    sources, results = node.input[first:], handed[first // 2 :]
    outputs = [*node.output, *[""] * len(results)]  # the last ones may be left out
    for k, inner in enumerate(given[first : first + states]):
        yield Passage(inner, sources[k], "in")
        yield Passage(inner, results[k], "on")
        if outputs[k]:
            yield Passage(inner, outputs[k], "out")
    for k, inner in enumerate(given[first + states :]):
        yield Passage(inner, sources[states + k], "in", axes.get("scan_input_axes", [0] * slices)[k])
    for k, inner in enumerate(results[states:]):
        if outputs[states + k]:
            yield Passage(inner, outputs[states + k], "out", axes.get("scan_output_axes", [0] * len(results))[k])


def controls(node: NodeProto) -> list[str]:
    """Return the tensors by which a Loop counts its iterations, and goes on or not."""
    first, _ = leading(node)
    given = [i.name for i in body(node).input[:first]]
    return [name for name in (*node.input[:first], *given, *handed_on(node)[: first // 2]) if name]


def sources(node: NodeProto) -> dict[str, list[str]]:
    """Return, of all that a body is given: what it is at the first iteration, and at the others."""
    given = [i.name for i in body(node).input]
    found: dict[str, list[str]] = {name: [] for name in given}
    for passage in passages(node):
        if passage.way != "out":
            found[passage.inner].append(passage.outer)
    if leading(node)[0]:
        found[given[0]].append(node.input[0])
        found[given[1]] += [*node.input[1:2], handed_on(node)[0]]
    return {name: [outer for outer in outers if outer] for name, outers in found.items()}


def deciding(nodes: Sequence[NodeProto], loops: Iterable[NodeProto], wanted: Iterable[str]) -> set[str]:
    """Return the tensors whose values, not sizes, decide those of some.

    Args:
        nodes: of the main graph.
        loops: those nodes of it whose bodies stand there too.
        wanted: the tensors.
    """
    behind = {inner: outers for loop in loops for inner, outers in sources(loop).items()}
    reached = set(wanted)
    before = 0
    while len(reached) > before:  # what an iteration decides the next one may hand on
        before = len(reached)
        for node in reversed(nodes):
            if is_enter(node):
                reached.update(name for inner in node.output if inner in reached for name in behind[inner])
            elif not reached.isdisjoint(node.output) and not is_op(node, "Shape", "Size"):
                reached.update(reads(node))
    return reached


def declare_ranks(graph: GraphProto, shapes: Mapping[str, Sequence[int]], kinds: Mapping[str, int]) -> None:
    """Declare the ranks of what stands in a graph instead of in bodies, of what those are given and give too.

    onnxruntime runs no Scan that gives a tensor of unknown rank, and cannot always find it in a part of a model.
    """
    for k, given in _open_loops(graph.node):
        inside, handed = body(graph.node[k]), handed_on(graph.node[k])
        for item, name in (*zip(inside.input, given, strict=True), *zip(inside.output, handed, strict=True)):
            if name not in shapes or item.type.tensor_type.HasField("shape"):
                continue
            if not item.type.tensor_type.elem_type:
                if name not in kinds:
                    continue
                item.type.tensor_type.elem_type = kinds[name]
            item.type.tensor_type.shape.dim.extend(TensorShapeProto.Dimension() for _ in shapes[name])
    graph.value_info.extend(
        helper.make_tensor_value_info(name, kinds[name], [None] * len(shapes[name]))
        for name in depths(graph.node)
        if name in shapes and name in kinds
    )


def leading(node: NodeProto) -> tuple[int, int]:
    """Return how many inputs of a Loop or Scan tell how often its body runs, and how many states follow.

    Of what the body gives, half as many tell that, and as many states follow.
    """
    first = 2 if node.op_type == "Loop" else 0
    slices = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
    return first, len(body(node).input) - first - slices


def handed_on(node: NodeProto) -> list[str]:
    """Return the tensors of the main graph that the body of a node gives, which stands there."""
    found = handed(body(node))
    assert found is not None
    return found
