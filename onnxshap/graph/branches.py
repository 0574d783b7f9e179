"""If nodes whose condition is known: the branch that is taken stands in their place.

Exporters write them by the dozen (`squeeze` where a size is not known, switches of a framework's eager mode).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from onnx import GraphProto, NodeProto, helper

from onnxshap.graph.names import Names, stored_in
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import copied, refill, subgraphs


@dataclass
class Moved:
    """What became of the tensors of branches that stand in the graph around them.

    Attributes:
        origin: name -> name in the branch, of every tensor that had to be renamed.
        bodies: name -> the body that its node was in, `output.then_branch` by the first output of the If (`output.body`
            of a Loop or Scan); bodies in bodies joined by `/`.
        places: first output and input of a node taken out of a fused one, or of a loop with fewer states than it had ->
            the place of that input there.
    """

    origin: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)
    places: dict[tuple[str, int], int] = field(default_factory=dict)

    def rename(self, new: str, old: str) -> None:
        """Note that a tensor has another name now."""
        self.origin[new] = self.origin.get(old, old)
        if old in self.bodies:
            self.bodies[new] = self.bodies[old]

    def inside(self, node: NodeProto, branch: str) -> str:
        """Return what a body of a node is called."""
        name = node.output[0]
        here = f"{self.origin.get(name, name)}.{branch}"
        return f"{self.bodies[name]}/{here}" if name in self.bodies else here


def take_branches(graph: GraphProto, conditions: Mapping[str, bool], moved: Moved) -> None:
    """Replace the If nodes of a graph whose condition is known, those in the branches taken too.

    Args:
        graph: a graph, changed in place.
        conditions: names of tensors -> their value.
        moved: told of every tensor that is moved.
    """
    taken = Names(graph)
    nodes: list[NodeProto] = []
    pending = list(reversed(graph.node))
    while pending:
        node = pending.pop()
        if not is_op(node, "If") or node.input[0] not in conditions:
            nodes.append(node)
            continue
        wanted = "then_branch" if conditions[node.input[0]] else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        where = moved.inside(node, wanted)
        inside = inlined(branch, where, taken, graph, moved, node.output)
        taken.replaced(node)
        through = [(i, o) for i, o in zip(inside.outputs, node.output, strict=True) if i != o]
        added = [helper.make_node("Identity", [i], [o], name=taken.node(o)) for i, o in through]
        pending += reversed([*inside.nodes, *added])
    refill(graph.node, nodes)


class Inlined(NamedTuple):
    """The nodes of a body as they stand in the graph around it, and what its inputs and outputs are called there."""

    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]


def inlined(
    branch: GraphProto,
    where: str,
    taken: Names,
    graph: GraphProto,
    moved: Moved,
    outputs: Iterable[str] = (),
) -> Inlined:
    """Return a body as it stands in the graph around it.

    Args:
        branch: the body.
        where: what it is called.
        taken: the names that are taken in the graph around it, those in the body too.
        graph: the graph around it, which gets the body's initializers.
        moved: told of every tensor.
        outputs: names for the body's outputs, where it makes them and gives them once; default their own.
    """
    made = {name: None for inner in branch.node for name in inner.output if name}
    names: dict[str, str] = {}
    for inside, outside in zip((o.name for o in branch.output), outputs, strict=False):
        if inside in made and inside not in names:
            names[inside] = outside
    inputs = [i.name for i in branch.input]
    taken.opened(branch)
    for name in (*inputs, *made, *stored_in(branch)):
        if name not in names:
            names[name] = taken.new(name)
    for old, new in names.items():
        if new != old:
            moved.origin[new] = old
        moved.bodies[new] = where
    for item in branch.initializer:
        own = copied(item)
        own.name = names[item.name]
        graph.initializer.append(own)
    for sparse in map(copied, branch.sparse_initializer):
        sparse.values.name = names[sparse.values.name]
        graph.sparse_initializer.append(sparse)
    nodes = [copied(inner) for inner in branch.node]
    for inner in nodes:
        rename(inner, names)
        inner.name = taken.node(inner.name) if inner.name else ""
    return Inlined(nodes, [names[name] for name in inputs], [names.get(o.name, o.name) for o in branch.output])


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename tensors in a node and, where they are taken from outside, in its bodies."""
    for listed in (node.input, node.output):
        for k, name in enumerate(listed):
            listed[k] = names.get(name, name)
    for body in subgraphs(node):
        own = {i.name for i in body.input} | set(stored_in(body))
        own |= {name for inner in body.node for name in inner.output}
        left = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            rename(inner, left)
        for item in body.output:
            item.name = left.get(item.name, item.name)


def conditions_of(nodes: Iterable[NodeProto]) -> set[str]:
    """Return the names of the tensors that If nodes decide by."""
    return {node.input[0] for node in nodes if is_op(node, "If")}
