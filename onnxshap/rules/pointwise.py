"""Ops that treat every position alike: unary, broadcasting, and those with parameters a channel."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnxshap.labels import Axes, Op
from onnxshap.rules.registry import rule


def broadcast(
    op: Op, ax: Axes, inputs: Sequence[int] | None = None, skip: int = 0, turned: Collection[int] = ()
) -> None:
    """Tie inputs to every output as numpy broadcasts them; `skip` last axes are left out, of `turned` inputs the first.

    An axis of size 1 that is stretched to a wider one stays: removing it would remove all positions. What is stretched
    over constants is made there, by them.
    """
    chosen = [k for k, t in enumerate(op.inputs) if t is not None] if inputs is None else inputs
    first = {k: int(k in turned) for k in chosen}
    sizes = {k: op.need(k).shape[first[k] : op.need(k).rank - skip + first[k]] for k in chosen}
    for out, y in enumerate(op.outputs):
        if y is None:
            continue
        rank = y.rank - skip
        for axis in range(0 if y.constant else rank):
            wide = [k for k in chosen if ((1,) * rank + sizes[k])[axis - rank] > 1]
            if wide and len(chosen) > len(wide) and all(op.need(k).constant for k in wide):
                ax.make(axis, out)
        for k in chosen:
            for axis, size in enumerate(sizes[k]):
                target = axis + rank - len(sizes[k])
                if size == y.shape[target]:
                    ax.carry(axis + first[k], target, k, out)
                else:
                    ax.freeze(ax.input(k, axis + first[k]), f"{op.type} stretches it over a wider axis")


@rule(
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos", "Cosh"),
    *(
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
    ),
    *(
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
    ),
    *("com.microsoft.Gelu", "com.microsoft.QuickGelu", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
def unary(op: Op, ax: Axes) -> None:
    """One position in, the same position out."""
    ax.same()


@rule(
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum"),
    *("Where", "Xor", "com.microsoft.BiasGelu", "com.microsoft.FastGelu"),
)
def elementwise(op: Op, ax: Axes) -> None:
    """Any number of inputs, broadcast."""
    broadcast(op, ax)


@rule("Dropout")
def dropout(op: Op, ax: Axes) -> None:
    """Identity at inference; the mask has the same axes. Told to train, it draws others for other widths."""
    training = op.input(2)
    for k, out in enumerate(op.outputs):
        if out is not None:
            ax.same(out=k)
    if training is not None and (training.value is None or training.value.any()):
        for axis in range(op.out().rank):
            ax.freeze(ax.output(0, axis), "Dropout drops at random here, as in training; export after model.eval()")


@rule("CastLike")
def cast_like(op: Op, ax: Axes) -> None:
    """The second input lends its type alone: whatever it loses."""
    ax.same()
    for axis in range(op.need(1).rank):
        ax.input(1, axis)


@rule("Trilu", "com.microsoft.Trilu")
def trilu(op: Op, ax: Axes) -> None:
    """Zeros beside a diagonal of the last two axes; those stay."""
    ax.same(range(op.out().rank - 2))
