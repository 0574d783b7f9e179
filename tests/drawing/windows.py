"""Convolutions and pools in all their forms: one to three axes of space, strides, dilations, uneven pads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.drawing.builder import Builder, Op, Value


@dataclass(frozen=True)
class Window:
    """A window that moves over some axes: its attributes, and the sizes that it leaves."""

    kernel: tuple[int, ...]
    sizes: tuple[int, ...]
    attributes: dict[str, Any]


def _window(b: Builder, space: Sequence[int], *, most: int = 3, dilated: bool = True) -> Window:
    """Draw a window for axes of these sizes; there is none beyond them."""
    count = len(space)
    kernel = [b.integer(1, min(most, size)) for size in space]
    strides = [b.integer(1, 2) for _ in space]
    attributes: dict[str, Any] = {"strides": strides}
    if b.integer(0, 3) == 0:
        how = b.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
        out = [
            -(-size // s) if how != "VALID" else (size - k) // s + 1
            for size, k, s in zip(space, kernel, strides, strict=True)
        ]
        return Window(tuple(kernel), tuple(out), attributes | {"auto_pad": how})
    wide = [b.integer(1, 2) if dilated and 2 * (k - 1) < size else 1 for k, size in zip(kernel, space, strict=True)]
    pads = [b.integer(0, k - 1) for k in (*kernel, *kernel)]
    out = [
        (size + pads[a] + pads[a + count] - wide[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a, size in enumerate(space)
    ]
    return Window(tuple(kernel), tuple(out), attributes | {"pads": pads} | ({"dilations": wide} if dilated else {}))


def convolution(b: Builder, x: Value) -> Value:
    """A Conv over all axes but the first two, in groups now and then."""
    groups = b.divisor(x.shape[1]) if b.integer(0, 2) == 0 else 1
    made = groups * b.integer(1, max(1, 8 // groups))
    over = _window(b, x.shape[2:])
    inputs = [x.name, b.weight(made, x.shape[1] // groups, *over.kernel), *([b.weight(made)] if b.flag() else [])]
    named = {"kernel_shape": over.kernel} if b.flag() else {}
    return b.node("Conv", inputs, (x.shape[0], made, *over.sizes), group=groups, **over.attributes, **named)


def convolution_of_three_axes(b: Builder, x: Value) -> Value | None:
    """A Conv over an axis of channels that is split in two, and over height and width."""
    first = b.divisor(x.shape[1])
    deep = b.reshape(x, (x.shape[0], first, x.shape[1] // first, *x.shape[2:]))
    y = convolution(b, deep)
    return b.reshape(y, (y.shape[0], y.shape[1] * y.shape[2], *y.shape[3:]))


def transposed(b: Builder, x: Value) -> Value | None:
    """A ConvTranspose whose outputs are cut off, or told in size."""
    space = x.shape[2:]
    if max(space) > 8:
        return None
    groups = b.divisor(x.shape[1]) if b.flag() else 1
    per = b.integer(1, max(1, 6 // groups))
    kernel, strides = [b.integer(1, 3) for _ in space], [b.integer(1, 2) for _ in space]
    pads = [b.integer(0, (k - 1) // 2) for k in (*kernel, *kernel)]
    more = [b.integer(0, s - 1) for s in strides]
    out = [
        (size - 1) * strides[a] + kernel[a] - pads[a] - pads[a + len(space)] + more[a] for a, size in enumerate(space)
    ]
    inputs = [x.name, b.weight(x.shape[1], per, *kernel), *([b.weight(groups * per)] if b.flag() else [])]
    shape = (x.shape[0], groups * per, *out)
    given: dict[str, Any] = {"pads": pads, "output_padding": more}
    if min(out) < 1:
        return None
    if not any(more) and b.integer(0, 3) == 0:
        given = {"output_shape": out}
    return b.node("ConvTranspose", inputs, shape, group=groups, strides=strides, kernel_shape=kernel, **given)


def pooling(b: Builder, x: Value) -> Value | None:
    """A pool with pads, strides and dilations."""
    if max(x.shape[2:]) > 16:
        return None
    kind = b.one_of(["MaxPool", "AveragePool", "LpPool"])
    over = _window(b, x.shape[2:], dilated=kind == "MaxPool" and b.opset >= 10)
    more = {"count_include_pad": b.integer(0, 1)} if kind == "AveragePool" else {}
    # onnxruntime counts windows that are nothing but pads as it likes
    shape = (*x.shape[:2], *over.sizes)
    return b.node(kind, [x.name], shape, kernel_shape=over.kernel, **over.attributes, **more)


def pool_of_all(b: Builder, x: Value) -> Value:
    """One position for all."""
    kind = b.one_of(["GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"])
    return b.node(kind, [x.name], (*x.shape[:2], *[1] * (x.rank - 2)))


def unpooled(b: Builder, x: Value) -> Value | None:
    """Maxima put back where they were, something done to them in between."""
    if min(x.shape[2:]) < 2 or b.opset < 11:
        return None
    small = (*x.shape[:2], *(s // 2 for s in x.shape[2:]))
    if any(s % 2 for s in x.shape[2:]):
        return None
    given = {"kernel_shape": [2] * len(small[2:]), "strides": [2] * len(small[2:])}
    best, places = b.node_of("MaxPool", [x.name], [small, small], **given)
    best = b.node(b.one_of(["Relu", "Tanh"]), [best.name], small)
    return b.node("MaxUnpool", [best.name, places.name], x.shape, **given)


def deformed(b: Builder, x: Value) -> Value | None:
    """Taps that are moved by what a Conv says."""
    if b.opset < 19:
        return None
    made, k = b.integer(1, 6), b.one_of([1, 3])
    offsets = b.node("Conv", [x.name, b.weight(2 * k * k, x.shape[1], k, k)], (x.shape[0], 2 * k * k, *x.shape[2:]),
                     pads=[k // 2] * 4)  # fmt: skip
    small = b.node("Tanh", [offsets.name], offsets.shape)
    inputs = [x.name, b.weight(made, x.shape[1], k, k), small.name, *([b.weight(made)] if b.flag() else [])]
    return b.node("DeformConv", inputs, (x.shape[0], made, *x.shape[2:]), pads=[k // 2] * 4)


def sampled(b: Builder, x: Value) -> Value | None:
    """Space sampled where a Conv says."""
    if b.opset < 16:
        return None
    places = b.node("Conv", [x.name, b.weight(2, x.shape[1], 1, 1)], (x.shape[0], 2, *x.shape[2:]))
    grid = b.transpose(b.node("Tanh", [places.name], places.shape), [0, 2, 3, 1])
    return b.node(b.one_of(["GridSample", "com.microsoft.GridSample"]), [x.name, grid.name], x.shape)


def resized(b: Builder, x: Value) -> Value | None:
    """Space by scales or sizes, of all axes or of those alone, smoothly or not."""
    if max(x.shape[2:]) > 8 or b.opset < 13:
        return None
    smooth = {"mode": b.one_of(["nearest", "linear"])}
    out = [b.integer(1, 2) * size for size in x.shape[2:]]
    shape = (*x.shape[:2], *out)
    if b.opset >= 18 and b.flag():
        return b.node("Resize", [x.name, "", "", b.constant(out)], shape, axes=[2 - x.rank, 3 - x.rank], **smooth)
    if b.batch and b.flag():
        return b.node("Resize", [x.name, "", "", b.constant(shape)], shape, **smooth)
    scales = [1, 1, *(new / old for new, old in zip(out, x.shape[2:], strict=True))]
    return b.node("Resize", [x.name, "", b.constant(scales, np.float32)], shape, **smooth)


def fused_conv(b: Builder, x: Value) -> Value:
    """A Conv with its activation, as runtimes write it."""
    made = b.integer(1, 8)
    inputs = [x.name, b.weight(made, x.shape[1], 1, 1), b.weight(made)]
    kind, given = b.one_of([("Relu", []), ("LeakyRelu", [0.1]), ("Clip", [0.0, 1.0]), ("HardSigmoid", [0.2, 0.5])])
    shape = (x.shape[0], made, *x.shape[2:])
    more = {"activation_params": given} if given else {}
    return b.node("com.microsoft.FusedConv", inputs, shape, activation=kind, **more)


SPACE: tuple[Op, ...] = (convolution, convolution, transposed, pooling, pool_of_all, unpooled)
IMAGES: tuple[Op, ...] = (*SPACE, convolution_of_three_axes, deformed, sampled, resized, fused_conv)
