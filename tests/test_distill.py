"""Distillation: the torch form of a graph is the graph, tuning helps on new images and never hurts held-out ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper
from scipy.special import log_softmax

import onnxshap
from onnxshap.calibrate import free_batch, run_all, site_means
from onnxshap.core import Array, Dataset
from onnxshap.distill.tuning import SECONDS, divided
from onnxshap.errors import BudgetError, DataError, ModelError, OnnxshapError
from onnxshap.plan.cutter import Cutter
from onnxshap.repair import refit
from onnxshap.repair.targets import find_layers
from onnxshap.rewrite import Removal
from tests import exactness
from tests.nets import images
from tests.nets import residual as net
from tests.test_batching import FIXED, STATE

if TYPE_CHECKING:
    from torch import Tensor

    from onnxshap.distill.tuner import Tuner

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'onnxshap[distill]')")

MODELS = Path(__file__).parent.parent / "models"


def same(model: ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Hold the torch form against onnxruntime, float64 against float32 apart."""
    from onnxshap.distill.torchgraph import TorchGraph

    wanted = onnxshap.OrtBackend("cpu", 1).session(model).run(feeds)
    names = [o.name for o in model.graph.output]
    with torch.no_grad():
        found = TorchGraph(model)({n: torch.from_numpy(v) for n, v in feeds.items()}, names)
    tuned = TorchGraph(model)({n: torch.from_numpy(v) for n, v in feeds.items()}, names)
    for one in (t for t in tuned if t.requires_grad):
        one.sum().backward(retain_graph=True)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


def same_with(
    model: ModelProto, stored: Mapping[str, np.ndarray], x: tuple[int, ...], rng: np.random.Generator
) -> None:
    """As `same`, for a net of one output of any shape, given what it may read."""
    read = {n for node in model.graph.node for n in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(stored[key], key) for key in stored if key in read)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    same(model, {"x": rng.normal(size=x).astype(np.float32)})


@pytest.mark.parametrize("name", ["fashion_vgg", "fashion_resdw", "fashion_resnet20", "fashion_vit"])
def test_trained_nets_in_torch(name: str) -> None:
    with np.load(MODELS / "fashion_test.npz") as data:
        feeds = {"image": data["image"][:8]}
    model = onnx.load(MODELS / f"{name}.onnx")
    traced = onnxshap.trace(model)  # holds the large weights
    same(traced.shaped.graph.model, feeds)


