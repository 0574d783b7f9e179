"""Ops that compute, number by number or along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from onnx import helper
from torch import Tensor

from onnxshap.distill.ops.base import OPSET, Op, clipped, ints, listed, plain, unknown


def _gemm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x = i[0].T if a.get("transA", 0) else i[0]
    w = i[1].T if a.get("transB", 0) else i[1]
    y = a.get("alpha", 1.0) * (x @ w)
    return y if len(i) < 3 or i[2] is None else y + a.get("beta", 1.0) * i[2]


def _batch_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, scale, shift, mean, variance = i[:5]
    # statistics are no weights: scale and shift do all that they could, and a variance must not fall below zero
    return F.batch_norm(x, mean.detach(), variance.detach(), scale, shift, False, 0.0, a.get("epsilon", 1e-5))


def _reduced(run: Callable[..., Tensor]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
        x, axes, keep = i[0], listed(i, a, 1, "axes"), bool(a.get("keepdims", 1))
        if not axes and a.get("noop_with_empty_axes", 0):
            x, axes, keep = x[..., None], [-1], False  # each number alone
        return run(x, dim=axes or list(range(x.ndim)), keepdim=keep).to(x.dtype)

    return op


def _clip(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    low = i[1] if len(i) > 1 else a.get("min")
    high = i[2] if len(i) > 2 else a.get("max")
    low, high = (value.item() if isinstance(value, Tensor) else value for value in (low, high))
    return clipped(i[0], -math.inf if low is None else low, math.inf if high is None else high)


def _layer_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    shape = i[0].shape[a.get("axis", -1) % i[0].ndim :]
    bias = i[2] if len(i) > 2 else None
    return F.layer_norm(i[0], shape, i[1], bias, a.get("epsilon", 1e-5))


def _scored(run: Callable[..., Tensor]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
        x = i[0]
        if a[OPSET] >= 13:
            return run(x, a.get("axis", -1))
        return run(x.flatten(a.get("axis", 1)), -1).reshape(x.shape)  # all axes from one on were one

    return op


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _product(x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in dim), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _infinite(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    below, above = torch.isneginf(i[0]), torch.isposinf(i[0])
    return below * bool(a.get("detect_negative", 1)) | above * bool(a.get("detect_positive", 1))


def _shrink(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, bias, edge = i[0], a.get("bias", 0.0), a.get("lambd", 0.5)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))


def _cast(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(a["to"])
    return i[0].to(torch.from_numpy(np.zeros(0, kind)).dtype)


def _extreme(run: Callable[..., Tensor]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
        if a.get("select_last_index", 0):
            raise unknown("ArgMax or ArgMin of the last index")
        return run(i[0], dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))

    return op


def _cumulated(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis = ints(i[1])[0]
    x = i[0].flip(axis) if a.get("reverse", 0) else i[0]
    total = x.cumsum(axis) - (x if a.get("exclusive", 0) else 0)
    return total.flip(axis) if a.get("reverse", 0) else total


def _group_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    scale, shift = (value.repeat_interleave(i[0].shape[1] // len(value)) for value in i[1:3])  # one a group, before 21
    return F.group_norm(i[0], a["num_groups"], scale, shift, a.get("epsilon", 1e-5))


def rms_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    """Return inputs over their root mean square over the axes from one on, scaled."""
    axes = list(range(a.get("axis", -1) % i[0].ndim, i[0].ndim))
    return i[0] * torch.rsqrt(i[0].square().mean(axes, keepdim=True) + a.get("epsilon", 1e-5)) * i[1]


def _folded(run: Callable[[Any, Any], Any]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Any:
        total = i[0]
        for value in i[1:]:
            total = run(total, value)
        return total

    return op


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


NUMBERS: Mapping[str, Op] = {
    "Gemm": _gemm,
    "MatMul": plain(torch.matmul),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda i, a: F.instance_norm(i[0], None, None, i[1], i[2], eps=a.get("epsilon", 1e-5)),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin),
    "ReduceL1": _reduced(lambda x, dim, keepdim: x.abs().sum(dim=dim, keepdim=keepdim)),
    "ReduceSumSquare": _reduced(lambda x, dim, keepdim: x.square().sum(dim=dim, keepdim=keepdim)),
    "ReduceProd": _reduced(_product),
    "ReduceLogSum": _reduced(lambda x, dim, keepdim: x.sum(dim=dim, keepdim=keepdim).log()),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceL2": _reduced(lambda x, dim, keepdim: torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)),
    "Add": plain(torch.add),
    "Sub": plain(torch.sub),
    "Mul": plain(torch.mul),
    "Div": plain(_div),
    "Pow": plain(torch.pow),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Sum": _folded(torch.add),
    "Mean": lambda i, a: _folded(torch.add)(i, a) / len(i),
    "Mod": lambda i, a: (torch.fmod if a.get("fmod", 0) else torch.remainder)(i[0], i[1]),
    "Relu": plain(F.relu),
    "Sigmoid": plain(torch.sigmoid),
    "Tanh": plain(torch.tanh),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Log": plain(torch.log),
    "Sqrt": plain(torch.sqrt),
    "Abs": plain(torch.abs),
    "Neg": plain(torch.neg),
    "Reciprocal": plain(torch.reciprocal),
    "Softplus": plain(F.softplus),
    "Clip": _clip,
    "PRelu": plain(lambda x, s: torch.where(x < 0, x * s, x)),
    "LeakyRelu": lambda i, a: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Elu": lambda i, a: F.elu(i[0], a.get("alpha", 1.0)),
    "HardSigmoid": lambda i, a: torch.clamp(a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5), 0, 1),
    "HardSwish": plain(F.hardswish),
    "Mish": plain(F.mish),
    "Gelu": lambda i, a: F.gelu(i[0], approximate=a.get("approximate", "none")),
    "Softmax": _scored(torch.softmax),
    "LogSoftmax": _scored(torch.log_softmax),
    "Hardmax": _scored(_hardmax),
    "Cast": _cast,
    "CastLike": lambda i, a: i[0].to(i[1].dtype),
    "Equal": plain(torch.eq),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "IsNaN": plain(torch.isnan),
    "IsInf": _infinite,
    "And": plain(torch.logical_and),
    "Or": plain(torch.logical_or),
    "Xor": plain(torch.logical_xor),
    "BitwiseAnd": plain(torch.bitwise_and),
    "BitwiseOr": plain(torch.bitwise_or),
    "BitwiseXor": plain(torch.bitwise_xor),
    "BitwiseNot": plain(torch.bitwise_not),
    "Not": plain(torch.logical_not),
    "Floor": plain(torch.floor),
    "Ceil": plain(torch.ceil),
    "Round": plain(torch.round),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Cos": plain(torch.cos),
    "Tan": plain(torch.tan),
    "Asin": plain(torch.asin),
    "Acos": plain(torch.acos),
    "Atan": plain(torch.atan),
    "Sinh": plain(torch.sinh),
    "Cosh": plain(torch.cosh),
    "Asinh": plain(torch.asinh),
    "Acosh": plain(torch.acosh),
    "Atanh": plain(torch.atanh),
    "Softsign": plain(F.softsign),
    "Selu": lambda i, a: a.get("gamma", 1.0507009873554805) * F.elu(i[0], a.get("alpha", 1.6732632423543772)),
    "Celu": lambda i, a: F.celu(i[0], a.get("alpha", 1.0)),
    "Shrink": _shrink,
    "LpNormalization": lambda i, a: F.normalize(i[0], p=a.get("p", 2), dim=a.get("axis", -1)),
    "ThresholdedRelu": lambda i, a: torch.where(i[0] > a.get("alpha", 1.0), i[0], torch.zeros_like(i[0])),
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "CumSum": _cumulated,
    "Swish": lambda i, a: i[0] * torch.sigmoid(a.get("alpha", 1.0) * i[0]),
    "GroupNormalization": _group_norm,
    "RMSNormalization": rms_norm,
    "SimplifiedLayerNormalization": rms_norm,
    "Einsum": lambda i, a: torch.einsum(a["equation"], *i),
}
