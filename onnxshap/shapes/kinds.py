"""The element types of tensors: as ONNX infers them, and as the runtime sees them where ONNX does not know."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.shape_inference
from onnx import ModelProto

from onnxshap.backend import Backend
from onnxshap.graph.loops import closed
from onnxshap.graph.structure import copied, graphs_of
from onnxshap.graph.weights import without_values


def value_kinds(model: ModelProto) -> dict[str, int | None]:
    """Return name -> element type as inference knows it, None for what is no tensor (a sequence, an optional)."""
    model = closed(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(without_values(model))
    except (onnx.shape_inference.InferenceError, ValueError, TypeError):  # onnxruntime is the judge
        inferred = model
    kinds: dict[str, int | None] = {}
    for graph in reversed(list(graphs_of(inferred.graph))):  # a name of the main graph is that of the main graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            other = value.type.WhichOneof("value") not in (None, "tensor_type")
            kinds[value.name] = None if other else value.type.tensor_type.elem_type
    return {t.name: t.data_type for t in model.graph.initializer} | kinds


def unknown_kinds(model: ModelProto, backend: Backend, kinds: Mapping[str, int | None]) -> dict[str, int]:
    """Return the element types that ONNX cannot infer, behind ops of other domains, as the runtime sees them."""
    unknown = [o for node in model.graph.node for o in node.output if o and kinds.get(o, 0) == 0]
    if not unknown:
        return {}
    made = copied(model)
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    return dict(zip(unknown, backend.session(made, optimize=False).kinds, strict=True))
