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


@dataclass(frozen=True)
class _Step:
    """How the heaviest paths up to the channels of a tensor follow from those before an op: read once, walked a path.

    Attributes:
        output, axis: the tensor, and the axis of its channels.
        sources: the tensors that the paths come from, their channels counted one behind the other; () where they start.
        begins: int[sources], the first channel of each.
    """

    output: str
    axis: int
    sources: tuple[str, ...] = ()
    begins: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))

    def before(self, channel: int) -> tuple[str, int]:
        """Return the tensor and the position of one of the channels before the op."""
        at = int(np.searchsorted(self.begins, channel, side="right")) - 1
        return self.sources[at], channel - int(self.begins[at])

    def walk(self, weight: FloatArray) -> tuple[FloatArray, IntArray]:
        """Return the weight of each channel, and the one before that it comes from, given the weights before."""
        return weight, np.arange(len(weight))


@dataclass(frozen=True)
class _Start(_Step):
    """Channels that no path leads to: one starts at each."""

    size: int = 0

    def walk(self, weight: FloatArray) -> tuple[FloatArray, IntArray]:
        return np.zeros(self.size), np.zeros(self.size, np.int64)


@dataclass(frozen=True)
class _Mix(_Step):
    """An op with a kernel; `edges` float[blocks, in, out], their log norms, -inf once taken."""

    edges: FloatArray = field(default_factory=lambda: np.zeros((1, 1, 1)))

    def walk(self, weight: FloatArray) -> tuple[FloatArray, IntArray]:
        blocks, ins, _ = self.edges.shape
        sums = weight.reshape(blocks, ins, 1) + self.edges
        best = sums.argmax(axis=1)
        found = np.take_along_axis(sums, best[:, None], axis=1)[:, 0].reshape(-1)
        return found, (best + np.arange(blocks)[:, None] * ins).reshape(-1)


@dataclass(frozen=True)
class _Carry(_Step):
    """An op that mixes no channels: positions of one class are one channel, and the heaviest of them goes on.

    Attributes:
        order: the channels before the op, those of a class together.
        runs: the first of every class in `order`, then their number; None where every class is one channel.
        place: the class of every channel, -1 where no path leads to it.
        scale: what the op adds to the weights.
    """

    order: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    runs: IntArray | None = None
    place: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    scale: FloatArray | float = 0.0

    def walk(self, weight: FloatArray) -> tuple[FloatArray, IntArray]:
        best = self.order
        if self.runs is not None:
            sums, starts = weight[self.order], self.runs[:-1]
            most = np.repeat(np.maximum.reduceat(sums, starts), np.diff(self.runs))
            best = best[np.minimum.reduceat(np.where(sums < most, len(sums), np.arange(len(sums))), starts)]
        came = best[self.place]
        found = np.where(self.place < 0, -np.inf, weight[came])
        return found + self.scale, came


