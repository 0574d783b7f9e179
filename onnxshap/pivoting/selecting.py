"""Which Convs are split with a gain: chosen by name, of widths that divide, and faster in groups here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnxshap.core import Dataset
from onnxshap.errors import BudgetError, ModelError
from onnxshap.pivoting.choosing import saved
from onnxshap.pivoting.convs import Dense, find_convs
from onnxshap.pivoting.permuting import Classes
from onnxshap.pivoting.splitting import Timed, time_convs
from onnxshap.progress import Progress
from onnxshap.tracing import Traced


@dataclass(frozen=True)
class Allowed:
    """Which Convs may be split, and how.

    Attributes:
        groups: numbers of groups that a Conv may have.
        multiple_of: widths of a group are multiples of it.
        include: globs of the names of Convs; empty = all.
        exclude: the same, left whole.
        timed: only where groups are measured faster.
    """

    groups: Sequence[int]
    multiple_of: int
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    timed: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            BudgetError: a number is out of its range.
        """
        if not self.groups or min(self.groups) < 2:
            told = ", ".join(map(str, self.groups)) or "empty"
            raise BudgetError(f"--groups is {told}; give numbers of groups, at least 2")
        if self.multiple_of < 1:
            raise BudgetError(f"--multiple-of is {self.multiple_of}; give a width of at least 1")

    def named(self, convs: Sequence[Dense]) -> list[Dense]:
        """Return the Convs whose names match a pattern of `include` and none of `exclude`.

        Raises:
            ModelError: a pattern matches nothing.
            BudgetError: there are Convs, and none is left.
        """
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(c.name, pattern) for c in convs):
                names = ", ".join(c.name for c in convs[:5]) or "none"
                raise ModelError(f"pattern {pattern!r} matches no Conv that can be split; those are {names}, ...")
        found = [
            c
            for c in convs
            if (not self.include or any(fnmatchcase(c.name, p) for p in self.include))
            and not any(fnmatchcase(c.name, p) for p in self.exclude)
        ]
        if convs and not found:
            raise BudgetError("no Conv can be split; --include and --exclude leave none")
        return found

    def dividing(self, conv: Dense) -> tuple[int, ...]:
        """Return the numbers of groups that leave widths that are multiples of `multiple_of`, ascending."""
        wide = self.multiple_of
        return tuple(k for k in sorted(set(self.groups)) if all(width % (k * wide) == 0 for width in conv.widths))


@dataclass(frozen=True)
class Splittable:
    """Convs that can be split with a gain.

    Attributes:
        convs: the Convs, at least one.
        groups: by their outputs' names, the numbers of groups that each may have, ascending.
        times: by their outputs' names, milliseconds whole and in groups; empty where they are not measured.
        left: why other Convs stay, one line each.
    """

    convs: Sequence[Dense]
    groups: Mapping[str, tuple[int, ...]]
    times: Mapping[str, Timed]
    left: Sequence[str]

    @property
    def most_saved(self) -> int:
        """Multiply-accumulates that are saved with the most groups everywhere."""
        return sum(saved(c, self.groups[c.y][-1]) for c in self.convs)


def find_splittable(
    traced: Traced, free: Traced, data: Dataset, movable: Sequence[Classes], allowed: Allowed, progress: Progress
) -> Splittable:
    """Return the Convs that can be split with a gain.

    Args:
        traced, free: the model, as in its file and for evaluation.
        data: images to take covariances from.
        movable: classes of channels that may change places (`permuting.peers`).
        allowed: which may be split, and how.
        progress: told what is measured.

    Raises:
        ModelError: a pattern matches no Conv.
        BudgetError: there is none.
    """
    every = list(find_convs(traced, free, data, movable))
    left = [c for c in every if isinstance(c, str)]
    convs = allowed.named([c for c in every if isinstance(c, Dense)])
    groups = {c.y: allowed.dividing(c) for c in convs}
    for c in convs:
        if not groups[c.y]:
            outs, ins = c.widths
            wide = allowed.multiple_of
            left.append(f"{c.name}: {ins} channels to {outs} do not divide into groups of multiples of {wide}")
    times = _times(traced, [(c, groups[c.y]) for c in convs if groups[c.y]], progress) if allowed.timed else {}
    for c in convs:
        if c.y in times:
            groups[c.y] = times[c.y].faster()
            if not groups[c.y]:
                taken = times[c.y].milliseconds
                told = ", ".join(f"{ms:.3g} ms in {k}" for k, ms in taken.items() if k > 1)
                left.append(f"{c.name}: not faster in groups ({told}, {taken[1]:.3g} whole)")
    found = [c for c in convs if groups[c.y]]
    if not found:
        raise BudgetError(f"no Conv can be split with a gain; {_why_none(convs, left)}")
    return Splittable(found, groups, times, left)


def _times(traced: Traced, tried: Sequence[tuple[Dense, Sequence[int]]], progress: Progress) -> dict[str, Timed]:
    times = {}
    for number, ((conv, _), found) in enumerate(zip(tried, time_convs(traced, tried), strict=True)):
        progress("time", number, len(tried))
        times[conv.y] = found
    return times


def _why_none(convs: Sequence[Dense], left: Sequence[str]) -> str:
    """Return why no Conv is split: the largest one's reason first."""
    largest = max(convs, key=lambda c: c.macs, default=None)
    of_largest = [why for why in left if largest is not None and why.startswith(f"{largest.name}: ")]
    why = [*of_largest, *left, "it has no Conv in one group with constant weights"][0]
    return why + (f", and {len(left) - 1} more" if len(left) > 1 else "")
