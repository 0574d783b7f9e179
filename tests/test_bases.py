"""Other bases for units that linear ops alone touch: the same function, the best directions, and who is left alone."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

import onnxshap
from onnxshap import calibrate, report
from onnxshap.backend import _OrtSession
from onnxshap.bases import BASES, Turned, form_of, turned
from onnxshap.bases.directions import principal
from onnxshap.bases.probing import other_side, random_basis, turned_constant
from onnxshap.calibrate import feeding, free_batch, run_all
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.data import random_data
from onnxshap.errors import OnnxshapError
from onnxshap.graph import array
from onnxshap.graph.writing import put_in
from onnxshap.plan.cutter import Cutter
from onnxshap.shapes import input_specs
from onnxshap.verify import compare
from tests.cases import CASES, Case
from tests.drawing import nets
from tests.exactness import as_images, net, random_feeds

MODELS = Path(__file__).parent.parent / "models"
CHAIN = """(float[N,3,6,6] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, wa, ba)
    b = Conv<pads=[1,1,1,1]>(a, wb)
    s = Add(a, b)
    t = Mul(s, half)
    c = Conv<pads=[1,1,1,1]>(t, wc, bc)
    r = Relu(c)
    p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t)
    q = Conv(p, wq)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    u = Add(m, q)
    v = Relu(u)
    f = Flatten(v)
    y = MatMul(f, wy)
}"""
ATTENTION = """(float[N,5,6] x) => (float[N,5,6] y) {
    a = MatMul(x, wq) b = Add(a, bq)
    c = MatMul(x, wk)
    d = MatMul(x, wv) e = Add(d, bv)
    q = Reshape(b, heads) k = Reshape(c, heads) v = Reshape(e, heads)
    qt = Transpose<perm=[0,2,1,3]>(q)
    kt = Transpose<perm=[0,2,3,1]>(k)
    vt = Transpose<perm=[0,2,1,3]>(v)
    s = MatMul(qt, kt)
    p = Softmax(s)
    o = MatMul(p, vt)
    ot = Transpose<perm=[0,2,1,3]>(o)
    g = Reshape(ot, flat)
    z = MatMul(g, wo)
    y = Add(z, x)
}"""
BETWEEN = "(float[N,3,6,6] x) => (float[N,5,6,6] y) { a = Conv(x, wa) b = %s y = Conv(b, wy) }"


def chain() -> ModelProto:
    return net(CHAIN, wa=(8, 3, 3, 3), ba=(8,), wb=(8, 8, 3, 3), half=np.float32(0.5), wc=(6, 8, 3, 3), bc=(6,),
               wq=(6, 8, 1, 1), wy=(54, 4))  # fmt: skip


def attention() -> ModelProto:
    return net(ATTENTION, wq=(6, 8), bq=(8,), wk=(6, 8), wv=(6, 8), bv=(8,), heads=[0, 0, 2, 4], flat=[0, 0, 8],
               wo=(8, 6))  # fmt: skip


def in_bases(model: ModelProto, data: Dataset | None = None) -> tuple[onnxshap.Traced, Turned, Dataset]:
    """Return a model, the same in other bases, and data."""
    traced = onnxshap.trace(model)
    data = as_images(traced, dict(random_feeds(model, traced.shaped.inputs, 0).inputs)) if data is None else data
    return traced, turned(traced, free_batch(traced), traced.groups, data), data


def error(traced: onnxshap.Traced, found: Turned, data: Dataset) -> float:
    """Return how far the outputs in the new bases are from the model's."""
    before, after = (run_all(traced, t.shaped.graph.model, data) for t in (traced, found.traced))
    return compare(after, before, before).rel_err


def changed(traced: onnxshap.Traced, found: Turned) -> set[str]:
    """Return the constants that are others in the new bases."""
    old = traced.shaped.graph.initializers
    new = found.traced.shaped.graph.initializers
    return {name for name in old if not np.array_equal(array(old[name]), array(new[name]))}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), outputs=st.integers(2, 6))
