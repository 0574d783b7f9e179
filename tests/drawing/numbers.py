"""Ops position by position beyond the usual ones: those of every domain of numbers, comparisons, other types."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.drawing.builder import Builder, Op, Value

_SMOOTH = {
    **dict.fromkeys(("Atan", "Cos", "HardSigmoid", "Selu", "Sin", "Softplus", "Softsign"), 7),
    "Celu": 12,
    "Erf": 9,
    "Gelu": 20,
    "HardSwish": 14,
    "Mish": 18,
    "Shrink": 9,
    "Swish": 24,
    "ThresholdedRelu": 10,
}
"""Op -> the opset that it is of."""
_JOINED = {"Shrink": {"bias": 0.3, "lambd": 0.3}, "ThresholdedRelu": {"alpha": 0.0}}
"""Attributes that leave no step in it."""
_BELOW_ONE = ("Acos", "Asin", "Atanh", "Cosh", "Exp", "Sinh", "Tan")
_ABOVE_ONE = ("Acosh", "Log", "Reciprocal", "Sqrt")
_COMPARISONS = ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")


def function(b: Builder, x: Value) -> Value:
    """A function of every number, brought to where it is one and its slope is small."""
    kind = b.one_of([*(k for k, since in _SMOOTH.items() if b.opset >= since), *_BELOW_ONE, *_ABOVE_ONE])
    if kind in _BELOW_ONE:
        x = b.node("Mul", [b.node("Tanh", [x.name], x.shape).name, b.constant(0.5, np.float32)], x.shape)
    elif kind in _ABOVE_ONE:
        x = b.node("Add", [b.node("Abs", [x.name], x.shape).name, b.constant(2.0, np.float32)], x.shape)
    return b.node(kind, [x.name], x.shape, **_JOINED.get(kind, {}))


def clip(b: Builder, x: Value) -> Value:
    """Bounds around zero or beside it, one of them left out now and then."""
    low, high = b.one_of([(-0.5, 0.5), (0.0, 1.0), (0.25, 1.0)])
    if b.opset < 11:
        return b.node("Clip", [x.name], x.shape, min=low, max=high)
    lower, upper = (b.constant(bound, np.float32) if b.integer(0, 3) else "" for bound in (low, high))
    return b.node("Clip", [x.name, lower, upper], x.shape)


def power(b: Builder, x: Value) -> Value:
    """A square, or another power of what is positive."""
    if b.flag():
        small = b.node("Tanh", [x.name], x.shape)
        return b.node("Pow", [small.name, b.constant(b.one_of([2.0, 3.0]), np.float32)], x.shape)
    above = b.node("Add", [b.node("Abs", [x.name], x.shape).name, b.constant(0.5, np.float32)], x.shape)
    return b.node("Pow", [above.name, b.constant(b.one_of([0.5, -0.5]), np.float32)], x.shape)


def sum_of_many(b: Builder, x: Value) -> Value:
    """Up to four tensors, one of them twice if it so happens; or two, one of which divides."""
    others = [b.one_of([v for v in b.values if v.shape == x.shape]) for _ in range(b.integer(1, 3))]
    if b.flag():
        return b.node(b.one_of(["Sum", "Mean", "Max", "Min"]), [x.name, *(o.name for o in others)], x.shape)
    size = b.node("Abs", [others[0].name], x.shape)
    return b.node("Div", [x.name, b.node("Add", [size.name, b.constant(1.0, np.float32)], x.shape).name], x.shape)


def chosen(b: Builder, x: Value) -> Value:
    """One of two tensors, by comparisons that turn where both are equal."""
    other = b.one_of([v for v in b.values if v.shape == x.shape])
    kinds = _COMPARISONS if b.opset >= 12 else _COMPARISONS[:2]
    first, second = (b.node(b.one_of(kinds), [x.name, other.name], x.shape) for _ in range(2))
    how = b.one_of(["Not", "And", "Or", "Xor"])
    read = [first.name] if how == "Not" else [first.name, second.name]
    return b.node("Where", [b.node(how, read, x.shape).name, x.name, other.name], x.shape)


def doubled(b: Builder, x: Value) -> Value:
    """A linear layer in double precision."""
    width = b.integer(1, 8)
    wide = b.node("Cast", [x.name], x.shape, to=TensorProto.DOUBLE)
    weight = b.constant(b.rng.normal(size=(x.shape[-1], width)) / np.sqrt(x.shape[-1]), np.float64)
    made = b.node("MatMul", [wide.name, weight], (*x.shape[:-1], width))
    made = b.node(b.one_of(["Relu", "Abs", "Identity"]), [made.name], made.shape)
    if b.opset >= 15 and b.flag():
        return b.node("CastLike", [made.name, x.name], made.shape)
    return b.node("Cast", [made.name], made.shape, to=TensorProto.FLOAT)


def triangle(b: Builder, x: Value) -> Value | None:
    """Zeros beside a diagonal of the last two axes."""
    if b.opset < 14 or x.rank < 3:
        return None
    inputs = [x.name, b.constant(b.integer(-1, 1))] if b.flag() else [x.name]
    return b.node("Trilu", inputs, x.shape, upper=b.integer(0, 1))


ANY: tuple[Op, ...] = (function, function, clip, power, sum_of_many, chosen, doubled, triangle)
