"""int8, int4 and other codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.cases.base import case, conv_net
from tests.exactness import codes, net

# fmt: off

case("codes of a channel each", conv_net("""
    q = QuantizeLinear<axis=1>(a, s, z)
    b = DequantizeLinear<axis=1>(q, s, z)
""", s=np.linspace(0.02, 0.05, 8, dtype=np.float32), z=np.full(8, 128, np.uint8)), [8], tolerance=2e-1)
case("codes as onnxruntime writes them", conv_net("""
    q = com.microsoft.QuantizeLinear(a, s, z)
    b = com.microsoft.DequantizeLinear(q, s, z)
""", imports=', "com.microsoft" : 1', s=2.0**-5, z=np.array(120, np.uint8)), [8], tolerance=5e-2)
VARIANCE = """
    mean = ReduceMean<axes=[1]>(a)
    apart = Sub(a, mean)
    q = QuantizeLinear<axis=1>(apart, s, z)
    c = DequantizeLinear<axis=1>(q, s, z)
    square = Mul(c, c)
    variance = ReduceMean<axes=[1]>(square)
    shifted = Add(variance, eps)
    root = Sqrt(shifted)
    b = Div(c, root)
"""
case("a variance of codes", conv_net(VARIANCE, s=2.0**-6, z=np.array(3, np.int8), eps=0.5), [8], tolerance=5e-2)
case("a variance of codes of a channel each", conv_net(
    VARIANCE, s=np.linspace(0.02, 0.05, 8, dtype=np.float32), z=np.zeros(8, np.int8), eps=0.5
), [], "ReduceMean sums over it, and it is not zero there")
case("int8 weights", conv_net("""
    w = DequantizeLinear<axis=0>(codes, s, z)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w)
    b = Relu(c)
""", d=6, codes=np.random.default_rng(0).integers(-99, 99, (6, 8, 3, 3)).astype(np.int8),
    s=np.linspace(0.001, 0.002, 6, dtype=np.float32), z=np.zeros(6, np.int8)), [8, 6])
case("uint8 weights around a zero point", conv_net("""
    w = DequantizeLinear(codes, s, z)
    r = Sigmoid(a)
    b = Conv<pads=[1,1,1,1]>(r, w)
""", d=6, codes=codes((6, 8, 3, 3), np.uint8), s=0.001, z=np.array(99, np.uint8)), [8, 6])
case("uint8 weights around a zero point a channel", conv_net("""
    w = DequantizeLinear<axis=0>(codes, s, z)
    r = Sigmoid(a)
    b = Conv<pads=[1,1,1,1]>(r, w)
""", d=6, codes=codes((6, 8, 3, 3), np.uint8), s=[0.001] * 6, z=np.arange(94, 100, dtype=np.uint8)), [8, 6])


def qdq_net() -> onnx.ModelProto:
    """Return Conv, Relu, Conv without a bias on QDQ codes with scales of powers of two."""
    return net("""(float[N,3,6,6] x) => (float[N,2,4,4] y) {
        q0 = QuantizeLinear(x, s, z)
        d0 = DequantizeLinear(q0, s, z)
        v0 = DequantizeLinear(w0, sw, zw)
        c0 = DequantizeLinear(b0, sb)
        a = Conv<pads=[1,1,1,1]>(d0, v0, c0)
        r = Relu(a)
        q1 = QuantizeLinear(r, s, z)
        d1 = DequantizeLinear(q1, s, z)
        v1 = DequantizeLinear<axis=0>(w1, s1, z1)
        y = Conv(d1, v1)
    }""", w0=codes((8, 3, 3, 3)), sw=2.0**-7, zw=np.array(0, np.int8), b0=codes((8,), np.int32), sb=2.0**-12,
        w1=codes((2, 8, 3, 3)), s1=[2.0**-7, 2.0**-8], z1=np.zeros(2, np.int8), s=2.0**-5, z=np.array(120, np.uint8))


case("QDQ", qdq_net(), [8], tolerance=1e-3)


def coded_net(body: str, *, w9: tuple[int, ...] = (2, 8, 1, 1), c: int = 8, **more: Any) -> onnx.ModelProto:
    """Return a QLinearConv(3 -> c) as `a`, the body from `a` to `b`, and a QLinearConv to 2 channels as `y`.

    All scales are powers of two, so that every form of the net rounds alike.
    """
    return net(f"""(float[N,3,6,6] x) => (float[N,2,P,Q] y) {{
        q = QuantizeLinear(x, s, z)
        a = QLinearConv<pads=[1,1,1,1]>(q, s, z, w0, sw, zw, s, z, b0)
        {body}
        o = QLinearConv(b, s, z, w9, s9, z9, s, z)
        y = DequantizeLinear(o, s, z)
    }}""", imports=', "com.microsoft" : 1', w0=codes((c, 3, 3, 3)), b0=codes((c,), np.int32), w9=codes(w9),
        s=2.0**-5, z=np.array(120, np.uint8), sw=2.0**-7, zw=np.array(0, np.int8), s9=[2.0**-7] * 2,
        z9=np.zeros(2, np.int8), **more)


case("QLinearConv", coded_net("""
    c = QLinearConv<pads=[1,1,1,1]>(a, s, z, w1, s1, z1, s, z, b1)
    b = MaxPool<kernel_shape=[2,2]>(c)
