"""Dense Convs as two of lower rank: the same function, the best channels between, the true cost, who stays one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, numpy_helper

import onnxshap
from onnxshap import report
from onnxshap.calibrate import free_batch, means_of_sites, run_all, site_means
from onnxshap.cli import main
from onnxshap.core import Dataset, FloatArray
from onnxshap.cost import parameters
from onnxshap.errors import OnnxshapError
from onnxshap.factors import Factored, factored
from onnxshap.factors.columns import columns_of
from onnxshap.factors.layers import kernel_of, layers_of
from onnxshap.factors.separable import separable
from onnxshap.graph import weights
from onnxshap.graph.writing import put_in
from onnxshap.plan import Budget, latency
from onnxshap.plan.allocation import _steps
from onnxshap.plan.curves import convex
from onnxshap.plan.cutter import Cutter, shares
from onnxshap.plan.search import least_share
from onnxshap.plan.widths import Candidate, Planner
from onnxshap.verify import compare
from tests.exactness import as_images, check_exact, net, random_feeds

MODELS = Path(__file__).parent.parent / "models"
CHAIN = """(float[N,3,12,10] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, wa, ba) b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, wc, bc) d = Relu(c)
    e = Conv<pads=[1,1,1,1]>(d, we) f = Add(e, b) g = Relu(f)
    h = GlobalAveragePool(g) i = Flatten(h) y = MatMul(i, wy)
}"""


def chain() -> ModelProto:
    return net(CHAIN, wa=(8, 3, 3, 3), ba=(8,), wc=(10, 8, 3, 3), bc=(10,), we=(8, 10, 3, 3), wy=(8, 4))


def one(attributes: str, weight: tuple[int, ...], size: str = "9,11", **more: Any) -> ModelProto:
    """Return a Conv, and a 1 x 1 Conv that reads it."""
    text = f"(float[N,6,{size}] x) => (y) {{ a = Conv<{attributes}>(x, w) b = Relu(a) y = Conv(b, v) }}"
    return net(text.replace("=> (y)", "=> (float[N,3,H,W] y)"), w=weight, v=(3, weight[0], 1, 1), **more)


def split(model: ModelProto, images: int = 24, low_rank: str = "spatial") -> tuple[onnxshap.Traced, Factored, Dataset]:
    """Return a model, the same with layers as two, and data."""
    traced = onnxshap.trace(model)
    data = as_images(traced, dict(random_feeds(model, traced.shaped.inputs, 0).inputs))
    data = data.take(np.resize(np.arange(len(data)), images))
    rng = np.random.default_rng(0)
    given = {name: (v + 0.3 * rng.normal(size=v.shape)).astype(v.dtype) for name, v in data.inputs.items()}
    data = replace(data, inputs=given)
    return traced, factored(traced, free_batch(traced), traced.groups, data, low_rank), data


def narrowed(found: Factored, share: float) -> dict[str, np.ndarray[Any, Any]]:
    """Return a plan that keeps every filter, and of every rank a share of what pays."""
    plan = {group.name: np.ones(len(group), np.bool_) for group in found.groups}
    for name, most in found.most.items():
        plan[name][max(1, round(share * most)) :] = False
    return plan


@pytest.mark.parametrize(
    ("attributes", "weight"),
    [
        ("pads=[1,1,1,1]", (7, 6, 3, 3)),
        ("pads=[0,2,1,1], strides=[2,1]", (7, 6, 3, 5)),
        ("strides=[1,2], dilations=[2,1]", (7, 6, 2, 3)),
        ('auto_pad="SAME_UPPER", strides=[2,2]', (7, 6, 3, 3)),
        ('auto_pad="SAME_LOWER", strides=[1,3]', (7, 6, 3, 4)),
        ('auto_pad="VALID"', (7, 6, 3, 3)),
    ],
)
def test_a_conv_as_two_computes_the_same(attributes: str, weight: tuple[int, ...]) -> None:
    traced, found, data = split(one(attributes, weight))
    assert found.most
    before, after = (run_all(t, t.shaped.graph.model, data) for t in (traced, found.traced))
    assert compare(after, before, before).rel_err < 1e-5
    assert [n.op_type for n in found.traced.shaped.graph.nodes] == ["Conv", "Conv", "Relu", "Conv"]
    check_exact(found.traced.shaped.graph.model)


LINEAR = {
    "1x1": ("6,9,11", "8,R,S", "y = Conv(b, v)", (8, 12, 1, 1)),
    "1x1 with strides": ("6,9,11", "8,R,S", "y = Conv<strides=[2,3], pads=[0,1,1,0]>(b, v, c)", (8, 12, 1, 1)),
    "column": ("6,9,11", "8,R,S", "y = Conv<strides=[2,2], pads=[1,0,1,0], dilations=[2,1]>(b, v)", (8, 12, 3, 1)),
    "row": ("6,9,11", "8,R,S", 'y = Conv<strides=[2,2], auto_pad="SAME_UPPER">(b, v, c)', (8, 12, 1, 4)),
    "one axis": ("6,11", "8,R", "y = Conv<strides=[2], pads=[1,1]>(b, v, c)", (8, 12, 3)),
    "MatMul": ("6,9,11", "9,11,8", "t = Transpose<perm=[0,2,3,1]>(b) y = MatMul(t, v)", (12, 8)),
    "MatMul, weights first": ("6,11", "8,11", "y = MatMul(v, b)", (8, 12)),
    "Gemm": ("6,1", "8", "t = Flatten(b) y = Gemm<alpha=0.5, beta=3.0>(t, v, c)", (12, 8)),
    "Gemm, turned": ("6,1", "8", "t = Flatten(b) u = Transpose(t) y = Gemm<transA=1, transB=1>(u, v)", (8, 12)),
}
"""Linear layers that read 12 channels: the size of what comes in and out, the layer, and its weight."""


def linear(name: str) -> ModelProto:
    size, made, text, weight = LINEAR[name]
    more: dict[str, Any] = {"c": (8,)} if "c)" in text else {}
    head = f"(float[N,{size}] x) => (float[N,{made}] z) {{ a = Conv(x, w) b = Relu(a) {text} z = Relu(y) }}"
    return net(head, w=(12, 6, *[1] * size.count(",")), v=weight, **more)


@pytest.mark.parametrize("name", LINEAR)
def test_other_linear_layers_as_two_compute_the_same_and_cost_what_is_written(name: str) -> None:
    model = linear(name)
    assert not split(model)[1].most
    traced, found, data = split(model, low_rank="all")
    number = next(k for k, node in enumerate(traced.shaped.graph.nodes) if "v" in node.input)
    (rank,) = [name for name in found.most if name.startswith("y")]
    before, after = (run_all(t, t.shaped.graph.model, data) for t in (traced, found.traced))
    assert compare(after, before, before).rel_err < 1e-5
    assert (found.traced.cost.macs(), found.traced.cost.params()) == (traced.cost.macs(), traced.cost.params())
    check_exact(found.traced.shaped.graph.model)
    plan = {rank: np.arange(len(found.values[rank])) < found.most[rank]}
    made, free = found.written(plan)
    pair = [node for node in made.shaped.graph.nodes if node.op_type == traced.shaped.graph.nodes[number].op_type]
    assert len(pair) == sum(n.op_type == pair[0].op_type for n in traced.shaped.graph.nodes) + 1
    small = onnxshap.trace(onnxshap.drop_units(made, plan))
    assert small.cost.macs() == made.cost.macs(made.alive(plan)) < traced.cost.macs()
    assert small.cost.params() == made.cost.params(made.alive(plan))
    one_more = {rank: np.arange(len(found.values[rank])) <= found.most[rank]}
    assert found.paying(one_more) == []
    whole = run_all(traced, traced.source, data)
    (near,) = run_all(free, onnxshap.drop_units(free, plan), data)
    assert np.square(near - whole[0]).mean() < 0.2 * whole[0].var()


def halves(**changed: FloatArray) -> ModelProto:
    """Return `chain` in half precision, some weights changed."""
    model = chain()
    text = CHAIN.replace("float[", "float16[")
    values: dict[str, Any] = {
        t.name: changed.get(t.name, numpy_helper.to_array(t)).astype(np.float16) for t in model.graph.initializer
    }
    return net(text, **values)


def test_halves_may_be_two_and_stay_halves() -> None:
    found = onnxshap.prune(
        halves(), smooth_images(60).astype(np.float16), method="l1", low_rank="all", keep_macs=0.5, repair="lstsq"
    )
    assert found.low_rank
    assert found.verified.rel_err < 2e-2
    assert {t.data_type for t in found.model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert found.after.macs == onnxshap.trace(found.model).cost.macs()
    traced, made, _ = split(halves(), low_rank="all")
    plan = narrowed(made, 0.5)
    small = onnxshap.trace(onnxshap.drop_units(made.traced, plan))
    assert made.traced.cost.bytes() == traced.cost.bytes()
    assert made.traced.cost.bytes(made.traced.alive(plan)) == small.cost.bytes()


def test_a_layer_that_the_model_does_not_bear_as_two_stays_one() -> None:
    rng = np.random.default_rng(0)
    large, small = 1.5e4 * rng.uniform(0.9, 1, (10, 8, 3, 3)), 1e-4 * rng.normal(size=(8, 3, 3, 3))
    traced, found, data = split(halves(wa=small, ba=np.zeros(8), wc=large))  # what c's two would weigh is no half
    assert found.left == {"c": "as two, the outputs would differ by more than rounding"}
    assert [name.split(".")[0] for name in found.most] == ["a", "e"]
    before, after = (run_all(t, t.shaped.graph.model, data) for t in (traced, found.traced))
    assert compare(after, before, before).rel_err < 2e-2


def test_layers_that_are_borne_apart_but_not_together_are_two_as_far_as_they_are_and_a_note_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def same(_: onnxshap.Traced, made: onnxshap.Traced, group: object) -> bool:
        return len(made.splits) < 2

    assert len(split(chain())[1].most) == 3
    monkeypatch.setattr("onnxshap.factors.bearing._same_units", same)
    _, found, _ = split(chain())
    assert len(found.most) == len(found.traced.splits) == 1
    why = "as two, the units of group 'a' would be others"
    assert found.left == {"c": why, "e": why}
    done = onnxshap.prune(chain(), smooth_images(50), method="l1", low_rank="spatial", keep_macs=0.8)
    assert f"low_rank: c, e stay as in the file: {why}" in done.notes


def test_splitting_tells_how_far_it_is() -> None:
    told = list[tuple[str, int, int]]()
    traced, _, data = split(chain(), 40)
    factored(traced, free_batch(traced), traced.groups, data, "spatial", progress=lambda *step: told.append(step))
    assert {stage for stage, *_ in told} == {"split"}
    done = [number for _, number, _ in told]
    assert done == sorted(done)
    assert len(done) > 5
    assert told[-1] == ("split", 43, 43)  # images and layers


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("a = Conv(x, w)", (7, 6, 1, 1)),
        ("a = Conv<pads=[1,0,1,0]>(x, w)", (7, 6, 3, 1)),
        ("a = Conv<group=2, pads=[1,1,1,1]>(x, w)", (8, 3, 3, 3)),
        ("a = Conv<group=6, pads=[1,1,1,1]>(x, w)", (6, 1, 3, 3)),
        ("z = Conv<pads=[1,1,1,1]>(x, w) a = Conv<pads=[1,1,1,1]>(z, w)", (6, 6, 3, 3)),
        ("a = ConvTranspose(x, w)", (6, 7, 3, 3)),
    ],
)
def test_what_is_no_dense_conv_of_two_axes_stays_one(text: str, weight: tuple[int, ...]) -> None:
    model = net(f"(float[N,6,8,8] x) => (float[N,3,H,W] y) {{ {text} y = Relu(a) }}", w=weight)
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")
    assert not split(model)[1].most


@pytest.mark.parametrize(("inputs", "split"), [(1365, 1), (1366, 0)])
def test_layers_whose_covariance_takes_minutes_stay_one(inputs: int, split: int) -> None:
    model = net(f"(float[N,{inputs},3,3] x) => (float[N,2,3,3] y) {{ a = Conv<pads=[1,1,1,1]>(x, w) y = Relu(a) }}",
                w=(2, inputs, 3, 3))  # fmt: skip
    assert len(list(layers_of(onnxshap.trace(model), "spatial"))) == split


def test_the_cost_is_that_of_the_file_while_ranks_do_not_pay_and_of_two_once_they_do() -> None:
    traced, found, _ = split(chain())
    assert found.most
    whole, cost = traced.cost, found.traced.cost
    assert (cost.macs(), cost.params(), cost.bytes()) == (whole.macs(), whole.params(), whole.bytes())
    assert found.paying({}) == []
    for share in (1.0, 0.5):
        plan = narrowed(found, share)
        assert found.paying(plan) == list(found.most)
        small = onnxshap.trace(onnxshap.drop_units(found.traced, plan))
        live = found.traced.alive(plan)
        assert (cost.macs(live), cost.params(live)) == (small.cost.macs(), small.cost.params())
        assert cost.macs(live) < whole.macs()
    one_more = {name: np.arange(len(plan[name])) <= most for name, most in found.most.items()}
    assert cost.macs(found.traced.alive(one_more)) == whole.macs()


def test_only_convs_that_pay_are_written_as_two_and_all_units_are_the_files() -> None:
    traced, found, data = split(chain())
    assert found.most
    first, *others = found.most
    plan = narrowed(found, 0.5)
    for name in others:
        plan[name][:] = True
    made, _ = found.written(plan)
    assert sum(n.op_type == "Conv" for n in made.shaped.graph.nodes) == 4
    assert {g.name for g in made.groups} == {g.name for g in traced.groups} | {first}
    none, _ = found.written({})
    assert none is traced
    rest = {name: kept for name, kept in plan.items() if name in {g.name for g in made.groups}}
    (one, two) = (run_all(t, onnxshap.drop_units(t, p), data) for t, p in ((made, rest), (found.traced, plan)))
    assert compare(one, two, two).rel_err < 1e-5


def test_weights_that_nothing_reads_and_biases_that_an_old_gemm_needs_are_no_matter() -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 7), np.float32), "spare"))
    traced, found, _ = split(model)
    assert len(found.most) == 3
    assert found.traced.cost.params() == traced.cost.params() - 35
    old = net("(float[N,6] x) => (float[N,5] z) { y = Gemm(x, w, b) r = Relu(y) z = Gemm(r, v, c) }",
              opset=9, w=(6, 12), b=(12,), v=(12, 5), c=(5,))  # fmt: skip
    assert not split(old, low_rank="all")[1].most


@pytest.mark.parametrize("low_rank", [None, "spatial"])
def test_weights_that_nothing_reads_are_not_told_of_the_cut_file(low_rank: str | None) -> None:
    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 7), np.float32), "spare"))
    found = onnxshap.prune(model, smooth_images(50), method="l1", low_rank=low_rank, keep_macs=0.6)
    assert bool(found.low_rank) == (low_rank is not None)
    assert (found.before.params, found.after.params) == (parameters(model), parameters(found.model))


def test_layers_that_are_not_finite_stay_one_and_a_note_says_so() -> None:
    text = """(float[N,6] x) => (float[N,5] z) {
        y = Gemm(x, w) l = Log(x) c = MatMul(l, u) d = Exp(c) r = Relu(y) s = Add(r, d) z = Gemm(s, v)
    }"""
    model = net(text, w=(6, 12), u=np.ones((6, 12), np.float32), v=(12, 5))
    x = np.random.default_rng(0).uniform(0.5, 1, (50, 6)).astype(np.float32)
    x[::5, 0] = 0.0  # whose logarithm is not finite, and what that gives is 0
    traced, why = onnxshap.trace(model), "its weights, or what it reads of the data, are not all finite"
    found = factored(traced, free_batch(traced), traced.groups, Dataset({"x": x}, None, "some"), "all")
    assert found.left == {"c": why}
    assert [name.split(".")[0] for name in found.most] == ["y", "z"]
    done = onnxshap.prune(model, x, method="l1", low_rank="all", keep_macs=0.7)
    assert f"low_rank: c stay as in the file: {why}" in done.notes


def test_files_that_have_to_list_all_weights_as_inputs_are_split_like_others(tmp_path: Path) -> None:
    """Before version 4 of the format every initializer is an input, too; later those that may be replaced are."""
    text = "(float[N,6] x) => (float[N,5] z) { y = MatMul(x, w) r = Relu(y) z = MatMul(r, v) }"
    old, new = (net(text, ir=ir, opset=8, w=(6, 12), v=(12, 5)) for ir in (3, 4))
    assert len(split(old, low_rank="all")[1].most) == len(split(new, low_rank="all")[1].most) == 2
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 2)) @ rng.normal(size=(2, 6))).astype(np.float32)  # two directions of six
    found = onnxshap.prune(old, x, method="l1", low_rank="all", keep_macs=0.6)
    assert found.low_rank
    onnxshap.save(found.model, tmp_path / "small.onnx")
    small = onnx.load(tmp_path / "small.onnx")
    assert {i.name for i in small.graph.input} == {"x", *(t.name for t in small.graph.initializer)}
    onnx.checker.check_model(small, full_check=True)
    new.graph.input.extend(i for i in old.graph.input if i.name == "w")
    assert [name.split(".")[0] for name in split(new, low_rank="all")[1].most] == ["z"]


def test_excluded_layers_stay_one() -> None:
    traced, _, data = split(chain())
    chosen = [g for g in traced.groups if "c" not in g.producers]
    found = factored(traced, free_batch(traced), chosen, data, "spatial")
    assert found.most
    assert {part.split(".")[0] for part in found.most} == {"a", "e"}
    assert {g.name for g in found.groups} == {g.name for g in chosen} | set(found.most)
    text = "z = Conv<pads=[1,1,1,1]>(y, u)"  # makes no group, and reads one that is left out
    last = net(f"(float[N,6,9,8] x) => (float[N,4,9,8] z) {{ a = Conv(x, w) y = Relu(a) {text} }}",
               w=(9, 6, 1, 1), u=(4, 9, 3, 3))  # fmt: skip
    assert split(last)[1].most
    traced, _, data = split(last)
    assert not factored(traced, free_batch(traced), [], data, "spatial").most


def test_the_first_channels_lose_less_than_those_of_the_weight_alone() -> None:
    model = chain()
    traced = onnxshap.trace(model)
    rng = np.random.default_rng(1)
    smooth = (
        rng.normal(size=(60, 2, 3, 1, 10)).cumsum(axis=4).sum(axis=1)
    )  # few directions, alike from column to column
    x = (smooth + 0.05 * rng.normal(size=(60, 3, 12, 10))).astype(np.float32)
    data = Dataset({"x": x}, None, "smooth")
    layer = next(iter(layers_of(traced, "spatial")))
    (seen,) = columns_of(free_batch(traced), [layer], data)
    kernel = kernel_of(traced, layer)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))

    def lost(columns: FloatArray, rows: FloatArray, rank: int) -> float:
        near = np.einsum("riho,orjw->oihw", columns[:rank], rows[:, :rank])
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        return float(np.square(np.einsum("nihwkl,oikl->nohw", patches, kernel - near, optimize=True)).mean())

    height, width = layer.shape[1] * layer.shape[2], layer.shape[3]
    ours = separable(kernel, seen.covariance, seen.correlation)
    blind = separable(kernel, np.eye(height), np.eye(width))
    for rank in (2, 4):
        assert lost(*ours[:2], rank) < 0.7 * lost(*blind[:2], rank)
    assert seen.correlation[0, 1] > 0.5
    assert (np.diff(ours[2]) <= 1e-9).all()


def test_a_rank_is_narrowed_to_where_it_saves_and_goes_back_to_whole() -> None:
    filters = Candidate("filters", np.arange(32), np.arange(32.0), convex({32: 0.0, 16: 1.0}, 32))
    ranks = convex({48: 0.0, 24: 0.1, 3: 5.0}, 48)
    candidates = [filters, Candidate("rank", np.arange(32, 80), np.arange(48.0), ranks, 24)]
    planner = Planner(candidates, Budget(macs=0.5, multiple_of=4), ())
    assert list(planner.narrowings(0, 32)) == [28]
    assert list(planner.narrowings(1, 48)) == [24, 20, 16, 12, 8, 4]
    assert [planner.wider(1, width) for width in (4, 20, 24, 48)] == [8, 24, 48, 48]
    assert planner.widths(1.0) == [32, 48]
    assert planner.widths(0.0) == [4, 4]


def lost_on(pool: Dataset, rest: Dataset, traced: onnxshap.Traced, budget: float, low_rank: bool) -> tuple[float, Any]:
    free = free_batch(traced)
    values = {n: v.phi for n, v in onnxshap.score(traced, pool, method="recon").values.items()}
    made = factored(traced, free, traced.groups, pool, "spatial") if low_rank else None
    cutter = Cutter(traced, free, traced.groups, values, pool, "lstsq", "curves", factored=made)
    cut = cutter.cut(cutter.plan(Budget(macs=budget)))
    whole, small = (run_all(traced, m, rest)[0] for m in (traced.source, cut.model))
    return float(np.square(small - whole).mean() / whole.var()), cut


def test_a_cut_loses_less_where_convs_may_be_two() -> None:
    traced, whole = onnxshap.opening.open_model(MODELS / "fashion_vgg.onnx", MODELS / "fashion_calibration.npz")
    pool, rest = whole.take(slice(0, 60)), whole.take(slice(500, 560))
    plain, _ = lost_on(pool, rest, traced, 0.5, low_rank=False)
    better, cut = lost_on(pool, rest, traced, 0.5, low_rank=True)
    assert better < 0.8 * plain
    assert cut.macs <= 0.5 * traced.cost.macs()
    assert cut.macs == onnxshap.trace(cut.model).cost.macs()
    assert cut.params == onnxshap.trace(cut.model).stored_params
    assert len(cut.low_rank) == sum(n.op_type == "Conv" for n in cut.model.graph.node) - 5 > 0


def test_the_report_tells_of_the_files_units_and_of_layers_that_became_two(tmp_path: Path) -> None:
    source = tmp_path / "chain.onnx"
    onnxshap.save(chain(), source)
    np.save(tmp_path / "some.npy", smooth_images(50))
    command = ["prune", str(source), "--data", str(tmp_path / "some.npy"), "--method", "l1", "--low-rank", "spatial",
               "--keep-macs", ".5", "--threads", "1"]  # fmt: skip
    files = [tmp_path / f"{k}.onnx" for k in range(2)]
    for k, file in enumerate(files):
        done = CliRunner().invoke(main, [*command, "-o", str(file), "--report", str(tmp_path / f"{k}.json")])
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() == files[1].read_bytes()
    found = json.loads((tmp_path / "0.json").read_text())
    traced, small = onnxshap.trace(source), onnxshap.trace(files[0])
    assert [g["name"] for g in found["groups"]] == [g.name for g in traced.groups]
    assert {s["initializer"] for s in found["removed_slices"]} <= set(traced.shaped.graph.initializers)
    assert found["after"]["macs"] == small.cost.macs() <= found["before"]["macs"] / 2
    assert found["before"]["macs"] == traced.cost.macs()
    assert found["low_rank"]
    for layer in found["low_rank"]:
        assert 0 < layer["rank"] <= layer["most"]
        assert layer["node"] in {n.output[0] for n in small.shaped.graph.nodes}
    assert "became two" in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low_rank": "tucker"}, "low_rank 'tucker' is unknown; choose one of spatial, all"),
        ({"repair": "fold"}, "low_rank needs a refit"),
        ({"allocation": "uniform"}, "low_rank shares out ranks beside widths"),
        ({"allocation": "iterative"}, "low_rank shares out ranks beside widths"),
        ({"keep_units": 0.5}, "low_rank shares out ranks .*; leave keep_units out, or low_rank"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"low_rank": "spatial", **options}
    with pytest.raises(OnnxshapError, match=words):
        onnxshap.prune(MODELS / "fashion_vgg.onnx", MODELS / "fashion_calibration.npz", **given)


def test_too_few_images_are_refused_in_one_line() -> None:
    images = np.random.default_rng(0).random((12, 3, 12, 10), np.float32)
    with pytest.raises(
        OnnxshapError, match="low_rank spatial needs at least 34 images; give more data, or leave it out"
    ):
        onnxshap.prune(chain(), images, method="l1", low_rank="spatial", keep_macs=0.5)


def test_a_model_without_such_convs_is_cut_as_ever_and_the_notes_say_so() -> None:
    images = np.random.default_rng(0).normal(size=(60, 6, 9, 11)).astype(np.float32)
    model = net("(float[N,6,9,11] x) => (float[N,3,9,11] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }",
                w=(16, 6, 1, 1), v=(3, 16, 1, 1))  # fmt: skip
    found = onnxshap.prune(model, images, method="l1", low_rank="spatial", keep_macs=0.5)
    assert found.low_rank == ()
    assert any("no layer became two" in note for note in found.notes)
    plain = onnxshap.prune(model, images, method="l1", allocation="curves", keep_macs=0.5)
    assert plain.low_rank is None
    assert found.model.SerializeToString() == plain.model.SerializeToString()
    assert report.prune_report(plain, model="m", output=None, seed=0)["low_rank"] == []


def smooth_images(count: int) -> np.ndarray[Any, Any]:
    """Return images that are alike from column to column, for `chain`."""
    return np.random.default_rng(0).normal(size=(count, 3, 12, 10)).cumsum(axis=3).astype(np.float32) / 3


def test_a_sweep_tells_of_every_budget_which_layers_became_two() -> None:
    found = onnxshap.sweep(chain(), smooth_images(100), methods=["l1"], keep=[0.6, 0.3], low_rank="spatial")
    points = report.sweep_report(found, model="m", seed=0)["methods"][0]["points"]
    assert all(point["shares"]["macs"] <= point["keep_macs"] for point in points)
    assert all(point["low_rank"] for point in points)
    assert not any("low_rank" in note for note in found.notes)


def test_a_sweep_says_when_no_layer_became_two() -> None:
    model = net("(float[N,6,9,11] x) => (float[N,3,9,11] y) { a = Conv(x, w) b = Relu(a) y = Conv(b, v) }",
                w=(16, 6, 1, 1), v=(3, 16, 1, 1))  # fmt: skip
    images = np.random.default_rng(0).normal(size=(100, 6, 9, 11)).astype(np.float32)
    found = onnxshap.sweep(model, images, methods=["l1"], keep=[0.5], low_rank="spatial")
    assert [note for note in found.notes if "no layer became two" in note]


@pytest.mark.parametrize("options", [{"max_drop": 0.2, "keep_macs": 0.7}, {"keep_params": 0.6}, {"keep_bytes": 0.7}])
def test_ranks_serve_every_budget(options: dict[str, Any]) -> None:
    traced = onnxshap.trace(chain())
    found = onnxshap.prune(traced, smooth_images(100), method="l1", low_rank="spatial", **options)
    small = onnxshap.trace(found.model)
    assert found.after.macs == small.cost.macs()
    for name, cost in (("keep_macs", "macs"), ("keep_params", "params"), ("keep_bytes", "bytes")):
        whole, kept = (getattr(one.cost, cost)() for one in (traced, small))
        assert kept <= options.get(name, 1.0) * whole + 4 * 28  # biases of what is removed are added (`Cut.params`)


def test_ranks_serve_a_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    def latencies(_backend: object, models: Sequence[ModelProto], *_: object) -> list[float]:
        stored = [t for model in models for t in put_in(model).graph.initializer]  # all weights are at hand
        assert all(t.raw_data for t in stored if len(t.dims) == 4)
        return [float(parameters(model)) for model in models]

    monkeypatch.setattr(latency, "latencies", latencies)
    monkeypatch.setattr(weights, "LARGE", 64)
    whole = parameters(chain())
    found = onnxshap.prune(chain(), smooth_images(50), method="l1", low_rank="spatial", target_latency=0.4 * whole)
    assert found.low_rank
    assert 0.2 * whole < parameters(found.model) < 0.4 * whole + 28


BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,12,10] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, wa) b = Relu(a) s = ReduceSum<keepdims=0>(x) t = Sub(s, s) never = Greater(t, one)
    c = If(never)<
        then_branch = left () => (float[N,10,12,10] u) { u = Conv<pads=[1,1,1,1]>(b, wc) },
        else_branch = right () => (float[N,10,12,10] v) { w = Tanh(b) v = Conv<pads=[1,1,1,1]>(w, we) }>
    f = Relu(c) g = Conv<pads=[1,1,1,1]>(f, wg) h = Relu(g) i = GlobalAveragePool(h) j = Flatten(i) y = MatMul(j, wy)
}"""


