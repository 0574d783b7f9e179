"""Models that cannot be served: exit code 1, one line that says what, where and what to do, and nothing written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from tests.commands import call, refused
from tests.exactness import net


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own inside another one."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    yield tmp_path


def good() -> ModelProto:
    text = "(float[N,4] x) => (float[N,3] y) {\n [a] h = MatMul(x, w)\n [b] r = Relu(h)\n [c] y = MatMul(r, v)\n}"
    return net(text, w=(4, 8), v=(8, 3))


# --- graphs ----------------------------------------------------------------------------------------------------------


def node(model: ModelProto, kind: str, inputs: list[str], outputs: list[str]) -> None:
    model.graph.node.append(helper.make_node(kind, inputs, outputs, name="new"))


def cycle(m: ModelProto) -> None:
    m.graph.node[0].input[0] = "r"


def undefined(m: ModelProto) -> None:
    m.graph.node[1].input[0] = "nowhere"


def no_op(m: ModelProto) -> None:
    node(m, "", ["h"], ["n"])


def makes_nothing(m: ModelProto) -> None:
    node(m, "Relu", ["h"], [])


def undefined_in_a_body(m: ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Neg", ["nowhere"], ["n"], name="inner")],
        "body",
        [],
        [helper.make_empty_tensor_value_info("n")],
    )
    m.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    m.graph.node.append(helper.make_node("If", ["yes"], ["o"], name="choice", then_branch=body, else_branch=body))


def two_nodes_make_one(m: ModelProto) -> None:
    node(m, "Relu", ["h"], ["r"])


def one_node_makes_it_twice(m: ModelProto) -> None:
    node(m, "Split", ["r"], ["s", "s"])


def two_initializers(m: ModelProto) -> None:
    m.graph.initializer.append(m.graph.initializer[0])


def initializer_and_node(m: ModelProto) -> None:
    node(m, "Relu", ["h"], ["w"])


def input_and_node(m: ModelProto) -> None:
    node(m, "Relu", ["h"], ["x"])


def two_inputs(m: ModelProto) -> None:
    m.graph.input.append(m.graph.input[0])


def two_outputs(m: ModelProto) -> None:
    m.graph.output.append(m.graph.output[0])


def no_such_output(m: ModelProto) -> None:
    m.graph.output[0].name = "nowhere"


def newer_opset(m: ModelProto) -> None:
    m.opset_import[0].version = 99


def newer_ir(m: ModelProto) -> None:
    m.ir_version = 99


def no_opset(m: ModelProto) -> None:
    del m.opset_import[:]


def unknown_op(m: ModelProto) -> None:
    m.graph.node[1].op_type = "Relux"


def unknown_domain(m: ModelProto) -> None:
    m.graph.node[1].domain = "acme"
    m.opset_import.append(helper.make_opsetid("acme", 1))


def no_nodes(m: ModelProto) -> None:
    del m.graph.node[:]


def no_outputs(m: ModelProto) -> None:
    del m.graph.output[:]


def no_inputs(m: ModelProto) -> None:
    del m.graph.input[:]
    m.graph.initializer.append(helper.make_tensor("x", TensorProto.FLOAT, [1, 4], [1.0] * 4))


def further_input(kind: TypeProto) -> Callable[[ModelProto], None]:
    def add(m: ModelProto) -> None:
        m.graph.input.append(helper.make_value_info("more", kind))

    return add


def tensor_input(kind: int, shape: list[int | str] | None) -> Callable[[ModelProto], None]:
    return further_input(helper.make_tensor_type_proto(kind, shape))


def values_missing(m: ModelProto) -> None:
    m.graph.initializer[0].ClearField("raw_data")


def values_of_another_shape(m: ModelProto) -> None:
    m.graph.initializer[0].dims[0] = 5


def negative_size(m: ModelProto) -> None:
    m.graph.initializer[0].dims[0] = -4


def unknown_type(m: ModelProto) -> None:
    m.graph.initializer[0].data_type = 99


def widths_that_do_not_meet(m: ModelProto) -> None:
    m.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def constant_without_value(m: ModelProto) -> None:
    node(m, "Constant", [], ["k"])
    m.graph.output.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, None))


def loop_without_a_body(m: ModelProto) -> None:
    node(m, "Loop", ["", "", "h"], ["l"])
    m.graph.output.append(helper.make_tensor_value_info("l", TensorProto.FLOAT, None))


def loop_without_an_end(m: ModelProto) -> None:
    body = onnx.parser.parse_graph(
        "b (int64 i, bool c, float[N,8] s) => (bool d, float[N,8] t) { d = Identity(c) t = Relu(s) }"
    )
    node(m, "Loop", ["", "", "h"], ["l"])
    m.graph.node[-1].attribute.append(helper.make_attribute("body", body))


def function(inputs: list[str], calls: str) -> Callable[[ModelProto], None]:
    """Return what puts a call of a function into the graph, which makes one call of something itself."""

    def harm(m: ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        inner = helper.make_node(calls, ["p"], ["q"], domain="own" if calls == "F" else "")
        m.functions.append(helper.make_function("own", "F", ["p"], ["q"], [inner], opsets))
        m.opset_import.append(opsets[1])
        m.graph.node.append(helper.make_node("F", inputs, ["new"], domain="own"))

    return harm


def attribute_of_no_function(m: ModelProto) -> None:
    node(m, "Softmax", ["h"], ["new"])
    m.graph.node[-1].attribute.add(name="axis", type=AttributeProto.INT, ref_attr_name="a")


def values_in_segments(m: ModelProto) -> None:
    m.graph.initializer[0].segment.end = 32


def node_without_inputs(m: ModelProto) -> None:
    node(m, "Relu", [], ["new"])
    m.graph.node[1].input[:] = ["new"]


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
BROKEN: list[tuple[Callable[[ModelProto], None], str]] = [
    (cycle, "m.onnx: the graph has a cycle: 'b' (Relu) -> 'a' (MatMul) -> 'b' (Relu); mend it"),
    (undefined, "m.onnx: node 'b' (Relu) reads 'nowhere', which nothing makes; mend"),
    (no_op, "m.onnx: node 3 ('new') has no op type; take it out, or export the model again"),
    (makes_nothing, "m.onnx: node 3 ('new') makes nothing; take it out, or export the model again"),
    (undefined_in_a_body, "node 'inner' (Neg) reads 'nowhere' in a body of 'choice' (If), which nothing makes"),
    (two_nodes_make_one, "two outputs of nodes are named 'r'; give every tensor one name"),
    (one_node_makes_it_twice, "two outputs of nodes are named 's'"),
    (two_initializers, "two initializers are named 'w'"),
    (initializer_and_node, "'w' is made by a node and given as an input or initializer"),
    (input_and_node, "'x' is made by a node and given as an input"),
    (two_inputs, "two graph inputs are named 'x'"),
    (two_outputs, "output 'y' is listed twice"),
    (no_such_output, "output 'nowhere' is made by no node"),
    (newer_opset, "opset 99 of ai.onnx is newer than"),
    (newer_ir, "Unsupported model IR version: 99, max supported"),
    (no_opset, "it imports no operator set"),
    (unknown_op, "(Relux): No Op registered for Relux with domain_version of 17; export it again, without ops of"),
    (unknown_domain, "acme:Relu(-1) is not a registered function/op; export it again, without ops of other tools"),
    (no_nodes, "not an ONNX model (no nodes or no outputs)"),
    (no_outputs, "not an ONNX model (no nodes or no outputs)"),
    (no_inputs, "the model has no inputs"),
    (further_input(helper.make_sequence_type_proto(FLOATS)), "input 'more' is no tensor"),
    (further_input(helper.make_optional_type_proto(FLOATS)), "input 'more' is no tensor"),
    (further_input(helper.make_map_type_proto(TensorProto.INT64, FLOATS)), "input 'more' is no tensor"),
    (further_input(TypeProto()), "input 'more' is no tensor"),
    (tensor_input(TensorProto.UNDEFINED, [2]), "input 'more' has no known element type"),
    (tensor_input(99, [2]), "input 'more' has no known element type"),
    (tensor_input(TensorProto.COMPLEX64, [2]), "input 'more' is complex"),
    (tensor_input(TensorProto.FLOAT, None), "input 'more' declares no shape"),
    (tensor_input(TensorProto.FLOAT, ["N", 0]), "input 'more' has a dimension of size 0"),
    (values_missing, "does not match expected count from shape (32)"),
    (values_of_another_shape, "export it again, with ops and versions that it has"),
    (negative_size, "cannot load the model"),
    (unknown_type, "Tensor 'w' does not have valid data type"),
    (widths_that_do_not_meet, "Incompatible dimensions"),
    (constant_without_value, "Constant node: new has no data attributes"),
    (loop_without_a_body, "cannot load the model"),
    (loop_without_an_end, "node 'new' (Loop) has no trip count and hands its condition on"),
    (function(["h"], "F"), "Model-local functions must not be recursive"),
    (function(["h", "h"], "Relu"), "Number of actual parameters cannot exceed number of formal parameters"),
    (attribute_of_no_function, "attribute 'axis' of node 'new' (Softmax) refers to one of a function around it"),
    (values_in_segments, "initializer 'w' is stored in segments"),
    (node_without_inputs, "has input size 0 not in range [min=1, max=1]"),
]


@pytest.mark.parametrize("command", ["inspect", "prune"])
@pytest.mark.parametrize(("harm", "words"), BROKEN, ids=lambda v: getattr(v, "__name__", "") if callable(v) else "")
def test_broken_graphs_are_refused(command: str, harm: Callable[[ModelProto], None], words: str) -> None:
    model = good()
    harm(model)
    Path("m.onnx").write_bytes(model.SerializeToString())
    said = refused(command, "m.onnx")
    assert words in said
    assert said.startswith("onnxshap: error: m.onnx: ")  # two may be compared
    assert "onnxruntime_src" not in said
    assert "[ONNXRuntimeError]" not in said


def test_a_long_model_that_does_not_load_is_not_asked_for_other_sizes() -> None:
    """It runs in pieces, the first ones of which load; the wrong op stands in the last one."""
    nodes = "\n".join(f"h{n + 1} = Relu(h{n})" for n in range(120))
    model = net(f"(float[N,4] h0) => (float[N,3] y) {{\n{nodes}\ny = MatMul(h120, w)\n}}", w=(4, 3))
    model.graph.node[-1].op_type = "Erfc"
    Path("m.onnx").write_bytes(model.SerializeToString())
    said = refused("inspect", "m.onnx")
    assert said.startswith("onnxshap: error: m.onnx: onnxruntime "), said
    assert "(Erfc): No Op registered for Erfc with domain_version of 17; export it again, without ops of" in said


def test_paths_that_are_no_files_are_refused() -> None:
    Path("folder.onnx").mkdir()
    for command in ("inspect", "prune", "score", "eval"):
        assert "the model's path is empty; give the path" in refused(command, "")
        assert "folder.onnx: cannot be read (Is a directory); give" in refused(command, "folder.onnx")


def test_string_inputs_are_traced_and_need_data() -> None:
    model = good()
    tensor_input(TensorProto.STRING, ["N", 2])(model)
    onnx.save(model, "m.onnx")
    assert call("inspect", "m.onnx").exit_code == 0
    assert "input 'more' takes strings, which none are known of: give data" in refused("prune", "m.onnx")


def test_outputs_that_are_no_tensors_cannot_be_judged() -> None:
    model = good()
    model.graph.node.append(helper.make_node("SequenceConstruct", [model.graph.output[0].name], ["some"]))
    model.graph.output.append(helper.make_value_info("some", helper.make_sequence_type_proto(FLOATS)))
    onnx.save(model, "m.onnx")
    assert call("inspect", "m.onnx").exit_code == 0
    assert "output 'some' is no tensor (a sequence or a map), by which a model" in refused("prune", "m.onnx")


def test_a_map_of_so_many_rows_as_the_data_say_is_no_tensor_either() -> None:
    """As skl2onnx writes a classifier by nearest neighbours: labels are looked up, their rows are as many as found."""
    model = good()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    for kind, given, made, attributes in (
        ("NonZero", "y", "places", {}),
        ("Transpose", "places", "rows", {"perm": [1, 0]}),
        ("Cast", "rows", "numbers", {"to": TensorProto.FLOAT}),
    ):
        model.graph.node.append(helper.make_node(kind, [given], [made], **attributes))
    model.graph.node.append(
        helper.make_node("ZipMap", ["numbers"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    )
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("map", helper.make_sequence_type_proto(entry)))
    onnx.save(model, "m.onnx")
    assert "8 units in 1 group" in call("inspect", "m.onnx").stdout
    assert "output 'map' is no tensor (a sequence or a map), by which a model" in refused("prune", "m.onnx")


def test_nodes_in_any_order_are_sorted() -> None:
    model = good()
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert call("prune", "m.onnx", "--keep-units", "0.5").exit_code == 0
    small = onnx.load("m.pruned.onnx")
    onnx.checker.check_model(small)
    assert [n.name for n in small.graph.node][:3] == ["a", "b", "c"]


@pytest.mark.parametrize(("kind", "rows"), [("int64", 1), ("uint8", 5), ("int32", 5)])
def test_indices_that_noise_would_exceed_are_zero(kind: str, rows: int) -> None:
    text = f"""(float[N,4] x, {kind}[N] k) => (float[N,3] y) {{
        h = MatMul(x, w)
        i = Cast<to=7>(k)
        e = Gather(table, i)
        t = Add(h, e)
        y = MatMul(t, v)
    }}"""
    onnx.save(net(text, w=(4, 8), v=(8, 3), table=(rows, 8)), "m.onnx")
    assert "8 units in 1 group" in call("inspect", "m.onnx").stdout


def test_inputs_of_other_ranks_and_free_sizes_are_traced() -> None:
    text = """(float[N,3,H,W] x, int64[N,T] k, float[N] s, float c) => (float[N,2,H,W] y) {
        a = Conv<pads=[1,1,1,1]>(x, w)
        e = Gather(table, k)
        m = ReduceMean<axes=[1], keepdims=0>(e)
        u = Unsqueeze(m, last)
        b = Add(a, u)
        f = Unsqueeze(s, rest)
        g = Mul(b, f)
        z = Mul(g, c)
        y = Conv(z, v)
    }"""
    model = net(text, w=(8, 3, 3, 3), v=(2, 8, 1, 1), table=(5, 8), last=np.array([2, 3]), rest=np.array([1, 2, 3]))
    onnx.save(model, "m.onnx")
    assert "8 units in 1 group" in call("inspect", "m.onnx").stdout
    assert call("prune", "m.onnx", "--keep-units", "0.5").exit_code == 0
    assert list(onnx.load("m.pruned.onnx").graph.input) == list(model.graph.input)


def test_a_fixed_batch_and_inputs_without_one_do_not_go_together() -> None:
    text = "(float[4,6] x, float c) => (float[4,3] y) {\n a = MatMul(x, w)\n b = Mul(a, c)\n y = MatMul(b, v)\n}"
    onnx.save(net(text, w=(6, 8), v=(8, 3)), "m.onnx")
    assert "input 'c' has no axis for the images, and the file fixes a batch of 4" in refused("prune", "m.onnx")


def test_outputs_without_a_type_get_theirs() -> None:
    model = good()
    model.graph.output[0].ClearField("type")
    onnx.save(model, "m.onnx")
    assert call("prune", "m.onnx", "--keep-units", "0.5").exit_code == 0
    assert onnx.load("m.pruned.onnx").graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


# --- hostile bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_damaged_files_end_in_one_line(seed: int) -> None:
    """Cut short, bits flipped, bytes replaced, parts doubled: served or refused, but never a traceback."""
    dice = random.Random(seed)
    data = bytearray(damageable().SerializeToString())
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(data))
        match dice.randrange(5):
            case 0:
                del data[at:]
            case 1 | 2:
                data[at] ^= 1 << dice.randrange(8)
            case 3:
                data[at] = dice.randrange(256)
            case _:
                data[at:at] = data[at : at + dice.randrange(1, 64)]
        if not data:
            break
    Path("m.onnx").write_bytes(data)
    for arguments in (("inspect", "m.onnx"), ("prune", "m.onnx", "-q", "--keep-units", "0.5", "--samples", "2")):
        result = call(*arguments)
        assert result.exit_code in (0, 1, 3), result.stderr
        assert "Traceback" not in result.stderr
        assert "internal error" not in result.stderr, result.stderr
        assert result.stderr.count("\n") == (result.exit_code != 0), result.stderr
        assert Path("m.pruned.onnx").exists() == (arguments[0] == "prune" and result.exit_code == 0)


def damageable() -> ModelProto:
    """A small net with most parts that a file can have."""
    rng = np.random.default_rng(0)
    return net(
        """(float[N,2,4,4] x, int64[N,1] k) => (float[N,3] y) {
            [conv] a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)
            [norm] n = BatchNormalization(a, var_s, var_b, var_m, var_v)
            r = Relu(n)
            p = GlobalAveragePool(r)
            f = Reshape(p, shape)
            e = Gather<axis=0>(table, k)
            s = Squeeze(e, one)
            t = Add(f, s)
            [out] y = Gemm<alpha=0.5, transB=1>(t, v)
        }""",
        b=(6,), var_s=(6,), var_b=(6,), var_m=(6,), var_v=(6,),
        w=(6, 2, 3, 3),
        v=(3, 6),
        table=rng.normal(size=(4, 6)),
        shape=np.array([0, 6]),
        one=np.array([1]),
    )  # fmt: skip


def test_data_that_the_model_does_not_take_are_named(here: Path) -> None:
    """The model is traced with the first samples; what stands behind them is seen when all are run."""
    model = net(
        "(int64[N,3] x) => (float[N,3,2] y) { e = Gather(table, x) h = MatMul(e, w) r = Relu(h) y = MatMul(r, v) }",
        table=(5, 4), w=(4, 8), v=(8, 2),
    )  # fmt: skip
    Path("m.onnx").write_bytes(model.SerializeToString())
    np.savez("d.npz", x=np.repeat([0, 5], [400, 1])[:, None] * np.ones((1, 3), np.int64))
    said = refused("prune", "m.onnx", "--data", "d.npz", "--method", "l1")
    assert "d.npz: the model refused to run" in said and "idx=5" in said and said.endswith("check its values")
