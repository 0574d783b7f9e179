"""If nodes whose condition is known: the branch that is taken stands in their place.

Exporters write them by the dozen (`squeeze` where a size is not known, switches of a framework's eager mode).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableSequence

from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxshap.structure import subgraphs


def take_branches(graph: GraphProto, conditions: Mapping[str, bool]) -> dict[str, str]:
    """Replace the If nodes of a graph whose condition is known, those in the branches taken too.

    Args:
        graph: a graph, changed in place.
        conditions: names of tensors -> their value.

    Returns:
        New name -> name in the branch, of every tensor that had to be renamed.
    """
    taken = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    taken |= {name for node in graph.node for name in (*node.output, node.name)}
    nodes: list[NodeProto] = []
    origin: dict[str, str] = {}
    pending = list(reversed(graph.node))
    while pending:
        node = pending.pop()
        if node.op_type != "If" or node.domain not in ("", "ai.onnx") or node.input[0] not in conditions:
            nodes.append(node)
            continue
        wanted = "then_branch" if conditions[node.input[0]] else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        pending += reversed(_inlined(branch, node, taken, graph.initializer, origin))
    if len(nodes) != len(graph.node) or origin:
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return origin


def _inlined(
    branch: GraphProto, node: NodeProto, taken: set[str], stored: MutableSequence[TensorProto], origin: dict[str, str]
) -> list[NodeProto]:
    """Return a branch's nodes as they stand in place of its If; its initializers go to `stored`."""
    made = {name for inner in branch.node for name in inner.output if name}
    names: dict[str, str] = {}
    copies = []
    for inside, outside in zip((o.name for o in branch.output), node.output, strict=True):
        if inside in made and inside not in names:
            names[inside] = outside
        else:  # handed through from outside, or given twice
            copies.append(helper.make_node("Identity", [inside], [outside], name=outside))
    for name in (*made, *(t.name for t in branch.initializer)):
        if name not in names:
            names[name] = _unused(name, taken)
    origin.update((new, old) for old, new in names.items() if new != old)
    for item in branch.initializer:
        own = TensorProto()
        own.CopyFrom(item)
        own.name = names[item.name]
        stored.append(own)
    moved = [NodeProto.FromString(inner.SerializeToString()) for inner in branch.node]
    for inner in (*moved, *copies):
        _rename(inner, names)
        inner.name = _unused(inner.name, taken) if inner.name else ""
    return [*moved, *copies]


def _unused(name: str, taken: set[str]) -> str:
    new, number = name, 1
    while new in taken:
        new = f"{name}.{(number := number + 1)}"
    taken.add(new)
    return new


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename tensors in a node and, where they are taken from outside, in its bodies."""
    for field in (node.input, node.output):
        for k, name in enumerate(field):
            field[k] = names.get(name, name)
    for body in subgraphs(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        left = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            _rename(inner, left)
        for item in body.output:
            item.name = left.get(item.name, item.name)


def conditions_of(nodes: Iterable[NodeProto]) -> set[str]:
    """Return the names of the tensors that If nodes decide by."""
    return {node.input[0] for node in nodes if node.op_type == "If" and node.domain in ("", "ai.onnx")}
