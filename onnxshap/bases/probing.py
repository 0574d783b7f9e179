"""Which changes of basis leave a model as it is, asked of the model itself.

Two questions, both answered by running: does every op between what makes the units and what reads them treat them as a
linear one would (on random values of several sizes, so that none of a region counts), and does everything that reads
them give the same for a random basis on each side. The ops that pass the first are affine or multilinear in the units;
equal at random points they are equal everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxshap.bases.carriers import Carriers
from onnxshap.core import Array, FloatArray
from onnxshap.errors import ModelError
from onnxshap.graph import array, extract
from onnxshap.tracing import Traced

Turns = Mapping[int, FloatArray]
"""Number of an entry -> float64[occurrences, n, n]: what becomes of the units at each of its occurrences."""
_SIZES = (1e-2, 1.0, 1e2)
_AFFINE = 1e-4
"""Of the largest value, what an affine op may miss additivity by: rounding of float32."""
_SAME = 1e-4
"""Of the largest value, what another basis may change by."""
_SPREAD = (0.6, 1.6)
"""Of the scales in a random basis."""


def turned_constant(values: Array, axis: int, at: Array, turn: FloatArray) -> Array:
    """Return a constant whose slices of the units are mixed: at every occurrence m, turn[m] @ slices."""
    moved = np.moveaxis(values.astype(np.float64), axis, 0)
    for places, matrix in zip(at, turn, strict=True):
        moved[places] = np.tensordot(matrix, moved[places], axes=1)
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis), values.dtype)


def random_basis(rng: np.random.Generator, size: int) -> FloatArray:
    """Return an invertible matrix float64[size, size] that mixes everything and scales little."""
    turned, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return np.asarray(turned * rng.uniform(*_SPREAD, size)[:, None])


def other_side(turn: FloatArray) -> FloatArray:
    """Return what goes with a basis where the units are summed away: the transposed inverse."""
    return np.ascontiguousarray(np.linalg.inv(turn).swapaxes(-1, -2))


def linear_between(free: Traced, places: Carriers, feeds: Mapping[str, Array]) -> bool:
    """Return whether every op that hands units on is affine in them, whatever else it reads.

    Args:
        free: the model for evaluation.
        places: those of a group.
        feeds: a batch: what ops read beside the units is as the model makes of it.
    """
    shaped, rng = free.shaped, np.random.default_rng(0)
    own = {tensor for part in places.stretches for tensor, _ in part}
    stored = shaped.graph.initializers
    nodes = [shaped.graph.nodes[k] for k in places.between]
    beside = {i for n in nodes for i in n.input if i and i not in own and i not in stored}
    if any(shaped.kinds.get(name) != TensorProto.FLOAT for name in own):
        return False
    try:
        values = _values(free, {*own, *beside}, feeds)
        for node in nodes:
            given = [i for i in dict.fromkeys(node.input) if i in own]
            made = {o: TensorProto.FLOAT for o in node.output if o in own}
            others = [i for i in dict.fromkeys(node.input) if i in beside]
            kinds = {i: shaped.kinds.get(i, TensorProto.FLOAT) for i in (*given, *others)}
            alone = free.backend.session(extract(shaped.graph.model, kinds, made, None, [node]))
            fixed = {i: values[i] for i in others}

            def run(drawn: Sequence[Array], size: float, session=alone, names=given, fixed=fixed) -> list[FloatArray]:  # type: ignore[no-untyped-def]
                fed = {n: (size * v).astype(np.float32) for n, v in zip(names, drawn, strict=True)}
                return [np.asarray(v, np.float64) for v in session.run({**fixed, **fed})]

            for size in _SIZES:
                x, y = ([rng.normal(size=values[i].shape) for i in given] for _ in range(2))
                both, one, other, none = (
                    run(drawn, size)
                    for drawn in ([a + b for a, b in zip(x, y, strict=True)], x, y, [0 * a for a in x])
                )
                for sum_, a, b, zero in zip(both, one, other, none, strict=True):
                    scale = max(float(np.abs(v).max(initial=0)) for v in (sum_, a, b))
                    if not np.abs(sum_ - a - b + zero).max(initial=0) <= _AFFINE * scale:
                        return False
    except ModelError:  # what lies in between does not run alone
        return False
    return True


def _values(free: Traced, names: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the values of some tensors on a batch."""
    shaped = free.shaped
    wanted = {n: shaped.kinds.get(n, TensorProto.FLOAT) for n in sorted(names)}
    given = {i.name: i.type.tensor_type.elem_type for i in shaped.graph.model.graph.input}
    session = free.backend.session(extract(shaped.graph.model, given, wanted))
    found = dict(zip(wanted, session.run({n: feeds[n] for n in session.inputs}), strict=True))
    return found | {n: feeds[n] for n in names if n in feeds}


@dataclass
class Probe:
    """Runs a model on one batch with a group's constants changed.

    Attributes:
        free: the model for evaluation.
        places: the group's.
        feeds: the batch.
    """

    free: Traced
    places: Carriers
    feeds: Mapping[str, Array]

    def __post_init__(self) -> None:
        shaped, entries = self.free.shaped, self.places.entries
        stored = shaped.graph.initializers
        self._constants = {e.name: array(stored[e.name]) for e in entries}
        own = {tensor for part in self.places.stretches for tensor, _ in part}
        read = [shaped.graph.nodes[s.node].output[0] for s in self.places.sites]
        kinds = {i.name: i.type.tensor_type.elem_type for i in shaped.graph.model.graph.input}
        outputs = {o.name: o.type.tensor_type.elem_type for o in shaped.graph.model.graph.output}
        outputs |= {o: TensorProto.FLOAT for o in read if o not in own and not self.free.depth(o)}
        whole = {**kinds, **dict.fromkeys(self._constants, TensorProto.FLOAT)}
        self._session = self.free.backend.session(extract(shaped.graph.model, whole, outputs))
        self._before = self._run({})

    def _run(self, turns: Turns) -> list[Array]:
        changed = dict(self._constants)
        for number, turn in turns.items():
            entry = self.places.entries[number]
            changed[entry.name] = turned_constant(changed[entry.name], entry.axis, entry.spots.at, turn)
        feeds = {**self.feeds, **changed}
        return self._session.run({n: feeds[n] for n in self._session.inputs})

    def same(self, turns: Turns) -> bool:
        """Return whether the model's outputs, and all that reads the units, are what they were."""
        for before, after in zip(self._before, self._run(turns), strict=True):
            if before.dtype.kind != "f":
                continue
            scale = float(np.abs(before).max(initial=0))
            if before.shape != after.shape or not np.abs(after - before).max(initial=0) <= _SAME * scale:
                return False
        return True
