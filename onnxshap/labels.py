"""Atoms and their relations: which positions of which tensor axes can only be removed together.

Every position of every tensor axis is an *atom*. Rules (`onnxshap.rules`) relate the atoms of one op at a time:

- `tie`       two axes are the same, position by position;
- `freeze`    positions that can never be removed, with a reason in a user's words;
- `contract`  an axis is summed away: here a removed position leaves nothing behind, so here it is masked;
- `product`   a merged axis (heads x head size) is dead where any of its factors is dead.

`resolve` turns the relations into classes (connected components of the ties), and the classes into *units*, the players
of the games. It is order-free: the same relations in any order give the same units.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxshap.balance import balanced_sets
from onnxshap.core import Array, BoolArray, IntArray
from onnxshap.errors import ModelError
from onnxshap.fixups import Fixup
from onnxshap.relations import Atoms, Freezes, Ties

AxisKey = tuple[str, int]
"""Tensor name and axis >= 0."""


class RuleError(ModelError):
    """An op's axes are not what its rule expects; the op is treated as unknown, its axes are frozen."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an op, as rules see it.

    Attributes:
        name: its name.
        shape: its concrete shape.
        constant: it is computed from initializers alone.
        value: its values, where it is a small initializer.
        stored: it is an initializer itself.
        part: its values as far as they are known, `COMPUTED` the other ones, where shape arithmetic computes it.
        told: its axes whose sizes shape arithmetic reads.
        free: its axes whose sizes follow the inputs' free dimensions.
    """

    name: str
    shape: tuple[int, ...]
    constant: bool
    value: Array | None = None
    stored: bool = False
    part: Array | None = None
    told: frozenset[int] = frozenset()
    free: frozenset[int] = frozenset()

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True)
class Op:
    """A node, as rules see it: `None` stands for an optional input or output that is absent."""

    index: int
    type: str
    attributes: Mapping[str, Any]
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    opset: int

    def input(self, k: int) -> Tensor | None:
        """Return input `k`, None where it is absent."""
        return self.inputs[k] if k < len(self.inputs) else None

    def need(self, k: int) -> Tensor:
        """Return input `k`; a RuleError where it is absent."""
        if (found := self.input(k)) is None:
            raise RuleError(f"{self.type} has no input {k}")
        return found

    def out(self, k: int = 0) -> Tensor:
        """Return output `k`; a RuleError where it is absent."""
        if k >= len(self.outputs) or (found := self.outputs[k]) is None:
            raise RuleError(f"{self.type} has no output {k}")
        return found

    def ints(self, k: int, attribute: str | None = None) -> list[int] | None:
        """Return the constant integers of input `k`, else of an attribute (older opsets), else None.

        Raises:
            RuleError: input `k` is there, but not an initializer.
        """
        if (given := self.input(k)) is not None:
            if given.value is None:
                raise RuleError(f"{self.type} gets its {attribute or 'sizes'} from the data")
            return [int(v) for v in np.ravel(given.value)]
        found = self.attributes.get(attribute) if attribute else None
        return None if found is None else [int(v) for v in np.ravel(found)]

    def some_ints(self, k: int, attribute: str | None = None) -> list[int] | None:
        """Return the same, `COMPUTED` in place of what follows free dimensions."""
        if (given := self.input(k)) is not None and given.part is not None:
            return [int(v) for v in given.part]
        return self.ints(k, attribute)


@dataclass(frozen=True)
class Weight:
    """The constant operand of a contraction, enough to know what one input position adds to the output.

    Attributes:
        input: which input of the node it is.
        sums: its axis that is contracted.
        makes: its axis that becomes axis `out` of the output.
        out: that axis of the output.
        scale: factor on the product (alpha of Gemm).
        spread: share of the taps that meet in one output position (1 / strides of ConvTranspose).
        groups: blocks of a grouped Conv; `sums` or `makes` then counts positions of one group.
        bias: input of the node that is added to axis `out`, with its factor, if there may be one.
    """

    input: int
    sums: int
    makes: int
    out: int
    scale: float = 1.0
    spread: float = 1.0
    groups: int = 1
    bias: tuple[int, float] | None = None


@dataclass(frozen=True)
class Site:
    """Input `input` of node `node` is summed over `axis` of `tensor`: the place to mask it.

    Where the tensor holds codes, `zero` is the input with their zero point (an absent one is 0): what a removed
    position holds. A `stored` one is weights: there is nothing to be seen of the images. Where the sum is of the
    tensor alone, `why` is what to say if it does not vanish; otherwise any input of the node may vanish instead.
    """

    node: int
    input: int
    tensor: str
    axis: int
    weight: Weight | None
    zero: int | None = None
    stored: bool = False
    why: str | None = None


@dataclass(frozen=True)
class Product:
    """`merged` atoms of shape (f1, ..., fk) are dead where any of their factors is; factors are atoms of length f_i."""

    merged: IntArray
    factors: tuple[IntArray, ...]
    where: str


@dataclass(frozen=True)
class Balance:
    """Every row of `blocks` [groups, channels of a group] loses equally many positions, whichever they are.

    Attributes:
        blocks: atoms of the channels, group by group.
        weight: axis of the weight that counts the channels of one group, each group's own, if they meet it there.
        source: the tensor that meets it there; its removed channels have to vanish, no slice of the weight is theirs.
    """

    blocks: IntArray
    weight: AxisKey | None = None
    source: str | None = None

    @property
    def equal_places(self) -> tuple[IntArray, IntArray]:
        """The ties of the simplest balance: the i-th channels of all groups go together."""
        return self.blocks[1:].ravel(), np.broadcast_to(self.blocks[:1], self.blocks[1:].shape).ravel()


@dataclass(frozen=True)
class Frozen:
    """Atoms that stay, and why."""

    atoms: IntArray
    reason: str


@dataclass
class Trace:
    """The relations of one graph, as its rules state them."""

    size: int = 0
    axes: dict[AxisKey, range] = field(default_factory=dict)
    ties: Ties = field(default_factory=Ties)
    frozen: Freezes = field(default_factory=Freezes)
    products: list[Product] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    linear: list[Site] = field(default_factory=list)
    made: list[AxisKey] = field(default_factory=list)
    producers: dict[AxisKey, int] = field(default_factory=dict)
    macs: list[tuple[int, tuple[AxisKey, ...]]] = field(default_factory=list)
    fixups: list[Fixup] = field(default_factory=list)
    mixes_rows: bool = False
    mixed: list[AxisKey] = field(default_factory=list)
    _shared: list[AxisKey] = field(default_factory=list)

    def fresh(self, size: int) -> IntArray:
        """Return `size` new atoms."""
        self.size += size
        return np.arange(self.size - size, self.size)

    def axis(self, tensor: Tensor, axis: int) -> IntArray:
        """Return the atoms of an axis, made on first sight."""
        shape = tensor.shape
        key = tensor.name, axis % len(shape)
        if (known := self.axes.get(key)) is not None:
            return np.arange(known.start, known.stop)
        atoms = self.fresh(shape[key[1]])
        self.axes[key] = range(self.size - len(atoms), self.size)
        return atoms

    def join(self, one: Tensor, axis: int, other: Tensor, axis_of_other: int) -> None:
        """State that two axes are the same, position by position: one that was not seen yet has the atoms of the other.

        That says what a tie does, with fewer atoms: most axes are first seen where an op carries them on.
        """
        keys = (one.name, axis % len(one.shape)), (other.name, axis_of_other % len(other.shape))
        sizes = one.shape[keys[0][1]], other.shape[keys[1][1]]
        seen = [key in self.axes for key in keys]
        if not any(seen):
            self.axis(one, axis)
        if all(seen) or sizes[0] != sizes[1]:
            if self.axes.get(keys[0]) != self.axes.get(keys[1]):
                self.tie(self.axis(one, axis), self.axis(other, axis_of_other))
            return
        new, known = keys if seen[1] else keys[::-1]
        if new != known:
            self.axes[new] = self.axes[known]
            self._shared.append(new)

    def tie(self, a: IntArray, b: IntArray) -> None:
        """State that positions of `a` and `b` can only be removed together."""
        if a.shape != b.shape:
            raise RuleError(f"axes of {a.size} and {b.size} positions cannot be the same")
        self.ties.add(a, b)

    def freeze(self, atoms: IntArray, reason: str) -> None:
        """State that `atoms` stay."""
        self.frozen.add(atoms, reason)

    def mark(self) -> tuple[int, ...]:
        """Return how much was stated, for `forget`."""
        return (len(self.ties), len(self._shared), *map(len, self._lists))

    def forget(self, mark: tuple[int, ...]) -> None:
        """Take back all that was stated since `mark`, but for what was frozen."""
        self.ties.forget(mark[0])
        for key in self._shared[mark[1] :]:
            del self.axes[key]
        for items, length in zip((self._shared, *self._lists), mark[1:], strict=True):
            del items[length:]

    @property
    def _lists(self) -> tuple[list[Any], ...]:
        return self.fixups, self.sites, self.linear, self.made, self.macs, self.products, self.balances


@dataclass(frozen=True)
class _Term:
    """One operand of a spec: names of its axes, `_` for frozen; `star` = where any number of frozen axes stands."""

    names: tuple[str, ...]
    star: int | None

    def expand(self, rank: int, spec: str) -> tuple[str, ...]:
        """Return a name for each of `rank` axes."""
        if self.star is None:
            if rank != len(self.names):
                raise RuleError(f"an operand of rank {rank} does not fit {spec!r}")
            return self.names
        extra = rank - len(self.names)
        if extra < 0:
            raise RuleError(f"an operand of rank {rank} does not fit {spec!r}")
        return (*self.names[: self.star], *("_" * extra), *self.names[self.star :])


@functools.cache
def parse_spec(spec: str) -> tuple[tuple[_Term, ...], tuple[_Term, ...]]:
    """Return the input and output terms of a spec such as `"n i _*, o i _*, o -> n o _*"`.

    Raises:
        ValueError: the spec is malformed (a mistake in a rule, not in a model).
    """
    sides = spec.split("->")
    if len(sides) != 2:
        raise ValueError(f"{spec!r} needs exactly one '->'")

    def term(text: str) -> _Term:
        tokens = text.split()
        stars = [i for i, t in enumerate(tokens) if t == "_*"]
        if len(stars) > 1 or any(not re.fullmatch(r"_\*|_|[a-z]\w*", t) for t in tokens):
            raise ValueError(f"{text!r} in {spec!r}: axes are lower-case names, '_', and at most one '_*'")
        return _Term(tuple(t for t in tokens if t != "_*"), stars[0] if stars else None)

    inputs, outputs = (tuple(term(t) for t in side.split(",")) for side in sides)
    return inputs, outputs


@dataclass
class Axes:
    """What a rule can say about the axes of one op; every axis that it does not mention is frozen afterwards."""

    trace: Trace
    op: Op
    mentioned: set[AxisKey] = field(default_factory=set)

    def input(self, k: int, axis: int) -> IntArray:
        """Return the atoms of an input's axis."""
        return self._mention(self.op.need(k), axis)

    def output(self, k: int, axis: int) -> IntArray:
        """Return the atoms of an output's axis."""
        return self._mention(self.op.out(k), axis)

    def _mention(self, tensor: Tensor, axis: int) -> IntArray:
        self._name(tensor, axis)
        return self.trace.axis(tensor, axis)

    def _name(self, tensor: Tensor, axis: int) -> None:
        rank = len(tensor.shape)
        if not -rank <= axis < rank:
            raise RuleError(f"{self.op.type} names axis {axis} of a tensor of rank {rank}")
        self.mentioned.add((tensor.name, axis % rank))

    def carry(self, axis: int, target: int, inp: int = 0, out: int = 0) -> None:
        """Tie an axis of an input to one of an output, position by position."""
        self._join(self.op.need(inp), axis, self.op.out(out), target)

    def meet(self, axis: int, other: int, first: int = 0, second: int = 1) -> None:
        """Tie an axis of an input to one of another, position by position."""
        self._join(self.op.need(first), axis, self.op.need(second), other)

    def _join(self, one: Tensor, axis: int, other: Tensor, axis_of_other: int) -> None:
        self._name(one, axis)
        self._name(other, axis_of_other)
        self.trace.join(one, axis, other, axis_of_other)

    def tie(self, a: IntArray, b: IntArray) -> None:
        """State that positions of `a` and `b` can only be removed together."""
        self.trace.tie(a, b)

    def freeze(self, atoms: IntArray, reason: str) -> None:
        """State that `atoms` stay."""
        self.trace.freeze(atoms, reason)

    def same(self, axes: Iterable[int] | None = None, inp: int = 0, out: int = 0) -> None:
        """Tie axes (default all) of an input and an output of equal rank, position by position."""
        for axis in range(self.op.out(out).rank) if axes is None else axes:
            self.carry(axis, axis, inp, out)

    def contract(
        self, k: int, axis: int, weight: Weight | None = None, zero: int | None = None, why: str | None = None
    ) -> None:
        """State that input `k` is summed over `axis`, against `weight` if that is a constant; others as in `Site`."""
        tensor = self.op.need(k)
        self.trace.sites.append(
            Site(self.op.index, k, tensor.name, axis % tensor.rank, weight, zero, tensor.constant, why)
        )
        if weight is not None:
            self.linear(k, axis, weight)

    def linear(self, k: int, axis: int, weight: Weight) -> None:
        """State that the op is linear in input `k`, channels on `axis`, with constant weights."""
        tensor = self.op.need(k)
        self.trace.linear.append(Site(self.op.index, k, tensor.name, axis % tensor.rank, weight))

    def factor_name(self, name: str) -> str:
        """Return the name under which `factor` keeps an axis that no tensor has."""
        return f"{self.op.out().name}.{name}"

    def factor(self, name: str, size: int) -> IntArray:
        """Return the atoms of an axis that no tensor has (heads), for products and for counts that follow it."""
        return self.trace.axis(Tensor(self.factor_name(name), (size,), constant=False), 0)

    def mix_rows(self) -> None:
        """State that what the op gives for an image depends on the other images of the batch."""
        self.trace.mixes_rows = True

    def mix(self, axis: int) -> None:
        """State that what the op gives at a position of an axis of its first input depends on the others."""
        self.trace.mixed.append((self.op.need(0).name, axis))

    def make(self, axis: int, out: int = 0) -> None:
        """State that the positions of an output's axis are made here, by weights."""
        key = self.op.out(out).name, axis % self.op.out(out).rank
        self.trace.made.append(key)
        self.trace.producers[key] = self.op.index

    def macs(self, *axes: tuple[Tensor, int]) -> None:
        """State that the op does as many multiply-accumulates as the product of the widths of these axes."""
        if self.op.out().constant:
            return
        self.trace.macs.append((self.op.index, tuple((t.name, a % t.rank) for t, a in axes)))

    def balance(self, blocks: IntArray, weight: AxisKey | None = None, source: str | None = None) -> None:
        """State that every row of `blocks`, channels of one group each, loses equally many; arguments as in Balance."""
        self.trace.balances.append(Balance(blocks, weight, source))

    def fix(self, fixup: Fixup) -> None:
        """State that a constant of this node restates widths and must follow them."""
        self.trace.fixups.append(fixup)

    def relate(
        self,
        spec: str,
        scale: float = 1.0,
        spread: float = 1.0,
        bias: tuple[int, float] | None = None,
        inputs: Sequence[int] | None = None,
        zero: int | None = None,
    ) -> None:
        """State all relations of a (multi-)linear op or a per-channel op in one line.

        The terms name the axes of inputs and outputs in order; absent optional inputs are skipped. A name on both sides
        ties; a name on inputs alone is contracted; `_` is frozen. A named output axis that comes from constants alone
        is made here. Where something is contracted, the op's MACs are the product of all named widths, times the
        unnamed axes of the constant operand and of the output. `scale`, `spread` and `bias` are those of `Weight`.
        `inputs` are those that the terms name, default all; `zero` is that of `Site`: such ops on codes leave nothing.
        """
        op, (ins, outs) = self.op, parse_spec(spec)
        chosen = [(k, op.input(k)) for k in (range(len(op.inputs)) if inputs is None else inputs)]
        operands = [
            (side, k, t, term.expand(t.rank, spec))
            for side, tensors, terms in (("in", chosen, ins), ("out", list(enumerate(op.outputs)), outs))
            for (k, t), term in zip(tensors, terms, strict=False)
            if t is not None
        ]
        first: dict[str, tuple[Tensor, int]] = {}
        at: _Named = {}
        for side, k, tensor, names in operands:
            for axis, name in enumerate(names):
                if name == "_":
                    self.freeze(self._mention(tensor, axis), f"{op.type} mixes or keeps this axis as a whole")
                    continue
                self._name(tensor, axis)
                self.trace.join(*first.setdefault(name, (tensor, axis)), tensor, axis)
                at.setdefault(name, {"in": [], "out": []})[side].append((k, tensor, axis))
        made = [
            places["out"][0]
            for places in at.values()
            if places["out"] and places["in"] and all(t.constant for _, t, _ in places["in"]) and not op.out().constant
        ]
        for k, _, axis in made:
            self.make(axis, k)
        contracted = {name: places["in"] for name, places in at.items() if not places["out"]}
        for name, places in contracted.items():
            self._contract_name(name, places, at, scale, spread, bias, zero)
        if contracted:
            weight = operands[1][2]
            named = [(p["in"] + p["out"])[0][1:] for p in at.values()]
            unnamed = [
                (t, a)
                for _, _, t, names in operands
                for a, n in enumerate(names)
                if n == "_" and (t is weight or t is op.out())
            ]
            self.macs(*named, *unnamed)

    def _contract_name(
        self,
        name: str,
        places: _Places,
        at: _Named,
        scale: float,
        spread: float,
        bias: tuple[int, float] | None,
        zero: int | None,
    ) -> None:
        running = [p for p in places if not p[1].constant]
        constant = [p for p in places if p[1].constant]
        if len(running) == 1 and constant:
            (k, _, axis), (w, _, w_axis) = running[0], constant[0]
            others = [(a, p["out"]) for n, p in at.items() if n != name for i, _, a in p["in"] if i == w]
            weight = None
            if len(others) == 1 and others[0][1] and len(places) == 2 and zero is None:
                weight = Weight(w, w_axis, others[0][0], others[0][1][0][2], scale, spread, bias=bias)
            self.contract(k, axis, weight, zero)
        elif running:
            self.contract(running[0][0], running[0][2], None, zero)


