"""Foreign code that prints is kept off stdout, which carries results; one thread at a time, for all share it."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator

_LOCK = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed meanwhile, other threads' prints included."""
    with _LOCK, contextlib.redirect_stdout(io.StringIO()):
        yield
