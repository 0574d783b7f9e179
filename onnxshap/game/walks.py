"""Units removed one after the other, or one alone: running sums of what each unit adds instead of the op behind it.

The output of a linear op without some units is its whole output less what they add (`contributions`), and so is its
sum with what no mask reaches. So a row costs one subtraction there, and the model only from that on: little of it
behind the last layers.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from onnx import ModelProto

from onnxshap.calibrate import by_image, bytes_per_image
from onnxshap.core import Array, BoolArray, CoalitionMatrix, FloatArray, ImageIndex, IntArray
from onnxshap.estimators.rows import removal_masks, removal_ranks
from onnxshap.game.activations import Activations
from onnxshap.game.contributions import Adder, find_adders
from onnxshap.game.halves import dependent, halve
from onnxshap.game.outputs import payoffs
from onnxshap.game.pace import Pace
from onnxshap.game.remainders import LONG, Remainders
from onnxshap.game.setting import Setting
from onnxshap.game.stages import Suffix, open_suffix
from onnxshap.graph import is_op
from onnxshap.graph.structure import reads
from onnxshap.groups import Group
from onnxshap.tracing import Traced

_LEAST_WORK = 32
"""Multiplications for a number of an op's output below which one subtraction is no gain."""
_SHARE = 0.26
"""Of the memory, for one image's contributions: a quarter, and room for sizes that are powers of two to fit."""
_ROUNDING = 4 * np.finfo(np.float32).eps
"""What is left without any unit, over what all of them add, that is nothing but rounding: what divides by it sees 0."""
_LOOKED = 8
"""Numbers of what a unit adds that are looked at first: units that add nothing are rare in front of convolutions."""
_AT_ONCE = 2**18
"""Numbers of the walks that are summed at once: they stay in the processor's cache."""


