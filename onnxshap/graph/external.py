"""Values of tensors in files beside the model: found, checked and mapped into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnxshap.core import Array
from onnxshap.errors import ModelError
from onnxshap.graph.tensors import LOCATION, PLAIN, size


def external_file(tensor: TensorProto, model: Path | None) -> Path:
    """Return the file in which a tensor's values are: beside the model, or beside the file that a link to it leads to.

    Data that are a link have to lead into one of these folders too, as in a store of files by their hashes.

    Raises:
        ModelError: it is missing, no plain file, or outside of the model's folder.
    """
    location = next((e.value for e in tensor.external_data if e.key == LOCATION), "")
    what = f"initializer {tensor.name!r} has its values in {location!r}"
    if model is None:
        raise ModelError(f"{what}, and a model in memory has no folder; give the model's path")
    if not location:
        raise ModelError(
            f"initializer {tensor.name!r} has its values outside, and names no file; export the model again"
        )
    if Path(location).is_absolute() or "\\" in location or ":" in location:
        raise ModelError(f"{what}, which is no relative path; put the file beside the model and export again")
    folders = (model.parent.resolve(), model.resolve().parent)
    try:
        path = next((p for folder in folders if (p := folder / location).exists()), model.parent / location)
        real = Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle
        inside = any(real.is_relative_to(folder) for folder in folders)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"initializer {tensor.name!r} has its values in {location[:40]!r}, which no file can be called; "
            "export the model again"
        ) from error
    if ".." in Path(location).parts or not inside:
        raise ModelError(f"{what}, outside of the model's folder; put the file itself beside the model")
    if not path.is_file():
        raise ModelError(f"{what}, which is missing; put that external data file beside the model")
    return path


def mapped(tensor: TensorProto, model: Path | None) -> Array:
    """Return the values of a tensor with external data, mapped into memory."""
    path = external_file(tensor, model)
    entries = {e.key: e.value for e in tensor.external_data}
    what = f"initializer {tensor.name!r} has its values in {entries[LOCATION]!r}"
    plain = tensor.data_type in PLAIN
    shape = tuple(tensor.dims)
    wanted = size(tensor) if plain else None
    try:
        start, given = int(entries.get("offset") or 0), entries.get("length")
        length = int(given) if given else (path.stat().st_size - start if wanted is None else wanted)
    except ValueError as error:
        raise ModelError(f"{what}, at an offset or of a length that is no number; export the model again") from error
    if start < 0 or length < 0 or (wanted is not None and length != wanted) or min(shape, default=1) < 0:
        raise ModelError(f"{what}: {length} bytes at {start}, its shape {list(shape)} takes {wanted}; export it again")
    if start + length > path.stat().st_size:
        raise ModelError(
            f"{what}, which is too short: {path.stat().st_size} bytes, {start + length} are needed; copy it again"
        )
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(tensor.data_type) if plain else np.dtype(np.uint8)
    if not length:
        return np.empty(shape if plain else 0, dtype)
    mapped = np.memmap(path, dtype, "r", start, shape if plain else (length,))
    return mapped if start % dtype.itemsize == 0 else np.array(mapped)
