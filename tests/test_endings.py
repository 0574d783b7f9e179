"""Models whose outputs are choices alone are scored by what they choose by, and stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxshap
from onnxshap import comparing
from onnxshap.backend import OrtBackend
from onnxshap.core import Array, Dataset
from onnxshap.cost import parameters
from onnxshap.endings import ended
from onnxshap.errors import DataError
from onnxshap.sweeping import sweep
from onnxshap.tracing import trace
from tests.exactness import net

ENDS = {
    "ArgMax": ("y = ArgMax<axis=1, keepdims=0>(s)", "kl"),
    "ArgMax of Softmax, cast": ("p = Softmax<axis=1>(s) best = ArgMax<axis=1>(p) y = Cast<to=6>(best)", "kl"),
    "TopK": ("v, y = TopK<axis=1>(s, two)", "mse"),
    "Greater": ("p = Sigmoid(s) y = Greater(p, half)", "mse"),
    "a choice in the shape of an image": (
        "best = ArgMax<axis=1, keepdims=0>(s) size = Shape<start=2>(x) all = Shape<end=1>(x)"
        " to = Concat<axis=0>(all, size) y = Reshape(best, to)",
        "kl",
    ),
}


def ending(kind: str, batch: str = "N") -> ModelProto:
    """A net that scores five classes at every position, and gives no real number."""
    return net(
        f"""(float[{batch},3,8,8] x) => (y) {{
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) s = Conv(r, w2) {ENDS[kind][0]}
        }}""",
        w1=(24, 3, 3, 3), w2=(5, 24, 1, 1), two=np.array([2]), half=np.float32(0.5),
    )  # fmt: skip


def images(count: int = 40) -> Array:
    return np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("kind", ENDS)
def test_choices_are_scored_by_what_is_chosen_by(kind: str, batch: str) -> None:
    model, data = ending(kind, batch), Dataset({"x": images()}, None, "images")
    found = onnxshap.prune(model, data, keep_units=0.5, samples=8)
    assert found.scores.payoff == ENDS[kind][1]
    assert any(np.ptp(values.phi) > 0 for values in found.scores.values.values())
    assert [o.name for o in found.model.graph.output] == ["y"] and found.after.params < found.before.params
    assert found.traced.outputs == (["s"] if kind in ("ArgMax", "TopK") or "image" in kind else ["p"])
    whole, cut = (found.traced.backend.session(m).run({"x": images()[:1]})[0] for m in (model, found.model))
    assert whole.shape == cut.shape and whole.dtype == cut.dtype and np.mean(whole == cut) > 0.5


def test_labels_and_a_bound_go_with_classes() -> None:
    model, pixels = ending("ArgMax"), images(60)
    labels = OrtBackend().session(model).run({"x": pixels})[0]
    found = onnxshap.prune(model, Dataset({"x": pixels}, labels, "images"), max_drop=0.5, method="l1")
    assert found.before.score["accuracy"] == 1.0 and found.drop is not None and found.drop.name == "accuracy"
    unlabelled = onnxshap.prune(model, Dataset({"x": pixels}, None, "images"), max_drop=0.5, method="l1")
    assert unlabelled.drop is not None and unlabelled.drop.name == "agreement"


def test_every_job_takes_them(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", Dataset({"x": images()}, None, "images")
    onnx.save(ending("ArgMax"), path)
    scores = onnxshap.score(path, data, samples=8)
    done = onnxshap.prune(path, data, keep_macs=0.5, values=scores, output=tmp_path / "cut.onnx")
    assert done.after.bytes == (tmp_path / "cut.onnx").stat().st_size
    assert done.before.bytes == path.stat().st_size
    both = comparing.compare(path, tmp_path / "cut.onnx", data)
    assert both[1].score["agreement"] == pytest.approx(done.after.score["agreement"])
    curve = sweep(path, data, keep=(0.5,), methods=("l1",)).curves[0]
    assert curve.points[0].figures.score["agreement"] > 0.5


@pytest.mark.parametrize("labels", ["numbers", "strings", "none"])
def test_numbers_by_their_classes_are_scored_as_tensors(labels: str, tmp_path: Path) -> None:
    """As skl2onnx exports a classifier unless it is told not to: a label, and a map for every row."""
    model = net(
        """(float[N,6] x) => (label) {
            h = MatMul(x, w) r = Relu(h) s = MatMul(r, v) p = Softmax<axis=1>(s) best = ArgMax<axis=1, keepdims=0>(p)
            label = Identity(best)
        }""", w=(6, 16), v=(16, 3),
    )  # fmt: skip
    names = {"classlabels_strings": ["a", "b", "c"]} if labels == "strings" else {"classlabels_int64s": [0, 1, 2]}
    model.graph.node.append(helper.make_node("ZipMap", ["p"], ["by class"], name="zip", domain="ai.onnx.ml", **names))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    key = TensorProto.STRING if labels == "strings" else TensorProto.INT64
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(key, value))
    model.graph.output.append(helper.make_value_info("by class", maps))
    if labels == "none":
        del model.graph.output[0], model.graph.node[4:6]
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    found = onnxshap.prune(model, Dataset({"x": x}, np.arange(60) % 3, "rows"), keep_units=0.5, samples=8)
    assert found.traced.outputs == ["p"] and found.scores.payoff == "ce" and "accuracy" in found.after.score
    onnx.save(found.model, tmp_path / "cut.onnx")
    whole, cut = (
        onnxruntime.InferenceSession(m.SerializeToString()) for m in (model, onnx.load(tmp_path / "cut.onnx"))
    )
    assert [o.name for o in cut.get_outputs()] == [o.name for o in whole.get_outputs()]
    rows = cut.run(None, {"x": x})[-1]
    assert [sorted(row) for row in rows[:2]] == [[0, 1, 2] if labels != "strings" else ["a", "b", "c"]] * 2


def test_what_has_no_real_number_before_it_is_refused() -> None:
    model = net(
        "(int64[N,4] x) => (y) { e = Gather(table, x) b = Greater(e, zero) c = Cast<to=7>(b) y = Add(x, c) }",
        table=(9,), zero=np.float32(0),
    )  # fmt: skip
    numbers = np.random.default_rng(0).integers(0, 9, (8, 4))
    with pytest.raises((DataError, onnxshap.BudgetError), match="can be"):
        onnxshap.prune(model, Dataset({"x": numbers}, None, "numbers"), keep_units=0.5)


def test_a_choice_beside_the_scores_is_told_of() -> None:
    model = net(
        """(float[N,3,8,8] x) => (s, y) {
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) s = Conv(r, w2) y = ArgMax<axis=1, keepdims=0>(s)
        }""",
        w1=(24, 3, 3, 3), w2=(5, 24, 1, 1),
    )  # fmt: skip
    found = onnxshap.prune(model, Dataset({"x": images()}, None, "images"), keep_units=0.5, method="l1")
    assert found.traced.tail is None and 0.5 < found.after.score["y"] <= found.before.score["y"] == 1.0


SELECTING = """flat = Reshape(b, boxes) q = Transpose<perm=[0,2,1]>(c) best = ReduceMax<axes=[1], keepdims=1>(c)
    k = NonMaxSuppression(flat, best, many, over, under) at = Gather<axis=1>(k, last)
    one = Squeeze(flat, first) y = Gather<axis=0>(one, at)"""


def test_boxes_that_differ_in_number_are_cut_and_put_back() -> None:
    """Before NonMaxSuppression all images have as many boxes; behind it the original's nodes stand word for word."""
    model = net(
        f"""(float[1,3,8,8] x) => (y) {{
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) h = Conv(r, w2) raw, s = Split<axis=1>(h, parts)
            row = Reshape(raw, as_boxes) b = Transpose<perm=[0,2,1]>(row) t = Reshape(s, as_scores) c = Sigmoid(t)
            {SELECTING}
        }}""",
        w1=(24, 3, 3, 3), w2=(9, 24, 1, 1), parts=np.array([4, 5]), as_boxes=np.array([1, 4, 64]),
        as_scores=np.array([1, 5, 64]), boxes=np.array([1, 64, 4]), many=np.array([60]),
        over=np.array([0.5], np.float32), under=np.array([0.75], np.float32), last=np.array(2), first=np.array([0]),
    )  # fmt: skip
    found = onnxshap.prune(model, Dataset({"x": images()}, None, "images"), keep_units=0.5, samples=8)
    assert found.traced.tail is not None and "NonMaxSuppression" in [n.op_type for n in found.model.graph.node]
    assert found.after.params < 0.6 * found.before.params and found.verified.rel_err < 1e-5
    session = OrtBackend().session(found.model)
    counts = {len(session.run({"x": images()[k : k + 1]})[0]) for k in range(8)}
    assert len(counts) > 1
    named = [node for node in model.graph.node if node.op_type in ("NonMaxSuppression", "Gather", "Squeeze")]
    assert all(node in list(found.model.graph.node) for node in named)


