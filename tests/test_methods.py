"""One battery over every `--method`, and what is particular to some of them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

import onnxshap
from onnxshap.calibrate import run_all
from onnxshap.cli import screen
from onnxshap.core import FloatArray
from onnxshap.errors import DataError
from onnxshap.estimators.rows import over_images
from onnxshap.game import Setting
from onnxshap.graph import structure
from onnxshap.methods import GAMELESS, METHODS, Whole
from onnxshap.methods.lean import operator_norms
from onnxshap.methods.ranking import left_over, ranked_by, ranks
from onnxshap.methods.spp import moves
from onnxshap.payoffs import MSE
from onnxshap.scores import Ordering
from onnxshap.scoring import score_groups
from tests.exactness import net as build

RNG = np.random.default_rng(7)
IMAGES: dict[str, Any] = {"x": RNG.normal(size=(40, 3, 6, 6)).astype(np.float32), "labels": RNG.integers(0, 4, 40)}
SHAPES: dict[str, Any] = {
    "w0": (8, 3, 3, 3), "b0": (8,), "d": (8, 1, 3, 3), "w1": (8, 8, 1, 1), "b1": (8,), "w2": (12, 8, 3, 3),
    "w3": (12, 4)
}  # fmt: skip


NOISY = {"random", "lean", "apoz", "spp", "shapley-quick", "shapley-regression"}
"""Methods for which a unit without any effect is not worth exactly nothing."""


WHOLE = {name for name, method in METHODS.items() if isinstance(method, Whole)} - GAMELESS
"""Methods that play a game of all images together."""


def net(**changed: Any) -> ModelProto:
    """A stem, a residual block with a depthwise Conv, a strided Conv, a classifier."""
    model = build(
        """(float[N,3,6,6] x) => (float[N,4] y) {
            [stem] a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            r = Relu(a)
            [deep] t = Conv<pads=[1,1,1,1], group=8>(r, d)
            u = Relu(t)
            [point] v = Conv(u, w1, b1)
            s = Add(r, v)
            [down] q = Conv<pads=[1,1,1,1], strides=[2,2]>(s, w2)
            z = Relu(q)
            p = GlobalAveragePool(z)
            f = Flatten(p)
            [last] y = MatMul(f, w3)
        }""",
        **SHAPES,
    )
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            values = changed[tensor.name](numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def score(model: ModelProto, method: str, **options: Any) -> onnxshap.Scores:
    return onnxshap.score(model, IMAGES, method=method, **({"samples": 24, "decided": 0} | options))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_values_every_unit_the_same_twice(method: str) -> None:
    found, again = score(net(), method), score(net(), method)
    assert {name: len(v.phi) for name, v in found.values.items()} == {"stem": 8, "down": 12}
    for name, values in found.values.items():
        assert np.isfinite(values.phi).all() and (values.stderr >= 0).all()
        assert len(np.unique(values.phi)) > 1
        assert values.phi.tobytes() == again.values[name].phi.tobytes()
        assert (values.evals == 0) == (method in GAMELESS)
        assert values.stopped == "samples" and values.images == 24


@pytest.mark.parametrize("method", sorted(set(METHODS) - NOISY))
def test_a_unit_that_nobody_hears_goes_first(method: str) -> None:
    def dead(values: Any) -> Any:
        values[3] = 0
        return values

    model = net(w3=dead, w2=dead)  # made of zeros, without a bias, and read with zeros
    values = score(model, method).values["down"].phi
    assert values[3] == pytest.approx(np.abs(values).min(), abs=1e-9) or values[3] == values.min()


@pytest.mark.parametrize("method", ["loo-logit", "recon", "shapley", "spp", "taylor", "fisher", "shapley-regression"])
def test_strong_units_stay(method: str) -> None:
    def loud(values: Any) -> Any:
        values[5] *= 6
        return values

    values = score(net(w3=loud), method).values["down"].phi
    assert values[5] >= np.sort(values)[-3]


def test_operator_norms_are_those_of_the_convolutions() -> None:
    kernel = RNG.normal(size=(1, 3))
    for stride in (1, 2, 3):
        size = 48
        rows = np.zeros((size, size))
        for i in range(size):
            for k in range(3):
                rows[i, (i + k) % size] += kernel[0, k]
        exact = np.linalg.norm(rows[::stride], 2)
        assert operator_norms(kernel, (stride,))[0] == pytest.approx(exact, rel=0.03)
    assert operator_norms(np.array([[-3.0]]), ()).tolist() == [[3.0]]


def test_lean_keeps_the_heaviest_path_first() -> None:
    def line(values: Any) -> Any:
        values *= 0.1
        values[2, 1] = 5.0
        return values

    def out(values: Any) -> Any:
        values *= 0.1
        values[2, 0] = 5.0
        return values

    model = net(w2=line, w3=out)  # the loudest way leads through stem 1 and down 2
    values = score(model, "lean").values
    assert values["down"].phi.argmax() == 2 and values["stem"].phi.argmax() == 1
    assert values["down"].phi[2] == values["stem"].phi[1] == 0
    assert len(np.unique(values["down"].phi)) > 6


def test_lean_takes_the_heavier_way_to_a_channel() -> None:
    """Where paths meet in one channel of a sum, the heavier goes on."""

    def kernels(rows: list[list[float]]) -> Any:
        return np.array(rows, np.float32)[..., None, None]

    model = build(
        """(float[N,2,4,4] x) => (float[N,1] y) {
            a = Conv(x, wa)
            b = Conv(x, wb)
            s = Add(a, b)
            c = Conv(x, wc)
            j = Concat<axis=1>(s, c)
            p = GlobalAveragePool(j)
            f = Flatten(p)
            y = MatMul(f, w)
        }""",
        wa=kernels([[0.1, 0.2], [0.3, 0.1], [0.3, 0.1]]),
        wb=kernels([[0.1, 0.1], [0.1, 9.0], [0.1, 0.1]]),
        wc=kernels([[0.2, 0.1], [0.2, 4.0], [0.1, 0.1]]),
        w=[[1.0], [1.0], [1.0], [0.1], [1.0], [0.1]],
    )
    data = {"x": IMAGES["x"][:, :2, :4, :4]}
    found = onnxshap.score(model, data, method="lean", samples=8, decided=0).values
    values = [v.phi.tolist() for v in found.values()]
    assert values == [[-3, 0, -2], [-4, -1, -5]]  # 9, 4, .3, .2, .02, .01


def test_lean_reads_the_model_once_not_once_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer of 500 nodes took a minute for the same look-ups a thousand times over."""
    nodes, module = list[str](), importlib.import_module("onnxshap.methods.lean")

    def reads(node: NodeProto) -> list[str]:
        nodes.append(node.output[0])
        return structure.reads(node)

    monkeypatch.setattr(module, "reads", reads)
    values = score(net(), "lean").values["down"].phi
    assert len(np.unique(values)) > 6  # paths
    assert nodes and len(nodes) == len(set(nodes))


