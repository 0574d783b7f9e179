"""Ops that sum over an axis against weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxshap.core import IntArray
from onnxshap.labels import Axes, Balance, Op, RuleError, Tensor, Weight
from onnxshap.labels.equations import terms_of
from onnxshap.labels.fixups import GroupCount
from onnxshap.rules.norm import as_a_whole
from onnxshap.rules.pointwise import broadcast
from onnxshap.rules.registry import rule

_SHARED = 1
"""The axis of a weight with the positions that all groups of a Conv or ConvTranspose share; axis 0 is of all groups."""


@dataclass(frozen=True)
class Operands:
    """Which inputs of a Conv are its data, its weights and its bias, and the zero point of data that are codes."""

    x: int = 0
    w: int = 1
    bias: int | None = 2
    zero: int | None = None

    @property
    def added(self) -> tuple[int, float] | None:
        """The bias, as `Weight` has it."""
        return None if self.bias is None else (self.bias, 1.0)


_FLOATS = Operands()
"""Those of Conv and ConvTranspose."""


@rule("Conv")
def conv(op: Op, ax: Axes) -> None:
    """Channels in are summed away, channels out are made; for groups see `_grouped`."""
    ax.images(0, 0)
    convolve(op, ax, _FLOATS)


def convolve(op: Op, ax: Axes, at: Operands) -> None:
    """Relate a Conv of floats or of codes, whose operands may be elsewhere among the inputs."""
    mixed = [] if op.type != "Conv" or at.zero is not None else _in_place(op, at)
    if int(op.attributes.get("group", 1)) != 1:
        _grouped(op, ax, at, mixed)
    else:
        inputs = [k for k in (at.x, at.w, at.bias) if k is not None]
        ax.relate(_spec(op, "o i", at.w, mixed), bias=at.added, inputs=inputs, zero=at.zero)
    if mixed:
        as_a_whole(op, ax, mixed, "moves its taps", ordered=True)


def _spec(op: Op, weight: str, w: int = 1, mixed: Sequence[int] = ()) -> str:
    """Return the relations of a Conv or ConvTranspose of one group, its weight input `w` with these two axes first.

    Space is mixed, but for the axes along which every position is multiplied by itself, and those told as `mixed`.
    """
    apart = {*_untouched(op, w), *mixed}
    space = [f"s{axis}" if axis in apart else "_" for axis in range(2, op.out().rank)]
    taps, places = " ".join("_" for _ in space), " ".join(space)
    return f"n i {places}, {weight} {taps}, o -> n o {places}"


def _untouched(op: Op, w: int = 1) -> list[int]:
    """Return the axes of space on which a Conv has one tap, no strides and no pads: its positions stay apart."""
    x, y, taps = op.need(0), op.out(), op.need(w).shape[2:]
    if "output_shape" in op.attributes:
        return []  # it restates the sizes
    moves, *added = (
        op.attributes.get(name, [default] * many * len(taps))
        for name, default, many in (("strides", 1, 1), ("pads", 0, 2), ("output_padding", 0, 1))
    )
    single = [taps[k] == moves[k] == 1 and not any(any(a[k :: len(taps)]) for a in added) for k in range(len(taps))]
    return [axis for axis, one in enumerate(single, 2) if one and x.shape[axis] == y.shape[axis]]


def _in_place(op: Op, at: Operands) -> list[int]:
    """Return the axes of space that a Conv mixes and leaves as long as they are: channels may lie there (ECA)."""
    x, y, taps = op.need(at.x), op.out(), op.need(at.w).shape[2:]
    moves = op.attributes.get("strides", [1] * len(taps))
    return [
        axis
        for axis, (size, step) in enumerate(zip(taps, moves, strict=True), 2)
        if size > 1 and step == 1 and x.shape[axis] == y.shape[axis] > 1 and axis not in x.free
    ]


@rule("com.microsoft.nchwc.Conv")
def blocked_conv(op: Op, ax: Axes) -> None:
    """As Conv, its weights in blocks that suit one kind of processor: it makes channels and multiplies, all stay."""
    weights, y = op.need(1), op.out()
    ax.make(1)
    ax.macs((y, 0), *((weights, a) for a in range(weights.rank)), *((y, a) for a in range(2, y.rank)))


@rule("DeformConv")
def deform_conv(op: Op, ax: Axes) -> None:
    """As Conv, its taps moved by offsets that all channels share: x, w, offsets, bias, mask."""
    if int(op.attributes.get("group", 1)) != 1 or int(op.attributes.get("offset_group", 1)) != 1:
        raise RuleError("DeformConv in groups")
    ax.relate("n i _*, o i _*, n _*, o, n _* -> n o _*", bias=(3, 1.0))
    # not refitted: what its taps read is not known
    ax.trace.linear[:] = [site for site in ax.trace.linear if site.node != op.index]


@rule("ConvTranspose")
def conv_transpose(op: Op, ax: Axes) -> None:
    """As Conv, the weight's first two axes swapped; every input position is multiplied, not every output position."""
    x, w = op.need(0), op.need(1)
    groups = int(op.attributes.get("group", 1))
    ax.images(0, 0)
    if groups == 1:
        ax.relate(_spec(op, "i o"), spread=_spread(op), bias=(2, 1.0))
        ax.trace.macs.pop()
        ax.macs((x, 0), *((x, a) for a in range(2, x.rank)), *((w, a) for a in range(w.rank)))
    else:
        _grouped(op, ax, _FLOATS)


