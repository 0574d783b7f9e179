"""Nets on codes: everything is computed from codes of the model's input on, so that all forms of a net round alike."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.drawing.builder import Builder, Value

_MS = "com.microsoft"


def _scale(b: Builder) -> str:
    """Return a scale, a power of two: what is rounded is the same in all forms of a net."""
    return b.constant(2.0 ** -b.integer(4, 6), np.float32)


def _codes(b: Builder, *shape: int) -> str:
    # 7 bits: without VNNI, onnxruntime sums products of uint8 and int8 in pairs of 16 bits
    return b.constant(b.rng.integers(-63, 64, shape), np.int8)


def _weight(b: Builder, *shape: int, axis: int = 0) -> list[str]:
    """Return codes, a scale and a zero point; the last two for every position of an axis now and then."""
    many = shape[axis] if b.flag() else None
    scales = 2.0 ** -b.rng.integers(6, 9, () if many is None else (many,))
    return [_codes(b, *shape), b.constant(scales, np.float32), b.constant(np.zeros_like(scales), np.int8)]


def _point(b: Builder) -> str:
    return b.constant(b.integer(100, 140), np.uint8)


def _layer(b: Builder, x: Value, given: list[str]) -> tuple[Value, list[str]]:
    """Return a layer on codes and what its codes are: their scale and zero point."""
    made, own = b.integer(1, 8), [_scale(b), _point(b)]
    if x.rank == 4:
        groups = b.divisor(x.shape[1]) if b.integer(0, 3) == 0 else 1
        made *= groups
        inputs = [x.name, *given, *_weight(b, made, x.shape[1] // groups, 1, 1), *own]
        inputs += [b.constant(b.rng.integers(-99, 99, made), np.int32)] if b.flag() else []
        return b.node("QLinearConv", inputs, (x.shape[0], made, *x.shape[2:]), group=groups), own
    inputs = [x.name, *given, *_weight(b, x.shape[-1], made, axis=1)]
    if x.rank == 2 and b.flag():
        inputs += [b.constant(b.rng.integers(-99, 99, made), np.int32)] if b.flag() else [""]
        return b.node(f"{_MS}.QGemm", [*inputs, *own], (x.shape[0], made)), own
    return b.node("QLinearMatMul", [*inputs, *own], (*x.shape[:-1], made)), own


def _between(b: Builder, x: Value, given: list[str]) -> tuple[Value, list[str]]:
    """Return what is done to codes between two layers."""
    own = [_scale(b), _point(b)]
    images = ["average", "all"] if x.rank == 4 else []
    kind = b.one_of(["layer and add", "layer and join", "sigmoid", "leaky", "choose", "softmax", "move", *images])
    coded = [x.name, *given]
    if kind in ("layer and add", "layer and join"):
        y, theirs = _layer(b, x, given)
        axis = 1 if x.rank == 4 else x.rank - 1
        if kind == "layer and join":
            shape = [size + y.shape[a] if a == axis else size for a, size in enumerate(x.shape)]
            return b.node(f"{_MS}.QLinearConcat", [*own, *coded, y.name, *theirs], shape, axis=axis), own
        if x.shape != y.shape:
            return y, theirs
        return b.node(f"{_MS}.{b.one_of(['QLinearAdd', 'QLinearMul'])}", [*coded, y.name, *theirs, *own], x.shape), own
    if kind == "sigmoid":
        return b.node(f"{_MS}.QLinearSigmoid", [*coded, *own], x.shape), own
    if kind == "leaky":
        return b.node(f"{_MS}.QLinearLeakyRelu", [*coded, *own], x.shape), own
    if kind == "choose":
        shape = [1] * x.rank
        shape[-1] = x.shape[-1]
        flags = b.constant(b.rng.integers(0, 2, shape), np.bool_)
        return b.node(f"{_MS}.QLinearWhere", [flags, *coded, *coded, *own], x.shape), own
    if kind == "softmax":
        return b.node(f"{_MS}.QLinearSoftmax", [*coded, *own], x.shape, axis=x.rank - 1, opset=13), own
    if kind == "average":
        given_ = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        return b.node(f"{_MS}.QLinearAveragePool", [*coded, *own], x.shape, **given_), own
    if kind == "all":
        return b.node(f"{_MS}.QLinearGlobalAveragePool", [*coded, *own], (*x.shape[:2], 1, 1)), own
    if x.rank > 2:
        perm = [0, *range(2, x.rank), 1]
        back = [perm.index(a) for a in range(x.rank)]
        return b.transpose(b.transpose(x, perm), back), given
    return x, given


def on_codes(b: Builder, x: Value) -> Value:
    """A few layers on codes of a model's input, as floats behind them."""
    given = [_scale(b), _point(b)]
    q, own = b.node("QuantizeLinear", [x.name, *given], x.shape), given
    q, own = _layer(b, q, own)
    for _ in range(b.integer(0, 2)):
        q, own = _between(b, q, own)
        q, own = _layer(b, q, own)
    return b.node("DequantizeLinear", [q.name, *own], q.shape)


def by_range(b: Builder, x: Value) -> Value:
    """A layer on codes whose range the model's input tells, in int32 and then in floats."""
    made = b.integer(1, 8)
    if x.rank == 3 and b.flag():
        inputs = [x.name, _codes(b, x.shape[-1], made), b.constant([2.0**-7], np.float32), b.constant([0], np.int8)]
        return b.node(f"{_MS}.DynamicQuantizeMatMul", inputs, (*x.shape[:-1], made))
    q, scale, point = b.node_of("DynamicQuantizeLinear", [x.name], [x.shape, (), ()])
    if x.rank == 4:
        inputs, shape = [q.name, _codes(b, made, x.shape[1], 1, 1), point.name], (x.shape[0], made, *x.shape[2:])
        sums = b.node("ConvInteger", inputs, shape)
    else:
        inputs, shape = [q.name, _codes(b, x.shape[-1], made), point.name], (*x.shape[:-1], made)
        if b.flag():
            read = [*inputs[:2], scale.name, b.constant([2.0**-7], np.float32), point.name]
            return b.node(f"{_MS}.MatMulIntegerToFloat", read, shape)
        sums = b.node("MatMulInteger", inputs, shape)
    floats = b.node("Cast", [sums.name], shape, to=TensorProto.FLOAT)
    small = b.node("Mul", [scale.name, b.constant(2.0**-6, np.float32)], ())
    return b.node("Mul", [floats.name, small.name], shape)
