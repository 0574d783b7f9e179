"""Every way in gives the same checked data set, and what does not fit the model is refused in words that help."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from onnxshap.core import Array, Dataset
from onnxshap.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INPUT_NAMES,
    LABEL_NAMES,
    Images,
    InputSpec,
    as_dataset,
    check_data,
    feeds_of,
    load_data,
    random_data,
)
from onnxshap.errors import DataError

Specs = dict[str, InputSpec]


def specs(**inputs: tuple[str, tuple[int | None, ...]]) -> Specs:
    """The inputs of a model, for example x=("float32", (1, 3, 4, 4))."""
    return {name: InputSpec(name, np.dtype(dtype), shape) for name, (dtype, shape) in inputs.items()}


ONE = specs(pixels=("float32", (1, 2, 3)))
TWO = specs(ids=("int64", (None, None)), scale=("float32", ()))
X = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
LABELS = np.arange(5)


def refused(call: Callable[[], object], *fragments: object) -> None:
    """The call raises one line that says all of this."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert str(fragment) in message, message


def same(data: Dataset, inputs: Mapping[str, Array], labels: Array | None) -> None:
    """The data set holds exactly this, in the model's layout."""
    assert list(data.inputs) == list(inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(data.inputs[name], array)
        assert data.inputs[name].flags.c_contiguous
    if labels is None:
        assert data.labels is None
    else:
        assert data.labels is not None
        np.testing.assert_array_equal(data.labels, labels)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mydata", "neighbour", "pack", "pack.mydata", "crash"):
        sys.modules.pop(name, None)


def save_image(path: Path, color: tuple[int, ...] = (255, 0, 51), size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


# Arrays in memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (Dataset({"pixels": X}), None),
        (Dataset({"pixels": X}, LABELS), LABELS),
        ({"pixels": X}, None),
        ({"pixels": X, "labels": LABELS}, LABELS),
        ({"pixels": X, "y": LABELS.tolist()}, LABELS),
        ({"x": X, "y": LABELS}, LABELS),
        ((X, LABELS), LABELS),
        ((X, None), None),
        (({"pixels": X}, LABELS), LABELS),
        (({"images": X}, LABELS), LABELS),
        (({"pixels": X, "y": LABELS}, None), LABELS),
        (X, None),
        (X.tolist(), None),
        (X.astype(np.float64), None),
        (np.asfortranarray(X), None),
        (X.astype(">f4"), None),
    ],
)
def test_whatever_a_user_hands_over_becomes_the_same_data_set(value: Any, labels: Array | None) -> None:
    same(as_dataset(value, ONE), {"pixels": X}, labels)


def test_tensors_of_other_frameworks_are_arrays() -> None:
    class Tensor:
        def __array__(self, dtype: object = None, copy: object = None) -> Array:
            return X

    same(as_dataset(Tensor(), ONE), {"pixels": X}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", INPUT_NAMES)
def test_common_names_serve_a_model_with_one_input_and_no_other(name: str) -> None:
    same(as_dataset({name: X}, ONE), {"pixels": X}, None)
    refused(lambda: as_dataset({name: X}, ONE | TWO), repr(name), "'pixels', 'ids', 'scale'", "name the arrays")


@pytest.mark.parametrize("name", LABEL_NAMES)
def test_an_input_called_like_labels_is_an_input(name: str) -> None:
    same(as_dataset({name: X}, specs(**{name: ("float32", (1, 2, 3))})), {name: X}, None)


def test_inputs_come_in_the_models_order_with_scalars_one_an_image() -> None:
    ids, scale = np.ones((3, 7), np.int64), np.ones(3, np.float32)
    same(as_dataset({"scale": scale, "ids": ids}, TWO), {"ids": ids, "scale": scale}, None)


def test_float_targets_and_class_labels_keep_their_kind() -> None:
    for labels, dtype in ((LABELS.astype(np.uint8), "int64"), (LABELS > 2, "int64"), (LABELS / 2, "float64")):
        data = check_data(Dataset({"pixels": X}, labels), ONE)
        same(data, {"pixels": X}, labels)
        assert data.labels is not None
        assert data.labels.dtype == dtype


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float16"),
        ("int32", "int64"),
        ("int64", "int32"),
        ("uint8", "int64"),
        ("bool", "int64"),
        ("int64", "uint8"),
        ("bool", "bool"),
        (">i4", "int32"),
    ],
)
def test_casts_that_keep_values_are_silent(have: str, want: str) -> None:
    array = np.array([[0, 1], [1, 0]], dtype=have)
    data = as_dataset(array, specs(x=(want, (1, 2))))
    assert data.inputs["x"].dtype == np.dtype(want)
    np.testing.assert_array_equal(data.inputs["x"], array)