def test_branches_that_no_input_takes_stay_whole_and_cost_nothing_once_layers_are_split() -> None:
    shapes = {"wa": (8, 3, 3, 3), "wc": (10, 8, 3, 3), "we": (10, 8, 3, 3), "wg": (12, 10, 3, 3), "wy": (12, 4)}
    rng = np.random.default_rng(0)
    stored = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    model = onnx.parser.parse_model(BRANCHES)
    model.graph.initializer.extend([*stored, numpy_helper.from_array(np.array(1, np.float32), "one")])
    found = onnxshap.prune(model, smooth_images(50), method="l1", low_rank="spatial", keep_macs=0.7)
    whole, small = (traced_on(one, smooth_images(50)).cost for one in (model, found.model))
    assert found.low_rank
    assert (found.before.macs, found.after.macs) == (whole.macs(), small.macs())
    assert found.after.macs <= 0.7 * found.before.macs


def traced_on(model: ModelProto, images: np.ndarray[Any, Any]) -> onnxshap.Traced:
    return onnxshap.trace(model, samples=[{"x": one[None]} for one in images[:8]])


def test_a_budget_that_ranks_alone_reach_is_met() -> None:
    narrow: dict[str, Any] = {"low_rank": "spatial", "min_units": 10}  # as wide as the widest group
    unreached = pytest.raises(onnxshap.errors.BudgetError, match="cannot be reached")
    with unreached:
        onnxshap.prune(chain(), smooth_images(50), method="l1", keep_macs=0.85, min_units=10)
    found = onnxshap.prune(chain(), smooth_images(50), method="shapley", samples=4, keep_macs=0.85, **narrow)
    assert found.low_rank
    assert found.after.macs <= 0.85 * found.before.macs
    with unreached:
        onnxshap.prune(chain(), smooth_images(50), method="l1", keep_macs=0.1, **narrow)
    swept = onnxshap.sweep(chain(), smooth_images(100), methods=["l1"], keep=[0.85, 0.1], **narrow)
    assert [list(swept.left_out), [point.keep_macs for point in swept.curves[0].points]] == [[0.1], [0.85]]


