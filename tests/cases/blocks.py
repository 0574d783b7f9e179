"""Space into channels and back, and what is repeated."""

from __future__ import annotations

import numpy as np

from tests.cases.base import case, conv_net
from tests.exactness import codes, net

# fmt: off

case("depth to space, depth first", net("""(float[N,3,6,6] x) => (float[N,2,12,12] y) {
    a = Conv(x, w0)
    d = DepthToSpace<blocksize=2>(a)
    y = Conv(d, w1)
}""", w0=(12, 3, 1, 1), w1=(2, 3, 1, 1)), [3])
case("depth to space, columns first", net("""(float[N,3,6,6] x) => (float[N,2,12,12] y) {
    a = Conv(x, w0)
    d = DepthToSpace<blocksize=2, mode="CRD">(a)
    y = Conv(d, w1)
}""", w0=(12, 3, 1, 1), w1=(2, 3, 1, 1)), [3])
case("space to depth", net("""(float[N,3,6,6] x) => (float[N,2,3,3] y) {
    a = Conv(x, w0)
    d = SpaceToDepth<blocksize=2>(a)
    y = Conv(d, w1)
}""", w0=(5, 3, 1, 1), w1=(2, 20, 1, 1)), [5])
case("columns to image", net("""(float[N,3,6,6] x) => (float[N,2,4,4] y) {
    a = Conv(x, w0, b0)
    c = Reshape(a, columns)
    d = Col2Im<strides=[1,1]>(c, image, block)
    y = Conv(d, w1)
}""", opset=18, w0=(27, 3, 5, 5), b0=(27,), columns=[0, 0, 4], image=[4, 4], block=[3, 3], w1=(2, 3, 1, 1)), [3])
case("a constant cast to the type of what is cut", conv_net("""
    e = CastLike(eps, a)
    b = Add(a, e)
""", eps=0.5), [8])
case("a norm over features whose means are pools", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    m = GlobalAveragePool(a)
    d = Sub(a, m)
    s = Mul(d, d)
    v = GlobalAveragePool(s)
    e = Add(v, eps)
    r = Sqrt(e)
    n = Div(d, r)
    o = Mul(n, scale)
    b = Add(o, shift)
    y = MatMul(b, w1)
}""", w0=(6, 8), eps=0.1, scale=(8,), shift=(8,), w1=(8, 3)), [8])
case("the largest of all features", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    r = Tanh(a)
    m = GlobalMaxPool(r)
    d = Sub(r, m)
    k = GlobalAveragePool(r)
    e = Mul(d, k)
    y = MatMul(e, w1)
}""", w0=(6, 8), w1=(8, 3)), [8])
case("transposed convolution, larger than it is by itself", conv_net(
    "b = ConvTranspose<kernel_shape=[3,3], strides=[2,2], output_shape=[18,18]>(a, w1)", w1=(8, 8, 3, 3)), [8, 8])
case("nodes called as the second group of another", net("""(float[N,4,6] x) => (float[N,4,5] y) {
    h = MatMul(x, w0)
    s = Reshape(h, apart)
    r = Relu(s)
    q = Reshape(r, together)
    "h#2" = MatMul(q, w1)
    z = Relu("h#2")
    y = MatMul(z, w2)
}""", w0=(6, 16), apart=[0, 4, 2, 8], together=[0, 4, 16], w1=(16, 12), w2=(12, 5)), [2, 8, 12])
case("Shrink that gives something for nothing", conv_net("b = Shrink<lambd=-0.5, bias=0.25>(a)"), [8])
case("what no output comes of", net("""(float[N,6] x) => (float[N,3] y) {
    a = MatMul(x, w0)
    r = Relu(a)
    s = Softmax(r)
    t = Exp(s)
    y = MatMul(r, w1)
}""", w0=(6, 8), w1=(8, 3)), [8])
case("a bias of blocks of codes", net("""(float[N,4] x) => (float[N,4] y) {
    b = DequantizeLinear<axis=0, block_size=8>(codes, s)
    h = Gemm<transB=1>(x, w0, b)
    r = Relu(h)
    m = MatMul(r, w1)
    n = Relu(m)
    y = MatMul(n, w2)
}""", opset=21, ir=10, w0=(16, 4), codes=np.arange(16, dtype=np.int8), s=[0.1, 0.2], w1=(16, 8), w2=(8, 4)), [8])
for name, along, more, sizes in (
    ("", "axis=0, block_size=4", {"s": (4, 8)}, [4, 8]),
    (" and zero points", "axis=0, block_size=4", {"s": (4, 8), "z": codes((4, 8))}, [4, 8]),
    (" along what is made", "axis=1, block_size=4", {"s": (16, 2)}, [16, 2]),
    (" that do not divide it", "axis=0, block_size=12", {"s": (2, 8)}, [8]),
):
    case(f"weights of blocks of codes{name}", net(f"""(float[N,4] x) => (float[N,4] y) {{
        h = MatMul(x, w0)
        r = Relu(h)
        w1 = DequantizeLinear<{along}>({", ".join(["codes", *more])})
        m = MatMul(r, w1)
        n = Relu(m)
        y = MatMul(n, w2)
    }}""", opset=21, ir=10, w0=(4, 16), codes=codes((16, 8)), w2=(8, 4), **more), sizes)
case("running products", conv_net("b = CumProd(a, axis)", opset=26, axis=np.array(-1)), [8])
case("tile", conv_net("b = Tile(a, repeats)", repeats=[1, 1, 2, 1]), [8])
case("tile of channels", conv_net("b = Tile(a, repeats)", d=24, repeats=[1, 3, 1, 1]), [8])
case("rotary positions, tables tiled from half a head", net("""(float[2,T,12] x) => (float[2,T,12] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    n = Shape<start=1, end=2>(x)
    l = Squeeze(n)
    t = Range(zero, l, one)
    c = Unsqueeze(t, last)
    f = Cast<to=1>(c)
    half = Mul(f, w)
    table = Tile(half, twice)
    cos = Cos(table)
    qt = Mul(q, cos)
    kt = Mul(k, cos)
    kk = Transpose<perm=[0,2,1]>(kt)
    qk = MatMul(qt, kk)
    y = MatMul(qk, x)
}""", wq=(12, 8), wk=(12, 8), w=(1, 4), twice=[1, 2], zero=np.array(0), one=np.array(1), last=[-1]), [4])
