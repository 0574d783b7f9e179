"""The pass: a traced model to one that computes the same in other bases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnxshap.bases.carriers import Carriers, carriers_of, keys_by_group
from onnxshap.bases.probing import Probe, linear_between, turned_constant
from onnxshap.bases.responses import Found, bases_of
from onnxshap.bases.roles import bundles
from onnxshap.bases.stored import Bases, Basis
from onnxshap.calibrate import batches, run_all
from onnxshap.core import Array, Dataset, FloatArray
from onnxshap.errors import DataError, ModelError, OnnxshapError
from onnxshap.graph import array
from onnxshap.graph.structure import copied
from onnxshap.graph.weights import Kept, initializer
from onnxshap.groups import Group
from onnxshap.tracing import Traced
from onnxshap.verify import compare

BASES = ("principal", "own")
_LARGEST = 2048
"""Units beyond which a basis takes too long: of 2000, half a minute on a core, and it goes with the cube."""
_CHECKED_IMAGES = 16
_SAME = 1e-4
"""Of an output's largest magnitude, what it may differ by in the new bases."""


def check_basis(basis: str | None, valued: str | None = None) -> None:
    """Refuse an unknown basis, or one that the values of an earlier run do not fit.

    Args:
        basis: one of `BASES`; None = what fits.
        valued: the basis of the values; None = there are none.

    Raises:
        OnnxshapError: it is one of these.
    """
    if basis is not None and basis not in BASES:
        raise OnnxshapError(f"basis {basis!r} is unknown; choose one of {', '.join(BASES)}")
    if basis is not None and valued not in (None, basis):
        raise OnnxshapError(
            f"--basis {basis} needs values of its own units, these are of basis {valued}; leave --basis out, or score "
            f"with --basis {basis}"
        )


