"""Where the images lie in a tensor: an axis that they may share with windows, heads or steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxshap.core import Array


@dataclass(frozen=True)
class Images:
    """The place of the images: an axis of outer x images x inner positions."""

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def alone(self) -> bool:
        """Whether the images have the axis for themselves."""
        return self.outer == self.inner == 1

    def split(self, shape: Sequence[int]) -> list[int]:
        """Return a shape with the axis split in three, -1 for the images."""
        return [*shape[: self.axis], self.outer, -1, self.inner, *shape[self.axis + 1 :]]

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of images in a tensor of a shape."""
        return shape[self.axis] // (self.outer * self.inner)

    def take(self, values: Array, images: Any) -> Array:
        """Return the chosen images of a tensor."""
        if self.alone:
            taken: Array = np.take(values, images, axis=self.axis)
            return taken
        apart = values.reshape(self.split(values.shape))
        chosen: Array = np.take(apart, images, axis=self.axis + 1)
        return chosen.reshape(*values.shape[: self.axis], -1, *values.shape[self.axis + 1 :])

    def part(self, values: Array, start: int, stop: int) -> Array:
        """Return images in a row of a tensor, a view of it where they lie in a row there."""
        return values[start:stop] if self == Images(0) else self.take(values, range(start, stop))

    def front(self, values: Array) -> Array:
        """Return a tensor with the images on axis 0; what shared an axis with them has axes of its own.

        >>> Images(1, inner=2).front(np.zeros((3, 8, 5))).shape
        (4, 3, 1, 2, 5)
        """
        apart = values if self.alone else values.reshape(self.split(values.shape))
        return np.moveaxis(apart, self.axis + (not self.alone), 0)

    def back(self, rows: Array) -> Array:
        """Return what `front` was given."""
        apart = np.moveaxis(rows, 0, self.axis + (not self.alone))
        return apart if self.alone else apart.reshape(*apart.shape[: self.axis], -1, *apart.shape[self.axis + 3 :])

    def join(self, parts: Sequence[Array]) -> Array:
        """Return the images of several tensors as one."""
        if self.alone or len(parts) == 1:
            joined: Array = np.concatenate(parts, axis=self.axis)
            return joined
        shape = parts[0].shape
        apart: Array = np.concatenate([p.reshape(self.split(p.shape)) for p in parts], axis=self.axis + 1)
        return apart.reshape(*shape[: self.axis], -1, *shape[self.axis + 1 :])
