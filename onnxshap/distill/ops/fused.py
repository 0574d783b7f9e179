"""Ops that runtimes fuse, as onnxruntime's optimizer leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from onnxshap.distill.ops.base import Op, unknown
from onnxshap.distill.ops.numbers import rms_norm

_MS = "com.microsoft"


def _at(i: Sequence[Any], k: int) -> Any:
    return i[k] if len(i) > k else None


def _matmul(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    if a.get("transBatchA", 0) or a.get("transBatchB", 0):
        raise unknown("FusedMatMul with turned batches")
    turned = [x.transpose(-1, -2) if a.get(key, 0) else x for x, key in zip(i, ("transA", "transB"), strict=False)]
    return a.get("alpha", 1.0) * torch.matmul(*turned)


def _skip_layer(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
    total = i[0] + i[1] if _at(i, 4) is None else i[0] + i[1] + i[4]
    return F.layer_norm(total, total.shape[-1:], i[2], _at(i, 3), a.get("epsilon", 1e-12)), None, None, total


def _skip_rms(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
    total = i[0] + i[1] if _at(i, 3) is None else i[0] + i[1] + i[3]
    return rms_norm([total, i[2]], {"epsilon": a.get("epsilon", 1e-12)}), None, None, total


def _attend(q: Tensor, k: Tensor, v: Tensor, a: Mapping[str, Any], added: Tensor | None) -> Tensor:
    """Return attention of [images, positions, width] in heads."""
    q, k, v = (x.unflatten(-1, (a["num_heads"], -1)).transpose(1, 2) for x in (q, k, v))
    causal = bool(a.get("unidirectional", 0))
    if causal and (added is not None or q.shape[2] != k.shape[2]):
        raise unknown("attention that sees no later position, with a bias or over more keys than queries")
    scale = a.get("scale", 0.0) or None
    return F.scaled_dot_product_attention(q, k, v, added, is_causal=causal, scale=scale).transpose(1, 2).flatten(2)


def _attention(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    if any(_at(i, k) is not None for k in (3, 4, 6)) or a.get("do_rotary", 0):
        raise unknown("Attention with a mask or a past")
    projected = i[0] @ i[1] if _at(i, 2) is None else i[0] @ i[1] + i[2]
    widths = list(a.get("qkv_hidden_sizes", [i[1].shape[1] // 3] * 3))
    q, k, v = projected.split(widths, -1)
    return _attend(q, k, v, a, _at(i, 5))


def _multi_head(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    if any(_at(i, k) is not None for k in (4, 6, 7)) or any(x is None or x.ndim != 3 for x in (i[0], *(i[1:3]))):
        raise unknown("MultiHeadAttention with a mask, a past, or packed inputs")
    q, k, v = i[:3]
    if _at(i, 3) is not None:
        parts = i[3].split([q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = (x + bias for x, bias in zip((q, k, v), parts, strict=True))
    return _attend(q, k, v, a, _at(i, 5))


FUSED: Mapping[str, Op] = {
    f"{_MS}.Gelu": lambda i, a: F.gelu(i[0]),
    f"{_MS}.BiasGelu": lambda i, a: F.gelu(i[0] + i[1]),
    f"{_MS}.FastGelu": lambda i, a: F.gelu(i[0] if _at(i, 1) is None else i[0] + i[1], approximate="tanh"),
    f"{_MS}.QuickGelu": lambda i, a: i[0] * torch.sigmoid(a.get("alpha", 1.702) * i[0]),
    f"{_MS}.FusedMatMul": _matmul,
    f"{_MS}.TransposeMatMul": _matmul,
    f"{_MS}.SkipLayerNormalization": _skip_layer,
    f"{_MS}.SkipSimplifiedLayerNormalization": _skip_rms,
    f"{_MS}.Attention": _attention,
    f"{_MS}.MultiHeadAttention": _multi_head,
}
