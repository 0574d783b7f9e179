"""Files in and out: what a user put into a model survives the cut; files appear whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxshap import prune, unify
from onnxshap.backend import OrtBackend
from onnxshap.errors import ModelError
from onnxshap.graph import extract, finish, load, normalise, save, whole_file
from onnxshap.quiet import quiet
from onnxshap.rewrite import drop_units
from onnxshap.tracing import Traced, trace
from tests.exactness import check_exact, net
from tests.zeroing import relative_error, run


def small_net(opset: int = 17, ir: int = 8) -> ModelProto:
    return net(
        """(float[N,3,6,6] x) => (float[N,2,6,6] y) {
            a = Conv(x, w0, shared)
            r = Relu(a)
            b = Conv(r, w1, shared)
            s = Relu(b)
            y = Conv(s, w2)
        }""",
        opset=opset,
        ir=ir,
        w0=(8, 3, 1, 1),
        w1=(8, 8, 1, 1),
        w2=(2, 8, 1, 1),
        shared=(8,),
    )


def halved(traced: Traced) -> ModelProto:
    return drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})


def names(model: ModelProto) -> set[str]:
    return {t.name for t in model.graph.initializer}


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- what survives ---------------------------------------------------------------------------------------------------


def test_what_a_user_wrote_into_the_model_survives_a_cut() -> None:
    model = small_net(opset=15, ir=7)
    helper.set_model_props(model, {"charset": "abc\n字", "author": "me"})
    model.doc_string, model.producer_name, model.producer_version = "the model", "exporter", "1.2"
    model.domain, model.model_version = "org.example", 7
    model.graph.doc_string = "the graph"
    model.graph.node[0].doc_string = "the node"
    model.graph.initializer[0].doc_string = "the weight"
    model.graph.input[0].doc_string = "the input"
    small = halved(trace(model))
    assert {p.key: p.value for p in small.metadata_props} == {"charset": "abc\n字", "author": "me"}
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(small, name) == getattr(model, name)
    assert list(small.opset_import) == list(model.opset_import)
    assert small.graph.doc_string == "the graph"
    assert small.graph.node[0].doc_string == "the node"
    assert small.graph.input[0].doc_string == "the input"
    weight = next(t for t in small.graph.initializer if t.name == "w0")
    assert list(weight.dims) == [4, 3, 1, 1], "it was cut"
    assert weight.doc_string == "the weight"


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("repair", ["none", "fold", "lstsq", "unify"])
def test_what_initializers_say_of_themselves_stays(monkeypatch: pytest.MonkeyPatch, repair: str, large: bool) -> None:
    if large:
        monkeypatch.setattr("onnxshap.graph.weights.LARGE", 1)
    model = small_net(opset=15, ir=8)
    for item in model.graph.initializer:
        item.doc_string = f"what {item.name} is"
        item.metadata_props.add(key="from", value=item.name)
    images = np.random.default_rng(0).normal(size=(30, 3, 6, 6)).astype(np.float32)
    if repair == "unify":
        found = unify(model, images, keep_bytes=0.9).model
    else:
        found = prune(model, images, keep_units=0.5, method="l1", repair=repair).model
    told = {t.name: (t.doc_string, [(p.key, p.value) for p in t.metadata_props]) for t in found.graph.initializer}
    old = {t.name for t in model.graph.initializer}
    assert old & set(told) and {name: told[name] for name in old & set(told)} == {
        name: (f"what {name} is", [("from", name)]) for name in old & set(told)
    }


@pytest.mark.parametrize("ir", [3, 4, 8, 10])
def test_the_ir_version_stays_and_before_4_initializers_are_inputs(ir: int) -> None:
    model = small_net(opset=9, ir=ir)
    small = halved(trace(model))
    assert small.ir_version == ir
    assert [i.name for i in small.graph.input] == [i.name for i in model.graph.input]
    onnx.checker.check_model(small, full_check=True)


def test_initializers_that_may_be_replaced_may_be_so_in_the_cut_model() -> None:
    model = small_net()
    stored = {t.name: list(t.dims) for t in model.graph.initializer}
    model.graph.input.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, stored[n]) for n in ("w2", "shared"))
    small = halved(trace(model))
    assert [i.name for i in small.graph.input] == ["x", "w2", "shared"]
    session, feeds = OrtBackend().session(small), {"x": np.ones((1, 3, 6, 6), np.float32)}
    assert not session.run({**feeds, "w2": np.zeros((2, 4, 1, 1), np.float32)})[0].any()
    assert session.run(feeds)[0].any()


def test_stale_shapes_do_not_survive() -> None:
    model = small_net()
    model.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 99, 6, 6]))
    assert check_exact(model).dropped > 0
    assert not halved(trace(model)).graph.value_info


def test_local_functions_are_inlined() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    net (float[N,6] x) => (float[N,3] y) <float[6,8] w0 = {}, float[8,3] w1 = {}> {
        a = MatMul(x, w0)
        b = local.scaled(a)
        y = MatMul(b, w1)
    }
    <domain: "local", opset_import: ["" : 17]>
    scaled (a) => (b) {
        k = Constant<value = float {2.0}>()
        m = Mul(a, k)
        b = Relu(m)
    }""")
    rng = np.random.default_rng(0)
    del model.graph.initializer[:]
    for name, shape in (("w0", (6, 8)), ("w1", (8, 3))):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    found = check_exact(model)
    assert found.units == 8


