"""Two models held to each other with norms in double precision: whether they compute the same but for how those round.

onnxruntime's InstanceNormalization loses up to four digits where it runs over tens of thousands of entries, half of
them the zeros that a mask leaves (a GroupNormalization of one group, as exporters write it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxshap.calibrate import run_all
from onnxshap.core import Array, Dataset
from onnxshap.errors import ModelError
from onnxshap.graph import attributes, is_op, opset_of, tensor
from onnxshap.graph.names import Names
from onnxshap.graph.structure import copied, refill
from onnxshap.labels.fixups import give
from onnxshap.verify.choices import Form
from onnxshap.verify.errors import Verified, compare

_NORM = "InstanceNormalization"


def normed_exactly(made: Form, twin: Form, data: Dataset, natural: Sequence[Array]) -> Verified | None:
    """Return how far a model is from its twin where the norms of both are exact.

    Args:
        made, twin: the two, of single precision.
        data: real inputs.
        natural: the original's outputs.

    Returns:
        None where neither has one of these norms in its main graph, or they are not of single precision.
    """
    if not any(is_op(node, _NORM) for form in (made, twin) for node in form.model.graph.node):
        return None
    try:
        got, wanted = (run_all(form.traced, _in_double(form.model), data, form.extra) for form in (made, twin))
    except ModelError:  # norms of what is not single precision, or no room for it in double precision
        return None
    return compare(got, wanted, natural)


def _in_double(model: ModelProto) -> ModelProto:
    """Return a model with its InstanceNormalizations written out in double precision."""
    made, nodes = copied(model), list[NodeProto]()
    names = Names(made.graph)
    for node in model.graph.node:
        nodes += _written_out(made, node, names) if is_op(node, _NORM) else [node]
    refill(made.graph.node, nodes)
    return made


def _written_out(model: ModelProto, node: NodeProto, names: Names) -> list[NodeProto]:
    """Return the nodes that stand for an InstanceNormalization; their constants join the initializers."""
    nodes, result = list[NodeProto](), node.output[0]

    def put(op: str, *inputs: str, **given: Any) -> str:
        name = names.new(f"{result}.{op}")
        nodes.append(helper.make_node(op, list(inputs), [name], name=name, **given))
        return name

    def constant(hint: str, value: Array) -> str:
        name = names.new(f"{result}.{hint}")
        model.graph.initializer.append(tensor(name, value))
        return name

    def double(name: str) -> str:
        return put("Cast", name, to=TensorProto.DOUBLE)

    def mean(name: str) -> str:
        found = put("ReduceMean", name)
        give(nodes[-1], "axes", (2,), partial(constant, "axes"), opset_of(model))
        return found

    x, scale, shift = node.input
    flat = put("Reshape", double(x), constant("flat", np.array([0, 0, -1])))
    column = constant("column", np.array([1, -1, 1]))
    apart = put("Sub", flat, mean(flat))
    epsilon = constant("epsilon", np.array(attributes(node).get("epsilon", 1e-5), np.float64))
    deviation = put("Sqrt", put("Add", mean(put("Mul", apart, apart)), epsilon))
    scaled = put("Mul", put("Div", apart, deviation), put("Reshape", double(scale), column))
    whole = put("Add", scaled, put("Reshape", double(shift), column))
    single = put("Cast", put("Reshape", whole, put("Shape", x)), to=TensorProto.FLOAT)
    return [*nodes, helper.make_node("Identity", [single], [result], name=names.node(f"{result}.exact"))]