@settings(deadline=None)
@given(
    hnp.arrays(st.sampled_from([np.int64, np.int32, np.uint8, np.int16]), 3),
    st.sampled_from([np.int64, np.int32, np.uint8, np.int8]),
)
def test_integers_keep_their_values_or_are_refused(array: Array, dtype: type[np.generic]) -> None:
    spec = {"x": InputSpec("x", np.dtype(dtype), (None,))}
    limits = np.iinfo(np.dtype(dtype))
    if limits.min <= int(array.min()) and int(array.max()) <= limits.max:
        data = as_dataset(array, spec)
        assert data.inputs["x"].dtype == dtype
        assert data.inputs["x"].tolist() == array.tolist()
        again = check_data(data, spec)
        assert again.inputs["x"] is data.inputs["x"]  # checked data pass through as they are
    else:
        refused(lambda: as_dataset(array, spec), "'x'", np.dtype(dtype), array.min(), array.max(), "do not fit")


@pytest.mark.parametrize(
    ("have", "want", "fragments"),
    [
        ("uint8", "float32", ("is uint8", "float32", "scale it as in training", "/ 255")),
        ("int64", "float32", ("is int64", "x.astype('float32')")),
        ("bool", "float32", ("is bool", "x.astype('float32')")),
        ("float32", "int64", ("is float32", "give int64 values")),
        ("float32", "uint8", ("is float32", "give uint8 values")),
        ("int64", "bool", ("is int64", "give bool values")),
        ("U1", "float32", ("is <U1", "give float32 values")),
        ("complex64", "float32", ("is complex64", "give float32 values")),
    ],
)
def test_casts_that_guess_are_refused(have: str, want: str, fragments: tuple[str, ...]) -> None:
    array = np.array([["0", "1"]]).astype(have) if have == "U1" else np.array([[0, 1]], dtype=have)
    refused(lambda: as_dataset({"x": array}, specs(x=(want, (1, 2)))), "memory: 'x'", *fragments)


IMAGES = specs(x=("float32", (1, 3, 8, 6)))


@pytest.mark.parametrize(
    ("shape", "model", "fragments"),
    [
        ((5, 3, 8, 7), IMAGES, ("[5, 3, 8, 7]", "[n, 3, 8, 6]", "axis 3 has 7 entries, not 6", "reshape or resize")),
        ((5, 8, 6, 3), IMAGES, ("axis 1 has 8", "x.transpose(0, 3, 1, 2) for NCHW")),
        (
            (5, 3, 8, 6),
            specs(x=("float32", (None, 8, 6, 3))),
            ("[n, 8, 6, 3]", "x.transpose(0, 2, 3, 1) for NHWC"),
        ),
        ((3, 8, 6), IMAGES, ("[3, 8, 6]", "[n, 3, 8, 6]", "x[None]")),
        ((3, 8, 7), IMAGES, ("[3, 8, 7]", "[n, 3, 8, 6]", "one entry an image along axis 0")),
        ((5, 144), IMAGES, ("[5, 144]", "[n, 3, 8, 6]", "laid out flat, x.reshape(-1, 3, 8, 6)")),
        ((5, 1, 3, 8, 6), IMAGES, ("[5, 1, 3, 8, 6]", "one entry an image")),
        ((), IMAGES, ("[]", "one entry an image")),
        ((5, 4, 7), specs(x=("float32", (None, None, 6))), ("[n, ?, 6]", "axis 2 has 7 entries, not 6")),
        ((5, 1), specs(x=("float32", ())), ("[5, 1]", "[n]")),
        ((0, 3, 8, 6), IMAGES, ("[0, 3, 8, 6]", "empty", "at least one image")),
        ((4, 0), specs(x=("float32", (None, None))), ("[4, 0]", "empty")),
        ((0, 4), specs(x=("int64", (None, None))), ("[0, 4]", "empty")),
    ],
)
def test_shapes_that_are_not_the_models_are_refused(
    shape: tuple[int, ...], model: Specs, fragments: tuple[str, ...]
) -> None:
    array = np.zeros(shape, model["x"].dtype)
    refused(lambda: as_dataset({"x": array}, model), "memory: 'x'", *fragments)


@pytest.mark.parametrize("free", [(None, 2, 3), (1, None, 3), (7, None, None)])
def test_free_dims_and_the_batch_take_any_length(free: tuple[int | None, ...]) -> None:
    same(as_dataset(X, specs(x=("float32", free))), {"x": X}, None)


