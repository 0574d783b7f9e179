"""Bodies of Loop and Scan nodes are cut inside, and stay as they are at their border."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import onnxshap
from onnxshap.calibrate import free_batch
from onnxshap.core import Dataset
from onnxshap.errors import ModelError
from onnxshap.rewrite import drop_units
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.exactness import check_exact, net
from tests.test_branches import nested_ops
from tests.zeroing import run

RNG = np.random.default_rng(0)
YES = np.array(True)


def looped(inner: str, *, outer: str = "y = MatMul(c, z)", n: int = 3, **stored: Any) -> ModelProto:
    """A net around a loop of `n` iterations, whose state is `v` inside and `x`, then `c` outside."""
    text = f"""(float[N,4] x) => (float[N,3] y) {{
        c = Loop(n, yes, x) <body = b (int64 i, bool go, float[N,4] v) => (bool on, float[N,4] vo) {{
            on = Identity(go)
            {inner}
        }}>
        {outer}
    }}"""
    return net(text, z=(4, 3), yes=YES, n=np.array(n), **stored)


def into_body(model: ModelProto, *names: str, at: int = 0) -> ModelProto:
    """Move initializers of a model into the body of a node."""
    inside = next(a.g for a in model.graph.node[at].attribute if a.type == onnx.AttributeProto.GRAPH)
    for item in [t for t in model.graph.initializer if t.name in names]:
        inside.initializer.append(item)
        model.graph.initializer.remove(item)
    return model


def check(model: ModelProto, groups: dict[str, int], **more: Any) -> onnxshap.Traced:
    """Assert which groups a model has, exactness, and that a cut file has the nodes of the original where they were."""
    traced = trace(model, **{k: v for k, v in more.items() if k == "input_shapes"})
    assert {g.name: len(g) for g in traced.groups} == groups
    for keep in ({}, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}):
        assert nested_ops(drop_units(traced, keep).graph) == nested_ops(model.graph)
    for seed in range(2):
        check_exact(model, seed=seed, **more)
    return traced


PAIR = "h = MatMul(v, w)\n r = Relu(h)\n vo = MatMul(r, u)"


def test_a_pair_of_layers_in_a_loop() -> None:
    traced = check(looped(PAIR, w=(4, 6), u=(6, 4)), {"h": 6})
    assert traced.groups[0].consumers == ("vo",)
    assert traced.frozen[0].reason == "it is a model input"  # the state, after all iterations and before
    slices = removed_slices(traced, {"h": np.arange(6) != 2})
    assert [(s["initializer"], s["node"], s["axis"], s["indices"], s["body"]) for s in slices] == [
        ("w", "h", 1, [2], "c.body"),
        ("u", "vo", 0, [2], "c.body"),
    ]


def test_weights_that_are_stored_in_the_body_stay_there() -> None:
    model = into_body(looped(PAIR, w=(4, 6), u=(6, 4)), "w", "u")
    small = drop_units(check(model, {"h": 6}), {"h": np.arange(6) < 2})
    assert {t.name: list(t.dims) for t in small.graph.node[0].attribute[0].g.initializer} == {"w": [4, 2], "u": [2, 4]}


def test_weights_that_are_constant_nodes_of_the_body() -> None:
    model = looped("h = MatMul(v, w)\n r = Relu(h)\n vo = MatMul(r, u)", w=(4, 6), u=(6, 4))
    inside = model.graph.node[0].attribute[0].g
    for item in [t for t in model.graph.initializer if t.name in "wu"]:
        inside.node.insert(0, helper.make_node("Constant", [], [item.name], value=item))
        model.graph.initializer.remove(item)
    check(model, {"h": 6})


def test_convolutions_in_a_loop() -> None:
    text = """(float[N,3,6,6] x) => (float[N,2,6,6] y) {
        a = Conv<pads=[1,1,1,1]>(x, wa)
        c = Loop(n, yes, a) <body = b (int64 i, bool go, float[N,4,6,6] v) => (bool on, float[N,4,6,6] vo) {
            on = Identity(go)
            h = Conv<pads=[1,1,1,1]>(v, w, wb)
            m = BatchNormalization(h, scale, shift, mean, var)
            r = Sigmoid(m)
            d = Conv<group=6, pads=[1,1,1,1]>(r, wd)
            t = Conv(d, u, ub)
            vo = Add(t, v)
        }>
        y = Conv(c, z)
    }"""
    stored: Any = {"w": (6, 4, 3, 3), "wb": (6,), "wd": (6, 1, 3, 3), "u": (4, 6, 1, 1), "ub": (4,)}
    model = net(
        text,
        wa=(4, 3, 3, 3),
        z=(2, 4, 1, 1),
        scale=(6,),
        shift=(6,),
        mean=(6,),
        var=(6,),
        yes=YES,
        n=np.array(2),
        **stored,
    )
    check(into_body(model, "wd", "shift", at=1), {"a": 4, "h": 6})


def test_what_the_body_reads_outside_is_cut_with_it() -> None:
    """Tensors, not weights alone: the loop is one of their consumers."""
    inner = "k = MatMul(e, p)\n s = Add(k, v)\n vo = Tanh(s)"
    model = looped(inner, p=(5, 4))
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "a"], ["d"], name="d"))
    model.graph.node.insert(1, helper.make_node("Relu", ["d"], ["e"], name="e"))
    model.graph.initializer.append(numpy_helper.from_array(RNG.normal(size=(4, 5)).astype(np.float32), "a"))
    traced = check(model, {"d": 5})
    assert traced.groups[0].consumers == ("k",)


def scanned(
    attributes: str = "", slices: str = "float[N,4] p", shape: str = "3,2,4", out: str = "3,2,3", first: int | str = 2
) -> ModelProto:
    text = f"""(float[{shape}] x, float[{first},5] first) => (float[{out}] y, float[{first},5] last) {{
        last, y = Scan(first, x) <num_scan_inputs=1{attributes}, body = b (float[N,5] s, {slices})
                => (float[N,5] so, float[N,3] o) {{
            q = Concat<axis=1>(s, p)
            h = MatMul(q, w)
            r = Relu(h)
            so = MatMul(r, u)
            k = MatMul(so, wk)
            t = Tanh(k)
            o = MatMul(t, uk)
        }}>
    }}"""
    return net(text, w=(9, 8), u=(8, 5), wk=(5, 6), uk=(6, 3))


def test_layers_in_a_scan() -> None:
    shapes: Any = {"x": (2, 2, 4), "first": (2, 5)}
    data = Dataset({name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    model = scanned(shape="2,2,4", out="2,2,3")
    traced = check(model, {"h": 8, "k": 6}, input_shapes=shapes, data=data)
    reasons = {f.tensor: f.reason for f in traced.frozen}
    assert reasons == {"so": "it is a model input", "o": "it is a model output"}


def test_a_scan_backwards_over_another_axis() -> None:
    given = ", scan_input_axes=[1], scan_output_axes=[-2], scan_input_directions=[1], scan_output_directions=[1]"
    model = scanned(given, shape="N,T,4", out="N,T,3", first="N")
    shapes: Any = {"x": (2, 3, 4), "first": (2, 5)}
    data = Dataset({name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    check(into_body(model, "w", "uk"), {"h": 8, "k": 6}, input_shapes=shapes, data=data)


def test_a_scan_with_several_inputs_and_outputs() -> None:
    text = """(float[N,T,4] x, float[N,5,T] z) => (float[N,T,3] y, float[N,2,T] o) {
        y, o = Scan(x, z) <
                num_scan_inputs=2, scan_input_axes=[1,-1], scan_output_axes=[1,2], scan_input_directions=[0,1],
                body = b (float[N,4] p, float[N,5] q) => (float[N,3] s, float[N,2] t) {
            a = MatMul(p, wa)
            d = MatMul(q, wd)
            e = Add(a, d)
            f = Relu(e)
            s = MatMul(f, us)
            t = MatMul(f, ut)
        }>
    }"""
    model = net(text, wa=(4, 7), wd=(5, 7), us=(7, 3), ut=(7, 2))
    shapes: Any = {"x": (2, 3, 4), "z": (2, 5, 3)}
    data = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    check(model, {"a": 7}, input_shapes=shapes, data=Dataset(data))


NESTED = """j = Loop(two, yes, v) <body = d (int64 k, bool went, float[N,4] s) => (bool on2, float[N,4] so) {
    on2 = Identity(went)
    f = MatMul(s, w2)
    g = Tanh(f)
    q = MatMul(g, u2)
    so = Add(q, e)
}>
vo = Add(j, e)"""


def test_a_loop_in_a_loop() -> None:
    inner = f"h = MatMul(v, w)\n r = Relu(h)\n e = MatMul(r, u)\n {NESTED}"
    model = looped(inner, w=(4, 6), u=(6, 4), w2=(4, 5), u2=(5, 4), two=np.array(2))
    traced = check(into_body(model, "w", "u2"), {"h": 6, "f": 5})
    slices = removed_slices(traced, {"f": np.arange(5) != 2})
    assert [s["body"] for s in slices] == ["c.body/j.body"] * 2


def test_a_loop_in_a_loop_that_runs_more_often_each_time_stays_whole() -> None:
    inner = f"""h = MatMul(v, w)
        r = Relu(h)
        e = MatMul(r, u)
        l = MatMul(r, u)
        {NESTED.replace("two", "i").replace("(q, e)", "(q, l)")}"""
    traced = check(looped(inner, w=(4, 6), u=(6, 4), w2=(4, 5), u2=(5, 4)), {"h": 6})
    reason = next(f.reason for f in traced.frozen if f.tensor == "l")
    assert (
        reason
        == "the body of Loop reads it: its body stays whole: it is not run at these sizes, or not as often each time"
    )


def test_an_if_in_a_loop() -> None:
    inner = """h = MatMul(v, w)
        r = Relu(h)
        odd = Cast<to=9>(i)
        vo = If(odd) <then_branch = g () => (float[N,4] f) {
            d = MatMul(r, w2)
            e = Relu(d)
            f = MatMul(e, u2)
        }, else_branch = k () => (float[N,4] l) { l = MatMul(r, u) }>"""
    check(looped(inner, w=(4, 6), u=(6, 4), w2=(6, 5), u2=(5, 4)), {"h": 6, "d": 5})


def test_a_loop_in_an_if() -> None:
    text = """(float[N,4] x) => (float[N,3] y) {
        total = ReduceSum<keepdims=0>(x)
        yes = Greater(total, zero)
        c = If(yes) <then_branch = g () => (float[N,4] t) {
            t = Loop(n, go, x) <body = b (int64 i, bool go2, float[N,4] v) => (bool on, float[N,4] vo) {
                on = Identity(go2)
                h = MatMul(v, w)
                r = Relu(h)
                vo = MatMul(r, u)
            }>
        }, else_branch = k () => (float[N,4] l) {
            d = MatMul(x, w2)
            e = Relu(d)
            l = MatMul(e, u2)
        }>
        y = MatMul(c, z)
    }"""
    stored: Any = {"w": (4, 6), "u": (6, 4), "w2": (4, 5), "u2": (5, 4)}
    model = net(text, z=(4, 3), go=YES, n=np.array(2), zero=np.float32(0), **stored)
    x = np.abs(RNG.normal(size=(3, 4))).astype(np.float32)
    for data in (Dataset({"x": x}), Dataset({"x": -x})):
        check(model, {"h": 6, "d": 5}, data=data)


def test_a_loop_that_does_not_run_stays_whole() -> None:
    model = looped(PAIR, n=0, w=(4, 6), u=(6, 4))
    check(model, {})


def test_a_state_that_grows_stays_and_what_does_not_touch_it_is_cut() -> None:
    text = """(float[N,4] x) => (float[N,3] y, float[N,K] all) {
        c, all = Loop(n, yes, x, x) <body = b (int64 i, bool go, float[N,4] v, float[N,P] past)
                => (bool on, float[N,4] vo, float[N,Q] pasts) {
            on = Identity(go)
            h = MatMul(v, w)
            r = Relu(h)
            t = MatMul(r, u)
            k = MatMul(r, uk)
            pasts = Concat<axis=1>(past, k)
            sum = ReduceMean<axes=[1]>(pasts)
            vo = Add(t, sum)
        }>
        y = MatMul(c, z)
    }"""
    traced = check(net(text, z=(4, 3), yes=YES, n=np.array(3), w=(4, 6), u=(6, 4), uk=(6, 4)), {"h": 6})
    reason = next(f.reason for f in traced.frozen if f.tensor == "k")
    assert reason == "Concat reads or gives what has no fixed shape"


GROWING = """(float[N,4] x) => (float[N,3] y) {
    c = Loop(n, yes, x) <body = b (int64 i, bool go, float[N,4] v) => (bool on, float[N,4] vo) {
        h = MatMul(v, w)
        r = Relu(h)
        t = MatMul(r, u)
        vo = Add(t, v)
        sum = ReduceSum<keepdims=0>(vo)
        on = Less(sum, most)
    }>
    y = MatMul(c, z)
}"""


def test_a_state_that_a_body_takes_the_mean_of_stays_where_it_is_not_zero_at_removed_positions() -> None:
    """The first state is zero there, later ones are what the body makes of it."""
    model = net(
        """(float[N,4] x) => (float[N,3] y) {
        a = MatMul(x, w)
        c = Loop(n, yes, a) <body = b (int64 i, bool go, float[N,6] v) => (bool on, float[N,6] vo) {
            on = Identity(go)
            m = ReduceMean<axes=[1]>(v)
            vo = MatMul(m, u)
        }>
        y = MatMul(c, z)
    }""",
        w=(4, 6),
        u=(1, 6),
        z=(6, 3),
        yes=YES,
        n=np.array(2),
    )
    traced = check(model, {})
    assert any("ReduceMean sums over it" in f.reason for f in traced.frozen)


def test_images_that_decide_how_often_it_runs_are_run_alone() -> None:
    stored: Any = {name: np.abs(RNG.normal(size=s)).astype(np.float32) for name, s in (("w", (4, 6)), ("u", (6, 4)))}
    model = net(GROWING, z=(4, 3), yes=YES, n=np.array(9), most=np.float32(400), **stored)
    x = np.abs(RNG.normal(size=(3, 4))).astype(np.float32)
    assert trace(model).shaped.apart
    assert not trace(looped(PAIR, w=(4, 6), u=(6, 4))).shaped.apart
    check(model, {"h": 6}, data=Dataset({"x": x}))


RECURRENT = """(float[1,5,4] x) => (float[1,3] y, float[1,5,2] o) {
    last, all = Scan(zero, x) <num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1],
            body = b (float[1,6] s, float[1,4] e) => (float[1,6] so, float[1,6] copy) {
        a = Gemm(e, wa, b)
        d = MatMul(s, wd)
        k = Add(a, d)
        so = Tanh(k)
        copy = Identity(so)
    }>
    y = MatMul(last, z)
    o = MatMul(all, zo)
}"""


def recurrent() -> ModelProto:
    """A recurrent layer as exporters write it without a recurrent op; the batch is fixed."""
    return net(RECURRENT, wa=(4, 6), b=(6,), wd=(6, 6), z=(6, 3), zo=(6, 2), zero=np.zeros((1, 6), np.float32))


def test_units_that_feed_themselves_are_cut_with_the_state() -> None:
    traced = check(recurrent(), {"a": 6})
    assert traced.groups[0].consumers == ("d", "y", "o")
    inside = drop_units(traced, {"a": np.arange(6) < 2}).graph.node[0].attribute
    body = next(a.g for a in inside if a.name == "body")
    assert [d.dim_value for item in (body.input[0], *body.output) for d in item.type.tensor_type.shape.dim] == [
        1,
        2,
    ] * 3


GATED = """(float[N,5,4] x) => (float[N,3] y) {
    shape = Shape(x)
    images = Gather<axis=0>(shape, zero)
    size = Concat<axis=0>(images, six)
    first = ConstantOfShape(size)
    steps = Transpose<perm=[1,0,2]>(x)
    lengths = Gather<axis=0>(shape, one)
    length = Squeeze(lengths, zero)
    last, all = Loop(length, yes, first) <
            body = b (int64 i, bool go, float[N,6] s) => (bool on, float[N,6] so, float[N,6] copy) {
        on = Less(i, limit)
        e = Gather<axis=0>(steps, i)
        q = Concat<axis=1>(e, s)
        g = MatMul(q, w)
        a, d = Split<axis=1>(g)
        f = Sigmoid(a)
        t = Tanh(d)
        m = Mul(f, t)
        so = Add(m, s)
        copy = Identity(so)
    }>
    back = Transpose<perm=[1,0,2]>(all)
    o = ReduceMean<axes=[1], keepdims=0>(back)
    p = MatMul(o, u)
    r = Relu(p)
    y = MatMul(r, z)
}"""


def test_a_gated_cell_over_time_first_steps_as_tf2onnx_writes_it() -> None:
    """The state's first value is made of sizes, one of them its width; images are on another axis inside."""
    sizes: Any = {"zero": np.array([0]), "one": np.array([1]), "six": np.array([6]), "limit": np.array(100)}
    model = net(GATED, yes=YES, w=(10, 12), u=(6, 8), z=(8, 3), **sizes)
    groups = {g.name: (len(g), g.consumers) for g in trace(model).groups}
    assert groups == {"g": (6, ("g", "p")), "p": (8, ("y",))}
    assert [check_exact(model, seed=seed).rows for seed in (0, 1)] == [0, 0]


