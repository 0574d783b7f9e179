"""Real models, cut at random: masked == rewritten == zeroed; and what pruning does to trained ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import onnxshap
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch
from onnxshap.masking import mask_name
from onnxshap.progress import silent
from onnxshap.scoring import Rules
from onnxshap.valuing import Scoring, work_of
from onnxshap.verify import compare
from tests.rendered import text_lines
from tests.zeroing import relative_error, run, zeroed

MODELS = Path(__file__).parent.parent / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SMALL = ("light_inception_v1", "light_shufflenet", "light_squeezenet")
LARGE = (
    *("light_bvlc_alexnet", "light_densenet121", "light_inception_v2", "light_resnet50", "light_vgg19"),
    "light_zfnet512",
)
TEXT_DIRECTION = "ch_ppocr_mobile_v2.0_cls_infer"
TOLERANCE = 1e-4
"""Rounding of nets of fifty layers with random weights, relative to the largest output (light_shufflenet: 2e-5)."""


def third_party(name: str) -> Path:
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is None or not found.submodule_search_locations:
        pytest.skip("rapidocr-onnxruntime is not installed (pip install --no-deps rapidocr-onnxruntime==1.4.4)")
    return Path(found.submodule_search_locations[0]) / "models" / f"{name}.onnx"


def light_net(name: str) -> ModelProto:
    """Return a net of the onnx wheel; it ships with one constant a tensor, so the weights are redrawn."""
    model = onnx.load(LIGHT / f"{name}.onnx")
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "ConstantOfShape"]:
        shape = shapes[node.input[0]]
        if len(shape) > 1:
            values = rng.normal(size=shape) * np.sqrt(1.5 / np.prod(shape[1:]))
        else:
            values = rng.uniform(0.5, 1.5, shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    model.ir_version = 8
    return model


def random_plan(traced: onnxshap.Traced, share: float, seed: int) -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    candidates = [(g, rng.random(len(g))) for g in traced.groups]
    from onnxshap.plan import Candidate

    return onnxshap.make_plan(
        [Candidate(g.name, g.units, phi) for g, phi in candidates],
        onnxshap.Budget(units=share, multiple_of=1),
        lambda keep: {},
        traced.covers,
    )


def check(source: Path | ModelProto, share: float, shapes: dict[str, list[int | None]] | None = None) -> None:
    """Hold masked == rewritten, with zeros and with means, and rewritten == zeroed with zeros."""
    original = onnx.load(source) if isinstance(source, Path) else source
    traced = onnxshap.trace(original, input_shapes=shapes)
    free = free_batch(traced)
    rng = np.random.default_rng(1)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in traced.shaped.inputs.items()}
    keep = random_plan(traced, share, seed=2)
    masks = {mask_name(g): keep[g.name][None].astype(np.float32) for g in traced.groups}
    means = onnxshap.site_means(free, onnxshap.Dataset(feeds))
    for left in ({}, means):
        cut = onnxshap.drop_units(traced, keep, left)
        onnx.checker.check_model(cut, full_check=True)
        got = run(cut, feeds)
        assert relative_error(got, run(onnxshap.insert_masks(free, means=left), {**feeds, **masks})) < TOLERANCE
        if not left:
            slices = onnxshap.removed_slices(traced, keep)
            assert relative_error(got, run(zeroed(original, slices), feeds)) < TOLERANCE


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("name", ["fashion_vgg", "fashion_resdw", "fashion_vit"])
def test_example_nets_are_cut_exactly(name: str, share: float) -> None:
    check(MODELS / f"{name}.onnx", share)


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_third_party_net_is_cut_exactly(share: float) -> None:
    check(third_party(TEXT_DIRECTION), share, {"x": [2, 3, 48, 192]})


@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_nets_of_the_onnx_wheel_are_cut_exactly(name: str, share: float) -> None:
    check(light_net(name), share)


@pytest.mark.parametrize("name", SMALL)
def test_nets_of_the_onnx_wheel_are_cut_exactly_as_they_ship(name: str) -> None:
    check(LIGHT / f"{name}.onnx", 0.5)


@pytest.fixture(scope="module")
def turned_lines() -> Iterator[tuple[onnxshap.Dataset, onnxshap.Dataset]]:
    yield tuple(onnxshap.Dataset({"x": x}, y) for x, y in (text_lines(128, 0), text_lines(128, 1)))  # type: ignore[misc]


def test_text_direction_survives_a_quarter_of_the_macs(
    turned_lines: tuple[onnxshap.Dataset, onnxshap.Dataset],
) -> None:
    calibration, held_out = turned_lines
    result = onnxshap.prune(
        third_party(TEXT_DIRECTION), calibration, eval_data=held_out, keep_macs=0.75, method="activation"
    )
    assert result.before.score["accuracy"] > 0.9
    assert result.after.score["accuracy"] > result.before.score["accuracy"] - 0.05
    assert result.after.macs <= 0.75 * result.before.macs


@pytest.mark.parametrize("name", ["fashion_vgg", "fashion_resdw", "fashion_vit"])
def test_trained_nets_keep_their_accuracy_at_half_the_macs(name: str) -> None:
    result = onnxshap.prune(
        MODELS / f"{name}.onnx",
        MODELS / "fashion_calibration.npz",
        eval_data=MODELS / "fashion_test.npz",
        keep_macs=0.5,
        samples=32,
    )
    assert 0.45 < result.after.macs / result.before.macs <= 0.5
    assert result.after.score["accuracy"] > result.before.score["accuracy"] - 0.05
    assert result.verified.rel_err < TOLERANCE


@pytest.mark.parametrize("name", ["fashion_vgg", "fashion_resdw", "fashion_resnet20"])
def test_folding_beats_leaving_zeros(name: str) -> None:
    """Without a refit, on images of which there are few."""
    accuracy = {}
    with np.load(MODELS / "fashion_calibration.npz") as stored:
        images = stored["image"][:100]
    for repair in ("none", "fold"):
        result = onnxshap.prune(
            MODELS / f"{name}.onnx",
            images,
            eval_data=MODELS / "fashion_test.npz",
            keep_macs=0.5,
            method="l1",
            repair=repair,
        )
        assert not result.refits
        accuracy[repair] = result.after.score["accuracy"]
    assert accuracy["fold"] > accuracy["none"] + 0.1


def test_a_large_model_is_scored_on_fewer_images_by_default() -> None:
    traced = onnxshap.trace(MODELS / "fashion_vgg.onnx")
    groups = traced.groups
    work, plain = work_of(traced, groups), Scoring("shapley", 0, Rules(), silent)
    assert work < 2 * sum(len(g) for g in groups) * traced.cost.macs(), "a row runs what lies behind its group alone"
    assert plain.images(traced, groups, None) == 128
    assert plain.images(traced, groups, 500) == 500
    assert replace(plain, work=int(50.5 * work)).images(traced, groups, None) == 50
    assert replace(plain, work=1).images(traced, groups, None) == 1
    assert replace(plain, work=1, fewest=20).images(traced, groups, None) == 20
    assert replace(plain, work=1, method="recon").images(traced, groups, None) == 1024


def test_a_game_that_would_take_hours_is_played_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = MODELS / "fashion_vgg.onnx", np.random.default_rng(0).normal(size=(20, 1, 28, 28))
    score = partial(onnxshap.score, model, images.astype(np.float32))
    assert score(max_evals=170).method == "shapley"
    monkeypatch.setattr("onnxshap.valuing.MOST", 1)
    found = score()
    assert found.method == "recon"
    assert any("method shapley insists" in note for note in found.notes)
    asked = [
        score(max_evals=170),
        score(samples=1),
        score(payoff="kl", max_evals=170),
        score(method="shapley", samples=1),
    ]
    assert [one.method for one in asked] == ["shapley"] * 4


def test_a_game_that_the_cut_would_not_heed_is_played_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refit takes units in another order than by values of less than 20 images."""
    model, images = MODELS / "fashion_vgg.onnx", np.random.default_rng(0).normal(size=(20, 1, 28, 28))
    data, told = {"image": images.astype(np.float32)}, "recon: 20 images, below which the values of shapley are noise"

    def method(**options: Any) -> str:
        result = onnxshap.prune(model, data, keep_units=0.5, **options)
        assert any(told in note for note in result.notes) == (result.scores.method == "recon")
        return result.scores.method

    assert method() == "shapley"
    assert method(max_seconds=1e-3) == "recon"
    short = onnxshap.prune(model, data, keep_units=0.5, max_seconds=1e-3)
    assert any("more than max_seconds 0.001; method shapley insists" in note for note in short.notes)
    _, *others = short.scores.values  # the first one may be begun
    assert {short.scores.values[name].stopped for name in others} == {"max-seconds"}, "its time is over, too"
    assert any("are valued by l2: no time was left for recon" in note for note in short.notes)
    hasty = onnxshap.score(model, data, method="l2").values
    assert others and all((short.scores.values[name].phi == hasty[name].phi).all() for name in others)
    traced = onnxshap.trace(model)
    work = work_of(traced, traced.groups)
    monkeypatch.setattr("onnxshap.valuing.ASIDE", 20 * work)
    assert method() == "shapley"
    monkeypatch.setattr("onnxshap.valuing.ASIDE", 20 * work - 1)
    assert method() == method(backend=OrtBackend("cpu", 2)) == "recon"
    alone = Scoring("shapley", 0, Rules(), silent)
    reached = [replace(alone, workers=w).in_reach(traced, traced.groups, refitted=True) for w in (0, 2)]
    assert [one.method for one in reached] == ["recon", "recon"], "workers change no values"
    asked: list[dict[str, Any]] = [{"repair": "none"}, {"samples": 1}, {"method": "shapley"}, {"max_evals": 400}]
    assert [method(**options) for options in asked] == ["shapley"] * 4
    swept = onnxshap.sweep(model, data, eval_data=data, keep=[0.5], allocation="uniform")
    assert swept.curves[0].method == "recon" and any(told in note for note in swept.notes)