def test_the_first_directions_lose_least_and_what_theory_says(seed: int, outputs: int) -> None:
    rng, n = np.random.default_rng(seed), 6
    mixed = rng.normal(size=(n, n))
    covariance, weights = mixed @ mixed.T + 0.1 * np.eye(n), rng.normal(size=(n, outputs))
    basis = principal(covariance, weights @ weights.T)
    assert basis is not None

    def lost(functions: FloatArray) -> float:
        """The squared error of the best prediction of the outputs from some linear functions of the inputs."""
        seen = functions @ covariance
        best = np.linalg.solve(seen @ functions.T, seen @ weights)
        return float(np.trace(weights.T @ covariance @ weights) - np.trace(weights.T @ seen.T @ best))

    singular = np.linalg.svd(np.linalg.cholesky(covariance).T @ weights, compute_uv=False)
    for k in range(1, n):
        assert lost(basis[:k]) == pytest.approx((singular[k:] ** 2).sum(), abs=1e-6 * (singular**2).sum())
        assert lost(basis[:k]) <= lost(np.eye(n)[rng.permutation(n)[:k]]) + 1e-6 * (singular**2).sum()


def test_an_error_in_the_new_coordinates_counts_by_its_length() -> None:
    """So upstream layers, whose errors in what they make are summed up, are cut by what these do behind it."""
    rng, n = np.random.default_rng(0), 6
    mixed, weights = rng.normal(size=(n, n)), rng.normal(size=(n, 9)) * np.geomspace(0.01, 10, 9)
    covariance, weight = mixed @ mixed.T, weights @ weights.T
    basis, shared = (principal(covariance, weight, product=product) for product in (False, True))
    assert basis is not None and shared is not None
    back = np.linalg.inv(basis)
    np.testing.assert_allclose(back.T @ weight @ back, np.eye(n), atol=1e-8)
    back = np.linalg.inv(shared)  # of a product: in either factor as in the other
    np.testing.assert_allclose(back.T @ weight @ back, shared @ covariance @ shared.T, atol=1e-6)


def test_both_sides_of_a_basis_cancel() -> None:
    rng = np.random.default_rng(0)
    basis, x, w = random_basis(rng, 4)[None], rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    at = np.arange(4)[None]
    made, read = turned_constant(x, 0, at, basis), turned_constant(w, 1, at, other_side(basis))
    np.testing.assert_allclose(read @ made, w @ x, atol=1e-12)


def test_a_trunk_is_turned_with_all_that_makes_and_reads_it_and_nothing_else_is() -> None:
    traced, found, data = in_bases(chain())
    assert found.groups == ("a",)
    assert changed(traced, found) == {"wa", "ba", "wb", "wc", "wq"}
    assert error(traced, found, data) <= 1e-5
    assert found.traced.source is traced.source