OPS = {
    "asymmetric": "y = Conv<pads=[0,1,1,0], strides=[2,2]>(x, w)",
    "same": 'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)',
    "transposed": "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w)",
    "max": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
    "average": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,0,0]>(x)",
    "counted": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    "pad": "y = Pad(x, pads, value)",
    "slice": "y = Slice(x, starts, ends, axes, steps)",
    "split": "a, y = Split<axis=1>(x, sizes)",
    "reduce": "y = ReduceMax<axes=[2], keepdims=0>(x)",
    "gelu": "a = Erf(x) b = Mul(a, x) y = Softmax<axis=1>(b)",
    "layer": "y = LayerNormalization<axis=-1>(x, scale, shift)",
    "batch": "y = BatchNormalization(x, bs, bb, bm, bv)",
    "gather": "y = Gather<axis=1>(x, index)",
    "shuffle": "y = DepthToSpace<blocksize=2>(x)",
    "hard": "a = HardSwish(x) y = HardSigmoid(a)",
    "resize": 'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)',
    "nearest": 'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric">(x, , scales)',
    "shape": "s = Shape(x) g = Gather(s, zero) u = Unsqueeze(g, zeros) c = Concat<axis=0>(u, minus) y = Reshape(x, c)",
    "comparisons": "n = IsNaN(x) l = Less(x, value) g = GreaterOrEqual(x, level) o = Not(n) a = And(l, o) b = Or(a, g) "
    "y = Where(b, x, value)",
    "rounded": "f = Floor(x) c = Ceil(x) r = Round(x) s = Sign(x) a = Sum(f, c, r, s) y = Mul(a, x)",
    "waves": "s = Sin(x) c = Cos(x) a = Mul(s, c) y = Softsign(a)",
    "elus": "s = Selu(x) c = Celu<alpha=0.5>(s) y = ThresholdedRelu<alpha=0.2>(c)",
    "picked": "i = ArgMax<axis=2, keepdims=1>(x) y = GatherElements<axis=2>(x, i)",
    "smallest": "i = ArgMin<axis=-1, keepdims=0>(x) y = Cast<to=1>(i)",
    "cumulated": "a = CumSum<exclusive=1>(x, last) y = CumSum<reverse=1>(a, last)",
    "apart": "y = SpaceToDepth<blocksize=2>(x)",
    "flattened from behind": "y = Flatten<axis=-1>(x)",
    "flattened to a column": "y = Flatten<axis=4>(x)",
    "triangle": "y = Trilu<upper=0>(x, one)",
    "sums": "a = ReduceL1<axes=[1], keepdims=1>(x) b = ReduceSumSquare<axes=[1], keepdims=1>(x) "
    "c = ReduceLogSumExp<axes=[1], keepdims=1>(x) y = Sum(a, b, c)",
    "counted up": "r = Range(zero, six, one) c = Cast<to=1>(r) z = Size(x) f = Cast<to=1>(z) a = Div(x, f) "
    "y = Mul(a, c)",
    "einsum": 'y = Einsum<equation="nchw,oc->nohw">(x, m)',
    "pad by reflection": 'y = Pad<mode="reflect">(x, around)',
    "pad by the edge": 'y = Pad<mode="edge">(x, around)',
    "transposed, uneven": "y = ConvTranspose<strides=[2,2], pads=[0,1,1,0], output_padding=[1,0]>(x, w, bb)",
    "transposed, same": 'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
    "transposed to a shape": "y = ConvTranspose<output_shape=[16,13], strides=[2,2]>(x, w)",
    "transposed to more than there is": "y = ConvTranspose<output_shape=[18,14], strides=[2,2]>(x, w, bb)",
    "transposed with gaps": 'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[4,4]>(x, w)',
    "nearest by any factor": 'y = Resize<mode="nearest">(x, , uneven)',
    "nearest to sizes": 'y = Resize<mode="nearest", nearest_mode="ceil">(x, , , larger)',
    "linear, asymmetric": 'y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, , uneven)',
    "linear by a factor": 'y = Resize<mode="linear">(x, , uneven)',
    "cubic": 'y = Resize<mode="cubic", cubic_coeff_a=-0.5>(x, , , larger)',
    "linear by a factor that float64 has less of": 'y = Resize<mode="linear">(x, , sixths)',
    "grid": 'y = GridSample<padding_mode="border">(x, grid)',
    "responses": "y = LRN<size=3, alpha=0.1, beta=0.7, bias=1.5>(x)",
    "norms": "a = LpNormalization<axis=1>(x) b = GlobalLpPool(x) y = Mul(a, b)",
    "mean and variance": "y = MeanVarianceNormalization<axes=[2,3]>(x)",
    "shrunken": "y = Shrink<lambd=0.4, bias=0.1>(x)",
    "hardest": "a = Hardmax<axis=1>(x) y = Mul(a, x)",
    "triangles": "c = Clip(x, low, high) s = Asin(c) o = Acos(c) t = Atan(x) e = Tan(c) h = Sinh(x) k = Cosh(x) "
    "i = Asinh(x) j = Atanh(c) y = Mean(s, o, t, e, h, k, i, j)",
    "products": "a = ReduceProd<axes=[1,2], keepdims=1>(x) q = Mul(x, x) b = ReduceLogSum<axes=[2], keepdims=1>(q) "
    "y = Add(a, b)",
    "remainders": "a = Mod<fmod=1>(x, value) i = Cast<to=7>(x) b = Mod(i, six) c = CastLike(b, x) y = Add(a, c)",
    "infinite": "d = Div(value, nothing) a = IsInf(d) b = IsNaN(x) c = Xor(a, b) y = Where(c, x, value)",
    "picked rows": "y = GatherND<batch_dims=1>(x, places)",
    "scattered": 'y = ScatterND<reduction="add">(x, rows, news)',
    "scattered over": "y = ScatterND(x, rows, news)",
    "scattered elements": 'y = ScatterElements<axis=1, reduction="add">(x, elements, scattered)',
    "top": "v, i = TopK<axis=2>(x, three) c = Cast<to=1>(i) y = Add(v, c)",
    "top of equals": "r = Relu(x) i, j = TopK<axis=2, largest=0>(r, three) y = Cast<to=1>(j)",
    "one entry": "y = GatherND(x, entry)",
    "sums of integers": "i = Cast<to=6>(x) s = ReduceSum(i, last_axis) y = Cast<to=1>(s)",
    "one hot": "i = ArgMax<axis=1, keepdims=0>(x) y = OneHot<axis=1>(i, six, offon)",
    "compressed": "y = Compress<axis=1>(x, chosen)",
}


