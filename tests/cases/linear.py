"""Layers: convolutions, products with constant and computed weights, recurrent layers, norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.cases.base import MS, case, conv_net, gemm_net, typed
from tests.exactness import net

# fmt: off

case("conv", conv_net("b = Relu(a)"), [8])
case("conv without bias", net("""(float[N,3,6,6] x) => (float[N,2,4,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    y = Conv(a, w1)
}""", w0=(8, 3, 3, 3), w1=(2, 8, 3, 3)), [8])
case("conv strided, dilated, auto_pad", conv_net("""
    s = Conv<strides=[2,2], pads=[1,1,1,1]>(a, w1)
    t = Conv<dilations=[2,2], pads=[2,2,2,2]>(s, w2)
    b = Conv<auto_pad="SAME_UPPER">(t, w3)
""", w1=(6, 8, 3, 3), w2=(5, 6, 3, 3), w3=(8, 5, 2, 2)), [8, 6, 5, 8])
BLOCKED = "conv in blocks for one kind of processor counts, and stays"
case(BLOCKED, net("""(float[N,3,6,6] x) => (float[N,4] y) {
    a = com.microsoft.nchwc.Conv<activation="Relu", kernel_shape=[3,3], dilations=[1,1], group=1, pads=[1,1,1,1],
        strides=[1,1]>(x, w0, b0)
    b = com.microsoft.nchwc.ReorderOutput<channels=16>(a)
    c = ReduceMean<axes=[2,3], keepdims=0>(b)
    y = MatMul(c, w1)
}""", imports=', "com.microsoft.nchwc" : 1', w0=(16, 3, 3, 3), b0=(16,), w1=(16, 4)), [], "one kind of processor")
case("conv 1d", net("""(float[N,3,9] x) => (float[N,2,7] y) {
    a = Conv<pads=[1,1]>(x, w0, b0)
    y = Conv(a, w1)
}""", w0=(8, 3, 3), b0=(8,), w1=(2, 8, 3)), [8])
case("conv 3d", net("""(float[N,1,4,4,4] x) => (float[N,2,4,4,4] y) {
    a = Conv(x, w0, b0)
    y = Conv<pads=[1,1,1,1,1,1]>(a, w1)
}""", w0=(8, 1, 1, 1, 1), b0=(8,), w1=(2, 8, 3, 3, 3)), [8])
case("depthwise", conv_net("b = Conv<group=8, pads=[1,1,1,1]>(a, w1, b1)", w1=(8, 1, 3, 3), b1=(8,)), [8])
case("depthwise multiplier", conv_net(
    "b = Conv<group=8, pads=[1,1,1,1]>(a, w1, b1)", d=16, w1=(16, 1, 3, 3), b1=(16,)), [8])
case("depthwise of the input stays", net("""(float[N,3,6,6] x) => (float[N,2,6,6] y) {
    a = Conv<group=3, pads=[1,1,1,1]>(x, w0, b0)
    y = Conv(a, w1)
}""", w0=(3, 1, 3, 3), b0=(3,), w1=(2, 3, 1, 1)), [])
case("grouped, many small groups", conv_net(
    "b = Conv<group=6, pads=[1,1,1,1]>(a, w1, b1)", c=12, d=12, w1=(12, 2, 3, 3), b1=(12,)), [6])
case("grouped, few large groups", conv_net(
    "b = Conv<group=2, pads=[1,1,1,1]>(a, w1, b1)", c=12, d=8, w1=(8, 6, 3, 3), b1=(8,)), [6, 4])
case("grouped without bias", conv_net("b = Conv<group=2>(a, w1)", c=8, d=12, w1=(12, 4, 1, 1)), [4, 6])
case("transposed", conv_net(
    "b = ConvTranspose<strides=[2,2], kernel_shape=[2,2]>(a, w1, b1)", w1=(8, 8, 2, 2), b1=(8,)), [8, 8])
case("transposed, overlapping taps", conv_net(
    "b = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(a, w1)", w1=(8, 8, 4, 4)), [8, 8])
case("transposed depthwise", conv_net(
    "b = ConvTranspose<group=8, strides=[2,2]>(a, w1, b1)", w1=(8, 1, 2, 2), b1=(8,)), [8])
case("transposed grouped", conv_net(
    "b = ConvTranspose<group=2, strides=[2,2]>(a, w1, b1)", c=8, d=12, w1=(8, 6, 2, 2), b1=(12,)), [4, 6])
case("conv whose channels and whose space are cut", net("""(float[N,3,4,5] x) => (float[N,2,4,3] y) {
    a = Conv(x, w0) b = MatMul(a, w1) c = Relu(b) d = Conv<pads=[1,1,1,1]>(c, w2) e = Relu(d) f = MatMul(e, w3)
    y = Conv(f, w4)
}""", w0=(6, 3, 1, 1), w1=(5, 8), w2=(4, 6, 3, 3), w3=(8, 3), w4=(2, 4, 1, 1)), [6, 8, 4])
case("a bias as long as the last axis, in front of a softmax over channels", net("""(float[N,3,4,4] x)
=> (float[N,2,4,4] y) {
    a = Conv(x, w0) b = com.microsoft.FastGelu(a, c1) c = Softmax<axis=1>(b) y = Conv(c, w1)
}""", opset=11, imports=MS, w0=(6, 3, 1, 1), c1=(4,), w1=(2, 6, 1, 1)), [6])
case("a bias as long as the last axis, in front of a mean over channels", net("""(float[N,3,4,4] x)
=> (float[N,2,4,4] y) {
    a = Conv(x, w0) b = com.microsoft.BiasGelu(a, c1) c = ReduceMean<axes=[1],keepdims=1>(b) d = Sub(b, c)
    y = Conv(d, w1)
}""", imports=MS, w0=(6, 3, 1, 1), c1=(4,), w1=(2, 6, 1, 1)), [6])
case("conv of one tap leaves space apart", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    r = Relu(a)
    g = Conv(r, w1, b1)
    t = ConvTranspose(g, w2)
    u = Mul(r, t)
    d = Conv<group=5>(u, w3)
    y = MatMul(d, w4)
}""", w0=(6, 8), w1=(7, 5, 1), b1=(7,), w2=(7, 5, 1), w3=(5, 1, 1), w4=(8, 3)), [8, 7])
case("transposed conv that restates its sizes keeps space", net("""(float[N,5,6] x) => (float[N,7,3] y) {
    a = MatMul(x, w0)
    g = ConvTranspose<output_shape=[8]>(a, w1)
    y = MatMul(g, w2)
}""", w0=(6, 8), w1=(5, 7, 1), w2=(8, 3)), [], "ConvTranspose mixes or keeps")
for mixer, given in (("taps", ""), ("pads", "pads=[1,0], "), ("strides", "strides=[2], ")):
    case(f"conv with {mixer} mixes space", net(f"""(float[N,5,6] x) => (float[N,7,3] y) {{
        a = MatMul(x, w0)
        g = Conv<{given}dilations=[1]>(a, w1, b1)
        y = MatMul(g, w2)
    }}""", w0=(6, 8), w1=(7, 5, 2 if mixer == "taps" else 1), b1=(7,),
        w2=({"taps": 7, "pads": 9, "strides": 4}[mixer], 3)), [], "Conv mixes or keeps this axis as a whole")
