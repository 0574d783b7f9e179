"""What the functions of ops in torch have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from onnxshap.errors import ModelError

Op = Callable[[Sequence[Any], Mapping[str, Any]], Any]
"""What an ONNX op does to its inputs (None where left out), given its attributes, `OPSET` and `OUTPUTS`."""
OPSET, OUTPUTS = "_opset", "_outputs"
"""Beside a node's attributes: the version of the operator set, and how many outputs it has."""


def ints(value: Tensor) -> list[int]:
    """Return the numbers of a tensor of whole numbers."""
    return [int(v) for v in value.reshape(-1).tolist()]


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Return x, its trailing axes padded by ONNX's (begins..., ends...)."""
    half = len(pads) // 2
    if not any(pads):
        return x
    turned = [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]
    return F.pad(x, turned, value=value)


def unknown(what: str) -> ModelError:
    """Return the refusal of what torch does not compute as onnxruntime does, or this table does not know."""
    return ModelError(f"distill cannot evaluate {what}; use --repair lstsq")


def listed(i: Sequence[Any], a: Mapping[str, Any], k: int, name: str) -> list[int] | None:
    """Return the numbers that are input `k`, or an attribute before they became one; None: left out."""
    if len(i) > k and i[k] is not None:
        return ints(i[k])
    return list(a[name]) if name in a else None


def plain(run: Callable[..., Any]) -> Op:
    """Return the op that is a function of its inputs alone."""
    return lambda i, a: run(*i)


def clipped(x: Tensor, low: float, high: float) -> Tensor:
    """Return x between two bounds, by ops whose gradient is one pass (that of `torch.clamp` is four)."""
    if not x.is_floating_point():
        return torch.clamp(x, *(None if math.isinf(bound) else bound for bound in (low, high)))
    if high == math.inf:
        return x if low == -math.inf else F.relu(x) if low == 0 else F.threshold(x, low, low)
    return F.hardtanh(x, low, high) if low <= high else torch.full_like(x, high)
