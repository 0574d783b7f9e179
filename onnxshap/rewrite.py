"""The cut itself: graph + plan -> smaller graph.

Every initializer is compressed to the live positions of its axes, every constant that restates a width follows it
(`fixups`), and what removed channels leave behind is folded into their consumers' biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.arguments import checked
from onnxshap.codes import dequantize
from onnxshap.core import Array, BoolArray, FloatArray, IntArray
from onnxshap.graph import Names, array, finish, tensor, weights, writing
from onnxshap.graph.structure import copied, refill
from onnxshap.labels import Liveness, Site
from onnxshap.labels.fixups import set_attribute
from onnxshap.masking import Means, responses
from onnxshap.tracing import Keep, Traced


@dataclass
class _Rewrite:
    """A graph while it is being cut; the `fixups.Edit` of its fixups."""

    traced: Traced
    live: Liveness
    model: ModelProto
    constants: dict[str, TensorProto]
    names: Names
    replaced: dict[int, list[NodeProto]] = field(default_factory=dict)
    appended: dict[int, list[NodeProto]] = field(default_factory=dict)
    twins: dict[int, list[tuple[dict[str, str], dict[str, str]]]] = field(default_factory=dict)
    _zeros: dict[tuple[int, ...], str] = field(default_factory=dict)

    def alive(self, name: str, axis: int) -> BoolArray:
        found = self.live.axis(name, axis)
        return np.ones(self.traced.shaped.shapes[name][axis], np.bool_) if found is None else found

    def cut(self, name: str, axis: int) -> bool:
        return self.live.cut(name, axis)

    def rank(self, name: str) -> int:
        return len(self.traced.shaped.shapes[name])

    def node(self, index: int) -> NodeProto:
        node: NodeProto = self.model.graph.node[index]
        return node

    def constant(self, name: str) -> Array:
        return array(self.constants[self._stored(name)])

    def stored(self, name: str) -> bool:
        return self._stored(name) in self.constants

    def _stored(self, name: str) -> str:
        part = self.traced.shaped.parts.get(name)
        return name if part is None or part.stored is None else part.stored

    def set_constant(self, name: str, values: Array) -> None:
        name = self._stored(name)
        weights.set_values(self.constants[name], values)

    def new_constant(self, wish: str, values: Array) -> str:
        name = self.names.new(wish)
        self.constants[name] = self.model.graph.initializer.add()
        self.constants[name].CopyFrom(tensor(name, values))
        return name

    def typed(self, values: Array, like: str) -> Array:
        kind = self.traced.shaped.kinds.get(like, TensorProto.FLOAT)
        return np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind))

    def zeros(self, like: str, shape: Sequence[int]) -> str:
        values = self.typed(np.zeros(shape), like)
        key = helper.np_dtype_to_tensor_dtype(values.dtype), *shape
        if key not in self._zeros:
            self._zeros[key] = self.new_constant(f"{like}.zero", values)
        return self._zeros[key]

    def replace(self, index: int, nodes: list[NodeProto]) -> None:
        self.replaced[index] = nodes

    def twin(self, index: int, given: Mapping[str, str], outputs: Sequence[str]) -> Mapping[str, str]:
        twins = self.twins.setdefault(index, [])
        for inputs, made in twins:
            if inputs == given:
                return made
        twins.append((dict(given), {name: self.names.new(f"{name}.removed") for name in outputs if name}))
        return twins[-1][1]

    def compress(self) -> None:
        """Cut every initializer to its live positions."""
        for name, stored in list(self.constants.items()):
            found = ((axis, self.live.axis(name, axis)) for axis in range(len(stored.dims)))
            axes = {axis: alive for axis, alive in found if alive is not None and not alive.all()}
            blocks = {axis: self.traced.labels.blockwise.get((name, axis)) for axis in axes}
            weights.compress(stored, {axis: alive for axis, alive in axes.items() if blocks[axis] is None})
            for axis, classes in blocks.items():
                if classes is not None:
                    self.set_constant(name, self._compress_groups(self.constant(name), axis, classes))

    def _compress_groups(self, values: Array, axis: int, blocks: IntArray) -> Array:
        """Cut an axis of which every group, a run of the first axis, loses positions of its own."""
        alive = self.live.classes[self.traced.labels.classes[blocks]]
        parts = np.split(values, len(blocks))
        return np.concatenate([part.compress(kept, axis) for part, kept in zip(parts, alive, strict=True)])

    def fold(self, site: Site, table: FloatArray, means: FloatArray) -> None:
        """Add to a consumer's bias what the dead positions of its input leave behind."""
        weight = site.weight
        assert weight is not None
        node = self.node(site.node)
        dead = ~self.alive(site.tensor, site.axis)
        left, made = means[dead] @ table[dead], self.traced.shaped.graph.nodes[site.node].output[0]
        kept = left[self.alive(made, weight.out)]
        kind = self.traced.shaped.kinds.get(made, TensorProto.FLOAT)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if weight.bias is not None:
            number, factor = weight.bias
            present = node.input[number] if len(node.input) > number else ""
            if not present:
                while len(node.input) <= number:
                    node.input.append("")
                node.input[number] = self._new_bias(site, _as(kept / factor, dtype))
                return
            if present in self.constants:
                old = self.constant(present).astype(np.float64)
                self.set_constant(present, _as(old + kept / factor, dtype))
                return
            if self._fold_into_codes(site, present, kept / factor):
                return
        rank = len(self.traced.shaped.shapes[made])
        wide = kept.reshape([-1 if axis == weight.out else 1 for axis in range(weight.out, rank)])
        result, raw = node.output[0], self.names.new(f"{node.output[0]}.unfolded")
        bias = self.new_constant(f"{result}.bias", _as(wide, dtype))
        node.output[0] = raw
        called = self.names.node(f"{result}.fold")
        self.appended[site.node] = [helper.make_node("Add", [raw, bias], [result], name=called)]

    def _new_bias(self, site: Site, values: Array) -> str:
        """Return a bias: a constant, or where inputs and weights are codes, codes too."""
        node, weight = self.node(site.node), site.weight
        assert weight is not None
        wish = f"{node.output[0]}.bias"
        scales = []
        for name in (node.input[site.input], node.input[weight.input]):
            source = dequantize(self.traced.shaped, name)
            if source is None or source.input[1] not in self.constants:
                return self.new_constant(wish, values)
            scales.append(self.constant(source.input[1]).astype(np.float64))
        if scales[1].ndim > 1 or scales[1].size not in (1, values.size):
            return self.new_constant(wish, values)  # the weights have scales of blocks
        scale = scales[0].ravel() * scales[1].ravel()
        codes = _int32(values / scale) if scale.all() else None  # a channel of nothing may have a scale of 0
        if codes is None:
            return self.new_constant(wish, values)
        names = [self.new_constant(f"{wish}.codes", codes)]
        names.append(self.new_constant(f"{wish}.scale", scale.astype(values.dtype) if scale.size > 1
                                       else scale.astype(values.dtype).reshape(())))  # fmt: skip
        bias = self.names.new(wish)
        made = helper.make_node("DequantizeLinear", names, [bias], name=bias)
        if scale.size > 1:
            set_attribute(made, "axis", 0)
        self.replaced[site.node] = [made, node]
        return bias

    def _fold_into_codes(self, site: Site, bias: str, values: Array) -> bool:
        """Add to a bias that is dequantised from int32 codes; return whether it is one.

        A bias that others read too (of towers with one weight, each with means of its own) is left to them.
        """
        source = dequantize(self.traced.shaped, bias)
        if source is None or any(name not in self.constants for name in source.input[:2]):
            return False
        codes, scale = (self.constant(name) for name in source.input[:2])
        if codes.dtype != np.int32 or scale.size not in (1, codes.size):
            return False
        with np.errstate(divide="ignore", invalid="ignore"):  # a channel of nothing may have a scale of zero
            sums = _int32(codes + values / scale.astype(np.float64))
        if sums is None:
            return False
        readers = self.traced.shaped.readers
        if all(len(readers.get(name, ())) == 1 for name in (bias, source.input[0])):
            self.set_constant(source.input[0], sums)
            return True
        node, wish = self.node(site.node), f"{site.tensor}.{bias}"
        own = copied(source)
        own.input[0], own.input[1] = self.new_constant(f"{wish}.codes", sums), self.new_constant(f"{wish}.scale", scale)
        own.output[0] = own.name = self.names.new(wish)
        node.input[[*node.input].index(bias)] = own.output[0]
        self.replaced[site.node] = [own, node]
        return True

    def finished(self) -> ModelProto:
        """Return the model with its nodes replaced."""
        nodes: list[NodeProto] = []
        for index, node in enumerate(self.model.graph.node):
            own = [*self.replaced.get(index, [node]), *self.appended.get(index, ())]
            nodes += own
            for inputs, outputs in self.twins.get(index, ()):
                nodes += self._copied(own, inputs | outputs)
        if self.replaced or self.appended or self.twins:
            refill(self.model.graph.node, nodes)
        return self.model

    def _copied(self, nodes: list[NodeProto], names: dict[str, str]) -> list[NodeProto]:
        """Return nodes once more, some of the tensors they read and make under other names."""
        made = []
        for node in nodes:
            made.append(copied(node))
            made[-1].input[:] = [names.get(name, name) for name in node.input]
            made[-1].output[:] = [names.setdefault(n, self.names.new(f"{n}.removed")) if n else "" for n in node.output]
            made[-1].name = self.names.node(f"{node.name}.removed")
        return made


