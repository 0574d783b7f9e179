"""Multiply-accumulates, parameters and weight bytes as functions of what stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from onnxshap.core import FloatArray
from onnxshap.labels import AxisKey, Labels, Liveness
from onnxshap.shapes import Shaped

_NOT_WEIGHTS = frozenset({TensorProto.BOOL, TensorProto.STRING, TensorProto.INT16, TensorProto.UINT16})
_NOT_WEIGHTS |= {TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64}
_HALF_BYTES = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})


@dataclass(frozen=True)
class _Widths:
    """The axes that can be cut, axes that are alike once: how many of their positions stay."""

    classes: NDArray[np.int32]
    starts: NDArray[np.intp]

    def __call__(self, live: Liveness | None) -> FloatArray:
        """Return float64[n_axes + 1]; the last is 1, for blocks of fewer axes."""
        stays = np.ones(len(self.classes)) if live is None else live.classes[self.classes].astype(np.float64)
        return np.append(np.add.reduceat(stays, self.starts) if len(self.starts) else [], 1.0)


@dataclass(frozen=True)
class _Blocks:
    """Dense blocks whose sizes are products of live widths: float64[n] factors, int[n, k] places of the widths."""

    factors: FloatArray
    axes: NDArray[np.intp]

    def size(self, widths: FloatArray) -> int:
        return round(float(self.factors @ widths[self.axes].prod(axis=1)))


@dataclass(frozen=True)
class Cost:
    """What a plan costs; `None` = the whole model.

    MACs are those of Conv, ConvTranspose, Gemm and MatMul, one input image; parameters are the elements of constants
    that are floats or codes of at most 8 bits; bytes are those of all constants. A constant that several nodes read
    counts once, if all that they lose is the same. Of an If, all bodies that are traced count, each as if it were
    taken; the body of a Loop or Scan as often as it ran when the shapes were found.
    """

    _widths: _Widths
    _macs: _Blocks
    _params: _Blocks
    _bytes: _Blocks

    def macs(self, live: Liveness | None = None) -> int:
        """Return multiply-accumulates per image."""
        return self._macs.size(self._widths(live))

    def params(self, live: Liveness | None = None) -> int:
        """Return the number of parameters."""
        return self._params.size(self._widths(live))

    def bytes(self, live: Liveness | None = None) -> int:
        """Return the bytes of all constants."""
        return self._bytes.size(self._widths(live))


def cost_of(shaped: Shaped, labels: Labels) -> Cost:
    """Return the cost functions of a graph at the shapes it was traced at."""
    places: dict[bytes, int] = {}
    found: list[NDArray[np.int32]] = []
    frozen = np.asarray((labels.slots < 0).all(axis=1))

    def place(tensor: str, axis: int) -> int | None:
        """Return the place of an axis among those that can be cut."""
        classes = labels.axis(tensor, axis)
        if classes is None or frozen[classes].all():
            return None
        if (key := classes.tobytes()) not in places:
            places[key] = len(found)
            found.append(classes)
        return places[key]

    def block(axes: Sequence[AxisKey]) -> tuple[int, list[int]]:
        """Return the size of the axes that stay whole, and the places of the others."""
        at = [(place(t, a), shaped.shapes[t][a]) for t, a in axes]
        return math.prod(size for k, size in at if k is None), [k for k, _ in at if k is not None]

    times = [shaped.times.get(node.output[0], 1) / shaped.batch for node in shaped.graph.nodes]
    macs = [(times[index] * size, at) for index, axes in labels.trace.macs for size, at in [block(axes)]]
    generated = [(n.output[0], shaped.kinds.get(n.output[0], 1)) for n in shaped.graph.nodes
                 if n.op_type == "ConstantOfShape" and n.output[0] in shaped.constants]  # fmt: skip
    found_once: dict[tuple[object, int, tuple[int, ...]], tuple[int, list[int], int]] = {}
    for name, kind in [*((t.name, t.data_type) for t in shaped.graph.model.graph.initializer), *generated]:
        whole, at = block([(name, axis) for axis in range(len(shaped.shapes[name]))])
        # copies of one initializer that are cut alike are one again in the file
        found_once[shaped.graph.sources.get(name, name), whole, tuple(at)] = whole, at, kind
    stored = list(found_once.values())
    params = [(float(size), at) for size, at, kind in stored if kind not in _NOT_WEIGHTS]
    size = [(_itemsize(kind) * whole, at) for whole, at, kind in stored]
    widest = max((len(at) for _, at in (*macs, *params, *size)), default=0)

    def table(rows: Sequence[tuple[float, list[int]]]) -> _Blocks:
        axes = np.full((len(rows), widest), len(found), np.intp)
        for row, (_, at) in zip(axes, rows, strict=True):
            row[: len(at)] = at
        return _Blocks(np.array([factor for factor, _ in rows], np.float64), axes)

    starts = np.cumsum([0, *map(len, found)])[:-1].astype(np.intp)
    widths = _Widths(np.concatenate([*found, np.empty(0, np.int32)]), starts)
    return Cost(widths, table(macs), table(params), table(size))


def parameters(model: ModelProto) -> int:
    """Return the numbers of a model's initializers that count as parameters."""
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type not in _NOT_WEIGHTS)


def _itemsize(kind: int) -> float:
    return 0.5 if kind in _HALF_BYTES else np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize
