"""Weight unification: what a block shares and loses, who goes first, sizes that are met, and what stays exact."""

from __future__ import annotations

import importlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto, numpy_helper

import onnxshap
from onnxshap import cli, payoffs
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import Array, Dataset
from onnxshap.errors import BudgetError, OnnxshapError
from onnxshap.unification import sizes
from onnxshap.unification.blocks import Blocks, find_blocks, order, unify_weights, weighted

WIDE = """<ir_version: 8, opset_import: ["" : 17]>
wide (float[N, 6, 5, 5] x) => (float[N, 4] y) {
  a = Conv<pads=[1,1,1,1], group=2>(x, wa, ba)
  r = Relu(a)
  t = ConvTranspose<strides=[2,2]>(r, wt, bt)
  m = ReduceMean<axes=[2,3], keepdims=0>(t)
  h = MatMul(m, wm)
  y = Gemm<alpha=0.5, transB=1>(h, wg, bg)
}"""
SHAPES = {"wa": (8, 3, 3, 3), "ba": (8,), "wt": (8, 12, 2, 2), "bt": (12,), "wm": (12, 16), "wg": (4, 16), "bg": (4,)}


def wide() -> ModelProto:
    model, rng = onnx.parser.parse_model(WIDE), np.random.default_rng(4)
    for name, shape in SHAPES.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


def images(count: int = 40, scale: float = 1.0) -> Dataset:
    values = scale * np.random.default_rng(5).normal(size=(count, 6, 5, 5)) + 0.5
    return Dataset({"x": values.astype(np.float32)}, None, "random")


def blocks_of(model: ModelProto, data: Dataset, block: int = 8) -> tuple[onnxshap.Traced, dict[str, Blocks]]:
    traced = onnxshap.trace(model)
    return traced, {b.name: b for b in find_blocks(traced, free_batch(traced), data, block)}


def values(model: ModelProto, name: str) -> Array:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def test_a_block_shares_the_mean_magnitude_weighted_by_its_inputs_energy() -> None:
    model, data = wide(), images()
    _, found = blocks_of(model, data)
    assert set(found) == {"wa", "wt", "wm", "wg"}
    # the second block of the fifth filter: weights 8 to 16 of 27, of the second group's channels
    filter_ = np.abs(values(model, "wa")[4].astype(np.float64)).reshape(27)
    energy = np.repeat((data.inputs["x"][:, 3:].astype(np.float64) ** 2).mean(axis=(0, 2, 3)), 9)
    w, h = filter_[8:16], energy[8:16]
    number = 4 * 4 + 1
    assert found["wa"].starts[number] == 4 * 27 + 8
    assert found["wa"].magnitudes[number] == pytest.approx((h * w).sum() / h.sum(), rel=1e-5)
    all_energy = np.repeat((data.inputs["x"].astype(np.float64) ** 2).mean(axis=(0, 2, 3)).reshape(2, 3), 4, axis=0)
    whole = (np.repeat(all_energy, 9, axis=1) * values(model, "wa").reshape(8, 27).astype(np.float64) ** 2).sum()
    loss = (h * (w - (h * w).sum() / h.sum()) ** 2).sum()
    assert found["wa"].losses[number] == pytest.approx(loss / whole, rel=1e-5)


