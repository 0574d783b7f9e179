"""Ops that onnxruntime's optimizer makes out of two, taken apart again; a runtime puts them together when it loads.

What stands behind the sum in FusedConv and FusedGemm (an addend, an activation) would keep means from being folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from onnxshap.graph.structure import refill

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""Activation -> its parameters, in the order of the fused op's."""
_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")


def unfuse(graph: GraphProto, opset: int) -> dict[str, str]:
    """Take fused ops apart in place; return the outputs of the linear parts -> outputs of the ops they were in."""
    origin: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        parts = _parts(graph, node, opset)
        if len(parts) > 1:
            origin[parts[0].output[0]] = node.output[0]
        nodes += parts
    if origin:
        refill(graph.node, nodes)
    return origin


def _parts(graph: GraphProto, node: NodeProto, opset: int) -> list[NodeProto]:
    """Return the standard ops that a node is made of, or the node."""
    if node.domain != "com.microsoft" or node.op_type not in ("FusedConv", "FusedGemm"):
        return [node]
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
        made.append(_activation(graph, activation, parameters, made[-1].output[0], y, opset))
    return made


def _activation(
    graph: GraphProto, kind: str, parameters: Mapping[str, Any], source: str, target: str, opset: int
) -> NodeProto:
    inputs = [source]
    if kind == "Clip" and opset >= 11:
        for name, value in parameters.items():
            inputs.append(f"{target}.{name}")
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), inputs[-1]))
        parameters = {}
    return helper.make_node(kind, inputs, [target], name=f"{target}.{kind}", **parameters)
