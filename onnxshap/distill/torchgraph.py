"""An ONNX model as a differentiable torch function: a table from op to function.

Needs the extra `onnxshap[distill]`. What the table gives is compared with
onnxruntime before anything is trained (`tuner`): an op that is not in it, or not in this form, is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from onnx import ModelProto, NodeProto, helper
from torch import Tensor

from onnxshap.core import Array
from onnxshap.errors import ModelError
from onnxshap.graph import array, attributes, is_op
from onnxshap.graph.loops import closed
from onnxshap.graph.structure import order

Op = Callable[[Sequence[Any], Mapping[str, Any]], Any]
CPU = torch.device("cpu")
_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _ints(value: Tensor) -> list[int]:
    return [int(v) for v in value.reshape(-1).tolist()]


def _pads(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the trailing axes of x by ONNX's (begins..., ends...)."""
    half = len(pads) // 2
    if not any(pads):
        return x
    turned = [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]
    return F.pad(x, turned, value=value)


def _unknown(what: str) -> ModelError:
    """Return the refusal of what torch does not compute as onnxruntime does, or this table does not know."""
    return ModelError(f"distill cannot evaluate {what}; use --repair lstsq")


def _window(x: Tensor, a: Mapping[str, Any], kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return strides, dilations and explicit pads of a Conv or pool."""
    rank = len(kernel)
    strides, dilations = list(a.get("strides", [1] * rank)), list(a.get("dilations", [1] * rank))
    mode = a.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return strides, dilations, list(a.get("pads", [0] * 2 * rank))
    totals = [0] * rank
    if mode != "VALID":
        for k, (size, s, d, w) in enumerate(zip(x.shape[2:], strides, dilations, kernel, strict=True)):
            totals[k] = max(0, (-(-size // s) - 1) * s + (w - 1) * d + 1 - size)
    begins = [(t + (mode == "SAME_LOWER")) // 2 for t in totals]
    return strides, dilations, begins + [t - b for t, b in zip(totals, begins, strict=True)]


def _conv(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, w, bias = i[0], i[1], i[2] if len(i) > 2 else None
    strides, dilations, pads = _window(x, a, w.shape[2:])
    rank = len(strides)
    padding: list[int] | int = 0
    if pads[:rank] == pads[rank:]:
        padding = pads[:rank]
    else:
        x = _pads(x, pads)
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(x, w, bias, strides, padding, dilations, int(a.get("group", 1)))


def _conv_transpose(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, w, bias = i[0], i[1], i[2] if len(i) > 2 else None
    rank = w.ndim - 2
    pads = list(a.get("pads", [0] * 2 * rank))
    if a.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in a or pads[:rank] != pads[rank:]:
        raise _unknown("ConvTranspose with automatic or uneven padding")
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return run(
        x, w, bias, list(a.get("strides", [1] * rank)), pads[:rank], list(a.get("output_padding", [0] * rank)),
        int(a.get("group", 1)), list(a.get("dilations", [1] * rank)),
    )  # fmt: skip


def _gemm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x = i[0].T if a.get("transA", 0) else i[0]
    w = i[1].T if a.get("transB", 0) else i[1]
    y = a.get("alpha", 1.0) * (x @ w)
    return y if len(i) < 3 or i[2] is None else y + a.get("beta", 1.0) * i[2]


def _batch_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, scale, shift, mean, variance = i[:5]
    # statistics are no weights: scale and shift do all that they could, and a variance must not fall below zero
    return F.batch_norm(x, mean.detach(), variance.detach(), scale, shift, False, 0.0, a.get("epsilon", 1e-5))


def _max_pool(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    kernel = list(a["kernel_shape"])
    strides, dilations, pads = _window(i[0], a, kernel)
    x = _pads(i[0], pads, -torch.inf)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return run(x, kernel, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def _average_pool(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    kernel = list(a["kernel_shape"])
    strides, _, pads = _window(i[0], a, kernel)
    run: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(a.get("ceil_mode", 0))
    total = run(_pads(i[0], pads), kernel, strides, 0, ceil)
    if a.get("count_include_pad", 0) or not any(pads):
        return total
    return total / run(_pads(torch.ones_like(i[0]), pads), kernel, strides, 0, ceil)


def _axes(i: Sequence[Any], a: Mapping[str, Any]) -> list[int] | None:
    if len(i) > 1 and i[1] is not None:
        return _ints(i[1])
    return list(a["axes"]) if "axes" in a else None


def _reduced(run: Callable[..., Tensor]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
        axes = _axes(i, a)
        if axes is None and a.get("noop_with_empty_axes", 0):
            return i[0]
        return run(i[0], dim=axes if axes is not None else list(range(i[0].ndim)), keepdim=bool(a.get("keepdims", 1)))

    return op


def _reshape(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    sizes = _ints(i[1])
    if not a.get("allowzero", 0):
        sizes = [i[0].shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return i[0].reshape(sizes)


def _flatten(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis = a.get("axis", 1) % (i[0].ndim + 1)
    return i[0].reshape(int(np.prod(i[0].shape[:axis])), -1)


def _unsqueeze(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, axes = i[0], _axes(i, a) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axes = _axes(i, a)
    return i[0].squeeze() if axes is None else i[0].squeeze(axes)


def _slice(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x = i[0]
    starts, ends = (_ints(i[k]) if len(i) > k else list(a[key]) for k, key in ((1, "starts"), (2, "ends")))
    axes = _ints(i[3]) if len(i) > 3 and i[3] is not None else list(a.get("axes", range(len(starts))))
    steps = _ints(i[4]) if len(i) > 4 and i[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.long, device=x.device))
    return x


def _split(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor, ...]:
    axis, x = a.get("axis", 0), i[0]
    if len(i) > 1 and i[1] is not None:
        sizes = _ints(i[1])
    elif "split" in a:
        sizes = list(a["split"])
    else:
        count = a.get("num_outputs", a["_outputs"])
        size = -(-x.shape[axis] // count)
        sizes = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    return tuple(x.split(sizes, axis))


def _pad(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    pads = _ints(i[1]) if len(i) > 1 else list(a["pads"])
    if a.get("mode", "constant") != "constant" or (len(i) > 3 and i[3] is not None):
        raise _unknown("Pad other than with a constant on all axes")
    value = float(i[2].detach()) if len(i) > 2 and i[2] is not None else a.get("value", 0.0)
    return _pads(i[0], pads, value)


def _resize(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    x, mode = i[0], a.get("mode", "nearest")
    scales = i[2] if len(i) > 2 else i[1]
    sizes = _ints(i[3])[2:] if len(i) > 3 and i[3] is not None else None
    if sizes is None:
        sizes = [int(size * scale) for size, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    transform = a.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        whole = all(new % old == 0 for new, old in zip(sizes, x.shape[2:], strict=True))
        if not whole or a.get("nearest_mode", "round_prefer_floor") == "ceil":
            raise _unknown("Resize of mode nearest by a factor that is not whole")
        return F.interpolate(x, sizes, mode="nearest")
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners") or x.ndim != 4:
        raise _unknown(f"Resize with {transform}")
    return F.interpolate(x, sizes, mode=_MODES[mode], align_corners=transform == "align_corners")


def _clip(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    low = i[1] if len(i) > 1 else a.get("min")
    high = i[2] if len(i) > 2 else a.get("max")
    low, high = (value.item() if isinstance(value, Tensor) else value for value in (low, high))
    return clipped(i[0], -math.inf if low is None else low, math.inf if high is None else high)


def clipped(x: Tensor, low: float, high: float) -> Tensor:
    """Return x between two bounds, by ops whose gradient is one pass (that of `torch.clamp` is four)."""
    if not x.is_floating_point():
        return torch.clamp(x, *(None if math.isinf(bound) else bound for bound in (low, high)))
    if high == math.inf:
        return x if low == -math.inf else F.relu(x) if low == 0 else F.threshold(x, low, low)
    return F.hardtanh(x, low, high) if low <= high else torch.full_like(x, high)


def _layer_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    shape = i[0].shape[a.get("axis", -1) % i[0].ndim :]
    bias = i[2] if len(i) > 2 else None
    return F.layer_norm(i[0], shape, i[1], bias, a.get("epsilon", 1e-5))


def _gather(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis, index = a.get("axis", 0) % i[0].ndim, i[1].long()
    index = torch.where(index < 0, index + i[0].shape[axis], index)
    picked = i[0].index_select(axis, index.reshape(-1))
    return picked.reshape([*i[0].shape[:axis], *index.shape, *i[0].shape[axis + 1 :]])


def _softmax(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    return torch.softmax(i[0], a.get("axis", -1))


def _depth_to_space(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    n, c, h, w = i[0].shape
    b = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(i[0], b)
    return i[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _cast(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(a["to"])
    return i[0].to(torch.from_numpy(np.zeros(0, kind)).dtype)


def _expand(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    return i[0].expand(torch.broadcast_shapes(i[0].shape, _ints(i[1])))


def _extreme(run: Callable[..., Tensor]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
        if a.get("select_last_index", 0):
            raise _unknown("ArgMax or ArgMin of the last index")
        return run(i[0], dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))

    return op


def _cumulated(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis = _ints(i[1])[0]
    x = i[0].flip(axis) if a.get("reverse", 0) else i[0]
    total = x.cumsum(axis) - (x if a.get("exclusive", 0) else 0)
    return total.flip(axis) if a.get("reverse", 0) else total


def _picked(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axis, index = a.get("axis", 0), i[1].long()
    return torch.gather(i[0], axis, torch.where(index < 0, index + i[0].shape[axis], index))


def _space_to_depth(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    n, c, h, w = i[0].shape
    b = a["blocksize"]
    return i[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _triangle(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    run = torch.triu if a.get("upper", 1) else torch.tril
    return run(i[0], _ints(i[1])[0] if len(i) > 1 and i[1] is not None else 0)


def _group_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    scale, shift = (value.repeat_interleave(i[0].shape[1] // len(value)) for value in i[1:3])  # one a group, before 21
    return F.group_norm(i[0], a["num_groups"], scale, shift, a.get("epsilon", 1e-5))


def _rms_norm(i: Sequence[Any], a: Mapping[str, Any]) -> Tensor:
    axes = list(range(a.get("axis", -1) % i[0].ndim, i[0].ndim))
    return i[0] * torch.rsqrt(i[0].square().mean(axes, keepdim=True) + a.get("epsilon", 1e-5)) * i[1]


_GATES: Mapping[str, tuple[Any, list[int]]] = {
    "LSTM": (torch.lstm, [0, 2, 3, 1]), "GRU": (torch.gru, [1, 0, 2]), "RNN": (torch.rnn_tanh, [0])
}  # fmt: skip
"""Recurrent op -> torch's, and the places of torch's gates among ONNX's."""


def _recurrent(kind: str) -> Op:
    run, places = _GATES[kind]

    def gates(value: Tensor) -> Tensor:
        """Return [gates x hidden, ...] in torch's order of gates."""
        return torch.cat([value.chunk(len(places))[k] for k in places])

    def op(i: Sequence[Any], a: Mapping[str, Any]) -> tuple[Tensor, ...]:
        padded: list[Any] = [*i] + [None] * (7 - len(i))
        x, w, r, bias, lengths, *states = padded
        odd = {"activations", "activation_alpha", "activation_beta", "clip"} & set(a) or a.get("input_forget", 0)
        reverse = a.get("direction", "forward") == "reverse"
        if odd or lengths is not None or len(i) > 7 or a.get("layout", 0):
            raise _unknown(f"{kind} of another form than torch's")
        ways, hidden = r.shape[0], r.shape[2]
        bias = x.new_zeros(ways, 2 * w.shape[1]) if bias is None else bias
        flat = []
        for way in range(ways):
            sides = bias[way].chunk(2)
            flat += [gates(w[way]), gates(r[way]), *(gates(side) for side in sides)]
        start = [x.new_zeros(ways, x.shape[1], hidden) if state is None else state for state in states[:2]]
        if kind == "GRU" and not a.get("linear_before_reset", 0):
            return _gru(x, w, r, bias, start[0], [reverse] if ways == 1 else [False, True])
        given: Any = tuple(start) if kind == "LSTM" else start[0]
        y, *last = run(x.flip(0) if reverse else x, given, flat, True, 1, 0.0, False, ways == 2, False)
        y = y.reshape(*y.shape[:2], ways, hidden).permute(0, 2, 1, 3)
        return (y.flip(0) if reverse else y, *last)

    return op


def _gru(x: Tensor, w: Tensor, r: Tensor, bias: Tensor, start: Tensor, turned: Sequence[bool]) -> tuple[Tensor, ...]:
    """Return what a GRU gives that resets its state before the multiplication, step by step: torch has none."""
    ways, last = [], []
    for way, backwards in enumerate(turned):
        of_input, of_state = bias[way].chunk(2)
        update, reset, new = (x @ w[way].T + of_input).chunk(3, dim=2)
        gates, of_gates = r[way].chunk(3), of_state.chunk(3)
        h, steps = start[way], []
        for k in reversed(range(len(x))) if backwards else range(len(x)):
            z, q = (torch.sigmoid(g[k] + h @ gates[n].T + of_gates[n]) for n, g in enumerate((update, reset)))
            h = (1 - z) * torch.tanh(new[k] + (q * h) @ gates[2].T + of_gates[2]) + z * h
            steps.append(h)
        ways.append(torch.stack(steps[::-1] if backwards else steps))
        last.append(h)
    return torch.stack(ways, dim=1), torch.stack(last)


def _plain(run: Callable[..., Any]) -> Op:
    return lambda i, a: run(*i)


def _folded(run: Callable[[Any, Any], Any]) -> Op:
    def op(i: Sequence[Any], a: Mapping[str, Any]) -> Any:
        total = i[0]
        for value in i[1:]:
            total = run(total, value)
        return total

    return op


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPS: Mapping[str, Op] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _plain(torch.matmul),
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda i, a: F.instance_norm(i[0], None, None, i[1], i[2], eps=a.get("epsilon", 1e-5)),
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": lambda i, a: i[0].mean(dim=list(range(2, i[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda i, a: i[0].amax(dim=list(range(2, i[0].ndim)), keepdim=True),
    "ReduceMean": _reduced(torch.mean), "ReduceSum": _reduced(torch.sum), "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin),
    "ReduceL1": _reduced(lambda x, dim, keepdim: x.abs().sum(dim=dim, keepdim=keepdim)),
    "ReduceSumSquare": _reduced(lambda x, dim, keepdim: x.square().sum(dim=dim, keepdim=keepdim)),
    "ReduceLogSumExp": _reduced(torch.logsumexp),
    "ReduceL2": _reduced(lambda x, dim, keepdim: torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)),
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul), "Div": _plain(_div),
    "Pow": _plain(torch.pow), "Max": _folded(torch.maximum), "Min": _folded(torch.minimum), "Sum": _folded(torch.add),
    "Relu": _plain(F.relu), "Sigmoid": _plain(torch.sigmoid), "Tanh": _plain(torch.tanh), "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp), "Log": _plain(torch.log), "Sqrt": _plain(torch.sqrt), "Abs": _plain(torch.abs),
    "Neg": _plain(torch.neg), "Reciprocal": _plain(torch.reciprocal), "Softplus": _plain(F.softplus),
    "Clip": _clip, "PRelu": _plain(lambda x, s: torch.where(x < 0, x * s, x)),
    "LeakyRelu": lambda i, a: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Elu": lambda i, a: F.elu(i[0], a.get("alpha", 1.0)),
    "HardSigmoid": lambda i, a: torch.clamp(a.get("alpha", 0.2) * i[0] + a.get("beta", 0.5), 0, 1),
    "HardSwish": _plain(F.hardswish), "Mish": _plain(F.mish),
    "Gelu": lambda i, a: F.gelu(i[0], approximate=a.get("approximate", "none")),
    "Softmax": _softmax, "LogSoftmax": lambda i, a: torch.log_softmax(i[0], a.get("axis", -1)),
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": lambda i, a: i[0].permute(
        a.get("perm", list(reversed(range(i[0].ndim))))
    ),
    "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Slice": _slice, "Split": _split, "Pad": _pad, "Resize": _resize,
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]), "Gather": _gather, "Expand": _expand,
    "Tile": lambda i, a: i[0].repeat(_ints(i[1])), "DepthToSpace": _depth_to_space, "Cast": _cast,
    "Shape": lambda i, a: torch.tensor(i[0].shape, device=i[0].device)[slice(a.get("start", 0), a.get("end"))],
    "Identity": lambda i, a: i[0], "Dropout": lambda i, a: i[0], "Where": _plain(torch.where),
    "Equal": _plain(torch.eq), "Less": _plain(torch.lt), "LessOrEqual": _plain(torch.le),
    "Greater": _plain(torch.gt), "GreaterOrEqual": _plain(torch.ge), "IsNaN": _plain(torch.isnan),
    "And": _plain(torch.logical_and), "Or": _plain(torch.logical_or), "Not": _plain(torch.logical_not),
    "Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil), "Round": _plain(torch.round), "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin), "Cos": _plain(torch.cos), "Softsign": _plain(F.softsign),
    "Selu": lambda i, a: a.get("gamma", 1.0507009873554805) * F.elu(i[0], a.get("alpha", 1.6732632423543772)),
    "Celu": lambda i, a: F.celu(i[0], a.get("alpha", 1.0)),
    "ThresholdedRelu": lambda i, a: torch.where(i[0] > a.get("alpha", 1.0), i[0], torch.zeros_like(i[0])),
    "ArgMax": _extreme(torch.argmax), "ArgMin": _extreme(torch.argmin), "CumSum": _cumulated,
    "GatherElements": _picked, "SpaceToDepth": _space_to_depth, "Trilu": _triangle,
    "Range": lambda i, a: torch.arange(
        i[0].item(), i[1].item(), i[2].item(), dtype=i[0].dtype, device=i[0].device
    ),
    "Size": lambda i, a: torch.tensor(i[0].numel(), device=i[0].device),
    "Swish": lambda i, a: i[0] * torch.sigmoid(a.get("alpha", 1.0) * i[0]),
    "LSTM": _recurrent("LSTM"), "GRU": _recurrent("GRU"), "RNN": _recurrent("RNN"),
    "GroupNormalization": _group_norm, "RMSNormalization": _rms_norm, "ConstantOfShape": lambda i, a: torch.full(
        _ints(i[0]), array(a["value"]).item() if "value" in a else 0.0, device=i[0].device
    ),
    "Einsum": lambda i, a: torch.einsum(a["equation"], *i),
}  # fmt: skip
"""ONNX op -> function of its inputs (None where left out) and attributes."""