def _is_transposed(op: Op) -> bool:
    return op.type == "ConvTranspose"


def _spread(op: Op) -> float:
    """Return the share of a kernel's taps that meet in one output position."""
    if not _is_transposed(op):
        return 1.0
    return 1.0 / float(math.prod(op.attributes.get("strides", (1,))))


def _grouped(op: Op, ax: Axes, at: Operands, mixed: Sequence[int] = ()) -> None:
    """Relate a Conv or ConvTranspose in groups by whichever leaves more units: `_as_groups` or `_as_channels`.

    Axes of space that are told as `mixed` are left alone.
    """
    data, weights, y = op.need(at.x), op.need(at.w), op.out()
    groups = int(op.attributes["group"])
    per_in, per_out = data.shape[1] // groups, y.shape[1] // groups
    channels_in = ax.input(at.x, 1).reshape(groups, per_in)
    channels_out = ax.output(0, 1).reshape(groups, per_out)
    ax.tie(ax.input(at.x, 0), ax.output(0, 0))
    ax.tie(ax.input(at.w, 0), (channels_in if _is_transposed(op) else channels_out).ravel())
    if at.bias is not None and op.input(at.bias) is not None:
        ax.tie(ax.input(at.bias, 0), channels_out.ravel())
    if groups >= per_in + per_out or per_in == per_out == 1:
        _as_groups(op, ax, at, channels_in, channels_out)
    else:
        _as_channels(op, ax, at, channels_in, channels_out)
    source, positions = (y, data) if _is_transposed(op) else (data, y)
    ax.fix(GroupCount(op.index, source.name, weights.name, _SHARED))
    kernel = [(weights, axis) for axis in range(weights.rank)]
    ax.macs((data, 0), *kernel, *((positions, axis) for axis in range(2, positions.rank)))
    ax.same(apart := _untouched(op, at.w), at.x)
    for tensor in (data, weights, y):
        for axis in range(2, tensor.rank):
            if tensor is weights or axis not in (*apart, *mixed):
                ax.freeze(ax.trace.axis(tensor, axis), f"{op.type} mixes this axis as a whole")


