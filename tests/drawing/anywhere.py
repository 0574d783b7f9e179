"""What is drawn behind tensors of any rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.drawing.builder import Builder, Op, Value

INT_MAX = 2**63 - 1


def unary(b: Builder, x: Value) -> Value:
    kind = b.one_of(["Relu", "Sigmoid", "Tanh", "Identity", "LeakyRelu", "Abs", "Dropout", "Neg", "Elu"])
    return b.node(kind, [x.name], x.shape)


def scale_or_shift(b: Builder, x: Value) -> Value:
    """A constant broadcast along any axes but the images'."""
    keep = [b.flag() for _ in x.shape[1:]]
    shape = [size if kept else 1 for size, kept in zip(x.shape[1:], keep, strict=True)]
    first = b.integer(0, len(shape))
    inputs = [x.name, b.weight(*shape[first:])]
    if b.flag():
        inputs.reverse()
    return b.node(b.one_of(["Add", "Sub", "Mul", "Max", "Min"]), inputs, x.shape)


def prelu(b: Builder, x: Value) -> Value:
    return b.node("PRelu", [x.name, b.weight(x.shape[1], *[1] * (x.rank - 2))], x.shape)


def join(b: Builder, x: Value) -> Value:
    """Two tensors of one shape; the same twice, if it so happens."""
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    kind = b.one_of(["Add", "Sub", "Mul", "Max", "Mean"])
    out = b.node(kind, [x.name, other.name], x.shape)
    return b.node("Tanh", [out.name], x.shape) if kind == "Mul" else out


def gate(b: Builder, x: Value) -> Value:
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    return b.node("Where", [b.node("Greater", [x.name, other.name], x.shape).name, x.name, other.name], x.shape)


def concat(b: Builder, x: Value) -> Value | None:
    axis = b.integer(1, x.rank - 1)
    rest = [v for v in b.values if v.rank == x.rank
            and all(s == t for a, (s, t) in enumerate(zip(v.shape, x.shape, strict=True)) if a != axis)]  # fmt: skip
    parts = [x, *(b.one_of(rest) for _ in range(b.integer(0, 2)))]
    width = sum(p.shape[axis] for p in parts)
    if width > 32:
        return None
    shape = [*x.shape[:axis], width, *x.shape[axis + 1 :]]
    return b.node("Concat", [p.name for p in parts], shape, axis=axis - x.rank if b.flag() else axis)


