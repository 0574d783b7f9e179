"""Weights that several layers share are cut alike, count once, and are one weight still after repair."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from onnx import ModelProto

import onnxshap
from onnxshap.calibrate import free_batch, run_all, site_means
from onnxshap.core import Dataset
from onnxshap.graph import array, finish
from onnxshap.repair import refit, rematch
from onnxshap.rewrite import Removal, cut
from tests.exactness import check_exact, codes, net

NETS: dict[str, ModelProto] = {
    "two towers": net(
        """(float[N,3,6,6] x, float[N,3,6,6] z) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, wa, ba)
    ar = Relu(a)
    b = Conv<pads=[1,1,1,1]>(ar, wb, bb)
    br = Relu(b)
    c = Conv<pads=[1,1,1,1]>(z, wa, ba)
    cr = Relu(c)
    d = Conv<pads=[1,1,1,1]>(cr, wb, bb)
    dr = Relu(d)
    s = Sub(br, dr)
    m = ReduceMean<axes=[2,3], keepdims=0>(s)
    y = Gemm(m, wc)
}""",
        wa=(8, 3, 3, 3),
        ba=(8,),
        wb=(8, 8, 3, 3),
        bb=(8,),
        wc=(8, 4),
    ),
    "one layer three times": net(
        """(float[N,5] x) => (float[N,4] y) {
    a = Gemm(x, wa)
    ar = Tanh(a)
    b = Gemm(ar, wb, bb)
    br = Relu(b)
    wb2 = Identity(wb)
    c = Gemm(br, wb2, bb)
    cr = Relu(c)
    wb3 = Identity(wb)
    d = Gemm(cr, wb3, bb)
    dr = Relu(d)
    y = Gemm(dr, wc)
}""",
        wa=(5, 12),
        wb=(12, 12),
        bb=(12,),
        wc=(12, 4),
    ),
    "two towers that turn their weight": net(
        """(float[N,5] x, float[N,5] z) => (float[N,4] y) {
    t = Transpose<perm=[1,0]>(w)
    a = MatMul(x, t)
    ar = Relu(a)
    u = Transpose<perm=[1,0]>(w)
    b = MatMul(z, u)
    br = Relu(b)
    v = Transpose<perm=[1,0]>(v0)
    c = MatMul(ar, v)
    cr = Relu(c)
    d = MatMul(br, v)
    dr = Relu(d)
    s = Sub(cr, dr)
    y = Gemm(s, wc)
}""",
        w=(12, 5),
        v0=(9, 12),
        wc=(9, 4),
    ),
    "heads on two levels": net(
        """(float[N,3,8,8] x) => (float[N,2,8,8] y, float[N,2,4,4] z) {
    p = Conv<pads=[1,1,1,1]>(x, wp)
    q = Conv<pads=[1,1,1,1], strides=[2,2]>(p, wq)
    a = Conv<pads=[1,1,1,1]>(p, wa, ba)
    ar = Relu(a)
    y = Conv(ar, wb, bb)
    c = Conv<pads=[1,1,1,1]>(q, wa, ba)
    cr = Relu(c)
    z = Conv(cr, wb, bb)
}""",
        wp=(6, 3, 3, 3),
        wq=(6, 6, 3, 3),
        wa=(8, 6, 3, 3),
        ba=(8,),
        wb=(2, 8, 1, 1),
        bb=(2,),
    ),
}
TABLE = net(
    """(int64[N,5] x) => (float[N,5,9] y) {
    e = Gather(table, x)
    a = MatMul(e, wa)
    ar = Relu(a)
    b = MatMul(ar, wb)
    s = Add(e, b)
    t = Transpose<perm=[1,0]>(table)
    y = MatMul(s, t)
}""",
    table=(9, 8),
    wa=(8, 12),
    wb=(12, 8),
)
"""A table of embeddings that is the last layer too."""
GATES = net(
    """(float[N,5,6] x) => (float[N,5,3] y) {
    i, f, g, o = Split<axis=0>(w, sizes)
    wt = Concat<axis=0>(i, o, f, g)
    wu = Unsqueeze(wt, first)
    i2 = Slice(r, zero, four, first)
    f2 = Slice(r, four, eight, first)
    g2 = Slice(r, eight, twelve, first)
    o2 = Slice(r, twelve, sixteen, first)
    rt = Concat<axis=0>(i2, o2, f2, g2)
    ru = Unsqueeze(rt, first)
    a = MatMul(x, wa)
    t = Transpose<perm=[1,0,2]>(a)
    h, last, cell = LSTM<hidden_size=4>(t, wu, ru)
    hs = Squeeze(h, second)
    u = Transpose<perm=[1,0,2]>(hs)
    y = MatMul(u, wo)
}""",
    wa=(6, 8),
    w=(16, 8),
    r=(16, 4),
    wo=(4, 3),
    sizes=[4, 4, 4, 4],
    first=[0],
    second=[1],
    zero=[0],
    four=[4],
    eight=[8],
    twelve=[12],
    sixteen=[16],
)
"""The gates of a recurrent layer in torch's order, put into ONNX's by the graph."""


CELL = net(
    """(float[N,3,6] x) => (float[N,3] y) {
    sizes = Shape(x)
    n = Slice(sizes, zero, one)
    whole = Concat<axis=0>(n, eight)
    h0 = ConstantOfShape(whole)
    x0 = Gather<axis=1>(x, first)
    a0 = Gemm(x0, wx, bx)
    s0 = Gemm(h0, wh)
    t0 = Add(a0, s0)
    h1 = Tanh(t0)
    x1 = Gather<axis=1>(x, second)
    a1 = Gemm(x1, wx, bx)
    s1 = Gemm(h1, wh)
    t1 = Add(a1, s1)
    h2 = Tanh(t1)
    y = Gemm(h2, wo)
}""",
    zero=[0],
    one=[1],
    eight=[8],
    first=np.array(0),
    second=np.array(1),
    wx=(6, 8),
    bx=(8,),
    wh=(8, 8),
    wo=(8, 3),
)
"""A recurrent cell unrolled in time, whose state is zeros at first."""


CODED = net(
    """(float[N,6] x) => (float[N,3] y) {
    q = QuantizeLinear(x, s, z)
    a = QLinearMatMul(q, s, z, wa, sw, zw, s, z)
    b = com.microsoft.QGemm<transB=1>(a, s, z, wb, sw, zw, bb, s, z)
    c = com.microsoft.QGemm<transB=1>(b, s, z, wb, sw, zw, bb, s, z)
    d = QLinearMatMul(c, s, z, wc, sw, zw, s, z)
    e = QLinearMatMul(d, s, z, wc, sw, zw, s, z)
    y = com.microsoft.QGemm(e, s, z, wo, sw, zw)
}""",
    imports=', "com.microsoft" : 1',
    wa=codes((6, 8)),
    wb=codes((8, 8)),
    wc=codes((8, 8)),
    wo=codes((8, 3)),
    bb=np.arange(8, dtype=np.int32),
    s=2.0**-5,
    z=np.array(120, np.uint8),
    sw=2.0**-7,
    zw=np.array(0, np.int8),
)
"""Layers on codes that are used twice."""


def images(model: ModelProto, count: int = 80) -> Dataset:
    rng, found = np.random.default_rng(3), {}
    for item in model.graph.input:
        shape = (count, *(d.dim_value for d in item.type.tensor_type.shape.dim[1:]))
        integers = item.type.tensor_type.elem_type == 7
        found[item.name] = rng.integers(0, 9, shape) if integers else rng.normal(size=shape).astype(np.float32)
    return Dataset(found, None, "random")


def weights(model: ModelProto) -> int:
    """Return the numbers of a file's matrices and kernels."""
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if len(t.dims) > 1)


