"""What `inspect` calls the units of a group, and what it says of the axes that stay."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from onnxshap.report.kinds import kinds_of
from onnxshap.tracing import Traced, trace
from tests.exactness import net


def kinds(traced: Traced) -> dict[str, str]:
    found = kinds_of(traced.shaped, traced.labels, traced.groups)
    return {g.name: kind for g, kind in zip(traced.groups, found, strict=True)}


def test_heads_their_sizes_and_hidden_units() -> None:
    text = """(float[N,4,8] x) => (float[N,4,8] y) {
        [query] q = MatMul(x, wq)
        [key] k = MatMul(x, wk)
        [value] v = MatMul(x, wv)
        qs = Reshape(q, split)
        ks = Reshape(k, split)
        vs = Reshape(v, split)
        qt = Transpose<perm=[0,2,1,3]>(qs)
        kt = Transpose<perm=[0,2,3,1]>(ks)
        vt = Transpose<perm=[0,2,1,3]>(vs)
        s = MatMul(qt, kt)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, vt)
        ot = Transpose<perm=[0,2,1,3]>(o)
        m = Reshape(ot, merged)
        [out] a = MatMul(m, wo)
        [up] h = MatMul(a, w1)
        r = Relu(h)
        [down] y = MatMul(r, w2)
    }"""
    model = net(
        text, wq=(8, 12), wk=(8, 12), wv=(8, 12), wo=(12, 8), w1=(8, 16), w2=(16, 8),
        split=np.array([0, 4, 3, 4]), merged=np.array([0, 4, 12]),
    )  # fmt: skip
    found = kinds(trace(model))
    assert found == {"query": "head", "query#2": "head-dim", "value": "head-dim", "out": "hidden", "up": "hidden"}


def test_filters_are_channels_and_what_only_a_gemm_makes_is_hidden() -> None:
    text = """(float[N,3,4,4] x) => (float[N,2] y) {
        [conv] a = Conv(x, w)
        p = GlobalAveragePool(a)
        f = Flatten(p)
        [up] h = Gemm(f, v)
        r = Relu(h)
        [down] y = Gemm(r, u)
    }"""
    traced = trace(net(text, w=(5, 3, 1, 1), v=(5, 7), u=(7, 2)))
    assert kinds(traced) == {"conv": "channel", "up": "hidden"}
    assert [asdict(f) for f in traced.frozen] == [
        {"tensor": "y", "axis": 1, "reason": "it is a model output", "node": "down", "op": "Gemm"}
    ]