""", w1=codes((8, 8, 3, 3)), s1=[2.0**-k for k in (6, 7, 8, 6, 7, 8, 6, 7)], z1=np.zeros(8, np.int8),
    b1=codes((8,), np.int32)), [8, 8])
case("QLinearConv, depthwise and grouped", coded_net("""
    c = QLinearConv<group=8, pads=[1,1,1,1]>(a, s, z, w1, sw, zw, s, z, b1)
    b = QLinearConv<group=2>(c, s, z, w2, sw, zw, s, z)
""", w1=codes((8, 1, 3, 3)), b1=codes((8,), np.int32), w2=codes((8, 4, 1, 1))), [4, 4])
case("QLinearConv, uint8 weights", coded_net("b = QLinearConv(a, s, z, w1, sw, z1, s, z)",
     w1=codes((8, 8, 3, 3), np.uint8), z1=np.array(101, np.uint8)), [8, 8])
case("QLinearAdd, QLinearMul, QLinearSigmoid, QLinearLeakyRelu, QLinearConcat and pools", coded_net("""
    c = QLinearConv<pads=[1,1,1,1]>(a, s, z, w1, sw, zw, s, z)
    d = com.microsoft.QLinearAdd(a, s, z, c, s, z, s, z)
    g = com.microsoft.QLinearGlobalAveragePool(d, s, z, s, z)
    h = com.microsoft.QLinearSigmoid(g, s, z, s, z)
    m = com.microsoft.QLinearMul(d, s, z, h, s, z, s, z)
    l = com.microsoft.QLinearLeakyRelu(m, s, z, s, z)
    p = com.microsoft.QLinearAveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(l, s, z, s, z)
    e = QLinearConv(a, s, z, w2, sw, zw, s, z)
    some = com.microsoft.QLinearWhere(even, p, s, z, l, s, z, s, z)
    b = com.microsoft.QLinearConcat<axis=1>(s, z, some, s, z, e, s, z)
""", even=np.arange(36).reshape(1, 1, 6, 6) % 2 == 0, w1=codes((8, 8, 3, 3)),
    w2=codes((5, 8, 1, 1)), w9=(2, 13, 1, 1)), [8, 5])
case("channels of codes on the last axis", coded_net("""
    f = Transpose<perm=[0,2,3,1]>(a)
    c = com.microsoft.QLinearConv<channels_last=1, pads=[1,1,1,1]>(f, s, z, w1, s1, z1, s, z, b1)
    d = com.microsoft.QLinearConv<channels_last=1, group=2>(c, s, z, w2, sw, zw, s, z)
    m = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(d)
    p = com.microsoft.QLinearAveragePool<channels_last=1, kernel_shape=[3,3], pads=[1,1,1,1]>(m, s, z, s, z)
    g = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(p, s, z, s, z)
    h = com.microsoft.QLinearMul(p, s, z, g, s, z, s, z)
    l = Transpose<perm=[0,3,1,2]>(h)
    b = com.microsoft.QLinearConv(l, s, z, w3, sw, zw, s, z)
