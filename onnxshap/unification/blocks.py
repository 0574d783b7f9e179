"""Blocks of weights: what each would share and lose, which goes first, and the model with some of them unified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto

from onnxshap.calibrate import channel_means, run_all
from onnxshap.core import Array, BoolArray, Dataset, FloatArray, IntArray
from onnxshap.graph import array, finish
from onnxshap.graph.weights import set_values
from onnxshap.labels import Weight
from onnxshap.labels.kernels import by_input, shares_inputs
from onnxshap.payoffs import Fidelity
from onnxshap.tracing import Traced

BLOCK = 8
"""Weights of a block."""


@dataclass(frozen=True)
class Bias:
    """A bias behind some weights.

    Attributes:
        name: its initializer in the normalised model.
        means: float64 in the shape of the weights, what the bias has to make up for when each grows by 1.
        makes: the axis of the weights that is the outputs.
    """

    name: str
    means: FloatArray
    makes: int

    def change(self, grown: FloatArray) -> FloatArray:
        """Return what has to be added to the bias when the weights grow, float64[outputs]."""
        others = tuple(axis for axis in range(grown.ndim) if axis != self.makes % grown.ndim)
        return np.asarray(-(self.means * grown).sum(axis=others))


@dataclass(frozen=True)
class Blocks:
    """The blocks of one initializer.

    Attributes:
        name: the initializer, in the names of the input file.
        copies: its names in the normalised model, one a use.
        values: its values.
        starts: int64[blocks], where blocks begin in the flat values.
        magnitudes: float64[blocks], what each block would share.
        losses: float64[blocks], what that costs, as a share of the energy of the layer's output.
        biases: what takes up the change of the mean, one a copy that has one.
    """

    name: str
    copies: Sequence[str]
    values: Array
    starts: IntArray
    magnitudes: FloatArray
    losses: FloatArray
    biases: Sequence[Bias] = ()

    @property
    def sizes(self) -> IntArray:
        """Weights of each block."""
        return np.diff(np.append(self.starts, self.values.size))

    def unified(self, chosen: BoolArray) -> Array:
        """Return the values with the chosen blocks unified; bool[blocks]."""
        sizes = self.sizes
        shared = np.copysign(np.repeat(self.magnitudes, sizes), self.values.ravel()).astype(self.values.dtype)
        return np.where(np.repeat(chosen, sizes), shared, self.values.ravel()).reshape(self.values.shape)


def find_blocks(traced: Traced, free: Traced, data: Dataset, block: int = BLOCK) -> list[Blocks]:
    """Return the blocks of all weights that are stored as floats and used by linear ops alone.

    Args:
        traced: the model.
        free: the same for evaluation (`calibrate.free_batch`).
        data: calibration images.
        block: weights of a block; what is left over at the end of a slice of axis 0 is a smaller one.
    """
    graph = traced.shaped.graph
    copies: dict[str, list[str]] = {}
    stored = graph.initializers
    for name in stored:
        copies.setdefault(graph.origin.get(name, name), []).append(name)
    sites = [(s, s.weight) for s in free.labels.trace.linear if s.weight is not None and free.depth(s.tensor) < 2]
    used = {free.shaped.graph.nodes[s.node].input[w.input]: (s, w) for s, w in sites}
    chosen = {
        root: names
        for root, names in copies.items()
        if all(n in used for n in names) and array(stored[names[0]]).dtype.kind == "f"
    }
    places = [(s.tensor, s.axis) for names in chosen.values() for s, _ in (used[n] for n in names)]
    squares, means = channel_means(free, data, places, "square"), channel_means(free, data, places)
    found = []
    for root, names in chosen.items():
        values = array(stored[names[0]])
        energy, biases = np.zeros(values.shape), []
        for site, weight in (used[n] for n in names):
            square, mean = squares[site.tensor, site.axis], means[site.tensor, site.axis]
            bias = _bias(traced, free.shaped.graph.nodes[site.node], weight)
            if bias is not None:
                factor = weight.scale * weight.spread / bias[1]
                biases.append(Bias(bias[0], factor * by_input(mean, weight, values.shape), weight.makes))
            energy += by_input(square, weight, values.shape)
        found.append(_blocks(root, names, values, energy, block, biases))
    return found


def _bias(traced: Traced, node: NodeProto, weight: Weight) -> tuple[str, float] | None:
    """Return the stored bias of an op and its factor, None where there is none or its outputs are counted by group."""
    if weight.bias is None or (weight.groups > 1 and not shares_inputs(weight)) or len(node.input) <= weight.bias[0]:
        return None
    name = node.input[weight.bias[0]]
    stored, width = traced.shaped.graph.initializers.get(name), traced.shaped.shapes[node.output[0]][weight.out]
    if stored is None or weight.bias[1] == 0 or list(stored.dims) != [width] or array(stored).dtype.kind != "f":
        return None
    return name, weight.bias[1]


def _blocks(
    name: str, copies: Sequence[str], values: Array, energy: FloatArray, block: int, biases: Sequence[Bias] = ()
) -> Blocks:
    length = values.size // values.shape[0] if values.ndim > 1 else values.size
    starts = (np.arange(0, values.size, length)[:, None] + np.arange(0, length, block)).ravel()
    h, w = energy.ravel(), np.abs(values.ravel().astype(np.float64))
    sizes = np.diff(np.append(starts, values.size))
    total = np.add.reduceat(h, starts)
    dead = total == 0  # inputs that are never there: any magnitude will do
    magnitudes = np.where(
        dead, np.add.reduceat(w, starts) / sizes, np.add.reduceat(h * w, starts) / np.where(dead, 1, total)
    )
    with np.errstate(over="ignore"):  # outputs that overflow are refused as such
        losses = np.add.reduceat(h * (w - np.repeat(magnitudes, sizes)) ** 2, starts)
    return Blocks(name, copies, values, starts, magnitudes, losses / max(float((h * w**2).sum()), 1e-300), biases)


def order(blocks: Sequence[Blocks]) -> IntArray:
    """Return the blocks of all layers together, least loss per weight made equal first; single weights are left out."""
    losses, sizes = np.concatenate([b.losses for b in blocks]), np.concatenate([b.sizes for b in blocks])
    ranked = np.argsort(losses / np.maximum(1, sizes - 1), kind="stable")
    return ranked[sizes[ranked] > 1]


def weighted(traced: Traced, blocks: Sequence[Blocks], data: Dataset) -> list[Blocks]:
    """Return the blocks with losses in units of the model's outputs: each layer's add up to what it costs all unified.

    One run of the model a layer: the outputs with the layer unified against the original's, by the payoff that fits
    without labels.
    """
    fidelity = Fidelity.of(run_all(traced, traced.source, data), traced.outputs)
    found, first = [], 0
    for one in blocks:
        made = unify_weights(traced, blocks, np.arange(first, first + len(one.starts)))
        first += len(one.starts)
        lost = max(0.0, fidelity.lost(run_all(traced, made, data)))
        found.append(replace(one, losses=one.losses * (lost / max(float(one.losses.sum()), 1e-300))))
    return found


def unify_weights(traced: Traced, blocks: Sequence[Blocks], chosen: IntArray) -> ModelProto:
    """Return the model with some blocks unified, numbered through all layers as `order` does."""
    model = ModelProto()
    model.CopyFrom(traced.shaped.graph.model)
    stored = {t.name: t for t in model.graph.initializer}
    for one, mine in zip(blocks, _flags(blocks, chosen), strict=True):
        if mine.any():
            made = one.unified(mine)
            for copy in one.copies:
                set_values(stored[copy], made)
            grown = made.astype(np.float64) - one.values
            for bias in one.biases:
                old = array(stored[bias.name])
                set_values(stored[bias.name], (old + bias.change(grown)).astype(old.dtype))
    return finish(model, traced.shaped.graph)


def shares_unified(blocks: Sequence[Blocks], chosen: IntArray) -> dict[str, float]:
    """Return the share of each layer's blocks that is chosen."""
    return {b.name: float(mine.mean()) for b, mine in zip(blocks, _flags(blocks, chosen), strict=True)}


def _flags(blocks: Sequence[Blocks], chosen: IntArray) -> list[BoolArray]:
    """Return which blocks of each layer are chosen, by their numbers through all layers."""
    flags = np.zeros(sum(len(b.starts) for b in blocks), np.bool_)
    flags[chosen] = True
    return np.split(flags, np.cumsum([len(b.starts) for b in blocks])[:-1]) if blocks else []
