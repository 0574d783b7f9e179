"""`lean`: units by the heaviest paths of the whole network, from its weights alone.

Channels are nodes, the kernel between two channels is an edge that weighs its operator norm (the largest magnitude of
its Fourier transform, zero padded; of a strided kernel, the root of the sum of squares over its polyphase parts);
scales of BatchNormalization count along the way. The heaviest path from an input to an output (largest product) is
found by one pass in topological order, its channels are kept, its edges taken out, and so on. phi falls with the number
of the path that keeps a unit first; units that no path reached, by the weight of the heaviest path up to them.

Source: Schoonhoven et al. 2020 (LEAN: LongEst-chAiN). Differs: channels of a residual sum are one unit here, which is
kept as soon as a path runs through any of them; at most 1,000 paths.
Cost: no rows and no data; a pass over all kernels a path.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxshap.core import FloatArray, ImageIndex, IntArray, Values
from onnxshap.game import Setting
from onnxshap.graph import attributes, is_op
from onnxshap.graph.structure import reads
from onnxshap.groups import Group
from onnxshap.labels import Site
from onnxshap.methods.base import Tell
from onnxshap.methods.recon import kernels_of
from onnxshap.shapes.constants import CHANNELS, is_stored, norm_scale
from onnxshap.tracing import Traced

PATHS = 1_000
"""Paths taken out at most."""
_GRID = 8
"""Frequencies per axis, twice the kernel's size where that is more."""


def lean(setting: Setting, group: Group, rng: np.random.Generator, images: ImageIndex, tell: Tell) -> Values:
    """Return minus the number of the path that keeps each unit first (see the module)."""
    return Values(_of_model(setting)[group.units], np.zeros(len(group)))


_last: list[tuple[weakref.ref[Traced], FloatArray]] = []
"""The last model's values: they are those of all groups at once."""


def _of_model(setting: Setting) -> FloatArray:
    if _last and _last[0][0]() is setting.traced:
        return _last[0][1]
    values = _Paths(setting).values()
    _last[:] = [(weakref.ref(setting.traced), values)]
    return values


