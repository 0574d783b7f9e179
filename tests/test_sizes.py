"""Models of free height and width are cut for every size, not for those that they were traced at."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, TensorProto, helper

from onnxshap.backend import OrtBackend
from onnxshap.errors import ModelError
from onnxshap.graph import normalise
from onnxshap.masking import insert_masks, mask_name
from onnxshap.rewrite import drop_units
from onnxshap.shapes import infer
from onnxshap.shapes.alone import Alone, Given
from onnxshap.shapes.dims import Shape, names_in
from onnxshap.shapes.doubts import doubtful
from onnxshap.shapes.folding import Run
from onnxshap.shapes.probe import ShapeProbe
from onnxshap.shapes.sizes import sizes_in_doubt
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.cases.linear import FREE_GROUP_NORM, FREE_GROUP_NORM_WEIGHTS
from tests.exactness import TOLERANCE, check_exact, draw_plan, net
from tests.zeroing import relative_error, run, zeroed

ENDS: dict[str, Any] = {"nil": [0], "one": [1], "two": [2], "four": [4], "none": [0, 0, 0, 0, 0, 0]}
NETS = {
    "what is upsampled is padded by what strides have taken": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0)
        ar = Relu(a)
        b = Conv<strides=[2,2], pads=[1,1,1,1]>(ar, w1)
        u = ConvTranspose<strides=[2,2]>(b, w2)
        sa = Shape(ar)
        su = Shape(u)
        large = Slice(sa, two, four)
        small = Slice(su, two, four)
        apart = Sub(large, small)
        pads = Concat<axis=0>(none, apart)
        p = Pad(u, pads)
        c = Concat<axis=1>(ar, p)
        y = Conv<pads=[1,1,1,1]>(c, w3)
    }""", w0=(8, 3, 3, 3), w1=(6, 8, 3, 3), w2=(6, 4, 2, 2), w3=(2, 12, 3, 3), **ENDS), [8, 6, 4]),
    "padded to whole windows, as torch writes it": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv(x, w0)
        s = Shape(a)
        hw = Slice(s, two, four)
        over = Mod(hw, window)
        left = Sub(window, over)
        need = Mod(left, window)
        h = Slice(need, nil, one)
        w = Slice(need, one, two)
        listed = Concat<axis=0>(nil, w, nil, h)
        length = Shape(listed)
        missing = Sub(eight, length)
        others = ConstantOfShape<value=int64[1] {0}>(missing)
        all = Concat<axis=0>(listed, others)
        pairs = Reshape(all, by_two)
        turned = Slice(pairs, last, far, nil, last)
        t = Transpose<perm=[1,0]>(turned)
        pads = Reshape(t, last)
        p = Pad(a, pads)
        y = Conv<strides=[4,4]>(p, w1)
    }""", w0=(8, 3, 3, 3), w1=(2, 8, 4, 4), window=[4, 4], eight=[8], by_two=[-1, 2], last=[-1], far=[-(2**63) + 1],
        **ENDS), [8]),
    "resized to sizes that are rounded, and what comes of it again": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0)
        d = Conv<strides=[2,2]>(a, w1)
        sa = Shape(a)
        hw = Slice(sa, two, four)
        third = Div(hw, three)
        sd = Shape(d)
        front = Slice(sd, nil, two)
        sizes = Concat<axis=0>(front, third)
        e = Resize(d, , , sizes)
        f = Relu(e)
        sf = Shape(f)
        front2 = Slice(sf, nil, two)
        sizes2 = Concat<axis=0>(front2, hw)
        g = Resize(f, , , sizes2)
        l = Conv(a, w2)
        m = Add(g, l)
        y = Conv(m, w3)
    }""", w0=(8, 3, 3, 3), w1=(6, 8, 1, 1), w2=(6, 8, 1, 1), w3=(2, 6, 1, 1), three=[3], **ENDS), [8, 6]),
    "split into rows by sizes of the data": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0)
        sa = Shape(a)
        h = Slice(sa, two, three)
        upper = Div(h, two)
        lower = Sub(h, upper)
        parts = Concat<axis=0>(upper, lower)
        p, q = Split<axis=2>(a, parts)
        b = Concat<axis=2>(q, p)
        y = Conv<pads=[1,1,1,1]>(b, w1)
    }""", w0=(8, 3, 3, 3), w1=(2, 8, 3, 3), three=[3], **ENDS), [8]),
    "height and width change places and are looked up there": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv(x, w0)
        s = Shape(a)
        front = Slice(s, nil, two)
        h = Slice(s, two, three)
        w = Slice(s, three, four)
        flat = Concat<axis=0>(front, minus)
        r = Reshape(a, flat)
        b = Relu(r)
        whole = Concat<axis=0>(front, h, w)
        m = Reshape(b, whole)
        t = Transpose<perm=[0,1,3,2]>(m)
        tall = Concat<axis=0>(front, w, h)
        k = Reshape(t, tall)
        y = Conv(k, w1)
    }""", w0=(8, 3, 1, 1), w1=(2, 8, 1, 1), minus=[-1], three=[3], **ENDS), [8]),
    "channels are dealt out to positions, as many as there are": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv(x, w0)
        s = Shape(a)
        front = Slice(s, nil, two)
        flat = Concat<axis=0>(front, minus)
        r = Reshape(a, flat)
        t = Transpose<perm=[0,2,1]>(r)
        k = Reshape(t, s)
        b = Conv(k, w1)
        c = Relu(b)
        y = Conv(c, w2)
    }""", w0=(8, 3, 1, 1), w1=(6, 8, 1, 1), w2=(2, 6, 1, 1), minus=[-1], **ENDS), [6]),
    "groups of channels go with the images, and back": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv(x, w0)
        g = Reshape(a, parts)
        f = Reshape(g, flat)
        e = Softmax<axis=1>(f)
        s = Shape(g)
        b = Reshape(e, s)
        m = Mul(b, g)
        k = Reshape(m, whole)
        y = Conv(k, w1)
    }""", w0=(12, 3, 1, 1), w1=(2, 12, 1, 1), parts=[-1, 4, 0, 0], flat=[0, 4, -1], whole=[-1, 12, 0, 0]), [3, 4]),
    "normalised over all of free space, channels last": (net("""(float[N,3,H,W] x) => (float[N,2,P,Q] y) {
        a = Conv(x, w0)
        l = Transpose<perm=[0,2,3,1]>(a)
        r = Reshape(l, one)
        n = InstanceNormalization<epsilon=0.1>(r, s, t)
        e = Shape(l)
        m = Reshape(n, e)
        f = Transpose<perm=[0,3,1,2]>(m)
        b = Mul(f, u)
        y = Conv(b, w9)
    }""", **FREE_GROUP_NORM_WEIGHTS | {"w0": (8, 3, 1, 1), "one": [0, 1, -1]}), [8]),
    "normalised over all of free space": (net(FREE_GROUP_NORM, **FREE_GROUP_NORM_WEIGHTS), [8]),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_a_cut_is_exact_at_sizes_that_were_not_seen(name: str) -> None:
    model, sizes = NETS[name]
    traced = trace(model)
    assert [len(g) for g in traced.groups] == sizes, traced.frozen
    for seed in range(3):
        plan = draw_plan(traced, 0.5, np.random.default_rng(seed))
        small, removed = drop_units(traced, plan), zeroed(model, removed_slices(traced, plan))
        masked = insert_masks(traced)
        masks = {mask_name(g): plan[g.name][None].astype(np.float32) for g in traced.groups}
        # onnxruntime sums the thousands of numbers of an InstanceNormalization less exactly than those of a ReduceMean
        tolerance = 10 * TOLERANCE if name.startswith("normalised") else TOLERANCE
        for height, width in ((64, 64), (33, 47), (50, 66), (17, 24), (100, 29)):
            feeds = {"x": np.random.default_rng(seed).normal(size=(2, 3, height, width)).astype(np.float32)}
            assert relative_error(run(small, feeds), run(removed, feeds)) <= tolerance, (height, width)
            assert relative_error(run(masked, feeds | masks), run(small, feeds)) <= tolerance, (height, width)


