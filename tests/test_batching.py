"""Where the images lie, and files of one image that take several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxshap import OrtBackend, calibrate, prune, score
from onnxshap.calibrate import free_batch, run_all, running, site_means, statistics
from onnxshap.core import Array, Dataset
from onnxshap.data import random_data
from onnxshap.game import GroupGame, Setting
from onnxshap.graph import Graph
from onnxshap.graph.writing import put_in
from onnxshap.masking import insert_masks, mask_name, masked_model, row_wise
from onnxshap.opening import calibration
from onnxshap.reference import choose_payoff
from onnxshap.rewrite import cut, drop_units
from onnxshap.shapes import input_specs
from onnxshap.shapes.images import Images
from onnxshap.shapes.imagewalk import find_images
from onnxshap.slices import removed_slices
from onnxshap.tracing import Traced, trace
from tests.exactness import check_exact, net
from tests.zeroing import relative_error, run, zeroed

FIXED: dict[str, ModelProto] = {
    "windows": net(
        """(float[1,4,4,6] x) => (float[1,4,4,2] y) {
    a = Reshape(x, apart)
    b = Transpose<perm=[0,1,3,2,4,5]>(a)
    c = Reshape(b, windows)
    d = MatMul(c, w1)
    e = Relu(d)
    f = MatMul(e, w2)
    m = Add(f, bias)
    g = Reshape(m, back)
    h = Transpose<perm=[0,1,3,2,4,5]>(g)
    i = Reshape(h, image)
    j = MatMul(i, w3)
    k = Relu(j)
    y = MatMul(k, w4)
}""",
        bias=(4, 4, 6),
        apart=[1, 2, 2, 2, 2, 6],
        windows=[4, 4, 6],
        back=[1, 2, 2, 2, 2, 6],
        image=[1, 4, 4, 6],
        w1=(6, 8),
        w2=(8, 6),
        w3=(6, 5),
        w4=(5, 2),
    ),
    "class token": net(
        """(float[1,3,5] x) => (float[1,4,2] y) {
    t = Expand(token, sizes)
    a = Concat<axis=1>(t, x)
    b = MatMul(a, w1)
    c = Relu(b)
    y = MatMul(c, w2)
}""",
        token=(1, 1, 5),
        sizes=[1, 1, 5],
        w1=(5, 6),
        w2=(6, 2),
    ),
    "class token of the width of a trunk": net(
        """(float[1,4,6] x) => (float[1,5,2] y) {
    a = MatMul(x, w0)
    t = Expand(token, sizes)
    c = Concat<axis=1>(t, a)
    p = Add(c, places)
    n = LayerNormalization(p, s, b)
    h = MatMul(n, w1)
    g = Relu(h)
    m = MatMul(g, w2)
    u = Add(p, m)
    y = MatMul(u, w3)
}""",
        w0=(6, 8),
        token=(1, 1, 8),
        sizes=[1, 1, 8],
        places=(1, 5, 8),
        s=(8,),
        b=(8,),
        w1=(8, 6),
        w2=(6, 8),
        w3=(8, 2),
    ),
    "heads merged with images": net(
        """(float[1,4,6] z) => (float[1,4,2] y) {
    x = Transpose<perm=[1,0,2]>(z)
    a = MatMul(x, w1)
    b = Reshape(a, apart)
    c = Transpose<perm=[1,0,2]>(b)
    d = Relu(c)
    e = Transpose<perm=[1,0,2]>(d)
    f = Reshape(e, together)
    g = MatMul(f, w2)
    y = Transpose<perm=[1,0,2]>(g)
}""",
        w1=(6, 8),
        apart=[4, 2, 4],
        together=[4, 1, 8],
        w2=(8, 2),
    ),
    "as many heads as queries, keys and values are parts": net(
        """(float[1,4,6] x) => (float[1,4,2] y) {
    a = MatMul(x, w1)
    b = Reshape(a, apart)
    c = Transpose<perm=[2,0,3,1,4]>(b)
    d = Reshape(c, together)
    q, k, v = Split<axis=0>(d, ones)
    q1 = Squeeze(q, first)
    k1 = Squeeze(k, first)
    v1 = Squeeze(v, first)
    kt = Transpose<perm=[0,2,1]>(k1)
    s = MatMul(q1, kt)
    p = Softmax<axis=-1>(s)
    o = MatMul(p, v1)
    e = Reshape(o, heads)
    f = Transpose<perm=[0,2,1,3]>(e)
    g = Reshape(f, features)
    y = MatMul(g, w2)
}""",
        w1=(6, 36),
        apart=[1, 4, 3, 3, 4],
        together=[3, 3, 4, 4],
        ones=[1, 1, 1],
        first=[0],
        heads=[1, 3, 4, 4],
        features=[1, 4, 12],
        w2=(12, 2),
    ),
    "places merged with images": net(
        """(float[1,4,6] z) => (float[1,4,2] y) {
    x = Transpose<perm=[1,0,2]>(z)
    a = Reshape(x, flat)
    b = Gemm(a, w1)
    c = Relu(b)
    d = Gemm(c, w2)
    e = Reshape(d, apart)
    y = Transpose<perm=[1,0,2]>(e)
}""",
        flat=[4, 6],
        w1=(6, 8),
        w2=(8, 2),
        apart=[4, 1, 2],
    ),
    "a mask by pairs of image and place": net(
        """(float[1,4,6] x, int64[1,4] m) => (float[1,4,2] y) {
    b = Cast<to=9>(m)
    k = GatherND(b, pairs)
    t = Where(k, none, far)
    h = MatMul(x, w1)
    u = Transpose<perm=[0,2,1]>(h)
    s = MatMul(h, u)
    z = Add(s, t)
    p = Softmax(z)
    o = MatMul(p, h)
    y = MatMul(o, w2)
}""",
        pairs=np.array([[[[0, 0], [0, 1], [0, 2], [0, 3]]]]),
        none=np.float32(0),
        far=np.float32(-9),
        w1=(6, 8),
        w2=(8, 2),
    ),
    "a mask by places in the order of elements": net(
        """(float[1,4,6] x, int64[1,4] m) => (float[1,4,2] y) {
    b = Cast<to=9>(m)
    f = Flatten<axis=2>(b)
    g = Gather<axis=0>(f, places)
    r = Reshape(g, flat)
    k = Reshape(r, wide)
    t = Where(k, none, far)
    h = MatMul(x, w1)
    u = Transpose<perm=[0,2,1]>(h)
    s = MatMul(h, u)
    z = Add(s, t)
    p = Softmax(z)
    o = MatMul(p, h)
    y = MatMul(o, w2)
}""",
        places=np.array([[[0, 1, 2, 3]]]),
        flat=[-1],
        wide=[1, 1, 4],
        none=np.float32(0),
        far=np.float32(-9),
        w1=(6, 8),
        w2=(8, 2),
    ),
    "sizes of a Resize": net(
        """(float[1,3,4,4] x) => (float[1,2,8,8] y) {
    a = Conv(x, w1)
    b = Resize<mode="linear">(a, , , sizes)
    y = Conv(b, w2)
}""",
        w1=(6, 3, 1, 1),
        sizes=[1, 6, 8, 8],
        w2=(2, 6, 1, 1),
    ),
    "sizes of a Resize of channels that lie last": net(
        """(float[1,4,4,3] x) => (float[1,8,8,2] y) {
    a = MatMul(x, w1)
    b = Resize(a, , , sizes)
    y = MatMul(b, w2)
}""",
        w1=(3, 6),
        sizes=[1, 8, 8, 6],
        w2=(6, 2),
    ),
    "positions picked by the input": net(
        """(int64[1,5] ids) => (float[1,5,2] y) {
    p = GatherElements<axis=1>(positions, ids)
    e = Gather(table, p)
    a = MatMul(e, w1)
    b = Relu(a)
    y = MatMul(b, w2)
}""",
        positions=np.arange(5)[None],
        table=(5, 4),
        w1=(4, 6),
        w2=(6, 2),
    ),
    "squeeze of all": net(
        """(float[1,3,4,4] x) => (float[1,2] y) {
    a = Conv(x, w1)
    b = GlobalAveragePool(a)
    c = Squeeze(b)
    d = Reshape(c, row)
    y = Gemm(d, w2)
}""",
        w1=(6, 3, 1, 1),
        row=[1, 6],
        w2=(6, 2),
    ),
    "heads of steps": net(
        """(float[1,5,8] x) => (float[1,5,2] y) {
    t = Transpose<perm=[1,0,2]>(x)
    q = MatMul(t, wq)
    k = MatMul(t, wk)
    v = MatMul(t, wv)
    qh = Reshape(q, heads)
    kh = Reshape(k, heads)
    vh = Reshape(v, heads)
    qt = Transpose<perm=[1,0,2]>(qh)
    kt = Transpose<perm=[1,2,0]>(kh)
    vt = Transpose<perm=[1,0,2]>(vh)
    s = MatMul(qt, kt)
    p = Softmax<axis=-1>(s)
    o = MatMul(p, vt)
    u = Reshape(o, apart)
    w = Transpose<perm=[2,0,1,3]>(u)
    f = Reshape(w, flat)
    g = Gemm(f, wo)
    h = Reshape(g, steps)
    z = Transpose<perm=[1,0,2]>(h)
    y = MatMul(z, w2)
}""",
        wq=(8, 8),
        wk=(8, 8),
        wv=(8, 8),
        heads=[5, 2, 4],
        apart=[1, 2, 5, 4],
        flat=[5, 8],
        wo=(8, 6),
        steps=[5, 1, 6],
        w2=(6, 2),
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_files_of_one_image_take_several_with_a_coalition_each(name: str) -> None:
    traced = trace(FIXED[name])
    freed = free_batch(traced)
    assert not traced.shaped.free_batch
    assert freed.shaped.free_batch
    assert len(freed.shaped.graph.nodes) >= len(traced.shaped.graph.nodes)
    seen = check_exact(FIXED[name])
    assert seen.rows is not None


@pytest.mark.parametrize("name", FIXED)
def test_files_of_one_image_cost_what_they_cost_when_they_take_several(name: str) -> None:
    """Constants that the way to several takes, axes and targets, had no shape: `recon` ended in a KeyError."""
    traced = trace(FIXED[name])
    assert free_batch(traced).cost.macs() == traced.cost.macs() > 0


@pytest.mark.parametrize("name", FIXED)
def test_files_of_one_image_are_cut_as_those_of_several(name: str) -> None:
    traced = trace(FIXED[name])
    freed = free_batch(traced)
    keep = {g.name: np.arange(len(g)) % 3 > 0 for g in traced.groups}
    images = random_data(input_specs(FIXED[name]), 3, 0).inputs
    small = drop_units(traced, keep)
    alone = [run(small, {name: values[k : k + 1] for name, values in images.items()})[0] for k in range(3)]
    together = run(put_in(cut(freed, keep)), images)[0]
    assert relative_error([together], [np.concatenate(alone)]) < 1e-5


STATE = net(
    """(float[1,5,4] x) => (float[1,5,2] y) {
    a = MatMul(x, w1)
    t = Transpose<perm=[1,0,2]>(a)
    h = Expand(state, sizes)
    all = GRU<hidden_size=6>(t, w, r, b, , h)
    s = Squeeze(all, one)
    u = Transpose<perm=[1,0,2]>(s)
    y = MatMul(u, w2)
}""",
    w1=(4, 8),
    state=(6,),
    sizes=[1, 1, 6],
    w=(1, 18, 8),
    r=(1, 18, 6),
    b=(1, 36),
    one=[1],
    w2=(6, 2),
)
"""A state made of a constant, with an axis for the images. Hidden units are evaluated one row at a time."""

ROWS = net(
    """(float[1,3,4,5] x) => (float[1,3,4,2] y) {
    a = Reshape(x, rows)
    b = Transpose<perm=[1,0,2]>(a)
    c, last = LSTM<hidden_size=6>(b, w, r, , , start, start)
    d = Squeeze(c, one)
    e = Transpose<perm=[1,0,2]>(d)
    f = Reshape(e, back)
    y = MatMul(f, w2)
}""",
    rows=[3, 4, 5],
    w=(1, 24, 5),
    r=(1, 24, 6),
    start=(1, 3, 6),
    one=[1],
    back=[1, 3, 4, 6],
    w2=(6, 2),
)
"""Rows of images as sequences, each with a state of its own to start with."""


@pytest.mark.parametrize("model", [*FIXED.values(), STATE, ROWS], ids=[*FIXED, "a constant's state", "rows"])
def test_files_of_one_image_are_scored_many_rows_at_a_time(model: ModelProto) -> None:
    traced = trace(model)
    free, data = free_batch(traced), calibration(traced, None)
    assert free.shaped.free_batch
    outputs = run_all(free, free.shaped.graph.model, data)
    shared = Setting(free, data, choose_payoff("mse", outputs, data, free), outputs, site_means(free, data))
    images = np.array([0, 1, 2, 0])
    for group in free.groups:
        game, coalitions = GroupGame(shared, group), np.random.default_rng(0).integers(0, 2, (4, len(group)))
        assert game._batched or (model in (STATE, ROWS) and len(group) == 6)
        together = game(images, coalitions.astype(np.float32))
        alone = [game(images[k : k + 1], coalitions[k : k + 1].astype(np.float32))[0] for k in range(4)]
        np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_fixed_sizes_that_do_not_agree_are_those_of_one_sample() -> None:
    """A graph net: features of ten nodes, and from which node to which each of twenty-four edges leads."""
    graph_net = net(
        """(float[10,8] x, int64[2,24] edges) => (float[10,3] y) {
    a = MatMul(x, w1)
    from = Gather<axis=0>(edges, nil)
    to = Gather<axis=0>(edges, one)
    sent = Gather(a, from)
    places = Unsqueeze(to, last)
    none = ConstantOfShape<value=float[1] {0.0}>(sizes)
    got = ScatterND<reduction="add">(none, places, sent)
    b = Add(a, got)
    c = Relu(b)
    y = MatMul(c, w2)
}""",
        opset=18, w1=(8, 6), nil=0, one=1, last=[1], sizes=[10, 6], w2=(6, 3),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(30, 10, 8)).astype(np.float32), "edges": rng.integers(0, 10, (30, 2, 24))}
    found = prune(graph_net, data, keep_macs=0.6, method="l1")
    assert found.verified.rel_err < 1e-5 and found.eval_images == 30


def test_lengths_that_are_free_and_named_are_no_images() -> None:
    """The same with as many nodes and edges as there are; no input has an axis for graphs."""
    graph_net = net(
        """(float[n,6] x, int64[2,e] edges, float[e,3] kinds) => (float[n,4] y) {
    h = MatMul(x, w1)
    a = Relu(h)
    from = Gather<axis=0>(edges, nil)
    to = Gather<axis=0>(edges, one)
    sent = Gather(a, from)
    both = Concat<axis=1>(sent, kinds)
    m = MatMul(both, w2)
    r = Relu(m)
    g = MatMul(r, w3)
    none = Sub(a, a)
    places = Unsqueeze(to, last)
    got = ScatterND<reduction="add">(none, places, g)
    b = Add(a, got)
    y = MatMul(b, w4)
}""",
        opset=18, w1=(6, 8), nil=0, one=1, w2=(11, 12), w3=(12, 8), last=[1], w4=(8, 4),
    )  # fmt: skip
    traced = trace(graph_net)
    assert [len(g) for g in traced.groups] == [8, 12]
    assert traced.shaped.batch_axes == dict.fromkeys(("x", "edges", "kinds"))
    plan = {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}
    small, expected = drop_units(traced, plan), zeroed(graph_net, removed_slices(traced, plan))
    rng = np.random.default_rng(0)
    for nodes, edges in ((5, 9), (1, 1), (30, 7)):
        feeds: dict[str, Array] = {
            "x": rng.normal(size=(nodes, 6)).astype(np.float32),
            "edges": rng.integers(0, nodes, (2, edges)),
            "kinds": rng.normal(size=(edges, 3)).astype(np.float32),
        }
        assert relative_error(run(small, feeds), run(expected, feeds)) < 1e-5
    data = {
        "x": rng.normal(size=(30, 5, 6)).astype(np.float32),
        "edges": rng.integers(0, 5, (30, 2, 9)),
        "kinds": rng.normal(size=(30, 9, 3)).astype(np.float32),
    }
    assert prune(graph_net, data, keep_macs=0.6, method="l1").eval_images == 30


def test_a_matrix_of_neighbours_tells_a_graph() -> None:
    """Both of its axes are as long as there are nodes: neither counts graphs."""
    model = net(
        """(float[n,6] x, float[n,n] near) => (float[n,4] y) {
            a = MatMul(x, w0) r = Relu(a) b = MatMul(near, r) c = MatMul(b, w1) d = Relu(c) y = MatMul(d, w2)
        }""",
        w0=(6, 8), w1=(8, 6), w2=(6, 4),
    )  # fmt: skip
    assert trace(model).shaped.batch_axes == {"x": None, "near": None}
    check_exact(model)
    data = {"x": np.ones((9, 5, 6), np.float32), "near": np.ones((5, 5), np.float32)}
    assert prune(model, data, keep_units=0.5, multiple_of=1, method="l1").eval_images == 9


def test_ends_of_edges_tell_a_graph_by_themselves() -> None:
    """The plainest graph net: nodes and edges, each as many as there are, and nothing else."""
    graph_net = net(
        """(float[n,6] x, int64[2,e] edges) => (float[n,4] y) {
    h = MatMul(x, w1)
    a = Relu(h)
    from = Gather<axis=0>(edges, nil)
    to = Gather<axis=0>(edges, one)
    sent = Gather(a, from)
    none = Sub(a, a)
    places = Unsqueeze(to, last)
    got = ScatterND<reduction="add">(none, places, sent)
    b = Add(a, got)
    y = MatMul(b, w2)
}""",
        opset=18, w1=(6, 8), nil=0, one=1, last=[1], w2=(8, 4),
    )  # fmt: skip
    assert trace(graph_net).shaped.batch_axes == dict.fromkeys(("x", "edges"))
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(30, 5, 6)).astype(np.float32), "edges": rng.integers(0, 5, (30, 2, 9))}
    assert prune(graph_net, data, keep_macs=0.6, method="l1").eval_images == 30
    assert (
        prune(graph_net, keep_units=0.5, method="l1", input_shapes={"x": [7, 6], "edges": [2, 12]}).traced is not None
    )


STEPS_OF_ANY_NUMBER = {
    "images first": net(
        """(float[1,steps,4] x) => (float[1,steps,2] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    c = MatMul(b, w2)
    d = Relu(c)
    y = MatMul(d, w3)
}""",
        w1=(4, 64), w2=(64, 48), w3=(48, 2),
    ),
    "steps first": net(
        """(float[steps,batch,4] x) => (float[steps,batch,2] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    all = GRU<hidden_size=8>(b, w, r)
    s = Squeeze(all, one)
    c = MatMul(s, w2)
    d = Relu(c)
    y = MatMul(d, w3)
}""",
        w1=(4, 6), w=(1, 24, 6), r=(1, 24, 8), one=[1], w2=(8, 48), w3=(48, 2),
    ),
    "steps first, once on one axis with the images": net(
        """(float[steps,batch,4] x) => (float[steps,batch,2] y) {
    a = MatMul(x, w1)
    flat = Reshape(a, rows)
    b = Mul(flat, scale)
    sizes = Shape(a)
    c = Reshape(b, sizes)
    d = Relu(c)
    y = MatMul(d, w2)
}""",
        w1=(4, 6), rows=[-1, 6], scale=(6,), w2=(6, 2),
    ),
    "steps first, of which the mean is taken": net(
        """(float[steps,batch,4] x) => (float[batch,2] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    c = ReduceMean<axes=[0], keepdims=0>(b)
    d = MatMul(c, w2)
    e = Tanh(d)
    y = MatMul(e, w3)
}""",
        w1=(4, 64), w2=(64, 48), w3=(48, 2),
    ),
    "images beside heads, then beside steps": net(
        """(float[5,batch,4] x) => (float[5,batch,2] y) {
    a = MatMul(x, w1)
    heads = Reshape(a, apart)
    q = Transpose<perm=[1,0,2]>(heads)
    k = Transpose<perm=[1,2,0]>(heads)
    s = MatMul(q, k)
    p = Softmax<axis=-1>(s)
    o = MatMul(p, q)
    b = Transpose<perm=[1,0,2]>(o)
    c = Reshape(b, rows)
    d = Gemm(c, w2)
    e = Tanh(d)
    f = Gemm(e, w3)
    y = Reshape(f, back)
}""",
        w1=(4, 8), apart=[5, -1, 4], rows=[-1, 8], w2=(8, 8), w3=(8, 2), back=[5, -1, 2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS_OF_ANY_NUMBER)
def test_files_that_take_any_number_of_steps_are_scored_many_rows_at_a_time(name: str) -> None:
    data = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    scores = score(STEPS_OF_ANY_NUMBER[name], data, decided=0)
    assert not scores.notes
    traced = trace(STEPS_OF_ANY_NUMBER[name])
    assert traced.single and free_batch(traced).shaped.free_batch
    assert check_exact(STEPS_OF_ANY_NUMBER[name]).dropped


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mean_over_steps_leaves_images_apart_and_one_over_images_does_not(axis: int) -> None:
    model = net(
        f"""(float[t,batch,4] x) => (float[t,batch,2] y) {{
    a = MatMul(x, w1)
    m = ReduceMean<axes=[{axis}], keepdims=1>(a)
    b = Sub(a, m)
    c = Relu(b)
    y = MatMul(c, w2)
}}""",
        w1=(4, 8), w2=(8, 2),
    )  # fmt: skip
    traced = free_batch(trace(model))
    assert traced.groups and (traced.shaped.free_batch and row_wise(traced, traced.groups)) == (axis == 0)


ACROSS = {
    "shares": "m = Softmax<axis=AXIS>(a)",
    "running sums": "m = CumSum(a, at)",
    "lengths": "m = LpNormalization<axis=AXIS>(a)",
    "products": "l = ReduceProd<axes=[AXIS], keepdims=1>(a) m = Add(a, l)",
}
"""Ops on a[images, steps, 8] that let positions of AXIS meet."""


@pytest.mark.parametrize("name", ACROSS)
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_share_no_run_where_an_op_lets_images_meet(name: str, axis: int) -> None:
    model = net(
        """(float[N,5,4] x) => (float[N,5,2] y) {
    a = MatMul(x, w1)
    BODY
    c = Relu(m)
    y = MatMul(c, w2)
}""".replace("BODY", ACROSS[name].replace("AXIS", str(axis))),
        w1=(4, 8), w2=(8, 2), at=np.array(axis),
    )  # fmt: skip
    traced = free_batch(trace(model))
    assert traced.groups and traced.shaped.free_batch
    assert row_wise(traced, traced.groups) == (axis == 1)


def test_one_image_keeps_its_axis_among_others_of_size_1() -> None:
    """A Squeeze of the directions of a recurrent op, and an Unsqueeze in front of the images."""
    model = net(
        """(float[5,batch,4] x) => (float[5,batch,2] y) {
    wide = Unsqueeze(x, one)
    b = MatMul(wide, w1)
    c = Relu(b)
    s = Squeeze(c, one)
    y = MatMul(s, w2)
}""",
        w1=(4, 6), one=[1], w2=(6, 2),
    )  # fmt: skip
    traced = trace(model)
    assert traced.shaped.shapes["wide"] == (5, 1, 1, 4)
    assert [traced.batch_axis(name) for name in ("x", "wide", "c", "s", "y")] == [1, 2, 2, 1, 1]
    assert [traced.images(name) for name in ("wide", "s")] == [Images(2), Images(1)]


@pytest.mark.parametrize("frames", ["3", "t"])
def test_frames_that_become_a_convolutions_images_are_none_of_the_models(frames: str) -> None:
    """A model that has an input without images is traced with one alone: its frames are all images of the Conv."""
    model = net(
        f"""(float[s0,{frames},2,5,5] x, float when) => (float[s0,{frames},4,5,5] y) {{
    scaled = Mul(x, when)
    flat = Reshape(scaled, places)
    a = Conv<pads=[1,1,1,1]>(flat, w1)
    b = Relu(a)
    c = Conv(b, w2)
    sizes = Shape<start=0, end=2>(x)
    shape = Concat<axis=0>(sizes, own)
    y = Reshape(c, shape)
}}""",
        opset=18, places=[-1, 2, 5, 5], w1=(6, 2, 3, 3), w2=(4, 6, 1, 1), own=[4, 5, 5],
    )  # fmt: skip
    assert trace(model).shaped.batch_axes == {"x": 0, "when": None}
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(8, 3, 2, 5, 5)).astype(np.float32), "when": np.float32(2)}
    assert prune(model, data, keep_units=0.5, method="l1").eval_images == 8


def test_positions_are_no_images() -> None:
    embedded = net(
        """(int64[batch,tokens] ids, int64[tokens] places) => (float[batch,tokens,3] y) {
    e = Gather(table, ids)
    p = Gather(angles, places)
    a = Add(e, p)
    h = MatMul(a, w1)
    r = Relu(h)
    y = MatMul(r, w2)
}""",
        table=(12, 8), angles=(64, 8), w1=(8, 16), w2=(16, 3),
    )  # fmt: skip
    assert trace(embedded).shaped.batch_axes == {"ids": 0, "places": None}


def test_a_state_of_one_image_is_repeated_once_for_all_outputs() -> None:
    recurrent = net(
        """(float[1,5,4] x) => (float[1,2] y) {
    t = Transpose<perm=[1,0,2]>(x)
    all, last = GRU<hidden_size=6>(t, w, r, b, nil, state)
    m = ReduceMean<axes=[0,1], keepdims=0>(all)
    s = Squeeze(last, first)
    a = Add(m, s)
    y = Gemm(a, w2)
}""",
        opset=13, w=(1, 18, 4), r=(1, 18, 6), b=(1, 36), nil=[1], state=(1, 1, 6), first=[0], w2=(6, 2),
    )  # fmt: skip
    recurrent.graph.node[1].input[4] = ""
    assert free_batch(trace(recurrent)).shaped.free_batch
    assert check_exact(recurrent).dropped


def test_the_sizes_of_masks_are_named_apart_from_those_of_images() -> None:
    traced = free_batch(trace(FIXED["windows"]))
    masked = masked_model(traced, traced.groups, {})
    sizes = [{d.dim_param for d in i.type.tensor_type.shape.dim} - {""} for i in masked.graph.input]
    masks = [size for item, size in zip(masked.graph.input, sizes, strict=True) if item.name != "x"]
    assert masks and all(size.isdisjoint(sizes[0]) for size in masks)


def test_images_are_found_inside_of_merged_axes() -> None:
    traced = trace(FIXED["windows"])
    assert traced.images("c") == Images(0, 1, 4)
    assert traced.images("x") == Images(0)
    assert traced.images("w1") is None
    assert trace(FIXED["heads merged with images"]).images("b") == Images(1, 1, 2)
    assert trace(FIXED["places merged with images"]).images("a") == Images(0, 4, 1)


def test_images_of_merged_axes_are_taken_and_joined() -> None:
    place = Images(1, 2, 3)
    values = np.arange(2 * 12).reshape(2, 12)
    first, last = place.take(values, [0]), place.take(values, [1])
    assert first[0].tolist() == [0, 1, 2, 6, 7, 8]
    assert np.array_equal(place.join([first, last]), values)
    assert np.array_equal(place.take(values, [1, 0]), place.join([last, first]))


def test_a_model_that_mixes_images_keeps_its_batch() -> None:
    mixing = net(
        """(float[1,4] x) => (float[1,2] y) {
    a = Gemm(x, w1)
    m = ReduceMean<axes=[0], keepdims=1>(a)
    b = Sub(a, m)
    c = Add(b, a)
    y = Gemm(c, w2)
}""",
        w1=(4, 6),
        w2=(6, 2),
    )
    freed = free_batch(trace(mixing))
    assert not freed.shaped.free_batch
    feeds = {"x": np.ones((1, 4), np.float32)}
    assert relative_error(run(freed.shaped.graph.model, feeds), run(mixing, feeds)) == 0


SQUEEZED = {
    "midway": """
        s = Squeeze(p)
        m = MatMul(s, w2)
        y = Add(m, b2)""",
    "at the end": """
        f = Flatten(p)
        g = Gemm(f, w3)
        y = Squeeze(g)""",
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", SQUEEZED)
def test_a_squeeze_may_take_the_axis_of_a_single_image(name: str, opset: int) -> None:
    model = net(
        f"""(float[N,3,8,8] x) => (float[N,5] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w0)
        r = Relu(a)
        b = Conv<pads=[1,1,1,1]>(r, w1)
        p = GlobalAveragePool(b)
        {SQUEEZED[name]}
        }}""",
        opset=opset, w0=(8, 3, 3, 3), w1=(6, 8, 3, 3), w2=(6, 5), b2=(5,), w3=(6, 1),
    )  # fmt: skip
    if name == "at the end":
        del model.graph.output[0].type.tensor_type.shape.dim[1]
    images = np.random.default_rng(0).normal(size=(33, 3, 8, 8)).astype(np.float32)
    for count in (1, 33):  # a run of one image, and one of what is left over
        for samples in (1, 33):
            small = prune(model, images[:count], keep_units=0.5, samples=samples, method="shapley").model
            for batch in (1, 2):
                before, after = (run(m, {"x": images[:batch]})[0] for m in (model, small))
                assert before.shape == after.shape
                assert (before.ndim < len(model.graph.output[0].type.tensor_type.shape.dim)) == (batch == 1)


@pytest.mark.parametrize(("dims", "given", "batch"), [
    ("[5,N,6]", "[N,3]", 1), ("[5,q,6]", "[q,3]", 1), ("[5,batch,6]", "[p,3]", 1),
    ("[5,q,6]", "[5,q,3]", 0),  # five images of free length, or steps of a free batch: nothing tells
    ("[steps,batch,6]", "[steps,batch,3]", 1), ("[T,Batch_size,6]", "[T,Batch_size,3]", 1), ("[p,N,6]", "[p,N,3]", 0),
    ("[batch,steps,6]", "[batch,3]", 0), ("[batch,bs,6]", "[batch,3]", 0),
    ("[N,5,6]", "[N,3]", 0), ("[8,3,H,W]", "[8,3]", 0),
    ("[3,32,32]", "[found,4]", None), ("[3,32,32]", "[3,4]", 0), ("[3,H,W]", "[found,4]", None),
    ("[12,8]", "[1,1]", None), ("[12,8]", "[5,36]", 0), ("[12,8]", "[1,q]", 0), ("[1,8]", "[5]", 0),
])  # fmt: skip
def test_where_the_images_lie(dims: str, given: str, batch: int | None) -> None:
    model = net(f"(float{dims} x) => (float{given} y) {{ y = Relu(x) }}")
    assert input_specs(model)["x"].batch == batch


def test_rows_of_a_table_of_which_one_answer_comes_out_are_those_of_one_sample() -> None:
    model = net(
        """(float[12,8] x) => (float[1,1] y) {
            a = Reshape(x, whole) b = Gemm(a, w0) r = Relu(b) y = Gemm(r, w1)
        }""",
        w0=(96, 10), w1=(10, 1), whole=[1, 96],
    )  # fmt: skip
    small = prune(model, None, keep_units=0.5, method="random").model  # it was refused: no output is 12 long
    assert run(small, {"x": np.zeros((12, 8), np.float32)})[0].shape == (1, 1)
    check_exact(model)


@pytest.mark.parametrize(("inputs", "axes"), [
    ("float[steps,batch,6] x, int64[batch] lengths, float[2,batch,5] h", {"x": 1, "lengths": 0, "h": 1}),
    ("float[N,6] x, float[batch,6] z", {"x": 0, "z": 0}),
    ("float[steps,batch,6] x, float[steps,4] z", {"x": 1, "z": None}),
])  # fmt: skip
def test_where_the_images_of_several_inputs_lie(inputs: str, axes: dict[str, int | None]) -> None:
    specs = input_specs(net(f"({inputs}) => (y) {{ y = Relu(x) }}"))
    assert {name: spec.batch for name, spec in specs.items()} == axes


def test_steps_of_any_number_are_no_images_where_the_batch_is_called_one() -> None:
    """As torch exports recurrent layers, both axes free: a step was taken for an image, and the batch for steps."""
    models = [
        net(
            f"""(float[{steps},batch,6] x, float[1,batch,5] h) => (float[{steps},batch,3] y) {{
                g = GRU<hidden_size=5>(x, w, r, , , h)
                s = Squeeze(g, one)
                t = MatMul(s, v)
                u = Relu(t)
                y = MatMul(u, z)
            }}""",
            w=(1, 15, 6), r=(1, 15, 5), v=(5, 4), z=(4, 3), one=np.array([1]),
        )
        for steps in ("steps", 7)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    given = {"x": rng.normal(size=(9, 7, 6)).astype(np.float32), "h": rng.normal(size=(9, 1, 5)).astype(np.float32)}
    free, fixed = (score(model, given, method="exact", baseline="zero") for model in models)
    assert free.notes == fixed.notes
    for name, values in fixed.values.items():
        np.testing.assert_allclose(free.values[name].phi, values.phi, rtol=1e-5, atol=1e-7)


def test_a_mask_that_is_the_first_images_for_all_is_found_out_however_little_it_does() -> None:
    """What one image gives must not hang on another by a bit: here by less than outputs are compared to."""
    model = net(
        """(float[1,4,6] x, float[1,4] m) => (float[1,4,2] y) {
            g = Gather<axis=0>(m, first) t = Mul(g, little) v = Unsqueeze(t, last) h = MatMul(x, w1) r = Relu(h)
            o = MatMul(r, w2) y = Add(o, v)
        }""",
        first=np.array(0), little=np.float32(1e-6), last=np.array([1]), w1=(6, 8), w2=(8, 2),
    )  # fmt: skip
    assert not free_batch(trace(model)).shaped.free_batch


def gated(batch: str, rows: int, *, alike: bool = True, experts: int = 4) -> ModelProto:
    """Return a net that keeps the two best of some gates, as torch writes scatter(full_like)."""
    low = np.full((rows, experts), -9, np.float32)
    if not alike:
        low[0, 0] = -8
    return net(
        f"""(float[{batch},6] x) => (float[{batch},3] y) {{
            e = MatMul(x, w0) r = Relu(e) l = MatMul(r, w1)
            v, i = TopK(l, two)
            m = ScatterElements<axis=1>(low, i, v)
            s = Softmax<axis=1>(m)
            h = MatMul(r, w2) q = Relu(h) o = MatMul(q, w3)
            z = Mul(o, s) y = MatMul(z, w4)
        }}""",
        w0=(6, 8), w1=(8, experts), w2=(8, 7), w3=(7, experts), w4=(experts, 3), two=[2], low=low,
    )  # fmt: skip


@pytest.mark.parametrize("experts", [4, 2000])
def test_constants_that_are_alike_for_all_images_of_a_batch_are_one(experts: int) -> None:
    model = gated("5", 5, experts=experts)
    freed = free_batch(trace(model))
    assert freed.shaped.free_batch
    images = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    whole = run(put_in(freed.shaped.graph.model), {"x": images})
    halves = [run(model, {"x": images[k : k + 5]})[0] for k in (0, 5)]
    assert relative_error(whole, [np.concatenate(halves)]) <= 1e-6
    check_exact(model)


def test_files_of_such_a_batch_are_scored_as_those_of_one_image() -> None:
    images = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    several, one = (
        prune(gated(str(n), n), images, keep_units=0.5, method="shapley", payoff="mse").scores for n in (5, 1)
    )
    for name, values in several.values.items():
        assert np.allclose(values.phi, one.values[name].phi, atol=1e-6)


def test_constants_that_differ_from_image_to_image_keep_the_batch() -> None:
    assert not free_batch(trace(gated("5", 5, alike=False))).shaped.free_batch


def test_it_is_said_where_every_coalition_is_a_run_of_its_own() -> None:
    for alike in (True, False):
        done = prune(gated("5", 5, alike=alike), keep_units=0.5, method="shapley", samples=2)
        assert any("a run of its own" in note for note in done.notes) != alike
        assert not prune(gated("5", 5, alike=alike), keep_units=0.5, method="l1").notes


@pytest.mark.parametrize("size", ["N", "6"])
@pytest.mark.parametrize("axis", [0, 1])
def test_it_is_said_where_axis_0_is_no_batch_of_samples(axis: int, size: str) -> None:
    model = net(
        f"""(float[{size},6] x) => (float[{size},3] y) {{
        a = Gemm(x, w0)
        b = Gemm(a, w1)
        y = Softmax<axis={axis}>(b)
    }}""",
        w0=(6, 8),
        w1=(8, 3),
    )
    images = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    notes = prune(model, images, keep_units=0.5, method="shapley").notes
    assert any("is no batch of samples" in n and "[n, steps, features]" in n for n in notes) == (axis == 0)
    assert not prune(model, images, keep_units=0.5, method="recon").notes


@pytest.mark.parametrize("size", ["N", "4"])
@pytest.mark.parametrize(
    "mixing",
    [
        "c = CumSum(b, first)",
        "c = CumSum<reverse=1>(b, first)",
        "m = ReduceMax<axes=[0]>(b)\n c = Add(b, m)",
        "m = ReduceMean<axes=[0]>(b)\n c = Sub(b, m)",
        "m = Slice(b, last, before, first, back)\n c = Add(b, m)",
        "m = ReduceMean<axes=[0]>(b)\n d = Sub(b, m)\n c = Greater(d, first32)",
    ],
    ids=["sum of the first", "sum of the last", "max", "mean", "turned round", "bools"],
)
def test_however_a_batch_is_mixed_it_is_said(mixing: str, size: str) -> None:
    kind = "bool" if "Greater" in mixing else "float"
    model = net(
        f"""(float[{size},6] x) => ({kind}[{size},3] c) {{
        a = Gemm(x, w0)
        b = Gemm(a, w1)
        {mixing}
    }}""",
        w0=(6, 8),
        w1=(8, 3),
        first=np.array([0]),
        last=np.array([-1]),
        before=np.array([-(10**9)]),
        back=np.array([-1]),
        first32=np.float32(0),
    )
    images = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    for some in (images, images[:2]):
        notes = score(model, some, method="loo", payoff=_first_column).notes
        assert any("is no batch of samples" in note for note in notes)


def _first_column(outputs: Sequence[Any], labels: Any) -> Any:
    return outputs[0][:, 0].astype(np.float64)


def test_it_is_said_where_what_is_counted_in_a_batch_divides_every_image() -> None:
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
        a = Gemm(x, w0)
        p = Greater(x, zero)
        i = NonZero(p)
        s = Shape(i)
        n = Gather(s, one)
        m = Add(n, one)
        f = Cast<to=1>(m)
        b = Div(a, f)
        y = Gemm(b, w1)
    }""",
        w0=(6, 8),
        w1=(8, 3),
        zero=0.0,
        one=np.array(1),
    )
    images = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    notes = score(model, images, method="loo", payoff="mse").notes
    assert any("is no batch of samples" in note for note in notes)


