"""Large constants, kept once, outside of the models that use them.

Every pass copies a model and edits the copy. So that a copy costs nothing and models beyond protobuf's 2 GB can be
handled at all, large initializers are taken out of their model: their tensors become tickets, external-data entries
that name an array and what is cut from it. Arrays live as long as somebody holds the `Kept` that came with the model;
those of its file are read when they are asked for (`held`), those of files with external data are mapped.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array, BoolArray
from onnxshap.errors import ModelError, first_line
from onnxshap.graph.held import Held, InFile, InMemory, opened
from onnxshap.graph.standard import is_op
from onnxshap.graph.wire import GRAPH, INITIALIZER, RAW_DATA, header
from onnxshap.graph.wire import parse as parse_apart

LARGE = 4096
"""Bytes from which an initializer is taken out."""
_ALIGNED, _PAGE = 64, 4096
"""Where tensors start in a file of external data, those of a page or more so that they can be mapped."""
_TICKET = "onnxshap.kept."
_LOCATION, _CUT = "location", "alive"
_KINDS = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)
"""Element types that numpy and onnxruntime share; others stay in the model, bit for bit."""
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")

_held: WeakValueDictionary[str, Held] = WeakValueDictionary()


class Kept(dict[str, Held]):
    """Ticket -> values; whoever holds it keeps the values, also in the process that it is sent to."""

    def __reduce__(self) -> tuple[Callable[[dict[str, Array]], Kept], tuple[dict[str, Array]]]:
        return _received, ({ticket: values() for ticket, values in self.items()},)


def _received(arrays: dict[str, Array]) -> Kept:
    return Kept({ticket: _held.setdefault(ticket, InMemory(values)) for ticket, values in arrays.items()})


def values(tensor: TensorProto) -> Array:
    """Return the values of an initializer, taken out or not.

    Raises:
        ModelError: it is damaged.
    """
    if is_kept(tensor):
        return ticketed(tensor)()
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{tensor.name!r} cannot be read ({first_line(error)}); export the model again") from error


@dataclass(frozen=True)
class Ticketed:
    """What a ticket stands for: values, and bool[n] of the axes that are cut; the cut is made when it is called for.

    Holds the values, whatever becomes of the model.
    """

    whole: Held
    alive: tuple[tuple[int, BoolArray], ...] = ()

    def __call__(self) -> Array:
        """Return the values."""
        found = self.whole()
        for axis, flags in self.alive:
            found = found.compress(flags, axis)
        return np.asarray(found)


def ticketed(tensor: TensorProto) -> Ticketed:
    """Return what a ticket stands for."""
    entries = {e.key: e.value for e in tensor.external_data}
    cuts = [(axis, entries.get(f"{_CUT}{axis}")) for axis in range(len(tensor.dims))]
    cut = tuple((axis, _unpacked(alive)) for axis, alive in cuts if alive is not None)
    return Ticketed(_held[_ticket(tensor)], cut)


def is_kept(tensor: TensorProto) -> bool:
    """Return whether an initializer is a ticket."""
    return tensor.data_location == TensorProto.EXTERNAL and any(
        e.key == _LOCATION and e.value.startswith(_TICKET) for e in tensor.external_data
    )


def set_values(tensor: TensorProto, found: Array) -> None:
    """Put other values into an initializer, whose name, doc string and metadata stay."""
    made = numpy_helper.from_array(np.asarray(found, order="C"), tensor.name)  # ascontiguousarray gives scalars an axis
    if tensor.doc_string:
        made.doc_string = tensor.doc_string
    made.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(made)


def compress(tensor: TensorProto, alive: Mapping[int, BoolArray]) -> None:
    """Cut an initializer to the positions of its axes that stay: axis -> bool[n]."""
    if not alive:
        return None
    if not is_kept(tensor):
        kept = values(tensor)
        for axis, flags in alive.items():
            kept = kept.compress(flags, axis)
        return set_values(tensor, kept)
    entries = {e.key: e for e in tensor.external_data}
    for axis, flags in alive.items():
        key, whole = f"{_CUT}{axis}", flags
        if key in entries:
            whole = _unpacked(entries[key].value)
            whole[whole] = flags
        else:
            entries[key] = tensor.external_data.add(key=key)
        entries[key].value = "".join("1" if flag else "0" for flag in whole)
        tensor.dims[axis] = int(whole.sum())
    return None


def _unpacked(text: str) -> BoolArray:
    return np.array([digit == "1" for digit in text], np.bool_)


def _ticket(tensor: TensorProto) -> str:
    return next(e.value for e in tensor.external_data if e.key == _LOCATION)


# --- out of models and in again --------------------------------------------------------------------------------------


def _is_large(tensor: TensorProto) -> bool:
    return tensor.data_type in _KINDS and min(tensor.dims, default=1) > 0 and size(tensor) >= LARGE


def size(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's values."""
    if tensor.data_type not in _KINDS:
        return sum(len(getattr(tensor, name)) for name in _DATA)
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def parse(stream: BufferedIOBase, name: str = "the model's file") -> tuple[ModelProto, Kept]:
    """Return the model in a file, and what its tickets stand for: the large initializers whose values are in the file.

    Args:
        stream: the file, or the same in memory.
        name: what messages call it.

    Raises:
        DecodeError: it is no model, or a truncated one.
        ModelError: it has external data of a reserved name, or got shorter meanwhile.
    """
    if not stream.seekable():
        stream = BytesIO(stream.read())
    file = opened(stream, name)
    model, found = parse_apart(stream, LARGE)
    if any(map(is_kept, tensors(model))):
        raise ModelError("its external data have a reserved name; export it again")
    kept = Kept()
    for place, where in found.items():
        item = model.graph.initializer[place]
        if is_external(item) or not _is_large(item) or size(item) != len(where):
            item.raw_data = _read(stream, where).tobytes()
            continue
        dtype, shape = helper.tensor_dtype_to_np_dtype(item.data_type), tuple(item.dims)
        if file is not None:
            _put_ticket(item, kept, InFile(file, where.start, dtype, shape))
        else:
            _put_ticket(item, kept, InMemory(_read(stream, where).view(dtype).reshape(shape)))
    return model, kept


