"""What maps element by element, alone or in step with another tensor."""

from __future__ import annotations

import numpy as np

from tests.cases.base import case, conv_net, gemm_net
from tests.exactness import net

# fmt: off

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