@pytest.mark.parametrize(
    ("value", "model", "fragments"),
    [
        ({"foo": X}, ONE, ("has 'foo'", "'pixels'", "name the arrays")),
        ({}, ONE, ("has nothing", "'pixels'")),
        ({"pixels": X, "extra": X}, ONE, ("has 'pixels', 'extra'", "inputs are 'pixels': leave out 'extra'")),
        ({"pixels": X, "labels": LABELS, "y": LABELS}, ONE, ("has 'pixels', 'y'",)),
        (({"pixels": X, "y": LABELS}, LABELS), ONE, ("has 'pixels', 'y'",)),
        ({"ids": np.ones((3, 2), int)}, TWO, ("has 'ids'", "'ids', 'scale'")),
        ({"pixels": X}, {}, ("no inputs to feed",)),
        (X, TWO, ("one array", "one input", "'ids', 'scale'", ".npz or a mapping")),
        ((X, LABELS), TWO, ("one array", "'ids', 'scale'")),
        (
            {"ids": np.ones((3, 2), int), "scale": np.ones(4)},
            TWO,
            ("different lengths", "'ids' 3, 'scale' 4", "one entry an image"),
        ),
        (np.ones((5, 4, 3)), specs(x=("float32", (None, 1, 4, 3))), ("axis 1 is missing, np.expand_dims(x, 1)",)),
        (np.ones((5, 1, 3)), specs(x=("float32", (None, 1, 1, 3))), ("give one entry an image",)),
        ((X, LABELS[:4]), ONE, ("4 labels for 5 images", "one label an image")),
        ((X, 3), ONE, ("labels of shape [] for 5 images",)),
        ((X, LABELS[None]), ONE, ("memory: labels of shape [1, 5] for 5 images: give one label an image",)),
        ((X, ["a"] * 5), ONE, ("labels are <U1", "integer class indices or float targets")),
        ((X, LABELS / 0.5 * np.array([1, 1, 1, np.nan, 1])), ONE, ("labels", "NaN or Inf", "row 3")),
        (
            X * np.array([1, 1, np.nan, 1, 1], np.float32)[:, None, None],
            ONE,
            ("'pixels'", "NaN or Inf", "row 2", "mend"),
        ),
        (np.where(LABELS == 4, np.inf, 0.0)[:, None, None] + X, ONE, ("'pixels'", "NaN or Inf", "row 4")),
        (np.full((1, 2), 1e6), specs(x=("float16", (1, 2))), ("'x'", "NaN or Inf (in float16)", "row 0")),
        (np.ma.masked_greater(X, 0.5), ONE, ("'pixels'", "some entries are masked", "x.filled(")),
        ([[1.0], [1.0, 2.0]], ONE, ("'pixels'", "cannot be made an array", "NumPy array")),
        ({"pixels": [None]}, ONE, ("'pixels'", "list of Python objects")),
        ((X, {"a": 1}), ONE, ("labels", "dict of Python objects")),
        (np.zeros((2, 3)), specs(x=("object", (None, 3))), ("is float64, the model wants strings: give strings",)),
        ((X, LABELS, LABELS), ONE, ("a tuple of 3", "(inputs, labels)")),
        (None, ONE, ("NoneType is no data set", "mapping of arrays")),
        (7, ONE, ("int is no data set",)),
    ],
)
def test_data_that_do_not_fit_are_refused(value: Any, model: Specs, fragments: tuple[str, ...]) -> None:
    refused(lambda: as_dataset(value, model), "memory", *fragments)


@pytest.mark.parametrize("dtype", ["U", "object"])
def test_strings_are_taken_for_inputs_of_strings(dtype: str, tmp_path: Path) -> None:
    words, model = np.array([["a", "bcd"], ["", "e"]], dtype), specs(x=("object", (None, 2)))
    found = as_dataset(words, model)
    assert found.inputs["x"].dtype == object
    assert found.inputs["x"].tolist() == [["a", "bcd"], ["", "e"]]
    np.savez(tmp_path / "d.npz", x=words.astype("U"))
    assert load_data(str(tmp_path / "d.npz"), model).inputs["x"].tolist() == words.tolist()
    refused(lambda: random_data(model, 2, 0), "'x' takes strings", "give data")


# Files of arrays ------------------------------------------------------------------------------------------------------


def test_npz(here: Path) -> None:
    np.savez(here / "d.npz", pixels=X, labels=LABELS)
    for source in ("d.npz", Path("d.npz")):
        data = load_data(source, ONE)
        same(data, {"pixels": X}, LABELS)
        assert data.source == "d.npz"
    same(as_dataset("d.npz", ONE), {"pixels": X}, LABELS)


def test_npy(here: Path) -> None:
    for name in ("d.npy", "d.NPY"):
        save_npy(here / name, X)
        same(load_data(name, ONE), {"pixels": X}, None)
    refused(lambda: load_data("d.npy", TWO), "d.npy", "one input", "'ids', 'scale'", ".npz")


@pytest.mark.parametrize("name", ["l.npy", "l.npz", "l.txt", "l.csv", "y.npz"])
def test_labels_from_a_file_go_before_the_datas_own(here: Path, name: str) -> None:
    np.savez(here / "d.npz", pixels=X, labels=LABELS)
    labels = LABELS[::-1]
    match name:
        case "l.npy":
            np.save(name, labels)
        case "l.npz":
            np.savez(name, labels=labels, y=LABELS)
        case "y.npz":
            np.savez(name, y=labels, other=LABELS)
        case _:
            Path(name).write_text("\ufeff4\n 3\n\n2\r\n1\n0\n\n", encoding="utf-8")
    same(load_data("d.npz", ONE, labels=name), {"pixels": X}, labels)


def broken_zip(path: Path) -> None:
    np.savez(path, pixels=X)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def broken_member(path: Path) -> None:
    np.savez_compressed(path, pixels=X)
    whole = bytearray(path.read_bytes())
    whole[90:120] = bytes(30)
    path.write_bytes(whole)