def test_a_file_of_one_image_takes_several_through_its_loop() -> None:
    """Also where the state starts as a constant, which then has an entry for every image."""
    assert free_batch(trace(recurrent())).shaped.free_batch
    assert check_exact(recurrent()).rows is not None


@pytest.mark.parametrize("method", ["shapley", "l1", "random", "activation", "recon", "lean", "taylor", "sensitivity"])
def test_units_in_loops_have_values(method: str) -> None:
    model = looped(PAIR, w=(4, 6), u=(6, 4))
    x = RNG.normal(size=(24, 4)).astype(np.float32)
    found = onnxshap.score(model, x, method=method, samples=8).values["h"]
    assert len(np.unique(found.phi)) > 1
    assert np.isfinite(found.phi).all()


BEFORE_LAYERS = looped(
    PAIR, outer="f = MatMul(c, wf)\n g = Relu(f)\n y = MatMul(g, uf)", w=(4, 6), u=(6, 4), wf=(4, 8), uf=(8, 3)
)


@pytest.mark.parametrize("repair", ["lstsq", "fold", "none"])
@pytest.mark.parametrize(
    ("model", "shape", "behind"), [(BEFORE_LAYERS, (40, 4), {"f", "y"}), (recurrent(), (40, 5, 4), {"y", "o"})]
)
def test_pruning_with_data(model: ModelProto, shape: tuple[int, ...], behind: set[str], repair: str) -> None:
    """Layers behind the loop are refitted, those in it get the means of what they lose."""
    x = RNG.normal(size=shape).astype(np.float32)
    result = onnxshap.prune(model, x, keep_units=0.5, samples=4, repair=repair)
    assert result.verified.rel_err < 1e-5
    assert all(kept.sum() < len(kept) for kept in result.keep.values())
    assert {layer.node for layer in result.refits} == (behind if repair == "lstsq" else set())


