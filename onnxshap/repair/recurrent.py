"""Recurrent ops as regressions: what their gates are fed, from what comes in and from the states before.

A gate reads W x + R h + b, x of this step and h of the step before. Both lose positions, so what a gate of a unit that
stays is fed is fitted on the positions that stay of both, on the cut model's own x and the original's states: those
of the cut model follow once its gates are fed what they were. The last gate of a GRU reads R h multiplied by a gate, or
h multiplied by it; its two parts are fitted one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from scipy.special import expit

from onnxshap.core import Array, BoolArray, FloatArray
from onnxshap.graph import Names, attributes, is_op
from onnxshap.graph.structure import reads
from onnxshap.graph.weights import as_stored
from onnxshap.labels import Liveness
from onnxshap.repair.regression import Rows
from onnxshap.repair.systems import Single
from onnxshap.shapes.constants import static_values
from onnxshap.tracing import Traced

REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Whether each direction goes from the last step to the first, by the attribute `direction`."""
Store = Callable[[NodeProto, int, str, Array], object]
"""Stores an input of a node under a name, if it has none (`Coefficients.store`)."""
_W, _R, _B, _LENGTHS, _START = 1, 2, 3, 4, 5
"""Numbers of the inputs: weights of what comes in, of the states, biases, steps of every image, the first states."""


@dataclass(frozen=True)
class Recurrent:
    """An LSTM, GRU or RNN of the cut model.

    Attributes:
        index: its node in the cut model.
        node: its node in the original, with an output of all states (`with_states`).
        gates: how many blocks of units its weights hold.
        name: what reports call it.
    """

    index: int
    node: NodeProto
    gates: int
    name: str

    @property
    def x(self) -> str:
        """The tensor that comes in, [steps, images, inputs]."""
        name: str = self.node.input[0]
        return name

    @property
    def states(self) -> str:
        """The tensor of all states, [steps, directions, images, hidden]."""
        name: str = self.node.output[0]
        return name

    @property
    def reversed(self) -> tuple[bool, ...]:
        """Whether each direction goes from the last step to the first."""
        return REVERSED[attributes(self.node).get("direction", "forward")]

    @property
    def resets(self) -> bool:
        """Whether the last gate reads states that another gate multiplies (GRU)."""
        return is_op(self.node, "GRU")

    @property
    def linear_before_reset(self) -> bool:
        """Whether they are multiplied behind R, not before it."""
        return bool(attributes(self.node).get("linear_before_reset", 0))

    @property
    def states_weight(self) -> str:
        """The name of R."""
        name: str = self.node.input[_R]
        return name

    @property
    def lengths(self) -> str:
        """The tensor of the steps of every image, "" where all are there."""
        return self._optional(_LENGTHS)

    @property
    def start(self) -> str:
        """The tensor of the first states, "" where they are zeros."""
        return self._optional(_START)

    def _optional(self, number: int) -> str:
        return self.node.input[number] if len(self.node.input) > number else ""


def refittable(traced: Traced, number: int) -> bool:
    """Return whether the weights of a node of the original are those of a recurrent op, and its alone."""
    shaped = traced.shaped
    node, graph = shaped.graph.nodes[number], shaped.graph.model.graph
    if not is_op(node, "LSTM", "GRU", "RNN") or traced.depth(next(o for o in node.output if o)):
        return False
    functions = attributes(node).get("activations", ())
    if is_op(node, "GRU") and any(name.lower() != "sigmoid" for name in functions[::2]):
        return False  # the gate that resets is computed here
    names = {name for name in node.input[_W : _B + 1] if name}
    if not names <= shaped.constants | {t.name for t in graph.initializer}:
        return False
    sources = {shaped.graph.origin.get(name, name) for name in names}  # what nodes share is stored once for each
    readers = [k for k, other in enumerate(shaped.graph.nodes) for name in reads(other)
               if shaped.graph.origin.get(name, name) in sources]  # fmt: skip
    return set(readers) == {number}


