"""What is alike in runs at different sizes by chance, and need not be at another.

What compares, rounds or clips is often alike at some sizes and not at others (`batch == 1`, `height % 32`): it does not
depend on sizes for certain only where all that it is computed from does not. That is told for each entry of what shape
arithmetic computes, for most vectors of sizes hold some that follow the inputs and some that do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.core import Array, BoolArray
from onnxshap.graph import array, attributes, is_op
from onnxshap.shapes.alone import MOST, Alone, Given
from onnxshap.shapes.sizes import sizes_in_doubt

_LOSSY = ("Abs", "Ceil", "Clip", "Div", "Floor", "Max", "Min", "Mod", "ReduceMax", "ReduceMin", "Round", "Sign")
_EACH = frozenset((
    *("Abs", "Add", "And", "Ceil", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"),
    *("Min", "Mod", "Mul", "Neg", "Not", "Or", "Round", "Sign", "Sqrt", "Sub", "Where", "Xor"),
))  # fmt: skip
"""Ops of which an entry depends on the entries there of what they read."""
_RESHAPING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def doubtful(
    model: ModelProto,
    one: Mapping[str, Array],
    others: Sequence[Mapping[str, Array]],
    shapes: Mapping[str, tuple[int, ...]],
    alone: Alone,
) -> tuple[dict[str, BoolArray], dict[str, BoolArray]]:
    """Return what may be alike in all runs by chance: entries of what shape arithmetic gives, and axes of any tensors.

    Args:
        model: that was run.
        one, others: what its shape arithmetic gave in the runs.
        shapes: of all tensors in the first.
        alone: infers what a node of the model gives.
    """
    doubts = _Doubts(one, others, {t.name: t for t in model.graph.initializer}, shapes, alone)
    for node in model.graph.node:
        doubts.visit(node)
    return doubts.found, doubts.axes


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
    one: Mapping[str, Array]
    others: Sequence[Mapping[str, Array]]
    stored: Mapping[str, TensorProto]
    shapes: Mapping[str, tuple[int, ...]]
    alone: Alone
    found: dict[str, BoolArray] = field(default_factory=dict)
    axes: dict[str, BoolArray] = field(default_factory=dict)
    """Tensors of which some axes have sizes in doubt."""
    shapeless: set[str] = field(default_factory=set)
    """What is made of such and has no shape that is known."""
    sizes: set[str] = field(default_factory=set)

    def visit(self, node: NodeProto) -> None:
        """Tell of what a node gives."""
        inputs = [name for name in node.input if name]
        self._note_sizes(node, inputs)
        truths = any(n in self.one and self.one[n].dtype == np.bool_ for n in (*inputs, *node.output))
        lossy = node.output[0] in self.one and (truths or is_op(node, *_LOSSY))
        doubted = any(name in some for name in inputs for some in (self.found, self.axes, self.shapeless))
        if not doubted and not (lossy and any(self._varies(n) for n in inputs)):
            return
        self._note_axes(node)
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
        if node.domain in ("", "ai.onnx") and node.op_type in _EACH:
            parts = [self._doubt(n) | self._unlike(n) if lossy else self._doubt(n) for n in inputs]
            entries: BoolArray = functools.reduce(np.logical_or, parts)
            return entries & ~self._never_equal(*inputs) if is_op(node, "Equal") else entries
        if is_op(node, "Concat"):
            axis = attributes(node)["axis"]
            return np.concatenate([self._doubt(n) for n in inputs], axis=axis)
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