def split(b: Builder, x: Value) -> Value | None:
    """Parts of an axis, given sizes or equal; joined, or all but one dropped."""
    axis = b.integer(1, x.rank - 1)
    width = x.shape[axis]
    if width < 2:
        return None
    if width % 2 == 0 and b.flag():
        more: dict[str, Any] = {"num_outputs": 2} if b.opset >= 18 else {}
        shape = [*x.shape[:axis], width // 2, *x.shape[axis + 1 :]]
        left, right = b.node_of("Split", [x.name], [shape, shape], axis=axis, **more)
        return b.node("Mul", [left.name, b.node("Sigmoid", [right.name], shape).name], shape)
    first = b.integer(1, width - 1)
    sizes = [first, width - first]
    shapes = [[*x.shape[:axis], s, *x.shape[axis + 1 :]] for s in sizes]
    if b.opset >= 13:
        parts = b.node_of("Split", [x.name, b.constant(sizes)], shapes, axis=axis)
    else:
        parts = b.node_of("Split", [x.name], shapes, axis=axis, split=sizes)
    b.values.extend(parts)
    return b.node("Concat", [parts[1].name, parts[0].name], x.shape, axis=axis)


def slice_(b: Builder, x: Value) -> Value | None:
    axes = [a for a in range(1, x.rank) if b.flag()] or [x.rank - 1]
    windows: list[tuple[int, int, int]] = []
    shape = list(x.shape)
    for axis in axes:
        width = x.shape[axis]
        first, last = sorted((b.integer(0, width - 1), b.integer(0, width - 1)))
        step = b.one_of([1, 1, 1, 2, -1, -2])
        span = range(first, last + 1, step) if step > 0 else range(last, first - 1, step)
        start, stop = (first, last + 1) if step > 0 else (last, first - 1)
        if step > 0 and b.flag():
            start -= width
        if stop == width and b.flag():
            stop = INT_MAX
        elif stop < 0:
            stop = -INT_MAX
        windows.append((start, stop, step))
        shape[axis] = len(span)
    named = [a - x.rank if b.flag() else a for a in axes]
    starts, ends, steps = zip(*windows, strict=True)
    return b.node("Slice", [x.name, *map(b.constant, (starts, ends, named, steps))], shape)


def gather(b: Builder, x: Value) -> Value:
    axis = b.integer(1, x.rank - 1)
    width = x.shape[axis]
    index = [b.integer(-width, width - 1) for _ in range(b.integer(1, width))]
    shape = [*x.shape[:axis], len(index), *x.shape[axis + 1 :]]
    return b.node("Gather", [x.name, b.constant(index)], shape, axis=axis)


def pad(b: Builder, x: Value) -> Value:
    amounts = [[0, 0] if a == 0 or b.flag() else [b.integer(0, 2), b.integer(0, 2)] for a in range(x.rank)]
    pads = [before for before, _ in amounts] + [after for _, after in amounts]
    shape = [size + sum(amount) for size, amount in zip(x.shape, amounts, strict=True)]
    inputs = [x.name, b.constant(pads)]
    if b.flag():
        inputs.append(b.constant(0.5, np.float32))
    return b.node("Pad", inputs, shape)


def softmax(b: Builder, x: Value) -> Value:
    return b.node("Softmax", [x.name], x.shape, axis=b.integer(1, x.rank - 1))


def reduce(b: Builder, x: Value) -> Value | None:
    axis = b.integer(1, x.rank - 1)
    kept = b.integer(0, 1) if x.rank > 2 else 1
    shape = [*x.shape[:axis], *([1] * kept), *x.shape[axis + 1 :]]
    kind = b.one_of(["ReduceMax", "ReduceMean", "ReduceL2", "ReduceSum"])
    return b.with_ints(kind, x, "axes", [axis], shape, 13 if kind == "ReduceSum" else 18, keepdims=kept)


def matmul(b: Builder, x: Value) -> Value:
    width = b.integer(1, 10)
    shape = (*x.shape[:-1], width)
    product = b.node("MatMul", [x.name, b.weight(x.shape[-1], width)], shape)
    return b.node("Add", [product.name, b.weight(width)], shape) if b.flag() else product


def matmul_left(b: Builder, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    height = b.integer(1, 8)
    return b.node("MatMul", [b.weight(height, x.shape[-2]), x.name], (*x.shape[:-2], height, x.shape[-1]))


def through_factors(b: Builder, x: Value) -> Value:
    """An axis split into factors, something done to them apart, and merged again."""
    axis = b.integer(1, x.rank - 1)
    first = b.divisor(x.shape[axis])
    apart = [*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :]]
    y = b.reshape(x, apart)
    inner: Callable[[Builder, Value], Value] = b.one_of([unary, scale_or_shift, through_transpose])
    y = inner(b, y)
    merged = [*y.shape[:axis], y.shape[axis] * y.shape[axis + 1], *y.shape[axis + 2 :]]
    return b.reshape(y, merged)


def reduced_factor(b: Builder, x: Value) -> Value:
    """An axis split into factors, one of them reduced (maxout)."""
    axis = b.integer(1, x.rank - 1)
    first = b.divisor(x.shape[axis])
    y = b.reshape(x, [*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :]])
    gone = axis + b.integer(0, 1)
    shape = [*y.shape[:gone], *y.shape[gone + 1 :]]
    return b.with_ints("ReduceMax", y, "axes", [gone], shape, 18, keepdims=0)


def through_transpose(b: Builder, x: Value) -> Value:
    perm = b.order(range(1, x.rank))
    inner: Callable[[Builder, Value], Value] = b.one_of([unary, scale_or_shift, softmax])
    return inner(b, b.transpose(x, [0, *perm]))


