"""Normalisations: per channel where the statistics are, frozen where channels are mixed."""

from __future__ import annotations

from collections.abc import Sequence

from onnxshap.labels import Axes, Op, RuleError
from onnxshap.labels.fixups import GroupCount, Refilled, RootMeanSquare, Statistics
from onnxshap.rules.registry import rule


@rule("BatchNormalization")
def batch_normalization(op: Op, ax: Axes) -> None:
    """Four parameters a channel; space passes through."""
    if op.attributes.get("training_mode") or sum(o is not None for o in op.outputs) > 1:
        raise RuleError("BatchNormalization in training mode")
    if not op.attributes.get("spatial", 1):
        raise RuleError("BatchNormalization with parameters for every position")
    ax.same()
    for k in range(1, 5):
        ax.carry(0, 1, k)


def as_a_whole(
    op: Op,
    ax: Axes,
    axes: Sequence[int],
    why: str,
    data: Sequence[int] = (0,),
    parameters: Sequence[int] = (),
    outputs: Sequence[int] = (0,),
    ordered: bool = False,
) -> None:
    """Relate axes of which every entry depends on all: where some are removed, the op goes on seeing zeros there.

    They stay where that cannot be written: sizes that follow the inputs, or parameters that are computed. Arguments
    as in `fixups.Refilled`, for inputs and outputs that are there.

    Args:
        why: what the op does over the axes, in words.
    """
    first = op.need(data[0])
    for k in parameters:
        given = op.need(k)
        if not given.constant or given.shape != first.shape[axes[-1] + 1 - given.rank : axes[-1] + 1]:
            why += f", with a computed input {k} or one of another shape"
            break
    else:
        above = {k: first.rank - op.need(k).rank for k in data}  # a table of positions is the same for all images
        alike = all(op.need(k).shape[axes[0] - above[k] :] == first.shape[axes[0] :] for k in data)
        if alike and not first.free.intersection(axes):
            for axis in axes:
                for k in data:
                    ax.contract(k, axis - above[k], why=f"{op.type} {why} over it, and it is not zero there")
                    for out in outputs:
                        ax.carry(axis - above[k], axis, k, out)
            for k in parameters:
                rank = op.need(k).rank
                for axis in range(rank):
                    ax.tie(ax.input(k, axis), ax.output(0, axes[-1] + 1 - rank + axis))
            ax.fix(
                Refilled(
                    op.index, first.name, tuple(axes), op.opset, tuple(data), tuple(parameters), tuple(outputs), ordered
                )
            )
            return
    ax.cross(*axes)
    stay(ax, axes, f"{op.type} {why} over it", data, outputs)


def stay(ax: Axes, axes: Sequence[int], reason: str, data: Sequence[int], outputs: Sequence[int]) -> None:
    """State that axes of some inputs and outputs stay."""
    for axis in axes:
        for atoms in (*(ax.input(k, axis) for k in data), *(ax.output(out, axis) for out in outputs)):
            ax.freeze(atoms, reason)


STATISTICS = "takes statistics"


@rule("InstanceNormalization")
def instance_normalization(op: Op, ax: Axes) -> None:
    """Statistics of one channel's space: channels stay apart.

    Where there is one channel, as exporters write a GroupNormalization of one group, it is the space that is cut.
    """
    x = op.need(0)
    if x.shape[1] > 1:
        return ax.relate("n c _*, c, c -> n c _*")
    ax.same((0,))
    space = range(2, x.rank)
    if not x.free.intersection(space):
        return as_a_whole(op, ax, space, STATISTICS)
    for axis in space:
        ax.same((axis,))
        ax.contract(0, axis, why="InstanceNormalization takes statistics over it, and it is not zero there")
    return ax.fix(Statistics(op.index, x.name, tuple(space), op.opset))


@rule("LayerNormalization")
def layer_normalization(op: Op, ax: Axes) -> None:
    """Statistics over the last axes, from `axis` on, which may be outputs too; the axes before them are apart."""
    axis = int(op.attributes.get("axis", -1)) % op.out().rank
    for out, y in enumerate(op.outputs):
        if y is not None:
            ax.same(range(axis), out=out)
    parameters = [k for k in (1, 2) if op.input(k) is not None]
    as_a_whole(op, ax, range(axis, op.out().rank), STATISTICS, parameters=parameters)


