"""Every op family in a small net: what can be cut, what stays and why, and that a cut is exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from onnxshap.backend import OrtBackend
from onnxshap.errors import ModelError
from onnxshap.rewrite import drop_units
from onnxshap.rules import RULES
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.exactness import TOLERANCE, check_exact, codes, net

INT_MAX = 2**63 - 1
INT_MIN = -(2**63)


@dataclass(frozen=True)
class Case:
    """A net, the sizes of its groups in graph order, and parts of the reasons of what stays."""

    name: str
    model: onnx.ModelProto
    sizes: Sequence[int]
    frozen: Sequence[str] = field(default=())
    tolerance: float = TOLERANCE


CASES: list[Case] = []


def case(name: str, model: onnx.ModelProto, sizes: Sequence[int], *frozen: str, tolerance: float = TOLERANCE) -> None:
    CASES.append(Case(name, model, sizes, frozen, tolerance))


def grid(*positions: Sequence[int]) -> Any:
    """Return the indices of a ScatterND that writes these positions of its first axes."""
    return np.stack(np.meshgrid(*positions, indexing="ij"), axis=-1).tolist()


def conv_net(
    body: str, *, opset: int = 17, ir: int = 8, batch: str = "N", c: int = 8, d: int = 8, **more: Any
) -> onnx.ModelProto:
    """Return conv(3 -> c) as `a`, the body from `a` to `b` with d channels, and conv(d -> 2) as `y`."""
    text = f"""(float[{batch},3,8,8] x) => (float[{batch},2,P,Q] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w0, b0)
        {body}
        y = Conv<pads=[1,1,1,1]>(b, w9, b9)
    }}"""
    return net(text, opset=opset, ir=ir, w0=(c, 3, 3, 3), b0=(c,), w9=(2, d, 3, 3), b9=(2,), **more)


def gemm_net(body: str, *, opset: int = 17, c: int = 8, d: int = 8, **more: Any) -> onnx.ModelProto:
    """Return gemm(6 -> c) as `a`, the body from `a` to `b` with d features, and gemm(d -> 3) as `y`."""
    text = f"""(float[N,6] x) => (float[N,3] y) {{
        a = Gemm(x, w0, b0)
        {body}
        y = Gemm(b, w9, b9)
    }}"""
    return net(text, opset=opset, w0=(6, c), b0=(c,), w9=(d, 3), b9=(3,), **more)


def _typed(dtype: Any, **shapes: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=shape) / 3).astype(dtype) for name, shape in shapes.items()}


def _called_like_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.name = node.output[0]
    return model


MS = ', "com.microsoft" : 1'


# fmt: off
# --- linear ----------------------------------------------------------------------------------------------------------

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
}""", w0=(8, 3, 1, 1), w1=(5, 8), axes=[2, 3]), [8])
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
        images_in=[1, -1, 6, 6], images_out=[2, -1, 6, 6], w3=(2, 8, 1, 1)), sizes, *frozen)
case("a stored image seen through computed weights in groups stays", net("""(float[4,6] x) => (float[1,4,5,5] y) {
    a = Gemm(x, w0)
    w = Unsqueeze(a, axes)
    y = Conv<group=2>(image, w)
}""", w0=(6, 3), axes=[2, 3], image=(1, 6, 5, 5)), [], "Conv in groups has computed weights")
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
}""", w0=(6, 8), w1=(8, 3), b1=(3,)), [8])
for form, shape in (("row", (1, 8)), ("one", (1,)), ("scalar", ()), ("column", (4, 1)), ("full", (4, 8))):
    case(f"gemm C {form}", net("""(float[4,6] x) => (float[4,3] y) {
        a = Gemm(x, w0, b0)
        b = Gemm(a, w1, b1)
        y = Gemm(b, w2, b2)
    }""", w0=(6, 8), b0=shape, w1=(8, 8), b1=shape, w2=(8, 3), b2=(3,)), [8, 8])
case("gemm beta 0", gemm_net("b = Gemm<beta=0.0>(a, w1, b1)", w1=(8, 8), b1=(8,)), [8, 8])
case("gemm with the constant on the left", net("""(float[6,4] x) => (float[3,4] y) {
    a = Gemm(w0, x, b0)
    b = Relu(a)
    y = Gemm(w1, b, b1)
}""", w0=(8, 6), b0=(8, 1), w1=(3, 8), b1=(4,)), [8])
case("gemm with computed bias", net("""(float[N,6] x, float[3] c) => (float[N,3] y) {
    a = Gemm(x, w0)
    y = Gemm(a, w1, c)
}""", w0=(6, 8), w1=(8, 3)), [8])

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
    t=(8, 1, 1), w1=(2, 8, 1, 1)), [8])
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
case("layer norm of what does not vanish", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    h = MatMul(x, w0)
    a = Sigmoid(h)
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
}""", **_typed(np.float16, w0=(12, 8), s=(8,), b=(8,), w1=(8, 3))), [8], tolerance=2e-3)
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
""", noise=(1, 1, 8, 8)), [8])
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
    "b = MeanVarianceNormalization(a)"), [8])
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
case("lrn of what does not vanish", conv_net("""
    s = Sigmoid(a)
    b = LRN<size=3>(s)
"""), [], "sums over neighbours over it, and it is not zero there")
case("softmax 13 over channels stays", conv_net("b = Softmax<axis=1>(a)", opset=13), [], "Softmax divides")
case("softmax 13 over space", conv_net("b = Softmax<axis=-1>(a)", opset=13), [8])
case("softmax 13, last axis by default", conv_net("b = Softmax(a)", opset=13), [8])
case("softmax 11 takes all axes behind its own", conv_net("b = Softmax<axis=2>(a)", opset=11), [8])
case("softmax 11, axis 1 by default", conv_net("b = Softmax(a)", opset=11), [], "Softmax divides")
case("log softmax", conv_net("b = LogSoftmax<axis=2>(a)"), [8])
case("hardmax", conv_net("b = Hardmax<axis=3>(a)"), [8])
case("lp norm over channels", conv_net("b = LpNormalization<axis=1>(a)"), [8])
case("lp norm of what does not vanish", conv_net("""
    s = Sigmoid(a)
    b = LpNormalization<axis=1, p=1>(s)
"""), [], "takes a norm over it, and it is not zero there")
case("lp norm over space", conv_net("b = LpNormalization<axis=-1>(a)"), [8])

# --- pool ------------------------------------------------------------------------------------------------------------

case("pools", conv_net("""
    p = MaxPool<kernel_shape=[2,2]>(a)
    q = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(p)
    b = LpPool<kernel_shape=[2,2], p=2>(q)
"""), [8])
case("max pool with indices stays", conv_net("b, i = MaxPool<kernel_shape=[2,2]>(a)"), [],
     "indices, which count channels")
for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    case(op, conv_net(f"b = {op}(a)"), [8])
case("resize by scales", conv_net('b = Resize<mode="linear">(a, , scales)', scales=[1, 1, 2, 2.0]), [8])
case("resize by scales that were halves", conv_net("""
    s = Cast<to=1>(halves)
    b = Resize<mode="linear">(a, , s)
""", halves=np.array([1, 1, 2, 2], np.float16)), [8])
case("resize by scales, opset 10", conv_net("b = Resize(a, scales)", opset=10, scales=[1, 1, 2, 2.0]), [8])
case("resize by scales, opset 11", conv_net("b = Resize(a, roi, scales)", opset=11, scales=[1, 1, 2, 2.0],
     roi=np.zeros(0, np.float32)), [8])
case("resize by sizes", conv_net("b = Resize(a, , , sizes)", batch="2", sizes=[2, 8, 12, 5]), [8])
case("resize some axes by sizes", conv_net("b = Resize<axes=[2,3]>(a, , , sizes)", opset=18, sizes=[12, 5]), [8])
case("resize mixes channels and leaves their number", conv_net('b = Resize<mode="linear">(a, , scales)',
     scales=[1, 1.1, 1, 1.0]), [], "Resize")
case("resize crops", conv_net(
    'b = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(a, roi, , sizes)', opset=13,
    batch="2", roi=[0, 0.2, 0, 0, 1, 0.9, 1, 1.0], sizes=[2, 8, 5, 5]), [], "Resize crops")
case("resize mixes channels", conv_net("b = Resize(a, , scales)", d=16, scales=[1, 2, 1, 1.0]), [], "Resize")
case("whether any channel is true", net("""(float[N,3,8,8] x) => (float[N,1,6,6] y) {
    a = Conv(x, w0, b0)
    t = Cast<to=9>(a)
    m = ReduceMax(t, channels)
    y = Cast<to=1>(m)
}""", opset=20, ir=9, w0=(8, 3, 3, 3), b0=(8,), channels=[1]), [], "ReduceMax reduces over it")
case("upsample by factors that give each of as many channels to another", conv_net(
    "b = Upsample<scales=[1.0, 1.1, 2.0, 2.0]>(a)", opset=8), [], "Upsample keeps this axis")
case("upsample", conv_net("b = Upsample(a, scales)", opset=9, scales=[1, 1, 2, 2.0]), [8])

# --- reductions ------------------------------------------------------------------------------------------------------

for op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
    positive = "p = Abs(a)\n q = Add(p, one)"
    case(f"Reduce{op}, axes as input", conv_net(
        f"{positive}\n b = Reduce{op}(q, axes)", opset=18, axes=[2, -1], one=1.0), [8])
    if op != "Sum":
        case(f"Reduce{op}, axes as attribute", conv_net(
            f"{positive}\n b = Reduce{op}<axes=[-2,3]>(q)", opset=12, one=1.0), [8])
case("mean over channels", conv_net("""
    m = ReduceMean<axes=[1]>(a)
    b = Sub(a, m)
"""), [8])
case("means over channels and more", conv_net("""
    r = Relu(a)
    s = Sqrt(r)
    m = ReduceMean<keepdims=0>(s, axes)
    u = Unsqueeze(m, axes)
    v = ReduceMean(s)
    g = Add(u, v)
    b = Mul(g, r)
""", opset=18, axes=[1, 3]), [8])
case("sums taken off their own channels", conv_net("""
    t = ReduceSum(a, axes)
    d = Sub(a, t)
    q = Mul(d, d)
    v = ReduceSum(q, axes)
    b = Mul(a, v)
""", axes=[1]), [8])
case("mean over tokens that weights make", net("""(float[N,5,12] x) => (float[N,3] y) {
    t = MatMul(w0, x)
    m = ReduceMean<axes=[1], keepdims=0>(t)
    y = MatMul(m, w1)
}""", w0=(6, 5), w1=(12, 3)), [6])
case("variance over channels", conv_net("""
    m = ReduceMean<axes=[1]>(a)
    d = Sub(a, m)
    q = Mul(d, d)
    v = ReduceMean<axes=[1]>(q)
    b = Mul(a, v)
"""), [8])
case("rms norm as torch writes it", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    q = Pow(a, two)
    m = ReduceMean<axes=[-1]>(q)
    e = Add(m, eps)
    s = Sqrt(e)
    i = Reciprocal(s)
    n = Mul(a, i)
    f = Mul(scale, n)
    y = MatMul(f, w1)
}""", w0=(12, 8), two=2.0, eps=1e-5, scale=(8,), w1=(8, 3)), [8])
for inverse in ("Reciprocal(a)", "Pow(a, less)", "Log(a)"):
    case(f"a mean of {inverse}, which has a pole at zero, stays", conv_net(f"""
        i = {inverse}
        m = ReduceMean<axes=[1]>(i)
        z = IsNaN(m)
        f = Cast<to=1>(z)
        b = Mul(a, f)
    """, less=np.float32(-0.5)), [], "ReduceMean sums over it")
case("inverse squares of what is not zero", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    p = Abs(a)
    h = Add(p, one)
    q = Pow(h, less)
    m = ReduceMean<axes=[-1]>(q)
    f = Mul(a, m)
    y = MatMul(f, w1)
}""", w0=(12, 8), less=-2.0, one=1.0, w1=(8, 3)), [8])
case("reduce everything stays", conv_net("""
    m = ReduceProd<keepdims=0>(a)
    b = Mul(a, m)
"""), [], "ReduceProd reduces over it")
case("extremes over channels see the zeros of what is gone", conv_net("""
    g = ReduceMax<axes=[1]>(a)
    l = ReduceMin<axes=[1,3]>(a)
    p = Add(g, l)
    b = Mul(a, p)
