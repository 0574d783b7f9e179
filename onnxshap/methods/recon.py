"""`recon`: backward greedy by the error that a refit of the layers behind the cut would leave.

Every layer that sums units away computes Y = X W from its inputs X. With the units R gone, ridge regression toward the
present weights leaves, for the best refit of the others,

    E(R) = min over D with D_R = -W_R of  tr(D' (G + lambda I) D) - lambda |W_R|^2,    G = X'X of centred X
         = tr(W_R' [(H_RR)^-1] W_R) - lambda |W_R|^2,                                  H = (G + lambda I)^-1

Removing the block c of columns next costs tr(w_c' (H_cc)^-1 w_c) - lambda |W_c|^2, w being the weights as refitted so
far; then w -= H_.c (H_cc)^-1 w_c and H -= H_.c (H_cc)^-1 H_c. (the inverse of the smaller matrix). So the whole greedy
elimination needs one Gram matrix, one inversion and n downdates: no rows of the game. A group with several consumers
adds up their errors, each divided by the variance of what the layer gives.

phi of a unit is E once it and all that went before it are gone, as a share of the variance: comparable between groups,
higher = keep. Centred, because the bias is refitted too.

Where a layer is not refitted (more than 6,000 coefficients an output), a unit costs what it adds to the output's
variance there; where two computed tensors are multiplied (queries and keys), its share of the tensor's energy.

Source: He et al. 2017 (channel pruning by reconstruction, there by LASSO); Hassibi and Stork 1993 for the downdates.
Differs: blocks of all taps of a channel, exact backward greedy, the ridge of our own refit.
Cost: no rows; p^2 t a unit and layer, p = inputs x taps t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from onnxshap.calibrate import batches
from onnxshap.core import Array, FloatArray, IntArray, Values
from onnxshap.game import Setting
from onnxshap.graph import attributes, extract, is_op
from onnxshap.groups import Group
from onnxshap.labels import Site
from onnxshap.labels.kernels import by_group
from onnxshap.methods.base import Tell, sites_of, untold
from onnxshap.payoffs import units_of
from onnxshap.repair.fitting import MAX_COEFFICIENTS
from onnxshap.shapes.constants import static_values
from onnxshap.taps import patches, taps

ROWS = 15_000
"""Rows a Gram matrix is summed over, about; three times the coefficients where that is more."""
RIDGE = 1e-3
"""In units of the mean squared (centred) input."""
_SHRINK = 0.75
_CHUNK_BYTES = 2**28


def recon(setting: Setting, group: Group, rng: np.random.Generator, max_evals: int | None, tell: Tell) -> Values:
    """Return the error of the refitted consumers once each unit has gone (see the module)."""
    phi = eliminate(*regressions(setting, group, rng, tell=tell))
    return Values(phi, np.zeros(len(group)))


def regressions(
    setting: Setting,
    group: Group,
    rng: np.random.Generator,
    importance: Mapping[int, FloatArray] | None = None,
    tell: Tell = untold,
) -> tuple[list[BlockRegression], FloatArray]:
    """Return the layers behind a group as regressions, and what a unit costs in those that are not refitted.

    Args:
        setting: gives the model and the images.
        group: its units are the columns.
        rng: draws the rows.
        importance: node -> float64[outputs], what a squared error of each output counts; default all the same, but
            for outputs of the model that are in different units.
        tell: told how much is done.
    """
    importance = _by_units(setting) if importance is None else importance
    fixed = np.zeros(len(group))
    problems = []
    layers = layers_of(setting, group)
    for number, layer in enumerate(layers):
        tell(number / (len(layers) + 1))
        grams = _grams(setting, layer, rng)
        if layer.refitted:
            problems += _problems(layer, grams, importance)
        else:
            fixed += _alone(layer, grams)
    return problems, fixed


def _by_units(setting: Setting) -> dict[int, FloatArray]:
    """Return, of the ops that give the model's outputs, what a squared error of each column counts in its own unit."""
    shaped, found = setting.traced.shaped, {}
    places = {shaped.graph.nodes[s.node].output[0]: s for s in setting.traced.labels.trace.linear}
    for name, values in zip(setting.traced.outputs, setting.reference, strict=False):
        site = places.get(name)
        if site is None or site.weight is None or values.dtype.kind != "f":
            continue
        units = units_of(np.asarray(values, np.float64))
        if units is not None and units.axis == site.weight.out % values.ndim:
            found[site.node] = 1 / units.variances
    return found


