"""Models that choose by what they compute: ties that rounding tips are no difference, everything else is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

import onnxshap
from onnxshap import rewrite
from onnxshap.calibrate import run_all
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.errors import ShapeError, VerifyError
from onnxshap.plan import cutter
from onnxshap.report import prune_report, prune_tables
from onnxshap.tracing import Traced
from onnxshap.verify import checking, elsewhere
from tests.exactness import net

CHOOSING = {
    "ArgMax": "best = ArgMax<axis=1, keepdims=0>(s) y = Cast<to=1>(best)",
    "TopK": "v, i = TopK<axis=1>(s, one) j = Cast<to=1>(i) y = Mul(j, v)",
    "Greater": "one_, two_ = Split<axis=1>(s, each) c = Greater(one_, two_) y = Where(c, high, low)",
    "Round": "one_, two_ = Split<axis=1>(s, each) d = Sub(one_, two_) e = Mul(d, tenth) f = Add(e, half) g = Round(f)"
    " y = Add(g, one_)",
    "a choice of a choice": "best = ArgMax<axis=1>(s) p = GatherElements<axis=1>(x, best) q = Mul(p, zerof)"
    " t = Add(s, q) last = ArgMax<axis=1>(t) y = Cast<to=1>(last)",
}


def choosing(kind: str) -> ModelProto:
    """A net that scores two classes at every position, alike but for rounding."""
    one = np.random.default_rng(3).normal(size=(1, 24, 1, 1)).astype(np.float32)
    # half of the channels twice, the other way round: the sums are the same, in another order
    both = np.concatenate([one, one[:, ::-1]]).astype(np.float32)
    first = np.random.default_rng(4).normal(size=(12, 3, 3, 3)).astype(np.float32)
    return net(
        f"""(float[N,3,24,24] x) => (y) {{
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) s = Conv(r, w2) {CHOOSING[kind]}
        }}""",
        w1=np.concatenate([first, first[::-1]]), w2=both, one=np.array([1]), each=np.array([1, 1]),
        high=np.float32(3), low=np.float32(-1), tenth=np.float32(0.1), half=np.float32(0.5), zerof=np.float32(0),
    )  # fmt: skip


def pruned(model: ModelProto) -> onnxshap.Pruned:
    images = np.random.default_rng(0).normal(size=(24, 3, 24, 24)).astype(np.float32)
    return onnxshap.prune(model, Dataset({"x": images}, None, "random"), keep_units=0.5, method="l1", repair="none",
                          payoff=brightness)  # fmt: skip


def brightness(outputs: Sequence[Array], labels: Array | None) -> FloatArray:
    """A payoff of the user's: the model is judged by its own outputs."""
    return np.asarray(outputs[0].reshape(len(outputs[0]), -1).mean(axis=1), np.float64)


@pytest.mark.parametrize("kind", CHOOSING)
def test_ties_that_rounding_tips_are_no_difference(kind: str) -> None:
    assert pruned(choosing(kind)).verified.rel_err < 1e-5


def _weaker(model: ModelProto) -> None:
    weights = next(t for t in model.graph.initializer if t.name.startswith("w1"))
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(0.99), weights.name))


def _the_other_way_round(model: ModelProto) -> None:
    where = next(node for node in model.graph.node if node.op_type == "Where")
    where.input[1], where.input[2] = where.input[2], where.input[1]