def half(traced: onnxshap.Traced) -> dict[str, np.ndarray]:
    return {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}


@pytest.mark.parametrize("model", [*NETS.values(), TABLE], ids=[*NETS, "a table and a layer"])
def test_what_is_shared_is_cut_alike_and_counts_once(model: ModelProto) -> None:
    traced = onnxshap.trace(model)
    assert check_exact(model).dropped
    names = {t.name for t in model.graph.initializer}
    stored = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert traced.cost.params() == stored
    small = onnxshap.drop_units(traced, half(traced))
    assert {t.name for t in small.graph.initializer} <= names
    assert traced.cost.params(traced.alive(half(traced))) == sum(array(t).size for t in small.graph.initializer)


@pytest.mark.parametrize(
    ("model", "share"),
    [(GATES, 0.35), (CELL, 0.45), (CODED, 0.4)],
    ids=["gates taken apart", "cell unrolled", "layers on codes"],
)
def test_what_is_read_in_several_ways_is_stored_once(model: ModelProto, share: float) -> None:
    traced = onnxshap.trace(model)
    assert check_exact(model).dropped
    small = onnxshap.drop_units(traced, half(traced))
    before, after = (
        sum(array(t).size for t in m.graph.initializer if t.data_type in (1, 2, 3)) for m in (model, small)
    )
    assert (traced.cost.params(), traced.cost.params(traced.alive(half(traced)))) == (before, after)
    assert weights(small) < share * weights(model)


