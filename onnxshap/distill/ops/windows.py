"""Ops that look at a window of an image, or make it larger or smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from onnxshap.distill.ops.base import Op, padded
from onnxshap.taps import croppings, same_pads


def _window(x: Tensor, a: Mapping[str, Any], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return strides, dilations and explicit pads of a Conv or pool."""
    rank = len(kernel)
    strides, dilations = list(a.get("strides", [1] * rank)), list(a.get("dilations", [1] * rank))
    mode = a.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return strides, dilations, list(a.get("pads", [0] * 2 * rank))
    if mode == "VALID":
        return strides, dilations, [0] * 2 * rank
    axes = zip(x.shape[2:], kernel, strides, dilations, strict=True)
    pads = [same_pads(mode, size, -(-size // s), k, s, d) for size, k, s, d in axes]
    return strides, dilations, [before for before, _ in pads] + [after for _, after in pads]


def _conv(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, w, bias = i[0], i[1], i[2] if len(i) > 2 else None
    strides, dilations, pads = _window(x, a, w.shape[2:])
    rank = len(strides)
    padding: list[int] | int = 0
    if pads[:rank] == pads[rank:]:
        padding = pads[:rank]
    else:
        x = padded(x, pads)
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(x, w, bias, strides, padding, dilations, int(a.get("group", 1)))


def _conv_transpose(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, w, bias = i[0], i[1], i[2] if len(i) > 2 else None
    rank = w.ndim - 2
    strides, dilations = list(a.get("strides", [1] * rank)), list(a.get("dilations", [1] * rank))
    extra, groups = list(a.get("output_padding", [0] * rank)), int(a.get("group", 1))
    pads = list(a.get("pads", [0] * 2 * rank))
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    given = "output_shape" in a or a.get("auto_pad", "NOTSET").startswith("SAME")
    if not given and pads[:rank] == pads[rank:]:
        return run(x, w, bias, strides, pads[:rank], extra, groups, dilations)
    whole = padded(run(x, w, None, strides, 0, 0, groups, dilations), [0] * rank + extra)
    axes = list(zip(x.shape[2:], whole.shape[2:], w.shape[2:], strides, dilations, strict=True))
    sizes = [o - b - e for (_, o, *_), b, e in zip(axes, pads[:rank], pads[rank:], strict=True)]
    if given:
        sizes = list(a["output_shape"])[-rank:] if "output_shape" in a else [min(i * s, o) for i, o, _, s, _ in axes]
    before = croppings(a, [(i, o, k, s, d) for (i, _, k, s, d), o in zip(axes, sizes, strict=True)])
    after = [size + start - o for start, size, (_, o, *_) in zip(before, sizes, axes, strict=True)]
    whole = padded(whole, [-start for start in before] + after)
    return whole if bias is None else whole + bias.reshape(-1, *[1] * rank)


def _max_pool(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    kernel = list(a["kernel_shape"])
    strides, dilations, pads = _window(i[0], a, kernel)
    x = padded(i[0], pads, -torch.inf)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return run(x, kernel, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def _average_pool(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    kernel = list(a["kernel_shape"])
    strides, _, pads = _window(i[0], a, kernel)
    run: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(a.get("ceil_mode", 0))
    total = run(padded(i[0], pads), kernel, strides, 0, ceil)
    if a.get("count_include_pad", 0) or not any(pads):
        return total
    return total / run(padded(torch.ones_like(i[0]), pads), kernel, strides, 0, ceil)


def _depth_to_space(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    n, c, h, w = i[0].shape
    b = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(i[0], b)
    return i[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    n, c, h, w = i[0].shape
    b = a["blocksize"]
    return i[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


WINDOWS: Mapping[str, Op] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda i, a: i[0].mean(dim=list(range(2, i[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda i, a: i[0].amax(dim=list(range(2, i[0].ndim)), keepdim=True),
    "LRN": lambda i, a: F.local_response_norm(
        i[0], a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)
    ),
    "GlobalLpPool": lambda i, a: torch.linalg.vector_norm(
        i[0], a.get("p", 2), dim=list(range(2, i[0].ndim)), keepdim=True
    ),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
