"""Constants that name positions of an axis: indices, grids, bounds and pads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from onnxshap.core import BoolArray, IntArray
from onnxshap.labels.fixups.edit import Edit, set_attribute


def gathered(edit: Edit, source: str, target: str, axis: int, index: IntArray, nodes: list[NodeProto]) -> str:
    """Append a Gather of positions of an axis, return its target."""
    places = edit.new_constant(f"{target}.index", index.astype(np.int64))
    called = edit.names.node(f"{target}.gather")
    nodes.append(helper.make_node("Gather", [source, places], [target], name=called, axis=axis))
    return target


def _renumbered(positions: IntArray, alive: BoolArray) -> IntArray:
    """Return the live ones of some positions of an axis, by their places among all that is alive there."""
    return (np.cumsum(alive) - 1)[positions[alive[positions]]].astype(np.int64)


def grid(positions: Sequence[IntArray]) -> IntArray:
    """Return the places that take one position of every axis, int64[*lengths, axes]."""
    return np.stack(np.meshgrid(*positions, indexing="ij"), axis=-1)


def grid_of(places: IntArray, shape: Sequence[int]) -> list[IntArray] | None:
    """Return the positions of every axis looked up, None unless they are those of a grid and all differ.

    Args:
        places: numbers of the first axes of a tensor, the last axis one each.
        shape: that tensor's.
    """
    axes = places.shape[-1]
    if places.ndim != axes + 1 or not places.size:
        return None
    found = [np.moveaxis(places[..., a], a, 0).reshape(places.shape[a], -1)[:, 0] % shape[a] for a in range(axes)]
    if (grid(found) != places % np.array(shape[:axes])).any() or any(len(np.unique(f)) < len(f) for f in found):
        return None
    return found


@dataclass(frozen=True)
class Selection:
    """A Slice, Gather or shuffle: output positions `index` of the input's axis; becomes one Gather where it is cut.

    Attributes:
        nodes: the node, or a chain of nodes that together select.
        source: input tensor.
        target: output tensor.
        axis: the axis selected on, of both; other axes are the same.
        index: int[n_out], input position of each output position.
        others: axes whose sizes the nodes write out; a node alone takes any.
    """

    nodes: tuple[int, ...]
    source: str
    target: str
    axis: int
    index: IntArray
    others: tuple[int, ...] = ()

    def apply(self, edit: Edit) -> None:
        """Select the live positions among the live positions."""
        sized = any(edit.cut(self.source, a) or edit.cut(self.target, a) for a in self.others)
        if not sized and not edit.cut(self.source, self.axis):
            return None  # what counts from the end of a free axis goes on to do so
        alive = edit.alive(self.source, self.axis)
        chosen = _renumbered(self.index, alive)
        for node in self.nodes[:-1]:
            edit.replace(node, [])
        if np.array_equal(chosen, np.arange(alive.sum())):
            called = edit.names.node(f"{self.target}.gather")
            same = helper.make_node("Identity", [self.source], [self.target], name=called)
            return edit.replace(self.nodes[-1], [same])
        made: list[NodeProto] = []
        gathered(edit, self.source, self.target, self.axis, chosen, made)
        return edit.replace(self.nodes[-1], made)


@dataclass(frozen=True)
class Table:
    """A Gather whose index has other axes than one: it names the live positions for those of its places that are left.

    Attributes:
        node: the op.
        source: what it reads.
        target: what it gives, the axes of the index in place of the one read.
        axis: the one read.
        index: int[...], position read of every place.
    """

    node: int
    source: str
    target: str
    axis: int
    index: IntArray

    def apply(self, edit: Edit) -> None:
        """Write the new numbers."""
        axes = range(self.axis, self.axis + self.index.ndim)
        if not edit.cut(self.source, self.axis) and not any(edit.cut(self.target, axis) for axis in axes):
            return
        alive = edit.alive(self.source, self.axis)
        left = self.index[np.ix_(*(np.flatnonzero(edit.alive(self.target, axis)) for axis in axes))]
        assert alive[left].all(), f"a Gather of {self.source} would read what is cut"
        edit.node(self.node).input[1] = edit.new_constant(f"{self.target}.index", (np.cumsum(alive) - 1)[left])


@dataclass(frozen=True)
class Grid:
    """A ScatterND that writes `positions` of its first axes, a list each: the live ones among the live ones.

    What is `computed` depends on sizes: it is cut and numbered anew on the axes that lose positions.
    """

    node: int
    target: str
    positions: tuple[IntArray, ...]
    computed: bool = False

    def apply(self, edit: Edit) -> None:
        """Write the new numbers."""
        axes = [axis for axis in range(len(self.positions)) if edit.cut(self.target, axis)]
        if not axes:
            return
        node = edit.node(self.node)
        left = [_renumbered(some, edit.alive(self.target, axis)) for axis, some in enumerate(self.positions)]
        if not self.computed:
            node.input[1] = edit.new_constant(f"{self.target}.index", grid(left))
            return
        kept, shift = np.ones(len(left), np.int64), np.zeros((1,) * len(left) + (len(left),), np.int64)
        name, nodes = node.input[1], list[NodeProto]()
        for axis in axes:
            alive = edit.alive(self.target, axis)[self.positions[axis]]
            name = gathered(edit, name, edit.names.new(f"{self.target}.left"), axis, np.flatnonzero(alive), nodes)
            kept[axis] = 0
            own = left[axis].reshape([-1 if a == axis else 1 for a in range(len(left))])
            shift = shift + own[..., None] * (np.arange(len(left)) == axis)
        for op, values in (("Mul", kept), ("Add", shift)):
            made = edit.names.new(f"{self.target}.{op}")
            nodes.append(helper.make_node(op, [name, edit.new_constant(f"{made}.by", values)], [made], name=made))
            name = made
        node.input[1] = name
        edit.replace(self.node, [*nodes, node])


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
