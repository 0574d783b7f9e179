"""The pass: a traced model to one whose layers are pairs, as far as they pay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxshap.arguments import listed
from onnxshap.calibrate import free_batch
from onnxshap.core import Dataset, FloatArray
from onnxshap.cost import Split
from onnxshap.errors import OnnxshapError
from onnxshap.factors.bearing import Bearing, ranks_of
from onnxshap.factors.columns import IMAGES, columns_of
from onnxshap.factors.layers import LOW_RANK, kernel_of, layers_of
from onnxshap.factors.pairs import Part, Samples, traced_again
from onnxshap.factors.separable import separable
from onnxshap.groups import Group
from onnxshap.progress import Progress, silent
from onnxshap.tracing import Keep, Traced

_MAY = {
    "spatial": "those that may are dense Convs with float weights of their own and kernels of two axes",
    "all": "those that may are dense Convs, Gemms and MatMuls with float weights of their own",
}
"""Which layers may be two."""
_ENDLESS = "its weights, or what it reads of the data, are not all finite"


def check_low_rank(low_rank: str | None, repair: str | None, allocation: str | None, *, uniform: bool = False) -> None:
    """Refuse an unknown way to split layers, or one beside what does not go with it.

    Args:
        low_rank: one of `LOW_RANK`; None = no layer is split.
        repair, allocation: as asked for; None = what fits.
        uniform: whether the budget is a share of every group.

    Raises:
        OnnxshapError: it is one of these.
    """
    if low_rank is None:
        return
    if low_rank not in LOW_RANK:
        raise OnnxshapError(f"--low-rank {low_rank!r} is unknown; choose one of {', '.join(LOW_RANK)}")
    if repair not in (None, "lstsq", "distill"):
        raise OnnxshapError(f"--low-rank needs a refit; leave --repair {repair} out, or --low-rank")
    if uniform or allocation not in (None, "curves"):
        other = "--keep-units" if uniform else f"--allocation {allocation}"
        raise OnnxshapError(
            f"--low-rank shares out ranks beside widths, by what is lost at each; leave {other} out, or --low-rank"
        )


def notes_on(low_rank: str | None, became_two: bool, left: Mapping[str, str]) -> Iterator[str]:
    """Yield what the user should know of layers that stayed one.

    Args:
        low_rank: as asked for; None = nothing was, and nothing is said.
        became_two: whether a layer did.
        left: the layers that may not, and why.
    """
    if low_rank is not None and not became_two:
        yield (
            f"--low-rank: no layer became two; {_MAY[low_rank]}, where fewer channels between lose less than fewer "
            "filters"
        )
    for why in dict.fromkeys(left.values()):
        named = [name for name, own in left.items() if own == why]
        yield f"--low-rank: {listed(named)} stay as in the file: {why}"


@dataclass(frozen=True)
class LowRank:
    """A layer that became two.

    Attributes:
        node: its name.
        rank: the channels between them.
        most: with more of them it would have stayed one.
    """

    node: str
    rank: int
    most: int


@dataclass(frozen=True)
class Factored:
    """A model with layers as pairs.

    Attributes:
        traced, free: the model, as it would be in its file and for evaluation.
        original, original_free: the model that it was made of.
        groups: the groups of the original that may be cut, and behind them those of ranks.
        samples: inputs that the model is meant for (`tracing.trace`).
        left: the names of layers that were not borne as two, and why.
    """

    traced: Traced
    free: Traced
    original: Traced
    original_free: Traced
    groups: Sequence[Group]
    _parts: Mapping[str, Part]
    samples: Samples = ()
    left: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, FloatArray]:
        """What the channels of every rank count, group name -> float64[n]: in order."""
        return {name: part.energy for name, part in self._parts.items()}

    @cached_property
    def most(self) -> dict[str, int]:
        """The widest ranks that pay while all filters stay, group name -> channels."""
        return {name: part.layer.most for name, part in self._parts.items()}

    def paying(self, keep: Keep) -> list[str]:
        """Return the groups of those ranks that are so narrow under a plan that they pay."""
        pays = self.traced.cost.pays(self.traced.alive(keep))
        return [name for name, taken in zip(self._parts, pays, strict=True) if taken]

    def written(self, keep: Keep) -> tuple[Traced, Traced]:
        """Return the model whose layers are pairs only where that pays under a plan, and it for evaluation."""
        paying = self.paying(keep)
        if len(paying) == len(self._parts):
            return self.traced, self.free
        made = traced_again(self.original, [self._parts[name] for name in paying], self.samples)
        return made, free_batch(made)

    def told(self, keep: Keep) -> tuple[LowRank, ...]:
        """Return the layers that are two under a plan."""
        parts = [(self._parts[name].layer, keep[name]) for name in self.paying(keep)]
        return tuple(LowRank(layer.name, int(kept.sum()), layer.most) for layer, kept in parts)


def factored(
    traced: Traced,
    free: Traced,
    groups: Sequence[Group],
    data: Dataset,
    low_rank: str,
    samples: Samples = (),
    progress: Progress = silent,
) -> Factored:
    """Return the model with its layers as pairs in which narrow ranks lose least; it may have none.

    It is held against the original on some inputs: layers that change its units, its cost, or its outputs by more than
    rounding stay one.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut; a layer that makes none of them, and makes or reads others, stays one.
        data: calibration inputs.
        low_rank: which layers, one of `LOW_RANK`.
        samples: inputs that the model is meant for (`tracing.trace`).
        progress: told after every batch of inputs and every layer, as stage `split`.
    """
    chosen = {group.name for group in groups}
    own = {name for group in groups for name in group.producers}
    others = [group for group in traced.groups if group.name not in chosen]
    left = {name for group in others for name in (*group.producers, *group.consumers)} - own
    layers = [layer for layer in layers_of(traced, low_rank) if layer.name not in left]
    if not layers:
        return Factored(traced, free, traced, free, groups, {}, samples)
    seen_on = data.take(slice(0, IMAGES))
    total = len(seen_on) + len(layers)
    names, parts, unknown = traced.shaped.graph.names(), list[Part](), dict[str, str]()
    every = columns_of(free, layers, seen_on, lambda images: progress("split", images, total))
    for number, (layer, seen) in enumerate(zip(layers, every, strict=True)):
        progress("split", len(seen_on) + number, total)
        kernel = kernel_of(traced, layer)
        if not (seen.finite and np.isfinite(kernel).all()):
            unknown[layer.name] = _ENDLESS
            continue
        columns, rows, energy = separable(kernel, seen.covariance, seen.correlation)
        between = names.new(f"{traced.shaped.graph.nodes[layer.node].output[0]}.rank")
        split = Split(names.new(f"{layer.weight}.columns"), names.new(f"{layer.weight}.rows"), between, layer.how)
        named = traced.shaped.graph.nodes[layer.node].name
        node = names.node(f"{named}.rank") if named else between
        parts.append(Part(layer, columns, rows, energy, split, node))
    bearing = Bearing(traced, groups, data, samples)
    found, made = bearing.of(parts), bearing.made
    ranks, again = ranks_of(made), {group.name: group for group in made.groups}
    progress("split", total, total)
    return Factored(
        made, free_batch(made) if found else free, traced, free,
        [*(again[group.name] for group in groups), *(ranks[one.node] for one in found)],
        {ranks[one.node].name: one for one in found}, samples, unknown | bearing.left,
    )  # fmt: skip
