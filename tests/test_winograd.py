"""Convolutions of fewer multiplications give what they gave, and rows do not see each other in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxshap import payoffs
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, run_all, site_means
from onnxshap.core import Array
from onnxshap.game import GroupGame, Setting, winograd
from onnxshap.game.toomcook import MOST, algorithm, tilings
from onnxshap.game.winograd import quick_sessions
from onnxshap.opening import open_model
from onnxshap.taps import taps
from onnxshap.tracing import Traced, trace
from tests.exactness import net

CONVOLUTIONS = {
    "3x3": ("3,9,11", "pads=[1,1,1,1]", (5, 3, 3, 3)),
    "3x3, no padding": ("4,7,6", "", (5, 4, 3, 3)),
    "1x5 and uneven padding": ("3,4,13", "pads=[0,1,0,3]", (6, 3, 1, 5)),
    "5x2, SAME_LOWER": ("3,8,5", 'auto_pad="SAME_LOWER"', (4, 3, 5, 2)),
    "3x3, dilated": ("3,10,9", "pads=[2,3,1,3], dilations=[2,3]", (4, 3, 3, 3)),
    "3x3, every second": ("3,9,8", "pads=[1,1,1,1], strides=[2,2]", (5, 3, 3, 3)),
    "7x2, every third and second": ("3,13,8", "pads=[3,0,2,1], strides=[3,2]", (5, 3, 7, 2)),
    "2x3, every third, next to each other": ("3,9,8", "pads=[0,1,0,1], strides=[3,1]", (5, 3, 2, 3)),
    "6, along one axis": ("3,20", "pads=[3,2]", (4, 3, 6)),
    "3, along one axis, fewer outputs than dilations": ("3,9", "dilations=[4]", (4, 3, 3)),
    "2x3x3": ("2,4,5,6", "pads=[1,1,1,0,1,1]", (3, 2, 2, 3, 3)),
    "of a single output": ("3,3,3", "", (4, 3, 3, 3)),
}
"""Shape of the input, attributes, shape of the weight."""


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small nets are not worth it."""
    monkeypatch.setattr(winograd, "_GAIN", 0.0)
    monkeypatch.setattr(winograd, "_CHANNELS", 0)
    monkeypatch.setattr(winograd, "_CHANNELS_THERE", 0)


@pytest.fixture(params=[0.0, np.inf], ids=["places apart", "places together"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to multiply: which one is taken depends on how much filters are larger than what they read."""
    monkeypatch.setattr(winograd, "_PACKED", request.param)
    monkeypatch.setattr(winograd, "_LEAST_PACKED", 0)


def opened(text: str, **weights: Any) -> Traced:
    return free_batch(trace(net(text, **weights), backend=OrtBackend("cpu", 1)))


def run(traced: Traced, x: Array) -> tuple[list[Array], list[Array]]:
    """Return what the whole model gives, as it is and with fewer multiplications."""
    model = traced.shaped.graph.model
    return traced.backend.session(model).run({"x": x}), quick_sessions(traced, [model])[0].run({"x": x})


def ops(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the ops of the model that a quick session is made of."""
    seen: list[onnx.ModelProto] = []
    monkeypatch.setattr(OrtBackend, "session", lambda self, model: seen.append(model))
    quick_sessions(traced, [traced.shaped.graph.model])
    return [node.op_type for node in seen[0].graph.node]


@pytest.mark.parametrize(("m", "r"), [(m, r) for r in range(1, MOST + 1) for m in range(1, MOST + 2 - r)])
def test_products_of_a_tile_are_a_correlation(m: int, r: int) -> None:
    inputs, spread, products = algorithm(m, r)
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=m + r - 1), rng.normal(size=r)
    found = products @ ((spread @ g) * (inputs @ d))
    assert found == pytest.approx(np.correlate(d, g, "valid"), abs=1e-9)


@pytest.mark.parametrize(
    ("size", "out", "kernel", "dilation", "before", "stride"),
    [
        *((9, 9, 3, 1, 1, 1), (11, 11, 3, 2, 2, 1), (7, 7, 5, 1, 0, 1), (6, 6, 1, 1, 0, 1)),
        *((9, 5, 3, 1, 1, 2), (8, 4, 3, 1, 1, 2), (12, 4, 7, 1, 2, 3), (9, 5, 1, 1, 0, 2), (9, 3, 2, 1, 0, 3)),
    ],
)
def test_every_tiling_of_an_axis_is_the_convolution(
    size: int, out: int, kernel: int, dilation: int, before: int, stride: int
) -> None:
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=size), rng.normal(size=kernel)
    given = {"pads": [before, before], "dilations": [dilation], "strides": [stride]}
    reads = taps("Conv", given, [size], [out], [kernel])
    wanted = np.append(x, 0)[reads] @ g
    for way in tilings(size, out, kernel, dilation, before, stride):
        found = way.outputs.reshape(out, -1) @ ((way.taps @ g)[:, None] * (way.inputs @ x)).ravel()
        assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_a_convolution_gives_what_it_gave(name: str, bias: bool, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, given, weight = CONVOLUTIONS[name]
    given = f"<{given}>" if given else ""
    read, after = (", b" if bias else ""), "BatchNormalization(c, s, t, m, var)" if norm else "Relu(c)"
    out = ",".join("?" for _ in weight[1:])
    text = f"(float[N,{shape}] x) => (float[N,{out}] y) {{ c = Conv{given}(x, w{read}) y = {after} }}"
    per_channel = dict.fromkeys(["b"] * bias + ["s", "t", "m", "var"] * norm, weight[:1])
    traced = opened(text, w=weight, **per_channel)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, *map(int, shape.split(",")))).astype(np.float32)
    (wanted,), (found,) = run(traced, x)
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()
    kinds = ops(traced, monkeypatch)
    assert "Conv" not in kinds
    assert "MatMul" in kinds
    assert "BatchNormalization" not in kinds


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 6), (9, 4), (4, 9), (12, 13)])
def test_rows_do_not_see_each_other(height: int, width: int) -> None:
    traced = opened(
        f"""(float[N,8,{height},{width}] x) => (float[N,5] y) {{
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            ar = Relu(a)
            b = Conv<pads=[1,1,1,1]>(ar, w1)
            s = Add(b, x)
            g = GlobalAveragePool(s)
            f = Flatten(g)
            y = Gemm(f, w2)
        }}""",
        w0=(150, 8, 3, 3), b0=(150,), w1=(8, 150, 3, 3), w2=(8, 5),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(70, 8, height, width)).astype(np.float32)
    whole = run(traced, x)[1][0]
    for rows in (1, 3, 64):
        assert (run(traced, x[:rows])[1][0] == whole[:rows]).all()