""", w1=codes((8, 8, 3, 3)), s1=[2.0**-k for k in (6, 7, 8, 6, 7, 8, 6, 7)], z1=np.zeros(8, np.int8),
    b1=codes((8,), np.int32), w2=codes((8, 4, 1, 1)), w3=codes((8, 8, 1, 1))), [8, 4, 4, 8])
case("QLinearSoftmax over space", coded_net(
    "b = com.microsoft.QLinearSoftmax<axis=3, opset=13>(a, s, z, s, z)"), [8])
case("QLinearMatMul and QGemm", net("""(float[N,6] x) => (float[N,3] y) {
    q = QuantizeLinear(x, s, z)
    a = QLinearMatMul(q, s, z, w0, s0, z0, s, z)
    b = com.microsoft.QGemm<transB=1>(a, s, z, w1, s1, z1, b1, s, z)
    c = QLinearMatMul(b, s, z, w2, sw, zw, s, z)
    y = com.microsoft.QGemm(c, s, z, w3, sw, zw)
}""", imports=', "com.microsoft" : 1', w0=codes((6, 8)), s0=[2.0**-k for k in (6, 7, 8, 6, 7, 8, 6, 7)],
    z0=np.zeros(8, np.int8), w1=codes((7, 8)), s1=[2.0**-7] * 7, z1=np.zeros(7, np.int8), b1=codes((7,), np.int32),
    w2=codes((7, 5)), w3=codes((5, 3)), s=2.0**-5, z=np.array(120, np.uint8), sw=2.0**-7,
    zw=np.array(0, np.int8)), [8, 7, 5])
case("attention on codes, a norm behind it", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    i = QuantizeLinear(x, s, z)
    q = QLinearMatMul(i, s, z, wq, sw, zw, s, z)
    qb = com.microsoft.QLinearAdd(q, s, z, bq, s, z, s, z)
    k = QLinearMatMul(i, s, z, wk, sw, zw, s, z)
    kt = Transpose<perm=[0,2,1]>(k)
    a = QLinearMatMul(qb, s, z, kt, s, z, s, z)
    v = QLinearMatMul(i, s, z, wv, sw, zw, s, z)
    o = QLinearMatMul(a, s, z, v, s, z, s, z)
    j = com.microsoft.QLinearConcat<axis=2>(s, z, o, s, z, v, s, z)
    f = DequantizeLinear(j, s, z)
    scale = DequantizeLinear(wn, sw, zw)
    n = LayerNormalization(f, scale, bn)
    y = MatMul(n, w2)
}""", imports=', "com.microsoft" : 1', wq=codes((12, 6)), bq=codes((6,), np.uint8), wk=codes((12, 6)),
    wv=codes((12, 4)), wn=codes((8,)), bn=(8,), w2=(8, 3), s=2.0**-5, z=np.array(120, np.uint8), sw=2.0**-7,
    zw=np.array(0, np.int8)), [6, 4])
case("a stored image seen through computed weights", net("""(float[1,6] x) => (float[1,3,5,5] y) {
    a = Gemm(x, w0)
    r = Relu(a)
    m = Reshape(r, scales)
    w = Mul(w1, m)
    c = Conv<pads=[1,1,1,1]>(image, w, b1)
    y = Conv(c, w2)
}""", w0=(6, 8), scales=[1, 8, 1, 1], w1=(4, 8, 3, 3), image=(1, 8, 5, 5), b1=(4,), w2=(3, 4, 1, 1)), [8, 4],
    rows=False)
