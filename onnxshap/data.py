"""Calibration and evaluation data: files, folders of images, functions and arrays -> a `Dataset` the model can eat.

    data.npz            arrays named as the model's inputs; `labels` or `y` are the targets
    data.npy            the only input of a single-input model
    folder/             images; subfolders are the labels, if there are two or more
    module:function     anything below, from a function without arguments
    Dataset | mapping of arrays | (inputs, labels) | array

Whatever the way in, `check_data` is the one gate: names, dtypes, shapes, lengths, NaN. Axis 0 of every array counts
images, also where the model has a fixed batch of 1 there, or its batch on another axis (a state [2, batch, 128] is
array[n, 2, 128]). An input without a batch (a sampling rate, a threshold) is given whole for every image, a scalar as
array[n], or once for all.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxshap.core import Array, Dataset, IntArray
from onnxshap.errors import DataError

LABEL_NAMES = ("labels", "y")
"""Array names that hold the targets, unless the model has an input of that name."""
INPUT_NAMES = ("x", "X", "images", "data", "input")
"""Array names that a single-input model takes for its input."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files of a folder that are read, whatever the case; others are passed over, as are names with a leading dot."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)

Normalize = Literal["none", "imagenet"]
DataLike = Dataset | Mapping[str, Any] | tuple[Any, Any] | Array | Sequence[Any] | str | Path


@dataclass(frozen=True)
class InputSpec:
    """What a model asks of one input.

    Attributes:
        name: the graph input's name.
        dtype: its element type.
        shape: its dims, None where free.
        batch: the axis of the images, whatever its size; None where there is none.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    batch: int | None = 0

    @property
    def entry(self) -> tuple[int | None, ...]:
        """The dims of what one image gives."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.batch)


def feeds_of(inputs: Mapping[str, Array], batch: Mapping[str, int | None]) -> dict[str, Array]:
    """Return entries of images, along axis 0, as a model takes them: input -> the axis of its images.

    Inputs without one are those of the first image.
    """
    found = {}
    for name, value in inputs.items():
        axis = batch.get(name, 0)
        found[name] = np.asarray(value[0]) if axis is None else np.ascontiguousarray(np.moveaxis(value, 0, axis))
    return found


def load_data(
    source: str | Path,
    specs: Mapping[str, InputSpec],
    *,
    labels: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    normalize: Normalize = "none",
) -> Dataset:
    """Return the checked data set at `source`, in the source's order.

    A folder of images needs a model with one input of rank 4 and 1, 3 or 4 channels, NCHW or else NHWC; pixels come
    as L, RGB or RGBA, resized (bilinear, without a crop) to the model's height and width, in [0, 1] for float inputs
    and 0..255 for uint8. A free height or width follows from the images, which have to agree. Subfolders, sorted by
    name as strings, are the labels 0..k-1 (empty ones count); a single one, or none, labels nothing.

    Args:
        source: .npz, .npy, a folder or "module:function", found from the working directory too; never unpickled.
        specs: the model's inputs by name.
        labels: .npy, .npz with `labels` or `y`, or .txt/.csv with one integer a line; goes before the source's own.
        limit: keep a random subset of that many images, drawn with `seed` without replacement; None: all.
        seed: of the subset alone.
        normalize: "none" hands pixels over as above; "imagenet" then subtracts `IMAGENET_MEAN` and divides by
            `IMAGENET_STD`. Folders only: arrays are what the model was trained on already.

    Raises:
        DataError: what cannot be read, or does not fit the model or itself.
    """
    where = str(source)
    if normalize not in ("none", "imagenet"):
        raise DataError(f"normalize {normalize!r}: unknown: use 'none' or 'imagenet'")
    if limit is not None and limit < 1:
        raise DataError(f"limit {limit}: at least one image is needed: give 1 or more, or none for all")
    path = Path(source)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({_line(error)}): check the path") from error
    targets = None if labels is None else _read_labels(Path(labels))
    if folder:
        files, classes = _list_images(path)
        targets = classes if targets is None else targets
        if targets is not None and len(targets) != len(files):
            raise DataError(f"{where}: {len(targets)} labels for {len(files)} images: give one label an image")
        index = _subset(len(files), limit, seed)
        spec = _only_input(specs, where, "a folder of images")
        images = _read_images([files[i] for i in index], spec, normalize)
        chosen = None if targets is None else targets[index]
        return check_data(Dataset({spec.name: images}, chosen, where), specs)
    if normalize != "none":
        raise DataError(f"{where}: normalize {normalize!r} is for folders of images: normalise the arrays themselves")
    if not there and _FUNCTION.fullmatch(where):
        data = _from_object(_call(where), specs, where)
    else:
        data = _from_file(path, specs, there=there)
    data = check_data(data if targets is None else replace(data, labels=targets), specs)
    return data if limit is None else data.take(_subset(len(data), limit, seed))


