"""Real inputs at sizes other than their own, where a model takes any: what was taken to be constant may not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxshap.calibrate import run_all
from onnxshap.core import Array, Dataset
from onnxshap.errors import DataError, ModelError
from onnxshap.shapes.samples import resized
from onnxshap.tracing import Traced


def at_other_sizes(traced: Traced, data: Dataset, *, optimize: bool = True) -> tuple[Dataset, list[Array]] | None:
    """Return images at other sizes, the first one as often as there are some, and what the file gives for them.

    Args:
        traced: the model as it is in its file; it ran at the sizes when it was traced.
        data: real inputs.
        optimize: let onnxruntime fuse nodes.

    Returns:
        None where no size but the batch is free, or the model gives nothing on them that can be compared.
    """
    shaped = traced.shaped
    if not shaped.elsewhere or not set(data.inputs) <= shaped.elsewhere.keys():
        return None
    specs, sizes = {}, {}
    for name, value in data.inputs.items():
        batch, shape = shaped.batch_axis(name), shaped.elsewhere[name]
        image = tuple(size for axis, size in enumerate(shape) if axis != batch)
        if len(image) != value.ndim - 1:
            return None
        specs[name] = replace(shaped.specs[name], batch=0)
        sizes[name] = (len(data), *image)
    other = Dataset(resized(data.inputs, specs, sizes), source=data.source)
    try:
        outputs = run_all(traced, traced.source, other, optimize=optimize)
    except (ModelError, DataError):  # what they hold decides, or their sizes have to agree otherwise
        return None
    return (other, outputs) if all(o.dtype.kind != "f" or np.isfinite(o).all() for o in outputs) else None
