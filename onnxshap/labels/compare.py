"""Labels of one graph at two sizes of its inputs, held against each other by the weights, which have one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import BoolArray, IntArray
from onnxshap.labels.resolve import Labels


def unlike_units(one: Labels, other: Labels, weights: Sequence[str]) -> IntArray:
    """Return the atoms of `one` whose units are not units of `other`, or several of those together.

    Args:
        one, other: labels of a graph at two sizes.
        weights: its initializers, whose axes are alike in both.
    """
    names = frozenset(weights)
    keys = [key for key in one.trace.axes if key[0] in names]
    shared = [(one.units(*key), other.units(*key)) for key in keys]
    shared = [(a, b if len(b) == len(a) else np.full((len(a), 1), -1)) for a, b in shared]
    if not shared:
        return np.empty(0, np.int64)
    mine, theirs = (_joined([pair[k] for pair in shared]) for k in (0, 1))
    wrong = np.zeros(one.n_units, np.bool_)
    there = set(_places(theirs, other.n_units).values())
    alone = _alone(mine), _alone(theirs)
    for unit, places in _places(mine, one.n_units).items():
        if places in there:
            continue
        at = np.frombuffer(places, np.int64)
        parts = theirs[at, 0]
        simple = alone[0][at].all() and alone[1][at].all() and (parts >= 0).all()
        wrong[unit] = not (simple and np.isin(theirs[:, 0], parts).sum() == len(at))
    bad = np.asarray(np.any(np.append(wrong, False)[one.slots], axis=1))  # a slot of -1 is none
    return np.flatnonzero(bad[one.classes]).astype(np.int64)


def _joined(units: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Return int[places, k] of tables of as many columns as they have."""
    columns = max(table.shape[1] for table in units)
    return np.concatenate([np.pad(t, [(0, 0), (0, columns - t.shape[1])], constant_values=-1) for t in units])


def _alone(units: NDArray[np.intp]) -> BoolArray:
    """Return which places depend on one unit at most, the first."""
    return np.asarray(np.all(units[:, 1:] < 0, axis=1))


def _places(units: NDArray[np.intp], count: int) -> dict[int, bytes]:
    """Return unit -> the places that depend on it, int64 in order, as bytes."""
    at, column = np.nonzero(units >= 0)
    found = units[at, column]
    order = np.lexsort((at, found))
    bounds = np.searchsorted(found[order], np.arange(count + 1))
    places = at[order].astype(np.int64)
    return {k: places[bounds[k] : bounds[k + 1]].tobytes() for k in range(count) if bounds[k] < bounds[k + 1]}
