"""The pass: a traced model to one whose dense Convs are pairs, as far as they pay."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.cost import Split
from onnxshap.errors import ModelError, OnnxshapError
from onnxshap.factors.columns import columns_of
from onnxshap.factors.layers import Layer, kernel_of, layers_of
from onnxshap.factors.separable import separable
from onnxshap.graph import attributes, finish
from onnxshap.graph.structure import copied, refill, used_names
from onnxshap.graph.weights import Kept, initializer
from onnxshap.groups import Group
from onnxshap.tracing import Keep, Traced, trace
from onnxshap.verify import compare

LOW_RANK = ("spatial",)
"""How a Conv may be split: a column of its kernel, then a row."""
Samples = Sequence[Mapping[str, Array]]
_CHECKED_IMAGES = 16
_SAME = 1e-4
"""Of an output's largest magnitude, what it may differ by once Convs are split."""


def check_low_rank(low_rank: str | None, repair: str | None, allocation: str | None) -> None:
    """Refuse an unknown way to split layers, or one beside what does not go with it.

    Args:
        low_rank: one of `LOW_RANK`; None = no layer is split.
        repair, allocation: as asked for; None = what fits.

    Raises:
        OnnxshapError: it is one of these.
    """
    if low_rank is None:
        return
    if low_rank not in LOW_RANK:
        raise OnnxshapError(f"--low-rank {low_rank!r} is unknown; choose one of {', '.join(LOW_RANK)}")
    if repair not in (None, "lstsq", "distill"):
        raise OnnxshapError(f"--low-rank needs a refit; leave --repair {repair} out, or --low-rank")
    if allocation not in (None, "curves"):
        raise OnnxshapError(
            f"--low-rank shares out ranks beside widths, by what is lost at each; leave --allocation {allocation} (and "
            "--keep-units) out, or --low-rank"
        )


@dataclass(frozen=True)
class LowRank:
    """A Conv that became two.

    Attributes:
        node: its name.
        rank: the channels between them.
        most: with more of them it would have stayed one.
    """

    node: str
    rank: int
    most: int


@dataclass(frozen=True)
class _Part:
    """A Conv as two: its weights, what its channels between count, and the names of what is new."""

    layer: Layer
    columns: Array
    rows: Array
    energy: FloatArray
    split: Split
    node: str

    def nodes(self, node: NodeProto) -> list[NodeProto]:
        """Return the two in place of the one, whose name and output the second one keeps."""
        first, second = copied(node), copied(node)
        first.input[:] = [node.input[0], self.split.columns]
        first.output[:] = [self.split.between]
        second.input[:] = [self.split.between, self.split.rows, *node.input[2:]]
        first.name = self.node
        _, _, height, width = self.layer.shape
        given = attributes(node)
        for made, axis, kernel in ((first, 0, [height, 1]), (second, 1, [1, width])):
            _along(made, given, axis, kernel)
        return [first, second]


def _along(node: NodeProto, given: Mapping[str, Any], axis: int, kernel: Sequence[int]) -> None:
    """Let a Conv go along one axis: the other one's stride, dilation and padding are those of a kernel of 1."""
    other = 1 - axis
    wanted: dict[str, list[int]] = {"kernel_shape": list(kernel)}
    for name, neutral in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in given:
            values = list(given[name])
            for place in range(other, len(values), 2):
                values[place] = neutral
            wanted[name] = values
    kept = [copied(a) for a in node.attribute if a.name not in wanted]
    refill(node.attribute, [*kept, *(helper.make_attribute(name, values) for name, values in wanted.items())])


@dataclass(frozen=True)
class Factored:
    """A model with Convs as pairs.

    Attributes:
        traced, free: the model, as it would be in its file and for evaluation.
        original: the model that it was made of.
        groups: the groups of the original that may be cut, and behind them those of ranks.
        samples: inputs that the model is meant for (`tracing.trace`).
    """

    traced: Traced
    free: Traced
    original: Traced
    groups: Sequence[Group]
    _parts: Mapping[str, _Part]
    samples: Samples = ()

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
        """Return the model whose Convs are pairs only where that pays under a plan, and it for evaluation."""
        paying = self.paying(keep)
        if len(paying) == len(self._parts):
            return self.traced, self.free
        made = _traced_again(self.original, [self._parts[name] for name in paying], self.samples)
        return made, free_batch(made)

    def told(self, keep: Keep) -> tuple[LowRank, ...]:
        """Return the Convs that are two under a plan."""
        parts = [(self._parts[name].layer, keep[name]) for name in self.paying(keep)]
        return tuple(LowRank(layer.name, int(kept.sum()), layer.most) for layer, kept in parts)


