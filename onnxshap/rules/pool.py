"""Ops that mix space and leave channels alone."""

from __future__ import annotations

import numpy as np

from onnxshap.labels import Axes, Op, RuleError
from onnxshap.labels.fixups import Widths
from onnxshap.rules.registry import rule
from onnxshap.shapes.folding import COMPUTED


@rule("AveragePool", "GlobalLpPool", "LpPool", "MaxPool")
def pool(op: Op, ax: Axes) -> None:
    """Windows of space, channel by channel; where it found its maxima, MaxUnpool alone may read."""
    if len(op.outputs) > 1 and (places := op.outputs[1]) is not None:
        if places.readers - {"MaxUnpool"}:
            raise RuleError("MaxPool gives out indices, which count channels")
        ax.trace.numbers.append(places.name)
        ax.same((0, 1), out=1)
    ax.same((0, 1))
    sizes, rank = op.attributes.get("kernel_shape", ()), op.need(0).rank
    moves, pads = op.attributes.get("strides", [1] * len(sizes)), op.attributes.get("pads", [0] * 2 * len(sizes))
    for k, window in enumerate(sizes):
        if window == moves[k] == 1 and pads[k] == pads[k + len(sizes)] == 0:
            ax.same([rank - len(sizes) + k])


@rule("MaxUnpool")
def unpool(op: Op, ax: Axes) -> None:
    """Places that numbers say: those of a MaxPool that the same channels are cut of, of all images together."""
    places, sizes = op.need(1), op.input(2)
    if places.name not in ax.trace.numbers or (sizes is not None and sizes.value is None):
        raise RuleError("MaxUnpool reads indices, which count channels")
    ax.same((0, 1))
    ax.same((0, 1), inp=1)
    if sizes is not None:
        ax.fix(Widths(op.index, ((1, op.out().name, 1),), input=2))


@rule("Resize", "Upsample")
def resize(op: Op, ax: Axes) -> None:
    """Axes of equal size and scale 1 pass through, the others are mixed.

    A size behind the first two that follows the inputs' tells nothing without a scale: it may be equal by chance.
    """
    if op.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise RuleError("Resize crops")
    x, y = op.need(0), op.out()
    axes = [int(a) % x.rank for a in op.attributes.get("axes", range(x.rank))]
    scales = op.input(2 if op.type == "Resize" and op.opset >= 11 else 1)
    factors = dict(enumerate(op.attributes.get("scales", ())))  # of opsets 7 and 8
    if scales is not None and scales.shape != (0,):
        given = scales.value if scales.part is None else scales.part
        if given is None:
            raise RuleError(f"{op.type} gets its scales from the data")
        factors = dict(zip(axes, np.ravel(given).tolist(), strict=True))
    sizes = op.input(3) if op.type == "Resize" and op.opset >= 11 else None
    if op.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":  # one scale for all that are named
        factors |= dict.fromkeys(axes, 0.0)
    # 8 channels at a scale of 1.1 are 8 channels, each of two
    alike = [a for a in range(x.rank) if x.shape[a] == y.shape[a] and factors.get(a, 1.0) == 1.0]
    kept = [a for a in alike if a < 2 or a in factors or a not in x.free]
    ax.same(kept)
    if sizes is not None and sizes.shape != (0,):
        given = sizes.value if sizes.part is None else sizes.part
        if given is None:
            given = np.full(len(axes), COMPUTED)
        for axis, size in zip(axes, np.ravel(given).tolist(), strict=True):
            if size == COMPUTED and axis in kept:
                ax.freeze(ax.input(0, axis), f"{op.type} gets its sizes from the data")
        entries = tuple((i, y.name, a) for i, a in enumerate(axes) if a in kept and given[i] != COMPUTED)
        ax.fix(Widths(op.index, entries, input=3))


@rule("GridSample", "com.microsoft.GridSample")
def grid_sample(op: Op, ax: Axes) -> None:
    """Space is sampled where a grid says, channel by channel."""
    ax.same((0, 1))
    ax.tie(ax.input(1, 0), ax.output(0, 0))


@rule("MaxRoiPool", "RoiAlign")
def regions(op: Op, ax: Axes) -> None:
    """Regions of images, channel by channel; there are as many as the regions."""
    ax.same([1])