def test_widths_are_measured_where_loops_are() -> None:
    x = RNG.normal(size=(60, 5, 4)).astype(np.float32)
    result = onnxshap.prune(recurrent(), x, keep_macs=0.5, samples=4, allocation="curves", multiple_of=1)
    assert result.after.macs <= 0.5 * result.before.macs


def test_macs_of_a_body_count_as_often_as_it_runs() -> None:
    one, three = (trace(looped(PAIR, n=n, w=(4, 6), u=(6, 4))).cost.macs() for n in (1, 3))
    assert (one, three) == (4 * 6 + 6 * 4 + 4 * 3, 3 * (4 * 6 + 6 * 4) + 4 * 3)


def test_images_that_do_not_run_it_have_no_part_in_its_means() -> None:
    model = looped(PAIR, w=(4, 6), u=(6, 4))
    model.graph.input.append(helper.make_tensor_value_info("n", onnx.TensorProto.INT64, ()))
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "n"))
    x = RNG.normal(size=(24, 4)).astype(np.float32)
    times = np.resize([2, 0, 3], 24)
    result = onnxshap.prune(model, {"x": x, "n": times}, keep_units=0.5, samples=4, repair="fold")
    assert result.verified.rel_err < 1e-5
    assert list(result.keep) == ["h"]