def test_a_size_of_which_the_model_takes_one_does_not_hold_the_others() -> None:
    """Lines of text: a window about as high as they are, whose output is squeezed, and any width."""
    model = net(
        """(float[N,3,H,W] x) => (float[N,V,2] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0)
            p = MaxPool<kernel_shape=[33,8],strides=[33,8],pads=[0,1,0,0]>(a)
            s = Shape(p)
            n = Slice(s, zero, two)
            sizes = Concat<axis=0>(n, minus)
            f = Squeeze(p, two)
            r = Reshape(p, sizes)
            d = Add(f, r)
            t = Transpose<perm=[0,2,1]>(d)
            y = MatMul(t, w1)
        }""",
        w0=(8, 3, 3, 3), w1=(8, 2), zero=[0], two=[2], minus=[-1],
    )  # fmt: skip
    traced = trace(model, input_shapes={"x": [None, 3, 48, 320]})
    assert [len(g) for g in traced.groups] == [8], traced.frozen
    plan = draw_plan(traced, 0.5, np.random.default_rng(0))
    small, removed = drop_units(traced, plan), zeroed(model, removed_slices(traced, plan))
    for width in (320, 8, 333, 1000):
        feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 48, width)).astype(np.float32)}
        assert relative_error(run(small, feeds), run(removed, feeds)) <= TOLERANCE, width


