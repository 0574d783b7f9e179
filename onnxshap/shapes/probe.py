"""Runs that tell shapes: the model with a `Shape` node behind every tensor, at sizes that it accepts.

One run at two images of a usual size, one more with other sizes in the free dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from onnxshap.backend import Backend
from onnxshap.core import Array
from onnxshap.data import InputSpec, random_data
from onnxshap.errors import LoadError, ModelError
from onnxshap.graph import Graph, is_op
from onnxshap.graph.lifting import is_enter
from onnxshap.graph.loops import depths
from onnxshap.graph.structure import is_random, reads, subgraphs
from onnxshap.shapes.folding import Run, Shape, sizes_of
from onnxshap.shapes.pieces import Pieces
from onnxshap.shapes.samples import resized

_INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL))
"""Element types of bounds, sizes and positions, which exporters that fold no constants compute from constants."""
_WEIGHTS = frozenset((
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE),
    *(TensorProto.INT8, TensorProto.UINT8),
))  # fmt: skip
"""Element types of weights, as numbers or as codes."""


class ShapeProbe:
    """The model with a `Shape` node behind every tensor (`pieces`)."""

    def __init__(
        self,
        graph: Graph,
        kinds: Mapping[str, int | None],
        backend: Backend,
        specs: Mapping[str, InputSpec],
        sample: Mapping[str, Array],
    ) -> None:
        self._specs, self._sample = specs, sample
        made = [i.name for i in graph.model.graph.input] + [o for n in graph.nodes for o in n.output if o]
        self._names = [name for name in made if kinds.get(name, TensorProto.UNDEFINED) is not None]
        arithmetic = _shape_arithmetic(graph.model, kinds)
        self._values = [n for n in self._names if n in arithmetic]
        self._depths = depths(graph.nodes)
        self._nodes = graph.nodes
        self._pieces = Pieces(graph.model, kinds, self._names, self._values, backend)
        self._sized = set[int]()
        """Places of nodes that refuse sizes, whatever is fed."""

    def run(self, sizes: Mapping[str, Shape]) -> Run:
        """Return the shapes at these sizes of the inputs; a ModelError where the model does not run, or load."""
        told = self._outputs(self._feeds(sizes))
        times = {n: int(np.prod(told[0][n].shape[: self._depths[n]])) for n in self._names if n in self._depths}
        shapes, values = ({n: v for n, e in found.items() if (v := self._alike(n, e)) is not None} for found in told)
        return Run(sizes, {name: tuple(shape.tolist()) for name, shape in shapes.items()}, values, times)

    def _alike(self, name: str, entries: Array) -> Array | None:
        """Return what is told of a tensor; of one in a body what is the same at every iteration, None where nothing."""
        if not (depth := self._depths.get(name, 0)):
            return entries
        entries = entries.reshape(int(np.prod(entries.shape[:depth])), *entries.shape[depth:])
        return entries[0] if len(entries) and (entries == entries[:1]).all() else None

    def _feeds(self, sizes: Mapping[str, Shape]) -> dict[str, Array]:
        """Return noise at some sizes."""
        feeds = {n: noise(n, s.dtype, sizes[n]) for n, s in self._specs.items()}
        return feeds | {n: v for n, v in self._sample.items() if not self._specs[n].shape}

    def _attempts(self, feeds: dict[str, Array]) -> list[dict[str, Array]]:
        """Return noise, zeros (indices of a table with few rows), and the sample, made as large."""
        zeros = {n: np.zeros_like(v) for n, v in feeds.items() if v.dtype.kind in "iu" and n not in self._sample}
        given = resized(self._sample, self._specs, {n: v.shape for n, v in feeds.items()})
        return [feeds, *(feeds | others for others in (zeros, given) if others)]

    def _outputs(self, feeds: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return what the first of the attempts gives that runs.

        A node that has refused all of them with the same words refuses their sizes, not what they hold: from then on
        one attempt tells.
        """
        refusals: list[ModelError] = []
        for others in self._attempts(feeds):
            try:
                return self._pieces.run(others)
            except LoadError:  # whatever it is fed
                raise
            except ModelError as error:
                refusals.append(error)
                if (place := self.refusing(error)) is not None and place in self._sized:
                    break
        if len(refusals) > 1 and place is not None and len({str(error) for error in refusals}) == 1:
            self._sized.add(place)
        raise refusals[-1]

    def refusing(self, error: Exception) -> int | None:
        """Return the place of the node that an error of a run names, None where it names none."""
        return self._pieces.refusing(error)

    def reaching(self, place: int) -> list[str]:
        """Return the inputs that a node depends on, in order."""
        wanted = set(reads(self._nodes[place]))
        for node in self._nodes[place - 1 :: -1] if place else ():
            if not wanted.isdisjoint(node.output):
                wanted.update(reads(node))
        return [name for name in self._specs if name in wanted]

    def met(self, place: int, sizes: Mapping[str, Shape]) -> list[Shape]:
        """Return the shapes that a node reads which refuses some sizes, of vectors of sizes what they hold."""
        found = list[Shape]()
        for feeds in self._attempts(self._feeds(sizes)):
            try:
                return self._pieces.met(place, feeds)
            except ModelError:  # an earlier node refuses what these hold
                continue
        return found

    def attempt(self, sizes: Mapping[str, Shape]) -> Run | None:
        """Return the same, None where the model does not run."""
        try:
            return self.run(sizes)
        except ModelError:
            return None


def noise(name: str, dtype: np.dtype[Any], shape: Shape, seed: int = 0) -> Array:
    """Return random values for an input, at a shape that is not taken apart into images."""
    if dtype.kind == "O":
        return np.full(shape, "", object)
    if not shape:
        return np.ones((), dtype)
    return random_data({name: InputSpec(name, dtype, shape)}, (*shape, 1)[0], seed).inputs[name].reshape(shape)


def _shape_arithmetic(model: ModelProto, kinds: Mapping[str, int | None]) -> set[str]:
    """Return the tensors computed from shapes and initializers alone: of shapes some, integers of no weights, or sizes.

    What is made of a table of weights (positions of a sequence that has some length, resized or not) stays weights.
    """
    tables = {t.name for t in model.graph.initializer if t.data_type in _WEIGHTS and len(t.dims) > 1}
    static = {t.name for t in model.graph.initializer}
    weights = {t.name for t in model.graph.initializer if t.data_type not in _INTEGERS and np.prod(t.dims) > 1}
    found: set[str] = set()
    sized: set[str] = set()
    vectors = {n.input[k] for n in model.graph.node for k in sizes_of(n)}
    for node in model.graph.node:
        if any(True for _ in subgraphs(node)) or is_random(node) or is_enter(node):
            continue
        inputs = [i for i in node.input if i]
        if not tables.isdisjoint(inputs):
            tables.update(o for o in node.output if kinds.get(o) in _WEIGHTS)
            if not sized.isdisjoint(inputs):
                continue
        shape = is_op(node, "Shape", "Size")
        from_shape = shape and inputs[0] not in static
        if from_shape or all(i in static for i in inputs):
            outputs = [o for o in node.output if o]
            static.update(outputs)
            from_shape = from_shape or any(i in sized for i in inputs)
            if from_shape:
                sized.update(outputs)
            integers = weights.isdisjoint(inputs) and all(kinds.get(o) in _INTEGERS for o in outputs)
            if from_shape or shape or integers or not vectors.isdisjoint(outputs):
                found.update(outputs)
            elif not weights.isdisjoint(inputs):
                weights.update(outputs)
    return found
