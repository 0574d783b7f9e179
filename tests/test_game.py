"""Running sums give what masks give, and nothing depends on how many rows go into a run or what fits in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxshap
from onnxshap import api, backend, payoffs
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, rows_apart, run_all, site_means
from onnxshap.core import Array, FloatArray, ImageIndex
from onnxshap.data import random_data
from onnxshap.errors import DataError
from onnxshap.estimators.rows import coalition_removals, removals
from onnxshap.game import GroupGame, Setting, pace, remainders, stages, walks
from onnxshap.game.behind import Behind
from onnxshap.groups import Group
from onnxshap.opening import open_model
from tests.cases import CASES
from tests.exactness import net

IMAGES = 5

STEPS_FIRST = {
    "steps first": net(
        """(float[5,N,4] x) => (float[5,N,2] y) {
            a = MatMul(x, w0)
            ar = Relu(a)
            b = MatMul(ar, w1)
            bt = Tanh(b)
            y = MatMul(bt, w2)
        }""",
        w0=(4, 8), w1=(8, 7), w2=(7, 2),
    ),
    "steps and images on one axis": net(
        """(float[5,N,4] x) => (float[5,N,2] y) {
            flat = Reshape(x, rows)
            a = Gemm(flat, w0, b0)
            ar = Relu(a)
            b = Gemm(ar, w1)
            s = Reshape(b, steps)
            bt = Tanh(s)
            y = MatMul(bt, w2)
        }""",
        rows=[-1, 4], w0=(4, 8), b0=(8,), w1=(8, 7), steps=[5, -1, 7], w2=(7, 2),
    ),
}  # fmt: skip
"""Nets whose images lie on axis 1."""

NETS = {
    **STEPS_FIRST,
    "convolutions": net(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            [a] a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            ar = Relu(a)
            [b] b = Conv<pads=[1,1,1,1], strides=[2,2], dilations=[1,1]>(ar, w1)
            [s] s = Conv<strides=[2,2]>(ar, ws)
            bs = Add(b, s)
            br = Relu(bs)
            p = GlobalAveragePool(br)
            f = Flatten(p)
            [c] y = Gemm(f, w2, b2)
        }""",
        w0=(9, 3, 3, 3), b0=(9,), w1=(7, 9, 3, 3), ws=(7, 9, 1, 1), w2=(7, 5), b2=(5,),
    ),
    "a trunk": net(
        """(float[N,3,6,6] x) => (float[N,4,6,6] y, float[N,6] z) {
            a = Conv(x, w0)
            [in] i = Conv<pads=[1,1,1,1]>(a, w1)
            ir = Relu(i)
            o = Conv<pads=[1,1,1,1]>(ir, w2)
            t = Add(a, o)
            y = Conv(t, w3)
            m = ReduceMean<axes=[2,3], keepdims=0>(t)
            z = MatMul(m, w4)
        }""",
        w0=(8, 3, 1, 1), w1=(6, 8, 3, 3), w2=(8, 6, 3, 3), w3=(4, 8, 1, 1), w4=(8, 6),
    ),
    "transposed and in groups": net(
        """(float[N,3,5,5] x) => (float[N,4] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            g = Conv<group=2, pads=[1,1,1,1]>(a, w1)
            gr = Sigmoid(g)
            u = ConvTranspose<strides=[2,2]>(gr, w2, b2)
            ur = Relu(u)
            v = ConvTranspose<group=2>(ur, w3)
            m = ReduceMean<axes=[2,3], keepdims=0>(v)
            y = MatMul(m, w4)
        }""",
        w0=(8, 3, 3, 3), b0=(8,), w1=(8, 4, 3, 3), w2=(8, 6, 2, 2), b2=(6,), w3=(6, 3, 3, 3), w4=(6, 4),
    ),
    "flattened, tokens": net(
        """(float[N,3,4,4] x) => (float[N,3] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            f = Flatten(a)
            h = Gemm<alpha=0.5, transB=1>(f, w1, b1)
            hr = Relu(h)
            t = Reshape(hr, shape)
            m = MatMul(t, w2)
            e = Tanh(m)
            q = MatMul(e, w3)
            y = ReduceMean<axes=[1], keepdims=0>(q)
        }""",
        w0=(6, 3, 3, 3), b0=(6,), w1=(12, 96), b1=(12,), shape=np.array([-1, 2, 6]), w2=(6, 10), w3=(10, 3),
    ),
    "concatenated": net(
        """(float[N,3,6,6] x) => (float[N,4] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0)
            b = Conv(x, w1)
            ar = Relu(a)
            c = Concat<axis=1>(ar, b, ar)
            d = Conv<pads=[1,1,1,1]>(c, w2, b2)
            e = Sigmoid(d)
            m = ReduceMean<axes=[2,3], keepdims=0>(e)
            y = MatMul(m, w3)
        }""",
        w0=(5, 3, 3, 3), w1=(4, 3, 1, 1), w2=(6, 14, 3, 3), b2=(6,), w3=(6, 4),
    ),
}  # fmt: skip

