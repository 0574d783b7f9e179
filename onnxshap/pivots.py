"""Which channels stand beside which: permutations that gather a Conv's energy in diagonal blocks.

The energy of a (channel out, channel in) pair is what it adds to the output's mean square, but for correlations of the
inputs: the squared norm of its kernel times the second moment of the channel in. In k groups a Conv keeps the pairs on
its diagonal blocks. Channels that several Convs share have one order for all of them, so that the orders are chosen
together: one set of channels after the other takes the places that keep most with the others where they are (a linear
assignment, solved exactly), round after round from several starts, until nothing is gained.

Source: Sredojevic et al. 2017 (matrix pivoting); differs: energies from calibration data, one order for all Convs that
share channels, alternating exact assignments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto
from scipy.optimize import linear_sum_assignment

from onnxshap.calibrate import channel_means
from onnxshap.core import Dataset, FloatArray, IntArray
from onnxshap.fixups import set_attribute
from onnxshap.graph import array, attributes, is_op, tensor
from onnxshap.groups import node_name
from onnxshap.permuting import Classes
from onnxshap.structure import copied
from onnxshap.tracing import Traced

STARTS = 8
"""Starts of a search for orders, one of them the present one."""
_ROUNDS = 50
_GAIN = 1e-9
"""Share of all energy by which another assignment has to keep more."""


@dataclass(frozen=True)
class Dense:
    """A Conv in one group.

    Attributes:
        name: its node's name.
        index: its node.
        x, y, w: tensors in and out, and the stored weights.
        energy: float64[out, in].
        ins, outs: classes of its channels, each once.
        macs: multiply-accumulates an image.
    """

    name: str
    index: int
    x: str
    y: str
    w: str
    energy: FloatArray
    ins: Classes
    outs: Classes
    macs: int

    def blocks(self, groups: int) -> tuple[IntArray, IntArray]:
        """Return the group of every place among the channels out and in."""
        outs, ins = self.energy.shape
        return np.arange(outs) * groups // outs, np.arange(ins) * groups // ins

    def kept(self, groups: int, placed: Classes) -> float:
        """Return the share of the energy on the diagonal blocks of a placement."""
        stands = self.energy[np.ix_(_stands(self.outs, placed), _stands(self.ins, placed))]
        outs, ins = self.blocks(groups)
        return float(stands[outs[:, None] == ins].sum() / max(float(self.energy.sum()), 1e-300))


@dataclass(frozen=True)
class Wanted:
    """A Conv to be split in groups, and what its energy is worth: lost, all of it costs `weight`."""

    conv: Dense
    groups: int
    weight: float = 1.0


def _stands(classes: Classes, placed: Classes) -> IntArray:
    """Return which old position stands at each position of an axis whose classes are there once."""
    sorter = np.argsort(classes)
    return np.asarray(sorter[np.searchsorted(classes, placed[classes], sorter=sorter)])


# --- what can be split -----------------------------------------------------------------------------------------------


def find_convs(traced: Traced, free: Traced, data: Dataset, movable: Sequence[Classes]) -> Iterator[Dense | str]:
    """Yield every Conv in one group, or its name and why it stays.

    Args:
        traced: the model.
        free: the same for evaluation (`calibrate.free_batch`).
        data: images to take the second moments of its inputs from.
        movable: the classes that may change places (`permuting.peers`).
    """
    shaped, labels = traced.shaped, traced.labels
    sites = [s for s in labels.trace.linear if s.weight is not None and is_op(shaped.graph.nodes[s.node], "Conv")]
    sites = [s for s in sites if int(attributes(shaped.graph.nodes[s.node]).get("group", 1)) == 1]
    moments = channel_means(free, data, [(s.tensor, s.axis) for s in sites], "square")
    moves, stored = np.zeros(len(labels.slots), np.bool_), shaped.graph.initializers
    for some in movable:
        moves[some] = True
    for site in sites:
        node, name = shaped.graph.nodes[site.node], node_name(shaped, site.node)
        w, y = node.input[1], node.output[0]
        ins, outs = labels.axis(site.tensor, 1), labels.axis(y, 1)
        assert ins is not None
        assert outs is not None
        if w not in stored or array(stored[w]).dtype.kind != "f":
            yield f"{name}: its weights are computed, or no floats"
        elif len(np.unique(ins)) < len(ins) or len(np.unique(outs)) < len(outs):
            yield f"{name}: a channel is there several times"
        elif not moves[ins].any() and not moves[outs].any():
            yield f"{name}: its channels cannot change places"
        else:
            values = array(stored[w]).astype(np.float64)
            squares = (values**2).reshape(*values.shape[:2], -1).sum(axis=2)
            macs = values.size * int(np.prod(shaped.shapes[y][2:])) * shaped.shapes[y][0] // shaped.batch
            energy = squares * moments[site.tensor, site.axis]
            yield Dense(name, site.node, site.tensor, y, w, energy, ins, outs, macs)


# --- orders ----------------------------------------------------------------------------------------------------------


@dataclass
class _Side:
    """Where a set of channels is on one side of a Conv: its positions there, in the set's order."""

    number: int
    outs: bool
    at: IntArray