""", opset=13), [8])
case("extremes are compared from opset 12 on", conv_net("""
    m = ReduceMax<axes=[1]>(a)
    b = Mul(a, m)
""", opset=11), [], "ReduceMax reduces over it")
case("extremes over what is not zero there", conv_net("""
    e = Exp(a)
    m = ReduceMax<axes=[1]>(e)
    b = Mul(a, m)
""", opset=13), [], "ReduceMax takes the extreme over it")
case("weights normalised over what they sum are stored as the layer reads them", net("""
(float[N,3,6,6] x) => (float[N,2,6,6] y) {
    l = ReduceL2<axes=[1,2,3]>(v)
    d = Div(v, l)
    w = Mul(d, g)
    a = Conv(x, w)
    r = Relu(a)
    m = ReduceMean<axes=[1,2,3]>(u)
    c = Sub(u, m)
    b = Conv(r, c)
    s = Relu(b)
    y = Conv(s, w2)
}""", opset=13, v=(8, 3, 1, 1), g=(8, 1, 1, 1), u=(5, 8, 1, 1), w2=(2, 5, 1, 1)), [8, 5])
case("sums over channels that vanish", conv_net("""
    r = Relu(a)
    t = ReduceSum<keepdims=0>(r, axes)
    u = Unsqueeze(t, axes)
    e = ReduceL2<axes=[1]>(r)
    f = ReduceSumSquare<axes=[1]>(a)
    g = ReduceL1<axes=[1]>(a)
    b = Concat<axis=1>(u, e, f, g)
""", d=4, axes=[1]), [8])
case("distances of embeddings, kept off zero, count what is gone", net("""(float[N,6] u, float[N,6] v) => (float[N] y) {
    a = Gemm(u, w0, b0)
    b = Gemm(v, w0, b0)
    d = Sub(a, b)
    e = Add(d, eps)
    y = ReduceL2<keepdims=0>(e, axes)
}""", opset=18, w0=(6, 8), b0=(8,), eps=np.float32(0.5), axes=[1]), [8])
case("norms over channels and space that do not vanish stay", conv_net("""
    r = Exp(a)
    b = ReduceL2<axes=[1, 2]>(r)
""", d=1), [], "ReduceL2 sums over it")
case("norms of weights that are kept off zero", net("""(float[N,3,6,6] x) => (float[N,2,6,6] y) {
    a = Conv(x, w0)
    e = Add(v, eps)
    l = ReduceL2<axes=[1,2,3]>(e)
    w = Div(v, l)
    y = Conv(a, w)
}""", w0=(8, 3, 1, 1), v=(2, 8, 1, 1), eps=np.float32(0.5)), [8])
case("sums over parts that were added to", conv_net("""
    l, r = Split<axis=1>(a)
    t = Tanh(l)
    l2 = Add(l, t)
    c = Concat<axis=1>(l2, r)
    b = ReduceSum(c, axes)
""", d=1, opset=13, axes=[1]), [8])
case("a table spread over the images", net("""(int64[N,5] i) => (float[N,5,3] y) {
    s = Shape(i)
    u = Gather(s, nil)
    c = Gather(s, one)
    z = Range(none, c, step)
    p = Mod(z, five)
    t = Gather(table, p)
    w = Concat<axis=0>(u, rest)
    e = Expand(t, w)
    a = MatMul(e, w0)
    y = MatMul(a, w1)
}""", nil=np.array([0]), one=np.array(1), none=np.array(0), step=np.array(1), five=np.array(5), rest=[5, 6],
    table=(7, 6), w0=(6, 8), w1=(8, 3)), [8])
case("sums over channels that do not vanish", conv_net("""
    r = Sigmoid(a)
    b = ReduceSum(r, axes)
""", d=1, axes=[1]), [8])
case("layer norm in one pass, as jax writes it", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    t = ReduceSum(a, axes)
    m = Mul(t, share)
    q = Mul(a, a)
    u = ReduceSum(q, axes)
    v = Mul(u, share)
    m2 = Mul(m, m)
    w = Sub(v, m2)
    e = Add(w, one)
    r = Sqrt(e)
    i = Reciprocal(r)
    s = Mul(i, scale)
    d = Sub(a, m)
    z = Mul(d, s)
    y = MatMul(z, w1)
}""", w0=(12, 8), axes=[2], share=0.125, one=1.0, scale=(8,), w1=(8, 3)), [8])
case("expand to sizes from the data", net("""(float[N,3,H,6] x, float[N,5] h) => (float[N,2,H,6] y) {
    a = Conv(x, w0)
    g = MatMul(h, w1)
    k = Unsqueeze(g, axes)
    s = Shape(x)
    n = Slice(s, two, three)
    t = Concat<axis=0>(rest, n, six)
    e = Expand(k, t)
    c = Concat<axis=1>(a, e)
    y = Conv(c, w2)
}""", w0=(8, 3, 1, 1), w1=(5, 4), axes=[2, 3], two=[2], three=[3], rest=[1, 4], six=[6], w2=(2, 12, 1, 1)), [8, 4])
case("expand to sizes that are an input", net("""(float[N,3,4,6] x, float[N,5] h, int64[4] t) => (float[N,2,4,6] y) {
    a = Conv(x, w0)
    g = MatMul(h, w1)
    k = Unsqueeze(g, axes)
    z = Mul(t, nil)
    u = Add(z, one)
    e = Expand(k, u)
    c = Add(a, e)
    y = Conv(c, w2)
}""", w0=(8, 3, 1, 1), w1=(5, 8), axes=[2, 3], nil=0, one=1, w2=(2, 8, 1, 1)), [],
    "Expand gets its sizes from the data")
case("patches of free height and width", net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
    a = Conv(x, w0)
    s = Shape(a)
    n = Slice(s, zero, one)
    c = Slice(s, one, two)
    h = Slice(s, two, three)
    w = Slice(s, three, four)
    h2 = Div(h, two)
    w2 = Div(w, two)
    t = Concat<axis=0>(n, c, h2, two, w2, two)
    r = Reshape(a, t)
    p = Transpose<perm=[0,1,3,5,2,4]>(r)
    c4 = Mul(c, four)
    t2 = Concat<axis=0>(n, c4, h2, w2)
    q = Reshape(p, t2)
    y = Conv(q, w1)
}""", w0=(8, 3, 1, 1), zero=[0], one=[1], two=[2], three=[3], four=[4], w1=(2, 32, 1, 1)), [8])
case("rows of a table, looked up and written by constant places", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(table, w0)
    r = GatherND(t, places)
    s = ScatterND(r, rows, b0)
    a = MatMul(x, w1)
    m = Mul(a, s)
    g = com.microsoft.GatherND(m, first)
    y = MatMul(m, w2)
}""", imports=MS, table=(7, 4), w0=(4, 8), places=[[3], [0], [6], [0], [1]], rows=[[1], [4]], b0=(2, 8), w1=(12, 8),
    first=[[0, 0]], w2=(8, 3)), [8])
case("part of the channels written at other times", net("""(float[N,12,6] x) => (float[N,3] y) {
    a = MatMul(w0, x)
    t = Transpose<perm=[1,0,2]>(a)
    first = Slice(t, nil, one, two)
    others = Slice(t, one, six, two)
    late = Concat<axis=2>(others, first)
    some = Slice(late, nil, three, nil)
    s = ScatterND(t, rows, some)
    b = Transpose<perm=[1,0,2]>(s)
    r = ReduceMean<axes=[2], keepdims=0>(b)
    y = MatMul(r, w1)
}""", opset=13, w0=(8, 12), one=[1], six=[6], two=[2], nil=[0], three=[3], rows=[[0], [1], [2]], w1=(8, 3)), [8])
case("a grid of all axes written", net("""(float[2,12,6] x) => (float[2,3] y) {
    a = MatMul(w0, x)
    b = Gather<axis=1>(a, some)
    c = Mul(b, b)
    s = ScatterND(a, all, c)
    t = ScatterND(s, few, v0)
    r = ReduceMean<axes=[2], keepdims=0>(t)
    y = MatMul(r, w1)
}""", w0=(8, 12), some=[0, 5, 2], all=grid(range(2), (0, -3, 2), range(6)), few=grid(range(2), (7, 1), (3, 0)),
    v0=(2, 2, 2), w1=(8, 3)), [8])
case("a grid of some channels written in every image", net("""(float[N,12,6] x) => (float[N,3] y) {
    a = Conv(x, w0)
    b = Mul(a, a)
    n = Shape<end=1>(a)
    count = Squeeze(n, nil)
    numbers = Range(zero, count, one)
    tall = Reshape(numbers, column)
    size = Concat<axis=0>(n, three, one1)
    images = Expand(tall, size)
    channels = Expand(chosen, size)
    places = Concat<axis=2>(images, channels)
    some = Slice(a, nil, three, one1)
    s = ScatterND(b, places, some)
    r = ReduceMean<axes=[2], keepdims=0>(s)
    y = MatMul(r, w1)
}""", opset=15, w0=(8, 12, 1), nil=[0], zero=np.array(0), one=np.array(1), one1=[1], three=[3], column=[-1, 1, 1],
    chosen=[[[5], [0], [-1]]], w1=(8, 3)), [5])
case("the first image written at all times", net("""(float[N,T,12] x) => (float[N,T,3] y) {
    a = MatMul(x, w0)
    n = Shape<start=1, end=2>(a)
    count = Squeeze(n, nil)
    numbers = Range(zero, count, one)
    tall = Reshape(numbers, column)
    size = Concat<axis=0>(one1, n, one1)
    images = Expand(first, size)
    places = Concat<axis=2>(images, tall)
    some = Slice(a, nil, one1, nil)
    twice = Mul(some, some)
    s = ScatterND(a, places, twice)
    y = MatMul(s, w1)
}""", opset=15, w0=(12, 8), nil=[0], zero=np.array(0), one=np.array(1), one1=[1], column=[1, -1, 1],
    first=[[[0]]], w1=(8, 3)), [8])
case("as many channels written as there are images", net("""(float[N,12,6] x) => (float[N,3] y) {
    a = Conv(x, w0)
    n = Shape<end=1>(a)
    count = Squeeze(n, nil)
    numbers = Range(zero, count, one)
    places = Reshape(numbers, column)
    t = Transpose<perm=[1,0,2]>(a)
    few = Slice(t, nil, n, nil)
    s = ScatterND(t, places, few)
    r = ReduceMean<axes=[2], keepdims=0>(s)
    u = Transpose(r)
    y = MatMul(u, w1)
}""", opset=16, w0=(8, 12, 1), nil=[0], zero=np.array(0), one=np.array(1), column=[-1, 1], w1=(8, 3)), [])
case("numbers that are no grid", net("""(float[N,12] x) => (float[N,3] y) {
    a = MatMul(x, w0)
    b = MatMul(x, w1)
    t = Transpose(a)
    u = Transpose(b)
    s = ScatterND(t, twice, u)
    v = Transpose(s)
    y = MatMul(v, w2)
}""", w0=(12, 8), w1=(12, 3), twice=[[4], [4], [1]], w2=(8, 3)), [])
case("places written in images", net("""(float[N,5,12] x, int64[N,5] i) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    k = Clip(i, nil, one)
    u = Unsqueeze(k, last)
    g = GatherND<batch_dims=1>(a, u)
    s = ScatterND(g, places, updates)
    h = OneHot<axis=1>(k, two, values)
    f = MatMul(h, s)
    most = ReduceMax<axes=[1], keepdims=0>(k)
    lengths = Add(most, one)
    r = ReverseSequence<batch_axis=0, time_axis=1>(f, lengths)
    c = Compress<axis=1>(r, both)
    e = Einsum<equation="btc,qt->bqc">(c, k2)
    y = MatMul(e, w1)
}""", opset=13, w0=(12, 8), nil=0, one=1, last=[-1], two=2, values=[0.5, 1.5], places=[[0]], updates=(1, 5, 8),
    both=[True, True], k2=(5, 2), w1=(8, 3)), [8])
