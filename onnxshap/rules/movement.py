"""Ops that move axes about without mixing positions: atoms move the way the data do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from onnxshap.labels import Axes, Op, Product, RuleError, Tensor
from onnxshap.labels.factors import common_factors, follow, spans_of
from onnxshap.labels.fixups import Scaled, SingleAxes, Told, Widths
from onnxshap.rules.pointwise import broadcast
from onnxshap.rules.registry import rule
from onnxshap.shapes.folding import COMPUTED

_COUNTED = "its size is counted on elsewhere"


@rule("Transpose")
def transpose(op: Op, ax: Axes) -> None:
    """Output axis i is input axis perm[i]."""
    rank = op.out().rank
    for axis, source in enumerate(op.attributes.get("perm", range(rank)[::-1])):
        ax.carry(source, axis)


@rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def reshape(op: Op, ax: Axes) -> None:
    """Equal axes are tied; merged and split axes become products of their common factors."""
    x, y = op.need(0), op.out()
    computed = tuple[int, ...]()
    if op.type == "Reshape":
        target = op.some_ints(1, "shape")
        if target is not None:
            entries = tuple((i, y.name, i) for i in range(y.rank))
            source = None if op.attributes.get("allowzero") else x.name
            where = {"input": 1} if op.input(1) else {"attribute": "shape"}
            ax.fix(Widths(op.index, entries, source=source, **where))
            computed = tuple(_computed(op, target))
    if op.type == "Squeeze" and op.ints(1, "axes") is None:
        single = tuple(axis for axis, size in enumerate(x.shape) if size == 1)
        ax.fix(SingleAxes(op.index, x.name, single, op.opset))
    if 0 in x.shape:
        raise RuleError(f"{op.type} of a tensor without elements")
    blocks = _by_axes(op, x, y) or aligned(x.shape, y.shape)
    moved = [(any(_is_free(x, a) for a in ins), any(_is_free(y, a) for a in outs)) for ins, outs in blocks]
    chance = (True, False) in moved and (False, True) in moved  # what is as long as a batch, at this size alone
    for (ins, outs), sides in zip(blocks, moved, strict=True):
        if chance and sides[0] != sides[1]:
            _freeze_block(ax, ins, outs, f"{op.type} regroups it otherwise at other sizes")
        else:
            _relate_block(ax, x.name, ins, outs)
    _scale_computed(op, ax, computed)


def _by_axes(op: Op, x: Tensor, y: Tensor) -> list[tuple[list[int], list[int]]] | None:
    """Return the runs of a Squeeze or an Unsqueeze that names the axes which it drops or adds, None of others.

    Sizes do not tell: of several axes of size 1 one may be that of the images.
    """
    if op.type not in ("Squeeze", "Unsqueeze") or ((given := op.input(1)) is not None and given.value is None):
        return None
    longer, shorter = (x, y) if op.type == "Squeeze" else (y, x)
    gone = {axis % longer.rank for axis in op.ints(1, "axes") or ()}
    if longer.rank - len(gone) != shorter.rank:
        return None
    places = iter(range(shorter.rank))
    runs = [([axis], [] if axis in gone else [next(places)]) for axis in range(longer.rank)]
    return runs if op.type == "Squeeze" else [(outs, ins) for ins, outs in runs]


def aligned(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the shortest runs of source and target axes that hold the same elements.

    >>> aligned((2, 64, 7, 7), (2, 3136))
    [([0], [0]), ([1, 2, 3], [1])]
    """
    runs = []
    i = j = 0
    while i < len(source) or j < len(target):
        ins, outs = [i] if i < len(source) else [], [j] if j < len(target) else []
        i, j = i + len(ins), j + len(outs)
        while (a := math.prod(source[k] for k in ins)) != (b := math.prod(target[k] for k in outs)):
            if (a < b and i < len(source)) or j == len(target):
                ins.append(i)
                i += 1
            else:
                outs.append(j)
                j += 1
        runs.append((ins, outs))
    return runs


def _scale_computed(op: Op, ax: Axes, computed: Iterable[int], given: int = 1) -> None:
    """Count the axes of the output whose sizes are computed, `given` the input that lists the last ones.

    The arithmetic gives a size that follows free ones: where others are cut that lie there, too, it is scaled.
    """
    y, scaled = op.out(), tuple(computed)
    for axis in scaled:
        ax.count(y, axis, f"{op.type} gets its size from the data")
    if scaled:
        ax.fix(Scaled(op.index, y.name, scaled, given, op.need(given).shape[0]))


def _computed(op: Op, target: Sequence[int]) -> Iterator[int]:
    """Yield which axes of the output have sizes in a target that are computed; it lists those of the last ones."""
    return (axis for axis, size in enumerate(target, start=op.out().rank - len(target)) if size == COMPUTED)


def _relate_block(ax: Axes, where: str, ins: list[int], outs: list[int]) -> None:
    x, y = ax.op.need(0), ax.op.out()
    sizes_in, sizes_out = [x.shape[a] for a in ins], [y.shape[a] for a in outs]
    atoms = [ax.input(0, a) for a in ins] + [ax.output(0, a) for a in outs]
    if len(ins) == len(outs) == 1:
        return ax.tie(*atoms)
    factors = common_factors(sizes_in, sizes_out)
    if factors is None:
        return _freeze_block(ax, ins, outs, f"{ax.op.type} regroups it across uneven blocks")
    spans = [*spans_of(sizes_in, factors), *spans_of(sizes_out, factors)]
    free = [*(_is_free(x, a) for a in ins), *(_is_free(y, a) for a in outs)]
    if any(free[: len(ins)]) and any(free[len(ins) :]) and not follow(spans, free):
        return _freeze_block(ax, ins, outs, f"{ax.op.type} regroups it otherwise at other sizes")
    fixed = {k for span, is_free in zip(spans, free, strict=True) if not is_free for k in span}
    alone = {span.start: item for item, span in zip(atoms, spans, strict=True) if len(span) == 1}
    fine = [alone.get(k) for k in range(len(factors))]
    known = [ax.trace.fresh(size) if item is None else item for item, size in zip(fine, factors, strict=True)]
    for item, span in zip(atoms, spans, strict=True):
        if len(span) == 0:
            ax.freeze(item, f"{ax.op.type} adds or drops it as an axis of size 1")
        elif len(span) == 1:
            ax.tie(known[span.start], item)
        else:
            merged = item.reshape([factors[k] for k in span])
            moving = frozenset(k - span.start for k in span if any(free) and k not in fixed)
            parts = tuple(known[k] for k in span)
            ax.trace.products.append(Product(merged, parts, f"{ax.op.type} of {where!r}", moving))
    return None


def _is_free(tensor: Tensor, axis: int) -> bool:
    """Return whether an axis has another size elsewhere, and here one that tells it from axes of size 1."""
    return axis in tensor.free and tensor.shape[axis] > 1


def _freeze_block(ax: Axes, ins: list[int], outs: list[int], reason: str) -> None:
    for atoms in [*(ax.input(0, a) for a in ins), *(ax.output(0, a) for a in outs)]:
        ax.freeze(atoms, reason)


@rule("DepthToSpace")
def depth_to_space(op: Op, ax: Axes) -> None:
    """Blocks of channels become space: the channels of one output channel go together."""
    squared = int(op.attributes["blocksize"]) ** 2
    turned = op.attributes.get("mode", "DCR") == "CRD"
    channels = ax.input(0, 1).reshape((-1, squared) if turned else (squared, -1))
    for block in channels.T if turned else channels:
        ax.tie(block, ax.output(0, 1))
    ax.same([0])


@rule("SpaceToDepth")
def space_to_depth(op: Op, ax: Axes) -> None:
    """Space becomes blocks of channels: the output channels of one input channel go together."""
    squared = int(op.attributes["blocksize"]) ** 2
    for block in ax.output(0, 1).reshape(squared, -1):
        ax.tie(ax.input(0, 1), block)
    ax.same([0])


