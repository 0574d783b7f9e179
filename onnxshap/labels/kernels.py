"""How the weights of an op lie in its tensor, and how they are read as matrices: grouped kernels above all.

With its contracted axis first and the one that it makes second, a weight of several groups counts positions of one
group on one of the two axes: Conv on the first, [in of a group, all out], ConvTranspose on the second, [all in, out of
a group].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxshap.core import Array, FloatArray
from onnxshap.labels.trace import Weight


def in_first(values: Array, weight: Weight) -> Array:
    """Return a view of a weight as [in, out, ...taps]."""
    return np.moveaxis(values, (weight.sums, weight.makes), (0, 1))


def shares_inputs(weight: Weight) -> bool:
    """Return whether the groups of a weight share the positions of its contracted axis (Conv), not of the other."""
    return weight.sums == 1


def by_group(values: Array, weight: Weight) -> FloatArray:
    """Return a weight as float64[groups, inputs, taps, outputs of a group], scaled as the op scales the product."""
    kernel = in_first(values.astype(np.float64), weight) * weight.scale
    kernel = kernel.reshape(*kernel.shape[:2], -1).transpose(0, 2, 1)
    groups, (ins, taps, outs) = weight.groups, kernel.shape
    if groups == 1:
        return kernel[None]
    if shares_inputs(weight):
        return kernel.reshape(ins, taps, groups, outs // groups).transpose(2, 0, 1, 3)
    return kernel.reshape(groups, ins // groups, taps, outs)


def ungrouped(coefficients: FloatArray, weight: Weight, like: Array) -> FloatArray:
    """Return float64[groups, inputs x taps, outputs of a group] as the weight that is so `by_group`, shaped `like`."""
    moved = in_first(like, weight).shape
    groups, taps, outs = weight.groups, math.prod(moved[2:]), coefficients.shape[2]
    split = coefficients.reshape(groups, -1, taps, outs)
    if groups == 1:
        kernel = split[0]
    elif shares_inputs(weight):
        kernel = split.transpose(1, 2, 0, 3).reshape(split.shape[1], taps, groups * outs)
    else:
        kernel = split.reshape(-1, taps, outs)
    found = (kernel / weight.scale).transpose(0, 2, 1).reshape(moved)
    return np.moveaxis(found, (0, 1), (weight.sums, weight.makes))


def block_diagonal(table: Array, weight: Weight) -> Array:
    """Spread a grouped weight [in, out, ...] over all pairs of channels; between groups there are zeros."""
    groups = weight.groups
    blocks = np.split(table, groups, axis=1 if shares_inputs(weight) else 0)
    rows, columns = blocks[0].shape[:2]
    full = np.zeros((rows * groups, columns * groups, *table.shape[2:]), table.dtype)
    for k, block in enumerate(blocks):
        full[k * rows : (k + 1) * rows, k * columns : (k + 1) * columns] = block
    return full


def by_input(values: FloatArray, weight: Weight, shape: Sequence[int]) -> FloatArray:
    """Return float64[shape]: of each number of a weight of this shape, the value of the channel in that it multiplies.

    Args:
        values: one for every channel in, float64[channels].
        weight: how it lies.
        shape: of the weight.
    """
    full = np.empty(shape)
    moved = in_first(full, weight)
    table = values[:, None]
    if weight.groups > 1 and shares_inputs(weight):
        table = np.repeat(values.reshape(weight.groups, -1).T, moved.shape[1] // weight.groups, axis=1)
    moved[...] = table.reshape(*table.shape, *[1] * (moved.ndim - 2))
    return full
