"""Large initializers live outside of models: nothing is lost on the way out, in, to one file or to two."""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxshap
from onnxshap import graph
from onnxshap.core import Array
from onnxshap.errors import ModelError
from onnxshap.graph import saving, weights, writing
from tests.commands import call, fine, refused
from tests.exactness import check_exact, net
from tests.zeroing import relative_error, run

DATA = np.random.default_rng(1).normal(size=(8, 40)).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own inside another one, where values of a tensor lie too."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(40 * 64 * 4))
    monkeypatch.chdir(tmp_path / "inside")
    yield tmp_path


def big() -> ModelProto:
    """A model with initializers on both sides of `LARGE`, one of them named in a Constant node."""
    text = """(float[N,40] x) => (float[N,3] y) {
        [a] h = MatMul(x, w)
        [b] i = Add(h, b)
        [c] r = Relu(i)
        [d] y = MatMul(r, v)
    }"""
    model = net(text, w=(40, 64), b=(64,), v=(64, 3))
    values = numpy_helper.from_array(np.random.default_rng(3).normal(size=(3, 2000)).astype(np.float32))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], name="constant", value=values))
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [3]))
    model.graph.node.append(helper.make_node("ReduceSum", ["k", "one"], ["s"], keepdims=0, name="sum"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return model


def one() -> ModelProto:
    """The same with one output of images."""
    return net("(float[N,40] x) => (float[N,3] y) {\n h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, v)\n}",
               w=(40, 64), v=(64, 3))  # fmt: skip


def external(name: str = "m.onnx", data: str = "m.data") -> None:
    onnx.save(one(), name, save_as_external_data=True, location=data, size_threshold=0)


def path_run(path: str) -> Array:
    found: Array = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": DATA})[0]
    return found


# --- out and in ------------------------------------------------------------------------------------------------------


def test_what_is_taken_out_comes_back_bit_for_bit() -> None:
    model = big()
    light, kept = weights.take_out(model)
    assert {t.name for t in light.graph.initializer if weights.is_kept(t)} == {"w", "k"}
    assert light.ByteSize() < 3000
    whole = writing.put_in(light)
    named = {t.name: t for t in model.graph.initializer} | {"k": model.graph.node[0].attribute[0].t}
    assert {t.name for t in whole.graph.initializer} == set(named)
    for item in whole.graph.initializer:
        assert numpy_helper.to_array(item).tobytes() == numpy_helper.to_array(named[item.name]).tobytes()
    assert relative_error(run(whole, {"x": DATA}), run(model, {"x": DATA})) == 0
    del kept


def test_arrays_go_with_who_holds_them() -> None:
    light, kept = weights.take_out(one())
    stored = light.graph.initializer[0]
    assert weights.values(stored).shape == (40, 64)
    del kept
    gc.collect()
    with pytest.raises(KeyError):
        weights.values(stored)


def test_masks_go_into_whatever_is_a_model() -> None:
    """What is traced on the way there holds the values as long as they are read."""
    onnx.save(big(), "m.onnx")
    masked = onnxshap.insert_masks(onnxshap.trace("m.onnx"))
    for model in ("m.onnx", Path("m.onnx"), Path("m.onnx").read_bytes(), big()):
        assert onnxshap.insert_masks(model) == masked


def test_arrays_go_along_to_other_processes() -> None:
    traced = onnxshap.trace(one())
    sent = pickle.dumps(traced)
    wanted = {t.name: numpy_helper.to_array(t) for t in writing.put_in(traced.source).graph.initializer}
    del traced
    gc.collect()
    received = pickle.loads(sent)
    found = {t.name: numpy_helper.to_array(t) for t in writing.put_in(received.source).graph.initializer}
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_a_ticket_is_cut_like_the_values() -> None:
    light, kept = weights.take_out(one())
    stored = light.graph.initializer[0]
    whole, rng = weights.values(stored), np.random.default_rng(0)
    rows, columns = rng.random(40) < 0.5, rng.random(64) < 0.5
    weights.compress(stored, {0: rows, 1: columns})
    again = rng.random(int(rows.sum())) < 0.5
    weights.compress(stored, {0: again})
    assert np.array_equal(weights.values(stored), whole[rows][again][:, columns])
    assert tuple(stored.dims) == weights.values(stored).shape
    assert weights.is_kept(stored)
    del kept


@pytest.mark.parametrize("make", [big, one])
def test_the_size_of_the_file_is_known_before_it_is_written(make: Callable[[], ModelProto]) -> None:
    light, kept = weights.take_out(make())
    graph.save(light, "m.onnx")
    written = Path("m.onnx").read_bytes()
    assert len(written) == writing.file_size(light) == writing.put_in(light).ByteSize()
    assert onnx.load("m.onnx") == writing.put_in(light)
    del kept


def test_the_digest_is_of_the_values() -> None:
    first, second = graph.read(one()), graph.read(one())
    found = writing.digest(first.model)
    assert found == writing.digest(second.model)
    other = one()
    other.graph.initializer[0].raw_data = bytes(40 * 64 * 4)
    source = graph.read(other)
    assert writing.digest(source.model) != found


def test_values_of_other_fields_are_kept_too() -> None:
    model = one()
    values = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [40, 64], values.ravel().tolist()))
    assert model.graph.initializer[0].float_data
    assert check_exact(model).dropped > 0