def shuffle(b: Builder, x: Value) -> Value:
    axis = b.integer(1, x.rank - 1)
    first = b.divisor(x.shape[axis])
    y = b.reshape(x, [*x.shape[:axis], first, x.shape[axis] // first, *x.shape[axis + 1 :]])
    perm = list(range(y.rank))
    perm[axis : axis + 2] = [axis + 1, axis]
    y = b.transpose(y, perm)
    if b.integer(0, 3) == 0:
        b.values.append(y)
    return b.reshape(y, x.shape)


def expanded(b: Builder, x: Value) -> Value:
    """A constant spread over an axis and added."""
    axis = b.integer(1, x.rank - 1)
    target = [1] * x.rank
    target[axis] = x.shape[axis]
    source = [1] * x.rank if b.flag() else target
    wide = b.node("Expand", [b.weight(*source), b.constant(target)], target)
    return b.node("Mul", [x.name, wide.name], x.shape)


def filled(b: Builder, x: Value) -> Value:
    wide = b.node("ConstantOfShape", [b.constant([x.shape[1], *[1] * (x.rank - 2)])], [1],
                  value=helper.make_tensor("", TensorProto.FLOAT, [1], [0.7]))  # fmt: skip
    return b.node("Mul", [x.name, wide.name], x.shape)


def product_of_two(b: Builder, x: Value) -> Value | None:
    """A tensor times another one transposed: what both are summed over is made by layers."""
    if x.rank < 3:
        return None
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    turned = b.transpose(other, [*range(x.rank - 2), x.rank - 1, x.rank - 2])
    scores = b.node("MatMul", [x.name, turned.name], (*x.shape[:-1], x.shape[-2]))
    return b.node("Tanh", [scores.name], scores.shape)


def layer_norm(b: Builder, x: Value) -> Value | None:
    if b.opset < 17:
        return None
    axis = b.integer(1, x.rank - 1)
    inputs = [x.name, b.weight(*x.shape[axis:])]
    if b.flag():
        inputs.append(b.weight(*x.shape[axis:]))
    return b.node("LayerNormalization", inputs, x.shape, axis=axis, epsilon=0.1)


def rms_norm(b: Builder, x: Value) -> Value:
    """What exporters write for it, or what runtimes make of that."""
    axis = x.rank - 1 if b.flag() else b.integer(1, x.rank - 1)
    if axis == x.rank - 1 and b.flag():
        inputs = [x.name, b.weight(x.shape[axis])]
        return b.node("SimplifiedLayerNormalization", inputs, x.shape, axis=axis, epsilon=0.1)
    squares = b.node("Mul", [x.name, x.name], x.shape)
    shape = [1 if a == axis else size for a, size in enumerate(x.shape)]
    mean = b.with_ints("ReduceMean", squares, "axes", [axis], shape, 18, keepdims=1)
    above = b.node("Add", [mean.name, b.constant(0.1, np.float32)], shape)
    root = b.node("Sqrt", [above.name], shape)
    return b.node("Div", [x.name, root.name], x.shape)


def standardised(b: Builder, x: Value) -> Value:
    """Mean and deviation over an axis, as exporters write a layer norm where there is no op for it."""
    axis = b.integer(1, x.rank - 1)
    shape = [1 if a == axis else size for a, size in enumerate(x.shape)]
    pooled = x.rank == 3 and axis == 2 and b.flag()

    def mean(of: Value) -> Value:
        if pooled:  # as tf2onnx writes it
            return b.node("GlobalAveragePool", [of.name], shape)
        return b.with_ints("ReduceMean", of, "axes", [axis], shape, 18, keepdims=1)

    centred = b.node("Sub", [x.name, mean(x).name], x.shape)
    squares = b.node("Mul", [centred.name, centred.name], x.shape)
    above = b.node("Add", [mean(squares).name, b.constant(0.1, np.float32)], shape)
    root = b.node("Sqrt", [above.name], shape)
    normal = b.node("Div", [centred.name, root.name], x.shape)
    if b.flag():
        return normal
    return b.node("Mul", [normal.name, b.weight(*x.shape[axis:])], x.shape)


def own_sizes(b: Builder, x: Value) -> Value:
    """Sizes are those that a tensor inside has: a constant is spread, or the tensor is merged and split again."""
    sizes = b.node("Shape", [x.name], [x.rank])
    if b.flag():
        source = [size if b.flag() and a else 1 for a, size in enumerate(x.shape)]
        wide = b.node("Expand", [b.weight(*source), sizes.name], x.shape)
        return b.node("Mul", [x.name, wide.name], x.shape)
    images = b.node("Slice", [sizes.name, b.constant([0]), b.constant([1])], [1])
    target = b.node("Concat", [images.name, b.constant([-1])], [2], axis=0)
    flat = b.node("Reshape", [x.name, target.name], [x.shape[0], int(np.prod(x.shape[1:]))])
    return b.node("Reshape", [flat.name, sizes.name], x.shape)


def tile(b: Builder, x: Value) -> Value | None:
    axis = b.integer(1, x.rank - 1)
    if np.prod(x.shape[1:]) > 256:
        return None
    times = [2 if a == axis else 1 for a in range(x.rank)]
    shape = [size * count for size, count in zip(x.shape, times, strict=True)]
    return b.node("Tile", [x.name, b.constant(times)], shape)


ANY: tuple[Op, ...] = (
    *(unary, scale_or_shift, prelu, join, join, gate, concat, concat, split, split, slice_, gather, pad, softmax),
    *(reduce, matmul, matmul_left, through_factors, reduced_factor, through_transpose, shuffle, expanded, filled),
    *(product_of_two, layer_norm, standardised, rms_norm, own_sizes, tile),
)