NUMBERED = {
    "MaxPool": net(
        """(float[N,3,8,8] x) => (float[N,2,8,8] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
            c = Conv(p, w1, b1)
            r = Relu(c)
            d = Conv(r, w2, b0)
            u = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(d, i)
            y = Conv(u, w3)
        }""",
        w0=(8, 3, 3, 3), b0=(8,), w1=(12, 8, 1, 1), b1=(12,), w2=(8, 12, 1, 1), w3=(2, 8, 1, 1),
    ),
    "neighbours": net(
        """(float[N,6,3] x) => (float[N,6,2] y) {
            t = Transpose<perm=[0,2,1]>(x)
            d = MatMul(x, t)
            v, near = TopK<axis=2>(d, one)
            all = Shape<end=1>(x)
            n = Squeeze(all)
            images = Range(zero, n, step)
            first = Mul(images, six)
            column = Reshape(first, columns)
            at = Add(near, column)
            flat = Reshape(at, last)
            h = MatMul(x, w0)
            r = Relu(h)
            points = Reshape(r, rows8)
            g = Gather(points, flat)
            gs = Reshape(g, six8)
            apart = Sub(gs, r)
            q = MatMul(apart, w1)
            s = Relu(q)
            others = Reshape(s, rows12)
            more = Gather(others, flat)
            ms = Reshape(more, six12)
            sum = Add(ms, s)
            y = MatMul(sum, w2)
        }""",
        one=np.array([1]), zero=np.array(0), step=np.array(1), six=np.array(6), columns=[-1, 1, 1], last=[-1],
        w0=(3, 8), rows8=[-1, 8], six8=[-1, 6, 8], w1=(8, 12), rows12=[-1, 12], six12=[-1, 6, 12], w2=(12, 2),
    ),
}  # fmt: skip

OTHERS = {"transposed and in groups": 1, "flattened, tokens": 1}
"""Groups whose units are not as many channels each, or are summed without weights."""


def setting(model: onnx.ModelProto, *, filled: bool) -> Setting:
    images = np.random.default_rng(1).normal(size=(IMAGES, *(d.dim_value for d in dims(model)))).astype(np.float32)
    traced, data = open_model(model, {"x": images}, backend=OrtBackend("cpu", 1))
    free = free_batch(traced)
    reference = run_all(free, free.shaped.graph.model, data)
    payoff = payoffs.choose("mse", reference, None, [o.name for o in model.graph.output])
    return Setting(free, data, payoff, reference, site_means(free, data) if filled else {})