def factored(
    traced: Traced, free: Traced, groups: Sequence[Group], data: Dataset, samples: Samples = ()
) -> Factored | None:
    """Return the model with its dense Convs as pairs in which narrow ranks lose least, None where it has none.

    It is held against the original on some inputs; where it differs by more than rounding, or costs something else,
    nothing is split.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut; a Conv that makes none of them, and makes or reads others, stays one.
        data: calibration inputs.
        samples: inputs that the model is meant for (`tracing.trace`).

    Raises:
        ModelError: the units of the split model are not those of the original.
    """
    chosen = {group.name for group in groups}
    own = {name for group in groups for name in group.producers}
    others = [group for group in traced.groups if group.name not in chosen]
    left = {name for group in others for name in (*group.producers, *group.consumers)} - own
    layers = [layer for layer in layers_of(traced) if layer.name not in left]
    if not layers:
        return None
    names, parts = traced.shaped.graph.names(), list[_Part]()
    for layer, seen in zip(layers, columns_of(free, layers, data), strict=True):
        columns, rows, energy = separable(kernel_of(traced, layer), seen.covariance, seen.correlation)
        between = names.new(f"{traced.shaped.graph.nodes[layer.node].output[0]}.rank")
        split = Split(names.new(f"{layer.weight}.columns"), names.new(f"{layer.weight}.rows"), between)
        named = traced.shaped.graph.nodes[layer.node].name
        node = names.node(f"{named}.rank") if named else between
        parts.append(_Part(layer, columns.astype(np.float32), rows.astype(np.float32), energy, split, node))
    made = _traced_again(traced, parts, samples)
    ranks = {group.producers: group for group in made.groups}
    found = [part for part in parts if len(ranks.get((part.node,), ())) == len(part.energy)]
    if not found:
        return None
    if len(found) < len(parts):
        made = _traced_again(traced, found, samples)
        ranks = {group.producers: group for group in made.groups}
    if (made.cost.macs(), made.cost.params()) != (traced.cost.macs(), traced.cost.params()):
        return None  # other bodies of an If are taken, or a loop runs otherwise
    part = data.take(slice(0, _CHECKED_IMAGES))
    before, after = (run_all(one, one.shaped.graph.model, part) for one in (traced, made))
    if not compare(after, before, before).rel_err <= _SAME:
        return None
    _check_units(traced, made, groups)
    again = {group.name: group for group in made.groups}
    every = [*(again[group.name] for group in groups), *(ranks[one.node,] for one in found)]
    return Factored(made, free_batch(made), traced, every, {ranks[one.node,].name: one for one in found}, samples)


def _traced_again(traced: Traced, parts: Sequence[_Part], samples: Samples) -> Traced:
    """Return a traced model with some Convs as pairs; `source` is still the original."""
    if not parts:
        return traced
    graph = traced.shaped.graph
    made, kept = copied(graph.model), Kept(graph.kept)
    at = {part.layer.node: part for part in parts}
    nodes = [n for k, node in enumerate(graph.nodes) for n in (at[k].nodes(node) if k in at else [node])]
    refill(made.graph.node, nodes)
    used = used_names(made.graph)
    refill(made.graph.initializer, [t for t in made.graph.initializer if t.name in used])
    for part in parts:
        for name, values in ((part.split.columns, part.columns), (part.split.rows, part.rows)):
            made.graph.initializer.append(initializer(name, np.ascontiguousarray(values), kept))
    sizes, axes = traced.shaped.inputs, traced.shaped.batch_axes
    found = trace(finish(made, graph), input_shapes=sizes, backend=traced.backend, samples=samples, batch_axes=axes)
    return replace(
        found, source=traced.source, files=traced.files, tail=traced.tail, path=traced.path,
        splits=tuple(part.split for part in parts),
    )  # fmt: skip


def _check_units(traced: Traced, made: Traced, groups: Collection[Group]) -> None:
    """Hold the units of a split model against the original's.

    Raises:
        ModelError: a group has other units, or they lie elsewhere on an axis that both have.
    """
    split = {group.name: group for group in made.groups}
    keys = [key for key in dict.fromkeys(traced.labels.trace.made) if key in made.labels.trace.axes]
    for group in groups:
        other = split.get(group.name)
        same = other is not None and len(other) == len(group)
        if other is not None and same:
            same = all(np.array_equal(_places(traced, key, group), _places(made, key, other)) for key in keys)
        if not same:
            raise ModelError(
                f"--low-rank: the units of group {group.name!r} are not the same ones once layers are split; leave "
                "--low-rank out, or exclude the layers"
            )


def _places(traced: Traced, key: tuple[str, int], group: Group) -> Array:
    """Return which units of a group lie at the positions of an axis, -1 where none does."""
    number = np.full(traced.labels.n_units + 1, -1)
    number[group.units] = np.arange(len(group))
    return np.asarray(number[traced.labels.units(*key)].max(axis=1))
