"""Ops that read an image between its pixels.

Resize is a matrix an axis, whatever its mode: the one that onnxruntime applies, read off what it makes of the unit
vectors. torch's own runs where the two are the same by definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onnxshap.backend import OrtBackend
from onnxshap.core import Array
from onnxshap.distill.ops.base import OPSET, OUTPUTS, Op, ints, unknown

_MODES = {"linear": "bilinear", "cubic": "bicubic", "bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest"}
"""ONNX's names, of any version, and torch's."""
_FIRST, _LATEST, _IR = 10, 19, 9
"""What Upsample and a Resize of opset 10 can be said in, and one of any later version."""


@cache
def _matrix(size: int, new: int, scale: float | None, opset: int, attributes: tuple[tuple[str, Any], ...]) -> Array:
    """Return what Resize multiplies an axis by, float32[new, size]; `scale` where that is what it is given."""
    told = np.array([size, 1, 1, new]) if scale is None else np.array([1, 1, 1, scale], np.float32)
    names = ["x", "", "", "told"] if scale is None else ["x", "told"] if opset == _FIRST else ["x", "", "told"]
    node = helper.make_node("Resize", names, ["y"], **dict(attributes))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 1, 1, size])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, 1, 1, new])
    graph = helper.make_graph([node], "resize", [given], [made], [numpy_helper.from_array(told, "told")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR)
    (found,) = OrtBackend("cpu", 1).session(model).run({"x": np.eye(size, dtype=np.float32)[:, None, None]})
    return np.ascontiguousarray(found.reshape(size, new).T)


def _resize(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x = i[0]
    given = {key: value for key, value in a.items() if key not in (OPSET, OUTPUTS, "axes", "scales")}
    opset = _FIRST if a[OPSET] <= _FIRST else _LATEST
    axes = [axis % x.ndim for axis in a.get("axes", range(x.ndim))]
    scales, sizes = list[float | None](), list[int]()
    if len(i) > 3 and i[3] is not None:
        scales, sizes = [None] * len(axes), ints(i[3])
    else:
        factors = a["scales"] if "scales" in a else (i[2] if len(i) > 2 else i[1]).tolist()
        # the runtime multiplies in float32: 10 times .7 is 7 there, and a little less than that in float64
        lengths = np.array([x.shape[axis] for axis in axes], np.float32) * np.array(factors, np.float32)
        scales, sizes = list(factors), [int(length) for length in lengths]
    transform = given.get("coordinate_transformation_mode", "half_pixel" if opset == _LATEST else "asymmetric")
    if transform == "tf_crop_and_resize" or given.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise unknown("Resize of a part of the image, or of as much as its aspect ratio lets")
    exact = all(s is None or x.shape[axis] * s == new for axis, s, new in zip(axes, scales, sizes, strict=True))
    others = sizes[: len(axes) - 2] == [x.shape[axis] for axis in axes[:-2]]
    plain = exact and others and x.ndim == 4 and axes[-2:] == [2, 3]
    mode = given.get("mode", "nearest")
    if plain and mode == "linear" and transform in ("half_pixel", "align_corners") and not given.get("antialias", 0):
        return F.interpolate(x, sizes[-2:], mode="bilinear", align_corners=transform == "align_corners")
    for axis, scale, new in zip(axes, scales, sizes, strict=True):
        if new != x.shape[axis] or scale not in (None, 1.0):
            matrix = torch.from_numpy(_matrix(x.shape[axis], new, scale, opset, tuple(sorted(given.items()))))
            if mode == "nearest":
                x = x.index_select(axis, matrix.argmax(1).to(x.device))
            else:
                x = (x.movedim(axis, -1) @ matrix.T.to(x)).movedim(-1, axis)
    return x


def _grid_sample(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    mode, outside = a.get("mode", "linear"), a.get("padding_mode", "zeros")
    return F.grid_sample(i[0], i[1], _MODES[mode], outside, bool(a.get("align_corners", 0)))


SAMPLING: Mapping[str, Op] = {
    "Resize": _resize,
    "Upsample": _resize,
    "GridSample": _grid_sample,
    "com.microsoft.GridSample": _grid_sample,
}
