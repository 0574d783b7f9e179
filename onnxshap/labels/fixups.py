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
from onnxshap.graph.structure import copied


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

    def stored(self, name: str) -> bool:
        """Return whether `constant` knows a tensor."""

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
class SingleAxes:
    """A Squeeze of all axes of size 1: a cut may leave one channel, which it must not take."""

    node: int
    source: str
    axes: tuple[int, ...]
    as_input: bool

    def apply(self, edit: Edit) -> None:
        """Name the axes."""
        node = edit.node(self.node)
        named = len(node.input) > 1 or any(a.name == "axes" for a in node.attribute)  # by a freed batch (`batching`)
        if named or not any(edit.cut(self.source, axis) for axis in range(edit.rank(self.source))):
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
class Residue:
    """A sum or mean over axes of `source` counts what stands at removed positions, where zeros go in further up.

    Attributes:
        node: the sum or mean.
        source: what it sums.
        axes: over which axes; one of them is cut.
        chain: the nodes that give `source`, position by position, in order.
        zeros: inputs of theirs (node, number) that are zero where a position is removed.
        mean: whether it divides by the width that the axes had.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    chain: tuple[int, ...]
    zeros: frozenset[tuple[int, int]]
    mean: bool

    def apply(self, edit: Edit) -> None:
        """Compute what the chain gives for zero, sum it like the others, and add it as often as it stood there."""
        share = _share_left(edit, self.source, self.axes)
        if share == 1:
            return
        node = edit.node(self.node)
        result, made, names = node.output[0], list[NodeProto](), dict[str, str]()
        for index in self.chain:
            clone = copied(edit.node(index))
            for k, name in enumerate(clone.input):
                if (index, k) in self.zeros:
                    zero = edit.typed(np.zeros([1] * edit.rank(name)), name)
                    clone.input[k] = edit.new_constant(f"{result}.zero{k}", zero)
                else:
                    clone.input[k] = names.get(name, name)
            for k, name in enumerate(clone.output):
                clone.output[k] = names[name] = f"{result}.removed.{name}"
            clone.name = clone.output[0]
            made.append(clone)
        rest = copied(node)
        rest.input[0], rest.output[0] = names[self.source], f"{result}.removed"
        rest.name, node.output[0] = rest.output[0], f"{result}.of_the_rest"
        gone = 1 - share if self.mean else (1 - share) * edit.alive(self.source, self.axes[0]).size
        parts = []
        for part, factor in ((node, share if self.mean else 1.0), (rest, gone)):
            number = edit.new_constant(f"{part.output[0]}.factor", edit.typed(np.array(factor), result))
            parts.append(f"{part.output[0]}.scaled")
            made += [part, helper.make_node("Mul", [part.output[0], number], [parts[-1]], name=parts[-1])]
        edit.replace(self.node, [*made, helper.make_node("Add", parts, [result], name=f"{result}.whole")])


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
        if edit.stored(name):
            values = edit.constant(name)
            edit.set_constant(name, (values / np.sqrt(share)).astype(values.dtype))
            return
        number = edit.new_constant(f"{name}.share", edit.typed(np.array(1 / np.sqrt(share)), name))
        node.input[self.scale] = f"{node.output[0]}.scale"
        scaled = helper.make_node("Mul", [name, number], [node.input[self.scale]], name=node.input[self.scale])
        edit.replace(self.node, [scaled, node])


@dataclass(frozen=True)
class Refilled:
    """An op that sees an axis as a whole sees it as wide as it was, with zeros where positions were removed.

    Attributes:
        node: the op.
        source: tensor that has all axes.
        axes: the axes that it sees as a whole, of its data inputs and of its outputs.
        opset: that of the model, which tells how Pad and Slice are written.
        data: inputs that get the zeros.
        parameters: constants among its inputs whose axes are the last of `axes`, zeros there as well.
        outputs: outputs that have the axes.
        ordered: whether the zeros have to stand where the positions stood, not behind the others.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    opset: int
    data: tuple[int, ...] = (0,)
    parameters: tuple[int, ...] = ()
    outputs: tuple[int, ...] = (0,)
    ordered: bool = False

    def apply(self, edit: Edit) -> None:
        """Put zeros in front of the op and take their results away behind it."""
        cut = [axis for axis in self.axes if edit.cut(self.source, axis)]
        if not cut:
            return
        alive = {axis: edit.alive(self.source, axis) for axis in cut}
        node, rank = edit.node(self.node), edit.rank(self.source)
        before: list[NodeProto] = []
        behind: list[NodeProto] = []
        for k in self.parameters:
            name, own = node.input[k], edit.rank(node.input[k])
            first = self.axes[-1] + 1 - own
            gone = {axis - first: kept for axis, kept in alive.items() if axis >= first}
            if edit.stored(name):
                wide = [(0, int((~gone[axis]).sum()) if axis in gone else 0) for axis in range(own)]
                edit.set_constant(name, np.pad(edit.constant(name), wide))
            else:
                node.input[k] = self._filled(edit, name, f"{node.output[0]}.input{k}", own, gone, before)
        for k in self.data:
            own = edit.rank(node.input[k])
            there = {axis - rank + own: kept for axis, kept in alive.items()}
            node.input[k] = self._filled(edit, node.input[k], f"{node.output[0]}.input{k}", own, there, before)
        for j in self.outputs:
            result = node.output[j]
            node.output[j] = f"{result}.whole"
            self._emptied(edit, node.output[j], result, alive, behind)
        edit.replace(self.node, [*before, node, *behind])

    def _filled(
        self, edit: Edit, name: str, base: str, rank: int, alive: dict[int, BoolArray], nodes: list[NodeProto]
    ) -> str:
        """Append nodes that give a tensor its zeros, return the name of what they make."""
        pads = np.zeros((2, rank), np.int64)
        for axis, kept in alive.items():
            pads[1, axis] = 1 if self.ordered else (~kept).sum()
        padded = f"{base}.filled"
        if self.opset < 11:
            nodes.append(helper.make_node("Pad", [name], [padded], name=padded, pads=pads.ravel().tolist()))
        else:
            amounts = edit.new_constant(f"{base}.pads", pads.ravel())
            nodes.append(helper.make_node("Pad", [name, amounts], [padded], name=padded))
        for axis, kept in alive.items() if self.ordered else ():
            places = np.where(kept, np.cumsum(kept) - 1, kept.sum())
            padded = _gathered(edit, padded, f"{base}.ordered{axis}", axis, places, nodes)
        return padded

    def _emptied(self, edit: Edit, name: str, result: str, alive: dict[int, BoolArray], nodes: list[NodeProto]) -> None:
        """Append nodes that give the live positions of an output their name."""
        if self.ordered:
            for k, (axis, kept) in enumerate(alive.items(), start=1):
                last = result if k == len(alive) else f"{result}.live{axis}"
                name = _gathered(edit, name, last, axis, np.flatnonzero(kept), nodes)
            return
        axes, ends = list(alive), [int(kept.sum()) for kept in alive.values()]
        bounds = {"starts": [0] * len(axes), "ends": ends, "axes": axes}
        made = helper.make_node("Slice", [name], [result], name=f"{result}.live")
        nodes.append(made)
        for what, values in bounds.items():
            if self.opset < 10:
                set_attribute(made, what, values)
            else:
                made.input.append(edit.new_constant(f"{result}.{what}", np.array(values, np.int64)))


