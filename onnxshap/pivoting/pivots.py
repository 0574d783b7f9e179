"""Which channels stand beside which: permutations that let the diagonal blocks of a Conv's weights explain its outputs.

In k groups an output sees the inputs of its own group alone, and least squares then makes the best of those. How much
of the outputs' variance that explains is told by the covariance G of the channels in: with c = G w of a kernel's tap,

    explained = sum over outputs o and taps of c_S' inv(G_SS) c_S,        S = the inputs in the group of o,

each tap on its own. Were the inputs uncorrelated, that would be the energy on the diagonal blocks, squared norm of a
kernel times variance of its input. Channels that several Convs share have one order for all of them, so that the orders
are chosen together: one set of channels after the other takes better places with the others where they are, by a linear
assignment of what each channel would add to each group, or by the swaps in it that hold what they promise; round after
round from several starts, until nothing is gained.

Source: Sredojevic et al. 2017 (matrix pivoting); differs: what is left after a refit counts, not energy (after the
refit, orders by energy were hardly better than none), and one order for all Convs that share channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.linalg
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.calibrate import channel_covariances
from onnxshap.core import Dataset, FloatArray, IntArray
from onnxshap.graph import array, attributes, is_op
from onnxshap.graph.structure import copied
from onnxshap.graph.weights import set_values
from onnxshap.groups import node_name
from onnxshap.labels.fixups import set_attribute
from onnxshap.pivoting.permuting import Classes
from onnxshap.tracing import Traced

_STARTS = 8
"""Most starts of a search for orders, one of them the present one."""
_WORK = 10**9
"""Cubed widths of the Convs that all starts of a search may come to."""
_ROUNDS = 30
_GAIN = 1e-4
"""Share of all that there is to explain by which other places have to explain more."""
_RIDGE = 1e-3
"""Of the mean variance of the inputs, added to each."""


@dataclass(frozen=True)
class Dense:
    """A Conv in one group.

    Attributes:
        name: its node's name.
        index: its node.
        x, y, w: tensors in and out, and the stored weights.
        kernels: float64[out, in, taps], those weights.
        covariance: float64[in, in] of the channels in, a ridge added.
        ins, outs: classes of its channels, each once.
        macs: multiply-accumulates an image.
    """

    name: str
    index: int
    x: str
    y: str
    w: str
    kernels: FloatArray
    covariance: FloatArray
    ins: Classes
    outs: Classes
    macs: int

    @property
    def widths(self) -> tuple[int, int]:
        """Channels out and in."""
        return self.kernels.shape[0], self.kernels.shape[1]

    @cached_property
    def energy(self) -> FloatArray:
        """Squared norm of each kernel times the variance of its input, float64[out, in]."""
        return np.asarray((self.kernels**2).sum(axis=2) * np.diag(self.covariance))

    @cached_property
    def cross(self) -> FloatArray:
        """Covariance of the inputs with what the taps give, float64[in, out, taps]."""
        outs, ins, taps = self.kernels.shape
        return (self.covariance @ self.kernels.transpose(1, 0, 2).reshape(ins, -1)).reshape(ins, outs, taps)

    @cached_property
    def variance(self) -> float:
        """All there is to explain."""
        return max(float((self.kernels.transpose(1, 0, 2) * self.cross).sum()), 1e-300)

    def blocks(self, groups: int) -> tuple[IntArray, IntArray]:
        """Return the group of every place among the channels out and in."""
        outs, ins = self.widths
        return np.arange(outs) * groups // outs, np.arange(ins) * groups // ins

    def standing(self, groups: int, placed: Classes) -> tuple[IntArray, IntArray]:
        """Return the group of every channel out and in under a placement."""
        found = []
        for classes, block in zip((self.outs, self.ins), self.blocks(groups), strict=True):
            sorter = np.argsort(classes)
            group = np.empty_like(block)
            group[sorter[np.searchsorted(classes, placed[classes], sorter=sorter)]] = block
            found.append(group)
        return found[0], found[1]

    def explained(self, groups: int, placed: Classes) -> float:
        """Return the share of the outputs' variance that the groups explain under a placement, after a refit."""
        outs, ins = self.standing(groups, placed)
        return float(_by_group(self, groups, ins)[np.arange(len(outs)), outs].sum()) / self.variance

    def kept(self, groups: int, placed: Classes) -> float:
        """Return the share of the energy on the diagonal blocks of a placement."""
        outs, ins = self.standing(groups, placed)
        return float(self.energy[outs[:, None] == ins].sum() / max(float(self.energy.sum()), 1e-300))