def measured(picture: str, many: str = "", from_: int = 0) -> ModelProto:
    """A net that gives the two best positions and their scores, moved by the sizes of the map before the scores."""
    return net(
        f"""(float[{many}{picture}] x) => (float[{many or "1,"}2] v, int64[{many or "1,"}2] k) {{
            i = {"Identity(x)" if many else "Unsqueeze(x, zero)"}
            a = Conv<pads=[1,1,1,1]>(i, w1) r = Relu(a) s = Conv(r, w2) row = Reshape(s, flat)
            u, at = TopK<axis=1>(row, two) size = Shape<start={from_}>(r) sides = Slice(size, one, end)
            count = ReduceProd<keepdims=0>(sides) number = Cast<to=1>(count) v = Add(u, number) k = Add(at, count)
        }}""",
        w1=(24, 3, 3, 3), w2=(1, 24, 1, 1), zero=[0], one=[1 - from_], end=[4], flat=[0, -1], two=[2],
    )  # fmt: skip


@pytest.mark.parametrize(("many", "from_"), [("", 0), ("1,", 0), ("4,", 0), ("N,", 1)])
def test_sizes_of_the_head_are_numbers_of_the_tail(many: str, from_: int) -> None:
    """Anchors are laid over an inner map; its channels count as often as the original has them, however many go."""
    model, fed = measured("3,8,8", many, from_), images()[: 4 if many == "4," else 1]
    found = onnxshap.prune(model, Dataset({"x": images()}, None, "images"), keep_units=0.5, method="l1", repair="none")
    assert found.traced.outputs == (["row"] if many else ["s"]) and found.verified.rel_err < 1e-5
    assert [len(g) for g in found.traced.groups] == [24] and found.after.params < 0.6 * found.before.params
    whole, cut = (found.traced.backend.session(m).run({"x": fed if many else fed[0]}) for m in (model, found.model))
    assert [a.shape for a in whole] == [a.shape for a in cut]
    assert min(whole[1].min(), cut[1].min()) >= 24 * 8 * 8