case("sizes of an inner tensor as a whole", net("""(float[N,3,H,W] x) => (float[N,2,H,W] y) {
    a = Conv(x, w0)
    s = Shape(a)
    z = ConstantOfShape<value=float[1] {1.5}>(s)
    k = Mul(a, z)
    e = Expand(b0, s)
    b = Add(k, e)
    y = Conv(b, w1)
}""", w0=(8, 3, 1, 1), b0=(8, 1, 1), w1=(2, 8, 1, 1)), [8])
case("resize, crop, pad, tile and split by sizes of inner tensors", net("""(float[N,3,H,W] x) => (float[N,2,H,W] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    s = Shape(a)
    h = Slice(s, two, three)
    d = Conv<strides=[2,2]>(a, w1)
    s1 = Shape(d)
    front = Slice(s1, zero, two)
    back = Slice(s, two, four)
    sizes = Concat<axis=0>(front, back)
    up = Resize(d, , , sizes)
    g = Pad(up, pads)
    cut = Slice(g, zero, h, two)
    s2 = Shape(a)
    h2 = Slice(s2, two, three)
    s3 = Shape(cut)
    h3 = Slice(s3, two, three)
    more = Sub(h2, h3)
    amounts = Concat<axis=0>(zero, zero, zero, zero, zero, zero, more, zero)
    q = Pad(cut, amounts)
    half = Div(h2, two)
    rest = Sub(h2, half)
    halves = Concat<axis=0>(half, rest)
    one_, two_ = Split<axis=2>(q, halves)
    whole = Concat<axis=2>(two_, one_)
    line = ReduceMean<axes=[2]>(a)
    ones = Concat<axis=0>(one, one, h, one)
    wide = Tile(line, ones)
    b = Concat<axis=1>(whole, wide)
    y = Conv(b, w2)
}""", w0=(8, 3, 3, 3), w1=(6, 8, 1, 1), w2=(2, 14, 1, 1), zero=[0], one=[1], two=[2], three=[3], four=[4],
    pads=[0, 0, 0, 0, 0, 0, 1, 0]), [8, 6])
case("sizes of what is rounded are sizes like others", conv_net("""
    d = Div(a, three)
    f = Round(d)
    s = Shape(f)
    c = Gather(s, one)
    h = Div(c, two)
    z = Sub(c, h)
    l = Slice(a, nil, h, one)
    r = Slice(a, h, c, one)
    b = Concat<axis=1>(r, l)
""", three=3.0, nil=[0], one=[1], two=[2]), [8])
case("the number of elements is counted on", net("""(float[N,3,H,6] x) => (float[N,2,H,6] y) {
    a = Conv(x, w0)
    n = Size(a)
    f = Cast<to=1>(n)
    b = Div(a, f)
    y = Conv(b, w1)
}""", w0=(8, 3, 1, 1), w1=(2, 8, 1, 1)), [], "counted on elsewhere")
case("heads merged with the images are counted", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    s = Shape(a)
    n = Gather(s, zero)
    m = Mul(n, heads)
    t = Concat<axis=0>(m, size, minus)
    k = Transpose<perm=[0,2,1]>(a)
    r = Reshape(k, t)
    s1 = Shape(r)
    m1 = Gather(s1, zero)
    z = ConstantOfShape<value=float[1] {0.5}>(m1)
    u = Unsqueeze(z, axes)
    g = Mul(r, u)
    t2 = Concat<axis=0>(n, twelve, minus)
    v = Reshape(g, t2)
    w = Transpose<perm=[0,2,1]>(v)
    y = MatMul(w, w1)
}""", w0=(12, 12), zero=[0], heads=[3], size=[4], minus=[-1], twelve=[12], axes=[1, 2], w1=(12, 3)), [4])
case("a state that starts as a zero that is stretched, as torch's new exporter writes it", net("""
(float[N,3,5] x) => (float[N,3] y) {
    s = Shape(x)
    n = Slice(s, start, to)
    sizes = Concat<axis=0>(n, width)
    h = Expand(nothing, sizes)
    e = MatMul(x, w0)
    a = Gather<axis=1>(e, last)
    g = Sigmoid(a)
    k = Mul(g, h)
    r = MatMul(h, w1)
    b = Tanh(r)
    d = Add(k, b)
    t = Add(d, a)
    l = LayerNormalization(t, scale, shift)
    y = MatMul(l, w2)
}""", start=[0], to=[1], width=[8], nothing=np.float32(0), last=2, w0=(5, 8), w1=(8, 8), scale=(8,), shift=(8,),
    w2=(8, 3)), [8])
case("layers whose states start as slices of one stretched zero, as torch's new exporter writes them", net("""
(float[4,N,5] x) => (float[4,N,3] y) {
    s = Shape(x)
    n = Slice(s, one, two)
    sizes = Concat<axis=0>(two, n, width)
    zeros = Expand(nothing, sizes)
    h0 = Slice(zeros, zero, one, axis)
    a, last = GRU<hidden_size=6>(x, w0, r0, b0, , h0)
    u = Squeeze(a, squeezed)
    h1 = Slice(zeros, one, two, axis)
    b, end = GRU<hidden_size=6>(u, w1, r1, b1, , h1)
    v = Squeeze(b, squeezed)
    y = MatMul(v, w2)
}""", zero=[0], one=[1], two=[2], axis=[0], width=[6], squeezed=[1], nothing=np.float32(0), w0=(1, 18, 5),
    r0=(1, 18, 6), b0=(1, 36), w1=(1, 18, 6), r1=(1, 18, 6), b1=(1, 36), w2=(6, 3)), [6, 6])
case("expand over space by computed sizes", net("""(float[N,3,6,6] x, float[N,5] h) => (float[N,2,6,6] y) {
    a = Conv(x, w0)
    g = MatMul(h, w1)
    k = Unsqueeze(g, axes)
    s = Shape(x)
    n = Slice(s, zero, one)
    t = Concat<axis=0>(n, rest)
    e = Expand(k, t)
    c = Concat<axis=1>(a, e)
    y = Conv(c, w2)
}""", w0=(8, 3, 1, 1), w1=(5, 4), axes=[2, 3], zero=[0], one=[1], rest=[4, 6, 6], w2=(2, 12, 1, 1)), [8, 4])
case("reduce nothing", conv_net("b = ReduceSum<noop_with_empty_axes=1>(a, axes)", opset=13,
     axes=np.zeros(0, np.int64)), [8])
case("reduce without kept dims", net("""(float[N,3,8,8] x) => (float[N,4] y) {
    a = Conv(x, w0)
    m = ReduceMean<axes=[2,3], keepdims=0>(a)
    y = Gemm(m, w1)
}""", w0=(8, 3, 3, 3), w1=(8, 4)), [8])
for op in ("ArgMax", "ArgMin"):
    case(f"{op} of space", conv_net(f"""
        i = {op}<axis=2>(a)
        f = Cast<to=1>(i)
        b = Mul(a, f)
    """), [8])
case("arg max of channels stays", net("""(float[N,3,4,4] x) => (int64[N,4,4] y) {
    a = Conv(x, w0)
    y = ArgMax<axis=1, keepdims=0>(a)
}""", w0=(8, 3, 3, 3)), [], "ArgMax reduces over it")
case("cumulative sums of space", conv_net("b = CumSum(a, axis)", axis=np.array(3)), [8])
case("cumulative sums of channels stay", conv_net("b = CumSum(a, axis)", axis=np.array(1)), [], "CumSum keeps")

# --- pointwise -------------------------------------------------------------------------------------------------------

_UNARY = {
    7: "Abs Atan Ceil Cos Elu Exp Floor HardSigmoid Identity LeakyRelu Neg Relu Selu Sigmoid Sin Softplus Softsign Tan",
    8: "Tanh",
    12: "Celu Erf Round Shrink Sign Sinh Cosh Asinh ThresholdedRelu",
    14: "HardSwish",
    18: "Mish",
    20: "Gelu",
    24: "Swish",
}
for version, kinds in _UNARY.items():
    for op in kinds.split():
        case(op, gemm_net(f"b = {op}(a)", opset=version), [8], tolerance=3e-5)
for op in ("Asin", "Acos", "Atanh"):
    case(op, gemm_net(f"s = Sin(a)\n h = Mul(s, half)\n b = {op}(h)", opset=9, half=0.5), [8])
for op in ("Log", "Sqrt", "Reciprocal", "Acosh"):
    case(op, gemm_net(f"s = Abs(a)\n h = Add(s, two)\n b = {op}(h)", opset=9, two=2.0), [8])
for op in ("IsInf", "IsNaN"):
    case(op, gemm_net(f"s = {op}(a)\n h = Cast<to=1>(s)\n b = Add(a, h)", opset=13), [8])
for op in ("Not", "BitwiseNot"):
    kind = 9 if op == "Not" else 6
    case(op, gemm_net(f"s = Cast<to={kind}>(a)\n n = {op}(s)\n h = Cast<to=1>(n)\n b = Mul(a, h)", opset=18), [8])
for op in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum"):
    case(f"{op} of branches", gemm_net(f"c = Gemm(x, w1)\n b = {op}(a, c)", opset=13, w1=(6, 8)), [8])
    case(f"{op} with a vector", gemm_net(f"b = {op}(a, v)", opset=13, v=(8,)), [8])
case("Div, Pow and Mod", gemm_net("""
    e = Exp(a)
    p = Pow(e, v)
    m = Mod<fmod=1>(p, v2)
    b = Div(m, v3)
""", v=[0.5] * 8, v2=[3.0] * 8, v3=[2.0] * 8), [8])
for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    case(op, gemm_net(f"c = {op}(a, v)\n h = Cast<to=1>(c)\n b = Mul(a, h)", opset=16, v=(8,)), [8])
for op in ("And", "Or", "Xor"):
    case(op, gemm_net(f"g = Greater(a, v)\n l = Less(a, u)\n c = {op}(g, l)\n b = Where(c, a, u2)",
         v=(8,), u=(8,), u2=(8,)), [8])
for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    case(op, gemm_net(f"""
        i = Cast<to=6>(a)
        j = {op}(i, v)
        h = Cast<to=1>(j)
        b = Add(a, h)
    """, opset=18, v=np.arange(8, dtype=np.int32)), [8])
case("BitShift", gemm_net("""
    p = Abs(a)
    i = Cast<to=13>(p)
    j = BitShift<direction="LEFT">(i, v)
    h = Cast<to=1>(j)
    b = Add(a, h)
""", v=np.arange(8, dtype=np.uint64)), [8])
case("residual", conv_net("""
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w1)
    b = Add(a, c)
""", w1=(8, 8, 3, 3)), [8])
case("a tensor added to itself", conv_net("b = Add(a, a)"), [8])
case("residual on the input stays", net("""(float[N,3,6,6] x) => (float[N,2,6,6] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    b = Add(a, x)
    y = Conv(b, w1)
}""", w0=(3, 3, 3, 3), w1=(2, 3, 1, 1)), [], "it is a model input")
case("squeeze and excite", conv_net("""
    g = GlobalAveragePool(a)
    s = Conv(g, w1, b1)
    r = Relu(s)
    e = Conv(r, w2, b2)
    m = Sigmoid(e)
    b = Mul(a, m)
""", w1=(4, 8, 1, 1), b1=(4,), w2=(8, 4, 1, 1), b2=(8,)), [8, 4])
case("spatial attention", conv_net("""
    m = Conv(a, w1)
    s = Sigmoid(m)
    b = Mul(a, s)
""", w1=(1, 8, 1, 1)), [8], "stretches it over a wider axis")
case("prelu, slope a channel, opset 9", conv_net("b = PRelu(a, s)", opset=9, s=(8, 1, 1)), [8])
case("prelu, one slope", conv_net("b = PRelu(a, s)", opset=16, s=(1,)), [8])
case("clip by attributes", conv_net("b = Clip<min=0.0, max=0.5>(a)", opset=7), [8])
case("clip by inputs", conv_net("b = Clip(a, lo, hi)", opset=11, lo=0.0, hi=0.5), [8])
case("clip above only", conv_net("b = Clip(a, , hi)", opset=13, hi=0.5), [8])
case("dropout with a mask", conv_net("""
    d, m = Dropout(a)
    f = Cast<to=1>(m)
    b = Mul(d, f)
""", opset=13), [8])
case("where", conv_net("""
    c = Greater(a, zero)
    b = Where(c, a, v)
""", zero=0.0, v=(8, 1, 1)), [8])

# --- movement --------------------------------------------------------------------------------------------------------

case("concat of branches", conv_net("""
    c = Conv(a, w1)
    d = Conv(a, w2)
    b = Concat<axis=1>(c, a, d)
""", d=17, w1=(4, 8, 1, 1), w2=(5, 8, 1, 1)), [8, 4, 5])
case("concat with an expanded constant", conv_net("""
    e = Expand(k, target)
    b = Concat<axis=-3>(a, e)
