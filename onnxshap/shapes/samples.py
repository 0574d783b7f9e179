"""The user's images at sizes other than their own, for runs that values decide on (an end mark in every row)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxshap.core import Array
from onnxshap.data import InputSpec
from onnxshap.shapes.folding import Shape


def resized(
    sample: Mapping[str, Array], specs: Mapping[str, InputSpec], sizes: Mapping[str, Shape]
) -> dict[str, Array]:
    """Return the first image of a sample as many times as sizes say, its other axes longer or shorter.

    What lies at the end of an axis stays there, for end marks lie there; what lies before it is repeated or left out.

    Args:
        sample: input -> images; inputs that are absent stay so.
        specs: tell where the images lie in each.
        sizes: of the inputs.

    >>> spec = InputSpec("ids", np.dtype(np.int64), (None, None))
    >>> resized({"ids": np.array([[5, 6, 2], [7, 8, 2]])}, {"ids": spec}, {"ids": (2, 5)})["ids"].tolist()
    [[5, 6, 5, 6, 2], [5, 6, 5, 6, 2]]
    """
    found = {}
    for name, value in sample.items():
        for axis, size in enumerate(sizes[name]):
            own = value.shape[axis]
            if axis == specs[name].batch:
                places = np.zeros(size, np.intp)
            elif size == own:
                continue
            elif own == 1 or size == 1:
                places = np.full(size, own - 1)
            else:
                places = np.append(np.resize(np.arange(own - 1), size - 1), own - 1)
            value = np.take(value, places, axis=axis)
        found[name] = value
    return found


def together(
    samples: Sequence[Mapping[str, Array]], specs: Mapping[str, InputSpec], count: int
) -> list[dict[str, Array]]:
    """Return samples of one image each as samples of `count` images, the last one filled up with the first ones.

    Inputs without an axis of images are those of the first image of each.
    """
    if count == 1 or not samples:
        return [dict(sample) for sample in samples]
    order = np.resize(np.arange(len(samples)), -(-len(samples) // count) * count).reshape(-1, count)
    return [
        {
            name: first if (axis := specs[name].batch) is None
            else np.concatenate([samples[k][name] for k in images], axis=axis)
            for name, first in samples[images[0]].items()
        }
        for images in order
    ]  # fmt: skip
