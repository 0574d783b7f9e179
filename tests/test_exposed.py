"""Models whose outputs are choices alone are scored by what they choose by, and stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxshap
from onnxshap import api
from onnxshap.core import Array, Dataset
from onnxshap.errors import DataError
from onnxshap.opening import open_model
from onnxshap.sweeping import sweep
from tests.exactness import net

ENDS = {
    "ArgMax": ("y = ArgMax<axis=1, keepdims=0>(s)", "kl"),
    "ArgMax of Softmax, cast": ("p = Softmax<axis=1>(s) best = ArgMax<axis=1>(p) y = Cast<to=6>(best)", "kl"),
    "TopK": ("v, y = TopK<axis=1>(s, two)", "mse"),
    "Greater": ("p = Sigmoid(s) y = Greater(p, half)", "mse"),
    "a choice in the shape of an image": (
        "best = ArgMax<axis=1, keepdims=0>(s) size = Shape<start=2>(r) all = Shape<end=1>(x)"
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
    assert found.traced.exposed == (("s",) if kind in ("ArgMax", "TopK") or "image" in kind else ("p",))
    assert 0.5 < found.after.score["y"] <= found.before.score["y"] == 1.0


def test_labels_and_a_bound_go_with_classes() -> None:
    model, pixels = ending("ArgMax"), images(60)
    traced, _ = open_model(model, Dataset({"x": pixels}, None, "images"))
    labels = traced.backend.session(traced.source).run({"x": pixels})[0]
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
    both = api.compare(path, tmp_path / "cut.onnx", data)
    assert both[1].score["y"] == pytest.approx(done.after.score["y"])
    curve = sweep(path, data, keep=(0.5,), methods=("l1",)).curves[0]
    assert curve.points[0].figures.score["agreement"] > 0.5


def test_what_has_no_real_number_before_it_is_refused() -> None:
    model = net(
        "(int64[N,4] x) => (y) { e = Gather(table, x) b = Greater(e, zero) c = Cast<to=7>(b) y = Add(x, c) }",
        table=(9,), zero=np.float32(0),
    )  # fmt: skip
    numbers = np.random.default_rng(0).integers(0, 9, (8, 4))
    with pytest.raises((DataError, onnxshap.BudgetError), match="can be"):
        onnxshap.prune(model, Dataset({"x": numbers}, None, "numbers"), keep_units=0.5)