@rule("Col2Im")
def columns_to_image(op: Op, ax: Axes) -> None:
    """Blocks are summed into an image: the positions of the blocks of one output channel go together."""
    for place in ax.input(0, 1).reshape(op.out().shape[1], -1).T:
        ax.tie(place, ax.output(0, 1))
    ax.same([0])


@rule("Tile")
def tile(op: Op, ax: Axes) -> None:
    """Axes that are not repeated pass through; of those that are, the copies of a position go with it.

    What an axis of size 1 is repeated to is as wide as it is told.
    """
    x, y = op.need(0), op.out()
    counts = dict(enumerate(op.some_ints(1) or []))
    counts |= {a: y.shape[a] // x.shape[a] for a, count in counts.items() if count == COMPUTED and x.shape[a] > 1}
    ax.same(axis for axis, count in counts.items() if count == 1)
    for axis in (a for a, count in counts.items() if count > 1 and x.shape[a] > 1):
        for copy in ax.output(0, axis).reshape(counts[axis], -1):
            ax.tie(ax.input(0, axis), copy)
    stretched = [axis for axis, count in counts.items() if count not in (1, COMPUTED) and x.shape[axis] == 1]
    for axis in stretched:
        ax.freeze(ax.input(0, axis), "Tile repeats it")
        ax.output(0, axis)
    ax.fix(Widths(op.index, tuple((axis, y.name, axis) for axis in stretched), input=1))


@rule("Concat")
def concat(op: Op, ax: Axes) -> None:
    """Inputs stand one after the other on one axis."""
    concatenate(op, ax, range(len(op.inputs)))


def concatenate(op: Op, ax: Axes, inputs: Sequence[int]) -> None:
    """Relate inputs that stand one after the other on axis `axis`."""
    y = op.out()
    axis = int(op.attributes.get("axis", 1)) % y.rank
    ends = np.cumsum([op.need(k).shape[axis] for k in inputs])
    for k, part in zip(inputs, np.split(ax.output(0, axis), ends[:-1]), strict=True):
        ax.tie(ax.input(k, axis), part)
        ax.same((a for a in range(y.rank) if a != axis), inp=k)


@rule("Expand")
def expand(op: Op, ax: Axes) -> None:
    """Axes of size 1 are stretched, the others pass through; what a stretched axis repeats is as wide as it is told."""
    y = op.out()
    for axis in range(y.rank):
        ax.output(0, axis)
    broadcast(op, ax, inputs=(0,))
    given = op.need(1)
    if given.value is None and given.part is None:  # sizes from the data: images keep apart, and nothing can go
        for axis in range(y.rank):
            ax.freeze(ax.output(0, axis), "Expand gets its sizes from the data")
        return
    target = op.some_ints(1) or []
    ax.fix(Widths(op.index, tuple((i, y.name, i + y.rank - len(target)) for i in range(len(target))), input=1))
    _scale_computed(op, ax, _computed(op, target))


@rule("ConstantOfShape")
def constant_of_shape(op: Op, ax: Axes) -> None:
    """A constant as wide as it is told to be."""
    y = op.out()
    for axis in range(y.rank):
        ax.output(0, axis)
    ax.fix(Widths(op.index, tuple((i, y.name, i) for i in range(y.rank)), input=0))
    _scale_computed(op, ax, _computed(op, op.some_ints(0) or []), 0)


@rule("Shape", "Size")
def sizes(op: Op, ax: Axes) -> None:
    """Sizes that other ops are told: those that follow free dimensions (`folding`) stay, nothing reads the others.

    A Shape goes on telling what was there of images x heads when heads go.
    """
    x = op.need(0)
    for axis in range(x.rank):
        atoms = ax.input(0, axis)
        if axis in x.told and op.type == "Shape":
            ax.count(x, axis, _COUNTED)
        elif axis in x.told:
            ax.freeze(atoms, _COUNTED)
    if op.type == "Shape":
        axes = range(x.rank)[int(op.attributes.get("start", 0)) : op.attributes.get("end")]
        ax.fix(Told(op.index, x.name, tuple(axis for axis in axes if axis in x.told), axes.start, len(axes)))
