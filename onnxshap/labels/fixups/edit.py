"""What fixups ask of the rewrite in progress, and do to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from onnx import NodeProto, helper

from onnxshap.core import Array, BoolArray
from onnxshap.graph import Names


class Edit(Protocol):
    """What a fixup may ask of the rewrite in progress, and do to it.

    Attributes:
        names: gives names for what is added.
    """

    names: Names

    def alive(self, tensor: str, axis: int) -> BoolArray:
        """Return which positions of an axis stay."""

    def cut(self, tensor: str, axis: int) -> bool:
        """Return whether an axis loses positions."""

    def rank(self, tensor: str) -> int:
        """Return the number of axes of a tensor."""

    def node(self, index: int) -> NodeProto:
        """Return a node, to be changed in place."""

    def constant(self, name: str) -> Array:
        """Return the present values of an initializer, or of that with what is known of a vector (`folding.Part`)."""

    def stored(self, name: str) -> bool:
        """Return whether `constant` knows a tensor."""

    def set_constant(self, name: str, values: Array) -> None:
        """Replace the values of an initializer."""

    def new_constant(self, wish: str, values: Array) -> str:
        """Add an initializer, return its name: the wish, or one like it."""

    def typed(self, values: Array, like: str) -> Array:
        """Return values in the element type of a tensor."""

    def zeros(self, like: str, shape: Sequence[int]) -> str:
        """Return the name of zeros in the element type of a tensor, one initializer for all of a shape."""

    def replace(self, index: int, nodes: list[NodeProto]) -> None:
        """Put other nodes in a node's place."""

    def twin(self, index: int, given: Mapping[str, str], outputs: Sequence[str]) -> Mapping[str, str]:
        """Let what comes to stand in a node's place be there again, with other inputs; one twin for all who ask alike.

        Args:
            index: the node.
            given: input -> what stands for it.
            outputs: the node's outputs.

        Returns:
            output -> what stands for it.
        """


class Fixup(Protocol):
    """A constant that must follow some widths."""

    def apply(self, edit: Edit) -> None:
        """Make the constant follow, where a width has changed."""


def share_left(edit: Edit, source: str, axes: Sequence[int]) -> float:
    """Return the share of a tensor's positions along some axes that a cut leaves; all of none, as data may tell."""
    return float(np.prod([alive.mean() if alive.size else 1.0 for alive in (edit.alive(source, a) for a in axes)]))


def set_attribute(node: NodeProto, name: str, value: object) -> None:
    """Set an attribute of a node, replacing the old one."""
    kept = [a for a in node.attribute if a.name != name]
    made = helper.make_attribute(name, value)
    del node.attribute[:]
    node.attribute.extend([*kept, made])


def takes_all(squeeze: NodeProto) -> bool:
    """Return whether a Squeeze names no axes: it takes all of size 1."""
    return not any(squeeze.input[1:]) and all(a.name != "axes" for a in squeeze.attribute)


def name_axes(squeeze: NodeProto, axes: Sequence[int], constant: Callable[[str, Array], str], opset: int) -> None:
    """Name the axes that a Squeeze takes.

    Args:
        squeeze: the node.
        axes: which.
        constant: stores values under a name like the one given, and returns it.
        opset: that of the model.
    """
    give(squeeze, "axes", axes, partial(constant, f"{squeeze.output[0]}.axes"), opset)


_INPUTS = {
    ("Pad", "pads"): (1, 11),
    ("ReduceMean", "axes"): (1, 18),
    **{("Slice", what): (place, 10) for place, what in enumerate(("starts", "ends", "axes"), start=1)},
    ("Split", "split"): (1, 13),
    ("Squeeze", "axes"): (1, 13),
}
"""What ops are told in an attribute, and in which input from which opset on (the operators' versions in ONNX)."""


def give(node: NodeProto, what: str, numbers: Sequence[int], constant: Callable[[Array], str], opset: int) -> None:
    """Tell a node some numbers where its opset has them: in an attribute, or in the last of its inputs.

    Args:
        node: the node.
        what: their name as an attribute.
        numbers: the numbers.
        constant: stores values, and returns their name.
        opset: that of the model.
    """
    place, since = _INPUTS[node.op_type, what]
    if opset < since:
        set_attribute(node, what, list(numbers))
    else:
        node.input[place:] = [constant(np.array(numbers, np.int64))]