def test_signs_stay_and_only_chosen_blocks_change() -> None:
    model = wide()
    traced, found = blocks_of(model, images())
    every = list(found.values())
    ranked = order(every)
    half = unify_weights(traced, every, ranked[: len(ranked) // 2])
    changed = 0
    for name, one in found.items():
        old, new = values(model, name), values(half, name)
        assert (np.sign(old) == np.sign(new)).all() and old.dtype == new.dtype
        for start, size in zip(one.starts, one.sizes, strict=True):
            a, b = old.ravel()[start : start + size], new.ravel()[start : start + size]
            assert np.array_equal(a, b) or len(set(np.abs(b).tolist())) == 1
            changed += not np.array_equal(a, b)
    assert changed == len(ranked) // 2
    losses = np.concatenate([b.losses / np.maximum(1, b.sizes - 1) for b in every])
    assert (np.diff(losses[ranked]) >= 0).all()


def test_biases_take_up_the_change_of_the_mean() -> None:
    """A layer without padding gives the same mean as before, up to rounding; others change nothing else."""
    model = wide()
    data = images()
    traced, found = blocks_of(model, data)
    only = found["wg"]
    made = unify_weights(traced, [only], np.arange(len(only.starts)))
    (before,), (after,) = (run_all(traced, m, data) for m in (model, made))
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)
    only = found["wt"]
    made = unify_weights(traced, [only], np.arange(len(only.starts)))
    np.testing.assert_allclose(run_all(traced, made, data)[0].mean(axis=0), before.mean(axis=0), atol=1e-3)


def test_the_size_is_met_with_the_fewest_blocks(tmp_path: Path) -> None:
    found = onnxshap.unify(wide(), images(), keep_bytes=0.8, payoff="mse", output=tmp_path / "u.onnx")
    assert found.after.compressed["gzip"] <= 0.8 * found.before.compressed["gzip"]
    assert found.after.compressed["gzip"] > 0.78 * found.before.compressed["gzip"]
    assert 0 < found.chosen < found.blocks and set(found.before.compressed) == {"gzip", "zstd"}
    data = (tmp_path / "u.onnx").read_bytes()
    assert len(data) == found.after.bytes and len(zlib.compress(data, 6, 31)) == found.after.compressed["gzip"]
    assert found.score_after["mse"] < found.score_before["mse"] and found.drop.mean > 0
    less = onnxshap.unify(wide(), images(), keep_bytes=0.9, payoff="mse", codec="zstd")
    assert less.drop.mean < found.drop.mean
    whole = onnxshap.unify(wide(), images(), keep_bytes=1.0)
    assert whole.chosen == 0 and whole.drop.mean == 0


def test_the_size_is_that_of_the_whole_file() -> None:
    """What no image changes is off while weights are chosen (`endings`), and in the file all the same."""
    model, table = wide(), np.random.default_rng(7).normal(size=(40, 50)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "anchors"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["anchors"], ["boxes"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, [40, 50]))
    found = onnxshap.unify(model, images(), keep_bytes=0.85, payoff="mse")
    assert 0.83 < found.after.compressed["gzip"] / found.before.compressed["gzip"] <= 0.85


def test_layers_are_weighed_by_what_the_outputs_lose() -> None:
    data = images()
    traced, found = blocks_of(wide(), data)
    every = list(found.values())
    (reference,) = run_all(traced, traced.source, data)
    payoff = payoffs.choose(None, [reference], None, ["y"])
    first = 0
    for one, scaled in zip(every, weighted(traced, every, data), strict=True):
        numbers = np.arange(first, first + len(one.starts))
        first += len(one.starts)
        outputs = run_all(traced, unify_weights(traced, every, numbers), data)
        lost = float(np.mean(payoff([reference], [reference], None) - payoff(outputs, [reference], None)))
        assert scaled.losses.sum() == pytest.approx(lost)
        np.testing.assert_allclose(scaled.losses / scaled.losses.sum(), one.losses / one.losses.sum())


def test_shared_weights_stay_shared() -> None:
    text = WIDE.replace("h = MatMul(m, wm)", "k = MatMul(m, wm) l = MatMul(m, wm) h = Mul(k, l)")
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(wide().graph.initializer)
    traced, found = blocks_of(model, images())
    assert len(found["wm"].copies) == 2
    made = unify_weights(traced, list(found.values()), order(list(found.values())))
    assert [t.name for t in made.graph.initializer] == [t.name for t in model.graph.initializer]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_bytes": 0.0}, "keep_bytes is 0; give the share to keep"),
        ({"keep_bytes": 0.05}, r"with all blocks of 8 weights unified 0\.\d+ stays \(\d+ of \d+ parameters are in"),
        ({"block": 1}, "block is 1; give at least 2"),
        ({"codec": "lzma"}, "'lzma' is unknown; choose one of gzip, zstd"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OnnxshapError, match=words):
        onnxshap.unify(wide(), images(), **options)


def test_zstd_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(OnnxshapError, match=r"pip install 'onnxshap\[zstd\]', or take gzip"):
        sizes.compressor("zstd")
    assert set(sizes.size_of(wide()).compressed) == {"gzip"}


def test_the_command_writes_the_model_and_says_what_is_not_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(wide(), "m.onnx")
    np.save("x.npy", images().inputs["x"])

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli.main, ["unify", "m.onnx", "--data", "x.npy", *arguments])

    result = call("--keep-bytes", "80%")
    assert result.exit_code == 0 and result.stderr == "onnxshap: wrote m.unified.onnx\n"
    assert "gzip" in result.stdout and "agreement" in result.stdout and "runs as long" in result.stdout
    told = json.loads(call("--keep-bytes", "0.8", "--json").stdout)
    assert told["after"]["bytes"] == Path("m.unified.onnx").stat().st_size
    assert told["blocks"]["unified"] < told["blocks"]["n"] and set(told["layers"]) == {"wa", "wt", "wm", "wg"}
    Path("m.unified.onnx").unlink()
    assert call("--keep-bytes", "0.01").exit_code == 1 and not Path("m.unified.onnx").exists()


def test_unreachable_sizes_are_budget_errors() -> None:
    with pytest.raises(BudgetError, match="give a larger block"):
        onnxshap.unify(wide(), images(), keep_bytes=0.1)
