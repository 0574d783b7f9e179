"""Positions that are picked, written, repeated or cut off, in all forms."""

from __future__ import annotations

import numpy as np

from tests.drawing.anywhere import scale_or_shift, softmax, unary
from tests.drawing.builder import Builder, Op, Value


def gather_one(b: Builder, x: Value) -> Value | None:
    """One position of an axis, which goes with it, or a table of them."""
    axis = b.integer(1, x.rank - 1)
    width = x.shape[axis]
    shape = b.one_of([(), (1, 2), (2, 1), (2, 2)])
    if not 2 <= x.rank - 1 + len(shape) <= 4:
        return None
    index = np.array([b.integer(-width, width - 1) for _ in range(int(np.prod(shape)))]).reshape(shape)
    made = (*x.shape[:axis], *shape, *x.shape[axis + 1 :])
    given = b.constant(index, b.one_of([np.int64, np.int32]))
    return b.node("Gather", [x.name, given], made, axis=axis - x.rank)


def gather_rows(b: Builder, x: Value) -> Value | None:
    """A list of positions of an axis that is turned to the front."""
    if b.opset < 12:
        return None
    axis = b.integer(1, x.rank - 1)
    perm = [axis, *(a for a in range(x.rank) if a != axis)]
    front, width = b.transpose(x, perm), x.shape[axis]
    index = [[b.integer(-width, width - 1)] for _ in range(b.integer(1, width))]
    picked = b.node("GatherND", [front.name, b.constant(index)], (len(index), *front.shape[1:]))
    return b.transpose(picked, [perm.index(a) for a in range(x.rank)])


def written(b: Builder, x: Value) -> Value | None:
    """Some positions of an axis are written anew, of images whose number is fixed."""
    if not b.batch or b.opset < 13:
        return None
    axis = b.integer(1, min(2, x.rank - 1))
    some = sorted(b.subset(range(x.shape[axis]), x.shape[axis]))
    picked = b.node("Gather", [x.name, b.constant(some)], [*x.shape[:axis], len(some), *x.shape[axis + 1 :]], axis=axis)
    new = b.one_of([unary, scale_or_shift])(b, picked)
    if b.flag():
        whole = np.broadcast_to(np.reshape(some, [-1 if a == axis else 1 for a in range(x.rank)]), new.shape)
        return b.node("ScatterElements", [x.name, b.constant(whole), new.name], x.shape, axis=axis)
    grid = np.meshgrid(*(range(n) for n in x.shape[:axis]), some, indexing="ij")
    return b.node("ScatterND", [x.name, b.constant(np.stack(grid, -1)), new.name], x.shape)


def looked_up(b: Builder, x: Value) -> Value | None:
    """Positions of an axis, of every place of the others the same ones or not."""
    if not b.batch or b.opset < 11:
        return None
    axis = b.integer(1, x.rank - 1)
    width, count = x.shape[axis], b.integer(1, x.shape[axis])
    shape = [count if a == axis else size for a, size in enumerate(x.shape)]
    index = b.rng.integers(-width, width, shape)
    return b.node("GatherElements", [x.name, b.constant(index)], shape, axis=axis)


