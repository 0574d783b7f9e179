"""What a run writes: nothing that it reads, and only what can be written; asked before the work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from onnxshap.data import Images
from onnxshap.data.images import IMAGE_SUFFIXES, list_images
from onnxshap.errors import DataError, ModelError
from onnxshap.graph import Source, check_writable, data_path, place_of
from onnxshap.tracing import Traced

MODELS = ("-o", "output")
"""Outputs that may be models: their data are written beside them."""


def check_outputs(
    outputs: Mapping[str, str | Path | None], model: Source | Traced, sources: Mapping[str, object]
) -> None:
    """Refuse outputs that could not be written at the end, or would replace what is read.

    Args:
        outputs: where to write, by what messages call it; None = nothing.
        model: what is read.
        sources: what else is read, by what messages call it; of what is no path or folder of images there is no file.

    Raises:
        ModelError: an output is an input or another output, would be one of the images of a folder, is no plain file,
            or in a folder that cannot be written.
    """
    taken = {place: name for name, source in sources.items() for place in _files(source)}
    taken |= dict.fromkeys(map(os.path.realpath, model.files), "data of the model")
    if model.path is not None:
        taken[os.path.realpath(model.path)] = "the model"
    folders = {folder: name for name, source in sources.items() if (folder := _folder(source)) is not None}
    for name, output in outputs.items():
        if output is None:
            continue
        remedy = f"give {name} another path"
        place = place_of(output, remedy)
        written = [(output, place)]
        if name in MODELS:
            written.append((data_path(output), data_path(place)))
        for path, one in written:
            if (other := taken.get(str(one))) is not None:
                raise ModelError(f"{path}: would replace {other}; {remedy}")
            inside = next((name for folder, name in folders.items() if str(one).startswith(folder + os.sep)), None)
            if inside is not None and one.suffix.lower() in IMAGE_SUFFIXES:
                raise ModelError(f"{path}: would be one of the images of {inside}; {remedy}")
        check_writable(output, remedy)
        if name in MODELS and model.files:
            check_writable(data_path(place), remedy)
        taken |= {str(one): name for _, one in written}


def _folder(source: object) -> str | None:
    """Return the folder that data are read from, if it is one."""
    if isinstance(source, str | Path | Images) and os.path.isdir(source):  # noqa: PTH112 - Path raises at odd names
        return os.path.realpath(source)
    return None


def _files(source: object) -> Iterator[str]:
    """Yield the files that data or labels are read from, their links followed."""
    if (folder := _folder(source)) is not None:
        with contextlib.suppress(DataError):  # told when it is read
            yield from map(os.path.realpath, list_images(Path(folder))[0])
    elif isinstance(source, str | Path):
        yield os.path.realpath(source)