NEIGHBOURS = """
    p = GlobalAveragePool(a)
    q = Squeeze(p, last)
    t = Transpose<perm=[0,2,1]>(q)
    c = Conv<pads=[1,1]>(t, w1, b1)
    {between}
    s = Sigmoid({last})
    u = Transpose<perm=[0,2,1]>(s)
    v = Unsqueeze(u, last)
    b = Mul(a, v)
"""
for opset in (17, 18):
    case(f"conv over channels as if they were space, opset {opset}", conv_net(
        NEIGHBOURS.format(between="", last="c"), opset=opset, last=[3], w1=(1, 1, 3), b1=(1,)), [8])
case("conv over channels of what does not vanish", conv_net(
    NEIGHBOURS.format(between="d = Conv<pads=[1,1]>(c, w2)", last="d"), last=[3], w1=(4, 1, 3), b1=(4,), w2=(1, 4, 3)),
    [4], "Conv moves its taps over it, and it is not zero there")
case("conv over channels and positions", net("""(float[N,3,6,6] x) => (float[N,4] y) {
    a = Conv(x, w0, b0)
    t = Transpose<perm=[0,2,1,3]>(a)
    c = Conv<pads=[1,1,1,1], group=6>(t, w1, b1)
    d = Conv<pads=[2,1,2,1], dilations=[2,1]>(t, w2)
    s = Sigmoid(c)
    e = Add(s, d)
    m = Mul(t, e)
    u = Transpose<perm=[0,2,1,3]>(m)
    g = GlobalAveragePool(u)
    f = Flatten(g)
    y = Gemm(f, w3)
}""", w0=(9, 3, 1, 1), b0=(9,), w1=(6, 1, 3, 3), b1=(6,), w2=(6, 6, 3, 3), w3=(9, 4)), [9])
case("weights of no outputs are no layer", net("""(float[N,6] x) => (float[N,3] y, float[N,0] z) {
    a = MatMul(x, w0)
    s = Sigmoid(a)
    y = MatMul(s, w1)
    z = MatMul(s, nothing)
}""", w0=(6, 8), w1=(8, 3), nothing=np.zeros((8, 0), np.float32)), [8])
case("conv over channels on both of its axes of space", net("""(float[1,3,6,6] x) => (float[1,4,1] y) {
    a = Conv(x, w0, b0)
    p = GlobalAveragePool(a)
    q = Squeeze(p, last)
    t = Transpose<perm=[0,2,1]>(q)
    e = MatMul(q, t)
    u = Unsqueeze(e, one)
    c = Conv<pads=[1,1,1,1]>(u, w1, b1)
    r = Relu(c)
    s = Squeeze(r, one)
    h = MatMul(s, q)
    y = MatMul(w2, h)
}""", w0=(8, 3, 3, 3), b0=(8,), last=[3], one=[1], w1=(1, 1, 3, 3), b1=(1,), w2=(4, 8)), [8])
case("conv of one tap along one axis only", net("""(float[N,3,4,6] x) => (float[N,6,4,5] y) {
    a = MatMul(x, w0)
    b = Conv<pads=[1,0,1,0]>(a, w1, b1)
    c = Conv<pads=[1,0,1,0], group=2>(b, w2)
    y = MatMul(c, w3)
}""", w0=(6, 8), w1=(4, 3, 3, 1), b1=(4,), w2=(6, 2, 3, 1), w3=(8, 5)), [8, 2])
case("conv with computed weights", net("""(float[2,3,6,6] x, float[2,5] z) => (float[2,2,6,6] y) {
    a = Conv(x, w0)
    k = MatMul(z, w1)
    u = Unsqueeze(k, axes)
    y = Conv(a, u)
}""", w0=(8, 3, 1, 1), w1=(5, 8), axes=[2, 3]), [8], rows=False)
case("conv with computed weights that do not vanish", net("""(float[2,3,6,6] x, float[2,5] z) => (float[2,2,6,6] y) {
    a = Conv(x, w0)
    s = Sigmoid(a)
    k = MatMul(z, w1)
    e = Exp(k)
    u = Unsqueeze(e, axes)
    y = Conv(s, u)
}""", w0=(8, 3, 1, 1), w1=(5, 8), axes=[2, 3]), [], "neither is zero")
for what, activation, sizes, frozen in (
    ("", "Relu", [8, 5, 8], []),
    (", zero where the data are not", "Exp", [8, 5, 8], []),
    (" that do not vanish", "Sigmoid", [5, 8], ["neither is zero"]),
):
    case(f"conv with weights computed image by image{what}", net(f"""(float[2,3,6,6] x) => (float[2,2,6,6] y) {{
        a = Conv(x, w0)
        s = {activation}(a)
        p = GlobalAveragePool(s)
        f = Flatten(p)
        h = Gemm(f, w1, b1)
        k = Gemm(h, w2, b2)
        m = {"Sigmoid" if activation == "Sigmoid" else "Relu"}(k)
        w = Reshape(m, kernels)
        g = Reshape(s, images_in)
        c = Conv<group=2, pads=[1,1,1,1]>(g, w)
        d = Reshape(c, images_out)
        r = Relu(d)
        y = Conv(r, w3)
    }}""", w0=(8, 3, 1, 1), w1=(8, 5), b1=(5,), w2=(5, 8 * 8 * 9), b2=(8 * 8 * 9,), kernels=[-1, 8, 3, 3],
        images_in=[1, -1, 6, 6], images_out=[2, -1, 6, 6], w3=(2, 8, 1, 1)), sizes, *frozen, rows=False)
