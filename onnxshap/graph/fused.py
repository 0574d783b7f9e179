"""Ops that onnxruntime's optimizer makes out of two, taken apart again; a runtime puts them together when it loads.

What stands behind the sum in FusedConv and FusedGemm (an addend, an activation) would keep means from being folded. The
bias in SkipLayerNormalization, and the tables in EmbedLayerNormalization, would be in statistics of what is masked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array
from onnxshap.graph.structure import copied, refill, used_names

_DOMAIN = "com.microsoft"
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""Activation -> its parameters, in the order of the fused op's."""
_BIASES = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""Op -> its input that is a bias of the sum that it normalises."""
_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")


@dataclass(frozen=True)
class Unfused:
    """A node that a fused one was taken apart into, by first outputs, and where what it reads stood there.

    Attributes:
        made: of the node.
        fused: of the fused one.
        places: its inputs that were inputs of the fused one -> their places there.
    """

    made: str
    fused: str
    places: Mapping[int, int]


def unfuse(graph: GraphProto, opset: int) -> list[Unfused]:
    """Take fused ops apart in place, and tell what came of them."""
    if not any(node.domain == _DOMAIN for node in graph.node):
        return []
    found: list[Unfused] = []
    nodes: list[NodeProto] = []
    used, stored = used_names(graph), {t.name: t for t in graph.initializer}
    for node in graph.node:
        parts = _parts(graph, node, opset, used, stored)
        nodes += parts
        for part in parts if len(parts) > 1 else ():
            read = list(node.input)
            places = {k: read.index(name) for k, name in enumerate(part.input) if name and name in read}
            found.append(Unfused(part.output[0], node.output[0], places))
    if found:
        refill(graph.node, nodes)
    return found


def _parts(
    graph: GraphProto, node: NodeProto, opset: int, used: Collection[str], stored: Mapping[str, TensorProto]
) -> list[NodeProto]:
    """Return the ops that a node is made of, or the node."""
    if node.domain != _DOMAIN:
        return [node]
    if node.op_type in ("FusedConv", "FusedGemm"):
        return _linear(graph, node, opset, stored)
    if node.op_type in _BIASES:
        return _skip(graph, node, stored)
    if node.op_type == "EmbedLayerNormalization":
        return _embedding(graph, node, opset, used, stored)
    return [node]


def _linear(graph: GraphProto, node: NodeProto, opset: int, stored: Mapping[str, TensorProto]) -> list[NodeProto]:
    """Take apart a Conv or Gemm, an addend and an activation."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    activation = given.pop("activation", b"").decode()
    if activation and activation not in _ACTIVATIONS:
        return [node]
    values = given.pop("activation_params", [given.pop(name, 0.0) for name in _PARAMETERS])
    parameters = dict(zip(_ACTIVATIONS.get(activation, ()), values, strict=False))
    y = node.output[0]
    addend = node.input[3] if node.op_type == "FusedConv" and len(node.input) > 3 else ""
    summed = f"{y}.sum" if activation else y
    first = f"{y}.linear" if addend or activation else y
    kind = node.op_type.removeprefix("Fused")
    linear = helper.make_node(kind, list(node.input[:3]), [first], name=node.name, **given)
    if not linear.input[-1]:
        del linear.input[-1]
    made = [linear]
    if addend:
        made.append(helper.make_node("Add", [made[-1].output[0], addend], [summed], name=f"{y}.add"))
    if activation:
        weights = stored.get(node.input[1], TensorProto(data_type=TensorProto.FLOAT))
        dtype = helper.tensor_dtype_to_np_dtype(weights.data_type)
        made.append(_activation(graph, activation, parameters, made[-1].output[0], y, opset, dtype))
    return made