def find_recurrent(
    traced: Traced, model: ModelProto, live: Liveness, changed: Collection[str], *, nearest: bool
) -> list[Recurrent]:
    """Return the recurrent ops of a cut model that can be refitted, in order.

    Args:
        traced: the original.
        model: the cut model.
        live: what is left.
        changed: the tensors whose values are not what they were: what does not give such is left.
        nearest: those alone that lose inputs or units themselves.
    """
    produced = {o: k for k, node in enumerate(model.graph.node) for o in node.output if o}
    found, names = [], Names(traced.shaped.graph.model.graph)
    for number, node in enumerate(traced.shaped.graph.nodes):
        index = next((produced[o] for o in node.output if o in produced), None)
        if index is None or not refittable(traced, number) or not any(o in changed for o in node.output):
            continue
        if nearest and not (live.cut(node.input[0], 2) or live.cut(node.input[_R], 2)):
            continue
        w, r = (traced.shaped.shapes[node.input[k]] for k in (_W, _R))
        name = node.name or next(o for o in node.output if o)
        found.append(Recurrent(index, with_states(node, names), w[1] // r[2], name))
    return sorted(found, key=lambda one: one.index)


def with_states(node: NodeProto, names: Names) -> NodeProto:
    """Return a recurrent node that has an output of all states."""
    own = NodeProto()
    own.CopyFrom(node)
    if not own.output[0]:
        own.output[0] = names.new(f"{next(o for o in node.output if o)}.states")
    return own


@dataclass(frozen=True)
class Weights:
    """W [directions, gates, inputs], R [directions, gates, hidden], and their biases [directions, gates] each."""

    w: FloatArray
    r: FloatArray
    wb: FloatArray
    rb: FloatArray
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, model: ModelProto, node: NodeProto, traced: Traced) -> Weights:
        """Return those of a node of a model."""
        names = [name for name in node.input[_W : _B + 1] if name]
        w, r, *b = static_values(model, traced.backend, names).values()
        biases = b[0] if b else np.zeros((len(w), 2 * w.shape[1]))
        wb, rb = np.split(biases.astype(np.float64), 2, axis=1)
        return cls(w.astype(np.float64), r.astype(np.float64), wb, rb, w.dtype)

    def store(self, node: NodeProto, store: Store) -> bool:
        """Make them those of a node, in place; zero biases are left out where there are none.

        Return whether that was done: all is left as it is where their type does not hold them.
        """
        biases = np.concatenate([self.wb, self.rb], axis=1)
        hint = next(o for o in node.output if o)
        every = [as_stored(values, self.dtype) for values in (self.w, self.r, biases)]
        fitting = [values for values in every if values is not None]
        if len(fitting) < len(every):
            return False
        for number, values in zip((_W, _R, _B), fitting, strict=True):
            if len(node.input) <= number and not values.any():
                continue
            node.input.extend([""] * (number + 1 - len(node.input)))
            if node.input[number] or values.any():
                store(node, number, f"{hint}.{'WRB'[number - 1]}", values)
        return True


@dataclass(frozen=True)
class GatePart:
    """One regression of a recurrent op.

    Attributes:
        gates: the first gate and the one behind the last.
        came, before: whether it reads what comes in, and the states (or what resets makes of them).
    """

    gates: tuple[int, int]
    came: bool
    before: bool

    def rows(self, hidden: int) -> slice:
        """Return its rows of weights of so many units."""
        return slice(self.gates[0] * hidden, self.gates[1] * hidden)


def parts_of(layer: Recurrent) -> list[GatePart]:
    """Return the regressions that a recurrent op falls into."""
    if not layer.resets:
        return [GatePart((0, layer.gates), came=True, before=True)]
    last = (layer.gates - 1, layer.gates)
    return [
        GatePart((0, layer.gates - 1), came=True, before=True),
        GatePart(last, came=True, before=False),
        GatePart(last, came=False, before=True),
    ]


@dataclass(frozen=True)
class Seen:
    """What a recurrent op sees on some images.

    Attributes:
        x, cut_x: what comes in, [steps, images, inputs], in the original and in the cut model.
        states: the original's, [steps, directions, images, hidden].
        start: its first ones, [directions, images, hidden], None = zeros.
        lengths: steps of every image, None = all.
    """

    x: Array
    cut_x: Array
    states: Array
    start: Array | None
    lengths: Array | None

    @property
    def valid(self) -> BoolArray:
        """Which steps of which images are there, [steps, images]."""
        steps, images = self.x.shape[:2]
        lengths = np.full(images, steps) if self.lengths is None else self.lengths
        return np.arange(steps)[:, None] < lengths

    def before(self, direction: int, *, backward: bool) -> FloatArray:
        """Return the states of the step before, [steps, images, hidden], of a direction."""
        states = np.asarray(self.states[:, direction], np.float64)
        first = np.zeros_like(states[0]) if self.start is None else np.asarray(self.start[direction], np.float64)
        if not backward:
            return np.concatenate([first[None], states[:-1]])
        found = np.concatenate([states[1:], first[None]])
        last = np.arange(len(states))[:, None] == self.valid.sum(axis=0) - 1
        return np.where(last[..., None], first, found)


class Gates:
    """Rows of the regressions of one recurrent op, and its weights once they are solved."""

    def __init__(self, layer: Recurrent, whole: Weights, present: Weights, kept: BoolArray) -> None:
        self._layer, self._whole, self._present = layer, whole, present
        self._kept = np.flatnonzero(kept)
        self._units = len(kept)

    def inputs(self, part: GatePart) -> int:
        """Return how many coefficients a gate has in a regression, without the bias."""
        return int(part.came * self._present.w.shape[2] + part.before * self._present.r.shape[2])

    def present(self, part: GatePart) -> FloatArray:
        """Return the present coefficients of a regression, [directions, inputs + 1, outputs]."""
        rows, now = part.rows(len(self._kept)), self._present
        blocks = [block[:, rows] for block, read in ((now.w, part.came), (now.r, part.before)) if read]
        bias = part.came * now.wb[:, rows] + part.before * now.rb[:, rows]
        return np.concatenate([*blocks, bias[..., None]], axis=2).transpose(0, 2, 1)

    def add(
        self,
        part: GatePart,
        rows: Sequence[Rows],
        seen: Seen,
        held_out: BoolArray,
        share: float,
        rng: np.random.Generator,
    ) -> None:
        """Add rows of some images to those that are fitted and those held out.

        Args:
            part: the regression.
            rows: the two.
            seen: what the op sees.
            held_out: which images are.
            share: of the steps that are taken.
            rng: draws them.
        """
        for flag, into in zip((False, True), rows, strict=True):
            steps, images = np.nonzero(seen.valid & (held_out == flag))
            if not len(steps):
                continue
            at = np.sort(rng.choice(len(steps), math.ceil(share * len(steps)), replace=False))
            pairs = list(self._directions(part, seen, steps[at], images[at]))
            into.add(np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs]))

    def _directions(
        self, part: GatePart, seen: Seen, steps: NDArray[np.intp], images: NDArray[np.intp]
    ) -> Iterator[tuple[Single, FloatArray]]:
        """Yield inputs float32[rows, inputs + 1] and what is wanted, float64[rows, outputs], of every direction."""
        whole, units = self._whole, self._units
        first, last = part.gates
        wanted_rows = np.concatenate([gate * units + self._kept for gate in range(first, last)])
        x = np.asarray(seen.x[steps, images], np.float64)
        for direction, backward in enumerate(self._layer.reversed):
            state = seen.before(direction, backward=backward)[steps, images]
            w, r = whole.w[direction], whole.r[direction]
            wb, rb = whole.wb[direction], whole.rb[direction]
            if not part.came and not self._layer.linear_before_reset:
                gate = slice(units, 2 * units)
                state = state * expit(x @ w[gate].T + wb[gate] + state @ r[gate].T + rb[gate])
            wanted, columns = np.zeros((len(steps), len(wanted_rows))), list[Array]()
            if part.came:
                wanted += x @ w[wanted_rows].T + wb[wanted_rows]
                columns.append(seen.cut_x[steps, images])
            if part.before:
                wanted += state @ r[wanted_rows].T + rb[wanted_rows]
                columns.append(state[:, self._kept])
            columns.append(np.ones((len(steps), 1)))
            yield np.concatenate(columns, axis=1).astype(np.float32), wanted

    def take(self, part: GatePart, solved: FloatArray) -> None:
        """Put solved coefficients, as `present` gives them, in the place of the present ones."""
        now, rows = self._present, part.rows(len(self._kept))
        columns = solved.transpose(0, 2, 1)
        came = now.w.shape[2] if part.came else 0
        if part.came:
            now.w[:, rows] = columns[..., :came]
        if part.before:
            now.r[:, rows] = columns[..., came:-1]
        if part.came:
            now.wb[:, rows] = columns[..., -1] - part.before * now.rb[:, rows]
        else:
            now.rb[:, rows] = columns[..., -1]

    def store(self, node: NodeProto, store: Store) -> bool:
        """Make the weights those of the node of the cut model, and return whether its type holds them."""
        return self._present.store(node, store)
