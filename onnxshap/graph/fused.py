"""Ops that onnxruntime's optimizer makes, taken apart into what they were; a runtime makes them again when it loads.

What stands behind the sum in FusedConv and FusedGemm (an addend, an activation) would keep means from being folded. The
bias in SkipLayerNormalization, and the tables in EmbedLayerNormalization, would be in statistics of what is masked.
Convolutions and pools of codes with channels on the last axis are the standard ops between two Transposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array
from onnxshap.graph.names import Names
from onnxshap.graph.structure import copied, keep_only, refill, used_names

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
_LAST = {"QLinearConv": "QLinearConv", "NhwcMaxPool": "MaxPool"}
"""Op on codes whose channels may be on the last axis -> the standard op."""
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
    parting = _Parting(graph, opset)
    for node in graph.node:
        parts = parting.of(node)
        nodes += parts
        left = {name: [k for k, other in enumerate(node.input) if other == name] for name in node.input if name}
        for part in parts if parts != [node] else ():  # in the order of the inputs, where two are one tensor
            read = [(k, left[name]) for k, name in enumerate(part.input) if name in left]
            places = {k: there.pop(0) if len(there) > 1 else there[0] for k, there in read}
            found.append(Unfused(part.output[0], node.output[0], places))
    if found:
        refill(graph.node, nodes)
    return found


class _Parting:
    """Takes nodes of a graph apart; what they need to be stored is stored there."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self._graph, self._opset = graph, opset
        self._used, self._names = used_names(graph), Names(graph)
        self._stored = {t.name: t for t in graph.initializer}

    def of(self, node: NodeProto) -> list[NodeProto]:
        """Return the ops that a node is made of, or the node."""
        if node.domain != _DOMAIN:
            return [node]
        if node.op_type in ("FusedConv", "FusedGemm"):
            return self._linear(node)
        if node.op_type in _BIASES:
            return self._skip(node)
        if node.op_type == "EmbedLayerNormalization":
            return self._embedding(node)
        if node.op_type in _LAST:
            return self._channels_last(node)
        return [node]

    def _channels_last(self, node: NodeProto) -> list[NodeProto]:
        """Put the standard op in place of one on codes, between two Transposes where its channels are last.

        The axes of space are as many as the sizes of its windows, which it tells, or has weights of.
        """
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        last = given.pop("channels_last", node.op_type == "NhwcMaxPool")
        weights = self._stored.get(node.input[3]) if node.op_type == "QLinearConv" else None
        space = len(given.get("kernel_shape", ())) or (len(weights.dims) - 2 if weights is not None else 0)
        if last and not space:
            return [node]
        y, names = node.output[0], self._names
        kind, inputs, outputs = _LAST[node.op_type], list(node.input), list(node.output)
        if last:
            inputs[0], outputs[0] = names.new(f"{y}.in"), names.new(f"{y}.channels")
        op = helper.make_node(kind, inputs, outputs, name=node.name, **given)
        if not last:
            return [op]
        there, back = [0, space + 1, *range(1, space + 1)], [0, *range(2, space + 2), 1]
        first = helper.make_node("Transpose", [node.input[0]], inputs[:1], name=inputs[0], perm=there)
        return [first, op, helper.make_node("Transpose", outputs[:1], [y], name=names.node(f"{y}.out"), perm=back)]

    def _store(self, wish: str, values: Array) -> str:
        name = self._names.new(wish)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _linear(self, node: NodeProto) -> list[NodeProto]:
        """Take apart a Conv or Gemm, an addend and an activation."""
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        activation = given.pop("activation", b"").decode()
        if activation and activation not in _ACTIVATIONS:
            return [node]
        values = given.pop("activation_params", [given.pop(name, 0.0) for name in _PARAMETERS])
        parameters = dict(zip(_ACTIVATIONS.get(activation, ()), values, strict=False))
        y, names = node.output[0], self._names
        addend = node.input[3] if node.op_type == "FusedConv" and len(node.input) > 3 else ""
        first = names.new(f"{y}.linear") if addend or activation else y
        kind = node.op_type.removeprefix("Fused")
        linear = helper.make_node(kind, list(node.input[:3]), [first], name=node.name, **given)
        if not linear.input[-1]:
            del linear.input[-1]
        made = [linear]
        if addend:
            summed = names.new(f"{y}.sum") if activation else y
            made.append(helper.make_node("Add", [first, addend], [summed], name=names.node(f"{y}.add")))
        if activation:
            weights = self._stored.get(node.input[1], TensorProto(data_type=TensorProto.FLOAT))
            dtype = helper.tensor_dtype_to_np_dtype(weights.data_type)
            made.append(self._activation(activation, parameters, made[-1].output[0], y, dtype))
        return made

    def _activation(
        self, kind: str, parameters: Mapping[str, Any], source: str, target: str, dtype: np.dtype[Any]
    ) -> NodeProto:
        inputs = [source]
        if kind == "Clip" and self._opset >= 11:
            inputs += [self._store(f"{target}.{name}", np.array(value, dtype)) for name, value in parameters.items()]
            parameters = {}
        return helper.make_node(kind, inputs, [target], name=self._names.node(f"{target}.{kind}"), **parameters)

    def _skip(self, node: NodeProto) -> list[NodeProto]:
        """Take the bias out of a norm of a sum, and the sum where one of its terms is stored, for all images the same.

        There is no norm of one term before opset 17, so it is that of two halves.
        """
        y, place, made, names = node.output[0], _BIASES[node.op_type], list[NodeProto](), self._names
        norm = copied(node)
        if len(node.input) > place and node.input[place]:
            biased = names.new(f"{y}.biased")
            made.append(helper.make_node("Add", [node.input[0], node.input[place]], [biased], name=biased))
            norm.input[0] = biased
        del norm.input[place:]
        table = next((self._stored[name] for name in norm.input[:2] if name in self._stored), None)
        if table is not None and place == _BIASES["SkipLayerNormalization"]:
            given = node.output[3] if len(node.output) > 3 else ""
            total = given or names.new(f"{y}.sum")
            half = self._store(f"{y}.half", np.array(0.5, helper.tensor_dtype_to_np_dtype(table.data_type)))
            called = names.node(given) if given else total
            made.append(helper.make_node("Add", list(norm.input[:2]), [total], name=called))
            halves = names.new(f"{y}.halves")
            made.append(helper.make_node("Mul", [total, half], [halves], name=halves))
            norm.input[:2] = [halves] * 2
            del norm.output[3:]
        return [*made, norm]

    def _embedding(self, node: NodeProto) -> list[NodeProto]:
        """Take apart the sum of two or three tables' rows and its norm, and the count of ones in a mask.

        Inputs: ids, segments, tables of words, of positions and of segments, scale, shift, mask, positions, all but the
        tables int32; outputs: the norm, the counts, the sum.
        """
        ids, segments, words, places, parts, scale, shift, mask, given = [*node.input, *[""] * 9][:9]
        y, counts, total = (name if name in self._used else "" for name in [*node.output, "", ""][:3])
        rows = self._stored[places].dims[0] if places in self._stored else 0
        if not y or (counts and not mask) or not (given or rows):
            return [node]
        made = list[NodeProto]()

        def make(kind: str, inputs: Sequence[str], wish: str, **attributes: Any) -> str:
            name = self._names.new(f"{y}.{wish}")
            made.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
            return name

        def constant(wish: str, values: Array) -> str:
            return self._store(f"{y}.{wish}", values)

        def up_to(source: str, start: str, end: str, wish: str) -> str:
            return make("Slice", [source, start, end, constant(f"{wish}.axis", np.zeros(1, np.int64))], wish)

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
        keep_only(norm.attribute, lambda a: a.name == "epsilon")
        made.append(norm)
        if counts:
            ones = make("Equal", [mask, constant("one_of_mask", np.ones((), np.int32))], "ones")
            made.append(self._sum_of_rows(make("Cast", [ones], "counted", to=TensorProto.INT32), counts))
        return made

    def _sum_of_rows(self, source: str, target: str) -> NodeProto:
        called = self._names.node(target)
        if self._opset < 13:
            return helper.make_node("ReduceSum", [source], [target], name=called, axes=[1], keepdims=0)
        axes = self._store(f"{target}.axes", np.ones(1, np.int64))
        return helper.make_node("ReduceSum", [source, axes], [target], name=called, keepdims=0)
