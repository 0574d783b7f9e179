"""The shape of every tensor, and the values of shape arithmetic, by running the model instead of predicting it.

onnxruntime is the judge of what a model does, so it is asked: one run with a `Shape` node behind every tensor, one more
with other sizes in the free dimensions. What is equal in both runs does not depend on them and becomes a constant
(`Shape -> Gather -> Concat` chains before a Reshape, sqrt(head size), ...); what differs keeps following the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.backend import Backend
from onnxshap.constants import constants_of, is_random, store_mixed
from onnxshap.core import Array
from onnxshap.data import InputSpec, random_data
from onnxshap.errors import DataError, ModelError
from onnxshap.folding import Part, Run, Shape, fold
from onnxshap.graph import Graph, attributes, is_op, take_branches
from onnxshap.structure import subgraphs
from onnxshap.weights import without_values

_BATCH = 2
_FREE_SIZES = (64, 32, 224, 320, 16)
_INTEGER_OPS = (
    *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Gather", "Identity", "Mul", "Neg", "Reshape"),
    *("Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
)
"""What exporters that fold no constants put bounds and sizes together with."""
_PREFIX = "onnxshap.shape."
_KNOWN_TYPES = frozenset(helper.get_all_tensor_dtypes()) - {TensorProto.UNDEFINED}


@dataclass(frozen=True)
class Shaped:
    """A normalised graph with the concrete shapes that it is traced at.

    Attributes:
        graph: the graph, its shape arithmetic replaced by constants where it is constant.
        shapes: tensor name -> concrete shape, initializers included; tensors that are no tensors (sequences) lack one.
        kinds: tensor name -> ONNX element type.
        inputs: the model's inputs at these shapes.
        free_batch: whether axis 0 of the inputs may have any size.
        constants: names computed from initializers alone.
        varying: (tensor, axis) whose size follows the inputs' free dimensions.
        told: (tensor, axis) whose size is read by arithmetic that is left.
        parts: tensor name -> what is known of a vector of sizes that is computed.
    """

    graph: Graph
    shapes: Mapping[str, Shape]
    kinds: Mapping[str, int]
    inputs: Mapping[str, Shape]
    free_batch: bool
    constants: frozenset[str] = field(default_factory=frozenset)
    varying: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    told: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    parts: Mapping[str, Part] = field(default_factory=dict)

    @cached_property
    def producers(self) -> dict[str, int]:
        """Tensor name -> the index of the node that makes it."""
        return {o: k for k, node in enumerate(self.graph.nodes) for o in node.output if o}


def input_specs(model: ModelProto) -> dict[str, InputSpec]:
    """Return name -> dtype and shape (None where free) of the inputs that have no initializer.

    Raises:
        ModelError: an input is no tensor (a sequence or an optional), or of no type or shape.
    """
    initialized = {t.name for t in model.graph.initializer}
    specs = {}
    for item in model.graph.input:
        if item.name in initialized:
            continue
        if item.type.WhichOneof("value") != "tensor_type":
            raise ModelError(f"input {item.name!r} is no tensor; only models with tensor inputs can be pruned")
        kind = item.type.tensor_type
        if kind.elem_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            raise ModelError(f"input {item.name!r} is complex, which onnxruntime does not take; export real numbers")
        if kind.elem_type not in _KNOWN_TYPES:
            raise ModelError(f"input {item.name!r} has no known element type; export the model again")
        if not kind.HasField("shape"):
            raise ModelError(f"input {item.name!r} declares no shape, not even its rank; export the model with shapes")
        dims = kind.shape.dim
        if any(d.WhichOneof("value") == "dim_value" and d.dim_value == 0 for d in dims):
            raise ModelError(
                f"input {item.name!r} has a dimension of size 0; export the model with sizes, or free dims"
            )
        shape = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value > 0 else None for d in dims)
        specs[item.name] = InputSpec(item.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)
    return specs


def infer(graph: Graph, backend: Backend, shapes: Mapping[str, Sequence[int | None]] | None = None) -> Shaped:
    """Return the graph with concrete shapes, its constant shape arithmetic folded.

    Args:
        graph: a normalised graph.
        backend: runs it, twice or more.
        shapes: input name -> shape of one image batch, from the data or the user; None or absent = find one that runs.

    Raises:
        ModelError: the model does not run at the shapes given, or at any that were tried.
    """
    specs = input_specs(graph.model)
    if not specs:
        raise ModelError("the model has no inputs, so it computes a constant; export it with its inputs")
    if unknown := sorted(set(shapes or {}) - set(specs)):
        raise ModelError(f"a shape is given for {unknown[0]!r}, the model's inputs are {', '.join(map(repr, specs))}")
    graph = store_mixed(graph, backend)
    probe = _Probe(graph, backend, specs)
    first = _first_run(probe, specs, shapes or {})
    free_batch = all(s.shape and s.shape[0] is None for s in specs.values())
    varied = _varied(specs, first.inputs)
    second = next((run for sizes in varied if (run := probe.attempt(sizes))), None)
    folding = fold(graph, first, second if varied else first)
    folded = folding.graph
    if (simpler := take_branches(folded)) is not None:
        return infer(simpler, backend, shapes)
    found = value_kinds(folded.model)
    kinds = {name: kind for name, kind in found.items() if kind}
    kinds |= _unknown_kinds(folded, backend, found)
    for item in folded.model.graph.output:
        if not item.type.WhichOneof("value"):
            item.type.tensor_type.elem_type = kinds.get(item.name, TensorProto.FLOAT)
    known = {t.name: tuple(t.dims) for t in folded.model.graph.initializer} | dict(first.shapes)
    varying = _varying(first.shapes, second.shapes if second else {})
    constants = constants_of(folded.model)
    known |= folding.shapes
    return Shaped(folded, known, kinds, first.inputs, free_batch, constants, varying, folding.told, folding.parts)


def _unknown_kinds(graph: Graph, backend: Backend, kinds: Mapping[str, int | None]) -> dict[str, int]:
    """Return the element types that ONNX cannot infer, behind ops of other domains, as the runtime sees them."""
    unknown = [o for node in graph.nodes for o in node.output if o and kinds.get(o, 0) == 0]
    if not unknown:
        return {}
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    return dict(zip(unknown, backend.session(model, optimize=False).kinds, strict=True))


def _varying(one: Mapping[str, Shape], other: Mapping[str, Shape]) -> frozenset[tuple[str, int]]:
    pairs = [
        (name, shape, other[name]) for name, shape in one.items() if name in other and len(other[name]) == len(shape)
    ]
    return frozenset((name, k) for name, a, b in pairs for k in range(len(a)) if a[k] != b[k])


def _first_run(probe: _Probe, specs: Mapping[str, InputSpec], given: Mapping[str, Sequence[int | None]]) -> Run:
    """Run at the first sizes that the model accepts: the user's, else two images of a usual size."""
    sizes_tried = []
    reason: Exception | None = None
    for free, batch in itertools.product(_FREE_SIZES, (_BATCH, 1)):
        sizes = {
            name: tuple(
                known if known is not None else (batch if axis == 0 else free)
                for axis, known in enumerate(_merged(spec, given.get(name)))
            )
            for name, spec in specs.items()
        }
        if sizes in sizes_tried:
            continue
        sizes_tried.append(sizes)
        try:
            return probe.run(sizes)
        except (ModelError, DataError) as error:
            reason = reason or error
    tried = "; ".join(", ".join(f"{k}{list(v)}" for k, v in s.items()) for s in sizes_tried[:3])
    raise ModelError(
        f"the model does not run at {tried}: {reason}; give data that it takes, or --input-shape NAME=1,3,48,192"
    ) from reason