def as_dataset(data: DataLike, specs: Mapping[str, InputSpec]) -> Dataset:
    """Return `data` as a checked data set.

    Args:
        data: a Dataset; a mapping of arrays, with `labels` or `y` as the targets; (inputs, labels), where inputs is a
            mapping or an array; an array for a single-input model; a str or Path for `load_data`.
        specs: the model's inputs by name.

    Raises:
        DataError: as `load_data`.

    >>> spec = InputSpec("x", np.dtype(np.float32), (1, 2))
    >>> data = as_dataset({"x": np.zeros((5, 2)), "y": np.arange(5)}, {"x": spec})
    >>> len(data), data.inputs["x"].dtype, data.labels
    (5, dtype('float32'), array([0, 1, 2, 3, 4]))
    """
    if isinstance(data, (str, Path)):
        return load_data(data, specs)
    return check_data(_from_object(data, specs, "memory"), specs)


def random_data(specs: Mapping[str, InputSpec], n: int, seed: int) -> Dataset:
    """Return n images of noise that any model can run: source "random", no labels.

    Floats are normal(0, 1), uint8 (pixels) uniform in 0..255, bools fair coins, other integers 0 or 1: valid indices
    of any table with two rows. An integer without axes, which is a setting, is 1.

    Raises:
        DataError: n < 1, a free dim but for axis 0, or a dtype that is none of these.

    >>> data = random_data({"x": InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))}, n=2, seed=0)
    >>> data.inputs["x"].shape, data.source
    ((2, 3, 8, 8), 'random')
    """
    if n < 1:
        raise DataError(f"random data: {n} images: ask for 1 or more")
    rng = np.random.default_rng(seed)
    return Dataset({name: _random(spec, n, rng) for name, spec in specs.items()}, source="random")


def check_data(data: Dataset, specs: Mapping[str, InputSpec]) -> Dataset:
    """Return the data set in the model's dtypes, contiguous, its inputs in the order of `specs`.

    Casts that keep the values are silent: between floats, between integers (and from bool) where every value fits.
    Integers for a float input are refused, uint8 above all: only the user knows how they were scaled in training.
    Integer labels come back as int64, float labels as they are.

    Raises:
        DataError: wrong, missing or extra names; dtypes or shapes that are not the model's; no images; arrays or
            labels of different lengths; NaN or Inf.
    """
    where = data.source
    if not specs:
        raise DataError(f"{where}: the model has no inputs to feed: give a model that reads its data from an input")
    if set(data.inputs) != set(specs):
        raise DataError(
            f"{where}: has {_names(data.inputs)}, the model's inputs are {_names(specs)}: name the arrays as the inputs"
        )
    inputs = {name: _fit(data.inputs[name], spec, f"{where}: {name!r}") for name, spec in specs.items()}
    once = {
        name
        for name, spec in specs.items()
        if spec.batch is None and np.ndim(data.inputs[name]) < len(inputs[name].shape)
    }
    most = max((len(array) for name, array in inputs.items() if name not in once), default=1)
    inputs |= {name: np.repeat(inputs[name], most, axis=0) for name in once}
    lengths = {name: len(array) for name, array in inputs.items()}
    if len(set(lengths.values())) > 1:
        have = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: arrays of different lengths ({have}): give every input one entry an image")
    labels = None if data.labels is None else _fit_labels(data.labels, next(iter(lengths.values())), where)
    return Dataset(inputs, labels, where)


# Fitting arrays to the model ------------------------------------------------------------------------------------------


