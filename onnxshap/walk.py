"""Activations of a model on all images, asked for from input to output; what lies behind is not computed again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxshap.core import Array
from onnxshap.graph import extract
from onnxshap.graph.structure import reads
from onnxshap.labels import Liveness
from onnxshap.tracing import Traced


def sizes_of(batches: Sequence[Mapping[str, Array]]) -> dict[str, list[int | None]]:
    """Return the sizes of tensors where all batches have the same, None elsewhere.

    Where they are open onnxruntime guesses some: those of what Attention gives by its queries, if it knows no values.
    """
    return {
        name: [size if all(feeds[name].shape[axis] == size for feeds in batches) else None
               for axis, size in enumerate(first.shape)]
        for name, first in batches[0].items()
    }  # fmt: skip


class Steps(Protocol):
    """Gives activations on all images, asked for from input to output."""

    def __call__(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Yield the values of some tensors, batch by batch."""


@dataclass
class Room:
    """Bytes that may be held at a time, by all that share them together.

    Attributes:
        size: how many.
        taken: how many are.
    """

    size: int
    taken: int = 0

    def share(self) -> Share:
        """Return a share of it, empty as yet."""
        return Share(self)


@dataclass
class Share:
    """What one of those that share a room holds there."""

    room: Room
    taken: int = 0

    def fits(self, count: int) -> bool:
        """Return whether there is room for so many bytes, beside what the others hold."""
        return self.room.taken - self.taken + count <= self.room.size

    def take(self, count: int) -> None:
        """Hold so many bytes, instead of those held so far."""
        self.room.taken += count - self.taken
        self.taken = count


@dataclass(frozen=True)
class Mark:
    """Where a walk is.

    Attributes:
        held: values by name of what is read behind it, batch by batch.
        done: the nodes that were run.
        waiting: how often tensors are read by those that were not.
        taken: bytes of what is held.
    """

    held: list[dict[str, Array]]
    done: set[int]
    waiting: Counter[str]
    taken: int


@dataclass
class Walk:
    """Runs a model piece by piece over fixed batches.

    The model may be edited between calls, at nodes that what was asked for does not depend on. Activations are held
    between two calls as far as there is room; past it they are computed again.

    Attributes:
        free: tells the shapes of the tensors and the backend.
        model: the model.
        batches: feeds by input name; they take no room.
        room: shared with others; None: one of its own, of the backend's memory.
        live: what is left of the tensors; None: all.
    """

    free: Traced
    model: ModelProto
    batches: Sequence[Mapping[str, Array]]
    room: Room | None = None
    live: Liveness | None = None

    def __post_init__(self) -> None:
        self.room = Room(self.free.backend.memory) if self.room is None else self.room
        self._share = self.room.share()
        graph = self.model.graph
        self._kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        self._outputs = [o.name for o in graph.output]
        self._nodes = list(graph.node)
        self._reads = [reads(node) for node in self._nodes]
        self._produced = {o: k for k, node in enumerate(self._nodes) for o in node.output}
        self._images = sum(self.free.shaped.count(feeds) for feeds in self.batches)
        self.restart()

    def __call__(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Yield the values of some tensors, batch by batch."""
        new, reading, ahead, frontier = self._coming(names)
        if frontier is not None:  # taken now: others that are asked in between have to know
            self._share.take(self.bytes(ahead))
        given = set(self._held[0])
        wanted = list(dict.fromkeys([*names, *(frontier or ())]))
        computed = [n for n in wanted if n not in given]
        session = None
        if computed:
            inputs = {n: self._kind(n) for n in self._held[0]}
            outputs = {n: self._kind(n) for n in computed}
            declared = {**self.free.shaped.declared, **sizes_of(self._held)}
            part = extract(self.model, inputs, outputs, declared, [self._nodes[k] for k in new])
            session = self.free.backend.session(part, frugal=True)
        for number, held in enumerate(self._held):
            found = dict(held)
            if session is not None:
                values = session.run({n: held[n] for n in session.inputs})
                found.update(zip(computed, map(_own, values), strict=True))
                del values
            yield [found[n] for n in names]
            if frontier is not None:
                self._held[number] = {n: v for n, v in found.items() if n in ahead}
        if frontier is not None:
            self._done.update(new)
            self._waiting.subtract(reading)

    def go_past(self, names: Sequence[str]) -> None:
        """Ask for some tensors without a use for their values: they are computed only where something is held then."""
        if self.holds(names):
            for _ in self(names):
                pass

    def imagined(self, names: Sequence[str]) -> list[NodeProto]:
        """Go past some tensors as if they had been asked for, and return the nodes that would have been run.

        From then on the walk tells what others would take, and gives no values.
        """
        new, reading, ahead, frontier = self._coming(names)
        if frontier is not None:
            self._share.take(self.bytes(ahead))
            self._held = [dict.fromkeys(ahead, np.empty(0))]
            self._done.update(new)
            self._waiting.subtract(reading)
        return [self._nodes[k] for k in new]

    def holds(self, names: Sequence[str]) -> bool:
        """Return whether what is read behind some tensors is held once they were asked for, with those of them."""
        return self._coming(names)[3] is not None

    @property
    def taken(self) -> int:
        """Bytes that are held."""
        return self._share.taken

    def restart(self) -> None:
        """Let go of all that is held: nodes before it were edited."""
        self._held, self._done = [dict(feeds) for feeds in self.batches], set[int]()
        self._share.take(0)
        self._waiting = Counter([*(n for names in self._reads for n in names), *self._outputs])

    def mark(self) -> Mark:
        """Return where the walk is, to come back there."""
        return Mark(self._held.copy(), self._done.copy(), self._waiting.copy(), self._share.taken)

    def back(self, mark: Mark) -> None:
        """Go back to where the walk was."""
        self._held, self._done, self._waiting = mark.held.copy(), mark.done.copy(), mark.waiting.copy()
        self._share.take(mark.taken)

    def coming(self, names: Sequence[str]) -> int:
        """Return the bytes that are held once some tensors have been asked for."""
        _, _, ahead, frontier = self._coming(names)
        return self.taken if frontier is None else self.bytes(ahead)

    def edited(self, name: str, change: Callable[[Array], Array]) -> None:
        """Apply to the values held of a tensor what an edit of the node that makes it does to them."""
        for held in self._held:
            if name in held:
                held[name] = change(held[name])

    def rewired(self, indices: Iterable[int]) -> None:
        """Take note that some nodes read other tensors than they did."""
        for k in indices:
            before, self._reads[k] = self._reads[k], reads(self._nodes[k])
            if k not in self._done:
                self._waiting.subtract(before)
                self._waiting.update(self._reads[k])

    def _coming(self, names: Sequence[str]) -> tuple[list[int], Counter[str], set[str], list[str] | None]:
        """Return the nodes that some tensors take, what these read and how often, what is read behind them, and made.

        The last is None where what is read behind them is not held: there is no room for it, or it is not fed.
        """
        new = self._needed(names)
        if new is None:  # something behind was let go
            self.restart()
            new = self._needed(names) or []
        reading = Counter(n for k in new for n in self._reads[k])
        made = [o for k in new for o in self._nodes[k].output]
        ahead = {n for n in (*self._held[0], *made) if self._waiting[n] > reading[n]}
        frontier, shaped = [n for n in made if n in ahead], self.free.shaped
        # sequences are not fed, nor what stands in the body of a loop
        fed = all(n in shaped.shapes and not self.free.depth(n) for n in frontier if n in shaped.producers)
        fits = self._share.fits(self.bytes(ahead))
        return new, reading, ahead, frontier if fed and fits else None

    def _needed(self, names: Sequence[str]) -> list[int] | None:
        """Return the nodes between what is held and some tensors, in order; None where one before was let go."""
        held, new, pending = self._held[0], set[int](), list(names)
        while pending:
            name = pending.pop()
            k = self._produced.get(name)
            if name in held or (k is None and name not in self.batches[0]):
                continue
            if k is None or k in self._done:
                return None
            if k not in new:
                new.add(k)
                pending.extend(self._reads[k])
        return sorted(new)

    def bytes(self, names: Iterable[str]) -> int:
        """Return how many bytes the values of some tensors take on all images, about, but for what is fed."""
        shapes = ((n, self.free.shaped.shapes.get(n, ())) for n in names if n not in self.batches[0])
        if self.live is not None:
            shapes = ((n, self.live.shape(n, shape)) for n, shape in shapes)
        return sum(4 * math.prod(shape) // self.free.batch * self._images for _, shape in shapes)

    def _kind(self, name: str) -> int:
        return self._kinds.get(name) or self.free.shaped.kinds.get(name, TensorProto.FLOAT)


def _own(value: Array) -> Array:
    """Return an array with memory of its own: one of onnxruntime's keeps all that the runs of its session took."""
    return value.copy() if isinstance(value, np.ndarray) and not value.flags.owndata else value


@dataclass
class Route:
    """A walk that always takes the same steps: what it gives of one is the same to the last bit, wherever one comes in.

    A run from the middle of a model on rounds otherwise than one from its inputs does, where the runtime fuses nodes.
    As the memory allows, it goes back to where it was when it was asked last, and not to the start.

    Attributes:
        walk: through a model that is not edited.
        steps: the tensors that are passed, one after the other, from input to output.
    """

    walk: Walk
    steps: Sequence[str]
    _passed: int = 0
    _marks: dict[int, Mark] = field(default_factory=dict)

    def __call__(self, name: str) -> Iterator[Array]:
        """Yield the values of a step, batch by batch; those passed since the last one asked for are computed, too."""
        place = self.steps.index(name)
        start, self._passed = self._passed, len(self.steps) + 1
        nearest = max((passed for passed in self._marks if passed <= place + 1), default=0)
        if start > place + 1 or nearest > start:  # the last one asked for is held, or computed from what was
            start = nearest
            self.walk.back(self._marks[nearest]) if nearest else self.walk.restart()
        for step in self.steps[start:place]:
            self._make_room(step)
            self.walk.go_past([step])
        self._make_room(name)
        for (values,) in self.walk([name]):
            yield values
        self._passed = place + 1
        self._marks.pop(self._passed, None)
        self._marks[self._passed] = self.walk.mark()

    def _make_room(self, step: str) -> None:
        """Forget places to go back to, until they and what a step makes take half of the memory; the last one last.

        Of the others that one goes first which saves the fewest nodes for its bytes: those behind the place before it
        are all that is run again without it. So of a long way a part is kept at every stage, where those that were
        passed last would be all ahead of who comes back.
        """
        room = self.walk.free.backend.memory // 2 - self.walk.coming([step])
        while self._marks and _held(self._marks.values(), self.walk.batches) > room:
            del self._marks[self._least_useful()]

    def _least_useful(self) -> int:
        """Return the place to forget first."""
        places, last = sorted(self._marks), next(reversed(self._marks))
        done = [0, *(len(self._marks[place].done) for place in places)]
        worth = {
            place: (after - before) / max(1, self._marks[place].taken)
            for place, before, after in zip(places, done, done[1:], strict=False)
            if place != last
        }
        return min(worth, key=lambda place: (worth[place], place)) if worth else last


def _held(marks: Iterable[Mark], batches: Sequence[Mapping[str, Array]]) -> int:
    """Return the bytes that are held at some places of a walk, but for what is fed."""
    fed = {id(values) for feeds in batches for values in feeds.values()}
    every = {id(values): values.nbytes for mark in marks for feeds in mark.held for values in feeds.values()}
    return sum(size for key, size in every.items() if key not in fed)


@dataclass
class Repeated:
    """A walk that is taken several times: what it gave is kept for the next time, as far as there is room.

    Every time is given what it would be by a walk of its own, to the last bit: what was not kept is computed once all
    that was asked for before it has been, in the pieces of the first time.

    Attributes:
        walk: through a model that is not edited.
        most: bytes that are kept at most. A walk that goes beside it holds no more either; neither shares them, for
            what one of them holds decides in which pieces it goes.
    """

    walk: Walk
    most: int
    _kept: dict[_Asked, list[list[Array]]] = field(default_factory=dict)
    _asked: _Asked = ()
    _computed: _Asked = ()
    _bytes: int = 0

    def again(self) -> Repeated:
        """Go back to the start."""
        self._asked = self._computed = ()
        self.walk.restart()
        return self

    def __call__(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Yield the values of some tensors, batch by batch."""
        before, self._asked = self._asked, (*self._asked, tuple(names))
        if self._asked in self._kept:
            yield from self._kept[self._asked]
            return
        if before != self._computed:
            self.walk.restart()
            for step in before:
                self.walk.go_past(step)
        self._computed = self._asked
        size = self.walk.bytes(names)
        if self._bytes + size > self.most:
            yield from self.walk(names)
            return
        found = []
        for values in self.walk(names):
            found.append(values)
            yield values
        self._kept[self._asked] = found
        self._bytes += size


_Asked = tuple[tuple[str, ...], ...]
"""The tensors asked for since the start, step by step."""
