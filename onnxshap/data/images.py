"""Folders of images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxshap.core import Array, IntArray
from onnxshap.data.spec import InputSpec
from onnxshap.errors import DataError, told

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files of a folder that are read, whatever the case; others are passed over, as are names with a leading dot."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_KNOWN: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "none": ((0.0,), (1.0,)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Normalize = str
"""none, imagenet, or mean and standard deviation of pixels in [0, 1], as 0.5/0.5 or 0.48,0.46,0.41/0.27,0.26,0.28."""


@dataclass(frozen=True)
class Images:
    """A folder of images whose pixels are normalised, in the place of its path.

    Attributes:
        folder: the folder.
        normalize: what by, as `Normalize` says.
    """

    folder: Path
    normalize: Normalize

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


def statistics(normalize: Normalize) -> tuple[Array, Array]:
    """Return the mean that is subtracted and the deviation that is divided by, float32[1 or channels] each.

    Raises:
        DataError: they are no numbers, or a deviation is not above 0.

    >>> [values.tolist() for values in statistics("0.5/0.25")]
    [[0.5], [0.25]]
    """
    if normalize in _KNOWN:
        mean, deviation = _KNOWN[normalize]
        return np.array(mean, np.float32), np.array(deviation, np.float32)
    try:
        mean, deviation = ([float(number) for number in part.split(",")] for part in normalize.split("/"))
    except ValueError as error:
        raise DataError(
            f"normalize {normalize!r}: unknown: use 'none', 'imagenet', or mean/deviation as in 0.5/0.5"
        ) from error
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and min(deviation) > 0):
        raise DataError(f"normalize {normalize!r}: give finite means, and deviations above 0")
    return np.array(mean, np.float32), np.array(deviation, np.float32)


def list_images(folder: Path) -> tuple[list[Path], IntArray | None]:
    """Return a folder's images in order, and their labels int64[n] or None."""
    try:
        flat = _images_among(folder.iterdir(), folder)
        classes = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        classes.sort(key=lambda path: path.name)
        inside = [_images_among(path.rglob("*"), path) for path in classes]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({told(error)}): check its permissions") from error
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


def read_images(files: Sequence[Path], spec: InputSpec, normalize: str) -> Array:
    """Return images in the layout and dtype of the model's input."""
    dtype = np.dtype(spec.dtype)
    axis = spec.channels
    if axis is None:
        shape = ", ".join("?" if length is None else str(length) for length in spec.shape)
        raise DataError(
            f"input {spec.name!r}: [{shape}] takes no images: a folder needs a model with 1, 3 or 4 channels, NCHW or "
            "NHWC; give .npz instead"
        )
    channels, (height, width) = spec.shape[axis], spec.shape[2:] if axis == 1 else spec.shape[1:3]
    if dtype.kind != "f" and dtype != np.uint8:
        raise DataError(
            f"input {spec.name!r}: {dtype} takes no pixels: a folder needs float or uint8; give .npz instead"
        )
    mean, deviation = statistics(normalize)
    sizes = {len(mean), len(deviation)} - {1}
    if normalize != "none" and (dtype.kind != "f" or not sizes <= {channels}):
        needed = "".join(f"{size} " for size in sorted(sizes))
        raise DataError(
            f"input {spec.name!r}: normalize {normalize!r} needs {needed}float channels, not {channels} of {dtype}: "
            "use 'none', or a mean and a deviation for all"
        )
    assert channels is not None
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
            pixels[i] = scaled if normalize == "none" else (scaled - mean) / deviation
        else:
            pixels[i] = image
    assert pixels is not None
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if axis == 1 else pixels


def _read_image(file: Path, channels: int, height: int | None, width: int | None) -> Array:
    """Return one image as uint8[H, W, channels]; a free side keeps its length, or its ratio to a side that is given."""
    try:
        from PIL import Image  # an extra: only folders of images need it
    except ImportError as error:
        raise DataError(
            f"{file}: reading images needs Pillow: install it with `pip install 'onnxshap[images]'`, or give .npz"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size or broken metadata: what cannot be read is an error
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
            f"{file}: cannot be read as an image ({told(error)}): mend it, take it out or save it with 8 bits"
        ) from error
    return np.asarray(image, dtype=np.uint8).reshape(size[1], size[0], channels)