case("a norm behind rows that the data choose", net("""(float[N,5,6] x) => (float[N,3,3] y) {
    e = MatMul(x, w0)
    s = Slice(x, zero, one, two)
    best, places = TopK<axis=1>(s, three)
    wide = Expand(places, width)
    g = GatherElements<axis=1>(e, wide)
    c = Greater(best, nought)
    h = Where(c, g, b0)
    n = LayerNormalization(h, s1)
    y = MatMul(n, w1)
}""", w0=(6, 8), zero=[0], one=[1], two=[2], three=[3], width=[1, 1, 8], nought=0.0, b0=(8,), s1=(8,), w1=(8, 3)), [8])
case("numbers computed from constants alone are no units", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    c = Cast<to=1>(places)
    d = Div(c, two)
    e = Log(d)
    i = Cast<to=7>(e)
    r = Gather(table, i)
    b = Add(a, r)
    y = MatMul(b, w1)
}""", w0=(6, 8), places=np.arange(2, 12, 2), two=2.0, table=(7, 8), w1=(8, 3)), [8])
case("shares that are gated and divided by their sum", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, ws)
    s = Softmax<axis=1>(a)
    m = Mul(s, gate)
    t = ReduceSum(m, places)
    d = Div(m, t)
    v = MatMul(x, wv)
    p = Mul(d, v)
    y = MatMul(p, wo)
}""", ws=(12, 8), gate=(8,), places=[1], wv=(12, 8), wo=(8, 3)), [8])
case("a product with a vector", net("""(float[N,5,6] x) => (float[N,5] y) {
    h = MatMul(x, w0)
    t = Sigmoid(h)
    y = MatMul(t, u)
}""", w0=(6, 8), u=(8,)), [8])
case("a vector on the left", net("""(float[N,5,6] x) => (float[N,5] y) {
    h = MatMul(x, w0)
    t = Transpose<perm=[0,2,1]>(h)
    y = MatMul(u, t)
}""", w0=(6, 8), u=(8,)), [8])
case("an Einsum of one tensor with two weights", net("""(float[N,7] x) => (float[N,3,4] y) {
    h = MatMul(x, w0)
    r = Relu(h)
    s = Reshape(r, apart)
    y = Einsum<equation="bji,oi,pj->bop">(s, k1, k2)
}""", w0=(7, 30), apart=[0, 6, 5], k1=(3, 5), k2=(4, 6)), [6, 5])
case("an Einsum of two tensors with a weight each", net("""(float[N,7] x, float[N,6] z) => (float[N,3] y) {
    h = MatMul(x, w0)
    g = MatMul(z, w1)
    y = Einsum<equation="bi,bj,io,jo->bo">(h, g, k1, k2)
}""", w0=(7, 8), w1=(6, 9), k1=(8, 3), k2=(9, 3)), [8, 9])
case("sizes are a model output", net("""(float[N,6] x) => (float[N,3] y, int64[K] s) {
    h = MatMul(x, w0)
    g = MatMul(h, w1)
    r = Relu(g)
    s = Shape<start=1>(h)
    y = MatMul(r, w2)
}""", w0=(6, 8), w1=(8, 5), w2=(5, 3)), [5], "its size is counted on elsewhere", rows=False)
for opset, given in ((17, "DFT<axis=1>(u)"), (20, "DFT(u, , one)")):
    case(f"features behind a transform over time, opset {opset}", net("""(float[N,8,6] x) => (float[N,8,3] y) {
    h = MatMul(x, w0)
    u = Unsqueeze(h, last)
    f = DFT
    r = Slice(f, zero, ones, last)
    s = Reshape(r, flat)
    y = MatMul(s, w1)
}""".replace("DFT", given),
        opset=opset, w0=(6, 5), last=[3], one=1, zero=[0], ones=[1], flat=[0, 8, 5], w1=(5, 3)), [5])
case("zeros that are made as the model runs", net("""(float[N,6] x) => (float[N,3] y) {
    h = MatMul(x, w0)
    k = Exp(h)
    uk = Mul(u, k)
    v = MatMul(x, w1)
    uv = Mul(uk, v)
    s = Shape(h)
    z = ConstantOfShape(s)
    n = Add(uv, z)
    d = Add(uk, z)
    p = Div(n, d)
    y = MatMul(p, w2)
}""", w0=(6, 8), u=np.linspace(0.5, 1.5, 8, dtype=np.float32), w1=(6, 8), w2=(8, 3)), [8])
case("numbers of a list in their order, as torch writes as_strided", net("""(float[N,3,4,4] x) => (float[N,5] y) {
    h = Conv(x, w0)
    m = GlobalAveragePool(h)
    f = Reshape(m, flat)
    s = Shape<start=0, end=1>(x)
    n = Squeeze(s)
    r = Range(zero, n, one)
    starts = Mul(r, eight)
    rows = Unsqueeze(starts, behind)
    places = Add(rows, columns)
    g = Gather(f, places)
    e = Relu(g)
    t = Flatten(e)
    y = MatMul(t, w1)
}""", w0=(8, 3, 3, 3), flat=[-1], zero=0, one=1, eight=8, behind=[1, 2, 3],
    columns=np.arange(8).reshape(1, 8, 1, 1), w1=(8, 5)), [8])
