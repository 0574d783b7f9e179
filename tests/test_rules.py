"""Every op family in a small net: what can be cut, what stays and why, and that a cut is exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnxshap.backend import OrtBackend
from onnxshap.errors import ModelError
from onnxshap.rewrite import drop_units
from onnxshap.rules import RULES
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.cases import CASES, Case
from tests.cases.linear import BLOCKED
from tests.exactness import check_exact, codes, net


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_case(one: Case) -> None:
    if one.name == BLOCKED and not _runs(one.model):
        pytest.skip("onnxruntime has no layout of its own for this processor")
    traced = trace(one.model)
    assert [len(g) for g in traced.groups] == list(one.sizes), traced.frozen
    reasons = [f.reason for f in traced.frozen]
    for part in one.frozen:
        assert any(part in reason for reason in reasons), reasons
    for seed, share in enumerate((0.5, 0.2)):
        found = check_exact(one.model, share, seed, tolerance=one.tolerance)
        assert found.dropped > 0 or not one.sizes
        assert not one.sizes or (found.rows is not None) == one.rows


def _runs(model: onnx.ModelProto) -> bool:
    try:
        OrtBackend().session(model)
    except ModelError:
        return False
    return True


def _types() -> Iterator[str]:
    for one in CASES:
        yield from (f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in one.model.graph.node)


def test_every_rule_has_a_case() -> None:
    missing = sorted(set(RULES) - set(_types()))
    assert not missing, f"add a case to tests/cases for {missing}"


def test_names_of_cases_are_unique() -> None:
    names = [c.name for c in CASES]
    assert len(names) == len(set(names))


def test_what_weights_are_mixed_of_is_counted_once() -> None:
    model = net(
        """(float[N,6] x) => (float[N,3] y) {
        l = ReduceL2<axes=[0]>(v)
        w = Div(v, l)
        a = MatMul(x, w)
        y = MatMul(a, w1)
    }""",
        opset=13,
        v=(6, 8),
        w1=(8, 3),
    )
    assert trace(model).cost.params() == 6 * 8 + 8 * 3


@pytest.mark.parametrize(
    "name",
    [
        "layer norms before and behind the blocks of a trunk",
        "layer norms taken apart",
        "group norm of one group as torch writes it, opset 9",
        "group norm of one group as torch writes it, opset 17",
        "lrn, opset 17",
        "root mean square with its scale in codes",
    ],
)
def test_what_was_cut_can_be_cut_again(name: str) -> None:
    model = next(one.model for one in CASES if one.name == name)
    for _ in range(2):
        traced = trace(model)
        keep = {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}
        small = drop_units(traced, keep)
        assert [len(g) for g in trace(small).groups] == [int(k.sum()) for k in keep.values()]
        check_exact(model)
        model = small


@pytest.mark.parametrize("coded", [False, True])
def test_positions_out_of_a_table_are_slices_of_it_also_where_a_shape_chooses_them(coded: bool) -> None:
    model = net(
        f"""(float[N,{5 if coded else "T"},6] x) => (float[N,T,3] y) {{
        e = MatMul(x, w0)
        s = Shape(x)
        t = Gather<axis=0>(s, one)
        u = Unsqueeze(t, zero)
        c = Slice(places, zero, u, one_axis)
        p = {"DequantizeLinear(c, scale, middle)" if coded else "Identity(c)"}
        a = Add(e, p)
        y = MatMul(a, w1)
    }}""",
        w0=(6, 8),
        places=codes((1, 40, 8), np.uint8) if coded else (1, 40, 8),
        scale=2.0**-7,
        middle=np.array(120, np.uint8),
        one=np.array(1),
        zero=[0],
        one_axis=[1],
        w1=(8, 3),
    )
    traced = trace(model, input_shapes={"x": (None, 5, None)})
    assert [len(g) for g in traced.groups] == [8]
    keep = {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}
    assert "places" in {s["initializer"] for s in removed_slices(traced, keep)}
    check_exact(model, input_shapes={"x": (None, 5, None)})