@pytest.mark.parametrize(("picture", "many"), [("3,8,8", "N,"), ("3,H,W", "1,"), ("3,H,W", "")])
def test_sizes_that_follow_the_inputs_keep_the_tail_on(picture: str, many: str) -> None:
    assert ended(trace(measured(picture, many))) is None


def test_experts_that_are_chosen_stay_in_the_model() -> None:
    """Behind a choice that weights are behind, nothing is taken off."""
    model = net(
        """(float[N,12] x) => (y) {
            h = MatMul(x, w0) r = Relu(h) g = MatMul(r, w1) v, i = TopK<axis=1>(g, one) e = Gather<axis=0>(table, i)
            f = Mul(e, v) z = Squeeze(f, at) s = Add(z, r) y = MatMul(s, w2)
        }""",
        w0=(12, 16), w1=(16, 4), one=np.array([1]), table=(4, 16), at=np.array([1]), w2=(16, 5),
    )  # fmt: skip
    assert ended(trace(model)) is None


def test_names_of_the_tail_stay_clear_of_those_of_the_cut() -> None:
    """What the tail shares with the head (a constant, the input's size) is its own, under another name."""
    model = net(
        """(float[N,3,8,8] x) => (y, where) {
            n = Mul(x, two) a = Conv<pads=[1,1,1,1]>(n, w1) r = Relu(a) s0 = Conv(r, w2) s = Mul(s0, two)
            size = Shape(x) m = ReduceMean<axes=[2,3], keepdims=0>(s) v, i = TopK<axis=1>(m, three)
            y = Mul(v, two) f = Cast<to=1>(size) g = Gather(f, at) where = Add(i, three)
        }""",
        w1=(24, 3, 3, 3), w2=(5, 24, 1, 1), two=np.float32(2), three=np.array([3]), at=np.array(0),
    )  # fmt: skip
    found = onnxshap.prune(model, Dataset({"x": images()}, None, "images"), keep_units=0.5, method="l1")
    assert found.traced.outputs == ["m"]
    checked = OrtBackend().session(found.model).run({"x": images()})
    assert [o.name for o in found.model.graph.output] == ["y", "where"] and checked[1].min() >= 3


