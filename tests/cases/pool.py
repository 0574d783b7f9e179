"""Pools of all kinds."""

from __future__ import annotations

import numpy as np

from tests.cases.base import case, conv_net
from tests.exactness import net

# fmt: off

case("pools", conv_net("""
    p = MaxPool<kernel_shape=[2,2]>(a)
    q = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(p)
    b = LpPool<kernel_shape=[2,2], p=2>(q)
"""), [8])
case("max pool with indices that nothing reads", conv_net("b, i = MaxPool<kernel_shape=[2,2]>(a)"), [8])
case("max pool with indices stays", conv_net("""
    p, i = MaxPool<kernel_shape=[2,2]>(a)
    f = Cast<to=1>(i)
    g = Mul(f, few)
    b = Add(p, g)
""", few=np.float32(0.01)), [], "indices, which count channels")
case("unpooled where indices say", conv_net("""
    p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
    c = Conv(p, w1, b1)
    r = Relu(c)
    d = Conv(r, w2, b2)
    b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(d, i)
""", w1=(6, 8, 1, 1), b1=(6,), w2=(8, 6, 1, 1), b2=(8,)), [8, 6])
case("unpooled to a size that is told", conv_net("""
    p, i = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a)
    b = MaxUnpool<kernel_shape=[3,3], strides=[2,2]>(p, i, to)
""", batch="2", to=[2, 8, 8, 8]), [8], rows=False)
case("unpooled where other numbers say", conv_net("""
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
    j = Add(first, more)
    b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, j)
""", batch="1", first=np.arange(8 * 16).reshape(1, 8, 4, 4), more=np.array([1])), [], "indices, which count channels")
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
for named, last in (("scales", "q = Resize(p, , scales)"), ("sizes", "q = Resize(p, , , sizes)"),
                    ("sizes of linear ones", 'q = Resize<mode="linear">(p, , , sizes)')):
    case(f"resize channels that lie last, by {named}", conv_net(f"""
        p = Transpose<perm=[0,2,3,1]>(a)
        {last}
        b = Transpose<perm=[0,3,1,2]>(q)
    """, batch="2", scales=[1, 2, 2, 1.0], sizes=[2, 16, 16, 8]), [8])
case("resize by sizes that keep the aspect, of channels, too", conv_net(
    'b = Resize<axes=[1,2], mode="linear", keep_aspect_ratio_policy="not_larger">(a, , , sizes)', opset=18, c=2,
    d=2, sizes=[2, 7]), [], "Resize keeps this axis")
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