_Places = list[tuple[int, Tensor, int]]
_Named = dict[str, dict[str, _Places]]


# --- resolve ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The resolved relations.

    Attributes:
        classes: int[n_atoms], atom -> class.
        slots: int[n_classes, k], class -> the units it depends on, padded with -1: dead iff one of them is dead. A
            class with no unit is frozen.
        n_units: number of units; unit ids are 0 .. n_units - 1, in order of their first atom.
        reasons: class -> reason, for frozen classes.
        trace: the relations themselves.
    """

    classes: NDArray[np.int32]
    slots: NDArray[np.intp]
    n_units: int
    reasons: Mapping[int, str]
    trace: Trace

    def axis(self, tensor: str, axis: int) -> NDArray[np.int32] | None:
        """Return the classes of an axis, None where no op mentions it."""
        atoms = self.trace.axes.get((tensor, axis))
        return None if atoms is None else self.classes[atoms.start : atoms.stop]

    def units(self, tensor: str, axis: int) -> NDArray[np.intp]:
        """Return int[n, k], the units that each position of an axis depends on, padded with -1."""
        classes = self.axis(tensor, axis)
        return np.empty((0, self.slots.shape[1]), np.intp) if classes is None else self.slots[classes]

    def uneven(self, balance: Balance) -> bool:
        """Return whether the i-th channels of the groups of a Conv are not the same units."""
        found = self.classes[balance.blocks]
        return bool((found[1:] != found[:1]).any())

    @functools.cached_property
    def blockwise(self) -> dict[AxisKey, IntArray]:
        """Axis of a grouped weight -> the channels' atoms [groups, positions] that its positions stand for."""
        return {b.weight: b.blocks for b in self.trace.balances if b.weight is not None and self.uneven(b)}

    def alive(self, keep: BoolArray) -> Liveness:
        """Return which positions stay when the units with `keep` bool[n_units] stay."""
        padded = np.append(keep, True)
        columns = (padded[column] for column in self.slots.T)  # far quicker than all() over a short axis
        return Liveness(self, functools.reduce(np.logical_and, columns))