@pytest.mark.parametrize("channels", ["C", "8"])
def test_what_may_be_stretched_is_stretched_in_what_is_cut(channels: str) -> None:
    """A state that starts as [1, 1, 1, 1] and is as large as the features from the second image on."""
    model = net(
        f"""(float[N,3,H,W] x, float[M,{channels},P,Q] s) => (float[N,4,?,?] y, float[N,8,?,?] t) {{
            a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w0)
            r = Relu(a)
            b = Conv<pads=[1,1,1,1]>(r, w1)
            size = Shape(b)
            e = Expand(s, size)
            t = Add(b, e)
            j = Concat<axis=1>(e, r)
            c = Conv<pads=[1,1,1,1]>(j, w2)
            q = Relu(c)
            y = Conv(q, w3)
        }}""",
        w0=(6, 3, 3, 3), w1=(8, 6, 3, 3), w2=(10, 14, 3, 3), w3=(4, 10, 1, 1),
    )  # fmt: skip
    traced = trace(model)
    assert traced.shaped.inputs == {"x": (2, 3, 64, 64), "s": (2, 8, 32, 32)}
    assert [len(g) for g in traced.groups] == [6, 10]
    keep, rng = draw_plan(traced, 0.5, np.random.default_rng(0)), np.random.default_rng(1)
    small, removed = drop_units(traced, keep), zeroed(model, removed_slices(traced, keep))
    first = 1 if channels == "C" else 8
    for state in ((2, 8, 16, 16), (1, 8, 16, 16), (2, 8, 1, 1), (1, first, 1, 1), (2, first, 1, 16)):
        feeds = {"x": rng.normal(size=(2, 3, 32, 31)), "s": rng.normal(size=state)}
        given = {name: value.astype(np.float32) for name, value in feeds.items()}
        assert relative_error(run(small, given), run(removed, given)) <= TOLERANCE, state


def doubts(op: str, *given: Given | None, out: tuple[int, ...], domain: str = "", **attributes: Any) -> list[bool]:
    names = [f"i{k}" if one is not None else "" for k, one in enumerate(given)]
    node = helper.make_node(op, names, ["o"], domain=domain, **attributes)
    return [bool(doubt) for doubt in sizes_in_doubt(node, given, {"o": out}, alone())["o"]]


def alone(**kinds: int) -> Alone:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return Alone(helper.make_model(GraphProto(), opset_imports=opsets, ir_version=8), kinds, OrtBackend("cpu", 1))


def data(*sizes: int, doubt: tuple[int, ...] = ()) -> Given:
    return Given(sizes, np.isin(np.arange(len(sizes)), doubt))


def vector(*values: int, doubt: tuple[int, ...] = ()) -> Given:
    entries = np.isin(np.arange(len(values)), doubt)
    return Given((len(values),), np.zeros(1, np.bool_), np.array(values, np.int64), entries)


@pytest.mark.parametrize(
    ("body", "same"),
    [("y = Reshape(x, s)", True), ("z = Shape(x) y = Reshape(x, z)", False)],
)
def test_a_graph_without_arithmetic_of_sizes_is_not_copied(body: str, same: bool) -> None:
    weights: dict[str, Any] = {"s": np.array([0, 4], np.int64)} if same else {}
    normal = normalise(net(f"(float[N,4] x) => (float[N,4] y) {{ {body} }}", **weights))
    assert (infer(normal, OrtBackend()).graph is normal) == same


