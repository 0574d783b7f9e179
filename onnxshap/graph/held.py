"""Values of large initializers: in memory, or in the file that the model was read from until somebody asks for them.

What asks is a session, a refit, or the file that is written; in between nobody holds them, and the weights of a model
that is traced, planned and cut take no memory at all.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np

from onnxshap.core import Array
from onnxshap.errors import ModelError, first_line

Held = Callable[[], Array]
"""Gives the values of an initializer, read-only, of its shape."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Values that are there."""

    found: Array

    def __call__(self) -> Array:
        """Return the values."""
        return self.found


class OpenFile:
    """A file that stays open, so that it may be moved or replaced by another one while the model is in use."""

    def __init__(self, stream: BufferedIOBase, name: str) -> None:
        """Take over a file that is open for reading; `name` is for messages."""
        self._number, self._name = os.dup(stream.fileno()), name
        weakref.finalize(self, os.close, self._number)
        self._state = self._now()

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._number)
        return found.st_size, found.st_mtime_ns

    def read(self, start: int, size: int) -> Array:
        """Return uint8[size], the bytes from `start` on.

        Raises:
            ModelError: the file was written to since it was opened, or cannot be read.
        """
        found = np.empty(size, np.uint8)
        place = 0
        try:
            while place < size and (more := os.preadv(self._number, [found.data[place:]], start + place)):
                place += more
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise ModelError(f"{self._name}: cannot be read any more ({reason}); run again") from error
        if place < size or self._now() != self._state:
            raise ModelError(f"{self._name}: was written to while it was in use; run again")
        return found


class InFile:
    """Values that stand in a file; while somebody holds them they are not read again."""

    def __init__(self, file: OpenFile, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Take the place in the file, and what stands there."""
        self._file, self._start, self._dtype, self._shape = file, start, dtype, shape
        self._last: weakref.ref[Array] | None = None

    def __call__(self) -> Array:
        """Return the values; raises a ModelError where the file was written to."""
        found = self._last() if self._last is not None else None
        if found is None:
            size = int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize
            found = self._file.read(self._start, size).view(self._dtype).reshape(self._shape)
            found.flags.writeable = False
            self._last = weakref.ref(found)
        return found


def opened(stream: BufferedIOBase, name: str) -> OpenFile | None:
    """Return the file of a stream, None where there is none that can be read at any place."""
    try:
        return OpenFile(stream, name) if hasattr(os, "preadv") and stream.seekable() else None
    except OSError:  # a stream in memory has no number
        return None