def test_probabilities_move_towards_the_number_wanted() -> None:
    delta = moves(20, 8)
    assert (np.diff(delta) <= 0).all() and delta[0] == 0.2
    assert delta[8] == pytest.approx(0, abs=1e-12) and (delta[9:] < 0).all()
    values = score(net(), "spp").values["down"].phi
    assert (values <= -0.999).sum() >= 4  # gone for good
    assert (values > -0.5).sum() >= 4


def test_probabilities_start_from_few_images() -> None:
    """The two coalitions of an image are often the same at first: nothing is known of any unit then."""
    for seed in range(5):
        values = score(net(), "spp", samples=1, seed=seed).values
        assert all(np.isfinite(v.phi).all() for v in values.values())


@pytest.mark.parametrize("method", sorted(WHOLE))
def test_budgets_hold_for_methods_that_take_groups_as_wholes(method: str) -> None:
    found = score(net(), method, max_evals=1500)
    assert 0 < found.evals <= 1500
    for values in found.values.values():
        assert values.stopped == "max-evals" and 0 < values.images < 24
    assert {v.stopped for v in score(net(), method, max_evals=10**6).values.values()} == {"samples"}
    told: list[object] = []
    with pytest.raises(onnxshap.BudgetError, match=r"max_evals is 30, .* few for group 'stem' and 1 more; give \d+"):
        score(net(), method, max_evals=30, progress=lambda *at: told.append(at))
    assert not told  # before any group was played


