"""Sizes that the data tell are no constants: how much is found, chosen, or repeated differs from image to image."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import onnxshap
from onnxshap.core import Dataset
from onnxshap.errors import DataError, VerifyError
from onnxshap.graph import is_op
from onnxshap.masking import row_wise
from onnxshap.rewrite import drop_units
from onnxshap.shapes import doubts
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.exactness import TOLERANCE, draw_plan, net
from tests.zeroing import relative_error, run, zeroed

_MOST = "top = ReduceMax<keepdims=0>(x) up = Ceil(top) whole = Cast<to=7>(up) k = Clip(whole, one, six)"
_ROW = "row = Reshape(x, flat)"
COUNTS = {
    "NonZero": "big = Greater(x, half) at = NonZero(big) q = Transpose(at)",
    "Compress": "at = Greater(x, half) all = Reshape(at, flat) row = Reshape(x, flat) q = Compress<axis=0>(row, all)",
    "Unique": "near = Round(x) q = Unique(near)",
    "TopK": f"{_MOST} ks = Reshape(k, flat) {_ROW} q, where = TopK(row, ks)",
    "Range": f"{_MOST} q = Range(zero, k, one)",
    "Slice": f"{_MOST} ks = Reshape(k, flat) {_ROW} q = Slice(row, start, ks, start)",
    "ConstantOfShape": f"{_MOST} ks = Reshape(k, flat) q = ConstantOfShape(ks)",
    "Expand": f"{_MOST} ks = Reshape(k, flat) q = Expand(single, ks)",
    "Expand to the sizes of what is found": "big = Greater(x, half) at = NonZero(big) found = Transpose(at)"
    " sizes = Shape(found) q = Expand(pair, sizes)",
    "Tile": f"{_MOST} ks = Reshape(k, flat) q = Tile(single, ks)",
    "Resize": f"top = ReduceMax<keepdims=0>(x) up = Ceil(top) some = Clip(up, onef, sixf) by = Reshape(some, flat)"
    f" {_ROW} q = Resize<mode=\"nearest\">(row, , by)",
    "OneHot": f"{_MOST} wide = OneHot(start, k, onoff) q = Transpose(wide)",
    "NonMaxSuppression": "b = Reshape(x, boxes) s0 = ReduceSum(b, last) s_ = Reshape(s0, scored)"
    " q = NonMaxSuppression(b, s_, many, over, half)",
    "Loop": "top = ReduceMax<keepdims=0>(x) end, q = Loop(often, yes, zerof) <body = b (int64 i, bool c, float a)"
    " => (bool c2, float a2, float told) { a2 = Add(a, onef) c2 = Less(a2, top) told = Identity(a2) }>",
    "a state that grows": "top = ReduceMax<keepdims=0>(x) far = Mul(top, sixf) q = Loop(often, yes, single) <body = b"
    " (int64 i, bool c, float[k] a) => (bool c2, float[m] a2) { a2 = Concat<axis=0>(a, single) l = Size(a2)"
    " length = Cast<to=1>(l) c2 = Less(length, far) }>",
    "branches that hand on what is counted": f"{_MOST} ks = Reshape(k, flat) {_ROW} part = Slice(row, start, ks, start)"
    " c = Greater(top, onef) q = If(c) <then_branch = t () => (float[p] yes_) { yes_ = Neg(part) },"
    " else_branch = e () => (float[q] no_) { no_ = Relu(part) }>",
    "If": "top = ReduceMax<keepdims=0>(x) c = Greater(top, twof) row = Reshape(x, flat)"
    " q = If(c) <then_branch = t () => (float[p] yes_) { yes_ = Slice(row, start, threes, start) },"
    " else_branch = e () => (float[q] no_) { no_ = Slice(row, start, fives, start) }>",
}  # fmt: skip


def counting(kind: str, batch: str) -> ModelProto:
    """A net whose outputs are divided by how much there is of something."""
    return net(
        f"""(float[{batch},8] x) => (float[{batch},3] y) {{
            a = MatMul(x, w1) r = Relu(a) f = MatMul(r, w2)
            {COUNTS[kind]}
            s = Shape(q) n = Gather(s, zero) c_ = Cast<to=1>(n) d = Add(c_, onef) y = Div(f, d)
        }}""",
        w1=(8, 12), w2=(12, 3), half=np.float32(0.5), onef=np.float32(1), twof=np.float32(2), sixf=np.float32(6),
        zerof=np.float32(0), one=np.array(1), six=np.array(6), zero=np.array(0), flat=[-1], start=[0], threes=[3],
        fives=[5], single=np.ones(1, np.float32), onoff=np.array([0, 1], np.float32), boxes=[1, -1, 4], last=[2],
        scored=[1, 1, -1], many=[9], over=np.array([0.5], np.float32), often=np.array(20), yes=np.array(True),
        pair=np.array([[0, 1]]),
    )  # fmt: skip


@pytest.mark.parametrize("batch", ["1", "2", "N"])
@pytest.mark.parametrize("kind", COUNTS)
def test_what_is_counted_is_counted_anew(kind: str, batch: str) -> None:
    model = counting(kind, batch)
    traced = trace(model)
    assert [len(g) for g in traced.groups] == [12]
    plan = draw_plan(traced, 0.5, np.random.default_rng(0))
    small, removed = drop_units(traced, plan), zeroed(model, removed_slices(traced, plan))
    seen = set()
    for seed in range(12):
        images = 2 if batch == "2" else 1
        feeds = {"x": np.random.default_rng(seed).normal(size=(images, 8)).astype(np.float32)}
        wanted = run(removed, feeds)
        assert relative_error(run(small, feeds), wanted) <= TOLERANCE, seed
        seen.add(round(float(np.abs(wanted[0]).sum()), 3))
    assert len(seen) > 1


@pytest.mark.parametrize("rows", range(1, 8))
def test_a_count_that_is_as_large_as_an_axis_by_chance_is_no_copy_of_it(rows: int) -> None:
    """One of these is what is found in what the model is traced with."""
    model = net(
        """(float[1,8] x) => (float[1,3] y) {
            a = MatMul(x, w1) r = Relu(a) f = MatMul(r, w2)
            big = Greater(x, half) at = NonZero(big) found = Transpose(at)
            small = Not(big) at2 = NonZero(small) left = Transpose(at2)
            s = Shape(found) n = Slice(s, start, end) s2 = Shape(left) m = Slice(s2, start, end)
            pairs = Mul(n, m) all = Mul(pairs, twice) e = Expand(one, all) data = Reshape(e, target)
            to = Concat<axis=0>(n, m, twice) q = Reshape(data, to)
            t = Shape(q) k = Gather(t, zero) c = Cast<to=1>(k) d = Add(c, onef) y = Div(f, d)
        }""",
        w1=(8, 12), w2=(12, 3), half=np.float32(0.5), onef=np.float32(1), one=[np.float32(1)], start=[0], end=[1],
        twice=[2 * rows], target=[rows, -1], zero=np.array(0),
    )  # fmt: skip
    traced = trace(model)
    same = drop_units(traced, {g.name: np.ones(len(g), np.bool_) for g in traced.groups})
    for seed in range(12):
        feeds = {"x": np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)}
        assert relative_error(run(same, feeds), run(model, feeds)) <= TOLERANCE, seed


def test_means_over_what_is_not_found_in_what_the_model_is_traced_with_count_the_removed() -> None:
    model = net(
        """(float[1,4] x) => (float[1,3] y) {
            a = MatMul(x, w1) r = Relu(a) big = Greater(x, most) at = NonZero(big) found = Transpose(at)
            s = Shape(found) n = Slice(s, start, end) to = Concat<axis=0>(n, end, end)
            u = Unsqueeze(r, start) e = Expand(u, to) q = ReduceMean<axes=[0,2], keepdims=0>(e) y = Mul(q, three)
        }""",
        w1=(4, 8), most=np.float32(50), start=[0], end=[1], three=[[1.0, 2.0, 3.0]],
    )  # fmt: skip
    traced = trace(model)
    (group,) = traced.groups
    keep = {group.name: np.arange(len(group)) % 2 == 0}
    cut, same = drop_units(traced, keep), zeroed(model, removed_slices(traced, keep))
    feeds = {"x": np.array([[60, 1, 1, 70]], np.float32)}
    assert relative_error(run(cut, feeds), run(same, feeds)) <= TOLERANCE


@pytest.mark.parametrize("kind", COUNTS)
def test_what_is_counted_is_counted_over_all_images(kind: str) -> None:
    """So an image's row is evaluated apart from others."""
    traced = trace(counting(kind, "N"))
    assert not row_wise(traced, traced.groups)


