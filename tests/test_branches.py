"""If nodes whose condition is known are gone before anything is traced; the bodies of others are cut where they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

import onnxshap
from onnxshap.calibrate import run_all, site_means
from onnxshap.core import Dataset, FloatArray
from onnxshap.graph import normalise
from onnxshap.plan import cutter
from onnxshap.plan.curves import loss_curves
from onnxshap.rewrite import drop_units
from onnxshap.tracing import Traced, trace
from tests.exactness import Exactness, check_exact, net
from tests.zeroing import relative_error, run

RNG = np.random.default_rng(0)


def body(text: str, **initializers: tuple[int, ...]) -> GraphProto:
    """A branch: ONNX text `() => (outputs) { nodes }`, which reads names from outside."""
    graph: GraphProto = onnx.parser.parse_graph(f"branch {text}")
    for name, shape in initializers.items():
        values = (RNG.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
    return graph


def choose(model: ModelProto, at: int, condition: str, output: str, yes: GraphProto, no: GraphProto) -> None:
    node = helper.make_node("If", [condition], [output], name="choice", then_branch=yes, else_branch=no)
    model.graph.node.insert(at, node)


WIDE = "() => (float[N,6] t) {\n a = MatMul(h, wa)\n r = Relu(a)\n t = MatMul(r, wb)\n}"
PLAIN = "() => (float[N,6] e) {\n e = Neg(h)\n}"


def with_choice(condition: Mapping[str, Any] | None = None, **more: Any) -> ModelProto:
    text = "(float[N,4] x) => (float[N,3] y) {\n h = MatMul(x, w)\n s = Relu(c)\n y = MatMul(s, v)\n}"
    model = net(text, w=(4, 6), v=(6, 3), **(condition or {}), **more)
    choose(model, 1, "yes", "c", body(WIDE, wa=(6, 8), wb=(8, 6)), body(PLAIN))
    return model


def ops(model: ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


@pytest.mark.parametrize("yes", [True, False])
@pytest.mark.parametrize("as_node", [True, False])
def test_a_constant_condition_takes_its_branch(yes: bool, as_node: bool) -> None:
    model = with_choice()
    value = numpy_helper.from_array(np.array(yes), "yes")
    if as_node:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["yes"], value=value))
    else:
        model.graph.initializer.append(value)
    found = check_exact(model)
    assert found.groups == (3 if yes else 1)
    small = drop_units(trace(model), {g.name: np.arange(len(g)) % 2 == 0 for g in trace(model).groups})
    assert "If" not in ops(small)


def test_branches_in_branches_and_names_that_are_taken() -> None:
    """The inner branch is taken too; a node, a weight and an output inside have names that stand outside as well."""
    text = """(float[N,4] x) => (float[N,3] y) {
        [one] h = MatMul(x, w)
        [two] s = Relu(c)
        [three] r = Relu(s)
        y = MatMul(r, v)
    }"""
    model = net(text, w=(4, 6), v=(6, 3), yes=np.array(True))
    inner = body("() => (float[N,6] q) {\n [one] p = MatMul(b, wp)\n q = Relu(p)\n}", wp=(7, 6))
    outer = body("() => (float[N,6] o) {\n [one] a = MatMul(h, wa)\n b = Relu(a)\n}", wa=(6, 7))
    outer.initializer.append(numpy_helper.from_array(np.array(False), "no"))
    outer.node.append(
        helper.make_node("If", ["no"], ["o"], name="two", then_branch=body(PLAIN.replace("h", "b")), else_branch=inner)
    )
    choose(model, 1, "yes", "c", outer, body(PLAIN))
    x = {"x": np.ones((2, 4), np.float32)}
    flat = normalise(model).model
    assert "If" not in ops(flat)
    assert relative_error(run(flat, x), run(model, x)) < 1e-6
    names = [n.name for n in flat.graph.node if n.name]
    assert len(set(names)) == len(names)
    assert check_exact(model).groups == 3


def test_what_a_branch_hands_through_stays_what_it_is() -> None:
    text = "(float[N,4] x) => (float[N,6] y, float[N,6] z) {\n h = MatMul(x, w)\n y = Relu(c)\n z = Add(c, d)\n}"
    model = net(text, w=(4, 6), yes=np.array(True))
    same = body("() => (float[N,6] t, float[6] k) {\n t = Identity(h)\n}", k=(6,))
    node = helper.make_node("If", ["yes"], ["c", "d"], name="choice", then_branch=same, else_branch=same)
    model.graph.node.insert(1, node)
    x = {"x": np.ones((2, 4), np.float32)}
    assert relative_error(run(normalise(model).model, x), run(model, x)) == 0


SIZES = """(float[N,C,H,4] x) => (float[N,5] y) {
    shape = Shape(x)
    size = Gather<axis=0>(shape, place)
    yes = Equal(size, wanted)
    f = ReduceMean<axes=[1,2], keepdims=0>(x)
    h = MatMul(f, w)
    s = Relu(c)
    y = MatMul(s, v)
}"""


@pytest.mark.parametrize(("place", "wanted", "taken"), [(3, 4, True), (0, 1, False), (2, 7, False)])
def test_a_condition_on_sizes_is_decided_where_the_size_is_fixed(place: int, wanted: int, taken: bool) -> None:
    """`batch == 1` is false at two sizes out of three: that decides nothing."""
    model = net(SIZES, w=(4, 6), v=(6, 5), place=np.array(place), wanted=np.array(wanted))
    choose(model, 5, "yes", "c", body(WIDE, wa=(6, 8), wb=(8, 6)), body(PLAIN))
    traced = trace(model)
    small = drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
    assert ("If" not in ops(small)) == taken
    whole = drop_units(traced, {})
    for shape in ((1, 2, 7, 4), (2, 2, 7, 4), (1, 3, 5, 4)):
        x = {"x": RNG.normal(size=shape).astype(np.float32)}
        assert relative_error(run(whole, x), run(model, x)) < 1e-6
        assert run(small, x)[0].shape == run(model, x)[0].shape


def test_rests_of_sizes_are_not_fixed_because_two_sizes_have_the_same() -> None:
    """Padding to a multiple of 32: none at 64 and at 128, some at 40."""
    model = net(
        """(float[N,2,H,8] x) => (float[N,3] y) {
            shape = Shape(x)
            height = Gather<axis=0>(shape, two)
            rest = Mod(height, many)
            p = Sub(many, rest)
            q = Mod(p, many)
            pads = Concat<axis=0>(before, q, after)
            padded = Pad(x, pads)
            h = ReduceMean<axes=[2,3], keepdims=0>(padded)
            a = MatMul(h, w)
            r = Relu(a)
            y = MatMul(r, v)
        }""",
        w=(2, 6), v=(6, 3), two=np.array([2]), many=np.array([32]), before=np.zeros(6, np.int64),
        after=np.zeros(1, np.int64),
    )  # fmt: skip
    whole = drop_units(trace(model), {})
    for height in (64, 40, 33):
        x = {"x": RNG.normal(size=(2, 2, height, 8)).astype(np.float32)}
        assert relative_error(run(whole, x), run(model, x)) < 1e-6


SUM = """(float[N,4] x) => (float[N,3] y) {
    total = ReduceSum<keepdims=0>(x)
    yes = Greater(total, zero)
    h = MatMul(x, w)
    s = Relu(c)
    y = MatMul(s, v)
}"""


def on_sum(yes: GraphProto, no: GraphProto, text: str = SUM, at: int = 3, **more: Any) -> ModelProto:
    """A net whose If takes `yes` where the sum of its inputs is positive."""
    model = net(text, **{"w": (4, 6), "v": (6, 3), "zero": np.float32(0), **more})
    choose(model, at, "yes", "c", yes, no)
    return model


def both_ways(shape: tuple[int, ...] = (3, 4)) -> list[Dataset]:
    """Inputs that take the one branch, and inputs that take the other."""
    x = np.abs(RNG.normal(size=shape)).astype(np.float32)
    return [Dataset({"x": x}), Dataset({"x": -x})]


def check_both_ways(model: ModelProto, shape: tuple[int, ...] = (3, 4)) -> list[Exactness]:
    """Assert exactness in both branches; the cut file has its If nodes where they were."""
    traced = trace(model)
    for keep in ({}, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}):
        small = drop_units(traced, keep)
        assert nested_ops(small.graph) == nested_ops(model.graph)
    return [check_exact(model, data=data, seed=k) for data in both_ways(shape) for k in (0, 1)]


def nested_ops(graph: GraphProto) -> list[Any]:
    """The ops of a graph, and in place of bodies the ops of those; constants are no ops."""
    found: list[Any] = []
    for node in graph.node:
        if node.op_type != "Constant":
            found += [node.op_type, *(nested_ops(a.g) for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)]
    return found


OTHER = "() => (float[N,6] e) {\n p = MatMul(h, ua)\n q = Tanh(p)\n e = MatMul(q, ub)\n}"


def test_branches_that_depend_on_the_input_are_cut_inside() -> None:
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(OTHER, ua=(6, 5), ub=(5, 6)))
    names = [(g.name, len(g), g.consumers) for g in trace(model).groups]
    assert names == [("h", 6, ("a", "p")), ("a", 8, ("t",)), ("t", 6, ("y",)), ("p", 5, ("e",))]
    assert all(found.groups == 4 for found in check_both_ways(model))


def test_what_a_branch_hands_through_goes_with_what_the_other_makes() -> None:
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body("() => (float[N,6] e) {\n e = Identity(h)\n}"))
    assert [(g.name, g.producers) for g in trace(model).groups] == [("h", ("h", "t")), ("a", ("a",))]
    check_both_ways(model)


CONV = """(float[N,3,6,6] x) => (float[N,2,6,6] y) {
    total = ReduceSum<keepdims=0>(x)
    yes = Greater(total, zero)
    h = Conv<pads=[1,1,1,1]>(x, w)
    s = Relu(c)
    y = Conv(s, v)
}"""
CONVS = """() => (float[N,6,6,6] t) {
    a = Conv<pads=[1,1,1,1]>(h, wa, ba)
    r = Relu(a)
    t = Conv(r, wb, bb)
}"""
OTHERS = """() => (float[N,6,6,6] e) {
    p = Conv<pads=[1,1,1,1]>(h, ua)
    q = Sigmoid(p)
    g = Conv(q, ub)
    e = Add(g, x6)
}"""


def test_convs_in_both_branches_and_captured_tensors() -> None:
    """One of the captured tensors is made for the branch alone, in the main graph, where it stays."""
    text = CONV.replace("s = Relu", "x6 = Conv(x, w6)\n s = Relu")
    yes = body(CONVS, wa=(8, 4, 3, 3), ba=(8,), wb=(6, 8, 1, 1), bb=(6,))
    no = body(OTHERS, ua=(5, 4, 3, 3), ub=(6, 5, 1, 1))
    model = on_sum(yes, no, text, 4, w=(4, 3, 3, 3), w6=(6, 3, 1, 1), v=(2, 6, 1, 1))
    found = check_both_ways(model, (2, 3, 6, 6))
    assert all(f.groups == 4 and f.kept < 0.7 for f in found)


def test_branches_in_branches_that_depend_on_the_input() -> None:
    inner = helper.make_node(
        "If", ["large"], ["o"], name="inner",
        then_branch=body("() => (float[N,6] t2) {\n a2 = MatMul(b, w2)\n r2 = Relu(a2)\n t2 = MatMul(r2, w3)\n}",
                         w2=(7, 5), w3=(5, 6)),
        else_branch=body("() => (float[N,6] e2) {\n e2 = MatMul(b, w4)\n}", w4=(7, 6)),
    )  # fmt: skip
    outer = body("() => (float[N,6] o) {\n a = MatMul(h, wa)\n b = Relu(a)\n large = Greater(total, ten)\n}", wa=(6, 7))
    outer.node.append(inner)
    model = on_sum(outer, body(PLAIN), ten=np.float32(10))
    traced = trace(model)
    assert [g.name for g in traced.groups] == ["h", "a", "a2"]
    for scale in (1, 20):
        for data in both_ways():
            check_exact(model, data=Dataset({"x": data.inputs["x"] * scale}))
    small = drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
    assert nested_ops(small.graph) == nested_ops(model.graph)


def test_an_if_that_gives_outputs_of_the_model_tensors_from_outside_and_initializers() -> None:
    text = """(float[N,4] x) => (float[N,6] c, float[N,6] d, float[N,6] z) {
        total = ReduceSum<keepdims=0>(x)
        yes = Greater(total, zero)
        h = MatMul(x, w)
        z = Neg(f)
    }"""
    model = net(text, w=(4, 6), zero=np.float32(0))
    text = "() => (float[N,6] t, float[N,6] i, float[N,6] u) {\n i = Identity(h)\n u = Neg(h)" + WIDE.split("{")[1]
    yes = body(text, wa=(6, 8), wb=(8, 6))
    no = body("() => (float[N,6] k, float[N,6] e, float[1,6] j) {\n e = Neg(h)\n k = Neg(e)\n}", j=(1, 6))
    node = helper.make_node("If", ["yes"], ["c", "d", "f"], name="choice", then_branch=yes, else_branch=no)
    model.graph.node.insert(3, node)
    assert [g.name for g in trace(model).groups] == ["a"]
    for data in both_ways():
        check_exact(model, data=data)


def test_names_that_both_branches_have() -> None:
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(WIDE, wa=(6, 5), wb=(5, 6)))
    assert [len(g) for g in trace(model).groups] == [6, 8, 6, 5]
    check_both_ways(model)


def test_branches_of_other_shapes_are_cut_up_to_their_border() -> None:
    text = SUM.replace("s = Relu(c)", "m = ReduceMax<axes=[1], keepdims=1>(c)\n s = Add(m, six)")
    no = body("() => (float[N,K] e) {\n p = MatMul(h, ua)\n q = Tanh(p)\n e = MatMul(q, ub)\n}", ua=(6, 5), ub=(5, 7))
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), no, text, six=(6,))
    model.graph.node[3].attribute[0].g.output[0].type.tensor_type.shape.dim[1].dim_param = "K"
    assert [(g.name, len(g)) for g in trace(model).groups] == [("h", 6), ("a", 8), ("p", 5), ("s", 6)]
    check_both_ways(model)


FAILS = """() => (float[N,6] e) {
    two = Concat<axis=0>(seven, six)
    e = Reshape(h, two)
}"""


def test_a_branch_that_does_not_run_where_it_is_not_taken_stays_whole() -> None:
    """It runs on two images alone, seven of them: the other branch is cut all the same."""
    no = body(FAILS)
    no.initializer.append(numpy_helper.from_array(np.array([7]), "seven"))
    no.initializer.append(numpy_helper.from_array(np.array([6]), "six"))
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), no)
    shapes = {"x": (3, 4)}
    traced = trace(model, input_shapes=shapes)
    assert [g.name for g in traced.groups] == ["a"]
    reasons = [f.reason for f in traced.frozen]
    assert any("a branch of If reads it: its else_branch stays whole: not taken" in reason for reason in reasons)
    positive = both_ways()[0]
    check_exact(model, data=positive, input_shapes=shapes)
    small = drop_units(traced, {"a": np.arange(8) < 4})
    assert nested_ops(small.graph) == nested_ops(model.graph)
    x = {"x": -np.abs(RNG.normal(size=(7, 4))).astype(np.float32)}
    assert relative_error(run(small, x), run(model, x)) == 0
    with pytest.raises(Exception, match="Reshape"):
        run(small, {"x": x["x"][:3]})


def test_a_branch_not_taken_is_not_run() -> None:
    """What fails there fails in no file that is written, only where it is taken."""
    no = body(OTHER.replace("e = MatMul(q, ub)", "k = MatMul(q, ub)\n e = Reshape(k, target)"), ua=(6, 5), ub=(5, 6))
    no.initializer.append(numpy_helper.from_array(np.array([2, 6]), "target"))
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), no)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    traced = trace(model)
    assert [g.name for g in traced.groups] == ["h", "a", "t", "p"]
    small = drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
    small.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    run(small, {"x": np.ones((3, 4), np.float32)})
    with pytest.raises(Exception, match="Reshape"):
        run(small, {"x": -np.ones((3, 4), np.float32)})


def test_random_numbers_in_a_branch_are_drawn_only_where_it_is_taken() -> None:
    no = body("() => (float[N,6] e) {\n r = RandomNormalLike(h)\n e = Mul(h, r)\n}")
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), no)
    assert [g.name for g in trace(model).groups] == ["a"]
    assert any("its else_branch draws random numbers" in f.reason for f in trace(model).frozen)
    check_exact(model, data=both_ways()[0])


def test_with_samples_only_what_they_take_is_cut() -> None:
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(OTHER, ua=(6, 5), ub=(5, 6)))
    yes, no = both_ways()
    assert [g.name for g in trace(model, samples=[yes.inputs]).groups] == ["a"]
    assert [g.name for g in trace(model, samples=[no.inputs]).groups] == ["p"]
    assert [g.name for g in trace(model, samples=[yes.inputs, no.inputs]).groups] == ["h", "a", "t", "p"]


def test_rounds_look_at_what_the_samples_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut model was traced by random inputs, which take bodies that no sample takes."""
    seen: list[list[str]] = []

    def curves(traced: Traced, *arguments: Any, **more: Any) -> dict[str, FloatArray]:
        seen.append([g.name for g in traced.groups])
        return loss_curves(traced, *arguments, **more)

    monkeypatch.setattr(cutter, "loss_curves", curves)
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(OTHER, ua=(6, 5), ub=(5, 6)))
    x = np.abs(RNG.normal(size=(40, 4))).astype(np.float32)
    onnxshap.prune(model, x, keep_macs=0.8, method="l1", multiple_of=1, allocation="iterative")
    assert seen == [["a"], ["a"]]


