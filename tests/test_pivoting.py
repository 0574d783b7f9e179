"""Convs in groups: hidden blocks are found, what a group explains is what least squares finds, budgets and times."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, numpy_helper

import onnxshap
from onnxshap import cli, evaluation
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.errors import BudgetError, OnnxshapError, VerifyError
from onnxshap.graph import array
from onnxshap.pivoting import Timed, attempts, pivot, splitting
from onnxshap.pivoting.arranging import arrange
from onnxshap.pivoting.choosing import Ladder, choose, saved
from onnxshap.pivoting.convs import Dense, Wanted, find_convs
from onnxshap.pivoting.permuting import nobody_moved, peers
from tests.zeroing import relative_error

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,6,6] x) => (float[N,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, wa, ba)
  r = Relu(a)
  b = Conv<pads=[1,1,1,1]>(r, wb)
  q = Relu(b)
  c = Conv(q, wc, bc)
  s = Add(c, r)
  m = ReduceMean<axes=[2,3], keepdims=0>(s)
  y = MatMul(m, wy)
}"""
SHAPES = {"wa": (8, 3, 3, 3), "ba": (8,), "wb": (16, 8, 3, 3), "wc": (8, 16, 1, 1), "bc": (8,), "wy": (8, 5)}


def net(text: str = TEXT, hidden: int = 0, **shapes: Sequence[int]) -> ModelProto:
    """Return a residual net; with `hidden`, b and c keep to as many groups of channels, dealt out in turn."""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(4)
    for name, shape in {**SHAPES, **shapes}.items():
        values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        if hidden and name in ("wb", "wc"):
            outs, ins = np.ix_(np.arange(shape[0]) % hidden, np.arange(shape[1]) % hidden)
            values[(outs != ins)] = 0
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def images(count: int = 60, seed: int = 5) -> Dataset:
    values = np.random.default_rng(seed).normal(size=(count, 3, 6, 6)) + 0.3
    return Dataset({"x": values.astype(np.float32)}, None, "random")


def convs_of(model: ModelProto, data: Dataset | None = None) -> tuple[onnxshap.Traced, dict[str, Dense], list[str]]:
    traced = onnxshap.trace(model)
    found = list(find_convs(traced, free_batch(traced), data or images(), peers(traced.labels)))
    return traced, {c.name: c for c in found if isinstance(c, Dense)}, [c for c in found if isinstance(c, str)]


def groups_of(model: ModelProto) -> dict[str, int]:
    """Return the Convs in groups by their outputs, whatever they are."""
    given = {n.output[0]: {a.name: a.i for a in n.attribute} for n in model.graph.node if n.op_type == "Conv"}
    return {name: found["group"] for name, found in given.items() if found.get("group", 1) > 1}


@pytest.mark.parametrize("hidden", [2, 4])
def test_hidden_groups_are_found_and_nothing_is_lost(hidden: int) -> None:
    model, data = net(hidden=hidden), images()
    found = pivot(model, data, groups=(hidden,), multiple_of=2, timed=False, repair="none")
    assert groups_of(found.model) == {"b": hidden, "c": hidden}
    assert [s.kept for s in found.splits] == pytest.approx([1, 1])
    assert [s.explained for s in found.splits] == pytest.approx([1, 1], abs=1e-2)
    assert all(s.unsorted < 0.9 for s in found.splits)
    traced = onnxshap.trace(model)
    wanted, got = (run_all(traced, m, data) for m in (model, found.model))
    assert relative_error(got, wanted) < 1e-5
    assert found.permuted.rel_err < 1e-5 and found.verified.rel_err < 1e-5
    assert found.before.macs - found.after.macs == sum(s.macs - s.macs // hidden for s in found.splits)
    assert onnxshap.trace(found.model).cost.macs() == found.after.macs
    assert onnxshap.trace(found.model).cost.params() == found.after.params


def test_what_groups_explain_is_what_least_squares_on_their_inputs_finds() -> None:
    model, data = net(), images(400)
    traced, convs, _ = convs_of(model, data)
    conv, placed = convs["c"], nobody_moved(traced.labels)
    rng = np.random.default_rng(3)
    for some in peers(traced.labels):
        placed[some] = rng.permutation(some)
    session = onnxshap.OrtBackend().session(_with_output(model, "q"))
    x = session.run(data.inputs)[-1].transpose(0, 2, 3, 1).reshape(-1, 16).astype(np.float64)
    y = x @ conv.kernels[:, :, 0].T
    outs, ins = conv.standing(2, placed)
    left = 0.0
    for k in range(2):
        design = np.concatenate([x[:, ins == k], np.ones((len(x), 1))], axis=1)
        wanted = y[:, outs == k]
        left += float(((wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]) ** 2).sum())
    assert conv.explained(2, placed) == pytest.approx(1 - left / ((y - y.mean(axis=0)) ** 2).sum(), abs=2e-3)
    energy = (conv.kernels[:, :, 0] ** 2) * x.var(axis=0)
    assert conv.kept(2, placed) == pytest.approx(energy[outs[:, None] == ins].sum() / energy.sum(), abs=1e-3)