def save_npy(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def short_npy(path: Path) -> None:
    save_npy(path, X)
    path.write_bytes(path.read_bytes()[:-9])


def flag_member(path: Path, place: int, value: int) -> None:
    """Change a byte of the headers of an archive's only member: 6 and 8 into the local one, 8 and 10 into the other."""
    np.savez(path, pixels=X)
    content = bytearray(path.read_bytes())
    for start, shift in ((content.index(b"PK\x03\x04"), 0), (content.index(b"PK\x01\x02"), 2)):
        content[start + place + shift] = value
    path.write_bytes(content)


def encrypted_member(path: Path) -> None:
    flag_member(path, 6, 1)


def odd_compression(path: Path) -> None:
    flag_member(path, 8, 77)


def unbalanced(path: Path, *, archive: bool) -> None:
    """Write an array whose header lacks its last bracket."""
    stream = io.BytesIO()
    np.save(stream, X)
    harmed = stream.getvalue().replace(b"), }", b" , }", 1)
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("pixels.npy", harmed)
    else:
        path.write_bytes(harmed)


def endless_npy(path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((1111111111, 0), np.float32))
    path.write_bytes(stream.getvalue().replace(b"1111111111,", b"9" * 30 + b",", 1))


@pytest.mark.parametrize(
    ("name", "write", "fragments"),
    [
        ("d.npz", broken_zip, ("cannot be read as .npz", "np.savez")),
        ("d.npz", broken_member, ("cannot be read as .npz", "np.savez")),
        ("d.npz", lambda p: save_npy(p, X), ("cannot be read as .npz", "one array, not an archive")),
        ("d.npz", lambda p: p.write_bytes(b""), ("cannot be read as .npz",)),
        ("d.npz", lambda p: p.write_bytes(b"junk" * 9), ("cannot be read as .npz",)),
        ("d.npz", lambda p: np.savez(p, pixels=np.array([{}])), ("cannot be read as .npz", "object arrays")),
        ("d.npz", encrypted_member, ("cannot be read as .npz",)),
        ("d.npz", odd_compression, ("cannot be read as .npz",)),
        ("d.npz", lambda p: unbalanced(p, archive=True), ("cannot be read as .npz",)),
        ("d.npy", lambda p: unbalanced(p, archive=False), ("cannot be read as .npy",)),
        ("d.npy", endless_npy, ("cannot be read as .npy",)),
        ("d.npy", short_npy, ("cannot be read as .npy", "np.save")),
        ("d.npy", lambda p: p.write_bytes(b""), ("cannot be read as .npy",)),
        ("d.npy", broken_zip, ("cannot be read as .npy",)),
        ("d.npy", lambda p: save_npy(p, np.array([{}])), ("cannot be read as .npy", "not from an object array")),
        ("d.jpg", lambda p: p.write_bytes(b""), ("cannot read .jpg", "module:function")),
        ("d", lambda p: p.write_bytes(b""), ("a file without suffix", ".npz")),
        ("d.npz", lambda p: None, ("no such file or folder", "module:function")),
        ("x" * 5000, lambda p: None, ("x" * 5000,)),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    here: Path, name: str, write: Callable[[Path], object], fragments: tuple[str, ...]
) -> None:
    if len(name) < 100:
        target = here / name
        if write is broken_zip:
            broken_zip(here / "tmp.npz")
            (here / "tmp.npz").rename(target)
        else:
            write(target)
    refused(lambda: load_data(name, ONE), name, *fragments)


def test_files_that_do_not_fit_the_model_are_named(here: Path) -> None:
    np.savez(here / "d.npz", foo=X)
    refused(lambda: load_data("d.npz", ONE), "d.npz", "'foo'", "'pixels'", "name the arrays")
    np.savez(here / "d.npz", x=X[:, :, :2])
    refused(lambda: load_data("d.npz", ONE), "d.npz", "'pixels'", "axis 2")


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("l.txt", "0\n1\ncat\n", ("l.txt", "line 3", "'cat'", "one number a line")),
        ("l.csv", "0,1\n", ("l.csv", "line 1", "'0,1'")),
        ("l.txt", "1_0\n", ("line 1", "one number a line")),
        ("l.txt", "label\n0\n", ("line 1", "one number a line, nothing else")),
        ("l.txt", "1\nnan\n", ("line 2", "one number a line")),
        ("l.txt", "99999999999999999999\n", ("line 1", "one number a line")),
        ("l.txt", b"\xff\xfe0", ("l.txt", "cannot be read", "text file")),
        ("l.txt", None, ("l.txt", "cannot be read as .txt (no such file)", "check the path")),
        ("l.npy", None, ("l.npy", "cannot be read as .npy")),
        ("l.json", "[0]", ("l.json", "cannot read labels from .json", "one number a line")),
        ("l", "0", ("a file without suffix",)),
        ("l.npz", {"foo": LABELS}, ("l.npz", "has 'foo'", "'labels' or 'y'")),
        ("l.txt", "0\n1\n", ("l.txt: 2 labels for 5 images of d.npz: give one label an image",)),
    ],
)
def test_labels_that_cannot_be_read_are_refused(
    here: Path, name: str, content: str | bytes | dict[str, Array] | None, fragments: tuple[str, ...]
) -> None:
    np.savez(here / "d.npz", pixels=X)
    match content:
        case str():
            (here / name).write_text(content)
        case bytes():
            (here / name).write_bytes(content)
        case dict():
            np.savez(here / name, **content)  # type: ignore[arg-type]
    refused(lambda: load_data("d.npz", ONE, labels=name), *fragments)


