"""A part of a model that runs for every row, in stages: each takes as many rows a run as suit it.

Early layers make large tensors with small filters: few rows at a time stay in the processor's cache. Late layers make
small tensors with large filters: many rows at a time pay for reading those. So a part is cut where one tensor alone
goes on, that and all that comes is at most half as large as the largest before, and the filters that come are so large
that the copy of the tensor pays. Every stage is a session more to open, for every group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from onnx import ModelProto, TensorProto

from onnxshap.backend import Session
from onnxshap.calibrate import bytes_per_image
from onnxshap.core import Array
from onnxshap.game.pace import CACHE, Pace
from onnxshap.game.winograd import quick_sessions
from onnxshap.graph import extract
from onnxshap.graph.structure import reads, refill
from onnxshap.tracing import Traced

_SMALLER = 1.9
"""Times that tensors have to be smaller behind a cut: halves, as reckoned."""
_READ = 2.0
"""Bytes of filters a row that a cut has to save reading, reckoned, for every byte that is copied there."""
_TOGETHER = 256
"""Rows that all stages are given: of more none gains."""
_FEWEST, _BYTES = 32, 2**24
"""Fewer rows, though no fewer than this, where the largest tensor of all of them would take more than so many bytes."""


class Suffix(Protocol):
    """What runs for every row."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of what it reads."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in order; raises ModelError when the model refuses the feeds."""


def open_suffix(traced: Traced, suffix: ModelProto) -> tuple[Suffix, Pace]:
    """Return what runs a part of a model, and how many rows it is to be given at a time.

    Args:
        traced: the model.
        suffix: of it, a mask in it or not, whose inputs and outputs have the rows where `traced.images` says, others
            on axis 0.

    Raises:
        ModelError: the part does not load.
    """
    backend = traced.backend
    parts = [suffix] if backend.on_device else _cut(traced, suffix)
    sessions = quick_sessions(traced, parts)
    if len(parts) == 1:
        # on a device kernels may depend on the rows of a run, and the time is that of the copies
        return sessions[0], Pace.of(backend, largest(traced, suffix), fixed=backend.on_device)
    front = largest(traced, suffix)
    whole = Pace.of(backend, front, most=int(np.clip(_BYTES // front, _FEWEST, _TOGETHER)), fixed=True)
    paces = [Pace.of(backend, largest(traced, part), most=whole.rows) for part in parts]
    stages = [_Stage(traced, session, pace) for session, pace in zip(sessions, paces, strict=True)]
    return _Stages(stages, [o.name for o in suffix.graph.output]), whole


def largest(traced: Traced, part: ModelProto) -> int:
    """Return the bytes of the largest tensor of a row in a part of a model."""
    made = [name for node in part.graph.node for name in node.output]
    return max(bytes_per_image(traced, [*made, *(i.name for i in part.graph.input)]), default=1)


def _cut(traced: Traced, part: ModelProto) -> list[ModelProto]:
    """Return the stages of a part, in order; the part itself where there is one."""
    cuts = _cuts(traced, part)
    if not cuts:
        return [part]
    graph, stages = part.graph, list[ModelProto]()
    kinds = {i.name: i.type.tensor_type.elem_type for i in (*graph.input, *graph.output)}
    kinds |= {name: traced.shaped.kinds.get(name, TensorProto.FLOAT) for name in cuts}
    places = {name: k for k, node in enumerate(graph.node) for name in node.output}
    for before, cut in pairwise([None, *cuts, None]):
        start = -1 if before is None else places[before]
        stop = len(graph.node) if cut is None else places[cut]
        given = [i.name for i in graph.input] + ([] if before is None else [before])
        wanted = [o.name for o in graph.output if start < places.get(o.name, start) <= stop]
        wanted += [] if cut is None or cut in wanted else [cut]
        stage = extract(part, {n: kinds[n] for n in given}, {n: kinds[n] for n in wanted}, traced.shaped.sized)
        read = {name for node in stage.graph.node for name in reads(node)}
        refill(stage.graph.input, [i for i in stage.graph.input if i.name in read])
        stages.append(stage)
    return stages


def _cuts(traced: Traced, part: ModelProto) -> list[str]:
    """Return the tensors at which a part is cut, in order.

    What is computed of masks alone is small; it is computed again in every stage that reads it.
    """
    graph, known = part.graph, traced.shaped.shapes
    fed = [i.name for i in graph.input if i.name in known]  # masks are no tensors of the model
    if any(traced.images(name) is None for name in (*fed, *(o.name for o in graph.output))):
        return []
    rows, last = set(fed), dict[str, int]()
    for k, node in enumerate(graph.node):
        if not rows.isdisjoint(reads(node)):
            rows.update(name for name in node.output if name)
        last.update(dict.fromkeys(reads(node), k))
    made = [[name for name in node.output if name in rows] for node in graph.node]
    sizes = [max(bytes_per_image(traced, names), default=0) for names in made]
    behind = [*accumulate(reversed(sizes), max, initial=0)][::-1]
    stored = [sum(_stored(traced, name) for name in reads(node)) for node in graph.node]
    to_come = [*accumulate(reversed(stored), initial=0)][::-1]
    found, front, live = list[str](), max(bytes_per_image(traced, fed), default=0), set[str]()
    for k, names in enumerate(made):
        front = max(front, sizes[k])
        live = {name for name in (*live, *names) if last.get(name, -1) > k}
        if len(live) != 1 or live.isdisjoint(names):
            continue
        (name,) = live
        if name not in known or traced.images(name) is None:
            continue
        (copied,) = bytes_per_image(traced, [name])
        after = max(copied, behind[k + 1])
        saved = to_come[k + 1] * (1 / _rows(front) - 1 / _rows(after))
        if _SMALLER * after <= front and saved >= _READ * copied:
            found.append(name)
            front = 0
    return found


def _stored(traced: Traced, name: str) -> int:
    """Return the bytes of what a node reads, where it is a filter."""
    shaped = traced.shaped
    return 4 * math.prod(shaped.shapes[name]) if name in shaped.constants and name in shaped.shapes else 0


def _rows(size: int) -> float:
    """Return how many rows a run suit a stage whose largest tensor takes some bytes each."""
    return float(np.clip(CACHE / max(1, size), 1, _TOGETHER))


@dataclass(frozen=True)
class _Stage:
    """A session that is given some rows at a time, as many as its pace says."""

    traced: Traced
    session: Session
    pace: Pace

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return what it makes of all rows of its inputs."""
        feeds = {name: values[name] for name in self.session.inputs}
        count = next(self.traced.rows(name).count(value.shape) for name, value in feeds.items())
        made, start = list[list[Array]](), 0
        while start < count:
            stop = min(count, start + self.pace.rows)
            chosen = {name: self.traced.rows(name).part(value, start, stop) for name, value in feeds.items()}
            with self.pace.timing(stop - start):
                made.append(self.session.run(chosen))
            start = stop
        columns = zip(self.session.outputs, zip(*made, strict=True), strict=True)
        return {name: parts[0] if len(parts) == 1 else self.traced.rows(name).join(parts) for name, parts in columns}


class _Stages:
    """Stages one after the other, each given what those before it made."""

    def __init__(self, stages: Sequence[_Stage], outputs: Sequence[str]) -> None:
        made = {name for stage in stages for name in stage.session.outputs}
        read = dict.fromkeys(name for stage in stages for name in stage.session.inputs)
        self._stages, self._outputs = stages, outputs
        self.inputs = [name for name in read if name not in made]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        values = dict(feeds)
        for stage in self._stages:
            values |= stage.run(values)
        return [values[name] for name in self._outputs]
