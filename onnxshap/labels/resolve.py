"""Atoms joined into classes that live or die together, products of them followed to a fixpoint."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import Array, BoolArray, IntArray
from onnxshap.labels.balance import balanced_sets
from onnxshap.labels.components import components
from onnxshap.labels.factors import by_chance, in_order, refined
from onnxshap.labels.trace import AxisKey, Balance, Frozen, Product, Trace


@dataclass(frozen=True)
class Labels:
    """The resolved relations.

    Attributes:
        classes: int[n_atoms], atom -> class.
        slots: int[n_classes, k], class -> the units it depends on, padded with -1: dead iff one of them is dead. A
            class with no unit is frozen.
        n_units: number of units; unit ids are 0 .. n_units - 1, in order of their first atom.
        reasons: class -> reason, for frozen classes.
        trace: the relations themselves.
    """

    classes: NDArray[np.int32]
    slots: NDArray[np.intp]
    n_units: int
    reasons: Mapping[int, str]
    trace: Trace

    def axis(self, tensor: str, axis: int) -> NDArray[np.int32] | None:
        """Return the classes of an axis, None where no op mentions it."""
        atoms = self.trace.axes.get((tensor, axis))
        return None if atoms is None else self.classes[atoms.start : atoms.stop]

    def units(self, tensor: str, axis: int) -> NDArray[np.intp]:
        """Return int[n, k], the units that each position of an axis depends on, padded with -1."""
        classes = self.axis(tensor, axis)
        return np.empty((0, self.slots.shape[1]), np.intp) if classes is None else self.slots[classes]

    def made_of(self, units: IntArray) -> IntArray:
        """Return the atoms of the units themselves, not those of what is merged of them and others."""
        alone = (self.slots >= 0).sum(axis=1) == 1
        return np.flatnonzero((alone & np.isin(self.slots, units).any(axis=1))[self.classes])

    def uneven(self, balance: Balance) -> bool:
        """Return whether the i-th channels of the groups of a Conv are not the same units."""
        found = self.classes[balance.blocks]
        return bool((found[1:] != found[:1]).any())

    @functools.cached_property
    def blockwise(self) -> dict[AxisKey, IntArray]:
        """Axis of a grouped weight -> the channels' atoms [groups, positions] that its positions stand for."""
        return {b.weight: b.blocks for b in self.trace.balances if b.weight is not None and self.uneven(b)}

    def alive(self, keep: BoolArray) -> Liveness:
        """Return which positions stay when the units with `keep` bool[n_units] stay."""
        padded = np.append(keep, True)
        columns = (padded[column] for column in self.slots.T)  # far quicker than all() over a short axis
        return Liveness(self, functools.reduce(np.logical_and, columns))