case("a stored image seen through computed weights in groups stays", net("""(float[4,6] x) => (float[1,4,5,5] y) {
    a = Gemm(x, w0)
    w = Unsqueeze(a, axes)
    y = Conv<group=2>(image, w)
}""", w0=(6, 3), axes=[2, 3], image=(1, 6, 5, 5)), [], "Conv in groups has computed weights")
for op, given in (("Conv", "group=8"), ("ConvTranspose", "group=8, strides=[2,2]")):
    case(f"{op} with a kernel repeated for every channel", conv_net(f"""
        w = Tile(w1, often)
        b = {op}<{given}>(a, w)
    """, w1=(4, 1, 2, 2), often=[2, 1, 1, 1]), [8])
case("conv with weights made by a node", conv_net("""
    w = Transpose<perm=[1,0,2,3]>(w1)
    b = Conv(a, w)
""", w1=(8, 6, 1, 1), d=6), [8, 6])

case("gemm", gemm_net("b = Relu(a)"), [8])
case("gemm transposed", net("""(float[N,6] x) => (float[N,3] y) {
    a = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w0, b0)
    y = Gemm<transB=1, alpha=2.0, beta=0.5>(a, w1, b1)
}""", w0=(8, 6), b0=(8,), w1=(3, 8), b1=(3,)), [8])
case("gemm transA", net("""(float[6,4] x) => (float[4,3] y) {
    a = Gemm<transA=1>(x, w0)
    t = Transpose(a)
    y = Gemm<transA=1>(t, w1, b1)
}""", w0=(6, 8), w1=(8, 3), b1=(3,)), [8], rows=False)
for form, shape in (("row", (1, 8)), ("one", (1,)), ("scalar", ()), ("column", (4, 1)), ("full", (4, 8))):
    case(f"gemm C {form}", net("""(float[4,6] x) => (float[4,3] y) {
        a = Gemm(x, w0, b0)
        b = Gemm(a, w1, b1)
        y = Gemm(b, w2, b2)
    }""", w0=(6, 8), b0=shape, w1=(8, 8), b1=shape, w2=(8, 3), b2=(3,)), [8, 8], rows=form not in ("column", "full"))
