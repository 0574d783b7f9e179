"""Units removed one after the other, or one alone: running sums of what each unit adds instead of the op behind it.

The output of a linear op without some units is its whole output less what they add (`contributions`). So a row costs
one subtraction there, and the model only from that output on: little of it behind the last layers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from onnxshap.calibrate import by_image
from onnxshap.core import Array, CoalitionMatrix, FloatArray, ImageIndex, IntArray
from onnxshap.estimators.rows import removal_masks, removal_ranks
from onnxshap.game.activations import Activations, bytes_per_image
from onnxshap.game.contributions import Adder, find_adders
from onnxshap.game.halves import dependent, halve
from onnxshap.game.outputs import payoffs
from onnxshap.game.pace import Pace
from onnxshap.game.setting import Setting
from onnxshap.groups import Group

_LEAST_WORK = 32
"""Multiplications for a number of an op's output below which one subtraction is no gain."""
_SHARE = 0.25
"""Of the memory, for one image's contributions."""
_SHORT = 256
"""Numbers of a row up to which one call for many rows is faster than a call a row."""


class Walks:
    """The rows of a group whose units are removed one by one.

    Args:
        setting: of the games.
        group: whose units they are.
        masked: the model with the group's mask.
        mask: its name.
        adders: the linear ops that sum over the units first.
    """

    def __init__(self, setting: Setting, group: Group, masked: ModelProto, mask: str, adders: Sequence[Adder]) -> None:
        traced = setting.traced
        self._setting, self._adders, self._n, self._mask = setting, adders, len(group), mask
        given = [adder.y for adder in adders]
        wanted = list(dict.fromkeys([*given, *(adder.x for adder in adders)]))
        halves = halve(traced, masked, mask, given, wanted)
        self._masked, self._outputs, self._computed = halves.masked, halves.outputs, halves.computed
        self._names = [o.name for o in masked.graph.output]
        read = () if halves.suffix is None else [i.name for i in halves.suffix.graph.input]
        self._others = [name for name in halves.boundary if name in read and name not in given]
        self._kept = Activations(setting, halves.prefix, halves.boundary, 1 - _SHARE)
        self._session = None if halves.suffix is None else traced.backend.session(halves.suffix)
        made = [] if halves.suffix is None else [o for node in halves.suffix.graph.node for o in node.output]
        largest = max(bytes_per_image(traced, [*made, *given, *self._others]), default=1)
        self._pace = Pace.of(setting.memory, largest, fixed=self._session is None)
        self._image = -1

    def ends(self, images: ImageIndex, *, full: bool) -> FloatArray:
        """Return v(all) or v(none), float64[rows]."""
        found = np.empty(len(images))
        coalition = np.full((1, self._n), full, np.float32)
        rows = self._pace.rows
        for part in self._kept.parts(images):
            self._kept.piece(images[part])
            for start in range(0, len(part), rows):
                at = part[start : start + rows]
                if full:
                    taken = self._kept.take(images[at], [adder.y for adder in self._adders])
                    outputs = list(taken.values())
                else:
                    outputs = self._none(images[at])
                found[at] = self._worth(outputs, images[at], np.repeat(coalition, len(at), axis=0))
        return found

    def removals(self, images: ImageIndex, orders: IntArray, step: float, *, gone: bool) -> FloatArray:
        """Return the payoffs float64[walks, m]; see `estimators.rows.removals`."""
        walks, m = orders.shape
        found = np.empty(walks * m)
        buffer = _Buffer(self, found)
        for part in self._kept.parts(images):
            self._kept.piece(images[part])
            for walk in part:
                buffer.walk(int(images[walk]), orders[walk], walk * m, step, gone=gone)
            buffer.flush()
        return found.reshape(walks, m)

    def load(self, image: int) -> tuple[list[Array], list[Array]]:
        """Return what each unit adds to each op's output, float32[n, length], and the whole outputs, [1, ...]."""
        if self._image != image:
            self._image = -1
            self._added = []  # let go of before the next are made
            taken = self._kept.take(np.array([image]))
            self._added = [adder.added(taken[adder.x], self._n) for adder in self._adders]
            self._whole = [np.ascontiguousarray(taken[adder.y]) for adder in self._adders]
            self._image = image
        return self._added, self._whole

    def _none(self, images: ImageIndex) -> list[Array]:
        parts: list[list[Array]] = [[] for _ in self._adders]
        for image in images:
            added, whole = self.load(int(image))
            for part, units, y in zip(parts, added, whole, strict=True):
                left = y.astype(np.float64) - units.sum(axis=0, dtype=np.float64).reshape(y.shape)
                part.append(left.astype(np.float32))
        return [np.concatenate(part) for part in parts]

    def run(self, values: Sequence[Array], images: ImageIndex, coalitions: CoalitionMatrix | None) -> FloatArray:
        """Return the payoffs of rows, given the ops' outputs, one row after the other."""
        start = time.perf_counter()
        found = self._worth(values, images, coalitions)
        self._pace.tell(len(images), time.perf_counter() - start)
        return found

    @property
    def rows(self) -> int:
        """Rows of the next run."""
        return self._pace.rows

    @property
    def masked(self) -> bool:
        """Whether the rest of the model reads the mask again."""
        return self._masked

    def _worth(self, values: Sequence[Array], images: ImageIndex, coalitions: CoalitionMatrix | None) -> FloatArray:
        given = {adder.y: value for adder, value in zip(self._adders, values, strict=True)}
        changed = {k: given[self._names[k]] for k in self._outputs if k not in self._computed}
        if self._session is not None:
            feeds = {**given, **(self._kept.take(images, self._others) if self._others else {})}
            if self._masked:
                assert coalitions is not None
                feeds[self._mask] = coalitions
            outputs = self._session.run({name: feeds[name] for name in self._session.inputs})
            changed.update(zip(self._computed, outputs, strict=True))
        numbers = list(changed)
        moved = by_image(self._setting.traced, list(changed.values()), numbers)
        return payoffs(self._setting, dict(zip(numbers, moved, strict=True)), images)


