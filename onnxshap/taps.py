"""Which input position meets which kernel tap: convolution as rows of a regression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxshap.core import Array, IntArray


def same_pads(mode: str, size: int, out: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the padding before and after an axis of a window op whose auto_pad is SAME_UPPER or SAME_LOWER.

    >>> same_pads("SAME_UPPER", 5, 3, kernel=4, stride=2, dilation=1)
    (1, 2)
    """
    total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
    before = (total + (mode == "SAME_LOWER")) // 2
    return before, total - before


def paddings(attributes: Mapping[str, Any], sizes: Sequence[tuple[int, int, int, int, int]]) -> list[int]:
    """Return the padding before each axis, of (input, output, kernel, stride, dilation) each, for a Conv."""
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(attributes.get("pads", [0] * 2 * len(sizes)))[: len(sizes)]
    if mode == "VALID":
        return [0] * len(sizes)
    return [same_pads(mode, *axis)[0] for axis in sizes]


def croppings(attributes: Mapping[str, Any], sizes: Sequence[tuple[int, int, int, int, int]]) -> list[int]:
    """Return the padding before each axis, of (input, output, kernel, stride, dilation) each, for a ConvTranspose."""
    rank = len(sizes)
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID") and "output_shape" not in attributes:
        return list(attributes.get("pads", [0] * 2 * rank))[:rank]
    # the padding follows from the output's size (ONNX ConvTranspose, "pads can be auto generated")
    extra = list(attributes.get("output_padding", [0] * rank))
    natural = [s * (i - 1) + e + (k - 1) * d + 1 for (i, _, k, s, d), e in zip(sizes, extra, strict=True)]
    totals = [max(0, whole - o) for whole, (_, o, *_) in zip(natural, sizes, strict=True)]
    return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]


def taps(
    op_type: str, attributes: Mapping[str, Any], source: Sequence[int], target: Sequence[int], kernel: Sequence[int]
) -> IntArray:
    """Return which flat input position each tap of each flat output position reads.

    Args:
        op_type: Conv or ConvTranspose.
        attributes: its attributes.
        source: spatial sizes of the input.
        target: spatial sizes of the output.
        kernel: spatial sizes of the kernel.

    Returns:
        int64[prod(target), prod(kernel)]; prod(source) where a tap reads padding.

    >>> taps("Conv", {"pads": [1, 1]}, [3], [3], [3]).tolist()
    [[3, 0, 1], [0, 1, 2], [1, 2, 3]]
    >>> taps("ConvTranspose", {"strides": [2]}, [2], [4], [2]).tolist()
    [[0, 2], [2, 0], [1, 2], [2, 1]]
    """
    rank = len(source)
    strides = list(attributes.get("strides", [1] * rank))
    dilations = list(attributes.get("dilations", [1] * rank))
    sizes = list(zip(source, target, kernel, strides, dilations, strict=True))
    before = paddings(attributes, sizes) if op_type == "Conv" else croppings(attributes, sizes)
    axes = []
    for (size, out, k, s, d), pad in zip(sizes, before, strict=True):
        position, tap = np.arange(out)[:, None], np.arange(k)[None, :] * d
        if op_type == "Conv":
            read = position * s + tap - pad
            valid = (read >= 0) & (read < size)
        else:
            read, rest = np.divmod(position + pad - tap, s)
            valid = (rest == 0) & (read >= 0) & (read < size)
        axes.append((read, valid))
    flat = np.zeros([1] * 2 * rank, np.int64)
    inside = np.ones([1] * 2 * rank, np.bool_)
    for axis, ((read, valid), step) in enumerate(
        zip(axes, [math.prod(source[a + 1 :]) for a in range(rank)], strict=True)
    ):
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = read.shape
        flat = flat + read.reshape(shape) * step
        inside = inside & valid.reshape(shape)
    total = math.prod(source)
    return np.where(inside, flat, total).reshape(math.prod(target), math.prod(kernel))


def patches(x: Array, reads: IntArray) -> Array:
    """Return [images, channels, positions, taps] of [images, channels, ...space], zeros where `reads` says padding."""
    flat = x.reshape(*x.shape[:2], -1)
    padding = reads >= flat.shape[2]
    if not flat.shape[2]:
        return np.zeros((*flat.shape[:2], *reads.shape), x.dtype)
    found = flat[:, :, np.where(padding, 0, reads)]  # a copy of few positions, and none of all that x holds
    found[:, :, padding] = 0
    return found