@dataclass(frozen=True)
class Liveness:
    """Which positions stay under one plan."""

    labels: Labels
    classes: BoolArray

    def axis(self, tensor: str, axis: int) -> BoolArray | None:
        """Return bool[n] for an axis, None where nothing of it can go."""
        found = self.labels.axis(tensor, axis)
        return None if found is None else self.classes[found]

    def width(self, tensor: str, axis: int, size: int) -> int:
        """Return how many of an axis' `size` positions stay."""
        alive = self.axis(tensor, axis)
        return size if alive is None else int(alive.sum())

    def cut(self, tensor: str, axis: int) -> bool:
        """Return whether an axis loses positions."""
        alive = self.axis(tensor, axis)
        return alive is not None and not alive.all()


def resolve(trace: Trace) -> Labels:
    """Return classes and units of the relations.

    Products are resolved to a fixpoint: a frozen factor turns a product into ties with the others, a merged position
    that is frozen freezes its factors, two equal factorisations tie factor to factor, and whatever two products cannot
    both express freezes the smaller factor. Then classes are joined until all of them leave grouped Convs balanced.
    """
    classes = _components(trace.size, *trace.ties.pairs())
    frozen = trace.frozen.copy()
    while True:
        is_frozen = np.zeros(classes.max(initial=-1) + 1, np.bool_)
        is_frozen[classes[frozen.atoms()]] = True
        products, new_ties, new_frozen = _simplify(trace.products, classes, is_frozen)
        if not new_ties and not new_frozen:
            new_ties, new_frozen = _balanced(trace.balances, products, classes, is_frozen)
        if not new_ties and not new_frozen:
            break
        classes = _joined(classes, len(is_frozen), new_ties)
        for item in new_frozen:
            frozen.add(item.atoms, item.reason)
    made = np.zeros(len(is_frozen), np.bool_)
    for key in trace.made:
        if (atoms := trace.axes.get(key)) is not None:
            made[classes[atoms.start : atoms.stop]] = True
    derived = np.zeros(len(is_frozen), np.bool_)
    for product in products:
        derived[classes[product.merged]] = True
        broadcast = np.broadcast_arrays(*np.ix_(*product.factors))
        for factor in broadcast:
            made[classes[factor[made[classes[product.merged]]]]] = True
    is_unit = made & ~derived & ~is_frozen
    reasons = frozen.by_class(classes)
    unit_of = np.full(len(is_unit), -1, np.intp)
    unit_of[is_unit] = np.arange(int(is_unit.sum()))
    width = max([1, *(len(p.factors) for p in products)])
    slots = np.full((len(is_unit), width), -1, np.intp)
    slots[:, 0] = unit_of
    for product in products:
        for k, factor in enumerate(np.broadcast_arrays(*np.ix_(*product.factors))):
            slots[classes[product.merged], k] = unit_of[classes[factor]]
    return Labels(classes, slots, int(is_unit.sum()), reasons, trace)


