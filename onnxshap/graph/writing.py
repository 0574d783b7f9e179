"""Models with their large constants (`weights`) in them again: in memory, in files, as sizes and digests."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from onnxshap.graph.tensors import LOCATION, copy_but, size
from onnxshap.graph.weights import is_kept, values
from onnxshap.graph.wire import GRAPH, INITIALIZER, RAW_DATA, header

_ALIGNED, _PAGE = 64, 4096
"""Where tensors start in a file of external data, those of a page or more so that they can be mapped."""


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
            for key, value in ((LOCATION, name), ("offset", start), ("length", found.nbytes)):
                item.external_data.add(key=key, value=str(value))


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
    copy_but(model, bare, "graph")
    copy_but(model.graph, graph, "initializer")
    sizes = []
    for item in model.graph.initializer:
        if is_kept(item):
            sizes.append(_hollow(item).ByteSize() + len(header(RAW_DATA, size(item))) + size(item))
        else:
            sizes.append(item.ByteSize())
    return bare.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True), sizes


def _hollow(item: TensorProto) -> TensorProto:
    hollow = TensorProto()
    copy_but(item, hollow, "external_data", "data_location")
    return hollow


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