class _Buffer:
    """Rows on their way to a run: filled walk by walk, run when full."""

    def __init__(self, walks: Walks, found: FloatArray) -> None:
        self._walks, self._found = walks, found
        self._start()

    def _start(self) -> None:
        self._filled, self._size = 0, self._walks.rows
        self._images = np.empty(self._size, np.int64)
        self._goals = np.empty(self._size, np.int64)
        self._values: list[Array] = []
        self._coalitions: list[CoalitionMatrix] = []

    def walk(self, image: int, order: IntArray, goal: int, step: float, *, gone: bool) -> None:
        """Add the rows of a walk, whose payoffs go to `goal` and on."""
        added, whole = self._walks.load(image)
        state = [y.reshape(-1) for y in whole]
        ranks = removal_ranks(order[None], len(added[0]))
        done = 0
        while done < len(order):
            if not self._values:
                self._values = [np.empty((self._size, *y.shape[1:]), np.float32) for y in whole]
            count = min(len(order) - done, self._size - self._filled)
            units, at = order[done : done + count], slice(self._filled, self._filled + count)
            for number, (units_add, buffer) in enumerate(zip(added, self._values, strict=True)):
                rows = buffer[at].reshape(count, -1)
                if gone:
                    _subtract(state[number], units_add, units, rows)
                    state[number] = rows[-1].copy()
                else:
                    np.multiply(units_add[units], np.float32(-step), out=rows)
                    rows += state[number]
            if self._walks.masked:
                self._coalitions.append(removal_masks(ranks, np.arange(done, done + count), step, gone=gone))
            self._images[at] = image
            self._goals[at] = np.arange(goal + done, goal + done + count)
            self._filled += count
            done += count
            if self._filled == self._size:
                self.flush()

    def flush(self) -> None:
        """Run what is there."""
        if self._filled:
            images, goals = self._images[: self._filled], self._goals[: self._filled]
            coalitions = np.concatenate(self._coalitions) if self._coalitions else None
            self._found[goals] = self._walks.run([v[: self._filled] for v in self._values], images, coalitions)
        self._start()


def _subtract(state: Array, added: Array, units: IntArray, rows: Array) -> None:
    """Write into rows [k, length] what is left of the state [length] after the first 1, 2, ... k units have gone."""
    if rows.shape[1] <= _SHORT:
        np.negative(added[units], out=rows)
        rows[0] += state
        np.add.accumulate(rows, axis=0, out=rows)
        return
    before = state
    for row, unit in zip(rows, units, strict=True):
        np.subtract(before, added[unit], out=row)
        before = row


def open_walks(setting: Setting, group: Group, masked: ModelProto, mask: str) -> Walks | None:
    """Return the running sums of a group, None where they do not apply or do not pay.

    They apply where every op that first sums over its units is linear in each of them, and pay where that op works
    more for a number of its output than a subtraction does.
    """
    traced = setting.traced
    reached = dependent(masked, mask)
    nodes = traced.shaped.graph.nodes
    if any(traced.depth(name) for s in traced.sites([group]) for name in (s.tensor, nodes[s.node].output[0])):
        return None  # no model can be cut in two inside a loop
    first = [s for s in traced.sites([group]) if reached.isdisjoint([s.tensor, *nodes[s.node].input])]
    sizes = bytes_per_image(traced, [nodes[s.node].output[0] for s in first])
    if not first or len(group) * sum(sizes) > _SHARE * setting.memory:
        return None
    adders = find_adders(traced, group, first, setting.means)
    if adders is None:
        return None
    work = sum(adder.work * size for adder, size in zip(adders, sizes, strict=True)) / sum(sizes)
    return Walks(setting, group, masked, mask, adders) if work >= _LEAST_WORK else None