def test_lean_of_another_model_is_not_remembered() -> None:
    first = score(net(), "lean").values["down"].phi
    other = score(net(w3=lambda values: values[::-1]), "lean").values["down"].phi
    assert (first != other).any()


def test_what_is_refitted_is_ranked_by_mean_and_spread() -> None:
    """A unit that helps half of the images as much as it harms the others is none that does nothing."""
    values = over_images(np.array([[5.0, 0.0, 1.0], [-5.0, 0.0, 2.0]]), 0)
    played = replace(values, images=2)
    earlier = replace(played, spread=None)  # of files that earlier versions wrote
    sure = replace(played, stderr=played.stderr / 10)  # what is known of the mean is not what images differ by
    for known in (played, earlier, sure):
        assert ranks("shapley", known, refitted=True).tolist() == pytest.approx([10.0, 0.0, 2.5])
    assert ranked_by("shapley", refitted=True) == "value + 2 std over images, less what the units left make up for"
    assert ranked_by("shapley", refitted=False) == ranked_by("recon", refitted=True) == "value"
    for name, value, refitted in (("shapley", played, False), ("taylor", played, True), ("shapley", values, True)):
        assert ranks(name, value, refitted=refitted).tolist() == [0.0, 0.0, 1.5]


def test_dead_units_go_first_where_consumers_are_refitted() -> None:
    rng = np.random.default_rng(0)
    w0, b0 = rng.standard_normal((6, 16)).astype(np.float32), np.zeros(16, np.float32)
    b0[::2] = -1000.0
    model = build(
        "(float[N,6] x) => (float[N,3] y) { h = MatMul(x, w0) a = Add(h, b0) r = Relu(a) y = MatMul(r, w1) }",
        w0=w0, b0=b0, w1=(16, 3),
    )  # fmt: skip
    images = {"x": rng.standard_normal((60, 6)).astype(np.float32)}
    targets = rng.integers(0, 3, 60)  # no unit helps with these: half of the values are negative
    result = onnxshap.prune(model, images | {"labels": targets}, keep_units=0.5, multiple_of=1)
    (kept,) = result.keep.values()
    assert kept.tolist() == [False, True] * 8
    assert result.after.score["agreement"] == 1


@pytest.mark.parametrize("method", ["shapley", "shapley-stratified", "exact"])
def test_of_copies_that_share_their_value_one_stays_where_consumers_are_refitted(method: str) -> None:
    """Both copies of a weak unit are worth less than either of a strong one; one of each gives all there was."""
    rng = np.random.default_rng(1)
    w0 = np.repeat(rng.standard_normal((6, 4)).astype(np.float32), 2, axis=1)
    w1 = rng.standard_normal((8, 3)).astype(np.float32) * np.repeat([4.0, 2.0, 1.0, 0.5], 2)[:, None].astype(np.float32)
    model = build("(float[N,6] x) => (float[N,3] y) { h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }", w0=w0, w1=w1)
    images = {"x": rng.standard_normal((60, 6)).astype(np.float32)}
    given: dict[str, Any] = {"keep_units": 0.5, "multiple_of": 1, "method": method}
    values = onnxshap.score(model, images, method=method)
    for known in (None, values):
        result = onnxshap.prune(model, images, values=known, **given)
        (kept,) = result.keep.values()
        assert (kept.reshape(4, 2).sum(axis=1) == 1).all()
        assert result.after.score["mse"] > -1e-4
    (kept,) = onnxshap.prune(model, images, repair="none", basis="own", **given).keep.values()
    assert (kept.reshape(4, 2).sum(axis=1) == 2).any()  # by their values alone
    swept = onnxshap.sweep(model, images, methods=[method], keep=[0.5], multiple_of=1, allocation="uniform")
    assert swept.curves[0].points[0].drop.mean < 1e-4


def test_values_of_few_images_do_not_choose_what_is_cut_before_a_refit() -> None:
    data = {"x": IMAGES["x"]}
    kept = [
        onnxshap.prune(net(), data, method=m, samples=s, keep_macs=0.5).keep
        for m, s in (("shapley", 19), ("recon", 40))
    ]
    assert all((kept[0][name] == kept[1][name]).all() for name in kept[0])
    assert ranked_by("shapley", refitted=True, images=[19, 3]).startswith("what the units left do not make up for")
    assert ranked_by("shapley", refitted=True, images=[20, 0]) == ranked_by("shapley", refitted=True)
    mixed = ranked_by("shapley", refitted=True, images=[19, 20])
    assert mixed.startswith("value + 2 std") and "or, of some groups, what the units left" in mixed
    assert ranked_by("recon", refitted=True, images=[1, 20]) == "value"


