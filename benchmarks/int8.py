"""Cut, then quantise: accuracy and bytes of a net and of its pruned form, in float32 and in int8.

    python benchmarks/int8.py [--model fashion_vgg] [--keep-macs 0.5] [--method recon]

Values and repair from models/fashion_calibration.npz, accuracy on models/fashion_test.npz; static quantisation is QDQ
with a scale a channel, calibrated on the same images, dynamic quantisation has unsigned weights. The table it last
printed: int8.md.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tables
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxshap

MODELS = Path(__file__).parent.parent / "models"


class Images(CalibrationDataReader):
    """Calibration images, 50 at a time."""

    def __init__(self, images):
        self._parts = iter(np.array_split(images, len(images) // 50))

    def get_next(self):
        """Return the next feed."""
        part = next(self._parts, None)
        return None if part is None else {"image": part}


def row(name, path, images, labels):
    """Return a row of the table: name, bytes, accuracy."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": images})[0].argmax(axis=1)
    return [name, f"{path.stat().st_size:,}", f"{100 * (found == labels).mean():.2f}"]


def main():
    """Prune, quantise, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="fashion_vgg")
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--method", default="recon")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the quantiser asks for a pre-processing that these nets do not need
    calibration, test = (dict(np.load(MODELS / f"fashion_{part}.npz")) for part in ("calibration", "test"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole, pruned, int8 = (Path(folder) / name for name in ("whole.onnx", "pruned.onnx", "int8.onnx"))
        model = onnx.load(MODELS / f"{options.model}.onnx")
        del model.graph.value_info[:]  # the dynamic quantiser does not bring them up to date
        onnx.save(model, whole)
        onnxshap.prune(whole, calibration, keep_macs=options.keep_macs, method=options.method, output=pruned)
        for name, path in (("whole", whole), (f"pruned to {options.keep_macs:.0%} of the MACs", pruned)):
            rows.append(row(f"{name}, float32", path, test["image"], test["labels"]))
            reader = Images(calibration["image"])
            quantize_static(path, int8, reader, quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=True)
            rows.append(row(f"{name}, int8 static", int8, test["image"], test["labels"]))
            quantize_dynamic(path, int8, weight_type=QuantType.QUInt8, reduce_range=True)
            rows.append(row(f"{name}, int8 dynamic", int8, test["image"], test["labels"]))
    print(f"# Int8 after the cut: {options.model}.onnx\n")
    print(tables.made_by(f"{len(test['labels']):,} images of the test set") + "\n")
    print(tables.table([options.model, "bytes", "accuracy, %"], rows))


if __name__ == "__main__":
    main()