def pad_otherwise(b: Builder, x: Value) -> Value | None:
    """Repeated positions, positions cut off, or chosen axes alone."""
    axis = b.integer(1, x.rank - 1)
    how = b.one_of(["edge", "reflect", "negative", "axes"])
    width = x.shape[axis]
    before, after = b.integer(0, 2), b.integer(0, 2)
    if how == "reflect" and width <= 2:
        return None
    if how == "negative":
        before, after = -b.integer(0, (width - 1) // 2), -b.integer(0, (width - 1) // 2)
    shape = [size + (before + after if a == axis else 0) for a, size in enumerate(x.shape)]
    more = {"mode": how} if how in ("edge", "reflect") else {}
    if how == "axes":
        if b.opset < 18:
            return None
        return b.node("Pad", [x.name, b.constant([before, after]), "", b.constant([axis - x.rank])], shape)
    pads = [before if a == axis else 0 for a in range(x.rank)] + [after if a == axis else 0 for a in range(x.rank)]
    if b.opset < 11:
        return b.node("Pad", [x.name], shape, pads=pads, **more)
    return b.node("Pad", [x.name, b.constant(pads)], shape, **more)


def thirds(b: Builder, x: Value) -> Value | None:
    """Three parts of an axis, the last one smaller if need be; two of them are multiplied."""
    axis = b.integer(1, x.rank - 1)
    width = x.shape[axis]
    part = -(-width // 3)
    sizes = [part, part, width - 2 * part]
    if b.opset < 18 or sizes[2] < 1:
        return None
    shapes = [[*x.shape[:axis], s, *x.shape[axis + 1 :]] for s in sizes]
    first, second, third = b.node_of("Split", [x.name], shapes, axis=axis - x.rank, num_outputs=3)
    b.values.extend(v for v in (first, third) if b.flag())
    bounded = b.node("Tanh", [first.name], first.shape)
    both = b.node("Mul", [bounded.name, second.name], first.shape)
    return b.node("Concat", [both.name, third.name], [*x.shape[:axis], width - part, *x.shape[axis + 1 :]], axis=axis)


def largest(b: Builder, x: Value) -> Value | None:
    """The largest or smallest of an axis, in their order."""
    if b.opset < 11:
        return None
    axis = b.integer(1, x.rank - 1)
    count = b.integer(1, x.shape[axis])
    shape = [count if a == axis else size for a, size in enumerate(x.shape)]
    inputs = [x.name, b.constant([count])]
    return b.node_of("TopK", inputs, [shape, shape], axis=axis - x.rank if b.flag() else axis, largest=b.integer(0, 1))[
        0
    ]


def compressed(b: Builder, x: Value) -> Value:
    """Positions that a list of flags chooses."""
    axis = b.integer(1, x.rank - 1)
    flags = np.array([b.flag() for _ in range(x.shape[axis])])
    flags[0] = True
    shape = [int(flags.sum()) if a == axis else size for a, size in enumerate(x.shape)]
    return b.node("Compress", [x.name, b.constant(flags, np.bool_)], shape, axis=axis)


def centred(b: Builder, x: Value) -> Value | None:
    """Cut or filled up to sizes that are told."""
    if b.opset < 18:
        return None
    axes = sorted(b.subset(range(1, x.rank), x.rank - 1))
    sizes = [max(1, x.shape[a] + b.integer(-2, 2)) for a in axes]
    told = dict(zip(axes, sizes, strict=True))
    shape = [told.get(a, size) for a, size in enumerate(x.shape)]
    return b.node("CenterCropPad", [x.name, b.constant(sizes)], shape, axes=[a - x.rank for a in axes])


def backwards(b: Builder, x: Value) -> Value | None:
    """Axis 1 turned around up to a length for every image."""
    if not b.batch or x.rank < 3 or b.opset < 10:
        return None
    lengths = b.constant([b.integer(1, x.shape[1]) for _ in range(x.shape[0])])
    return b.node("ReverseSequence", [x.name, lengths], x.shape, batch_axis=0, time_axis=1)


def images_elsewhere(b: Builder, x: Value) -> Value:
    """Something is done while the images lie on another axis than the first."""
    at = b.integer(1, x.rank - 1)
    perm = [*range(1, at + 1), 0, *range(at + 1, x.rank)]
    turned = b.transpose(x, perm)
    kind = b.one_of(["Relu", "Tanh", "scale", "softmax", "matmul"])
    if kind == "matmul" and at < x.rank - 1:
        width = b.integer(1, 8)
        inputs = [turned.name, b.weight(turned.shape[-1], width)]
        made = b.node("MatMul", inputs, (*turned.shape[:-1], width))
    elif kind == "softmax":
        made = b.node("Softmax", [turned.name], turned.shape, axis=b.one_of([a for a in range(x.rank) if a != at]))
    elif kind == "scale":
        shape = [1 if a == at or b.flag() else size for a, size in enumerate(turned.shape)]
        made = b.node(b.one_of(["Add", "Mul"]), [turned.name, b.weight(*shape)], turned.shape)
    else:
        made = b.node("Tanh" if kind == "Tanh" else "Relu", [turned.name], turned.shape)
    return b.transpose(made, [perm.index(a) for a in range(x.rank)])


def stretched(b: Builder, x: Value) -> Value | None:
    """Axes of size 1 spread, by an Expand or by what they are added to."""
    single = [a for a in range(1, x.rank) if x.shape[a] == 1]
    if not single:
        return None
    axis = int(b.one_of(single))
    target = [1] * x.rank
    target[axis] = b.integer(2, 4)
    shape = [max(one, size) for one, size in zip(target, x.shape, strict=True)]
    if b.flag():
        return b.node("Expand", [x.name, b.constant(target)], shape)
    return b.node(b.one_of(["Add", "Mul"]), [x.name, b.weight(*target)], shape)


def flat_from_another_axis(b: Builder, x: Value) -> Value | None:
    """Images and channels merged, something done to the rest, and split again as they were."""
    if x.rank < 3:
        return None
    axis = b.integer(2, x.rank - 1)
    rows, width = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:]))
    flat = b.node("Flatten", [x.name], (rows, width), axis=axis - x.rank if b.opset >= 11 and b.flag() else axis)
    inner = b.one_of([unary, scale_or_shift, softmax])(b, flat)
    return b.node("Reshape", [inner.name, b.constant([b.batch or -1, *x.shape[1:]])], x.shape)


ANY: tuple[Op, ...] = (
    *(gather_one, gather_rows, written, looked_up, pad_otherwise, thirds, largest, compressed, centred, backwards),
    *(images_elsewhere, images_elsewhere, stretched, flat_from_another_axis),
)
