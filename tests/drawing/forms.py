"""How files store what they hold: weights behind casts or as codes, Constant nodes, local functions, free sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from onnxshap.core import Array
from tests.drawing.builder import Builder

_SIZED = "of_"
"""What free sizes are called, before the size that was drawn."""

# --- weights -------------------------------------------------------------------------------------------------------


def _renamed(b: Builder, values: Array) -> str:
    return b.node("Identity", [b.constant(values, np.float32)], values.shape).name


def _halved(b: Builder, values: Array) -> str:
    kind = b.one_of([np.float16, ml_dtypes.bfloat16 if b.opset >= 13 else np.float16])
    return b.node("Cast", [b.constant(values, kind)], values.shape, to=TensorProto.FLOAT).name


def _turned(b: Builder, values: Array) -> str:
    stored = b.constant(np.ascontiguousarray(values.T), np.float32)
    return b.node("Transpose", [stored], values.shape, perm=list(range(values.ndim))[::-1]).name


def _flat(b: Builder, values: Array) -> str:
    return b.node("Reshape", [b.constant(values.ravel(), np.float32), b.constant(values.shape)], values.shape).name


def _scaled(b: Builder, values: Array) -> str:
    """A matrix times a length for every row, as torch's weight_norm writes it."""
    lengths = b.constant(b.rng.uniform(0.5, 1.5, (*values.shape[:1], *[1] * (values.ndim - 1))), np.float32)
    return b.node("Mul", [b.constant(values, np.float32), lengths], values.shape).name


def _coded(b: Builder, values: Array) -> str:
    """Codes with one scale, or one for every position of an axis."""
    axis = b.integer(0, values.ndim - 1) if b.opset >= 13 and values.ndim and b.flag() else None
    shape = () if axis is None else (values.shape[axis],)
    scales, kind = b.rng.uniform(0.5, 1.5, shape) / 64, b.one_of([np.int8, np.uint8])
    points = b.rng.integers(100, 140, shape) if kind == np.uint8 else b.rng.integers(-9, 9, shape)
    along = np.reshape(scales, [-1 if a == axis else 1 for a in range(values.ndim)] if shape else ())
    middle = np.reshape(points, [-1 if a == axis else 1 for a in range(values.ndim)] if shape else ())
    info = np.iinfo(kind)
    codes = np.clip(np.round(values / along) + middle, info.min, info.max)
    inputs = [b.constant(codes, kind), b.constant(scales, np.float32), b.constant(points, kind)]
    return b.node("DequantizeLinear", inputs, values.shape, **({} if axis is None else {"axis": axis})).name


STORED: tuple[Callable[[Builder, Array], str], ...] = (_renamed, _halved, _turned, _flat, _scaled, _coded)
"""Codes stand last."""

# --- files ---------------------------------------------------------------------------------------------------------


def constant_nodes(b: Builder, model: ModelProto) -> None:
    """Keep some of the constants in nodes."""
    graph = model.graph
    moved = [t for t in graph.initializer if b.flag()]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in moved]
    kept = [t for t in graph.initializer if all(t is not m for m in moved)]
    given = [*nodes, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(given)


def in_function(b: Builder, model: ModelProto) -> None:
    """Put a run of nodes into a function of the model's own."""
    graph = model.graph
    first = b.integer(0, len(graph.node) - 1)
    last = b.integer(first + 1, min(len(graph.node), first + 5))
    inside, after = list(graph.node[first:last]), graph.node[last:]
    made = {o for node in inside for o in node.output if o}
    beyond = {name for node in after for name in _reads(node)} | {o.name for o in graph.output}
    reads = [name for node in inside for name in _reads(node) if name and name not in made]
    outputs = sorted(made & beyond)
    if not outputs or any(a.type == onnx.AttributeProto.GRAPH for node in inside for a in node.attribute):
        return
    inputs = sorted(set(reads))
    function = helper.make_function("own", "Part", inputs, outputs, inside, list(model.opset_import))
    call = helper.make_node("Part", inputs, outputs, domain="own")
    nodes = [*graph.node[:first], call, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)
        yield from (output.name for output in attribute.g.output)


def as_inputs(b: Builder, model: ModelProto) -> None:
    """Declare all initializers inputs, as files before IR 4 have to."""
    if b.flag() and model.opset_import[0].version <= 11:
        model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def free_sizes(b: Builder, model: ModelProto) -> None:
    """Let sizes behind the second axis be of any length, as far as the file says."""
    for item in model.graph.input:
        for dim in list(item.type.tensor_type.shape.dim)[2:]:
            if b.flag():
                dim.dim_param = f"{_SIZED}{dim.dim_value}"
    for item in model.graph.output:
        for dim in list(item.type.tensor_type.shape.dim)[1:]:
            dim.Clear()


FILES: tuple[Callable[[Builder, ModelProto], None], ...] = (constant_nodes, in_function, as_inputs)


def sizes_of(model: ModelProto) -> Mapping[str, tuple[int | None, ...]]:
    """Return the sizes that a model was drawn with, of inputs that say less."""
    found = {}
    for item in model.graph.input:
        dims = [d.dim_param.removeprefix(_SIZED) for d in item.type.tensor_type.shape.dim]
        if any(d.isdecimal() for d in dims):
            found[item.name] = tuple(int(d) if d.isdecimal() else None for d in dims)
    return found