@dataclass(frozen=True)
class Removal:
    """What is taken out of a model, and what is left in its place.

    Attributes:
        traced, free: the model, as in its file and for evaluation (`calibrate.free_batch`).
        keep: the plan.
        means: what removed channels leave in their consumers' biases (`calibrate.site_means`).
    """

    traced: Traced
    free: Traced
    keep: Keep
    means: Means

    @cached_property
    def live(self) -> Liveness:
        """Which positions of every axis stay."""
        return self.traced.alive(self.keep)

    def evaluated(self) -> ModelProto:
        """Return the cut model for evaluation, as `cut` does."""
        return cut(self.free, self.keep, self.means)

    def in_file(self) -> ModelProto:
        """Return the cut model in the form of its file, as `cut` does."""
        return cut(self.traced, self.keep, self.means)


@checked
def drop_units(traced: Traced, keep: Keep, means: Means | None = None) -> ModelProto:
    """Return the model without the units that a plan drops, as it is written to a file; arguments as in `cut`."""
    return writing.put_in(small_model(traced, keep, means))


def small_model(traced: Traced, keep: Keep, means: Means | None = None) -> ModelProto:
    """Return what `drop_units` does, the large initializers taken out."""
    return finish(cut(traced, keep, means), traced.shaped.graph)