# --- the greedy elimination ------------------------------------------------------------------------------------------


class BlockRegression:
    """Outputs of a layer as a function of its inputs, of which blocks are removed one after the other."""

    def __init__(self, gram: FloatArray, weights: FloatArray, columns: Sequence[IntArray], ridge: float) -> None:
        """Invert once.

        Args:
            gram: float64[p, p], of centred inputs.
            weights: float64[p, m], the present ones.
            columns: unit -> the inputs that go with it; a column may go with several units.
            ridge: lambda, what is added to the diagonal.
        """
        self._inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
        self._spent = ridge * (weights**2).sum(axis=1)
        self._w = weights.copy()
        self._alive = np.ones(len(gram), np.bool_)
        self._place = np.arange(len(gram))  # column -> row of the present matrices
        self._left = [np.asarray(c, np.int64) for c in columns]
        self._sizes = np.array([len(c) for c in columns])
        self._overlap = int(self._sizes.sum()) > len(np.unique(np.concatenate(self._left)))

    def price(self, units: IntArray) -> FloatArray:
        """Return what removing each of some units next would add to the error."""
        found = np.zeros(len(units))
        sizes = self._sizes[units]
        for size in np.unique(sizes[sizes > 0]):
            chosen = np.flatnonzero(sizes == size)
            at = self._place[np.stack([self._left[units[k]] for k in chosen])]
            w = self._w[at]
            if size == 1:
                found[chosen] = (w[:, 0] ** 2).sum(axis=1) / self._inverse[at[:, 0], at[:, 0]]
            else:
                blocks = self._inverse[at[:, :, None], at[:, None, :]]
                found[chosen] = (w * np.linalg.solve(blocks, w)).sum(axis=(1, 2))
            found[chosen] -= self._spent[at].sum(axis=1)
        return found

    def weights(self, without: int | None = None) -> FloatArray:
        """Return the refitted weights float64[p, m], zero where inputs are gone; of one unit more if asked for."""
        found = np.zeros((len(self._alive), self._w.shape[1]))
        w = self._w
        gone = self._left[without] if without is not None else self._left[0][:0]
        if len(gone):
            at = self._place[gone]
            w = w - self._inverse[:, at] @ np.linalg.solve(self._inverse[np.ix_(at, at)], w[at])
        found[self._alive] = w[self._place[self._alive]]
        found[gone] = 0
        return found

    def remove(self, unit: int) -> None:
        """Remove the columns of a unit."""
        gone = self._left[unit]
        if not len(gone):
            return
        at = self._place[gone]
        block, rows = self._inverse[np.ix_(at, at)], self._inverse[at]
        self._w -= rows.T @ np.linalg.solve(block, self._w[at])
        self._inverse -= rows.T @ np.linalg.solve(block, rows)
        self._alive[gone] = False
        for other in range(len(self._left)) if self._overlap else (unit,):
            self._left[other] = self._left[other][self._alive[self._left[other]]]
            self._sizes[other] = len(self._left[other])
        live = np.flatnonzero(self._alive)
        if len(live) < _SHRINK * len(self._inverse):
            kept = self._place[live]
            self._inverse = self._inverse[np.ix_(kept, kept)]
            self._w, self._spent = self._w[kept], self._spent[kept]
            self._place = np.full(len(self._place), -1)
            self._place[live] = np.arange(len(live))


def eliminate(problems: Sequence[BlockRegression], fixed: FloatArray) -> FloatArray:
    """Return the error reached when each unit went, float64[n]: greedily, the cheapest unit first.

    Args:
        problems: the layers that are refitted; their state is used up.
        fixed: float64[n], what a unit costs elsewhere, whatever else goes.
    """
    phi = np.empty(len(fixed))
    left = np.arange(len(fixed))
    total = 0.0
    while len(left):
        prices = fixed[left] + sum(p.price(left) for p in problems)
        best = int(np.argmin(prices))
        total += max(0.0, float(prices[best]))
        phi[left[best]] = total
        for problem in problems:
            problem.remove(int(left[best]))
        left = np.delete(left, best)
    return phi


