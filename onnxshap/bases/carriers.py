"""Where the units of a group are: the constants that make and read them, and the tensors in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from onnx import TensorProto

from onnxshap.core import IntArray
from onnxshap.groups import Group
from onnxshap.labels import AxisKey, Labels, Site, components
from onnxshap.tracing import Traced

Tag = tuple[int, ...]
"""Units of other groups that a position depends on beside its own: the head of a channel in a head."""


@dataclass(frozen=True)
class Spots:
    """Where the units of a group lie on an axis that holds each of them equally often.

    Attributes:
        at: int[occurrences, units], positions.
        tags: of every occurrence.
    """

    at: IntArray
    tags: tuple[Tag, ...]

    def same(self, other: Spots) -> bool:
        """Return whether units lie on two axes in the same way."""
        return self.tags == other.tags and np.array_equal(self.at, other.at)


@dataclass(frozen=True)
class Entry:
    """An axis of an initializer that holds the units.

    Attributes:
        name: the initializer.
        axis: the axis.
        spots: where the units lie.
        reads: whether the axis is summed over with the units; else it makes them.
        stretch: the number of the stretch that it belongs to.
    """

    name: str
    axis: int
    spots: Spots
    reads: bool
    stretch: int


@dataclass(frozen=True)
class Carriers:
    """All places of a group's units.

    Attributes:
        group: the group.
        entries: the initializers that hold them.
        stretches: tensors between which the units lie in the same way, each by its (tensor, axis), and how they lie.
        between: the nodes that read them and hand them on.
        sites: where they are summed away, in graph order.
    """

    group: Group
    entries: Sequence[Entry]
    stretches: Sequence[tuple[Sequence[AxisKey], Spots]]
    between: Sequence[int]
    sites: Sequence[Site]

    @property
    def tensors(self) -> dict[str, int]:
        """Tensor that holds the units -> the number of its stretch."""
        return {tensor: k for k, (part, _) in enumerate(self.stretches) for tensor, _ in part}

    def spots(self, stretch: int) -> Spots:
        """Return where the units lie on the axes of a stretch."""
        return self.stretches[stretch][1]


def spots_of(labels: Labels, key: AxisKey, group: Group) -> Spots | None:
    """Return where units of a group lie on an axis, None where some are there more often than others."""
    units = labels.units(*key)
    place = np.full(labels.n_units + 1, -1)
    place[group.units] = np.arange(len(group))
    member = place[units]
    positions = np.flatnonzero((member >= 0).any(axis=1))
    own = member[positions]
    if not len(positions) or ((own >= 0).sum(axis=1) > 1).any() or len(positions) % len(group):
        return None
    number = own.max(axis=1)
    order = np.argsort(number, kind="stable")
    counts = np.bincount(number, minlength=len(group))
    if (counts != len(positions) // len(group)).any():
        return None
    at = positions[order].reshape(len(group), -1).T
    others = np.sort(np.where(own >= 0, -1, units[positions]), axis=1)[order].reshape(*at.T.shape, -1)
    if (others != others[:1]).any():
        return None
    tags = tuple(tuple(int(u) for u in row if u >= 0) for row in others[0])
    return Spots(at.astype(np.int64), tags)


def keys_by_group(traced: Traced, groups: Sequence[Group]) -> dict[str, list[AxisKey]]:
    """Return the axes that hold units of each group."""
    labels = traced.labels
    owner = np.full(labels.n_units + 1, -1)
    for number, group in enumerate(groups):
        owner[group.units] = number
    found: dict[str, list[AxisKey]] = {group.name: [] for group in groups}
    for key in labels.trace.axes:
        numbers = owner[labels.units(*key)]
        for number in np.unique(numbers[numbers >= 0]).tolist():
            found[groups[number].name].append(key)
    return found


def carriers_of(traced: Traced, group: Group, keys: Sequence[AxisKey]) -> Carriers | None:
    """Return the places of a group's units, None where they are such that no basis but their own is known to do.

    Units in the bodies of loops, in groups of a Conv, on two axes of one activation, unevenly often on one axis, and
    those that constants hold which are no floats or are computed otherwise than by moving, are such.

    Args:
        traced: the model.
        group: the group.
        keys: the axes that hold its units.
    """
    shaped, stored, sites = traced.shaped, traced.shaped.graph.initializers, traced.sites([group])
    spots = {key: found for key in keys if (found := spots_of(traced.labels, key, group)) is not None}
    moving = [key for key in keys if key[0] not in shaped.constants and key[0] not in stored]
    own = dict(moving)
    if (
        not own
        or len(spots) < len(keys)
        or len(own) < len(moving)
        or any(traced.depth(tensor) for tensor in own)
        or any(s.stored or (s.weight is not None and s.weight.groups > 1) for s in sites)
    ):
        return None
    summed = {(s.node, s.tensor) for s in sites}
    links, between = list[tuple[str, str]](), []
    for index, node in enumerate(shaped.graph.nodes):
        given = [i for i in dict.fromkeys(node.input) if i in own and (index, i) not in summed]
        made = [o for o in node.output if o in own]
        if given and made:
            between.append(index)
        for i, o in product(given, made):
            if spots[i, own[i]].same(spots[o, own[o]]):
                links.append((i, o))
    number_of = {name: number for number, name in enumerate(own)}
    ends = np.array([(number_of[i], number_of[o]) for i, o in links], np.int32).reshape(-1, 2)
    parts: dict[int, list[AxisKey]] = {}
    for key, part in zip(own.items(), components(len(own), *ends.T).tolist(), strict=True):
        parts.setdefault(part, []).append(key)
    places = Carriers(group, [], [(part, spots[part[0]]) for part in parts.values()], between, sites)
    entries, number = [], places.tensors
    for name, axis in keys:
        if name not in stored:
            continue  # an activation, or computed of what is stored
        met = _read_at(traced, name, axis, sites, own, number)
        if met is None or shaped.kinds.get(name) != TensorProto.FLOAT:
            return None
        reads, stretch = met
        found, like = spots[name, axis], places.spots(stretch)
        if found.at.shape != like.at.shape or found.tags != like.tags:
            return None
        entries.append(Entry(name, axis, found, reads, stretch))
    return replace(places, entries=entries) if any(not e.reads for e in entries) else None


def _read_at(
    traced: Traced, name: str, axis: int, sites: Sequence[Site], own: Mapping[str, int], number: Mapping[str, int]
) -> tuple[bool, int] | None:
    """Return whether an axis of a constant is summed over with the units, and the stretch that it meets."""
    shaped, labels = traced.shaped, traced.labels
    found = set[tuple[bool, int] | None]()
    for index in shaped.readers.get(name, ()):
        node = shaped.graph.nodes[index]
        moved = [o for o in node.output if o in shaped.constants]  # a weight, before it is read
        if moved:
            units = labels.units(name, axis)
            alike = [
                (o, a) for o in moved for a in range(len(shaped.shapes[o])) if np.array_equal(labels.units(o, a), units)
            ]
            found |= {_read_at(traced, o, a, sites, own, number) for o, a in alike}
            continue
        met = [s for s in sites if s.node == index and (s.weight is None or _is_summed(node.input, s, name, axis))]
        if met:
            found |= {(True, number[s.tensor]) for s in met if s.tensor in number}
        else:
            found |= {(False, number[o]) for o in node.output if o in own}
    return found.pop() if len(found) == 1 else None


def _is_summed(inputs: Sequence[str], site: Site, name: str, axis: int) -> bool:
    return site.weight is not None and inputs[site.weight.input] == name and site.weight.sums == axis
