"""Reductions: sums, means and extremes lose what is zero, of other reductions the axes that are reduced stay."""

from __future__ import annotations

from onnx import TensorProto

from onnxshap.labels import Axes, Op
from onnxshap.labels.fixups import Divisor, Extreme
from onnxshap.rules.registry import rule

_EXTREMES = {"GlobalMaxPool": "Max", "ReduceMax": "Max", "ReduceMin": "Min"}
MEANS = ("GlobalAveragePool", "ReduceMean")
"""Ops that add up and divide by how many there are."""
SUMS = (*MEANS, "ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
"""Ops that add up, each position by itself, and the root of such a sum."""


def reduced_axes(op: Op) -> set[int]:
    """Return the axes >= 0 that a Reduce op, a global pool or an ArgMax reduces."""
    rank = op.need(0).rank
    if op.type.startswith("Global"):
        return set(range(2, rank))
    if op.type.startswith("Arg"):
        return {int(op.attributes.get("axis", 0)) % rank}
    axes = op.ints(1, "axes")
    if not axes:
        return set() if op.attributes.get("noop_with_empty_axes") else set(range(rank))
    return {axis % rank for axis in axes}


@rule(
    *("ArgMax", "ArgMin", "GlobalAveragePool", "GlobalMaxPool", "ReduceL1", "ReduceL2", "ReduceLogSum"),
    *("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
def reduction(op: Op, ax: Axes) -> None:
    """What is left of the axes keeps its order; sums take no notice of positions that are zero.

    A mean is a sum over the width that the axis had, whatever is left of it; an extreme is compared with the zeros.
    """
    gone = reduced_axes(op)
    kept = [axis for axis in range(op.need(0).rank) if axis not in gone]
    where = kept if op.attributes.get("keepdims", 1) else range(len(kept))
    for axis, target in zip(kept, where, strict=True):
        ax.tie(ax.input(0, axis), ax.output(0, target))
    for axis in gone:
        atoms = ax.input(0, axis)
        if op.type in SUMS or _comparable(op):
            verb = "takes the extreme" if op.type in _EXTREMES else "sums"
            ax.contract(0, axis, why=f"{op.type} {verb} over it, and it is not zero there")
        else:
            ax.freeze(atoms, f"{op.type} reduces over it")
            ax.cross(axis)
    if 0 in gone and op.need(0).rank > 1 and not op.need(0).constant:
        ax.mix(0)
    if op.type in MEANS and gone:
        ax.fix(Divisor(op.index, op.need(0).name, tuple(sorted(gone))))
    if gone and _comparable(op):
        ax.fix(Extreme(op.index, op.need(0).name, tuple(sorted(gone)), _EXTREMES[op.type]))


def _comparable(op: Op) -> bool:
    """Return whether an op takes an extreme that a Max or Min of its opset can compare with zero."""
    numbers = op.opset >= 12 and op.need(0).kind != TensorProto.BOOL  # before, of floats alone
    return op.type in _EXTREMES and numbers


@rule("DFT")
def fourier(op: Op, ax: Axes) -> None:
    """A transform mixes one axis and makes the last one, of real and imaginary parts; the others keep apart."""
    default = int(op.attributes.get("axis", 1)) if op.opset < 20 else -2
    axis = (op.ints(2) or [default])[0] % op.out().rank
    ax.same(a for a in range(op.out().rank - 1) if a != axis)


@rule("CumProd", "CumSum")
def cumulative(op: Op, ax: Axes) -> None:
    """Running sums and products mix their axis."""
    axis = (op.ints(1) or [0])[0] % op.out().rank
    ax.same(a for a in range(op.out().rank) if a != axis)
