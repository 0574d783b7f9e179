"""The words that rules speak: relations of axes as strings, ties, freezes, contractions."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onnxshap.core import IntArray
from onnxshap.labels.fixups import Fixup
from onnxshap.labels.trace import AxisKey, Balance, Op, RuleError, Site, Tensor, Trace, Weight

_Places = list[tuple[int, Tensor, int]]
_Named = dict[str, dict[str, _Places]]


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
        self, k: int, axis: int, weight: Weight | None = None, zero: int | None = None, why: str | None = None,
        meets: int | None = None,
    ) -> None:  # fmt: skip
        """State that input `k` is summed over `axis`, against `weight` if that is a constant; others as in `Site`.

        Against a constant without elements nothing is: no layer reads there, and there is nothing to be masked.
        """
        tensor = self.op.need(k)
        if weight is not None and 0 in self.op.need(weight.input).shape:
            return
        self.trace.sites.append(
            Site(self.op.index, k, tensor.name, axis % tensor.rank, weight, zero, tensor.constant, why, meets)
        )
        if weight is not None:
            self.linear(k, axis, weight)

    def linear(self, k: int, axis: int, weight: Weight) -> None:
        """State that the op is linear in input `k`, channels on `axis`, with constant weights."""
        tensor = self.op.need(k)
        self.trace.linear.append(Site(self.op.index, k, tensor.name, axis % tensor.rank, weight))
        self.weigh(weight.input)

    def weigh(self, k: int) -> None:
        """State that input `k` is a constant that the op multiplies with: of one weight all layers lose the same."""
        self.trace.weights.append((self.op.index, k))

    def factor_name(self, name: str) -> str:
        """Return the name under which `factor` keeps an axis that no tensor has."""
        return self.trace.factor_name(self.op, name)

    def factor(self, name: str, size: int) -> IntArray:
        """Return the atoms of an axis that no tensor has (heads), for products and for counts that follow it."""
        return self.trace.axis(self.factor_tensor(name, size), 0)

    def factor_tensor(self, name: str, size: int) -> Tensor:
        """Return what holds the axis that `factor` keeps."""
        return Tensor(self.factor_name(name), (size,), constant=False)

    def share_range(self) -> None:
        """State that the op takes one range of codes for all images of the batch."""
        self.trace.shares_ranges = True

    def mix(self, axis: int) -> None:
        """State that what the op gives at a position of an axis of its first input depends on the others."""
        self.trace.mixed.append((self.op.need(0).name, axis))

    def cross(self, *axes: int) -> None:
        """State that positions of axes of the first input meet: images of a batch would, if they lay there."""
        self.trace.crossed.extend((self.op.need(0).name, axis) for axis in axes)

    def count(self, tensor: Tensor, axis: int, reason: str) -> None:
        """State that arithmetic reads or gives the size of an axis: it stays, but for what lies there beside free axes.

        Such a size is a width (heads) times others (images): it can be told as it was, and scaled to what is left.
        """
        self._mention(tensor, axis)
        self.trace.counted.append(((tensor.name, axis), reason))

    def images(self, k: int, axis: int) -> IntArray:
        """Return the atoms of an input's axis, stating that the op takes it for that of the images."""
        self.trace.images.append((self.op.need(k).name, axis))
        return self.input(k, axis)

    def make(self, axis: int, out: int = 0) -> None:
        """State that the positions of an output's axis are made here, by weights."""
        key = self.op.out(out).name, axis % self.op.out(out).rank
        self.trace.made.append(key)
        self.trace.producers[key] = self.op.index

    def macs(self, *axes: tuple[Tensor, int]) -> None:
        """State that the op does as many multiply-accumulates as the product of the widths of these axes."""
        if all(out.constant for out in self.op.outputs if out is not None):
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
        is made here. Where operands are contracted, the op's MACs are the product of all named widths, times the
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
                    if side == "in" and not tensor.constant:
                        self.trace.crossed.append((tensor.name, axis))
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
        # against two weights at once no position adds anything by itself
        alone = sum(len({t.constant for _, t, _ in places}) > 1 for places in contracted.values()) == 1
        for name, places in contracted.items():
            self._contract_name(name, places, at, scale, spread, bias, zero, alone=alone)
        if contracted and operands[1][0] == "in":  # one operand alone is summed
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
        *,
        alone: bool,
    ) -> None:
        running = [p for p in places if not p[1].constant]
        constant = [p for p in places if p[1].constant]
        if len(running) == 1 and constant:
            (k, _, axis), (w, _, w_axis) = running[0], constant[0]
            self.weigh(w)
            others = [(a, p["out"]) for n, p in at.items() if n != name for i, _, a in p["in"] if i == w]
            weight = None
            biased = bias is None or k < w  # a bias is added along what the second operand makes
            if alone and len(others) == 1 and others[0][1] and len(places) == 2 and zero is None and biased:
                weight = Weight(w, w_axis, others[0][0], others[0][1][0][2], scale, spread, bias=bias)
            self.contract(k, axis, weight, zero)
        elif running:
            self.contract(running[0][0], running[0][2], None, zero)