def _fit(value: Any, spec: InputSpec, where: str) -> Array:
    """Return one input as a finite, contiguous array[n, ...] in the model's dtype."""
    array = _array(value, where)
    if spec.batch is None and _matches(array.shape, spec.shape):
        array = array[None]
    wanted = (None, *spec.entry)
    free = ", ".join(["n", *("?" if length is None else str(length) for length in wanted[1:])])
    if array.ndim != len(wanted):
        hint = "give one entry an image along axis 0"
        if array.ndim == len(wanted) - 1 and _matches(array.shape, wanted[1:]):
            hint = "one image alone needs an axis in front, x[None]"
        if spec.batch and array.ndim == len(wanted) + 1 and array.shape[spec.batch + 1] == 1:
            hint = f"leave out axis {spec.batch + 1}, of its batch: x.squeeze({spec.batch + 1})"
        raise DataError(f"{where}: shape {list(array.shape)}, the model wants [{free}]: {hint}")
    if not _matches(array.shape[1:], wanted[1:]):
        axis = next(i for i in range(1, array.ndim) if not _matches(array.shape[i : i + 1], wanted[i : i + 1]))
        hint = "reshape or resize it"
        for order, name in (((0, 3, 1, 2), "NCHW"), ((0, 2, 3, 1), "NHWC")):
            if array.ndim == 4 and _matches([array.shape[i] for i in order[1:]], wanted[1:]):
                hint = f"it looks transposed, use x.transpose{order} for {name}"
        raise DataError(
            f"{where}: shape {list(array.shape)}, the model wants [{free}]: axis {axis} has {array.shape[axis]} "
            f"entries, not {wanted[axis]}; {hint}"
        )
    if not array.size:
        raise DataError(f"{where}: shape {list(array.shape)} is empty: give at least one image")
    return _finite(_cast(array, spec.dtype, where), where)


