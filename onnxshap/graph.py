"""Models in and out: load, normalise, save. The only owner of onnx-graphsurgeon, and of files.

`normalise` gives every later pass one form to think about, without changing what the model computes:
Constant nodes are initializers, every initializer has one use, model-local functions are inlined, IR < 4 initializers
are no inputs. `finish` undoes what a user would mind: equal copies are merged again, lifted bodies are back in their
place, and IR < 4 files list their initializers as inputs.

Edits happen on the ModelProto itself, so that metadata, doc strings, annotations and tensors we do not touch survive
bit for bit; onnx-graphsurgeon (which drops some of these) cuts out the sub-models that are only evaluated.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap import weights
from onnxshap.backend import first_line
from onnxshap.branches import Moved, conditions_of
from onnxshap.branches import take_branches as take_branches_of
from onnxshap.core import Array
from onnxshap.errors import ModelError
from onnxshap.fused import unfuse
from onnxshap.invariants import read_from_outside
from onnxshap.lifting import Lifted, lift, sink
from onnxshap.loops import closed
from onnxshap.structure import (
    check_structure,
    copied,
    graphs_of,
    order,
    outer_names,
    reads,
    refill,
    subgraphs,
    used_names,
)

PROTOBUF_LIMIT = 2**31 - 2**16
"""Bytes above which a model is stored with external data."""
_CONSTANT_DTYPES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@dataclass(frozen=True)
class Graph:
    """A normalised model.

    Attributes:
        model: the normalised model; treat as immutable.
        ir_version: the input file's; the normalised model has at least 4 (initializers need not be inputs).
        origin: name of an un-shared initializer copy, or of a tensor moved out of a body -> its name in the file.
        bodies: name of a tensor moved out of a body -> the body (`branches.Moved`).
        kept: the large initializers, taken out of the model.
        mixed: the initializers that the input file computes out of others.
        lifted: what stands in the main graph, out of bodies, until the model is finished.
    """

    model: ModelProto
    ir_version: int
    origin: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, str] = field(default_factory=dict)
    kept: weights.Kept = field(default_factory=weights.Kept)
    mixed: frozenset[str] = frozenset()
    lifted: Lifted = field(default_factory=Lifted)

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """Nodes in topological order."""
        nodes: Sequence[NodeProto] = self.model.graph.node
        return nodes

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return opset_of(self.model)

    @property
    def initializers(self) -> dict[str, TensorProto]:
        """Name -> initializer."""
        return {t.name: t for t in self.model.graph.initializer}


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set, 1 where none is imported."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


@dataclass(frozen=True)
class Source:
    """A model as it was given, its large initializers taken out.

    Attributes:
        model: the model.
        kept: the large initializers.
        files: the files with external data that it refers to.
    """

    model: ModelProto
    kept: weights.Kept = field(default_factory=weights.Kept)
    files: tuple[Path, ...] = ()


def read(source: str | Path | bytes | ModelProto | Source) -> Source:
    """Return a checked model whose large initializers are taken out; external data are mapped, not read.

    Raises:
        ModelError: no such file, not readable, truncated, not ONNX, or not well formed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, ModelProto):
        return Source(*weights.take_out(_require_graph(source, "the model given")))
    where = "the bytes given" if isinstance(source, bytes) else str(source)
    folder = None if isinstance(source, bytes) else Path(source).absolute().parent
    parsed, inside = _parse(source, where)
    try:
        light, kept = weights.take_out(parsed, folder)
        files = {weights.external_file(t, folder) for t in weights.tensors(parsed) if _is_in_a_file(t)}
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    del inside  # held until here
    return Source(light, kept, tuple(sorted(files)))


def load(source: str | Path | bytes | ModelProto) -> ModelProto:
    """Return the model of a path, of serialized bytes, or a copy of a ModelProto; external data are read into it.

    Raises:
        ModelError: no such file, not readable, truncated, not ONNX, or not well formed.
    """
    found = read(source)  # holds the values while they are put in
    return weights.put_in(found.model)


def _is_in_a_file(tensor: TensorProto) -> bool:
    return weights.is_external(tensor) and not weights.is_kept(tensor)


def _parse(source: str | Path | bytes, where: str) -> tuple[ModelProto, weights.Kept]:
    """Return a model without its external data and the large initializers in its file, and these."""
    if not where:
        raise ModelError("the model's path is empty; give the path of an .onnx model")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
            model, inside = weights.parse(stream)
    except FileNotFoundError as error:
        raise ModelError(f"{where}: no such file; give the path of an .onnx model") from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise ModelError(f"{where}: cannot be read ({reason}); give a readable .onnx file") from error
    except DecodeError as error:
        raise ModelError(f"{where}: not an ONNX file, or a truncated one; export or copy it again") from error
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    return _require_graph(model, where), inside


