"""Normalisations: per channel where the statistics are, frozen where channels are mixed."""

from __future__ import annotations

from collections.abc import Sequence

from onnxshap.fixups import GroupCount, RootMeanSquare
from onnxshap.labels import Axes, Op, RuleError
from onnxshap.rules.registry import rule


@rule("BatchNormalization")
def batch_normalization(op: Op, ax: Axes) -> None:
    """Four parameters a channel; space passes through."""
    if op.attributes.get("training_mode") or sum(o is not None for o in op.outputs) > 1:
        raise RuleError("BatchNormalization in training mode")
    ax.same()
    for k in range(1, 5):
        ax.carry(0, 1, k)


@rule("InstanceNormalization")
def instance_normalization(op: Op, ax: Axes) -> None:
    """Statistics of one channel's space: channels stay apart, space is mixed."""
    ax.relate("n c _*, c, c -> n c _*")


@rule("LayerNormalization")
def layer_normalization(op: Op, ax: Axes) -> None:
    """Statistics over the last axes, from `axis` on: those stay; the axes before them are apart."""
    axis = int(op.attributes.get("axis", -1)) % op.out().rank
    ax.same(range(axis))
    for a in range(axis, op.out().rank):
        ax.freeze(ax.input(0, a), f"{op.type} divides by statistics over it")
        ax.freeze(ax.output(0, a), f"{op.type} divides by statistics over it")


@rule("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(op: Op, ax: Axes) -> None:
    """Divides by a root mean square, which is a sum: it goes on dividing by the width that the axes had."""
    axis = int(op.attributes.get("axis", -1)) % op.out().rank
    ax.same(range(axis))
    root_mean_square(op, ax, (0,), range(axis, op.out().rank), scale=1)


def root_mean_square(op: Op, ax: Axes, data: Sequence[int], axes: Sequence[int], scale: int) -> None:
    """Relate the last axes, over which the squares of the sum of some inputs are taken."""
    x, factor = op.need(data[0]), op.need(scale)
    if not factor.stored or factor.shape != x.shape[axes[0] :]:
        raise RuleError(f"{op.type} with a computed scale, or one for several positions")
    for axis in axes:
        for k in data:
            ax.same([axis], k)
            ax.contract(k, axis)
        ax.tie(ax.input(scale, axis - x.rank), ax.output(0, axis))
    default = 1e-12 if "Skip" in op.type else 1e-5
    ax.fix(RootMeanSquare(op.index, x.name, tuple(axes), scale, default))


@rule("GroupNormalization")
def group_normalization(op: Op, ax: Axes) -> None:
    """Statistics over the channels of a group: a group's channels go together."""
    if op.opset < 21:
        raise RuleError("GroupNormalization before opset 21 has its scales a group, not a channel")
    groups, channels = int(op.attributes["num_groups"]), ax.output(0, 1)
    blocks = channels.reshape(groups, -1)
    ax.tie(blocks[:, 1:], blocks[:, :1].repeat(blocks.shape[1] - 1, axis=1))
    ax.same((0, 1))
    for k in (1, 2):
        ax.tie(ax.input(k, 0), channels)
    ax.fix(GroupCount(op.index, op.out().name, op.out().name, 1, "num_groups", blocks.shape[1]))


@rule("LRN")
def lrn(op: Op, ax: Axes) -> None:
    """Sums over neighbouring channels: removing one would change the others."""
    ax.same(axis for axis in range(op.out().rank) if axis != 1)
    for atoms in (ax.input(0, 1), ax.output(0, 1)):
        ax.freeze(atoms, "LRN sums over neighbouring channels")


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op, ax: Axes) -> None:
    """Divides by a sum over its axis; before opset 13 over that axis and all behind it."""
    rank = op.out().rank
    axis = int(op.attributes.get("axis", -1 if op.opset >= 13 else 1)) % rank
    mixed = range(axis, rank if op.opset < 13 else axis + 1)
    ax.same(a for a in range(rank) if a not in mixed)
    for a in mixed:
        ax.freeze(ax.input(0, a), f"{op.type} divides by a sum over it")
        ax.freeze(ax.output(0, a), f"{op.type} divides by a sum over it")


@rule("LpNormalization")
def lp_normalization(op: Op, ax: Axes) -> None:
    """Divides by a norm over its axis."""
    axis = int(op.attributes.get("axis", -1)) % op.out().rank
    ax.same(a for a in range(op.out().rank) if a != axis)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: Op, ax: Axes) -> None:
    """Statistics over some axes, by default over images and space: those stay."""
    mixed = {int(a) % op.out().rank for a in op.attributes.get("axes", (0, 2, 3))}
    ax.same(a for a in range(op.out().rank) if a not in mixed)
    if 0 in mixed:
        ax.mix_rows()
