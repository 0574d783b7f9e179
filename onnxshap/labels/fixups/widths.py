"""Numbers that restate a width: targets of a Reshape, counts of groups and of heads, parts of a Split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import AttributeProto, helper

from onnxshap.core import Array, IntArray
from onnxshap.graph.structure import copied
from onnxshap.labels.fixups.edit import Edit, give, name_axes, set_attribute, takes_all


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
            if edit.stored(name):  # else a freed batch made it follow the tensors themselves (`batching`)
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
class Scaled:
    """Entries of a computed list of sizes that follow free ones times widths: they shrink as the widths do.

    Attributes:
        node: the op that gives so many positions.
        tensor: what it gives.
        axes: those of it whose sizes are computed so.
        input: the list, of the last axes.
        length: how many it has.
    """

    node: int
    tensor: str
    axes: tuple[int, ...]
    input: int
    length: int

    def apply(self, edit: Edit) -> None:
        """Scale the entries whose axes lose positions."""
        rank = edit.rank(self.tensor)
        kept, sizes = (s[rank - self.length :] for s in _shares(edit, self.tensor, self.axes, rank))
        if (sizes == 1).all():
            return
        node = edit.node(self.node)
        given, wish = node.input[self.input], f"{self.tensor}.scaled"
        more, fewer = (edit.names.new(f"{wish}.{part}") for part in ("times", "over"))
        by, over = (edit.new_constant(f"{wish}.{part}", a) for part, a in (("kept", kept), ("of", sizes)))
        node.input[self.input] = fewer
        times = helper.make_node("Mul", [given, by], [more], name=more)
        edit.replace(self.node, [times, helper.make_node("Div", [more, over], [fewer], name=fewer), node])


def _shares(edit: Edit, tensor: str, axes: Sequence[int], rank: int) -> tuple[IntArray, IntArray]:
    """Return how much is left of some axes of a tensor, 1 of 1 of the others: int64[rank] of int64[rank]."""
    kept, sizes = np.ones((2, rank), np.int64)
    for axis in axes:
        if edit.cut(tensor, axis):
            alive = edit.alive(tensor, axis)
            common = math.gcd(len(alive), int(alive.sum()))
            kept[axis], sizes[axis] = alive.sum() // common, len(alive) // common
    return kept, sizes


@dataclass(frozen=True)
class Told:
    """A Shape of axes that hold free sizes times widths: it goes on to tell what there was before the cut.

    Attributes:
        node: the Shape.
        tensor: what it reads.
        axes: those of it whose sizes are counted on.
        start: the first axis that it tells.
        count: how many it tells.
    """

    node: int
    tensor: str
    axes: tuple[int, ...]
    start: int
    count: int

    def apply(self, edit: Edit) -> None:
        """Grow the entries whose axes lose positions."""
        kept, sizes = (s[self.start :] for s in _shares(edit, self.tensor, self.axes, self.start + self.count))
        if (sizes == 1).all():
            return
        node = copied(edit.node(self.node))
        told, nodes = node.output[0], [node]
        for op, values in (("Mul", sizes), ("Div", kept)):
            name = edit.names.new(f"{told}.{op}")
            nodes[-1].output[0] = name
            nodes.append(helper.make_node(op, [name, edit.new_constant(f"{name}.by", values)], [told], name=name))
        edit.replace(self.node, nodes)


@dataclass(frozen=True)
class SingleAxes:
    """A Squeeze of all axes of size 1: a cut may leave one channel, which it must not take.

    Only then are the axes named: a batch of one image is taken from the original too.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    opset: int

    def apply(self, edit: Edit) -> None:
        """Name the axes."""
        node = edit.node(self.node)
        single = any(self._left_single(edit, axis) for axis in range(edit.rank(self.source)))
        if single and takes_all(node):  # they may be named by a freed batch (`batching`)
            name_axes(node, self.axes, edit.new_constant, self.opset)

    def _left_single(self, edit: Edit, axis: int) -> bool:
        return edit.cut(self.source, axis) and int(edit.alive(self.source, axis).sum()) == 1


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
class UnequalParts:
    """A Split that names no sizes, for its parts follow from their number: they are named once it no longer tells them.

    Attributes:
        node: the op.
        parts: its outputs.
        axis: that it splits.
        opset: that of the model, which tells where sizes are named.
    """

    node: int
    parts: tuple[str, ...]
    axis: int
    opset: int

    def apply(self, edit: Edit) -> None:
        """Name the sizes that are left."""
        sizes = [int(edit.alive(part, self.axis).sum()) for part in self.parts]
        if any(edit.cut(part, self.axis) for part in self.parts) and len(set(sizes)) > 1:
            node = edit.node(self.node)
            kept = [a for a in node.attribute if a.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)
            give(node, "split", sizes, partial(edit.new_constant, f"{node.output[0]}.split"), self.opset)


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