def test_sizes_that_do_not_depend_on_those_in_doubt_are_sure() -> None:
    image = data(2, 8, 16, 16, doubt=(2,))
    assert doubts("Conv", image, data(6, 8, 1, 1), out=(2, 6, 16, 16)) == [False, False, True, False]
    assert doubts("Relu", image, out=(2, 8, 16, 16)) == [False, False, True, False]
    assert doubts("Add", image, data(2, 8, 16, 16), out=(2, 8, 16, 16)) == [False] * 4  # they have to be the same
    assert doubts("Transpose", image, out=(2, 16, 8, 16), perm=[0, 2, 1, 3]) == [False, True, False, False]
    assert doubts("MatMul", data(4, 8, doubt=(0,)), data(8, 3), out=(4, 3)) == [True, False]
    assert doubts("GlobalAveragePool", image, out=(2, 8, 1, 1)) == [False] * 4
    assert doubts("Resize", data(2, 8, 4, 4), None, None, vector(2, 8, 9, 9, doubt=(2, 3)), out=(2, 8, 9, 9)) == [
        False, False, True, True,
    ]  # fmt: skip
    assert doubts("Expand", data(8, 1), vector(3, 1, 5, doubt=(2,)), out=(3, 8, 5)) == [False, False, True]
    ends = vector(5, 7, doubt=(1,))
    assert doubts("Slice", image, vector(0, 0), ends, vector(2, -1), out=(2, 8, 5, 7)) == [False, False, True, True]
    pads = vector(0, 0, 0, 1, 0, 0, 2, 1, doubt=(6,))
    assert doubts("Pad", data(2, 8, 4, 4), pads, out=(2, 8, 6, 6)) == [False, False, True, False]
    assert all(doubts("Pad", data(2, 8), vector(0, 1, doubt=(1,)), None, vector(1), out=(2, 9)))
    assert doubts("ConstantOfShape", vector(3, 4, doubt=(0,)), out=(3, 4)) == [True, False]
    assert doubts("Reshape", data(2, 8, 16), vector(0, -1, 16), out=(2, 8, 16)) == [False] * 3
    assert doubts("Reshape", image, vector(0, -1, 4, 16), out=(2, 32, 4, 16)) == [False, True, False, False]
    rows = data(2, 256, 8, doubt=(1,))
    assert doubts("Reshape", rows, vector(2, 16, 16, -1, doubt=(1, 2)), out=(2, 16, 16, 8)) == [
        False, True, True, False,
    ]  # fmt: skip
    assert doubts("Reshape", rows, vector(2, 16, -1, 16, doubt=(1,)), out=(2, 16, 8, 16)) == [False, True, True, False]
    assert doubts("Reshape", image, vector(0, 8, 256), out=(2, 8, 256)) == [False] * 3
    assert doubts("Reshape", image, vector(0, 0, 0, 4, doubt=(3,)), out=(2, 8, 16, 4)) == [False, False, True, True]


def test_the_runtime_knows_ops_of_other_domains() -> None:
    image = data(2, 8, 16, 16, doubt=(2,))
    assert doubts("Gelu", image, out=(2, 8, 16, 16), domain="com.microsoft") == [False, False, True, False]
    codes, scale, zero = data(2, 8, 4, doubt=(0, 2)), data(), data()
    node = helper.make_node("QLinearAdd", ["a", "s", "z", "b", "s", "z", "s", "z"], ["o"], domain="com.microsoft")
    kinds = {"a": TensorProto.UINT8, "b": TensorProto.UINT8, "z": TensorProto.UINT8}
    given = [codes, scale, zero, data(8, 1), scale, zero, scale, zero]
    assert sizes_in_doubt(node, given, {"o": (2, 8, 4)}, alone(**kinds))["o"].tolist() == [True, False, True]


def test_what_nobody_knows_is_in_doubt() -> None:
    image = data(2, 8, 16, 16, doubt=(2,))
    assert all(doubts("Unheard", image, out=(2, 8, 16, 16), domain="com.microsoft"))
    assert all(doubts("Slice", data(2, 8), vector(0), vector(1, doubt=(0,)), out=(1, 8))[:1])
    assert all(doubts("Slice", data(2, 8), vector(0), vector(1), vector(1, doubt=(0,)), out=(2, 1)))
    assert all(doubts("Relu", image, out=(2, 8)))  # not of that rank