def _by_group(conv: Dense, groups: int, ins: IntArray) -> FloatArray:
    """Return what the inputs of each group explain of each output, float64[out, groups]."""
    found = np.empty((conv.widths[0], groups))
    for k in range(groups):
        inside = np.flatnonzero(ins == k)
        factor = scipy.linalg.cholesky(conv.covariance[np.ix_(inside, inside)], lower=True)
        part = conv.cross[inside]
        half = scipy.linalg.solve_triangular(factor, part.reshape(len(inside), -1), lower=True)
        found[:, k] = (half**2).sum(axis=0).reshape(part.shape[1:]).sum(axis=1)
    return found


@dataclass(frozen=True)
class Wanted:
    """A Conv to be split in groups."""

    conv: Dense
    groups: int


# --- what can be split -----------------------------------------------------------------------------------------------


def find_convs(traced: Traced, free: Traced, data: Dataset, movable: Sequence[Classes]) -> Iterator[Dense | str]:
    """Yield every Conv in one group, or its name and why it stays.

    Args:
        traced: the model.
        free: the same for evaluation (`calibrate.free_batch`).
        data: images to take the covariances of its inputs from.
        movable: the classes that may change places (`permuting.peers`).
    """
    shaped, labels = traced.shaped, traced.labels
    sites = [s for s in labels.trace.linear if s.weight is not None and is_op(shaped.graph.nodes[s.node], "Conv")]
    sites = [s for s in sites if int(attributes(shaped.graph.nodes[s.node]).get("group", 1)) == 1]
    covariances = channel_covariances(free, data, [s.tensor for s in sites])
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
        elif not np.isfinite(covariances[site.tensor]).all():  # a branch of an If that the data do not take
            yield f"{name}: its inputs are not finite on the data"
        else:
            values = array(stored[w]).astype(np.float64)
            macs = values.size * int(np.prod(shaped.shapes[y][2:])) * shaped.shapes[y][0] // shaped.batch
            kernels, covariance = values.reshape(*values.shape[:2], -1), covariances[site.tensor]
            ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
            covariance = covariance + ridge * np.eye(len(covariance))
            yield Dense(
                name, site.node, site.tensor, y, w, kernels, covariance, ins.astype(np.intp), outs.astype(np.intp), macs
            )


# --- orders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """Where a set of channels is on one side of a Conv: its positions there, in the set's order."""

    number: int
    outs: bool
    at: IntArray