def dims(model: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    return [d for d in model.graph.input[0].type.tensor_type.shape.dim if d.dim_param != "N"]


def removed(game: GroupGame) -> tuple[FloatArray, ...]:
    """Return payoffs of two walks an image and of single removals, and both ends."""
    n, rng = game.n_units, np.random.default_rng(2)
    images = np.arange(IMAGES).repeat(2)
    orders = np.stack([rng.permutation(n) for _ in images])
    ends = np.array([[1], [0]], np.float32).repeat(n, axis=1)
    return (
        game(np.zeros(2, np.int64), ends),
        removals(game, images, orders[:, : n - 1]),
        removals(game, images, orders, 0.25, gone=False),
    )


def close(game: GroupGame, spelled_out: GroupGame) -> None:
    """Hold running sums to masks."""
    n, rng = game.n_units, np.random.default_rng(3)
    images = np.arange(IMAGES).repeat(2)
    orders = np.stack([rng.permutation(n) for _ in images])
    table = np.array([[1], [0]], np.float32).repeat(n, axis=1)
    rows = np.arange(IMAGES).repeat(2), np.tile(table, (IMAGES, 1))
    ends = spelled_out(*rows)
    scale = np.abs(ends).max() + 1e-6
    np.testing.assert_allclose(game(*rows), ends, atol=1e-5 * scale)
    for step, gone, first in ((1.0, True, 0), (1.0, True, n // 2), (1.0, False, 0), (0.25, False, 0)):
        chosen = orders[:, : n - 1] if gone else orders
        found = removals(game, images, chosen, step, gone=gone, first=first)
        wanted = coalition_removals(spelled_out, images, chosen, step, gone=gone)[:, first:]
        np.testing.assert_allclose(found, wanted, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("filled", [False, True], ids=["zeros", "means"])
@pytest.mark.parametrize("name", NETS)
def test_running_sums_are_masks(name: str, filled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = setting(NETS[name], filled=filled)
    assert shared.traced.groups
    walked = 0
    for group in shared.traced.groups:
        monkeypatch.setattr(walks, "_LEAST_WORK", 0)
        game = GroupGame(shared, group)
        walked += game._walks is not None
        monkeypatch.setattr(walks, "_LEAST_WORK", np.inf)
        close(game, GroupGame(shared, group))
    assert walked >= len(shared.traced.groups) - OTHERS.get(name, 0), "running sums were not used"


@pytest.mark.parametrize("name", STEPS_FIRST)
def test_images_behind_steps_are_worth_what_they_are_one_by_one(name: str) -> None:
    shared = setting(STEPS_FIRST[name], filled=True)
    assert shared.traced.shaped.free_batch and not shared.traced.single
    file = open_model(STEPS_FIRST[name], shared.data, backend=OrtBackend("cpu", 1))[0]
    assert file.single
    for group in file.groups:
        game, alone = GroupGame(shared, group), GroupGame(replace(shared, traced=file), group)
        assert game._batched and not alone._batched
        close(game, alone)


HEAD = "(float[N,4] x) => (float[N,2] y) { a = MatMul(x, w0) r = Relu(a) c = MatMul(r, w1) "
MIXING = {
    "counted": net(
        HEAD + "s = Shape(c) n = Gather(s, zero) f = Cast<to=1>(n) y = Div(c, f) }",
        w0=(4, 8), w1=(8, 2), zero=np.array(0),
    ),
    "numbered": net(
        HEAD + "s = Shape(c) n = Gather(s, zero) i = Range(zero, n, one) f = Cast<to=1>(i) u = Unsqueeze(f, last)"
        " y = Mul(c, u) }",
        w0=(4, 8), w1=(8, 2), zero=np.array(0), one=np.array(1), last=[1],
    ),
    "the other way round": net(
        HEAD + "y = Slice(c, end, start, zero, back) }",
        w0=(4, 8), w1=(8, 2), zero=[0], end=[-1], start=[-1000], back=[-1],
    ),
    "looked at": net(
        HEAD + "t = Transpose<perm=[1,0]>(c) g = MatMul(c, t) y = MatMul(g, c) }", w0=(4, 8), w1=(8, 2)
    ),
}  # fmt: skip
"""Nets that give an image something else with others beside, which no rule tells."""


@pytest.mark.parametrize("name", MIXING)
def test_rows_share_no_run_where_images_are_not_apart(name: str) -> None:
    shared = setting(MIXING[name], filled=False)
    (group,) = shared.traced.groups
    game, images = GroupGame(shared, group), np.arange(IMAGES)
    coalitions = (np.random.default_rng(2).random((IMAGES, 8)) < 0.5).astype(np.float32)

    def alone(image: int) -> Setting:
        part = slice(image, image + 1)
        return replace(shared, data=shared.data.take(part), reference=[r[part] for r in shared.reference])

    wanted = [GroupGame(alone(i), group)(np.array([0]), coalitions[i : i + 1]) for i in range(IMAGES)]
    np.testing.assert_allclose(game(images, coalitions), np.concatenate(wanted), rtol=1e-5)


def test_whether_images_are_apart_is_measured_once_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that play for something else, or with zeros, have a copy of the setting for every group."""
    counted = list[int]()

    def told(*given: Any) -> bool:
        counted.append(1)
        return rows_apart(*given)

    monkeypatch.setattr("onnxshap.game.setting.rows_apart", told)
    model = net("(float[N,4] x) => (float[N,2] y) { a = MatMul(x, w0) r = Relu(a) b = MatMul(r, w1) s = Relu(b)"
                " y = MatMul(s, w2) }", w0=(4, 8), w1=(8, 8), w2=(8, 2))  # fmt: skip
    onnxshap.prune(
        model, {"x": np.random.default_rng(0).normal(size=(9, 4)).astype("f")}, keep_units=0.5, method="taylor"
    )
    assert len(counted) == 1


RECURRENT = net(
    """(float[5,N,4] x) => (float[5,N,2] y) {
        p = MatMul(x, wp)
        pr = Relu(p)
        all = LSTM<hidden_size=6>(pr, w, r)
        s = Squeeze(all, one)
        more = LSTM<hidden_size=7>(s, w2, r2)
        t = Squeeze(more, one)
        y = MatMul(t, w3)
    }""",
    wp=(4, 8), w=(1, 24, 8), r=(1, 24, 6), one=[1], w2=(1, 28, 6), r2=(1, 28, 7), w3=(7, 2),
)  # fmt: skip
"""Hidden units are masked in weights, which all rows of a run share."""


def test_rows_that_run_alone_are_worth_what_whole_runs_are_however_many_are_judged_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = setting(RECURRENT, filled=True)
    alone = [g for g in shared.traced.groups if not GroupGame(shared, g)._batched]
    assert sorted(map(len, alone)) == [6, 7]
    for group in alone:
        game = GroupGame(shared, group)
        wanted = removed(game)
        assert game._alone._kept is not None
        with monkeypatch.context() as patch:
            patch.setattr("onnxshap.game.group._TOGETHER", 3)
            assert bits(removed(game)) == bits(wanted)
            patch.setattr("onnxshap.game.group.images_apart", lambda _: False)
            whole = GroupGame(shared, group)
            close(game, whole)
            assert whole._alone._kept is None


@pytest.mark.parametrize("long", [0, 1000], ids=["row by row", "at once"])
def test_running_sums_are_the_same_however_they_are_made(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "_LEAST_WORK", 0)
    shared = setting(NETS["a trunk"], filled=True)
    wanted = [removed(GroupGame(shared, group)) for group in shared.traced.groups]
    for module in (walks, remainders):
        monkeypatch.setattr(module, "LONG", long)
    for group, found in zip(shared.traced.groups, wanted, strict=True):
        assert bits(removed(GroupGame(shared, group))) == bits(found)


@pytest.mark.parametrize("smaller", [0.0, np.inf], ids=["in stages", "whole"])
@pytest.mark.parametrize("name", NETS)
def test_rows_a_run_and_memory_change_no_bit(name: str, smaller: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_SMALLER", smaller)
    monkeypatch.setattr(walks, "_LEAST_WORK", 16)
    shared = setting(NETS[name], filled=True)
    for group in shared.traced.groups:
        wanted = removed(GroupGame(shared, group))
        for rows in (1, 3, 64):
            with monkeypatch.context() as patch:
                patch.setattr(pace.Pace, "rows", rows)
                patch.setattr(pace.Pace, "tell", lambda *_: None)
                assert bits(removed(GroupGame(shared, group))) == bits(wanted)
        tight = (with_memory(shared, 2**k) for k in range(31))
        small = next(s for s in tight if walked(s, group) == walked(shared, group))
        assert bits(removed(GroupGame(small, group))) == bits(wanted)


DEAD = net(
    """(float[N,3,6,6] x) => (float[N,4] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0, b0)
        ar = Relu(a)
        b = Conv<pads=[1,1,1,1]>(ar, w1)
        br = Relu(b)
        f = Flatten(br)
        c = Gemm(f, w2, b2)
        cr = Relu(c)
        y = Gemm(cr, w3)
    }""",
    w0=(8, 3, 3, 3), b0=np.array([-99, 0, 0, -99, 0, 0, 0, -99], np.float32), w1=(6, 8, 3, 3), w2=(216, 40), b2=(40,),
    w3=(40, 4),
)  # fmt: skip
"""Three filters are dead in every image, others behind the ReLUs in some."""


@pytest.mark.parametrize("long", [0, 1000], ids=["row by row", "at once"])
def test_removals_of_units_that_are_dead_in_an_image_are_not_run(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (walks, remainders):
        monkeypatch.setattr(module, "LONG", long)
    shared = setting(DEAD, filled=False)
    run, rows = walks.Walks.run, list[int]()

    def counted(self: walks.Walks, values: Sequence[Array], images: ImageIndex, *more: Any) -> FloatArray:
        rows.append(len(images))
        return run(self, values, images, *more)

    monkeypatch.setattr(walks.Walks, "run", counted)
    for group in shared.traced.groups:
        found = removed(GroupGame(shared, group))
        few = sum(rows)
        rows.clear()
        with monkeypatch.context() as patch:
            patch.setattr(walks, "_idle", lambda added: np.zeros(len(added[0]), np.bool_))
            assert bits(removed(GroupGame(shared, group))) == bits(found)
        assert few < sum(rows) or len(group) == 6
        rows.clear()


@pytest.mark.parametrize("filled", [False, True], ids=["zeros", "means"])
def test_what_no_unit_is_left_in_is_the_same_of_every_image_only_where_no_image_has_another_part_in_it(
    *, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "_LEAST_WORK", 0)
    monkeypatch.setattr(walks, "LONG", 0)
    alone = {}
    for name, model in {**NETS, "dead": DEAD}.items():
        shared = setting(model, filled=filled)
        found = list[bool]()
        for group in shared.traced.groups:
            inner = GroupGame(shared, group)._walks
            if inner is None:
                continue
            found.append(inner._alone)
            every = np.arange(IMAGES)
            inner._alone = False
            wanted = inner._none(every)
            inner._alone = found[-1]
            for one, other in zip(inner._none(every), wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * max(1.0, np.abs(other).max()))
        alone[name] = found
    assert alone["dead"] == [True, True, True]
    assert not all(alone["a trunk"])  # the skip goes round its units


def test_what_is_added_in_every_row_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[N,3,6,6] x) => (float[N,8,6,6] y, float[N,8,6,6] z) {
        a = Conv(x, w0)
        [inner] i = Conv<pads=[1,1,1,1]>(a, w1)
        ir = Relu(i)
        o = Conv<pads=[1,1,1,1]>(ir, w2)
        b = Add(o, shift)
        t = Add(a, b)
        y = Relu(t)
        [twice] j = Conv<pads=[1,1,1,1]>(a, w3)
        jr = Relu(j)
        p = Conv<pads=[1,1,1,1]>(jr, w4)
        z = Add(p, p)
    }"""
    made = net(
        text, w0=(8, 3, 1, 1), w1=(6, 8, 3, 3), w2=(8, 6, 3, 3), shift=(8, 1, 1), w3=(6, 8, 3, 3), w4=(8, 6, 3, 3)
    )
    shared = setting(made, filled=True)
    ends = {}
    for group in shared.traced.groups:
        monkeypatch.setattr(walks, "_LEAST_WORK", 16)
        game = GroupGame(shared, group)
        if game._walks is not None:
            ends[group.name] = [adder.y for adder in game._walks._adders]
        monkeypatch.setattr(walks, "_LEAST_WORK", np.inf)
        close(game, GroupGame(shared, group))
    assert ends == {"inner": ["t"], "twice": ["p"]}


def with_memory(shared: Setting, memory: int) -> Setting:
    return replace(shared, traced=replace(shared.traced, backend=OrtBackend("cpu", 1, memory)))


def walked(shared: Setting, group: Group) -> bool:
    return GroupGame(shared, group)._walks is not None


def bits(found: tuple[FloatArray, ...]) -> list[bytes]:
    return [values.tobytes() for values in found]


@pytest.mark.parametrize("work", [0, np.inf], ids=["running sums", "masks"])
def test_without_any_unit_zero_by_zero_counts_as_zero(work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "_LEAST_WORK", work)
    model = net(
        """(float[N,4] x) => (float[N,3] y) {
            a = MatMul(x, w0)
            b = Tanh(a)
            c = MatMul(b, w1)
            n = ReduceL2<axes=[1], keepdims=1>(c)
            y = Div(c, n)
        }""",
        w0=(4, 6), w1=(6, 3),
    )  # fmt: skip
    shared = setting(model, filled=False)
    hidden = next(g for g in shared.traced.groups if len(g) == 6)
    game = GroupGame(shared, hidden)
    assert (game._walks is None) == (work > 0)
    images = np.arange(IMAGES)
    found = game(images, np.zeros((IMAGES, 6), np.float32))
    np.testing.assert_allclose(found, shared.payoff([0 * shared.reference[0]], shared.reference, None))
    if work:
        with pytest.raises(DataError, match="NaN or Inf"):
            game(images, np.full((IMAGES, 6), np.float32(np.nan)))


def test_a_unit_that_nothing_reads_is_worth_nothing() -> None:
    model = NETS["convolutions"]
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.name in {"w1", "ws"}:
            values = np.array(onnx.numpy_helper.to_array(tensor))
            values[:, 4] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    shared = setting(model, filled=True)
    game = GroupGame(shared, next(g for g in shared.traced.groups if len(g) == 9))
    assert game._walks is not None
    orders = np.array([[4, 0, 1, 2, 3], [0, 4, 1, 2, 3]])
    found = removals(game, np.zeros(2, np.int64), orders)
    assert found[0, 0] == game(np.zeros(1, np.int64), np.ones((1, 9), np.float32))[0]
    assert found[1, 0] == found[1, 1]


@pytest.mark.parametrize("work", [0, np.inf], ids=["sums", "masks"])
@pytest.mark.parametrize("name", NUMBERED)
def test_numbers_that_count_images_are_those_of_the_run(
    name: str, work: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of such numbers for one image is wrong beside other images."""
    model = NUMBERED[name]
    monkeypatch.setattr(walks, "_LEAST_WORK", work)
    shared = setting(model, filled=False)
    assert len(shared.traced.groups) == 2
    for group in shared.traced.groups:
        game, n = GroupGame(shared, group), len(group)
        coalitions = np.random.default_rng(0).integers(0, 2, (IMAGES, n)).astype(np.float32)
        alone = game._alone(np.arange(IMAGES), coalitions)
        np.testing.assert_allclose(game(np.arange(IMAGES), coalitions), alone, rtol=1e-4)
        found = removals(game, np.arange(IMAGES), np.tile(np.arange(n), (IMAGES, 1)), gone=False)
        wanted = [game._alone(np.full(n, image), ~np.eye(n, dtype=bool)) for image in range(IMAGES)]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("work", [0, np.inf], ids=["sums", "masks"])
def test_units_that_reach_no_output_are_worth_nothing(work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "_LEAST_WORK", work)
    model = onnx.ModelProto.FromString(NETS["a trunk"].SerializeToString())
    left = next(o for o in model.graph.output if o.name == "z")
    model.graph.output.remove(left)  # and with it whatever the mean, and the MatMul behind it, are for
    model.graph.node.extend(
        [
            onnx.helper.make_node("MatMul", ["z", "dead"], ["d"]),
            onnx.helper.make_node("Shape", ["d"], ["sizes"]),
            onnx.helper.make_node("ConstantOfShape", ["sizes"], ["nothing"]),
        ]
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("nothing", onnx.TensorProto.FLOAT, ["N", 2]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 2), np.float32), "dead"))
    shared = setting(model, filled=False)
    (group,) = (g for g in shared.traced.groups if "z" in g.name or "MatMul" in g.name)
    found = GroupGame(shared, group)(np.array([0, 1, 1]), np.eye(3, 6, dtype=np.float32))
    assert len(set(found[1:])) == 1
    np.testing.assert_array_equal(found, GroupGame(shared, group)(np.array([0, 1, 1]), np.ones((3, 6), np.float32)))


def test_the_fastest_size_is_found_by_runs_that_do_the_work() -> None:
    found = pace.Pace(guess=16, most=64)
    tried = []
    for _ in range(20):
        tried.append(found.rows)
        found.tell(found.rows, found.rows * (1.0 if found.rows == 32 else 2.0))
    assert set(tried) == {8, 16, 32, 64}  # of fewer, more of a run's time is not in what is measured
    assert found.rows == 32
    assert set(pace.Pace(guess=4, most=64)._sizes()) == {4, 8, 16}
    assert pace.Pace(guess=16, most=64, fixed=True).rows == 16


@pytest.mark.parametrize("memory", [2**30, 2**14])
@pytest.mark.parametrize("name", [name for name in NETS if name != "steps and images on one axis"])
def test_activations_that_stay_on_the_device_give_the_same(
    name: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = with_memory(setting(NETS[name], filled=True), memory)
    for group in shared.traced.groups:
        monkeypatch.setattr(walks, "_LEAST_WORK", np.inf)
        wanted = removed(GroupGame(shared, group))
        with monkeypatch.context() as patch:  # the processor stands in for the device: the same calls, the same copies
            patch.setattr(OrtBackend, "on_device", True)
            game = GroupGame(shared, group)
            found = removed(game)
            assert game._masked._resident is not None
        assert bits(found) == bits(wanted)


def test_the_fastest_provider_is_one_that_runs_here() -> None:
    found = OrtBackend.fastest(threads=2, memory=2**20)
    assert (found.threads, found.memory) == (2, 2**20)
    assert found.provider in {"cpu", "cuda"}
    found.session(NETS["convolutions"])


def test_what_is_done_behind_is_done_in_order_and_its_errors_are_raised() -> None:
    for apart in (False, True):
        done = list[int]()
        with Behind(apart=apart) as behind:
            for k in range(20):
                behind.do(partial(done.append, k))
        assert done == list(range(20))
        with pytest.raises(ZeroDivisionError), Behind(apart=apart) as behind:
            behind.do(lambda: 1 // 0)  # type: ignore[arg-type]
            behind.do(lambda: None)
        with pytest.raises(KeyError), Behind(apart=apart) as behind:
            behind.do(lambda: None)
            raise KeyError


def test_a_device_computes_exactly_and_loads_the_libraries_beside_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TF32, no search for kernels that ends differently each time; what cuda cannot run, the processor does."""
    asked, loaded = list[object](), list[bool]()

    def session(_content: bytes, _options: object, providers: object, disabled_optimizers: list[str]) -> object:
        assert not disabled_optimizers
        asked.append(providers)
        return SimpleNamespace(get_providers=lambda: [backend.PROVIDERS[name]], get_inputs=list, get_outputs=list)

    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: loaded.append(True), raising=False)
    backend._load_libraries.cache_clear()
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    for name in ("cpu", "cuda", "tensorrt"):
        OrtBackend(name).session(backend._nothing())
        assert len(loaded) == (name != "cpu")
    chain = [("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", exact), ("CPUExecutionProvider", {})]
    assert asked == [chain[2:], chain[1:], chain]


def test_sessions_made_in_many_threads_leave_the_streams_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    """What onnxruntime prints is kept back by pointing the process's stream elsewhere for a moment."""
    made = OrtBackend("cpu", 1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: made.session(backend._nothing()), range(200)))
    os.write(2, b"still there")
    sys.stdout.write("and here\n")
    assert capfd.readouterr() == ("and here\n", "still there")


ATTENTION = [c.name for c in CASES if any(n.op_type == "Attention" for n in c.model.graph.node)]


@pytest.mark.parametrize("name", ATTENTION)
def test_parts_of_models_with_attention_as_one_op_know_their_sizes(name: str) -> None:
    """Where sizes are open onnxruntime takes some of Attention's for the queries': in games, curves and refits."""
    model = next(one.model for one in CASES if one.name == name)
    traced, data = open_model(model, None)
    if not traced.groups:
        return
    found = api.score(traced, data.take(slice(0, 4)), method="loo", payoff="mse").values
    assert all(np.isfinite(value.phi).all() for value in found.values())
    more = random_data(traced.shaped.specs, 40, 0)
    assert (
        api.prune(model, more, method="l1", keep_macs=0.6, repair="lstsq", allocation="curves").verified.rel_err < 1e-5
    )