def _read(stream: BufferedIOBase, where: range) -> Array:
    """Return uint8[n], bytes of a stream that were there before."""
    found = np.empty(len(where), np.uint8)
    stream.seek(where.start)
    if stream.readinto(found.data) < len(found):
        raise ModelError("the file got shorter while it was read; run again")
    found.flags.writeable = False
    return found


def _put_ticket(item: TensorProto, kept: Kept, values: Held) -> None:
    """Make an initializer a ticket."""
    for name in (*_DATA, "external_data"):
        item.ClearField(name)
    ticket = f"{_TICKET}{secrets.token_hex(8)}"
    kept[ticket] = _held[ticket] = values
    item.data_location = TensorProto.EXTERNAL
    item.external_data.add(key=_LOCATION, value=ticket)


def initializer(name: str, values: Array, kept: Kept) -> TensorProto:
    """Return an initializer of some values: a ticket of `kept` if they are many."""
    dims, kind = values.shape, helper.np_dtype_to_tensor_dtype(values.dtype)
    made = TensorProto(name=name, dims=dims, data_type=kind)
    if _is_large(made):
        _put_ticket(made, kept, InMemory(values))
        return made
    return numpy_helper.from_array(values, name)


def take_out(model: ModelProto, path: Path | None = None) -> tuple[ModelProto, Kept]:
    """Return a copy of a model with tickets for its large initializers, and what they stand for.

    Large values of Constant nodes become initializers too.

    Args:
        model: any model; not changed.
        path: its file, beside which its external data are, if it has any.

    Raises:
        ModelError: external data are missing, too short, or outside of the model's folder.
    """
    light, kept = ModelProto(), Kept()
    _copy_but(model, light, "graph")
    _copy_but(model.graph, light.graph, "initializer", "node")
    outputs = {o.name for o in model.graph.output}

    def put(source: TensorProto, name: str) -> None:
        target = light.graph.initializer.add()
        if is_kept(source):
            target.CopyFrom(source)
            ticket = _ticket(source)
            kept[ticket] = _held[ticket]
        elif not _is_large(source):
            target.CopyFrom(source)
        else:
            _copy_but(source, target, *_DATA, "external_data")
            _put_ticket(target, kept, InMemory(_mapped(source, path) if is_external(source) else _array(source)))
        target.name = name

    for item in model.graph.initializer:
        put(item, item.name)
    for node in model.graph.node:
        large = _constant(node) if model.ir_version >= 4 else None  # before, initializers have to be inputs too
        if large is None or node.output[0] in outputs:
            light.graph.node.add().CopyFrom(node)
        else:
            put(large, node.output[0])
    for item in tensors(light):
        if is_external(item) and not is_kept(item):
            item.raw_data = _mapped(item, path).tobytes()
            item.ClearField("data_location")
            item.ClearField("external_data")
    return light, kept