@dataclass
class _Search:
    """Assignments of channels to places, improved set by set."""

    wanted: Sequence[Wanted]
    sets: Sequence[Classes]
    sides: list[list[_Side]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for some in self.sets:
            found = []
            for number, one in enumerate(self.wanted):
                for outs, classes in ((True, one.conv.outs), (False, one.conv.ins)):
                    if some[0] in classes:
                        sorter = np.argsort(classes)
                        found.append(_Side(number, outs, sorter[np.searchsorted(classes, some, sorter=sorter)]))
            self.sides.append(found)
        self.scale = [w.weight / max(float(w.conv.energy.sum()), 1e-300) for w in self.wanted]
        self.blocks = [w.conv.blocks(w.groups) for w in self.wanted]

    def standing(self, places: Sequence[IntArray]) -> list[list[IntArray]]:
        """Return the group of every channel out and in of each Conv; places: the place in its set of each channel."""
        found = [[b.copy() for b in blocks] for blocks in self.blocks]
        for sides, place in zip(self.sides, places, strict=True):
            for side in sides:
                self._stand(found, side, place)
        return found

    def _stand(self, standing: list[list[IntArray]], side: _Side, place: IntArray) -> None:
        part = 0 if side.outs else 1
        standing[side.number][part][side.at] = self.blocks[side.number][part][side.at[place]]

    def kept(self, standing: Sequence[Sequence[IntArray]], number: int) -> float:
        """Return what a Conv keeps, in units of its weight."""
        outs, ins = standing[number]
        energy = self.wanted[number].conv.energy
        return self.scale[number] * float(energy[outs[:, None] == ins].sum())

    def improve(self, places: list[IntArray], rng: np.random.Generator) -> float:
        """Give every set in turn the best places for it, until nothing is gained; return what is kept."""
        standing = self.standing(places)
        least = _GAIN * sum(w.weight for w in self.wanted)
        for _ in range(_ROUNDS):
            gained = 0.0
            for k in rng.permutation(len(self.sets)):
                touched = sorted({side.number for side in self.sides[k]})
                before = sum(self.kept(standing, number) for number in touched)
                _, place = linear_sum_assignment(self._gains(standing, k), maximize=True)
                for side in self.sides[k]:
                    self._stand(standing, side, place)
                more = sum(self.kept(standing, number) for number in touched) - before
                if more > least:
                    places[k], gained = place, gained + more
                else:
                    for side in self.sides[k]:
                        self._stand(standing, side, places[k])
            if not gained:
                break
        return sum(self.kept(standing, number) for number in range(len(self.wanted)))

    def _gains(self, standing: Sequence[Sequence[IntArray]], k: int) -> FloatArray:
        """Return what each channel of a set keeps at each place of it, the channels it meets where they are."""
        gains = np.zeros((len(self.sets[k]),) * 2)
        for side in self.sides[k]:
            one, (outs, ins) = self.wanted[side.number], standing[side.number]
            energy, met, part = (one.conv.energy, ins, 0) if side.outs else (one.conv.energy.T, outs, 1)
            by_block = energy[side.at] @ np.eye(one.groups)[met]
            gains += self.scale[side.number] * by_block[:, self.blocks[side.number][part][side.at]]
        return gains


def arrange(
    wanted: Sequence[Wanted], sets: Sequence[Classes], placed: Classes, rng: np.random.Generator, starts: int = STARTS
) -> Classes:
    """Return the placement found that keeps most of the Convs' energies on their diagonal blocks.

    Channels of none of them stay where they were.

    Args:
        wanted: Convs, their groups and weights.
        sets: classes that may change places (`permuting.peers`).
        placed: the placement to start from, which no other is worse than.
        rng: draws the other starts and the order of the sets.
        starts: how many.
    """
    touched = np.concatenate([placed[:0], *(part for w in wanted for part in (w.conv.ins, w.conv.outs))])
    sets = [some for some in sets if some[0] in touched]
    search = _Search(wanted, sets)
    first = [_places(some, placed) for some in sets]
    best, most = first, -np.inf
    for number in range(starts):
        places = list(first) if number == 0 else [rng.permutation(len(place)) for place in first]
        kept = search.improve(places, rng)
        if kept > most * (1 + _GAIN) or number == 0:
            best, most = places, kept
    found = np.arange(len(placed))
    for some, place in zip(sets, best, strict=True):
        found[some[place]] = some
    return found


def _places(some: Classes, placed: Classes) -> IntArray:
    """Return the place in its set of each class."""
    place = np.empty(len(some), np.int64)
    place[np.searchsorted(some, placed[some])] = np.arange(len(some))
    return place


# --- which Convs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ladder:
    """The numbers of groups that a Conv may have beside one, ascending, and what all of its energy is worth."""

    conv: Dense
    groups: tuple[int, ...]
    weight: float


def saved(conv: Dense, groups: int) -> int:
    """Return the multiply-accumulates that groups save."""
    return conv.macs - conv.macs // groups


def choose(
    ladders: Sequence[Ladder],
    most: int,
    sets: Sequence[Classes],
    placed: Classes,
    rng: np.random.Generator,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, int], Classes]:
    """Return the groups of the Convs that are split, by their outputs' names, and the placement.

    From the most groups everywhere, the step that saves most loss per multiply-accumulate is taken back, the orders
    chosen anew after each, as long as enough is saved.

    Args:
        ladders: the Convs and their numbers of groups.
        most: multiply-accumulates that have to be saved.
        sets, placed, rng: as in `arrange`.
        tell: told after every step.
    """
    steps = [(1, *ladder.groups) for ladder in ladders]
    level = [len(s) - 1 for s in steps]

    def wanted() -> list[Wanted]:
        triples = zip(ladders, steps, level, strict=True)
        return [Wanted(ladder.conv, s[k], ladder.weight) for ladder, s, k in triples if k]

    def lost(number: int, groups: int, placed: Classes) -> float:
        return ladders[number].weight * (1 - (ladders[number].conv.kept(groups, placed) if groups > 1 else 1.0))

    total = sum(level)
    while True:
        present = sum(saved(ladder.conv, s[k]) for ladder, s, k in zip(ladders, steps, level, strict=True))
        best, value = -1, -np.inf
        for number, (ladder, s, k) in enumerate(zip(ladders, steps, level, strict=True)):
            if not k:
                continue
            costs = saved(ladder.conv, s[k]) - saved(ladder.conv, s[k - 1])
            gain = (lost(number, s[k], placed) - lost(number, s[k - 1], placed)) / max(1, costs)
            if present - costs >= most and gain > value:
                best, value = number, gain
        if best < 0:
            break
        level[best] -= 1
        placed = arrange(wanted(), sets, placed, rng, starts=1)
        tell(total - sum(level), total)
    chosen = {ladder.conv.y: s[k] for ladder, s, k in zip(ladders, steps, level, strict=True) if k}
    return chosen, arrange(wanted(), sets, placed, rng)


