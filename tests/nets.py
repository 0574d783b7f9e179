"""Nets that several files of tests cut, and images for them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from onnxshap import Dataset

SMALL = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 4, 4] image) => (float[N, 4] scores)
{
  [first] first_out = Conv <pads = [1, 1, 1, 1]> (image, first_w, first_b)
  active = Relu (first_out)
  pooled = GlobalAveragePool (active)
  flat = Flatten (pooled)
  [last] scores = Gemm <transB = 1> (flat, last_w, last_b)
}"""

RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,6,6] x) => (float[N,4] y) {
  a = Conv<pads=[1,1,1,1]>(x, wa, ba)
  ar = Relu(a)
  b = Conv<pads=[1,1,1,1]>(ar, wb, bb)
  s = Add(b, ar)
  sr = Relu(s)
  m = ReduceMean<axes=[2,3], keepdims=0>(sr)
  y = Gemm(m, wc, bc)
}
"""
_SHAPES = {"wa": (8, 3, 3, 3), "ba": (8,), "wb": (8, 8, 3, 3), "bb": (8,), "wc": (8, 4), "bc": (4,)}


def small() -> onnx.ModelProto:
    """A convolution of 8 units, a linear layer of 4 classes."""
    rng = np.random.default_rng(5)
    model = onnx.parser.parse_model(SMALL)
    shapes = {"first_w": (8, 3, 3, 3), "first_b": (8,), "last_w": (4, 8), "last_b": (4,)}
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def residual(twins: bool = False, batch: int | None = None) -> onnx.ModelProto:
    """Return a residual net; with `twins` the first layer's channels come in equal pairs."""
    text = RESIDUAL.replace("[N,", f"[{batch},") if batch else RESIDUAL
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(1)
    for name, shape in _SHAPES.items():
        values = rng.normal(size=shape).astype(np.float32)
        if twins and name in ("wa", "ba"):
            values[1::2] = values[::2]
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def images(count: int = 60) -> Dataset:
    """Return random images."""
    return Dataset({"x": np.random.default_rng(2).normal(size=(count, 3, 6, 6)).astype(np.float32)}, None, "random")
