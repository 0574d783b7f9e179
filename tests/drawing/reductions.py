"""Sums, extremes and norms in all their forms: several axes, counted from the end, kept or not."""

from __future__ import annotations

import numpy as np

from tests.drawing.builder import Builder, Op, Value

_PLAIN = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare")
_SMALL = ("ReduceLogSumExp", "ReduceProd")


def _axes(b: Builder, x: Value, most: int) -> list[int]:
    """Return some axes behind that of the images, some of them counted from the end."""
    found = b.subset(range(1, x.rank), most)
    return [axis - x.rank if b.flag() else axis for axis in found]


def reduce_some(b: Builder, x: Value) -> Value | None:
    """Any reduction, over one axis or several."""
    kept = b.integer(0, 1)
    axes = _axes(b, x, x.rank - 1 if kept else max(1, x.rank - 2))
    if not kept and x.rank - len(axes) < 2:
        return None
    kind = b.one_of([*_PLAIN, *_PLAIN, *_SMALL, "ReduceLogSum"])
    if kind in _SMALL:
        x = b.node("Tanh", [x.name], x.shape)
    elif kind == "ReduceLogSum":
        x = b.node("Add", [b.node("Abs", [x.name], x.shape).name, b.constant(1.0, np.float32)], x.shape)
    gone = {axis % x.rank for axis in axes}
    shape = [1 if a in gone else size for a, size in enumerate(x.shape) if kept or a not in gone]
    return b.with_ints(kind, x, "axes", axes, shape, 13 if kind == "ReduceSum" else 18, keepdims=kept)


def softmax_from_behind(b: Builder, x: Value) -> Value:
    """Shares, or their logarithms, over an axis counted from the end."""
    return b.node(b.one_of(["Softmax", "LogSoftmax"]), [x.name], x.shape, axis=-b.integer(1, x.rank - 1))


def norm_of_lengths(b: Builder, x: Value) -> Value:
    """Divided by a norm over an axis."""
    axis = b.integer(1, x.rank - 1)
    return b.node("LpNormalization", [x.name], x.shape, axis=axis - x.rank if b.flag() else axis, p=b.integer(1, 2))


def running(b: Builder, x: Value) -> Value:
    """Running sums along an axis."""
    axis = b.integer(1, x.rank - 1)
    given = b.constant(axis - x.rank if b.flag() else axis)
    if b.opset < 11:
        return b.node("Softmax", [x.name], x.shape, axis=axis)
    return b.node("CumSum", [x.name, given], x.shape, exclusive=b.integer(0, 1), reverse=b.integer(0, 1))


def layer_norm_from_behind(b: Builder, x: Value) -> Value | None:
    """A layer norm over the last axes, counted from the end, whose mean may be read, too."""
    if b.opset < 17:
        return None
    count = b.integer(1, x.rank - 1)
    shape = x.shape[-count:]
    inputs = [x.name, b.weight(*shape), *([b.weight(*shape)] if b.flag() else [])]
    if b.flag():
        return b.node("LayerNormalization", inputs, x.shape, axis=-count, epsilon=0.1)
    above = (*x.shape[:-count], *[1] * count)
    made, mean = b.node_of("LayerNormalization", inputs, [x.shape, above], axis=-count, epsilon=0.1)
    return b.node("Add", [made.name, mean.name], x.shape)


def root_mean_square(b: Builder, x: Value) -> Value | None:
    """The op for it."""
    if b.opset < 23:
        return None
    axis = b.integer(1, x.rank - 1)
    inputs = [x.name, b.weight(*x.shape[axis:])]
    return b.node("RMSNormalization", inputs, x.shape, axis=axis - x.rank if b.flag() else axis, epsilon=0.1)


ANY: tuple[Op, ...] = (
    *(reduce_some, reduce_some, softmax_from_behind, norm_of_lengths, running),
    *(layer_norm_from_behind, root_mean_square),
)
