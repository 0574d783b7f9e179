"""Channel permutations: the same function for every model, and which units may change places at all."""

from __future__ import annotations

import numpy as np
import onnx.printer
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import ModelProto

import onnxshap
from onnxshap.graph import finish
from onnxshap.graph.writing import put_in
from onnxshap.pivoting.permuting import nobody_moved, order, orders, peers, permuted
from tests.drawing import nets
from tests.exactness import net, random_feeds
from tests.zeroing import relative_error, run

TOLERANCE = 3e-5
_SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
CHAIN = """(float[N,3,6,6] x) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, wa, ba)
    n = BatchNormalization(a, scale, shift, mean, var)
    r = Relu(n)
    b = Conv<pads=[1,1,1,1]>(r, wb)
    s = Add(b, r)
    d = Conv<group=8, pads=[1,1,1,1]>(s, wd)
    f = Flatten(d)
    y = MatMul(f, wy)
}"""
SPLIT = """(float[N,3,4,4] x) => (float[N,8,4,4] y) {
    a = Conv(x, wa)
    p, q = Split<axis=1>(a, parts)
    c = Concat<axis=1>(q, p, p)
    y = Conv(c, wc)
}"""
SHUFFLED = """(float[N,3,4,4] x) => (float[N,4,4,4] y) {
    a = Conv(x, wa)
    t = Reshape(a, apart)
    u = Transpose<perm=[0,2,1,3,4]>(t)
    v = Reshape(u, together)
    b = Conv<group=2>(v, wb)
    y = Conv(b, wy)
}"""
SPACE = """(float[N,3,4,4] x) => (float[N,4,8,8] y) {
    a = Conv(x, wa)
    n = GroupNormalization<num_groups=4>(a, scale, shift)
    d = DepthToSpace<blocksize=2, mode="CRD">(n)
    y = Conv(d, wy)
}"""
CHOSEN = """(float[N,3,4,4] x) => (float[N,4,4,4] y) {
    a = Conv(x, wa)
    b = Concat<axis=1>(a, a)
    g = Gather<axis=1>(b, index)
    h = Concat<axis=1>(g, b)
    y = Conv(h, wy)
}"""


def moved(model: ModelProto, seed: int | None = None) -> tuple[float, list[int], int]:
    """Return the error of a model whose peers stand in others' places, how many they are, and constants changed."""
    traced = onnxshap.trace(model)
    sets, placed, rng = peers(traced.labels), nobody_moved(traced.labels), np.random.default_rng(seed or 0)
    for some in sets:
        placed[some] = np.roll(some, 1) if seed is None else rng.permutation(some)
    graph = traced.shaped.graph
    made = finish(permuted(graph.model, orders(traced.labels, placed)), graph)
    feeds = dict(random_feeds(model, traced.shaped.inputs, seed or 0).inputs)
    old = {t.name: t.SerializeToString() for t in finish(graph.model, graph).graph.initializer}
    changed = sum(old.get(t.name) != t.SerializeToString() for t in made.graph.initializer)
    wanted = run(model, feeds)
    return relative_error(run(put_in(made), feeds), wanted), [len(some) for some in sets], changed


@settings(max_examples=100, deadline=None, suppress_health_check=_SLOW_DRAWS)
@given(model=nets(), seed=st.integers(0, 9))
def test_random_nets_compute_the_same_in_any_order(model: ModelProto, seed: int) -> None:
    note(onnx.printer.to_text(model))
    assert moved(model, seed)[0] <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "sizes", "changed"),
    [
        # a residual sum, BatchNormalization, depthwise and Flatten: one set, on every constant
        (net(CHAIN, wa=(8, 3, 3, 3), ba=(8,), wb=(8, 8, 3, 3), scale=(8,), shift=(8,), mean=(8,), var=(8,),
             wd=(8, 1, 3, 3), wy=(288, 5)), [8], 9),
        # parts of a Split stay parts
        (net(SPLIT, wa=(8, 3, 1, 1), parts=[5, 3], wc=(8, 13, 1, 1)), [5, 3], 2),
        # through a shuffle, and as the groups of the Conv behind it allow: alike in each
        (net(SHUFFLED, wa=(8, 3, 1, 1), apart=[0, 2, 4, 4, 4], together=[0, 8, 4, 4], wb=(6, 4, 1, 1),
             wy=(4, 6, 1, 1)), [3, 4], 3),
        # whole groups of channels, that are an output's, in blocks
        (net(SPACE, opset=21, wa=(16, 3, 1, 1), scale=(16,), shift=(16,), wy=(4, 4, 1, 1)), [4], 4),
        # of two copies, the second of one channel comes first behind a Gather, and not that of another
        (net(CHOSEN, wa=(4, 3, 1, 1), index=[5, 0, 1, 4, 2, 3], wy=(4, 14, 1, 1)), [2], 2),
    ],
    ids=["chain", "split", "shuffled", "space", "chosen"],
)  # fmt: skip
def test_units_that_are_alike_change_places(model: ModelProto, sizes: list[int], changed: int) -> None:
    error, found, constants = moved(model)
    assert error <= 1e-5
    assert sorted(found) == sorted(sizes)
    assert constants == changed


def test_an_order_follows_every_copy_of_a_class() -> None:
    placed = np.array([2, 1, 0, 3])
    assert order(np.array([0, 3, 2, 0, 2]), placed).tolist() == [2, 1, 0, 4, 3]
    assert order(np.array([1, 3]), placed).tolist() == [0, 1]