@dataclass(frozen=True)
class Statistics:
    """An InstanceNormalization of axes whose sizes follow the inputs counts the zeros of what is removed from them.

    With a share s of the positions left, of mean m and variance v, that of all is s m, and their variance
    s v + s (1 - s) m^2.

    Attributes:
        node: the op.
        source: its input.
        axes: over which it takes statistics.
        opset: that of the model, which tells how ReduceMean is written.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    opset: int

    def apply(self, edit: Edit) -> None:
        """Write it out."""
        share = _share_left(edit, self.source, self.axes)
        if share == 1:
            return
        node, made = edit.node(self.node), list[NodeProto]()
        result = node.output[0]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)

        def put(op: str, hint: str, *inputs: str) -> str:
            name = f"{result}.{hint}"
            made.append(helper.make_node(op, list(inputs), [name], name=name))
            return name

        def number(value: float, hint: str) -> str:
            return edit.new_constant(f"{result}.{hint}", edit.typed(np.array(value), self.source))

        def mean(name: str, hint: str) -> str:
            if self.opset < 18:
                found = put("ReduceMean", hint, name)
                set_attribute(made[-1], "axes", list(self.axes))
                return found
            return put("ReduceMean", hint, name, edit.new_constant(f"{result}.axes", np.array(self.axes, np.int64)))

        m = mean(node.input[0], "left_mean")
        apart = put("Sub", "apart", node.input[0], m)
        v = put("Mul", "left_share", mean(put("Mul", "squares", apart, apart), "left_variance"), number(share, "share"))
        gone = put("Mul", "gone_share", put("Mul", "mean_square", m, m), number(share * (1 - share), "share_gone"))
        variance = put("Add", "variance", put("Add", "both", v, gone), number(epsilon, "epsilon"))
        centred = put("Sub", "centred", node.input[0], put("Mul", "mean", m, number(share, "share_left")))
        scaled = put("Mul", "scaled", put("Div", "normal", centred, put("Sqrt", "deviation", variance)), node.input[1])
        made.append(helper.make_node("Add", [scaled, node.input[2]], [result], name=f"{result}.whole"))
        edit.replace(self.node, made)


def _gathered(edit: Edit, source: str, target: str, axis: int, index: IntArray, nodes: list[NodeProto]) -> str:
    """Append a Gather of positions of an axis, return its target."""
    places = edit.new_constant(f"{target}.index", index.astype(np.int64))
    nodes.append(helper.make_node("Gather", [source, places], [target], name=f"{target}.gather", axis=axis))
    return target


def _renumbered(positions: IntArray, alive: BoolArray) -> IntArray:
    """Return the live ones of some positions of an axis, by their places among all that is alive there."""
    return (np.cumsum(alive) - 1)[positions[alive[positions]]].astype(np.int64)


def grid(positions: Sequence[IntArray]) -> IntArray:
    """Return the places that take one position of every axis, int64[*lengths, axes]."""
    return np.stack(np.meshgrid(*positions, indexing="ij"), axis=-1)


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
        shape: that of the index of a Gather, -1 where its positions lie.
    """

    nodes: tuple[int, ...]
    source: str
    target: str
    axis: int
    index: IntArray
    others: tuple[int, ...] = ()
    shape: tuple[int, ...] = (-1,)

    def apply(self, edit: Edit) -> None:
        """Select the live positions among the live positions."""
        if not any(edit.cut(self.source, a) or edit.cut(self.target, a) for a in (self.axis, *self.others)):
            return None
        alive = edit.alive(self.source, self.axis)
        chosen = _renumbered(self.index, alive)
        for node in self.nodes[:-1]:
            edit.replace(node, [])
        if len(self.shape) == 1 and np.array_equal(chosen, np.arange(alive.sum())):
            same = helper.make_node("Identity", [self.source], [self.target], name=f"{self.target}.gather")
            return edit.replace(self.nodes[-1], [same])
        made: list[NodeProto] = []
        _gathered(edit, self.source, self.target, self.axis, chosen.reshape(self.shape), made)
        return edit.replace(self.nodes[-1], made)


@dataclass(frozen=True)
class Grid:
    """A ScatterND that writes `positions` of its first axes, a list each: the live ones among the live ones."""

    node: int
    target: str
    positions: tuple[IntArray, ...]

    def apply(self, edit: Edit) -> None:
        """Write the new numbers."""
        if not any(edit.cut(self.target, axis) for axis in range(len(self.positions))):
            return
        left = [_renumbered(some, edit.alive(self.target, axis)) for axis, some in enumerate(self.positions)]
        edit.node(self.node).input[1] = edit.new_constant(f"{self.target}.index", grid(left))


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