def _components(size: int, a: Atoms, b: Atoms) -> NDArray[np.int32]:
    """Return int[size], numbered by first atom, of the connected components of the pairs (a, b)."""
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(size, size))
    count, found = connected_components(links, directed=False)
    first = np.full(count, size, np.int32)
    np.minimum.at(first, found, np.arange(size, dtype=np.int32))
    rank = np.empty(count, np.int32)
    rank[np.argsort(first)] = np.arange(count, dtype=np.int32)
    return rank[found]


def _joined(classes: NDArray[np.int32], count: int, ties: Sequence[tuple[IntArray, IntArray]]) -> NDArray[np.int32]:
    """Return the classes, of which there are `count`, with some more ties between their atoms."""
    a, b = ([np.empty(0, np.int32), *(classes[pair[side]].ravel() for pair in ties)] for side in (0, 1))
    return _components(count, np.concatenate(a), np.concatenate(b))[classes]


@dataclass
class _Changes:
    ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)

    def freeze_smallest(self, product: Product, why: str) -> None:
        smallest = min(product.factors, key=len)
        self.frozen.append(Frozen(smallest, f"{why} at {product.where}"))


def _simplify(
    products: Sequence[Product], classes: NDArray[np.int32], frozen: BoolArray
) -> tuple[list[Product], list[tuple[IntArray, IntArray]], list[Frozen]]:
    """Return the products that remain with two live factors or more, and the ties and freezes that follow."""
    changes = _Changes()
    remaining = []
    for product in products:
        if (left := _without_frozen_factors(product, classes, frozen, changes)) is not None:
            remaining.append(left)
    if not changes.ties and not changes.frozen:
        _reconcile(remaining, classes, changes)
    return remaining, changes.ties, changes.frozen