Loaded = tuple[list[Array], list[Array]]
"""Of one image, for each op: what each unit adds to its output float32[n, length], and the whole output [1, ...].

Outputs of ops have their images on axis 0 here (`Images.front`), wherever the model has them.
"""


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
        self._session: Suffix | None = None
        self._pace = Pace.of(traced.backend, max(bytes_per_image(traced, given)), fixed=True)
        if halves.suffix is not None:
            self._session, self._pace = open_suffix(traced, halves.suffix)
        # short ones cost less than to load one more image
        self._alone = all(adder.alone for adder in adders) and max(bytes_per_image(traced, given)) > 4 * LONG
        self._loaded: dict[int, Loaded] = {}
        fitting = int(_SHARE * setting.memory) // ((len(group) + 1) * sum(bytes_per_image(traced, given)))
        self._room = fitting - 1  # images, beside the one at hand

    def ends(self, images: ImageIndex, *, full: bool) -> FloatArray:
        """Return v(all) or v(none), float64[rows]."""
        found = np.empty(len(images))
        coalition = np.full((1, self._n), full, np.float32)
        rows = self._pace.rows
        self._loaded.clear()
        for part in self._kept.parts(images):
            self._kept.piece(images[part])
            for start in range(0, len(part), rows):
                at = part[start : start + rows]
                if full:
                    outputs = self._take(images[at], [adder.y for adder in self._adders])
                else:
                    outputs = self._none(images[at])
                found[at] = self._worth(outputs, images[at], np.repeat(coalition, len(at), axis=0))
        return found

    def removals(self, images: ImageIndex, orders: IntArray, step: float, *, gone: bool, first: int = 0) -> FloatArray:
        """Return the payoffs float64[walks, m - first]; see `estimators.rows.removals`."""
        found = np.empty(orders[:, first:].size)
        m = orders.shape[1] - first
        buffer = _Buffer(self, found)
        for part in self._kept.parts(images):
            self._kept.piece(images[part])
            for walks in np.split(part, np.flatnonzero(np.diff(images[part])) + 1):
                buffer.walks(int(images[walks[0]]), orders[walks], int(walks[0]) * m, step, gone=gone, before=first)
            buffer.flush()
        return found[buffer.same].reshape(len(orders), m)

    def load(self, image: int) -> Loaded:
        """Return what each unit adds to each op's output, float32[n, length], and the whole outputs, [1, ...]."""
        if image in self._loaded:
            return self._loaded[image]
        at = np.array([image])
        given = self._take(at, [adder.x for adder in self._adders])
        added = [adder.added(x, self._n) for adder, x in zip(self._adders, given, strict=True)]
        return added, [np.ascontiguousarray(y) for y in self._take(at, [adder.y for adder in self._adders])]

    def _take(self, images: ImageIndex, names: Sequence[str]) -> list[Array]:
        """Return tensors of some images, these on axis 0."""
        taken = self._kept.take(images, names)
        return [self._setting.traced.rows(name).front(taken[name]) for name in names]

    def _none(self, images: ImageIndex) -> list[Array]:
        """Return the ops' outputs without any unit; what was loaded is kept while there is room, for the walks."""
        if self._alone and all(np.isfinite(left).all() for left in self._emptied):
            return [np.repeat(left, len(images), axis=0) for left in self._emptied]
        parts: list[list[Array]] = [[] for _ in self._adders]
        for image in images.tolist():
            loaded = self.load(image)
            if len(self._loaded) < self._room:
                self._loaded[image] = loaded
            for part, left in zip(parts, _left(*loaded), strict=True):
                part.append(left)
        return [np.concatenate(part) for part in parts]

    @cached_property
    def _emptied(self) -> list[Array]:
        """The ops' outputs without any unit, [1, ...], where no image has a part in them: reckoned by the first one."""
        return _left(*self.load(0))

    def run(self, values: Sequence[Array], images: ImageIndex, coalitions: CoalitionMatrix | None) -> FloatArray:
        """Return the payoffs of rows, given the ops' outputs, one row after the other."""
        with self._pace.timing(len(images)):
            return self._worth(values, images, coalitions)

    @property
    def rows(self) -> int:
        """Rows of the next run."""
        return self._pace.rows

    @property
    def masked(self) -> bool:
        """Whether the rest of the model reads the mask again."""
        return self._masked

    def _worth(self, values: Sequence[Array], images: ImageIndex, coalitions: CoalitionMatrix | None) -> FloatArray:
        outputs = zip(self._adders, values, strict=True)
        rows = self._setting.traced.rows
        given = {adder.y: np.ascontiguousarray(rows(adder.y).back(value)) for adder, value in outputs}
        changed = {k: given[self._names[k]] for k in self._outputs if k not in self._computed}
        if self._session is not None:
            feeds = {**given, **(self._kept.take(images, self._others) if self._others else {})}
            if self._masked:
                assert coalitions is not None
                feeds[self._mask] = coalitions
            made = self._session.run({name: feeds[name] for name in self._session.inputs})
            changed.update(zip(self._computed, made, strict=True))
        numbers = list(changed)
        moved = by_image(self._setting.traced, list(changed.values()), numbers)
        return payoffs(self._setting, dict(zip(numbers, moved, strict=True)), images, coalitions)


def _left(added: Sequence[Array], whole: Sequence[Array]) -> list[Array]:
    """Return what is left of ops' outputs of one image without all that their units add."""
    found = []
    for units, y in zip(added, whole, strict=True):
        left = y.astype(np.float64) - units.sum(axis=0, dtype=np.float64).reshape(y.shape)
        left[np.abs(left) <= _ROUNDING * np.abs(units).sum(axis=0).reshape(y.shape)] = 0
        found.append(left.astype(np.float32))
    return found


