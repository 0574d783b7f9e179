"""A model run in pieces, one behind the other: a session holds some 10 KB a node, and the weights that it is fed.

A piece ends where all that is handed on is plain tensors of the main graph; where there is no such place it goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from onnxshap.backend import Backend, Session
from onnxshap.core import Array
from onnxshap.errors import ModelError
from onnxshap.graph import Names, array, tensors
from onnxshap.graph.loops import depths
from onnxshap.graph.structure import between, copied, reads

NODES = 100
BYTES = 2**26
"""Where a piece ends: behind so many nodes, or weights of so many bytes."""
_HANDED = frozenset((
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE),
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL),
))  # fmt: skip
"""Element types that numpy has too."""
_SHAPE = "onnxshap.shape."
_FAILED = re.compile(r"while running \w+ node\. Name:'([^']*)'")
"""How onnxruntime names the node that does not run."""


@dataclass(frozen=True)
class _Piece:
    """Nodes that are run in one session.

    Attributes:
        nodes: their places in the graph.
        handed: what is known behind them and read later.
    """

    nodes: range
    handed: frozenset[str] = frozenset()


class Pieces:
    """A model that tells the shapes of some tensors and the values of some, in one session or in several."""

    def __init__(
        self,
        model: ModelProto,
        kinds: Mapping[str, int | None],
        shapes: Sequence[str],
        values: Sequence[str],
        backend: Backend,
    ) -> None:
        """Take a normalised model, the types of its tensors (`kinds.value_kinds`), and whose shapes and values to tell.

        Raises:
            ModelError: it does not load.
        """
        self._model, self._backend = model, backend
        names = Names(model.graph)
        self._shapes, self._values = {name: names.new(_SHAPE + name) for name in sorted(shapes)}, frozenset(values)
        self._names = [node.name or names.node(next(iter(node.output), "")) for node in model.graph.node]
        self._stored = {t.name: k for k, t in enumerate(model.graph.initializer)}
        self._pieces = _divided(model, kinds)
        self._whole = self._loaded() if len(self._pieces) == 1 else None
        self._refusing: Session | None = None
        """The first piece, where it did not run on the last feeds: it is the same for all, and others follow."""

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return shapes and values by name.

        Raises:
            ModelError: the model does not run on the feeds, or does not load.
        """
        found = self._one_by_one(feeds) if self._whole is None else None
        if found is None:  # as a whole it may load, or onnxruntime tells what it has against the model
            self._whole = self._whole or self._loaded()
            found = _ran(self._whole, feeds)
        return {name: found[told] for name, told in self._shapes.items()}, {name: found[name] for name in self._values}

    def refusing(self, error: Exception) -> int | None:
        """Return the place of the node that onnxruntime names in an error of a run, None where it names none."""
        found = _FAILED.search(str(error))
        return None if found is None or found[1] not in self._names else self._names.index(found[1])

    def met(self, place: int, feeds: Mapping[str, Array]) -> list[tuple[int, ...]]:
        """Return the shapes that a node reads, of vectors of sizes what they hold; raises as `run`."""
        graph, names = self._model.graph, reads(self._model.graph.node[place])
        stored = {t.name: t for t in graph.initializer if t.name in names}
        made = [name for name in names if name in self._shapes and name not in stored]
        part = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        part.graph.name = graph.name
        part.graph.node.extend(between(graph.node, (), made))
        part.graph.input.extend(graph.input)
        read = {name for node in part.graph.node for name in reads(node)}
        part.graph.initializer.extend(t for t in graph.initializer if t.name in read)
        part.graph.sparse_initializer.extend(graph.sparse_initializer)
        part = _telling(part, {name: self._shapes[name] for name in made}, [n for n in made if n in self._values])
        found = _ran(self._backend.session(part, optimize=False), feeds)
        told = {name: found[self._shapes[name]] for name in made}
        told |= {name: value for name in made if (value := found.get(name)) is not None and value.ndim == 1}
        for name, values in stored.items():
            sizes = values.data_type == TensorProto.INT64 and len(values.dims) == 1
            told[name] = array(values) if sizes else np.array(values.dims, np.int64)
        return [tuple(told[name].tolist()) for name in names if name in told]

    def _loaded(self) -> Session:
        model = copied(self._model)
        self._name(model, 0)
        model = _telling(model, self._shapes, sorted(self._values))
        return self._backend.session(model, optimize=False)

    def _name(self, model: ModelProto, start: int) -> None:
        """Give every node a name by which errors tell of it; the first one lies at some place of the whole."""
        for k, node in enumerate(model.graph.node, start):
            node.name = self._names[k]

    def _one_by_one(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """Return what the pieces tell, None where one of them does not load."""
        told, known = dict[str, Array](), dict(feeds)
        asked = {*self._values, *self._shapes.values()}
        for piece in self._pieces:
            try:
                session = self._refusing or self._backend.session(self._part(piece, known), optimize=False)
            except ModelError:
                return None
            self._refusing = session if piece is self._pieces[0] else None
            got = _ran(session, known)
            self._refusing = None
            del session  # before the next one is made
            told |= {name: value for name, value in got.items() if name in asked}
            known = {name: value for name, value in (known | got).items() if name in piece.handed}
        return told

    def _part(self, piece: _Piece, known: Mapping[str, Array]) -> ModelProto:
        """Return a piece as a model: its inputs are what is known that it reads, of the first one those of the whole.

        Their shapes are declared, for onnxruntime takes a vector of sizes of which it knows no length for empty.
        """
        whole = self._model.graph
        made = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        made.graph.name = whole.name
        made.graph.node.extend(whole.node[piece.nodes.start : piece.nodes.stop])
        self._name(made, piece.nodes.start)
        own = [name for node in made.graph.node for name in node.output]
        read = {name for node in made.graph.node for name in reads(node)}
        if piece.nodes.start == 0:
            made.graph.input.extend(whole.input)
            own += [item.name for item in whole.input]
        else:
            made.graph.input.extend(_declared(name, value) for name, value in known.items() if name in read)
        stored = sorted(self._stored[name] for name in read if name in self._stored)
        made.graph.initializer.extend(whole.initializer[k] for k in stored)
        made.graph.sparse_initializer.extend(whole.sparse_initializer)
        handed = piece.handed - known.keys()
        shapes = {name: self._shapes[name] for name in own if name in self._shapes}
        told = self._values | handed
        return _telling(made, shapes, [name for name in own if name in told])


def _divided(model: ModelProto, kinds: Mapping[str, int | None]) -> list[_Piece]:
    nodes = model.graph.node
    latest = {name: k for k, node in enumerate(nodes) for name in reads(node)}
    sizes = {t.name: tensors.size(t) for t in model.graph.initializer}
    inside = depths(nodes)
    found, start, held = list[_Piece](), 0, 0
    known = {item.name for item in model.graph.input}
    for k, node in enumerate(nodes):
        held += sum(sizes.get(name, 0) for name in reads(node))
        known = {name for name in known.union(node.output) if latest.get(name, -1) > k}
        full = k + 1 - start >= NODES or held >= BYTES
        if full and all(kinds.get(name) in _HANDED and name not in inside for name in known):
            found.append(_Piece(range(start, k + 1), frozenset(known)))
            start, held = k + 1, 0
    return found if found and start == len(nodes) else [*found, _Piece(range(start, len(nodes)))]


def _telling(model: ModelProto, shapes: Mapping[str, str], values: Iterable[str]) -> ModelProto:
    """Make shapes (tensor -> what its shape is called) and the values of some tensors the outputs; return the model."""
    graph = model.graph
    del graph.output[:]
    for name, told in shapes.items():
        graph.node.append(helper.make_node("Shape", [name], [told]))
        graph.output.append(helper.make_tensor_value_info(told, TensorProto.INT64, None))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    return model


def _declared(name: str, value: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _ran(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs by name, of a session that reads some of the feeds.

    They are copies: what a session gives holds on to all of its memory.
    """
    found = session.run({name: feeds[name] for name in session.inputs})
    return {name: value.copy() for name, value in zip(session.outputs, found, strict=True)}