def test_a_loop_that_counts_is_sure() -> None:
    model = net(
        """(float[N,8] x) => (float[N,3] y) {
            a = MatMul(x, w1) r = Relu(a) f = MatMul(r, w2)
            end, q = Loop(often, yes, zerof) <body = b (int64 i, bool c, float a0) => (bool c2, float a2, float told) {
                c2 = Identity(c) a2 = Add(a0, onef) told = Identity(a2) }>
            s = Shape(q) n = Gather(s, zero) c_ = Cast<to=1>(n) y = Div(f, c_)
        }""",
        w1=(8, 12), w2=(12, 3), onef=np.float32(1), zerof=np.float32(0), zero=np.array(0), often=np.array(4),
        yes=np.array(True),
    )  # fmt: skip
    traced = trace(model)
    assert not any(is_op(node, "Shape") for node in traced.shaped.graph.nodes)
    assert row_wise(traced, traced.groups)


def test_a_branch_that_the_count_chooses_stays_open() -> None:
    model = net(
        """(float[1,8] x) => (float[1,3] y) {
            a = MatMul(x, w1) r = Relu(a) f = MatMul(r, w2)
            big = Greater(x, most) at = NonZero(big) n = Size(at) none = Equal(n, zero)
            y = If(none) <then_branch = t () => (float[1,3] a_) { a_ = Neg(f) },
                          else_branch = e () => (float[1,3] b_) { b_ = Identity(f) }>
        }""",
        w1=(8, 12), w2=(12, 3), most=np.float32(1.5), zero=np.array(0),
    )  # fmt: skip
    traced = trace(model)
    small = drop_units(traced, {g.name: np.ones(len(g), np.bool_) for g in traced.groups})
    for seed in range(20):
        feeds = {"x": np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)}
        assert relative_error(run(small, feeds), run(model, feeds)) <= TOLERANCE


