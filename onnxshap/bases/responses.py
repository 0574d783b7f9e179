"""What the units of a bundle are like on calibration inputs, and what errors in them do to what reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from onnxshap.bases.carriers import Carriers
from onnxshap.bases.directions import principal
from onnxshap.bases.roles import Bundle, Part
from onnxshap.calibrate import activations
from onnxshap.core import Dataset, FloatArray, IntArray
from onnxshap.labels import AxisKey, Site
from onnxshap.labels.kernels import by_group
from onnxshap.shapes.constants import static_values
from onnxshap.tracing import Traced

IMAGES = 500
"""Most inputs that covariances are taken over."""
_FEWEST = 64
"""Inputs after which there are enough of them, if there are `_ROWS` rows of each."""
_ROWS = 20_000
_BATCH = 16
"""Most inputs at a time, fewer where the memory does not hold twice the units' values of so many."""


@dataclass(frozen=True)
class Found:
    """A bundle of a group's places."""

    places: Carriers
    bundle: Bundle

    def at(self, part: Part, block: int) -> IntArray:
        """Return the positions of the units of a block of a part."""
        return np.asarray(self.places.spots(part.stretch).at[part.occurrences[block]])

    def key(self, free: Traced, part: Part) -> AxisKey:
        """Return the last tensor of a part's stretch: behind the bias."""
        return max(self.places.stretches[part.stretch][0], key=lambda key: free.shaped.producers.get(key[0], -1))

    @property
    def sites(self) -> list[tuple[Site, list[Part]]]:
        """The layers with weights that sum the units away, and the parts that they read."""
        number = self.places.tensors
        every = [
            (site, [part for part in self.bundle.read if part.stretch == number.get(site.tensor)])
            for site in self.places.sites
            if site.weight is not None
        ]
        return [(site, parts) for site, parts in every if parts]


@dataclass
class _Sums:
    """Sums over rows of units: rows, values float64[n], products float64[n, n]."""

    rows: int
    values: FloatArray
    products: FloatArray

    def add(self, x: FloatArray) -> None:
        self.rows += len(x)
        self.values += x.sum(axis=0)
        self.products += x.T @ x

    @property
    def second(self) -> FloatArray:
        """The second moments."""
        return self._shrunk(self.products / max(1, self.rows))

    @property
    def covariance(self) -> FloatArray:
        """The same about the means."""
        mean = self.values / max(1, self.rows)
        return self._shrunk(self.products / max(1, self.rows) - np.outer(mean, mean))

    def _shrunk(self, moments: FloatArray) -> FloatArray:
        """Return moments as if n more rows varied alike in all directions: few rows tell the weakest ones badly."""
        n = len(moments)
        return np.asarray((self.rows * moments + np.trace(moments) * np.eye(n)) / (self.rows + n))


_Moments = Mapping[tuple[AxisKey, bytes], _Sums]
"""Axis and positions -> sums."""


def bases_of(free: Traced, found: Sequence[Found], data: Dataset) -> list[FloatArray | None]:
    """Return the bases of every bundle, float64[blocks, n, n]; None where its units do not vary, or nothing reads them.

    Args:
        free: the model for evaluation.
        found: the bundles.
        data: calibration inputs; `IMAGES` of them are used.
    """
    wanted = dict[AxisKey, dict[bytes, IntArray]]()
    for one in found:
        for key, at in _seen(free, one):
            wanted.setdefault(key, {})[at.tobytes()] = at
    moments = _moments(free, wanted, data) if wanted else {}
    return [_basis(free, one, moments) for one in found]


def _seen(free: Traced, one: Found) -> list[tuple[AxisKey, IntArray]]:
    """Return the axes and the positions whose moments tell the bases of a bundle."""
    if one.bundle.met:
        parts = (*one.bundle.made, *one.bundle.met)
        return [(one.key(free, p), one.at(p, b)) for p in parts for b in range(len(p.occurrences))]
    return [
        ((s.tensor, s.axis), one.at(p, b)) for s, some in one.sites for p in some for b in range(len(p.occurrences))
    ]


def _moments(free: Traced, wanted: Mapping[AxisKey, Mapping[bytes, IntArray]], data: Dataset) -> _Moments:
    """Return the sums over rows of the units at some positions of some axes."""
    names = list(dict.fromkeys(tensor for tensor, _ in wanted))
    images, found = 0, dict[tuple[AxisKey, bytes], _Sums]()
    for count, values in activations(free, names, data.take(slice(0, IMAGES)), _BATCH, share=2):
        if images >= _FEWEST and all(sums.rows >= _ROWS for sums in found.values()):
            break
        images += count
        for key, places in wanted.items():
            x = np.atleast_2d(np.moveaxis(values[key[0]], key[1], -1))
            every = math.prod(x.shape[:-1])
            at_rows = np.arange(0, every, max(1, every * _FEWEST // (_ROWS * count)))
            rows = x[np.unravel_index(at_rows, x.shape[:-1])].astype(np.float64)
            for name, at in places.items():
                n = len(at)
                found.setdefault((key, name), _Sums(0, np.zeros(n), np.zeros((n, n)))).add(rows[:, at])
        del values, x, rows  # the next run takes their place
    return found


def _basis(free: Traced, one: Found, moments: _Moments) -> FloatArray | None:
    """Return the bases of a bundle, block by block."""
    bases = []
    for block in range(one.bundle.blocks):
        pair = _of_product(free, one, moments, block) if one.bundle.met else _of_readers(free, one, moments, block)
        bases.append(principal(*pair, product=bool(one.bundle.met)))
    return None if any(basis is None for basis in bases) else np.stack([b for b in bases if b is not None])


def _of_product(free: Traced, one: Found, moments: _Moments, block: int) -> tuple[FloatArray, FloatArray]:
    """Return the second moments of a part, and the sum of those that it is multiplied with."""
    made, met = (
        [moments[one.key(free, part), one.at(part, block).tobytes()].second for part in parts]
        for parts in (one.bundle.made, one.bundle.met)
    )
    return np.sum(made, axis=0), np.sum(met, axis=0)


def _of_readers(free: Traced, one: Found, moments: _Moments, block: int) -> tuple[FloatArray, FloatArray]:
    """Return the mean covariance at the layers that read a part, and what errors weigh there.

    Every layer's errors count as shares of the variance that the units give it.
    """
    size = len(one.places.group)
    covariance, weight, terms = np.zeros((size, size)), np.zeros((size, size)), 0
    for site, parts in one.sites:
        assert site.weight is not None
        name = free.shaped.graph.nodes[site.node].input[site.weight.input]
        kernel = by_group(static_values(free.shaped.graph.model, free.backend, [name])[name], site.weight)[0]
        own, energy = np.zeros((size, size)), 0.0
        for part, b in product(parts, range(len(parts[0].occurrences)) if one.bundle.single else [block]):
            at = one.at(part, b)
            rows = kernel[at].reshape(size, -1)
            seen = moments[(site.tensor, site.axis), at.tobytes()].covariance
            own += rows @ rows.T
            energy += float(np.vdot(seen, rows @ rows.T))
            covariance, terms = covariance + seen, terms + 1
        weight += own / max(energy, 1e-30)
    return covariance / max(1, terms), weight
