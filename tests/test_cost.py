"""Multiply-accumulates, counted by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxshap import cost as costs
from onnxshap.graph import array
from onnxshap.rewrite import drop_units
from onnxshap.tracing import trace
from tests.exactness import codes, draw_plan, net

MS = ', "com.microsoft" : 1'
ONE = np.float32(0.1)
PROJECTED = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)".replace(") ", ")\n")
QKV: dict[str, Any] = {"wq": (6, 8), "wk": (6, 8), "wv": (6, 12), "wo": (12, 3)}
SERVED: dict[str, Any] = {"wq": (6, 32), "wk": (6, 16), "wv": (6, 16), "wo": (32, 3)}
LENGTHS: dict[str, Any] = {"lengths": np.array([3], np.int32), "total": np.array(4, np.int32)}


def attention(op: str, inputs: str = "q, k, v", *, opset: int = 23, batch: str = "N", **constants: Any) -> ModelProto:
    """Return four positions of six features, projected; an op on queries, keys and values; a last layer."""
    return net(
        f"""(float[{batch},4,6] x) => (float[{batch},4,3] y) {{
            {PROJECTED}
            a = {op}({inputs})
            y = MatMul(a, wo)
        }}""",
        opset=opset,
        imports=MS,
        **constants,
    )


SPLIT = """(float[N,4,6] x) => (float[N,4,3] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    q3 = Reshape(q, shape)
    k3 = Reshape(k, shape)
    v3 = Reshape(v, shape)
    q4 = Transpose<perm=[0,2,1,3]>(q3)
    k4 = Transpose<perm=[0,2,1,3]>(k3)
    v4 = Transpose<perm=[0,2,1,3]>(v3)
    a4 = Attention(q4, k4, v4)
    a3 = Transpose<perm=[0,2,1,3]>(a4)
    a = Reshape(a3, flat)
    y = MatMul(a, wo)
}"""
AXES: dict[str, Any] = {"shape": np.array([0, 0, 2, -1]), "flat": np.array([0, 0, -1])}
COUNTED: dict[str, tuple[ModelProto, int]] = {
    "Attention": (
        attention("Attention<q_num_heads=2, kv_num_heads=2>", **QKV),
        4 * 6 * 28 + 4 * 4 * (8 + 12) + 4 * 12 * 3,
    ),
    "Attention on four axes": (net(SPLIT, opset=23, **QKV, **AXES), 4 * 6 * 28 + 4 * 4 * (8 + 12) + 4 * 12 * 3),
    "MultiHeadAttention": (
        attention("com.microsoft.MultiHeadAttention<num_heads=2>", opset=17, **QKV),
        4 * 6 * 28 + 4 * 4 * (8 + 12) + 4 * 12 * 3,
    ),
    "GroupQueryAttention": (
        attention(
            "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>", "q, k, v, , , lengths, total", opset=17,
            batch="1", **SERVED, **LENGTHS,
        ),
        4 * 6 * 64 + 4 * 4 * (32 + 32) + 4 * 32 * 3,
    ),
    "its projections inside": (
        net("""(float[N,4,6] x) => (float[N,4,3] y) {
            a = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[8,8,12]>(x, w, b)
            y = MatMul(a, wo)
        }""", imports=MS, w=(6, 28), b=(28,), wo=(12, 3)),
        4 * 6 * 28 + 4 * 4 * (8 + 12) + 4 * 12 * 3,
    ),
    "Einsum of one tensor only adds": (
        net("""(float[N,4,6] x) => (float[N,3] y) {
            s = Einsum<equation="nij->nj">(x)
            y = MatMul(s, w)
        }""", w=(6, 3)),
        6 * 3,
    ),
    "ConvTranspose": (
        net("""(float[N,4,5,5] x) => (float[N,6,10,10] y) {
            y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1], group=2>(x, w)
        }""", w=(4, 3, 3, 3)),
        25 * 4 * 3 * 9,
    ),
    "QLinearConv in groups": (
        net("""(uint8[N,4,6,6] x) => (uint8[N,4,4,4] y) {
            y = QLinearConv<group=2>(x, s, z, w, s, zw, s, z)
        }""", w=codes((4, 2, 3, 3)), s=ONE, z=np.uint8(3), zw=np.int8(0)),
        4 * 16 * 2 * 9,
    ),
    "LSTM of both directions": (
        net("""(float[7,N,6] x) => (float[7,2,N,5] y) {
            y = LSTM<hidden_size=5, direction="bidirectional">(x, w, r)
        }""", w=(2, 20, 6), r=(2, 20, 5)),
        7 * 2 * 20 * (6 + 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_accumulates_are_those_of_every_product(name: str) -> None:
    model, wanted = COUNTED[name]
    assert trace(model).cost.macs() == wanted


@pytest.mark.parametrize("name", [name for name in COUNTED if trace(COUNTED[name][0]).groups])
def test_a_plan_costs_what_the_cut_file_does(name: str) -> None:
    traced = trace(COUNTED[name][0])
    keep = draw_plan(traced, 0.5, np.random.default_rng(3))
    assert not all(kept.all() for kept in keep.values())
    assert traced.cost.macs(traced.alive(keep)) == trace(drop_units(traced, keep)).cost.macs() < traced.cost.macs()


def test_work_is_counted_in_full_blocks() -> None:
    """Of a layer of 32 filters, 20 and 24 are as much work as all; below a block there is a little less to read."""
    model = net(
        "(float[N,3,6,6] x) => (float[N,5,2,2] y) { h = Conv(x, v) r = Relu(h) y = Conv(r, w) }",
        v=(32, 3, 3, 3), w=(5, 32, 3, 3),
    )  # fmt: skip
    traced = trace(model)

    def work(width: int) -> float:
        keep = {group.name: np.arange(len(group)) < width for group in traced.groups}
        return traced.cost.work(traced.alive(keep)) / traced.cost.macs()

    assert traced.cost.work() == traced.cost.macs()
    assert [round(work(width), 2) for width in (32, 24, 20, 16, 12, 8, 4)] == [1, 1, 1, 0.5, 0.49, 0.4, 0.29]


def test_the_shares_of_plans_are_those_of_the_figures_and_the_whole_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands of plans are measured for one budget; the file had many constants that nothing reads."""
    model = net(
        """(float[N,5,4] x) => (float[N,5,3] y) {
            a = MatMul(x, u) b = Add(a, table) c = Relu(b) d = MatMul(c, p)
            e = MatMul(x, v) f = Add(e, table) g = Relu(f) h = MatMul(g, o)
            y = Add(d, h)
        }""",
        u=(4, 8), v=(4, 8), table=(5, 8), p=(8, 3), o=(8, 3), unread=(5, 5),
    )  # fmt: skip
    traced, counted = trace(model), list[int]()
    numbers_of = costs.numbers_of

    def counting(stored: Iterable[TensorProto]) -> int:
        counted.append(1)
        return numbers_of(stored)

    monkeypatch.setattr(costs, "numbers_of", counting)
    assert traced.cost.copies
    for seed in range(3):
        live = traced.alive(draw_plan(traced, 0.5, np.random.default_rng(seed)))
        found = traced.cost.shares(live)
        assert len(counted) == 1
        for name, share in found.items():
            of = getattr(traced.cost, name)
            assert 0 < share == of(live) / of() < 1
        counted[1:] = []


@pytest.mark.parametrize("more", ["s = Add(h, a)", "c = Mul(a, scale) s = Add(h, c)"], ids=["alone", "shared"])
def test_weights_of_a_norm_that_sees_zeros_stay_as_many(more: str) -> None:
    """They were counted as cut, shared with what is cut or not: `--keep-params` gave more than was asked for."""
    model = net(
        f"""(float[N,6] x) => (float[N,3] y) {{
        h = MatMul(x, w0) n = LayerNormalization(h, scale, shift) a = MatMul(n, w1) {more}
        m = LayerNormalization(s, scale2, shift2) y = MatMul(m, w2)
    }}""",
        w0=(6, 16), scale=(16,), shift=(16,), scale2=(16,), shift2=(16,), w1=(16, 16), w2=(16, 3),
    )  # fmt: skip
    traced = trace(model)
    keep = {group.name: np.arange(len(group)) < 10 for group in traced.groups}
    cost, live, small = traced.cost, traced.alive(keep), drop_units(traced, keep)
    numbers = [array(t) for t in small.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims)]
    assert any(t.size == 16 for t in numbers), "no norm sees zeros"
    assert cost.params(live) == sum(t.size for t in numbers) < cost.params()