case("norms over heads that were merged in between", net("""(float[2,5,24] x) => (float[2,5,4] y) {
    v = MatMul(x, w0)
    h = Reshape(v, heads)
    f = Reshape(h, flat)
    g = Reshape(f, groups)
    n = InstanceNormalization(g, ones, zeros)
    b = Reshape(n, back)
    y = MatMul(b, w1)
}""", w0=(24, 24), heads=[2, 5, 3, 8], flat=[10, 24], groups=[10, 3, 8], ones=[1.0, 1.0, 1.0], zeros=[0.0, 0.0, 0.0],
    back=[2, 5, 24], w1=(24, 4)), [3])
case("patches that are merged and split finer", net("""(float[2,3,3,3] x) => (float[2,4,1,1] y) {
    h = Conv(x, w0)
    r = Relu(h)
    f = Reshape(r, flat)
    g = Reshape(f, groups)
    m = Mul(g, w1)
    s = ReduceSum(m, last)
    b = Reshape(s, back)
    y = Conv(b, w2)
}""", w0=(16, 3, 1, 1), flat=[2, 144], groups=[2, 4, 4, 9], w1=(4, 1, 9), last=[3], back=[0, 16, 1, 1],
    w2=(4, 16, 1, 1)), [4, 4])
case("zero along one axis of a product alone", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    h = MatMul(x, w0)
    e = Exp(h)
    t = Transpose<perm=[0,2,1]>(e)
    g = MatMul(t, h)
    s = MatMul(e, g)
    y = MatMul(s, w1)
}""", w0=(6, 8), w1=(8, 3)), [])
case("zero along one axis of an outer product alone", net("""(float[N,6] x) => (float[N,3] y) {
    h = MatMul(x, w0)
    e = Exp(h)
    e1 = Unsqueeze(e, two)
    h1 = Unsqueeze(h, one)
    o = Mul(e1, h1)
    s = ReduceSum<keepdims=0>(o, one)
    y = MatMul(s, w1)
}""", w0=(6, 8), w1=(8, 3), one=[1], two=[2]), [])
case("a sum of what is zero in part, times what is not", net("""(float[N,6] x) => (float[N,1] y) {
    h = MatMul(x, w0)
    e = Exp(h)
    g = Einsum<equation="bd,be->bde">(h, h)
    o = Einsum<equation="bde,bf->bf">(g, e)
    y = ReduceSum(o, one)
}""", w0=(6, 8), one=[1]), [])
case("linear attention behind one projection", net("""(float[2,5,24] x) => (float[2,5,4] y) {
    p = MatMul(x, w0)
    r = Reshape(p, parts)
    t = Transpose<perm=[2,0,1,3,4]>(r)
    qa, ka, va = Split<axis=0>(t, thirds)
    qs = Squeeze(qa, first)
    ks = Squeeze(ka, first)
    v = Squeeze(va, first)
    q1 = Elu(qs)
    k1 = Elu(ks)
    q = Add(q1, plus)
    k = Add(k1, plus)
    kv = Einsum<equation="bnhd,bnhe->bhde">(k, v)
    o = Einsum<equation="bnhd,bhde->bnhe">(q, kv)
    m = Reshape(o, merged)
    y = MatMul(m, w1)
}""", w0=(24, 72), w1=(24, 4), parts=[2, 5, 3, 3, 8], thirds=[1, 1, 1], first=[0], plus=1.0, merged=[2, 5, 24]), [3])
case("weights over the root of their squares", net("""(float[1,6] x, float[1,5,4,4] z) => (float[1,2,4,4] y) {
    a = Gemm(x, w0)
    m = Reshape(a, scales)
    w = Mul(w1, m)
    q = Mul(w, w)
    t = ReduceSum(q, taps)
    r = Sqrt(t)
    i = Reciprocal(r)
    n = Mul(w, i)
    c = Conv(z, n)
    y = Conv(c, w2)
}""", w0=(6, 5), scales=[1, 5, 1, 1], w1=(8, 5, 1, 1), taps=[1, 2, 3], w2=(2, 8, 1, 1)), [8], rows=False)
case("rows of a table in codes", net("""(int64[N,5] x) => (float[N,5,3] y) {
    r = Gather(codes, x)
    t = Transpose<perm=[0,2,1]>(r)
    f = DequantizeLinear(t, sw, z)
    b = Transpose<perm=[0,2,1]>(f)
    n = LayerNormalization(b, s)
    y = MatMul(n, w1)
}""", codes=codes((7, 8), np.uint8), sw=2.0**-7, z=np.array(120, np.uint8), s=(8,), w1=(8, 3)), [8])
case("root mean square with its scale in codes", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    s = DequantizeLinear(codes, sw, zw)
    n = RMSNormalization(a, s)
    y = MatMul(n, w1)
}""", opset=23, w0=(12, 8), codes=codes((8,)), sw=2.0**-7, zw=np.array(3, np.int8), w1=(8, 3)), [8])
case("attention between codes as floats", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    q = MatMul(x, wq)
    qc = QuantizeLinear(q, s, z)
    qf = DequantizeLinear(qc, s, z)
    qb = Add(qf, bq)
    k = MatMul(x, wk)
    kc = QuantizeLinear(k, s, z)
    kf = DequantizeLinear(kc, s, z)
    kt = Transpose<perm=[0,2,1]>(kf)
    a = MatMul(qb, kt)
    y = MatMul(a, w2)
}""", wq=(12, 6), bq=(6,), wk=(12, 6), w2=(5, 3), s=2.0**-5, z=np.array(120, np.uint8)), [6])
case("dynamic: ConvInteger", net("""(float[N,3,6,6] x) => (float[N,2,4,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)
    r = Relu(a)
    q, s, z = DynamicQuantizeLinear(r)
    i = ConvInteger<pads=[1,1,1,1]>(q, w1, z, z1)
    f = Cast<to=1>(i)
    t = Mul(s, s1)
    m = Mul(f, t)
    n = Add(m, b1)
    b = Clip(n, lo, hi)
    q2, s2, z2 = DynamicQuantizeLinear(b)
    i2 = ConvInteger(q2, w2, z2)
    f2 = Cast<to=1>(i2)
    y = Mul(f2, s2)
}""", w0=(8, 3, 3, 3), b0=(8,), w1=codes((6, 8, 3, 3), np.uint8), z1=np.array(128, np.uint8), s1=0.002, b1=(6, 1, 1),
    lo=0.0, hi=6.0, w2=codes((2, 6, 3, 3))), [8, 6], tolerance=2e-2, rows=False)
case("dynamic: the range is taken over channels that do not vanish", conv_net("""
    r = Sigmoid(a)
    q, s, z = DynamicQuantizeLinear(r)
    f = DequantizeLinear(q, s, z)
    b = Relu(f)