def operator_norms(kernels: FloatArray, strides: tuple[int, ...]) -> FloatArray:
    """Return the norms of kernels [..., *space] as convolutions with these strides.

    >>> operator_norms(np.array([[1.0, 2.0, 1.0]]), (1,)).round(6).tolist()
    [4.0]
    >>> operator_norms(np.array([[1.0, 1.0]]), (2,)).round(6).tolist()
    [1.414214]
    """
    rank = len(strides)
    if not rank:
        return np.abs(kernels)
    space = kernels.shape[-rank:]
    total = np.zeros(
        kernels.shape[:-rank] + tuple(max(_GRID, 2 * -(-k // s)) for k, s in zip(space, strides, strict=True))
    )
    for part in np.ndindex(*strides):
        at: tuple[Any, ...] = (..., *(slice(p, None, s) for p, s in zip(part, strides, strict=True)))
        phase = kernels[at]
        if phase.size:
            total += np.abs(np.fft.fftn(phase, s=total.shape[-rank:], axes=range(-rank, 0))) ** 2
    return np.asarray(np.sqrt(total.max(axis=tuple(range(-rank, 0)))))


@dataclass
class _Reached:
    """The heaviest paths up to the channels of a tensor: log weights, and where each comes from."""

    axis: int
    weight: FloatArray
    source: list[str]
    place: IntArray
    edge: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))


class _Paths:
    """Takes the heaviest paths out of a model's kernels."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._traced = setting, setting.traced
        self._sites: Mapping[int, Site] = {s.node: s for s in self._traced.labels.trace.linear if s.weight is not None}
        self._edges = {node: self._norms(site) for node, site in self._sites.items()}
        self._scales = self._batch_norms()

    def _norms(self, site: Site) -> FloatArray:
        """Return the log norms of an op's kernels [blocks, in, out]."""
        node, weight = self._traced.shaped.graph.nodes[site.node], site.weight
        assert weight is not None
        kernels = kernels_of(self._setting, site)
        blocks, ins, _, outs = kernels.shape
        space: tuple[int, ...] = ()
        if is_op(node, "Conv", "ConvTranspose"):
            space = tuple(self._traced.shaped.shapes[node.input[weight.input]][2:])
        strides = tuple(attributes(node).get("strides", [1] * len(space)))[: len(space)]
        shaped = kernels.transpose(0, 1, 3, 2).reshape(blocks, ins, outs, *space)
        if not space:
            shaped = shaped.reshape(blocks, ins, outs, -1).sum(axis=-1)
        norms = np.stack([np.stack([operator_norms(row, strides) for row in block]) for block in shaped])
        with np.errstate(divide="ignore"):
            return np.log(norms)

    def _batch_norms(self) -> dict[int, FloatArray]:
        found, shaped = {}, self._traced.shaped
        for index, node in enumerate(shaped.graph.nodes):
            if is_op(node, "BatchNormalization") and is_stored(node, shaped.constants):
                with np.errstate(divide="ignore"):
                    scale = norm_scale(shaped.graph.model, self._traced.backend, node)
                    found[index] = np.log(np.abs(scale))
        return found

    def values(self) -> FloatArray:
        """Return minus the number of the first path through each unit; beyond the last, by the weight up to it."""
        units = self._traced.labels.n_units
        first = np.full(units, np.inf)
        reach = np.full(units, -np.inf)
        for number in range(PATHS):
            reached = self._pass()
            if number == 0:
                for name, found in reached.items():
                    for slot in self._traced.labels.units(name, found.axis).T:
                        np.maximum.at(reach, slot[slot >= 0], found.weight[slot >= 0])
            if not self._take(reached, first, number) or np.isfinite(first).all():
                break
        missed = np.flatnonzero(~np.isfinite(first))
        late = missed[np.argsort(-reach[missed], kind="stable")]
        first[late] = PATHS + np.arange(len(late))
        return -first

    def _pass(self) -> dict[str, _Reached]:
        """Return the heaviest paths up to every channel of every tensor."""
        traced, reached = self._traced, dict[str, _Reached]()
        for index, node in enumerate(traced.shaped.graph.nodes):
            site = self._sites.get(index)
            if site is not None and site.weight is not None:
                edges = self._edges[index]
                blocks, ins, _ = edges.shape
                before = reached.get(site.tensor)
                if before is None or before.axis != site.axis:
                    start = np.zeros(blocks * ins)
                    before = _Reached(site.axis, start, [""] * len(start), np.zeros(len(start), np.int64))
                    reached[site.tensor] = before
                sums = before.weight.reshape(blocks, ins, 1) + edges
                best = sums.argmax(axis=1)
                weight = np.take_along_axis(sums, best[:, None], axis=1)[:, 0].reshape(-1)
                place = (best + np.arange(blocks)[:, None] * ins).reshape(-1)
                edge = np.full(len(weight), index)
                reached[node.output[0]] = _Reached(site.weight.out, weight, [site.tensor] * len(weight), place, edge)
            else:
                self._carry(index, reached)
        return reached

    def _carry(self, index: int, reached: dict[str, _Reached]) -> None:
        """Pass the paths on through an op that mixes no channels: positions of one class are one channel."""
        node, labels = self._traced.shaped.graph.nodes[index], self._traced.labels
        sources = [(name, reached[name]) for name in dict.fromkeys(reads(node)) if name in reached]
        best: dict[int, tuple[float, str, int]] = {}
        for name, found in sources:
            classes = labels.axis(name, found.axis)
            for place, kind in enumerate(() if classes is None else classes.tolist()):
                if kind not in best or found.weight[place] > best[kind][0]:
                    best[kind] = float(found.weight[place]), name, place
        for output in node.output:
            found_axes = []
            for axis in range(len(self._traced.shaped.shapes.get(output, ()))):
                classes = labels.axis(output, axis)
                if classes is not None:
                    known = sum(kind in best for kind in classes.tolist())
                    found_axes.append((known, -axis, classes))
            if not found_axes or not max(found_axes, key=lambda f: f[:2])[0]:
                continue
            _, negative, classes = max(found_axes, key=lambda f: f[:2])
            got = [best.get(kind, (-np.inf, "", 0)) for kind in classes.tolist()]
            weight = np.array([g[0] for g in got])
            if index in self._scales and -negative == CHANNELS:
                weight = weight + self._scales[index]
            places = np.array([g[2] for g in got], np.int64)
            reached[output] = _Reached(-negative, weight, [g[1] for g in got], places)

    def _take(self, reached: Mapping[str, _Reached], first: FloatArray, number: int) -> bool:
        """Note the units of the heaviest path to an output and take its edges out; False where there is none left."""
        ends = [
            (float(reached[o.name].weight.max()), o.name)
            for o in self._traced.shaped.graph.model.graph.output
            if o.name in reached and len(reached[o.name].weight)
        ]
        if not ends or max(ends)[0] == -np.inf:
            return False
        name = max(ends)[1]
        place = int(reached[name].weight.argmax())
        while name:
            found = reached[name]
            units = self._traced.labels.units(name, found.axis)
            for unit in units[place] if place < len(units) else ():
                if unit >= 0:
                    first[unit] = min(first[unit], number)
            before = int(found.place[place])
            if len(found.edge):
                edges = self._edges[int(found.edge[place])]
                _, ins, outs = edges.shape
                edges[before // ins, before % ins, place % outs] = -np.inf
            name, place = found.source[place], before
        return True
