"""What it takes that activations do not fit into the memory, told before it is spent."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from onnx import ModelProto

import onnxshap
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, runs_past
from onnxshap.core import Dataset
from onnxshap.opening import open_model
from tests.exactness import net

LAYERS = 9


def chain() -> ModelProto:
    """Return layers of equal work, one after the other."""
    layers = "\n".join(f"h{k + 1} = Conv(r{k}, w{k}) r{k + 1} = Relu(h{k + 1})" for k in range(LAYERS))
    weights = {f"w{k}": (4, 4, 1, 1) for k in range(LAYERS)}
    return net(
        f"(float[N,4,8,8] x) => (float[N,4,8,8] y) {{ r0 = Relu(x) {layers} y = Relu(r{LAYERS}) }}",
        **weights,  # type: ignore[arg-type]
    )


def images() -> Dataset:
    return Dataset({"x": np.random.default_rng(0).normal(size=(24, 4, 8, 8)).astype(np.float32)}, None, "random")


@pytest.mark.parametrize(("tensors", "runs"), [(None, LAYERS - 1), (1, LAYERS - 1), (0, LAYERS * (LAYERS - 1) / 2)])
def test_without_memory_every_layer_is_run_again_for_each_behind_it(tensors: int | None, runs: float) -> None:
    traced, _ = open_model(chain(), images(), backend=OrtBackend("cpu", 1))
    free, each = free_batch(traced), 24 * 4 * 8 * 8 * 4
    stops = [site.tensor for site in free.sites(free.groups)]
    assert len(stops) == LAYERS - 1
    found, held = runs_past(free, stops, images(), sys.maxsize if tensors is None else tensors * each)
    assert found == pytest.approx(runs / LAYERS)
    assert held == (0 if tensors == 0 else each)


@pytest.mark.parametrize(("memory", "told"), [(1000, True), (2**30, False)])
def test_a_refit_tells_that_a_larger_memory_takes_less_time(memory: int, told: bool) -> None:
    heard: list[str] = []
    found = onnxshap.prune(
        chain(), images(), keep_macs=0.5, method="l1", allocation="uniform", backend=OrtBackend("cpu", 1, memory),
        say=heard.append,
    )  # fmt: skip
    for texts in (heard, found.notes):
        assert any("runs the model some 4 times over; --memory 1G" in text for text in texts) == told