def _with_output(model: ModelProto, name: str) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return made


def test_the_best_of_all_orders_is_found_where_all_can_be_tried() -> None:
    text = TEXT.replace("s = Add(c, r)", "s = Relu(c)")
    traced, convs, _ = convs_of(net(text, wa=(4, 3, 3, 3), ba=(4,), wb=(6, 4, 3, 3), wc=(8, 6, 1, 1)))
    sets, placed = peers(traced.labels), nobody_moved(traced.labels)
    conv = convs["b"]
    mine = [some for some in sets if some[0] in conv.ins or some[0] in conv.outs]
    assert [len(some) for some in mine] == [4, 6]
    best = 0.0
    for first in itertools.combinations(range(4), 2):
        for second in itertools.combinations(range(6), 3):
            trial = placed.copy()
            for some, chosen in zip(mine, (first, second), strict=True):
                order = [*chosen, *(k for k in range(len(some)) if k not in chosen)]
                trial[some] = some[order]
            best = max(best, conv.explained(2, trial))
    found = arrange([Wanted(conv, 2)], sets, placed, np.random.default_rng(0))
    assert conv.explained(2, found) == pytest.approx(best, rel=1e-3)
    unread = [some for some in sets if some[0] not in np.concatenate([conv.ins, conv.outs])]
    assert all((found[some] == some).all() for some in unread)


def test_the_refit_makes_up_for_what_is_dropped() -> None:
    model, data, other = net(), images(200), images(100, seed=6)
    traced = onnxshap.trace(model)
    (wanted,) = run_all(traced, model, other)
    errors = {}
    for repair in ("none", "fold", "lstsq"):
        found = pivot(model, data, timed=False, repair=repair)
        assert bool(found.refits) == (repair == "lstsq")
        errors[repair] = float(((run_all(traced, found.model, other)[0] - wanted) ** 2).mean())
    assert errors["lstsq"] < 0.5 * errors["fold"] < 0.5 * errors["none"]


