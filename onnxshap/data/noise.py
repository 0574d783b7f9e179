"""Random inputs, where there are no data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxshap.core import Array, Dataset
from onnxshap.data.spec import InputSpec
from onnxshap.errors import DataError


def random_data(specs: Mapping[str, InputSpec], n: int, seed: int) -> Dataset:
    """Return n images of noise that any model can run: source "random", no labels.

    Floats are normal(0, 1), uint8 (pixels) uniform in 0..255, bools fair coins, other integers 0 or 1: valid indices
    of any table with two rows. An integer without axes, which is a setting, is 1.

    Raises:
        DataError: n < 1, a free dim but for axis 0, a dtype that is none of these, or more of them than memory holds.

    >>> data = random_data({"x": InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))}, n=2, seed=0)
    >>> data.inputs["x"].shape, data.source
    ((2, 3, 8, 8), 'random')
    """
    if n < 1:
        raise DataError(f"random data: {n} images: ask for 1 or more")
    rng = np.random.default_rng(seed)
    return Dataset({name: _drawn(spec, n, rng) for name, spec in specs.items()}, source="random")


def _drawn(spec: InputSpec, n: int, rng: np.random.Generator) -> Array:
    try:
        return _random(spec, n, rng)
    except (MemoryError, ValueError) as error:  # numpy's word for what has no address is a ValueError
        sizes = " x ".join(map(str, (n, *spec.entry)))
        raise DataError(
            f"random data: input {spec.name!r} has {sizes} entries, more than memory holds: export it smaller"
        ) from error


def _random(spec: InputSpec, n: int, rng: np.random.Generator) -> Array:
    """Return array[n, ...] of noise for one input."""
    dtype = np.dtype(spec.dtype)
    rest = [length for length in spec.entry if length is not None]
    if len(rest) < len(spec.entry):
        axis = next(k for k, length in enumerate(spec.shape) if length is None and k != spec.batch)
        raise DataError(f"random data: axis {axis} of input {spec.name!r} is free: give its length, or give data")
    shape = (n, *rest)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu" and not spec.shape:
        return np.ones(shape, dtype)
    if dtype.kind == "O":
        raise DataError(f"random data: input {spec.name!r} takes strings, which none are known of: give data")
    if dtype.kind not in "biu":
        raise DataError(f"random data: input {spec.name!r} is {dtype}, not float, integer or bool: give data")
    return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
