"""A model, traced: everything the passes know about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshap import graph as graphs
from onnxshap import shapes
from onnxshap.arguments import checked
from onnxshap.backend import Backend, OrtBackend, beside
from onnxshap.core import Array, BoolArray
from onnxshap.cost import Cost, Split, cost_of, costly_units, numbers_of, parameters, unread_weights
from onnxshap.errors import ModelError, OnnxshapError
from onnxshap.graph.loops import depths
from onnxshap.graph.tails import Tail
from onnxshap.groups import FrozenAxis, Group, covers, find_groups, frozen_axes
from onnxshap.labels import Labels, Liveness, Site, Weight
from onnxshap.rules import trace_graph
from onnxshap.rules.images import averaged_batch, led_elsewhere, paired_images, placed_images
from onnxshap.shapes import Shaped
from onnxshap.shapes.images import Images
from onnxshap.shapes.imagewalk import find_images
from onnxshap.shapes.places import numbered

_MEMBERS = (
    "axis 0 of the inputs counts no samples, going by the outputs: all of it belongs to one sample; data are "
    "[n, axis 0, ...], and an array of an input's own dimensions is one sample"
)
_PAIRS = (
    "output {!r} tells of every pair of images of a batch; a sample is what it gives alone, so it is run one by one; "
    "exported without that output it takes less"
)
_AVERAGED = (
    "input {!r}: axis {} is taken for the batch, as it is called {!r}, but the model sums over it, and axis 0 is what "
    "output {!r} has; if axis 0 counts the samples, export the model with that axis called so"
)
Keep = Mapping[str, BoolArray]
"""Group name -> bool[n_units], True = stays; groups that are absent stay whole."""


@dataclass(frozen=True)
class Traced:
    """A model with its labels and groups.

    Attributes:
        source: the model as it was given, its large initializers taken out.
        shaped: its normal form, with shapes.
        labels: which positions go together.
        backend: what it runs on.
        files: the files with external data that it came with.
        tail: the last nodes of its file, where they are off (`endings`).
        path: its own file, None where it came from none.
        splits: those of its layers that are one in its file, and two here (`factors`).
    """

    source: ModelProto = field(repr=False)
    shaped: Shaped = field(repr=False)
    labels: Labels = field(repr=False)
    backend: Backend = field(default_factory=OrtBackend)
    files: tuple[Path, ...] = ()
    tail: Tail | None = field(default=None, repr=False)
    path: Path | None = None
    splits: tuple[Split, ...] = ()

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of units, in graph order."""
        return find_groups(self.shaped, self.labels, costly_units(self.shaped, self.labels))

    @cached_property
    def cost(self) -> Cost:
        """MACs, parameters and bytes as functions of what stays."""
        beside = [] if self.tail is None else self.tail.constants
        known = {t.name for t in self.source.graph.initializer}
        return cost_of(self.shaped, self.labels, [t for t in beside if t.name not in known], self.splits)

    @cached_property
    def covers(self) -> list[NDArray[np.intp]]:
        """Sets of units of which one must stay."""
        return covers(self.labels)

    @cached_property
    def frozen(self) -> list[FrozenAxis]:
        """Axes that weights make and that stay, with the reason."""
        return frozen_axes(self.shaped, self.labels)

    @property
    def why_nothing(self) -> str:
        """Why nothing can be cut, where there are no groups."""
        reasons = list(dict.fromkeys(f"{f.tensor!r}: {f.reason}" for f in self.frozen))
        return "; ".join(reasons[:3]) or "no weights make an axis (no Conv, Gemm or MatMul with constant weights)"

    @property
    def outputs(self) -> list[str]:
        """The names of the model's outputs, in its order."""
        return [output.name for output in self.shaped.graph.model.graph.output]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the model was taken."""
        return self.shaped.notes

    @property
    def batch(self) -> int:
        """The number of images it was traced with."""
        return self.shaped.batch

    @property
    def single(self) -> bool:
        """Whether it is run with one image at a time, and all that an output holds is that image's."""
        return self.batch == 1 and not self.shaped.free_batch

    @cached_property
    def _followed(self) -> Mapping[str, Images]:
        return find_images(self.shaped)

    @cached_property
    def _numbered(self) -> frozenset[str]:
        return numbered(self.shaped)

    @cached_property
    def _depths(self) -> Mapping[str, int]:
        return depths(self.shaped.graph.nodes)

    def depth(self, tensor: str) -> int:
        """Return in how many bodies of loops a tensor is made: it has other values at every iteration of those."""
        return self._depths.get(tensor, 0)

    @cached_property
    def stored_params(self) -> int:
        """The parameters that the model's file stores; `cost` counts those that it generates, too."""
        return parameters(graphs.finish(self.shaped.graph.model, self.shaped.graph)) + self.unread_params

    @cached_property
    def unread_params(self) -> int:
        """The parameters that the model's file stores for nothing: a cut one stores none of them."""
        return numbers_of(unread_weights(self.shaped))

    @cached_property
    def twofold_params(self) -> int:
        """The parameters that the model's file stores once and any other form twice: in the layer and in the tail."""
        known = {t.name for t in self.source.graph.initializer}
        return 0 if self.tail is None else numbers_of(t for t in self.tail.stored if t.name in known)

    def rows(self, tensor: str) -> Images:
        """Return where the rows of a game lie in a tensor: with the images; else, as in masks, on axis 0."""
        return self.images(tensor) or Images(0)

    def images(self, tensor: str) -> Images | None:
        """Return where the images lie in a tensor, None where that is not known, or it numbers them (`numbered`)."""
        if tensor not in self._found:
            self._found[tensor] = self._place(tensor)
        return self._found[tensor]

    @cached_property
    def _found(self) -> dict[str, Images | None]:
        return {}  # by tensor; asked for with every run

    def _place(self, tensor: str) -> Images | None:
        if tensor in self._numbered:
            return None
        rank = len(self.shaped.shapes.get(tensor, ()))
        if (alone := next((axis for axis in range(rank) if self.is_batch(tensor, axis)), None)) is not None:
            return Images(alone)
        place = self._followed.get(tensor)
        if self.sized and place is not None and place.outer > 1:
            return None  # what lies around the images may be of any size
        return place

    @cached_property
    def sized(self) -> bool:
        """Whether other sizes of the inputs than their number of images are free."""
        given = self.shaped.inputs
        return any(name in given and axis != self.shaped.batch_axis(name) for name, axis in self.shaped.varying)

    def batch_axis(self, tensor: str) -> int | None:
        """Return the axis of a tensor along which the images lie, None where there is none of just that size."""
        place = self.images(tensor)
        return place.axis if place is not None and place.alone else None

    @cached_property
    def output_axes(self) -> tuple[int | None, ...]:
        """The axis of the images in every output, None where it is not known."""
        return tuple(self.batch_axis(name) for name in self.outputs)

    def is_batch(self, tensor: str, axis: int) -> bool:
        """Return whether the images lie along an axis."""
        classes = self.labels.axis(tensor, axis)
        return classes is not None and any(
            np.array_equal(classes, batch)
            for name in self.shaped.inputs
            if (own := self.shaped.batch_axis(name)) is not None and (batch := self.labels.axis(name, own)) is not None
        )

    def sites(self, groups: Iterable[Group]) -> list[Site]:
        """Return the places where units of some groups are summed away, in graph order."""
        units = np.zeros(self.labels.n_units + 1, np.bool_)
        for group in groups:
            units[group.units] = True
        return [s for s in self.labels.trace.sites if units[self.labels.units(s.tensor, s.axis)].any()]

    def fan_ins(self, group: Group) -> list[tuple[Weight, int]]:
        """Return the weights of layers that sum over a group, and how many inputs, times taps, each output has."""
        nodes, shapes, found = self.shaped.graph.nodes, self.shaped.shapes, list[tuple[Weight, int]]()
        for site in self.sites([group]):
            if site.weight is not None:
                shape = shapes[nodes[site.node].input[site.weight.input]]
                found.append((site.weight, math.prod(shape) // shape[site.weight.makes]))
        return found

    def units(self, keep: Keep) -> BoolArray:
        """Return bool[n_units] of a plan.

        Raises:
            ModelError: it is none of this model.
        """
        flags = np.ones(self.labels.n_units, np.bool_)
        groups = {group.name: group for group in self.groups}
        for name, kept in keep.items():
            if name not in groups:
                raise ModelError(f"group {name!r} is not a group of this model; take it from trace(model).groups")
            group, found = groups[name], np.asarray(kept)
            if found.shape != (len(group),) or not _flags(found):
                raise ModelError(
                    f"the plan of group {name!r} is not {len(group)} times True (stays) or False; give that"
                )
            flags[group.units] = found
        return flags

    def alive(self, keep: Keep) -> Liveness:
        """Return which positions of every axis stay under a plan."""
        return self.labels.alive(self.units(keep))


def _flags(values: Array) -> bool:
    """Return whether all values say yes or no."""
    return values.dtype == np.bool_ or bool(((values == 0) | (values == 1)).all())


@checked
def trace(
    model: str | Path | bytes | ModelProto | graphs.Source | Traced,
    *,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    backend: Backend | None = None,
    samples: Sequence[Mapping[str, Array]] = (),
    batch_axes: Mapping[str, int | None] | None = None,
) -> Traced:
    """Return a model with its labels and groups; a traced one as it is.

    Args:
        model: a path, serialized bytes or a ModelProto. The weights of a file are read from it when they are needed: it
            may be replaced or deleted meanwhile, but not written to.
        input_shapes: concrete shapes for inputs with free dimensions.
        backend: what runs it; onnxruntime on the CPU by default.
        samples: inputs that it is meant for: bodies of If nodes that none of them takes stay whole.
        batch_axes: input -> the axis of its samples, None where it has none (all of it is one sample's: a sequence, a
            cloud of points); default what the model declares, or its ops tell.

    Raises:
        ModelError: the model cannot be read or run.
    """
    if isinstance(model, Traced):
        return model
    given = graphs.read(model)
    engine = backend or OrtBackend()
    try:
        return _traced(given, engine, input_shapes, samples, batch_axes)
    except ModelError as error:
        if given.path is None:
            raise
        raise ModelError(f"{given.path.name}: {error}") from error


def trace_form(traced: Traced, model: ModelProto, samples: Sequence[Mapping[str, Array]]) -> Traced:
    """Return another form of a traced model (cut, with layers split), traced at its sizes; arguments as in `trace`."""
    sizes, axes = traced.shaped.inputs, traced.shaped.batch_axes
    return trace(model, input_shapes=sizes, backend=traced.backend, samples=samples, batch_axes=axes)


def _traced(
    given: graphs.Source,
    engine: Backend,
    input_shapes: Mapping[str, Sequence[int | None]] | None,
    samples: Sequence[Mapping[str, Array]],
    batch_axes: Mapping[str, int | None] | None,
) -> Traced:
    """Return a model that was read with its labels and groups."""
    try:
        shaped = _shaped(given, engine, input_shapes, samples, batch_axes)
        labels = trace_graph(shaped)
        if batch_axes is None and (led := led_elsewhere(shaped, labels)) is not None:
            return _traced(given, engine, input_shapes, samples, led)
        axes = placed_images(shaped, labels) if batch_axes is None else shaped.batch_axes
        if shaped.free_batch and any(axis is None for axis in axes.values()):
            return _of_members(given, shaped, input_shapes, engine, samples)
        shaped = replace(shaped, batch_axes=axes)
        if (pairs := paired_images(shaped, labels)) is not None:
            labels.trace.mixes_rows = True
            shaped = replace(shaped, apart=True, notes=(*shaped.notes, _PAIRS.format(pairs)))
        if (doubted := averaged_batch(shaped, labels)) is not None:
            name, axis, output = doubted
            told = _AVERAGED.format(name, axis, shaped.specs[name].symbols[axis], output)
            shaped = replace(shaped, notes=(*shaped.notes, told))
        return Traced(given.model, shaped, labels, engine, given.files, path=given.path)
    except OnnxshapError:
        raise
    except Exception:
        engine.session(given.model)  # what onnxruntime refuses is the model's fault, and it says why
        raise


def _shaped(
    given: graphs.Source,
    engine: Backend,
    input_shapes: Mapping[str, Sequence[int | None]] | None,
    samples: Sequence[Mapping[str, Array]],
    batch_axes: Mapping[str, int | None] | None,
) -> Shaped:
    """Return a model's shapes as the processor tells them, the device where the processor does not run the model.

    A device is slow to open, and its kernels leave out outputs that nothing reads, or refuse tensors without entries.
    """
    near = beside(engine)
    graph = graphs.normalise(given.model, given.kept)
    try:
        return shapes.infer(graph, near, input_shapes, samples, batch_axes)
    except ModelError:
        if near is engine:
            raise
        return shapes.infer(graph, engine, input_shapes, samples, batch_axes)


def _of_members(
    given: graphs.Source, shaped: Shaped, sizes: Mapping[str, Sequence[int | None]] | None, backend: Backend,
    samples: Sequence[Mapping[str, Array]],
) -> Traced:  # fmt: skip
    """Return a model whose axis 0 is of any length and no batch, at sizes of one sample."""
    axes = dict.fromkeys(shaped.inputs)
    try:
        traced = _traced(given, backend, sizes, samples, axes)
    except ModelError:  # it takes no more members than a batch has images
        traced = _traced(given, backend, shaped.inputs, samples, axes)
    return replace(traced, shaped=replace(traced.shaped, notes=(*traced.shaped.notes, _MEMBERS)))
