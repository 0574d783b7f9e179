"""What is a group: units without which something counts less."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxshap.graph import array, is_op
from onnxshap.graph.weights import Kept
from onnxshap.masking import masked_model
from onnxshap.rewrite import small_model
from onnxshap.rules import trace_graph
from onnxshap.tracing import trace
from tests.exactness import check_exact, net


def test_index_arithmetic_of_which_a_size_is_read_is_no_group() -> None:
    """The images are numbered, by a row for each of three places, as exporters write indices."""
    model = net(
        """(float[N,6] x) => (float[N,5] y) {
            h = MatMul(x, a)
            u = MatMul(h, b)
            n = Shape<end = 1>(h)
            count = Squeeze(n, nil)
            numbers = Range(zero, count, one)
            column = Reshape(numbers, tall)
            places = Add(column, three)
            rows = Shape<end = 1>(places)
            size = Concat<axis = 0>(rows, five)
            ones = ConstantOfShape<value = float[1] {1.0}>(size)
            y = Add(u, ones)
        }""",
        a=(6, 8), b=(8, 5), nil=[0], zero=np.array(0), one=np.array(1), tall=[-1, 1], three=[0, 1, 2], five=[5],
    )  # fmt: skip
    traced = trace(model)
    assert {g.name: len(g) for g in traced.groups} == {"h": 8}
    assert traced.labels.n_units == 11
    check_exact(model)


@pytest.mark.parametrize(("kind", "groups"), [(np.float32, {"t": 4}), (np.int64, {})])
def test_numbers_that_are_no_weights_make_no_group(kind: type, groups: dict[str, int]) -> None:
    model = net(
        """(float[N,6] x) => (float[N,1] y) {
            c = Cast<to = 1>(table)
            m = ReduceMax<axes = [1]>(x)
            t = Mul(m, c)
            y = ReduceSum(t, last)
        }""",
        table=np.arange(4).astype(kind), last=[1],
    )  # fmt: skip
    traced = trace(model)
    assert {g.name: len(g) for g in traced.groups} == groups
    check_exact(model)


def test_masks_of_many_groups_take_no_longer_each_than_those_of_few() -> None:
    layers = range(600)
    weights: dict[str, Any] = {f"w{k}": (32, 32) for k in layers}
    nodes = "".join(f"x{k + 1} = MatMul(x{k}, w{k})\n" for k in layers)
    traced = trace(net(f"(float[N,32] x0) => (float[N,32] y) {{ {nodes} y = Relu(x{len(layers)}) }}", **weights))
    assert len(traced.groups) == len(layers) - 1
    start = time.process_time()
    masked = masked_model(traced)
    assert time.process_time() - start < 2  # each looking through all groups would take several times that
    assert len(masked.graph.input) == len(layers)


def test_what_removed_channels_leave_is_worked_out_layer_by_layer() -> None:
    """Of all layers at once it would be twice the weights, in a cut and in the masked model that it is held against."""
    size, layers = 512, range(6)
    weights: dict[str, Any] = {f"w{k}": (size, size) for k in layers}
    nodes = "".join(f"m{k} = MatMul(x{k}, w{k}) x{k + 1} = Relu(m{k})\n" for k in layers)
    traced = trace(
        net(f"(float[N,{size}] x0) => (float[N,{size}] y) {{ {nodes} y = Relu(x{len(layers)}) }}", **weights)
    )
    means = {(s.node, s.input): np.ones(size) for s in traced.sites(traced.groups)}
    keep, kept = {g.name: np.arange(size) % 2 == 0 for g in traced.groups}, Kept()
    assert len(means) == 5

    def peak(make: Callable[[], ModelProto]) -> int:
        tracemalloc.start()
        made = make()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert made.ByteSize() < size**2  # large values are outside of it
        return found

    one = 8 * size**2
    assert peak(lambda: small_model(traced, keep, means)) < 3 * one
    # those of all layers, in float32, stay with the model
    assert peak(lambda: masked_model(traced, None, means, kept=kept)) < (3 + len(means) / 2) * one
    assert kept


def test_a_trace_takes_a_few_bytes_a_node_and_leaves_no_more_behind() -> None:
    """What tells whether tensors vanish held every unit of every tensor, in a circle that only the collector undoes."""
    blocks, wide = range(40), 128
    weights: dict[str, Any] = {f"w{n}{k}": (wide, 16) if n == "o" else (16, wide) for k in blocks for n in "qkvo"}
    nodes = "".join(
        f"q{k} = MatMul(x{k}, wq{k}) k{k} = MatMul(x{k}, wk{k}) v{k} = MatMul(x{k}, wv{k}) "
        f"t{k} = Transpose<perm=[0, 2, 1]>(k{k}) s{k} = MatMul(q{k}, t{k}) p{k} = Softmax<axis=-1>(s{k}) "
        f"m{k} = MatMul(p{k}, v{k}) x{k + 1} = MatMul(m{k}, wo{k})\n"
        for k in blocks
    )
    traced = trace(net(f"(float[N,4,16] x0) => (float[N,4,16] y) {{ {nodes} y = Relu(x{len(blocks)}) }}", **weights))
    assert len(traced.groups) == 3 * len(blocks) - 1
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        labels = trace_graph(traced.shaped)
        left, peak = (found / len(traced.shaped.graph.nodes) for found in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
        gc.enable()
    assert labels.n_units > wide * len(blocks)
    assert left < 3000  # it was 5,700
    assert peak < 6500  # it was 7,700


def test_equal_constants_that_a_cut_makes_are_stored_once() -> None:
    """The bounds between which a norm is taken over a trunk that was cut are those of every other norm of it."""
    traced = trace(Path(__file__).parent.parent / "models" / "fashion_vit.onnx")
    small = small_model(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
    made = [array(t) for t in small.graph.initializer if t.name not in traced.shaped.graph.initializers]
    assert made
    assert len({(a.dtype, a.shape, a.tobytes()) for a in made}) == len(made)


def test_a_mask_whose_units_lie_in_order_is_multiplied_by_no_matrix() -> None:
    """Hidden units of a transformer share their axis with nothing, but are written down as what might."""
    traced = trace(Path(__file__).parent.parent / "models" / "fashion_vit.onnx")
    masked = masked_model(traced)
    stored = {t.name: array(t) for t in masked.graph.initializer}
    matrices = [stored[n.input[1]] for n in masked.graph.node if is_op(n, "MatMul") and n.input[1] in stored]
    assert not any(np.array_equal(matrix, np.eye(*matrix.shape)) for matrix in matrices)
