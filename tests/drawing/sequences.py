"""What is drawn behind [images, places, features] and [images, features]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.drawing.anywhere import matmul
from tests.drawing.builder import Builder, Op, Value


def attention(b: Builder, x: Value) -> Value:
    heads, size = b.integer(1, 3), b.integer(1, 4)
    n, t, d = x.shape

    def heads_of(perm: Sequence[int]) -> Value:
        y = b.node("MatMul", [x.name, b.weight(d, heads * size)], (n, t, heads * size))
        return b.transpose(b.reshape(y, (n, t, heads, size)), perm)

    q, k, v = heads_of([0, 2, 1, 3]), heads_of([0, 2, 3, 1]), heads_of([0, 2, 1, 3])
    scores = b.node("MatMul", [q.name, k.name], (n, heads, t, t))
    mixed = b.node("MatMul", [b.node("Softmax", [scores.name], scores.shape, axis=3).name, v.name], q.shape)
    merged = b.reshape(b.transpose(mixed, [0, 2, 1, 3]), (n, t, heads * size))
    return b.node("MatMul", [merged.name, b.weight(heads * size, d)], x.shape)


def recurrent(b: Builder, x: Value) -> Value:
    """All states of an LSTM, GRU or RNN over axis 1, or the last ones."""
    kind, way = b.one_of(["LSTM", "GRU", "RNN"]), b.one_of(["forward", "reverse", "bidirectional"])
    hidden, ways, rows = b.integer(1, 6), 1 + (way == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    turned, gates = b.transpose(x, (1, 0, 2)), rows * hidden
    inputs = [turned.name, b.weight(ways, gates, x.shape[2]), b.weight(ways, gates, hidden)]
    inputs += [b.weight(ways, 2 * gates)] if b.flag() else []
    n, steps_ = x.shape[:2]
    more: dict[str, Any] = {"linear_before_reset": b.integer(0, 1)} if kind == "GRU" else {}
    every, last = b.node_of(
        kind, inputs, [(steps_, ways, n, hidden), (ways, n, hidden)], hidden_size=hidden, direction=way, **more
    )
    if b.flag():
        return b.transpose(last, (1, 0, 2))
    apart = b.transpose(every, (2, 0, 1, 3))
    return b.node("Reshape", [apart.name, b.constant([0, steps_, ways * hidden])], (n, steps_, ways * hidden))


def einsum(b: Builder, x: Value) -> Value:
    if b.opset < 12:
        return matmul(b, x)
    width = b.integer(1, 8)
    return b.node("Einsum", [x.name, b.weight(width, x.shape[2])], (*x.shape[:2], width), equation="btd,od->bto")


def to_image(b: Builder, x: Value) -> Value:
    return b.with_ints("Unsqueeze", x, "axes", [x.rank], (*x.shape, 1), 13)


def squeeze(b: Builder, x: Value) -> Value | None:
    single = [a for a in range(1, x.rank) if x.shape[a] == 1]
    if not single or x.rank < 3:
        return None
    axis = int(b.one_of(single))
    return b.with_ints("Squeeze", x, "axes", [axis], [*x.shape[:axis], *x.shape[axis + 1 :]], 13)


def gemm(b: Builder, x: Value) -> Value:
    width, turned = b.integer(1, 10), b.integer(0, 1)
    weight = b.weight(*((width, x.shape[1]) if turned else (x.shape[1], width)))
    bias = b.one_of([None, (width,), (1, width), (1,), ()])
    inputs = [x.name, weight] if bias is None else [x.name, weight, b.weight(*bias)]
    return b.node("Gemm", inputs, (x.shape[0], width), transB=turned, alpha=b.one_of([1.0, 0.5]))


SEQUENCES: tuple[Op, ...] = (attention, attention, einsum, recurrent, recurrent, to_image, squeeze)
ROWS: tuple[Op, ...] = (gemm, gemm, gemm, to_image)
