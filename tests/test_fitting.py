"""Free axes of different sizes: found where the model refuses equal ones, by names or by what onnxruntime says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxshap.errors import ModelError
from onnxshap.rewrite import drop_units
from onnxshap.shapes.dims import Shape
from onnxshap.shapes.folding import Run
from onnxshap.shapes.search import fitting
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.exactness import TOLERANCE, check_exact, draw_plan, net
from tests.zeroing import relative_error, run, zeroed


def states(first: str, second: str) -> ModelProto:
    """Return a net of pictures and of two states, of a half and of a quarter of their sides."""
    return net(
        f"""(float[N,3,H,W] x, float[N,{first}] a, float[N,{second}] b) => (float[N,2,P,Q] y) {{
            c0 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w0)
            r0 = Relu(c0)
            j0 = Concat<axis=1>(r0, a)
            c1 = Conv<strides=[2,2], pads=[1,1,1,1]>(j0, w1)
            r1 = Relu(c1)
            j1 = Concat<axis=1>(r1, b)
            y = Conv<pads=[1,1,1,1]>(j1, w2)
        }}""",
        w0=(8, 3, 3, 3), w1=(6, 12, 3, 3), w2=(2, 11, 3, 3),
    )  # fmt: skip


STATES = {
    "named each": ("4,HA,WA", "5,HB,WB"),
    "named as the picture": ("4,H,W", "5,H,W"),
    "nameless": ("4,?,?", "5,?,?"),
    "of channels that are free, too": ("C,H,W", "C,H,W"),
}


def test_an_input_that_may_be_stretched_is_taken_as_large_as_what_it_meets() -> None:
    """Of one channel it would run too, and the channels that it is stretched over would be cut: others did not fit."""
    model = net(
        """(float[N,3,H,W] x, float[N,C,P,Q] s) => (float[N,4,?,?] y) {
            a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w0)
            r = Relu(a)
            b = Mul(r, s)
            y = Conv(b, w1)
        }""",
        w0=(8, 3, 3, 3), w1=(4, 8, 1, 1),
    )  # fmt: skip
    traced = trace(model)
    assert traced.shaped.inputs == {"x": (2, 3, 64, 64), "s": (2, 8, 32, 32)}
    assert not traced.groups


@pytest.mark.parametrize("called", STATES)
def test_states_are_found_that_have_other_sides_than_the_picture(called: str) -> None:
    model = states(*STATES[called])
    traced = trace(model)
    assert traced.shaped.inputs == {"x": (2, 3, 64, 64), "a": (2, 4, 32, 32), "b": (2, 5, 16, 16)}
    assert [len(g) for g in traced.groups] == [8, 6]
    assert {("x", 2), ("x", 3), ("a", 2), ("a", 3), ("b", 2), ("b", 3)} <= traced.shaped.varying
    check_exact(model)
    plan = draw_plan(traced, 0.5, np.random.default_rng(0))
    small, removed = drop_units(traced, plan), zeroed(model, removed_slices(traced, plan))
    rng = np.random.default_rng(1)
    for height, width in ((32, 96), (33, 47), (65, 18)):
        sides = [(-(-height // k), -(-width // k)) for k in (2, 4)]
        feeds = {n: rng.normal(size=(3, c, *size)).astype(np.float32)
                 for n, c, size in (("x", 3, (height, width)), ("a", 4, sides[0]), ("b", 5, sides[1]))}  # fmt: skip
        assert relative_error(run(small, feeds), run(removed, feeds)) <= TOLERANCE


def test_sizes_that_are_given_stay_and_the_others_fit_them() -> None:
    traced = trace(states("4,HA,WA", "5,HB,WB"), input_shapes={"x": (1, 3, 96, 40)})
    assert traced.shaped.inputs == {"x": (2, 3, 96, 40), "a": (2, 4, 48, 20), "b": (2, 5, 24, 10)}


def cached(total: str) -> ModelProto:
    """Return a net that adds a mask to what it keeps of steps before and of those of now, joined."""
    model = net(
        """(float[N,now,4] x, float[N,past,4] kept, float[N,M] mask) => (float[N,T,2] y) {
            h = MatMul(x, w0)
            k = MatMul(h, w1)
            j = Concat<axis=1>(kept, k)
            m = Unsqueeze(mask, last)
            s = Add(j, m)
            y = MatMul(s, w2)
        }""",
        w0=(4, 6), w1=(6, 4), w2=(4, 2), last=[2],
    )  # fmt: skip
    model.graph.input[2].type.tensor_type.shape.dim[1].dim_param = total
    return model


@pytest.mark.parametrize("total", ["past + now", "now+past", "all", "past + 1"])
def test_a_mask_is_as_long_as_what_was_and_what_is(total: str) -> None:
    model = cached(total)
    traced = trace(model)
    assert traced.shaped.inputs == {"x": (2, 64, 4), "kept": (2, 64, 4), "mask": (2, 128)}
    assert {("x", 1), ("mask", 1)} <= traced.shaped.varying
    check_exact(model)


def test_names_that_say_sums_are_believed_before_anything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("first", "trials"):
        monkeypatch.setattr(f"onnxshap.shapes.{module}.fitting", lambda *_: pytest.fail("nothing to look for"))
    for times in (1, 3):
        sizes = {"x": (None, 5 * times, 4), "kept": (None, 7, 4)}
        assert trace(cached("past + now"), input_shapes=sizes).shaped.inputs["mask"] == (2, 7 + 5 * times)


def test_lengths_that_the_exporter_wrote_down_are_found_each() -> None:
    model = net(
        """(float[N,source,4] x, float[N,target,4] z) => (float[N,9,13,1] y) {
            a = Reshape(x, long)
            b = Reshape(z, short)
            h = MatMul(a, w0)
            k = MatMul(b, w1)
            t = Transpose<perm=[0,2,1]>(k)
            y4 = MatMul(h, t)
            y = Unsqueeze(y4, last)
        }""",
        long=[-1, 9, 4], short=[-1, 13, 4], w0=(4, 6), w1=(4, 6), last=[3],
    )  # fmt: skip
    assert trace(model).shaped.inputs == {"x": (2, 9, 4), "z": (2, 13, 4)}
    check_exact(model)


def test_a_size_that_is_given_for_one_input_is_that_of_its_name_in_all() -> None:
    """So `--input-shape ids=1,20` is enough for a model whose mask is as long."""
    model = net("(float[N,L,4] x, float[N,L] m) => (float[N,L,4] y) {\n k = Unsqueeze(m, e)\n y = Add(x, k)\n}", e=[2])
    assert trace(model, input_shapes={"x": (None, 20, 4)}).shaped.inputs == {"x": (2, 20, 4), "m": (2, 20)}


def test_an_axis_called_as_steps_of_any_input_is_no_batch() -> None:
    """Masks between steps of the second input, beside a first one that has other steps."""
    model = net(
        """(float[source,batch,4] x, float[target,batch,4] z, float[target,target] mask) => (float[target,batch,4] y) {
            m = ReduceMean<axes=[0],keepdims=1>(x)
            t = Transpose<perm=[1,0,2]>(z)
            h = MatMul(t, w0)
            k = MatMul(h, w1)
            a = MatMul(mask, k)
            b = Transpose<perm=[1,0,2]>(a)
            y = Add(b, m)
        }""",
        w0=(4, 6), w1=(6, 4),
    )  # fmt: skip
    assert trace(model).shaped.batch_axes == {"x": 1, "z": 1, "mask": None}


class Wants:
    """A model of nodes that each want something of the sizes, and say what does not fit."""

    def __init__(self, *nodes: Any) -> None:
        self.nodes, self.runs = nodes, 0

    def run(self, sizes: Mapping[str, Shape]) -> Run:
        self.runs += 1
        for place, (_, told) in enumerate(self.nodes):
            if said := told(**sizes):
                raise ModelError(f"{place} Status Message: {said}")
        return Run(dict(sizes), {}, {}, {})

    def refusing(self, error: Exception) -> int | None:
        return int(str(error).split()[0])

    def reaching(self, place: int) -> Sequence[str]:
        return str(self.nodes[place][0]).split()

    def met(self, place: int, sizes: Mapping[str, Shape]) -> Sequence[Shape]:
        return [sizes[name] for name in self.reaching(place)]


def differ(one: int, other: int) -> str:
    return "" if one == other else f"axis 0: {one} by {other}"


def test_the_search_goes_on_where_it_came_furthest_and_ends() -> None:
    half = ("a b", lambda a, b: differ(a[0], 2 * b[0]))
    third = ("b", lambda a, b: differ(b[0], 12))
    sets = [(("b", 0),), (("a", 0),)]
    found = fitting(Wants(half, third), {"a": (64,), "b": (64,)}, sets, 100)
    assert found is not None
    assert found.inputs == {"a": (24,), "b": (12,)}
    nothing = Wants(half, third, ("a", lambda a, b: "never"))
    assert fitting(nothing, {"a": (64,), "b": (64,)}, sets, 30) is None
    assert nothing.runs <= 30
    odd = Wants(("a", lambda a, b: differ(a[0] % 2, 2)))
    assert fitting(odd, {"a": (3,), "b": (3,)}, [], 100) is None
    assert odd.runs == 1


def test_axes_that_change_nothing_are_given_up() -> None:
    """Most of what a message may mean is not tried, where what the node reads is the same or it is not reached."""
    never = Wants(("", lambda a, b, c: "4 by 5, 6 by 7, 8 by 9"))
    never.met = lambda place, sizes: []  # type: ignore[method-assign]
    never.reaching = lambda place: ["a", "b"]  # type: ignore[method-assign]
    assert fitting(never, {"a": (60,), "b": (60,), "c": (60,)}, [(("c", 0),), (("b", 0),), (("a", 0),)], 100) is None
    assert never.runs <= 1 + 2 * 2


def test_what_a_node_reads_tells_where_it_says_no_sizes() -> None:
    """Each input that goes in as it is becomes what it meets: one run for every node that refuses."""
    both = [
        (f"x s{k}", lambda k=k, **s: "" if s[f"s{k}"][1:] == (8 * k, 32 // k) else "it does not fit") for k in (1, 2)
    ]
    wants = Wants(*both)
    wants.met = lambda place, sizes: [sizes[f"s{place + 1}"], (2, 8 * (place + 1), 32 // (place + 1))]  # type: ignore[method-assign]
    sets = [((f"s{k}", axis),) for k in (2, 1) for axis in (2, 1)]
    found = fitting(wants, {"x": (2, 3, 64), "s1": (2, 64, 64), "s2": (2, 64, 64)}, sets, 100)
    assert found is not None
    assert found.inputs == {"x": (2, 3, 64), "s1": (2, 8, 32), "s2": (2, 16, 16)}
    assert wants.runs == 3
