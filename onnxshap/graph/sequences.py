"""Parts of a tensor that a sequence holds, read off the tensor itself: rules tell of axes, and a sequence has none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxshap.core import Array
from onnxshap.graph.names import Names
from onnxshap.graph.nodes import array, attributes, tensor
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import copied, reads, refill


def read_parts(graph: GraphProto) -> None:
    """Put Slices in place of a SplitToSequence of a computed tensor of which known places alone are read."""
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
        return
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