@dataclass(frozen=True)
class Liveness:
    """Which positions stay under one plan."""

    labels: Labels
    classes: BoolArray

    def axis(self, tensor: str, axis: int) -> BoolArray | None:
        """Return bool[n] for an axis, None where nothing of it can go."""
        found = self.labels.axis(tensor, axis)
        return None if found is None else self.classes[found]

    def width(self, tensor: str, axis: int, size: int) -> int:
        """Return how many of an axis' `size` positions stay."""
        alive = self.axis(tensor, axis)
        return size if alive is None else int(alive.sum())

    def cut(self, tensor: str, axis: int) -> bool:
        """Return whether an axis loses positions."""
        alive = self.axis(tensor, axis)
        return alive is not None and not alive.all()

    def shape(self, tensor: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a tensor's shape once it is cut."""
        return tuple(self.width(tensor, axis, size) for axis, size in enumerate(shape))

    def narrowed(self, tensor: str, values: Array) -> Array:
        """Return the values of a whole tensor at the positions that stay; of more images than it was traced with, too.

        Images that share an axis with positions (heads) lie one behind the other.
        """
        for axis, places in self.places(tensor, values.shape):
            values = values.take(places, axis)
        return values

    def places(self, tensor: str, shape: Sequence[int]) -> list[tuple[int, IntArray]]:
        """Return the axes of a tensor that are cut, and which positions stay of each; as `narrowed`."""
        found = [(axis, self.axis(tensor, axis), size) for axis, size in enumerate(shape) if self.cut(tensor, axis)]
        return [(axis, np.flatnonzero(np.resize(alive, size))) for axis, alive, size in found if alive is not None]


def resolve(trace: Trace) -> Labels:
    """Return classes and units of the relations.

    Products are resolved to a fixpoint: a frozen factor turns a product into ties with the others, a merged position
    that is frozen freezes its factors, two factorisations are refined until they are equal (`factors`), two equal ones
    tie factor to factor, whatever two products cannot both express freezes the smaller factor, and all of both where
    they agree at these sizes alone. Then classes are joined until all of them leave grouped Convs balanced.
    """
    classes = components(trace.size, *trace.ties.pairs())
    frozen = trace.frozen.copy()
    for stays, why in _counted(trace, classes):
        frozen.add(stays, why)
    while True:
        is_frozen = np.zeros(classes.max(initial=-1) + 1, np.bool_)
        is_frozen[classes[frozen.atoms()]] = True
        products, new_ties, new_frozen = _simplify(refined(trace.products, classes), classes, is_frozen)
        if not new_ties and not new_frozen:
            new_ties, new_frozen = _balanced(trace.balances, products, classes, is_frozen)
        if not new_ties and not new_frozen:
            break
        classes = _joined(classes, len(is_frozen), new_ties)
        for item in new_frozen:
            frozen.add(item.atoms, item.reason)
    is_unit = _made(trace, products, classes) & ~is_frozen
    slots = _slots(is_unit, products, classes)
    return Labels(classes, slots, int(is_unit.sum()), frozen.by_class(classes), trace)


def _made(trace: Trace, products: Sequence[Product], classes: NDArray[np.int32]) -> BoolArray:
    """Return bool[n_classes]: whether weights make a class, itself; of merged positions those that make them up."""
    count = int(classes.max(initial=-1)) + 1
    made, derived = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    for key in trace.made:
        if (atoms := trace.axes.get(key)) is not None:
            made[classes[atoms.start : atoms.stop]] = True
    for product in products:
        merged = classes[product.merged]
        derived[merged] = True
        for factor in _spread(product):
            made[classes[factor[made[merged]]]] = True
    return made & ~derived


def _slots(is_unit: BoolArray, products: Sequence[Product], classes: NDArray[np.int32]) -> NDArray[np.intp]:
    """Return the units that each class depends on, as in `Labels`: itself, or all factors of a merged position."""
    unit_of = np.full(len(is_unit), -1, np.intp)
    unit_of[is_unit] = np.arange(int(is_unit.sum()))
    slots = np.full((len(is_unit), max([1, *(len(p.factors) for p in products)])), -1, np.intp)
    slots[:, 0] = unit_of
    for product in products:
        for k, factor in enumerate(_spread(product)):
            slots[classes[product.merged], k] = unit_of[classes[factor]]
    return slots


def _spread(product: Product) -> Sequence[IntArray]:
    """Return for every factor which of its atoms each merged position is made of, in the shape of those."""
    return np.broadcast_arrays(*np.ix_(*product.factors))


def _counted(trace: Trace, classes: NDArray[np.int32]) -> list[tuple[IntArray, str]]:
    """Return what stays of axes whose sizes are computed or read, and why: all but what lies there beside free ones."""
    axes = [(np.arange(trace.axes[key].start, trace.axes[key].stop), reason) for key, reason in trace.counted]
    beside = [p for p in trace.products if 0 < len(p.free) < len(p.factors)] if axes else []
    merged = {classes[p.merged].tobytes(): p for p in beside}
    found = list[tuple[IntArray, str]]()
    for atoms, reason in axes:
        product = merged.get(classes[atoms].tobytes())
        stays = [atoms] if product is None else [product.factors[k] for k in sorted(product.free)]
        found += [(one, reason) for one in stays]
    return found


def _joined(classes: NDArray[np.int32], count: int, ties: Sequence[tuple[IntArray, IntArray]]) -> NDArray[np.int32]:
    """Return the classes, of which there are `count`, with some more ties between their atoms."""
    a, b = ([np.empty(0, np.int32), *(classes[pair[side]].ravel() for pair in ties)] for side in (0, 1))
    return components(count, np.concatenate(a), np.concatenate(b))[classes]


@dataclass
class _Changes:
    ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)

    def freeze(self, product: Product, factor: int, why: str) -> None:
        self.frozen.append(Frozen(product.factors[factor], f"{why} at {product.where}"))

    def freeze_smallest(self, product: Product, why: str) -> None:
        self.freeze(product, min(range(len(product.factors)), key=lambda k: len(product.factors[k])), why)


