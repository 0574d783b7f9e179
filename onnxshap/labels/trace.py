"""What rules have said about a graph: atoms, and ties, freezes, sites, weights and products of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto

from onnxshap.core import Array, IntArray
from onnxshap.errors import ModelError
from onnxshap.graph import Names
from onnxshap.labels.fixups import Fixup
from onnxshap.labels.relations import Freezes, Ties

AxisKey = tuple[str, int]
"""Tensor name and axis >= 0."""


class RuleError(ModelError):
    """An op's axes are not what its rule expects; the op is treated as unknown, its axes are frozen."""


@dataclass(frozen=True, slots=True)
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
        kind: its ONNX element type, 0 where it is not known.
        readers: the types of the ops that read it, `output` where it is one of the model's.
    """

    name: str
    shape: tuple[int, ...]
    constant: bool
    value: Array | None = None
    stored: bool = False
    part: Array | None = None
    told: frozenset[int] = frozenset()
    free: frozenset[int] = frozenset()
    kind: int = 0
    readers: frozenset[str] = frozenset()

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Site:
    """Input `input` of node `node` is summed over `axis` of `tensor`: the place to mask it.

    Where the tensor holds codes, `zero` is the input with their zero point (an absent one is 0): what a removed
    position holds. A `stored` one is weights: there is nothing to be seen of the images. Where the sum is of the
    tensor alone, `why` is what to say if it does not vanish; otherwise the input that it `meets` there may vanish
    instead, any input of the node where that is None.
    """

    node: int
    input: int
    tensor: str
    axis: int
    weight: Weight | None
    zero: int | None = None
    stored: bool = False
    why: str | None = None
    meets: int | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """`merged` atoms of shape (f1, ..., fk) are dead where any of their factors is; factors are atoms of length f_i.

    Those that are `free`, by number, have another length at other sizes: the images, say.
    """

    merged: IntArray
    factors: tuple[IntArray, ...]
    where: str
    free: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Frozen:
    """Atoms that stay, and why."""

    atoms: IntArray
    reason: str


@dataclass
class Trace:
    """The relations of one graph, as its rules state them; `names` are those of its tensors."""

    names: Names = field(default_factory=lambda: Names(GraphProto()))
    size: int = 0
    axes: dict[AxisKey, range] = field(default_factory=dict)
    ties: Ties = field(default_factory=Ties)
    frozen: Freezes = field(default_factory=Freezes)
    products: list[Product] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    linear: list[Site] = field(default_factory=list)
    weights: list[tuple[int, int]] = field(default_factory=list)
    """Node and input: the constants that a layer multiplies with."""
    made: list[AxisKey] = field(default_factory=list)
    producers: dict[AxisKey, int] = field(default_factory=dict)
    macs: list[tuple[int, tuple[AxisKey, ...]]] = field(default_factory=list)
    fixups: list[Fixup] = field(default_factory=list)
    mixes_rows: bool = False
    """Whether what an image gives depends on the others of its batch."""
    shares_ranges: bool = False
    """Whether it depends on them by a rounding alone: the range of codes is taken over all images."""
    mixed: list[AxisKey] = field(default_factory=list)
    crossed: list[AxisKey] = field(default_factory=list)
    """Axes along which positions depend on each other: images do where they are known to lie on one."""
    numbers: list[str] = field(default_factory=list)
    """Tensors of numbers of positions, counted through all images and channels (indices of MaxPool)."""
    counted: list[tuple[AxisKey, str]] = field(default_factory=list)
    """Axes whose sizes are computed or read, and how: they stay, but for what is beside free ones (images x heads)."""
    images: list[AxisKey] = field(default_factory=list)
    """Axes that an op takes for those of the images, wherever the model has them."""
    _shared: list[AxisKey] = field(default_factory=list)
    _factors: dict[tuple[int, str], str] = field(default_factory=dict)

    def fresh(self, size: int) -> IntArray:
        """Return `size` new atoms."""
        self.size += size
        return np.arange(self.size - size, self.size)

    def factor_name(self, op: Op, name: str) -> str:
        """Return what an axis of an op that no tensor has is kept as: a tensor's name that no tensor has."""
        key = op.index, name
        if key not in self._factors:
            self._factors[key] = self.names.new(f"{op.out().name}.{name}")
        return self._factors[key]

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

    def freeze_whole(self, tensor: Tensor, reason: str) -> None:
        """State that all positions of all axes of a tensor stay."""
        for axis in range(tensor.rank):
            self.freeze(self.axis(tensor, axis), reason)

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
        return (
            self.fixups, self.sites, self.linear, self.weights, self.made, self.macs, self.products, self.balances,
            self.images, self.crossed,
        )  # fmt: skip
