"""Ops that optimizers of runtimes write, and attention as one op."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.cases.base import MS, case, conv_net, gemm_net, typed
from tests.exactness import codes, net

# fmt: off

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
}""", imports=MS, **typed(np.float16, w0=(8, 3, 1, 1), b0=(8,), w1=(2, 8, 1, 1))), [8], tolerance=5e-3)
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
for name, along, more, sizes in (
    ("", 1, {"s": (7, 4)}, [4, 8]),
    (" and zero points", 1, {"s": (7, 4), "z": codes((7, 4)).astype(ml_dtypes.int4)}, [4, 8]),
    (" of rows", 0, {"s": (1, 64)}, [64, 8]),
):
    case(f"com.microsoft.GatherBlockQuantized, a scale a block{name}", net(f"""(int64[N,5] i) => (float[N,5,3] y) {{
        a = com.microsoft.GatherBlockQuantized<gather_axis=0, quantize_axis={along}, block_size=16>({
        ", ".join(["q", "i", *more])})
        b = MatMul(a, w1)
        r = Relu(b)
        y = MatMul(r, w2)
    }}""", opset=21, ir=10, imports=MS, q=(codes((7, 64)) // 16).astype(ml_dtypes.int4), w1=(64, 8), w2=(8, 3), **more),
        sizes)
case("com.microsoft.GatherBlockQuantized of experts", net("""(int64[N,1] i, float[N,12] x) => (float[N,3] y) {
    w = com.microsoft.GatherBlockQuantized<gather_axis=0, quantize_axis=1, block_size=16>(q, i, s)
    m = Squeeze(w, one)
    u = Unsqueeze(x, one)
    h = MatMul(u, m)
    r = Relu(h)
    f = Squeeze(r, one)
    y = MatMul(f, w2)
}""", opset=21, ir=10, imports=MS, q=(codes((4, 12, 8)) // 16).astype(ml_dtypes.int4), s=(4, 1, 8), one=[1],
    w2=(8, 3)), [8])
case("a trunk of blocks of codes, normalised", net("""(int64[N,5] i) => (float[N,5,3] y) {
    t = com.microsoft.GatherBlockQuantized<gather_axis=0, quantize_axis=1, block_size=16>(q, i, s)
    n = LayerNormalization(t, g)
    h = com.microsoft.MatMulNBits<K=64, N=16, bits=4, block_size=16>(n, q1, s1)
    r = Relu(h)
    m = com.microsoft.MatMulNBits<K=16, N=64, bits=4, block_size=16>(r, q2, s2)
    u = Add(t, m)
    z = LayerNormalization(u, g2)
    y = com.microsoft.MatMulNBits<K=64, N=3, bits=4, block_size=16>(z, q3, s3)
}""", opset=21, ir=10, imports=MS, q=(codes((7, 64)) // 16).astype(ml_dtypes.int4), s=(7, 4),
    g=(64,), q1=codes((16, 4, 8), np.uint8), s1=(16, 4), q2=codes((64, 1, 8), np.uint8), s2=(64, 1), g2=(64,),
    q3=codes((3, 4, 8), np.uint8), s3=(3, 4)), [4, 1])
for name, many, few, sizes in (("as many", 2, 2, [2]), ("fewer", 4, 2, [2, 2])):
    case(f"com.microsoft.GroupQueryAttention, {name} heads of keys", net(f"""
    (float[2,5,12] x) => (float[2,5,3] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        o = com.microsoft.GroupQueryAttention<num_heads={many}, kv_num_heads={few}>(q, k, v, , , lengths, total)
        y = MatMul(o, wo)
    }}""", imports=MS, wq=(12, 8 * many), wk=(12, 8 * few), wv=(12, 8 * few), wo=(8 * many, 3),
        lengths=np.array([4, 4], np.int32), total=np.array(5, np.int32)), sizes, rows=False)
case("com.microsoft.GroupQueryAttention of one tensor, with a cache", net("""
(float[2,1,12] x, float[2,2,4,8] pk, float[2,2,4,8] pv) => (float[2,1,3] y, float[2,2,5,8] k, float[2,2,5,8] v) {
    q = MatMul(x, wq)
    o, k, v = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, , , pk, pv, lengths, total)
    y = MatMul(o, wo)
}""", imports=MS, wq=(12, 64), wo=(32, 3), lengths=np.array([4, 4], np.int32), total=np.array(5, np.int32)), [2],
    "all it is made of stays", rows=False)
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
case("EmbedLayerNormalization of one table in two places, each told by its own", net("""
(int32[N,5] x, int32[N,5] p) => (float[N,5,3] y) {
    e, i = com.microsoft.EmbedLayerNormalization<epsilon=0.1>(x, p, words, places, words, s, t)
    y = MatMul(e, w1)
}""", imports=MS, words=(7, 8), places=(6, 8), s=(8,), t=(8,), w1=(8, 3)), [8])
case("com.microsoft.MultiHeadAttention", net("""(float[N,5,12] x) => (float[N,5,12] y) {
    q = MatMul(x, wq)
    r = com.microsoft.RotaryEmbedding(q, p, cos, sin)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    a = com.microsoft.MultiHeadAttention<num_heads=3>(r, k, v, b0)
    y = MatMul(a, wo)
}""", imports=MS, wq=(12, 12), wk=(12, 12), wv=(12, 6), b0=(30,), wo=(6, 12), p=np.zeros(1, np.int64), cos=(9, 2),
    sin=(9, 2)), [3, 2])
for called, scale, units in (("", "", [3, 4, 2]), (" and the default scale in words", ", scale=0.0", [3, 2])):
    case(f"com.microsoft.MultiHeadAttention without biases{called}", net(f"""(float[N,5,12] x) => (float[N,5,12] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        a = com.microsoft.MultiHeadAttention<num_heads=3{scale}>(q, k, v)
        y = MatMul(a, wo)
    }}""", imports=MS, wq=(12, 12), wk=(12, 12), wv=(12, 6), wo=(6, 12)), units)
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
    w6=(8, 2)), [3, 4, 3, 4], "divides by a sum over it", tolerance=1e-4)
case("queries of one head that are two heads elsewhere", net(_QKV + """
    a = com.microsoft.MultiHeadAttention<num_heads=1>(q, k, v)
    b = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)
    c = Concat<axis=-1>(a, b)
    y = MatMul(c, wo)
}""", imports=MS, wq=(12, 8), wk=(12, 8), wv=(12, 6), wo=(12, 12)), [4, 3])
for attending, units in (("Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)", [3, 4, 2]),
                         ("com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v)", [3, 4, 2]),
                         ("com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, b)", [3, 2])):
    case(f"{attending}, then a norm", net(_QKV + f"""
        a = {attending}
        n = LayerNormalization(a, scale, shift)
        y = MatMul(n, wo)
    }}""", imports=MS, opset=23, wq=(12, 12), wk=(12, 12), wv=(12, 6), b=(30,), scale=(6,), shift=(6,),
        wo=(6, 12)), units)
case("com.microsoft.Attention, then a norm", net("""(float[N,5,12] x) => (float[N,5,3] y) {
    a = com.microsoft.Attention<num_heads=3>(x, w, b)
    n = LayerNormalization(a, scale, shift)
    y = MatMul(n, wo)
}""", imports=MS, w=(12, 36), b=(36,), scale=(12,), shift=(12,), wo=(12, 3)), [3, 4])
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
