"""Slices of constants that a file computes: named where zeroing them is the cut, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.exactness import check_exact, net
from tests.test_loops import looped

LAYER = "(float[N,6] x) => (float[N,5] y) {{ h = MatMul(x, a) s = Sigmoid(h) {} }}"


def layer(nodes: str, **stored: Any) -> ModelProto:
    """A net whose 8 channels `s` are not zero where the weights `a` are."""
    return net(LAYER.format(nodes), a=(6, 8), **stored)


def split() -> ModelProto:
    """A table whose halves are positions added to `h` and the queries of an attention that takes no input."""
    text = """(float[N,4,6] x) => (float[N,4,5] y) {
        place, query = Split<axis = 1>(table)
        h = MatMul(x, a)
        s = Add(h, place)
        both = Add(place, query)
        mixed = MatMul(both, b)
        gate = Sigmoid(mixed)
        u = MatMul(s, c)
        y = Mul(u, gate)
    }"""
    return net(text, table=(4, 16), a=(6, 8), b=(8, 5), c=(8, 5))


def named(model: ModelProto) -> list[tuple[str, str]]:
    """Return the names of what is zeroed and of the nodes that read it, where half of the units are gone."""
    traced = trace(model)
    keep = {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups}
    return [(one["initializer"], one["node"]) for one in removed_slices(traced, keep)]


MADE = {
    "exponential": layer("e = Exp(w) y = MatMul(s, e)", w=(8, 5)),
    "power": layer("e = Pow(w, two) y = MatMul(s, e)", w=(8, 5), two=[2.0]),
    "logarithm": layer("e = Log(varw) y = MatMul(s, e)", varw=(8, 5)),
    "reciprocal": layer("e = Reciprocal(varw) y = MatMul(s, e)", varw=(8, 5)),
    "moved": layer("f = Exp(w) e = Reshape(f, shape) y = MatMul(s, e)", w=(2, 4, 5), shape=np.array([8, 5])),
    "quotient": layer("m = Neg(varw) e = Div(w, m) y = MatMul(s, e)", w=(8, 5), varw=(8, 5)),
    "mixture too": layer("e = Neg(w) m = MatMul(g, e) r = MatMul(s, e) y = Add(r, m)", w=(8, 5), g=(1, 8)),
    "divisor too": layer("e = Neg(varw) m = Mul(s, e) d = Div(m, e) k = Mul(d, e) y = MatMul(k, b)",
                         varw=(8,), b=(8, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_no_zeros_make_zero_is_zeroed_where_it_is_read(name: str) -> None:
    for seed in range(3):
        found = check_exact(MADE[name], seed=seed)
        assert found.groups, name
    zeroed = {initializer for initializer, _ in named(MADE[name])}
    assert "e" in zeroed
    assert zeroed.isdisjoint({"w", "varw"})


def test_what_zeros_make_zero_goes_by_its_name_in_the_file() -> None:
    model = layer("f = Neg(w) e = Transpose(f) y = MatMul(s, e)", w=(5, 8))
    assert check_exact(model).groups == 1
    assert named(model) == [("a", "h"), ("w", "f")]


def test_of_a_table_that_is_mixed_too_what_is_cut_is_named() -> None:
    """The branch that is computed from constants alone keeps all of the table, the places lose their channels."""
    model = split()
    for seed in range(3):
        assert check_exact(model, seed=seed).groups == 1
    assert named(model) == [("a", "h"), ("place", "s"), ("c", "u")]


def test_of_a_table_that_is_stretched_and_mixed_too_what_is_cut_is_named() -> None:
    """The stretched form is computed by arithmetic of sizes that the file does out of constants alone."""
    model = net(
        """(float[2,4,6] x) => (float[2,4,5] y) {
            sizes = Concat<axis = 0>(batch, rest)
            place = Expand(table, sizes)
            h = MatMul(x, a)
            s = Add(h, place)
            mixed = MatMul(place, b)
            gate = Softmax(mixed)
            u = MatMul(s, c)
            y = Mul(u, gate)
        }""",
        table=(4, 8), a=(6, 8), b=(8, 5), c=(8, 5), batch=np.array([2]), rest=np.array([4, 8]),
    )  # fmt: skip
    for seed in range(3):
        assert check_exact(model, seed=seed).groups == 1
    assert named(model) == [("a", "h"), ("place", "s"), ("c", "u")]


def test_what_a_body_computes_is_zeroed_there() -> None:
    model = looped("h = MatMul(v, a) s = Sigmoid(h) e = Exp(w) vo = MatMul(s, e)", a=(4, 6), w=(6, 4))
    for seed in range(3):
        assert check_exact(model, seed=seed).groups == 1
    traced = trace(model)
    keep = {g.name: np.arange(len(g)) > 0 for g in traced.groups}
    last = {"initializer": "e", "node": "vo", "input": 1, "axis": 0, "indices": [0], "body": "c.body"}
    assert removed_slices(traced, keep)[-1] == last
