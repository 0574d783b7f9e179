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
from onnx import NodeProto, TensorProto

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
        feeds: a batch of as many images as it was traced with: what ops read beside the units is as it makes of it.
    """
    shaped = free.shaped
    own = {tensor for part in places.stretches for tensor, _ in part}
    known = own | shaped.graph.initializers.keys()
    if any(shaped.kinds.get(name) != TensorProto.FLOAT for name in own):
        return False
    nodes = [(node, [i for i in dict.fromkeys(node.input) if i and i not in known])
             for node in (shaped.graph.nodes[k] for k in places.between)]  # fmt: skip
    try:  # the quick ones first: most groups have a nonlinear op that reads nothing else
        if not all(_is_affine(free, node, own, {}) for node, beside in nodes if not beside):
            return False
        values = _values(free, {i for _, beside in nodes for i in beside}, feeds)
        return all(_is_affine(free, node, own, {i: values[i] for i in beside}) for node, beside in nodes if beside)
    except ModelError:  # what lies in between does not run alone
        return False


def _is_affine(free: Traced, node: NodeProto, own: Collection[str], beside: Mapping[str, Array]) -> bool:
    """Return whether f(x + y) - f(x) - f(y) + f(0) vanishes, x and y random values of what a node reads of the units.

    Args:
        free: the model for evaluation.
        node: one of its nodes.
        own: the tensors that hold the units.
        beside: what it reads besides.
    """
    shaped, rng = free.shaped, np.random.default_rng(0)
    given = [i for i in dict.fromkeys(node.input) if i in own]
    made = {o: TensorProto.FLOAT for o in node.output if o in own}
    kinds = {i: shaped.kinds.get(i, TensorProto.FLOAT) for i in (*given, *beside)}
    session = free.backend.session(extract(shaped.graph.model, kinds, made, shaped.declared, [node]))

    def given_by(drawn: Sequence[FloatArray]) -> list[FloatArray]:
        fed = {n: v.astype(np.float32) for n, v in zip(given, drawn, strict=True)}
        return [np.asarray(v, np.float64) for v in session.run({**beside, **fed})]

    for size in _SIZES:
        x, y = ([size * rng.normal(size=shaped.shapes[i]) for i in given] for _ in range(2))
        sums, nothing = [a + b for a, b in zip(x, y, strict=True)], [0 * a for a in x]
        for both, a, b, none in zip(*map(given_by, (sums, x, y, nothing)), strict=True):
            largest = max(float(np.abs(v).max(initial=0)) for v in (both, a, b))
            if not np.abs(both - a - b + none).max(initial=0) <= _AFFINE * largest:
                return False
    return True


def _values(free: Traced, names: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the values of some tensors on a batch."""
    shaped = free.shaped
    wanted = {n: shaped.kinds.get(n, TensorProto.FLOAT) for n in sorted(names) if n not in feeds}
    found = {n: feeds[n] for n in names if n in feeds}
    if wanted:
        given = {i.name: i.type.tensor_type.elem_type for i in shaped.graph.model.graph.input}
        session = free.backend.session(extract(shaped.graph.model, given, wanted))
        found |= dict(zip(wanted, session.run({n: feeds[n] for n in session.inputs}), strict=True))
    return found


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
