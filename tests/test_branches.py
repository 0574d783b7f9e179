"""If nodes whose condition is known are gone before anything is traced; those that depend on the input stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxshap.graph import normalise
from onnxshap.rewrite import drop_units
from onnxshap.tracing import trace
from tests.exactness import check_exact, net
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
    assert ("If" not in ops(traced.shaped.graph.model)) == taken
    small = drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
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


def test_branches_that_depend_on_the_input_stay_whole_and_freeze_what_they_read() -> None:
    text = """(float[N,4] x) => (float[N,3] y) {
        total = ReduceSum<keepdims=0>(x)
        yes = Greater(total, zero)
        h = MatMul(x, w)
        s = Relu(c)
        y = MatMul(s, v)
    }"""
    model = net(text, w=(4, 6), v=(6, 3), zero=np.float32(0))
    choose(model, 3, "yes", "c", body(WIDE, wa=(6, 8), wb=(8, 6)), body(PLAIN))
    traced = trace(model)
    assert not traced.groups
    assert any("a branch of If reads it" in f.reason for f in traced.frozen)


def test_known_kinds_of_types_go_through() -> None:
    """A sequence inside the graph has no shape; the model is traced all the same."""
    text = """(float[N,4] x) => (float[N,3] y) {
        h = MatMul(x, w)
        r = Relu(h)
        parts = SequenceConstruct(r, r)
        one = SequenceAt(parts, place)
        y = MatMul(one, v)
    }"""
    model = net(text, w=(4, 6), v=(6, 3), place=np.array(1))
    traced = trace(model)
    assert not traced.groups
    assert "parts" not in traced.shaped.shapes
    assert traced.shaped.kinds["one"] == TensorProto.FLOAT
