"""Mixtures of images: a model that learns from few has to see more than there are.

Source: Zhang et al. 2018 (mixtures), Yun et al. 2019 (patches).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxshap.core import Array, BoolArray, IntArray

MIXED = 0.5
"""Share of the images that are blended with another."""
PATCHED = 0.3
"""Share of the images that get a rectangle of another instead, of any size."""
_SHIFT = 1 / 14


@dataclass(frozen=True)
class Mixer:
    """Makes a batch of others out of a batch of images.

    Attributes:
        rng: draws what is done to them.
        mirrors: whether mirror images are of the kind.
        device: where the images are.
        last: inputs whose channels are on the last axis.
    """

    rng: np.random.Generator
    mirrors: bool
    device: torch.device
    last: Collection[str] = ()

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Tensor]:
        """Return inputs: images shifted and mirrored, then some blended with another of the batch, some patched."""
        count, rng = len(next(iter(feeds.values()))), self.rng
        partner = self._there(rng.permutation(count))
        share = np.where(rng.random(count) >= MIXED, 1.0, rng.random(count))
        patched = self._there(rng.random(count) < PATCHED)
        found = {}
        for name, value in feeds.items():
            x = self._there(value)
            if x.is_floating_point():
                part = self._there(share).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
                if x.ndim == 4:
                    x = self._moved(x.movedim(-1, 1) if name in self.last else x)
                    outside = self._there(self._outside(count, *x.shape[2:])).to(x.dtype)
                    part = torch.where(patched[:, None, None, None], outside, part)
                x = part * x + (1 - part) * x[partner]
                x = x.movedim(1, -1).contiguous() if name in self.last else x
            found[name] = x
        return found

    def _there(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _moved(self, x: Tensor) -> Tensor:
        """Return images [n, c, h, w], each mirrored or not and shifted."""
        places = list[IntArray]()
        for size in x.shape[2:]:
            reach = round(size * _SHIFT)
            moves = self.rng.integers(-reach, reach + 1, (len(x), 1))
            places.append(np.clip(np.arange(size) + moves, 0, size - 1))  # the edges are repeated
        rows, columns = places
        if self.mirrors:
            columns = np.where(self.rng.random((len(x), 1)) < 0.5, columns[:, ::-1], columns)
        images, channels = np.arange(len(x))[:, None, None, None], np.arange(x.shape[1])[:, None, None]
        at = (images, channels, rows[:, None, :, None], columns[:, None, None, :])
        return x[tuple(self._there(index) for index in at)]

    def _outside(self, count: int, height: int, width: int) -> BoolArray:
        """Return where images lie outside of rectangles of any size, bool[count, 1, height, width]."""
        inside = []
        root = np.sqrt(self.rng.random((count, 1)))
        for size in (height, width):
            length = np.round(size * root)
            start = np.floor(self.rng.random((count, 1)) * (size - length + 1))
            inside.append((np.arange(size) >= start) & (np.arange(size) < start + length))
        rows, columns = inside
        return np.asarray(~(rows[:, None, :, None] & columns[:, None, None, :]))


def seen_alike(mirrored: Sequence[Array], straight: Sequence[Array], columns: int = 3) -> bool:
    """Return whether a model sees in mirror images what it sees in the images: in clothes, not in letters.

    Outputs that are images themselves are mirrored back. Alike is what is apart by less than half of what the outputs
    of unrelated images are (two variances), over all outputs.

    Args:
        mirrored, straight: outputs for the mirror images and for the images.
        columns: the axis of the columns in images.
    """
    apart = []
    for a, b in zip(mirrored, straight, strict=True):
        if b.dtype.kind == "f":
            a = np.flip(a, columns) if a.ndim == 4 else a
            apart.append(float(np.mean((a.astype(np.float64) - b) ** 2)) / max(float(np.var(b)), 1e-12))
    return bool(apart) and float(np.mean(apart)) < 1.0