case("gemm beta 0", gemm_net("b = Gemm<beta=0.0>(a, w1, b1)", w1=(8, 8), b1=(8,)), [8, 8])
case("gemm with the constant on the left", net("""(float[6,4] x) => (float[3,4] y) {
    a = Gemm(w0, x, b0)
    b = Relu(a)
    y = Gemm(w1, b, b1)
}""", w0=(8, 6), b0=(8, 1), w1=(3, 8), b1=(4,)), [8], rows=False)
case("gemm with computed bias", net("""(float[N,6] x, float[3] c) => (float[N,3] y) {
    a = Gemm(x, w0)
    y = Gemm(a, w1, c)
}""", w0=(6, 8), w1=(8, 3)), [8], rows=False)

case("matmul", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    b = Add(a, b0)
    c = Gelu(b)
    y = MatMul(c, w1)
}""", opset=20, w0=(6, 8), b0=(8,), w1=(8, 3)), [8])
case("matmul constant left", net("""(float[N,6,5] x) => (float[N,3,5] y) {
    a = MatMul(w0, x)
    y = MatMul(w1, a)
}""", w0=(8, 6), w1=(3, 8)), [8])
case("matmul batched constants", net("""(float[N,4,5,6] x) => (float[N,4,5,3] y) {
    a = MatMul(x, w0)
    y = MatMul(a, w1)
}""", w0=(4, 6, 8), w1=(4, 8, 3)), [8])
case("matmul with a vector", net("""(float[N,6] x) => (float[N] y) {
    a = MatMul(x, w0)
    y = MatMul(a, w1)
}""", w0=(6, 8), w1=(8,)), [8])
case("matmul of one tensor with itself", net("""(float[N,6,7] x) => (float[N,5,3] y) {
    l = MatMul(w0, x)
    a = MatMul(l, w1)
    s = MatMul(a, a)
    r = MatMul(w2, s)
    y = MatMul(r, w3)
}""", w0=(8, 6), w1=(7, 8), w2=(5, 8), w3=(8, 3)), [8])
case("attention: heads and head size", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, split)
    k1 = Reshape(k0, split)
    v1 = Reshape(v0, split)
    q = Transpose<perm=[0,2,1,3]>(q1)
    k = Transpose<perm=[0,2,3,1]>(k1)
    v = Transpose<perm=[0,2,1,3]>(v1)
    s = MatMul(q, k)
    d = Div(s, scale)
    p = Softmax(d)
    o = MatMul(p, v)
    t = Transpose<perm=[0,2,1,3]>(o)
    r = Reshape(t, merge)
    y = MatMul(r, wo)
}""", wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), split=[0, 0, 3, 4], merge=[0, 0, -1], scale=2.0),
    [3, 4, 4])
