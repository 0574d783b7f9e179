"""The pass: a traced model to one that computes the same in other bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, TensorProto

from onnxshap.bases.carriers import Carriers, carriers_of, keys_by_group
from onnxshap.bases.directions import principal
from onnxshap.bases.probing import Probe, linear_between, turned_constant
from onnxshap.bases.roles import Bundle, Part, bundles
from onnxshap.calibrate import batches
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.graph import array, extract, finish
from onnxshap.graph.structure import copied
from onnxshap.graph.weights import set_values
from onnxshap.groups import Group
from onnxshap.labels import AxisKey, Site
from onnxshap.labels.kernels import by_group
from onnxshap.shapes.constants import static_values
from onnxshap.tracing import Traced

IMAGES = 256
"""Most images that covariances are taken over."""
ROWS = 20_000
"""Rows of each, about."""
_ASKED = 2
"""Images that the model is asked on."""
_LARGEST = 4096
"""Units beyond which a basis takes too long."""
_BATCH = 16


@dataclass(frozen=True)
class Turned:
    """A model in other bases.

    Attributes:
        traced: the model; its labels are those of the original.
        groups: names of the groups whose units are other ones now.
    """

    traced: Traced
    groups: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    places: Carriers
    bundle: Bundle


def turned(traced: Traced, free: Traced, groups: Sequence[Group], data: Dataset) -> Turned:
    """Return the model with the units of all groups that bear it in the basis in which least is lost.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut.
        data: calibration inputs.
    """
    found = list(_borne(free, groups, data))
    if not found:
        return Turned(traced, ())
    made = copied(traced.shaped.graph.model)
    stored = {t.name: t for t in made.graph.initializer}
    changed, names = dict[str, Array](), dict[str, None]()
    for one, bases in zip(found, _bases(free, found, data), strict=True):
        if bases is None:
            continue
        for number, turn in one.bundle.turns(one.places, bases).items():
            entry = one.places.entries[number]
            values = changed.get(entry.name)
            values = array(stored[entry.name]).astype(np.float64) if values is None else values
            changed[entry.name] = turned_constant(values, entry.axis, entry.spots.at, turn)
        names[one.places.group.name] = None
    for name, values in changed.items():
        set_values(stored[name], values.astype(array(stored[name]).dtype))
    return Turned(_with(traced, made), tuple(names))


def _with(traced: Traced, model: ModelProto) -> Traced:
    """Return a traced model with other weights."""
    graph = replace(traced.shaped.graph, model=model)
    return replace(traced, source=finish(model, graph), shaped=replace(traced.shaped, graph=graph))


def _borne(free: Traced, groups: Sequence[Group], data: Dataset):  # type: ignore[no-untyped-def]
    """Yield what may have another basis."""
    keys = keys_by_group(free, groups)
    _, feeds = next(iter(batches(free, data.take(slice(0, _ASKED)), _ASKED)))
    shared = _sources(free)
    for group in groups:
        if not 1 < len(group) <= _LARGEST:
            continue
        places = carriers_of(free, group, keys[group.name])
        if places is None or not _alone(places, shared) or not linear_between(free, places, feeds):
            continue
        for bundle in bundles(places, Probe(free, places, feeds)):
            yield _Found(places, bundle)


def _sources(free: Traced) -> dict[str, list[str]]:
    """Return the copies of every initializer that is read in several places."""
    graph, found = free.shaped.graph, dict[str, list[str]]()
    for t in graph.model.graph.initializer:
        found.setdefault(graph.origin.get(t.name, t.name), []).append(t.name)
    return {name: copies for copies in found.values() if len(copies) > 1 for name in copies}


def _alone(places: Carriers, shared: Mapping[str, Sequence[str]]) -> bool:
    """Return whether no entry is stored once for several places."""
    return not any(e.name in shared for e in places.entries)


def _bases(free: Traced, found: Sequence[_Found], data: Dataset) -> list[FloatArray | None]:
    """Return the bases of every bundle, float64[blocks, n, n]; None where there are none."""
    blocks: dict[AxisKey, list[Array]] = {}
    for one in found:
        for key in _seen(free, one):
            blocks.setdefault(key, []).extend(_places(one, key))
    moments = _moments(free, blocks, data)
    return [_basis(free, one, moments) for one in found]


def _seen(free: Traced, one: _Found) -> list[AxisKey]:
    """Return the tensors whose covariances tell the bases of a bundle."""
    if one.bundle.met:
        return [_last(free, one.places, part) for part in (*one.bundle.made, *one.bundle.met)]
    return [(s.tensor, s.axis) for s in _sites(one)]


def _sites(one: _Found) -> list[Site]:
    """Return the layers that sum the units of a bundle away."""
    stretches = {tensor: k for k, part in enumerate(one.places.stretches) for tensor, _ in part}
    read = {part.stretch for part in one.bundle.read}
    return [s for s in one.places.sites if s.weight is not None and stretches.get(s.tensor) in read]


def _last(free: Traced, places: Carriers, part: Part) -> AxisKey:
    """Return the last tensor of a stretch: behind the bias."""
    return max(places.stretches[part.stretch], key=lambda key: free.shaped.producers.get(key[0], -1))


def _places(one: _Found, key: AxisKey) -> list[Array]:
    """Return the positions of the units on an axis, an array for every occurrence."""
    stretch = next(k for k, part in enumerate(one.places.stretches) if key in part)
    return list(one.places.spots(stretch).at)


Moment = dict[tuple[AxisKey, tuple[int, ...]], tuple[int, FloatArray, FloatArray]]
"""Axis and positions -> rows, sums float64[n], products float64[n, n]."""


def _moments(free: Traced, blocks: Mapping[AxisKey, Sequence[Array]], data: Dataset) -> Moment:
    """Return sums over rows of the units at some positions of some axes."""
    shaped = free.shaped
    kinds = {t: TensorProto.FLOAT for t, _ in blocks}
    given = {i.name: i.type.tensor_type.elem_type for i in shaped.graph.model.graph.input}
    session = free.backend.session(extract(shaped.graph.model, given, kinds))
    names, images = list(kinds), min(len(data), IMAGES)
    found: Moment = {}
    for count, feeds in batches(free, data.take(slice(0, images)), _BATCH):
        values = dict(zip(names, session.run({n: feeds[n] for n in session.inputs}), strict=True))
        for key, places in blocks.items():
            x = np.moveaxis(values[key[0]], key[1], -1)
            flat = x.reshape(-1, x.shape[-1])
            step = max(1, len(flat) * images // (ROWS * count))
            for at in {tuple(m.tolist()): m for m in places}.values():
                rows = flat[::step, at].astype(np.float64)
                total, sums, squares = found.get((key, tuple(at.tolist())), (0, 0.0, 0.0))
                found[key, tuple(at.tolist())] = (total + len(rows), sums + rows.sum(axis=0), squares + rows.T @ rows)
    return found


def _second(moment: tuple[int, FloatArray, FloatArray], centred: bool) -> FloatArray:
    rows, sums, squares = moment
    mean = sums / rows
    return np.asarray(squares / rows - centred * np.outer(mean, mean))


def _basis(free: Traced, one: _Found, moments: Moment) -> FloatArray | None:
    """Return the bases of a bundle."""
    made = []
    for block in range(one.bundle.blocks):
        pair = _of_product(free, one, moments, block) if one.bundle.met else _of_readers(free, one, moments, block)
        basis = principal(*pair)
        if basis is None:
            return None
        made.append(basis)
    return np.stack(made)


def _of_product(free: Traced, one: _Found, moments: Moment, block: int) -> tuple[FloatArray, FloatArray]:
    """Return the second moments of two parts that are multiplied with each other."""
    found = []
    for part in (*one.bundle.made, *one.bundle.met):
        key = _last(free, one.places, part)
        at = one.places.spots(part.stretch).at[part.occurrences[block]]
        found.append(_second(moments[key, tuple(at.tolist())], centred=False))
    return found[0], found[1]


def _of_readers(free: Traced, one: _Found, moments: Moment, block: int) -> tuple[FloatArray, FloatArray]:
    """Return the mean covariance at the layers that read a part, and what their outputs' errors weigh.

    Every layer's errors count as shares of the variance that the units give it.
    """
    nodes, model = free.shaped.graph.nodes, free.shaped.graph.model
    size = len(one.places.group)
    covariance, weight, terms = np.zeros((size, size)), np.zeros((size, size)), 0
    stretches = {tensor: k for k, part in enumerate(one.places.stretches) for tensor, _ in part}
    parts = {part.stretch: part for part in one.bundle.read}
    for site in _sites(one):
        assert site.weight is not None
        name = nodes[site.node].input[site.weight.input]
        kernel = by_group(static_values(model, free.backend, [name])[name], site.weight)[0]
        part = parts[stretches[site.tensor]]
        at = one.places.spots(part.stretch).at
        chosen = range(len(at)) if one.bundle.single else [part.occurrences[block]]
        own, energy = np.zeros((size, size)), 0.0
        for m in chosen:
            rows = kernel[at[m]].reshape(size, -1)
            seen = _second(moments[(site.tensor, site.axis), tuple(at[m].tolist())], centred=True)
            own += rows @ rows.T
            energy += float(np.vdot(seen, rows @ rows.T))
            covariance, terms = covariance + seen, terms + 1
        weight += own / max(energy, 1e-30)
    return covariance / max(1, terms), weight
