"""Ops that take some positions of an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxshap.core import IntArray
from onnxshap.labels import Axes, Op, Product, RuleError, Tensor
from onnxshap.labels.fixups import Bounds, Grid, PadCount, Selection, Table, UnequalParts, Widths, grid_of
from onnxshap.rules.registry import rule
from onnxshap.shapes.doubts import window
from onnxshap.shapes.folding import COMPUTED


@rule("Split")
def split(op: Op, ax: Axes) -> None:
    """Outputs are consecutive parts of one axis."""
    x = op.need(0)
    axis = int(op.attributes.get("axis", 0)) % x.rank
    sizes = [t.shape[axis] if t is not None else None for t in op.outputs]
    if None in sizes:
        raise RuleError("Split with an unused output")
    for out in range(len(sizes)):
        ax.same((a for a in range(x.rank) if a != axis), out=out)
    given = op.some_ints(1, "split")
    if given is not None and COMPUTED in given:
        for atoms in (ax.input(0, axis), *(ax.output(out, axis) for out in range(len(sizes)))):
            ax.freeze(atoms, "Split gets its sizes from the data")
        return
    ends = np.cumsum([t.shape[axis] for t in op.outputs if t is not None])
    for out, part in enumerate(np.split(ax.input(0, axis), ends[:-1])):
        ax.tie(part, ax.output(out, axis))
    entries = tuple((out, t.name, axis) for out, t in enumerate(op.outputs) if t is not None)
    if given is None and axis in x.free:  # as many as its size asks for: they stay as they are to each other
        parts = np.stack(np.split(ax.input(0, axis), ends[:-1])) if len(set(sizes)) == 1 else None
        if parts is None:
            ax.freeze(ax.input(0, axis), "Split without sizes into unequal parts")
        else:
            ax.tie(parts[1:], np.broadcast_to(parts[:1], parts[1:].shape))
    elif given is None:
        ax.fix(UnequalParts(op.index, tuple(t.name for t in op.outputs if t is not None), axis, op.opset))
    else:
        ax.fix(Widths(op.index, entries, **({"input": 1} if op.input(1) else {"attribute": "split"})))


@rule("Slice")
def slice_(op: Op, ax: Axes) -> None:
    """Constant bounds select positions; a sliced axis with other steps than 1 needs a node of its own."""
    x, y = op.need(0), op.out()
    starts, ends = op.some_ints(1, "starts"), op.some_ints(2, "ends")
    if starts is None or ends is None:
        raise RuleError("Slice without bounds")
    axes = [a % x.rank for a in op.ints(3, "axes") or range(len(starts))]
    steps = op.ints(4) or [1] * len(starts)
    ax.same(a for a in range(x.rank) if a not in axes)
    for entry, axis in enumerate(axes):
        if COMPUTED in (starts[entry], ends[entry]):
            ax.freeze(ax.input(0, axis), "Slice gets its bounds from the data")
            ax.freeze(ax.output(0, axis), "Slice gets its bounds from the data")
            continue
        index = np.arange(x.shape[axis])[window(starts[entry], ends[entry], steps[entry], x.shape[axis])]
        if steps[entry] == 1:
            first = int(index[0]) if index.size else 0
            ax.tie(ax.input(0, axis)[index], ax.output(0, axis))
            ax.fix(Bounds(op.index, x.name, axis, first, first + index.size, entry))
        elif len(axes) == 1:
            _select(op, ax, axis, index)
        else:
            ax.freeze(ax.input(0, axis), "Slice takes it in steps, along with other axes")
            ax.freeze(ax.output(0, axis), "Slice takes it in steps, along with other axes")
    assert y.rank == x.rank


def _select(op: Op, ax: Axes, axis: int, index: Sequence[int] | np.ndarray) -> None:
    positions = np.asarray(index, np.int64)
    x = op.need(0)
    ax.tie(ax.input(0, axis)[positions], ax.output(0, axis))
    ax.fix(Selection((op.index,), x.name, op.out().name, axis, positions))


@rule("Gather")
def gather(op: Op, ax: Axes) -> None:
    """A constant list of positions selects; others (an embedding) keep the axis whole, and the images keep apart."""
    x, index, y = op.need(0), op.need(1), op.out()
    axis = int(op.attributes.get("axis", 0)) % x.rank
    for a in range(x.rank):
        if a != axis:
            ax.tie(ax.input(0, a), ax.output(0, a if a < axis else a + index.rank - 1))
            if x.constant and not index.constant:
                ax.make(a if a < axis else a + index.rank - 1)
    if index.value is not None and index.rank == 1:
        _select(op, ax, axis, index.value % x.shape[axis])
        return
    if index.value is None:
        ax.freeze(ax.input(0, axis), "Gather looks positions up by number")
    elif _look_up(op, ax, axis, index.value % x.shape[axis]):
        return
    for k in range(index.rank):
        ax.tie(ax.input(1, k), ax.output(0, axis + k))
    assert y.rank == x.rank + index.rank - 1


def _look_up(op: Op, ax: Axes, axis: int, index: IntArray) -> bool:
    """Relate an axis to those of a constant index, return whether any of those can be cut.

    Axes along which the places read lie apart are factors of them (heads, blocks and features of a tensor that was made
    flat, as torch writes `as_strided`); the others stay, for they read some positions again. What is not read may go.
    """
    x, y = op.need(0), op.out()
    ax.fix(Table(op.index, x.name, y.name, axis, index))
    read, wide = ax.input(0, axis)[index], [k for k, size in enumerate(index.shape) if size > 1]
    if len(wide) == 1:
        ax.tie(read.ravel(), ax.output(0, axis + wide[0]))
        return True
    apart = [k for k in wide if _apart(index, k)]
    if not apart:
        ax.freeze(read, "Gather looks positions up by number" if wide else "Gather takes it by its number")
        return False
    for k in set(wide) - set(apart):
        ax.freeze(ax.output(0, axis + k), "Gather reads positions of it more than once")
    factors = tuple(ax.output(0, axis + k) for k in wide)
    ax.trace.products.append(Product(read.reshape([len(f) for f in factors]), factors, f"Gather of {x.name!r}"))
    return True


def _apart(index: IntArray, axis: int) -> bool:
    """Return whether no number stands at two positions of an axis of an index."""
    place = np.moveaxis(np.broadcast_to(np.arange(index.shape[axis]), np.moveaxis(index, axis, -1).shape), -1, axis)
    last = np.zeros(int(index.max(initial=0)) + 1, np.int64)
    last[index] = place
    return bool((last[index] == place).all())


@rule("Pad")
def pad(op: Op, ax: Axes) -> None:
    """Constant padding of an axis adds positions that hold the fill value; other modes repeat positions."""
    x, y = op.need(0), op.out()
    given = op.some_ints(1, "pads") or op.ints(1, "paddings")
    if given is None:
        raise RuleError("Pad without amounts")
    if op.input(3) is not None:
        chosen = [a % x.rank for a in op.ints(3) or ()]
        ax.same(a for a in range(x.rank) if a not in chosen or not any(given[chosen.index(a) :: len(chosen)]))
        return
    for axis in range(x.rank):
        before, after = given[axis], given[axis + x.rank]
        if before == after == 0:
            ax.same([axis])
        elif COMPUTED in (before, after):
            ax.freeze(ax.input(0, axis), "Pad gets its pads from the data")
            ax.freeze(ax.output(0, axis), "Pad gets its pads from the data")
        elif min(before, after) >= 0 and op.attributes.get("mode", "constant") == "constant":
            ax.tie(ax.input(0, axis), ax.output(0, axis)[before : before + x.shape[axis]])
            ax.fix(PadCount(op.index, y.name, axis, x.rank, before, after))
        else:
            ax.freeze(ax.input(0, axis), "Pad repeats or drops positions")
            ax.freeze(ax.output(0, axis), "Pad repeats or drops positions")


@rule("CenterCropPad")
def center_crop_pad(op: Op, ax: Axes) -> None:
    """Axes that are as wide as they are told stay as they are; of the others positions are cut off, or zeros added."""
    x, y, given = op.need(0), op.out(), op.need(1)
    axes = [a % x.rank for a in op.attributes.get("axes", range(x.rank))]
    computed = given.value is None and given.part is None
    sizes = [COMPUTED] * len(axes) if computed else op.some_ints(1) or []
    told = dict(zip(axes, sizes, strict=True))
    ax.same(a for a in range(x.rank) if told.get(a, x.shape[a]) == x.shape[a] and (a not in told or a not in x.free))
    ax.fix(Widths(op.index, tuple((k, y.name, a) for k, a in enumerate(axes) if sizes[k] != COMPUTED), input=1))


@rule("TopK")
def top_k(op: Op, ax: Axes) -> None:
    """The largest positions of one axis; the others keep apart."""
    axis = int(op.attributes.get("axis", -1)) % op.need(0).rank
    for out, y in enumerate(op.outputs):
        if y is not None:
            ax.same((a for a in range(y.rank) if a != axis), out=out)


@rule("GatherElements", "ScatterElements")
def elements(op: Op, ax: Axes) -> None:
    """Positions of one axis, looked up for every place of the others; whole axes of equal size pass through."""
    axis = int(op.attributes.get("axis", 0)) % op.out().rank
    x, index = op.need(0), op.need(1)
    for a in range(x.rank):
        if a != axis and x.shape[a] == index.shape[a]:
            for k in range(len(op.inputs)):
                ax.same([a], k)


@rule("GatherND", "com.microsoft.GatherND")
def gather_nd(op: Op, ax: Axes) -> None:
    """Places looked up by numbers for some axes; the axes behind those pass through.

    A constant list of positions of the first axis selects, as torch writes `x[:, order]` between two Transposes.
    """
    x, index = op.need(0), op.need(1)
    images = int(op.attributes.get("batch_dims", 0))
    if index.value is not None and index.rank == 2 and index.shape[1] == 1 and not images:
        ax.same(range(1, x.rank))
        _select(op, ax, 0, index.value.ravel() % x.shape[0])
        return
    looked_up = images + index.shape[-1]
    for a in range(images):
        ax.tie(ax.input(0, a), ax.output(0, a))
    for k in range(index.rank - 1):
        ax.tie(ax.input(1, k), ax.output(0, k))
    for a in range(looked_up, x.rank):
        target = index.rank - 1 + a - looked_up
        ax.tie(ax.input(0, a), ax.output(0, target))
        if x.constant and not index.constant:
            ax.make(target)
    for a in range(images, looked_up):
        ax.freeze(ax.input(0, a), f"{op.type} looks positions up by number")


@rule("ScatterND")
def scatter_nd(op: Op, ax: Axes) -> None:
    """Places written by numbers for some axes; the axes behind those pass through.

    Numbers that are a grid, a list of positions for each axis (`x[:, :, 2:5] = y`), pass through too: constant ones,
    and those that follow free sizes in that they are all positions of the axes that do. Where there are no numbers, as
    of a slice that is empty at the sizes of the export, nothing is written.
    """
    x, index, y = op.need(0), op.need(1), op.out()
    computed = index.value is None
    written, whole = _written(index, x)
    nothing = index.value is not None and not index.value.size
    for a in range(x.rank):
        if nothing and a < index.shape[-1]:
            ax.same([a])
        elif a >= index.shape[-1]:
            ax.same([a])
            ax.tie(ax.input(2, index.rank - 1 + a - index.shape[-1]), ax.output(0, a))
        elif written is not None:
            ax.same([a])
            ax.tie(ax.input(2, a), ax.output(0, a)[written[a]])
            if a in whole:
                ax.freeze(ax.output(0, a), f"{op.type} writes all of it, however many there are")
        else:
            ax.freeze(ax.input(0, a), f"{op.type} looks positions up by number")
            ax.freeze(ax.output(0, a), f"{op.type} looks positions up by number")
    if written is not None:
        ax.fix(Grid(op.index, y.name, tuple(written), computed))
    elif not nothing:
        for k in range(index.rank - 1):
            ax.freeze(ax.input(2, k), f"{op.type} writes it to positions by number")
    for a in () if x.constant or nothing else set(range(index.shape[-1])) - whole:
        ax.mix(a)  # where it is that of the images, the numbers say which are written


def _written(index: Tensor, x: Tensor) -> tuple[list[IntArray] | None, set[int]]:
    """Return the positions that are written of every axis looked up, and the axes that are written as a whole.

    None unless the positions are those of a grid.
    """
    if index.part is None or index.part.ndim <= index.shape[-1]:
        return None if index.value is None else grid_of(index.value, x.shape), set()
    columns = [np.moveaxis(index.part[..., a], a, 0) for a in range(index.shape[-1])]
    lists = [column.reshape(len(column), -1)[:, 0] for column in columns]
    whole = {a for a, some in enumerate(lists) if COMPUTED in some}
    return [np.arange(n) if a in whole else lists[a] % n for a, n in enumerate(x.shape[: len(lists)])], whole


@rule("OneHot")
def one_hot(op: Op, ax: Axes) -> None:
    """An axis of its own for what the indices count; theirs keep apart."""
    index, y = op.need(0), op.out()
    axis = int(op.attributes.get("axis", -1)) % y.rank
    for a in range(index.rank):
        ax.tie(ax.input(0, a), ax.output(0, a + (a >= axis)))


@rule("ReverseSequence")
def reverse_sequence(op: Op, ax: Axes) -> None:
    """Turns time around up to a length for every image; the other axes pass through."""
    time, images = int(op.attributes.get("time_axis", 0)), int(op.attributes.get("batch_axis", 1))
    ax.same(a for a in range(op.out().rank) if a != time)
    ax.tie(ax.input(1, 0), ax.output(0, images))


@rule("Compress")
def compress(op: Op, ax: Axes) -> None:
    """Some positions of one axis, chosen by the data; the others keep apart."""
    if (axis := op.attributes.get("axis")) is not None:
        ax.same(a for a in range(op.out().rank) if a != int(axis) % op.out().rank)
