"""Element types: halves are pruned end to end, bfloat16 weights are cut, odd types pass through bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxshap
from tests.exactness import check_exact, net


def half_net() -> ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        name: (rng.normal(size=shape) / 3).astype(np.float16)
        for name, shape in {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 5)}.items()
    }
    return net(
        """(float16[N,3,8,8] x) => (float16[N,5] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0, b0)
        b = Relu(a)
        c = Conv<pads=[1,1,1,1]>(b, w1, b1)
        d = Relu(c)
        g = GlobalAveragePool(d)
        f = Flatten(g)
        y = MatMul(f, w2)
    }""",
        **weights,
    )


@pytest.mark.parametrize("repair", ["none", "fold", "lstsq"])
def test_halves_are_pruned_from_data_to_file(repair: str, tmp_path: Path) -> None:
    onnx.save(half_net(), tmp_path / "half.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype(np.float16))
    result = onnxshap.prune(tmp_path / "half.onnx", tmp_path / "data.npz", keep_units=0.5, method="l2", repair=repair)
    assert result.verified.rel_err < 2e-2
    assert result.after.params < 0.35 * result.before.params
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}


def test_bfloat16_weights_are_cut() -> None:
    model = net("""(float[N,6] x) => (float[N,3] y) {
        v0 = Cast<to=1>(w0)
        a = MatMul(x, v0)
        b = Relu(a)
        v1 = Cast<to=1>(w1)
        y = MatMul(b, v1)
    }""")
    rng = np.random.default_rng(0)
    for name, shape in (("w0", (6, 8)), ("w1", (8, 3))):
        model.graph.initializer.append(
            helper.make_tensor(name, TensorProto.BFLOAT16, shape, rng.normal(size=shape).ravel())
        )
    assert check_exact(model).dropped > 0
    traced = onnxshap.trace(model)
    small = onnxshap.drop_units(traced, {g.name: np.arange(8) < 5 for g in traced.groups})
    assert [(t.data_type, list(t.dims)) for t in small.graph.initializer] == [
        (TensorProto.BFLOAT16, [6, 5]), (TensorProto.BFLOAT16, [5, 3])]  # fmt: skip


ODD = {
    "int4": TensorProto.INT4,
    "uint4": TensorProto.UINT4,
    "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ,
    "float8e5m2": TensorProto.FLOAT8E5M2,
}


def test_odd_types_pass_through_bit_for_bit(tmp_path: Path) -> None:
    """4-bit and 8-bit floats and integers, strings: read by the graph, never touched."""
    casts = "\n".join(f"o_{name} = Cast<to=1>({name})" for name in ODD)
    outputs = ", ".join(f"float[3] o_{name}" for name in ODD)
    model = net(
        f"""(float[N,3,6,6] x) => (float[N,2,6,6] y, string[2] o_text, {outputs}) {{
        a = Conv(x, w0)
        y = Conv(a, w1)
        o_text = Identity(text)
        {casts}
    }}""",
        opset=21,
        ir=10,
        w0=(8, 3, 1, 1),
        w1=(2, 8, 1, 1),
    )
    for name, kind in ODD.items():
        model.graph.initializer.append(helper.make_tensor(name, kind, [3], [1, 2, 3]))
    words = np.array(["eins", "zwei\u00e4"], dtype=object)
    model.graph.initializer.append(numpy_helper.from_array(words, "text"))
    traced = onnxshap.trace(model)
    assert [len(g) for g in traced.groups] == [8]
    onnxshap.save(onnxshap.drop_units(traced, {traced.groups[0].name: np.arange(8) < 3}), tmp_path / "small.onnx")
    small = {t.name: t for t in onnx.load(tmp_path / "small.onnx").graph.initializer}
    for item in model.graph.initializer:
        if item.name in ("w0", "w1"):
            assert 3 in small[item.name].dims
        else:
            assert small[item.name].SerializeToString() == item.SerializeToString(), item.name


def test_four_bit_weights_behind_scales_a_channel_are_cut() -> None:
    rng = np.random.default_rng(0)
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
        v0 = DequantizeLinear<axis=1>(w0, s0)
        a = MatMul(x, v0)
        b = Relu(a)
        v1 = DequantizeLinear<axis=1>(w1, s1)
        y = MatMul(b, v1)
    }""",
        opset=21,
        ir=10,
        s0=rng.uniform(0.1, 0.2, 8).astype(np.float32),
        s1=[0.1, 0.2, 0.3],
    )
    for name, shape in (("w0", (6, 8)), ("w1", (8, 3))):
        codes = rng.integers(-8, 8, shape)
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT4, shape, codes.ravel()))
    traced = onnxshap.trace(model)
    small = onnxshap.drop_units(traced, {g.name: np.arange(8) < 5 for g in traced.groups})
    kept = {t.name: t for t in small.graph.initializer}
    assert (kept["w0"].data_type, list(kept["w0"].dims)) == (TensorProto.INT4, [6, 5])
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert np.array_equal(numpy_helper.to_array(kept["w0"]), before["w0"][:, :5])
    assert np.array_equal(numpy_helper.to_array(kept["w1"]), before["w1"][:5])
    assert check_exact(model).dropped > 0


def test_integer_weights_stay_and_means_are_rounded() -> None:
    """Least squares would write coefficients that are cut off at the point."""
    model = net(
        """(float[N,8] x) => (float[N,4] y) {
            h = Gemm<transB=1>(x, w0, b0)
            r = Relu(h)
            k = Cast<to=6>(r)
            z = MatMul(k, w1)
            y = Cast<to=1>(z)
        }""",
        w0=(16, 8), b0=(16,), w1=np.where(np.arange(64).reshape(16, 4) % 3, 1, -1).astype(np.int32),
    )  # fmt: skip
    images = {"x": 4 * np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)}
    for repair in ("fold", "lstsq"):
        result = onnxshap.prune(model, images, keep_units=0.75, method="l1", repair=repair, payoff="mse")
        (weight,) = [t for t in result.model.graph.initializer if t.name == "w1"]
        assert set(np.unique(numpy_helper.to_array(weight)).tolist()) == {-1, 1}
        assert not result.refits


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_sensitivity_adds_noise_of_the_models_type(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    w0, w1 = rng.standard_normal((6, 8)).astype(dtype), rng.standard_normal((8, 3)).astype(dtype)
    model = net(
        f"({name}[N,6] x) => ({name}[N,3] y) {{ h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }}", w0=w0, w1=w1
    )
    images = {"x": rng.standard_normal((20, 6)).astype(dtype)}
    result = onnxshap.prune(model, images, keep_units=0.5, method="sensitivity", repair="none", multiple_of=1)
    assert [int(kept.sum()) for kept in result.keep.values()] == [4]