def test_without_data_it_is_told_which_bodies_random_inputs_leave_whole() -> None:
    found = onnxshap.prune(rated(), keep_units=0.5, method="random", repair="none")
    assert len(found.traced.groups) < len(trace(rated()).groups)
    assert any("random inputs decide: the If that gives 'c': its" in note for note in found.notes)


RATED = """(float[N,4] x, float[2,N,6] state, int64 rate) => (float[N,3] y, float[2,N,6] next) {
    yes = Greater(rate, ten)
    h = MatMul(x, w)
    k = Add(h, state)
    s = Relu(c)
    y = MatMul(s, v)
    next = Neg(k)
}"""


def rated() -> ModelProto:
    model = net(RATED, w=(4, 6), v=(6, 3), ten=np.array(10))
    yes = body(WIDE, wa=(6, 8), wb=(8, 6))
    choose(model, 2, "yes", "c", yes, body(OTHER, ua=(6, 5), ub=(5, 6)))
    return model


@pytest.mark.parametrize("rates", [np.array(16), np.array(8), np.resize([8, 16], 24)])
def test_a_setting_without_a_batch_and_a_state_with_its_batch_inside(rates: Any) -> None:
    """Images are run one at a time, each with its own setting; only the branches that they take are cut."""
    x, state = RNG.normal(size=(24, 4)), RNG.normal(size=(24, 2, 6))
    data = {"x": x.astype(np.float32), "state": state.astype(np.float32), "rate": rates}
    result = onnxshap.prune(rated(), data, keep_units=0.5, samples=4)
    assert [g.name for g in result.traced.groups] == [
        *(["a"] if 16 in rates else []),
        *(["t"] if rates.size > 1 else []),
        *(["p"] if 8 in rates else []),
    ]
    assert nested_ops(drop_units(result.traced, result.keep).graph) == nested_ops(rated().graph)
    assert result.verified.rel_err < 1e-5
    values = onnxshap.score(result.traced, data, samples=4).values["p" if 8 in rates else "a"]
    assert (values.phi != 0).any()


