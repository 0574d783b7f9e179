"""Large constants, kept once, outside of the models that use them.

Every pass copies a model and edits the copy. So that a copy costs nothing and models beyond protobuf's 2 GB can be
handled at all, large initializers are taken out of their model: their tensors become tickets, external-data entries
that name an array and what is cut from it. Arrays live as long as somebody holds the `Kept` that came with the model;
those of its file are read when they are asked for (`held`), those of files with external data are mapped.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array, BoolArray, FloatArray
from onnxshap.errors import ModelError, first_line
from onnxshap.graph.external import mapped
from onnxshap.graph.held import Held, InFile, InMemory, opened
from onnxshap.graph.standard import is_op
from onnxshap.graph.tensors import DATA_FIELDS, LOCATION, PLAIN, copy_but, is_external, size, tensors
from onnxshap.graph.wire import parse as parse_apart

LARGE = 4096
"""Bytes from which an initializer is taken out."""
_TICKET = "onnxshap.kept."
_CUT = "alive"
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
        e.key == LOCATION and e.value.startswith(_TICKET) for e in tensor.external_data
    )


def as_stored(values: FloatArray, dtype: np.dtype[Any]) -> Array | None:
    """Return what a type makes of some values; None where it does not hold one: a half ends at 65504."""
    with np.errstate(over="ignore"):
        found = np.asarray(values).astype(dtype)
    return found if bool((np.isfinite(found) | ~np.isfinite(values)).all()) else None


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
    return next(e.value for e in tensor.external_data if e.key == LOCATION)


def _is_large(tensor: TensorProto) -> bool:
    return tensor.data_type in PLAIN and min(tensor.dims, default=1) > 0 and size(tensor) >= LARGE


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
    for name in (*DATA_FIELDS, "external_data"):
        item.ClearField(name)
    ticket = f"{_TICKET}{secrets.token_hex(8)}"
    kept[ticket] = _held[ticket] = values
    item.data_location = TensorProto.EXTERNAL
    item.external_data.add(key=LOCATION, value=ticket)


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
    copy_but(model, light, "graph")
    copy_but(model.graph, light.graph, "initializer", "node")
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
            copy_but(source, target, *DATA_FIELDS, "external_data")
            _put_ticket(target, kept, InMemory(mapped(source, path) if is_external(source) else _array(source)))
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
            item.raw_data = mapped(item, path).tobytes()
            item.ClearField("data_location")
            item.ClearField("external_data")
    return light, kept


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


def without_values(model: ModelProto, names: Container[str] | None = None) -> ModelProto:
    """Return a model of the same types and shapes, its tickets inputs (default all): what checks of structure need."""
    bare = ModelProto()
    copy_but(model, bare, "graph")
    copy_but(model.graph, bare.graph, "initializer")
    inputs = {i.name for i in model.graph.input}
    for item in model.graph.initializer:
        if not is_kept(item) or (names is not None and item.name not in names):
            bare.graph.initializer.add().CopyFrom(item)
        elif item.name not in inputs:
            bare.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    return bare