def _as_groups(op: Op, ax: Axes, at: Operands, channels_in: IntArray, channels_out: IntArray) -> None:
    """Relate whole groups: all channels in and out of one are one unit, nothing is summed away (depthwise Convs).

    Channels are int64[groups, channels of a group].
    """
    for block in (channels_in, channels_out):
        ax.tie(block[:, 1:], block[:, :1].repeat(block.shape[1] - 1, axis=1))
    ax.tie(channels_in[:, 0], channels_out[:, 0])
    ax.freeze(ax.input(at.w, _SHARED), "every group of the Conv shares it")
    weight = _grouped_weight(op, at)
    if op.need(at.w).constant and weight is not None:
        ax.linear(at.x, 1, weight)


def _as_channels(op: Op, ax: Axes, at: Operands, channels_in: IntArray, channels_out: IntArray) -> None:
    """Relate equal numbers: a unit is a channel in of every group, or a channel out, whichever go together best.

    Where every group has weights of its own for them, those are cut group by group. Channels are int64[groups, channels
    of a group].
    """
    data, weights, transposed = op.need(at.x), op.need(at.w), _is_transposed(op)
    shared, meets = ax.input(at.w, _SHARED), channels_out if transposed else channels_in
    own = (weights.name, _SHARED) if weights.stored else None
    ax.balance(channels_in, None if transposed else own, None if transposed else data.name)
    ax.balance(channels_out, own if transposed else None)
    if own is None:
        ax.tie(*Balance(meets).equal_places)
    ax.tie(shared, meets[0])
    ax.make(1)
    if weights.constant:
        ax.contract(at.x, 1, _grouped_weight(op, at), at.zero)
    elif at.zero is None and not data.constant:
        ax.contract(at.x, 1)
    else:
        ax.freeze(channels_in, f"{op.type} in groups has computed weights, and its data are codes or stored")


def _grouped_weight(op: Op, at: Operands) -> Weight | None:
    """Return how a Conv in groups adds its channels up; None of codes, of which nobody asks."""
    if at.zero is not None:
        return None
    sums, makes = (0, 1) if _is_transposed(op) else (1, 0)
    return Weight(at.w, sums, makes, 1, 1.0, _spread(op), int(op.attributes["group"]), at.added)


@rule("Gemm")
def gemm(op: Op, ax: Axes) -> None:
    """Y = alpha A' B' + beta C."""
    a = "k n" if op.attributes.get("transA") else "n k"
    b = "m k" if op.attributes.get("transB") else "k m"
    alpha, beta = float(op.attributes.get("alpha", 1.0)), float(op.attributes.get("beta", 1.0))
    along = beta and not op.need(0).constant  # C lies along m: with a constant A the positions made are n
    ax.relate(f"{a}, {b} -> n m", scale=alpha, bias=(2, beta) if along else None)
    if op.input(2) is not None:
        broadcast(op, ax, inputs=(2,))


@rule("Einsum")
def einsum(op: Op, ax: Axes) -> None:
    """The equation names the axes; a name on inputs alone is summed over."""
    given, result = terms_of(op.attributes)
    ranks = [op.need(k).rank for k in range(len(op.inputs))]
    terms = [_axis_names(term, rank) for term, rank in zip(given, ranks, strict=True)]
    if result is not None:
        terms.append(_axis_names(result, op.out().rank))
    else:  # what an ellipsis stands for, then the letters that stand once, in their order
        letters = "".join(given)
        once = sorted(c for c in set(letters) - {"."} if letters.count(c) == 1)
        terms.append([*sorted({c for t in terms for c in t if c.isdigit()}, reverse=True), *once])
    if any(len(set(term)) < len(term) for term in terms):
        raise RuleError("Einsum that takes a diagonal")
    names = {letter: f"n{k}" for k, letter in enumerate(sorted({c for term in terms for c in term}))}
    inputs = [" ".join(names[c] for c in term) for term in terms]
    ax.relate(",".join(inputs[:-1]) + "->" + inputs[-1])