def cut(traced: Traced, keep: Keep, means: Means | None = None) -> ModelProto:
    """Return the model without the units that a plan drops, every initializer still with one use.

    Args:
        traced: a traced model.
        keep: the plan: group name -> bool[n_units], True = stays.
        means: what removed channels leave in their consumers' biases; None = nothing.
    """
    live, left = traced.alive(keep), means or {}
    model = ModelProto()
    model.CopyFrom(traced.shaped.graph.model)
    stored = {t.name: t for t in model.graph.initializer}
    edit = _Rewrite(traced, live, model, stored, traced.shaped.graph.names())
    touched = [s for s in traced.labels.trace.sites if live.cut(s.tensor, s.axis)]
    tables = responses(traced, [s for s in touched if (s.node, s.input) in left])
    edit.compress()
    for fixup in traced.labels.trace.fixups:
        fixup.apply(edit)
    for site, table in tables.items():
        edit.fold(site, table(), left[site.node, site.input])
    return edit.finished()


def _as(values: FloatArray, dtype: np.dtype[Any]) -> Array:
    """Return values in a type; rounded, where it is one of whole numbers."""
    return (np.floor(values + 0.5) if dtype.kind in "iu" else values).astype(dtype)


def _int32(values: FloatArray) -> Array | None:
    """Return values as codes, None where they do not fit: scales of codes of 16 bits, multiplied, may be that small."""
    rounded = np.rint(values)
    return rounded.astype(np.int32) if bool((np.abs(rounded) < 2**31).all()) else None
