"""`recon`: backward greedy by the error that a refit of the layers behind the cut would leave.

Every layer that sums units away computes Y = X W from its inputs X; `elimination` takes its inputs out, block by block.
It needs one Gram matrix, one inversion and n downdates: no rows of the game. A group with several consumers adds up
their errors, each divided by the variance of what the layer gives.

phi of a unit is E once it and all that went before it are gone, as a share of the variance: comparable between groups,
higher = keep. Centred, because the bias is refitted too.

What the gates of a recurrent op are fed is such a layer (`gates`). Where a layer has more than 6,000 coefficients an
output, a unit costs what it adds to the output's variance there; where two computed tensors are multiplied (queries and
keys), its share of the tensor's energy.

Source: He et al. 2017 (channel pruning by reconstruction, there by LASSO); Hassibi and Stork 1993 for the downdates.
Differs: blocks of all taps of a channel, exact backward greedy, the ridge of our own refit.
Cost: no rows; p^2 t a unit and layer, p = inputs x taps t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxshap.blas import mirror, with_squares
from onnxshap.core import Array, FloatArray, ImageIndex, IntArray, Values
from onnxshap.game import Setting
from onnxshap.graph import attributes, is_op
from onnxshap.groups import Group
from onnxshap.labels import Site
from onnxshap.labels.kernels import by_group
from onnxshap.methods.base import Tell, sites_of, untold
from onnxshap.methods.elimination import BlockRegression, eliminate
from onnxshap.methods.gates import gate_kernels, gate_rows, tells_states
from onnxshap.repair.regression import MAX_COEFFICIENTS
from onnxshap.shapes.constants import static_values
from onnxshap.taps import patches, taps

ROWS = 15_000
"""Rows a Gram matrix is summed over, about; three times the coefficients where that is more."""
RIDGE = 1e-3
"""In units of the mean squared (centred) input."""
_LEAST = 1e-6
"""Of the most that a unit of a group gives: less is rounding."""


def recon(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
    """Return the error of the refitted consumers once each unit has gone (see the module)."""
    phi = eliminate(*regressions(setting, group, rng, tell=tell))
    return Values(phi, np.zeros(len(group)))


def regressions(
    setting: Setting,
    group: Group,
    rng: np.random.Generator,
    importance: Mapping[int, FloatArray] | None = None,
    tell: Tell = untold,
    worth: FloatArray | None = None,
) -> tuple[list[BlockRegression], FloatArray]:
    """Return the layers behind a group as regressions, and what a unit costs in those that are not taken as such.

    Args:
        setting: gives the model and the images.
        group: its units are the columns.
        rng: draws the rows.
        importance: node -> float64[outputs], what a squared error of each output counts; default all the same, but
            for outputs of the model that are in different units.
        tell: told how much is done.
        worth: float64[n_units], what the loss of all that a unit gives the layers behind costs by itself: it counts as
            the geometric mean of that and its share of what they are given; default that share alone.
    """
    importance = setting.by_units if importance is None else importance
    fixed = np.zeros(len(group))
    parts: list[_Part] = []
    layers = layers_of(setting, group)
    for number, layer in enumerate(layers):
        tell(number / (len(layers) + 1))
        grams = _grams(setting, layer, rng)
        if not grams:
            continue
        if layer.refitted:
            parts += _parts(layer, grams, importance)
        else:
            fixed += _alone(layer, grams)
    if worth is not None:
        given = fixed + sum(part.given() for part in parts)
        counts = np.sqrt(worth / np.maximum(given, max(_LEAST * float(given.max(initial=0)), 1e-30)))
        fixed, parts = counts * fixed, [part.counting(counts) for part in parts]
    return [BlockRegression(part.gram, part.kernel, part.columns, part.ridge) for part in parts], fixed


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
        n_units: how many units the group has.
        states: the tensor of the states of a recurrent op, "" of any other (`gates`).
    """

    site: Site
    blocks: int
    kernels: FloatArray | None
    starts: tuple[int, ...]
    nodes: tuple[int, ...]
    units: IntArray
    n_units: int
    states: str = ""

    @property
    def refitted(self) -> bool:
        """Whether a refit is reckoned with: weights stand there, and are not too many for a Gram matrix."""
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
    gated = {site.node: None for site in traced.sites([group]) if tells_states(traced, site.node)}
    for site in sites_of(setting, group):
        if traced.depth(site.tensor) > 1 or site.node in gated:
            continue  # its iterations differ in number; or its states are seen, too
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
    for number in gated:
        layers.append(_fed(setting, group, number, place))
    return layers


def _fed(setting: Setting, group: Group, number: int, place: IntArray) -> JointLayer:
    """Return what the gates of a recurrent op are fed, a block a direction.

    Args:
        setting, group: as for `layers_of`.
        number: the node.
        place: unit of the model -> its place in the group.
    """
    traced = setting.traced
    node, kernels = traced.shaped.graph.nodes[number], gate_kernels(traced, number)
    site = next(s for s in traced.labels.trace.sites if s.node == number and s.tensor == node.input[0])
    came, before = (place[traced.labels.units(name, 2)] for name in node.input[::2][:2])
    units = np.full((len(came) + len(before), max(came.shape[1], before.shape[1])), -1)
    units[: len(came), : came.shape[1]] = came
    units[len(came) :, : before.shape[1]] = before
    return JointLayer(
        site, len(kernels), kernels, (0, kernels.shape[3]), (number,), np.tile(units, (len(kernels), 1)), len(group),
        node.output[0],
    )  # fmt: skip