@pytest.mark.parametrize("name", OPS)
def test_ops_in_torch(name: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N,4,8,6] x) => (float[] y) {{ {OPS[name]} }}'
    )
    rng = np.random.default_rng(0)
    stored = {
        "w": rng.normal(size=(4, 4, 3, 3)), "m": rng.normal(size=(5, 4)), "scale": rng.normal(size=6),
        "shift": rng.normal(size=6), "level": np.array(-0.5), "value": np.array(0.5), "scales": np.array([1, 1, 2, 2]),
        "bs": rng.normal(size=4), "bb": rng.normal(size=4), "bm": rng.normal(size=4), "bv": rng.uniform(0.5, 2, 4),
        "uneven": np.array([1, 1, 1.3, 0.7]), "low": np.array(-0.9), "high": np.array(0.9), "nothing": np.array(0),
        "grid": rng.uniform(-1.2, 1.2, (2, 5, 7, 2)), "news": rng.normal(size=(2, 8, 6)), "offon": np.array([-1, 2]),
        "scattered": rng.normal(size=(2, 2, 8, 6)), "sixths": np.array([1, 1, 1, 7 / 6]),
    }  # fmt: skip
    whole = {
        "pads": [0, 0, 1, 0, 0, 0, 2, 1], "starts": [-1, 1], "ends": [-9, 6], "axes": [2, 3], "steps": [-2, 1],
        "sizes": [1, 3], "index": [[1, -1], [0, 2]], "zero": 0, "zeros": [0], "minus": [-1],
        "last": -1, "one": 1, "six": 6, "around": [0, 0, 1, 2, 0, 0, 3, 1],
        "larger": [2, 4, 13, 9], "places": [[[1, 3], [-1, 0]], [[0, 0], [2, -2]]], "rows": [[0, 1], [1, -2]],
        "elements": rng.integers(-4, 4, (2, 2, 8, 6)), "three": [3], "chosen": [1, 0, 0, 1],
        "entry": [1, -1, 0, 2], "last_axis": [-1],
    }  # fmt: skip
    kinds = dict.fromkeys(stored, np.float32) | dict.fromkeys(whole, np.int64) | {"chosen": np.bool_}
    every = {key: np.array(value).astype(kinds[key]) for key, value in {**stored, **whole}.items()}
    same_with(model, every, (2, 4, 8, 6), rng)


FUSED = {
    "activations": "a = com.microsoft.BiasGelu(x, scale) b = com.microsoft.FastGelu(a, shift) "
    "c = com.microsoft.Gelu(b) y = com.microsoft.QuickGelu<alpha=1.5>(c)",
    "products": "t = Transpose<perm=[0,2,1]>(x) y = com.microsoft.FusedMatMul<transA=1, alpha=0.3>(t, m)",
    "norms": "a, b, c, d = com.microsoft.SkipLayerNormalization(x, x, scale, shift, bias) "
    "e, f, g, h = com.microsoft.SkipSimplifiedLayerNormalization(a, d, scale) "
    "y = SimplifiedLayerNormalization(e, shift)",
    "attention": "y = com.microsoft.Attention<num_heads=2>(x, qkv, three)",
    "causal attention": "y = com.microsoft.Attention<num_heads=2, unidirectional=1>(x, qkv, three)",
    "heads": "q = MatMul(x, m) y = com.microsoft.MultiHeadAttention<num_heads=2>(q, x, x, three)",
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_ops_in_torch(name: str) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> net (float[N,5,6] x) => (float[] y) '
        f"{{ {FUSED[name]} }}"
    )
    rng = np.random.default_rng(0)
    shapes = {"scale": (6,), "shift": (6,), "bias": (6,), "m": (6, 6), "qkv": (6, 18), "three": (18,)}
    stored = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    same_with(model, stored, (2, 5, 6), rng)