def test_weights_that_a_loop_hands_on_are_read_from_outside() -> None:
    """As tf2onnx writes a recurrent cell."""
    text = """(float[N,4] x) => (float[N,3] y) {
        c, w, r = Loop(n, yes, x, w0, r0) <body = b (int64 i, bool go, float[N,4] v, float[4,6] wi, float[6,4] ri)
                                         => (bool on, float[N,4] vo, float[4,6] wo, float[6,4] ro) {
            on = Identity(go)
            h = MatMul(v, wi)
            t = Tanh(h)
            vo = MatMul(t, ri)
            wk = Identity(wi)
            wo = Identity(wk)
            ro = Identity(ri)
        }>
        y = MatMul(c, z)
    }"""
    model = net(text, z=(4, 3), yes=YES, n=np.array(2), w0=(4, 6), r0=(6, 4))
    assert {g.name: len(g) for g in trace(model).groups} == {"h": 6}
    for seed in range(2):
        check_exact(model, seed=seed)
    inside = next(a.g for a in drop_units(trace(model), {}).graph.node[0].attribute if a.name == "body")
    assert [i.name for i in inside.input] == ["i", "go", "v"] and nested_ops(inside) == [
        "Identity",
        "MatMul",
        "Tanh",
        "MatMul",
    ]


