"""Values of every group as they were found: whose they are, and in which order units are cut by them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnxshap import streams
from onnxshap.arguments import listed, worded
from onnxshap.bases import Bases, form_of
from onnxshap.core import FloatArray, Values
from onnxshap.endings import complete
from onnxshap.errors import DataError
from onnxshap.game import Setting
from onnxshap.graph.writing import digest
from onnxshap.groups import Group
from onnxshap.methods.ranking import CANCELLING, SPREAD, few, left_over, ranks
from onnxshap.progress import Progress, silent
from onnxshap.tracing import Traced


@dataclass
class Ordering:
    """The work of putting units in the order of a refit (`Scores.order`), group by group.

    Attributes:
        progress: told how far it is.
        seconds: most time that it takes; None = no limit. A group that was begun is ended.
        late: names of groups that it did not come to, which are cut by their values.
    """

    progress: Progress = silent
    seconds: float | None = None
    late: list[str] = field(default_factory=list)
    _done: int = 0
    _size: int = 0
    _total: int = 0

    def over(self, groups: Sequence[Group]) -> Iterator[Group]:
        """Yield groups while there is time."""
        self._done, self._size, self._total = 0, 0, sum(len(g) for g in groups)
        start = time.monotonic()
        for place, group in enumerate(groups):
            if self.seconds is not None and time.monotonic() - start >= self.seconds:
                self.late += [g.name for g in groups[place:]]
                break
            self._size = len(group)
            self.tell(0)
            yield group
            self._done += self._size
        if groups:
            self.progress("order", self._total, self._total)

    def tell(self, share: float) -> None:
        """Tell how much of the present group is done."""
        self.progress("order", self._done + int(share * self._size), self._total)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of it."""
        late = [repr(name) for name in dict.fromkeys(self.late)]
        if not late:
            return ()
        note = (
            f"units of group {listed(late, 1)} are ranked by {SPREAD} alone: no time was left to reckon what the "
            "others make up for; a larger --max-seconds, or --method recon, which plays no game, ranks all by that"
        )
        return (worded(note),)


@dataclass(frozen=True)
class Scores:
    """Values of every group, and how they came about.

    Attributes:
        values: group name -> values.
        method: the method's name.
        payoff: the payoff's name; None for methods that use none.
        seed: the seed.
        images: calibration images used.
        source: where they came from.
        model: sha256 of the model they belong to, in the form that its units are of (`bases.form_of`).
        notes: what the user should know of how the model was taken.
        basis: whether units that linear ops alone touch were put into principal bases, or taken as they are (`own`).
        bases: those of the groups whose units are combinations of the file's.
    """

    values: Mapping[str, Values]
    method: str
    payoff: str | None
    seed: int
    images: int
    source: str
    model: str
    notes: tuple[str, ...] = ()
    basis: str = "own"
    bases: Bases = field(default_factory=dict, repr=False)

    def order(
        self, groups: Sequence[Group], refit_in: Setting | None, ordering: Ordering | None = None
    ) -> dict[str, FloatArray]:
        """Return what units are cut by, group name -> float64[n_units], lowest first; `methods.ranking` says why.

        Args:
            groups: those that are cut, with the units that the values are of.
            refit_in: the model and the images that the layers behind are refitted on (outputs may be those of others);
                None = no refit follows.
            ordering: whom it is told, and how long it takes at most; those whose values are noise come first.
        """
        refitted = refit_in is not None
        found = {name: ranks(self.method, value, refitted=refitted) for name, value in self.values.items()}
        if refit_in is not None and self.method in CANCELLING:
            places = {g.name: k for k, g in enumerate(refit_in.traced.groups)}
            noisy = {g.name: few(self.values[g.name].images) for g in groups}
            ordering = Ordering() if ordering is None else ordering
            for group in ordering.over(sorted(groups, key=lambda g: not noisy[g.name])):
                rng = streams.stream(self.seed, streams.ORDER, places[group.name])
                worth = None if noisy[group.name] else found[group.name]
                lost = left_over(refit_in, group, worth, rng, ordering.tell)
                if lost.any():  # else no layer tells of the group
                    found[group.name] = lost
        return found

    @property
    def evals(self) -> int:
        """(image, coalition) rows evaluated."""
        return sum(v.evals for v in self.values.values())


def principal(basis: str | None, values: Scores | None, *, refitted: bool) -> bool:
    """Return whether units are put into principal bases: as asked, as values are, else where a refit follows."""
    if values is not None:
        return bool(values.bases)
    return basis == "principal" or (basis is None and refitted)


def basis_of(values: object) -> str | None:
    """Return the basis of values that are given, if some are; what else is given, `check_values` refuses."""
    return values.basis if isinstance(values, Scores) else None


def check_values(values: object, traced: Traced, groups: Sequence[Group]) -> None:
    """Refuse values of another model or without some groups.

    Raises:
        DataError: they are such, or no values at all.
    """
    if not isinstance(values, Scores):
        raise DataError(
            f"values: {type(values).__name__} given; give what `score` returns (`report.read_values` reads its file)"
        )
    if values.model != form_of(digest(complete(traced, traced.source)), values.bases):
        raise DataError("the values belong to another model; score this one, or give the model they were made for")
    for group in groups:
        if group.name not in values.values or len(values.values[group.name].phi) != len(group):
            raise DataError(
                f"the values lack group {group.name!r}; give the --include and --exclude that the model was scored "
                "with, or score it without"
            )