""", d=10, batch="2", k=(1, 2, 1, 1), target=[2, 2, 8, 8]), [8])
case("split by input", conv_net("""
    p, q, r = Split<axis=1>(a, sizes)
    s = Concat<axis=1>(r, p)
    t = Sigmoid(q)
    b = Concat<axis=1>(s, t)
""", opset=13, sizes=[2, 5, 1]), [8])
case("split by attribute", conv_net("""
    p, q = Split<axis=1, split=[3,5]>(a)
    b = Concat<axis=1>(q, p)
""", opset=11), [8])
case("split into equal parts", conv_net("""
    p, q = Split<axis=1>(a)
    s = Sigmoid(q)
    b = Mul(p, s)
""", opset=13, d=4), [4])
case("split by number of outputs", conv_net("""
    p, q = Split<axis=1, num_outputs=2>(a)
    b = Concat<axis=1>(q, p)
""", opset=18), [8])
case("split into unequal parts without sizes", conv_net("""
    p, q = Split<axis=1, num_outputs=2>(a)
    b = Concat<axis=1>(q, p)
""", opset=18, c=7, d=7), [7])
for opset in (11, 13):
    case(f"split into equal parts of which one is left as it is, opset {opset}", conv_net("""
        p, q = Split<axis=1>(a)
        s = Sigmoid(q)
        b = Concat<axis=1>(s, p)
    """, opset=opset), [8])
case("split into parts of a size that follows the inputs", net("""(float[N,3,T] x) => (float[N,2] y) {
    a = Conv(x, w0)
    l = Transpose<perm=[0,2,1]>(a)
    r = Reshape(l, flat)
    p, q = Split<axis=1, num_outputs=2>(r)
    m = Mul(p, q)
    k = Reshape(m, apart)
    s = ReduceSum<keepdims=0>(k, middle)
    y = MatMul(s, w1)
}""", opset=18, w0=(8, 3, 1), flat=[0, -1], apart=[0, -1, 8], middle=[1], w1=(8, 2)), [8])
case("slices", conv_net("""
    p = Slice(a, s0, e0, axes0)
    q = Slice(a, s1, e1, axes1)
    b = Concat<axis=1>(p, q)
""", opset=13, d=8, s0=[1], e0=[INT_MAX], axes0=[1], s1=[-8, 0], e1=[-7, INT_MAX], axes1=[-3, 2]), [8])
case("slice in steps", conv_net("b = Slice(a, s, e, axes, steps)", d=3, s=[1], e=[INT_MAX], axes=[1], steps=[3]), [8])
case("slice backwards", conv_net("b = Slice(a, s, e, axes, steps)", s=[-1], e=[INT_MIN], axes=[1], steps=[-1]), [8])
case("slice of several axes, the channels in steps, stays", conv_net(
    "b = Slice(a, s, e, axes, steps)", d=4, s=[0, 2], e=[8, 6], axes=[1, 2], steps=[2, 1]), [], "in steps")
case("focus: space in steps, channels whole", conv_net("""
    p = Slice(a, s0, e, axes, steps)
    q = Slice(a, s1, e1, axes1, steps1)
    b = Concat<axis=1>(p, q)
""", d=16, s0=[0, 0], e=[INT_MAX, INT_MAX], axes=[2, 3], steps=[2, 2],
    s1=[1, 1], e1=[INT_MAX, INT_MAX], axes1=[2, 3], steps1=[2, 2]), [8])
case("slice by attributes", conv_net("b = Slice<axes=[1,2], starts=[2,0], ends=[-1,2147483647]>(a)", opset=9, d=5), [8])
case("slice without axes", conv_net("b = Slice(a, s, e)", d=6, s=[0, 2], e=[INT_MAX, 8]), [8])
case("pad of channels and space", conv_net("b = Pad(a, pads)", d=13, pads=[0, 2, 1, 1, 0, 3, 0, 0]), [8])
case("pad by attribute", conv_net("b = Pad<pads=[0,2,1,1,0,3,0,0]>(a)", opset=9, d=13), [8])
case("pad with a value", conv_net("b = Pad(a, pads, value)", d=9, pads=[0, 1, 0, 0, 0, 0, 0, 0], value=0.5), [8])
case("pad by reflection of space", conv_net('b = Pad<mode="reflect">(a, pads)', pads=[0, 0, 1, 1, 0, 0, 1, 1]), [8])
case("pad by reflection of channels stays", conv_net(
    'b = Pad<mode="reflect">(a, pads)', d=10, pads=[0, 1, 0, 0, 0, 1, 0, 0]), [], "Pad repeats or drops")
case("negative pads of channels stay", conv_net(
    "b = Pad(a, pads)", d=7, pads=[0, -1, 0, 0, 0, 0, 0, 0]), [], "Pad repeats or drops")
for version, pads in ((9, "b = Pad<pads=[0,2,0,0,0,2,0,0]>(s)"), (11, "b = Pad(s, pads)")):
    case(f"residual with padded channels, opset {version}", net(f"""(float[N,3,8,8] x) => (float[N,2,4,4] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w0)
        s = AveragePool<kernel_shape=[1,1], strides=[2,2]>(a)
        {pads}
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w1)
        d = Add(b, c)
        y = Conv(d, w2)
    }}""", opset=version, w0=(4, 3, 3, 3), w1=(8, 4, 3, 3), w2=(2, 8, 1, 1), pads=[0, 2, 0, 0, 0, 2, 0, 0]),
        [8])
case("flatten", net("""(float[N,3,4,4] x) => (float[N,3] y) {
    a = Conv(x, w0)
    f = Flatten(a)
    y = Gemm(f, w1, b1)
}""", w0=(8, 3, 3, 3), w1=(32, 3), b1=(3,)), [8])
case("flatten by reshape, batch spelled out", net("""(float[2,3,4,4] x) => (float[2,3] y) {
    a = Conv(x, w0)
    f = Reshape(a, target)
    y = Gemm(f, w1, b1)
}""", w0=(8, 3, 3, 3), w1=(32, 3), b1=(3,), target=[2, 32]), [8])
case("flatten behind the channels", net("""(float[N,3,4,4] x) => (float[N,2,16] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    f = Reshape(a, target)
    y = Conv(f, w1)
}""", w0=(8, 3, 3, 3), w1=(2, 8, 1), target=[0, 8, -1]), [8])
case("flatten with axis 2", net("""(float[1,3,4,4] x) => (float[3,16] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    f = Flatten<axis=2>(a)
    y = MatMul(w1, f)
}""", w0=(8, 3, 3, 3), w1=(3, 8)), [8])
case("space first, then flattened", net("""(float[N,3,4,4] x) => (float[N,3] y) {
    a = Conv(x, w0)
    t = Transpose<perm=[0,2,3,1]>(a)
    f = Reshape(t, target)
    y = Gemm(f, w1, b1)
}""", w0=(8, 3, 3, 3), w1=(32, 3), b1=(3,), target=[-1, 32]), [8])
case("windows merged with channels and split in groups", net("""(float[N,3,6,6] x) => (float[N,2,4,4] y) {
    a = Conv(x, w0, b0)
    p = Gather<axis=2>(a, rows)
    q = Gather<axis=4>(p, rows)
    t = Transpose<perm=[0,1,2,4,3,5]>(q)
    m = Reshape(t, merged)
    u = Reshape(m, split)
    k = Conv<strides=[1,1], pads=[0,0,0,0]>(x, w1)
    l = Slice(k, nil, four, space)
    v = Reshape(l, kernels)
    f = Mul(u, v)
    s = ReduceSum<keepdims=0>(f, axes)
    r = Reshape(s, channels)
    y = Conv(r, w2)
}""", w0=(12, 3, 1, 1), b0=(12,), w1=(36, 3, 1, 1), w2=(2, 12, 1, 1), nil=[0, 0], four=[4, 4], space=[2, 3], axes=[3],
    rows=[[k + j for k in range(4)] for j in range(3)], merged=[0, 108, 16], split=[0, 4, 3, 9, 4, 4],
    kernels=[0, 4, 1, 9, 4, 4], channels=[0, 12, 4, 4]), [4, 3, 3, 3])
case("split and merged again", gemm_net("""
    r = Reshape(a, apart)
    s = Relu(r)
    b = Reshape(s, together)
""", c=12, d=12, apart=[0, 3, 4], together=[0, -1]), [3, 4])
case("a part of an axis that is split elsewhere", net("""(float[N,3] x) => (float[N,2] y, float[N,2] z) {
    a = Gemm(x, w0)
    y = MatMul(a, w1)
    p = Pad(a, pads)
    r = Reshape(p, apart)
    s = Relu(r)
    t = Reshape(s, together)
    z = MatMul(t, w2)
}""", w0=(3, 11), w1=(11, 2), w2=(12, 2), pads=[0, 0, 0, 1], apart=[0, 3, 4], together=[0, 12]), [3, 4])
case("a 0 copies the width of another axis", net("""(float[N,5,6] x) => (float[N,3,2] y) {
    a = MatMul(x, w0)
    b = MatMul(w1, a)
    r = Reshape(b, apart)
    s = Relu(r)
    t = Reshape(s, together)
    l = MatMul(w2, t)
    y = MatMul(l, w3)
}""", w0=(6, 4), w1=(4, 5), w2=(3, 4), w3=(4, 2), apart=[0, 1, 0, 4], together=[0, 4, 4]), [4, 4])
case("regrouped across uneven blocks stays", gemm_net("""
    r = Reshape(a, apart)
    s = Relu(r)
    t = Reshape(s, other)
    u = Relu(t)
    b = Reshape(u, together)
