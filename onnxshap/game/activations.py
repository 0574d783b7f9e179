"""Tensors that are the same in every row of an image: computed once, as many images at a time as fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshap.calibrate import bytes_per_image, usual_size
from onnxshap.core import Array, ImageIndex, IntArray
from onnxshap.data import feeds_of
from onnxshap.game.setting import Setting


class Activations:
    """Some tensors of those calibration images that are asked for.

    Args:
        setting: of the games.
        model: computes those that are no model inputs, in their order; None: all are.
        names: of the tensors.
        share: of the setting's memory that they may take.

    Attributes:
        version: changes whenever other images are held.
    """

    def __init__(self, setting: Setting, model: ModelProto | None, names: Sequence[str], share: float = 1.0) -> None:
        traced = setting.traced
        self._setting, self._names = setting, names
        self._session = None if model is None else traced.backend.session(model)
        half = int(share * setting.memory) // 2  # joined to what is there, tensors are there twice for a moment
        self._most = max(1, half // max(1, sum(bytes_per_image(traced, names))))
        self._places = np.full(len(setting.data), -1)
        self._held, self._kept = 0, dict[str, Array]()
        self.version = 0

    def parts(self, images: ImageIndex) -> Iterator[NDArray[np.intp]]:
        """Yield the places in `images` in pieces, of each of which all tensors fit into memory at once."""
        runs = np.concatenate([[0], np.flatnonzero(np.diff(images)) + 1])
        yield from np.split(np.arange(len(images)), runs[self._most :: self._most])

    def take(self, images: ImageIndex, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return tensors of the images of one piece, one after the other; default all."""
        at, kept = self.piece(images)
        return {name: self._setting.traced.rows(name).take(kept[name], at) for name in names or self._names}

    def piece(self, images: ImageIndex) -> tuple[IntArray, Mapping[str, Array]]:
        """Return tensors that hold all images of one piece, among others, and where each image lies in them.

        Asked for a whole piece first, no image of it is computed twice.
        """
        missing = np.unique(images[self._places[images] < 0])
        if len(missing):
            if self._held + len(missing) > self._most:
                self._places[:] = -1
                self._held, self._kept = 0, {}  # let go of before the next ones are made
                missing = np.unique(images)
            made = self._compute(missing)
            self._kept = {
                name: self._setting.traced.rows(name).join([self._kept[name], made[name]]) if self._held else made[name]
                for name in self._names
            }
            self._places[missing] = np.arange(self._held, self._held + len(missing))
            self._held += len(missing)
            self.version += 1
        return self._places[images], self._kept

    def _compute(self, images: ImageIndex) -> dict[str, Array]:
        data, axes = self._setting.data, self._setting.traced.shaped.batch_axes
        fed = feeds_of(data.take(images).inputs, axes)
        found: dict[str, Array] = {n: fed[n] for n in self._names if n in fed}
        if self._session is not None:
            pieces, step = [], usual_size(self._setting.traced)
            for start in range(0, len(images), step):
                feeds = feeds_of(data.take(images[start : start + step]).inputs, axes)
                pieces.append(self._session.run({name: feeds[name] for name in self._session.inputs}))
            for name, values in zip(self._session.outputs, zip(*pieces, strict=True), strict=True):
                found[name] = self._setting.traced.rows(name).join(values)
        return found
