"""Protobuf by hand, as far as the weights of a model file ask for it: they go straight from there to where they stay.

A message is parsed from bytes that are in memory whole, holds all of them a second time, and gives none of that back
before it goes itself: three copies of the weights, where one is wanted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from onnx import ModelProto

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Numbers of fields: of ModelProto, GraphProto and TensorProto."""
_VARINT, _CONTENT, _FIXED = 0, 2, {1: 8, 5: 4}
"""Wire types (https://protobuf.dev/programming-guides/encoding): a number, bytes or a message, so many bytes."""

_LONGEST = 10
"""Bytes of the longest number."""


def varint(number: int) -> bytes:
    """Return a number >= 0 as protobuf writes it, seven bits a byte, the lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    found = []
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def header(field: int, content: int) -> bytes:
    """Return what stands before the content of a field: its number and the content's length."""
    return varint(field << 3 | _CONTENT) + varint(content)


def parse(stream: io.BufferedIOBase, large: int) -> tuple[ModelProto, dict[int, range]]:
    """Return the model in a stream without the raw data of its large initializers, and where those stand.

    Args:
        stream: a model file from its first byte on, in which any place can be gone to.
        large: bytes from which raw data are left out of the model.

    Returns:
        The model, and place of an initializer -> the bytes of the stream that are its values.

    Raises:
        DecodeError: it is no model, or a truncated one.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    walk = _Walk(stream, large)
    try:
        content = walk.model(size)
    except ValueError:  # protobuf is the judge
        stream.seek(0)
        return ModelProto.FromString(stream.read()), {}
    return ModelProto.FromString(content), walk.found


class _Walk:
    """Reads the messages of a model field by field; a ValueError is raised where one is malformed or too short."""

    def __init__(self, stream: io.BufferedIOBase, large: int) -> None:
        self._stream, self._large = stream, large
        self._place, self._size = -1, 0
        self.found: dict[int, range] = {}

    def model(self, size: int) -> bytes:
        """Return a ModelProto of `size` bytes without what was found."""
        self._size = size
        parts = []
        for field, head, content in self._fields(size):
            parts.append(self._graph(content) if field == GRAPH else head + self._read(content))
        return b"".join(parts)

    def _graph(self, size: int) -> bytes:
        parts = []
        for field, head, content in self._fields(size):
            self._place += field == INITIALIZER
            large = field == INITIALIZER and content >= self._large
            parts.append(self._tensor(content) if large else head + self._read(content))
        return _message(GRAPH, parts)

    def _tensor(self, size: int) -> bytes:
        parts = []
        for field, head, content in self._fields(size):
            if field == RAW_DATA:
                self.found.pop(self._place, None)  # of several the last one counts
            if field == RAW_DATA and content >= self._large:
                self.found[self._place] = self._passed(content)
            else:
                parts.append(head + self._read(content))
        return _message(INITIALIZER, parts)

    def _fields(self, left: int) -> Iterator[tuple[int, bytes, int]]:
        """Yield number, head and size of the content of each of `left` bytes' fields; the content is for the caller.

        The number is 0 where the content is a number itself, which then is part of the head.
        """
        while left:
            head, tag = self._varint()
            kind, size = tag & 7, 0
            if kind == _CONTENT:
                more, size = self._varint()
                head += more
            elif kind == _VARINT:
                head += self._varint()[0]
            elif kind in _FIXED:
                head += self._read(_FIXED[kind])
            else:
                raise ValueError(f"wire type {kind}")
            left -= len(head) + size
            if left < 0:
                raise ValueError("a field is longer than its message")
            yield tag >> 3 if kind == _CONTENT else 0, head, size

    def _varint(self) -> tuple[bytes, int]:
        """Return the bytes of the number that stands next, and the number."""
        found = self._read(1)
        while found[-1] & 0x80:
            if len(found) == _LONGEST:
                raise ValueError("a number of more than 64 bits")
            found += self._read(1)
        return found, sum((byte & 0x7F) << 7 * k for k, byte in enumerate(found))

    def _read(self, size: int) -> bytes:
        found = self._stream.read(size)
        if len(found) < size:
            raise ValueError("the file ends within a message")
        return found

    def _passed(self, size: int) -> range:
        """Return the places of the bytes that stand next."""
        start = self._stream.tell()
        if self._stream.seek(size, io.SEEK_CUR) > self._size:
            raise ValueError("the file ends within a message")
        return range(start, start + size)


def _message(field: int, parts: Sequence[bytes]) -> bytes:
    """Return a message as a field of another one."""
    content = b"".join(parts)
    return header(field, len(content)) + content