# A subset -------------------------------------------------------------------------------------------------------------


def test_limit_keeps_a_seeded_sorted_subset(here: Path) -> None:
    x = np.arange(50, dtype=np.float32)
    np.savez(here / "d.npz", x=x, y=np.arange(50))
    model = specs(x=("float32", (None,)))
    drawn = []
    for seed in range(5):
        data = load_data("d.npz", model, limit=20, seed=seed)
        same(load_data("d.npz", model, limit=20, seed=seed), data.inputs, data.labels)
        values = data.inputs["x"]
        assert len(data) == len(set(values)) == 20
        assert (np.diff(values) > 0).all()
        np.testing.assert_array_equal(values, data.labels)
        drawn.append(values.tolist())
    assert len(set(map(tuple, drawn))) == 5
    assert len(load_data("d.npz", model, limit=1)) == 1
    for limit in (50, 999, None):
        same(load_data("d.npz", model, limit=limit), {"x": x}, np.arange(50))


def test_a_limit_below_one_is_refused() -> None:
    for limit in (0, -3):
        refused(lambda limit=limit: load_data("d.npz", ONE, limit=limit), f"limit {limit}", "1 or more")  # type: ignore[misc]


# Functions ------------------------------------------------------------------------------------------------------------

MODULE = """
import numpy as np
from onnxshap.core import Dataset

x = np.ones((5, 2, 3), np.float32)
y = np.arange(5)
value = 3

def dataset(): return Dataset({"pixels": x}, y)
def named(): return Dataset({"pixels": x}, y, source="shop floor")
def mapping(): return {"pixels": x, "labels": y}
def pair(): return x, y
def array(): return x
def nothing(): pass
def with_argument(a): return x
def lazy():
    import neighbour
    return neighbour.x
def broken(): raise KeyError("first\\nsecond")
"""


@pytest.mark.parametrize("name", ["dataset", "named", "mapping", "pair", "array", "lazy"])
def test_a_function_of_a_module_in_the_working_directory(here: Path, name: str) -> None:
    (here / "mydata.py").write_text(MODULE)
    (here / "neighbour.py").write_text("from mydata import x")
    path = list(sys.path)
    data = load_data(f"mydata:{name}", ONE)
    labels = None if name in ("array", "lazy") else LABELS
    same(data, {"pixels": np.ones((5, 2, 3))}, labels)
    assert data.source == ("shop floor" if name == "named" else f"mydata:{name}")
    assert sys.path == path


def test_a_function_in_a_package_with_labels_and_a_limit(here: Path) -> None:
    (here / "pack").mkdir()
    (here / "pack" / "mydata.py").write_text(MODULE)
    (here / "l.txt").write_text("4\n3\n2\n1\n0\n")
    data = load_data("pack.mydata:pair", ONE, labels="l.txt", limit=2)
    assert len(data) == 2
    assert data.labels is not None
    assert data.labels[0] > data.labels[1]


@pytest.mark.parametrize(
    ("source", "fragments"),
    [
        ("mydata:broken", ("mydata:broken", "the function failed (KeyError: ", "second", "mend it")),
        ("mydata:with_argument", ("the function failed (TypeError", "without arguments")),
        ("mydata:nothing", ("mydata:nothing", "NoneType is no data set", "mapping of arrays")),
        ("mydata:absent", ("'mydata' has no function 'absent'", "define it")),
        ("mydata:value", ("has no function 'value'",)),
        ("nowhere:f", ("nowhere:f", "'nowhere' cannot be imported (ModuleNotFoundError", "install it")),
        ("crash:f", ("'crash' cannot be imported (ZeroDivisionError",)),
        ("mydata:", ("mydata:", "no such file")),
        ("my data:f", ("my data:f", "no such file")),
    ],
)
def test_functions_that_cannot_be_used_are_refused(here: Path, source: str, fragments: tuple[str, ...]) -> None:
    (here / "mydata.py").write_text(MODULE)
    (here / "crash.py").write_text("1 / 0")
    path = list(sys.path)
    refused(lambda: load_data(source, ONE), *fragments)
    assert sys.path == path


def test_an_exception_of_the_function_is_chained(here: Path) -> None:
    (here / "mydata.py").write_text(MODULE)
    with pytest.raises(DataError) as caught:
        load_data("mydata:broken", ONE)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_ends_the_program_is_refused(here: Path) -> None:
    (here / "leaving.py").write_text("import sys\ndef go():\n    sys.exit(0)\n")
    refused(lambda: load_data("leaving:go", ONE), "leaving:go", "the function failed (SystemExit")
    (here / "gone.py").write_text("raise SystemExit(3)\n")
    refused(lambda: load_data("gone:go", ONE), "'gone' cannot be imported (SystemExit")