case("attention on activated queries: their size stays", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    q1 = Sigmoid(q0)
    k1 = Exp(k0)
    k = Transpose<perm=[0,2,1]>(k1)
    s = MatMul(q1, k)
    p = Softmax(s)
    v = MatMul(x, wv)
    o = MatMul(p, v)
    y = MatMul(o, wo)
}""", wq=(12, 6), wk=(12, 6), wv=(12, 8), wo=(8, 12)), [8], "neither is zero")
case("attention where one side vanishes", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    q0 = MatMul(x, wq)
    q1 = Sub(q0, bq)
    k0 = MatMul(x, wk)
    k1 = Exp(k0)
    k = Transpose<perm=[0,2,1]>(k1)
    s = MatMul(q1, k)
    p = Softmax(s)
    v = MatMul(x, wv)
    o = MatMul(p, v)
    y = MatMul(o, wo)
}""", wq=(12, 6), bq=(6,), wk=(12, 6), wv=(12, 8), wo=(8, 12)), [6, 8])
case("einsum", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    q = Einsum<equation="bti,ioh->bhto">(x, wq)
    k = Einsum<equation="bti,ioh->bhto">(x, wk)
    s = Einsum<equation="bhqd,bhkd->bhqk">(q, k)
    p = Softmax(s)
    o = Einsum<equation="bhqk,bhkd->bqhd">(p, k)
    y = Einsum<equation="bqhd,hdn->bqn">(o, wo)
}""", wq=(12, 4, 2), wk=(12, 4, 2), wo=(2, 4, 3)), [4, 2])
case("einsum with an ellipsis", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    b = Einsum<equation="...i,io">(a, w1)
    c = Einsum<equation="...ti,ti->...ti">(b, g)
    y = Einsum<equation="ij,...j->...i">(w2, c)
}""", w0=(12, 8), w1=(8, 6), g=(5, 6), w2=(3, 6)), [8, 6])
case("einsum that takes a diagonal stays", net("""(float[N,5,12] x) => (float[N,5] y) {
    a = MatMul(x, w0)
    y = Einsum<equation="nti,ii->nt">(a, w1)
}""", w0=(12, 8), w1=(8, 8)), [], "takes a diagonal")
case("batch norm", conv_net("""
    n = BatchNormalization(a, s1, b1, m1, var1)
    b = Sigmoid(n)
""", s1=(8,), b1=(8,), m1=(8,), var1=(8,)), [8])
case("layer norm", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    n = LayerNormalization(a, s, b)
    h = MatMul(n, w1)
    g = Relu(h)
    y = MatMul(g, w2)
}""", w0=(12, 8), s=(8,), b=(8,), w1=(8, 6), w2=(6, 3)), [8, 6])
case("layer norm over space", conv_net("b = LayerNormalization<axis=2>(a, s)", s=(8, 8)), [8])
case("layer norm over channels and space, no shift", conv_net("b = LayerNormalization<axis=1>(a, s)", s=(8, 8, 8)), [8])
case("layer norms before and behind the blocks of a trunk", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(x, w0)
    u = Add(t, b0)
    n1 = LayerNormalization<axis=-1, epsilon=0.1>(u, s1, b1)
    h1 = MatMul(n1, w1)
    g1 = Gelu(h1)
    m1 = MatMul(g1, w2)
    u1 = Add(u, m1)
    n2 = LayerNormalization<axis=2>(u1, s2, b2)
    h2 = MatMul(n2, w3)
    g2 = Relu(h2)
    m2 = MatMul(g2, w4)
    u2 = Add(n2, m2)
    n3 = LayerNormalization(u2, s3, b3)
    y = MatMul(n3, w5)
}""", opset=20, ir=9, w0=(12, 8), b0=(8,), s1=(8,), b1=(8,), w1=(8, 6), w2=(6, 8), s2=(8,), b2=(8,), w3=(8, 4),
    w4=(4, 8), s3=(8,), b3=(8,), w5=(8, 3)), [8, 6, 4])
case("gathered by numbers that spread one axis over several", net("""(float[1,3,4,4] x) => (float[1,2,1,1] y) {
    a = Conv(x, w0)
    m = ReduceMean<axes=[2,3]>(a)
    f = Reshape(m, flat)
    g = Gather<axis=0>(f, places)
    b = LayerNormalization<axis=1>(g, s, t)
    y = Conv(b, w1)
}""", w0=(8, 3, 1, 1), flat=[8], places=np.array([3, 1, 0, 2, 4, 5, 7, -2]).reshape(1, 8, 1, 1), s=(8, 1, 1),
    t=(8, 1, 1), w1=(2, 8, 1, 1)), [8], rows=False)
case("layer norms taken apart", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(x, w0)
    u = Add(t, b0)
    mean = ReduceMean<axes=[-1]>(u)
    centred = Sub(u, mean)
    square = Pow(centred, two)
    variance = ReduceMean<axes=[2], keepdims=1>(square)
    shifted = Add(variance, eps)
    deviation = Sqrt(shifted)
    normal = Div(centred, deviation)
    scaled = Mul(normal, s1)
    n = Add(scaled, b1)
    h = MatMul(n, w1)
    g = Relu(h)
    m = MatMul(g, w2)
    u2 = Add(u, m)
    mean2 = ReduceMean<axes=[2]>(u2)
    minus = Neg(mean2)
    centred2 = Add(minus, u2)
    square2 = Mul(centred2, centred2)
    total2 = ReduceSum<keepdims=0>(square2, last)
    flat2 = Unsqueeze(total2, last)
    inverse2 = Reciprocal(flat2)
    n2 = Mul(centred2, inverse2)
    n3 = Mul(n2, s2)
    y = MatMul(n3, w3)
}""", opset=13, w0=(12, 8), b0=(8,), two=np.float32(2), eps=np.float32(0.1), s1=(8,), b1=(8,), w1=(8, 6), w2=(6, 8),
    last=[2], s2=(8,), w3=(8, 3)), [8, 6])
case("layer norm over channels taken apart", conv_net("""
    mean = ReduceMean<axes=[1]>(a)
    centred = Sub(a, mean)
    square = Mul(centred, centred)
    variance = ReduceMean<axes=[1,2,3]>(square)
    shifted = Add(variance, eps)
    deviation = Sqrt(shifted)
    normal = Div(centred, deviation)
    b = Mul(normal, s)
