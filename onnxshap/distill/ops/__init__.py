"""ONNX ops as torch functions, by what they do: of their inputs (None where left out) and their attributes."""

from collections.abc import Mapping

from onnxshap.distill.ops.base import OPSET, OUTPUTS, Op, clipped
from onnxshap.distill.ops.fused import FUSED
from onnxshap.distill.ops.layout import LAYOUT
from onnxshap.distill.ops.numbers import NUMBERS
from onnxshap.distill.ops.recurrent import RECURRENT
from onnxshap.distill.ops.sampling import SAMPLING
from onnxshap.distill.ops.selection import SELECTION
from onnxshap.distill.ops.windows import WINDOWS

OPS: Mapping[str, Op] = {**WINDOWS, **SAMPLING, **LAYOUT, **SELECTION, **NUMBERS, **RECURRENT, **FUSED}
"""Op type (`domain.type` outside the default domain) -> its function."""

__all__ = ["OPS", "OPSET", "OUTPUTS", "Op", "clipped"]