@pytest.mark.parametrize("name", NETS)
def test_least_squares_fits_layers_with_one_weight_together(name: str) -> None:
    model, data, other = NETS[name], images(NETS[name]), images(NETS[name], 50)
    traced = onnxshap.trace(model)
    plan, free = half(traced), free_batch(traced)
    means = site_means(free, data)
    plain = cut(traced, plan, means)
    fitted, reports = refit(Removal(traced, free, plan, means), data)
    assert sum(report.ridge is not None for report in reports) >= 2
    small = finish(fitted, traced.shaped.graph)
    assert weights(small) == weights(onnxshap.drop_units(traced, plan))
    wanted = run_all(traced, model, other)

    def error(found: ModelProto) -> float:
        pairs = zip(run_all(traced, found, other), wanted, strict=True)
        return sum(float(((a - b) ** 2).sum()) for a, b in pairs)

    assert error(fitted) < 0.95 * error(plain)


@pytest.mark.parametrize("name", NETS)
def test_moments_are_matched_for_layers_with_one_weight_together(name: str) -> None:
    model, data = NETS[name], images(NETS[name])
    traced = onnxshap.trace(model)
    plan, free = half(traced), free_batch(traced)
    small = finish(rematch(Removal(traced, free, plan, site_means(free, data)), data), traced.shaped.graph)
    assert weights(small) == weights(onnxshap.drop_units(traced, plan))


def test_a_layer_that_is_a_table_too_is_left() -> None:
    data = images(TABLE)
    traced = onnxshap.trace(TABLE)
    plan, free = half(traced), free_batch(traced)
    assert any(not kept.all() and len(kept) == 8 for kept in plan.values()), "its trunk is cut"
    fitted, reports = refit(Removal(traced, free, plan, site_means(free, data)), data)
    assert weights(finish(fitted, traced.shaped.graph)) == weights(onnxshap.drop_units(traced, plan))
    assert reports and all("y" not in report.node for report in reports)


@pytest.mark.parametrize("name", NETS)
def test_tuning_keeps_one_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install 'onnxshap[distill]')")
    from onnxshap.distill import tuner

    monkeypatch.setattr(tuner, "distill", partial(tuner.distill, epochs=3))
    found = onnxshap.prune(NETS[name], images(NETS[name]), method="l1", keep_units=0.5, repair="distill")
    assert found.tuning is not None and found.tuning.epochs == 3
    assert weights(found.model) == weights(onnxshap.drop_units(found.traced, found.keep))