def test_frozen_channels_keep_their_places() -> None:
    """The first Conv reads the input: only what it gives can be sorted; one between input and output stays whole."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,8,4,4] x) => (float[N,8,4,4] y, float[N,8,4,4] z) {
      a = Conv(x, wa) y = Conv(a, wb) z = Conv(x, wc)
    }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("wa", "wb", "wc"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=(8, 8, 1, 1)).astype(np.float32), name))
    data = Dataset({"x": rng.normal(size=(50, 8, 4, 4)).astype(np.float32)}, None, "random")
    _, convs, left = convs_of(model, data)
    assert set(convs) == {"a", "y"} and left == ["z: its channels cannot change places"]
    found = pivot(model, data, timed=False)
    assert groups_of(found.model) == {"a": 2, "y": 2} and found.permuted.rel_err < 1e-5
    assert "z: its channels cannot change places" in found.left


def test_computed_weights_stay_whole() -> None:
    text = TEXT.replace("b = Conv<pads=[1,1,1,1]>(r, wb)", "e = Exp(wb) b = Conv<pads=[1,1,1,1]>(r, e)")
    _, convs, left = convs_of(net(text))
    assert set(convs) == {"a", "c"} and left == ["b: its weights are computed, or no floats"]


def test_budgets_are_met_from_the_cheapest_error() -> None:
    model, data = net(), images()
    every = pivot(model, data, timed=False)
    least = every.after.macs / every.before.macs
    found = pivot(model, data, timed=False, keep_macs=0.9)
    assert found.after.macs <= 0.9 * found.before.macs and len(found.splits) < len(every.splits)
    assert any("the budget is met without it" in line for line in found.left)
    with pytest.raises(BudgetError, match=f"cannot be reached: with every Conv split that gains {least:.3f} stays"):
        pivot(model, data, timed=False, keep_macs=least - 0.01)
    mixed = pivot(model, data, groups=(2, 4), multiple_of=2, timed=False, keep_macs=least - 0.05)
    assert set(groups_of(mixed.model).values()) <= {2, 4} and 4 in groups_of(mixed.model).values()
    assert mixed.after.macs <= (least - 0.05) * mixed.before.macs


def test_as_many_are_split_as_lose_no_more_than_they_may() -> None:
    model, data, other = net(), images(200), images(100, seed=6)
    every = pivot(model, data, eval_data=other, timed=False, payoff="mse")
    assert len(every.splits) == 2
    one = pivot(model, data, eval_data=other, timed=False, payoff="mse", exclude=("c",))
    most = 1.02 * one.drop.bound
    assert most < every.drop.bound
    found = pivot(model, data, eval_data=other, timed=False, payoff="mse", max_drop=most)
    assert len(found.splits) == 1 and found.drop.bound <= most
    loose = pivot(model, data, eval_data=other, timed=False, payoff="mse", max_drop=10 * every.drop.bound)
    assert len(loose.splits) == 2
    with pytest.raises(BudgetError, match=r"max_drop 0: with 1 Convs split .* mse is lost; allow more"):
        pivot(model, data, eval_data=other, timed=False, payoff="mse", max_drop=0.0)
    with pytest.raises(BudgetError, match="allow more"):
        pivot(model, data, timed=False, payoff="mse", max_drop=0.0, keep_macs=every.after.macs / every.before.macs)


def test_what_loses_more_per_multiplication_is_left_whole() -> None:
    traced, convs, _ = convs_of(net())
    sets, placed, rng = peers(traced.labels), nobody_moved(traced.labels), np.random.default_rng(0)
    ladders = [Ladder(convs["b"], (2,), 1e3), Ladder(convs["c"], (2,), 1e-3)]
    need = min(saved(convs[name], 2) for name in "bc")
    chosen, _ = choose(ladders, need, sets, placed, rng)
    assert chosen == {"c": 2}


def test_convs_are_weighed_on_twenty_images_however_long_a_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def weighed(*arguments: Any) -> list[float]:
        seen.append(len(arguments[4]))
        return splitting.weigh(*arguments)

    monkeypatch.setattr(attempts, "weigh", weighed)
    monkeypatch.setattr("onnxshap.valuing.RUNS", 1)
    pivot(net(), images(), timed=False)
    assert seen == [20]


class _Clock:
    """Says that all is as fast as `times`, groups -> milliseconds, whatever it is."""

    def __init__(self, times: dict[int, float]) -> None:
        self.times = times

    def __call__(self, backend: object, models: Sequence[ModelProto], feeds: dict[str, Array]) -> list[float]:
        found = [max([1, *groups_of(m).values()]) for m in models]
        return [self.times[k] for k in found]


def _measure_with(clock: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (splitting, evaluation):  # Convs alone, then the models
        monkeypatch.setattr(place, "latencies", clock)


def test_only_what_is_measured_faster_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    _measure_with(_Clock({1: 1.0, 2: 0.6, 4: 0.7}), monkeypatch)
    found = pivot(net(), images(), groups=(2, 4), multiple_of=2)
    assert groups_of(found.model) == {"b": 2, "c": 2}
    assert [s.times for s in found.splits] == [(1.0, 0.6)] * 2
    _measure_with(_Clock({1: 1.0, 2: 0.99}), monkeypatch)
    with pytest.raises(BudgetError, match=r"gain; b: not faster in groups \(0\.99 ms in 2, 1 whole\), and 2 more"):
        pivot(net(), images())  # b is the largest
    assert Timed({1: 1.0, 2: 0.5, 4: 0.6, 8: 0.3}).faster() == (2, 8)


def test_a_model_that_is_no_faster_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(backend: object, models: Sequence[ModelProto], feeds: dict[str, Array]) -> list[float]:
        return [1.0, 0.5] if len(models[0].graph.node) == 1 else [1.0, 1.1]

    _measure_with(told, monkeypatch)
    with pytest.raises(
        BudgetError, match=r"2 Convs in groups the model runs in 1.1 ms, as it was in 1; give timed=False"
    ):
        pivot(net(), images(), output=tmp_path / "p.onnx")
    assert not (tmp_path / "p.onnx").exists()


def test_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        pivot(net(), images(), timed=False, seed=3, output=tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_fixed_batch_stays() -> None:
    text = TEXT.replace("[N,", "[1,")
    found = pivot(net(text), images(), timed=False)
    assert groups_of(found.model) == {"b": 2, "c": 2} and found.refits
    assert found.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_wrong_permutation_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ModelProto, changes: dict[tuple[str, int], FloatArray]) -> ModelProto:
        made = ModelProto()
        made.CopyFrom(model)
        stored = next(t for t in made.graph.initializer if t.name == "wa")
        stored.CopyFrom(numpy_helper.from_array(array(stored)[::-1].copy(), "wa"))
        return made

    monkeypatch.setattr(splitting, "permuted", wrong)
    with pytest.raises(VerifyError, match="the permuted model differs from the original"):
        pivot(net(), images(), timed=False, output=tmp_path / "p.onnx")
    assert not (tmp_path / "p.onnx").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": (1,)}, "groups is 1; give numbers of groups, at least 2"),
        ({"keep_macs": 0.0}, "keep_macs is 0; give the share to keep"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"max_drop": -1.0}, "max_drop is -1; give 0 or more"),
        ({"repair": "distill"}, "repair 'distill' is not one for pivoting; choose one of lstsq, fold, none"),
        ({"include": ("no*",)}, "'no\\*' matches no Conv that can be split; those are a, b, c"),
        ({"groups": (7,)}, "no Conv can be split with a gain; .*do not divide into groups of multiples of 4"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OnnxshapError, match=words):
        pivot(net(), images(), timed=False, **options)


def test_the_command_tells_what_is_gained_and_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "m.onnx")
    np.save("x.npy", images().inputs["x"])

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli.main, ["pivot", "m.onnx", "--data", "x.npy", "--untimed", *arguments])

    result = call("-v")
    assert result.exit_code == 0 and result.stderr.endswith("onnxshap: wrote m.pivoted.onnx\n")
    assert "onnxshap: whole: a: 3 channels to 8" in result.stderr
    assert "2 Convs in groups, 1 whole" in result.stdout and "zeros within" in result.stdout
    told = json.loads(call("--json", "--exclude", "c", "--repair", "none").stdout)
    assert [c["node"] for c in told["convs"]] == ["b"] and told["repair"] == "none"
    assert told["after"]["bytes"] == Path("m.pivoted.onnx").stat().st_size
    assert told["verify"]["permuted"]["rel_err"] < 1e-5 and set(told["convs"][0]["latency_ms"]) == {"whole", "groups"}
    Path("m.pivoted.onnx").unlink()
    assert call("--keep-macs", "1%").exit_code == 1 and not Path("m.pivoted.onnx").exists()
