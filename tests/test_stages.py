"""Parts that run for every row are cut where one tensor goes on, and give what they gave, however many rows a run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch
from onnxshap.game import pace, stages
from onnxshap.game.stages import open_suffix
from onnxshap.masking import mask_name, masked_model
from onnxshap.tracing import Traced, trace
from tests.exactness import net

BLOCKS = net(
    """(float[N,3,8,8] x) => (float[N,4] y) {
        [a] a = Conv<pads=[1,1,1,1]>(x, w0)
        ar = Relu(a)
        b = Conv<pads=[1,1,1,1]>(ar, w1)
        s = Add(b, ar)
        sr = Relu(s)
        p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(sr)
        c = Conv<pads=[1,1,1,1]>(p, w2)
        t = Add(c, p)
        tr = Relu(t)
        g = GlobalAveragePool(tr)
        f = Flatten(g)
        y = Gemm(f, w3)
    }""",
    w0=(6, 3, 3, 3), w1=(6, 6, 3, 3), w2=(6, 6, 3, 3), w3=(6, 4),
)  # fmt: skip
EARLY = net(
    """(float[N,3,6,6] x) => (float[N,4] early, float[N,4] late) {
        a = Conv<pads=[1,1,1,1]>(x, w0)
        ar = Relu(a)
        m = ReduceMean<axes=[2,3], keepdims=0>(ar)
        early = MatMul(m, w1)
        e = Relu(early)
        late = MatMul(e, w2)
    }""",
    w0=(6, 3, 3, 3), w1=(6, 4), w2=(4, 4),
)  # fmt: skip
STEPS = net(
    """(float[5,N,4] x) => (float[5,N,2] y) {
        a = MatMul(x, w0)
        ar = Relu(a)
        b = MatMul(ar, w1)
        br = Tanh(b)
        y = MatMul(br, w2)
    }""",
    w0=(4, 8), w1=(8, 6), w2=(6, 2),
)  # fmt: skip
"""The images are on axis 1."""
NETS = {"blocks": BLOCKS, "an early output": EARLY, "steps first": STEPS}


@pytest.fixture
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut wherever one tensor goes on."""
    monkeypatch.setattr(stages, "_SMALLER", 0.0)
    monkeypatch.setattr(stages, "_READ", -np.inf)


def opened(model: onnx.ModelProto) -> Traced:
    return free_batch(trace(model, backend=OrtBackend("cpu", 1)))


@pytest.mark.usefixtures("_everywhere")
@pytest.mark.parametrize("name", NETS)
def test_stages_give_what_the_whole_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace.Pace, "tell", lambda *_: None)
    traced = opened(NETS[name])
    part = masked_model(traced, traced.groups, {})
    rng, rows = np.random.default_rng(0), 7
    shape = [rows if axis == traced.batch_axis("x") else n for axis, n in enumerate(traced.shaped.shapes["x"])]
    feeds = {"x": rng.normal(size=shape).astype(np.float32)}
    feeds |= {mask_name(g): rng.integers(0, 2, (rows, len(g))).astype(np.float32) for g in traced.groups}
    staged, _ = open_suffix(traced, part)
    assert isinstance(staged, stages._Stages)
    assert set(staged.inputs) == set(feeds)
    found = []
    for at_once in (1, 2, 64):
        monkeypatch.setattr(pace.Pace, "rows", at_once)
        found.append(staged.run(feeds))
    for several, plain in zip(zip(*found, strict=True), traced.backend.session(part).run(feeds), strict=True):
        np.testing.assert_allclose(several[0], plain, rtol=0, atol=2e-5 * np.abs(plain).max())
        for other in several[1:]:
            np.testing.assert_array_equal(several[0], other)


def test_a_part_is_cut_where_tensors_get_small_and_nothing_goes_past(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = opened(BLOCKS)
    part = traced.shaped.graph.model
    monkeypatch.setattr(stages, "_READ", 0.0)
    assert stages._cuts(traced, part) == ["p", "g"]  # not at "ar" nor at "c", past which blocks' inputs go
    monkeypatch.setattr(stages, "_READ", -np.inf)
    monkeypatch.setattr(stages, "_SMALLER", 0.0)
    assert stages._cuts(traced, part) == ["a", "ar", "s", "sr", "p", "t", "tr", "g", "f"]


def test_a_part_is_not_cut_for_filters_that_are_small_beside_the_tensor_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = opened(BLOCKS)
    part = traced.shaped.graph.model
    assert stages._cuts(traced, part) == []  # as many rows suit all of it
    monkeypatch.setattr(stages, "CACHE", 2048)
    assert stages._cuts(traced, part) == ["p"]  # 3 KB of filters are read half as often, of the last one 96 bytes


@pytest.mark.usefixtures("_everywhere")
@pytest.mark.usefixtures("_everywhere")
def test_stages_are_given_fewer_rows_of_large_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes from stage to stage is there for all rows at once."""
    traced = opened(BLOCKS)
    part = masked_model(traced, traced.groups, {})
    size = stages.largest(traced, part)
    given = []
    for most in (1000 * size, 100 * size, size):
        monkeypatch.setattr(stages, "_BYTES", most)
        given.append(open_suffix(traced, part)[1].rows)
    assert given == [256, 100, 32]


def test_a_part_whose_rows_are_not_known_everywhere_stays_whole() -> None:
    text = """(float[N,4] x) => (float[N,6] y, float[6] z) {
        a = MatMul(x, w)
        y = Relu(a)
        z = ReduceMean<axes=[0], keepdims=0>(y)
    }"""
    traced = trace(net(text, w=(4, 6)), backend=OrtBackend("cpu", 1))
    assert stages._cuts(traced, traced.shaped.graph.model) == []
