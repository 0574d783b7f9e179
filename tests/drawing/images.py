"""What is drawn behind [images, channels, height, width]."""

from __future__ import annotations

import numpy as np

from tests.drawing.anywhere import scale_or_shift, unary
from tests.drawing.builder import Builder, Op, Value
from tests.drawing.sequences import gemm


def conv(b: Builder, x: Value) -> Value:
    groups = b.divisor(x.shape[1]) if b.flag() else 1
    out = groups * b.integer(1, max(1, 10 // groups))
    k = b.one_of([1, 3]) if min(x.shape[2:]) >= 2 else 1
    inputs = [x.name, b.weight(out, x.shape[1] // groups, k, k)]
    if b.flag():
        inputs.append(b.weight(out))
    shape = (x.shape[0], out, *x.shape[2:])
    return b.node("Conv", inputs, shape, group=groups, pads=[k // 2] * 4)


def conv_transpose(b: Builder, x: Value) -> Value | None:
    if max(x.shape[2:]) > 8:
        return None
    groups = b.divisor(x.shape[1]) if b.flag() else 1
    per = b.integer(1, max(1, 8 // groups))
    inputs = [x.name, b.weight(x.shape[1], per, 2, 2)]
    if b.flag():
        inputs.append(b.weight(groups * per))
    shape = (x.shape[0], groups * per, *(2 * s for s in x.shape[2:]))
    return b.node("ConvTranspose", inputs, shape, group=groups, strides=[2, 2])


def depthwise(b: Builder, x: Value) -> Value:
    times = b.integer(1, 2)
    out = times * x.shape[1]
    shape = (x.shape[0], out, *x.shape[2:])
    return b.node("Conv", [x.name, b.weight(out, 1, 3, 3), b.weight(out)], shape, group=x.shape[1], pads=[1] * 4)


def dealt(b: Builder, x: Value) -> Value:
    """A grouped Conv whose channels are dealt out to all groups of the next (ShuffleNet)."""
    groups = b.one_of([g for g in (1, 2, 3) if x.shape[1] % g == 0])
    first, second = b.integer(2, 3), b.integer(2, 3)
    wide = first * second * b.integer(1, 2) * groups
    y = b.node(
        "Conv", [x.name, b.weight(wide, x.shape[1] // groups, 1, 1)], (x.shape[0], wide, *x.shape[2:]), group=groups
    )
    y = b.one_of([unary, batch_norm, depthwise, scale_or_shift])(b, y)
    wide = y.shape[1]
    apart = b.reshape(y, (y.shape[0], first, wide // first, *y.shape[2:]))
    y = b.reshape(b.transpose(apart, [0, 2, 1, 3, 4]), y.shape)
    out = second * b.integer(1, 3)
    weight = b.weight(out, wide // second, 1, 1)
    return b.node("Conv", [y.name, weight], (y.shape[0], out, *y.shape[2:]), group=second)


def batch_norm(b: Builder, x: Value) -> Value:
    c = x.shape[1]
    inputs = [x.name, b.weight(c), b.weight(c), b.weight(c), b.weight(c, positive=True)]
    return b.node("BatchNormalization", inputs, x.shape)


def instance_norm(b: Builder, x: Value) -> Value:
    return b.node("InstanceNormalization", [x.name, b.weight(x.shape[1]), b.weight(x.shape[1])], x.shape, epsilon=0.1)


def pool(b: Builder, x: Value) -> Value | None:
    if min(x.shape[2:]) < 2:
        return None
    shape = (*x.shape[:2], *(s // 2 for s in x.shape[2:]))
    return b.node(b.one_of(["MaxPool", "AveragePool"]), [x.name], shape, kernel_shape=[2, 2], strides=[2, 2])


def global_pool(b: Builder, x: Value) -> Value:
    return b.node(b.one_of(["GlobalAveragePool", "GlobalMaxPool"]), [x.name], (*x.shape[:2], 1, 1))


def resize(b: Builder, x: Value) -> Value | None:
    if max(x.shape[2:]) > 8:
        return None
    scales = b.constant([1, 1, 2, 2], np.float32)
    roi = b.constant([], np.float32) if b.opset < 13 else ""
    return b.node("Resize", [x.name, roi, scales], (*x.shape[:2], *(2 * s for s in x.shape[2:])))


def excite(b: Builder, x: Value) -> Value:
    inner = b.integer(1, 4)
    s = b.node("GlobalAveragePool", [x.name], (*x.shape[:2], 1, 1))
    s = b.node("Conv", [s.name, b.weight(inner, x.shape[1], 1, 1), b.weight(inner)], (x.shape[0], inner, 1, 1))
    s = b.node("Relu", [s.name], s.shape)
    s = b.node("Conv", [s.name, b.weight(x.shape[1], inner, 1, 1)], (*x.shape[:2], 1, 1))
    return b.node("Mul", [x.name, b.node("Sigmoid", [s.name], s.shape).name], x.shape)


def depth_to_space(b: Builder, x: Value) -> Value | None:
    n, c, h, w = x.shape
    if c % 4 or h > 8:
        return None
    return b.node("DepthToSpace", [x.name], (n, c // 4, 2 * h, 2 * w), blocksize=2, mode=b.one_of(["DCR", "CRD"]))


def columns_to_image(b: Builder, x: Value) -> Value | None:
    n, c, h, w = x.shape
    if c % 4 or h > 8 or b.opset < 18:
        return None
    step = b.integer(1, 2)
    image = (step * (h - 1) + 2, step * (w - 1) + 2)
    columns = b.reshape(x, (n, c, h * w))
    inputs = [columns.name, b.constant(image), b.constant([2, 2])]
    return b.node("Col2Im", inputs, (n, c // 4, *image), strides=[step, step])


def space_to_depth(b: Builder, x: Value) -> Value | None:
    n, c, h, w = x.shape
    if h % 2 or w % 2 or c > 8:
        return None
    return b.node("SpaceToDepth", [x.name], (n, 4 * c, h // 2, w // 2), blocksize=2)


def group_norm(b: Builder, x: Value) -> Value | None:
    if b.opset < 21:
        return None
    inputs = [x.name, b.weight(x.shape[1]), b.weight(x.shape[1])]
    return b.node("GroupNormalization", inputs, x.shape, num_groups=b.divisor(x.shape[1]), epsilon=0.1)


def squeezed(b: Builder, x: Value) -> Value | None:
    """All axes of size 1 at once, where the images are no such axis."""
    if x.shape[1] == 1 or b.batch != 2:
        return None
    y = global_pool(b, x)
    return b.node("Squeeze", [y.name], x.shape[:2])


def lrn(b: Builder, x: Value) -> Value:
    return b.node("LRN", [x.name], x.shape, size=3)


def to_sequence(b: Builder, x: Value) -> Value:
    """[images, channels, places], or places first."""
    y = b.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))
    return b.transpose(y, [0, 2, 1]) if b.flag() else y


def flatten(b: Builder, x: Value) -> Value | None:
    width = int(np.prod(x.shape[1:]))
    if width > 256:
        return None
    flat = b.node("Flatten", [x.name], (x.shape[0], width)) if b.flag() else b.reshape(x, (x.shape[0], width))
    return gemm(b, flat)


ANY: tuple[Op, ...] = (
    *(conv, conv, conv, conv, conv_transpose, depthwise, dealt, dealt, batch_norm, instance_norm, pool, global_pool),
    *(resize, excite, lrn, to_sequence, flatten, depth_to_space, space_to_depth, group_norm, squeezed),
    columns_to_image,
)
