"""What nodes and tensors say, as Python values."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshap.core import Array
from onnxshap.graph import weights


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values, subgraphs left out."""
    return {
        a.name: _as_text(helper.get_attribute_value(a))
        for a in node.attribute
        if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    }


def _as_text(value: Any) -> Any:
    """Return strings for bytes, also those of a list."""
    if isinstance(value, bytes):
        return value.decode()
    return [_as_text(one) for one in value] if isinstance(value, list) else value


def array(tensor: TensorProto) -> Array:
    """Return an initializer's values."""
    return weights.values(tensor)


def tensor(name: str, values: Array) -> TensorProto:
    """Return an initializer."""
    return numpy_helper.from_array(np.asarray(values, order="C"), name)  # ascontiguousarray would give scalars an axis