def order_in(groups: list[str], ordering: Ordering | None = None) -> dict[str, FloatArray]:
    """The order of some groups of the battery's net before a refit."""
    traced, scores = onnxshap.trace(net()), score(net(), "shapley")
    data = onnxshap.Dataset({"x": IMAGES["x"]}, None, "drawn")
    reference = run_all(traced, traced.source, data)
    chosen = [g for g in traced.groups if g.name in groups]
    return scores.order(chosen, Setting(traced, data, MSE(), reference), ordering)


def test_the_order_before_a_refit_does_not_depend_on_what_else_is_cut() -> None:
    both, alone = order_in(["stem", "down"]), order_in(["down"])
    assert both["down"].tobytes() == alone["down"].tobytes()


def test_the_order_before_a_refit_tells_how_far_it_is_and_ends_in_time() -> None:
    told = list[tuple[str, int, int]]()
    whole = Ordering(lambda *at: told.append(at))
    by, plain = order_in(["stem", "down"], whole), score(net(), "shapley")
    assert whole.notes == () and told[0] == ("order", 0, 20) and told[-1] == ("order", 20, 20)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and len({d for _, d, _ in told}) > 3
    short = Ordering(seconds=0.0)
    values = order_in(["stem", "down"], short)
    for name, found in plain.values.items():
        assert values[name].tolist() == ranks("shapley", found, refitted=True).tolist() != by[name].tolist()
    (note,) = short.notes
    assert note.startswith("units of group 'stem' and 1 more are ranked by value + 2 std over images alone: no time")


def test_what_plays_no_game_is_another_stage() -> None:
    """The hint to methods without a game is for those who play one."""
    for method, stage in (("recon", "value"), ("loo", "score")):
        told = list[str]()
        score(net(), method, progress=lambda stage, done, total, told=told: told.append(stage))
        assert set(told) == {stage} <= {*screen._STAGES} & {*screen._SHORTER}