def _skip(graph: GraphProto, node: NodeProto, stored: Mapping[str, TensorProto]) -> list[NodeProto]:
    """Take the bias out of a norm of a sum, and the sum where one of its terms is stored, for all images the same.

    There is no norm of one term before opset 17, so it is that of two halves.
    """
    y, place, made = node.output[0], _BIASES[node.op_type], list[NodeProto]()

    def add(one: str, other: str, name: str) -> str:
        made.append(helper.make_node("Add", [one, other], [name], name=name))
        return name

    norm = copied(node)
    if len(node.input) > place and node.input[place]:
        norm.input[0] = add(node.input[0], node.input[place], f"{y}.biased")
    del norm.input[place:]
    table = next((stored[name] for name in norm.input[:2] if name in stored), None)
    if table is not None and place == _BIASES["SkipLayerNormalization"]:
        total = node.output[3] if len(node.output) > 3 and node.output[3] else f"{y}.sum"
        half = numpy_helper.from_array(np.array(0.5, helper.tensor_dtype_to_np_dtype(table.data_type)), f"{y}.half")
        graph.initializer.append(half)
        whole = add(norm.input[0], norm.input[1], total)
        made.append(helper.make_node("Mul", [whole, half.name], [f"{y}.halves"], name=f"{y}.halves"))
        norm.input[:2] = [f"{y}.halves"] * 2
        del norm.output[3:]
    return [*made, norm]


def _embedding(
    graph: GraphProto, node: NodeProto, opset: int, used: Collection[str], stored: Mapping[str, TensorProto]
) -> list[NodeProto]:
    """Take apart the sum of two or three tables' rows and its norm, and the count of ones in a mask.

    Inputs: ids, segments, tables of words, of positions and of segments, scale, shift, mask, positions, all but the
    tables int32; outputs: the norm, the counts, the sum.
    """
    ids, segments, words, places, parts, scale, shift, mask, given = [*node.input, *[""] * 9][:9]
    y, counts, total = (name if name in used else "" for name in [*node.output, "", ""][:3])
    rows = stored[places].dims[0] if places in stored else 0
    if not y or (counts and not mask) or not (given or rows):
        return [node]
    made = list[NodeProto]()

    def make(kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        made.append(helper.make_node(kind, inputs, [f"{y}.{name}"], name=f"{y}.{name}", **attributes))
        return f"{y}.{name}"

    def constant(name: str, values: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(values, f"{y}.{name}"))
        return f"{y}.{name}"

    def up_to(source: str, start: str, end: str, name: str) -> str:
        return make("Slice", [source, start, end, constant(f"{name}.axis", np.zeros(1, np.int64))], name)

    if not given:  # 0, 1, 2, ... for every image
        zero, one, two = (constant(f"{k}", np.array([k], np.int64)) for k in range(3))
        length = up_to(make("Shape", [ids], "sizes"), one, two, "length")
        numbers = up_to(constant("all", np.arange(rows, dtype=np.int32)), zero, length, "numbers")
        given = make("Add", [make("Sub", [ids, ids], "zeros"), numbers], "places")
    found = [make("Gather", [words, ids], "words"), make("Gather", [places, given], "positions")]
    if segments:
        found = [make("Add", found, "placed"), make("Gather", [parts, segments], "segments")]
    norm = copied(node)
    norm.op_type = "SkipLayerNormalization"
    norm.input[:] = [*found, scale, *([shift] if shift else [])]
    norm.output[:] = [y, "", "", total] if total else [y]
    refill(norm.attribute, [a for a in norm.attribute if a.name == "epsilon"])
    made.append(norm)
    if counts:
        ones = make("Equal", [mask, constant("one_of_mask", np.ones((), np.int32))], "ones")
        made.append(_sum_of_rows(graph, make("Cast", [ones], "counted", to=TensorProto.INT32), counts, opset))
    return made


def _sum_of_rows(graph: GraphProto, source: str, target: str, opset: int) -> NodeProto:
    if opset < 13:
        return helper.make_node("ReduceSum", [source], [target], name=target, axes=[1], keepdims=0)
    graph.initializer.append(numpy_helper.from_array(np.ones(1, np.int64), f"{target}.axes"))
    return helper.make_node("ReduceSum", [source, f"{target}.axes"], [target], name=target, keepdims=0)


def _activation(
    graph: GraphProto,
    kind: str,
    parameters: Mapping[str, Any],
    source: str,
    target: str,
    opset: int,
    dtype: np.dtype[Any],
) -> NodeProto:
    inputs = [source]
    if kind == "Clip" and opset >= 11:
        for name, value in parameters.items():
            inputs.append(f"{target}.{name}")
            graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), inputs[-1]))
        parameters = {}
    return helper.make_node(kind, inputs, [target], name=f"{target}.{kind}", **parameters)