# --- layers and their Gram matrices ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class JointLayer:
    """What some ops compute from one tensor; ops that read it in the same way are one layer with more outputs.

    Attributes:
        site: where it reads.
        blocks: groups of channels that do not mix (grouped Conv), 1 elsewhere.
        kernels: float64[blocks, inputs, taps, outputs], outputs scaled to a total variance of 1 later; None: two
            computed tensors are multiplied.
        starts: where the outputs of each op begin, to scale each by its own variance.
        nodes: the ops.
        units: place of the unit of the group at each channel and slot, -1 = none; int64[channels, slots].
    """

    site: Site
    blocks: int
    kernels: FloatArray | None
    starts: tuple[int, ...]
    nodes: tuple[int, ...]
    units: IntArray
    n_units: int

    @property
    def refitted(self) -> bool:
        """Whether a repair could refit it."""
        return self.kernels is not None and self.kernels.shape[1] * self.kernels.shape[2] <= MAX_COEFFICIENTS

    def columns(self, block: int) -> list[IntArray]:
        """Return, by unit, the inputs (channel x tap) of a block that go with it."""
        taps_ = 1 if self.kernels is None else self.kernels.shape[2]
        size = len(self.units) // self.blocks
        mine = self.units[block * size : (block + 1) * size]
        found = []
        for unit in range(self.n_units):
            channels = np.flatnonzero((mine == unit).any(axis=1))
            found.append((channels[:, None] * taps_ + np.arange(taps_)).ravel())
        return found


def layers_of(setting: Setting, group: Group) -> list[JointLayer]:
    """Return the layers that sum units of a group away; those that read the same values are put together."""
    traced = setting.traced
    nodes = traced.shaped.graph.nodes
    place = np.full(traced.labels.n_units + 1, -1)
    place[group.units] = np.arange(len(group))
    together: dict[tuple[object, ...], list[Site]] = {}
    refitted = {site.node for site in traced.labels.trace.linear}
    for site in sites_of(setting, group):
        if traced.depth(site.tensor) > 1:
            continue  # its iterations differ in number
        node = nodes[site.node]
        site = site if site.node in refitted else replace(site, weight=None)  # its rows are not known
        how: tuple[object, ...] = ("tensor",)
        if site.weight is None:
            how = ("computed",)
        elif is_op(node, "Conv", "ConvTranspose"):
            kernel = traced.shaped.shapes[node.input[1]][2:]
            how = (node.op_type, site.weight.groups, kernel, repr(sorted(attributes(node).items())))
        together.setdefault((site.tensor, site.axis, *how), []).append(site)
    layers = []
    for sites in together.values():
        first = sites[0]
        units = place[traced.labels.units(first.tensor, first.axis)]
        if first.weight is None:
            layers.append(JointLayer(first, 1, None, (0,), (first.node,), units, len(group)))
            continue
        kernels = [kernels_of(setting, site) for site in sites]
        starts = tuple(np.cumsum([0, *(k.shape[3] for k in kernels)]).tolist())
        nodes_ = tuple(site.node for site in sites)
        layers.append(
            JointLayer(first, len(kernels[0]), np.concatenate(kernels, axis=3), starts, nodes_, units, len(group))
        )
    return layers


def kernels_of(setting: Setting, site: Site) -> FloatArray:
    """Return the weights of an op as [blocks, inputs, taps, outputs of a block]."""
    w = site.weight
    assert w is not None
    name = setting.traced.shaped.graph.nodes[site.node].input[w.input]
    values = static_values(setting.traced.shaped.graph.model, setting.traced.backend, [name])[name]
    return by_group(values, w)


@dataclass
class _Gram:
    """Sums over rows of one block of a layer: the Gram matrix, or its blocks of each unit alone."""

    sums: FloatArray
    squares: FloatArray
    rows: int = 0

    def centred(self) -> FloatArray:
        """Return the covariance matrix."""
        mean = self.sums / max(1, self.rows)
        return self.squares / max(1, self.rows) - mean[..., :, None] * mean[..., None, :]


def _grams(setting: Setting, layer: JointLayer, rng: np.random.Generator) -> list[list[_Gram]]:
    """Return by block: the one Gram matrix where the layer is refitted, else one a unit."""
    channels = len(layer.units) // layer.blocks
    taps_ = 1 if layer.kernels is None else layer.kernels.shape[2]
    everything = [np.arange(channels * taps_)]
    parts = [everything if layer.refitted else layer.columns(b) for b in range(layer.blocks)]
    grams = [[_Gram(np.zeros(len(c)), np.zeros((len(c), len(c)))) for c in columns] for columns in parts]
    rows = max(ROWS, 3 * channels * taps_) if layer.refitted else ROWS
    for design in designs(setting, layer, rows, rng):
        split = design.reshape(len(design), layer.blocks, channels * taps_).astype(np.float64)
        for b, columns in enumerate(parts):
            for gram, chosen in zip(grams[b], columns, strict=True):
                x = split[:, b] if chosen is everything[0] else split[:, b, chosen]
                gram.sums += x.sum(axis=0)
                gram.squares += x.T @ x
                gram.rows += len(x)
    return grams


