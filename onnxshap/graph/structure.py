"""What nodes read and make, through subgraphs; and whether a graph is one: every name made once, before it is read."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, MutableSequence, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper

from onnxshap.errors import ModelError
from onnxshap.graph.standard import is_op

_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
"""Ops that draw their values anew at every run."""


_M = TypeVar("_M", bound=Message)


def copied(message: _M) -> _M:
    """Return a copy of a node, a tensor, a graph or a model."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def refill(field: MutableSequence[_M], items: Iterable[_M]) -> None:
    """Replace what a repeated field holds by copies of other items, which may be its own."""
    copies = [copied(item) for item in items]
    del field[:]
    field.extend(copies)


def keep_only(field: MutableSequence[_M], wanted: Callable[[_M], bool]) -> None:
    """Take out of a repeated field what is not wanted; the other items stay where they are in memory."""
    for k in reversed(range(len(field))):
        if not wanted(field[k]):
            del field[k]


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs in a node's attributes (bodies of If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from graphs_of(body)


def outer_names(graph: GraphProto) -> list[str]:
    """Return every name that a subgraph and its subgraphs take from outside, once, in the order of reading."""
    names = dict.fromkeys([*(name for node in graph.node for name in reads(node)), *(o.name for o in graph.output)])
    own = {name for node in graph.node for name in node.output} | {i.name for i in graph.input}
    own |= {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return [name for name in names if name not in own]


def reads(node: NodeProto) -> list[str]:
    """Return every tensor that a node reads, those that its subgraphs take from outside included."""
    found = [name for name in node.input if name]
    for body in subgraphs(node):
        found += outer_names(body)
    return found


def between(nodes: Sequence[NodeProto], inputs: Collection[str], outputs: Collection[str]) -> list[NodeProto]:
    """Return the nodes, in order, that make some tensors out of others and of what the graph is given."""
    producers = {name: k for k, node in enumerate(nodes) for name in node.output if name and name not in inputs}
    found, pending = set[int](), list(outputs)
    while pending:
        k = producers.get(pending.pop())
        if k is not None and k not in found:
            found.add(k)
            pending += reads(nodes[k])
    return [nodes[k] for k in sorted(found)]


def used_names(graph: GraphProto) -> set[str]:
    """Return every name that a node of a graph or an output of it reads."""
    return {name for node in graph.node for name in reads(node)} | {o.name for o in graph.output}


def title(node: NodeProto) -> str:
    """Return what a message calls a node: its name, or its first output's, and its op."""
    name = node.name or next((o for o in node.output if o), "")
    return f"{name!r} ({node.op_type})"


def is_random(node: NodeProto) -> bool:
    """Return whether a node draws its values anew at every run: a Dropout only where it may be told to train."""
    return is_op(node, *_RANDOM) or (is_op(node, "Dropout") and len(node.input) > 2 and bool(node.input[2]))


def seeded(model: ModelProto) -> ModelProto:
    """Return a model whose ops draw the same random numbers in every session, in whatever form of it they stand.

    onnxruntime would seed those that have no seed by the clock and by their place among the nodes.
    """
    if not any(is_random(node) for graph in graphs_of(model.graph) for node in graph.node):
        return model
    made = copied(model)
    for node in (node for graph in graphs_of(made.graph) for node in graph.node if is_random(node)):
        if not any(a.name == "seed" for a in node.attribute):
            seed = zlib.crc32(node.output[0].encode()) % 2**20
            node.attribute.append(helper.make_attribute("seed", seed if is_op(node, "Dropout") else float(seed)))
    return made


def check_structure(model: ModelProto) -> None:
    """Check that a model's graph is well formed.

    Raises:
        ModelError: a name is made twice or never, a node has no op or makes nothing, no operator set is imported, or
            the graph has a cycle.
    """
    if not model.opset_import and not all(node.domain for node in model.graph.node):
        raise ModelError("it imports no operator set, so its ops have no meaning; export it again")
    if (name := _repeated([o.name for o in model.graph.output])) is not None:
        raise ModelError(f"output {name!r} is listed twice; list every output once, or export it again")
    _check_graph(model.graph, frozenset(), "")


def _check_graph(graph: GraphProto, outside: frozenset[str], where: str) -> None:
    inputs = [i.name for i in graph.input]
    stored = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    made = [name for node in graph.node for name in node.output if name]
    for what, names in (("graph inputs", inputs), ("initializers", stored), ("outputs of nodes", made)):
        if (name := _repeated(names)) is not None:
            raise ModelError(f"two {what} are named {name!r}{where}; give every tensor one name, or export it again")
    if (part := next((t.name for t in graph.initializer if t.HasField("segment")), None)) is not None:
        raise ModelError(f"initializer {part!r}{where} is stored in segments, which nothing reads; export it again")
    given = set(inputs) | set(stored)
    if clash := next((name for name in made if name in given), None):
        raise ModelError(
            f"{clash!r} is made by a node and given as an input or initializer{where}; "
            "give every tensor one name, or export it again"
        )
    known = frozenset(outside.union(given, made))
    for number, node in enumerate(graph.node):
        if not node.op_type or not any(node.output):
            lacks = "makes nothing" if node.op_type else "has no op type"
            raise ModelError(f"node {number} ({node.name!r}){where} {lacks}; take it out, or export the model again")
        missing = next((name for name in node.input if name and name not in known), None)
        if missing is not None:
            raise ModelError(
                f"node {title(node)} reads {missing!r}{where}, which nothing makes; mend the graph, or export it again"
            )
        if (own := next((a for a in node.attribute if a.ref_attr_name), None)) is not None:
            raise ModelError(
                f"attribute {own.name!r} of node {title(node)}{where} refers to one of a function around it, "
                "and there is none; mend the graph, or export it again"
            )
        if is_op(node, "Loop") and _runs_for_ever(node):
            raise ModelError(
                f"node {title(node)}{where} has no trip count and hands its condition on: it would never end; "
                "mend the graph, or export it again"
            )
        for body in subgraphs(node):
            _check_graph(body, known, f" in a body of {title(node)}")
    if missing := next((o.name for o in graph.output if o.name not in known), None):
        raise ModelError(f"output {missing!r}{where} is made by no node; mend the graph, or export it again")
    if order(graph.node) is None:
        raise ModelError(f"the graph has a cycle{where}: {_cycle(graph.node)}; mend it, or export it again")


def _runs_for_ever(loop: NodeProto) -> bool:
    """Return whether nothing ends a Loop: no trip count, and the condition that its body is given, or a constant."""
    body = next((a.g for a in loop.attribute if a.name == "body"), None)
    return body is not None and not any(loop.input[:1]) and goes_on(body)


def goes_on(body: GraphProto, constants: Collection[str] = ()) -> bool:
    """Return whether the body of a Loop hands on the condition that it is given, or a constant (some stand outside)."""
    if len(body.input) < 2 or not body.output:
        return False
    handed = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity" and n.input and n.output}
    name = body.output[0].name
    while name in handed:
        name = handed[name]
    return name == body.input[1].name or name in constants or any(t.name == name for t in body.initializer)


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def order(nodes: Sequence[NodeProto]) -> list[int] | None:
    """Return the indices of nodes so that each comes behind what it reads, as near as can be to the order given.

    None where there is a cycle.
    """
    producers = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    needs = [{producers[name] for name in reads(node) if name in producers} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for k, sources in enumerate(needs):
        for source in sources:
            readers[source].append(k)
    waiting = [len(sources) for sources in needs]
    ready = [k for k, count in enumerate(waiting) if not count]
    found = []
    while ready:
        k = heapq.heappop(ready)
        found.append(k)
        for reader in readers[k]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    return found if len(found) == len(nodes) else None


def _cycle(nodes: Sequence[NodeProto], most: int = 4) -> str:
    """Return the names of nodes on a cycle."""
    producers = {name: node for node in nodes for name in node.output if name}
    sources = {id(node): [producers[name] for name in reads(node) if name in producers] for node in nodes}
    left = {id(node): node for node in nodes}
    while ends := [key for key in left if not any(id(s) in left for s in sources[key])]:
        for key in ends:
            del left[key]
    path = [next(iter(left.values()))]
    while (source := next(s for s in sources[id(path[-1])] if id(s) in left)) not in path:
        path.append(source)
    ring = path[path.index(source) :]
    names = [title(node) for node in reversed(ring)]
    return " -> ".join([*names[:most], *(["..."] if len(names) > most else []), names[0]])