"""), [], "range of codes over it")
case("dynamic: MatMulInteger", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    q, s, z = DynamicQuantizeLinear(x)
    a = MatMulInteger(q, w0, z, z0)
    f = Cast<to=1>(a)
    m = Mul(f, s)
    n = Add(m, b0)
    g = Gelu(n)
    q2, s2, z2 = DynamicQuantizeLinear(g)
    y = com.microsoft.MatMulIntegerToFloat(q2, w1, s2, s1, z2, z1, b1)
}""", imports=', "com.microsoft" : 1', opset=20, w0=codes((6, 8)), z0=np.zeros(8, np.int8), b0=(8,),
    w1=codes((8, 3), np.uint8), s1=0.002, z1=np.array(128, np.uint8), b1=(3,)), [8], tolerance=2e-2, rows=False)
case("dynamic: DynamicQuantizeMatMul", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = com.microsoft.DynamicQuantizeMatMul(x, w0, s0, z0, b0)
    r = Relu(a)
    y = com.microsoft.DynamicQuantizeMatMul(r, w1, s1, z1)
}""", imports=', "com.microsoft" : 1', w0=codes((6, 8)), s0=[0.002] * 8, z0=np.zeros(8, np.int8), b0=(8,),
    w1=codes((8, 3), np.uint8), s1=[0.002], z1=np.array([128], np.uint8)), [8], tolerance=2e-2, rows=False)