def _without_frozen_factors(
    product: Product, classes: NDArray[np.int32], frozen: BoolArray, changes: _Changes
) -> Product | None:
    merged, factors = product.merged, list(product.factors)
    stuck = frozen[classes[merged]]
    for axis, factor in enumerate(factors):
        other = tuple(a for a in range(merged.ndim) if a != axis)
        newly = stuck.any(axis=other) & ~frozen[classes[factor]]
        if newly.any():
            changes.frozen.append(Frozen(factor[newly], f"it is part of an axis that stays, at {product.where}"))
    for axis in reversed(range(len(factors))):
        if frozen[classes[factors[axis]]].all():
            along = np.moveaxis(merged, axis, 0)
            if len(along) > 1 and (classes[along[1:]] != classes[along[:1]]).any():
                head = np.broadcast_to(along[:1], along[1:].shape)
                changes.ties.append((along[1:].ravel(), head.ravel()))
            merged = along[0]
            del factors[axis]
    if len(factors) >= 2:
        return Product(merged, tuple(factors), product.where)
    if not factors:
        if not frozen[classes[merged]].all():
            changes.frozen.append(Frozen(merged.ravel(), f"all it is made of stays, at {product.where}"))
    elif (classes[merged] != classes[factors[0]]).any():
        changes.ties.append((merged, factors[0]))
    return None


