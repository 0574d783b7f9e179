"""Sequences to which a Loop appends an item an iteration, for them to be stacked behind it: scan outputs instead.

So torch's script writes a list that a loop fills (`out += [h]`, then `torch.stack(out, 1)`). Rules tell of axes, and a
sequence has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto, helper

from onnxshap.graph.branches import Moved
from onnxshap.graph.lifting import body
from onnxshap.graph.loops import leading
from onnxshap.graph.nodes import attributes
from onnxshap.graph.standard import is_op
from onnxshap.graph.structure import graphs_of, reads

_LETTERS = "abcdefgh"
_MOVABLE = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)
"""Element types of which onnxruntime has an Einsum."""


@dataclass(frozen=True)
class _List:
    """A state of a Loop: its place among the states, and the node of the body that appends to it."""

    state: int
    append: NodeProto


def scan_lists(graph: GraphProto, opset: int, moved: Moved) -> None:
    """Let loops give what they append to lists as scan outputs, where all that reads the lists stacks them.

    Args:
        graph: a graph, changed in place.
        opset: of its default domain.
        moved: told of loops that are called otherwise then: nodes are named by their first outputs.
    """
    for part in graphs_of(graph) if opset >= 12 else ():  # an Einsum stacks
        made = {name: node for node in part.node for name in node.output}
        read = _read(part)
        readers: dict[str, list[NodeProto]] = {}
        for node in part.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for loop in [node for node in part.node if is_op(node, "Loop")]:
            if len(loop.input) != len(body(loop).input) or len(loop.output) != len(body(loop).output) - 1:
                continue
            first, states = leading(loop)
            for state in reversed(range(states)):
                empty, name = made.get(loop.input[first + state]), loop.output[state]
                if (
                    not name
                    or empty is None
                    or not is_op(empty, "SequenceEmpty")
                    or read[name] != len(readers.get(name, ()))
                ):
                    continue  # a body behind it reads it, or it is an output
                if attributes(empty).get("dtype", TensorProto.FLOAT) not in _MOVABLE:
                    continue
                stacked = [_stack_of(node) for node in readers.get(name, ())]
                if None not in stacked and (found := _appended(body(loop), first, state)) is not None:
                    _scan(loop, found)
                    if state == 0:
                        moved.rename(loop.output[0], name)
                    for node, equation in zip(readers.get(name, ()), stacked, strict=True):
                        node.op_type = "Einsum"
                        del node.attribute[:]
                        node.attribute.append(helper.make_attribute("equation", equation))


def _read(graph: GraphProto) -> Counter[str]:
    """Return how often tensors are read, by bodies and as outputs too."""
    return Counter([*(name for node in graph.node for name in reads(node)), *(o.name for o in graph.output)])


def _stack_of(node: NodeProto) -> str | None:
    """Return the equation that moves the iterations from the first axis to where a node stacks them, None: it does not.

    >>> stack = {"axis": 1, "new_axis": 1}
    >>> _stack_of(helper.make_node("ConcatFromSequence", ["s"], ["y"], **stack))
    'ab...->ba...'
    """
    given = attributes(node)
    if not is_op(node, "ConcatFromSequence") or not given.get("new_axis", 0):
        return None
    axis = int(given["axis"])
    if not -len(_LETTERS) <= axis < len(_LETTERS):
        return None
    others: Sequence[str] = _LETTERS[1 : 1 + axis] if axis >= 0 else _LETTERS[1:-axis]
    return f"a{others}...->{others}a..." if axis >= 0 else f"a...{others}->...a{others}"


def _appended(inside: GraphProto, first: int, state: int) -> _List | None:
    """Return what a body does to a list, None where it is not to append an item to it and hand it on."""
    given, handed = inside.input[first + state].name, inside.output[first // 2 + state].name
    append = next((node for node in inside.node if handed in node.output), None)
    if append is None or not is_op(append, "SequenceInsert") or append.input[0] != given or any(append.input[2:]):
        return None
    read = _read(inside)
    return _List(state, append) if read[given] == read[handed] == 1 else None


def _scan(loop: NodeProto, found: _List) -> None:
    """Make a list of a Loop its last scan output."""
    inside, (first, _) = body(loop), leading(loop)
    place = first // 2 + found.state
    item = inside.output.add()
    item.name = inside.output[place].name
    item.type.tensor_type.elem_type = inside.output[place].type.sequence_type.elem_type.tensor_type.elem_type
    found.append.op_type = "Identity"
    del found.append.input[0], found.append.input[1:]
    del inside.input[first + found.state], inside.output[place], loop.input[first + found.state]
    loop.output.append(loop.output.pop(found.state))
