"""What the processor does while a device works."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Behind:
    """Does one thing at a time in a thread of its own, while the caller goes on; without one, at once.

    Args:
        apart: whether there is such a thread. Where the caller's work is the processor's own, it would only be in its
            way.
    """

    def __init__(self, *, apart: bool) -> None:
        self._pool = ThreadPoolExecutor(1) if apart else None
        self._last: Future[None] | None = None

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown()
        if error is None:
            self._wait()

    def do(self, work: Callable[[], None]) -> None:
        """Do some work once the last is done; raises what that raised."""
        if self._pool is None:
            work()
            return
        self._wait()
        self._last = self._pool.submit(work)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
