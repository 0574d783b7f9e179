"""Int8 after the cut: onnxruntime.quantization takes a pruned model as it takes any other, and loses no more on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxshap
from onnxshap.core import Array

MODELS = Path(__file__).parent.parent / "models"
MARGIN = 0.01
"""Accuracy that int8 may cost, pruned or not."""


class Images(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Calibration images, 50 at a time."""

    def __init__(self, images: Array) -> None:
        self._parts = iter(np.array_split(images, max(1, len(images) // 50)))

    def get_next(self) -> dict[str, Array] | None:
        part = next(self._parts, None)
        return None if part is None else {"image": part}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The example net, and half of it."""
    folder = tmp_path_factory.mktemp("int8")
    with np.load(MODELS / "fashion_calibration.npz") as stored:
        images = stored["image"][::5]
    small = folder / "small.onnx"
    onnxshap.prune(MODELS / "fashion_vgg.onnx", images, keep_macs=0.5, method="l1", allocation="uniform", output=small)
    whole = onnx.load(MODELS / "fashion_vgg.onnx")
    del whole.graph.value_info[:]  # the dynamic quantiser does not bring them up to date
    onnx.save(whole, folder / "whole.onnx")
    logging.disable(logging.WARNING)  # the quantiser asks for a pre-processing that these nets do not need
    yield {"whole": folder / "whole.onnx", "pruned": small}
    logging.disable(logging.NOTSET)


def accuracy(path: Path) -> float:
    with np.load(MODELS / "fashion_test.npz") as stored:
        images, labels = stored["image"], stored["labels"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float((session.run(None, {"image": images})[0].argmax(axis=1) == labels).mean())


def static(source: Path, target: Path) -> None:
    with np.load(MODELS / "fashion_calibration.npz") as stored:
        reader = Images(stored["image"][::5])
    quantize_static(source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True)


def dynamic(source: Path, target: Path) -> None:
    quantize_dynamic(source, target, weight_type=QuantType.QUInt8, reduce_range=True)


@pytest.mark.parametrize("quantize", [static, dynamic])
@pytest.mark.parametrize("which", ["whole", "pruned"])
def test_int8_costs_a_pruned_model_no_more_than_the_whole(
    files: dict[str, Path], tmp_path: Path, quantize: Callable[[Path, Path], None], which: str
) -> None:
    small = tmp_path / "int8.onnx"
    quantize(files[which], small)
    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}
    assert accuracy(small) >= accuracy(files[which]) - MARGIN
    assert small.stat().st_size < 0.75 * files[which].stat().st_size
