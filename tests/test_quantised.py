"""int8 nets as onnxruntime.quantization writes them: cut exactly, codes as they were, still fused by the runtime."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxshap
from onnxshap import report
from onnxshap.calibrate import run_all
from onnxshap.core import Dataset
from onnxshap.rewrite import cut
from onnxshap.tracing import Traced, trace
from tests.cases.coded import qdq_net
from tests.exactness import check_exact, codes, net
from tests.zeroing import run

MODELS = Path(__file__).parent.parent / "models"
ONE_CODE = 5e-2
"""Rounding may tip a code: the nets' outputs are 8-bit codes of which random inputs use about a third."""
FORMS: Mapping[str, Mapping[str, Any]] = {
    "qdq": {"quant_format": QuantFormat.QDQ},
    "qdq a channel": {"quant_format": QuantFormat.QDQ, "per_channel": True},
    "qdq uint8": {
        "quant_format": QuantFormat.QDQ,
        "weight_type": QuantType.QUInt8,
        "activation_type": QuantType.QUInt8,
    },
    "qoperator": {"quant_format": QuantFormat.QOperator},
    "qoperator a channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "dynamic": {},
    "dynamic uint8 weights": {"weight_type": QuantType.QUInt8},
}


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        images = np.load(MODELS / "fashion_calibration.npz")["image"][:64]
        self._feeds: Iterator[dict[str, NDArray[Any]]] = iter([{"image": x} for x in np.split(images, 4)])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


NETS = (
    *(("fashion_vgg", form) for form in ("qdq", "qdq uint8", "qoperator a channel", "dynamic uint8 weights")),
    *(("fashion_resdw", form) for form in ("qdq a channel", "qoperator", "dynamic")),
)


@pytest.fixture(scope="module", params=NETS, ids=", ".join)
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a float model and the same in int8."""
    net, form = request.param
    source, folder = MODELS / f"{net}.onnx", tmp_path_factory.mktemp("int8")
    model, path = onnx.load(source), folder / f"{net}.int8.onnx"
    del model.graph.value_info[:]  # the dynamic quantiser leaves stale ones
    onnx.save(model, folder / source.name)
    logging.disable(logging.WARNING)  # it asks for a pre-processing that these nets do not need
    try:
        if "quant_format" in FORMS[form]:
            quantize_static(folder / source.name, path, _Images(), reduce_range=True, **FORMS[form])
        else:
            quantize_dynamic(folder / source.name, path, reduce_range=True, **FORMS[form])
    finally:
        logging.disable(logging.NOTSET)
    return source, path


def widths(model: ModelProto | Path) -> list[int]:
    return [len(g) for g in onnxshap.trace(model).groups]


def test_int8_nets_are_cut_as_far_as_their_float_originals_and_exactly(quantised: tuple[Path, Path]) -> None:
    source, path = quantised
    assert widths(path) == widths(source)
    found = check_exact(onnx.load(path), tolerance=ONE_CODE)
    assert found.masked == 0.0, "integers do not round: masked and rewritten are the same"
    assert found.zeroed == 0.0
    assert found.kept < 0.5


def test_an_int8_net_is_pruned_from_data_to_file(quantised: tuple[Path, Path], tmp_path: Path) -> None:
    source, path = quantised
    result = onnxshap.prune(
        path,
        MODELS / "fashion_calibration.npz",
        keep_units=0.75,
        method="activation",
        samples=32,
    )
    onnxshap.save(result.model, tmp_path / "small.onnx")
    assert result.after.macs < 0.75 * result.before.macs
    assert result.before.macs == onnxshap.trace(source).cost.macs()
    assert result.before.params > 0.95 * onnxshap.trace(source).cost.params(), "codes are parameters"
    assert _ops(tmp_path / "small.onnx", tmp_path) == _ops(path, tmp_path), "the runtime fuses what it fused"
    floats = any(node.op_type == "Conv" for node in result.model.graph.node)
    zeros = onnxshap.prune(path, MODELS / "fashion_calibration.npz", keep_units=0.75, method="l1", repair="none")
    for model in (zeros.model, *([] if floats else [result.model])):
        assert _codes(model) <= _codes(onnx.load(path)), "only a refit makes codes anew"
    assert any("what is cut leaves zeros there" in note for note in result.notes) == (not floats)


@pytest.mark.parametrize("repair", ["none", "fold"])
def test_a_sweep_says_as_a_prune_does_where_integers_take_no_means(repair: str) -> None:
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
    q = QuantizeLinear(x, s, z)
    a = QLinearMatMul(q, s, z, w0, s, z0, s, z)
    b = QLinearMatMul(a, s, z, w1, s, z0, s, z)
    y = DequantizeLinear(b, s, z)
}""",
        w0=codes((6, 8)), w1=codes((8, 3)), s=2.0**-5, z=np.array(120, np.uint8), z0=np.array(0, np.int8),
    )  # fmt: skip
    data = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    pruned = onnxshap.prune(model, data, method="l1", keep_units=0.5, repair=repair)
    swept = onnxshap.sweep(model, data, methods=("l1",), keep=(0.5,), repair=repair)
    for notes in (pruned.notes, swept.notes):
        assert any("what is cut leaves zeros there" in note for note in notes) == (repair == "fold")


