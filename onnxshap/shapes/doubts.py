"""What is alike in runs at different sizes by chance, and need not be at another.

Sizes that the data tell (how many boxes are kept, the longest of some lengths) are in doubt from the start, for the
runs are of some data.

What compares, rounds or clips is often alike at some sizes and not at others (`batch == 1`, `height % 32`): it does not
depend on sizes for certain only where all that it is computed from does not. That is told for each entry of what shape
arithmetic computes, for most vectors of sizes hold some that follow the inputs and some that do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.core import Array, BoolArray
from onnxshap.graph import array, attributes, is_op, is_standard
from onnxshap.graph.lifting import BRANCHES, body, entered, handed, is_if, is_loop, is_open
from onnxshap.graph.loops import controls, deciding, leading
from onnxshap.graph.structure import goes_on, subgraphs
from onnxshap.shapes.alone import MOST, Alone, Given
from onnxshap.shapes.sizes import sizes_in_doubt

_LOSSY = ("Abs", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mod", "ReduceMax", "ReduceMin", "Round", "Sign")
_EACH = frozenset((
    *("Abs", "Add", "And", "Ceil", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"),
    *("Min", "Mod", "Mul", "Neg", "Not", "Or", "Round", "Sign", "Sqrt", "Sub", "Where", "Xor"),
))  # fmt: skip
"""Ops of which an entry depends on the entries there of what they read."""
_COUNTING = (
    *("BlackmanWindow", "Compress", "ConstantOfShape", "HammingWindow", "HannWindow", "MelWeightMatrix"),
    *("NonMaxSuppression", "NonZero", "Range", "Unique"),
)
"""Ops that give as much as they find, or as their first input says."""
_SCALED = ("Resize", "Upsample")
"""Ops that read factors of sizes, which are no integers."""
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_RESHAPING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Doubtful:
    """What may be alike in all runs by chance.

    Attributes:
        entries: of what shape arithmetic gives, bool of its shape each.
        axes: bool[rank] of tensors some of whose sizes are.
        by_data: whether the data tell some of these sizes: those of all images of a batch do, together.
    """

    entries: dict[str, BoolArray]
    axes: dict[str, BoolArray]
    by_data: bool


def doubtful(
    model: ModelProto,
    one: Mapping[str, Array],
    others: Sequence[Mapping[str, Array]],
    shapes: Mapping[str, tuple[int, ...]],
    alone: Alone,
) -> Doubtful:
    """Return what may be alike in all runs by chance.

    Args:
        model: that was run.
        one, others: what its shape arithmetic gave in the runs.
        shapes: of all tensors in the first.
        alone: infers what a node of the model gives.
    """
    inputs = {i.name for i in model.graph.input}
    doubts = _Doubts(model.graph.node, inputs, one, others, {t.name: t for t in model.graph.initializer}, shapes, alone)
    for node in model.graph.node:
        doubts.visit(node)
    return Doubtful(doubts.found, doubts.axes, doubts.by_data)


def unlike(value: Array, others: Sequence[Array | None]) -> BoolArray | None:
    """Return which entries of a value are not the same in all others, None where one is not there or not as large."""
    found = np.zeros(value.shape, np.bool_)
    for other in others:
        if other is None or other.shape != value.shape:
            return None
        found |= value != other
    return found


@dataclass
class _Doubts:
    nodes: Sequence[NodeProto]
    inputs: Collection[str]
    one: Mapping[str, Array]
    others: Sequence[Mapping[str, Array]]
    stored: Mapping[str, TensorProto]
    shapes: Mapping[str, tuple[int, ...]]
    alone: Alone
    found: dict[str, BoolArray] = field(default_factory=dict)
    axes: dict[str, BoolArray] = field(default_factory=dict)
    """Tensors of which some axes have sizes in doubt."""
    by_data: bool = False
    shapeless: set[str] = field(default_factory=set)
    """What is made of such and has no shape that is known."""
    sizes: set[str] = field(default_factory=set)

    def visit(self, node: NodeProto) -> None:
        """Tell of what a node gives."""
        inputs = [name for name in node.input if name]
        self._note_sizes(node, inputs)
        if is_loop(node) or is_if(node):
            self._note_bodies(node)
        truths = any(n in self.one and self.one[n].dtype == np.bool_ for n in (*inputs, *node.output))
        lossy = node.output[0] in self.one and (truths or is_op(node, *_LOSSY))
        doubted = any(name in some for name in inputs for some in (self.found, self.axes, self.shapeless))
        counts = self._sized_by_data(node)
        doubted = doubted or counts
        if not doubted and not (lossy and any(self._varies(n) for n in inputs)):
            return
        self._note_axes(node)
        self.by_data |= counts and any(name in self.axes or name in self.shapeless for name in node.output)
        for name in node.output:
            if name not in self.one:
                continue
            shape = self.one[name].shape
            known = all(n in self.one or n in self.stored for n in inputs)
            sized = is_op(node, "Shape", "Size") and inputs[0] in self.shapes
            entries = self._entries(node, inputs, lossy=lossy) if known or sized else None
            if entries is None or entries.shape != shape or name in self.axes or name in self.shapeless:
                entries = np.ones(shape, np.bool_)
            if entries.any():
                self.found[name] = entries

    def _sized_by_data(self, node: NodeProto) -> bool:
        """Return whether the sizes of what a node gives may follow the values of data."""
        if not is_standard(node) or any(subgraphs(node)):
            return False
        data = [n for n in node.input if n and n not in self.one and n not in self.stored]
        if is_op(node, *_COUNTING):
            return bool(data)
        kinds = self.alone.inferred
        return any(kinds.get(n) in (*_INTEGERS, None) or is_op(node, *_SCALED) for n in data if n not in node.input[:1])

    def _note_bodies(self, node: NodeProto) -> None:
        """Note the axes of what bodies give whose sizes follow how often, or which of them, the data let run."""
        if is_if(node):
            self._note_branches(node)
            return
        states, handed_ = leading(node)[1], handed(body(node))
        counts = node.op_type == "Scan" or self._counts(node)
        results = [None] * len(node.output) if handed_ is None else handed_[leading(node)[0] // 2 :]
        starts = list(node.input[leading(node)[0] :])
        for k, output in enumerate(node.output):
            if not output:
                continue
            if output not in self.shapes:  # a sequence: as long as there are iterations
                if not counts:
                    self.shapeless.add(output)
                continue
            shape, result = self.shapes[output], results[k]
            axes = np.zeros(len(shape), np.bool_)
            inner = axes if k < states else axes[1:]
            inner |= self._inner(result, len(inner))
            if k >= states:
                axes[0] |= not counts
            elif not counts:  # it may grow from step to step
                start = self.shapes.get(starts[k])
                given = self.shapes.get(result) if result is not None else None
                axes |= _unlike_sizes(len(shape), start, shape) | _unlike_sizes(len(shape), start, given or shape)
            if k < states:
                axes |= self._inner(starts[k], len(shape))
            if axes.any():
                self.axes[output] = axes
                self.by_data |= not counts

    def _inner(self, name: str | None, rank: int) -> BoolArray:
        """Return which axes of what a body gives are in doubt: none that is known; all where it is not lifted."""
        if name is None:
            return np.ones(rank, np.bool_)
        found = self.axes.get(name, np.zeros(rank, np.bool_))
        return found if len(found) == rank else np.ones(rank, np.bool_)

    def _note_branches(self, node: NodeProto) -> None:
        """Note the axes of what an If gives in which its branches differ, or are in doubt themselves."""
        names = [handed(body(node, branch)) for branch in BRANCHES]
        sure = self._sure(node.input[0])
        shapes = [self._handed(node, branch) for branch in BRANCHES]
        for k, output in enumerate(node.output):
            if output not in self.shapes:
                if output and not sure:
                    self.shapeless.add(output)
                continue
            rank = len(self.shapes[output])
            axes = np.zeros(rank, np.bool_)
            if not sure:
                axes |= _unlike_sizes(rank, shapes[0][k], shapes[1][k])
            for some in names:
                if some is not None and (own := self.axes.get(some[k])) is not None and len(own) == rank:
                    axes |= own
            if axes.any():
                self.axes[output] = axes

    def _handed(self, node: NodeProto, branch: str) -> list[tuple[int, ...] | None]:
        """Return the shapes that a branch of an If gives, None where they are not known."""
        inside = body(node, branch)
        names = handed(inside)
        if names is not None:
            return [self.shapes.get(name) for name in names]
        declared = [o.type.tensor_type.shape.dim for o in inside.output]
        return [tuple(d.dim_value for d in dims) if dims and all(d.dim_value for d in dims) else None
                for dims in declared]  # fmt: skip

    def _counts(self, node: NodeProto) -> bool:
        """Return whether a Loop runs as often as its count says, which is no matter of the data."""
        open_ = entered(self.nodes)
        if is_open(node, open_):
            loops = [n for n in self.nodes if is_open(n, open_)]
            return deciding(self.nodes, loops, controls(node)).isdisjoint(self.inputs)
        inside = body(node)
        count, starts = node.input[0], node.input[1] if len(node.input) > 1 else ""
        if not (count and self._sure(count)) or (starts and not self._sure(starts)):
            return False
        made = [o for n in inside.node if is_op(n, "Constant") for o in n.output]
        return goes_on(inside, {*self.stored, *made})

    def _sure(self, name: str) -> bool:
        """Return whether what a tensor holds is no matter of the data."""
        return name in self.stored or (name in self.one and name not in self.found)

    def _note_axes(self, node: NodeProto) -> None:
        """Note which axes of what a node gives have sizes in doubt."""
        known = all(n in self.shapes and n not in self.shapeless for n in node.input if n)
        given = [self._given(n) if known and n else None for n in node.input]
        for name in node.output:
            if name not in self.shapes:
                self.shapeless.add(name)
            elif not known:
                self.axes[name] = np.ones(len(self.shapes[name]), np.bool_)
        found = sizes_in_doubt(node, given, self.shapes, self.alone) if known else {}
        self.axes |= {name: axes for name, axes in found.items() if axes.any() and name not in self.shapeless}

    def _given(self, name: str) -> Given:
        shape = self.shapes[name]
        small = name in self.one or (name in self.stored and math.prod(shape) <= MOST)
        sizes = self.axes.get(name, np.zeros(len(shape), np.bool_))
        return Given(shape, sizes, self._value(name) if small else None, self.found.get(name))

    def _note_sizes(self, node: NodeProto, inputs: list[str]) -> None:
        """Note what holds sizes as they are, and constants."""
        if is_op(node, *_RESHAPING, "Gather", "Slice", "Transpose"):
            as_they_are = inputs[0] in self.sizes and all(n in self.stored for n in inputs[1:])
        else:
            as_they_are = is_op(node, "Concat") and all(n in self.sizes or n in self.stored for n in inputs)
        if as_they_are or is_op(node, "Shape", "Size"):
            self.sizes.update(node.output)

    def _value(self, name: str) -> Array:
        return self.one[name] if name in self.one else array(self.stored[name])

    def _varies(self, name: str) -> bool:
        if name in self.stored:
            return False
        found = unlike(self.one[name], [run.get(name) for run in self.others]) if name in self.one else None
        return found is None or bool(found.any())

    def _unlike(self, name: str) -> BoolArray:
        """Return which entries of a tensor are not alike."""
        if name in self.stored:
            return np.zeros(self._value(name).shape, np.bool_)
        found = unlike(self.one[name], [run.get(name) for run in self.others])
        return np.ones(self.one[name].shape, np.bool_) if found is None else found

    def _doubt(self, name: str) -> BoolArray:
        return self.found.get(name, np.zeros(self._value(name).shape, np.bool_))

    def _entries(self, node: NodeProto, inputs: list[str], *, lossy: bool) -> BoolArray | None:
        """Return which entries of what a node gives are in doubt, None where that is not known."""
        if is_op(node, "Shape", "Size"):  # of what it reads the sizes alone
            given = self._given(inputs[0]).sizes
            axes = attributes(node)
            return np.asarray(given.any()) if node.op_type == "Size" else given[axes.get("start", 0) : axes.get("end")]
        if is_op(node, "Where"):
            chosen, yes, no = inputs
            unsure = self._unlike(chosen) | self._doubt(chosen)
            return np.asarray(unsure | np.where(self._value(chosen), self._doubt(yes), self._doubt(no)))
        if is_op(node, *_EACH):
            parts = [self._doubt(n) | self._unlike(n) if lossy else self._doubt(n) for n in inputs]
            entries: BoolArray = functools.reduce(np.logical_or, parts)
            return entries & ~self._never_equal(*inputs) if is_op(node, "Equal") else entries
        if is_op(node, "Concat"):
            axis = attributes(node)["axis"]
            return np.concatenate([self._doubt(n) for n in inputs], axis=axis)
        if is_op(node, "OneHot") and not any((self._unlike(n) | self._doubt(n)).any() for n in inputs[:2]):
            places, depth = self._value(inputs[0]), int(self._value(inputs[1]).item())
            off, on = self._doubt(inputs[2])
            places = np.where(places < 0, places + depth, places)
            there = np.moveaxis(np.arange(depth) == places[..., None], -1, attributes(node).get("axis", -1))
            return np.asarray(np.where(there, on, off))
        if inputs[0] in self.found and not any(n in self.found for n in inputs[1:]) and not lossy:
            others = [self._value(n) if n else None for n in node.input[1:]]
            return moved(node, self.found[inputs[0]], others, np.shape(self.one[node.output[0]]))
        return None

    def _never_equal(self, a: str, b: str) -> BoolArray:
        """Return where sizes are compared with negative numbers that are sure (-1: as it is)."""
        found: BoolArray = np.zeros((), np.bool_)
        for name, number in ((a, b), (b, a)):
            if name in self.sizes:
                sure = ~(self._unlike(number) | self._doubt(number)) & (self._value(number) < 0)
                found = found | (sure & self._unlike(name))
        return found


def _unlike_sizes(rank: int, one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> BoolArray:
    """Return which axes differ in the two shapes that a result may have, all of them where those are not known."""
    if one is None or other is None or not len(one) == len(other) == rank:
        return np.ones(rank, np.bool_)
    return np.asarray(np.array(one) != np.array(other), np.bool_).reshape(rank)


def moved(node: NodeProto, entries: BoolArray, others: list[Array | None], shape: tuple[int, ...]) -> BoolArray | None:
    """Return where an op puts the entries of its first input, given the values of the others; None if it is no such op.

    Args:
        node: the op.
        entries: something about each entry.
        others: values of the other inputs.
        shape: of the output.
    """
    given = attributes(node)
    if is_op(node, *_RESHAPING):
        return entries.reshape(shape) if entries.size == np.prod(shape, dtype=np.int64) else None
    if is_op(node, "Transpose"):
        return entries.transpose(given.get("perm"))
    if is_op(node, "Gather") and others[0] is not None:
        return np.asarray(np.take(entries, others[0], axis=given.get("axis", 0)))
    if is_op(node, "Slice") and len(others) >= 2 and others[0] is not None and others[1] is not None:
        axes, steps = [*others[2:], None, None][:2]
        found = entries
        for place, (start, stop) in enumerate(zip(others[0].tolist(), others[1].tolist(), strict=True)):
            axis = place if axes is None else int(axes[place])
            step = 1 if steps is None else int(steps[place])
            index = np.arange(entries.shape[axis])[window(start, stop, step, entries.shape[axis])]
            found = np.take(found, index, axis=axis)
        return found
    return None


def window(start: int, stop: int, step: int, size: int) -> slice:
    """Return the Python slice of ONNX bounds, which may lie far outside (INT_MIN as "to the very start")."""
    if step < 0 and stop < -size:
        return slice(start if start < size else size - 1, None, step)
    return slice(max(start, -size), stop, step)