def _simplify(
    products: Sequence[Product], classes: NDArray[np.int32], frozen: BoolArray
) -> tuple[list[Product], list[tuple[IntArray, IntArray]], list[Frozen]]:
    """Return the products that remain with two live factors or more, and the ties and freezes that follow."""
    changes = _Changes()
    remaining, first = [], dict[bytes, Product]()
    for product in products:
        other = first.setdefault(classes[product.merged].tobytes(), product)
        if other is not product and by_chance(other, product):
            for factor in (*product.factors, *other.factors):
                if not frozen[classes[factor]].all():
                    changes.frozen.append(Frozen(factor, f"it is split otherwise at other sizes, at {product.where}"))
    if changes.frozen:
        return list(products), [], changes.frozen
    for product in products:
        if (left := _without_frozen_factors(product, classes, frozen, changes)) is not None:
            remaining.append(left)
    if not changes.ties and not changes.frozen:
        _reconcile(remaining, classes, changes)
    return remaining, changes.ties, changes.frozen


def _without_frozen_factors(
    product: Product, classes: NDArray[np.int32], frozen: BoolArray, changes: _Changes
) -> Product | None:
    merged, factors = product.merged, list(product.factors)
    free = [k in product.free for k in range(len(factors))]
    stuck = frozen[classes[merged]]
    for axis, factor in enumerate(factors):
        other = tuple(a for a in range(merged.ndim) if a != axis)
        newly = stuck.any(axis=other) & ~frozen[classes[factor]]
        if newly.any():
            changes.frozen.append(Frozen(factor[newly], f"it is part of an axis that stays, at {product.where}"))
    for axis in reversed(range(len(factors))):
        if frozen[classes[factors[axis]]].all():
            along = np.moveaxis(merged, axis, 0)
            if len(along) > 1 and (classes[along[1:]] != classes[along[:1]]).any():
                head = np.broadcast_to(along[:1], along[1:].shape)
                changes.ties.append((along[1:].ravel(), head.ravel()))
            merged = along[0]
            del factors[axis], free[axis]
    if len(factors) >= 2:
        return Product(merged, tuple(factors), product.where, frozenset(k for k, is_free in enumerate(free) if is_free))
    if not factors:
        if not frozen[classes[merged]].all():
            changes.frozen.append(Frozen(merged.ravel(), f"all it is made of stays, at {product.where}"))
    elif (classes[merged] != classes[factors[0]]).any():
        changes.ties.append((merged, factors[0]))
    return None


def _reconcile(products: Sequence[Product], classes: NDArray[np.int32], changes: _Changes) -> None:
    """Make products agree with each other; change one conflict's worth at a time, in the order of their atoms."""
    products = sorted(products, key=lambda p: (in_order(p.merged), [in_order(f) for f in p.factors]))
    count = int(classes.max(initial=-1)) + 1
    owner, is_factor = np.full(count, -1, np.intp), np.zeros(count, np.bool_)
    for product in products:
        for factor in product.factors:
            is_factor[classes[factor]] = True
    for place, product in enumerate(products):
        found = classes[product.merged].ravel()
        if len(np.unique(found)) < found.size:
            grid = found.reshape(product.merged.shape)
            tied = [k for k in range(grid.ndim) if grid.shape[k] > 1 and (grid == grid.take([0], k)).all()]
            if tied:  # what no other position of a factor is without cannot be cut along it
                return changes.freeze(product, tied[0], "positions of a merged axis are removed together")
            return changes.freeze_smallest(product, "positions of a merged axis belong to several places")
        if is_factor[found].any():
            return changes.freeze_smallest(product, "a merged axis is merged again")
        owners = owner[found]
        for other in (products[k] for k in dict.fromkeys(owners[owners >= 0].tolist())):
            same = other.merged.shape == product.merged.shape and np.array_equal(
                classes[other.merged], classes[product.merged]
            )
            if not same:
                changes.freeze_smallest(product, "an axis is split in two ways")
                return changes.freeze_smallest(other, "an axis is split in two ways")
            for a, b in zip(product.factors, other.factors, strict=True):
                if (classes[a] != classes[b]).any():
                    changes.ties.append((a, b))
        if changes.ties:
            return None
        owner[found] = place
    return None