def _require_graph(model: ModelProto, where: str) -> ModelProto:
    if not model.graph.node or not model.graph.output or model.ir_version == 0:
        raise ModelError(f"{where}: not an ONNX model (no nodes or no outputs); give an exported .onnx file")
    try:
        check_structure(model)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    return model


# --- normalise -------------------------------------------------------------------------------------------------------


def normalise(model: ModelProto, kept: weights.Kept | None = None) -> Graph:
    """Return the model in the one form that the passes know; the computed function is the same.

    Args:
        model: any model; not changed.
        kept: its large initializers, where they are taken out.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    normal = ModelProto()
    normal.CopyFrom(model)
    graph = normal.graph
    _sort(graph)
    read_from_outside(graph)
    moved = Moved()
    _without_branches(graph, moved)
    _drop_overridable_inputs(graph)
    _unfuse(graph, opset_of(normal), moved)
    origin = _unshare(graph, moved.origin)
    del graph.value_info[:]
    normal.ir_version = max(4, model.ir_version)
    # a copy: a message keeps the room of what was taken out of it
    return Graph(copied(normal), model.ir_version, origin, moved.bodies, kept or weights.Kept())


def take_branches(graph: Graph) -> Graph | None:
    """Return a normalised graph without the If nodes whose condition is an initializer, None where it has none."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    moved = Moved(dict(graph.origin), dict(graph.bodies))
    if not _without_branches(model.graph, moved):
        return None
    return replace(graph, model=model, origin=_unshare(model.graph, moved.origin), bodies=moved.bodies)


def with_constants(graph: Graph, values: Mapping[str, Array]) -> Graph:
    """Return a normalised graph in which some computed tensors are stored, and what computed them alone is gone."""
    model, kept = weights.take_out(_stored(graph.model, values))
    return replace(
        graph,
        model=model,
        kept=weights.Kept(graph.kept | kept),
        origin=dict(graph.origin) | _unshare(model.graph, graph.origin),
        mixed=graph.mixed | values.keys(),
    )


def _stored(model: ModelProto, values: Mapping[str, Array]) -> ModelProto:
    """Return a copy of a model with initializers in place of the nodes that compute some values."""
    made = copied(model)
    read = Counter([*(name for node in made.graph.node for name in reads(node)), *(o.name for o in made.graph.output)])
    nodes = []
    for node in reversed(made.graph.node):
        if all(name in values or not name or not read[name] for name in node.output):
            read.subtract(reads(node))
        else:
            nodes.append(node)
    refill(made.graph.node, reversed(nodes))
    stored = [t for t in made.graph.initializer if read[t.name]]  # what went into the mixture is not
    refill(made.graph.initializer, [*stored, *(tensor(name, found) for name, found in values.items())])
    return made