# --- external data ---------------------------------------------------------------------------------------------------


def test_external_data_come_and_go_as_external_data() -> None:
    external()
    onnx.save(one(), "whole.onnx")
    options = ("--keep-units", "0.5", "--samples", "4")
    fine("prune", "m.onnx", *options)
    fine("prune", "whole.onnx", *options)
    assert sorted(p.name for p in Path().iterdir()) == [
        "m.data", "m.onnx", "m.pruned.onnx", "m.pruned.onnx.data", "whole.onnx", "whole.pruned.onnx",
    ]  # fmt: skip
    small = onnx.load("m.pruned.onnx", load_external_data=False)
    places = {e.value for t in small.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"m.pruned.onnx.data"}
    onnx.checker.check_model("m.pruned.onnx", full_check=True)
    assert relative_error([path_run("m.pruned.onnx")], [path_run("whole.pruned.onnx")]) == 0
    assert path_run("m.onnx").shape == path_run("m.pruned.onnx").shape
    fine("inspect", "m.pruned.onnx")


def test_external_data_are_mapped_not_read() -> None:
    external()
    source = graph.read("m.onnx")
    assert all(isinstance(values(), np.memmap) for values in source.kept.values())
    assert source.files == (Path("m.data").absolute(),)


def test_a_model_too_large_for_one_file_gets_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT", 5000)
    onnxshap.save(one(), "m.onnx")
    assert Path("m.onnx.data").stat().st_size == 40 * 64 * 4
    assert relative_error([path_run("m.onnx")], run(one(), {"x": DATA})) == 0