DEFINED = {
    "attention": (23, "y = Attention(x, k, v)"),
    "attention that sees no later position": (24, "y = Attention<is_causal=1, scale=0.3>(x, k, v)"),
    "rotary": (23, "y = RotaryEmbedding(x, cosines, sines)"),
    "softmax over all axes from one on": (11, "a = Softmax<axis=2>(x) b = LogSoftmax<axis=-2>(x) y = Mul(a, b)"),
    "pixels between pixels": (9, 'y = Upsample<mode="linear">(x, scales)'),
    "nearest of opset 10": (10, "y = Resize(x, smaller)"),
    "sums over nothing": (18, "y = ReduceSumSquare<noop_with_empty_axes=1>(x)"),
    "pads of a few axes": (18, 'y = Pad<mode="edge">(x, pads, , axes)'),
    "resize of a few axes": (18, 'y = Resize<axes=[2,3], antialias=1, mode="linear">(x, , half)'),
}


@pytest.mark.parametrize("name", DEFINED)
def test_ops_of_other_versions_in_torch(name: str) -> None:
    """An op that the table lacks and ONNX defines by others is what its definition says."""
    opset, text = DEFINED[name]
    model = onnx.parser.parse_model(
        f'<ir_version: {4 if opset < 12 else 10}, opset_import: ["" : {opset}]> '
        f"net (float[N,2,4,6] x) => (float[] y) {{ {text} }}"
    )
    rng = np.random.default_rng(0)
    stored = {
        "k": rng.normal(size=(2, 2, 5, 6)), "v": rng.normal(size=(2, 2, 5, 6)), "cosines": rng.normal(size=(2, 4, 3)),
        "sines": rng.normal(size=(2, 4, 3)), "scales": np.array([1, 1, 2.5, 3]), "half": np.array([0.5, 0.7]),
        "smaller": np.array([1, 1, 0.5, 0.7]),
    }  # fmt: skip
    every = {key: value.astype(np.float32) for key, value in stored.items()}
    every |= {"pads": np.array([1, 0, 2, 1]), "axes": np.array([2, -1])}
    same_with(model, every, (2, 2, 4, 6), rng)


RECURRENT = {
    "LSTM": "all, last, cell = LSTM<hidden_size=5>(x, w, r, b) s = Squeeze(all, one) y = Add(s, last)",
    "LSTM with states": "all, last, cell = LSTM<hidden_size=5>(x, w, r, b, , h, c) y = Add(last, cell)",
    "LSTM both ways": 'all, last = LSTM<hidden_size=5, direction="bidirectional">(x, w, r, b) y = Add(all, all)',
    "GRU backwards": 'all = GRU<hidden_size=5, direction="reverse", linear_before_reset=1>(x, w, r, b) y = Neg(all)',
    "GRU that resets first": "all, last = GRU<hidden_size=5>(x, w, r, b, , h) s = Squeeze(all, one) y = Add(s, last)",
    "GRU that resets first, both ways": 'all = GRU<hidden_size=5, direction="bidirectional">(x, w, r, b) y = Neg(all)',
    "RNN without a bias": "all, last = RNN<hidden_size=5>(x, w, r) y = Add(all, all)",
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_ops_in_torch(name: str) -> None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[T,3,4] x) => (float[] y) {{ {RECURRENT[name]} }}'
    )
    ways, gates = 2 if "both" in name else 1, {"L": 4, "G": 3, "R": 1}[name[0]]
    rng = np.random.default_rng(0)
    shapes = {"w": (gates * 5, 4), "r": (gates * 5, 5), "b": (gates * 10,), "h": (3, 5), "c": (3, 5)}
    values = {key: rng.normal(size=(ways, *shape)).astype(np.float32) for key, shape in shapes.items()}
    same_with(model, {**values, "one": np.array([1])}, (6, 3, 4), rng)


@pytest.mark.parametrize(("opset", "scales"), [(18, 2), (21, 4)])
def test_norms_of_groups_in_torch(opset: int, scales: int) -> None:
    """Before opset 21 a group has one scale and one shift."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[N,4,8,6] x) => (float[N,4,8,6] y) '
        "{ y = GroupNormalization<num_groups=2>(x, scale, shift) }"
    )
    rng = np.random.default_rng(0)
    for name in ("scale", "shift"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=scales).astype(np.float32), name))
    same(model, {"x": rng.normal(size=(2, 4, 8, 6)).astype(np.float32)})


def cut_net(count: int) -> tuple[list[np.ndarray], ...]:
    """Return outputs on new images: the original's, the refitted net's, the tuned net's; and what tuning did."""
    from onnxshap.distill.tuner import distill

    model, data = net(), images(count)
    traced = onnxshap.trace(model)
    free = free_batch(traced)
    (group,) = traced.groups
    seen = data.take(divided(count, 0)[0])
    removal = Removal(traced, free, {group.name: np.arange(8) < 4}, site_means(free, seen))
    small, _ = refit(removal, seen)
    before = ModelProto.FromString(small.SerializeToString())
    tuned, tuning = distill(removal, small, data, epochs=40)
    assert tuning.after <= tuning.before
    other = Dataset({"x": np.random.default_rng(3).normal(size=(80, 3, 6, 6)).astype(np.float32)}, None, "random")
    return tuple(run_all(free, m, other) for m in (model, before, tuned))


