"""How many threads numpy's and scipy's linear algebra takes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

_LARGE = 1024
"""Rows of a square matrix from which on its products gain from more threads than one."""


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
