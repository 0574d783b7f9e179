"""What callers of the library get wrong: one line that says which argument, never a TypeError from the depths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
import pytest

import onnxshap
from onnxshap import Budget, Dataset, OnnxshapError, OrtBackend
from onnxshap.arguments import telling_options
from onnxshap.core import Array
from onnxshap.plan import Candidate
from tests.nets import small as net

IMAGES = np.random.default_rng(0).normal(size=(50, 3, 4, 4)).astype(np.float32)
CUT: Mapping[str, Any] = {"keep_macs": 0.5, "method": "l1", "repair": "none"}
Call = Callable[[], object]
f: Any = onnxshap
"""Typed as nothing: the calls are wrong on purpose."""


def prune(*arguments: object, **options: object) -> Call:
    return lambda: f.prune(*(arguments or (net(), IMAGES)), **{**CUT, **options})


WRONG: list[tuple[Call, str]] = [
    (prune(keep_macs="0.5"), "keep_macs is '0.5' (str); give a number or None"),
    (prune(keep_macs=True), "keep_macs is True (bool); give a number or None"),
    (prune(keep_macs=np.array([0.5, 0.5])), "keep_macs is array([0.5, 0.5]) (ndarray); give a number or None"),
    (prune(max_drop="1%"), "max_drop is '1%' (str); give a number or None"),
    (prune(target_latency="3"), "target_latency is '3' (str); give a number or None"),
    (prune(multiple_of=2.5), "multiple_of is 2.5 (float); give a whole number or None"),
    (prune(samples="3"), "samples is '3' (str); give a whole number or None"),
    (prune(workers="2"), "workers is '2' (str); give a whole number"),
    (prune(seed=-1), "seed is -1; give 0 or more"),
    (prune(seed=None), "seed is None (NoneType); give a whole number"),
    (prune(max_evals=0), "max_evals is 0; give 1 or more"),
    (prune(distill_seconds=-1), "distill_seconds is -1; give a number of seconds above 0"),
    (prune(include=["first", 3]), "include is ['first', 3] (list); give a list of strings"),
    (prune(exclude=None), "exclude is None (NoneType); give a list of strings"),
    (prune(method=["l1"]), "method is ['l1'] (list); give a string"),
    (prune(payoff=3), "payoff is 3 (int); give a string, a function or None"),
    (prune(backend="cuda"), "backend is 'cuda' (str); give an OrtBackend or None"),
    (prune(input_shapes={"image": 5}), "input_shapes is {'image': 5} (dict); give a mapping to lists of"),
    (prune(output=3), "output is 3 (int); give a path or None"),
    (prune(progress=None), "progress is None (NoneType); give a function"),
    (prune(labels=[1, 2]), "labels: list is no path; give arrays as data, (inputs, labels)"),
    (prune(values="v.json"), "values: str given; give what `score` returns"),
    (prune(None), "model is None (NoneType); give a path, bytes, a ModelProto, a Source or a Traced"),
    (prune(net(), 3), "int is no data set"),
    (prune(net(), Dataset(IMAGES)), "give a mapping to arrays"),  # type: ignore[arg-type] # on purpose
    (lambda: f.score(net(), IMAGES, seed=-1), "seed is -1"),
    (lambda: f.compare(net(), 3), "other is 3 (int); give a path"),
    (lambda: f.sweep(net(), IMAGES, keep=0.5), "keep is 0.5 (float); give a list of numbers"),
    (lambda: f.sweep(net(), IMAGES, keep="0.5"), "keep is '0.5' (str); give a list of numbers"),
    (lambda: f.unify(net(), IMAGES, keep_bytes="0.5"), "keep_bytes is '0.5' (str); give a number"),
    (lambda: f.unify(net(), IMAGES, block=2.5), "block is 2.5 (float); give a whole number"),
    (lambda: f.pivot(net(), IMAGES, groups=2), "groups is 2 (int); give a list of whole numbers"),
    (lambda: f.pivot(net(), IMAGES, include="nothing*"), "pattern 'nothing*' matches no Conv"),
    (lambda: f.trace(3), "model is 3 (int)"),
    (lambda: f.trace(net(), backend="cuda"), "backend is 'cuda' (str); give a Backend or None"),
    (lambda: f.trace(net(), input_shapes={"image": [0, 3, 4, 4]}), "the shape given has 0 entries on axis 0"),
    (lambda: f.insert_masks(net(), ["first"]), "groups is ['first'] (list); give a list of Groups or None"),
    (lambda: f.insert_masks(None), "model is None (NoneType); give a path, bytes, a ModelProto or a Traced"),
    (lambda: f.mask_name("first"), "group is 'first' (str); give a Group"),
    (lambda: f.drop_units("m.onnx", {}), "traced is 'm.onnx' (str); give a Traced"),
    (lambda: f.drop_units(f.trace(net()), {"first": [1, 0]}), "the plan of group 'first' is not 8 times True"),
    (lambda: f.drop_units(f.trace(net()), {"first": np.arange(8)}), "the plan of group 'first' is not 8 times True"),
    (lambda: f.removed_slices(f.trace(net()), {"nope": np.ones(8)}), "group 'nope' is not a group of this model"),
    (lambda: f.site_means(f.trace(net()), IMAGES), "give a Dataset"),
    (lambda: f.make_plan(f.trace(net()).groups, Budget(macs=0.5), dict), "give a list of Candidates"),
    (lambda: f.save(f.trace(net()), "x.onnx"), "(Traced); give a ModelProto"),
    (lambda: f.save(net(), None), "path is None (NoneType); give a path"),
    (lambda: f.load(None), "source is None (NoneType); give a path, bytes or a ModelProto"),
    (lambda: f.Budget(macs="0.5"), "macs is '0.5' (str); give a number or None"),
    (lambda: f.Budget(macs=1.5), "Budget.macs is 1.5; give the share to keep"),
    (lambda: f.Budget(min_units=0), "min_units is 0; no group can be emptied"),
    (lambda: f.OrtBackend(threads="2"), "threads is '2' (str); give a whole number"),
    (lambda: f.OrtBackend(threads=-1), "threads is -1, memory 1073741824; give 0 or more of both"),
]


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_misuse_is_told_in_one_line(call: Call, words: str) -> None:
    with pytest.raises(OnnxshapError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    """Also in what is written down as JSON."""
    own = f.score(net(), IMAGES, samples=4, seed=3, journal=tmp_path / "a")
    found = f.score(
        net(), IMAGES, samples=np.int32(4), seed=np.int64(3), decided=np.float64(0.1), journal=tmp_path / "a"
    )
    assert [v.phi.tolist() for v in found.values.values()] == [v.phi.tolist() for v in own.values.values()]
    assert type(Budget(macs=np.float32(0.5)).macs) is float  # type: ignore[arg-type] # as numpy's users have it


def test_a_string_is_one_of_a_list() -> None:
    assert f.prune(net(), IMAGES, include="fir*", **CUT).keep["first"].sum() == 4
    (curve,) = f.sweep(net(), IMAGES, methods="l1", keep=(0.5,), repair="none").curves
    assert curve.method == "l1"


def test_payoffs_of_ones_own_are_taken_everywhere() -> None:
    def first(outputs: Sequence[Array], labels: Array | None) -> Array:
        return np.asarray(outputs[0][:, 0], np.float64)

    (before,) = f.compare(net(), None, IMAGES, payoff=first)
    assert before.score is not None and "custom" in before.score


def test_errors_name_what_was_called() -> None:
    """Arguments, where the library was; options in the command, whichever of the two finds the mistake."""
    wrong: list[tuple[Call, str]] = [
        (lambda: f.prune(net(), IMAGES[:30], max_drop=0.1), "give at least 40, or eval_data"),
        (lambda: f.prune(net(), max_drop=0.1), "give data, at least 40 images, or eval_data"),
        (lambda: f.sweep(net(), IMAGES, methods=[]), "give methods and keep, or neither"),
        (lambda: f.sweep(net(), IMAGES, keep=[1.5]), "keep is 1.5; give the share"),
        (lambda: f.prune(net(), IMAGES, low_rank="spatial", repair="fold"), "leave repair fold out, or low_rank"),
        (
            lambda: f.make_plan([Candidate("a", np.arange(4), np.zeros(4))], Budget(), lambda keep: {}),
            "give Budget.macs, Budg",
        ),
        (lambda: f.prune(net(), IMAGES, repair="lstsq", include="first", exclude="first"), "include and exclude leave"),
    ]
    for call, words in wrong:
        with pytest.raises(OnnxshapError) as caught:
            call()
        assert words in str(caught.value) and "--" not in str(caught.value)
    with pytest.raises(OnnxshapError, match="give at least 40, or --eval-data"), telling_options():
        f.prune(net(), IMAGES[:30], max_drop=0.1)
    with pytest.raises(OnnxshapError, match=r"^--keep-macs is 1\.5"), telling_options():
        f.prune(net(), IMAGES, keep_macs=1.5)


def test_notes_name_what_was_called_too() -> None:
    valued = {"method": "l1", "basis": "principal"}
    assert [note[:17] for note in f.score(net(), IMAGES, **valued).notes] == ["basis principal: "]
    with telling_options():
        assert [note[:19] for note in f.score(net(), IMAGES, **valued).notes] == ["--basis principal: "]


def test_annotations_can_be_read() -> None:
    """Those of what is public, when it is called: names that only a type checker imports would not do."""
    functions = [one for name in onnxshap.__all__ if inspect.isfunction(one := getattr(onnxshap, name))]
    for one in (*functions, Budget, OrtBackend, Dataset):
        assert get_type_hints(one)
    assert {one.__name__ for one in functions if not hasattr(one, "__wrapped__")} == set()


def test_what_may_be_left_alone_is(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "m.onnx")
    for model in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), (tmp_path / "m.onnx").read_bytes(), net()):
        assert f.prune(model, [list(one) for one in IMAGES[:3]], **CUT).keep["first"].sum() == 4
