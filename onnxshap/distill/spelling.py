"""Ops that a table lacks in ops that it may have: many ops of ONNX are defined as functions of others."""

from __future__ import annotations

from collections.abc import Collection

import onnx.defs
from onnx import GraphProto, ModelProto, NodeProto, helper
from onnx.inliner import inline_selected_functions
from onnx.shape_inference import infer_shapes

from onnxshap.graph import is_standard, op_of, opset_of


def spelt_out(model: ModelProto, known: Collection[str]) -> list[NodeProto]:
    """Return the nodes of a model, those of ops that are not known replaced by the definitions of these.

    Ops that ONNX does not define by others stay. Tensors of the model keep their names.
    """
    opset = opset_of(model)
    unknown = sorted({node.op_type for node in model.graph.node if is_standard(node) and op_of(node) not in known})
    defined = [op for op in unknown if _is_defined(op, opset)]
    if not defined:
        return list(model.graph.node)
    typed = infer_shapes(_skeleton(model))  # some definitions depend on the kinds of what is given
    found = inline_selected_functions(typed, [("", op) for op in defined], False, True)
    return list(found.graph.node)


def _is_defined(op: str, opset: int) -> bool:
    if not onnx.defs.has(op, max_inclusive_version=opset):
        return False
    schema = onnx.defs.get_schema(op, max_inclusive_version=opset)
    # the stubs of onnx lack both
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _skeleton(model: ModelProto) -> ModelProto:
    """Return the model with what is stored, of any size, given instead."""
    given = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer]
    stored = {value.name for value in given}
    graph = GraphProto(name=model.graph.name, node=model.graph.node, output=model.graph.output)
    graph.input.extend([*(i for i in model.graph.input if i.name not in stored), *given])
    return ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