def _merged(spec: InputSpec, given: Sequence[int | None] | None) -> list[int | None]:
    if given is None:
        return list(spec.shape)
    if len(given) != len(spec.shape):
        raise ModelError(
            f"input {spec.name!r} has {len(spec.shape)} dimensions, the shape given {len(given)}: give one size each"
        )
    for axis, (own, size) in enumerate(zip(spec.shape, given, strict=True)):
        if axis and None not in (own, size) and own != size:
            raise ModelError(
                f"input {spec.name!r} has {own} entries on axis {axis}, the shape given {size}: "
                "only free dimensions can be chosen"
            )
    return [
        own if own is not None else (None if axis == 0 else size)
        for axis, (own, size) in enumerate(zip(spec.shape, given, strict=True))
    ]


def _varied(specs: Mapping[str, InputSpec], base: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """Return other sizes for the free dimensions: all of them changed, then the batch alone."""

    def changed(grow: int) -> dict[str, Shape]:
        return {
            name: tuple(
                size if spec.shape[axis] is not None else (size + 1 if axis == 0 else size * grow)
                for axis, size in enumerate(base[name])
            )
            for name, spec in specs.items()
        }

    if all(None not in spec.shape for spec in specs.values()):
        return []
    return [changed(2), changed(1)] if changed(2) != changed(1) else [changed(1)]


class _Probe:
    """The model with a `Shape` node behind every tensor, loaded once."""

    def __init__(self, graph: Graph, backend: Backend, specs: Mapping[str, InputSpec]) -> None:
        model = ModelProto()
        model.CopyFrom(graph.model)
        self._specs = specs
        kinds = value_kinds(model)
        made = [i.name for i in model.graph.input] + [o for n in model.graph.node for o in n.output if o]
        self._names = [name for name in made if kinds.get(name, TensorProto.UNDEFINED) is not None]
        arithmetic = _shape_arithmetic(model)
        del model.graph.output[:]
        for name in self._names:
            model.graph.node.append(helper.make_node("Shape", [name], [_PREFIX + name]))
            model.graph.output.append(helper.make_tensor_value_info(_PREFIX + name, TensorProto.INT64, None))
        self._values = [n for n in self._names if n in arithmetic]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._values)
        self._session = backend.session(model, optimize=False)

    def run(self, sizes: Mapping[str, Shape]) -> Run:
        """Return the shapes at these sizes of the inputs; a ModelError where the model does not run."""
        feeds = {n: _noise(n, s.dtype, sizes[n]) for n, s in self._specs.items()}
        try:
            got = self._session.run(feeds)
        except ModelError:
            integers = {n: np.zeros_like(v) for n, v in feeds.items() if v.dtype.kind in "iu"}
            if not integers:
                raise
            got = self._session.run(feeds | integers)  # indices of a table with fewer rows
        shapes = {name: tuple(int(d) for d in shape) for name, shape in zip(self._names, got, strict=False)}
        return Run(sizes, shapes, dict(zip(self._values, got[len(self._names) :], strict=True)))

    def attempt(self, sizes: Mapping[str, Shape]) -> Run | None:
        """Return the same, None where the model does not run."""
        try:
            return self.run(sizes)
        except ModelError:
            return None