def laid_out(value: Tensor) -> Tensor:
    """Return a tensor, on a CPU channels last in memory where it may be of images: faster there by .1 to .4."""
    images = value.ndim == 4 and value.device == CPU
    return value.contiguous(memory_format=torch.channels_last) if images else value


class TorchGraph:
    """The model as a function of its weights: calling it takes inputs by name and gives tensors by name.

    Raises:
        ModelError: an op is not in the table.
    """

    def __init__(self, model: ModelProto, same: Mapping[str, str] | None = None, device: torch.device = CPU) -> None:
        """Take the initializers over: those of float32 as `weights`, by place in `names`; `same` ones are others.

        All are on one device, and so have to be the inputs.
        """
        nodes = list(closed(model).graph.node)
        places = order(nodes)  # what frees the batch stands at their end
        self.nodes: list[NodeProto] = nodes if places is None else [nodes[k] for k in places]
        for node in self.nodes:
            if not is_op(node, *OPS):
                raise ModelError(
                    f"node {node.name or node.output[0]!r}: distill cannot evaluate {node.op_type}; use --repair lstsq"
                )
        values = {t.name: array(t) for t in model.graph.initializer}
        self._same = {name: other for name, other in (same or {}).items() if values[name].dtype == np.float32}
        self.names = [n for n, value in values.items() if value.dtype == np.float32 and n not in self._same]
        self.weights = [laid_out(torch.from_numpy(values[n].copy()).to(device)).requires_grad_() for n in self.names]
        self.constants = {n: torch.from_numpy(v.copy()).to(device) for n, v in values.items() if v.dtype != np.float32}
        self.attributes = [{**attributes(node), "_outputs": len(node.output)} for node in self.nodes]

    def __call__(self, feeds: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """Return the tensors wanted."""
        known: dict[str, Any] = {**self.constants, **dict(zip(self.names, self.weights, strict=True)), **feeds}
        known |= {name: known[other] for name, other in self._same.items()}
        for node, given in zip(self.nodes, self.attributes, strict=True):
            found = OPS[node.op_type]([known[n] if n else None for n in node.input], given)
            outputs = found if isinstance(found, tuple) else (found,)
            known.update(zip(node.output, outputs, strict=False))
        return [known[n] for n in wanted]

    def arrays(self) -> dict[str, Array]:
        """Return the parameters by initializer name."""
        found = {n: w.detach().cpu().numpy().copy() for n, w in zip(self.names, self.weights, strict=True)}
        return found | {name: found[other] for name, other in self._same.items()}