@dataclass(frozen=True)
class Turned:
    """A model in other bases.

    Attributes:
        traced: the model; its labels are those of the original.
        bases: those of its groups whose units are other ones now, in order.
    """

    traced: Traced
    bases: Bases
    _original: Traced
    _turns: Sequence[tuple[Found, FloatArray]]

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups whose units are other ones now."""
        return tuple(self.bases)

    def only(self, groups: Collection[str]) -> Traced:
        """Return the model with some groups alone in their bases, the others as in the file."""
        if set(groups) >= self.bases.keys():
            return self.traced
        return _turned(self._original, [turn for turn in self._turns if turn[0].places.group.name in groups])


def turned(traced: Traced, free: Traced, groups: Sequence[Group], data: Dataset, given: Bases | None = None) -> Turned:
    """Return the model with the units of all groups that bear it in the basis in which a cut loses least.

    It is held against the original on some inputs; where it differs by more than rounding, it stays as it is.

    Args:
        traced, free: the model, as in its file and for evaluation.
        groups: those that may be cut.
        data: calibration inputs.
        given: the bases that an earlier run found, to turn the same way.

    Raises:
        DataError: the model has no places for those that are given, or does not compute the same in them.
    """
    turns = list(_found(free, groups, data) if given is None else _given(free, groups, data, given))
    bases = dict[str, list[Basis]]()
    for one, matrices in turns:
        some = bases.setdefault(one.places.group.name, [])
        some.append(Basis(one.bundle.told(one.places), matrices.astype(np.float32)))
    made = _turned(traced, turns)
    if made is traced or _same(traced, made.shaped.graph.model, data):
        return Turned(made, bases, traced, turns)
    if given is not None:
        raise DataError(
            f"the values are of combinations of units in which the model does not compute the same on {data.source}; "
            "score it on these data"
        )
    return Turned(traced, {}, traced, [])


def _found(free: Traced, groups: Sequence[Group], data: Dataset) -> Iterator[tuple[Found, FloatArray]]:
    """Yield the bundles of groups with the bases that data tell, which are as exact as they are kept."""
    found = list(_borne(free, groups, data))
    for one, matrices in zip(found, bases_of(free, found, data), strict=True):
        if matrices is not None:
            yield one, matrices.astype(np.float32).astype(np.float64)


def _given(free: Traced, groups: Sequence[Group], data: Dataset, given: Bases) -> Iterator[tuple[Found, FloatArray]]:
    """Yield the bundles of groups with the bases of an earlier run.

    Raises:
        DataError: it found others, or none that can be undone.
    """
    chosen = [group for group in groups if group.name in given]
    found = {(one.places.group.name, one.bundle.told(one.places)): one for one in _borne(free, chosen, data)}
    for group in chosen:
        for basis in given[group.name]:
            one = found.pop((group.name, basis.places), None)  # twice would be another basis
            if one is None or basis.matrices.shape != (one.bundle.blocks, len(group), len(group)):
                raise DataError(
                    f"the values are of other combinations of the units of group {group.name!r} than this version "
                    "makes; score the model again"
                )
            matrices = basis.matrices.astype(np.float64)
            try:
                np.linalg.inv(matrices)
            except np.linalg.LinAlgError as error:
                raise DataError(
                    f"the values' combinations of the units of group {group.name!r} cannot be undone; score the model "
                    "again"
                ) from error
            yield one, matrices


def _turned(traced: Traced, turns: Sequence[tuple[Found, FloatArray]]) -> Traced:
    """Return a model with some bundles in some bases."""
    if not turns:
        return traced
    made, kept = copied(traced.shaped.graph.model), Kept(traced.shaped.graph.kept)
    stored = {t.name: t for t in made.graph.initializer}
    changed = dict[str, Array]()
    for one, bases in turns:
        for number, turn in one.bundle.turns(one.places, bases).items():
            entry = one.places.entries[number]
            values = changed.get(entry.name)
            values = array(stored[entry.name]).astype(np.float64) if values is None else values
            changed[entry.name] = turned_constant(values, entry.axis, entry.spots.at, turn)
    for name, values in changed.items():
        with np.errstate(over="ignore"):  # Inf gives another model, which is refused
            item = initializer(name, values.astype(array(stored[name]).dtype), kept)
        item.doc_string = stored[name].doc_string
        item.metadata_props.extend(stored[name].metadata_props)
        stored[name].CopyFrom(item)
    return _with(traced, made, kept)


def _same(traced: Traced, made: ModelProto, data: Dataset) -> bool:
    """Return whether a form of a model gives what the model gives, but for rounding."""
    part = data.take(slice(0, _CHECKED_IMAGES))
    before, after = (run_all(traced, model, part) for model in (traced.shaped.graph.model, made))
    return compare(after, before, before).rel_err <= _SAME


def _with(traced: Traced, model: ModelProto, kept: Kept) -> Traced:
    """Return a traced model with other weights; `source` is still the original."""
    graph = replace(traced.shaped.graph, model=model, kept=kept)
    return replace(traced, shaped=replace(traced.shaped, graph=graph))


def _borne(free: Traced, groups: Sequence[Group], data: Dataset) -> Iterator[Found]:
    """Yield the parts of groups that the model bears in any basis."""
    keys = keys_by_group(free, groups)
    _, feeds = next(iter(batches(free, data.take(np.resize(np.arange(len(data)), free.batch)), free.batch)))
    shared = _shared(free)
    for group in groups:
        places = carriers_of(free, group, keys[group.name]) if 1 < len(group) <= _LARGEST else None
        if places is None or not _alone(places, shared) or not linear_between(free, places, feeds):
            continue
        try:
            found = bundles(places, Probe(free, places, feeds))
        except ModelError:  # what touches the units does not run alone
            continue
        yield from (Found(places, bundle) for bundle in found)


def _shared(free: Traced) -> set[str]:
    """Return the matrices that are stored once for several places: in one's basis they could not be any more.

    Vectors may become several: exporters store biases that happen to be equal once.
    """
    graph, found = free.shaped.graph, dict[str, list[str]]()
    for t in graph.model.graph.initializer:
        if sum(size > 1 for size in t.dims) < 2:
            continue
        found.setdefault(graph.origin.get(t.name, t.name), []).append(t.name)
    return {name for copies in found.values() if len(copies) > 1 for name in copies}


def _alone(places: Carriers, shared: set[str]) -> bool:
    return shared.isdisjoint(entry.name for entry in places.entries)
