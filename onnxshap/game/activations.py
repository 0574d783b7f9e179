"""Tensors that are the same in every row of an image: computed once, as many images at a time as fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxshap.batching import Images
from onnxshap.core import Array, ImageIndex
from onnxshap.game.setting import Setting
from onnxshap.tracing import Traced

_AT_ONCE = 32
"""Images of one run."""


def bytes_per_image(traced: Traced, names: Sequence[str]) -> list[int]:
    """Return the bytes that one image's part of each tensor takes, at least 1."""
    shapes = (traced.shaped.shapes.get(name, ()) for name in names)
    return [4 * int(np.prod(shape)) // traced.batch + 1 for shape in shapes]


class Activations:
    """Some tensors of the calibration images.

    Args:
        setting: of the games.
        model: computes those that are no model inputs, in their order; None: all are.
        names: of the tensors.
        share: of the setting's memory that they may take.
    """

    def __init__(self, setting: Setting, model: ModelProto | None, names: Sequence[str], share: float = 1.0) -> None:
        traced = setting.traced
        self._setting, self._names = setting, names
        self._session = None if model is None else traced.backend.session(model)
        most = int(share * setting.memory)
        self._size = max(1, most // max(1, sum(bytes_per_image(traced, names))))
        self._at, self._kept = -1, dict[str, Array]()

    def parts(self, images: ImageIndex) -> Iterator[NDArray[np.intp]]:
        """Yield the places in `images` in pieces, of each of which all tensors are in memory at once."""
        edges = np.flatnonzero(np.diff(images // self._size)) + 1
        yield from np.split(np.arange(len(images)), edges)

    def take(self, images: ImageIndex, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return tensors of the images of one piece, one after the other; default all."""
        first, kept = self.piece(images)
        return {name: self._place(name).take(kept[name], images - first) for name in names or self._names}

    def piece(self, images: ImageIndex) -> tuple[int, Mapping[str, Array]]:
        """Return all tensors of the piece that some images lie in, and the number of its first image."""
        chunk = int(images[0]) // self._size
        if chunk != self._at:
            self._kept = {}  # let go of before the next ones are made
            self._kept, self._at = self._compute(chunk), chunk
        return chunk * self._size, self._kept

    def _compute(self, chunk: int) -> dict[str, Array]:
        part = self._setting.data.take(slice(chunk * self._size, (chunk + 1) * self._size))
        found: dict[str, Array] = {n: part.inputs[n] for n in self._names if n in part.inputs}
        if self._session is not None:
            pieces = []
            for start in range(0, len(part), _AT_ONCE):
                feeds: Mapping[str, Array] = part.take(slice(start, start + _AT_ONCE)).inputs
                pieces.append(self._session.run({name: feeds[name] for name in self._session.inputs}))
            for name, values in zip(self._session.outputs, zip(*pieces, strict=True), strict=True):
                found[name] = self._place(name).join(values)
        return found

    def _place(self, name: str) -> Images:
        return self._setting.traced.images(name) or Images(0)
