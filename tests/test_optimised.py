"""Files that went through onnxruntime's optimizer: fused ops are cut as far as what they were made of."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import onnxshap
from tests.cases import CASES
from tests.exactness import check_exact, net

MODELS = Path(__file__).parent.parent / "models"
RNG = np.random.default_rng(0)
EXTENDED = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def optimised(model: ModelProto | Path, folder: Path, level: ort.GraphOptimizationLevel = EXTENDED) -> ModelProto:
    """Return a model as onnxruntime's optimizations write it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    source = model if isinstance(model, Path) else model.SerializeToString()
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def encoder(layers: int = 2, hidden: int = 12, heads: int = 3) -> ModelProto:
    """Return an encoder in the shape of BERT, written out as torch exports it."""
    size, body, weights = hidden // heads, [], dict[str, Any]()
    for n in range(layers):
        for part in "qkvo":
            weights |= {f"w{part}{n}": (hidden, hidden), f"b{part}{n}": (hidden,)}
        weights |= {f"wi{n}": (hidden, 2 * hidden), f"bi{n}": (2 * hidden,), f"wj{n}": (2 * hidden, hidden)}
        weights |= {f"{name}{n}": (hidden,) for name in ("bj", "s1_", "t1_", "s2_", "t2_")}
        for part in "qkv":
            turned = "[0,2,3,1]" if part == "k" else "[0,2,1,3]"
            body.append(f"""
                {part}m{n} = MatMul(x{n}, w{part}{n})
                {part}a{n} = Add(b{part}{n}, {part}m{n})
                {part}r{n} = Reshape({part}a{n}, apart)
                {part}{n} = Transpose<perm={turned}>({part}r{n})""")
        body.append(f"""
            d{n} = MatMul(q{n}, k{n})
            e{n} = Div(d{n}, root)
            f{n} = Add(e{n}, mask)
            p{n} = Softmax<axis=-1>(f{n})
            g{n} = MatMul(p{n}, v{n})
            h{n} = Transpose<perm=[0,2,1,3]>(g{n})
            c{n} = Reshape(h{n}, together)
            om{n} = MatMul(c{n}, wo{n})
            oa{n} = Add(om{n}, bo{n})
            r{n} = Add(oa{n}, x{n})
            l{n} = LayerNormalization<axis=-1>(r{n}, s1_{n}, t1_{n})
            im{n} = MatMul(l{n}, wi{n})
            ia{n} = Add(im{n}, bi{n})
            id{n} = Div(ia{n}, sqrt2)
            ie{n} = Erf(id{n})
            if{n} = Add(ie{n}, one)
            ig{n} = Mul(ia{n}, if{n})
            ih{n} = Mul(ig{n}, half)
            jm{n} = MatMul(ih{n}, wj{n})
            ja{n} = Add(jm{n}, bj{n})
            u{n} = Add(ja{n}, l{n})
            x{n + 1} = LayerNormalization<axis=-1>(u{n}, s2_{n}, t2_{n})""")
    text = f"""(int64[N,5] ids) => (float[N,5,3] y) {{
        words = Gather(table, ids)
        e = Add(words, places)
        x0 = LayerNormalization<axis=-1>(e, s, t)
        {"".join(body)}
        y = MatMul(x{layers}, w)
    }}"""
    return net(
        text, table=(7, hidden), places=(1, 5, hidden), s=(hidden,), t=(hidden,), w=(hidden, 3), mask=(1, 1, 1, 5),
        apart=[0, 0, heads, size], together=[0, 0, hidden], root=float(np.sqrt(size)), sqrt2=float(np.sqrt(2)), one=1.0,
        half=0.5, **weights)  # fmt: skip


def sizes(model: ModelProto | Path) -> Counter[int]:
    return Counter(len(g) for g in onnxshap.trace(model).groups)


@pytest.mark.parametrize("name", ["fashion_vgg", "fashion_resdw"])
def test_fused_convolutions_are_cut_like_the_originals(name: str, tmp_path: Path) -> None:
    model = optimised(MODELS / f"{name}.onnx", tmp_path)
    assert "FusedConv" in {n.op_type for n in model.graph.node}
    assert sizes(model) == sizes(MODELS / f"{name}.onnx")
    assert check_exact(model).kept < 0.6