def test_what_one_batch_took_is_let_go_of_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the outputs of two are there at a time, moments take twice the memory that they may."""
    run, earlier, batches = _OrtSession.run, list[weakref.ref[Array]](), 0

    def watched(session: _OrtSession, feeds: dict[str, Array]) -> list[Array]:
        nonlocal batches
        if sys._getframe(1).f_code.co_name != feeding.activations.__name__:
            return run(session, feeds)
        assert all(one() is None for one in earlier)
        found, batches = run(session, feeds), batches + 1
        earlier[:] = [weakref.ref(values) for values in found]
        return found

    monkeypatch.setattr(_OrtSession, "run", watched)
    in_bases(chain(), Dataset({"x": np.random.default_rng(0).random((40, 3, 6, 6), np.float32)}))
    assert batches > 1


def test_heads_have_bases_of_their_own() -> None:
    traced, found, data = in_bases(attention())
    names = {name.partition("#")[0] for name in found.groups}
    assert names == {"a", "d"}  # queries and keys; values and what reads them
    assert changed(traced, found) == {"wq", "bq", "wk", "wv", "bv", "wo"}
    assert error(traced, found, data) <= 1e-5
    old, new = (array(t.shaped.graph.initializers["wv"]) for t in (traced, found.traced))
    turns = [np.linalg.lstsq(old[:, h], new[:, h], rcond=None)[0] for h in (slice(0, 4), slice(4, 8))]
    for turn, h in zip(turns, (slice(0, 4), slice(4, 8)), strict=True):
        np.testing.assert_allclose(old[:, h] @ turn, new[:, h], atol=1e-4)  # of a head's own alone
    assert np.abs(turns[0] - turns[1]).max() > 0.01


@pytest.mark.parametrize(
    ("op", "constants"),
    [
        ("Relu(a)", {}),
        ("Clip(a, low, high)", {"low": np.float32(-1e9), "high": np.float32(50)}),  # no value comes near
        ("MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)", {}),
        ("Mul(a, a)", {}),
        ("Clip(a, low, high)", {"low": np.float32(-65504), "high": np.float32(65504)}),  # nor here
        ("Max(a, low)", {"low": np.float32(-1e6)}),
        ("ThresholdedRelu<alpha=-1e6>(a)", {}),
        ("LeakyRelu<alpha=0.99999>(a)", {}),
        ("LRN<size=3, alpha=1e-6>(a)", {}),
        ("Conv<group=8>(a, wd)", {"wd": (8, 1, 1, 1)}),
        ("InstanceNormalization(a, scale, shift)", {"scale": (8,), "shift": (8,)}),
        ("Mul(a, gains)", {"gains": (8, 1, 1)}),
    ],
)
def test_what_is_not_linear_in_between_keeps_its_units(op: str, constants: dict[str, Any]) -> None:
    model = net(BETWEEN % op, wa=(8, 3, 1, 1), wy=(5, 8, 1, 1), **constants)
    traced, found, _ = in_bases(model)
    assert len(traced.groups) == 1 and found.groups == ()
    assert found.traced is traced


@pytest.mark.parametrize(
    ("op", "gate", "turns"),
    [
        ("Where(flag, a, one)", 1, False),  # no mask is set, in these inputs
        ("Where(flag, a, zero)", 1, True),
        ("Where(flag, a, token)", 1, True),
        ("Add(a, gate)", 0, False),
        ("Sub(a, gate)", 0, False),
        ("PRelu(a, gate)", 1, False),
        ("Mul(a, gate)", 1, True),
        ("Div(a, gate)", 1, True),
    ],
)
def test_what_is_read_beside_the_units_may_be_anything(op: str, gate: float, turns: bool) -> None:
    text = f"""(float[N,4,6] x, float[N,4,1] gate, bool[N,4,1] flag) => (float[N,4,5] y) {{
        a = MatMul(x, wa) b = {op} y = MatMul(b, wy)
    }}"""
    stored: dict[str, Any] = {"one": np.float32(1), "zero": np.float32(0), "token": (8,)}
    model = net(text, wa=(6, 8), wy=(8, 5), **{name: value for name, value in stored.items() if name in op})
    rng = np.random.default_rng(0)

    def inputs(gate: FloatArray, flag: Any) -> Dataset:
        return Dataset({"x": rng.normal(size=(40, 4, 6)).astype(np.float32), "gate": gate.astype(np.float32),
                        "flag": flag})  # fmt: skip

    usual = inputs(np.full((40, 4, 1), gate), np.ones((40, 4, 1), np.bool_))
    traced, found, _ = in_bases(model, usual)
    assert found.groups == (("a",) if turns else ())
    other = inputs(rng.uniform(0.5, 2, (40, 4, 1)), rng.random((40, 4, 1)) < 0.5)
    assert error(traced, found, other) <= 1e-5


def test_fused_attention_has_bases_of_queries_and_keys_and_of_values() -> None:
    text = """(float[N,5,6] x) => (float[N,5,6] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        o = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)
        y = MatMul(o, wo)
    }"""
    traced, found, data = in_bases(net(text, opset=23, ir=11, wq=(6, 8), wk=(6, 8), wv=(6, 8), wo=(8, 6)))
    assert changed(traced, found) == {"wq", "wk", "wv", "wo"}
    assert error(traced, found, data) <= 1e-5


GROUPED = """(float[N,5,6] x) => (float[N,5,6] y) {
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
    q1 = Reshape(q0, qs) k1 = Reshape(k0, ks) v1 = Reshape(v0, ks)
    qt = Transpose<perm=[0,2,1,3]>(q1) kt = Transpose<perm=[0,2,1,3]>(k1) vt = Transpose<perm=[0,2,1,3]>(v1)
    k3 = Unsqueeze(kt, two) v3 = Unsqueeze(vt, two)
    k4 = Expand(k3, wide) v4 = Expand(v3, wide)
    k5 = Reshape(k4, full) v5 = Reshape(v4, full)
    k6 = Transpose<perm=[0,1,3,2]>(k5)
    s = MatMul(qt, k6) p = Softmax(s) o = MatMul(p, v5)
    ot = Transpose<perm=[0,2,1,3]>(o) g = Reshape(ot, flat) y = MatMul(g, wo)
}"""
FUSED = """(float[N,5,6] x) => (float[N,5,6] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    o = Attention<q_num_heads=%d, kv_num_heads=%d>(q, k, v)
    y = MatMul(o, wo)
}"""


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("many", "few"), [(4, 2), (4, 1), (12, 1), (6, 2)])
def test_heads_that_share_keys_and_values_have_the_bases_of_these(many: int, few: int, fused: bool) -> None:
    weights = dict[str, Any](wq=(6, 4 * many), wk=(6, 4 * few), wv=(6, 4 * few), wo=(4 * many, 6))
    sizes = dict[str, Any](qs=[0, 0, many, 4], ks=[0, 0, few, 4], two=[2], wide=[1, 1, many // few, 1, 1],
                           full=[0, many, 5, 4], flat=[0, 0, 4 * many])  # fmt: skip
    model = net(FUSED % (many, few), opset=23, ir=11, **weights) if fused else net(GROUPED, **weights, **sizes)
    traced, found, data = in_bases(model)
    assert changed(traced, found) == weights.keys()
    assert error(traced, found, data) <= 1e-5
    old, new = ([array(t.shaped.graph.initializers[n]) for n in ("wk", "wv")] for t in (traced, found.traced))
    for one, other in zip(old, new, strict=True):  # of every head of keys, or of values, by its own matrix
        turns = [np.linalg.lstsq(one[:, h : h + 4], other[:, h : h + 4], rcond=None)[0] for h in range(0, 4 * few, 4)]
        for h, turn in zip(range(0, 4 * few, 4), turns, strict=True):
            np.testing.assert_allclose(one[:, h : h + 4] @ turn, other[:, h : h + 4], atol=1e-4)
        assert few == 1 or np.abs(turns[0] - turns[1]).max() > 0.01


def test_queries_that_share_keys_lose_least_together() -> None:
    """Keys of two directions, of which the first heads' queries see one and the second heads' the other."""
    rng = np.random.default_rng(0)
    wq, wk = np.zeros((6, 8), np.float32), np.zeros((6, 4), np.float32)
    mix = rng.normal(size=(4, 4))
    for head in range(2):
        wq[:, 4 * head : 4 * head + 4] = rng.normal(size=(6, 1)) @ np.linalg.inv(mix).T[head : head + 1]
    wk[:] = rng.normal(size=(6, 4)) @ mix
    model = net(FUSED % (2, 1), opset=23, ir=11, wq=wq, wk=wk, wv=(6, 4), wo=(8, 6))
    traced, data = onnxshap.trace(model), random_data(input_specs(model), 300, 1)
    (name,) = (g.name for g in traced.groups if g.producers == ("q", "k"))
    lost = {}
    for basis in BASES:
        result = onnxshap.prune(
            traced, data.inputs, method="recon", keep_units=0.5, include=[name], basis=basis, repair="lstsq"
        )
        before, after = (run_all(traced, m, data)[0] for m in (traced.source, result.model))
        lost[basis] = float(((after - before) ** 2).mean() / before.var())
    assert lost["principal"] < 0.01 < 0.1 < lost["own"]


def test_a_stored_matrix_of_two_layers_stays_one() -> None:
    text = "(float[N,3] x) => (float[N,3] y) { a = MatMul(x, w) b = MatMul(a, v) c = MatMul(b, w) y = MatMul(c, v) }"
    _, found, _ = in_bases(net(text, w=(3, 4), v=(4, 3)))
    assert found.groups == ()


def test_a_group_that_stays_as_it_was_beside_one_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxshap.graph.weights.LARGE", 64)
    model = attention()
    data = Dataset(random_data(input_specs(model), 60, 1).inputs)
    traced = onnxshap.trace(model)
    moved = turned(traced, free_batch(traced), traced.groups, data)
    (values,) = (name for name in moved.groups if name.startswith("d"))
    phi = {g.name: np.arange(len(g), dtype=np.float64) for g in traced.groups}
    cutter = Cutter(moved.traced, free_batch(moved.traced), traced.groups, phi, data, "lstsq", "uniform", turned=moved)
    keep = {name: np.ones(len(order), np.bool_) for name, order in phi.items()}
    keep[values][:2] = False
    cut = cutter.cut(keep)
    stored = {
        t.name: array(t) for t in put_in(cut.model).graph.initializer
    }  # though they are large: the cut holds them
    for old in model.graph.initializer:
        if old.name in ("wq", "bq", "wk"):
            assert np.array_equal(stored[old.name], array(old))
    assert stored["wv"].shape == (6, 4)


@pytest.mark.parametrize("case", CASES[::10], ids=lambda case: case.name)
def test_ops_of_all_kinds_compute_the_same_in_other_bases(case: Case) -> None:
    traced, found, data = in_bases(case.model)
    assert error(traced, found, data) <= 1e-4


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=nets())
def test_random_nets_compute_the_same_in_other_bases(model: ModelProto) -> None:
    traced, found, data = in_bases(model)
    assert error(traced, found, data) <= 1e-4


def spread() -> ModelProto:
    """Return a net of a linear pair whose eight units mix eight directions, each half as strong as the one before."""
    rng = np.random.default_rng(0)
    text = """(float[N,12] x) => (float[N,5] y) {
        a = Gemm(x, wa, ba) b = Gemm(a, wb, bb) r = Relu(b) y = MatMul(r, wy)
    }"""
    wa = (rng.normal(size=(12, 8)) * 0.5 ** np.arange(8) @ rng.normal(size=(8, 8))).astype(np.float32)
    return net(text, wa=wa, ba=(8,), wb=(8, 16), bb=(16,), wy=(16, 5))


def test_a_cut_takes_directions() -> None:
    model = spread()
    data = random_data(input_specs(model), 300, 1)
    lost = {}
    for basis in BASES:
        result = onnxshap.prune(
            model, data.inputs, method="recon", keep_units=0.5, include=["a"], basis=basis, repair="lstsq", payoff="mse"
        )
        assert result.turned == (("a",) if basis == "principal" else ())
        before, after = (run_all(result.traced, m, data)[0] for m in (model, result.model))
        lost[basis] = float(((after - before) ** 2).sum() / before.var(axis=0).sum() / len(before))
    assert lost["principal"] < 0.75 * lost["own"]


def test_the_default_follows_the_repair_and_the_values() -> None:
    model, kept = spread(), dict[str, Any](method="recon", keep_units=0.5)
    data = random_data(input_specs(model), 60, 1).inputs
    assert onnxshap.prune(model, data, **kept).turned == ("a",)
    for repair in ("none", "fold"):
        assert onnxshap.prune(model, data, repair=repair, **kept).turned == ()
    assert onnxshap.prune(model, repair="lstsq", **kept).turned == ()  # noise tells no directions
    values = onnxshap.score(model, data, method="recon")
    assert onnxshap.prune(model, data, values=values, keep_units=0.5).turned == ()
    with pytest.raises(OnnxshapError, match="basis 'other' is unknown; choose one of principal, own"):
        onnxshap.prune(model, data, basis="other", **kept)
    with pytest.raises(OnnxshapError, match="basis 'other' is unknown; choose one of principal, own"):
        onnxshap.score(model, data, basis="other")


def test_a_basis_that_is_asked_for_in_vain_is_told_of() -> None:
    """One image tells nothing of combinations; by default nobody asked for any."""
    model = spread()
    data = random_data(input_specs(model), 60, 1).inputs
    one = {name: values[:1] for name, values in data.items()}
    note = "basis principal: all units are the file's"
    scores = onnxshap.score(model, one, method="l1", basis="principal")
    assert scores.bases == {} and any(text.startswith(note) for text in scores.notes)
    told = dict[str, bool]()
    for basis, inputs in (("principal", data), (None, one)):
        notes = onnxshap.prune(model, inputs, method="l1", keep_units=0.5, basis=basis).notes
        told[str(basis)] = any(text.startswith(note) for text in notes)
    assert told == {"principal": False, "None": False}


def test_weights_that_another_basis_would_take_beyond_float32_stay_as_they_are() -> None:
    wide = np.full((6, 8), 3e38) * np.linspace(0.9, 1, 8)
    narrow = np.random.default_rng(0).normal(size=(8, 4)) * 1e-30
    model = net(
        """(float[N,6] x) => (float[N,9] z) {
            a = MatMul(x, w1) y = MatMul(a, w2) r = Relu(y) b = MatMul(r, w3) z = MatMul(b, w4)
        }""",
        w1=wide.astype(np.float32), w2=narrow.astype(np.float32), w3=(4, 8), w4=(8, 9),
    )  # fmt: skip
    traced, data = onnxshap.trace(model), random_data(input_specs(model), 60, 0)
    small = Dataset({"x": data.inputs["x"] * np.float32(1e-8)}, None, "small")
    assert turned(traced, free_batch(traced), traced.groups, small).groups == ("b",)


@pytest.mark.parametrize("made", [spread, attention, chain])
def test_values_of_combinations_cut_like_one_run(made: Callable[[], ModelProto], tmp_path: Path) -> None:
    model, kept = made(), dict[str, Any](keep_macs=0.6, allocation="curves")
    data = random_data(input_specs(model), 60, 1).inputs
    once = onnxshap.prune(model, data, method="recon", **kept)
    scores = onnxshap.score(model, data, method="recon", basis="principal")
    report.write_json(report.values_report(scores), tmp_path / "v.json")
    read = report.read_values(tmp_path / "v.json")
    assert once.turned == tuple(scores.bases) == tuple(read.bases) != ()
    assert read.basis == "principal"
    for values in (once.scores, scores, read):
        again = onnxshap.prune(model, data, values=values, **kept)
        assert again.turned == once.turned
        assert again.model.SerializeToString() == once.model.SerializeToString()
    wide = onnxshap.sweep(model, data, values=read, keep=(0.6,), eval_data=data, allocation="curves")
    assert (wide.turned, wide.curves[0].method) == (once.turned, "recon")
    assert wide.curves[0].points[0].figures.score == once.after.score


def test_values_of_combinations_turn_the_same_way_on_any_data_and_for_any_part_of_the_groups() -> None:
    model = attention()
    first, other = (random_data(input_specs(model), 60, seed).inputs for seed in (1, 2))
    values = onnxshap.score(model, first, method="recon", basis="principal")
    results = [
        onnxshap.prune(model, data, values=values, keep_units=0.5, repair="none", seed=seed, **chosen)
        for seed, data, chosen in ((0, first, {}), (1, other, {}), (0, None, {}))
    ]
    assert len({result.model.SerializeToString() for result in results}) == 1
    part = onnxshap.prune(model, other, values=values, keep_units=0.5, include=["a*"])
    assert {name.partition("#")[0] for name in part.turned} == {"a"}


def test_values_of_another_basis_or_model_are_refused(tmp_path: Path) -> None:
    model, kept = spread(), dict[str, Any](keep_units=0.5)
    data = random_data(input_specs(model), 60, 1).inputs
    own, other = (onnxshap.score(model, data, method="recon", basis=basis) for basis in ("own", "principal"))
    assert own.bases == {} and own.basis == "own"
    with pytest.raises(OnnxshapError, match="basis principal needs values of its own units, these are of basis own"):
        onnxshap.prune(model, data, values=own, basis="principal", **kept)
    with pytest.raises(OnnxshapError, match="basis own needs values of its own units, these are of basis principal"):
        onnxshap.sweep(model, data, values=other, basis="own")
    with pytest.raises(OnnxshapError, match="the values belong to another model"):
        onnxshap.prune(chain(), random_data(input_specs(chain()), 60, 1).inputs, values=other, **kept)
    found = report.values_report(other)
    for key, value, why in (
        ("float32", "AAAAAA==", "not so many finite numbers"),
        ("float32", "?", "'float32' that are not so many"),
        ("float32", "AAAA", "'float32' that are not so many"),
        ("shape", [1, 8], "'shape' that is no three sizes"),
        ("places", 3, "lacks 'places'"),
    ):
        damaged = json.loads(json.dumps(found))
        damaged["bases"]["a"][0][key] = value
        report.write_json(damaged, tmp_path / "v.json")
        with pytest.raises(OnnxshapError, match=why):
            report.read_values(tmp_path / "v.json")
    report.write_json({**found, "basis": "odd"}, tmp_path / "v.json")
    with pytest.raises(OnnxshapError, match="its 'basis' is none of principal, own"):
        report.read_values(tmp_path / "v.json")
    report.write_json({**found, "basis": "own"}, tmp_path / "v.json")
    with pytest.raises(OnnxshapError, match="it has 'bases', but its 'basis' is own"):
        report.read_values(tmp_path / "v.json")
    mixed = replace(other, bases={"a": [replace(other.bases["a"][0], matrices=-other.bases["a"][0].matrices)]})
    with pytest.raises(OnnxshapError, match="the values belong to another model"):
        onnxshap.prune(model, data, values=mixed, **kept)
    (one,) = other.bases["a"]
    for some, why in (
        ([replace(one, places="0" * 64)], "of other combinations of the units of group 'a' than this version makes"),
        ([one, one], "of other combinations of the units of group 'a' than this version makes"),
        ([replace(one, matrices=np.ones_like(one.matrices))], "of the units of group 'a' cannot be undone"),
    ):
        moved = replace(other, bases={"a": some}, model=form_of(own.model, {"a": some}))
        with pytest.raises(OnnxshapError, match=why):
            onnxshap.prune(model, data, values=moved, **kept)


def test_groups_of_which_nothing_is_cut_are_written_as_they_were() -> None:
    model = attention()
    data = random_data(input_specs(model), 60, 1).inputs
    traced = onnxshap.trace(model)
    queries, values = sorted(g.name for g in traced.groups if g.name[0] in "ad" and len(g) == 4)
    moved = turned(traced, free_batch(traced), traced.groups, Dataset(data))
    assert moved.groups == (queries, values)
    assert changed(traced, replace(moved, traced=moved.only([values]))) == {"wv", "bv", "wo"}
    whole = onnxshap.prune(model, data, method="recon", keep_units=1.0)
    assert whole.turned == (queries, values)  # the values are of combinations
    for old in model.graph.initializer:
        new = next(t for t in whole.model.graph.initializer if t.name == old.name)
        assert np.array_equal(array(new), array(old))


def test_no_more_inputs_are_run_at_a_time_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, most = spread(), 0

    def counted(traced: onnxshap.Traced, data: Dataset, size: int) -> Any:
        nonlocal most
        for count, feeds in calibrate.batches(traced, data, size):
            most = max(most, count)
            yield count, feeds

    monkeypatch.setattr(feeding, "batches", counted)
    data = random_data(input_specs(model), 64, 1)
    for memory, size in ((2**30, 16), (256, 3), (1, 1)):
        most, traced = 0, onnxshap.trace(model, backend=onnxshap.OrtBackend("cpu", 1, memory=memory))
        assert turned(traced, free_batch(traced), traced.groups, data).groups == ("a",)
        assert most == size


def test_one_seed_gives_the_same_model() -> None:
    model = attention()
    data = random_data(input_specs(model), 40, 1).inputs
    one, other = (onnxshap.prune(model, data, method="recon", keep_macs=0.6).model for _ in range(2))
    assert one.SerializeToString() == other.SerializeToString()


def test_reports_tell_whose_units_are_combinations() -> None:
    model = spread()
    data = random_data(input_specs(model), 60, 1).inputs
    result = onnxshap.prune(model, data, method="recon", keep_units=0.5)
    found = json.loads(json.dumps(report.prune_report(result, model="m.onnx", output=None, seed=0)))
    assert found["turned"] == ["a"]
    words = "".join(str(part) for part in report.prune_tables(found))
    assert "Units as combinations of the file's, where only linear ops touch them: a." in words
    many = onnxshap.sweep(model, data, methods=("l1",), keep=(0.5,), eval_data=data)
    assert report.sweep_report(many, model="m.onnx", seed=0, max_drop=0.1)["turned"] == ["a"]


def test_a_transformer_loses_a_fifth_of_what_it_loses_by_its_own_units() -> None:
    traced = onnxshap.trace(MODELS / "fashion_vit.onnx", backend=onnxshap.OrtBackend("cpu", 1))
    images = np.load(MODELS / "fashion_calibration.npz")["image"]
    data, held_out = Dataset({"image": images[:80]}), Dataset({"image": images[80:200]})
    lost = {}
    for basis in BASES:
        result = onnxshap.prune(
            traced, data, method="recon", keep_units=0.5, include=["node_MatMul_[13]*#2"], basis=basis, repair="lstsq"
        )
        before, after = (run_all(traced, m, held_out)[0] for m in (traced.source, result.model))
        lost[basis] = float(((after - before) ** 2).mean())
    assert lost["principal"] < 0.2 * lost["own"]