""", c=24, d=24, apart=[0, 4, 6], other=[0, 6, 4], together=[0, 24]), [], "all it is made of stays")
case("channel shuffle", conv_net("""
    r = Reshape(a, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    b = Reshape(t, together)
""", apart=[0, 2, 4, 8, 8], together=[0, -1, 8, 8]), [8])
case("a branch reads inside of a channel shuffle", net("""(float[N,3,8,8] x) => (float[N,2,8,8] y, float[N,4,2,8,8] z) {
    m = ReduceMax<keepdims=0>(x)
    c = Greater(m, zero)
    a = Conv(x, w0)
    r = Reshape(a, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    b = Reshape(t, together)
    y = Conv(b, w1)
    z = If (c) <then_branch = yes () => (float[N,4,2,8,8] t1) { t1 = Relu(t) },
                else_branch = no () => (float[N,4,2,8,8] e1) { e1 = Neg(t) }>
}""", zero=0.0, w0=(8, 3, 1, 1), w1=(2, 8, 1, 1), apart=[0, 2, 4, 8, 8], together=[0, -1, 8, 8]), [],
     "all it is made of stays")
case("movements that cancel out", conv_net("""
    r = Reshape(a, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    b = Reshape(t, together)
""", apart=[0, 1, 8, 8, 8], together=[0, -1, 8, 8]), [8])
case("channel shuffle between grouped convs", conv_net("""
    g = Conv<group=2>(a, w1)
    r = Reshape(g, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    s = Reshape(t, together)
    b = Conv<group=2>(s, w2)
""", w1=(8, 4, 1, 1), w2=(8, 4, 1, 1), apart=[0, 2, 4, 8, 8], together=[0, -1, 8, 8]), [4, 4, 4])
case("channel shuffle, BatchNormalization and padding before a grouped Conv", conv_net("""
    g = Conv<group=2>(a, w1, b1)
    n = BatchNormalization(g, scale, shift, mean, var)
    e = Relu(n)
    r = Reshape(e, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    f = Reshape(t, together)
    d = Conv<group=8,pads=[1,1,1,1]>(f, w2)
    b = Conv<group=2,pads=[1,1,1,1]>(d, w3, b3)
""", w1=(8, 4, 1, 1), b1=(8,), scale=(8,), shift=(8,), mean=(8,), var=(8,), w2=(8, 1, 3, 3), w3=(8, 4, 3, 3), b3=(8,),
    apart=[0, 2, 4, 8, 8], together=[0, -1, 8, 8]), [4, 4, 4])
case("what does not vanish before a grouped Conv is cut in equal places", conv_net("""
    g = Conv<group=2>(a, w1)
    e = Sigmoid(g)
    r = Reshape(e, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    s = Reshape(t, together)
    b = Conv<group=2>(s, w2)
""", w1=(8, 4, 1, 1), w2=(8, 4, 1, 1), apart=[0, 2, 4, 8, 8], together=[0, -1, 8, 8]), [4, 2, 4])
case("weights of groups that are computed are cut in equal places", conv_net("""
    g = Conv<group=2>(a, w1)
    r = Reshape(g, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    s = Reshape(t, together)
    w = Mul(w2, scale)
    b = Conv<group=2>(s, w)
""", w1=(8, 4, 1, 1), w2=(8, 4, 1, 1), scale=(8, 1, 1, 1), apart=[0, 2, 4, 8, 8], together=[0, -1, 8, 8]), [4, 2, 4])
case("channel shuffle between grouped ConvTransposes", conv_net("""
    g = ConvTranspose<group=2>(a, w1, b1)
    r = Reshape(g, apart)
    t = Transpose<perm=[0,2,1,3,4]>(r)
    s = Reshape(t, together)
    b = ConvTranspose<group=4>(s, w2)
""", w1=(8, 8, 1, 1), b1=(16,), w2=(16, 2, 1, 1), apart=[0, 2, 8, 8, 8], together=[0, -1, 8, 8]), [4, 4, 2])
case("a grouped Conv over a concatenation of unlike parts", conv_net("""
    g = Conv<group=2>(a, w1)
    j = Concat<axis=1>(g, a)
    b = Conv<group=2>(j, w2)
""", w1=(4, 4, 1, 1), w2=(8, 6, 1, 1)), [4, 4])
case("expand to sizes that follow the batch", net("""(float[N,4,6] x) => (float[N,4,2] y) {
    a = MatMul(x, w0)
    u = Unsqueeze(a, two)
    s = Shape(x)
    n = Gather(s, zero)
    t = Concat<axis=0>(n, rest)
    e = Expand(u, t)
    r = Reshape(e, merged)
    y = MatMul(r, w1)
}""", w0=(6, 8), two=[2], zero=[0], rest=[4, 3, 8], merged=[0, 4, 24], w1=(24, 2)), [8])
case("expand to sizes put together of constants", net("""(float[N,4,6] x) => (float[N,4,2] y) {
    a = MatMul(x, w0)
    u = Unsqueeze(a, two)
    o = ConstantOfShape<value=int64[1] {1}>(rank)
    m = Mul(o, minus)
    k = Equal(wanted, m)
    t = Where(k, o, wanted)
    e = Expand(u, t)
    r = Reshape(e, merged)
    y = MatMul(r, w1)
}""", w0=(6, 8), two=[2], rank=[4], minus=-1, wanted=[-1, -1, 3, -1], merged=[0, 4, 24], w1=(24, 2)), [8])
case("pads put together of constants", conv_net("""
    z = ConstantOfShape<value=int64[1] {0}>(four)
    j = Concat<axis=0>(given, z)
    r = Reshape(j, pairs)
    t = Transpose<perm=[1,0]>(r)
    p = Reshape(t, flat)
    q = Cast<to=7>(p)
    b = Pad(a, q)
""", four=[4], given=[0, 0, 0, 1], pairs=[2, 4], flat=[-1]), [8])
case("features on an axis that windows leave alone", net("""(float[N,12,6] x) => (float[N,3] y) {
    a = MatMul(x, w0)
    u = Unsqueeze(a, one)
    p = AveragePool<kernel_shape=[2,1], strides=[2,1]>(u)
    q = MaxPool<kernel_shape=[3,1], pads=[1,0,1,0]>(p)
    s = Squeeze(q, one)
    b = Relu(s)
    m = ReduceMean<axes=[1], keepdims=0>(b)
    y = Gemm(m, w1)
}""", opset=13, w0=(6, 8), one=[1], w1=(8, 3)), [8])
case("tables side by side, summed and normalised", net("""(int64[N,5] i) => (float[N,5,3] y) {
    a = Gather(t0, i)
    b = Gather(t1, i)
    c = Concat<axis=-1>(a, b)
    d = MatMul(c, w0)
    e = Add(c, d)
    n = LayerNormalization(e, scale, shift)
    y = MatMul(n, w1)
}""", t0=(7, 4), t1=(7, 4), w0=(8, 8), scale=(8,), shift=(8,), w1=(8, 3)), [8])
for what, of, places in (("of given sizes", [3, 5, 2], (0, 1, -1)), ("of one size", np.array(4), (0, 1, 2))):
    case(f"parts out of a sequence, {what}", net("""(float[N,6] x) => (float[N,3] y) {
        a = MatMul(x, w0)
        parts = SplitToSequence<axis=-1>(a, sizes)
        p = SequenceAt(parts, first)
        q = SequenceAt(parts, second)
        r = SequenceAt(parts, third)
        s = Relu(q)
        b = Concat<axis=1>(r, p, s)
        y = MatMul(b, w1)
    }""", w0=(6, 10), w1=(10, 3), sizes=of, first=places[0], second=places[1], third=places[2]), [10])
case("center crop and pad, channels as they are and steps", conv_net("""
    c = CenterCropPad<axes=[2,1]>(a, sizes)
    d = Conv(c, w1)
    b = CenterCropPad<axes=[-1]>(d, wide)
""", opset=18, sizes=[5, 8], w1=(8, 8, 1, 1), wide=[11]), [8, 8])
case("center crop of channels stays", conv_net("b = CenterCropPad<axes=[1]>(a, six)", opset=18, d=6, six=[6]), [],
     "CenterCropPad keeps")
case("center crop to the size of another tensor", net("""(float[N,3,H,W] x, float[N,3,P,Q] z) => (float[N,2,P,Q] y) {
    a = Conv(x, w0)
    size = Shape<start=2>(z)
    c = CenterCropPad<axes=[2,3]>(a, size)
    y = Conv(c, w1)
}""", opset=18, w0=(8, 3, 1, 1), w1=(2, 8, 1, 1)), [8])
case("unpooled where indices say", conv_net("""
    p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
    b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i)
"""), [], "indices, which count channels")
for opset in (11, 16):
    case(f"tensors that a sequence holds, opset {opset}", net("""(float[N,6] x) => (float[N,2,3] y) {
        a = MatMul(x, w0)
        b = MatMul(x, w1)
        c = Relu(a)
        none = SequenceEmpty()
        one = SequenceInsert(none, a)
        two = SequenceInsert(one, b)
        three = SequenceInsert(two, c, first)
        left = SequenceErase(three, second)
        p = SequenceAt(left, last)
        q = SequenceAt(left, first)
        pair = SequenceConstruct(p, q)
        s = ConcatFromSequence<axis=1, new_axis=1>(pair)
        count = SequenceLength(pair)
        f = Cast<to=1>(count)
        t = Mul(s, f)
        y = MatMul(t, w2)
    }""", opset=opset, w0=(6, 8), w1=(6, 8), w2=(8, 3), first=0, second=1, last=-1), [8])
case("tensors side by side out of a sequence, and optional ones", net("""(float[N,6] x) => (float[N,3] y) {
    a = MatMul(x, w0)
    b = MatMul(x, w1)
    there = Optional(a)
    known = OptionalHasElement(there)
    c = OptionalGetElement(there)
    pair = SequenceConstruct(b, c)
    same = Identity(pair)
    s = ConcatFromSequence<axis=-1>(same)
    m = Where(known, s, nil)
    y = MatMul(m, w2)
}""", opset=15, w0=(6, 8), w1=(6, 4), w2=(12, 3), nil=[0.0]), [8, 4])
case("a tensor out of a sequence at a computed place", net("""(float[N,6] x, int64 k) => (float[N,3] y) {
    a = MatMul(x, w0)
    b = Relu(a)
    pair = SequenceConstruct(a, b)
    p = SequenceAt(pair, k)
    y = MatMul(p, w1)
}""", w0=(6, 8), w1=(8, 3)), [], "SequenceConstruct")
case("parts out of a sequence stay where one is computed", net("""(float[N,6] x, int64 k) => (float[N,3] y) {
    a = MatMul(x, w0)
    parts = SplitToSequence<axis=1>(a, sizes)
    p = SequenceAt(parts, first)
    q = SequenceAt(parts, k)
    b = Add(p, q)
    y = MatMul(b, w1)
}""", w0=(6, 8), w1=(4, 3), sizes=4, first=0), [], "SplitToSequence")
case("a constant out of a sequence, of whose parts inference has the wrong rank", gemm_net("""
    found = NonZero(table)
    places = Transpose(found)
    parts = SplitToSequence<axis=1, keepdims=0>(places)
    q = SequenceAt(parts, nil)
    s = Shape(q)
    z = ConstantOfShape(s)
    f = Cast<to=1>(q)
    t = Add(f, z)
    k = CumSum(t, nil)
    b = Add(a, k)
""", table=(8,), nil=0), [8])
case("pads computed from constants", conv_net("""
    left = Mod(height, window)
    missing = Sub(window, left)
    once = Mod(missing, window)
    dims = Shape(given)
    none = ConstantOfShape<value=int64[1] {0}>(dims)
    p = Concat<axis=0>(none, nil, nil, once, once)
    b = Pad(a, p)
""", height=[8], window=[3], given=[7, 7, 7, 7], nil=[0]), [8])
case("pads that follow height and width", net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    s = Shape(a)
    h = Gather(s, two)
    w = Gather(s, three)
    hm = Mod(h, window)
    wm = Mod(w, window)
    hp = Sub(window, hm)
    wp = Sub(window, wm)
    last = Concat<axis=0>(nil, wp, nil, hp)
    others = ConstantOfShape<value=int64[1] {0}>(four)
    all = Concat<axis=0>(last, others)
    pairs = Reshape(all, columns)
    turned = Slice(pairs, first, least, nil, first)
    put = Transpose<perm=[1,0]>(turned)
    flat = Reshape(put, first)
    p = Cast<to=7>(flat)
    b = Pad(a, p)
    y = Conv(b, w1)
}""", w0=(8, 3, 3, 3), two=[2], three=[3], window=[7], nil=[0], four=[4], columns=[-1, 2], first=[-1],
    least=[INT_MIN], w1=(2, 8, 1, 1)), [8])
case("a large weight that nothing reads", net("""(float[N,6] x) => (float[N,2] y) {
    a = Gemm(x, w0)
    b = Relu(a)
    y = Gemm(b, w1)
}""", w0=(6, 8), w1=(8, 2), spare=(512, 512)), [8])
case("channels last", net("""(float[N,8,8,3] x) => (float[N,8,8,2] y) {
    n = Transpose<perm=[0,3,1,2]>(x)
    a = Conv<pads=[1,1,1,1]>(n, w0)
    l = Transpose<perm=[0,2,3,1]>(a)
    s = Add(l, bias)
    m = MatMul(s, w1)
    r = Relu(m)
    y = MatMul(r, w2)
}""", w0=(8, 3, 3, 3), bias=(8,), w1=(8, 6), w2=(6, 2)), [8, 6])
case("transpose without perm", net("""(float[4,6] x) => (float[4,3] y) {
    a = Gemm(x, w0)
    t = Transpose(a)
    u = Transpose(t)
    y = Gemm(u, w1)
}""", w0=(6, 8), w1=(8, 3)), [8])
case("squeeze and unsqueeze by input", conv_net("""
    g = GlobalAveragePool(a)
    s = Squeeze(g, axes)
    r = Relu(s)
    b = Unsqueeze(r, axes)
""", opset=13, axes=[2, -1]), [8])
for version in (11, 13):
    case(f"squeeze of all single axes, opset {version}", net("""(float[N,3,8,8] x) => (float[N,3] y) {
        a = Conv(x, w0)
        g = GlobalAveragePool(a)
        s = Squeeze(g)
        y = MatMul(s, w1)
    }""", opset=version, w0=(2, 3, 1, 1), w1=(2, 3)), [2])
case("squeeze of all single axes, images given", net("""(float[2,3,8,8] x) => (float[2,3] y) {
    a = Conv(x, w0)
    g = GlobalAveragePool(a)
    s = Squeeze(g)
    y = MatMul(s, w1)
}""", w0=(2, 3, 1, 1), w1=(2, 3)), [2])
case("reshape of nothing", net("""(float[N,3,8,8] x) => (float[N,2,8,8] y, float[N,0,64] z) {
    a = Conv(x, w0)
    e = Slice(a, i, i, one)
    z = Reshape(e, target)
    y = Conv(a, w1)
}""", w0=(8, 3, 1, 1), w1=(2, 8, 1, 1), i=[1], one=[1], target=[0, 0, 64]), [8])
case("squeeze and unsqueeze by attribute", conv_net("""
    g = GlobalAveragePool(a)
    s = Squeeze<axes=[-1,2]>(g)
    r = Relu(s)
    b = Unsqueeze<axes=[2,3]>(r)
""", opset=11), [8])
case("expand", conv_net("""
    g = GlobalAveragePool(a)
    e = Expand(g, target)
    b = Add(a, e)
""", target=[1, 8, 8, 8]), [8])
case("expand of a vector", conv_net("""
    e = Expand(v, target)
    b = Mul(a, e)
""", v=(8, 1, 1), target=[8, 1, 8]), [8])
case("expand of one channel to all", conv_net("""
    e = Expand(v, target)
    b = Mul(a, e)
""", v=(1, 1, 1), target=[8, 1, 8]), [8])
case("constant of shape", conv_net("""
    z = ConstantOfShape<value = float[1] {0.5}>(target)
    c = Concat<axis=1>(a, z)
    o = ConstantOfShape<value = float[1] {2.0}>(wide)
    b = Mul(c, o)
""", d=10, batch="2", target=[2, 2, 8, 8], wide=[10, 1, 1]), [8])

# --- selection -------------------------------------------------------------------------------------------------------

case("gather of channels", conv_net("b = Gather<axis=1>(a, i)", d=5, i=[0, 7, -2, 3, 0]), [8])
case("what a gather takes alone stays, the others go", conv_net("""
    g = Gather<axis=1>(a, i)
    u = Unsqueeze(g, axes)
    b = Add(a, u)
""", i=np.array(-1), axes=[1]), [7], "by its number")
case("gather of one place", net("""(float[N,5,6] x) => (float[N,3] y) {
    a = MatMul(x, w0)
    g = Gather<axis=1>(a, i)
    y = Gemm(g, w1)
}""", w0=(6, 8), w1=(8, 3), i=np.array(-1)), [8])
case("embedding", net("""(int64[N,5] x) => (float[N,5,3] y) {
    e = Gather(table, x)
    r = Relu(e)
    y = MatMul(r, w1)
}""", table=(7, 8), w1=(8, 3)), [8])
case("qkv by gather", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    qkv = MatMul(x, w0)
    r = Reshape(qkv, apart)
    t = Transpose<perm=[2,0,3,1,4]>(r)
    q = Gather<axis=0>(t, i0)
    k = Gather<axis=0>(t, i1)
    v = Gather<axis=0>(t, i2)
    kt = Transpose<perm=[0,1,3,2]>(k)
    s = MatMul(q, kt)
    p = Softmax(s)
    o = MatMul(p, v)
    ot = Transpose<perm=[0,2,1,3]>(o)
    m = Reshape(ot, together)
    y = MatMul(m, w1)
}""", w0=(12, 36), w1=(12, 12), apart=[0, 0, 3, 3, 4], together=[0, 0, 12], i0=np.array(0), i1=np.array(1),
    i2=np.array(2)), [3, 4])

case("sampling by grids", conv_net("""
    c = GridSample(a, grid)
    b = com.microsoft.GridSample(c, grid)
""", imports=MS, batch="2", grid=(2, 8, 8, 2)), [8])
case("regions", net("""(float[1,3,8,8] x) => (float[2,2,3,3] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    r = RoiAlign<output_height=4, output_width=4>(a, rois, index)
    p = MaxRoiPool<pooled_shape=[3,3]>(r, boxes)
    y = Conv(p, w1)
}""", w0=(8, 3, 3, 3), rois=[[0, 0, 4, 4], [2, 2, 7, 7.0]], index=[0, 0], boxes=[[0, 0, 0, 3, 3], [1, 0, 0, 2, 2.0]],
    w1=(2, 8, 1, 1)), [8])
case("deformed taps", conv_net("""
    o = Conv<pads=[1,1,1,1]>(x, w1)
    b = DeformConv<pads=[1,1,1,1]>(a, w2, o, b2)
""", opset=19, w1=(18, 3, 3, 3), w2=(8, 8, 3, 3), b2=(8,)), [8, 8])
case("largest places, elements, triangles", conv_net("""
    v, i = TopK<axis=3>(a, k)
    g = GatherElements<axis=3>(a, i)
    s = ScatterElements<axis=3>(v, j, g)
    t = CastLike(s, one)
    tri = com.microsoft.Trilu(t)
    b = Trilu(tri)
""", opset=18, batch="2", k=[5], imports=MS, j=np.tile(np.arange(5), (2, 8, 8, 1)), one=1.0), [8])

for op, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
    case(f"{op}: what goes in and hidden units", net(f"""(float[N,7,6] x) => (float[N,7,3] y) {{
        a = MatMul(x, w0)
        r = Relu(a)
        t = Transpose<perm=[1,0,2]>(r)
        h = {op}<hidden_size=5, direction="bidirectional">(t, wi, wh, wb)
        u = Transpose<perm=[2,0,1,3]>(h)
        m = Reshape(u, together)
        y = MatMul(m, w1)
    }}""", w0=(6, 8), wi=(2, gates * 5, 8), wh=(2, gates * 5, 5), wb=(2, gates * 10), together=[0, 0, 10],
        w1=(10, 3)), [8, 5])
    case(f"{op}: states and a stack", net(f"""(float[2,7,6] x) => (float[2,7,3] y, float[1,2,3] z) {{
        t = Transpose<perm=[1,0,2]>(x)
        h, last = {op}<hidden_size=5>(t, wi, wh, wb, , h0)
        k = Squeeze(h, axes)
        g, end = {op}<hidden_size=4>(k, wi2, wh2)
        u = Transpose<perm=[2,0,1,3]>(g)
        m = Reshape(u, together)
        y = MatMul(m, w1)
        z = MatMul(last, w2)
    }}""", wi=(1, gates * 5, 6), wh=(1, gates * 5, 5), wb=(1, gates * 10), h0=(1, 2, 5), axes=[1],
        wi2=(1, gates * 4, 5), wh2=(1, gates * 4, 4), together=[0, 0, 4], w1=(4, 3), w2=(5, 3)), [5, 4])

for op, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1)):
    case(f"{op}: normed states that meet", net(f"""(float[N,7,6] x) => (float[N,7,3] y, float[N,1,3] z) {{
        t = Transpose<perm=[1,0,2]>(x)
        h, last = {op}<hidden_size=5>(t, wi, wh, wb)
        k = Squeeze(h, axes)
        u = Transpose<perm=[1,0,2]>(k)
        n = LayerNormalization(u, scale, shift)
        v = Transpose<perm=[1,2,0]>(k)
        q = MatMul(n, v)
        p = Softmax(q)
        a = MatMul(p, n)
        y = MatMul(a, w1)
        f = Transpose<perm=[1,0,2]>(last)
        c = LpNormalization(f)
        z = MatMul(c, w2)
    }}""", wi=(1, gates * 5, 6), wh=(1, gates * 5, 5), wb=(1, gates * 10), axes=[1], scale=(5,), shift=(5,), w1=(5, 3),
        w2=(5, 3)), [5])
case("steps that are units stay", net("""(float[N,7,6] x) => (float[N,1,3] z) {
    a = MatMul(x, w0)
    r = Relu(a)
    t = Transpose<perm=[2,0,1]>(r)
    h, last = LSTM<hidden_size=5>(t, wi, wh)
    f = Transpose<perm=[1,0,2]>(last)
    z = MatMul(f, w2)
}""", w0=(6, 4), wi=(1, 20, 7), wh=(1, 20, 5), w2=(5, 3)), [5], "LSTM takes it in steps, one after the other")
case("states that start where the data say are not zero", net("""(float[N,7,6] x) => (float[N,1,3] z) {
    t = Transpose<perm=[1,0,2]>(x)
    m = ReduceMean<axes=[0], keepdims=1>(t)
    h0 = MatMul(m, w0)
    _r = Sigmoid(h0)
    h, last = GRU<hidden_size=5>(t, wi, wh, wb, , _r)
    f = Transpose<perm=[1,0,2]>(last)
    c = LpNormalization(f)
    z = MatMul(c, w2)
}""", w0=(6, 5), wi=(1, 15, 6), wh=(1, 15, 5), wb=(1, 30), w2=(5, 3)), [],
    "it is not zero there")
case("states of other functions are not zero", net("""(float[N,7,6] x) => (float[N,1,3] z) {
    t = Transpose<perm=[1,0,2]>(x)
    h, last = RNN<hidden_size=5, activations=["Sigmoid"]>(t, wi, wh, wb)
    f = Transpose<perm=[1,0,2]>(last)
    c = LpNormalization(f)
    z = MatMul(c, w2)
}""", wi=(1, 5, 6), wh=(1, 5, 5), wb=(1, 10), w2=(5, 3)), [], "it is not zero there")
for function, sizes in (("Relu", [5]), ("Tanh", [5]), ("Sigmoid", [])):
    case(f"states through {function}", net(f"""(float[N,7,6] x) => (float[N,1,3] z) {{
        t = Transpose<perm=[1,0,2]>(x)
        h, last = RNN<hidden_size=5, activations=["{function}"]>(t, wi, wh, wb)
        f = Transpose<perm=[1,0,2]>(last)
        c = LpNormalization(f)
        z = MatMul(c, w2)
    }}""", wi=(1, 5, 6), wh=(1, 5, 5), wb=(1, 10), w2=(5, 3)), sizes)
case("a list of positions between two Transposes", conv_net("""
    t = Transpose<perm=[1,0,2,3]>(a)
    g = GatherND(t, order)
    b = Transpose<perm=[1,0,2,3]>(g)
""", order=[[3], [0], [7], [1], [-2], [2], [5], [4]]), [8])
case("padding of chosen axes", conv_net("b = Pad(a, pads, , axes)", opset=18, pads=[1, 0, 2, 1], axes=[2, -1]), [8])
case("padding of channels among chosen axes", conv_net("b = Pad(a, pads, , axes)", opset=18, d=9, pads=[1, 0, 0, 1],
    axes=[2, 1]), [], "keeps this axis as a whole")
case("a norm behind deformed taps", conv_net("""
    o = Conv<pads=[1,1,1,1]>(a, wo)
    d = DeformConv<pads=[1,1,1,1]>(a, w2, o, b2)
    t = Transpose<perm=[0,2,3,1]>(d)
    l = LayerNormalization(t, scale, shift)
    b = Transpose<perm=[0,3,1,2]>(l)
""", opset=19, wo=(18, 8, 3, 3), w2=(8, 8, 3, 3), b2=(8,), scale=(8,), shift=(8,)), [8, 8])

case("DynamicQuantizeLSTM: what goes in", net("""(float[N,7,6] x) => (float[N,7,3] y) {
    a = MatMul(x, w0)
    r = Relu(a)
    t = Transpose<perm=[1,0,2]>(r)
    h = com.microsoft.DynamicQuantizeLSTM<hidden_size=5, direction="bidirectional">
        (t, wi, wh, wb, , , , , si, zi, sh, zh)
    u = Transpose<perm=[2,0,1,3]>(h)
    m = Reshape(u, together)
    y = MatMul(m, w1)
}""", imports=MS, w0=(6, 8), wi=codes((2, 8, 20)), wh=codes((2, 5, 20)), wb=(2, 40), together=[0, 0, 10], w1=(10, 3),
    si=[0.01, 0.02], zi=np.array([0, 3], np.int8), sh=[0.01, 0.02], zh=np.array([1, 0], np.int8)), [8],
    "DynamicQuantizeLSTM takes the range of codes over its hidden units", tolerance=1e-2)

# --- blocks, repeats -------------------------------------------------------------------------------------------------

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
# --- fused by runtimes, attention as one op --------------------------------------------------------------------------

case("FusedConv", conv_net("""
    c = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(a, w1, b1)
    d = com.microsoft.FusedConv<activation="Clip", activation_params=[0.0,6.0]>(c, w2)
    e = com.microsoft.FusedConv<activation="LeakyRelu", activation_params=[0.1]>(d, w3, b3, a)
    b = com.microsoft.FusedConv(e, w4, b4, c)
""", imports=MS, w1=(8, 8, 3, 3), b1=(8,), w2=(6, 8, 1, 1), w3=(8, 6, 1, 1), b3=(8,), w4=(8, 8, 1, 1), b4=(8,)),
    [8, 8, 6])
case("FusedConv in half precision", net("""(float16[N,3,6,6] x) => (float16[N,2,6,6] y) {
    a = com.microsoft.FusedConv<activation="Clip", activation_params=[0.0,6.0]>(x, w0, b0)
    y = Conv(a, w1)
}""", imports=MS, **_typed(np.float16, w0=(8, 3, 1, 1), b0=(8,), w1=(2, 8, 1, 1))), [8], tolerance=5e-3)
case("FusedConv with an activation of its own", conv_net(
    'b = com.microsoft.FusedConv<activation="HardSigmoid", activation_params=[0.2,0.5], group=8>(a, w1, b1)',
    imports=MS, w1=(8, 1, 1, 1), b1=(8,)), [8])
case("FusedGemm, FusedMatMul and gelus", gemm_net("""
    c = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.2, transB=1>(a, w1, b1)
    d = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(c, w2)
    e = com.microsoft.BiasGelu(d, b2)
    f = com.microsoft.FastGelu(e, b2)
    g = com.microsoft.QuickGelu<alpha=1.5>(f)
    b = com.microsoft.Gelu(g)
""", imports=MS, w1=(7, 8), b1=(7,), w2=(8, 7), b2=(8,)), [8, 7, 8])
case("FusedMatMul of queries and keys", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    s = com.microsoft.FusedMatMul<transB=1, alpha=0.25>(q, k)
    p = Softmax(s)
    v = MatMul(x, wv)
    t = com.microsoft.TransposeMatMul(p, v)
    y = com.microsoft.FusedMatMul<transB=1>(t, wo)
}""", imports=MS, wq=(12, 6), wk=(12, 6), wv=(12, 8), wo=(12, 8)), [6, 8])
for name, given, queries, keys in (
    ("A", "transBatchA=1", "[1,0,2]", "[0,2,1]"),
    ("A, turned itself", "transBatchA=1, transA=1", "[2,0,1]", "[0,2,1]"),
    ("B", "transBatchB=1", "[0,1,2]", "[2,0,1]"),
    ("both, B turned itself", "transBatchA=1, transBatchB=1, transB=1", "[1,0,2]", "[1,0,2]"),
):
    case(f"FusedMatMul with turned batches of {name}", net(f"""(float[N,5,12] x) => (float[N,5,3] y) {{
        q = MatMul(x, wq)
        qt = Transpose<perm={queries}>(q)
        k = MatMul(x, wk)
        kt = Transpose<perm={keys}>(k)
        s = com.microsoft.FusedMatMul<{given}>(qt, kt)
        v = MatMul(x, wv)
        p = MatMul(s, v)
        y = MatMul(p, wo)
    }}""", imports=MS, wq=(12, 6), wk=(12, 6), wv=(12, 4), wo=(4, 3)), [6, 4])
case("SkipLayerNormalization", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    h = MatMul(x, w0)
    g = com.microsoft.BiasGelu(h, b0)
    m = MatMul(g, w1)
    n, u, v, sum = com.microsoft.SkipLayerNormalization(m, x, s, t, b1)
    h2 = MatMul(n, w2)
    r = Relu(h2)
    m2 = MatMul(r, w3)
    n2 = com.microsoft.SkipSimplifiedLayerNormalization(m2, sum, s)
    y = SimplifiedLayerNormalization(n2, s)
}""", imports=MS, w0=(12, 8), b0=(8,), w1=(8, 12), s=(12,), t=(12,), b1=(12,), w2=(12, 6), w3=(6, 12)), [8, 6])
case("SkipLayerNormalization of a sum with a bias", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(x, w0)
    m = MatMul(x, w1)
    n = com.microsoft.SkipLayerNormalization(m, t, s, b, c)
    y = MatMul(n, w2)
}""", imports=MS, w0=(12, 8), w1=(12, 8), s=(8,), b=(8,), c=(8,), w2=(8, 3)), [8])
case("SkipLayerNormalization of a sum with positions", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(x, w0)
    n = com.microsoft.SkipLayerNormalization(t, places, s, b)
    h = MatMul(n, w1)
    m = com.microsoft.SkipLayerNormalization(h, rows, s2, b2)
    y = MatMul(m, w2)
}""", imports=MS, w0=(12, 8), places=(1, 5, 8), s=(8,), b=(8,), w1=(8, 6), rows=(5, 6), s2=(6,), b2=(6,), w2=(6, 3)),
    [8, 6])
case("SkipLayerNormalization over a trunk", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    t = MatMul(x, w0)
    h = MatMul(t, w1)
    r = Relu(h)
    m = MatMul(r, w2)
    n, u, v, sum = com.microsoft.SkipLayerNormalization<epsilon=0.1>(m, t, s, b)
    h2 = MatMul(n, w3)
    r2 = Relu(h2)
    m2 = MatMul(r2, w4)
    n2 = com.microsoft.SkipLayerNormalization(m2, sum, s2)
    y = MatMul(n2, w5)
}""", imports=MS, w0=(12, 8), w1=(8, 6), w2=(6, 8), s=(8,), b=(8,), w3=(8, 4), w4=(4, 8), s2=(8,), w5=(8, 3)),
    [8, 6, 4])
