"""Tensors of a model as they are stored: where they are, and how many bytes their values have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

PLAIN = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    }
)
"""Element types that numpy and onnxruntime share; others stay in the model, bit for bit."""
DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
LOCATION = "location"
"""Key of the entry that says where values are."""


def size(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's values."""
    if tensor.data_type not in PLAIN:
        return sum(len(getattr(tensor, name)) for name in DATA_FIELDS)
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def is_external(tensor: TensorProto) -> bool:
    """Return whether a tensor's values are not in it."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


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


def copy_but(source: Message, target: Message, *left_out: str) -> None:
    """Copy the fields of a message into another one, but for some."""
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if field.is_repeated:
            getattr(target, field.name).MergeFrom(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
