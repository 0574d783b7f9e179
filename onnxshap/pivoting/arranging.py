"""Which channels stand beside which: permutations that let the diagonal blocks of a Conv's weights explain its outputs.

Channels that several Convs share have one order for all of them, so that the orders are chosen together, by what they
explain (`convs`): one set of channels after the other takes better places with the others where they are, by a linear
assignment of what each channel would add to each group, or by the swaps in it that hold what they promise; round after
round from several starts, until nothing is gained.

Source: Sredojevic et al. 2017 (matrix pivoting); differs: what is left after a refit counts, not energy (after the
refit, orders by energy were hardly better than none), and one order for all Convs that share channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from onnxshap.core import FloatArray, IntArray
from onnxshap.pivoting.convs import Wanted, explained_by_group
from onnxshap.pivoting.permuting import Classes, positions

_STARTS = 8
"""Most starts of a search for orders, one of them the present one."""
_WORK = 10**9
"""Cubed widths of the Convs that all starts of a search may come to."""
_ROUNDS = 30
_GAIN = 1e-4
"""Share of all that there is to explain by which other places have to explain more."""


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
                        found.append(_Side(number, outs, positions(some, classes)))
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
            self._told = key, self.scale * explained_by_group(self.wanted.conv, self.wanted.groups, self.ins)
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
