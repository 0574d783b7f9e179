"""Bytes of a model's file, as it is and compressed."""

from __future__ import annotations

import importlib
import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx import ModelProto

from onnxshap.errors import OnnxshapError
from onnxshap.graph.writing import write_whole

CODECS = ("gzip", "zstd")
"""What compresses; zstd needs the package zstandard."""
_LEVELS = {"gzip": 6, "zstd": 9}


@dataclass(frozen=True)
class Size:
    """Bytes of a model's file, as it is and compressed (`CODECS`, as far as they are installed)."""

    bytes: int
    compressed: Mapping[str, int]


def compressor(codec: str) -> Callable[[bytes], int]:
    """Return what tells how many bytes a file has compressed.

    Raises:
        OnnxshapError: the codec is unknown, or its package is not installed.
    """
    if codec == "gzip":
        return lambda data: len(zlib.compress(data, _LEVELS[codec], 31))
    if codec != "zstd":
        raise OnnxshapError(f"codec {codec!r} is unknown; choose one of {', '.join(CODECS)}")
    try:
        zstd = importlib.import_module("zstandard")
    except ImportError as error:
        raise OnnxshapError("codec zstd needs zstandard; pip install 'onnxshap[zstd]', or take gzip") from error
    return lambda data: len(zstd.ZstdCompressor(level=_LEVELS[codec]).compress(data))


def as_file(model: ModelProto) -> bytes:
    """Return a model as one file."""
    stream = io.BytesIO()
    write_whole(model, stream)
    return stream.getvalue()


def size_of(model: ModelProto) -> Size:
    """Return the bytes of a model's file, as it is and compressed by every codec that is installed."""
    data = as_file(model)
    found = {}
    for codec in CODECS:
        try:
            found[codec] = compressor(codec)(data)
        except OnnxshapError:
            continue
    return Size(len(data), found)
