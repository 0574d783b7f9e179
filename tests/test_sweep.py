"""A sweep: every budget as `prune` would cut it, from one set of values; its marks, its table and its plot."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto

import onnxshap
from onnxshap import api, cli, report
from onnxshap.core import FloatArray
from onnxshap.errors import BudgetError, DataError, OnnxshapError
from onnxshap.measure import Figures
from onnxshap.plan.cutter import Cutter
from onnxshap.plan.judging import Drop
from onnxshap.report import plot
from onnxshap.sweeping import Curve, Point, Sweep, knee
from tests.exactness import net as build
from tests.test_budgets import labelled, net


@pytest.fixture(autouse=True, scope="module")
def _times() -> Iterator[None]:
    """A run takes as long as the model is large."""

    def sizes(_backend: object, models: list[ModelProto], *_: object) -> list[float]:
        return [float(m.ByteSize()) for m in models]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxshap.evaluation.latencies", sizes)
        yield


@pytest.fixture(scope="module")
def found() -> Sweep:
    """A sweep of two methods; what is scored is counted."""
    return onnxshap.sweep(
        net(), labelled(60), eval_data=labelled(80), methods=("l1", "random"), keep=(0.5, 0.8, 0.01), repair="fold"
    )


def test_every_point_is_what_prune_makes_of_that_budget(found: Sweep) -> None:
    assert [c.method for c in found.curves] == ["l1", "random"] and found.score == "accuracy"
    for curve in found.curves:
        assert [p.keep_macs for p in curve.points] == [0.8, 0.5]
        for point in curve.points:
            cut = onnxshap.prune(
                net(), labelled(60), eval_data=labelled(80), method=curve.method, keep_macs=point.keep_macs,
                repair="fold",
            )  # fmt: skip
            assert (point.figures.macs, point.figures.params) == (cut.after.macs, cut.after.params)
            assert point.figures.bytes == cut.after.bytes and point.figures.score == cut.after.score
            lost = cut.before.score["accuracy"] - cut.after.score["accuracy"]
            assert point.drop.mean == pytest.approx(lost) and point.drop.images == 80
            assert point.latency == pytest.approx(point.figures.bytes / found.before.bytes, rel=0.05)
            assert point.figures.macs <= point.keep_macs * found.before.macs


def test_budgets_out_of_reach_are_left_out_and_said(found: Sweep) -> None:
    assert list(found.left_out) == [0.01] and "cannot be reached" in found.left_out[0.01]
    with pytest.raises(BudgetError, match=r"^keep 0.01 cannot be reached"):
        onnxshap.sweep(net(), labelled(60), methods=("l1",), keep=(0.01, 0.005))


def test_one_scoring_and_one_set_of_curves_serve_all_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    true_score, true_curves = api.score, Cutter._measured

    def score(*args: Any, **options: Any) -> Any:
        calls.append(options["method"])
        return true_score(*args, **options)

    def curves(*args: Any) -> Any:
        calls.append("curves")
        return true_curves(*args)

    monkeypatch.setattr(api, "score", score)
    monkeypatch.setattr(Cutter, "_measured", curves)
    swept = onnxshap.sweep(net(), labelled(80), methods=("l1", "l1"), keep=(0.8, 0.6))
    assert calls == ["l1", "curves"]
    (curve,) = swept.curves
    assert (curve.repair, curve.allocation, len(curve.points)) == ("lstsq", "curves", 2)
    assert (swept.images, swept.eval_images, swept.eval_source) == (48, 32, "random, held out")


def test_too_few_images_and_bad_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"a sweep holds two fifths of the images out; there are 30, give at least 40"):
        onnxshap.sweep(net(), labelled(30), methods=("l1",))
    with pytest.raises(OnnxshapError, match="'magic' is unknown"):
        onnxshap.sweep(net(), labelled(60), methods=("magic",))
    with pytest.raises(BudgetError, match=r"^keep is 1.5"):
        onnxshap.sweep(net(), labelled(60), keep=(0.5, 1.5))
    with pytest.raises(BudgetError, match="a sweep needs a method and a budget"):
        onnxshap.sweep(net(), labelled(60), keep=())


def curve(*losses: float) -> Curve:
    """Return a curve at budgets 0.8, 0.6, ... with some losses and a standard error of 0.01."""
    points = [
        Point(round(0.8 - 0.2 * k, 1), Figures(1, 1, 1, 1.0, {}), 1.0, Drop("accuracy", loss, 0.01, 100))
        for k, loss in enumerate(losses)
    ]
    return Curve("l1", "fold", "uniform", 0, points, {})


def test_the_knee_is_farthest_from_the_chord_on_axes_of_one_length() -> None:
    bent = curve(0.01, 0.02, 0.1, 0.5)
    assert bent.knee() is bent.points[2]
    shares, losses = np.array([1.0, 0.8, 0.6, 0.4, 0.2]), np.array([0.0, 0.01, 0.02, 0.1, 0.5])
    assert knee(shares, 1000 * losses) == knee(shares / 7, losses) == 3
    for none in (curve(0.1, 0.2, 0.3, 0.4), curve(0.3, 0.4), curve(0.1), curve(-0.1, -0.2), curve()):
        assert none.knee() is None


def test_the_last_point_within_counts_the_standard_error() -> None:
    falling = curve(0.01, 0.02, 0.1, 0.5)
    assert falling.within(0.031) is falling.points[1]
    assert falling.within(0.0299) is falling.points[0]
    assert falling.within(0.01) is None


def test_the_report_and_the_table_say_the_same(found: Sweep) -> None:
    told = report.sweep_report(found, model="m.onnx", seed=0, max_drop=2.0)
    assert json.loads(report.as_json(told)) == told
    first = told["methods"][0]
    assert first["within"] == 0.5 and [p["keep_macs"] for p in first["points"]] == [0.8, 0.5]
    assert first["points"][1]["shares"]["macs"] == first["points"][1]["macs"] / told["before"]["macs"]
    from tests.test_report import text_of

    shown = text_of(*report.sweep_tables(told))
    rows = [line.split() for line in shown.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("original", "l1", "random")] == [
        "original",
        *["l1"] * 2,
        *["random"] * 2,
    ]
    assert "within" in shown and "Left out: 0.01; keep 0.01 cannot be reached" in shown
    none = report.sweep_report(found, model="m.onnx", seed=0, max_drop=-1.0)
    assert "No budget of l1, random is within -1" in text_of(*report.sweep_tables(none))


# --- plots -----------------------------------------------------------------------------------------------------------


def test_plots_are_drawn_of_every_kind_and_twice_the_same(found: Sweep, tmp_path: Path) -> None:
    told = report.sweep_report(found, model="some/m<1>.onnx", seed=0, max_drop=0.1)
    told["methods"][1]["knee"] = 0.5
    for name in ("a.svg", "b.svg", "a.png", "a.html"):
        plot.write_plot(told, tmp_path / name)
    svg = (tmp_path / "a.svg").read_bytes()
    assert svg == (tmp_path / "b.svg").read_bytes() and b"<svg" in svg
    for words in (b"MACs kept", b"parameters kept", b"latency", b"accuracy", b"l1", b"random", b"knee"):
        assert words in svg
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "m&lt;1&gt;.onnx" in page and page.count("<svg") == 1
    with pytest.raises(OnnxshapError, match=r"a plot ends in .svg, .png, .html"):
        plot.write_plot(told, tmp_path / "a.gif")
    assert len(list(tmp_path.iterdir())) == 4


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "m.onnx")
    data = labelled(60)
    assert data.labels is not None
    np.savez("d.npz", labels=data.labels, **dict(data.inputs))  # type: ignore[arg-type]
    yield tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["sweep", *arguments])


def test_the_command_prints_a_table_and_writes_what_it_is_asked_for(here: Path) -> None:
    common = ("m.onnx", "--data", "d.npz", "--method", "l1", "--keep", "80%,0.5,0.01", "--max-drop", "0.9")
    result = call(*common, "--repair", "fold", "-o", "s.json", "--plot", "s.svg")
    assert result.exit_code == 0, result.stderr
    left_out, wrote = result.stderr.splitlines()
    assert left_out.startswith("onnxshap: left out 0.01: --keep 0.01 cannot be reached")
    assert wrote == "onnxshap: wrote s.json and s.svg"
    assert "original" in result.stdout and "d.npz, held out" in result.stdout
    told = json.loads(Path("s.json").read_text())
    assert (told["seed"], told["max_drop"], told["eval_data"]["n"]) == (0, 0.9, 24)
    again = json.loads(call(*common, "--repair", "fold", "--json", "-q").stdout)
    for one in (told, again):
        del one["methods"][0]["seconds"]
    assert told == again


def test_what_cannot_be_done_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sweep needs --data" in call("m.onnx").stderr and call("m.onnx").exit_code == 2
    common = ("m.onnx", "--data", "d.npz", "--method", "l1")
    assert "'half' is no share" in call(*common, "--keep", "0.5,half").stderr
    assert "a plot ends in .svg or .png or .html" in call(*common, "--plot", "x.pdf").stderr
    true_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return true_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = call(*common, "--plot", "x.svg")
    assert result.exit_code == 1
    assert "a plot needs matplotlib; pip install 'onnxshap[plot]', or leave out --plot" in result.stderr


@pytest.mark.parametrize("allocation", ["uniform", "iterative"])
def test_images_that_judge_do_not_reach_the_order_of_the_cut(allocation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What outputs in units of their own count is told by the images that the cut may see."""
    w = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
    w[1, :, 0] *= 100  # an output in another unit than the others
    model = build(
        "(float[N,8] x) => (float[N,8] y) { h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }", w0=w[0], w1=w[1]
    )
    x = np.random.default_rng(1).standard_normal((2, 60, 8)).astype(np.float32)
    orders, cut = list[dict[str, FloatArray]](), api.cut_order

    def kept(*given: Any) -> dict[str, FloatArray]:
        orders.append(cut(*given))
        return orders[-1]

    monkeypatch.setattr(api, "cut_order", kept)
    for judge in (x[0], x[1] * np.linspace(0, 2, 8, dtype=np.float32)):
        onnxshap.sweep(
            model, {"x": x[0]}, eval_data={"x": judge}, keep=[0.5], payoff="mse", basis="own", allocation=allocation
        )
    half = len(orders) // 2
    assert half >= 1
    for one, other in zip(orders[:half], orders[half:], strict=True):
        assert {name: value.tobytes() for name, value in one.items()} == {n: v.tobytes() for n, v in other.items()}
