"""Bodies of If, Loop and Scan nodes: they stand in the main graph while a model is worked on.

    lift      the nodes of a body move in front of their If, whose body then only hands their results through
    join      an If both of whose bodies hand tensors of the same shapes through becomes a Where an output
    sink      the nodes are back, and in their bodies all that came from there and what replaced it

A Loop or Scan is lifted as an If is. What its body is given at every iteration, no node of the main graph makes: an
`Enter` stands for it, an op that nothing runs:

    y = Loop(n, yes, x) <body (i, c, s) { h = Conv(s, w); t = Relu(h) } => (c, t)>
    i, c, s = Enter();  h = Conv(s, w);  t = Relu(h);  y = Loop(n, yes, x) <body (i, c, s) => (c, t)>

So labels, masks and the rewrite see one flat graph, and a file that is written evaluates a body only where and as often
as the input file does. What is run goes through `loops.closed`, which puts the bodies of loops back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from onnxshap.graph.branches import Inlined, Moved, inlined
from onnxshap.graph.names import Names
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import copied, graphs_of, is_random, keep_only, order, outer_names, refill
from onnxshap.graph.weights import is_kept

BRANCHES = ("then_branch", "else_branch")
BODY = "body"
_DOMAIN = "onnxshap"


@dataclass(frozen=True)
class Lifted:
    """What was lifted in a graph.

    Attributes:
        nodes: the If nodes, as they hand their results through, in the order of the graph.
        main: the names that the graph gave before anything was lifted: what stands outside of all bodies.
    """

    nodes: tuple[NodeProto, ...] = ()
    main: frozenset[str] = frozenset()


def is_if(node: NodeProto) -> bool:
    """Return whether a node is an If."""
    return is_op(node, "If")


def is_loop(node: NodeProto) -> bool:
    """Return whether a node runs its body many times."""
    return is_op(node, "Loop", "Scan")


def is_enter(node: NodeProto) -> bool:
    """Return whether a node stands for what a body is given at every iteration."""
    return node.op_type == "Enter" and node.domain == _DOMAIN


def body(node: NodeProto, branch: str = BODY) -> GraphProto:
    """Return a body of an If, or that of a Loop or Scan."""
    found: GraphProto = next(a.g for a in node.attribute if a.name == branch)
    return found


def entered(nodes: Iterable[NodeProto]) -> set[tuple[str, ...]]:
    """Return what the bodies are given whose Enters are among some nodes."""
    return {tuple(node.output) for node in nodes if is_enter(node)}


def is_open(node: NodeProto, given: Collection[tuple[str, ...]]) -> bool:
    """Return whether a node is a Loop or Scan whose body stands beside it, by what all Enters there give."""
    return is_loop(node) and tuple(i.name for i in body(node).input) in given


def liftable(node: NodeProto) -> list[str]:
    """Return the branches of an If that may run where they are not taken: those that draw no random numbers.

    The body of a Loop or Scan likewise: what in it is the same at every iteration may be computed outside of it.
    """
    if is_loop(node) and not _follows_its_body(node):
        return []
    return [
        name
        for name in ((BODY,) if is_loop(node) else BRANCHES)
        if not any(part.sparse_initializer for part in graphs_of(body(node, name)))
        and not any(is_random(inner) for part in graphs_of(body(node, name)) for inner in part.node)
    ]


def _follows_its_body(node: NodeProto) -> bool:
    """Return whether a Loop or Scan has the inputs of its body, as a Scan of opset 8 has not, and a name."""
    inputs = [i.name for i in body(node).input]
    least = 2 if node.op_type == "Loop" else 1  # the iteration's number and the condition, which may be absent
    stored = any(t.name in inputs for t in body(node).initializer)
    return len(inputs) == max(len(node.input), least) and bool(node.output[0]) and not stored


# --- out of the bodies -----------------------------------------------------------------------------------------------


def lift(graph: GraphProto, chosen: Mapping[str, Collection[str]], before: Lifted, moved: Moved) -> Lifted:
    """Move bodies into the main graph.

    Args:
        graph: a graph, changed in place.
        chosen: first output of an If, Loop or Scan -> its bodies to be lifted.
        before: what was lifted before.
        moved: told of every tensor that is moved.
    """
    main = before.main or frozenset(
        [
            *(t.name for t in graph.initializer),
            *(i.name for i in graph.input),
            *(o for n in graph.node for o in n.output),
        ]
    )
    taken = Names(graph, main, before.nodes)
    nodes: list[NodeProto] = []
    lifted = []
    for node in graph.node:
        copy = copied(node)
        if is_if(node) and node.output[0] in chosen:
            for branch in BRANCHES:
                if branch in chosen[node.output[0]]:
                    place = body(copy, branch)
                    inside = inlined(place, moved.inside(node, branch), taken, graph, moved)
                    nodes += inside.nodes
                    place.CopyFrom(_handing(place, inside, taken))
            lifted.append(copy)
        elif is_loop(node) and node.output[0] in chosen:
            place = body(copy)
            inside = inlined(place, moved.inside(node, BODY), taken, graph, moved)
            name = taken.node(f"{node.output[0]}.enter")
            nodes += [helper.make_node("Enter", [], inside.inputs, name=name, domain=_DOMAIN), *inside.nodes]
            place.CopyFrom(_handing(place, inside, taken))
        nodes.append(copy)
    refill(graph.node, nodes)
    return Lifted((*lifted, *before.nodes), main)


def _handing(branch: GraphProto, inside: Inlined, taken: Names) -> GraphProto:
    """Return a body with the inputs and outputs of another, which only hands tensors through."""
    made = GraphProto(name=branch.name, doc_string=branch.doc_string)
    for item, name in zip(branch.input, inside.inputs, strict=True):
        made.input.add().CopyFrom(item)
        made.input[-1].name = name
    for item, name in zip(branch.output, inside.outputs, strict=True):
        made.output.add().CopyFrom(item)
        made.output[-1].name = taken.new(f"{item.name}.handed")
        made.node.append(helper.make_node("Identity", [name], [made.output[-1].name]))
    return made


def handed(branch: GraphProto) -> list[str] | None:
    """Return the outer tensors that a body hands through, None where it does more."""
    sources = {node.output[0]: node.input[0] for node in branch.node if node.op_type == "Identity"}
    if branch.initializer or len(sources) < len(branch.node):
        return None
    found = [sources.get(o.name, o.name) for o in branch.output]
    return None if any(name in sources for name in found) else found


def join(graph: GraphProto, names: Collection[str]) -> None:
    """Put Where nodes in the place of If nodes (their first outputs) that only hand tensors through, in place.

    Both tensors that meet at an output have to have the same shape and type.
    """
    nodes, taken = list[NodeProto](), Names(graph)
    for node in graph.node:
        if not (is_if(node) and node.output[0] in names):
            nodes.append(node)
            continue
        yes, no = (handed(body(node, branch)) for branch in BRANCHES)
        assert yes is not None
        assert no is not None
        taken.replaced(node)
        nodes += [
            helper.make_node("Where", [node.input[0], a, b], [output], name=taken.node(output))
            for a, b, output in zip(yes, no, node.output, strict=True)
            if output
        ]
    refill(graph.node, nodes)


# --- and in again ----------------------------------------------------------------------------------------------------


def sink(graph: GraphProto, lifted: Lifted, *, initializers: bool = True) -> None:
    """Move what one branch alone reads into that branch, in place; what stood in the main graph before stays there.

    Initializers too, but for those that are kept outside of models.
    """
    if not lifted.main:
        return
    stored = [t for t in graph.initializer if initializers and t.name not in lifted.main and not is_kept(t)]
    put_back(graph, _separated(graph.node, lifted.nodes), stored, lifted.main)


def put_back(
    graph: GraphProto, nodes: Sequence[NodeProto], stored: Sequence[TensorProto], main: frozenset[str]
) -> None:
    """Make nodes those of a graph, in place, and move into bodies what is read in one of them alone.

    Args:
        graph: the graph.
        nodes: its nodes, in any order.
        stored: those of its initializers that may be moved.
        main: names of tensors that stay.
    """
    places = order(nodes)
    assert places is not None
    sunk = _sink([nodes[k] for k in places], [o.name for o in graph.output], stored, main)
    gone = {t.name for t in stored} - {t.name for t in sunk.stored}
    refill(graph.node, sunk.nodes)
    keep_only(graph.initializer, lambda item: item.name not in gone)


def _separated(nodes: Sequence[NodeProto], lifted: Sequence[NodeProto]) -> list[NodeProto]:
    """Return nodes with the If nodes in the place of the Where nodes that they were joined to."""
    wheres = {node.output[0]: node for node in nodes if node.op_type == "Where"}
    by_last: dict[str, NodeProto] = {}
    gone: set[str] = set()
    for node in lifted:
        outputs = [o for o in node.output if o]
        if any(o not in wheres for o in outputs):
            continue  # never joined, or taken since
        again = copied(node)
        again.input[0] = wheres[outputs[0]].input[0]
        for k, branch in enumerate(BRANCHES):
            made = body(again, branch)
            sources = iter(wheres[o].input[1 + k] for o in outputs)
            for inner, output, item in zip(made.node, node.output, made.output, strict=True):
                if output:
                    inner.input[0] = next(sources)
                    if item.type.HasField("tensor_type"):
                        item.type.tensor_type.ClearField("shape")  # widths may have changed
        gone.update(outputs)
        by_last[outputs[-1]] = again
    found = []
    for node in nodes:
        if node.op_type == "Where" and node.output[0] in gone:
            if node.output[0] in by_last:
                found.append(by_last[node.output[0]])
        else:
            found.append(copied(node))
    return found


_Home = tuple[int, int]
"""A node and the number of an attribute of it that is a body."""


@dataclass(frozen=True)
class _Sunk:
    nodes: list[NodeProto]
    stored: list[TensorProto]


def _sink(
    nodes: Sequence[NodeProto], outputs: Sequence[str], stored: Sequence[TensorProto], main: frozenset[str]
) -> _Sunk:
    """Return the nodes and initializers that stay; the others are in the bodies of the nodes, or read by nothing."""
    uses: defaultdict[str, set[_Home | None]] = defaultdict(set)
    for name in outputs:
        uses[name].add(None)
    homes: list[_Home | None] = [None] * len(nodes)
    dead: set[int] = set()
    given = entered(nodes)
    for k in reversed(range(len(nodes))):
        node = nodes[k]
        if main.isdisjoint(o for o in node.output if o):
            where = set[_Home | None]().union(*(uses[o] for o in node.output if o))
            if not where:
                dead.add(k)
                continue
            homes[k] = next(iter(where)) if len(where) == 1 else None
        for name in node.input:
            uses[name].add(homes[k])
        for number, attribute in enumerate(node.attribute):
            inside = (k, number) if is_if(node) or is_open(node, given) else None
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
            for name in dict.fromkeys(n for g in graphs for n in outer_names(g)):
                uses[name].add(homes[k] if homes[k] is not None else inside)
    moved: defaultdict[_Home, list[int]] = defaultdict(list)
    for k, home in enumerate(homes):
        if home is not None and k not in dead:
            moved[home].append(k)
    kept = []
    carried: defaultdict[_Home, list[TensorProto]] = defaultdict(list)
    for item in stored:
        home = next(iter(uses[item.name])) if len(uses[item.name]) == 1 else None
        if home is None:
            kept.append(item)
        else:
            carried[home].append(item)
    for home in {*moved, *carried}:
        k, number = home
        _fill(nodes[k].attribute[number].g, [nodes[i] for i in moved[home]], carried[home], main)
    return _Sunk([node for k, node in enumerate(nodes) if homes[k] is None and k not in dead], kept)


def _fill(branch: GraphProto, nodes: Sequence[NodeProto], stored: Sequence[TensorProto], main: frozenset[str]) -> None:
    """Put nodes and initializers in front of those that a body has, whose Identity nodes of what they make go."""
    own = [copied(node) for node in branch.node]
    stays = main.union(*(node.output for node in own))
    inside = _sink([*nodes, *own], [o.name for o in branch.output], stored, stays)
    given = [i.name for i in branch.input]
    made = {name for node in inside.nodes for name in node.output}.difference(given)
    handed_on: dict[str, str] = {}
    for node in own if handed(branch) is not None else ():
        if node.input[0] in made and node.input[0] not in handed_on.values():
            handed_on[node.output[0]] = node.input[0]
    for item in branch.output:
        item.name = handed_on.get(item.name, item.name)
    left = [node for node in inside.nodes if node.output[0] not in handed_on]
    refill(branch.node, [node for node in left if not (is_enter(node) and list(node.output) == given)])
    branch.initializer.extend(inside.stored)