def kernels_of(setting: Setting, site: Site) -> FloatArray:
    """Return the weights of an op as [blocks, inputs, taps, outputs of a block]."""
    w = site.weight
    assert w is not None
    name = setting.traced.shaped.graph.nodes[site.node].input[w.input]
    values = static_values(setting.traced.shaped.graph.model, setting.traced.backend, [name])[name]
    return by_group(values, w)


@dataclass
class _Gram:
    """Sums over rows of one block of a layer: the Gram matrix, or its blocks of each unit alone.

    Attributes:
        sums: float64[n].
        squares: float64[n, n], in its upper triangle.
        rows: how many.
    """

    sums: FloatArray
    squares: FloatArray
    rows: int = 0

    def add(self, x: FloatArray) -> None:
        """Take in float64[rows, n]."""
        self.sums += x.sum(axis=0)
        self.squares = with_squares(self.squares, np.ascontiguousarray(x))
        self.rows += len(x)

    def centred(self) -> FloatArray:
        """Return the covariance matrix."""
        mean = self.sums / max(1, self.rows)
        found = with_squares(self.squares / max(1, self.rows), mean[None], -1.0)
        mirror(found)
        return found


def _grams(setting: Setting, layer: JointLayer, rng: np.random.Generator) -> list[list[_Gram]]:
    """Return by block: the one Gram matrix where the layer is refitted, else one a unit.

    None of a layer that reads Inf or NaN: it tells nothing, and is not refitted.
    """
    channels = len(layer.units) // layer.blocks
    taps_ = 1 if layer.kernels is None else layer.kernels.shape[2]
    everything = [np.arange(channels * taps_)]
    parts = [everything if layer.refitted else layer.columns(b) for b in range(layer.blocks)]
    grams = [[_Gram(np.zeros(len(c)), np.zeros((len(c), len(c)))) for c in columns] for columns in parts]
    rows = max(ROWS, 3 * channels * taps_) if layer.refitted else ROWS
    near: FloatArray | None = None  # the mean: what hardly varies would be lost in what it varies about
    for design in designs(setting, layer, rows, rng):
        split = design.reshape(len(design), layer.blocks, channels * taps_).astype(np.float64)
        if not np.isfinite(split).all():
            return []
        if layer.kernels is not None:
            near = split.mean(axis=0) if near is None else near
            split -= near
        for b, columns in enumerate(parts):
            for gram, chosen in zip(grams[b], columns, strict=True):
                gram.add(split[:, b] if chosen is everything[0] else split[:, b, chosen])
    return grams


def designs(setting: Setting, layer: JointLayer, rows: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield inputs of a layer [rows, channels, taps], about `rows` in all, from all images."""
    if layer.states:
        yield from gate_rows(setting, layer.site.node, rows, rng)
        return
    traced, site = setting.traced, layer.site
    shapes = traced.shaped.shapes
    node = traced.shaped.graph.nodes[site.node]
    reads = None
    if layer.kernels is not None and is_op(node, "Conv", "ConvTranspose"):
        space, made = shapes[site.tensor][2:], shapes[node.output[0]][2:]
        reads = taps(node.op_type, attributes(node), space, made, shapes[node.input[1]][2:])
    route, left = setting.route, len(setting.data)
    for feeds, found in zip(route.walk.batches, route(site.tensor), strict=True):
        whole = traced.shaped.count(feeds)
        count = min(left, whole)  # a fixed batch is filled up with repeats
        left -= count
        iterations = list(found) if traced.depth(site.tensor) else [found]
        share = math.ceil(rows * count / len(setting.data) / max(1, len(iterations)))
        for x in iterations:
            if reads is not None:
                own = x[: len(x) * count // whole]  # an image may be several on this axis: frames, crops
                at = np.sort(rng.permutation(len(reads))[: max(1, share // len(own))])
                yield patches(own, reads[at]).transpose(0, 2, 1, 3).reshape(-1, x.shape[1], reads.shape[1])
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


@dataclass(frozen=True)
class _Part:
    """A block of a layer.

    Attributes:
        gram: float64[inputs, inputs], of centred inputs.
        kernel: float64[inputs, outputs], its weights.
        columns: unit -> the inputs that go with it.
        ridge: of the regression.
    """

    gram: FloatArray
    kernel: FloatArray
    columns: Sequence[IntArray]
    ridge: float

    def given(self) -> FloatArray:
        """Return the variance of what each unit alone gives, summed over the outputs: float64[n_units]."""
        own = [(self.gram[np.ix_(at, at)], self.kernel[at]) for at in self.columns]
        return np.array([float((w * (g @ w)).sum()) for g, w in own])

    def counting(self, counts: FloatArray) -> _Part:
        """Return the block with squared errors of what a unit gives times a number; of shared inputs the largest."""
        squares = np.zeros(len(self.gram))
        for at, count in zip(self.columns, counts, strict=True):
            squares[at] = np.maximum(squares[at], count)
        return replace(self, kernel=self.kernel * np.sqrt(squares)[:, None])


def _parts(layer: JointLayer, grams: Sequence[Sequence[_Gram]], importance: Mapping[int, FloatArray]) -> list[_Part]:
    """Return the blocks of a layer."""
    matrices = [gram.centred() for (gram,) in grams]
    kernels = _scaled(layer, matrices, importance)
    ridges = [RIDGE * float(np.trace(g)) / len(g) + 1e-30 for g in matrices]
    return [
        _Part(g, k, layer.columns(b), ridge)
        for b, (g, k, ridge) in enumerate(zip(matrices, kernels, ridges, strict=True))
    ]


def _alone(layer: JointLayer, grams: Sequence[Sequence[_Gram]]) -> FloatArray:
    """Return what each unit alone adds to a layer that is no regression here, as a share of the sum over units."""
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