def _axis_names(term: str, rank: int) -> list[str]:
    """Return a name for every axis of a term; those that its ellipsis stands for are numbers, from the last."""
    before, dots, after = term.partition("...")
    if not (before + after).isalpha() and before + after:
        raise RuleError(f"Einsum with a term {term!r}")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise RuleError(f"Einsum with a term {term!r} for {rank} axes")
    return [*before, *(str(k) for k in reversed(range(hidden))), *after]


@rule("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
def fused_matmul(op: Op, ax: Axes) -> None:
    """MatMul of tensors whose last two axes may be turned, times alpha.

    Where the batches of one are turned, its first axis stands for the last but one, and the batches follow it.
    """
    a, b, y = op.need(0), op.need(1), op.out()
    if min(a.rank, b.rank) < 2:
        raise RuleError(f"{op.type} with a vector")
    turned = [k for k, name in enumerate("AB") if op.attributes.get(f"transBatch{name}")]
    second = [-t.rank if k in turned else -2 for k, t in enumerate((a, b))]
    rows, inner_a = (-1, second[0]) if op.attributes.get("transA") else (second[0], -1)
    inner_b, columns = (-1, second[1]) if op.attributes.get("transB") else (second[1], -1)
    ax.tie(ax.input(0, rows), ax.output(0, -2))
    ax.tie(ax.input(1, columns), ax.output(0, -1))
    ax.tie(ax.input(0, inner_a), ax.input(1, inner_b))
    broadcast(op, ax, inputs=(0, 1), skip=2, turned=turned)
    if b.constant and not a.constant:
        alpha = float(op.attributes.get("alpha", 1.0))
        weight = Weight(1, inner_b % 2, columns % 2, y.rank - 1, alpha) if b.rank == 2 else None
        ax.contract(0, inner_a, weight)
        ax.make(-1)
    elif a.constant and not b.constant:
        ax.contract(1, inner_b)
        ax.make(-2)
    elif not a.constant:
        ax.contract(0, inner_a)
    ax.macs(*((y, axis) for axis in range(y.rank)), (a, a.rank + inner_a))


def _vector(ax: Axes, a: Tensor, b: Tensor, y: Tensor) -> None:
    """Relate a MatMul with a vector: no axis of the output is its own."""
    inner = -1, -1 if b.rank == 1 else -2
    for k, tensor in enumerate((a, b)):
        others = [axis for axis in range(tensor.rank) if axis != inner[k] % tensor.rank]
        for target, axis in enumerate(others):
            ax.carry(axis, target, k)
    ax.meet(inner[0], inner[1])
    if not (a.constant and b.constant):
        k = int(a.constant)
        ax.contract(k, inner[k], Weight(1, 0, 1, 0) if b.constant and b.rank == 2 else None)
        if y.rank and (a.constant or b.constant) and (b, a)[k].rank > 1:
            ax.make(-1)
    ax.macs(*((y, axis) for axis in range(y.rank)), (a, a.rank - 1))


@rule("MatMul")
def matmul(op: Op, ax: Axes) -> None:
    """The last axis of A meets the last but one of B; leading axes broadcast."""
    a, b, y = op.need(0), op.need(1), op.out()
    if min(a.rank, b.rank) < 2:
        _vector(ax, a, b, y)
        return
    ax.carry(-2, -2)
    ax.carry(-1, -1, 1)
    ax.meet(-1, -2)
    broadcast(op, ax, inputs=(0, 1), skip=2)
    if b.constant and not a.constant:
        ax.contract(0, -1, Weight(1, 0, 1, y.rank - 1) if b.rank == 2 else None)
        ax.make(-1)
    elif a.constant and not b.constant:
        ax.contract(1, -2, Weight(0, 1, 0, y.rank - 2) if a.rank == 2 else None)
        ax.make(-2)
    elif not a.constant:
        ax.contract(0, -1)
    ax.macs(*((y, axis) for axis in range(y.rank)), (a, a.rank - 1))