def test_weights_that_a_loop_hands_on_first_change_no_names_in_what_is_told_of_it() -> None:
    """As jax2onnx writes a recurrent cell: loops are called by their first outputs, which are gone with such states."""
    text = """(float[1,4] x) => (float[1,3] y) {
        w, r, c = Loop(n, yes, w0, r0, c0) <body = b (int64 i, bool go, float[6,4] wi, float[6,6] ri, float[1,6] v)
                                         => (bool on, float[6,4] wo, float[6,6] ro, float[1,6] vo) {
            on = Identity(go)
            a = Gemm<transB=1>(x, wi)
            s = Gemm<transB=1>(v, ri)
            t = Add(a, s)
            vo = Tanh(t)
            wo = Identity(wi)
            ro = Identity(ri)
        }>
        y = MatMul(c, z)
    }"""
    model = net(text, z=(6, 3), yes=YES, n=np.array(3), w0=(6, 4), r0=(6, 6), c0=(1, 6))
    traced = trace(model)
    assert {len(g) for g in traced.groups} == {6}
    told = removed_slices(traced, {g.name: np.arange(6) != 2 for g in traced.groups})
    assert {one["body"] for one in told if "body" in one} == {"w.body"}
    assert [(one["node"], one["input"]) for one in told if one["initializer"] == "c0"] == [("w", 4)]
    check_exact(model)


