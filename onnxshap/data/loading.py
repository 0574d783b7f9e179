"""Data from wherever they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxshap.core import Array, Dataset, IntArray
from onnxshap.data.checks import check_count, check_data
from onnxshap.data.files import from_file, read_labels
from onnxshap.data.images import Images, Normalize, list_images, read_images, statistics
from onnxshap.data.objects import from_function, from_object
from onnxshap.data.spec import InputSpec, only_input
from onnxshap.errors import DataError, told

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
DataLike = Dataset | Mapping[str, Any] | tuple[Any, Any] | Array | Sequence[Any] | str | Path | Images


def load_data(
    source: str | Path,
    specs: Mapping[str, InputSpec],
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    normalize: Normalize = "none",
    wholes: bool = False,
) -> Dataset:
    """Return the checked data set at `source`, in the source's order.

    A folder of images needs a model with one input of rank 4 and 1, 3 or 4 channels, NCHW or else NHWC; pixels come
    as L, RGB or RGBA, resized (bilinear, without a crop) to the model's height and width, in [0, 1] for float inputs
    and 0..255 for uint8. A free height or width follows from the images, which have to agree. Subfolders, sorted by
    name as strings, are the labels 0..k-1 (empty ones count); a single one, or none, labels nothing.

    Args:
        source: .npz, .npy, a folder or "module:function", found from the working directory too; never unpickled.
        specs: the model's inputs by name.
        labels: .npy, .npz with `labels` or `y`, or .txt/.csv with one number a line; goes before the source's own.
        limit: keep a random subset of that many images, drawn with `seed` without replacement; None: all.
        seed: of the subset alone.
        normalize: "none" hands pixels over as above; "imagenet" then subtracts `IMAGENET_MEAN` and divides by
            `IMAGENET_STD`, "0.5/0.25" a mean and a deviation of your own, one for all or one a channel. Folders only:
            arrays are what the model was trained on already.
        wholes: as for `check_data`.

    Raises:
        DataError: what cannot be read, or does not fit the model or itself.
    """
    where = str(source)
    statistics(normalize)
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: at least one image is needed: give 1 or more, or none for all")
    if not where:
        raise DataError("the path of the data is empty: give .npz, .npy, a folder of images or module:function")
    path = Path(source)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({told(error)}): check the path") from error
    targets, given = (None, None) if labels is None else (read_labels(Path(labels)), str(labels))
    if folder:
        files, classes = list_images(path)
        targets = classes if targets is None else targets
        if targets is not None:
            check_count(targets, len(files), where, given)
        index = _subset(len(files), limit, seed)
        spec = only_input(specs, where, "a folder of images")
        images = read_images([files[i] for i in index], spec, normalize)
        chosen = None if targets is None else targets[index]
        return check_data(Dataset({spec.name: images}, chosen, where), specs, given)
    if normalize != "none":
        raise DataError(f"{where}: normalize {normalize!r} is for folders of images: normalise the arrays themselves")
    if not there and _FUNCTION.fullmatch(where):
        data = from_object(from_function(where), specs, where)
    else:
        data = from_file(path, specs, there=there)
    data = check_data(data if targets is None else replace(data, labels=targets), specs, given, wholes=wholes)
    return data if limit is None else data.take(_subset(len(data), limit, seed))


def as_dataset(
    data: DataLike,
    specs: Mapping[str, InputSpec],
    *,
    labels: str | Path | None = None,
    seed: int = 0,
    wholes: bool = False,
) -> Dataset:
    """Return `data` as a checked data set.

    Args:
        data: a Dataset; a mapping of arrays, with `labels` or `y` as the targets; (inputs, labels), where inputs is a
            mapping or an array; an array for a single-input model; a str, Path or `Images` for `load_data`.
        specs: the model's inputs by name.
        labels: a path, as for `load_data`; goes before those in `data`.
        seed: for `load_data`.
        wholes: as for `check_data`.

    Raises:
        DataError: as `load_data`.

    >>> spec = InputSpec("x", np.dtype(np.float32), (1, 2))
    >>> data = as_dataset({"x": np.zeros((5, 2)), "y": np.arange(5)}, {"x": spec})
    >>> len(data), data.inputs["x"].dtype, data.labels
    (5, dtype('float32'), array([0, 1, 2, 3, 4]))
    """
    if isinstance(data, Images):
        return load_data(data.folder, specs, labels=labels, seed=seed, normalize=data.normalize, wholes=wholes)
    if isinstance(data, (str, Path)):
        return load_data(data, specs, labels=labels, seed=seed, wholes=wholes)
    found = from_object(data, specs, "memory")
    if labels is not None:
        if not isinstance(labels, (str, Path)):
            raise DataError(f"labels: {type(labels).__name__} is no path; give arrays as data, (inputs, labels)")
        found = replace(found, labels=read_labels(Path(labels)))
    return check_data(found, specs, None if labels is None else str(labels), wholes=wholes)


def _subset(n: int, limit: int | None, seed: int) -> IntArray:
    """Return the sorted indices int64[min(n, limit)] of a random subset."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))