""", eps=np.float32(0.1), s=(8, 1, 1)), [8])
case("a mean of what is not zero where channels are removed", conv_net("""
    e = Sigmoid(a)
    m = ReduceMean<axes=[1]>(e)
    b = Mul(a, m)
"""), [8])
case("a sum of squares of what is not zero where channels are removed", conv_net("""
    e = Cos(a)
    m = ReduceSumSquare<axes=[1]>(e)
    b = Mul(a, m)
"""), [8])
case("a mean of what is mixed and not zero where channels are removed", conv_net("""
    e = Sigmoid(a)
    s = ReduceMax<axes=[2,3]>(e)
    m = ReduceMean<axes=[1]>(s)
    b = Mul(a, m)
"""), [], "ReduceMean sums over it, and it is not zero there")
case("layer norm of what does not vanish, but is the same", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    h = MatMul(x, w0)
    a = Sigmoid(h)
    n = LayerNormalization(a, s)
    y = MatMul(n, w1)
}""", w0=(12, 8), s=(8,), w1=(8, 3)), [8])
case("layer norm of what positions are added to", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    h = MatMul(x, w0)
    a = Add(h, t)
    n = LayerNormalization(a, s)
    y = MatMul(n, w1)
}""", w0=(12, 8), t=(5, 1), s=(8,), w1=(8, 3)), [8])
case("layer norm of logarithms", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    h = MatMul(x, w0)
    b = Abs(h)
    a = Log(b)
    n = LayerNormalization(a, s)
    y = MatMul(n, w1)
}""", w0=(12, 8), s=(8,), w1=(8, 3)), [], "takes statistics over it, and it is not zero there")
case("layer norm with a computed shift", net("""(float[N,5,12] x, float[8] s) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    b = LayerNormalization(a, t, s)
    y = MatMul(b, w1)
}""", w0=(12, 8), t=(8,), w1=(8, 3)), [], "with a computed input 2")
case("layer norm over one of two axes of the same units", net("""(float[N,5,12] x) => (float[N,8,3] y) {
    a = MatMul(x, w0)
    t = Transpose<perm=[0,2,1]>(a)
    g = MatMul(t, a)
    n = LayerNormalization(g, s, b)
    y = MatMul(n, w1)
}""", w0=(12, 8), s=(8,), b=(8,), w1=(8, 3)), [], "model output")
case("layer norm in half precision", net("""(float16[N,5,12] x) => (float16[N,5,3] y) {
    a = MatMul(x, w0)
    n = LayerNormalization<epsilon=0.01>(a, s, b)
    y = MatMul(n, w1)
}""", **typed(np.float16, w0=(12, 8), s=(8,), b=(8,), w1=(8, 3))), [8], tolerance=2e-3)
case("layer norm in half precision behind a layer that mixes tokens", net("""(
    float16[N,3,12] x) => (float16[N,3,2] y) {
    a = MatMul(x, w0)
    h = MatMul(w1, a)
    c = Add(h, c1)
    n = LayerNormalization(c, s, b)
    y = MatMul(n, w2)
}""", **typed(np.float16, w0=(12, 8), w1=(3, 3), c1=(3, 1), s=(8,), b=(8,), w2=(8, 2))), [8], tolerance=5e-3)
case("rms norm", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    n = RMSNormalization(a, s)
    h = MatMul(n, w1)
    y = MatMul(h, w2)
}""", opset=23, ir=11, w0=(12, 8), s=(8,), w1=(8, 6), w2=(6, 3)), [8, 6])
case("mean and variance over space", conv_net("""
    n = Add(a, noise)
    b = MeanVarianceNormalization<axes=[2,3]>(n)
""", noise=(1, 1, 8, 8)), [8])
case("mean and variance over images, space, and some axes", conv_net("""
    n = Add(a, noise)
    m = MeanVarianceNormalization(n)
    u = Add(m, noise)
    b = MeanVarianceNormalization<axes=[0,3]>(u)