def test_a_state_that_is_a_sequence() -> None:
    text = """(float[N,4] x) => (float[N,3] y, float[N,P] all) {
        empty = SequenceEmpty<dtype=1>()
        c, parts = Loop(n, yes, x, empty) <
                body = b (int64 i, bool go, float[N,4] v, seq(float[N,4]) s)
                    => (bool on, float[N,4] t, seq(float[N,4]) so) {
            on = Identity(go)
            h = MatMul(v, w)
            r = Relu(h)
            t = MatMul(r, u)
            so = SequenceInsert(s, t)
        }>
        y = MatMul(c, z)
        all = ConcatFromSequence<axis=1>(parts)
    }"""
    check(net(text, z=(4, 3), yes=YES, n=np.array(3), w=(4, 6), u=(6, 4)), {"h": 6})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_list_that_a_loop_fills_and_that_is_stacked_behind_it(axis: int) -> None:
    """As torch's script writes it: the list is the first state, and the last item is the next state too."""
    behind = "l = Transpose<perm=[0,2,1]>(all)" if axis == -1 else "l = Identity(all)"
    text = f"""(float[N,4] x) => (float[P,Q,3] y) {{
        empty = SequenceEmpty<dtype=1>()
        parts, c = Loop(n, yes, empty, x) <
                body = b (int64 i, bool go, seq(float[N,6]) s, float[N,4] v)
                    => (bool on, seq(float[N,6]) so, float[N,4] t) {{
            on = Identity(go)
            h = MatMul(v, w)
            r = Relu(h)
            so = SequenceInsert(s, r)
            t = MatMul(r, u)
        }}>
        all = ConcatFromSequence<axis={axis}, new_axis=1>(parts)
        {behind}
        y = MatMul(l, z)
    }}"""
    model = net(text, z=(6, 3), yes=YES, n=np.array(3), w=(4, 6), u=(6, 4))
    traced = trace(model)
    assert {g.name: len(g) for g in traced.groups} == {"h": 6}
    for seed in range(2):
        check_exact(model, seed=seed)


