"""Which ops are those of ONNX itself, and of which version."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

_DOMAIN = ("", "ai.onnx")
"""The default operator set, by either of its names."""


def is_standard(node: NodeProto) -> bool:
    """Return whether a node's op is of the default domain."""
    return node.domain in _DOMAIN


def is_op(node: NodeProto, *types: str) -> bool:
    """Return whether a node is one of these ops of the default domain."""
    return node.op_type in types and is_standard(node)


def op_of(node: NodeProto) -> str:
    """Return a node's op as tables name it: `domain.type` outside the default domain."""
    return node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"


def opset_of(model: ModelProto) -> int:
    """Return the version of the default operator set, 1 where none is imported."""
    return next((o.version for o in model.opset_import if o.domain in _DOMAIN), 1)