@pytest.mark.parametrize("size", [4, 12])
def test_large_filters_are_matrices_of_their_own(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"(float[N,200,{size},{size}] x) => (float[N,200,?,?] y) {{ c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }}"
    made = ops(opened(text, w=(200, 200, 3, 3)), monkeypatch)
    assert made.count("MatMul") == (4 + 36 if size == 4 else 4 + 1)  # onnxruntime packs matrices in advance, no others


def test_small_filters_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DenseNet has many: two nodes for every place of a tile took seconds to open, and gained nothing."""
    text = "(float[N,128,2,2] x) => (float[N,128,?,?] y) { c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }"
    assert ops(opened(text, w=(128, 128, 3, 3)), monkeypatch).count("MatMul") <= 5


def test_convolutions_of_few_channels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    text = "(float[N,512,4,4] x) => (float[N,{0},?,?] y) {{ c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c) }}"
    few, many = (opened(text.format(outs), w=(outs, 512, 3, 3)) for outs in (32, 128))
    assert "Conv" in ops(few, monkeypatch)
    assert "Conv" not in ops(many, monkeypatch)


@pytest.mark.parametrize(
    ("conv", "weight"),
    [
        ("Conv<strides=[2,2], dilations=[2,2], pads=[2,2,2,2]>(x, w)", (6, 4, 3, 3)),
        ("Conv<group=2, pads=[1,1,1,1]>(x, w)", (6, 2, 3, 3)),
        ("Conv(x, w)", (6, 4, 7, 1)),
        ("Conv(x, w)", (6, 4, 1, 1)),
    ],
)
def test_others_stay(conv: str, weight: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    traced = opened(f"(float[N,4,8,6] x) => (float[N,6,?,?] y) {{ c = {conv} y = Relu(c) }}", w=weight)
    assert "Conv" in ops(traced, monkeypatch)


def test_computed_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(float[N,4,8,6] x, float[1] k) => (float[N,6,?,?] y) { v = Mul(w, k) c = Conv(x, v) y = Relu(c) }"
    assert "Conv" in ops(opened(text, w=(6, 4, 3, 3)), monkeypatch)


def test_filters_take_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(float[N,4,6,6] x) => (float[N,6,?,?] y) { a = Conv(x, w0) ar = Relu(a) b = Conv(ar, w1) y = Relu(b) }"
    made = net(text, w0=(6, 4, 3, 3), w1=(6, 6, 3, 3))
    bytes_of_one = 4 * 36 * 6 * 6
    traced = free_batch(trace(made, backend=OrtBackend("cpu", 1, memory=4 * bytes_of_one)))
    assert ops(traced, monkeypatch).count("Conv") == 1  # the last one is worth most: every group's rows run it


@pytest.mark.parametrize("on_device", [False, True])
def test_values_are_those_of_plain_convolutions(on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = net(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            ar = Relu(a)
            b = Conv<pads=[1,1,1,1]>(ar, w1)
            br = Relu(b)
            c = Conv<pads=[1,1,1,1]>(br, w2)
            t = Add(c, br)
            tr = Relu(t)
            p = GlobalAveragePool(tr)
            f = Flatten(p)
            y = Gemm(f, w3)
        }""",
        w0=(6, 3, 3, 3), b0=(6,), w1=(8, 6, 3, 3), w2=(8, 8, 3, 3), w3=(8, 5),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    traced, data = open_model(made, x, backend=OrtBackend("cpu", 1))
    free = free_batch(traced)
    reference = run_all(free, free.shaped.graph.model, data)
    setting = Setting(free, data, payoffs.choose("mse", reference, None, ["y"]), reference, site_means(free, data))
    monkeypatch.setattr(OrtBackend, "on_device", on_device)  # the processor stands in for the device: the same calls
    differ = False
    assert setting.means  # they give some convolutions' outputs other names
    orders = np.random.default_rng(1).permutation(6)[None, :5]
    for group in free.groups:
        coalitions = np.random.default_rng(2).integers(0, 2, (12, len(group))).astype(np.float32)
        images = np.arange(12) % 5
        quick = GroupGame(setting, group)
        found = quick(images, coalitions), quick.removals(np.array([1]), orders)
        monkeypatch.setattr(winograd, "_GAIN", 1e9)
        plain = GroupGame(setting, group)
        wanted = plain(images, coalitions), plain.removals(np.array([1]), orders)
        monkeypatch.setattr(winograd, "_GAIN", 0.0)
        for one, other in zip(found, wanted, strict=True):
            assert one == pytest.approx(other, abs=2e-5 * np.abs(other).max())
            differ |= not np.array_equal(one, other)
    assert differ  # they were not all plain