def lift_bodies(graph: Graph, chosen: Mapping[str, Collection[str]]) -> Graph:
    """Return a normalised graph with bodies of nodes in the main graph: first output -> attributes that are bodies."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    moved = Moved(dict(graph.origin), dict(graph.bodies))
    lifted = lift(model.graph, chosen, graph.lifted, moved)
    _without_branches(model.graph, moved)
    _unfuse(model.graph, graph.opset, moved)
    return replace(graph, model=model, origin=_unshare(model.graph, moved.origin), bodies=moved.bodies, lifted=lifted)


def _unfuse(graph: GraphProto, opset: int, moved: Moved) -> None:
    for new, old in unfuse(graph, opset).items():
        moved.rename(new, old)


def _without_branches(graph: GraphProto, moved: Moved) -> bool:
    """Make Constant nodes initializers, and put the branch taken in place of each If whose condition is one.

    Return whether there was one.
    """
    overridable = {i.name for i in graph.input}
    found = False
    while True:
        _constants_to_initializers(graph)
        asked = conditions_of(graph.node) - overridable
        known = {t.name: bool(array(t).all()) for t in graph.initializer if t.name in asked}
        if not known:
            return found
        take_branches_of(graph, known, moved)
        found = True


def _sort(graph: GraphProto) -> None:
    """Put nodes behind what they read, where a file has them otherwise."""
    places = order(graph.node)
    if places is not None and places != list(range(len(places))):
        refill(graph.node, [graph.node[k] for k in places])


def _constant_value(node: NodeProto) -> TensorProto | None:
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None:
        return None
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    if attribute.name in _CONSTANT_DTYPES:
        return numpy_helper.from_array(
            np.array(helper.get_attribute_value(attribute), _CONSTANT_DTYPES[attribute.name])
        )
    return None  # sparse and string constants stay nodes


def _constants_to_initializers(graph: GraphProto) -> None:
    kept = []
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        value = _constant_value(node) if node.op_type == "Constant" and node.output[0] not in outputs else None
        if value is None:
            kept.append(node)
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    if len(kept) < len(graph.node):
        refill(graph.node, kept)


def _drop_overridable_inputs(graph: GraphProto) -> None:
    initialized = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in initialized]
    if len(inputs) < len(graph.input):
        kept = [i.SerializeToString() for i in inputs]
        del graph.input[:]
        for data in kept:
            graph.input.add().ParseFromString(data)


def _unshare(graph: GraphProto, before: Mapping[str, str]) -> dict[str, str]:
    """Give every use of an initializer, and of a ConstantOfShape, its own copy; return copy name -> original name.

    Where a subgraph or an output of the model reads the original, that is a use of its own.
    """
    pinned = {o.name for o in graph.output}.union(*(outer_names(g) for n in graph.node for g in subgraphs(n)))
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    origin: dict[str, str] = dict(before)

    def own_names(name: str, uses: list[tuple[NodeProto, int]]) -> Iterator[str]:
        number = 1
        for node, k in uses if name in pinned else uses[1:]:
            while (copy := f"{name}.use{(number := number + 1)}") in taken:
                pass
            taken.add(copy)
            origin[copy] = origin.get(name, name)
            node.input[k] = copy
            yield copy

    uses = _uses(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if is_op(node, "ConstantOfShape"):
            for copy in own_names(node.output[0], uses[node.output[0]]):
                nodes.append(clone := copied(node))
                clone.output[0] = clone.name = copy  # two nodes of one name do not load
    if len(nodes) > len(graph.node):
        refill(graph.node, nodes)
        uses = _uses(graph)
    for tensor in list(graph.initializer):
        for copy in own_names(tensor.name, uses[tensor.name]):
            own = graph.initializer.add()
            own.CopyFrom(tensor)
            own.name = copy
    return origin


def _uses(graph: GraphProto) -> defaultdict[str, list[tuple[NodeProto, int]]]:
    uses: defaultdict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name:
                uses[name].append((node, k))
    return uses


def is_op(node: NodeProto, *types: str) -> bool:
    """Return whether a node is one of these ops of the default domain."""
    return node.op_type in types and node.domain in ("", "ai.onnx")


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values, subgraphs left out."""
    return {
        a.name: value.decode() if isinstance(value := helper.get_attribute_value(a), bytes) else value
        for a in node.attribute
        if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    }


def array(tensor: TensorProto) -> Array:
    """Return an initializer's values."""
    return weights.values(tensor)


def tensor(name: str, values: Array) -> TensorProto:
    """Return an initializer."""
    return numpy_helper.from_array(np.asarray(values, order="C"), name)  # ascontiguousarray would give scalars an axis


# --- evaluate parts --------------------------------------------------------------------------------------------------