@rule("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(op: Op, ax: Axes) -> None:
    """Divides by a root mean square, which is a sum: it goes on dividing by the width that the axes had."""
    axis = int(op.attributes.get("axis", -1)) % op.out().rank
    ax.same(range(axis))
    root_mean_square(op, ax, (0,), range(axis, op.out().rank), scale=1)


def root_mean_square(op: Op, ax: Axes, data: Sequence[int], axes: Sequence[int], scale: int) -> None:
    """Relate the last axes, over which the squares of the sum of some inputs are taken."""
    if any(y is not None and y.readers for y in op.outputs[1:3]):
        raise RuleError(f"{op.type} whose root mean square is read, too")
    x, factor = op.need(data[0]), op.need(scale)
    if not factor.constant or factor.shape != x.shape[axes[0] :]:
        raise RuleError(f"{op.type} with a computed scale, or one for several positions")
    for axis in axes:
        for k in data:
            ax.same([axis], k)
            ax.contract(k, axis, why=f"{op.type} takes the root mean square over it, and it is not zero there")
        ax.tie(ax.input(scale, axis - x.rank), ax.output(0, axis))
    default = 1e-12 if "Skip" in op.type else 1e-5
    ax.fix(RootMeanSquare(op.index, x.name, tuple(axes), scale, default))


@rule("GroupNormalization")
def group_normalization(op: Op, ax: Axes) -> None:
    """Statistics over the channels of a group: a group's channels go together, those of a single one do not."""
    if op.opset < 21:
        raise RuleError("GroupNormalization before opset 21 has its scales a group, not a channel")
    if (groups := int(op.attributes["num_groups"])) == 1:
        ax.same((0,))
        return as_a_whole(op, ax, (1,), STATISTICS, parameters=(1, 2))
    channels = ax.output(0, 1)
    blocks = channels.reshape(groups, -1)
    ax.tie(blocks[:, 1:], blocks[:, :1].repeat(blocks.shape[1] - 1, axis=1))
    ax.same((0, 1))
    for k in (1, 2):
        ax.tie(ax.input(k, 0), channels)
    return ax.fix(GroupCount(op.index, op.out().name, op.out().name, 1, "num_groups", blocks.shape[1]))


@rule("LRN")
def lrn(op: Op, ax: Axes) -> None:
    """Sums over neighbouring channels: those that are left keep their distance."""
    ax.same(axis for axis in range(op.out().rank) if axis != 1)
    as_a_whole(op, ax, (1,), "sums over neighbours", ordered=True)


@rule("Softmax", "LogSoftmax")
def softmax(op: Op, ax: Axes) -> None:
    """Divides by a sum over its axis, in which what is removed goes on counting as exp(0); see `_mixed`."""
    as_a_whole(op, ax, _mixed(op, ax), "divides by a sum")


@rule("Hardmax")
def hardmax(op: Op, ax: Axes) -> None:
    """Chooses the first of the largest over its axis, which a zero would become; see `_mixed`."""
    stay(ax, _mixed(op, ax), "Hardmax chooses over it", (0,), (0,))


def _mixed(op: Op, ax: Axes) -> range:
    """Return the axes that an op like Softmax mixes, the others apart: one, before opset 13 it and all behind it."""
    rank = op.out().rank
    axis = int(op.attributes.get("axis", -1 if op.opset >= 13 else 1)) % rank
    mixed = range(axis, rank if op.opset < 13 else axis + 1)
    ax.same(a for a in range(rank) if a not in mixed)
    ax.cross(*mixed)
    return mixed


@rule("LpNormalization")
def lp_normalization(op: Op, ax: Axes) -> None:
    """Divides by a norm over its axis, which zeros do not change."""
    axis = int(op.attributes.get("axis", -1)) % op.out().rank
    ax.same()
    ax.contract(0, axis, why="LpNormalization takes a norm over it, and it is not zero there")


@rule("MeanVarianceNormalization")
def mean_variance_normalization(op: Op, ax: Axes) -> None:
    """Statistics over some axes, by default over images and space."""
    mixed = sorted({int(a) % op.out().rank for a in op.attributes.get("axes", (0, 2, 3))})
    ax.same(a for a in range(op.out().rank) if a not in mixed)
    as_a_whole(op, ax, mixed, STATISTICS)
    if 0 in mixed:
        ax.mix(0)
