"""Activations of a model on all images, asked for from input to output; what lies behind is not computed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto, TensorProto

from onnxshap.core import Array
from onnxshap.graph import extract
from onnxshap.graph.loops import closed
from onnxshap.graph.structure import reads
from onnxshap.labels import Liveness
from onnxshap.tracing import Traced


def border(traced: Traced, live: Liveness) -> list[str]:
    """Return the tensors that a plan leaves as they are and that a node reads whose values or widths it changes."""
    shaped, changed = traced.shaped, set[str]()
    given = {t.name for t in shaped.graph.model.graph.initializer} | set(shaped.constants)
    found: dict[str, None] = {}

    def cut(name: str) -> bool:
        return any(live.cut(name, axis) for axis in range(len(shaped.shapes.get(name, ()))))

    for node in closed(shaped.graph.model).graph.node:
        names = reads(node)
        restated = any(o in shaped.parts for o in node.output)  # sizes, of which a plan may change some
        if restated or any(n in changed or cut(n) for n in names) or any(cut(o) for o in node.output):
            changed.update(node.output)
            found.update(dict.fromkeys(n for n in names if n not in changed and n not in given and not cut(n)))
    return list(found)


@dataclass
class Walk:
    """Runs a model piece by piece over fixed batches.

    The model may be edited between calls, at nodes that what was asked for does not depend on. Activations are held
    between two calls as far as the backend's memory goes; past it they are computed again.

    Attributes:
        free: tells the shapes of the tensors (before the cut: upper bounds) and the backend.
        model: the model.
        batches: feeds by input name.
    """

    free: Traced
    model: ModelProto
    batches: Sequence[Mapping[str, Array]]
    _held: list[dict[str, Array]] = field(default_factory=list)
    _done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._kinds = {i.name: i.type.tensor_type.elem_type for i in self.model.graph.input}
        self._held = [dict(feeds) for feeds in self.batches]

    def __call__(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Yield the values of some tensors, batch by batch."""
        nodes = self.model.graph.node
        done = self._needed(names)
        if done is None:  # something behind was let go
            self.restart()
            done = self._needed(names) or set()
        given = set(self._held[0])
        ahead = {n for k, node in enumerate(nodes) if k not in done for n in reads(node)}
        ahead |= {o.name for o in self.model.graph.output}
        frontier = [n for k in sorted(done) for n in nodes[k].output if n in ahead]
        shaped, size = self.free.shaped, self._bytes([*frontier, *(n for n in given if n in ahead)])
        tensors = all(n in shaped.shapes or n not in shaped.producers for n in frontier)  # sequences are not fed
        keep = tensors and size <= self.free.backend.memory
        wanted = list(dict.fromkeys([*names, *(frontier if keep else ())]))
        computed = [n for n in wanted if n not in given]
        session = None
        if computed:
            inputs = {n: self._kind(n) for n in self._held[0]}
            part = extract(self.model, inputs, {n: self._kind(n) for n in computed}, shaped.declared)
            session = self.free.backend.session(part)
        for number, held in enumerate(self._held):
            found = dict(held)
            if session is not None:
                values = session.run({n: held[n] for n in session.inputs})
                found.update(zip(computed, values, strict=True))
            yield [found[n] for n in names]
            if keep:
                self._held[number] = {n: v for n, v in found.items() if n in ahead}
        if keep:
            self._done = done

    def restart(self) -> None:
        """Let go of all that is held: nodes before it were edited."""
        self._held, self._done = [dict(feeds) for feeds in self.batches], set()

    def edited(self, name: str, change: Callable[[Array], Array]) -> None:
        """Apply to the values held of a tensor what an edit of the node that makes it does to them."""
        for held in self._held:
            if name in held:
                held[name] = change(held[name])

    def _needed(self, names: Sequence[str]) -> set[int] | None:
        """Return the nodes behind some tensors, all before them included; None where one of them was let go."""
        nodes = self.model.graph.node
        produced = {o: k for k, node in enumerate(nodes) for o in node.output}
        done, pending = set(self._done), list(names)
        while pending:
            name = pending.pop()
            k = produced.get(name)
            if name in self._held[0] or (k is None and name not in self.batches[0]):
                continue
            if k is None or k in self._done:
                return None
            if k not in done:
                done.add(k)
                pending.extend(reads(nodes[k]))
        return done

    def _kind(self, name: str) -> int:
        return self._kinds.get(name) or self.free.shaped.kinds.get(name, TensorProto.FLOAT)

    def _bytes(self, names: Sequence[str]) -> int:
        images = sum(self.free.shaped.count(feeds) for feeds in self.batches)
        shapes = (self.free.shaped.shapes.get(n, ()) for n in names)
        return sum(4 * math.prod(shape) // self.free.batch * images for shape in shapes)