def value_kinds(model: ModelProto) -> dict[str, int | None]:
    """Return name -> element type as inference knows it, None for what is no tensor (a sequence, an optional)."""
    try:
        inferred = onnx.shape_inference.infer_shapes(without_values(model))
    except (onnx.shape_inference.InferenceError, ValueError, TypeError):  # onnxruntime is the judge
        inferred = model
    kinds: dict[str, int | None] = {t.name: t.data_type for t in model.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        other = value.type.WhichOneof("value") not in (None, "tensor_type")
        kinds[value.name] = None if other else value.type.tensor_type.elem_type
    return kinds


def _noise(name: str, dtype: np.dtype[Any], shape: Shape) -> Array:
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if not shape:
        return np.ones((), dtype)
    return random_data({name: InputSpec(name, dtype, shape)}, (*shape, 1)[0], 0).inputs[name].reshape(shape)


def _shape_arithmetic(model: ModelProto) -> set[str]:
    """Return the tensors computed from shapes and initializers alone: of shapes some, or of integers all."""
    static = {t.name for t in model.graph.initializer}
    integers = {t.name for t in model.graph.initializer if t.data_type in (TensorProto.INT64, TensorProto.INT32)}
    found: set[str] = set()
    sized: set[str] = set()
    for node in model.graph.node:
        if is_random(node) or any(True for _ in subgraphs(node)):
            continue
        inputs = [i for i in node.input if i]
        from_shape = is_op(node, "Shape", "Size") and inputs[0] not in static
        if from_shape or all(i in static for i in inputs):
            outputs = [o for o in node.output if o]
            static.update(outputs)
            from_shape = from_shape or any(i in sized for i in inputs)
            if from_shape:
                sized.update(outputs)
            if from_shape or _is_integer_arithmetic(node, integers):
                found.update(outputs)
                integers.update(outputs)
    return found


def _is_integer_arithmetic(node: NodeProto, integers: set[str]) -> bool:
    given = attributes(node)
    if not is_op(node, *_INTEGER_OPS) or given.get("to", TensorProto.INT64) != TensorProto.INT64:
        return False
    if node.op_type == "ConstantOfShape" and ("value" not in given or given["value"].data_type != TensorProto.INT64):
        return False
    return integers.issuperset(i for i in node.input if i)
