"""Arrays and labels in files; never unpickled."""

from __future__ import annotations

import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxshap.core import Array, Dataset
from onnxshap.data.objects import LABEL_NAMES, from_object
from onnxshap.data.spec import InputSpec, names_of, only_input
from onnxshap.errors import DataError, told

_LINES = "one number a line"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, MemoryError, OverflowError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
"""What reading an array that is damaged, encrypted or packed in an unknown way may raise."""


def from_file(path: Path, specs: Mapping[str, InputSpec], *, there: bool) -> Dataset:
    """Return a file's arrays as a data set, unchecked."""
    if not there:
        raise DataError(f"{path}: no such file or folder: give .npz, .npy, a folder of images or module:function")
    match path.suffix.lower():
        case ".npz":
            return from_object(_read_npz(path), specs, str(path))
        case ".npy":
            spec = only_input(specs, str(path), "an .npy file")
            return Dataset({spec.name: _read_npy(path)}, None, str(path))
        case suffix:
            raise DataError(
                f"{path}: cannot read {suffix or 'a file without suffix'}: "
                "give .npz, .npy, a folder of images or module:function"
            )


def _missing(path: Path) -> DataError:
    return DataError(f"{path}: cannot be read as {path.suffix} (no such file): check the path")


@contextmanager
def _opened(path: Path, remedy: str) -> Iterator[BinaryIO]:
    """Yield an open file of arrays; whatever is wrong with it is a DataError that says what to write it with."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise _missing(path) from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as {path.suffix.lower()} ({told(error)}): {remedy}") from error


def _read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz by name."""
    # np.load leaves a broken archive open if it opened it itself
    with _opened(path, "write it with np.savez, without object arrays") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("one array, not an archive")  # noqa: TRY004 (told like any other broken file)
        return {name: archive[name] for name in archive.files}


def _read_npy(path: Path) -> Array:
    """Return the array of an .npy."""
    with _opened(path, "write it with np.save, not from an object array") as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def read_labels(path: Path) -> Array:
    """Return the labels of a file, unchecked but for its form."""
    if path == Path():
        raise DataError(f"the path of the labels is empty: give .npy, .npz, or .txt/.csv with {_LINES}")
    match path.suffix.lower():
        case ".npy":
            return _read_npy(path)
        case ".npz":
            arrays = _read_npz(path)
            for name in LABEL_NAMES:
                if name in arrays:
                    return arrays[name]
            raise DataError(f"{path}: has {names_of(arrays)}, no labels: name the array 'labels' or 'y'")
        case ".txt" | ".csv":
            return _read_lines(path)
        case suffix:
            raise DataError(
                f"{path}: cannot read labels from {suffix or 'a file without suffix'}: "
                f"give .npy, .npz, or .txt/.csv with {_LINES}"
            )


def _read_lines(path: Path) -> Array:
    """Return one number a line, int64[n] where all are integers, else float64[n]; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({told(error)}): give a text file with {_LINES}") from error
    found: list[np.int64 | float] = []
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            try:
                found.append(_number(text))
            except (ValueError, OverflowError) as error:
                raise DataError(f"{path}: line {number} is {text[:40]!r}: give {_LINES}, nothing else") from error
    return np.array(found, np.float64 if any(isinstance(one, float) for one in found) else np.int64)


def _number(text: str) -> np.int64 | float:
    """Return an integer, or else a float; int() and float() take more than files of other programs mean."""
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(text)
    return np.int64(text) if text.lstrip("+-").isdecimal() else float(text)