@dataclass
class _Fit:
    """What the groups of a Conv explain, as a share of all that there is, as channels change groups.

    Attributes:
        wanted: the Conv.
        outs, ins: int64[channels], the group of each.
    """

    wanted: Wanted
    outs: IntArray
    ins: IntArray
    _told: tuple[bytes, FloatArray] = (b"", np.empty(0))
    _met: tuple[bytes, list[FloatArray]] = (b"", [])

    def __post_init__(self) -> None:
        self.scale = 1 / self.wanted.conv.variance

    def value(self) -> float:
        """Return what is explained."""
        if self._told[0] != self.ins.tobytes() and self._met[0] == self.outs.tobytes():
            return self.scale * sum(self._trace(k, met) for k, met in enumerate(self._met[1]))
        return float(self.of_outs()[np.arange(len(self.outs)), self.outs].sum())

    def _trace(self, k: int, met: FloatArray) -> float:
        inside = np.flatnonzero(self.ins == k)
        at = np.ix_(inside, inside)
        return float(np.trace(scipy.linalg.solve(self.wanted.conv.covariance[at], met[at], assume_a="pos")))

    def of_outs(self) -> FloatArray:
        """Return what each group's inputs explain of each output, float64[out, groups]."""
        if self._told[0] != (key := self.ins.tobytes()):
            self._told = key, self.scale * _by_group(self.wanted.conv, self.wanted.groups, self.ins)
        return self._told[1]

    def of_ins(self) -> FloatArray:
        """Return what each input adds to what the others of each group explain of its outputs, float64[in, groups]."""
        covariance = self.wanted.conv.covariance
        found = np.empty((len(self.ins), self.wanted.groups))
        for k, met in enumerate(self._products()):
            own, other = np.flatnonzero(self.ins == k), np.flatnonzero(self.ins != k)
            inverse = np.linalg.inv(covariance[np.ix_(own, own)])
            inside, across = met[np.ix_(own, own)], covariance[np.ix_(own, other)]
            found[own, k] = np.einsum("ij,jk,ki->i", inverse, inside, inverse, optimize=True) / np.diag(inverse)
            through = inverse @ across  # what is left of the others once the own ones are taken account of
            left = np.diag(covariance)[other] - (across * through).sum(axis=0)
            rest = np.diag(met)[other] - 2 * (through * met[np.ix_(own, other)]).sum(axis=0)
            rest += (through * (inside @ through)).sum(axis=0)
            found[other, k] = rest / np.maximum(left, 1e-300)
        return self.scale * found

    def _products(self) -> list[FloatArray]:
        """Return, of each group, the products of the inputs' covariances with its outputs, float64[in, in]."""
        if self._met[0] != (key := self.outs.tobytes()):
            cross = self.wanted.conv.cross
            parts = [cross[:, self.outs == k].reshape(len(cross), -1) for k in range(self.wanted.groups)]
            self._met = key, [part @ part.T for part in parts]
        return self._met[1]


