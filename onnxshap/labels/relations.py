"""Ties and freezes of a whole graph, in flat rows of numbers: there are some for every axis of every op."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxshap.core import IntArray

Atoms = NDArray[np.int32]


def _row() -> array[int]:
    return array("i")


def _extend(row: array[int], atoms: IntArray) -> None:
    row.frombytes(np.asarray(atoms, np.intc).tobytes())


def _numbers(row: array[int]) -> Atoms:
    """Return a view of a row, which cannot grow as long as somebody holds it."""
    return np.asarray(row, np.int32)


@dataclass
class Ties:
    """Pairs of atoms that can only be removed together, those that were stated at a time side by side."""

    _left: array[int] = field(default_factory=_row)
    _right: array[int] = field(default_factory=_row)
    _ends: array[int] = field(default_factory=_row)

    def __len__(self) -> int:
        return len(self._left)

    def add(self, a: IntArray, b: IntArray) -> None:
        """Tie atoms of one shape, position by position."""
        if a is not b:
            _extend(self._left, a)
            _extend(self._right, b)
            self._ends.append(len(self._left))

    def forget(self, length: int) -> None:
        """Take back what was added behind the first `length` pairs."""
        del self._left[length:]
        del self._right[length:]
        while self._ends and self._ends[-1] > length:
            self._ends.pop()

    def __iter__(self) -> Iterator[tuple[Atoms, Atoms]]:
        """Yield what was tied at a time."""
        left, right = self.pairs()
        for start, end in itertools.pairwise([0, *self._ends]):
            yield left[start:end], right[start:end]

    def pairs(self) -> tuple[Atoms, Atoms]:
        """Return int32[n] and int32[n], one pair a position."""
        return _numbers(self._left), _numbers(self._right)


@dataclass
class Freezes:
    """Atoms that stay, and why."""

    _atoms: array[int] = field(default_factory=_row)
    _ends: array[int] = field(default_factory=_row)
    _why: array[int] = field(default_factory=_row)
    _reasons: dict[str, int] = field(default_factory=dict)

    def add(self, atoms: IntArray, reason: str) -> None:
        """Freeze atoms."""
        _extend(self._atoms, atoms)
        self._ends.append(len(self._atoms))
        self._why.append(self._reasons.setdefault(reason, len(self._reasons)))

    def atoms(self) -> Atoms:
        """Return int32[n], the atoms in the order in which they were frozen."""
        return _numbers(self._atoms)

    def why(self) -> Atoms:
        """Return int32[n], the place of every atom's reason in `reasons`."""
        return np.repeat(_numbers(self._why), np.diff(_numbers(self._ends), prepend=0))

    def by_class(self, classes: NDArray[np.int32]) -> Reasons:
        """Return the first reason of every class that has one; `classes` is int[n_atoms]."""
        found, first = np.unique(classes[self.atoms()], return_index=True)
        return Reasons(found, self.why()[first], list(self._reasons))

    def copy(self) -> Freezes:
        """Return the same, to be added to."""
        return Freezes(self._atoms[:], self._ends[:], self._why[:], dict(self._reasons))

    def __iter__(self) -> Iterator[tuple[Atoms, str]]:
        """Yield what was frozen at a time, and why."""
        atoms, reasons = self.atoms(), list(self._reasons)
        for (start, end), why in zip(itertools.pairwise([0, *self._ends]), self._why, strict=True):
            yield atoms[start:end], reasons[why]


@dataclass(frozen=True, eq=False)
class Reasons(Mapping[int, str]):
    """Class -> why it stays; `_classes` in ascending order, and the place of each one's reason in `_reasons`."""

    _classes: NDArray[np.int32]
    _why: Atoms
    _reasons: list[str]

    def __getitem__(self, found: int) -> str:
        place = int(np.searchsorted(self._classes, found))
        if place == len(self._classes) or self._classes[place] != found:
            raise KeyError(found)
        return self._reasons[int(self._why[place])]

    def __iter__(self) -> Iterator[int]:
        return iter(self._classes.tolist())

    def __len__(self) -> int:
        return len(self._classes)