def test_no_run_holds_more_images_than_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images come few at a time: outputs alone need some tensors at once, means of all channels all tensors."""
    model = net(
        "(float[n,3,8,8] x) => (float[n,2,8,8] y) { a = Conv(x, w1) b = Relu(a) y = Conv(b, w2) }",
        w1=(16, 3, 1, 1),
        w2=(2, 16, 1, 1),
    )
    plain, sizes = calibrate.batches, list[int]()

    def told(traced: Traced, data: Dataset, size: int, least: int = 1) -> Iterator[tuple[int, Mapping[str, Array]]]:
        sizes.append(size)
        return plain(traced, data, size, least)

    for module in (running, statistics):
        monkeypatch.setattr(module, "batches", told)
    found, largest = [], 4 * 16 * 8 * 8
    for memory in (2**30, 17 * largest):
        traced = trace(model, backend=OrtBackend("cpu", 1, memory))
        data = random_data(input_specs(traced.shaped.graph.model), 40, 0)
        found.append([run_all(traced, model, data)[0], *site_means(traced, data).values()])
    assert sizes == [32, 32, 2, 7]
    for wide, tight in zip(*found, strict=True):
        np.testing.assert_allclose(tight, wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("merged", ["[-1,16]", "rows by computed sizes"])
def test_rows_go_with_images_that_lie_along_one_axis_with_steps_of_any_number(merged: str) -> None:
    """Else such a file was scored an image at a time: its steps may be of any number, so masks find out how many."""
    sizes = (
        "flat = Identity(two)"
        if merged == "[-1,16]"
        else """s = Shape(x)
            n = Slice(s, zero, one)
            l = Slice(s, one, last)
            all = Mul(n, l)
            flat = Concat<axis=0>(all, units)"""
    )
    model = net(
        f"""(float[N,L,4] x) => (float[N,L,2] y) {{
            a = MatMul(x, w0)
            r = Relu(a)
            {sizes}
            f = Reshape(r, flat)
            b = MatMul(f, w1)
            c = Relu(b)
            d = MatMul(c, w2)
            t = Shape(x)
            head = Slice(t, zero, last)
            back = Concat<axis=0>(head, ends)
            y = Reshape(d, back)
        }}""",
        w0=(4, 16), w1=(16, 6), w2=(6, 2), two=[-1, 16], zero=[0], one=[1], last=[2], units=[16], ends=[2],
    )  # fmt: skip
    traced = trace(model)
    assert sorted(len(g) for g in traced.groups) == [6, 16], traced.frozen
    assert row_wise(traced, traced.groups)
    check_exact(model)
    masked, rng = insert_masks(traced), np.random.default_rng(0)
    for images, steps in ((3, 64), (5, 7), (2, 1)):
        x = rng.normal(size=(images, steps, 4)).astype(np.float32)
        masks = {mask_name(g): rng.integers(0, 2, (images, len(g))).astype(np.float32) for g in traced.groups}
        (together,) = run(masked, {"x": x, **masks})
        for k in range(images):
            (alone,) = run(masked, {"x": x[k : k + 1], **{name: m[k : k + 1] for name, m in masks.items()}})
            assert np.allclose(together[k], alone[0], rtol=0, atol=1e-5)
        (same,) = run(masked, {"x": x, **{name: m[:1] for name, m in masks.items()}})
        assert np.allclose(same[0], together[0], rtol=0, atol=1e-5)


MERGED = {
    "steps of an image in a row": ("a", "[-1, 5]", 2),
    "images of a step in a row": ("t", "[-1, 5]", 2),
    "of both, the scores alone": ("a", "[-1]", 1),
}


@pytest.mark.parametrize("free", ["N", "1"])
@pytest.mark.parametrize("name", MERGED)
def test_outputs_whose_images_share_an_axis_with_steps_are_scored_as_those_apart(name: str, free: str) -> None:
    """So exporters write `view(-1, classes)`: [images x steps, classes]."""
    source, target, rank = MERGED[name]
    text = f"""(float[{free},6,4] x) => (float{{}} y) {{{{
        h = MatMul(x, w0)
        r = Relu(h)
        a = MatMul(r, w1)
        t = Transpose<perm=[1,0,2]>(a)
        {{}}
    }}}}"""
    dims = {1: "[P]", 2: "[P,5]"}[rank]
    weights: dict[str, Any] = {"w0": (4, 7), "w1": (7, 5), "target": [int(n) for n in target.strip("[]").split(",")]}
    merged = net(text.format(dims, f"y = Reshape({source}, target)"), **weights)
    apart = net(text.format(f"[{free},6,5]", "y = Identity(a)"), **weights)
    data = {"x": np.random.default_rng(0).normal(size=(6, 6, 4)).astype(np.float32)}
    (found,), (wanted,) = (
        score(model, data, method="exact", payoff="mse", samples=6).values.values() for model in (merged, apart)
    )
    assert len(found.phi) == 7
    np.testing.assert_allclose(found.phi, wanted.phi, rtol=1e-4, atol=1e-7)
    cut = prune(merged, data, keep_units=0.5, samples=6)
    assert run(cut.model, data if free == "N" else {"x": data["x"][:1]})[0].ndim == rank


def test_images_are_followed_with_one_look_at_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a decoder of 17,700 nodes all initializers were gone through for every axis that is added or dropped."""
    steps = " ".join(f"u{k} = Unsqueeze(s{k}, one) s{k + 1} = Squeeze(u{k}, one)" for k in range(20))
    traced = trace(
        net(
            f"(float[N,4] x) => (float[N,2] y) {{ s0 = MatMul(x, w0) {steps} r = Relu(s20) y = MatMul(r, w1) }}",
            w0=(4, 8), w1=(8, 2), one=[1],
        )
    )  # fmt: skip
    whole, looks = Graph.initializers.fget, list[int]()  # type: ignore[attr-defined]

    def counted(graph: Graph) -> dict[str, TensorProto]:
        looks.append(1)
        found: dict[str, TensorProto] = whole(graph)
        return found

    monkeypatch.setattr(Graph, "initializers", property(counted))
    assert find_images(traced.shaped)["s20"] == Images(0)
    assert len(looks) == 1
