"""Exact channel permutations: units that are alike change places, on every axis of every tensor they are on.

The labels say where each unit is: its filter, its bias, the slices of weights that read it, the same channel of every
tensor in a residual sum. Units may change places where each of them is on the same axes, as often, and in the same
relations as the others; then all that relates positions to each other relates them as before, and the model computes
the same but for the order of its sums. What is frozen stays where it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshap.core import Array, IntArray
from onnxshap.graph import array
from onnxshap.graph.structure import copied
from onnxshap.graph.weights import set_values
from onnxshap.labels import AxisKey, Labels, Product
from onnxshap.labels.fixups import Refilled

Classes = NDArray[np.intp]
"""Classes of atoms (`labels.Labels.classes`)."""


def nobody_moved(labels: Labels) -> Classes:
    """Return the placement of a model as it is: place -> the class that stands there; places are classes, too."""
    return np.arange(len(labels.slots))


def positions(some: Classes, classes: Classes) -> IntArray:
    """Return where each of some classes is among others, of which each is there once; int64[len(some)]."""
    sorter = np.argsort(classes)
    return np.asarray(sorter[np.searchsorted(classes, some, sorter=sorter)])


def peers(labels: Labels) -> list[Classes]:
    """Return the sets of two and more classes that may change places among each other, in the order of their atoms.

    Units of a product (heads x head size), channels that the groups of a Conv lose each on their own, and channels
    whose neighbours count (LRN) stay.
    """
    found, failing = _alike(labels), set[int]()
    for turn in (_turned, _swapped):  # a cycle and a swap of neighbours make all permutations
        moved = nobody_moved(labels)
        for some in found:
            moved[some] = turn(some)
        failing |= set(_unrelated(labels, moved).tolist())
    return [some for some in found if failing.isdisjoint(some.tolist())]


def _turned(some: Classes) -> Classes:
    return np.roll(some, 1)


def _swapped(some: Classes) -> Classes:
    return np.concatenate([some[1::-1], some[2:]])


def _alike(labels: Labels) -> list[Classes]:
    """Return sets of classes that are units, on the same axes and in the same ties, equally often."""
    trace, several = labels.trace, (labels.slots >= 0).sum(axis=1) > 1
    single = (labels.slots[:, 0] >= 0) & ~several
    single &= ~np.isin(labels.slots[:, 0], labels.slots[several])
    for balance in trace.balances:
        if labels.uneven(balance):
            single[labels.classes[balance.blocks]] = False
    for fixup in trace.fixups:
        if isinstance(fixup, Refilled) and fixup.ordered:
            for axis in fixup.axes:
                own = trace.axes[fixup.source, axis]
                single[labels.classes[own.start : own.stop]] = False
    places: list[NDArray[np.integer[Any]]] = [*_arrays(labels), *(a for a, _ in trace.ties)]
    rng = np.random.default_rng(0)  # numbers of places, whose sums tell sets of them apart
    numbers = rng.integers(0, 2**63, (len(places), 2), np.uint64)
    sums = np.zeros((len(labels.slots), 2), np.uint64)
    classes = labels.classes[np.concatenate([p.ravel() for p in places] or [np.empty(0, np.int64)])]
    np.add.at(sums, classes, np.repeat(numbers, [p.size for p in places], axis=0))
    chosen = np.flatnonzero(single)
    _, kind = np.unique(sums[chosen], axis=0, return_inverse=True)
    sets = [chosen[kind.ravel() == k] for k in range(int(kind.max(initial=-1)) + 1)]
    return sorted((some for some in sets if len(some) > 1), key=lambda some: int(some[0]))


def _arrays(labels: Labels) -> list[IntArray]:
    """Return the atoms of every axis, those of factors that no tensor has included."""
    trace = labels.trace
    found: list[IntArray] = [np.arange(own.start, own.stop) for own in dict.fromkeys(trace.axes.values())]
    known = np.zeros(trace.size, np.bool_)
    known[np.concatenate([*found, np.empty(0, np.int64)]).astype(np.int64)] = True
    for product in trace.products:
        for factor in product.factors:
            if len(factor) and not known[factor].all():
                known[factor] = True
                found.append(factor)
    return found


def _unrelated(labels: Labels, placed: Classes) -> Classes:
    """Return the classes that a placement takes out of a relation: pairs of positions that become pairs of none."""
    moved, size = np.arange(labels.trace.size), labels.trace.size
    for atoms in _arrays(labels):
        moved[atoms] = atoms[order(labels.classes[atoms], placed)]
    found = []
    for left, right in labels.trace.ties:
        a, b = left.astype(np.int64), right.astype(np.int64)
        out = ~np.isin(moved[a] * size + moved[b], a * size + b)
        found.append(labels.classes[a[out]])
    for product in labels.trace.products:
        found.append(labels.classes[product.merged[moved[product.merged] != _led(product, moved)]])
    return np.unique(np.concatenate([*found, np.empty(0, np.intp)]))


def _led(product: Product, moved: IntArray) -> IntArray:
    """Return where the positions of a merged axis go as its factors' do, -1 where a factor leaves its axis."""
    at = []
    for factor in product.factors:
        sorter = np.argsort(factor)
        place = sorter[np.searchsorted(factor, moved[factor], sorter=sorter).clip(max=len(factor) - 1)]
        at.append(np.where(factor[place] == moved[factor], place, -1))
    inside = functools.reduce(np.logical_and.outer, [index >= 0 for index in at])
    return np.where(inside, product.merged[np.ix_(*at)], -1)


def order(classes: NDArray[np.integer[Any]], placed: Classes) -> IntArray:
    """Return which old position stands at each position of an axis, int64[n].

    Where a class is on an axis several times, the first of them takes the place of the first, and so on.

    >>> order(np.array([0, 1, 2, 0, 1, 2]), np.array([1, 0, 2])).tolist()
    [1, 0, 2, 4, 3, 5]
    """
    at = np.argsort(classes, kind="stable")
    ranked = classes[at]
    rank = np.empty(len(classes), np.int64)
    rank[at] = np.arange(len(classes)) - np.searchsorted(ranked, ranked)
    return np.asarray(at[np.searchsorted(ranked, placed[classes]) + rank])


def orders(labels: Labels, placed: Classes) -> dict[AxisKey, IntArray]:
    """Return the order of every axis that a placement changes."""
    found = {}
    for key, atoms in labels.trace.axes.items():
        classes = labels.classes[atoms.start : atoms.stop]
        if (placed[classes] != classes).any():
            found[key] = order(classes, placed)
    return found


def permuted(model: ModelProto, changes: Mapping[AxisKey, IntArray]) -> ModelProto:
    """Return a form of the traced model with its stored constants in other orders (`orders`)."""
    made, axes = copied(model), dict[str, list[tuple[int, IntArray]]]()
    for (name, axis), index in changes.items():
        axes.setdefault(name, []).append((axis, index))
    for stored in made.graph.initializer:
        if stored.name in axes:
            values: Array = array(stored)
            for axis, index in axes[stored.name]:
                values = values.take(index, axis)
            set_values(stored, values)
    return made
