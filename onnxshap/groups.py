"""Units that belong together, under names that a user can give: one group per set of weights that makes them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import BoolArray
from onnxshap.errors import ModelError
from onnxshap.graph.names import tensors_of
from onnxshap.graph.structure import graphs_of
from onnxshap.labels import Labels, components
from onnxshap.shapes import Shaped

MASKS = "onnxshap.mask."
"""What the name of a group's mask input is before the group's own."""


@dataclass(frozen=True)
class Group:
    """The players of one game.

    Attributes:
        name: the name of the first node that makes the units (its first output's name where it has none).
        units: int[n], unit ids, in the order of the producer's axis.
        producers: names of the nodes whose weights make the units.
        consumers: names of the nodes that sum the units away.
    """

    name: str
    units: NDArray[np.intp]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class FrozenAxis:
    """An axis that weights make and that stays, wholly or in part: why, and the node and op that make it."""

    tensor: str
    axis: int
    reason: str
    node: str = ""
    op: str = ""


def node_name(shaped: Shaped, index: int) -> str:
    """Return a node's name, or its first output's where it has none."""
    node = shaped.graph.nodes[index]
    return node.name or next(o for o in node.output if o)


def find_groups(shaped: Shaped, labels: Labels, costly: BoolArray) -> list[Group]:
    """Return the groups, in the order of their first producers; a unit is in one at most.

    Units are in one group when some weights make them side by side on one axis, or are linked by others that are. There
    is no group where nothing counts any less without its units (index arithmetic): none of them is `costly`, bool[n].
    """
    trace = labels.trace
    made = [(key, labels.units(*key)) for key in dict.fromkeys(trace.made)]
    chains = [units[units >= 0] for _, every in made for units in every.T]
    chains = [units for units in chains if len(units)]
    if not chains:
        return []
    one, next_one = (np.concatenate([units[at] for units in chains]) for at in (slice(None, -1), slice(1, None)))
    component = components(labels.n_units, one, next_one)
    counts = np.bincount(component[costly], minlength=labels.n_units)
    chains = [units for units in chains if counts[component[units[0]]]]
    if not chains:
        return []
    order = np.concatenate(chains)
    seen, places = np.unique(component[order], return_index=True)
    first = seen[np.argsort(places)].tolist()
    making = ((node_name(shaped, trace.producers[key]), units) for key, units in made)
    summing = ((node_name(shaped, site.node), labels.units(site.tensor, site.axis)) for site in trace.sites)
    producers, consumers = (_nodes_of(first, component, nodes) for nodes in (making, summing))
    every, places = np.unique(order, return_index=True)
    found = every[np.lexsort((places, component[every]))].astype(np.intp)
    parts = np.split(found, np.cumsum(np.bincount(component[every]))[:-1])
    names = _names(shaped, producers)
    return [Group(names[c], parts[c], tuple(producers[c]), tuple(consumers[c])) for c in first]


def _nodes_of(
    wanted: Sequence[int], component: NDArray[np.int32], nodes: Iterable[tuple[str, NDArray[np.intp]]]
) -> dict[int, list[str]]:
    """Return component -> the names of the nodes that have units of it, in order; nodes are names and their units."""
    found: dict[int, dict[str, None]] = {c: {} for c in wanted}
    for name, units in nodes:
        for c in found.keys() & np.unique(component[units[units >= 0]]).tolist():
            found[c].setdefault(name)
    return {c: list(names) for c, names in found.items()}


def _names(shaped: Shaped, producers: Mapping[int, Sequence[str]]) -> dict[int, str]:
    """Return what groups are called: as their first producers, with a number where that is taken, or its mask's name.

    `producers` are those of each group, in order.
    """
    nodes = {name for some in producers.values() for name in some}
    tensors = {name for part in graphs_of(shaped.graph.model.graph) for name in tensors_of(part)}
    used, found = Counter[str](), dict[int, str]()
    for group, (name, *_) in producers.items():
        used[name] += 1
        unique = name if used[name] == 1 else f"{name}#{used[name]}"
        while (unique != name and unique in nodes) or MASKS + unique in tensors:  # they may be called so
            used[name] += 1
            unique = f"{name}#{used[name]}"
        found[group] = unique
    return found


def frozen_axes(shaped: Shaped, labels: Labels) -> list[FrozenAxis]:
    """Return the axes that weights make and that cannot be cut everywhere, with the first reason."""
    found = []
    for tensor, axis in dict.fromkeys(labels.trace.made):
        classes = labels.axis(tensor, axis)
        assert classes is not None
        stuck = classes[(labels.slots[classes] < 0).all(axis=1)]
        if len(stuck):
            reason = labels.reasons.get(int(stuck[0]), "nothing that can be cut makes it")
            index = labels.trace.producers[tensor, axis]
            op = shaped.graph.nodes[index].op_type
            found.append(FrozenAxis(tensor, axis, reason, node_name(shaped, index), op))
    return found


def covers(labels: Labels) -> list[NDArray[np.intp]]:
    """Return sets of units, of each of which at least one must stay, so that no axis becomes empty.

    A position stays when all the units it depends on stay. Where the positions of an axis are all combinations of some
    units (heads x head size), one unit of each kind has to stay. Where they are some of the combinations (a part of
    such an axis), and no whole axis lies within them, the units of the first position stay.
    """
    alike = {c.tobytes(): c for key in labels.trace.axes if (c := labels.axis(*key)) is not None and len(c)}
    axes = {units.tobytes(): units for units in (labels.slots[classes] for classes in alike.values())}
    open_ = [np.unique(units, axis=0) for units in axes.values() if not (units < 0).all(axis=1).any()]
    plain = [(rows >= 0).sum(axis=1) == 1 for rows in open_]
    found: list[NDArray[np.intp]] = []
    whole: list[NDArray[np.intp]] = []
    for rows, single in zip(open_, plain, strict=True):
        if single.any():
            found.append(np.unique(rows[single].max(axis=1)))
        elif len(rows) == np.prod([len(np.unique(column)) for column in rows.T]):
            found += [np.unique(column) for column in rows.T if (column >= 0).all()]
            whole.append(rows)
    known = defaultdict(list)  # by one of their positions: only those can lie within an axis that has it
    for rows in whole:
        known[tuple(rows[0])].append({tuple(row) for row in rows})
    for rows, single in zip(open_, plain, strict=True):
        if single.any():
            continue
        positions = {tuple(row) for row in rows}
        if not any(grid <= positions for position in positions for grid in known.get(position, ())):
            found += [np.array([unit]) for unit in rows[0] if unit >= 0]
    return list({units.tobytes(): units for units in found}.values())


def select(groups: Sequence[Group], include: Sequence[str], exclude: Sequence[str]) -> list[Group]:
    """Return the groups whose name or a producer's name matches a pattern of `include` and none of `exclude`.

    Raises:
        ModelError: a pattern matches nothing.
    """

    def matches(group: Group, pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in (group.name, *group.producers))

    for pattern in (*include, *exclude):
        if not any(matches(g, pattern) for g in groups):
            names = ", ".join(g.name for g in groups[:5])
            raise ModelError(
                f"pattern {pattern!r} matches no group; groups are {names}, ... (onnxshap inspect lists them)"
            )
    return [
        g
        for g in groups
        if (not include or any(matches(g, p) for p in include)) and not any(matches(g, p) for p in exclude)
    ]
