"""Model-local functions: the nodes that they stand for."""

from __future__ import annotations

import re

import onnx.inliner
from onnx import ModelProto

from onnxshap.errors import ModelError, first_line

_PLACE = re.compile(r"\S*\.cc:\d+: \w+: Assertion `[^`]*` failed: ")
"""Where in its sources onnx gave up: nothing that a user can use."""


def without_functions(model: ModelProto) -> ModelProto:
    """Return a model in which functions are inlined; one that has none is returned as it is.

    onnxruntime crashes on some as it loads them (SimplifiedLayerNormalization in one).

    Raises:
        ModelError: they cannot be, for calls that do not fit or do not end.
    """
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        reason = first_line(RuntimeError(_PLACE.sub("", str(error))))
        raise ModelError(f"the functions of the model cannot be inlined: {reason}") from error
