"""The game of one group: (image, coalition) rows -> payoffs, computing everything before the first mask only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto

from onnxshap.backend import Session
from onnxshap.batching import Images
from onnxshap.calibrate import batches
from onnxshap.core import Array, CoalitionMatrix, Dataset, FloatArray, ImageIndex, Payoff
from onnxshap.graph import extract
from onnxshap.groups import Group
from onnxshap.masking import Means, Probe, mask_name, masked_model, row_wise
from onnxshap.structure import reads
from onnxshap.tracing import Traced

MEMORY = 2**30
"""Bytes of prefix activations that are kept at a time."""
_ROW_BYTES = 2**22
_MOST_ROWS = 256


@dataclass(frozen=True)
class Setting:
    """What the games of all groups share.

    Attributes:
        traced: the model, its batch free if it can be (`calibrate.free_batch`).
        data: calibration images.
        payoff: outputs -> worth.
        reference: the original outputs on the data.
        means: what removed channels leave behind; empty = zeros.
    """

    traced: Traced
    data: Dataset
    payoff: Payoff
    reference: Sequence[Array]
    means: Means = field(default_factory=dict)


@dataclass(frozen=True)
class _Split:
    """A masked model in two: `prefix` computes the `boundary` from the inputs, `suffix` the outputs from there."""

    prefix: ModelProto | None
    suffix: ModelProto
    boundary: tuple[str, ...]
    outputs: tuple[int, ...]


class GroupGame:
    """The game of one group: `core.Game`.

    Rows are evaluated many at a time, each with an image and a coalition of its own, where the images lie on one axis
    of every masked tensor; otherwise one at a time, with the whole model.

    Attributes:
        evals: rows evaluated so far.
    """

    def __init__(self, setting: Setting, group: Group, probe: Probe | None = None) -> None:
        self._setting, self._group = setting, group
        traced = setting.traced
        self.evals = 0
        masked = masked_model(traced, [group], setting.means, probe)
        self._batched = traced.shaped.free_batch and row_wise(traced, [group])
        if not self._batched:
            self._session = traced.backend.session(masked)
            return
        split = _split(traced, masked, mask_name(group))
        self._boundary, self._outputs = split.boundary, split.outputs
        self._prefix = None if split.prefix is None else traced.backend.session(split.prefix)
        self._session = traced.backend.session(split.suffix)
        self._rows = _rows_per_run(traced, split)
        self._chunk = _images_in_memory(traced, split)
        self._cached: tuple[int, dict[str, Array]] = (-1, {})

    @property
    def n_units(self) -> int:
        """Players: the units of the group."""
        return len(self._group)

    @property
    def n_images(self) -> int:
        """Calibration images."""
        return len(self._setting.data)

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        """Return float64[rows]; fastest when rows of one image stand together.

        Raises:
            DataError: an output is not finite.
            ModelError: the model refuses to run.
        """
        self.evals += len(images)
        scores = np.empty(len(images))
        if not self._batched:
            for row, (image, coalition) in enumerate(zip(images, coalitions, strict=True)):
                scores[row] = self._one(int(image), coalition)
            return scores
        chunks = images // self._chunk
        edges = np.flatnonzero(np.diff(chunks)) + 1
        for part in np.split(np.arange(len(images)), edges):
            for start in range(0, len(part), self._rows):
                rows = part[start : start + self._rows]
                scores[rows] = self._many(images[rows], coalitions[rows])
        return scores

    def _one(self, image: int, coalition: CoalitionMatrix) -> float:
        _, feeds = next(batches(self._setting.traced, self._setting.data.take(np.array([image])), 1))
        mask = {mask_name(self._group): np.asarray(coalition[None], np.float32)}
        outputs = [value[:1] for value in self._session.run({**feeds, **mask})]
        return float(self._payoff(outputs, np.array([image]))[0])

    def _many(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        chunk = int(images[0]) // self._chunk
        if self._cached[0] != chunk:
            self._cached = chunk, self._activations(chunk)
        at = images - chunk * self._chunk
        feeds = {name: self._images(name).take(value, at) for name, value in self._cached[1].items()}
        outputs = list(self._session.run({**feeds, mask_name(self._group): np.asarray(coalitions, np.float32)}))
        if len(self._outputs) == len(self._setting.reference):
            return self._payoff(outputs, images)
        whole = [value[images] for value in self._setting.reference]
        for place, value in zip(self._outputs, outputs, strict=True):
            whole[place] = value
        return self._payoff(whole, images)

    def _payoff(self, outputs: Sequence[Array], images: ImageIndex) -> FloatArray:
        reference = [value[images] for value in self._setting.reference]
        labels = self._setting.data.labels
        return self._setting.payoff(outputs, reference, None if labels is None else labels[images])

    def _activations(self, chunk: int) -> dict[str, Array]:
        """Return the boundary tensors of a chunk of images."""
        part = self._setting.data.take(slice(chunk * self._chunk, (chunk + 1) * self._chunk))
        found: dict[str, Array] = {n: part.inputs[n] for n in self._boundary if n in part.inputs}
        if self._prefix is not None:
            computed = [n for n in self._boundary if n not in part.inputs]
            pieces = []
            for start in range(0, len(part), 32):
                pieces.append(self._prefix.run(_wanted(self._prefix, part.take(slice(start, start + 32)).inputs)))
            for name, values in zip(computed, zip(*pieces, strict=True), strict=True):
                found[name] = self._images(name).join(values)
        return found

    def _images(self, name: str) -> Images:
        return self._setting.traced.images(name) or Images(0)


def _wanted(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {name: feeds[name] for name in session.inputs}


def _split(traced: Traced, masked: ModelProto, mask: str) -> _Split:
    """Cut a masked model at the earliest masked tensors.

    Behind the cut is what depends on the mask, and what has no images on an axis (shape arithmetic, constants).
    """
    graph = masked.graph
    producer = {o: k for k, node in enumerate(graph.node) for o in node.output}
    stored = {t.name for t in graph.initializer}
    inputs = {i.name: i.type.tensor_type.elem_type for i in graph.input if i.name != mask}
    dependent, behind = {mask}, set()
    for k, node in enumerate(graph.node):
        if any(name in dependent for name in reads(node)):
            dependent.update(node.output)
            behind.add(k)
    outputs = tuple(i for i, o in enumerate(graph.output) if o.name in dependent)
    pending = [name for k in behind for name in reads(graph.node[k])]
    boundary: dict[str, None] = {}
    while pending:
        name = pending.pop()
        if not name or name in stored or name == mask or producer.get(name) in behind:
            continue
        if name in inputs or traced.images(name) is not None:
            boundary[name] = None
        else:
            behind.add(producer[name])
            pending.extend(reads(graph.node[producer[name]]))
    order = tuple(sorted(boundary, key=lambda name: (producer.get(name, -1), name)))
    computed = [name for name in order if name not in inputs]
    kinds = {name: traced.shaped.kinds.get(name, TensorProto.FLOAT) for name in order}
    prefix = extract(masked, inputs, {name: kinds[name] for name in computed}) if computed else None
    wanted = {graph.output[i].name: graph.output[i].type.tensor_type.elem_type for i in outputs}
    suffix = extract(masked, {**kinds, mask: TensorProto.FLOAT}, wanted)
    return _Split(prefix, suffix, order, outputs)


def _bytes_per_image(traced: Traced, names: Sequence[str]) -> list[int]:
    shapes = (traced.shaped.shapes.get(name, ()) for name in names)
    return [4 * int(np.prod(shape)) // traced.batch + 1 for shape in shapes]


def _rows_per_run(traced: Traced, split: _Split) -> int:
    """Return how many rows go into one run: as many as let the largest activation stay in the processor's cache."""
    names = [o for node in split.suffix.graph.node for o in node.output] + list(split.boundary)
    largest = max(_bytes_per_image(traced, names), default=1)
    return int(np.clip(_ROW_BYTES // largest, 4, _MOST_ROWS))


def _images_in_memory(traced: Traced, split: _Split) -> int:
    """Return how many images' boundary tensors are kept at a time."""
    return max(1, MEMORY // max(1, sum(_bytes_per_image(traced, split.boundary))))
