"""Convs that can be split in groups, and what the groups explain of their outputs.

In k groups an output sees the inputs of its own group alone, and least squares then makes the best of those. How much
of the outputs' variance that explains is told by the covariance G of the channels in: with c = G w of a kernel's tap,

    explained = sum over outputs o and taps of c_S' inv(G_SS) c_S,        S = the inputs in the group of o,

each tap on its own. Were the inputs uncorrelated, that would be the energy on the diagonal blocks, squared norm of a
kernel times variance of its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from onnxshap.calibrate import channel_covariances
from onnxshap.core import Dataset, FloatArray, IntArray
from onnxshap.graph import array, attributes, is_op
from onnxshap.groups import node_name
from onnxshap.pivoting.permuting import Classes, positions
from onnxshap.tracing import Traced

_RIDGE = 1e-3
"""Of the mean variance of the inputs, added to each."""


@dataclass(frozen=True)
class Dense:
    """A Conv in one group.

    Attributes:
        name: its node's name.
        index: its node.
        x, y, w: tensors in and out, and the stored weights.
        kernels: float64[out, in, taps], those weights.
        covariance: float64[in, in] of the channels in, a ridge added.
        ins, outs: classes of its channels, each once.
        macs: multiply-accumulates an image.
    """

    name: str
    index: int
    x: str
    y: str
    w: str
    kernels: FloatArray
    covariance: FloatArray
    ins: Classes
    outs: Classes
    macs: int

    @property
    def widths(self) -> tuple[int, int]:
        """Channels out and in."""
        return self.kernels.shape[0], self.kernels.shape[1]

    @cached_property
    def energy(self) -> FloatArray:
        """Squared norm of each kernel times the variance of its input, float64[out, in]."""
        return np.asarray((self.kernels**2).sum(axis=2) * np.diag(self.covariance))

    @cached_property
    def cross(self) -> FloatArray:
        """Covariance of the inputs with what the taps give, float64[in, out, taps]."""
        outs, ins, taps = self.kernels.shape
        return (self.covariance @ self.kernels.transpose(1, 0, 2).reshape(ins, -1)).reshape(ins, outs, taps)

    @cached_property
    def variance(self) -> float:
        """All there is to explain."""
        return max(float((self.kernels.transpose(1, 0, 2) * self.cross).sum()), 1e-300)

    def blocks(self, groups: int) -> tuple[IntArray, IntArray]:
        """Return the group of every place among the channels out and in."""
        outs, ins = self.widths
        return np.arange(outs) * groups // outs, np.arange(ins) * groups // ins

    def standing(self, groups: int, placed: Classes) -> tuple[IntArray, IntArray]:
        """Return the group of every channel out and in under a placement."""
        found = []
        for classes, block in zip((self.outs, self.ins), self.blocks(groups), strict=True):
            group = np.empty_like(block)
            group[positions(placed[classes], classes)] = block
            found.append(group)
        return found[0], found[1]

    def explained(self, groups: int, placed: Classes) -> float:
        """Return the share of the outputs' variance that the groups explain under a placement, after a refit."""
        outs, ins = self.standing(groups, placed)
        return float(explained_by_group(self, groups, ins)[np.arange(len(outs)), outs].sum()) / self.variance

    def kept(self, groups: int, placed: Classes) -> float:
        """Return the share of the energy on the diagonal blocks of a placement."""
        outs, ins = self.standing(groups, placed)
        return float(self.energy[outs[:, None] == ins].sum() / max(float(self.energy.sum()), 1e-300))


def explained_by_group(conv: Dense, groups: int, ins: IntArray) -> FloatArray:
    """Return what the inputs of each group explain of each output, float64[out, groups]."""
    found = np.empty((conv.widths[0], groups))
    for k in range(groups):
        inside = np.flatnonzero(ins == k)
        factor = scipy.linalg.cholesky(conv.covariance[np.ix_(inside, inside)], lower=True)
        part = conv.cross[inside]
        half = scipy.linalg.solve_triangular(factor, part.reshape(len(inside), -1), lower=True)
        found[:, k] = (half**2).sum(axis=0).reshape(part.shape[1:]).sum(axis=1)
    return found


@dataclass(frozen=True)
class Wanted:
    """A Conv to be split in groups."""

    conv: Dense
    groups: int


def find_convs(traced: Traced, free: Traced, data: Dataset, movable: Sequence[Classes]) -> Iterator[Dense | str]:
    """Yield every Conv in one group, or its name and why it stays.

    Args:
        traced: the model.
        free: the same for evaluation (`calibrate.free_batch`).
        data: images to take the covariances of its inputs from.
        movable: the classes that may change places (`permuting.peers`).
    """
    shaped, labels = traced.shaped, traced.labels
    sites = [s for s in labels.trace.linear if s.weight is not None and is_op(shaped.graph.nodes[s.node], "Conv")]
    sites = [s for s in sites if int(attributes(shaped.graph.nodes[s.node]).get("group", 1)) == 1]
    covariances = channel_covariances(free, data, [s.tensor for s in sites])
    moves, stored = np.zeros(len(labels.slots), np.bool_), shaped.graph.initializers
    for some in movable:
        moves[some] = True
    for site in sites:
        node, name = shaped.graph.nodes[site.node], node_name(shaped, site.node)
        w, y = node.input[1], node.output[0]
        ins, outs = labels.axis(site.tensor, 1), labels.axis(y, 1)
        assert ins is not None
        assert outs is not None
        if w not in stored or array(stored[w]).dtype.kind != "f":
            yield f"{name}: its weights are computed, or no floats"
        elif len(np.unique(ins)) < len(ins) or len(np.unique(outs)) < len(outs):
            yield f"{name}: a channel is there several times"
        elif not moves[ins].any() and not moves[outs].any():
            yield f"{name}: its channels cannot change places"
        elif not np.isfinite(covariances[site.tensor]).all():  # a branch of an If that the data do not take
            yield f"{name}: its inputs are not finite on the data"
        else:
            values = array(stored[w]).astype(np.float64)
            macs = values.size * int(np.prod(shaped.shapes[y][2:])) * shaped.shapes[y][0] // shaped.batch
            kernels, covariance = values.reshape(*values.shape[:2], -1), covariances[site.tensor]
            ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
            covariance = covariance + ridge * np.eye(len(covariance))
            yield Dense(
                name, site.node, site.tensor, y, w, kernels, covariance, ins.astype(np.intp), outs.astype(np.intp), macs
            )
