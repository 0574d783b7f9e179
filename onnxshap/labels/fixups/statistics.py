"""Sums, means and norms over an axis that is cut: they go on counting, or seeing, the zeros that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import NodeProto, helper

from onnxshap.core import BoolArray
from onnxshap.graph.structure import copied
from onnxshap.labels.fixups.edit import Edit, give, set_attribute
from onnxshap.labels.fixups.positions import gathered


def _share_left(edit: Edit, source: str, axes: Sequence[int]) -> float:
    """Return the share of a tensor's positions along some axes that a cut leaves; all of none, as data may tell."""
    return float(np.prod([alive.mean() if alive.size else 1.0 for alive in (edit.alive(source, a) for a in axes)]))


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
        share = _share_left(edit, self.source, self.axes)
        if share < 1:
            _corrected(edit, self.node, "Mul", share, ("share", "mean"))


@dataclass(frozen=True)
class Residue:
    """A sum, mean or norm over axes of `source` counts what stands at removed positions, where zeros go in further up.

    Attributes:
        node: the sum, mean or norm.
        source: what it sums.
        axes: over which axes; one of them is cut.
        chain: the nodes that give `source`, position by position, in order.
        zeros: inputs of theirs (node, number) that are zero where a position is removed.
        mean: whether it divides by the width that the axes had.
        norm: whether it is the root of a sum of squares.
    """

    node: int
    source: str
    axes: tuple[int, ...]
    chain: tuple[int, ...]
    zeros: frozenset[tuple[int, int]]
    mean: bool
    norm: bool = False

    def apply(self, edit: Edit) -> None:
        """Compute what the chain gives for zero, sum it like the others, and add it as often as it stood there."""
        share = _share_left(edit, self.source, self.axes)
        if share == 1:
            return
        node = edit.node(self.node)
        if self.norm:
            node.op_type = "ReduceSumSquare"
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
                clone.output[k] = names[name] = edit.names.new(f"{result}.removed.{name}") if name else ""
            clone.name = clone.output[0]
            made.append(clone)
        rest = copied(node)
        rest.input[0], rest.output[0] = names[self.source], edit.names.new(f"{result}.removed")
        rest.name, node.output[0] = rest.output[0], edit.names.new(f"{result}.of_the_rest")
        gone = 1 - share if self.mean else (1 - share) * edit.alive(self.source, self.axes[0]).size
        parts = []
        for part, factor in ((node, share if self.mean else 1.0), (rest, gone)):
            number = edit.new_constant(f"{part.output[0]}.factor", edit.typed(np.array(factor), result))
            parts.append(edit.names.new(f"{part.output[0]}.scaled"))
            made += [part, helper.make_node("Mul", [part.output[0], number], [parts[-1]], name=parts[-1])]
        whole = edit.names.new(f"{result}.squares") if self.norm else result
        made.append(helper.make_node("Add", parts, [whole], name=edit.names.node(f"{result}.whole")))
        if self.norm:
            made.append(helper.make_node("Sqrt", [whole], [result], name=edit.names.node(f"{result}.norm")))
        edit.replace(self.node, made)


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
        node.input[self.scale] = scaled = edit.names.new(f"{node.output[0]}.{name}.scaled")
        edit.replace(self.node, [helper.make_node("Mul", [name, number], [scaled], name=scaled), node])


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
        share = _share_left(edit, self.source, self.axes)
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