""", noise=(1, 1, 8, 8)), [8], rows=False)
case("mean and variance over channels", conv_net("""
    m = MeanVarianceNormalization<axes=[1,2,3]>(a)
    b = Mul(m, s)
""", s=(8, 1, 1)), [8])
case("rms norm of what does not vanish", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    h = MatMul(x, w0)
    a = Sigmoid(h)
    n = RMSNormalization<epsilon=0.1>(a, s)
    y = MatMul(n, w2)
}""", opset=23, ir=11, w0=(12, 8), s=(8,), w2=(8, 3)), [], "root mean square over it")
case("layer norm that gives its means and deviations, too", net("""(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv(x, w0, b0)
    n, m, i = LayerNormalization(a, s)
    p = ReduceMean<axes=[2,3], keepdims=0>(n)
    q = Mul(m, i)
    r = ReduceMean<axes=[2,3], keepdims=0>(q)
    u = Add(p, r)
    y = MatMul(u, w1)
}""", w0=(8, 3, 3, 3), b0=(8,), s=(6,), w1=(8, 5)), [8])
case("layer norm that gives its means, of a width that is cut", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    n, m = LayerNormalization(a, s, b)
    z = Add(n, m)
    y = MatMul(z, w1)
}""", w0=(12, 8), s=(8,), b=(8,), w1=(8, 3)), [8])
case("rms norm that gives what it multiplies by", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    n, i = SimplifiedLayerNormalization(a, s)
    m = Mul(n, i)
    y = MatMul(m, w1)
}""", w0=(12, 8), s=(8,), w1=(8, 3)), [], "whose root mean square is read")
case("rms norm of a sum that gives what it multiplies by", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    b = MatMul(x, w1)
    n, u, i = com.microsoft.SkipSimplifiedLayerNormalization(a, b, s)
    m = Mul(n, i)
    y = MatMul(m, w2)
}""", imports=MS, w0=(12, 8), w1=(12, 8), s=(8,), w2=(8, 3)), [], "whose root mean square is read")
case("batch norm with parameters for every position", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    b = BatchNormalization<spatial=0>(a, s, t, m, var)
    y = MatMul(b, w1)
}""", opset=7, w0=(12, 8), s=(5, 8), t=(5, 8), m=(5, 8), var=(5, 8), w1=(8, 3)), [], "parameters for every position")
case("rms norm with a computed scale", net("""(float[N,5,12] x, float[8] s) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    n = RMSNormalization(a, s)
    y = MatMul(n, w2)
}""", opset=23, ir=11, w0=(12, 8), w2=(8, 3)), [], "computed scale")
case("fused rms norms over the trunk of a decoder", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(x, w0)
    n = SimplifiedLayerNormalization<epsilon=0.1>(t, s0)
    h = MatMul(n, w1)
    g = com.microsoft.QuickGelu(h)
    m = MatMul(g, w2)
    n2, u, v, sum = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.2>(m, t, s1)
    h2 = MatMul(n2, w3)
    r = Relu(h2)
    m2 = MatMul(r, w4)
    n3 = com.microsoft.SkipSimplifiedLayerNormalization(m2, sum, s2)
    y = MatMul(n3, w5)
}""", imports=', "com.microsoft" : 1', w0=(12, 8), s0=(8,), s1=(8,), s2=(8,), w1=(8, 6), w2=(6, 8), w3=(8, 4),
    w4=(4, 8), w5=(8, 3)), [8, 6, 4])
case("channels of which none may be zero where it is normalised by itself", conv_net(
    "b = MeanVarianceNormalization(a)"), [8], rows=False)
case("group norm", conv_net("b = GroupNormalization<num_groups=4>(a, s, t)", opset=21, ir=10, s=(8,), t=(8,)), [4])
case("group norm as torch writes it", conv_net("""
    r = Reshape(a, apart)
    n = InstanceNormalization(r, s, t)
    m = Reshape(n, together)
    b = Mul(m, u)
""", apart=[0, 4, -1], together=[-1, 8, 8, 8], s=(4,), t=(4,), u=(8, 1, 1)), [4])
_ONE_GROUP: dict[str, Any] = {"apart": [0, 1, -1], "together": [0, 8, 8, 8], "s": (1,), "t": (1,), "u": (8, 1, 1)}
for opset in (9, 10, 11, 17):
    case(f"group norm of one group as torch writes it, opset {opset}", conv_net("""
        r = Reshape(a, apart)
        n = InstanceNormalization(r, s, t)
        m = Reshape(n, together)
        b = Mul(m, u)
    """, opset=opset, **_ONE_GROUP), [8])
case("group norm of one group", conv_net("""
    n = GroupNormalization<num_groups=1>(a, s, t)
    b = Sigmoid(n)