def _balanced(
    balances: Sequence[Balance], products: Sequence[Product], classes: NDArray[np.int32], frozen: BoolArray
) -> tuple[list[tuple[IntArray, IntArray]], list[Frozen]]:
    """Return the ties that make every class take equally many channels from every group, and what cannot be made to."""
    changes, merged = _Changes(), np.zeros(len(frozen), np.bool_)
    for product in products:
        merged[classes[product.merged]] = True
    members, open_ = [np.unique(classes[b.blocks]) for b in balances], []
    for balance, found in zip(balances, members, strict=True):
        if merged[found].any():
            changes.ties.append(balance.equal_places)  # heads x head size: no sets of single classes
        else:
            open_.append(balance)
    if changes.ties and any((classes[a] != classes[b]).any() for a, b in changes.ties):
        return changes.ties, []
    representative = np.full(len(frozen), -1, np.int64)
    for balance in open_:
        representative[classes[balance.blocks]] = balance.blocks
    ties, stuck = [], []
    for some in _linked(open_, classes):
        alive = np.unique(np.concatenate([classes[b.blocks].ravel() for b in some]))
        alive = alive[~frozen[alive]]
        counts, relations = _counts(some, classes, alive)
        if all((counts[:, r] == counts[:, r.start : r.start + 1]).all() for r in relations):
            continue
        sets, left = balanced_sets(counts, relations)
        total = counts[left].sum(axis=0)
        if all((total[r] == total[r.start]).all() for r in relations):
            sets.append(left)
        elif left:
            stuck.append(Frozen(representative[alive[left]], "the groups of a Conv would be left unequal without it"))
        ties += [
            (representative[alive[s[1:]]], np.full(len(s) - 1, representative[alive[s[0]]])) for s in sets if len(s) > 1
        ]
    return ties, stuck


def _linked(balances: Sequence[Balance], classes: NDArray[np.int32]) -> list[list[Balance]]:
    """Return the balances that share classes together, in the order of their first class."""
    found = [np.unique(classes[b.blocks]) for b in balances]
    size = int(max([0, *(int(f.max(initial=0)) + 1 for f in found)]))
    chains = [np.empty(0, np.int32), *(f for f in found if len(f))]
    starts = np.concatenate([c[:1].repeat(max(0, len(c) - 1)) for c in chains])
    component = components(size, np.concatenate([c[1:] for c in chains]), starts)
    parts: dict[int, list[Balance]] = {}
    for balance, own in sorted(zip(balances, found, strict=True), key=lambda p: p[0].blocks.ravel().tolist()):
        if len(own):
            parts.setdefault(int(component[own[0]]), []).append(balance)
    return [parts[k] for k in sorted(parts)]


def _counts(
    balances: Sequence[Balance], classes: NDArray[np.int32], alive: NDArray[np.int32]
) -> tuple[NDArray[np.intp], list[slice]]:
    """Return int[classes alive, columns], how many channels of every group a class holds, and each balance's columns.

    Balances that count the same are one.
    """
    tables: dict[bytes, NDArray[np.intp]] = {}
    for balance in balances:
        rows = [np.bincount(classes[block], minlength=int(alive.max(initial=0)) + 1)[alive] for block in balance.blocks]
        table = np.stack(rows, axis=1)
        tables.setdefault(table.tobytes(), table)
    ends = np.cumsum([0, *(t.shape[1] for t in tables.values())]).tolist()
    return np.concatenate(list(tables.values()), axis=1), [slice(a, b) for a, b in itertools.pairwise(ends)]