def _reconcile(products: Sequence[Product], classes: NDArray[np.int32], changes: _Changes) -> None:
    """Make products agree with each other; change one conflict's worth at a time, in the order of their atoms."""
    products = sorted(products, key=lambda p: (p.merged.ravel().tolist(), [f.tolist() for f in p.factors]))
    owner: dict[int, tuple[Product, int]] = {}
    factor_classes = {int(c) for p in products for f in p.factors for c in classes[f]}
    for product in products:
        found = classes[product.merged].ravel()
        if len(np.unique(found)) < found.size:
            return changes.freeze_smallest(product, "positions of a merged axis belong to several places")
        if not factor_classes.isdisjoint(found.tolist()):
            return changes.freeze_smallest(product, "a merged axis is merged again")
        others = {id(owner[c][0]): owner[c] for c in found.tolist() if c in owner}
        for other, _ in others.values():
            same = other.merged.shape == product.merged.shape and np.array_equal(
                classes[other.merged], classes[product.merged]
            )
            if not same:
                changes.freeze_smallest(product, "an axis is split in two ways")
                return changes.freeze_smallest(other, "an axis is split in two ways")
            for a, b in zip(product.factors, other.factors, strict=True):
                if (classes[a] != classes[b]).any():
                    changes.ties.append((a, b))
        if changes.ties:
            return None
        owner.update((c, (product, i)) for i, c in enumerate(found.tolist()))
    return None


