"""What picks or writes positions by indices."""

from __future__ import annotations

import numpy as np

from tests.cases.base import MS, case, conv_net
from tests.exactness import codes, net

# fmt: off

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

_FLAT = """(float[1,8,6] x) => (float[12,2] y) {
    a = MatMul(x, w0)
    r = Reshape(a, apart)
    t = Transpose<perm=[0,2,1,3]>(r)
    flat = Reshape(t, one)
    g = Gather(flat, windows)
    p = Transpose<perm=[1,2,0,3]>(g)
    m = Reshape(p, rows)
    y = MatMul(m, w1)
}"""
for places, strides, units in (("of every head", (32, 8, 4, 1), [3, 4]), ("across heads", (4, 24, 12, 1), [4])):
    case(f"windows {places}, read from a flat tensor", net(_FLAT, w0=(6, 12), w1=(12, 2), apart=[0, 0, 3, 4], one=[-1],
        rows=[12, -1], windows=np.tensordot(strides, np.indices((3, 3, 4, 4)), 1)), units, rows=False)
case("a table of places of channels", conv_net("""
    g = Gather<axis=1>(a, i)
    b = Reshape(g, together)
""", d=6, i=[[3, 0, 5], [1, 7, 2]], together=[0, 6, 8, 8]), [4, 3])

case("sampling by grids", conv_net("""
    c = GridSample(a, grid)
    b = com.microsoft.GridSample(c, grid)
""", imports=MS, batch="2", grid=(2, 8, 8, 2)), [8], rows=False)
case("regions", net("""(float[1,3,8,8] x) => (float[2,2,3,3] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    r = RoiAlign<output_height=4, output_width=4>(a, rois, index)
    p = MaxRoiPool<pooled_shape=[3,3]>(r, boxes)
    y = Conv(p, w1)
}""", w0=(8, 3, 3, 3), rois=[[0, 0, 4, 4], [2, 2, 7, 7.0]], index=[0, 0], boxes=[[0, 0, 0, 3, 3], [1, 0, 0, 2, 2.0]],
    w1=(2, 8, 1, 1)), [8], rows=False)
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
        w1=(10, 3)), [8, 5], rows=False)
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
        wi2=(1, gates * 4, 5), wh2=(1, gates * 4, 4), together=[0, 0, 4], w1=(4, 3), w2=(5, 3)), [5, 4], rows=False)

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
        w2=(5, 3)), [5], rows=False)
case("steps that are units stay", net("""(float[N,7,6] x) => (float[N,1,3] z) {
    a = MatMul(x, w0)
    r = Relu(a)
    t = Transpose<perm=[2,0,1]>(r)
    h, last = LSTM<hidden_size=5>(t, wi, wh)
    f = Transpose<perm=[1,0,2]>(last)
    z = MatMul(f, w2)
}""", w0=(6, 4), wi=(1, 20, 7), wh=(1, 20, 5), w2=(5, 3)), [5], "LSTM takes it in steps, one after the other",
    rows=False)
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
    }}""", wi=(1, 5, 6), wh=(1, 5, 5), wb=(1, 10), w2=(5, 3)), sizes, rows=function == "Sigmoid")
case("a list of positions between two Transposes", conv_net("""
    t = Transpose<perm=[1,0,2,3]>(a)
    g = GatherND(t, order)
    b = Transpose<perm=[1,0,2,3]>(g)
""", order=[[3], [0], [7], [1], [-2], [2], [5], [4]]), [8])
case("a list of no positions that are written", net("""(float[N,5,6] x) => (float[N,5,3] y) {
    a = MatMul(x, w0)
    s = ScatterND(a, nowhere, nothing)
    y = MatMul(s, w1)
}""", w0=(6, 8), w1=(8, 3), nowhere=np.zeros((0, 5, 8, 3), np.int64), nothing=np.zeros((0, 5, 8), np.float32)), [8])
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
    "DynamicQuantizeLSTM takes the range of codes over its hidden units", tolerance=1e-2, rows=False)