# --- the models ------------------------------------------------------------------------------------------------------


def grouped(model: ModelProto, chosen: Mapping[str, int]) -> ModelProto:
    """Return a form of a model with Convs, by their outputs' names, in groups: the weights of their diagonal blocks."""
    made = copied(model)
    stored = {t.name: t for t in made.graph.initializer}
    for node in made.graph.node:
        if (groups := chosen.get(node.output[0], 1) if node.output else 1) > 1:
            weights = stored[node.input[1]]
            values = array(weights)
            blocks = [np.split(part, groups, 1)[k] for k, part in enumerate(np.split(values, groups))]
            weights.CopyFrom(tensor(weights.name, np.concatenate(blocks)))
            set_attribute(node, "group", groups)
    return made


def zeroed(model: ModelProto, chosen: Mapping[str, int]) -> ModelProto:
    """Return what `grouped` computes without groups: the same Convs with zeros off their diagonal blocks."""
    made = copied(model)
    stored = {t.name: t for t in made.graph.initializer}
    for node in made.graph.node:
        if (groups := chosen.get(node.output[0], 1) if node.output else 1) > 1:
            weights = stored[node.input[1]]
            values = array(weights)
            outs, ins = (np.arange(size) * groups // size for size in values.shape[:2])
            on = (outs[:, None] == ins).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
            weights.CopyFrom(tensor(weights.name, np.where(on, values, 0).astype(values.dtype)))
    return made
