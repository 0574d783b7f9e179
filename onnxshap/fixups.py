"""Constants of a graph that restate a width, and how they follow it when the width shrinks.

An initializer with a traced axis is simply compressed to its live positions. These are the other ones: a Reshape target
lists widths, a Slice lists bounds on an axis, a Conv counts its groups. A rule states which of them its op has; the
rewrite applies those that touch a cut axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, helper

from onnxshap.core import Array, BoolArray, IntArray


class Edit(Protocol):
    """What a fixup may ask of the rewrite in progress, and do to it."""

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

    def set_constant(self, name: str, values: Array) -> None:
        """Replace the values of an initializer."""

    def new_constant(self, hint: str, values: Array) -> str:
        """Add an initializer, return its name."""

    def typed(self, values: Array, like: str) -> Array:
        """Return values in the element type of a tensor."""

    def replace(self, index: int, nodes: list[NodeProto]) -> None:
        """Put other nodes in a node's place."""


class Fixup(Protocol):
    """A constant that must follow some widths."""

    def apply(self, edit: Edit) -> None:
        """Make the constant follow, where a width has changed."""


def set_attribute(node: NodeProto, name: str, value: object) -> None:
    """Set an attribute of a node, replacing the old one."""
    kept = [a for a in node.attribute if a.name != name]
    made = helper.make_attribute(name, value)
    del node.attribute[:]
    node.attribute.extend([*kept, made])


@dataclass(frozen=True)
class Widths:
    """Entries of an integer list that are the widths of axes: `entries` maps position -> (tensor, axis).

    The list is the initializer `input` of the node, or its attribute `attribute`. Where it is a Reshape's, an entry 0
    copies that axis of `source`, which need not be the axis that its positions come from: [n, c, c] -> [n, 1, c, 0]
    copies a width that is equal only until one of them is cut.
    """

    node: int
    entries: tuple[tuple[int, str, int], ...]
    input: int | None = None
    attribute: str | None = None
    source: str | None = None

    def apply(self, edit: Edit) -> None:
        """Write the widths that changed; entries -1 adapt by themselves, and so do those of free dimensions."""
        if not any(edit.cut(tensor, axis) for _, tensor, axis in self.entries):
            return
        node = edit.node(self.node)
        if self.input is not None:
            name = node.input[self.input]
            edit.set_constant(name, self._followed(edit, edit.constant(name)))
        else:
            values = np.array(next(list(a.ints) for a in node.attribute if a.name == self.attribute), np.int64)
            set_attribute(node, str(self.attribute), self._followed(edit, values).tolist())

    def _followed(self, edit: Edit, values: Array) -> Array:
        values = values.copy()
        for position, tensor, axis in self.entries:
            width = edit.alive(tensor, axis).sum()
            if values[position] > 0 and edit.cut(tensor, axis):
                values[position] = width
            elif values[position] == 0 and self.source is not None:
                copied = edit.alive(self.source, position).sum()
                values[position] = 0 if copied == width else width
        return values


@dataclass(frozen=True)
class SingleAxes:
    """A Squeeze of all axes of size 1: a cut may leave one channel, which it must not take."""

    node: int
    source: str
    axes: tuple[int, ...]
    as_input: bool

    def apply(self, edit: Edit) -> None:
        """Name the axes."""
        node = edit.node(self.node)
        if not any(edit.cut(self.source, axis) for axis in range(edit.rank(self.source))):
            return
        if self.as_input:
            node.input[1:] = [edit.new_constant(f"{node.output[0]}.axes", np.array(self.axes, np.int64))]
        else:
            set_attribute(node, "axes", list(self.axes))