""", opset=21, ir=10, s=(8,), t=(8,)), [8])
FREE_GROUP_NORM = """(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)
    r = Reshape(a, apart)
    n = InstanceNormalization<epsilon=0.1>(r, s, t)
    e = Shape(a)
    m = Reshape(n, e)
    b = Mul(m, u)
    y = Conv<pads=[1,1,1,1]>(b, w9)
}"""
FREE_GROUP_NORM_WEIGHTS: dict[str, Any] = {
    "w0": (8, 3, 3, 3), "b0": (8,), "apart": [0, 1, -1], "s": (1,), "t": (1,), "u": (8, 1, 1), "w9": (2, 8, 3, 3),
}  # fmt: skip
for opset in (9, 17, 18):
    model = net(FREE_GROUP_NORM, opset=opset, **FREE_GROUP_NORM_WEIGHTS)
    case(f"group norm of one group over free space, opset {opset}", model, [8])
case("instance norm", conv_net("b = InstanceNormalization(a, s1, b1)", s1=(8,), b1=(8,)), [8])
for opset in (9, 17):
    case(f"lrn, opset {opset}", conv_net("b = LRN<size=3, alpha=0.9, bias=0.5>(a)", opset=opset), [8])
case("lrn of what does not vanish, but is the same", conv_net("""
    s = Sigmoid(a)
    b = LRN<size=3>(s)
"""), [8])
case("softmax 13 over channels", conv_net("b = Softmax<axis=1>(a)", opset=13), [8])
case("softmax over what does not vanish, but is the same", conv_net("s = Sigmoid(a) b = Softmax<axis=1>(s)"), [8])
case("log softmax over channels", conv_net("b = LogSoftmax<axis=1>(a)"), [8])
for name, masked in (("added", "m = Add(a, none)"), ("chosen", "m = Where(some, a, nothing)")):
    case(f"softmax over channels of minus infinity, {name}, stays", conv_net(
        f"{masked} b = Softmax<axis=1>(m)", none=np.where(np.arange(8) % 3, 0, -np.inf).reshape(8, 1, 1).astype("f"),
        some=(np.arange(8) % 3 > 0).reshape(8, 1, 1), nothing=np.array(-np.inf, np.float32),
    ), [], "Softmax divides")  # fmt: skip
case("softmax over what a constant chooses", conv_net(
    "m = Where(some, a, less) b = Softmax<axis=1>(m)", some=(np.arange(8) % 3 > 0).reshape(8, 1, 1),
    less=np.array(-1, np.float32),
), [8], rows=False)  # fmt: skip
case("hardmax over channels stays", conv_net("b = Hardmax<axis=1>(a)"), [], "Hardmax chooses")
case("a gate of shares over features", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    z = MatMul(a, wg)
    g = Add(z, bg)
    s = Softmax(g)
    p = Mul(a, s)
    y = MatMul(p, w1)
}""", w0=(6, 8), wg=(8, 8), bg=(8,), w1=(8, 3)), [8])
case("attention among channels", net("""(float[N,16,6] x) => (float[N,16,3] y) {
    q0 = MatMul(x, wq)
    k = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q = Transpose<perm=[0,2,1]>(q0)
    s = MatMul(q, k)
    p = Softmax(s)
    v = Transpose<perm=[0,2,1]>(v0)
    o = MatMul(p, v)
    t = Transpose<perm=[0,2,1]>(o)
    y = MatMul(t, wo)
}""", wq=(6, 8), wk=(6, 10), wv=(6, 10), wo=(8, 3)), [8, 10])
case("softmax 13 over space", conv_net("b = Softmax<axis=-1>(a)", opset=13), [8])
case("softmax 13, last axis by default", conv_net("b = Softmax(a)", opset=13), [8])
case("softmax 11 takes all axes behind its own", conv_net("b = Softmax<axis=2>(a)", opset=11), [8])
case("softmax 11, axis 1 by default", conv_net("b = Softmax(a)", opset=11), [8])
case("log softmax", conv_net("b = LogSoftmax<axis=2>(a)"), [8])
case("hardmax", conv_net("b = Hardmax<axis=3>(a)"), [8])
case("lp norm over channels", conv_net("b = LpNormalization<axis=1>(a)"), [8])
case("lp norm of what does not vanish", conv_net("""
    s = Sigmoid(a)
    b = LpNormalization<axis=1, p=1>(s)
"""), [], "takes a norm over it, and it is not zero there")
case("lp norm over space", conv_net("b = LpNormalization<axis=-1>(a)"), [8])
