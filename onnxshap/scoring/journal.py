"""A journal of results: appended and synced one by one, so that a killed run goes on where it was.

One line of JSON each: a header that says what the results belong to, then the results with their checksums. A line that
was cut off, as by a kill or a full disk, is dropped with all that follows; it is computed again.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxshap.core import FloatArray
from onnxshap.errors import DataError, OnnxshapError
from onnxshap.graph import check_writable

FORMAT = 6
"""2: blocks grow from one image on. 3: rows run in stages, whose convolutions round otherwise. 4: those with
small filters do not. 5: images are drawn by class, and stages take fewer rows of large tensors. 6: so are those
of methods whose images all take the same number of rows."""
_NAME = "onnxshap journal"
_TOLD = {_NAME: "version", "data": "choice of data (--data, --labels, --samples)"}
"""What keys of the header stand for, where they do not say it."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
Key = tuple[str, int]
"""Group name and block number."""
Header = Mapping[str, str | int | None]


class Journal:
    """Results of one run on disk; the file appears with the first result.

    Attributes:
        found: (group, block) -> figures float64[k, n] and evaluations, of an earlier run that was cut short.
        seconds: how long that run took, up to its last result.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        """Read what is there.

        Raises:
            DataError: the file is no journal, or that of another model, data, seed, options or version.
            OnnxshapError: it cannot be read, or its folder does not take files.
        """
        self.path = Path(path)
        self.found: dict[Key, tuple[FloatArray, int]] = {}
        self.seconds = 0.0
        self._head = _line({_NAME: FORMAT, **header})
        self._good = 0
        self._file: int | None = None
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            check_writable(self.path, "give the journal another path")  # now, not after the first result
            return
        except OSError as error:
            raise OnnxshapError(f"{path}: the journal cannot be read ({error.strerror}); give another path") from error
        self._read(content)

    def _read(self, content: bytes) -> None:
        lines = content.splitlines(keepends=True)
        if not lines or (len(lines) == 1 and self._head.startswith(lines[0])):
            return  # the header itself was cut off
        _check_header(self.path, lines[0], self._head)
        self._good = len(lines[0])
        for line in lines[1:]:
            record = _record(line) or {}
            try:
                figures = np.frombuffer(base64.b64decode(record["figures"]), "<f8").reshape(tuple(record["shape"]))
                key, evals, seconds = (record["group"], record["block"]), int(record["evals"]), float(record["seconds"])
                self.found[key] = figures.astype(np.float64), evals
            except (KeyError, TypeError, ValueError):  # damaged, or not ours: what is behind it is done again
                break
            self._good += len(line)
            self.seconds = seconds

    def add(self, key: Key, figures: FloatArray, evals: int, seconds: float) -> None:
        """Append a result; when this returns it survives a kill and a power failure.

        Raises:
            OnnxshapError: it cannot be written; what the file held before is good.
        """
        record: dict[str, Any] = {"group": key[0], "block": key[1], "evals": evals, "seconds": seconds}
        record["shape"] = list(figures.shape)
        record["figures"] = base64.b64encode(np.ascontiguousarray(figures, "<f8").tobytes()).decode()
        record["crc"] = _crc(record)
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            _write(self._file, _line(record))
        except OSError as error:
            remedy = "make room and run" if error.errno in _FULL else "mend that and run"
            raise OnnxshapError(
                f"{self.path}: the journal cannot be written ({error.strerror}); what it holds is good: {remedy} the "
                "same command again"
            ) from error

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o666)
        os.ftruncate(self._file, self._good)
        os.lseek(self._file, 0, os.SEEK_END)
        if not self._good:
            _write(self._file, self._head)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Delete the file: its run is over."""
        self.close()
        self.path.unlink(missing_ok=True)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=True).encode() + b"\n"


def _crc(record: Mapping[str, Any]) -> int:
    return zlib.crc32(_line({key: value for key, value in record.items() if key != "crc"}))


def _write(file: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a result, None where the line is damaged."""
    record = _parsed(line)
    whole = isinstance(record, dict) and line.endswith(b"\n") and record.get("crc") == _crc(record)
    return record if whole else None


def _parsed(line: bytes) -> Any:
    """Return what a line of JSON says, None where it is none, or one nested so deep that none of ours is."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _check_header(path: Path, line: bytes, wanted: bytes) -> None:
    found = _parsed(line)
    if not isinstance(found, dict) or _NAME not in found:
        raise DataError(f"{path}: is no journal of onnxshap; give another path")
    expected = json.loads(wanted)
    for key in expected:
        if found.get(key) != expected[key]:
            what = _TOLD.get(key, key)
            raise DataError(
                f"{path}: the journal of a run with another {what}; delete it to start over, or give another path"
            )