def test_outputs_of_many_sizes_cannot_be_compared() -> None:
    """Where weights stand behind what counts, it cannot be taken off (`endings`)."""
    model = net(
        """(float[1,8] x) => (float[k] y) {
            a = MatMul(x, w1) r = Relu(a) f = MatMul(r, w2) row = Reshape(f, flat)
            big = Greater(row, zerof) some = Compress<axis=0>(row, big) each = Unsqueeze(some, last)
            b = MatMul(each, w3) c = Relu(b) d = MatMul(c, w4) y = Reshape(d, flat)
        }""",
        w1=(8, 12), w2=(12, 9), flat=[-1], zerof=np.float32(0), last=[1], w3=(1, 8), w4=(8, 1),
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with pytest.raises(DataError, match=r"for some images and .*NonMaxSuppression"):
        onnxshap.prune(model, Dataset({"x": images}, None, "random"), keep_units=0.5, method="l1")


def test_layers_that_run_as_often_as_the_data_tell_are_refitted_on_what_runs() -> None:
    model = net(
        """(float[N,6] x) => (float[N,4] y) {
            a = MatMul(x, w1) r = Relu(a)
            first = Gather<axis=1>(x, zero) yes = Greater(first, most) at = NonZero(yes) rows = Transpose(at)
            mine = GatherND(r, rows) h = MatMul(mine, w2) g = Relu(h) o = MatMul(g, w3)
            base = MatMul(r, w4) y = ScatterND<reduction="add">(base, rows, o)
        }""",
        w1=(6, 16), w2=(16, 12), w3=(12, 4), w4=(16, 4), zero=np.array(0), most=np.float32(2.0),
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    data = Dataset({"x": images}, None, "random")
    bare, found = (
        onnxshap.prune(model, data, keep_units=0.5, method="l1", repair=how, payoff="mse") for how in ("none", "lstsq")
    )
    assert found.after.score["mse"] > bare.after.score["mse"]


def test_a_form_that_is_not_what_the_file_computes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a count taken to be constant, the cut model and its masked twin would agree, and both be wrong."""
    images = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    data = Dataset({"x": images}, None, "random")
    onnxshap.prune(counting("NonZero", "1"), data, keep_units=0.5, method="l1", repair="none")
    monkeypatch.setattr(doubts._Doubts, "_sized_by_data", lambda *_: False)
    with pytest.raises(VerifyError, match="as it is worked on differs from its file"):
        onnxshap.prune(counting("NonZero", "1"), data, keep_units=0.5, method="l1", repair="none")
