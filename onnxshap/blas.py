"""numpy's and scipy's linear algebra: how many threads it takes, and sums of squares in place, in one triangle."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

_LARGE = 1024
"""Rows of a square matrix from which on its products gain from more threads than one."""
_Matrix = NDArray[np.float64]
_BLOCK = 512
"""Rows of a square matrix that are copied at a time."""


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 - has a library of its own, which is found only once it is loaded

    return ThreadpoolController()


def at_most(threads: int) -> None:
    """Let it take no more threads than these from now on, in the whole process; 0: as it is."""
    if threads:
        _controller().limit(limits=threads, user_api="blas")


@contextlib.contextmanager
def threads_for(size: int) -> Iterator[None]:
    """Compute on one thread where matrices are small.

    Many small products after each other lose more by handing their parts out than they gain: two threads take three
    times as long for them as one, sixteen longer still.

    Args:
        size: rows of the square matrices that are computed with.
    """
    with _controller().limit(limits=1 if size < _LARGE else None, user_api="blas"):
        yield


def with_squares(total: _Matrix, rows: _Matrix, factor: float = 1.0) -> _Matrix:
    """Return a matrix with the products of rows added, in its place; below the diagonal it is not kept up.

    Of a large one a sum beside it would take as long as the products.

    Args:
        total: float64[n, n].
        rows: float64[rows, n].
        factor: what rows' rows is multiplied by.
    """
    from scipy.linalg.blas import dsyrk  # not worth a start for who needs none

    if not rows.size:
        return total  # BLAS refuses matrices without entries: no rows, or none of the columns
    # turned round they lie as BLAS wants them, which would copy them otherwise
    turned = rows.flags.c_contiguous
    found = dsyrk(factor, rows.T if turned else rows, 1.0, total.T, trans=not turned, lower=1, overwrite_c=1)
    return np.asarray(found.T)


def mirror(matrix: _Matrix) -> None:
    """Make a matrix below its diagonal what it is above."""
    for start in range(0, len(matrix), _BLOCK):
        stop = start + _BLOCK
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        own = matrix[start:stop, start:stop]
        own[...] = np.triu(own) + np.triu(own, 1).T
