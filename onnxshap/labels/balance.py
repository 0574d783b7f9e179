"""Sets of classes that can go together without leaving the groups of a Conv unequal.

A grouped Conv asks no more than that every group loses equally many channels, whichever they are. One such Conv is
served by any pairing; a ShuffleNet deals the channels of one Conv's groups out to all groups of the next, and both have
to agree. Classes of the same counts are exchangeable, so the smallest set around a class is a small integer program
over kinds of classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NODES = 1000
"""Branches that the search for one set may take."""
_KINDS = 200
"""Kinds of classes beyond which no small sets are to be expected: channels dealt out at random, many times over."""


def balanced_sets(counts: NDArray[np.intp], relations: Sequence[slice]) -> tuple[list[list[int]], list[int]]:
    """Return sets of classes that take equally many channels from every group of every relation, and who is left over.

    The first class takes the smallest set around it, then the first that is free. Who is left over may be balanced all
    together.

    Args:
        counts: int[classes, columns], how many channels of a group (a column) a class holds.
        relations: the columns of each relation, one a group.

    >>> balanced_sets(np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]), [slice(0, 2), slice(2, 4)])
    ([[0, 3], [1, 2]], [])
    """
    kinds, inverse = np.unique(counts, axis=0, return_inverse=True)
    if len(kinds) > _KINDS:
        return [], list(range(len(counts)))
    kind_of = inverse.ravel()
    members = [deque(np.flatnonzero(kind_of == k).tolist()) for k in range(len(kinds))]
    unequal = np.concatenate([kinds[:, r.start + 1 : r.stop] - kinds[:, r.start : r.start + 1] for r in relations], 1)
    sets: list[list[int]] = []
    left: list[int] = []
    for first in range(len(counts)):
        own = members[kind_of[first]]
        if not own or own[0] != first:
            continue  # it is in a set already
        free = np.array([len(m) for m in members])
        taken = _smallest(int(kind_of[first]), unequal, free)
        if taken is None:
            left += own
            own.clear()
            continue
        for _ in range(int((free[taken > 0] // taken[taken > 0]).min())):
            sets.append(sorted(members[k].popleft() for k in np.flatnonzero(taken) for _ in range(taken[k])))
    return sets, sorted(left)


def _smallest(first: int, unequal: NDArray[np.intp], free: NDArray[np.intp]) -> NDArray[np.intp] | None:
    """Return int[kinds], how many of each make the smallest balanced set with one of `first`, None where none is found.

    Of equally small sets the one of frequent kinds: it is left for longest.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # a fifth of all imports, for what few models need

    lowest = np.zeros(len(free))
    lowest[first] = 1
    cost = 1 + 1e-3 * (1 - free / free.max())
    balance = LinearConstraint(unequal.T, 0, 0)
    found = milp(
        cost,
        constraints=balance,
        bounds=Bounds(lowest, free),
        integrality=np.ones(len(free), np.uint8),
        options={"node_limit": _NODES},
    )
    if found.x is None:
        return None
    taken = np.round(found.x).astype(np.intp)
    return taken if not (taken @ unequal).any() else None
