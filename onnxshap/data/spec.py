"""What a model asks of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxshap.core import Array
from onnxshap.errors import DataError

PICTURES = (1, 3, 4)
"""Channels that a picture may have."""


@dataclass(frozen=True)
class InputSpec:
    """What a model asks of one input.

    Attributes:
        name: the graph input's name.
        dtype: its element type.
        shape: its dims, None where free.
        batch: the axis of the images, whatever its size; None where there is none.
        symbols: what the dims are called, "" those that have no name; empty where nothing is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    batch: int | None = 0
    symbols: tuple[str, ...] = ()

    @property
    def entry(self) -> tuple[int | None, ...]:
        """The dims of what one image gives."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.batch)

    @property
    def channels(self) -> int | None:
        """The axis of the channels of an input that takes pictures: 1, 3 or 4 of them; None where it takes none."""
        if len(self.shape) != 4 or self.batch != 0:
            return None
        return next((axis for axis in (1, 3) if self.shape[axis] in PICTURES), None)

    @property
    def whole(self) -> InputSpec:
        """What the model asks of it where all of it is one image's."""
        return replace(self, batch=None)


def feeds_of(inputs: Mapping[str, Array], batch: Mapping[str, int | None]) -> dict[str, Array]:
    """Return entries of images, along axis 0, as a model takes them: input -> the axis of its images.

    Inputs without one are those of the first image.
    """
    found = {}
    for name, value in inputs.items():
        axis = batch.get(name, 0)
        found[name] = np.asarray(value[0]) if axis is None else np.ascontiguousarray(np.moveaxis(value, 0, axis))
    return found


def only_input(specs: Mapping[str, InputSpec], where: str, what: str) -> InputSpec:
    """Return the spec of a single-input model."""
    if len(specs) != 1:
        raise DataError(
            f"{where}: {what} serves models with one input, this one has {names_of(specs)}: "
            "give an .npz or a mapping with one array an input"
        )
    return next(iter(specs.values()))


def names_of(names: Iterable[str]) -> str:
    """Return names in one line."""
    return ", ".join(repr(name) for name in names) or "nothing"