def test_what_a_branch_gives_where_it_is_not_taken_is_left_nowhere() -> None:
    """The logarithm of what is negative: no mean of it gets into the file."""
    no = OTHER.replace("q = Tanh(p)", "n = Neg(total)\n l = Log(n)\n i = Tanh(p)\n q = Add(i, l)")
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(no, ua=(6, 5), ub=(5, 6)))
    traced = trace(model)
    assert "p" in [g.name for g in traced.groups]
    positive, negative = both_ways((24, 4))
    means = site_means(traced, positive)
    assert all(np.isfinite(values).all() for values in means.values())
    small = drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}, means)
    assert np.isfinite(run(small, dict(negative.inputs))[0]).all()


def test_the_images_of_a_batch_are_run_alone_where_they_decide() -> None:
    model = on_sum(body(WIDE, wa=(6, 8), wb=(8, 6)), body(OTHER, ua=(6, 5), ub=(5, 6)))
    x = RNG.normal(size=(24, 4)).astype(np.float32)
    result = onnxshap.prune(model, x, keep_units=0.5, samples=4)
    assert [g.name for g in result.traced.groups] == ["h", "a", "t", "p"]
    alone = [run(model, {"x": x[k : k + 1]})[0] for k in range(24)]
    assert relative_error(run_all(result.traced, model, Dataset({"x": x})), [np.concatenate(alone)]) == 0