def _balanced(
    balances: Sequence[Balance], products: Sequence[Product], classes: NDArray[np.int32], frozen: BoolArray
) -> tuple[list[tuple[IntArray, IntArray]], list[Frozen]]:
    """Return the ties that make every class take equally many channels from every group, and what cannot be made to."""
    changes, merged = _Changes(), np.zeros(len(frozen), np.bool_)
    for product in products:
        merged[classes[product.merged]] = True
    members, open_ = [np.unique(classes[b.blocks]) for b in balances], []
    for balance, found in zip(balances, members, strict=True):
        if merged[found].any():
            changes.ties.append(balance.equal_places)  # heads x head size: no sets of single classes
        else:
            open_.append(balance)
    if changes.ties and any((classes[a] != classes[b]).any() for a, b in changes.ties):
        return changes.ties, []
    representative = np.full(len(frozen), -1, np.int64)
    for balance in open_:
        representative[classes[balance.blocks]] = balance.blocks
    ties, stuck = [], []
    for some in _linked(open_, classes):
        alive = np.unique(np.concatenate([classes[b.blocks].ravel() for b in some]))
        alive = alive[~frozen[alive]]
        counts, relations = _counts(some, classes, alive)
        if all((counts[:, r] == counts[:, r.start : r.start + 1]).all() for r in relations):
            continue
        sets, left = balanced_sets(counts, relations)
        total = counts[left].sum(axis=0)
        if all((total[r] == total[r.start]).all() for r in relations):
            sets.append(left)
        elif left:
            stuck.append(Frozen(representative[alive[left]], "the groups of a Conv would be left unequal without it"))
        ties += [
            (representative[alive[s[1:]]], np.full(len(s) - 1, representative[alive[s[0]]])) for s in sets if len(s) > 1
        ]
    return ties, stuck


