"""ONNX ops as torch functions, by what they do: of their inputs (None where left out) and their attributes."""

from collections.abc import Mapping

from onnxshap.distill.ops.base import Op, clipped
from onnxshap.distill.ops.layout import LAYOUT
from onnxshap.distill.ops.numbers import NUMBERS
from onnxshap.distill.ops.recurrent import RECURRENT
from onnxshap.distill.ops.windows import WINDOWS

OPS: Mapping[str, Op] = {**WINDOWS, **LAYOUT, **NUMBERS, **RECURRENT}

__all__ = ["OPS", "Op", "clipped"]