def test_known_kinds_of_types_go_through() -> None:
    """A sequence inside the graph has no shape; the model is traced all the same."""
    text = """(float[N,4] x, int64 place) => (float[N,3] y) {
        h = MatMul(x, w)
        r = Relu(h)
        parts = SequenceConstruct(r, r)
        one = SequenceAt(parts, place)
        y = MatMul(one, v)
    }"""
    model = net(text, w=(4, 6), v=(6, 3))
    traced = trace(model)
    assert not traced.groups
    assert "parts" not in traced.shaped.shapes
    assert traced.shaped.kinds["one"] == TensorProto.FLOAT


def test_a_branch_that_is_known_keeps_what_it_stores_sparsely() -> None:
    model = net(
        """(float[N,4] x) => (float[N,4] y) {
            h = Gemm<transB=1>(x, w0)
            r = Relu(h)
            z = MatMul(r, w1)
            y = If (always) <then_branch = t () => (a) { a = Add(z, s) }, else_branch = e () => (b) { b = Neg(z) }>
        }""",
        w0=(8, 4), w1=(8, 4), always=np.array(True),
    )  # fmt: skip
    (then,) = [a.g for n in model.graph.node for a in n.attribute if a.name == "then_branch"]
    stored = onnx.SparseTensorProto(dims=[4])
    stored.values.CopyFrom(numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "s"))
    stored.indices.CopyFrom(numpy_helper.from_array(np.array([0, 2])))
    then.sparse_initializer.append(stored)
    result = onnxshap.prune(model, {"x": np.ones((32, 4), np.float32)}, keep_units=0.5, method="l1", repair="none")
    assert result.verified.rel_err < 1e-6


def test_bytes_do_not_hang_on_hashes(tmp_path: Path) -> None:
    """Names are kept in order, not in sets: of two weights that a body reads, the first is stored first."""
    model = net(
        """(float[N,6] x) => (float[N,4] y) {
            n0 = ReduceL2<axes=[1]>(v0)
            w0 = Div(v0, n0)
            n1 = ReduceL2<axes=[1]>(v1)
            w1 = Div(v1, n1)
            m = ReduceMean<keepdims=0>(x)
            some = Greater(m, low)
            y = If (some) <then_branch = t () => (a) { h = MatMul(x, w0) r = Relu(h) a = MatMul(r, w1) },
                           else_branch = e () => (b) { b = MatMul(x, w2) }>
        }""",
        v0=(6, 8), v1=(8, 4), w2=(6, 4), low=-9.0,
    )  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    found = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-m", "onnxshap", "prune", "m.onnx", "--method", "l1", "--keep-units", "0.5"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
        found.add((tmp_path / "m.pruned.onnx").read_bytes())
    assert len(found) == 1
