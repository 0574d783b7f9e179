"""How exporters write: shared weights, constants, bodies, functions, odd files."""

from __future__ import annotations

import numpy as np

from tests.cases.base import MS, called_like_outputs, case, conv_net, gemm_net, typed
from tests.exactness import net

# fmt: off

case("one bias used three times", net("""(float[N,3,6,6] x) => (float[N,8,6,6] y) {
    a = Conv(x, w0, bias)
    b = Conv(a, w1, bias)
    y = Conv(b, w2, bias)
}""", w0=(8, 3, 1, 1), w1=(8, 8, 1, 1), w2=(8, 8, 1, 1), bias=(8,)), [8, 8])
case("one weight used twice", net("""(float[N,8,6,6] x) => (float[N,8,6,6] y) {
    a = Conv(x, w)
    b = Conv(a, w)
    c = Relu(b)
    y = Conv(c, w)
}""", w=(8, 8, 1, 1)), [8, 8])
case("one weight twice in one node", conv_net("b = Conv(a, s, t)\n", d=8, s=(8, 8, 1, 1), t=(8,)), [8, 8])
case("constant nodes", conv_net("""
    k = Constant<value = float[1,8,1,1] {1, 2, 3, 4, 5, 6, 7, 8}>()
    m = Mul(a, k)
    v = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>()
    q = Transpose<perm=[0,2,3,1]>(m)
    p = Add(q, v)
    b = Transpose<perm=[0,3,1,2]>(p)
"""), [8])
case("nodes called like their outputs", called_like_outputs(conv_net("b = Conv(a, w1)", w1=(8, 8, 1, 1))), [8, 8])
case("IR 3: initializers are inputs", conv_net("b = Relu(a)", opset=8, ir=3), [8])
for version in range(7, 23):
    case(f"opset {version}", conv_net("b = Relu(a)", opset=version, ir=10), [8])
case("fixed batch of 1", net("""(float[1,3,4,4] x) => (float[1,3] y) {
    a = Conv(x, w0)
    f = Reshape(a, target)
    y = Gemm(f, w1, b1)
}""", w0=(8, 3, 3, 3), w1=(32, 3), b1=(3,), target=[1, -1]), [8])
case("dynamic batch: shape, gather, concat, reshape", net("""(float[N,3,4,4] x) => (float[N,3] y) {
    a = Conv(x, w0)
    s = Shape(a)
    i = Constant<value = int64 {0}>()
    n = Gather<axis=0>(s, i)
    u = Unsqueeze(n, zero)
    c = Concat<axis=0>(u, rest)
    f = Reshape(a, c)
    y = Gemm(f, w1, b1)
}""", opset=13, w0=(8, 3, 3, 3), w1=(32, 3), b1=(3,), rest=[-1], zero=[0]), [8])
case("a reshape target put together of constants", net("""(float[N,3,4,4] x) => (float[N,3] y) {
    a = Conv(x, w0)
    u = Unsqueeze(width, zero)
    c = Concat<axis=0>(rest, u)
    f = Reshape(a, c)
    y = Gemm(f, w1, b1)
}""", opset=13, w0=(8, 3, 3, 3), w1=(32, 3), b1=(3,), rest=[-1], width=np.array(32), zero=[0]), [8])
case("widths computed from shapes", net("""(float[N,3,4,4] x) => (float[N,2,4,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    s = Shape(a)
    n = Gather<axis=0>(s, i0)
    c = Gather<axis=0>(s, i1)
    h = Div(c, two)
    n1 = Unsqueeze(n, zero)
    h1 = Unsqueeze(h, zero)
    t = Concat<axis=0>(n1, pair, h1, rest)
    r = Reshape(a, t)
    p = Transpose<perm=[0,2,1,3,4]>(r)
    c1 = Unsqueeze(c, zero)
    t2 = Concat<axis=0>(n1, c1, rest)
    b = Reshape(p, t2)
    y = Conv(b, w1)
}""", opset=13, w0=(8, 3, 3, 3), w1=(2, 8, 1, 1), i0=np.array(0), i1=np.array(1), two=np.array(2), zero=[0],
    pair=[2], rest=[4, 4]), [8])