def _copy_but(source: Message, target: Message, *left_out: str) -> None:
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if field.is_repeated:
            getattr(target, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _constant(node: NodeProto) -> TensorProto | None:
    if not is_op(node, "Constant") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    return attribute.t if attribute.name == "value" and _is_large(attribute.t) else None


def _array(tensor: TensorProto) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    raw = tensor.raw_data if tensor.HasField("raw_data") else b""
    if len(raw) == size(tensor):
        return np.frombuffer(raw, dtype).reshape(tensor.dims)
    try:
        return numpy_helper.to_array(tensor)
    except ValueError as error:
        raise ModelError(
            f"initializer {tensor.name!r} holds other than the {size(tensor)} bytes of its shape {list(tensor.dims)}; "
            "export the model again"
        ) from error


def put_in(model: ModelProto) -> ModelProto:
    """Return a copy of a model with the values of its large initializers in it."""
    whole = ModelProto()
    whole.CopyFrom(model)
    for item in whole.graph.initializer:
        if is_kept(item):
            data = values(item).tobytes()
            item.ClearField("data_location")
            item.ClearField("external_data")
            item.raw_data = data
    return whole


def write_out(model: ModelProto, stream: BinaryIO, name: str) -> None:
    """Write the values of a model's tickets to a file called `name`, and let the model refer to it."""
    for item in model.graph.initializer:
        if is_kept(item):
            found = np.ascontiguousarray(values(item))
            stream.write(b"\0" * (-stream.tell() % (_PAGE if found.nbytes >= _PAGE else _ALIGNED)))
            start = stream.tell()
            stream.write(found.reshape(-1).view(np.uint8).data)
            item.ClearField("external_data")
            for key, value in ((_LOCATION, name), ("offset", start), ("length", found.nbytes)):
                item.external_data.add(key=key, value=str(value))


def without_values(model: ModelProto, names: Container[str] | None = None) -> ModelProto:
    """Return a model of the same types and shapes, its tickets inputs (default all): what checks of structure need."""
    bare = ModelProto()
    _copy_but(model, bare, "graph")
    _copy_but(model.graph, bare.graph, "initializer")
    inputs = {i.name for i in model.graph.input}
    for item in model.graph.initializer:
        if not is_kept(item) or (names is not None and item.name not in names):
            bare.graph.initializer.add().CopyFrom(item)
        elif item.name not in inputs:
            bare.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    return bare


def digest(model: ModelProto) -> str:
    """Return a sha256 of a model and the values of its initializers."""
    found, bare = hashlib.sha256(), ModelProto()
    bare.CopyFrom(model)
    for item in bare.graph.initializer:
        if is_kept(item):
            found.update(np.ascontiguousarray(values(item)).reshape(-1).view(np.uint8).data)
            item.ClearField("external_data")
    found.update(bare.SerializeToString(deterministic=True))
    return found.hexdigest()


def write_whole(model: ModelProto, stream: BinaryIO) -> None:
    """Write a model as one file, its values in it, one tensor in memory at a time."""
    bare, graph, sizes = _parts(model)
    stream.write(bare)
    stream.write(header(GRAPH, len(graph) + sum(len(header(INITIALIZER, n)) + n for n in sizes)))
    stream.write(graph)
    for item, content in zip(model.graph.initializer, sizes, strict=True):
        stream.write(header(INITIALIZER, content))
        if is_kept(item):
            stream.write(_hollow(item).SerializeToString(deterministic=True))
            stream.write(header(RAW_DATA, size(item)))
            stream.write(np.ascontiguousarray(values(item)).reshape(-1).view(np.uint8).data)
        else:
            stream.write(item.SerializeToString(deterministic=True))


def file_size(model: ModelProto) -> int:
    """Return how many bytes a model has as one file, its values in it."""
    bare, graph, sizes = _parts(model)
    content = len(graph) + sum(len(header(INITIALIZER, n)) + n for n in sizes)
    return len(bare) + len(header(GRAPH, content)) + content


def _parts(model: ModelProto) -> tuple[bytes, bytes, list[int]]:
    """Return a serialized model without its graph, the graph without initializers, and the sizes of those."""
    bare, graph = ModelProto(), GraphProto()
    _copy_but(model, bare, "graph")
    _copy_but(model.graph, graph, "initializer")
    sizes = []
    for item in model.graph.initializer:
        if is_kept(item):
            sizes.append(_hollow(item).ByteSize() + len(header(RAW_DATA, size(item))) + size(item))
        else:
            sizes.append(item.ByteSize())
    return bare.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True), sizes