def _linked(balances: Sequence[Balance], classes: NDArray[np.int32]) -> list[list[Balance]]:
    """Return the balances that share classes together, in the order of their first class."""
    found = [np.unique(classes[b.blocks]) for b in balances]
    size = int(max([0, *(int(f.max(initial=0)) + 1 for f in found)]))
    chains = [np.empty(0, np.int32), *(f for f in found if len(f))]
    starts = np.concatenate([c[:1].repeat(max(0, len(c) - 1)) for c in chains])
    component = _components(size, np.concatenate([c[1:] for c in chains]), starts)
    parts: dict[int, list[Balance]] = {}
    for balance, own in sorted(zip(balances, found, strict=True), key=lambda p: p[0].blocks.ravel().tolist()):
        if len(own):
            parts.setdefault(int(component[own[0]]), []).append(balance)
    return [parts[k] for k in sorted(parts)]


def _counts(
    balances: Sequence[Balance], classes: NDArray[np.int32], alive: NDArray[np.int32]
) -> tuple[NDArray[np.intp], list[slice]]:
    """Return int[classes alive, columns], how many channels of every group a class holds, and each balance's columns.

    Balances that count the same are one.
    """
    tables: dict[bytes, NDArray[np.intp]] = {}
    for balance in balances:
        rows = [np.bincount(classes[block], minlength=int(alive.max(initial=0)) + 1)[alive] for block in balance.blocks]
        table = np.stack(rows, axis=1)
        tables.setdefault(table.tobytes(), table)
    ends = np.cumsum([0, *(t.shape[1] for t in tables.values())]).tolist()
    return np.concatenate(list(tables.values()), axis=1), [slice(a, b) for a, b in itertools.pairwise(ends)]


def common_factors(source: Sequence[int], target: Sequence[int]) -> list[int] | None:
    """Return the coarsest list of factors of which both lists of sizes are products of neighbours, None if none is.

    >>> common_factors([6, 4], [2, 12])
    [2, 3, 4]
    >>> common_factors([6, 4], [4, 6]) is None
    True
    """
    ends = sorted({math.prod(sizes[: i + 1]) for sizes in (source, target) for i in range(len(sizes))})
    if any(big % small for small, big in itertools.pairwise(ends)):
        return None
    return [big // small for small, big in itertools.pairwise([1, *ends]) if big > small]
