"""Ops on 8-bit codes: code - zero point, times a scale. Codes are cut, never made anew.

A removed position holds the zero point, so that it adds nothing (`Site.zero`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxshap.core import IntArray
from onnxshap.labels import Axes, Op, Product, RuleError
from onnxshap.labels.fixups import HeadCount
from onnxshap.rules.linear import Operands, convolve
from onnxshap.rules.movement import concatenate
from onnxshap.rules.pointwise import broadcast
from onnxshap.rules.recurrent import keep_steps
from onnxshap.rules.registry import rule

_MS = "com.microsoft"
_RANGE = "{} takes the range of codes over it, and it is not zero there"


def _per_tensor(op: Op, *inputs: int) -> None:
    """Refuse scales and zero points of these inputs that differ from position to position."""
    for k in inputs:
        if (given := op.input(k)) is not None and max((1, *given.shape)) > 1:
            raise RuleError(f"{op.type} has a scale or zero point a position for its input {k}")


def _along(op: Op, ax: Axes, inputs: Sequence[int], weight: int, axis: int) -> None:
    """Tie scales and zero points that there is one of for every position of an axis of the weights."""
    for k in inputs:
        given = op.input(k)
        if given is not None and max((1, *given.shape)) > 1:
            if given.rank != 1:
                raise RuleError(f"{op.type} has scales of blocks")
            ax.tie(ax.input(k, 0), ax.input(weight, axis))


@rule("QuantizeLinear", "DequantizeLinear", f"{_MS}.QuantizeLinear", f"{_MS}.DequantizeLinear")
def quantize(op: Op, ax: Axes) -> None:
    """A scale and a zero point for all, one a position of an axis, or one a block of positions that go as a whole."""
    ax.same()
    scale, y = op.need(1), op.out()
    block, axis = int(op.attributes.get("block_size", 0)), int(op.attributes.get("axis", 1)) % max(1, y.rank)
    if (block or scale.rank > 1) and not (block and scale.rank == y.rank > 1):
        raise RuleError("scales of blocks of an unknown layout")  # of one axis a single block is none to onnxruntime
    for k in (k for k in range(1, len(op.inputs)) if op.input(k) is not None):
        if block:
            _of_runs(op, ax, k, [ax.output(0, a) for a in range(y.rank)], axis, block)
        elif scale.rank == 1 and scale.shape[0] > 1:
            ax.tie(ax.input(k, 0), ax.output(0, axis))


def _of_runs(op: Op, ax: Axes, k: int, axes: Sequence[IntArray], along: int, block: int) -> None:
    """Relate scales or zero points that a run of positions along one of some axes shares."""
    for axis, (made, size) in enumerate(zip(axes, op.need(k).shape, strict=True)):
        if axis != along:
            ax.tie(ax.input(k, axis), made)
        elif size * block == len(made):
            for position in made.reshape(size, block).T:
                ax.tie(position, ax.input(k, axis))
        else:
            for atoms in (made, ax.input(k, axis)):
                ax.freeze(atoms, f"{op.type} has scales of blocks that do not divide it")


@rule("DynamicQuantizeLinear")
def dynamic_quantize(op: Op, ax: Axes) -> None:
    """The range of codes is that of all values and 0: a zero does not change it, so positions are masked here."""
    ax.same()
    for axis in range(op.need(0).rank):
        ax.contract(0, axis, why=_RANGE.format(op.type))
    ax.share_range()


@rule("QLinearConv")
def qlinear_conv(op: Op, ax: Axes) -> None:
    """As Conv: x, its scale and zero point, w, its scale and zero point, those of y, bias."""
    _per_tensor(op, 1, 2, 6, 7)
    convolve(op, ax, Operands(x=0, w=3, bias=8, zero=2))
    _along(op, ax, (4, 5), weight=3, axis=0)


@rule("ConvInteger")
def conv_integer(op: Op, ax: Axes) -> None:
    """As Conv, on codes: x, w, their zero points; gives int32."""
    _per_tensor(op, 2)
    convolve(op, ax, Operands(bias=None, zero=2))
    _along(op, ax, (3,), weight=1, axis=0)


def _matmul(op: Op, ax: Axes, b: int, zeros: tuple[int | None, int | None]) -> None:
    """Relate A (input 0) times B (input `b`) of codes with their zero points."""
    a, w, y = op.need(0), op.need(b), op.out()
    if min(a.rank, w.rank) < 2:
        raise RuleError(f"{op.type} with a vector")
    ax.tie(ax.input(0, -2), ax.output(0, -2))
    ax.tie(ax.input(b, -1), ax.output(0, -1))
    ax.tie(ax.input(0, -1), ax.input(b, -2))
    broadcast(op, ax, inputs=(0, b), skip=2)
    if a.constant and not w.constant:
        ax.contract(b, -2, zero=zeros[1])
        ax.make(-2)
    elif not a.constant:
        ax.contract(0, -1, zero=zeros[0])
        if w.constant:
            ax.make(-1)
            ax.weigh(b)
    ax.macs(*((y, axis) for axis in range(y.rank)), (a, a.rank - 1))


@rule("QLinearMatMul")
def qlinear_matmul(op: Op, ax: Axes) -> None:
    """A, its scale and zero point, B, its scale and zero point, those of Y."""
    _per_tensor(op, 1, 2, 6, 7)
    _matmul(op, ax, b=3, zeros=(2, 5))
    _along(op, ax, (4, 5), weight=3, axis=-1)


@rule("MatMulInteger")
def matmul_integer(op: Op, ax: Axes) -> None:
    """A, B, their zero points; gives int32."""
    _per_tensor(op, 2)
    _matmul(op, ax, b=1, zeros=(2, 3))
    _along(op, ax, (3,), weight=1, axis=-1)


@rule(f"{_MS}.MatMulIntegerToFloat")
def matmul_integer_to_float(op: Op, ax: Axes) -> None:
    """A, B, their scales, their zero points, bias; gives floats."""
    _per_tensor(op, 2, 4)
    _matmul(op, ax, b=1, zeros=(4, 5))
    _along(op, ax, (3, 5, 6), weight=1, axis=-1)


@rule(f"{_MS}.DynamicQuantizeMatMul")
def dynamic_quantize_matmul(op: Op, ax: Axes) -> None:
    """Floats A, their range taken as they come; B, its scale and zero point, bias; gives floats."""
    if not op.need(1).constant:
        raise RuleError(f"{op.type} has computed weights")
    _matmul(op, ax, b=1, zeros=(None, None))
    _along(op, ax, (2, 3, 4), weight=1, axis=-1)
    for axis in range(op.need(0).rank - 1):
        ax.contract(0, axis, why=_RANGE.format(op.type))
    ax.share_range()


@rule(f"{_MS}.DynamicQuantizeLSTM")
def dynamic_quantize_lstm(op: Op, ax: Axes) -> None:
    """X [steps, images, in], its range taken as it comes; W [directions, in, gates]; what goes in is summed away.

    Hidden units stay: the range of their codes, step by step, is taken over all of them.
    """
    if not op.need(1).constant:
        raise RuleError(f"{op.type} has computed weights")
    ax.tie(ax.input(0, 2), ax.input(1, 1))
    ax.contract(0, 2, why=_RANGE.format(op.type))
    keep_steps(op, ax)
    for out, y in enumerate(op.outputs):
        if y is not None:
            ax.tie(ax.output(out, -2), ax.input(0, 1))
            ax.freeze(ax.output(out, -1), f"{op.type} takes the range of codes over its hidden units, step by step")
            ax.make(-1, out)
    for k in (5, 6):
        if op.input(k) is not None:
            ax.tie(ax.input(k, 1), ax.input(0, 1))
    for weights in (op.need(1), op.need(2)):
        ax.macs((op.need(0), 0), (op.need(0), 1), *((weights, axis) for axis in range(3)))
    ax.share_range()


@rule(f"{_MS}.QGemm")
def qgemm(op: Op, ax: Axes) -> None:
    """As Gemm: A, its scale and zero point, B, its scale and zero point, C, those of Y."""
    _per_tensor(op, 1, 2, 7, 8)
    rows, inner_a = (1, 0) if op.attributes.get("transA") else (0, 1)
    inner_b, columns = (1, 0) if op.attributes.get("transB") else (0, 1)
    a, b, y = op.need(0), op.need(3), op.out()
    if not b.constant or a.constant:
        raise RuleError(f"{op.type} has computed weights")
    ax.tie(ax.input(0, rows), ax.output(0, 0))
    ax.tie(ax.input(3, columns), ax.output(0, 1))
    ax.tie(ax.input(0, inner_a), ax.input(3, inner_b))
    ax.contract(0, inner_a, zero=2)
    ax.make(1)
    ax.weigh(3)
    _along(op, ax, (4, 5), weight=3, axis=columns)
    if op.input(6) is not None:
        broadcast(op, ax, inputs=(6,))
    ax.macs((y, 0), (y, 1), (a, inner_a))


@rule(f"{_MS}.QLinearAdd", f"{_MS}.QLinearMul")
def qlinear_binary(op: Op, ax: Axes) -> None:
    """A, its scale and zero point, B, its scale and zero point, those of C."""
    broadcast(op, ax, inputs=(0, 3))


@rule(f"{_MS}.QLinearLeakyRelu", f"{_MS}.QLinearSigmoid")
def qlinear_unary(op: Op, ax: Axes) -> None:
    """X, its scale and zero point, those of Y."""
    ax.same()


@rule(f"{_MS}.QLinearAveragePool", f"{_MS}.QLinearGlobalAveragePool")
def qlinear_pool(op: Op, ax: Axes) -> None:
    """Windows of space, channel by channel."""
    ax.same((0, op.out().rank - 1 if op.attributes.get("channels_last") else 1))


@rule(f"{_MS}.QLinearSoftmax")
def qlinear_softmax(op: Op, ax: Axes) -> None:
    """Divides by a sum over its axis; for opsets before 13 over that axis and all behind it."""
    rank = op.out().rank
    axis = int(op.attributes.get("axis", -1)) % rank
    last = axis + 1 if int(op.attributes.get("opset", 13)) >= 13 else rank
    ax.same(a for a in range(rank) if not axis <= a < last)


@rule(f"{_MS}.QLinearConcat")
def qlinear_concat(op: Op, ax: Axes) -> None:
    """Scale and zero point of Y, then every input with its own."""
    concatenate(op, ax, range(2, len(op.inputs), 3))


@rule(f"{_MS}.QLinearWhere")
def qlinear_where(op: Op, ax: Axes) -> None:
    """Condition, X, its scale and zero point, Y, its scale and zero point, those of Z."""
    broadcast(op, ax, inputs=(0, 1, 4))


@rule(f"{_MS}.GatherBlockQuantized")
def gather_of_blocks(op: Op, ax: Axes) -> None:
    """Codes, indices, a scale a block of codes (and a zero point): an embedding, or weights that are chosen."""
    codes, index, y, given = op.need(0), op.need(1), op.out(), op.attributes
    axis, along = (int(given.get(name, k)) % codes.rank for k, name in enumerate(("gather_axis", "quantize_axis")))
    behind = {a: a + (index.rank - 1) * (a > axis) for a in range(codes.rank) if a != axis}
    blocks = [op.input(k) for k in (2, 3) if op.input(k) is not None]
    if not codes.stored or index.constant or any(b is None or b.shape != op.need(2).shape for b in blocks):
        raise RuleError(f"{op.type} with computed or reordered codes, or indices that do not change")
    if any(codes.shape[a] != y.shape[out] for a, out in behind.items()):
        raise RuleError(f"{op.type} with several codes a byte")
    for a, out in behind.items():
        ax.tie(ax.input(0, a), ax.output(0, out))
        ax.make(out)
    ax.freeze(ax.input(0, axis), f"{op.type} looks positions up by number")
    for k in range(index.rank):
        ax.tie(ax.input(1, k), ax.output(0, axis + k))
    for k in range(2, 2 + len(blocks)):
        _of_runs(op, ax, k, [ax.input(0, a) for a in range(codes.rank)], along, int(given.get("block_size", 128)))


@rule(f"{_MS}.MatMulNBits")
def matmul_of_few_bits(op: Op, ax: Axes) -> None:
    """A [..., K], codes [N, blocks, bytes], a scale a block (and a zero point), bias [N].

    Blocks of inputs go as wholes, codes and scales of one with them; those whose zero points share a byte go together.
    """
    a, codes, scales, y = op.need(0), op.need(1), op.need(2), op.out()
    block, blocks, made = int(op.attributes["block_size"]), codes.shape[1], codes.shape[0]
    if not codes.stored or op.input(4) is not None or math.prod(scales.shape) != made * blocks:
        raise RuleError(f"{op.type} with computed or reordered codes")
    ax.same(range(y.rank - 1))
    ax.tie(ax.input(1, 0), ax.output(0, -1))
    ax.make(-1)
    if a.shape[-1] != block * blocks:
        ax.freeze(ax.input(0, -1), f"{op.type} holds its weights in blocks that cannot be cut")
        ax.freeze(ax.input(1, 1), f"{op.type} holds its weights in blocks that cannot be cut")
    for position in ax.input(0, -1).reshape(blocks, block).T if a.shape[-1] == block * blocks else ():
        ax.tie(position, ax.input(1, 1))
    ax.contract(0, -1)
    for k in (2, 3):
        _of_blocks(op, ax, k, made, blocks)
    if op.input(5) is not None:
        ax.tie(ax.input(5, 0), ax.output(0, -1))
    ax.macs(*((y, axis) for axis in range(y.rank)), (a, a.rank - 1))
    ax.fix(HeadCount(op.index, y.name, "N", y.rank - 1))
    ax.fix(HeadCount(op.index, a.name, "K", a.rank - 1))


def _of_blocks(op: Op, ax: Axes, k: int, made: int, blocks: int) -> None:
    """Relate scales or zero points of blocks, [N, blocks] or flat; several zero points may share a byte."""
    given = op.input(k)
    if given is None:
        return
    a_row, share = math.prod(given.shape) // made, 8 // int(op.attributes.get("bits", 4))
    if a_row == blocks:
        share = 1
    elif k == 2 or a_row != -(-blocks // share):
        raise RuleError(f"{op.type} with scales of an unknown layout")
    places = ax.input(1, 1)[::share]
    for offset in range(1, share):
        together = ax.input(1, 1)[offset::share]
        ax.tie(together, places[: len(together)])
    if given.shape == (made, a_row):
        ax.tie(ax.input(k, 0), ax.input(1, 0))
        ax.tie(ax.input(k, 1), places)
    elif given.shape == (made * a_row,):
        merged = ax.input(k, 0).reshape(made, a_row)
        ax.trace.products.append(Product(merged, (ax.input(1, 0), places), op.type))
    else:
        raise RuleError(f"{op.type} with scales of an unknown layout")