def test_a_list_that_is_read_otherwise_stays_a_list() -> None:
    text = """(float[N,4] x) => (float[N,4] y, float[P,Q,R] all, int64 k) {
        empty = SequenceEmpty<dtype=1>()
        parts, c = Loop(n, yes, empty, x) <
                body = b (int64 i, bool go, seq(float[N,4]) s, float[N,4] v)
                    => (bool on, seq(float[N,4]) so, float[N,4] t) {
            on = Identity(go)
            h = MatMul(v, w)
            r = Relu(h)
            t = MatMul(r, u)
            so = SequenceInsert(s, t)
        }>
        all = ConcatFromSequence<axis=1, new_axis=1>(parts)
        k = SequenceLength(parts)
        y = Relu(c)
    }"""
    check(net(text, yes=YES, n=np.array(3), w=(4, 6), u=(6, 4)), {"h": 6})


def test_a_loop_without_a_condition_that_gathers_by_its_number_and_hands_its_state_on() -> None:
    text = """(float[N,5,4] x) => (float[N,3] y, float[N,4] d) {
        first = ReduceMean<axes=[1], keepdims=0>(x)
        c, d = Loop(n, , first, first) <
                body = b (int64 i, bool go, float[N,4] s, float[N,4] same)
                    => (bool on, float[N,4] so, float[N,4] same2) {
            on = Identity(go)
            e = Gather<axis=1>(x, i)
            h = MatMul(e, w)
            r = Relu(h)
            t = MatMul(r, u)
            so = Add(t, s)
            same2 = Identity(same)
        }>
        y = MatMul(c, z)
    }"""
    check(net(text, z=(4, 3), n=np.array(3), w=(4, 6), u=(6, 4)), {"h": 6})


def test_random_numbers_keep_a_body_whole() -> None:
    model = looped("k = RandomNormalLike(v)\n g = Sub(k, k)\n h = MatMul(v, w)\n r = MatMul(h, u)\n vo = Add(r, g)",
                   w=(4, 6), u=(6, 4), outer="f = MatMul(c, q)\n y = MatMul(f, p)", q=(4, 8), p=(8, 3))  # fmt: skip
    model.graph.node.insert(0, helper.make_node("Tanh", ["x"], ["x2"]))
    model.graph.node[1].input[2] = "x2"
    traced = trace(model)
    assert [g.name for g in traced.groups] == ["f"]
    assert traced.shaped.whole["c"].startswith("its body draws random numbers")


def test_arithmetic_of_sizes_is_folded_once_however_often_bodies_are_lifted() -> None:
    inner = f"h = MatMul(v, w)\n r = Relu(h)\n e = MatMul(r, u)\n {NESTED}"
    outer = "k = MatMul(c, wk)\n s = Shape(k)\n wide = Expand(one, s)\n m = Mul(k, wide)\n y = MatMul(m, uk)"
    model = looped(inner, outer=outer, w=(4, 6), u=(6, 4), w2=(4, 5), u2=(5, 4), two=np.array(2), wk=(4, 8), uk=(8, 3),
                   one=np.ones((1, 1), np.float32))  # fmt: skip
    traced = trace(model)
    assert [g.name for g in traced.groups] == ["h", "f", "k"]
    check_exact(model)
    assert [n.op_type for n in traced.shaped.graph.nodes].count("Where") == 1


def test_distillation_says_that_it_knows_no_loops() -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install 'onnxshap[distill]')")
    x = RNG.normal(size=(40, 5, 4)).astype(np.float32)
    with pytest.raises(ModelError, match="distill cannot evaluate Scan; use repair lstsq"):
        onnxshap.prune(recurrent(), x, keep_units=0.5, samples=4, repair="distill")


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.filterwarnings("ignore")  # the exporter is deprecated
def test_a_scripted_module_as_torch_exports_it(free: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'onnxshap[distill]')")
    from tests.scripted import Refining

    example, file = torch.randn(2 if free else 1, 3, 8, 8), io.BytesIO()
    torch.onnx.export(
        torch.jit.script(Refining().eval()), (example,), file, dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}} if free else None,
    )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    assert "Loop" in [n.op_type for n in model.graph.node]
    traced = trace(model)
    assert [len(g) for g in traced.groups] == [6, 10, 8]  # the trunk, through the loop; two pairs of layers in it
    assert check_exact(model, seed=1).rows is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("kind", ["scan", "while_loop"])