@pytest.mark.parametrize(
    ("kind", "harm"),
    [*((kind, _weaker) for kind in CHOOSING), ("Greater", _the_other_way_round)],
)
def test_what_is_wrong_before_or_behind_a_choice_is_refused(
    kind: str, harm: Callable[[ModelProto], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rewrite.small_model

    def harmed(*args: object) -> ModelProto:
        made = whole(*args)  # type: ignore[arg-type]
        harm(made)
        return made

    monkeypatch.setattr(cutter, "small_model", harmed)
    with pytest.raises(VerifyError, match="differs from its masked twin"):
        pruned(choosing(kind))


@pytest.mark.parametrize("harm", [0.0, 1e-3])
def test_rounding_that_a_model_makes_by_itself_is_no_difference(harm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms are far apart for what is allowed of usual models, and so is either from itself, unoptimised."""
    model = net(
        """(float[N,3,24,24] x) => (float[N,16,24,24] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0) b = Sigmoid(a) y = Conv<pads=[1,1,1,1]>(b, w1)
        }""",
        w0=(32, 3, 3, 3), w1=(16, 32, 3, 3),
    )  # fmt: skip
    whole = rewrite.small_model

    def harmed(*given: Any) -> ModelProto:
        made = whole(*given)
        weight = made.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1 + harm), weight.name))
        return made

    monkeypatch.setattr(cutter, "small_model", harmed)
    monkeypatch.setattr(checking, "TOLERANCE", 1e-12)
    if not harm:
        assert pruned(model).verified.rel_err > 1e-12
        return
    with pytest.raises(VerifyError, match="differs from its masked twin"):
        pruned(model)


@pytest.mark.parametrize("harm", [0.0, 4e-4])
@pytest.mark.parametrize(("size", "shape"), [("64", "Identity(back)"), ("S", "Shape(a)")], ids=["sizes", "free sizes"])
def test_rounding_of_norms_over_large_images_is_no_difference(
    size: str, shape: str, harm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime loses digits of an InstanceNormalization over 65,536 entries, half of them the zeros of the twin.

    Where sizes are free a cut writes the norm out, and the twin alone has one.
    """
    model = net(
        f"""(float[N,3,{size},{size}] x) => (float[N,2,P,Q] y) {{
            a = Conv(x, w0, b0) f = Reshape(a, flat) n = InstanceNormalization(f, one, zero)
            again = {shape} b = Reshape(n, again)
            y = Conv(b, w1)
        }}""",
        w0=(16, 3, 1, 1), b0=np.ones(16, np.float32), w1=(2, 16, 1, 1), flat=np.array([0, 1, -1]),
        back=np.array([0, 16, 64, 64]), one=np.ones(1, np.float32), zero=np.zeros(1, np.float32),
    )  # fmt: skip
    whole = rewrite.small_model

    def harmed(*given: Any) -> ModelProto:
        made = whole(*given)
        weight = next(t for t in made.graph.initializer if t.name == "w1")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1 + harm), weight.name))
        return made

    monkeypatch.setattr(cutter, "small_model", harmed)
    monkeypatch.setattr(checking, "TOLERANCE", 3e-6)
    images = Dataset({"x": np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)}, None, "random")
    cut = partial(onnxshap.prune, model, images, keep_units=0.5, method="l1", repair="none")
    if harm:
        with pytest.raises(VerifyError, match="differs from its masked twin"):
            cut()
    else:
        assert cut().verified.rel_err < 3e-6


@pytest.mark.parametrize("groups", [4, 1])
def test_what_onnx_cannot_tell_by_itself_is_told_of_the_cut_model_too(groups: int) -> None:
    """It does not know what a GroupNormalization gives (1.23), but for what the file says of that."""
    model = net(
        f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) {{
            a = Conv(x, w0) b = GroupNormalization<num_groups={groups}>(a, s, t) c = Relu(b) y = Conv(c, w1)
        }}""",
        opset=21, ir=10, w0=(16, 3, 1, 1), s=(16,), t=(16,), w1=(4, 16, 1, 1),
    )  # fmt: skip
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 16, 8, 8]))
    shape_inference.infer_shapes(model, strict_mode=True)
    assert onnxshap.prune(model, keep_units=0.5, method="l1").verified.rel_err < 1e-5


def test_sizes_that_were_taken_to_be_constant_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut model that runs at the sizes of the data alone is refused where the original takes any."""
    model = net(
        """(float[N,3,H,W] x) => (float[N,M,4] y) {
            a = Conv(x, w0) r = Reshape(a, sizes) t = Transpose<perm=[0,2,1]>(r) y = MatMul(t, w1)
        }""",
        sizes=[0, 16, -1], w0=(16, 3, 1, 1), w1=(16, 4),
    )  # fmt: skip
    before = rewrite.small_model

    def harmed(*given: Any) -> ModelProto:
        made = before(*given)
        node = next(n for n in made.graph.node if n.op_type == "Reshape")
        made.graph.initializer.append(numpy_helper.from_array(np.array([0, 8, 64]), "seen"))
        node.input[1] = "seen"
        return made

    data = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
    assert onnxshap.prune(model, data, keep_units=0.5, method="l1").verified.rel_err < 1e-5
    monkeypatch.setattr(cutter, "small_model", harmed)
    with pytest.raises(VerifyError, match=r"at inputs of other sizes, x\[2, 3, .*the cut model does not run"):
        onnxshap.prune(model, data, keep_units=0.5, method="l1")


