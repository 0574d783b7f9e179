"""Which changes of basis leave a model as it is, asked of the model itself.

Two questions, both answered by running ops that are multilinear by their kind (`rules.multilinear`): is every op
between what makes the units and what sums them away affine in them, and does all that reads them give the same for a
random basis on each side. What they read beside the units is random too, as far as it is numbers or flags: inputs may
have no mask set, or gates that are 1, where others have. Multilinear functions that are equal at random points are
equal everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxshap.bases.carriers import Carriers
from onnxshap.core import Array, FloatArray
from onnxshap.errors import ModelError
from onnxshap.graph import array, extract
from onnxshap.graph.standard import op_of
from onnxshap.graph.structure import reads
from onnxshap.rules.multilinear import MULTILINEAR
from onnxshap.tracing import Traced

Turns = Mapping[int, FloatArray]
"""Number of an entry -> float64[occurrences, n, n]: what becomes of the units at each of its occurrences."""
_SIZES = (1e-2, 1e2)
_AFFINE = 1e-4
"""Of the largest value, what an affine op may miss additivity by: rounding of float32."""
_SAME = 1e-4
"""Of the largest value, what another basis may change by."""
_BESIDE = (0.5, 1.5)
"""Of the magnitudes of what ops read beside the units: something may be divided by it."""
_SPREAD = (0.6, 1.6)
"""Of the scales in a random basis."""


def turned_constant(values: Array, axis: int, at: Array, turn: FloatArray) -> Array:
    """Return a constant whose slices of the units are mixed: at every occurrence m, turn[m] @ slices."""
    moved = np.moveaxis(values.astype(np.float64), axis, 0)
    for places, matrix in zip(at, turn, strict=True):
        moved[places] = np.tensordot(matrix, moved[places], axes=1)
    with np.errstate(over="ignore"):  # Inf gives another model, which is refused
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
        feeds: a batch of as many images as it was traced with: indices that ops read are as it makes of it.
    """
    shaped = free.shaped
    own = places.tensors.keys()
    known = own | shaped.graph.initializers.keys()
    weighed = {s.node for s in places.sites if s.weight is not None}
    reading = {k for name in own for k in shaped.readers.get(name, ()) if k not in weighed}
    if any(shaped.kinds.get(name) != TensorProto.FLOAT for name in own):
        return False
    if any(op_of(shaped.graph.nodes[k]) not in MULTILINEAR for k in (*reading, *places.between)):
        return False
    nodes = [(node, [i for i in dict.fromkeys(node.input) if i and i not in known])
             for node in _one_of_each([shaped.graph.nodes[k] for k in places.between])]  # fmt: skip
    try:  # the quick ones first: most groups have a nonlinear op that reads nothing else
        if not all(_is_affine(free, node, own, {}) for node, beside in nodes if not beside):
            return False
        values = _values(free, {i for _, beside in nodes for i in beside}, feeds)
        return all(_is_affine(free, node, own, {i: values[i] for i in beside}) for node, beside in nodes if beside)
    except ModelError:  # what lies in between does not run alone
        return False


