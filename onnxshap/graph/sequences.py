"""What sequences and optionals hold, read off the tensors themselves: rules tell of axes, and a sequence has none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxshap.core import Array
from onnxshap.graph.names import Names
from onnxshap.graph.nodes import array, attributes, tensor
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import copied, reads, refill

_HOLDERS = ("Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert")


def read_items(graph: GraphProto, opset: int) -> None:
    """Put the tensors themselves in place of what is read of sequences and optionals whose items are known.

    Sequences that are read as wholes stay: by bodies, by an output, at a place that is computed.
    """
    if not any(is_op(node, *_HOLDERS) for node in graph.node):
        return
    stored, names = {t.name: t for t in graph.initializer}, Names(graph)
    known: dict[str, list[str]] = {}
    nodes = list[NodeProto]()
    for node in graph.node:
        read = _read_of(node, known, stored, names, opset)
        for item in (node,) if read is None else read:
            nodes.append(copied(item))
            if (items := _items(item, known, stored)) is not None:
                known[item.output[0]] = items
            if is_op(item, "Constant") and "value" in (given := attributes(item)):  # others are outputs or strings
                stored[item.output[0]] = given["value"]
    used = {o.name for o in graph.output}
    kept = list[NodeProto]()
    for node in reversed(nodes):
        if node.output[0] not in known or used.intersection(node.output):
            used.update(reads(node))
            kept.append(node)
    refill(graph.node, reversed(kept))


def _items(node: NodeProto, known: Mapping[str, list[str]], stored: Mapping[str, TensorProto]) -> list[str] | None:
    """Return the names of the items of what a node makes, None where it is no sequence or optional, or not known."""
    if is_op(node, "SequenceConstruct", "SequenceEmpty", "Optional"):
        return list(node.input) if stored.keys().isdisjoint(node.input) else None  # reports name weights by their nodes
    items = known.get(node.input[0]) if node.input else None
    if items is None or not is_op(node, "Identity", "SequenceErase", "SequenceInsert"):
        return None
    if is_op(node, "Identity"):
        return items
    insert, given = is_op(node, "SequenceInsert"), node.input[2 if is_op(node, "SequenceInsert") else 1 :]
    place = _number(given[0], stored) if any(given) else len(items) if insert else -1
    if place is None or not -len(items) <= place < len(items) + insert or (insert and node.input[1] in stored):
        return None
    place %= len(items) + (place >= 0 and insert)
    return [*items[:place], *node.input[1 : 1 + insert], *items[place + (not insert) :]]


def _read_of(
    node: NodeProto, known: Mapping[str, list[str]], stored: Mapping[str, TensorProto], names: Names, opset: int
) -> list[NodeProto] | None:
    """Return what stands in place of a node that reads known items, None where it stays."""
    items = known.get(node.input[0]) if node.input else None
    if items is None:
        return None
    called, made = node.name or None, list(node.output)
    if is_op(node, "SequenceAt"):
        place = _number(node.input[1], stored)
        there = place is not None and -len(items) <= place < len(items)
        return None if place is None or not there else [helper.make_node("Identity", [items[place]], made, called)]
    if is_op(node, "OptionalGetElement") and items:
        return [helper.make_node("Identity", items, made, called)]
    if is_op(node, "SequenceLength", "OptionalHasElement"):
        value = np.array(len(items) if is_op(node, "SequenceLength") else bool(items))
        return [helper.make_node("Constant", [], made, called, value=tensor(made[0], value))]
    if not is_op(node, "ConcatFromSequence"):
        return None
    axis, nodes = int(attributes(node)["axis"]), list[NodeProto]()
    for k, name in enumerate(items if attributes(node).get("new_axis", 0) else ()):
        given = names.new(f"{made[0]}.item{k}")
        if opset < 13:
            nodes.append(helper.make_node("Unsqueeze", [name], [given], given, axes=[axis]))
        else:
            told = names.new(f"{given}.axis")
            nodes.append(helper.make_node("Constant", [], [told], told, value=tensor(told, np.array([axis]))))
            nodes.append(helper.make_node("Unsqueeze", [name, told], [given], given))
        items = [*items[:k], given, *items[k + 1 :]]
    return [*nodes, helper.make_node("Concat", items, made, called, axis=axis)]


def _number(name: str, stored: Mapping[str, TensorProto]) -> int | None:
    return int(array(stored[name]).item()) if name in stored else None


def read_parts(graph: GraphProto) -> bool:
    """Put Slices in place of a SplitToSequence of a computed tensor of which known places alone are read.

    Return whether there was one.
    """
    stored = {t.name: t for t in graph.initializer}
    splits = {n.output[0]: n for n in graph.node if is_op(n, "SplitToSequence") and n.input[0] not in stored}
    for item in graph.output:
        splits.pop(item.name, None)
    found: dict[str, tuple[int, int]] = {}
    for node in graph.node if splits else ():
        for name in splits.keys() & reads(node):
            bounds = _bounds(splits[name], node, stored)
            if bounds is None:
                del splits[name]
            else:
                found[node.output[0]] = bounds
    if not splits:
        return False
    names, nodes = Names(graph), list[NodeProto]()
    for node in graph.node:
        part, split = node.output[0], splits.get(node.input[0]) if node.input else None
        if split is not None:
            given = [names.new(f"{part}.{what}") for what in ("starts", "ends", "axes")]
            told = (*found[part], int(attributes(split).get("axis", 0)))
            graph.initializer.extend(tensor(name, np.array([one])) for name, one in zip(given, told, strict=True))
            nodes.append(helper.make_node("Slice", [split.input[0], *given], [part], node.name or None))
        elif part not in splits:
            nodes.append(copied(node))
    refill(graph.node, nodes)
    return True


def _bounds(split: NodeProto, node: NodeProto, stored: Mapping[str, TensorProto]) -> tuple[int, int] | None:
    """Return where the part that a node reads starts and ends; None where it reads none, or one that is not known."""
    if not is_op(node, "SequenceAt") or node.input[1] not in stored or not stored.keys() >= set(split.input[1:]):
        return None
    place = int(array(stored[node.input[1]]).item())
    if len(split.input) > 1:
        return bounds_of(array(stored[split.input[1]]), place)
    return bounds_of(np.array(1), place) if attributes(split).get("keepdims", 1) else None


def bounds_of(sizes: Array, place: int) -> tuple[int, int] | None:
    """Return where a part starts and ends; None where that hangs on how many there are, or there is none.

    >>> bounds_of(np.array([2, 3, 1]), -2), bounds_of(np.array(4), 1), bounds_of(np.array(4), -1)
    ((2, 5), (4, 8), None)
    """
    if not sizes.ndim:
        return (place * int(sizes), (place + 1) * int(sizes)) if place >= 0 else None
    if not -len(sizes) <= place < len(sizes):
        return None
    end = int(sizes.cumsum()[place])
    return end - int(sizes[place]), end