def test_scores_of_too_few_images_to_be_heeded_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """`score` plays on where `prune`, which refits, takes recon, unless it is told to play."""
    model, images = MODELS / "fashion_vgg.onnx", np.random.default_rng(0).normal(size=(21, 1, 28, 28))
    traced = onnxshap.trace(model)
    for count in (20, 19):
        monkeypatch.setattr("onnxshap.valuing.WORK", int(count * work_of(traced, traced.groups)) + 1)
        said: list[str] = []
        found = onnxshap.score(model, images.astype(np.float32), say=said.append)
        result = onnxshap.prune(model, images.astype(np.float32), keep_units=0.5, method="shapley")
        assert found.images == result.scores.images == count
        for notes in (said, found.notes, result.notes):
            assert any("the time is for 19 images (samples)" in note for note in notes) == (count < 20)
    assert not any("--" in note for note in (*said, *result.notes))


def test_an_output_that_is_nothing_but_rounding_is_no_difference() -> None:
    """The mean of what a layer norm gives is zero; beside it an output of thousands."""
    rounding, large = np.array([[3e-8, -2e-8]], np.float32), np.array([[4e3, -4e3]], np.float32)
    found = compare([2 * rounding, large + 0.01], [rounding, large], [rounding, large])
    assert found.max_abs_err > 1e-3 and found.rel_err < 1e-5
    assert compare([rounding + 1e-4, large], [rounding, large], [rounding, large]).rel_err > 1e-3


def test_one_image_whose_codes_tipped_is_not_typical() -> None:
    wanted = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    tipped = wanted.copy()
    tipped[5] += 1
    found = compare([tipped], [wanted], [wanted])
    assert found.rel_err > 0.1 and found.typical == 0
    assert compare([wanted + 1], [wanted], [wanted]).typical > 0.1


def test_rounding_of_a_saturated_output_is_no_difference() -> None:
    # random inputs drive the text detector's Sigmoid to about -36: float32 rounding is all that shows
    result = onnxshap.prune(
        third_party("ch_PP-OCRv4_det_infer"), keep_macs=0.5, method="l2", input_shapes={"x": [1, 3, 96, 96]}
    )
    assert result.verified.max_abs_err < TOLERANCE