def _one_of_each(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return nodes, the first of every op before the second of any: one op in many that is not linear is found soon."""
    counts = Counter[str]()
    numbered = list[tuple[int, int, NodeProto]]()
    for node in nodes:
        numbered.append((counts[node.op_type], len(numbered), node))
        counts[node.op_type] += 1
    return [node for _, _, node in sorted(numbered, key=lambda item: item[:2])]


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

    def given_by(drawn: Sequence[Array]) -> list[Array]:
        return session.run({**beside, **dict(zip(given, drawn, strict=True))})

    x, y = ([rng.standard_normal(shaped.shapes[i], np.float32) for i in given] for _ in range(2))
    sums, zeros = [a + b for a, b in zip(x, y, strict=True)], given_by([0 * a for a in x])
    for size in _SIZES:
        found = [given_by([np.float32(size) * v for v in drawn]) for drawn in (sums, x, y)]
        for both, a, b, none in zip(*found, zeros, strict=True):
            largest = max(float(np.abs(v).max(initial=0)) for v in (both, a, b))
            if not np.abs(both - a - b + none).max(initial=0) <= _AFFINE * largest:
                return False
    return True


def _values(free: Traced, names: Collection[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return random values of tensors that hold numbers or flags, and those of others (sizes, indices) on a batch."""
    shaped, rng, found, wanted = free.shaped, np.random.default_rng(0), dict[str, Array](), dict[str, int]()
    for name in sorted(names):
        kind = shaped.kinds.get(name, TensorProto.FLOAT)
        dtype, shape = helper.tensor_dtype_to_np_dtype(kind), shaped.shapes.get(name)
        if dtype.kind in "fb" and shape is not None:
            drawn = rng.uniform(*_BESIDE, shape) * rng.choice((-1.0, 1.0), shape)
            found[name] = np.asarray(drawn > 0 if dtype.kind == "b" else drawn, dtype)
        elif name in feeds:
            found[name] = feeds[name]
        else:
            wanted[name] = kind
    if wanted:
        given = {i.name: i.type.tensor_type.elem_type for i in shaped.graph.model.graph.input}
        session = free.backend.session(extract(shaped.graph.model, given, wanted))
        found |= dict(zip(wanted, session.run({n: feeds[n] for n in session.inputs}), strict=True))
    return found


@dataclass
class Probe:
    """Runs what touches a group's units, on one batch, with the group's constants changed.

    All that the rest of the model sees of the units is what comes out of the nodes that read them and hand them on no
    more; what goes in from elsewhere is random, but for sizes and indices.

    Attributes:
        free: the model for evaluation.
        places: the group's.
        feeds: the batch.
    """

    free: Traced
    places: Carriers
    feeds: Mapping[str, Array]

    def __post_init__(self) -> None:
        shaped, own = self.free.shaped, self.places.tensors
        stored = shaped.graph.initializers
        self._constants = {e.name: array(stored[e.name]) for e in self.places.entries}
        touching = sorted({k for name in (*own, *self._constants) for k in self._readers(name)})
        nodes = [shaped.graph.nodes[k] for k in touching]
        seen = [o for node in nodes for o in node.output if o and o not in own and o not in shaped.constants]
        known = {*own, *stored, *shaped.constants, *seen}
        beside = {i for node in nodes for i in reads(node) if i and i not in known}
        self._given = {**_values(self.free, beside, self.feeds)}
        kinds = {n: shaped.kinds.get(n, TensorProto.FLOAT) for n in (*sorted(beside), *self._constants, *seen)}
        given = {n: kinds[n] for n in (*sorted(beside), *self._constants)}
        part = extract(shaped.graph.model, given, {n: kinds[n] for n in seen})
        self._session = self.free.backend.session(part)
        self._before = self._run({})

    def _readers(self, name: str) -> list[int]:
        """Return the nodes that read a tensor; of a constant that the file moves first, of what it gives."""
        found = list[int]()
        for k in self.free.shaped.readers.get(name, ()):
            moved = [o for o in self.free.shaped.graph.nodes[k].output if o in self.free.shaped.constants]
            found += [k, *(reader for o in moved for reader in self._readers(o))]
        return found

    def _run(self, turns: Turns) -> list[Array]:
        changed = dict(self._constants)
        for number, turn in turns.items():
            entry = self.places.entries[number]
            changed[entry.name] = turned_constant(changed[entry.name], entry.axis, entry.spots.at, turn)
        feeds = {**self._given, **changed}
        return self._session.run({n: feeds[n] for n in self._session.inputs})

    def same(self, turns: Turns) -> bool:
        """Return whether all that the rest of the model sees of the units is what it was."""
        for before, after in zip(self._before, self._run(turns), strict=True):
            if before.dtype.kind != "f":
                if not np.array_equal(before, after):
                    return False
                continue
            scale = float(np.abs(before).max(initial=0))
            if before.shape != after.shape or not np.abs(after - before).max(initial=0) <= _SAME * scale:
                return False
        return True
