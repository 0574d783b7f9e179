"""Measurements side by side: processes of one thread each, results as they come."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

_T = TypeVar("_T")


def measured(measure: Callable[..., _T], tasks: Iterable[tuple[Any, ...]], jobs: int) -> Iterator[_T]:
    """Yield what `measure` returns for the arguments of every task, in the order in which they are done."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure, *task) for task in tasks]):
            yield done.result()
