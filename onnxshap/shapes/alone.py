"""The shapes that a node gives, alone, with axes of unknown size where there is doubt: what is known then is sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx.shape_inference
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxshap.backend import Backend
from onnxshap.core import Array, BoolArray
from onnxshap.errors import ModelError
from onnxshap.graph import is_standard, tensor
from onnxshap.shapes.kinds import unknown_kinds

MOST = 64
"""Numbers of a constant that shape inference may want to see."""


@dataclass(frozen=True)
class Given:
    """An input of a node.

    Attributes:
        shape: its shape in a run.
        sizes: bool[rank], the axes whose sizes are in doubt.
        value: its values, where they are known; None = data.
        entries: bool[shape] of values, those that are in doubt.
    """

    shape: tuple[int, ...]
    sizes: BoolArray
    value: Array | None = None
    entries: BoolArray | None = None

    @property
    def sure(self) -> bool:
        """Whether nothing of it is in doubt."""
        return not self.sizes.any() and (self.entries is None or not self.entries.any())


@dataclass(frozen=True)
class Alone:
    """Infers what nodes of a model give: ONNX its own ops, the runtime those of other domains, which it alone knows.

    Attributes:
        model: the model, for what it imports.
        inferred: tensor name -> ONNX element type, as far as ONNX knows it.
        backend: makes sessions.
    """

    model: ModelProto
    inferred: Mapping[str, int | None]
    backend: Backend

    @cached_property
    def kinds(self) -> Mapping[str, int | None]:
        """Those that the runtime alone knows too."""
        return {**self.inferred, **unknown_kinds(self.model, self.backend, self.inferred)}

    def shapes(self, node: NodeProto, given: Sequence[Given | None]) -> Mapping[str, Sequence[int | None]]:
        """Return the shapes of a node's outputs, None for what is not known; those alone of which anything is."""
        model = self._model(node, given)
        try:
            if is_standard(node):
                return _dims(onnx.shape_inference.infer_shapes(model))
            session = self.backend.session(model, optimize=False)
            return dict(zip(session.outputs, session.dims, strict=True))
        except (onnx.shape_inference.InferenceError, ModelError, RuntimeError, ValueError):
            return {}

    def _model(self, node: NodeProto, given: Sequence[Given | None]) -> ModelProto:
        inputs, stored, seen = list[ValueInfoProto](), list[TensorProto](), set[str]()
        for k, (name, one) in enumerate(zip(node.input, given, strict=True)):
            if one is None or name in seen:
                continue
            seen.add(name)
            if one.value is not None and one.sure and one.value.size <= MOST:
                stored.append(tensor(name, one.value))
                continue
            kind = (self.kinds if node.domain else self.inferred).get(name) or TensorProto.FLOAT
            dims = [
                f"d{k}.{axis}" if doubt else size
                for axis, (size, doubt) in enumerate(zip(one.shape, one.sizes, strict=True))
            ]
            inputs.append(helper.make_tensor_value_info(name, kind, dims))
        outputs = [ValueInfoProto(name=o) for o in node.output if o]
        graph = helper.make_graph([node], "one", inputs, outputs, stored)
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)


def _dims(model: ModelProto) -> dict[str, list[int | None]]:
    return {
        o.name: [d.dim_value if d.HasField("dim_value") else None for d in o.type.tensor_type.shape.dim]
        for o in (*model.graph.output, *model.graph.value_info)
        if o.type.tensor_type.HasField("shape")
    }