def test_what_is_laid_out_for_a_processor_says_what_to_do(tmp_path: Path) -> None:
    model = optimised(MODELS / "fashion_vgg.onnx", tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if "com.microsoft.nchwc" not in {n.domain for n in model.graph.node}:
        pytest.skip("onnxruntime has no layout of its own for this processor")
    traced = onnxshap.trace(model)
    reasons = {f.reason for f in traced.frozen}
    assert any("save the model with ORT_ENABLE_EXTENDED at most" in reason for reason in reasons), reasons
    assert traced.cost.macs() == onnxshap.trace(MODELS / "fashion_vgg.onnx").cost.macs()


@pytest.mark.parametrize("name", ["QLinearConv", "QLinearConv, depthwise and grouped"])
def test_codes_with_channels_last_are_cut_like_the_originals(name: str, tmp_path: Path) -> None:
    original = next(c for c in CASES if c.name == name)
    model = optimised(original.model, tmp_path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if not any(a.name == "channels_last" for n in model.graph.node for a in n.attribute):
        pytest.skip("onnxruntime moves no channels for this processor")
    assert sizes(model) == sizes(original.model)
    assert check_exact(model, tolerance=original.tolerance).kept < 0.8


def test_a_fused_net_is_pruned_from_data_to_file(tmp_path: Path) -> None:
    optimised(MODELS / "fashion_vgg.onnx", tmp_path)
    data = MODELS / "fashion_calibration.npz"
    result = onnxshap.prune(tmp_path / "optimised.onnx", data, keep_units=0.75, method="activation", samples=32)
    assert result.before.macs == onnxshap.trace(MODELS / "fashion_vgg.onnx").cost.macs()
    assert result.after.macs < 0.75 * result.before.macs
    assert any(layer.ridge is not None for layer in result.refits), "fused ops are refitted like others"


def test_a_fused_encoder_loses_heads_and_hidden_units(tmp_path: Path) -> None:
    model = optimised(encoder(), tmp_path)
    fused = {n.op_type for n in model.graph.node if n.domain == "com.microsoft"}
    assert {"BiasGelu", "SkipLayerNormalization"} <= fused, fused
    assert sizes(model)[24] == 2, "hidden units of both layers"
    assert sizes(model)[3] >= 2, "heads of both layers"
    assert check_exact(model, tolerance=2e-5).dropped > 0


@pytest.mark.parametrize("stored", ["initializer", "Constant"])
def test_halves_behind_a_transpose_do_not_end_the_process(stored: str, tmp_path: Path) -> None:
    """onnxruntime 1.31 and 1.32 crash where they load them with all optimizations: the run has a process of its own."""
    text = """(float16[5,N,8] x) => (float16[N,5,3] y) {
        t = Transpose<perm=[1,0,2]>(x)
        h = MatMul(t, w)
        y = MatMul(h, v)
    }"""
    model = net(text, w=RNG.normal(size=(8, 6)).astype(np.float16), v=RNG.normal(size=(6, 3)).astype(np.float16))
    if stored == "Constant":
        nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
        body = [*nodes, *model.graph.node]
        del model.graph.initializer[:], model.graph.node[:]
        model.graph.node.extend(body)
    onnx.save(model, path := tmp_path / "m.onnx")
    command = [sys.executable, "-m", "onnxshap", "prune", str(path), "--keep-units", "0.5", "--method", "random", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.pruned.onnx").exists()


def test_what_fusions_called_by_names_of_their_own_gets_others() -> None:
    """onnxruntime takes the names again when it loads what it saved, and fails where one is still there."""
    model = net(
        """(float[N,6,2] x) => (float[N,3] y) {
        f = Reshape(x, gemm_input_shape)
        a = Gemm(f, w0)
        s = Reshape(a, fold_token_7)
        r = Relu(s)
        t = Reshape(r, fold)
        y = Gemm(t, w_token_8)
    }""",
        gemm_input_shape=[-1, 12],
        w0=(12, 8),
        fold_token_7=[-1, 4, 2],
        fold=[-1, 8],
        w_token_8=(8, 3),
    )
    assert check_exact(model).dropped
    traced = onnxshap.trace(model)
    small = onnxshap.drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
    names = {t.name for t in small.graph.initializer}
    assert {"w0", "w_token_8"} <= names
    assert names.isdisjoint({"gemm_input_shape", "fold_token_7", "fold"})