class _Paths:
    """Takes the heaviest paths out of a model's kernels."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._traced = setting, setting.traced
        self._sites: Mapping[int, Site] = {s.node: s for s in self._traced.labels.trace.linear if s.weight is not None}
        self._edges = {node: self._norms(site) for node, site in self._sites.items()}
        self._scales = self._batch_norms()
        self._steps = self._read()
        self._by_output = {step.output: step for step in self._steps}

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
            weights, came = self._pass()
            if number == 0:
                for name, weight in weights.items():
                    for slot in self._traced.labels.units(name, self._by_output[name].axis).T:
                        np.maximum.at(reach, slot[slot >= 0], weight[slot >= 0])
            if not self._take(weights, came, first, number) or np.isfinite(first).all():
                break
        missed = np.flatnonzero(~np.isfinite(first))
        late = missed[np.argsort(-reach[missed], kind="stable")]
        first[late] = PATHS + np.arange(len(late))
        return -first

    def _read(self) -> list[_Step]:
        """Return the steps through the model, in topological order."""
        axes, steps, sizes = dict[str, int](), list[_Step](), dict[str, int]()
        for index, node in enumerate(self._traced.shaped.graph.nodes):
            site, found = self._sites.get(index), list[_Step]()
            if site is not None and site.weight is not None:
                edges = self._edges[index]
                blocks, ins, outs = edges.shape
                if axes.get(site.tensor) != site.axis:
                    found.append(_Start(site.tensor, site.axis, size=blocks * ins))
                    sizes[site.tensor] = blocks * ins
                found.append(_Mix(node.output[0], site.weight.out, (site.tensor,), edges=edges))
                sizes[node.output[0]] = blocks * outs
            else:
                found += self._carried(index, axes, sizes)
            axes |= {step.output: step.axis for step in found}
            steps += found
        return steps

    def _carried(self, index: int, axes: Mapping[str, int], sizes: dict[str, int]) -> list[_Step]:
        """Return the steps through an op without a kernel, where paths come to it."""
        node, labels = self._traced.shaped.graph.nodes[index], self._traced.labels
        read = [name for name in dict.fromkeys(reads(node)) if name in axes]
        told = [(name, labels.axis(name, axes[name])) for name in read]
        sources = [(name, classes) for name, classes in told if classes is not None and len(classes)]
        if not sources:
            return []
        begins = np.cumsum([0, *(sizes[name] for name, _ in sources)])[:-1]
        kinds = np.concatenate([classes for _, classes in sources])
        channels = np.concatenate([begin + np.arange(len(c)) for begin, (_, c) in zip(begins, sources, strict=True)])
        order = np.argsort(kinds, kind="stable")
        known, starts = np.unique(kinds[order], return_index=True)
        runs = None if len(known) == len(kinds) else np.append(starts, len(kinds))
        steps = list[_Step]()
        for output in node.output:
            every = [labels.axis(output, k) for k in range(len(self._traced.shaped.shapes.get(output, ())))]
            counts = [(int(np.isin(c, known).sum()), -k) for k, c in enumerate(every) if c is not None]
            if not counts or not max(counts)[0]:
                continue
            axis = -max(counts)[1]
            classes = every[axis]
            assert classes is not None
            at = np.searchsorted(known, classes).clip(max=len(known) - 1)
            place = np.where(known[at] == classes, at, -1)
            scale = self._scales.get(index, 0.0) if axis == CHANNELS else 0.0
            names = tuple(name for name, _ in sources)
            steps.append(
                _Carry(output, axis, names, begins, order=channels[order], runs=runs, place=place, scale=scale)
            )
            sizes[output] = len(classes)
        return steps

    def _pass(self) -> tuple[dict[str, FloatArray], dict[str, IntArray]]:
        """Return the log weights of the heaviest paths up to all channels of all tensors, and where each is from."""
        weights, came = dict[str, FloatArray](), dict[str, IntArray]()
        for step in self._steps:
            before = [weights[name] for name in step.sources]
            joined = before[0] if len(before) == 1 else np.concatenate([*before, np.zeros(0)])
            weights[step.output], came[step.output] = step.walk(joined)
        return weights, came

    def _take(
        self, weights: Mapping[str, FloatArray], came: Mapping[str, IntArray], first: FloatArray, number: int
    ) -> bool:
        """Note the units of the heaviest path to an output and take its edges out; False where there is none left."""
        outputs = [o.name for o in self._traced.shaped.graph.model.graph.output]
        ends = [(float(weights[n].max()), n) for n in outputs if n in weights and len(weights[n])]
        if not ends or max(ends)[0] == -np.inf:
            return False
        name = max(ends)[1]
        place = int(weights[name].argmax())
        while True:
            step = self._by_output[name]
            units = self._traced.labels.units(name, step.axis)
            for unit in units[place] if place < len(units) else ():
                if unit >= 0:
                    first[unit] = min(first[unit], number)
            if not step.sources:
                return True
            before = int(came[name][place])
            if isinstance(step, _Mix):
                _, ins, outs = step.edges.shape
                step.edges[before // ins, before % ins, place % outs] = -np.inf
            name, place = step.before(before)