def test_labels_beyond_integers_are_told_as_they_are(here: Path) -> None:
    labels = np.array([0, 1, 2, 3, 2**63 + 5], np.uint64)
    refused(lambda: as_dataset(({"pixels": X}, labels), ONE), "labels go up to 9223372036854775813")


# Folders of images ----------------------------------------------------------------------------------------------------

NCHW = specs(x=("float32", (1, 3, 4, 4)))


def test_warnings_of_an_image_are_not_the_users(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(here / "d" / "1.png", (51, 0, 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # a warning from here on, an error from twice as many
    assert load_data("d", NCHW).inputs["x"].shape == (1, 3, 4, 4)


def test_subfolders_are_labels_in_the_order_of_their_names(here: Path) -> None:
    save_image(here / "d" / "b" / "1.png", (0, 0, 0))
    save_image(here / "d" / "a" / "2.png", (51, 0, 0))
    save_image(here / "d" / "a" / "deep" / "1.JPG", (255, 255, 255))
    save_image(here / "d" / "10" / "z.bmp", (0, 51, 0))
    save_image(here / "d" / "a" / ".hidden" / "1.png")
    save_image(here / "d" / ".cache" / "1.png")
    (here / "d" / "a" / ".x.png").write_bytes(b"junk")
    (here / "d" / "a" / "notes.txt").write_text("not an image")
    (here / "d" / "aa").mkdir()
    data = load_data("d", NCHW)
    pixels = data.inputs["x"]
    assert (pixels.dtype, pixels.shape) == (np.dtype(np.float32), (4, 3, 4, 4))
    np.testing.assert_allclose(
        pixels[:, :, 0, 0], [[0.0, 0.2, 0.0], [0.2, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], atol=1e-6
    )
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 1, 3]  # the empty "aa" is class 2
    assert data.source == "d"


@pytest.mark.parametrize("folder", ["d", "d/all"])
def test_a_flat_folder_or_a_single_subfolder_labels_nothing(here: Path, folder: str) -> None:
    for i, name in enumerate(("c.png", "a.png", "b.png")):
        save_image(here / folder / name, (51 * i, 0, 0))
    data = load_data("d", NCHW)
    assert data.labels is None
    np.testing.assert_allclose(data.inputs["x"][:, 0, 0, 0], [0.2, 0.4, 0.0], atol=1e-6)
    (here / "l.txt").write_text("7\n8\n9\n")
    data = load_data("d", NCHW, labels="l.txt", limit=2, seed=1)
    assert data.labels is not None
    by_label = np.array([0.2, 0.4, 0.0])
    np.testing.assert_allclose(data.inputs["x"][:, 0, 0, 0], by_label[data.labels - 7], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "mode", "expected"),
    [
        ((1, 3, 4, 6), "RGB", (2, 3, 4, 6)),
        ((1, 5, 6, 3), "RGB", (2, 5, 6, 3)),
        ((None, 1, 4, 6), "L", (2, 1, 4, 6)),
        ((None, 5, 6, 4), "RGBA", (2, 5, 6, 4)),
        ((None, 3, 6, 3), "RGB", (2, 3, 6, 3)),  # either; NCHW is the custom
        ((None, 4, 4, 6), "RGBA", (2, 4, 4, 6)),
        ((None, 3, None, None), "RGB", (2, 3, 8, 12)),
        ((None, None, None, 1), "L", (2, 8, 12, 1)),
        ((None, 3, 4, None), "RGB", (2, 3, 4, 6)),
        ((None, 3, None, 3), "RGB", (2, 3, 2, 3)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_layout_mode_and_size_follow_the_model(
    here: Path, shape: tuple[int | None, ...], mode: str, expected: tuple[int, ...], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)) for _ in range(2)]
    (here / "d").mkdir()
    for i, image in enumerate(images):
        image.save(here / "d" / f"{i}.png")
    pixels = load_data("d", specs(x=(dtype, shape))).inputs["x"]
    assert pixels.shape == expected
    assert pixels.dtype == dtype
    first = shape[1] in (1, 3, 4)
    height, width = expected[2:] if first else expected[1:3]
    for image, got in zip(images, pixels, strict=True):
        wanted = np.asarray(image.convert(mode).resize((width, height), Image.Resampling.BILINEAR))
        wanted = wanted.reshape(height, width, -1)
        wanted = wanted.transpose(2, 0, 1) if first else wanted
        np.testing.assert_allclose(got, wanted if dtype == "uint8" else wanted / 255, atol=1e-3)


def test_imagenet_normalisation_is_an_option(here: Path) -> None:
    save_image(here / "d" / "a.png", (255, 0, 51))
    plain = load_data("d", NCHW).inputs["x"][0, :, 0, 0]
    np.testing.assert_allclose(plain, [1.0, 0.0, 0.2], atol=1e-6)
    normalised = load_data("d", NCHW, normalize="imagenet").inputs["x"][0, :, 0, 0]
    np.testing.assert_allclose(normalised, (plain - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-5)
    own = load_data("d", NCHW, normalize="0.5/0.25,0.5,0.25").inputs["x"][0, :, 0, 0]
    np.testing.assert_allclose(own, (plain - 0.5) / [0.25, 0.5, 0.25], atol=1e-6)
    assert as_dataset(Images(Path("d"), "imagenet"), NCHW).inputs["x"][0, :, 0, 0].tolist() == normalised.tolist()


def test_normalisation_where_it_makes_no_sense_is_refused(here: Path) -> None:
    save_image(here / "d" / "a.png")
    np.save(here / "d.npy", X)
    for text in ("mean", "0.5", "0.5/x", "1/2/3"):
        refused(lambda text=text: load_data("d", NCHW, normalize=text), repr(text), "'imagenet', or mean/dev")  # type: ignore[misc]
    refused(lambda: load_data("d", NCHW, normalize="0.5/0"), "deviations above 0")
    refused(lambda: load_data("d.npy", ONE, normalize="imagenet"), "d.npy", "folders of images", "themselves")
    for model in (specs(x=("uint8", (1, 3, 4, 4))), specs(x=("float32", (1, 1, 4, 4)))):
        refused(lambda model=model: load_data("d", model, normalize="imagenet"), "'x'", "3 float channels", "'none'")  # type: ignore[misc]


def test_images_of_different_sizes_need_a_model_of_fixed_size(here: Path) -> None:
    save_image(here / "d" / "a.png", size=(4, 6))
    save_image(here / "d" / "b.png", size=(5, 6))
    free = specs(x=("float32", (None, 3, None, None)))
    refused(lambda: load_data("d", free), "b.png: 6 x 5", "a.png is 6 x 4", "same size")
    assert load_data("d", NCHW).inputs["x"].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("model", "fragments"),
    [
        (specs(x=("float32", (1, 2, 8, 8))), ("'x'", "[1, 2, 8, 8] takes no images", "1, 3 or 4 channels", ".npz")),
        (specs(x=("float32", (None, 3))), ("[?, 3] takes no images",)),
        (specs(x=("int64", (1, 3, 4, 4))), ("'x'", "int64 takes no pixels", "float or uint8")),
        (TWO, ("d", "a folder of images", "one input", "'ids', 'scale'")),
    ],
)
def test_models_that_take_no_images_are_refused(here: Path, model: Specs, fragments: tuple[str, ...]) -> None:
    save_image(here / "d" / "a.png")
    refused(lambda: load_data("d", model), *fragments)


def test_folders_without_images_or_with_a_muddle_are_refused(here: Path) -> None:
    (here / "d").mkdir()
    (here / "d" / "notes.txt").write_text("")
    refused(lambda: load_data("d", NCHW), "d: no images", ".png", ".jpg")
    save_image(here / "d" / "a.png")
    save_image(here / "d" / "sub" / "b.png")
    refused(lambda: load_data("d", NCHW), "a.png", "sub", "all in subfolders")


def test_numbers_of_a_text_are_integers_or_floats(here: Path) -> None:
    """As pandas and numpy write them."""
    np.savez(here / "d.npz", pixels=X)
    (here / "l.csv").write_text("0\n-1\n+2\n\n3\r\n4\n")
    found = load_data("d.npz", ONE, labels="l.csv").labels
    assert found is not None and found.dtype == np.int64 and found.tolist() == [0, -1, 2, 3, 4]
    for text in ("0.0\n.5\n1\n-2.5e0\n3.\n", None):
        if text is None:
            np.savetxt(here / "l.csv", [0, 0.5, 1, -2.5, 3])
        else:
            (here / "l.csv").write_text(text)
        found = load_data("d.npz", ONE, labels="l.csv").labels
        assert found is not None and found.tolist() == [0, 0.5, 1, -2.5, 3]
    (here / "l.csv").write_text("")
    refused(lambda: load_data("d.npz", ONE, labels="l.csv"), "l.csv: 0 labels for 5 images of d.npz")


def test_labels_for_a_folder_are_counted_before_a_subset_is_drawn(here: Path) -> None:
    for i in range(4):
        save_image(here / "d" / f"{i}.png")
    (here / "l.txt").write_text("0\n1\n")
    refused(lambda: load_data("d", NCHW, labels="l.txt", limit=2), "l.txt: 2 labels for 4 images of d: give one label")


def test_a_folder_that_may_not_be_read_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(here / "d" / "a.png")

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    refused(lambda: load_data("d", NCHW), "d: cannot be read (PermissionError", "permissions")


@pytest.mark.parametrize("content", [b"", b"junk", "half", "16 bit"])
def test_images_that_cannot_be_read_are_named(here: Path, content: bytes | str) -> None:
    save_image(here / "d" / "a.png")
    bad = here / "d" / "b.png"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif content == "half":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(bad)
        bad.write_bytes(bad.read_bytes()[:2000])
    else:
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(bad)
    refused(lambda: load_data("d", NCHW), "b.png", "cannot be read as an image", "take it out", "8 bits")


def test_without_pillow_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(here / "d" / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(lambda: load_data("d", NCHW), "a.png", "Pillow", "pip install 'onnxshap[images]'", ".npz")


def test_pillow_is_imported_for_folders_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(here / "d.npy", X)
    monkeypatch.setitem(sys.modules, "PIL", None)
    same(load_data("d.npy", ONE), {"pixels": X}, None)


# Noise ----------------------------------------------------------------------------------------------------------------

EVERYTHING = specs(
    image=("float32", (1, 3, 8, 8)),
    half=("float16", (None, 50)),
    raw=("uint8", (1, 8, 8, 3)),
    ids=("int64", (4, 50)),
    mask=("bool", (None, 50)),
    scale=("float64", ()),
)


def test_random_data_fit_the_model() -> None:
    data = random_data(EVERYTHING, 9, seed=1)
    assert (len(data), data.source, data.labels) == (9, "random", None)
    assert {name: array.dtype for name, array in data.inputs.items()} == {n: s.dtype for n, s in EVERYTHING.items()}
    assert {name: array.shape[1:] for name, array in data.inputs.items()} == {
        n: s.shape[1:] for n, s in EVERYTHING.items()
    }
    same(check_data(data, EVERYTHING), data.inputs, None)


def test_random_data_look_like_their_dtype() -> None:
    inputs = random_data(EVERYTHING, 200, seed=0).inputs
    assert abs(inputs["image"].mean()) < 0.05
    assert abs(inputs["image"].std() - 1.0) < 0.05
    assert inputs["raw"].max() > 250
    assert set(np.unique(inputs["ids"])) == {0, 1}
    assert 0.4 < inputs["mask"].mean() < 0.6


STATEFUL = {
    "x": InputSpec("x", np.dtype(np.float32), (None, 4)),
    "state": InputSpec("state", np.dtype(np.float32), (2, None, 3), 1),
    "rate": InputSpec("rate", np.dtype(np.int64), (), None),
    "window": InputSpec("window", np.dtype(np.float32), (5,), None),
}


def test_images_lie_along_axis_0_wherever_the_model_has_them() -> None:
    state, rate = np.arange(30, dtype=np.float32).reshape(5, 2, 3), np.array([8, 16, 8, 16, 8])
    given = {"x": np.ones((5, 4)), "state": state, "rate": rate, "window": np.ones(5)}
    data = as_dataset(given, STATEFUL)
    assert [data.inputs[name].shape for name in STATEFUL] == [(5, 4), (5, 2, 3), (5,), (5, 5)]
    feeds = feeds_of(data.take(np.array([1])).inputs, {name: spec.batch for name, spec in STATEFUL.items()})
    assert [feeds[name].shape for name in STATEFUL] == [(1, 4), (2, 1, 3), (), (5,)]
    assert feeds["rate"] == 16
    assert np.array_equal(feeds["state"][:, 0], state[1])


def test_what_is_the_same_for_all_images_is_given_once() -> None:
    given = {"x": np.ones((5, 4)), "state": np.ones((5, 2, 3)), "rate": np.array(16000), "window": np.ones((5, 5))}
    data = as_dataset(given, STATEFUL)
    assert data.inputs["rate"].tolist() == [16000] * 5
    refused(lambda: as_dataset({**given, "rate": np.array([1, 2])}, STATEFUL), "different lengths", "'rate' 2")
    refused(lambda: as_dataset({**given, "state": np.ones((5, 2, 1, 3))}, STATEFUL), "'state'", "x.squeeze(2)")


def test_random_settings_are_one() -> None:
    spec = InputSpec("state", np.dtype(np.float32), (2, 1, 3), 1)
    data = random_data({**STATEFUL, "state": spec}, 3, 0)
    assert data.inputs["rate"].tolist() == [1, 1, 1]
    assert data.inputs["state"].shape == (3, 2, 3)


def test_random_data_follow_their_seed() -> None:
    assert len(random_data(EVERYTHING, 1, 0)) == 1
    first, again, other = (random_data(EVERYTHING, 3, seed).inputs for seed in (0, 0, 1))
    for name in EVERYTHING:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name]) or first[name].size < 10


def test_random_data_that_cannot_be_drawn_are_refused() -> None:
    refused(lambda: random_data(ONE, 0, 0), "0 images", "1 or more")
    refused(lambda: random_data(TWO, 3, 0), "axis 1 of input 'ids' is free", "give its length")
    refused(lambda: random_data(specs(x=("complex64", (1,))), 3, 0), "'x' is complex64", "give data")
    for side in (2**22, 2**40):  # what no machine has, and what has no address
        large = specs(x=("float32", (None, side, side)))
        refused(partial(random_data, large, 2, 0), "more than memory holds", "'x'")


def test_labels_in_a_file_go_with_arrays(here: Path) -> None:
    specs = {"x": InputSpec("x", np.dtype(np.float32), (None, 2))}
    np.save("y.npy", np.arange(5))
    arrays = {"x": np.zeros((5, 2), np.float32)}
    for data in (arrays, arrays | {"y": np.ones(5, np.int64)}, arrays["x"]):
        found = as_dataset(data, specs, labels="y.npy").labels
        assert found is not None and found.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="no such file"):
        as_dataset(arrays, specs, labels="nowhere.npy")
    with pytest.raises(DataError, match="labels: ndarray is no path; give arrays as data"):
        as_dataset(arrays, specs, labels=np.arange(5))  # type: ignore[arg-type]
