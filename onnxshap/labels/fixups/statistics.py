"""Sums, means and norms over an axis that is cut: they go on counting, or seeing, the zeros that are gone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import NodeProto, helper

from onnxshap.core import Array, BoolArray
from onnxshap.labels.fixups.edit import Edit, give, set_attribute, share_left
from onnxshap.labels.fixups.positions import gathered
from onnxshap.labels.fixups.residues import Chain


def _corrected(edit: Edit, index: int, op: str, number: float, hints: tuple[str, str]) -> None:
    """Put an op with a number behind a node that sees only what a cut leaves; `hints` name the number and the op."""
    node = edit.node(index)
    result, raw = node.output[0], edit.names.new(f"{node.output[0]}.of_the_rest")
    node.output[0] = raw
    constant = edit.new_constant(f"{result}.{hints[0]}", edit.typed(np.array(number), result))
    called = edit.names.node(f"{result}.{hints[1]}")
    edit.replace(index, [node, helper.make_node(op, [raw, constant], [result], name=called)])


@dataclass(frozen=True)
class Divisor:
    """A mean over axes of `source` goes on dividing by the widths that they had."""

    node: int
    source: str
    axes: tuple[int, ...]

    def apply(self, edit: Edit) -> None:
        """Multiply the mean of what is left by its share."""
        share = share_left(edit, self.source, self.axes)
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
        if share_left(edit, self.source, self.axes) < 1:
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
        share = share_left(edit, self.source, self.axes)
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
        node.input[self.scale] = scaled = edit.names.new(f"{node.output[0]}.{name}.scaled")
        edit.replace(self.node, [helper.make_node("Mul", [name, number], [scaled], name=scaled), node])


@dataclass(frozen=True)
class Refilled:
    """An op that sees an axis as a whole sees it as wide as it was, with what stood at positions that were removed.

    That is zero, but for inputs that something makes position by position of what is zero there.

    Attributes:
        node: the op.
        source: tensor that has all axes.
        axes: the axes that it sees as a whole, of its data inputs and of its outputs.
        opset: that of the model, which tells how Pad and Slice are written.
        data: inputs that get the zeros.
        parameters: constants among its inputs whose axes are the last of `axes`, zeros there as well.
        outputs: outputs that have the axes.
        ordered: whether the zeros have to stand where the positions stood, not behind the others.
        rest: data inputs that are not zero there, and what gives them: one of the axes is cut then, alone.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    opset: int
    data: tuple[int, ...] = (0,)
    parameters: tuple[int, ...] = ()
    outputs: tuple[int, ...] = (0,)
    ordered: bool = False
    rest: tuple[tuple[int, Chain], ...] = ()

    def apply(self, edit: Edit) -> None:
        """Put zeros in front of the op and take their results away behind it."""
        cut = [axis for axis in self.axes if edit.cut(self.source, axis)]
        if not cut:
            return
        alive = {axis: edit.alive(self.source, axis) for axis in cut}
        node, rank, rest = edit.node(self.node), edit.rank(self.source), dict(self.rest)
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
            name = node.input[k]
            node.input[k] = self._filled(edit, name, f"{node.output[0]}.input{k}", own, there, before)
            if k in rest:
                removed = rest[k].at_removed(edit, name)
                ((axis, kept),) = there.items()
                dead = ~kept if self.ordered else np.sort(~kept)
                column = edit.typed(dead.reshape([-1] + [1] * (own - axis - 1)), name)
                node.input[k] = self._added(edit, node.input[k], removed, column, before)
        for j in self.outputs:
            result = node.output[j]
            node.output[j] = edit.names.new(f"{result}.whole")
            self._emptied(edit, node.output[j], result, alive, behind)
        edit.replace(self.node, [*before, node, *behind])

    def _filled(
        self, edit: Edit, name: str, base: str, rank: int, alive: dict[int, BoolArray], nodes: list[NodeProto]
    ) -> str:
        """Append nodes that give a tensor its zeros, return the name of what they make."""
        pads = np.zeros((2, rank), np.int64)
        for axis, kept in alive.items():
            pads[1, axis] = 1 if self.ordered else (~kept).sum()
        padded = edit.names.new(f"{base}.filled")
        nodes.append(helper.make_node("Pad", [name], [padded], name=padded))
        give(nodes[-1], "pads", pads.ravel().tolist(), partial(edit.new_constant, f"{base}.pads"), self.opset)
        for axis, kept in alive.items() if self.ordered else ():
            places = np.where(kept, np.cumsum(kept) - 1, kept.sum())
            padded = gathered(edit, padded, edit.names.new(f"{base}.ordered{axis}"), axis, places, nodes)
        return padded

    def _added(self, edit: Edit, name: str, removed: str, column: Array, nodes: list[NodeProto]) -> str:
        """Append nodes that add what stood at removed positions, ones of a column, return the name of the sum."""
        made = [edit.new_constant(f"{name}.gone", column)]
        for op, first in (("Mul", removed), ("Add", name)):
            made.append(edit.names.new(f"{name}.{op}"))
            nodes.append(helper.make_node(op, [first, made[-2]], [made[-1]], name=made[-1]))
        return made[-1]

    def _emptied(self, edit: Edit, name: str, result: str, alive: dict[int, BoolArray], nodes: list[NodeProto]) -> None:
        """Append nodes that give the live positions of an output their name."""
        if self.ordered:
            for k, (axis, kept) in enumerate(alive.items(), start=1):
                last = result if k == len(alive) else edit.names.new(f"{result}.live{axis}")
                name = gathered(edit, name, last, axis, np.flatnonzero(kept), nodes)
            return
        axes, ends = list(alive), [int(kept.sum()) for kept in alive.values()]
        bounds = {"starts": [0] * len(axes), "ends": ends, "axes": axes}
        made = helper.make_node("Slice", [name], [result], name=edit.names.node(f"{result}.live"))
        nodes.append(made)
        for what, values in bounds.items():
            give(made, what, values, partial(edit.new_constant, f"{result}.{what}"), self.opset)


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
        share = share_left(edit, self.source, self.axes)
        if share == 1:
            return
        node, made = edit.node(self.node), list[NodeProto]()
        result = node.output[0]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)

        def put(op: str, hint: str, *inputs: str) -> str:
            name = edit.names.new(f"{result}.{hint}")
            made.append(helper.make_node(op, list(inputs), [name], name=name))
            return name

        def number(value: float, hint: str) -> str:
            return edit.new_constant(f"{result}.{hint}", edit.typed(np.array(value), self.source))

        def mean(name: str, hint: str) -> str:
            found = put("ReduceMean", hint, name)
            give(made[-1], "axes", self.axes, partial(edit.new_constant, f"{result}.axes"), self.opset)
            return found

        m = mean(node.input[0], "left_mean")
        apart = put("Sub", "apart", node.input[0], m)
        v = put("Mul", "left_share", mean(put("Mul", "squares", apart, apart), "left_variance"), number(share, "share"))
        gone = put("Mul", "gone_share", put("Mul", "mean_square", m, m), number(share * (1 - share), "share_gone"))
        variance = put("Add", "variance", put("Add", "both", v, gone), number(epsilon, "epsilon"))
        centred = put("Sub", "centred", node.input[0], put("Mul", "mean", m, number(share, "share_left")))
        scaled = put("Mul", "scaled", put("Div", "normal", centred, put("Sqrt", "deviation", variance)), node.input[1])
        called = edit.names.node(f"{result}.whole")
        made.append(helper.make_node("Add", [scaled, node.input[2]], [result], name=called))
        edit.replace(self.node, made)
