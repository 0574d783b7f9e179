"""What a model declares of its outputs, held to what its ops give: once shapes are folded, more of that is known."""

from __future__ import annotations

import onnx
import onnx.shape_inference
from onnx import ModelProto, TensorShapeProto

from onnxshap.graph.structure import copied
from onnxshap.graph.weights import without_values


def rightly_declared(model: ModelProto) -> ModelProto:
    """Return a model whose outputs declare no shape that onnx infers to be another; the same one where none does.

    An exporter may have declared [1, 8210] of a tensor [N, 1, 8210]: nothing minds as long as a size is computed, but
    the checker refuses it once a constant tells. Sizes that are not known then stay open.
    """
    bare = without_values(model)
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        outputs = onnx.shape_inference.infer_shapes(bare).graph.output
    except (onnx.shape_inference.InferenceError, ValueError, TypeError):  # onnxruntime is the judge
        return model
    shapes = {o.name: o.type.tensor_type.shape for o in outputs if o.type.tensor_type.HasField("shape")}
    wrong = [
        k for k, output in enumerate(model.graph.output)
        if output.name in shapes and output.type.tensor_type.HasField("shape")
        and _contradicts(output.type.tensor_type.shape, shapes[output.name])
    ]  # fmt: skip
    if not wrong:
        return model
    made = copied(model)
    for k in wrong:
        shape = made.graph.output[k].type.tensor_type.shape
        del shape.dim[:]
        for dim in shapes[made.graph.output[k].name].dim:
            shape.dim.add(**({"dim_value": dim.dim_value} if dim.HasField("dim_value") else {}))
    return made


def _contradicts(declared: TensorShapeProto, inferred: TensorShapeProto) -> bool:
    """Return whether two shapes have other ranks or known sizes."""
    if len(declared.dim) != len(inferred.dim):
        return True
    return any(
        a.HasField("dim_value") and b.HasField("dim_value") and a.dim_value != b.dim_value
        for a, b in zip(declared.dim, inferred.dim, strict=True)
    )