for name, given, more in (
    ("MatMulNBits", "g, q, s", {"s": (8, 4)}),
    ("MatMulNBits with flat scales and a bias", "g, q, s, , , c", {"s": (32,), "c": (8,)}),
):
    case(name, net(f"""(float[N,5,12] x) => (float[N,5,3] y) {{
        a = MatMul(x, w0)
        g = Relu(a)
        b = com.microsoft.MatMulNBits<K=64, N=8, bits=4, block_size=16>({given})
        y = MatMul(b, w1)
    }}""", imports=MS, w0=(12, 64), q=codes((8, 4, 8), np.uint8), w1=(8, 3), **more), [4, 8])
for name, bits, blocks, zeros, sizes in (
    ("two a byte", 4, 4, codes((8, 2), np.uint8), [2, 8]),
    ("two a byte, flat", 4, 4, codes((16,), np.uint8), [2, 8]),
    ("two a byte, the last alone", 4, 3, codes((8, 2), np.uint8), [2, 8]),
    ("a byte each", 8, 4, codes((8, 4), np.uint8), [4, 8]),
    ("floats", 4, 4, codes((8, 4), np.uint8).astype(np.float32), [4, 8]),
):
    case(f"MatMulNBits with zero points, {name}", net(f"""(float[N,5,12] x) => (float[N,5,3] y) {{
        a = MatMul(x, w0)
        b = com.microsoft.MatMulNBits<K={16 * blocks}, N=8, bits={bits}, block_size=16>(a, q, s, z)
        y = MatMul(b, w1)
    }}""", imports=MS, w0=(12, 16 * blocks), q=codes((8, blocks, 2 * bits), np.uint8), s=(8, blocks), z=zeros,
        w1=(8, 3)), sizes)