case("a constant as wide as the channels are", net("""(float[N,3,4,4] x) => (float[N,2,4,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    s = Shape<start=1, end=2>(a)
    f = Cast<to=1>(s)
    n = Concat<axis=0>(s, rest)
    e = Expand(half, n)
    d = Div(a, f)
    b = Mul(d, e)
    y = Conv(b, w1)
}""", w0=(8, 3, 3, 3), w1=(2, 8, 1, 1), half=0.5, rest=[1, 1]), [8])
case("a scalar computed from shapes picks a place", net("""(float[N,5,6] x) => (float[N,3] y) {
    a = MatMul(x, w0)
    s = Shape(a)
    n = Gather<axis=0>(s, i1)
    l = Sub(n, one)
    g = Gather<axis=1>(a, l)
    y = Gemm(g, w1)
}""", w0=(6, 8), w1=(8, 3), i1=np.array(1), one=np.array(1)), [8])
case("float16", net("""(float16[N,3,6,6] x) => (float16[N,2,6,6] y) {
    a = Conv(x, w0, b0)
    r = Relu(a)
    y = Conv(r, w1, b1)
}""", **typed(np.float16, w0=(8, 3, 1, 1), b0=(8,), w1=(2, 8, 1, 1), b1=(2,))), [8], tolerance=5e-3)
case("float64", net("""(double[N,6] x) => (double[N,3] y) {
    a = MatMul(x, w0)
    y = MatMul(a, w1)
}""", **typed(np.float64, w0=(6, 8), w1=(8, 3))), [8])
case("outputs that are read on", net("""(float[N,3,6,6] x) => (float[N,8,6,6] a, float[N,2,6,6] y, float[N,4] z) {
    a = Conv(x, w0)
    b = Conv(a, w1)
    y = Conv(b, w2)
    g = GlobalAveragePool(b)
    f = Flatten(g)
    z = Gemm(f, w3)
}""", w0=(8, 3, 1, 1), w1=(6, 8, 1, 1), w2=(2, 6, 1, 1), w3=(6, 4)), [6], "it is a model output")
case("two inputs", net("""(float[N,6] x, float[N,4] z) => (float[N,3] y) {
    a = Gemm(x, w0)
    b = Gemm(z, w1)
    c = Concat<axis=1>(a, b)
    y = Gemm(c, w2)
}""", w0=(6, 8), w1=(4, 5), w2=(13, 3)), [8, 5])
case("unknown op stays", conv_net("d = Det(a) u = Unsqueeze(d, last) b = Mul(a, u)", opset=18, last=[2, 3]), [],
     "Det has no rule")
case("op of another domain stays", gemm_net("""
    u = com.microsoft.ExpandDims(a, last)
    b = Squeeze(u, axes)
""", imports=MS, last=np.array(2, np.int32), axes=[2]), [], "com.microsoft.ExpandDims has no rule")
case("a branch reads a weight and a bias that are cut", net("""(float[N,3,8,8] x) => (float[N,2,8,8] y, float[8] z) {
    m = ReduceMax<keepdims=0>(x)
    c = Greater(m, zero)
    a = Conv(x, w0, b0)
    b = Conv(a, w1, b1)
    y = Conv(b, w2)
    z = If (c) <then_branch = yes () => (float[8] t) { t = Relu(b1) },
                else_branch = no () => (float[8] e) { e = ReduceSum<keepdims=0>(w1, axes) }>
}""", zero=0.0, w0=(8, 3, 1, 1), b0=(8,), w1=(8, 8, 1, 1), b1=(8,), w2=(2, 8, 1, 1), axes=[1, 2, 3]), [8, 8],
    rows=False)
case("a weight is a model output", net("""(float[N,6] x) => (float[N,3] y, float[6,8] w0, float[4] z) {
    a = Gemm(x, w0)
    y = MatMul(a, w1)
    z = ConstantOfShape(four)
}""", w0=(6, 8), w1=(8, 3), four=[4]), [8], rows=False)
case("branches of If read a tensor", conv_net("""
    m = ReduceMax<keepdims=0>(x)
    c = Greater(m, zero)
    b = If (c) <then_branch = yes () => (float[N,8,8,8] t) { t = Relu(a) },
                else_branch = no () => (float[N,8,8,8] e) { e = Neg(a) }>
""", zero=0.0), [8], rows=False)