@dataclass
class _Search:
    """Places of channels, improved set by set.

    Attributes:
        wanted: the Convs.
        sets: the sets of channels.
        places: the place in its set of each channel.
    """

    wanted: Sequence[Wanted]
    sets: Sequence[Classes]
    places: list[IntArray]
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
        self.blocks = [w.conv.blocks(w.groups) for w in self.wanted]
        self.fits = [_Fit(w, outs.copy(), ins.copy()) for w, (outs, ins) in zip(self.wanted, self.blocks, strict=True)]
        for k, place in enumerate(self.places):
            self._stand(k, place)

    def _stand(self, k: int, place: IntArray) -> None:
        """Give the channels of a set other places."""
        for side in self.sides[k]:
            block, fit = self.blocks[side.number], self.fits[side.number]
            (fit.outs if side.outs else fit.ins)[side.at] = block[0 if side.outs else 1][side.at[place]]

    def improve(self, rng: np.random.Generator) -> float:
        """Give every set in turn better places, until nothing is gained; return what is explained."""
        least = _GAIN * len(self.wanted)
        for _ in range(_ROUNDS):
            if not sum(self._improve(int(k), least) for k in rng.permutation(len(self.sets))):
                break
        return sum(fit.value() for fit in self.fits)

    def _improve(self, k: int, least: float) -> float:
        """Give a set the first better places that are found; return what is gained."""
        touched = sorted({side.number for side in self.sides[k]})
        before, gains = sum(self.fits[number].value() for number in touched), self._gains(k)
        for place in self._trials(k, gains, least):
            self._stand(k, place)
            gained = sum(self.fits[number].value() for number in touched) - before
            if gained > least:
                self.places[k] = place
                return gained
        self._stand(k, self.places[k])
        return 0.0

    def _gains(self, k: int) -> FloatArray:
        """Return what each channel of a set adds at each place of it, all others where they are."""
        gains = np.zeros((len(self.sets[k]),) * 2)
        for side in self.sides[k]:
            fit, block = self.fits[side.number], self.blocks[side.number][0 if side.outs else 1]
            gains += (fit.of_outs() if side.outs else fit.of_ins())[side.at][:, block[side.at]]
        return gains

    def _trials(self, k: int, gains: FloatArray, least: float) -> Iterator[IntArray]:
        """Yield places to try: those that gain most if all gains add up, then ever fewer of the swaps that gain."""
        place = self.places[k]
        from scipy.optimize import linear_sum_assignment  # a sixth of all imports, for what one command needs

        _, best = linear_sum_assignment(gains, maximize=True)
        own = gains[np.arange(len(place)), place]
        if float((gains[np.arange(len(place)), best] - own).sum()) <= least:
            return
        yield np.asarray(best, np.int64)
        moved = gains[:, place] - own[:, None]
        both = np.triu(moved + moved.T)
        pairs, taken = list[tuple[int, int]](), set[int]()
        first, second = np.nonzero(both > 0)
        for number in np.argsort(-both[first, second], kind="stable"):
            pair = int(first[number]), int(second[number])
            if taken.isdisjoint(pair):
                pairs.append(pair)
                taken.update(pair)
        while pairs:
            changed = place.copy()
            for a, b in pairs:
                changed[[a, b]] = place[[b, a]]
            yield changed
            pairs = pairs[: len(pairs) // 2]


def arrange(
    wanted: Sequence[Wanted], sets: Sequence[Classes], placed: Classes, rng: np.random.Generator, starts: int = _STARTS
) -> Classes:
    """Return the placement found under which the Convs' groups explain most of their outputs.

    Channels of none of them stay where they were.

    Args:
        wanted: Convs and their groups; the outputs of each count alike.
        sets: classes that may change places (`permuting.peers`).
        placed: the placement to start from, which no other is worse than.
        rng: draws the other starts and the order of the sets.
        starts: at most how many; one where channels are many.
    """
    starts = max(1, min(starts, _WORK // max(1, sum(max(w.conv.widths) ** 3 for w in wanted))))
    touched = np.concatenate([placed[:0], *(part for w in wanted for part in (w.conv.ins, w.conv.outs))])
    sets = [some for some in sets if some[0] in touched]
    first = [_places(some, placed) for some in sets]
    best, most = first, -np.inf
    for number in range(starts):
        places = list(first) if number == 0 else [rng.permutation(len(place)) for place in first]
        search = _Search(wanted, sets, places)
        explained = search.improve(rng)
        if explained > most + _GAIN * abs(most) or number == 0:
            best, most = search.places, explained
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
    """The numbers of groups that a Conv may have beside one, ascending, and what its outputs are worth.

    Worth counts in which Convs are split; in their orders it does not: there it was measured to do harm.
    """

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
        return [Wanted(ladder.conv, s[k]) for ladder, s, k in triples if k]

    def lost(number: int, groups: int, placed: Classes) -> float:
        return ladders[number].weight * (1 - (ladders[number].conv.explained(groups, placed) if groups > 1 else 1.0))

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
    for node, weights, groups in _chosen_convs(made, chosen):
        parts = np.split(array(weights), groups)
        blocks = [np.split(part, groups, 1)[k] for k, part in enumerate(parts)]
        set_values(weights, np.concatenate(blocks))
        set_attribute(node, "group", groups)
    return made


def zeroed(model: ModelProto, chosen: Mapping[str, int]) -> ModelProto:
    """Return what `grouped` computes without groups: the same Convs with zeros off their diagonal blocks."""
    made = copied(model)
    for _, weights, groups in _chosen_convs(made, chosen):
        values = array(weights)
        outs, ins = (np.arange(size) * groups // size for size in values.shape[:2])
        on = (outs[:, None] == ins).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
        set_values(weights, np.where(on, values, 0).astype(values.dtype))
    return made


def _chosen_convs(model: ModelProto, chosen: Mapping[str, int]) -> Iterator[tuple[NodeProto, TensorProto, int]]:
    """Yield the Convs that get several groups, their weights, to be changed in place, and how many."""
    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.output and (groups := chosen.get(node.output[0], 1)) > 1:
            yield node, stored[node.input[1]], groups