def test_what_a_loop_makes_of_sizes_in_doubt_has_no_shape_that_is_known() -> None:
    """A Shape of what has none in the run is in doubt as a whole."""
    model = net(
        """(float[N,H,4] x) => (float[N,H,4] y) {
        s = Shape(x)
        h = Div(s, two)
        e = Unheard(h)
        q = Shape(e)
        y = Relu(x)
    }""",
        two=[2, 2, 2],
    )
    one = {"s": np.array([2, 64, 4]), "h": np.array([1, 32, 2]), "q": np.array([3])}
    others = [{"s": np.array([3, 96, 4]), "h": np.array([1, 48, 2]), "q": np.array([3])}]
    shapes = {"x": (2, 64, 4), "s": (3,), "h": (3,), "q": (1,), "two": (3,)}
    assert doubtful(model, one, others, shapes, alone()).entries["q"].all()


def test_names_that_would_be_odd_in_a_program_are_read_in_silence() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert names_in("3and odd") == ["odd"]
    assert not told


def test_the_sizes_that_tell_are_even_and_odd() -> None:
    """A model that takes no odd sizes is asked for coarser ones, and one of a fixed size is not asked at all."""
    from onnxshap.graph import normalise
    from onnxshap.shapes import input_specs
    from onnxshap.shapes.kinds import value_kinds
    from onnxshap.shapes.trials import runs

    def seen(text: str, **weights: Any) -> list[tuple[int, ...]]:
        graph = normalise(net(text, **weights))
        specs = input_specs(graph.model)
        probe = ShapeProbe(graph, value_kinds(graph.model), OrtBackend("cpu", 1), specs, {})
        first, others = runs(probe, specs, {})
        return [tuple(run.inputs["x"][1:]) for run in (first, *others)]

    same = "{ y = Relu(x) }"
    assert seen(f"(float[N,H,4] x) => (float[N,H,4] y) {same}") == [(64, 4), (96, 4), (33, 4), (31, 4)]
    assert seen(f"(float[N,H,W] x) => (float[N,H,W] y) {same}") == [(64, 64), (96, 96), (33, 97), (31, 95)]
    assert seen(f"(float[N,S,S] x) => (float[N,S,S] y) {same}") == [(64, 64), (96, 96), (33, 33), (31, 31)]
    assert seen("""(float[N,H,W] x) => (float[N,H,W] z) {
        t = Transpose<perm=[0,2,1]>(x)
        y = MatMul(x, t)
        z = Add(y, x)
    }""") == [(64, 64), (96, 96), (33, 33), (31, 31)]  # a square alone will do
    limited = """(float[N,H,W] x) => (float[N,H,W] y) {
        s = Shape(x)
        h = Slice(s, one, two)
        w = Slice(s, two, three)
        p = Slice(rows, nil, h)
        q = Slice(columns, nil, w)
        r = MatMul(p, q)
        y = Add(x, r)
    }"""
    places = {"rows": (64, 3), "columns": (64, 3), "three": [3], **ENDS}
    turned = limited.replace("MatMul(p, q)", 'Einsum<equation="hd,wd->hw">(p, q)')
    assert seen(turned, **places) == [(64, 64), (64, 64), (49, 33), (47, 31)]  # as many places as there are
    assert seen(
        "(float[N,H,4] x) => (float[N,K,8,4] y) { y = Reshape(x, by) }", by=[0, -1, 8, 4]
    ) == [(64, 4), (96, 4), (40, 4), (24, 4)]  # fmt: skip
    assert seen("(float[N,5,4] x) => (float[N,5,4] y) { y = Relu(x) }") == [(5, 4), (5, 4)]
    assert seen("(float[2,5,4] x) => (float[2,5,4] y) { y = Relu(x) }") == [(5, 4), (5, 4)]


