"""Connected components of pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def components(size: int, a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return int[size], numbered by first atom, of the connected components of the pairs (a, b).

    >>> components(6, np.array([1, 5, 3]), np.array([3, 0, 1])).tolist()
    [0, 1, 2, 1, 3, 0]
    """
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(size, size))
    count, found = connected_components(links, directed=False)
    first = np.full(count, size, np.int32)
    np.minimum.at(first, found, np.arange(size, dtype=np.int32))
    rank = np.empty(count, np.int32)
    rank[np.argsort(first)] = np.arange(count, dtype=np.int32)
    return rank[found]