def test_two_files_replace_theirs_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m.onnx", "m.onnx.data"):
        Path(name).write_text("old")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "m.onnx":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be written \(No space left"):
        graph.save(one(), "m.onnx", external=True)
    assert {p.name: p.read_text() for p in Path().iterdir()} == {"m.onnx": "old", "m.onnx.data": "old"}
    Path("m.onnx.data").unlink()
    with pytest.raises(ModelError):
        graph.save(one(), "m.onnx", external=True)
    assert {p.name: p.read_text() for p in Path().iterdir()} == {"m.onnx": "old"}
    monkeypatch.undo()


def test_the_data_of_the_model_are_not_replaced() -> None:
    external("m.onnx", "small.onnx.data")
    for command in ("prune", "unify", "pivot"):
        told = refused(command, "m.onnx", "-o", "small.onnx")
        assert "small.onnx.data: would replace data of the model" in told


def entry(key: str, value: str) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        kept = [(e.key, e.value) for e in tensor.external_data if e.key != key]
        del tensor.external_data[:]
        for k, v in (*kept, (key, value)):
            tensor.external_data.add(key=k, value=v)

    return change


def shape(tensor: TensorProto) -> None:
    tensor.dims[0] = 41


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (entry("location", "nowhere.bin"), "has its values in 'nowhere.bin', which is missing; put"),
        (entry("location", "folder"), "which is missing"),
        (entry("location", ""), "names no file"),
        (entry("location", "a\0b"), "which no file can be called"),
        (entry("location", "long" * 1000), "which no file can be called"),
        (entry("location", "../outside.bin"), "outside of the model's folder; put the file itself beside"),
        (entry("location", "folder/../../outside.bin"), "outside of the model's folder"),
        (entry("location", "link.bin"), "outside of the model's folder"),
        (entry("location", "circle.bin"), "which is missing"),
        (entry("location", "up/outside.bin"), "outside of the model's folder"),
        (entry("location", "/etc/hostname"), "which is no relative path"),
        (entry("location", "C:\\outside.bin"), "which is no relative path"),
        (entry("location", "onnxshap.kept.0"), "reserved name"),
        (entry("offset", "8192"), "which is too short"),
        (entry("offset", "-1"), "export it again"),
        (entry("offset", "many"), "no number"),
        (entry("length", "1" + "0" * 30), "export it again"),
        (entry("length", "100"), "100 bytes at"),
        (shape, "its shape [41, 64] takes 10496"),
    ],
    ids=lambda v: "" if callable(v) else str(v)[:30],
)
def test_external_data_that_cannot_be_used_are_refused(
    here: Path, harm: Callable[[TensorProto], None], words: str
) -> None:
    external()
    Path("folder").mkdir()
    Path("link.bin").symlink_to(here / "outside.bin")
    Path("circle.bin").symlink_to("circle.bin")
    Path("up").symlink_to(here)
    model = onnx.load("m.onnx", load_external_data=False)
    harm(model.graph.initializer[0])
    Path("m.onnx").write_bytes(model.SerializeToString())
    for command in ("inspect", "prune"):
        said = refused(command, "m.onnx")
        assert said.startswith("onnxshap: error: m.onnx: ")
        assert words in said


def test_external_data_cut_short_are_refused() -> None:
    external()
    Path("m.data").write_bytes(Path("m.data").read_bytes()[:5000])
    assert "which is too short: 5000 bytes, 10240 are needed; copy it again" in refused("prune", "m.onnx")


def test_a_link_into_a_store_of_files_is_followed_to_its_data(here: Path) -> None:
    """The model and its data are links into one folder, or the model alone is one."""
    external()
    wanted = run(onnxshap.load("m.onnx"), {"x": DATA})
    Path("store").mkdir()
    Path("folder").mkdir()
    for name in ("m.onnx", "m.data"):
        Path(name).rename(Path("store") / name)
    Path("folder/far.onnx").symlink_to("../store/m.onnx")
    assert relative_error(run(onnxshap.load("folder/far.onnx"), {"x": DATA}), wanted) == 0
    Path("store/m.data").rename("store/4711")
    Path("folder/m.data").symlink_to("../store/4711")
    assert relative_error(run(onnxshap.load("folder/far.onnx"), {"x": DATA}), wanted) == 0
    assert refused("prune", "folder/far.onnx", "-o", "folder/m.data").startswith("onnxshap: error: ")
    Path("store/4711").rename("elsewhere")
    Path("folder/m.data").unlink()
    Path("folder/m.data").symlink_to("../elsewhere")
    assert "outside of the model's folder" in refused("prune", "folder/far.onnx")


def test_bytes_have_no_folder() -> None:
    external()
    with pytest.raises(ModelError, match="a model in memory has no folder"):
        onnxshap.trace(Path("m.onnx").read_bytes())