def test_functions_that_onnxruntime_crashes_on_are_run() -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 23, "local" : 1]>
    net (float[N,4] x, float[4] scale) => (float[N,4] y) { y = local.normed(x, scale) }
    <domain: "local", opset_import: ["" : 23]>
    normed (a, b) => (c) { c = SimplifiedLayerNormalization<axis = 1, epsilon = 0.0>(a, b) }""")
    x, scale = np.array([[3, 4, 0, 0]], np.float32), np.ones(4, np.float32)
    (found,) = OrtBackend().session(model).run({"x": x, "scale": scale})
    np.testing.assert_allclose(found, x / 2.5, rtol=1e-6)


def test_normalising_does_not_change_the_model_given() -> None:
    model = small_net(ir=3, opset=8)
    before = model.SerializeToString()
    normalise(model)
    trace(model)
    assert model.SerializeToString() == before


# --- shared initializers ---------------------------------------------------------------------------------------------


def test_a_model_that_keeps_everything_does_not_grow() -> None:
    model = small_net()
    traced = trace(model)
    whole = drop_units(traced, {g.name: np.ones(len(g), np.bool_) for g in traced.groups})
    assert names(whole) == names(model)
    assert whole.ByteSize() <= model.ByteSize()
    for given, kept in zip(model.graph.initializer, whole.graph.initializer, strict=True):
        assert given.SerializeToString() == kept.SerializeToString()


def test_copies_merge_where_they_are_still_equal_and_part_where_they_are_not() -> None:
    model = small_net()
    traced = trace(model)
    first, second = traced.groups
    even, odd = np.arange(8) % 2 == 0, np.arange(8) % 2 == 1
    assert names(drop_units(traced, {first.name: even, second.name: even})) == names(model)
    apart = drop_units(traced, {first.name: even, second.name: odd})
    assert len(names(apart)) == len(names(model)) + 1


def test_equal_initializers_of_two_names_stay_two() -> None:
    model = net(
        """(float[N,4] x) => (float[N,4] y, float[4] p) {
            a = Add(x, p)
            y = Add(a, q)
        }""",
        p=[1.0, 2, 3, 4],
        q=[1.0, 2, 3, 4],
    )
    assert names(finish(normalise(model).model, normalise(model))) == {"p", "q"}


def test_numbers_that_are_read_as_their_own_shape_are_not_copied_twice_as_often_each_time() -> None:
    ops = "\n".join(f"n{k + 1} = Reshape(n{k}, n{k})" for k in range(12))
    model = net(
        f"""(float[N,4] x) => (float[N,3] y) {{
        n0 = ConstantOfShape<value=int64[1] {{1}}>(one)
        {ops}
        c = Cast<to=1>(n12)
        h = MatMul(x, w)
        r = Relu(h)
        t = MatMul(r, u)
        y = Add(t, c)
    }}""",
        one=[1],
        w=(4, 6),
        u=(6, 3),
    )
    assert len(normalise(model).nodes) < 50
    check_exact(model)


def test_a_constant_node_and_its_copies() -> None:
    model = net(
        """(float[N,4] x) => (float[N,4] y) {
            c = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>()
            a = Mul(x, c)
            y = Add(a, c)
        }"""
    )
    graph = normalise(model)
    assert not [n for n in graph.nodes if n.op_type == "Constant"]
    uses = [name for n in graph.nodes for name in n.input[1:]]
    assert len(set(uses)) == 2, "every use has its own copy"
    assert {graph.origin.get(name, name) for name in uses} == {"c"}
    assert names(finish(graph.model, graph)) == {"c"}


def test_an_output_is_not_declared_otherwise_than_a_cut_model_makes_known() -> None:
    """The sizes of a Reshape are folded: what the exporter declared in vain is wrong by then."""
    model = net(
        """(float[N,4] x) => (float[1,7] y, float[N,3] z) {
            h = MatMul(x, w0) r = Relu(h) z = MatMul(r, w1) s = Shape(z) n = Slice(s, nil, one)
            sizes = Concat<axis=0>(n, three, one) y = Reshape(z, sizes)
        }""",
        w0=(4, 8), w1=(8, 3), nil=[0], one=[1], three=[3],
    )  # fmt: skip
    made = prune(model, keep_units=0.5, method="l1", repair="none").model
    onnx.checker.check_model(made, full_check=True)
    y, z = ([d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim] for o in made.graph.output)
    assert (len(y), y[1:], z) == (3, [3, 1], ["N", 3])
    assert {o.name: o for o in made.graph.output}["z"] == model.graph.output[1]


# --- files -----------------------------------------------------------------------------------------------------------


def test_load_takes_paths_bytes_and_models(tmp_path: Path) -> None:
    model = small_net()
    save(model, tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), model.SerializeToString(), model):
        assert load(source).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert load(model) is not model


def test_external_data_loads(tmp_path: Path) -> None:
    model = small_net()
    onnx.save(load(model), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size > 0
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    assert relative_error(run(load(tmp_path / "m.onnx"), {"x": x}), run(model, {"x": x})) == 0
    assert check_exact(load(tmp_path / "m.onnx")).dropped > 0


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    onnx.save(small_net(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="external data"):
        load(tmp_path / "m.onnx")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    whole = small_net().SerializeToString()
    for name, content in (("empty", b""), ("text", b"hello, world"), ("half", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            load(tmp_path / name)
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="no nodes or no outputs"):
        load(ModelProto())
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path)


def test_a_saved_file_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    save(small_net(), path)
    onnx.checker.check_model(onnx.load(path))
    assert files(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), whole_file(path) as temporary:
        temporary.write_bytes(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["m.onnx"]


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be written \(No space left"), whole_file(path):
        raise OSError(28, "No space left on device")
    assert files(tmp_path) == []


def test_a_folder_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="choose another output path"):
        save(small_net(), tmp_path / "nowhere" / "m.onnx")


def test_a_link_stays_one_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    """As an editor does: to a file, to one that is not there yet, and from another folder."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.onnx").write_bytes(b"old")
    for link, target in (("a.onnx", "old.onnx"), ("b.onnx", "new.onnx"), ("folder/c.onnx", "../third.onnx")):
        (tmp_path / link).symlink_to(target)
        save(small_net(), tmp_path / link)
        assert str((tmp_path / link).readlink()) == target
        onnx.checker.check_model(onnx.load((tmp_path / link).resolve()))
    assert sorted(files(tmp_path)) == ["a.onnx", "b.onnx", "folder", "new.onnx", "old.onnx", "third.onnx"]
    (tmp_path / "circle.onnx").symlink_to("circle.onnx")
    with pytest.raises(ModelError, match=r"cannot be written \(Too many levels of symbolic links"):
        save(small_net(), tmp_path / "circle.onnx")


