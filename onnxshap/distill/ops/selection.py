"""Ops that pick entries by their places, or put some there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxshap.distill.ops.base import Op, ints

_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}
"""ONNX's names for what becomes of two numbers in one place, and torch's."""


def _from_start(index: Tensor, size: int) -> Tensor:
    """Return places that are counted from the end counted from the start."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


def _gather(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis = a.get("axis", 0) % i[0].ndim
    index = _from_start(i[1], i[0].shape[axis])
    picked = i[0].index_select(axis, index.reshape(-1))
    return picked.reshape([*i[0].shape[:axis], *index.shape, *i[0].shape[axis + 1 :]])


def _gather_elements(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis = a.get("axis", 0)
    return torch.gather(i[0], axis, _from_start(i[1], i[0].shape[axis]))


def _flat(index: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return flat places of places [..., axes]."""
    total = torch.zeros(index.shape[:-1], dtype=torch.long, device=index.device)
    for k, size in enumerate(sizes):
        total = total * size + _from_start(index[..., k], size)
    return total


def _gather_nd(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, index, lead = i[0], i[1], a.get("batch_dims", 0)
    sizes, rest = x.shape[lead : lead + index.shape[-1]], x.shape[lead + index.shape[-1] :]
    rows = x.reshape(math.prod(x.shape[:lead]), math.prod(sizes), *rest)
    at = _flat(index, sizes).reshape(len(rows), -1)
    return rows[torch.arange(len(rows), device=x.device)[:, None], at].reshape([*index.shape[:-1], *rest])


def _scatter_nd(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, index, reduction = i[0], i[1], a.get("reduction", "none")
    sizes, rest = x.shape[: index.shape[-1]], x.shape[index.shape[-1] :]
    rows, at = x.reshape(math.prod(sizes), *rest), _flat(index, sizes).reshape(-1)
    given = i[2].reshape(len(at), *rest)
    if reduction in _REDUCTIONS:
        return rows.index_reduce(0, at, given, _REDUCTIONS[reduction]).reshape(x.shape)
    return rows.index_put((at,), given, accumulate=reduction == "add").reshape(x.shape)


def _scatter_elements(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, axis, reduction = i[0], a.get("axis", 0), a.get("reduction", "none")
    at = _from_start(i[1], x.shape[axis])
    if reduction in _REDUCTIONS:
        return x.scatter_reduce(axis, at, i[2], _REDUCTIONS[reduction])
    return x.scatter_add(axis, at, i[2]) if reduction == "add" else x.scatter(axis, at, i[2])


def _top(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor, ...]:
    count = ints(i[1])[0] if len(i) > 1 else a["k"]
    axis = a.get("axis", -1)
    # of equal ones the first, as ONNX has it
    found = torch.sort(i[0], dim=axis, descending=bool(a.get("largest", 1)), stable=True)
    return tuple(value.narrow(axis, 0, count) for value in found)


def _one_hot(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    (depth,), (off, on), axis = ints(i[1]), i[2], a.get("axis", -1)
    chosen = _from_start(i[0], depth)[..., None] == torch.arange(depth, device=i[0].device)
    return torch.where(chosen, on, off).movedim(-1, axis)


def _compress(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, axis = (i[0], a["axis"]) if "axis" in a else (i[0].reshape(-1), 0)
    return x.index_select(axis, i[1].nonzero().reshape(-1))


SELECTION: Mapping[str, Op] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "TopK": _top,
    "OneHot": _one_hot,
    "Compress": _compress,
}
