"""Games of random nets: what a coalition is worth is what the masked file gives for its image alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx.printer
import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxshap import payoffs
from onnxshap.calibrate import by_image, free_batch, run_all, site_means
from onnxshap.core import CoalitionMatrix, FloatArray, ImageIndex
from onnxshap.data import feeds_of
from onnxshap.estimators.rows import removals
from onnxshap.game import GroupGame, Setting, stages, walks, winograd
from onnxshap.groups import Group
from onnxshap.masking import insert_masks, mask_name
from onnxshap.tracing import trace
from tests.drawing import nets
from tests.exactness import as_images, random_feeds
from tests.zeroing import run

TOLERANCE = 1e-4
"""Of the range of what is compared: payoffs are squares, and sums are made in other orders."""


def one_by_one(setting: Setting, group: Group, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
    """Return the payoffs of rows, each a run of the masked file on its image alone."""
    model = insert_masks(setting.traced, [group], setting.means)
    found = []
    for image, coalition in zip(images.tolist(), coalitions, strict=True):
        fed = feeds_of(setting.data.take(np.array([image])).inputs, setting.traced.shaped.batch_axes)
        outputs = by_image(setting.traced, run(model, fed | {mask_name(group): coalition[None]}))
        reference = [value[image : image + 1] for value in setting.reference]
        found.append(setting.payoff(outputs, reference, None)[0])
    return np.array(found)


@pytest.fixture(autouse=True, scope="module")
def _always() -> Iterator[None]:
    """Small nets are not worth running sums, stages and convolutions of fewer multiplications."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walks, "_LEAST_WORK", 0)
        patch.setattr(winograd, "_GAIN", 0.0)
        patch.setattr(winograd, "_CHANNELS", 0)
        patch.setattr(winograd, "_LEAST_PACKED", 0)
        patch.setattr(stages, "_SMALLER", 0.0)
        patch.setattr(stages, "_READ", -np.inf)
        yield


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=nets(most=6), seed=st.integers(0, 9), filled=st.booleans())
def test_payoffs_are_those_of_the_masked_file_image_by_image(model: ModelProto, seed: int, filled: bool) -> None:
    note(onnx.printer.to_text(model))
    rng, traced = np.random.default_rng(seed), free_batch(trace(model))
    # onnxruntime rounds what is multiplied with int8 weights, in other blocks where units are removed one by one
    assume(not any(node.op_type == "DequantizeLinear" for node in traced.shaped.graph.nodes))
    # without any unit all positions may hold the same mean: which is the largest is a matter of rounding
    assume(not traced.labels.trace.numbers)
    assume(traced.groups and traced.shaped.free_batch and not traced.labels.trace.shares_ranges)
    data = as_images(traced, random_feeds(model, traced.shaped.inputs, seed).inputs)
    reference = run_all(traced, traced.shaped.graph.model, data)
    payoff = payoffs.choose("mse", reference, None, traced.outputs)
    setting = Setting(traced, data, payoff, reference, site_means(traced, data) if filled else {})
    group = traced.groups[int(rng.integers(len(traced.groups)))]
    game = GroupGame(setting, group)
    images = rng.integers(0, len(data), 6)
    coalitions = (rng.random((6, len(group))) < 0.6).astype(np.float32)
    coalitions[:2] = np.array([[1], [0]])
    wanted = one_by_one(setting, group, images, coalitions)
    scale = max(float(np.abs(wanted).max()), 1e-3)
    np.testing.assert_allclose(game(images, coalitions), wanted, atol=TOLERANCE * scale)

    order = rng.permutation(len(group))[None]
    steps = np.ones((len(group), len(group)), np.float32)
    for k, unit in enumerate(order[0]):
        steps[k:, unit] = 0
    found = removals(game, images[:1], order)[0]
    np.testing.assert_allclose(found, one_by_one(setting, group, images[:1].repeat(len(group)), steps),
                               atol=TOLERANCE * scale)  # fmt: skip
