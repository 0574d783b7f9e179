"""Arrays and labels in files; never unpickled."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxshap.core import Array, Dataset, IntArray
from onnxshap.data.objects import LABEL_NAMES, from_object
from onnxshap.data.spec import InputSpec, names_of, only_input
from onnxshap.errors import DataError, told

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
            return _read_integers(path)
        case suffix:
            raise DataError(
                f"{path}: cannot read labels from {suffix or 'a file without suffix'}: "
                "give .npy, .npz, or .txt/.csv with one integer a line"
            )


def _read_integers(path: Path) -> IntArray:
    """Return one integer a line; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({told(error)}): give a text file with one integer a line") from error
    labels = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                labels.append(np.int64(line))
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{path}: line {number} is {line[:40]!r}: give one integer a line (float targets: .npy)"
                ) from error
    return np.array(labels, dtype=np.int64)