class _Buffer:
    """Rows on their way to a run: filled image by image, run when full.

    Attributes:
        same: int64[rows], which row's payoff a row has: its own, or that of the one before it that it equals.
    """

    def __init__(self, walks: Walks, found: FloatArray) -> None:
        self._walks, self._found, self._size = walks, found, 0
        self.same = np.arange(found.size)
        self._values: list[Array] = []
        self._start()

    def _start(self) -> None:
        self._filled = 0
        self._coalitions: list[CoalitionMatrix] = []
        if self._size != self._walks.rows:
            self._size = self._walks.rows
            self._images, self._goals = np.empty(self._size, np.int64), np.empty(self._size, np.int64)
            self._values = [np.empty((self._size, *value.shape[1:]), np.float32) for value in self._values]

    def walks(self, image: int, orders: IntArray, goal: int, step: float, *, gone: bool, before: int) -> None:
        """Add the rows of an image's walks [walks, m], but the first `before`; their payoffs go to `goal` and on."""
        added, whole = self._walks.load(image)
        m, longest = orders.shape[1] - before, max(units.shape[1] for units in added)
        at_once = 1 if longest > LONG else max(1, _AT_ONCE // ((m + before) * longest))
        ranks = removal_ranks(orders, len(added[0])) if self._walks.masked else orders
        alike = np.arange(m)[None].repeat(len(orders), axis=0)
        if not self._walks.masked and (idle := _idle(added)).any():
            alike = _alike(idle[orders[:, before:]], gone=gone)
            self.same[goal : goal + alike.size] += (alike - np.arange(m)).ravel()
        if not self._values:
            self._values = [np.empty((self._size, *y.shape[1:]), np.float32) for y in whole]
        for first in range(0, len(orders), at_once):
            chosen = orders[first : first + at_once]
            ops = [
                Remainders(y.reshape(-1), u, chosen, step, gone=gone, before=before)
                for y, u in zip(whole, added, strict=True)
            ]
            rows = np.flatnonzero((alike[first : first + at_once] == np.arange(m)).T)  # by place, then by walk
            while len(rows):
                now, rows = np.split(rows, [self._size - self._filled])
                at = slice(self._filled, self._filled + len(now))
                for op, buffer in zip(ops, self._values, strict=True):
                    op.write(now, buffer[at].reshape(len(now), -1))
                places, walks = np.divmod(now, len(chosen))
                if self._walks.masked:
                    self._coalitions.append(removal_masks(ranks[first + walks], before + places, step, gone=gone))
                self._images[at] = image
                self._goals[at] = goal + (first + walks) * m + places
                self._filled += len(now)
                if self._filled == self._size:
                    self.flush()

    def flush(self) -> None:
        """Run what is there."""
        if self._filled:
            images, goals = self._images[: self._filled], self._goals[: self._filled]
            coalitions = np.concatenate(self._coalitions) if self._coalitions else None
            self._found[goals] = self._walks.run([v[: self._filled] for v in self._values], images, coalitions)
        self._start()


def _idle(added: Sequence[Array]) -> BoolArray:
    """Return which units add nothing to any op, bool[n]: their channels are dead in an image, as behind a ReLU."""
    idle = np.ones(len(added[0]), np.bool_)
    for units in added:
        idle &= ~units[:, :: -(-units.shape[1] // _LOOKED)].any(axis=1)
    for units in added:
        idle[idle] = ~units[idle].any(axis=1)
    return idle


def _alike(idle: BoolArray, *, gone: bool) -> IntArray:
    """Return which place of its walk each row equals, int64[walks, m].

    Args:
        idle: bool[walks, m], whether what is removed there adds nothing.
        gone: it stays away.

    >>> _alike(np.array([[False, True, False, True], [True, True, False, True]]), gone=True).tolist()
    [[0, 0, 2, 2], [0, 0, 2, 2]]
    >>> _alike(np.array([[False, True, False, True]]), gone=False).tolist()
    [[0, 1, 2, 1]]
    """
    places = np.arange(idle.shape[1])
    if gone:
        found: IntArray = np.maximum.accumulate(np.where(idle, 0, places), axis=1)
        return found
    return np.where(idle, idle.argmax(axis=1)[:, None], places)


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
    if work < _LEAST_WORK:
        return None
    sums = [(adder, _summed(traced, reached, adder.y)) for adder in adders]
    return Walks(setting, group, masked, mask, [replace(a, y=y, alone=a.alone and y == a.y) for a, y in sums])


def _summed(traced: Traced, reached: Container[str], y: str) -> str:
    """Return what an op's output becomes where something that is the same in every row is added to it, as by a skip.

    What a unit adds to the one it adds to the other, and no row has to be added to then.
    """
    graph, shaped = traced.shaped.graph, traced.shaped
    readers = [node for node in graph.nodes if y in reads(node)]
    if len(readers) != 1 or not is_op(readers[0], "Add") or y in traced.outputs:
        return y
    (total,), terms = readers[0].output, list(readers[0].input)
    others = [name for name in terms if name != y]
    same = shaped.shapes.get(total) == shaped.shapes[y] and traced.images(total) == traced.images(y)
    if len(others) != 1 or others[0] in reached or not same:
        return y
    return _summed(traced, reached, total)
