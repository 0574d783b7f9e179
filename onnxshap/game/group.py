"""The game of one group: (image, coalition) rows -> payoffs, computing everything before the first mask only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from onnx import ModelProto

from onnxshap.calibrate import batches, by_image
from onnxshap.core import Array, CoalitionMatrix, FloatArray, ImageIndex, IntArray
from onnxshap.estimators.images import Alike
from onnxshap.estimators.rows import coalition_removals
from onnxshap.game.activations import Activations
from onnxshap.game.behind import Behind
from onnxshap.game.halves import halve
from onnxshap.game.outputs import payoffs
from onnxshap.game.pace import Pace
from onnxshap.game.setting import Setting
from onnxshap.game.stages import Suffix, largest, open_suffix
from onnxshap.game.walks import Walks, open_walks
from onnxshap.game.winograd import quick_resident
from onnxshap.groups import Group
from onnxshap.masking import Probe, images_apart, mask_name, masked_model, row_wise

_TOGETHER = 256
"""Rows, run one by one, whose payoffs are taken at once."""


class GroupGame:
    """The game of one group: `core.Game`, and `estimators.rows.Removes`.

    Rows are evaluated many at a time, each with an image and a coalition of its own, where the images lie on one axis
    of every masked tensor; otherwise one at a time. Units removed one by one in front of a linear op cost a subtraction
    there (`walks`).

    Attributes:
        evals: rows evaluated so far.
    """

    def __init__(self, setting: Setting, group: Group, probe: Probe | None = None) -> None:
        self._setting, self._group = setting, group
        self.evals = 0
        self._model = masked_model(setting.traced, [group], setting.means, probe)
        self._batched = setting.traced.shaped.free_batch and row_wise(setting.traced, [group]) and setting.apart
        self._walks: Walks | None = None
        if self._batched and probe is None and not setting.traced.backend.on_device:
            self._walks = open_walks(setting, group, self._model, mask_name(group))

    @property
    def n_units(self) -> int:
        """Players: the units of the group."""
        return len(self._group)

    @property
    def n_images(self) -> int:
        """Calibration images."""
        return len(self._setting.data)

    @property
    def alike(self) -> Alike | None:
        """The images by kind; None where nothing tells."""
        return self._setting.alike

    @cached_property
    def _masked(self) -> _Masked:
        return _Masked(self._setting, self._group, self._model)

    @cached_property
    def _alone(self) -> _Alone:
        return _Alone(self._setting, self._group, self._model)

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        """Return float64[rows]; fastest when rows of one image stand together.

        Raises:
            DataError: an output is not finite.
            ModelError: the model refuses to run.
        """
        self.evals += len(images)
        if not self._batched:
            return self._alone(images, coalitions)
        scores = np.empty(len(images))
        left = np.ones(len(images), np.bool_)
        if self._walks is not None:
            for full, chosen in ((True, (coalitions == 1).all(axis=1)), (False, ~coalitions.any(axis=1))):
                if chosen.any():
                    scores[chosen] = self._walks.ends(images[chosen], full=full)
                    left &= ~chosen
        if left.any():
            scores[left] = self._masked(images[left], coalitions[left])
        return scores

    def removals(
        self, images: ImageIndex, orders: IntArray, step: float = 1.0, *, gone: bool = True, first: int = 0
    ) -> FloatArray:
        """Return the payoffs float64[walks, m - first] of units removed in orders; see `estimators.rows.removals`."""
        if self._walks is None:
            return coalition_removals(self, images, orders, step, gone=gone, first=first)
        self.evals += orders[:, first:].size
        return self._walks.removals(images, orders, step, gone=gone, first=first)


@dataclass
class _Alone:
    """Rows of any coalitions, one a run: their masks are in weights, or images of a batch are not apart.

    Where they are, what no mask reaches is computed once an image, else every row is a run of the whole model.
    """

    setting: Setting
    group: Group
    model: ModelProto

    def __post_init__(self) -> None:
        traced, mask = self.setting.traced, mask_name(self.group)
        self._kept, self._session = None, None
        self._numbers = list[int](range(len(self.model.graph.output)))
        if traced.shaped.free_batch and images_apart(traced) and self.setting.apart:
            halves = halve(traced, self.model, mask)
            self._kept = Activations(self.setting, halves.prefix, halves.boundary)
            self._numbers = list(halves.outputs)
            self._session = None if halves.suffix is None else traced.backend.session(halves.suffix)
        else:
            self._session = traced.backend.session(self.model)
        self._fed: tuple[int, Mapping[str, Array]] = -1, {}

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        scores, start = np.empty(len(images)), 0
        while start < len(images):
            rows = range(start, min(start + _TOGETHER, len(images)))
            outputs = [self._run(int(images[row]), coalitions[row : row + 1]) for row in rows]
            start = rows.stop
            for part in [slice(rows.start, start)] if _alike(outputs) else [slice(row, row + 1) for row in rows]:
                own = outputs[part.start - rows.start : part.stop - rows.start]
                columns = dict(zip(self._numbers, map(np.concatenate, zip(*own, strict=True)), strict=True))
                scores[part] = payoffs(self.setting, columns, images[part], coalitions[part])
        return scores

    def _run(self, image: int, coalition: CoalitionMatrix) -> list[Array]:
        """Return the outputs of a row that change, [1, ...] each."""
        if self._session is None:
            return []
        traced, at = self.setting.traced, np.array([image])
        if self._fed[0] != image and self._kept is not None:
            self._fed = image, self._kept.take(at)
        elif self._fed[0] != image:
            self._fed = image, next(batches(traced, self.setting.data.take(at), 1))[1]
        feeds = {**self._fed[1], mask_name(self.group): np.asarray(coalition, np.float32)}
        found = self._session.run({name: feeds[name] for name in self._session.inputs})
        return [value[:1] for value in by_image(traced, found, self._numbers)]


def _alike(rows: Sequence[Sequence[Array]]) -> bool:
    """Return whether all rows have outputs of the same shapes."""
    return all(len({value.shape for value in column}) == 1 for column in zip(*rows, strict=True))


@dataclass
class _Masked:
    """Rows of any coalitions: the part of the model behind the first mask, many rows a run."""

    setting: Setting
    group: Group
    model: ModelProto

    def __post_init__(self) -> None:
        traced, mask = self.setting.traced, mask_name(self.group)
        halves = halve(traced, self.model, mask)
        self._outputs, suffix = halves.outputs, halves.suffix  # none where the group reaches no output
        self._kept = Activations(self.setting, halves.prefix, halves.boundary)
        stays = self._stays(halves.boundary)
        self._session: Suffix | None = None
        self._resident = None
        self._pace = Pace.of(traced.backend, 1 if suffix is None else largest(traced, suffix), fixed=True)
        if suffix is not None and not stays:
            self._session, self._pace = open_suffix(traced, suffix)
        elif suffix is not None:
            self._resident, self._rows = quick_resident(traced, suffix, mask)
        self._version = -1

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        scores = np.empty(len(images))

        def score(rows: IntArray, outputs: Mapping[int, Array]) -> None:
            scores[rows] = payoffs(self.setting, outputs, images[rows], coalitions[rows])

        with Behind(apart=self.setting.traced.backend.on_device) as behind:
            for part in self._kept.parts(images):
                self._kept.piece(images[part])
                start = 0
                while start < len(part):
                    rows = part[start : start + self._pace.rows]
                    with self._pace.timing(len(rows)):
                        behind.do(partial(score, rows, self._run(images[rows], coalitions[rows])))
                    start += len(rows)
        return scores

    def _stays(self, boundary: Sequence[str]) -> bool:
        """Return whether the boundary's tensors stay on the device, rows picked there by their numbers."""
        traced = self.setting.traced
        return traced.backend.on_device and all(traced.batch_axis(name) is not None for name in boundary)

    def _run(self, images: ImageIndex, coalitions: CoalitionMatrix) -> dict[int, Array]:
        """Return the outputs that change, by number."""
        mask = {mask_name(self.group): np.asarray(coalitions, np.float32)}
        outputs: list[Array] = []
        if self._session is not None:
            feeds = {**self._kept.take(images), **mask}
            outputs = self._session.run({name: feeds[name] for name in self._session.inputs})
        elif self._resident is not None:
            at, kept = self._kept.piece(images)
            if self._kept.version != self._version:
                self._resident.keep(kept)
                self._version = self._kept.version
            outputs = self._resident.run({**mask, self._rows: at})
        outputs = by_image(self.setting.traced, outputs, self._outputs)
        return dict(zip(self._outputs, outputs, strict=True))