def _codes(model: ModelProto) -> Counter[int]:
    """Return how often each code occurs in the weights."""
    found = Counter[int]()
    for item in model.graph.initializer:
        if item.data_type in (item.INT8, item.UINT8):
            found.update(numpy_helper.to_array(item).ravel().tolist())
    return found


def _ops(path: Path, folder: Path) -> Counter[str]:
    """Return the ops that onnxruntime runs, after its optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def test_an_exhausted_int8_layer_gets_the_means_into_its_bias() -> None:
    """A QDQ Conv without a bias gets one of int32 codes; float weights behind codes stay out of the way."""
    from tests.cases.coded import qdq_net

    model = qdq_net()
    traced = onnxshap.trace(model)
    rng = np.random.default_rng(0)
    data = onnxshap.Dataset({"x": rng.normal(size=(8, 3, 6, 6)).astype(np.float32)})
    keep = {g.name: np.arange(len(g)) < 2 for g in traced.groups}
    folded = onnxshap.drop_units(traced, keep, onnxshap.site_means(traced, data))
    onnx.checker.check_model(folded, full_check=True)
    assert [n.op_type for n in folded.graph.node if n.op_type == "Add"] == []
    wanted = run(
        onnxshap.insert_masks(traced, means=onnxshap.site_means(traced, data)),
        {**data.inputs, **{f"onnxshap.mask.{n}": k[None].astype(np.float32) for n, k in keep.items()}},
    )
    assert np.abs(run(folded, dict(data.inputs))[0] - wanted[0]).max() < 2.0**-9  # half a step of the bias' codes


@pytest.mark.parametrize("bias", ["", ", bias"])
def test_means_that_int32_codes_cannot_hold_are_left_behind_as_floats(bias: str) -> None:
    """Codes of 16 bits times codes of 16 bits leave room for a sum of two."""
    model = net(f"""(float[N,6] x) => (float[N,3] y) {{
        a = MatMul(x, w0)
        s = Sigmoid(a)
        q = QuantizeLinear(s, step, zero)
        d = DequantizeLinear(q, step, zero)
        w = DequantizeLinear(codes, step, zero)
        bias = DequantizeLinear(sums, fine)
        y = Gemm(d, w{bias})
    }}""", opset=21, ir=10, w0=(6, 12), step=np.array(2.0**-15, np.float32), zero=np.array(0, np.int16),
        codes=np.full((12, 3), 2**15 - 1, np.int16), sums=np.array([1, 2, 3], np.int32),
        fine=np.array(2.0**-30, np.float32))  # fmt: skip
    check_exact(model, 0.3)
    assert onnxshap.trace(model).cost.params() >= 6 * 12 + 12 * 3, "codes of 16 bits are parameters"


def test_layers_of_codes_are_refitted_in_codes_or_told_as_not_refitted(quantised: tuple[Path, Path]) -> None:
    """Where a DequantizeLinear makes weights of codes, others take their place."""
    _, path = quantised
    data = {"image": np.load(MODELS / "fashion_calibration.npz")["image"][:60]}
    found = onnxshap.prune(path, data, keep_units=0.5, method="l1", repair="lstsq")
    told = report.prune_report(found, model="m.onnx", output=None, seed=0)
    assert set(told["unfitted"]).isdisjoint(r["node"] for r in told["refits"])
    assert any("not refitted" in str(item) for item in report.prune_tables(told)) == bool(told["unfitted"])
    if not any(node.op_type == "Conv" for node in onnx.load(path).graph.node):
        assert told["unfitted"]
        return
    assert not told["unfitted"] and sum(r["after"] < 0.9 * r["before"] for r in told["refits"]) > 3
    zeros = onnxshap.prune(path, data, keep_units=0.5, method="l1", repair="none")
    images = {"image": np.load(MODELS / "fashion_test.npz")["image"][:200]}
    whole, left, refitted = (run(m, images)[0] for m in (onnx.load(path), zeros.model, found.model))
    assert np.square(refitted - whole).mean() < 0.3 * np.square(left - whole).mean()


def test_refitted_codes_keep_to_the_bits_that_they_have() -> None:
    """7 of 8, as `reduce_range` leaves them, and biases of the scales that their weights have."""
    model = qdq_net()
    stored = {t.name: t for t in model.graph.initializer}
    weights = [n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    most = {}
    for name in weights:
        values = numpy_helper.to_array(stored[name])
        if values.dtype == np.int8:
            stored[name].CopyFrom(numpy_helper.from_array((values // 2).astype(np.int8), name))
            most[name] = int(np.abs(values // 2).max())
    data = {"x": np.random.default_rng(0).normal(size=(60, 3, 6, 6)).astype(np.float32)}
    found = onnxshap.prune(model, data, keep_units=0.5, method="l1")
    assert any(layer.after < layer.before for layer in found.refits)
    for tensor in found.model.graph.initializer:
        if tensor.name in most:
            assert np.abs(numpy_helper.to_array(tensor).astype(int)).max() <= most[tensor.name]


CODED = """(float[N,12] x) => (float[N,4] y) {
    xq = QuantizeLinear(x, sx, none) xd = DequantizeLinear(xq, sx, none)
    d0 = DequantizeLinear(w0, s0) a = Gemm(xd, d0, b0) r = Relu(a)
    rq = QuantizeLinear(r, sx, none) rd = DequantizeLinear(rq, sx, none)
    """


@pytest.mark.parametrize(
    ("weights", "refitted"),
    [
        ("d1 = DequantizeLinear(w1, s0)", True),
        ("e1 = DequantizeLinear(t1, s0) d1 = Transpose<perm=[1,0]>(e1)", True),
        ("e1 = DequantizeLinear<axis=0>(t1, many) d1 = Transpose<perm=[1,0]>(e1)", True),
        ("e1 = DequantizeLinear(t1, s0) as = Max(size, size) d1 = Reshape(e1, as)", True),
        ("s1 = Div(s0, two) d1 = DequantizeLinear(w1, s1)", False),
        ("q1 = QuantizeLinear(f1, s0, none) d1 = DequantizeLinear(q1, s0, none)", False),
    ],
    ids=[
        "a scale of other weights",
        "laid out",
        "laid out, a scale a channel",
        "laid out by what is computed",
        "a computed scale",
        "codes that the file makes of floats",
    ],
)
def test_weights_stay_codes_whatever_makes_them(weights: str, refitted: bool) -> None:
    """Floats took their place where codes or their scale were computed; weights with one scale were left alone."""
    model = net(
        CODED + weights + " y = Gemm(rd, d1, b1) }", sx=np.array(0.03, np.float32), none=np.array(0, np.int8),
        s0=np.array(0.01, np.float32), two=np.array(2, np.float32), w0=codes((12, 16)), b0=(16,), w1=codes((16, 4)),
        f1=(16, 4), b1=(4,), size=np.array([-1, 4]), t1=codes((4, 16)),
        many=np.array([0.01, 0.02, 0.005, 0.01], np.float32),
    )  # fmt: skip
    data = {"x": np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)}
    found = onnxshap.prune(model, data, keep_units=0.5, method="l1", repair="lstsq")
    (layer,) = (node for node in found.model.graph.node if node.output[0] == "y")
    (maker,) = (node for node in found.model.graph.node if layer.input[1] in node.output)
    assert maker.op_type in ("DequantizeLinear", "Reshape", "Transpose")
    assert [layer.after < layer.before for layer in found.refits] == [True] * refitted
    assert bool(report.prune_report(found, model="m.onnx", output=None, seed=0)["unfitted"]) != refitted


@pytest.mark.parametrize("most", [1, 7])
def test_few_codes_are_refitted_where_they_come_nearer(most: int) -> None:
    """The error told was that of floats: of weights of -1, 0 and 1 most became 0, twice to five times as far off."""
    rng = np.random.default_rng(1)
    model = net(
        """(float[N,12] x) => (float[N,8] y) {
        a = Gemm(x, w0, b0) r = Relu(a) w = DequantizeLinear(w1, step) y = Gemm(r, w, b1)
    }""", w0=(12, 32), b0=(32,), w1=np.clip(np.rint(most * rng.normal(size=(32, 8))), -most, most).astype(np.int8),
        step=np.array(1 / most, np.float32), b1=(8,),
    )  # fmt: skip
    data, other = ({"x": rng.normal(size=(400, 12)).astype(np.float32)} for _ in range(2))
    whole = run(model, other)[0]
    found = [onnxshap.prune(model, data, keep_units=0.7, method="l1", repair=how) for how in ("fold", "lstsq")]
    folded, refitted = (np.square(run(one.model, other)[0] - whole).mean() / whole.var() for one in found)
    assert refitted <= folded
    (layer,) = found[1].refits
    assert layer.after > 0.9 * refitted, "what is told is of codes"


def test_a_channel_of_codes_without_a_scale_keeps_no_layer_from_its_refit() -> None:
    model = net(
        """(float[N,12] x) => (float[N,4] y) {
        a = Gemm(x, w0, b0) r = Relu(a) w = DequantizeLinear<axis=1>(w1, steps) y = Gemm(r, w, b1)
    }""", w0=(12, 16), b0=(16,), w1=codes((16, 4)), steps=np.array([0.01, 0, 0.02, 0.01], np.float32), b1=(4,),
    )  # fmt: skip
    data = {"x": np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)}
    (layer,) = onnxshap.prune(model, data, keep_units=0.5, method="l1").refits
    assert layer.after < layer.before


def test_towers_that_share_a_bias_of_codes_get_means_of_their_own() -> None:
    """Both means went into the one bias: the cut model was not its masked twin, and refused."""
    rng = np.random.default_rng(3)
    model = net(
        """(float[N,6] a, float[N,6] b) => (float[N,3] y) {
        va = MatMul(a, w0) ra = Sigmoid(va) qa = QuantizeLinear(ra, step, zero) da = DequantizeLinear(qa, step, zero)
        vb = MatMul(b, w0) rb = Sigmoid(vb) qb = QuantizeLinear(rb, step, zero) db = DequantizeLinear(qb, step, zero)
        w = DequantizeLinear(codes, fine)
        bias = DequantizeLinear(sums, finest)
        ya = Gemm(da, w, bias)
        yb = Gemm(db, w, bias)
        y = Sub(ya, yb)
    }""", opset=21, ir=10, w0=(6, 12), step=np.array(1 / 127, np.float32), zero=np.array(0, np.int8),
        codes=rng.integers(-127, 127, (12, 3)).astype(np.int8), fine=np.array(0.01, np.float32),
        sums=rng.integers(-99, 99, 3).astype(np.int32), finest=np.array(0.01 / 127, np.float32),
    )  # fmt: skip
    data = {
        "a": rng.normal(2, 1, (40, 6)).astype(np.float32),
        "b": rng.normal(-2, 1, (40, 6)).astype(np.float32),
    }
    for repair in ("fold", "lstsq"):
        cut_ = onnxshap.prune(model, data, keep_units=0.5, method="l1", repair=repair)
        assert cut_.verified.rel_err < 1e-2


def test_a_channel_of_nothing_may_have_a_scale_of_zero() -> None:
    """The mean that goes into its bias has no codes then: it was divided by zero, and numpy warned the user."""
    model = qdq_net()
    scale = next(t for t in model.graph.initializer if t.name == "s1")
    values = numpy_helper.to_array(scale).copy()
    values.reshape(-1)[0] = 0
    scale.CopyFrom(numpy_helper.from_array(values, "s1"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_exact(model, 0.5, tolerance=1e-3).dropped > 0


def test_images_that_share_a_range_of_codes_are_rounded_as_in_the_game() -> None:
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
        a = MatMul(x, w0)
        q, s, z = DynamicQuantizeLinear(a)
        i = MatMulInteger(q, w1, z)
        f = Cast<to=1>(i)
        y = Mul(f, s)
    }""",
        w0=(6, 8),
        w1=codes((8, 3)),
    )
    images = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32) * np.array([[1], [9], [2], [3], [1]])
    data = Dataset({"x": images.astype(np.float32)})
    traced = trace(model)
    alone = np.concatenate([run(model, {"x": data.inputs["x"][k : k + 1]})[0] for k in range(5)])
    assert np.array_equal(run_all(traced, model, data)[0], alone)
    assert not np.array_equal(run(model, dict(data.inputs))[0], alone)
    values = onnxshap.score(model, data, method="loo", payoff="mse", baseline="zero").values
    removed = [_without(model, traced, data, alone, unit) for unit in range(8)]
    (found,) = values.values()
    assert np.allclose(found.phi, removed, rtol=1e-4)


def _without(model: ModelProto, traced: Traced, data: Dataset, alone: Any, unit: int) -> float:
    """Return the squared error, in variances, of a net without a unit, one image at a time."""
    (group,) = traced.groups
    small = cut(traced, {group.name: np.arange(len(group)) != unit})
    given = np.concatenate([run(small, {"x": data.inputs["x"][k : k + 1]})[0] for k in range(len(data))])
    return float(((given - alone) ** 2).mean() / ((alone - alone.mean(axis=0)) ** 2).mean())