def test_a_uniform_share_widens_ranks_by_steps_of_theirs_and_then_to_the_whole() -> None:
    candidates = [Candidate("rank", np.arange(48), np.arange(48.0), None, 24)]
    for finer, widths in ((0, [12, 16, 48]), (1, [12, 16, 20, 24, 48])):
        planner = Planner(candidates, Budget(macs=0.5, finer=finer), ())
        assert [width for _, width in _steps(planner, [8], set())] == widths


def test_the_least_share_of_a_search_is_one_that_ranks_reach() -> None:
    traced, found, data = split(chain(), 60)
    assert found.most
    phi = {group.name: np.arange(float(len(group))) for group in traced.groups}
    curves = {group.name: -np.arange(len(group) + 1.0) for group in found.groups}
    cutter = Cutter(
        traced, free_batch(traced), traced.groups, phi, data, "lstsq", "curves", curves=curves, factored=found
    )
    for step in (None, 1):
        budget = Budget(multiple_of=step)
        least = least_share(cutter, budget)
        keep = cutter.plan(replace(budget, macs=least))
        assert shares(found.traced, keep)["macs"] == pytest.approx(least)


def test_means_that_removed_channels_leave_are_those_measured_on_what_is_written() -> None:
    _, found, data = split(chain())
    assert found.most
    plan = narrowed(found, 0.5)
    plan[next(iter(found.most))][:] = True
    made, free = found.written(plan)
    ours, measured = means_of_sites(found.traced, site_means(found.free, data), made), site_means(free, data)
    assert ours.keys() == measured.keys() != set()
    for key, values in measured.items():
        assert np.allclose(ours[key], values, atol=1e-5)


@pytest.mark.slow
def test_two_layers_of_lower_rank_are_tuned_like_others() -> None:
    pytest.importorskip("torch")
    found = onnxshap.prune(
        chain(), smooth_images(50), method="l1", low_rank="spatial", keep_macs=0.5, repair="distill",
        allocation="curves", distill_seconds=2.0,
    )  # fmt: skip
    assert found.low_rank
    assert found.tuning is not None
    assert found.tuning.after <= found.tuning.before