def divergence(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean KL divergence of class scores, which is what is tuned: a constant added to all is free."""
    p, q = log_softmax(wanted, axis=1), log_softmax(found, axis=1)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


@pytest.mark.parametrize("hinted", [2**25, 2**12], ids=["all images", "some"])
def test_tuning_gets_closer_on_images_it_never_saw(hinted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxshap.distill.objective.HINTED", hinted)  # hints of 7 images of 50 in the second case
    (wanted,), (refitted,), (tuned,) = cut_net(200)
    assert divergence(tuned, wanted) < 0.8 * divergence(refitted, wanted)


def test_mirror_images_are_used_where_the_original_sees_the_same_in_them() -> None:
    from onnxshap.distill.mixing import seen_alike

    rng = np.random.default_rng(0)
    scores, other, maps = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)), rng.normal(size=(40, 2, 8, 8))
    assert seen_alike([scores + 0.3 * other], [scores]) and not seen_alike([other], [scores])
    assert seen_alike([maps[..., ::-1]], [maps]) and not seen_alike([maps], [maps])


def test_prune_distills_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxshap.distill.tuner import distill

    monkeypatch.setattr("onnxshap.distill.tuner.distill", partial(distill, epochs=10))
    found = [onnxshap.prune(net(), images(60), keep_macs=0.6, method="l1", repair="distill") for _ in range(2)]
    assert found[0].repair == "distill" and found[0].tuning is not None
    assert found[0].tuning.after <= found[0].tuning.before
    assert found[0].model == found[1].model


def test_what_is_not_in_the_table_is_refused() -> None:
    from onnxshap.distill.torchgraph import TorchGraph

    model = net()
    model.graph.node[2].op_type = "Det"
    with pytest.raises(ModelError, match="distill cannot evaluate Det; use --repair lstsq"):
        TorchGraph(model)
    cropped = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N,2,4,4] x) => (float[N,2,6,4] y) '
        "<float[8] roi = {0,0,0,0,1,1,1,1}, int64[4] sizes = {1,2,6,4}> "
        '{ y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, roi, , sizes) }'
    )
    with pytest.raises(ModelError, match="distill cannot evaluate Resize of a part of the image, or of as much as its"):
        TorchGraph(cropped)({"x": torch.zeros(1, 2, 4, 4)}, ["y"])


def test_what_torch_refuses_is_a_refusal_of_the_node() -> None:
    from onnxshap.distill.torchgraph import TorchGraph

    form = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,2,6] x) => (float[] y) '
    for body, what in (
        (
            "{ a = Cast<to=7>(x) m = ReduceMean<axes=[1]>(a) y = Cast<to=1>(m) }",
            "'m': distill cannot evaluate this Red",
        ),
        (
            "{ a, i = MaxPool<kernel_shape=[2]>(x) y = Cast<to=1>(i) }",
            "'a': distill cannot evaluate the further outputs",
        ),
    ):
        graph = TorchGraph(onnx.parser.parse_model(form + body))
        with pytest.raises(ModelError, match=f"node {what}.*; use --repair lstsq"):
            graph({"x": torch.zeros(1, 2, 6)}, ["y"])


def test_a_model_that_cannot_be_tuned_is_refused_before_it_is_scored() -> None:
    half = net()
    for item in half.graph.initializer:
        if item.data_type == item.FLOAT:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = 10
    small = images(60)
    mixed = exactness.net(
        "(float[4,6] x) => (float[4,3] y) { h = MatMul(x, w) m = ReduceMean<axes=[0], keepdims=1>(h) r = Relu(h)"
        " s = Sub(r, m) y = MatMul(s, v) }", w=(6, 8), v=(8, 3),
    )  # fmt: skip
    noise = np.random.default_rng(0).normal(size=(40, 2, 8)).astype(np.float32)
    pooled = exactness.net(
        "(float[N,2,8] x) => (float[N,3] y) { p = AveragePool<kernel_shape=[3], dilations=[2]>(x) s = ReduceMax(p, two)"
        " f = Flatten(s) h = MatMul(f, w) r = Relu(h) y = MatMul(r, v) }", opset=19, two=np.array([2]),
        w=(2, 8), v=(8, 3),
    )  # fmt: skip

    def score(outputs: Array, labels: Array) -> Array:
        raise AssertionError("scored")

    for model, data, why in (
        (half, {k: v.astype(np.float16) for k, v in small.inputs.items()}, "weights of float32, the model has none"),
        (mixed, {"x": np.zeros((40, 6), np.float32)}, "runs as many images as memory lets it, the model takes 4"),
        (
            pooled,
            {"x": noise},
            "output 'y': torch does not compute what onnxruntime does",
        ),
    ):
        with pytest.raises(ModelError, match=f"{why}; use repair lstsq"):
            onnxshap.prune(model, data, keep_macs=0.6, repair="distill", payoff=score)


@pytest.mark.parametrize("axis", [1, 2])
def test_channels_of_dense_outputs_are_tuned_in_their_units(axis: int) -> None:
    model = exactness.net(
        """(float[N,6,9] x) => (float[N,C,D] y) {
            t = MatMul(w1, x) r = Relu(t) f = MatMul(w2, r) u = Mul(f, units)
            %s
        }"""
        % ("y = Identity(u)" if axis == 1 else "y = Transpose<perm=[0, 2, 1]>(u)"),
        w1=(16, 6), w2=(4, 16), units=np.array([[300.0], [300.0], [0.05], [0.05]], np.float32),
    )  # fmt: skip
    data = Dataset({"x": np.random.default_rng(0).normal(size=(80, 6, 9)).astype(np.float32)}, None, "random")
    bare, found = (
        onnxshap.prune(model, data, keep_units=0.5, method="l1", repair=how, distill_seconds=20)
        for how in ("lstsq", "distill")
    )
    assert found.tuning is not None and found.tuning.after <= found.tuning.before
    assert found.after.score["mse"] > 1.05 * bare.after.score["mse"]


def test_time_and_images_are_asked_for() -> None:
    told = set[str]()
    for seconds in (0, float("inf"), float("nan")):
        with pytest.raises(BudgetError, match=f"distill_seconds is {seconds}; give a number of seconds above 0"):
            onnxshap.prune(net(), images(60), keep_macs=0.6, method="l1", repair="distill", distill_seconds=seconds)
    with pytest.raises(DataError, match="distill needs at least 25 images, there are 24"):
        onnxshap.prune(
            net(), images(24), keep_macs=0.6, method="l1", repair="distill", progress=lambda *at: told.add(at[0])
        )
    assert told == {"trace"}  # before anything is scored or measured


def test_more_than_the_usual_seconds_give_more_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxshap.distill import tuner

    asked = list[int]()

    def run(_self: object, epochs: int, _seconds: float, _progress: object) -> object:
        asked.append(epochs)
        raise KeyError

    monkeypatch.setattr(tuner.Tuner, "run", run)
    for seconds in (None, 100.0, 2 * SECONDS):
        with pytest.raises(KeyError):
            onnxshap.prune(
                net(), images(60), keep_macs=0.6, method="l1", repair="distill", allocation="uniform",
                distill_seconds=seconds,
            )  # fmt: skip
    assert asked == [tuner.EPOCHS, tuner.EPOCHS, 2 * tuner.EPOCHS]


def test_what_judges_the_tuning_is_kept_from_the_repair_before_it() -> None:
    tuned, held_out = divided(500, 3)
    assert len(held_out) == 50 and sorted([*tuned, *held_out]) == list(range(500))
    traced = onnxshap.trace(net())
    values = {g.name: np.arange(float(len(g))) for g in traced.groups}
    cutter = Cutter(traced, free_batch(traced), traced.groups, values, images(60), repair="distill", seed=3)
    used = cutter._fitted.inputs["x"]
    seen = images(60).take(divided(60, 3)[0]).inputs["x"]
    assert used.shape == seen.shape and (used == seen).all()


def tuner_of(memory: int = 2**30) -> Tuner:
    """Return the tuner of a net of which nothing is cut; its convolution in front of a cut one is a target."""
    from onnxshap.distill.objective import Objective
    from onnxshap.distill.tuner import Tuner

    free = free_batch(onnxshap.trace(net(), backend=onnxshap.OrtBackend("cpu", 1, memory)))
    model = free.shaped.graph.model
    cut = {g.name: np.arange(len(g)) > 0 for g in free.groups}
    tuned, held_out = (images(60).take(part) for part in divided(60, 0))
    objective = Objective(free, find_layers(free, model, free.alive(cut)), model, free.alive({}), held_out)
    return Tuner(free, objective, tuned, 0)


def fifty(tuner: Tuner) -> Mapping[str, Tensor]:
    """Return fifty images as a tuner takes them."""
    return tuner._objective.tensors(images(50))


def test_images_that_memory_does_not_hold_at_once_give_the_same_step() -> None:
    gradients = []
    for memory in (2**30, 2**16, 1):
        tuner = tuner_of(memory)
        for weight in tuner._objective.student.weights:
            weight.data *= 1.5
        losses = list(tuner._objective.totals(fifty(tuner)))
        sum(losses).backward()
        gradients.append((len(losses), [w.grad for w in tuner._objective.student.weights]))
    counts, (whole, *others) = zip(*gradients, strict=True)
    assert counts[0] == 1 < counts[1] < counts[2] == 50
    for other in others:
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def test_on_a_device_torch_runs_the_original_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done for one, done on the processor: nothing is copied there, and the losses are the same."""
    ort = tuner_of()
    monkeypatch.setattr("onnxshap.distill.objective.device_of", lambda _backend: torch.device("cpu", 0))
    torch_ = tuner_of()
    feeds = fifty(ort)
    for a, b in zip(ort._objective.totals(feeds), torch_._objective.totals(feeds), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert type(ort._objective.parts[0].teacher) is not type(torch_._objective.parts[0].teacher)


def test_tuning_takes_the_threads_that_the_model_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxshap.distill import tuner

    seen, before = list[int](), torch.get_num_threads()

    def run(_self: object, _epochs: int, _seconds: float, _progress: object) -> object:
        seen.append(torch.get_num_threads())
        raise KeyError

    monkeypatch.setattr(tuner.Tuner, "run", run)
    for threads in (1, 3, 0):
        with pytest.raises(KeyError):
            onnxshap.prune(
                net(), images(60), keep_macs=0.6, method="l1", repair="distill", allocation="uniform",
                backend=onnxshap.OrtBackend("cpu", threads),
            )  # fmt: skip
    assert seen == [1, 3, before] and torch.get_num_threads() == before


def test_tuning_runs_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxshap.distill.objective import device_of

    cuda, cpu = onnxshap.OrtBackend("cuda"), onnxshap.OrtBackend("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device_of(cuda).type == "cuda" and device_of(cpu).type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of(cuda).type == "cpu"


def test_where_time_is_short_steps_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, sizes = tuner_of(), list[int]()
    step = tuner._step

    def counted(optimizer: Any, rate: float, feeds: Mapping[str, Array]) -> None:
        sizes.append(len(feeds["x"]))
        step(optimizer, rate, feeds)

    def found(latest: float) -> float:
        step(tuner._optimizer(), 1e-9, fifty(tuner))
        return 1e-3

    monkeypatch.setattr(tuner, "_step", counted)
    monkeypatch.setattr(tuner, "_rate", found)
    for epochs, seconds, size in ((2, 1e9, 48), (10**6, 0.5, 20)):
        sizes.clear()
        tuner.run(epochs, seconds, lambda _done, _total: None)
        assert max(sizes) == size
    sizes.clear()
    _, tuning = tuner.run(2, 0.0, lambda _done, _total: None)
    assert not sizes and tuning.best == 0


def test_a_few_steps_choose_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net whose weights are exact bears no large steps; constants of one number are no weights."""
    from onnxshap.distill.tuner import RATES

    tuner = tuner_of()
    before = tuner._objective.student.arrays()
    assert tuner._rate(np.inf) in RATES
    wild = [w * 1e3 for w in (1.0, 0.5)]
    monkeypatch.setattr("onnxshap.distill.tuner.RATES", (*wild, 1e-9))
    assert tuner._rate(np.inf) == 1e-9
    assert tuner._rate(-np.inf) == wild[1]  # no time: the next one, untried
    assert all((v == before[n]).all() for n, v in tuner._objective.student.arrays().items())
    assert all(group["params"][0].numel() > 1 for group in tuner._optimizer().param_groups)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(OnnxshapError, match=r"pip install 'onnxshap\[distill\]'"):
        onnxshap.prune(net(), images(60), keep_macs=0.6, method="l1", repair="distill")


def test_torch_is_not_imported_otherwise() -> None:
    code = "import sys, onnxshap, onnxshap.cli, onnxshap.plan.cutter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["class token", "a state made of a constant"])
def test_files_of_one_image_are_tuned(name: str) -> None:
    """What repeats their constants for every image stands at the end of the nodes."""
    model = FIXED.get(name, STATE)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).normal(size=(30, *shape[1:])).astype(np.float32)
    found = onnxshap.prune(model, images, method="l1", keep_units=0.5, repair="distill", distill_seconds=2)
    assert found.tuning is not None and found.tuning.after <= found.tuning.before


def test_outputs_that_nobody_reads_need_no_equal() -> None:
    """A MaxPool that tells places, and a Dropout its mask, as older exporters name them."""
    model = exactness.net(
        "(float[N,3,8,8] x) => (float[N,4] y) { h = Conv(x, w) p, places = MaxPool<kernel_shape=[2,2]>(h)"
        " d, mask = Dropout(p) g = GlobalAveragePool(d) f = Flatten(g) y = MatMul(f, v) }", w=(16, 3, 3, 3), v=(16, 4)
    )  # fmt: skip
    data = np.random.default_rng(0).normal(size=(30, 3, 8, 8)).astype(np.float32)
    found = onnxshap.prune(model, data, method="l1", keep_units=0.5, repair="distill", distill_seconds=1)
    assert found.tuning is not None


STEPS = exactness.net(
    "(float[5,N,6] x) => (float[N,3] y, float[5,N,3] z) { h, last = GRU<hidden_size=8>(x, w, r)"
    " s = Squeeze(last, first) y = MatMul(s, v) t = Squeeze(h, second) z = MatMul(t, v) }",
    w=(1, 24, 6), r=(1, 24, 8), v=(8, 3), first=[0], second=[1],
)  # fmt: skip
FLAT = exactness.net(
    "(float[16] x) => (float[3] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }", w=(16, 8), v=(8, 3)
)


@pytest.mark.parametrize(("model", "shape"), [(STEPS, (5, 6)), (FLAT, (16,))], ids=["steps first", "no batch"])
def test_models_without_images_on_axis_0_are_tuned(model: ModelProto, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    found = onnxshap.prune(
        model, rng.normal(size=(30, *shape)).astype(np.float32), method="l1", keep_units=0.5, repair="distill",
        distill_seconds=3,
    )  # fmt: skip
    assert found.tuning is not None and found.tuning.epochs and found.tuning.after <= found.tuning.before


def test_images_with_channels_last_are_moved_like_those_with_channels_first() -> None:
    from onnxshap.distill.mixing import Mixer

    x = np.random.default_rng(0).normal(size=(6, 28, 20, 3)).astype(np.float32)
    turned = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    first, last = (
        Mixer(np.random.default_rng(1), True, torch.device("cpu"), names)({"x": value})["x"]
        for names, value in (((), turned), (("x",), x))
    )
    assert last.shape == x.shape and not np.array_equal(last, x)
    assert torch.equal(first.movedim(1, -1), last)


def test_a_mask_that_is_an_output_too_is_left_alone() -> None:
    """An encoder hands the mask of its tokens on to the decoder: truth values, which have no difference."""
    model = exactness.net(
        "(float[N,6] x, bool[N,4] mask) => (float[N,4] y, bool[N,4] out) { h = MatMul(x, w) r = Relu(h)"
        " s = MatMul(r, v) y = Where(mask, s, nothing) out = Not(mask) }", w=(6, 16), v=(16, 4), nothing=[0.0],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(40, 6)).astype(np.float32), "mask": rng.random((40, 4)) < 0.8}
    found = onnxshap.prune(model, data, method="l1", keep_units=0.5, repair="distill", distill_seconds=1)
    assert found.tuning is not None and found.tuning.after <= found.tuning.before