def test_an_output_may_be_called_as_what_a_cut_adds() -> None:
    """The cut names a bias as the tail names its output: the bias gives way."""
    model = net(
        """(float[N,3,8,8] x) => (m0) {
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) s = Conv(r, w2) m0 = ArgMax<axis=1>(s)
        }""",
        w1=(24, 3, 3, 3), w2=(5, 24, 1, 1),
    )  # fmt: skip
    data = Dataset({"x": images()}, None, "images")
    plain = onnxshap.prune(model, data, keep_units=0.5, method="l1", repair="fold")
    added = {t.name for t in plain.model.graph.initializer} - {t.name for t in model.graph.initializer}
    name = min(added)
    for field in (model.graph.node[3].output, [model.graph.output[0]]):
        if isinstance(field, list):
            field[0].name = name
        else:
            field[0] = name
    found = onnxshap.prune(model, data, keep_units=0.5, method="l1", repair="fold").model
    assert [o.name for o in found.graph.output] == [name]
    (own,), (other,) = (OrtBackend().session(m).run({"x": images()}) for m in (found, plain.model))
    np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("choices", [False, True])
def test_outputs_that_no_image_has_a_part_of_stay_as_they_are(batch: str, choices: bool) -> None:
    last = "ArgMax<axis=1>" if choices else "Relu"
    model = net(
        f"""(float[{batch},3,8,8] x) => (float[7,4] anchors, y, float[5] table) {{
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) s = Conv(r, w2) y = {last}(s)
            anchors = Mul(grid, stride)
        }}""",
        w1=(24, 3, 3, 3), w2=(5, 24, 1, 1), grid=(7, 4), stride=np.float32(8.0), table=(5,),
    )  # fmt: skip
    found = onnxshap.prune(model, Dataset({"x": images()}, None, "images"), keep_units=0.5, samples=8)
    assert found.traced.outputs == (["s"] if choices else ["y"]) and found.verified.rel_err < 1e-5
    assert [o.name for o in found.model.graph.output] == ["anchors", "y", "table"]
    whole, cut = (OrtBackend().session(m).run({"x": images()[:1]}) for m in (model, found.model))
    for k in (0, 2):
        np.testing.assert_array_equal(whole[k], cut[k])
    assert whole[1].shape == cut[1].shape


@pytest.mark.parametrize("name", ["w", "b", "v", "t"])
def test_a_weight_that_is_an_output_too_stays_as_it_was(name: str, tmp_path: Path) -> None:
    """Its layer reads a copy, which is cut; a large one (`v`) is not in the model while that is worked on."""
    model = net(
        f"""(float[N,3] x) => (float[N,600] y, {name}) {{
            h = Gemm(x, t, b) r = Relu(h) y = MatMul(r, v) t = Transpose<perm=[1,0]>(w)
        }}""",
        w=(8, 3), v=(8, 600), b=(8,),
    )  # fmt: skip
    model.graph.node.insert(0, model.graph.node.pop())
    images = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    onnx.save(model, tmp_path / "model.onnx")
    out = tmp_path / "cut.onnx"
    found = onnxshap.prune(tmp_path / "model.onnx", {"x": images}, keep_units=0.5, method="l1", output=out)
    assert found.verified.rel_err < 1e-5 and found.after.macs == found.before.macs // 2
    stored = [parameters(onnx.load(one)) for one in (tmp_path / "model.onnx", out)]
    assert [found.before.params, found.after.params] == stored, "what stays as an output counts beside the copy"
    whole, cut = (OrtBackend().session(m).run({"x": images[:1]}) for m in (model, onnx.load(out)))
    np.testing.assert_array_equal(whole[1], cut[1])
    assert whole[0].shape == cut[0].shape


@pytest.mark.parametrize("budget", ["keep_params", "keep_bytes"])
def test_what_the_tail_stores_counts(budget: str) -> None:
    """An output that is a table stays, and is a part of the whole that a budget is a share of."""
    model = net(
        """(float[N,3,8,8] x) => (float[N,5,8,8] y, float[50,20] boxes) {
            a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2) s = Relu(b) y = Conv(s, w3)
            boxes = Identity(anchors)
        }""",
        w1=(16, 3, 3, 3), w2=(16, 16, 3, 3), w3=(5, 16, 1, 1), anchors=(50, 20),
    )  # fmt: skip
    data = Dataset({"x": images()}, None, "images")
    found = onnxshap.prune(model, data, method="l1", repair="none", multiple_of=1, **{budget: 0.6})  # type: ignore[arg-type]
    assert found.traced.tail is not None
    stored = [parameters(one) for one in (model, found.model)]
    assert [found.before.params, found.after.params] == stored
    assert 0.5 * stored[0] < stored[1] <= 0.6 * stored[0]
