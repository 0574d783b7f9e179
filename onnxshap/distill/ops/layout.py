"""Ops that move numbers, and compute none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxshap.distill.ops.base import OUTPUTS, Op, ints, listed, padded, plain
from onnxshap.graph import array


def _reshape(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    sizes = ints(i[1])
    if not a.get("allowzero", 0):
        sizes = [i[0].shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return i[0].reshape(sizes)


def _flatten(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis = a.get("axis", 1)
    axis += i[0].ndim if axis < 0 else 0  # it may be their number, which the remainder of it is not
    return i[0].reshape(int(np.prod(i[0].shape[:axis])), -1)


def _unsqueeze(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, axes = i[0], listed(i, a, 1, "axes") or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axes = listed(i, a, 1, "axes")
    return i[0].squeeze() if axes is None else i[0].squeeze(axes)


def _slice(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x = i[0]
    starts, ends = (ints(i[k]) if len(i) > k else list(a[key]) for k, key in ((1, "starts"), (2, "ends")))
    axes = listed(i, a, 3, "axes") or range(len(starts))
    steps = ints(i[4]) if len(i) > 4 and i[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.long, device=x.device))
    return x


def _split(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor, ...]:
    axis, x = a.get("axis", 0), i[0]
    sizes = listed(i, a, 1, "split")
    if sizes is None:
        count = a.get("num_outputs", a[OUTPUTS])
        size = -(-x.shape[axis] // count)
        sizes = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    return tuple(x.split(sizes, axis))


def _pad(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, given = i[0], ints(i[1]) if len(i) > 1 else list(a["pads"])
    axes = listed(i, a, 3, "axes")
    half = len(given) // 2
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for axis, before, after in zip(range(x.ndim) if axes is None else axes, given[:half], given[half:], strict=True):
        begins[axis], ends[axis] = before, after
    mode = a.get("mode", "constant")
    if mode == "constant":
        return padded(
            x, begins + ends, float(i[2].detach()) if len(i) > 2 and i[2] is not None else a.get("value", 0.0)
        )
    for axis, (before, after) in enumerate(zip(begins, ends, strict=True)):
        if before or after:
            inside = np.arange(max(0, -before), x.shape[axis] - max(0, -after))
            read = np.pad(inside, (max(0, before), max(0, after)), mode=mode)
            x = x.index_select(axis, torch.from_numpy(read).to(x.device))
    return x


def _expand(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    return i[0].expand(torch.broadcast_shapes(i[0].shape, ints(i[1])))


def _triangle(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    run = torch.triu if a.get("upper", 1) else torch.tril
    return run(i[0], ints(i[1])[0] if len(i) > 1 and i[1] is not None else 0)


LAYOUT: Mapping[str, Op] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda i, a: i[0].permute(a.get("perm", list(reversed(range(i[0].ndim))))),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]),
    "Expand": _expand,
    "Tile": lambda i, a: i[0].repeat(ints(i[1])),
    "Shape": lambda i, a: torch.tensor(i[0].shape, device=i[0].device)[slice(a.get("start", 0), a.get("end"))],
    "Identity": lambda i, a: i[0],
    "Dropout": lambda i, a: i[0],
    "Where": plain(torch.where),
    "Trilu": _triangle,
    "Range": lambda i, a: torch.arange(i[0].item(), i[1].item(), i[2].item(), dtype=i[0].dtype, device=i[0].device),
    "Size": lambda i, a: torch.tensor(i[0].numel(), device=i[0].device),
    "ConstantOfShape": lambda i, a: torch.full(
        ints(i[0]), array(a["value"]).item() if "value" in a else 0.0, device=i[0].device
    ),
}
