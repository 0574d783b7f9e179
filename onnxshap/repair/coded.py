"""Weights and biases that a DequantizeLinear makes of codes: other values put in the place of those present.

Weights get the scales that codes miss them least by, and codes within the reach that those present have (7 of 8 bits
where that is what a file was quantised to). Codes of a bias are of the product of the scales of what its op reads and
of its weights, as runtimes take them that fuse all of it into one op: their scale changes as that of the weights does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from onnxshap.core import Array, FloatArray, IntArray
from onnxshap.graph import array, attributes, is_op
from onnxshap.graph.weights import as_stored

_BIAS = 2.0**31
"""Codes of a bias are below."""
_FILLED = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the scale with which the largest value is the last code, those tried: of few codes most would be 0 by that."""


@dataclass(frozen=True)
class Coded:
    """A constant as a DequantizeLinear makes it.

    Attributes:
        codes, scale: where they are stored.
        zero: the code of 0, as broadcast against the codes.
        axis: the one that scales lie along, where there are several.
        places: int64, of every value as it is read the number of its code; None where they lie alike.
    """

    codes: TensorProto
    scale: TensorProto
    zero: FloatArray
    axis: int
    places: IntArray | None = None

    @classmethod
    def of(cls, node: NodeProto | None, stored: Mapping[str, TensorProto]) -> Coded | None:
        """Return what a node makes of stored codes by one scale, or by one a position of an axis; None elsewhere."""
        if node is None or not is_op(node, "DequantizeLinear") or any(name not in stored for name in node.input):
            return None
        codes, scale = stored[node.input[0]], stored[node.input[1]]
        if len(scale.dims) > 1:
            return None
        axis = int(attributes(node).get("axis", 1)) % max(1, len(codes.dims))
        zero = array(stored[node.input[2]]).astype(np.float64) if len(node.input) > 2 else np.zeros(())
        return cls(codes, scale, _along(zero, axis, len(codes.dims)), axis)

    def refilled(self, values: FloatArray) -> tuple[Array, Array] | None:
        """Return codes and scales of other values, None where there are none within reach.

        Args:
            values: float64, as they are read.
        """
        old, kept = array(self.codes), array(self.scale)
        if self.places is not None:
            own = np.empty(old.size)
            own[self.places.ravel()] = values.ravel()
            values = own.reshape(old.shape)
        reach = np.abs(old - self.zero).max(initial=0.0)
        bounds = np.iinfo(old.dtype)
        low, high = np.maximum(bounds.min - self.zero, -reach), np.minimum(bounds.max - self.zero, reach)
        if not (np.isfinite(values).all() and (low < 0).all() and (high > 0).all()):
            return None
        needed = np.maximum(values / low, values / high)
        others = tuple(axis for axis in range(values.ndim) if axis != self.axis or kept.size == 1)
        wanted = needed.max(axis=others).reshape(kept.shape)
        unused = np.where(kept > 0, kept, 1.0)
        best, scale, codes = np.full(kept.shape, np.inf), kept, old
        for share in _FILLED:
            trial = as_stored(np.where(wanted > 0, share * wanted, unused), kept.dtype)
            if trial is None or not (trial > 0).all():
                return None
            steps = np.clip(np.rint(values / self._spread(trial, values.ndim)), low, high)
            missed = np.square(steps * self._spread(trial, values.ndim) - values).sum(axis=others).reshape(kept.shape)
            better = missed < best
            best, scale = np.where(better, missed, best), np.where(better, trial, scale)
            codes = np.where(self._spread(better, values.ndim) > 0, (steps + self.zero).astype(old.dtype), codes)
        return codes, scale

    def decoded(self, codes: Array, scale: Array) -> FloatArray:
        """Return the values of codes and scales, as they are read."""
        values = np.asarray((codes.astype(np.float64) - self.zero) * self._spread(scale, codes.ndim))
        return values if self.places is None else values.ravel()[self.places]

    def _spread(self, scale: Array, rank: int) -> FloatArray:
        return _along(scale.astype(np.float64), self.axis, rank)

    def rescaled(self, values: FloatArray, ratio: FloatArray) -> tuple[Array, Array] | None:
        """Return codes and scales of other values of a bias, None where the codes do not hold them.

        Args:
            values: float64, one a code.
            ratio: of the weights' scales to what they were, one or one a code.
        """
        old, kept = array(self.codes), array(self.scale)
        if old.dtype != np.int32 or ratio.size not in (1, kept.size) or kept.size not in (1, old.size):
            return None
        scale = as_stored(kept.astype(np.float64) * ratio.reshape(kept.shape if ratio.size > 1 else ()), kept.dtype)
        if scale is None or not (scale > 0).all():
            return None
        codes = np.rint(values.reshape(old.shape) / scale.astype(np.float64)) + self.zero
        return (codes.astype(np.int32), scale) if bool((np.abs(codes) < _BIAS).all()) else None


def _along(values: FloatArray, axis: int, rank: int) -> FloatArray:
    """Return one value, or one a position of an axis, as it is broadcast against an array of some rank."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if k == axis else 1 for k in range(rank)])