for name, many, few, sizes in (("as many", 2, 2, [2]), ("fewer", 4, 2, [2, 2])):
    case(f"com.microsoft.GroupQueryAttention, {name} heads of keys", net(f"""
    (float[2,5,12] x) => (float[2,5,3] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        o = com.microsoft.GroupQueryAttention<num_heads={many}, kv_num_heads={few}>(q, k, v, , , lengths, total)
        y = MatMul(o, wo)
    }}""", imports=MS, wq=(12, 8 * many), wk=(12, 8 * few), wv=(12, 8 * few), wo=(8 * many, 3),
        lengths=np.array([4, 4], np.int32), total=np.array(5, np.int32)), sizes)
case("com.microsoft.GroupQueryAttention of one tensor, with a cache", net("""
(float[2,1,12] x, float[2,2,4,8] pk, float[2,2,4,8] pv) => (float[2,1,3] y, float[2,2,5,8] k, float[2,2,5,8] v) {
    q = MatMul(x, wq)
    o, k, v = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, , , pk, pv, lengths, total)
    y = MatMul(o, wo)
}""", imports=MS, wq=(12, 64), wo=(32, 3), lengths=np.array([4, 4], np.int32), total=np.array(5, np.int32)), [2],
    "all it is made of stays")
case("com.microsoft.Attention", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    a = com.microsoft.Attention<num_heads=3>(x, w0, b0)
    b = com.microsoft.Attention<num_heads=2, qkv_hidden_sizes=[8,8,6]>(x, w1, b1, , , m)
    c = Concat<axis=-1>(a, b)
    y = MatMul(c, w2)
}""", imports=MS, w0=(12, 36), b0=(36,), w1=(12, 22), b1=(22,), m=(1, 2, 5, 5), w2=(18, 12)), [3, 4, 2, 3])
case("com.microsoft.Attention behind an embedding", net("""(int32[N,5] x) => (float[N,5,3] y) {
    e, i = com.microsoft.EmbedLayerNormalization(x, , words, places, , s, t)
    a = com.microsoft.Attention<num_heads=2>(e, w0, b0)
    y = MatMul(a, w1)
}""", imports=MS, words=(7, 8), places=(6, 8), s=(8,), t=(8,), w0=(8, 24), b0=(24,), w1=(8, 3)), [8, 2, 4])
case("EmbedLayerNormalization of three tables, the sum and a mask counted", net("""
(int32[N,5] x, int32[N,5] m, int32[N,5] p) => (float[N,5,3] y) {
    e, i, sum = com.microsoft.EmbedLayerNormalization<epsilon=0.1>(x, m, words, places, parts, s, t, m, p)
    a = com.microsoft.Attention<num_heads=2>(e, w0, b0, i)
    o = MatMul(a, wo)
    n = com.microsoft.SkipLayerNormalization(o, sum, s2, t2, b2)
    y = MatMul(n, w1)
}""", imports=MS, words=(7, 8), places=(6, 8), parts=(7, 8), s=(8,), t=(8,), s2=(8,), t2=(8,), b2=(8,), w0=(8, 24),
    b0=(24,), wo=(8, 8), w1=(8, 3)), [8, 2, 4])
case("com.microsoft.MultiHeadAttention", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    q = MatMul(x, wq)
    r = com.microsoft.RotaryEmbedding(q, p, cos, sin)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    a = com.microsoft.MultiHeadAttention<num_heads=3>(r, k, v, b0)
    y = MatMul(a, wo)
}""", imports=MS, wq=(12, 12), wk=(12, 12), wv=(12, 6), b0=(30,), wo=(6, 12), p=np.zeros(1, np.int64), cos=(9, 2),
    sin=(9, 2)), [3, 2])
_QKV = """(float[N,5,12] x) => (float[N,5,12] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
"""
case("a token for every image, and a table of places resized", net("""(float[N,3,8,8] x) => (float[N,17,3] y) {
    a = Conv<strides=[2,2]>(x, w0)
    f = Reshape(a, flat)
    t = Transpose<perm=[0,2,1]>(f)
    s = Shape(t)
    n = Gather(s, nil)
    u = Unsqueeze(n, first)
    told = Concat<axis=0>(u, least, least)
    ones = ConstantOfShape<value=int64[1] {1}>(three)
    as_it_is = Mul(ones, least)
    kept = Equal(told, as_it_is)
    target = Where(kept, ones, told)
    token = Expand(cls, target)
    c = Concat<axis=1>(token, t)
    sc = Shape(c)
    d = Gather(sc, two)
    ud = Unsqueeze(d, first)
    grid = Concat<axis=0>(one, places, places, ud)
    p = Reshape(table, grid)
    q = Transpose<perm=[0,3,1,2]>(p)
    sq = Shape(q)
    front = Slice(sq, first, places)
    sizes = Concat<axis=0>(front, wide)
    r = Resize<mode="linear">(q, nothing, nothing, sizes)
    v = Transpose<perm=[0,2,3,1]>(r)
    w = Reshape(v, back)
    all = Concat<axis=1>(own, w)
    e = Add(c, all)
    y = MatMul(e, w1)
}""", opset=13, w0=(8, 3, 2, 2), flat=[0, 8, 16], nil=0, first=[0], least=[-1], three=[3], cls=(1, 1, 8), two=2,
    one=[1], places=[2], table=(1, 4, 8), nothing=np.zeros(0, np.float32), wide=[4, 4], back=[1, 16, -1], own=(1, 1, 8),
    w1=(8, 3)), [8])
case("numbers of places, the same for all features", net("""(float[N,5,12] x, int64[N,2] i) => (float[N,2,3] y) {
    a = MatMul(x, w0)
    k = Clip(i, nil, four)
    u = Unsqueeze(k, last)
    t = Tile(u, counts)
    g = GatherElements<axis=1>(a, t)
    y = MatMul(g, w1)
}""", opset=13, w0=(12, 8), nil=0, four=4, last=[2], counts=[1, 1, 8], w1=(8, 3)), [8])
case("positions that are mixed, then looked at", net("""(float[N,5,12] x) => (float[N,3,2] y) {
    p = MatMul(w0, x)
    k = MatMul(p, w1)
    v = MatMul(p, w2)
    r = MatMul(p, w3)
    a = Attention<q_num_heads=3, kv_num_heads=3>(r, k, v)
    b = com.microsoft.MultiHeadAttention<num_heads=3>(a, k, v)
    c = com.microsoft.Attention<num_heads=3>(b, w4, b4)
    d = MatMul(c, w5)
    t = Transpose<perm=[0,2,1]>(d)
    y = MatMul(t, w6)
}""", imports=MS, opset=23, w0=(8, 5), w1=(12, 12), w2=(12, 12), w3=(12, 12), w4=(12, 36), b4=(36,), w5=(12, 3),
    w6=(8, 2)), [3, 3, 4], "divides by a sum over it", tolerance=1e-4)
case("Attention on three axes", net(_QKV + """
    a = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)
    y = MatMul(a, wo)
}""", opset=23, ir=11, wq=(12, 12), wk=(12, 12), wv=(12, 6), wo=(6, 12)), [3, 4, 2])
case("Attention with an addend of every head, the same for all images", net(_QKV + """
    a = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v, m)
    y = MatMul(a, wo)
}""", opset=23, ir=11, wq=(12, 12), wk=(12, 12), wv=(12, 6), wo=(6, 12), m=(3, 5, 5)), [3, 4, 2])
case("positions that are mixed, then turned by their numbers", net("""(float[2,5,12] x) => (float[2,3,12] y) {
    p = MatMul(w0, x)
    q = RotaryEmbedding<num_heads=3>(p, cos, sin, numbers)
    y = MatMul(w1, q)
}""", opset=23, ir=11, w0=(8, 5), cos=(9, 2), sin=(9, 2), numbers=[[*range(8)]] * 2, w1=(3, 8)), [], "by its numbers")
case("positions of heads that are mixed, then turned by numbers", net("""(float[N,3,5,4] x) => (float[N,3,3,4] y) {
    p = MatMul(w0, x)
    q = com.microsoft.RotaryEmbedding(p, first, cos, sin)
    y = MatMul(w1, q)
}""", imports=MS, w0=(8, 5), cos=(9, 2), sin=(9, 2), first=[0], w1=(3, 8)), [], "by its numbers")
case("Attention with shared keys", net(_QKV + """
    a = Attention<q_num_heads=6, kv_num_heads=3>(q, k, v)
    y = MatMul(a, wo)
}""", opset=23, ir=11, wq=(12, 24), wk=(12, 12), wv=(12, 6), wo=(12, 12)), [3, 2, 4, 2])
case("Attention on four axes, with rotary positions and a mask", net(_QKV.replace(" x)", " x, int64[N,5] p)") + """
    q1 = Reshape(q, split)
    k1 = Reshape(k, split)
    v1 = Reshape(v, split)
    q2 = Transpose<perm=[0,2,1,3]>(q1)
    k2 = Transpose<perm=[0,2,1,3]>(k1)
    v2 = Transpose<perm=[0,2,1,3]>(v1)
    q3 = RotaryEmbedding(q2, cos, sin, p)
    a = Attention(q3, k2, v2, m)
    t = Transpose<perm=[0,2,1,3]>(a)
    r = Reshape(t, merge)
    y = MatMul(r, wo)
}""", opset=23, ir=11, wq=(12, 12), wk=(12, 12), wv=(12, 12), wo=(12, 12), split=[0, 0, 3, 4], merge=[0, 0, -1],
    cos=(9, 2), sin=(9, 2), m=(1, 3, 5, 5)), [3, 4])

# --- codes -----------------------------------------------------------------------------------------------------------

case("codes of a channel each", conv_net("""
    q = QuantizeLinear<axis=1>(a, s, z)
    b = DequantizeLinear<axis=1>(q, s, z)
""", s=np.linspace(0.02, 0.05, 8, dtype=np.float32), z=np.full(8, 128, np.uint8)), [8], tolerance=2e-1)
case("codes as onnxruntime writes them", conv_net("""
    q = com.microsoft.QuantizeLinear(a, s, z)
    b = com.microsoft.DequantizeLinear(q, s, z)
""", imports=', "com.microsoft" : 1', s=2.0**-5, z=np.array(120, np.uint8)), [8], tolerance=5e-2)
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
}""", w0=(6, 8), scales=[1, 8, 1, 1], w1=(4, 8, 3, 3), image=(1, 8, 5, 5), b1=(4,), w2=(3, 4, 1, 1)), [8, 4])
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
}""", w0=(6, 8), w1=(8, 5), w2=(5, 3)), [5], "its size is counted on elsewhere")
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
}""", w0=(6, 5), scales=[1, 5, 1, 1], w1=(8, 5, 1, 1), taps=[1, 2, 3], w2=(2, 8, 1, 1)), [8])
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
    lo=0.0, hi=6.0, w2=codes((2, 6, 3, 3))), [8, 6], tolerance=2e-2)
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
    w1=codes((8, 3), np.uint8), s1=0.002, z1=np.array(128, np.uint8), b1=(3,)), [8], tolerance=2e-2)
case("dynamic: DynamicQuantizeMatMul", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = com.microsoft.DynamicQuantizeMatMul(x, w0, s0, z0, b0)
    r = Relu(a)
    y = com.microsoft.DynamicQuantizeMatMul(r, w1, s1, z1)
}""", imports=', "com.microsoft" : 1', w0=codes((6, 8)), s0=[0.002] * 8, z0=np.zeros(8, np.int8), b0=(8,),
    w1=codes((8, 3), np.uint8), s1=[0.002], z1=np.array([128], np.uint8)), [8], tolerance=2e-2)

# --- how exporters write ---------------------------------------------------------------------------------------------

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
case("nodes called like their outputs", _called_like_outputs(conv_net("b = Conv(a, w1)", w1=(8, 8, 1, 1))), [8, 8])
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
}""", **_typed(np.float16, w0=(8, 3, 1, 1), b0=(8,), w1=(2, 8, 1, 1), b1=(2,))), [8], tolerance=5e-3)
case("float64", net("""(double[N,6] x) => (double[N,3] y) {
    a = MatMul(x, w0)
    y = MatMul(a, w1)
}""", **_typed(np.float64, w0=(6, 8), w1=(8, 3))), [8])
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
}""", zero=0.0, w0=(8, 3, 1, 1), b0=(8,), w1=(8, 8, 1, 1), b1=(8,), w2=(2, 8, 1, 1), axes=[1, 2, 3]), [8, 8])
case("a weight is a model output", net("""(float[N,6] x) => (float[N,3] y, float[6,8] w0, float[4] z) {
    a = Gemm(x, w0)
    y = MatMul(a, w1)
    z = ConstantOfShape(four)
}""", w0=(6, 8), w1=(8, 3), four=[4]), [8])
case("branches of If read a tensor", conv_net("""
    m = ReduceMax<keepdims=0>(x)
    c = Greater(m, zero)
    b = If (c) <then_branch = yes () => (float[N,8,8,8] t) { t = Relu(a) },
                else_branch = no () => (float[N,8,8,8] e) { e = Neg(a) }>
""", zero=0.0), [8])


# fmt: on
_NO_ROWS = {
    *("gemm transA", "gemm with the constant on the left", "flatten with axis 2"),
    *("gemm C column", "gemm C full", "gemm with computed bias", "conv with computed weights"),
    *("a branch reads a weight and a bias that are cut", "a weight is a model output", "sizes are a model output"),
    *("resize by sizes", "concat with an expanded constant", "constant of shape", "means over channels and more"),
    *("a table spread over the images", "branches of If read a tensor", "a grid of all axes written"),
    "the first image written at all times",
    *(
        f"{op}: {what}"
        for op in ("GRU", "LSTM", "RNN")
        for what in (
            "what goes in and hidden units",
            "states and a stack",
            "normed states that meet",
        )
    ),
    *("mean and variance over images, space, and some axes", "places written in images"),
    *(f"com.microsoft.GroupQueryAttention, {keys} heads of keys" for keys in ("fewer", "as many")),
    "com.microsoft.GroupQueryAttention of one tensor, with a cache",
    *(
        "sampling by grids",
        "regions",
        "a stored image seen through computed weights",
        "conv with weights computed image by image",
        "conv with weights computed image by image, zero where the data are not",
        "conv with weights computed image by image that do not vanish",
        "weights over the root of their squares",
        "largest places, elements, triangles",
    ),
    *(
        *("steps that are units stay", "states through Relu", "states through Tanh"),
        "DynamicQuantizeLSTM: what goes in",
        "gathered by numbers that spread one axis over several",
        "layers whose states start as slices of one stretched zero, as torch's new exporter writes them",
    ),
    "channels of which none may be zero where it is normalised by itself",
    *("dynamic: ConvInteger", "dynamic: MatMulInteger", "dynamic: DynamicQuantizeMatMul"),
}
"""Nets whose images lie on another axis than the first, are counted in constants, or share codes' range or masks."""


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_case(one: Case) -> None:
    if one.name == BLOCKED and not _runs(one.model):
        pytest.skip("onnxruntime has no layout of its own for this processor")
    traced = trace(one.model)
    assert [len(g) for g in traced.groups] == list(one.sizes), traced.frozen
    reasons = [f.reason for f in traced.frozen]
    for part in one.frozen:
        assert any(part in reason for reason in reasons), reasons
    for seed, share in enumerate((0.5, 0.2)):
        found = check_exact(one.model, share, seed, tolerance=one.tolerance)
        assert found.dropped > 0 or not one.sizes
        assert found.rows is not None or not one.sizes or one.name in _NO_ROWS


def _runs(model: onnx.ModelProto) -> bool:
    try:
        OrtBackend().session(model)
    except ModelError:
        return False
    return True


def _types() -> Iterator[str]:
    for one in CASES:
        yield from (f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in one.model.graph.node)


def test_every_rule_has_a_case() -> None:
    missing = sorted(set(RULES) - set(_types()))
    assert not missing, f"add a case to tests/test_rules.py for {missing}"


def test_names_of_cases_are_unique() -> None:
    names = [c.name for c in CASES]
    assert len(names) == len(set(names))


def test_what_weights_are_mixed_of_is_counted_once() -> None:
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
        l = ReduceL2<axes=[0]>(v)
        w = Div(v, l)
        a = MatMul(x, w)
        y = MatMul(a, w1)
    }""",
        opset=13,
        v=(6, 8),
        w1=(8, 3),
    )
    assert trace(model).cost.params() == 6 * 8 + 8 * 3


@pytest.mark.parametrize(
    "name",
    [
        "layer norms before and behind the blocks of a trunk",
        "layer norms taken apart",
        "group norm of one group as torch writes it, opset 9",
        "group norm of one group as torch writes it, opset 17",
        "lrn, opset 17",
        "root mean square with its scale in codes",
    ],
)
def test_what_was_cut_can_be_cut_again(name: str) -> None:
    model = next(one.model for one in CASES if one.name == name)
    for _ in range(2):
        traced = trace(model)
        keep = {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}
        small = drop_units(traced, keep)
        assert [len(g) for g in trace(small).groups] == [int(k.sum()) for k in keep.values()]
        check_exact(model)
        model = small


@pytest.mark.parametrize("coded", [False, True])
def test_positions_out_of_a_table_are_slices_of_it_also_where_a_shape_chooses_them(coded: bool) -> None:
    model = net(
        f"""(float[N,{5 if coded else "T"},6] x) => (float[N,T,3] y) {{
        e = MatMul(x, w0)
        s = Shape(x)
        t = Gather<axis=0>(s, one)
        u = Unsqueeze(t, zero)
        c = Slice(places, zero, u, one_axis)
        p = {"DequantizeLinear(c, scale, middle)" if coded else "Identity(c)"}
        a = Add(e, p)
        y = MatMul(a, w1)
    }}""",
        w0=(6, 8),
        places=codes((1, 40, 8), np.uint8) if coded else (1, 40, 8),
        scale=2.0**-7,
        middle=np.array(120, np.uint8),
        one=np.array(1),
        zero=[0],
        one_axis=[1],
        w1=(8, 3),
    )
    traced = trace(model, input_shapes={"x": (None, 5, None)})
    assert [len(g) for g in traced.groups] == [8]
    keep = {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}
    assert "places" in {s["initializer"] for s in removed_slices(traced, keep)}
    check_exact(model, input_shapes={"x": (None, 5, None)})