def _matches(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Return whether a shape of the same rank has every dim that is not free."""
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))


def _cast(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    """Return the array in another dtype where that keeps its values (floats: their meaning)."""
    dtype = np.dtype(dtype)
    have, want = array.dtype, dtype
    if have == want or (have.kind == want.kind == "f"):
        with np.errstate(over="ignore"):  # what overflows becomes Inf, and that is refused
            return np.ascontiguousarray(array, dtype=want)
    if have.kind in "biu" and want.kind in "iu":
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(want)
        if low < limits.min or high > limits.max:
            raise DataError(f"{where}: values {low}..{high} do not fit the model's {want}: give values that do")
        return np.ascontiguousarray(array, dtype=want)
    hint = f"give {want} values"
    if have.kind in "biu" and want.kind == "f":
        hint = f"x.astype({want.name!r}) if the model was trained on such values"
        if have == np.uint8:
            hint = f"scale it as in training, for example x.astype({want.name!r}) / 255"
    raise DataError(f"{where}: is {have}, the model wants {want}: {hint}")


def _finite(array: Array, where: str) -> Array:
    """Return the array, whose floats have to be finite."""
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            raise DataError(f"{where}: NaN or Inf (in {array.dtype}) in row {row}: leave that row out or mend it")
    return array


def _fit_labels(value: Any, n: int, where: str) -> Array:
    """Return n labels as int64 or finite floats."""
    labels = _array(value, f"{where}: labels")
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{where}: labels are {labels.dtype}: give integer class indices or float targets")
    given = len(labels) if labels.ndim else 0
    if given != n:
        raise DataError(f"{where}: {given} labels for {n} images: give one label an image")
    return _finite(labels, f"{where}: labels") if labels.dtype.kind == "f" else labels.astype(np.int64)


def _array(value: Any, where: str) -> Array:
    """Return any array-like (lists, tensors of other frameworks) as an array of numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: cannot be made an array ({_line(error)}): give a NumPy array") from error
    if array.dtype == object:
        raise DataError(f"{where}: {type(value).__name__} of Python objects: give a NumPy array of numbers")
    return array


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
    if dtype.kind not in "biu":
        raise DataError(f"random data: input {spec.name!r} is {dtype}, not float, integer or bool: give data")
    return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def _subset(n: int, limit: int | None, seed: int) -> IntArray:
    """Return the sorted indices int64[min(n, limit)] of a random subset."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))


# Objects --------------------------------------------------------------------------------------------------------------


def _from_object(value: Any, specs: Mapping[str, InputSpec], where: str) -> Dataset:
    """Return what a user handed over as a data set, unchecked."""
    if isinstance(value, Dataset):
        return value if value.source != "memory" else replace(value, source=where)
    if isinstance(value, tuple):
        if len(value) != 2:
            raise DataError(f"{where}: a tuple of {len(value)}: give (inputs, labels)")
        inputs, labels = value
        if labels is None:
            return _from_object(inputs, specs, where)
        if isinstance(inputs, Mapping):
            return Dataset(_rename(dict(inputs), specs), labels, where)
        return Dataset({_only_input(specs, where, "one array").name: inputs}, labels, where)
    if isinstance(value, Mapping):
        arrays = dict(value)
        found = next((name for name in LABEL_NAMES if name in arrays and name not in specs), None)
        targets = None if found is None else arrays.pop(found)
        return Dataset(_rename(arrays, specs), targets, where)
    if isinstance(value, (list, np.ndarray)) or hasattr(value, "__array__"):
        return Dataset({_only_input(specs, where, "one array").name: value}, None, where)
    raise DataError(
        f"{where}: {type(value).__name__} is no data set: "
        "give a Dataset, a mapping of arrays, (inputs, labels) or an array"
    )


def _rename(arrays: dict[str, Any], specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """Return the arrays, a lone one with a common name renamed to the model's lone input."""
    if len(specs) == len(arrays) == 1 and next(iter(arrays)) in INPUT_NAMES:
        return dict(zip(specs, arrays.values(), strict=True))
    return arrays


def _only_input(specs: Mapping[str, InputSpec], where: str, what: str) -> InputSpec:
    """Return the spec of a single-input model."""
    if len(specs) != 1:
        raise DataError(
            f"{where}: {what} serves models with one input, this one has {_names(specs)}: "
            "give an .npz or a mapping with one array an input"
        )
    return next(iter(specs.values()))


def _call(source: str) -> Any:
    """Return what "module:function" returns."""
    module_name, _, function_name = source.partition(":")
    with _working_directory_on_path():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise DataError(
                f"{source}: {module_name!r} cannot be imported ({_line(error)}): "
                "run where the module lies, or install it, and see that it imports"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise DataError(f"{source}: module {module_name!r} has no function {function_name!r}: define it there")
        try:
            return function()
        except Exception as error:
            raise DataError(
                f"{source}: the function failed ({_line(error)}): it is called without arguments, mend it there"
            ) from error


@contextlib.contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Let imports find the working directory, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()  # the module may be younger than the last look into the directory
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


# Files ----------------------------------------------------------------------------------------------------------------


def _from_file(path: Path, specs: Mapping[str, InputSpec], *, there: bool) -> Dataset:
    """Return a file's arrays as a data set, unchecked."""
    if not there:
        raise DataError(f"{path}: no such file or folder: give .npz, .npy, a folder of images or module:function")
    match path.suffix.lower():
        case ".npz":
            return _from_object(_read_npz(path), specs, str(path))
        case ".npy":
            spec = _only_input(specs, str(path), "an .npy file")
            return Dataset({spec.name: _read_npy(path)}, None, str(path))
        case suffix:
            raise DataError(
                f"{path}: cannot read {suffix or 'a file without suffix'}: "
                "give .npz, .npy, a folder of images or module:function"
            )


def _read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an .npz by name."""
    try:
        with path.open("rb") as file:  # np.load leaves a broken archive open if it opened it itself
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("one array, not an archive")  # noqa: TRY004 (told like any other broken file)
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as .npz ({_line(error)}): write it with np.savez, without object arrays"
        ) from error


def _read_npy(path: Path) -> Array:
    """Return the array of an .npy."""
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as .npy ({_line(error)}): write it with np.save, not from an object array"
        ) from error
    return array


def _read_labels(path: Path) -> Array:
    """Return the labels of a file, unchecked but for its form."""
    match path.suffix.lower():
        case ".npy":
            return _read_npy(path)
        case ".npz":
            arrays = _read_npz(path)
            for name in LABEL_NAMES:
                if name in arrays:
                    return arrays[name]
            raise DataError(f"{path}: has {_names(arrays)}, no labels: name the array 'labels' or 'y'")
        case ".txt" | ".csv":
            return _read_integers(path)
        case suffix:
            raise DataError(
                f"{path}: cannot read labels from {suffix or 'a file without suffix'}: "
                "give .npy, .npz, or .txt/.csv with one integer a line"
            )


def _read_integers(path: Path) -> IntArray:
    """Return one integer a line; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({_line(error)}): give a text file with one integer a line") from error
    labels = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                labels.append(np.int64(line))
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{path}: line {number} is {line[:40]!r}: give one integer a line (float targets: .npy)"
                ) from error
    return np.array(labels, dtype=np.int64)


# Images ---------------------------------------------------------------------------------------------------------------


def _list_images(folder: Path) -> tuple[list[Path], IntArray | None]:
    """Return a folder's images in order, and their labels int64[n] or None."""
    try:
        flat = _images_among(folder.iterdir(), folder)
        classes = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        classes.sort(key=lambda path: path.name)
        inside = [_images_among(path.rglob("*"), path) for path in classes]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({_line(error)}): check its permissions") from error
    files = [file for of_class in inside for file in of_class]
    if flat and files:
        raise DataError(
            f"{folder}: images both in the folder ({flat[0].name}) and in subfolders ({files[0].parent.name}): "
            "keep them all in subfolders (labels) or all in the folder (none)"
        )
    if not flat and not files:
        raise DataError(f"{folder}: no images: give files ending in {', '.join(IMAGE_SUFFIXES)}")
    if flat or len(classes) == 1:
        return flat or files, None
    return files, np.repeat(np.arange(len(classes)), [len(of_class) for of_class in inside])


def _images_among(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Return the image files below a folder among `paths`, sorted; nothing hidden."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _read_images(files: Sequence[Path], spec: InputSpec, normalize: str) -> Array:
    """Return images in the layout and dtype of the model's input."""
    dtype = np.dtype(spec.dtype)
    if len(spec.shape) == 4 and spec.shape[1] in _MODES:
        channels, height, width, channels_first = spec.shape[1], spec.shape[2], spec.shape[3], True
    elif len(spec.shape) == 4 and spec.shape[3] in _MODES:
        channels, height, width, channels_first = spec.shape[3], spec.shape[1], spec.shape[2], False
    else:
        shape = ", ".join("?" if length is None else str(length) for length in spec.shape)
        raise DataError(
            f"input {spec.name!r}: [{shape}] takes no images: a folder needs a model with 1, 3 or 4 channels, NCHW or "
            "NHWC; give .npz instead"
        )
    if dtype.kind != "f" and dtype != np.uint8:
        raise DataError(
            f"input {spec.name!r}: {dtype} takes no pixels: a folder needs float or uint8; give .npz instead"
        )
    if normalize == "imagenet" and (channels != 3 or dtype.kind != "f"):
        raise DataError(
            f"input {spec.name!r}: normalize 'imagenet' needs 3 float channels, not {channels} of {dtype}: use 'none'"
        )
    assert channels is not None
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    pixels: Array | None = None
    for i, file in enumerate(files):
        image = _read_image(file, channels, height, width)
        if pixels is None:
            pixels = np.empty((len(files), *image.shape), dtype)
        elif image.shape != pixels.shape[1:]:
            (h, w), (h0, w0) = image.shape[:2], pixels.shape[1:3]
            raise DataError(
                f"{file}: {h} x {w}, but {files[0]} is {h0} x {w0} and the model's size is free: "
                "make all images the same size"
            )
        if dtype.kind == "f":
            scaled = image.astype(np.float32) / np.float32(255)
            if normalize == "imagenet":
                scaled = (scaled - mean) / std
            pixels[i] = scaled
        else:
            pixels[i] = image
    assert pixels is not None
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if channels_first else pixels


def _read_image(file: Path, channels: int, height: int | None, width: int | None) -> Array:
    """Return one image as uint8[H, W, channels]; a free side keeps its length, or its ratio to a side that is given."""
    try:
        from PIL import Image  # an extra: only folders of images need it
    except ImportError as error:
        raise DataError(
            f"{file}: reading images needs Pillow: install it with `pip install 'onnxshap[images]'`, or give .npz"
        ) from error
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                raise ValueError(f"mode {opened.mode}, more than 8 bits a pixel")  # noqa: TRY301
            image = opened.convert(_MODES[channels])
        h, w = image.height, image.width
        if height is None and width is None:
            size = (w, h)
        elif height is None:
            size = (width or w, max(1, round(h * (width or w) / w)))
        else:
            size = (width or max(1, round(w * height / h)), height)
        if size != (w, h):
            image = image.resize(size, Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: cannot be read as an image ({_line(error)}): mend it, take it out or save it with 8 bits"
        ) from error
    return np.asarray(image, dtype=np.uint8).reshape(size[1], size[0], channels)


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def _line(error: BaseException) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