def extract(model: ModelProto, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> ModelProto:
    """Return the sub-model that computes `outputs` from `inputs`, for evaluation only.

    Args:
        model: any model.
        inputs: tensor name -> ONNX element type; rank and dims are left open. All of them are inputs of the result.
        outputs: tensor name -> ONNX element type, in the order wanted; those made in a body as `loops.closed` gives
            them.
    """
    model = closed(model, outputs)
    with contextlib.redirect_stdout(io.StringIO()):  # its warnings go to stdout
        graph = gs.import_onnx(_upstream(model, inputs, outputs))
        tensors = {name: gs.Variable(name) for name in inputs} | graph.tensors()
        graph.inputs = [tensors[name] for name in inputs]
        graph.outputs = [tensors[name] for name in outputs]
        for name, kind in (*inputs.items(), *outputs.items()):
            tensors[name].dtype = kind
            tensors[name].shape = None
        for node in [producer for item in graph.inputs for producer in item.inputs]:
            node.outputs = [gs.Variable(f"{o.name}.cut") if o.name in inputs else o for o in node.outputs]
        graph.cleanup().toposort()
        part: ModelProto = gs.export_onnx(graph, do_type_check=False)
    _keep_outside(part.graph, model.graph)
    del part.graph.value_info[:]
    del part.opset_import[:]
    part.opset_import.extend(model.opset_import)
    part.ir_version = model.ir_version
    return part


def _upstream(model: ModelProto, inputs: Collection[str], outputs: Collection[str]) -> ModelProto:
    """Return a model of the nodes alone that come between some tensors: graphsurgeon takes its time over every node."""
    graph = model.graph
    producers = {name: k for k, node in enumerate(graph.node) for name in node.output if name not in inputs}
    found: set[int] = set()
    read, pending = set(outputs), list(outputs)
    while pending:
        k = producers.get(pending.pop())
        if k is not None and k not in found:
            found.add(k)
            new = [name for name in reads(graph.node[k]) if name not in read]
            read.update(new)
            pending += new
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    part.graph.name = graph.name
    part.graph.node.extend(graph.node[k] for k in sorted(found))
    part.graph.input.extend(graph.input)
    part.graph.initializer.extend(t for t in graph.initializer if t.name in read)
    part.graph.sparse_initializer.extend(graph.sparse_initializer)
    return part


def _keep_outside(part: GraphProto, whole: GraphProto) -> None:
    """Take out of bodies the initializers of the graph around them, of which graphsurgeon writes copies there."""
    stored = {t.name: t for t in whole.initializer}
    present = {t.name for t in part.initializer}
    for item in [g for node in part.node for body in subgraphs(node) for g in graphs_of(body)]:
        twins = [t.name for t in item.initializer if t.name in stored]
        if twins:
            refill(item.initializer, [t for t in item.initializer if t.name not in stored])
        missing = [name for name in twins if name not in present]
        part.initializer.extend(stored[name] for name in missing)
        present.update(missing)


# --- save ------------------------------------------------------------------------------------------------------------


def finish(model: ModelProto, source: Graph) -> ModelProto:
    """Return an edited model as it is written to a file.

    Equal copies are merged again, unused initializers are gone, the IR version is the input file's.
    """
    done = ModelProto()
    done.CopyFrom(model)
    done.ir_version = source.ir_version
    graph, origin = done.graph, source.origin
    used = used_names(graph)
    merged: dict[str, str] = {}
    first: dict[tuple[str, bytes], str] = {}
    kept: list[TensorProto] = []
    for item in graph.initializer:
        if item.name not in used:
            continue
        root = origin.get(item.name, item.name)
        if root in origin.values():
            key = (root, _digest(item))
            if key in first:
                merged[item.name] = first[key]
                continue
            first[key] = item.name
        kept.append(item)
    refill(graph.initializer, kept)
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name in merged:
                node.input[k] = merged[name]
    del graph.value_info[:]
    sink(graph, source.lifted, initializers=done.ir_version >= 4)
    if done.ir_version < 4:
        known = {i.name for i in graph.input}
        graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in graph.initializer
            if t.name not in known
        )
    return copied(done)


def _digest(item: TensorProto) -> bytes:
    nameless = copied(item)
    nameless.name = ""
    return hashlib.sha256(nameless.SerializeToString(deterministic=True)).digest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it, synced to disk, when the block ends well; else nothing.

    Raises:
        ModelError: the folder does not exist or cannot be written.
    """
    with whole_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def whole_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield a temporary path beside each path; all replace theirs when the block ends well, or none does.

    Raises:
        ModelError: a folder does not exist or cannot be written.
    """
    with contextlib.ExitStack() as cleanup:
        current = paths[0]
        try:
            temporaries = []
            for current in paths:
                temporaries.append(_temporary(current))
                cleanup.callback(temporaries[-1].unlink, missing_ok=True)
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.chmod(0o666 & ~_umask())
            with contextlib.ExitStack() as undo:
                for current, temporary in zip(paths, temporaries, strict=True):
                    if len(paths) > 1:
                        undo.callback(_restorer(current, cleanup))
                    temporary.replace(current)
                undo.pop_all()
        except OSError as error:
            raise ModelError(f"{current}: cannot be written ({error.strerror}); choose another output path") from error


def _temporary(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    return Path(name)


def _restorer(path: Path, cleanup: contextlib.ExitStack) -> Callable[[], object]:
    """Return what puts the present file at a path back: kept under another name until all is done."""
    if not path.exists():
        return lambda: path.unlink(missing_ok=True)
    backup = _temporary(path)
    cleanup.callback(backup.unlink, missing_ok=True)
    backup.unlink()
    try:
        os.link(path, backup)
    except OSError:  # no file system of links
        shutil.copyfile(path, backup)
    return lambda: backup.replace(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def data_path(path: str | Path) -> Path:
    """Return the path of the external data that belong to an output path."""
    return Path(path).with_name(Path(path).name + ".data")


def save(model: ModelProto, path: str | Path, *, external: bool = False) -> None:
    """Write a model so that its file appears whole or not at all.

    Args:
        model: the model.
        path: its file.
        external: put large initializers into a file beside it (`data_path`); models beyond 2 GB always do.

    Raises:
        ModelError: the path cannot be written.
    """
    path = Path(path)
    light, kept = weights.take_out(model)
    if not kept or (not external and weights.file_size(model) < PROTOBUF_LIMIT):
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            weights.write_whole(light, stream)
        return
    with whole_files(data_path(path), path) as (data_file, model_file):
        with data_file.open("wb") as stream:
            weights.write_out(light, stream, data_path(path).name)
        model_file.write_bytes(light.SerializeToString(deterministic=True))
    del kept  # held until here