def test_seconds_are_for_the_order_of_a_refit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values alone decide, all of them are for the values."""
    seen = list[float | None]()

    def scored(*given: Any, **more: Any) -> Any:
        seen.append(given[4].max_seconds)
        return true(*given, **more)

    true = score_groups
    monkeypatch.setattr("onnxshap.valuing.score_groups", scored)
    every: list[dict[str, Any]] = [{"method": "shapley"}, {"method": "shapley", "repair": "none"}, {"method": "loo"}]
    for options in every:
        result = onnxshap.prune(net(), IMAGES, max_seconds=1e-6, keep_units=0.5, **options)
        late = [note for note in result.notes if "no time was left" in note]
        assert bool(late) == (options == every[0])
    onnxshap.sweep(net(), IMAGES, methods=["shapley"], max_seconds=1e-6, keep=[0.5], allocation="uniform")
    assert seen == [8e-7, 1e-6, 1e-6, 8e-7]


def test_layers_that_read_infinity_do_not_tell_what_units_make_up_for() -> None:
    model = build(
        """(float[N,6] x) => (float[N,4] y, float[N,1] z) {
            h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) l = Log(r) z = MatMul(l, w2)
        }""",
        w0=(6, 8), w1=(8, 4), w2=np.ones((8, 1), np.float32),
    )  # fmt: skip
    traced = onnxshap.trace(model)
    (group,) = traced.groups
    data = onnxshap.Dataset({"x": RNG.standard_normal((40, 6)).astype(np.float32)}, None, "drawn")
    phi = left_over(Setting(traced, data, MSE(), []), group, np.arange(8.0), np.random.default_rng(0))
    assert np.isfinite(phi).all() and len(np.unique(phi)) == 8


@pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
def test_what_a_unit_gives_counts_as_much_as_what_it_is_worth(unit: float) -> None:
    """By worth alone the first unit went first, by what they give the last one; it is the same in units of any size."""
    model = build(
        "(float[N,3] x) => (float[N,3] y) { h = MatMul(x, w0) r = Sigmoid(h) y = MatMul(r, w1) }",
        w0=np.eye(3, dtype=np.float32), w1=np.diag([4.0, 2.0, 1.0]).astype(np.float32),
    )  # fmt: skip
    traced = onnxshap.trace(model)
    (group,) = traced.groups
    columns = [RNG.permutation(np.linspace(-1, 1, 400)) for _ in range(3)]
    data = onnxshap.Dataset({"x": np.stack(columns, axis=1).astype(np.float32)}, None, "drawn")
    worth = unit * np.array([2.0, 3.0, 100.0])  # times variances of 16, 4 and 1: 32, 12, 100
    found = left_over(Setting(traced, data, MSE(), []), group, worth, np.random.default_rng(0))
    assert found.argsort().tolist() == [1, 0, 2]
    alone = left_over(Setting(traced, data, MSE(), []), group, None, np.random.default_rng(0))
    assert alone.argsort().tolist() == [2, 1, 0]


def test_what_no_layer_tells_of_goes_by_its_worth() -> None:
    """Also what harms, and what is worth next to nothing beside the others."""
    model = build(
        "(float[N,6] x) => (float[N,1] z) { h = MatMul(x, w0) r = Relu(h) l = Log(r) z = MatMul(l, w1) }",
        w0=(6, 8), w1=np.ones((8, 1), np.float32),
    )  # fmt: skip
    traced = onnxshap.trace(model)
    (group,) = traced.groups
    data = onnxshap.Dataset({"x": RNG.standard_normal((40, 6)).astype(np.float32)}, None, "drawn")
    worth = np.array([1e-5, -1.0, 5.0, 2e-5, -3.0, 1e-6, 2.0, 0.0])
    found = left_over(Setting(traced, data, MSE(), []), group, worth, np.random.default_rng(0))
    assert found.argsort().tolist() == worth.argsort().tolist()


def test_a_string_is_one_pattern_and_no_values() -> None:
    model = build(
        "(float[N,6] x) => (float[N,3] y) { h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }", w0=(6, 8), w1=(8, 3)
    )
    model.graph.node[0].name = "first"
    result = onnxshap.prune(model, keep_units=0.5, method="l1", include="fir*", multiple_of=1)
    assert [int(kept.sum()) for kept in result.keep.values()] == [4]
    with pytest.raises(DataError, match="values: str given; give what `score` returns"):
        onnxshap.prune(model, keep_units=0.5, values="values.json")  # type: ignore[arg-type]


NORMED: dict[str, Any] = {
    "over tokens": (
        build("""(float[N,5,3] x) => (float[N,5,4] y) {
            a = MatMul(x, w0) b = Relu(a) d = MatMul(b, w1) n = BatchNormalization(d, s, t, u, v) r = Relu(n)
            y = MatMul(r, w2)
        }""", w0=(3, 16), w1=(16, 12), w2=(12, 4), s=(5,), t=(5,), u=(5,), v=np.ones(5, np.float32)),
        (60, 5, 3),
    ),
    "by what comes in": (
        build("""(float[N,3,4,4] x) => (float[N,4,4,4] y) {
            a = Conv(x, w0) b = Relu(a) d = Conv(b, w1) q = ReduceMean<keepdims=0>(x) z = Mul(q, s)
            n = BatchNormalization(d, z, t, u, v) r = Relu(n) y = Conv(r, w2)
        }""", w0=(16, 3, 1, 1), w1=(12, 16, 1, 1), w2=(4, 12, 1, 1), s=(12,), t=(12,), u=(12,),
              v=np.ones(12, np.float32)),
        (60, 3, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", ["l1", "lean"])
@pytest.mark.parametrize("kind", NORMED)
def test_batch_norms_that_scale_other_axes_or_by_what_is_computed_scale_no_weights(kind: str, method: str) -> None:
    """Neither in what a unit is worth nor in what a refit aims at."""
    model, shape = NORMED[kind]
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = onnxshap.prune(model, data, keep_units=0.5, method=method, repair="lstsq")
    assert [len(g) for g in found.traced.groups] == [16, 12]
    assert "d" in [refit.node for refit in found.refits]
    assert found.verified.rel_err < 1e-5
