"""Which layers a model bears as two: with the same units, the same cost, and the same outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxshap.calibrate import run_all
from onnxshap.core import Array, Dataset
from onnxshap.factors.pairs import Part, Samples, traced_again
from onnxshap.groups import Group
from onnxshap.tracing import Traced
from onnxshap.verify import compare, tolerance

_CHECKED_IMAGES = 16
_MOST = 16
"""Sets of layers that are tried, of which some are not borne."""
_UNKNOWN = "as two, the channels between would be no units of their own"
_COST = "as two, the model would run otherwise"
_OUTPUTS = "as two, the outputs would differ by more than rounding"
_UNITS = "as two, the units of group {!r} would be others"


@dataclass
class Bearing:
    """Finds the layers that a model bears as two.

    Attributes:
        traced: the model.
        groups: those of its groups that may be cut.
        data: calibration inputs, a few of which are used.
        samples: inputs that the model is meant for (`tracing.trace`).
        made: the model with those layers as two that were found last.
        left: the names of those that stay one, and why.
    """

    traced: Traced
    groups: Sequence[Group]
    data: Dataset
    samples: Samples
    made: Traced = field(init=False)
    left: dict[str, str] = field(default_factory=dict)
    _tries: int = 0

    def __post_init__(self) -> None:
        """Run the model as it is."""
        self.made, self._nodes = self.traced, list[str]()
        self._part = self.data.take(slice(0, _CHECKED_IMAGES))
        self._outputs = run_all(self.traced, self.traced.shaped.graph.model, self._part)

    def of(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts that the model bears all together; `made` is the model with these as two."""
        ranks = ranks_of(self._with(parts))
        known = {part.node for part in parts if len(ranks.get(part.node, ())) == len(part.energy)}
        self._leave([part for part in parts if part.node not in known], _UNKNOWN)
        found = self._borne([part for part in parts if part.node in known])
        self._with(found)
        self.left = {part.layer.name: why for part in parts if (why := self.left.get(part.layer.name)) is not None}
        return found

    def _with(self, parts: Sequence[Part]) -> Traced:
        """Return the model with some layers as two."""
        nodes = [part.node for part in parts]
        if nodes != self._nodes:
            self.made, self._nodes = traced_again(self.traced, parts, self.samples), nodes
        return self.made

    def _borne(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts that the model bears: all, else those of each half, if it bears them together."""
        if not parts or (why := self._why(parts)) is None:
            return list(parts)
        if len(parts) == 1 or self._tries >= _MOST:
            self._leave(parts, why)
            return []
        first, second = (self._borne(half) for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]))
        if first and second and (why := self._why([*first, *second])) is not None:
            self._leave(second, why)
            return first
        return [*first, *second]

    def _leave(self, parts: Sequence[Part], why: str) -> None:
        self.left.update({part.layer.name: why for part in parts})

    def _why(self, parts: Sequence[Part]) -> str | None:
        """Return why layers cannot be two, None where they can."""
        self._tries += 1
        made = self._with(parts)
        whole = self.traced.cost
        if (made.cost.macs(), made.cost.params()) != (whole.macs(), whole.params() - self.traced.unread_params):
            return _COST  # other bodies of an If are taken, or a loop runs otherwise
        after = run_all(made, made.shaped.graph.model, self._part)
        if not compare(after, self._outputs, self._outputs).rel_err <= tolerance(made.shaped):
            return _OUTPUTS
        other = next((group.name for group in self.groups if not _same_units(self.traced, made, group)), None)
        return None if other is None else _UNITS.format(other)


def ranks_of(made: Traced) -> dict[str, Group]:
    """Return the groups of a model that one node makes each, by that node."""
    return {group.producers[0]: group for group in made.groups if len(group.producers) == 1}


def _same_units(traced: Traced, made: Traced, group: Group) -> bool:
    """Return whether a group has the same units in another form of a model, where both have the same axes."""
    other = next((one for one in made.groups if one.name == group.name), None)
    if other is None or len(other) != len(group):
        return False
    keys = [key for key in dict.fromkeys(traced.labels.trace.made) if key in made.labels.trace.axes]
    return all(np.array_equal(_places(traced, key, group), _places(made, key, other)) for key in keys)


def _places(traced: Traced, key: tuple[str, int], group: Group) -> Array:
    """Return which units of a group lie at the positions of an axis, -1 where none does."""
    number = np.full(traced.labels.n_units + 1, -1)
    number[group.units] = np.arange(len(group))
    return np.asarray(number[traced.labels.units(*key)].max(axis=1))
