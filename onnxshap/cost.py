"""Multiply-accumulates, parameters and weight bytes as functions of what stays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from onnxshap.labels import Labels, Liveness
from onnxshap.shapes import Shaped

_NOT_WEIGHTS = frozenset({TensorProto.BOOL, TensorProto.STRING, TensorProto.INT16, TensorProto.UINT16})
_NOT_WEIGHTS |= {TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64}
_HALF_BYTES = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})


@dataclass(frozen=True)
class _Block:
    """A dense block whose size is the product of the live widths of its axes."""

    axes: tuple[tuple[str, int, int], ...]
    factor: float

    def size(self, live: Liveness | None) -> float:
        widths = (size if live is None else live.width(tensor, axis, size) for tensor, axis, size in self.axes)
        return self.factor * math.prod(widths)


@dataclass(frozen=True)
class Cost:
    """What a plan costs; `None` = the whole model.

    MACs are those of Conv, ConvTranspose, Gemm and MatMul, one input image; parameters are the elements of constants
    that are floats or codes of at most 8 bits; bytes are those of all constants.
    """

    _macs: tuple[_Block, ...]
    _params: tuple[_Block, ...]
    _bytes: tuple[_Block, ...]

    def macs(self, live: Liveness | None = None) -> int:
        """Return multiply-accumulates per image."""
        return round(sum(block.size(live) for block in self._macs))

    def params(self, live: Liveness | None = None) -> int:
        """Return the number of parameters."""
        return round(sum(block.size(live) for block in self._params))

    def bytes(self, live: Liveness | None = None) -> int:
        """Return the bytes of all constants."""
        return round(sum(block.size(live) for block in self._bytes))


def cost_of(shaped: Shaped, labels: Labels) -> Cost:
    """Return the cost functions of a graph at the shapes it was traced at."""
    batch = next((shape[0] for shape in shaped.inputs.values() if shape), 1)

    def block(axes: tuple[tuple[str, int], ...], factor: float) -> _Block:
        return _Block(tuple((t, a, shaped.shapes[t][a]) for t, a in axes), factor)

    macs = tuple(block(axes, 1 / batch) for axes in labels.trace.macs)
    params, size = [], []
    generated = [(n.output[0], shaped.kinds.get(n.output[0], 1)) for n in shaped.graph.nodes
                 if n.op_type == "ConstantOfShape" and n.output[0] in shaped.constants]  # fmt: skip
    for name, kind in [*((t.name, t.data_type) for t in shaped.graph.model.graph.initializer), *generated]:
        axes = tuple((name, axis) for axis in range(len(shaped.shapes[name])))
        itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
        size.append(block(axes, 0.5 if kind in _HALF_BYTES else itemsize))
        if kind not in _NOT_WEIGHTS:
            params.append(block(axes, 1))
    return Cost(macs, tuple(params), tuple(size))