def test_small_external_tensors_and_those_of_nodes_are_read(here: Path) -> None:
    model = big()
    onnx.save(big(), "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0, convert_attribute=True)
    assert relative_error(run(onnxshap.load("m.onnx"), {"x": DATA}), run(model, {"x": DATA})) == 0
    assert call("inspect", "m.onnx").exit_code == 0


# --- sessions --------------------------------------------------------------------------------------------------------


def branched() -> ModelProto:
    """A weight that a body of an If reads, and one that an op of another domain does."""
    text = """(float[N,40] x) => (float[N,3] y) {
        z = MatMul(x, u)
        s = ReduceSum<keepdims=0>(x)
        c = Greater(s, zero)
        h = If (c) <then_branch = a () => (float[N,64] t) { t = MatMul(x, w) },
                    else_branch = b () => (float[N,64] e) { e = Identity(z) }>
        f = com.microsoft.FusedMatMul(h, q)
        y = MatMul(f, v)
    }"""
    model = net(text, w=(40, 64), u=(40, 64), q=(64, 64), v=(64, 3), zero=())
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("make", [big, one, branched])
def test_sessions_that_are_not_optimised_read_weights_where_they_are(make: Callable[[], ModelProto]) -> None:
    light, kept = weights.take_out(make())
    session = onnxshap.OrtBackend("cpu", 1).session(light, optimize=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    whole = writing.put_in(light).SerializeToString()
    bare = onnxruntime.InferenceSession(whole, options, providers=["CPUExecutionProvider"])
    assert session.inputs == ("x",)
    for got, wanted in zip(session.run({"x": DATA}), bare.run(None, {"x": DATA}), strict=True):
        assert np.array_equal(got, wanted)
    fed = {"big": {"w", "k"}, "one": {"w"}, "branched": {"u"}}[make.__name__]
    assert session.held.fed.keys() == fed
    assert all(np.shares_memory(session.held.feeds[t.name], weights.values(t))
               for t in light.graph.initializer if t.name in fed)  # fmt: skip
    del kept


def test_sessions_outlive_the_model() -> None:
    light, kept = weights.take_out(one())
    weights.compress(light.graph.initializer[0], {1: np.arange(64) < 32})
    weights.compress(light.graph.initializer[1], {0: np.arange(64) < 32})
    session = onnxshap.OrtBackend("cpu", 1).session(light, optimize=False)
    cut = writing.put_in(light)
    del light, kept
    gc.collect()
    assert relative_error(session.run({"x": DATA}), run(cut, {"x": DATA})) < 1e-6


def in_a_file() -> graph.Source:
    """Read a model back that was written."""
    Path("m.onnx").write_bytes(one().SerializeToString())
    return graph.read("m.onnx")


def test_values_are_read_when_they_are_asked_for_and_while_they_are_held_only_once() -> None:
    source = in_a_file()
    item = source.model.graph.initializer[0]
    first = weights.values(item)
    assert weights.values(item) is first
    assert not first.flags.writeable
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert np.array_equal(weights.values(item), numpy_helper.to_array(one().graph.initializer[0]))


def test_a_file_may_be_replaced_or_deleted_while_it_is_in_use() -> None:
    source = in_a_file()
    Path("other").write_bytes(bytes(20000))
    Path("other").replace("m.onnx")
    assert writing.put_in(source.model) == one()
    Path("m.onnx").unlink()
    assert writing.put_in(source.model) == one()
    again = pickle.loads(pickle.dumps(source.kept))
    assert writing.put_in(source.model) == one()
    del again


@pytest.mark.parametrize("content", [b"", bytes(20000)])
def test_a_file_that_is_written_to_while_it_is_in_use_is_refused(content: bytes) -> None:
    source = in_a_file()
    Path("m.onnx").write_bytes(content)
    os.utime("m.onnx", ns=(0, 0))
    with pytest.raises(ModelError, match=r"m\.onnx: was written to while it was in use; run again"):
        writing.put_in(source.model)


def test_a_file_that_cannot_be_read_any_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_a_file()

    def broken(number: int, buffers: object, start: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be read any more \(Input/output error\); run again"):
        writing.put_in(source.model)


def test_where_no_place_of_a_file_can_be_gone_to_its_values_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    source = in_a_file()
    Path("m.onnx").write_bytes(b"")
    assert writing.put_in(source.model) == one()


def test_reads_that_end_early_are_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_a_file()
    pread = os.pread

    def some(number: int, buffers: list[memoryview], start: int) -> int:
        found = pread(number, min(1000, len(buffers[0])), start)
        buffers[0][: len(found)] = found
        return len(found)

    monkeypatch.setattr(os, "preadv", some)
    assert writing.put_in(source.model) == one()