@dataclass(frozen=True)
class GroupCount:
    """The group attribute of a Conv or GroupNormalization: live channels over channels a group.

    Channels a group are `size`, or the live width of a weight's axis where that is None.
    """

    node: int
    source: str
    weight: str
    weight_axis: int
    attribute: str = "group"
    size: int | None = None

    def apply(self, edit: Edit) -> None:
        """Count the groups that are left."""
        if edit.cut(self.source, 1) or edit.cut(self.weight, self.weight_axis):
            width = self.size or int(edit.alive(self.weight, self.weight_axis).sum())
            set_attribute(edit.node(self.node), self.attribute, int(edit.alive(self.source, 1).sum()) // width)


@dataclass(frozen=True)
class HeadCount:
    """An attribute that counts the positions of an axis."""

    node: int
    source: str
    attribute: str
    axis: int = 0

    def apply(self, edit: Edit) -> None:
        """Count those that are left."""
        if edit.cut(self.source, self.axis):
            set_attribute(edit.node(self.node), self.attribute, int(edit.alive(self.source, self.axis).sum()))


@dataclass(frozen=True)
class Parts:
    """An attribute that lists the widths of consecutive parts of an axis; by default they are equal."""

    node: int
    source: str
    axis: int
    sizes: tuple[int, ...]
    attribute: str

    def apply(self, edit: Edit) -> None:
        """Write the widths that are left."""
        if edit.cut(self.source, self.axis):
            parts = np.split(edit.alive(self.source, self.axis), np.cumsum(self.sizes)[:-1])
            set_attribute(edit.node(self.node), self.attribute, [int(part.sum()) for part in parts])


@dataclass(frozen=True)
class Default:
    """An attribute whose default follows from a width: it is spelled out, so that a cut does not change it."""

    node: int
    source: str
    axis: int
    attribute: str
    value: float

    def apply(self, edit: Edit) -> None:
        """Write it where it is not given."""
        node = edit.node(self.node)
        if edit.cut(self.source, self.axis) and all(a.name != self.attribute for a in node.attribute):
            set_attribute(node, self.attribute, self.value)


@dataclass(frozen=True)
class Declared:
    """The sizes that the body of a loop declares for what it is given and what it gives, tensors by these names."""

    node: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def apply(self, edit: Edit) -> None:
        """Write the widths that are left."""
        inside = next(a.g for a in edit.node(self.node).attribute if a.type == AttributeProto.GRAPH)
        for items, names in ((inside.input, self.inputs), (inside.output, self.outputs)):
            for item, name in zip(items, names, strict=True):
                for axis, dim in enumerate(item.type.tensor_type.shape.dim):
                    if dim.HasField("dim_value") and edit.cut(name, axis):
                        dim.dim_value = int(edit.alive(name, axis).sum())


def _share_left(edit: Edit, source: str, axes: Sequence[int]) -> float:
    """Return the share of a tensor's positions along some axes that a cut leaves."""
    return float(np.prod([edit.alive(source, axis).mean() for axis in axes]))


def _corrected(edit: Edit, index: int, op: str, number: float, hints: tuple[str, str]) -> None:
    """Put an op with a number behind a node that sees only what a cut leaves; `hints` name the number and the op."""
    node = edit.node(index)
    result, raw = node.output[0], f"{node.output[0]}.of_the_rest"
    node.output[0] = raw
    constant = edit.new_constant(f"{result}.{hints[0]}", edit.typed(np.array(number), result))
    edit.replace(index, [node, helper.make_node(op, [raw, constant], [result], name=f"{result}.{hints[1]}")])


@dataclass(frozen=True)
class Divisor:
    """A mean over axes of `source` goes on dividing by the widths that they had."""

    node: int
    source: str
    axes: tuple[int, ...]

    def apply(self, edit: Edit) -> None:
        """Multiply the mean of what is left by its share."""
        share = _share_left(edit, self.source, self.axes)
        if share < 1:
            _corrected(edit, self.node, "Mul", share, ("share", "mean"))


@dataclass(frozen=True)
class Extreme:
    """The largest (Max) or smallest (Min) entry over axes of `source` goes on seeing the zeros of what is removed."""

    node: int
    source: str
    axes: tuple[int, ...]
    op: str

    def apply(self, edit: Edit) -> None:
        """Compare the extreme of what is left with zero."""
        if _share_left(edit, self.source, self.axes) < 1:
            _corrected(edit, self.node, self.op, 0.0, ("removed", "extreme"))


@dataclass(frozen=True)
class RootMeanSquare:
    """A norm that divides by the root mean square over the last axes goes on dividing by the widths that they had.

    With a share s of them left, x / sqrt(s mean(x^2) + eps) = x / sqrt(mean(x^2) + eps / s) / sqrt(s).
    """

    node: int
    source: str
    axes: tuple[int, ...]
    scale: int
    default: float

    def apply(self, edit: Edit) -> None:
        """Change epsilon and scale."""
        share = _share_left(edit, self.source, self.axes)
        if share == 1:
            return
        node = edit.node(self.node)
        given = next((a.f for a in node.attribute if a.name == "epsilon"), self.default)
        set_attribute(node, "epsilon", given / share)
        name = node.input[self.scale]
        values = edit.constant(name)
        edit.set_constant(name, (values / np.sqrt(share)).astype(values.dtype))


@dataclass(frozen=True)
class Selection:
    """A Slice, Gather or shuffle: output positions `index` of the input's axis; becomes one Gather where it is cut.

    Attributes:
        nodes: the node, or a chain of nodes that together select.
        source: input tensor.
        target: output tensor.
        axis: the axis selected on, of both; other axes are the same.
        index: int[n_out], input position of each output position.
        others: axes of the source that the nodes carry along.
    """

    nodes: tuple[int, ...]
    source: str
    target: str
    axis: int
    index: IntArray
    others: tuple[int, ...] = ()

    def apply(self, edit: Edit) -> None:
        """Select the live positions among the live positions."""
        if not any(edit.cut(self.source, a) or edit.cut(self.target, a) for a in (self.axis, *self.others)):
            return None
        alive = edit.alive(self.source, self.axis)
        position = np.cumsum(alive) - 1
        chosen = position[self.index[alive[self.index]]].astype(np.int64)
        for node in self.nodes[:-1]:
            edit.replace(node, [])
        if np.array_equal(chosen, np.arange(alive.sum())):
            same = helper.make_node("Identity", [self.source], [self.target], name=f"{self.target}.gather")
            return edit.replace(self.nodes[-1], [same])
        index = edit.new_constant(f"{self.target}.index", chosen)
        gather = helper.make_node("Gather", [self.source, index], [self.target], name=f"{self.target}.gather")
        set_attribute(gather, "axis", self.axis)
        return edit.replace(self.nodes[-1], [gather])


@dataclass(frozen=True)
class Bounds:
    """A Slice with step 1 on an axis: its bounds (entry `entry` of starts and ends) move with the live positions."""

    node: int
    source: str
    axis: int
    start: int
    stop: int
    entry: int

    def apply(self, edit: Edit) -> None:
        """Write the new bounds."""
        if not edit.cut(self.source, self.axis):
            return
        before = np.concatenate([[0], np.cumsum(edit.alive(self.source, self.axis))])
        node = edit.node(self.node)
        for k, (name, bound) in enumerate((("starts", self.start), ("ends", self.stop)), start=1):
            if len(node.input) > k:
                values = edit.constant(node.input[k]).copy().reshape(-1)
                values[self.entry] = before[bound]
                edit.set_constant(node.input[k], values)
            else:
                values = np.array(next(list(a.ints) for a in node.attribute if a.name == name), np.int64)
                values[self.entry] = before[bound]
                set_attribute(node, name, values.tolist())


@dataclass(frozen=True)
class PadCount:
    """Padding of a cut axis: as many zeros as live positions stand in the padding."""

    node: int
    target: str
    axis: int
    rank: int
    before: int
    after: int

    def apply(self, edit: Edit) -> None:
        """Write the new amounts."""
        if not edit.cut(self.target, self.axis):
            return
        alive = edit.alive(self.target, self.axis)
        amounts: NDArray[np.int64] = np.array(
            [alive[: self.before].sum(), alive[len(alive) - self.after :].sum()], np.int64
        )
        node = edit.node(self.node)
        where = [self.axis, self.axis + self.rank]
        if len(node.input) > 1:
            pads = edit.constant(node.input[1]).copy()
            pads[where] = amounts
            edit.set_constant(node.input[1], pads)
        else:
            pads = np.array(next(list(a.ints) for a in node.attribute if a.name == "pads"), np.int64)
            pads[where] = amounts
            set_attribute(node, "pads", pads.tolist())