@pytest.mark.parametrize("last", [np.array(-1), [[-1]]], ids=["a number", "a table"])
@pytest.mark.parametrize("after", ["", "t = Transpose<perm=[0,2,1]>(a)"], ids=["steps first", "steps last"])
def test_the_last_of_any_number_of_steps_stays_the_last(last: Any, after: str) -> None:
    """A classifier of sequences: it was cut to the step that is last in the data, and refused at other lengths."""
    steps, tensor = (2, "t") if after else (1, "a")
    model = net(
        f"""(float[N,T,3] x) => (float[N,4] y) {{
            a = MatMul(x, w0) {after} b = Gather<axis={steps}>({tensor}, last) f = Flatten(b) y = Gemm(f, w1)
        }}""",
        last=last, w0=(3, 16), w1=(16, 4),
    )  # fmt: skip
    data = np.random.default_rng(0).normal(size=(20, 6, 3)).astype(np.float32)
    small = onnxshap.prune(model, data, keep_units=0.5, method="l1")
    assert small.verified.rel_err < 1e-5
    stored = {t.name: numpy_helper.to_array(t) for t in small.model.graph.initializer}
    assert stored["last"].tolist() == np.array(last).tolist()


def test_what_the_file_gives_at_other_sizes_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it gives numbers there, and how far the cut model may be from them, is told by the same outputs."""
    model = net(
        "(float[N,3,H,W] x) => (float[N,4,H,W] y) { a = Conv(x, w0) b = Relu(a) y = Conv(b, w1) }",
        w0=(16, 3, 1, 1), w1=(4, 16, 1, 1),
    )  # fmt: skip
    runs: list[tuple[int, ...]] = []

    def counted(traced: Traced, made: ModelProto, data: Dataset, *given: Any, **more: Any) -> list[Array]:
        if made is traced.source:
            runs.append(data.inputs["x"].shape[2:])
        return run_all(traced, made, data, *given, **more)

    monkeypatch.setattr(checking, "run_all", counted)
    monkeypatch.setattr(elsewhere, "run_all", counted)
    onnxshap.prune(model, np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32), keep_units=0.5,
                   method="l1")  # fmt: skip
    assert len(runs) == len(set(runs)) == 2
    assert (8, 8) in runs


def as_long_as_what_it_adds_up() -> ModelProto:
    """A net that gives as many columns as half of its units, whatever comes in."""
    return net(
        """(float[N,4] x) => (float[N,k] y) {
            h = MatMul(x, zeros) r = Sigmoid(h) q = MatMul(r, ones) m = ReduceMax<keepdims=0>(q)
            e = Cast<to=7>(m) end = Reshape(e, one) a = MatMul(x, w) b = Relu(a) s = MatMul(b, v)
            y = Slice(s, start, end, one)
        }""",
        zeros=np.zeros((4, 8), np.float32), ones=np.ones((8, 1), np.float32), w=(4, 8), v=(8, 6), one=np.array([1]),
        start=np.array([0]),
    )  # fmt: skip


def test_outputs_of_other_lengths_are_verified_and_not_scored() -> None:
    found = onnxshap.prune(as_long_as_what_it_adds_up(), keep_units=0.5, method="random", repair="none")
    assert found.verified.rel_err < 1e-5
    assert found.before.score == {"kl": 0, "agreement": 1}
    assert any("kl, agreement of the new model cannot be told" in note for note in found.notes)
    written = prune_report(found, model="m", output=None, seed=0)
    assert written["after"]["score"] == {"kl": None, "agreement": None}
    prune_tables(written)


def test_outputs_of_other_lengths_are_no_payoff_and_what_to_do_is_no_circle() -> None:
    with pytest.raises(ShapeError, match=r"give labels and use 'ce', .* or choose without one"):
        onnxshap.prune(as_long_as_what_it_adds_up(), keep_units=0.5, method="loo", repair="none", baseline="zero")


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_check_that_nothing_could_fail_says_so(weight: float) -> None:
    model = net(
        "(float[N,4] x) => (float[N,6] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }",
        w=(4, 8), v=np.full((8, 6), weight, np.float32),
    )  # fmt: skip
    found = onnxshap.prune(model, keep_units=0.5, method="random", repair="none")
    assert any("did not change at all on these inputs" in note for note in found.notes) == (weight == 0)