def test_what_is_large_is_run_at_smaller_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net that takes gigabytes at 64 x 64 is not run at 96 x 96; smaller ones leave more than one entry of all."""
    monkeypatch.setattr("onnxshap.shapes.trials._LARGE", 1000)
    sizes: list[tuple[int, ...]] = []
    run = ShapeProbe.run

    def noted(probe: ShapeProbe, given: Mapping[str, Shape]) -> Run:
        sizes.append(given["x"][1:])
        return run(probe, given)

    monkeypatch.setattr(ShapeProbe, "run", noted)
    text = """(float[N,H,W] x) => (float[N,P,Q] y) {{
        a = Unsqueeze(x, one)
        b = AveragePool<kernel_shape=[{k},{k}],strides=[{k},{k}]>(a)
        y = Squeeze(b, one)
    }}"""
    trace(net(text.format(k=8), one=[1]))
    assert sizes == [(64, 64), (32, 32), (49, 33), (47, 31)]
    sizes.clear()
    trace(net(text.format(k=32), one=[1]))
    assert sizes[:3] == [(64, 64), (32, 32), (96, 96)]
    sizes.clear()
    trace(net("(float[N,H,64] x) => (float[N,P,64] y) { y = AveragePool<kernel_shape=[1],strides=[1]>(x) }"),
          input_shapes={"x": (None, 200, 64)})  # fmt: skip
    assert sizes[:2] == [(200, 64), (400, 64)]  # half of it is no multiple of what strides want


def test_onnx_knows_the_shapes_that_sure_sizes_give() -> None:
    """What the doubts rest on: inference of one node alone, with a size that is unknown."""
    image = onnx.helper.make_tensor_value_info("x", 1, [2, 8, "h", 16])
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weight = onnx.helper.make_tensor_value_info("w", 1, [6, 8, 3, 3])
    graph = helper.make_graph([node], "g", [image, weight], [onnx.ValueInfoProto(name="y")])
    (out,) = onnx.shape_inference.infer_shapes(helper.make_model(graph)).graph.output
    assert [d.dim_value for d in out.type.tensor_type.shape.dim] == [2, 6, 0, 14]


def test_tables_of_pairs_of_positions_are_not_stored() -> None:
    """What a file computes of sizes can take more room than its weights."""
    model = net(
        """(float[N,4,300] x) => (float[N,5,300] y) {
            h = Conv(x, w)
            s = Shape<start=2>(h)
            n = Squeeze(s, nil)
            r = Range(zero, n, one)
            q = Concat<axis=0>(s, s)
            columns = Expand(r, q)
            rows = Transpose(columns)
            apart = Sub(columns, rows)
            places = Add(apart, most)
            g = Gather(table, places)
            m = MatMul(h, g)
            y = Conv(m, v)
        }""",
        w=(6, 4, 1), v=(5, 6, 1), table=(599,), zero=np.array(0), one=np.array(1), nil=[0], most=[299],
    )  # fmt: skip
    traced = trace(model)
    assert {g.name: len(g) for g in traced.groups} == {"h": 6}
    assert max(np.prod(t.dims) for t in traced.shaped.graph.model.graph.initializer) == 599
    check_exact(model)


HEADS = net(
    """(float[N,L,6] x) => (float[N,L,2] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    qt = Transpose<perm=[1,0,2]>(q)
    kt = Transpose<perm=[1,0,2]>(k)
    vt = Transpose<perm=[1,0,2]>(v)
    images = Shape<start=0, end=1>(x)
    length = Shape<start=1, end=2>(x)
    rows = Mul(images, heads)
    apart = Concat<axis=0>(length, rows, four)
    qh = Reshape<allowzero=1>(qt, apart)
    kh = Reshape<allowzero=1>(kt, apart)
    vh = Reshape<allowzero=1>(vt, apart)
    qr = Transpose<perm=[1,0,2]>(qh)
    kr = Transpose<perm=[1,2,0]>(kh)
    vr = Transpose<perm=[1,0,2]>(vh)
    s = MatMul(qr, kr)
    p = Softmax<axis=-1>(s)
    o = MatMul(p, vr)
    ot = Transpose<perm=[1,0,2]>(o)
    pairs = Mul(images, length)
    flat = Concat<axis=0>(pairs, width)
    of = Reshape<allowzero=1>(ot, flat)
    z = MatMul(of, wo)
    back = Concat<axis=0>(length, images, two)
    zt = Reshape<allowzero=1>(z, back)
    y = Transpose<perm=[1,0,2]>(zt)
}""",
    wq=(6, 12),
    wk=(6, 12),
    wv=(6, 12),
    wo=(12, 2),
    heads=[3],
    four=[4],
    width=[12],
    two=[2],
)


def test_heads_go_where_they_share_an_axis_with_images_whose_size_is_computed() -> None:
    """So torch.export writes attention of batches and lengths that are both free: [length, images x heads, depth]."""
    traced = trace(HEADS)
    (group,) = [group for group in traced.groups if len(group) == 3]
    check_exact(HEADS)
    keep = {group.name: np.array([True, False, False])}
    small, wide = drop_units(traced, keep), zeroed(HEADS, removed_slices(traced, keep))
    for images, length in ((1, 1), (1, 5), (3, 4), (5, 7)):
        x = np.random.default_rng(length).normal(size=(images, length, 6)).astype(np.float32)
        assert relative_error(run(small, {"x": x}), run(wide, {"x": x})) < TOLERANCE


def test_sizes_are_found_where_a_table_of_positions_is_short() -> None:
    model = net(
        """(float[N,L,6] x) => (float[N,L,2] y) {
        length = Shape<start=1, end=2>(x)
        places = Slice(table, nil, length, nil)
        a = Add(x, places)
        h = MatMul(a, w0)
        r = Relu(h)
        y = MatMul(r, w1)
    }""",
        table=(10, 6),
        w0=(6, 8),
        w1=(8, 2),
        nil=[0],
    )
    assert trace(model).shaped.inputs == {"x": (2, 8, 6)}
    check_exact(model)


@pytest.mark.parametrize(("window", "length"), [(512, 1024), (20000, 65536)])
def test_sizes_are_found_where_windows_take_many_samples_of_sound(window: int, length: int) -> None:
    model = net(
        """(float[N,L] x) => (float[N,2,T] y) {
        a = Unsqueeze(x, one)
        p = Conv<strides=[160]>(a, w0)
        r = Relu(p)
        y = Conv(r, w1)
    }""",
        w0=(6, 1, window),
        w1=(2, 6, 1),
        one=[1],
        opset=13,
    )
    assert trace(model).shaped.inputs == {"x": (2, length)}
    check_exact(model)


def test_sizes_are_found_where_times_come_first_and_windows_run_over_them() -> None:
    model = net(
        """(float[T,5] x) => (float[U,2] y) {
        a = Unsqueeze(x, nil)
        b = Transpose<perm=[0,2,1]>(a)
        c = Conv(b, w0)
        r = Relu(c)
        d = Conv(r, w1)
        e = Transpose<perm=[0,2,1]>(d)
        y = Squeeze(e, nil)
    }""",
        w0=(6, 5, 9),
        w1=(2, 6, 3),
        nil=[0],
        opset=13,
    )
    traced = trace(model)
    assert traced.shaped.inputs == {"x": (64, 5)}
    keep = draw_plan(traced, 0.5, np.random.default_rng(0))
    x = {"x": np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)}
    redone = run(zeroed(model, removed_slices(traced, keep)), x)
    assert relative_error(run(drop_units(traced, keep), x), redone) < TOLERANCE


def test_a_name_that_multiplies_sizes_makes_no_input_that_memory_does_not_hold() -> None:
    """Such a name may be a lie: without one, the usual sizes run."""
    model = net(
        """(float[N,6] x, float[N,L] s, float[N,h,w] p) => (float[N,2] y) {
        h0 = MatMul(x, w0)
        r = Relu(h0)
        a = MatMul(r, w1)
        m = ReduceMean<axes=[1]>(s)
        n = ReduceMean<axes=[1,2],keepdims=0>(p)
        o = Unsqueeze(n, one)
        b = Add(a, m)
        y = Add(b, o)
    }""",
        w0=(6, 8),
        w1=(8, 2),
        one=[1],
        opset=13,
    )
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "h*w*h*w"
    assert trace(model).shaped.inputs == {"x": (2, 6), "s": (2, 64), "p": (2, 64, 64)}
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "h*w"
    assert trace(model).shaped.inputs["s"] == (2, 4096)


def test_a_refusal_names_a_few_of_many_inputs() -> None:
    names = [f"x{k}" for k in range(9)]
    ops = "\n".join(f"y{k} = Gather({name}, beyond)" for k, name in enumerate(names))
    inputs, outputs = (", ".join(f"float[{n},3] {c}{k}" for k in range(9)) for c, n in (("x", 2), ("y", 1)))
    model = net(f"({inputs}) => ({outputs}) {{ {ops} }}", beyond=[7])
    with pytest.raises(ModelError, match=r"at x0\[2, 3\], x1\[2, 3\], x2\[2, 3\], x3\[2, 3\] and 5 more: ") as refused:
        trace(model)
    assert "input_shape" not in str(refused.value)  # every size is fixed