def _hollow(item: TensorProto) -> TensorProto:
    hollow = TensorProto()
    _copy_but(item, hollow, "external_data", "data_location")
    return hollow


# --- external data ---------------------------------------------------------------------------------------------------


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model, those in attributes, bodies and functions included."""
    yield from _tensors_of(model.graph)
    for function in model.functions:
        yield from _tensors_in(function.node)


def _tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _tensors_in(graph.node)


def _tensors_in(nodes: Sequence[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from _tensors_of(attribute.g)
            yield from attribute.tensors
            for graph in attribute.graphs:
                yield from _tensors_of(graph)


def is_external(tensor: TensorProto) -> bool:
    """Return whether a tensor's values are not in it."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def external_file(tensor: TensorProto, model: Path | None) -> Path:
    """Return the file in which a tensor's values are: beside the model, or beside the file that a link to it leads to.

    Data that are a link have to lead into one of these folders too, as in a store of files by their hashes.

    Raises:
        ModelError: it is missing, no plain file, or outside of the model's folder.
    """
    location = next((e.value for e in tensor.external_data if e.key == _LOCATION), "")
    what = f"initializer {tensor.name!r} has its values in {location!r}"
    if model is None:
        raise ModelError(f"{what}, and a model in memory has no folder; give the model's path")
    if not location:
        raise ModelError(
            f"initializer {tensor.name!r} has its values outside, and names no file; export the model again"
        )
    if Path(location).is_absolute() or "\\" in location or ":" in location:
        raise ModelError(f"{what}, which is no relative path; put the file beside the model and export again")
    folders = (model.parent.resolve(), model.resolve().parent)
    try:
        path = next((p for folder in folders if (p := folder / location).exists()), model.parent / location)
        real = Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle
        inside = any(real.is_relative_to(folder) for folder in folders)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"initializer {tensor.name!r} has its values in {location[:40]!r}, which no file can be called; "
            "export the model again"
        ) from error
    if ".." in Path(location).parts or not inside:
        raise ModelError(f"{what}, outside of the model's folder; put the file itself beside the model")
    if not path.is_file():
        raise ModelError(f"{what}, which is missing; put that external data file beside the model")
    return path


def _mapped(tensor: TensorProto, model: Path | None) -> Array:
    """Return the values of a tensor with external data, mapped into memory."""
    path = external_file(tensor, model)
    entries = {e.key: e.value for e in tensor.external_data}
    what = f"initializer {tensor.name!r} has its values in {entries[_LOCATION]!r}"
    plain = tensor.data_type in _KINDS
    shape = tuple(tensor.dims)
    wanted = size(tensor) if plain else None
    try:
        start, given = int(entries.get("offset") or 0), entries.get("length")
        length = int(given) if given else (path.stat().st_size - start if wanted is None else wanted)
    except ValueError as error:
        raise ModelError(f"{what}, at an offset or of a length that is no number; export the model again") from error
    if start < 0 or length < 0 or (wanted is not None and length != wanted) or min(shape, default=1) < 0:
        raise ModelError(f"{what}: {length} bytes at {start}, its shape {list(shape)} takes {wanted}; export it again")
    if start + length > path.stat().st_size:
        raise ModelError(
            f"{what}, which is too short: {path.stat().st_size} bytes, {start + length} are needed; copy it again"
        )
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(tensor.data_type) if plain else np.dtype(np.uint8)
    if not length:
        return np.empty(shape if plain else 0, dtype)
    mapped = np.memmap(path, dtype, "r", start, shape if plain else (length,))
    return mapped if start % dtype.itemsize == 0 else np.array(mapped)