def test_the_new_exporter_s_loops(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'onnxshap[distill]')")
    from tests.scripted import Looping

    program = torch.onnx.export(
        Looping(kind).eval(), (torch.randn(2, 5, 4),), dynamo=True, dynamic_shapes={"x": {0: torch.export.Dim("N")}},
        verbose=False,
    )  # fmt: skip
    model = program.model_proto
    assert {"Scan", "Loop"}.intersection(n.op_type for n in model.graph.node)
    assert [len(g) for g in trace(model).groups] == [8, 6]
    assert check_exact(model, seed=1).rows is not None


def filled(*, axis: int, rank: int, times: int = 2, more: str = "", on: str = "on = Identity(go)") -> ModelProto:
    """Return a net that splits what it makes at listed places, in a loop that fills a sequence, as torch writes it."""
    number = "int64 i" if not rank else "int64[1] i"
    return net(
        f"""(float[N,5,4] x) => (float[N,S,3] y, float[N,T,3] z) {{
            h = MatMul(x, w)
            r = Relu(h)
            none = SequenceEmpty()
            parts = Loop(n, yes, none) <
                    body = b ({number}, bool go, seq(float[N,A,B]) s) => (bool on, seq(float[N,A,B]) so) {{
                {on}
                here = Reshape(i, one)
                from = Gather(places, here)
                step = Constant<value=int64[1] {{1}}>()
                next = Add(here, step)
                to = Gather(places, next)
                part = Slice(r, from, to, along)
                so = SequenceInsert(s, part)
                {more}
            }}>
            a = SequenceAt(parts, first)
            b0 = SequenceAt(parts, second)
            y = MatMul(a, u)
            z = MatMul(b0, v)
        }}""",
        n=np.array(times), yes=YES, places=[0, 2, 5, 6], along=[axis], one=[1], first=np.array(0), second=np.array(1),
        w=(4, 5 if axis == 2 else 6), u=(2 if axis == 2 else 6, 3), v=(3 if axis == 2 else 6, 3),
    )  # fmt: skip


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loop_that_fills_a_sequence_is_what_it_does_as_often_as_it_runs(rank: int) -> None:
    """Else nothing that is read of the sequence is cut: there are no axes to follow."""
    steps, units = filled(axis=1, rank=rank), filled(axis=2, rank=rank)
    assert [len(g) for g in trace(steps).groups] == [6]
    assert [len(g) for g in trace(units).groups] == [5]
    for model in (steps, units):
        for seed in range(2):
            check_exact(model, seed=seed)
        assert "Loop" not in nested_ops(drop_units(trace(model), {}).graph)


def test_a_loop_that_is_not_begun_is_not_written_out_where_its_body_gives_the_condition_the_same_name() -> None:
    text = """(float[N,4] x) => (float[N,3] y, int64 k) {
        h = MatMul(x, w)
        r = Relu(h)
        none = SequenceEmpty()
        parts = Loop(n, yes, none) <
                body = b (int64 i, bool yes, seq(float[N,6]) s) => (bool on, seq(float[N,6]) so) {
            on = Identity(yes)
            so = SequenceInsert(s, r)
        }>
        k = SequenceLength(parts)
        y = MatMul(r, u)
    }"""
    for begun in (True, False):
        model = net(text, n=np.array(2), yes=np.array(begun), w=(4, 6), u=(6, 3))
        assert run(drop_units(trace(model), {}), {"x": np.ones((2, 4), np.float32)})[1] == 2 * begun
        check_exact(model)


def test_a_loop_that_holds_a_sequence_stays_where_it_may_end_early_or_often() -> None:
    many = filled(axis=1, rank=0)
    next(t for t in many.graph.initializer if t.name == "n").CopyFrom(numpy_helper.from_array(np.array(1000), "n"))
    ending = filled(axis=1, rank=0, times=3, on="last = Constant<value=int64 {1}>()\n on = Less(i, last)")
    heavy = filled(axis=1, rank=0, more="k = MatMul(part, q)\n e = Relu(k)")
    heavy.graph.initializer.append(numpy_helper.from_array(np.ones((6, 6), np.float32), "q"))
    for model in (ending, heavy):
        traced = trace(model)
        assert any(node.op_type == "Loop" for node in traced.shaped.graph.nodes)
        check_exact(model)
    unrolled = onnxshap.graph.normalise(many)
    assert [node.op_type for node in unrolled.nodes].count("Loop") == 1