def test_data_lie_where_a_link_and_what_it_points_to_find_them(tmp_path: Path) -> None:
    model = small_net()
    rows = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rows, "large"))
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    save(model, tmp_path / "link.onnx", external=True)
    assert sorted(files(tmp_path)) == ["link.onnx", "m.onnx", "m.onnx.data"]
    for name in ("link.onnx", "m.onnx"):
        (found,) = [t for t in load(tmp_path / name).graph.initializer if t.name == "large"]
        assert np.array_equal(onnx.numpy_helper.to_array(found), rows)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "far.onnx").symlink_to("../m.onnx")
    with pytest.raises(ModelError, match="is a link into another folder, where the model's data would not be found"):
        save(model, tmp_path / "folder" / "far.onnx", external=True)


@pytest.mark.parametrize("name", ["m" * 250 + ".onnx", "\N{SNOWMAN}" * 83 + ".onnx"])
def test_any_name_that_a_file_may_have_can_be_written(tmp_path: Path, name: str) -> None:
    save(small_net(), tmp_path / name)
    assert files(tmp_path) == [name]


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_is_for_the_same_readers(tmp_path: Path, mode: int) -> None:
    """A private file would be public otherwise, or one that a service reads private."""
    path, mask = tmp_path / "m.onnx", os.umask(0o027)
    try:
        save(small_net(), path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(mode)
        save(small_net(), path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == mode and files(tmp_path) == ["m.onnx"]


def test_only_plain_files_are_replaced(tmp_path: Path) -> None:
    """Whoever may write anywhere could replace a device."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ModelError, match="is no plain file; choose another output path"):
            save(small_net(), path)
    assert (tmp_path / "pipe").is_fifo()


# --- onnx-graphsurgeon's guards -------------------------------------------------------------------------------------


def test_extract_computes_a_part_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = small_net()
    model.graph.initializer.append(
        helper.make_tensor("unused8", TensorProto.FLOAT8E4M3FNUZ, [2], b"\x10\x20", raw=True)
    )
    model.opset_import[0].version = 19
    model.ir_version = 9
    part = extract(model, {"r": TensorProto.FLOAT}, {"b": TensorProto.FLOAT, "s": TensorProto.FLOAT})
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert part.ir_version == 9
    assert [(o.domain, o.version) for o in part.opset_import] == [("", 19)]
    r = np.random.default_rng(0).normal(size=(5, 8, 6, 6)).astype(np.float32)
    b, s = run(part, {"r": r})
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name != "unused8"}
    wanted = np.einsum("nihw,oi->nohw", r, weights["w1"][:, :, 0, 0]) + weights["shared"][:, None, None]
    assert relative_error([b, s], [wanted, np.maximum(wanted, 0)]) < 1e-5


def test_a_part_keeps_inputs_that_it_does_not_read() -> None:
    model = net("(float[N,4] x, float[N,4] z) => (float[N,4] y) {\n a = Relu(x)\n y = Add(a, z)\n}")
    part = extract(model, {"x": TensorProto.FLOAT, "z": TensorProto.FLOAT}, {"a": TensorProto.FLOAT})
    x = np.ones((2, 4), np.float32)
    assert relative_error(run(part, {"x": x, "z": x}), [x]) == 0


def test_a_part_is_fed_what_a_node_makes_beside_what_is_wanted() -> None:
    model = net(
        """(float[N,4] x) => (float[N,2] y) {
            b, a = Split<axis=1>(x, two)
            s = Add(a, b)
            y = Mul(s, w)
        }""",
        two=[2, 2], w=[2.0, 3.0],
    )  # fmt: skip
    part = extract(model, {"x": TensorProto.FLOAT, "a": TensorProto.FLOAT}, {"y": TensorProto.FLOAT})
    x, a = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 2), np.float32)
    assert run(part, {"x": x, "a": a})[0].tolist() == [[2.0, 6.0], [10.0, 18.0]]


_EXOTIC = {
    "int4": (TensorProto.INT4, b"\x21\x43"),
    "uint4": (TensorProto.UINT4, b"\x21\xf3"),
    "e4m3fn": (TensorProto.FLOAT8E4M3FN, b"\x01\x38\x40\x7e"),
    "e4m3fnuz": (TensorProto.FLOAT8E4M3FNUZ, b"\x01\x38\x40\x7e"),
    "e5m2": (TensorProto.FLOAT8E5M2, b"\x01\x38\x40\x7b"),
    "e5m2fnuz": (TensorProto.FLOAT8E5M2FNUZ, b"\x01\x38\x40\x7b"),
    "bfloat16": (TensorProto.BFLOAT16, b"\x80\x3f\x00\x40\x40\x40\x80\x40"),
}


@pytest.mark.parametrize("kind", _EXOTIC)
def test_exotic_initializers_pass_bit_for_bit(kind: str) -> None:
    """Not cut and not run: they only pass through normal form and back, and through a part of the model."""
    number, data = _EXOTIC[kind]
    model = net(
        "(float[N,4] x) => (float[N,4] y, float[4] z) {\n y = Relu(x)\n z = Cast<to=1>(exotic)\n}", opset=21, ir=10
    )
    model.graph.initializer.append(helper.make_tensor("exotic", number, [4], data, raw=True))
    given = model.graph.initializer[0].SerializeToString()
    graph = normalise(model)
    kept = finish(graph.model, graph).graph.initializer
    assert [t.SerializeToString() for t in kept] == [given]
    part = extract(model, {"x": TensorProto.FLOAT}, {"y": TensorProto.FLOAT})
    assert [n.op_type for n in part.graph.node] == ["Relu"]


@pytest.mark.parametrize("kind", ["int4", "uint4", "e4m3fn", "e5m2"])
def test_exotic_weights_can_be_cut_or_stay(kind: str) -> None:
    """Behind DequantizeLinear, beside layers that are cut; extracted for the means too."""
    number, _ = _EXOTIC[kind]
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
            w = DequantizeLinear<axis=1>(exotic, scales)
            a = MatMul(x, w)
            r = Relu(a)
            b = MatMul(r, w1)
            s = Relu(b)
            y = MatMul(s, w2)
        }""",
        opset=21,
        ir=10,
        scales=[0.5, 0.25] * 4,
        w1=(8, 7),
        w2=(7, 3),
    )
    values = np.random.default_rng(0).integers(0, 8, 48)
    model.graph.initializer.append(helper.make_tensor("exotic", number, [6, 8], values))
    found = check_exact(model)
    assert found.groups == 2
    small = halved(trace(model))
    exotic = next(t for t in small.graph.initializer if t.name == "exotic")
    assert exotic.data_type == number
    assert np.array_equal(numpy_helper.to_array(exotic).astype(np.int64), values.reshape(6, 8)[:, ::2])


def test_models_that_draw_random_numbers_draw_the_same_to_be_compared() -> None:
    """What a variational autoencoder samples; ops that have a seed keep theirs, and the file gets none."""
    sampling = net(
        """(float[N,6] x) => (float[N,6] y) {
            h = MatMul(x, w1)
            r = Relu(h)
            m = MatMul(r, wm)
            s = MatMul(r, ws)
            e = RandomNormalLike(m)
            n = Mul(s, e)
            z = Add(m, n)
            d = MatMul(z, w2)
            t = Relu(d)
            y = MatMul(t, w3)
        }""",
        w1=(6, 16), wm=(16, 4), ws=(16, 4), w2=(4, 16), w3=(16, 6),
    )  # fmt: skip
    found = prune(sampling, np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32), keep_macs=0.6, samples=4)
    assert found.verified.rel_err < 1e-5
    drawn = next(n for n in found.model.graph.node if n.op_type == "RandomNormalLike")
    assert not drawn.attribute


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_trains_draws_and_stays(training: bool) -> None:
    """A file that was exported in training mode; one that is told not to train does nothing."""
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
            h = MatMul(x, w1)
            r = Relu(h)
            d, m = Dropout(r, half, training)
            g = MatMul(d, w2)
            t = Relu(g)
            y = MatMul(t, w3)
        }""",
        opset=13, half=np.array(0.5, np.float32), training=np.array(training), w1=(6, 16), w2=(16, 8), w3=(8, 3),
    )  # fmt: skip
    found = prune(model, np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32), keep_units=0.5, method="l1")
    assert found.verified.rel_err < 1e-5 and [len(k) for k in found.keep.values()] == ([8] if training else [16, 8])
    assert any("export after model.eval()" in f.reason for f in found.traced.frozen) == training


def test_parts_that_are_fed_sizes_load() -> None:
    """onnxruntime takes a vector of sizes whose length is open for empty, and refuses the Resize."""
    model = net(
        """(float[N,3,H,W] r, float[N,3,K,L] d) => (float[N,3,H,W] y) {
            rr = Relu(r)
            dd = Conv(d, k)
            whole = Shape(rr)
            hh = Gather<axis=0>(whole, h)
            ww = Gather<axis=0>(whole, w)
            hu = Unsqueeze(hh, zero)
            wu = Unsqueeze(ww, zero)
            size = Concat<axis=0>(hu, wu)
            half = Shape(dd)
            first = Slice(half, zero, two)
            sizes = Concat<axis=0>(first, size)
            y = Resize<mode="linear">(dd, , , sizes)
        }""",
        k=(3, 3, 1, 1), h=2, w=3, zero=[0], two=[2],
    )  # fmt: skip
    shaped = trace(model, input_shapes={"r": (2, 3, 8, 8), "d": (2, 3, 4, 4)}).shaped
    assert shaped.declared["size"] == (2,) and shaped.declared["dd"] == (None,) * 4
    kinds = {"size": int(TensorProto.INT64), "dd": int(TensorProto.FLOAT)}
    feeds = {"size": np.array([8, 6]), "dd": np.ones((3, 3, 4, 3), np.float32)}
    found = OrtBackend().session(extract(model, kinds, {"y": 1}, shaped.declared)).run(feeds)[0]
    assert found.shape == (3, 3, 8, 6)
    with pytest.raises(ModelError, match="sizes"):
        OrtBackend().session(extract(model, kinds, {"y": 1}, {"size": [None], "dd": [None] * 4}))


def test_stdout_is_what_it_was_when_threads_are_quiet() -> None:
    before = sys.stdout

    def hush(number: int) -> None:
        with quiet():
            print(number)  # noqa: T201
            time.sleep(0.001)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hush, range(40)))
    assert sys.stdout is before