def designs(setting: Setting, layer: JointLayer, rows: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield inputs of a layer [rows, channels, taps], about `rows` in all, from all images."""
    traced, site = setting.traced, layer.site
    shapes, kinds = traced.shaped.shapes, traced.shaped.kinds
    node = traced.shaped.graph.nodes[site.node]
    model = traced.shaped.graph.model
    inputs = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    session = None
    if site.tensor not in inputs:
        part = extract(model, inputs, {site.tensor: kinds.get(site.tensor, TensorProto.FLOAT)})
        session = traced.backend.session(part)
    size = 4 * math.prod(shapes[site.tensor]) // traced.batch + 1
    reads = None
    if layer.kernels is not None and is_op(node, "Conv", "ConvTranspose"):
        space, made = shapes[site.tensor][2:], shapes[node.output[0]][2:]
        reads = taps(node.op_type, attributes(node), space, made, shapes[node.input[1]][2:])
    for count, feeds in batches(traced, setting.data, int(np.clip(_CHUNK_BYTES // size, 1, 32))):
        found = feeds[site.tensor] if session is None else session.run({n: feeds[n] for n in session.inputs})[0]
        iterations = list(found) if traced.depth(site.tensor) else [found]
        share = math.ceil(rows * count / len(setting.data) / max(1, len(iterations)))
        for x in iterations:
            if reads is not None:
                at = np.sort(rng.permutation(len(reads))[: max(1, share // count)])
                yield patches(x[:count], reads[at]).transpose(0, 2, 1, 3).reshape(-1, x.shape[1], reads.shape[1])
            else:
                flat = np.moveaxis(x, site.axis, -1).reshape(-1, x.shape[site.axis], 1)
                yield flat[np.sort(rng.permutation(len(flat))[:share])]


def _scaled(layer: JointLayer, grams: Sequence[FloatArray], importance: Mapping[int, FloatArray]) -> FloatArray:
    """Return the kernels [blocks, inputs x taps, outputs], each op's outputs scaled to a total variance of 1."""
    assert layer.kernels is not None
    kernels = layer.kernels.reshape(layer.blocks, -1, layer.kernels.shape[3]).copy()
    for node, start, stop in zip(layer.nodes, layer.starts, layer.starts[1:], strict=False):
        if node in importance:
            kernels[:, :, start:stop] *= np.sqrt(importance[node]).reshape(layer.blocks, 1, -1)
    each = np.stack([np.einsum("pm,pq,qm->m", k, g, k, optimize=True) for k, g in zip(kernels, grams, strict=True)])
    for start, stop in zip(layer.starts, layer.starts[1:], strict=False):
        kernels[:, :, start:stop] /= math.sqrt(max(float(each[:, start:stop].sum()), 1e-30))
    return kernels


def _problems(
    layer: JointLayer, grams: Sequence[Sequence[_Gram]], importance: Mapping[int, FloatArray]
) -> list[BlockRegression]:
    """Return the regressions of a layer, one a block."""
    matrices = [gram.centred() for (gram,) in grams]
    kernels = _scaled(layer, matrices, importance)
    ridges = [RIDGE * float(np.trace(g)) / len(g) + 1e-30 for g in matrices]
    return [
        BlockRegression(g, k, layer.columns(b), ridge)
        for b, (g, k, ridge) in enumerate(zip(matrices, kernels, ridges, strict=True))
    ]


def _alone(layer: JointLayer, grams: Sequence[Sequence[_Gram]]) -> FloatArray:
    """Return what each unit alone adds to a layer that is not refitted, as a share of the sum over units."""
    found = np.zeros(layer.n_units)
    for b, by_unit in enumerate(grams):
        columns = layer.columns(b)
        for unit, gram in enumerate(by_unit):
            if not len(columns[unit]):
                continue
            if layer.kernels is None:
                found[unit] += float(np.trace(gram.squares)) / max(1, gram.rows)
            else:
                w = layer.kernels[b].reshape(-1, layer.kernels.shape[3])[columns[unit]]
                found[unit] += float((w * (gram.centred() @ w)).sum())
    return found / max(float(found.sum()), 1e-30)
