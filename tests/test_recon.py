"""Reconstruction-greedy: downdates against fresh ridge solutions, and the order they give."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

import onnxshap
from onnxshap.backend import OrtBackend, Resident, Session
from onnxshap.calibrate import batches, free_batch
from onnxshap.core import FloatArray, IntArray
from onnxshap.data import random_data
from onnxshap.game import Setting
from onnxshap.graph import extract
from onnxshap.groups import Group
from onnxshap.methods import METHODS
from onnxshap.methods.elimination import BlockRegression, eliminate
from onnxshap.methods.recon import designs, layers_of
from onnxshap.opening import open_model
from onnxshap.payoffs import MSE
from onnxshap.shapes import input_specs
from onnxshap.taps import patches, taps
from tests import exactness
from tests.cases import CASES, Case
from tests.exactness import TOLERANCE

MODELS = Path(__file__).parent.parent / "models"


def left_over(gram: FloatArray, weights: FloatArray, gone: IntArray, ridge: float) -> float:
    """The best refit's squared error plus its ridge toward the present weights, by one fresh solution."""
    kept = np.setdiff1d(np.arange(len(gram)), gone)
    change = -weights.copy()
    system = gram[np.ix_(kept, kept)] + ridge * np.eye(len(kept))
    change[kept] = np.linalg.solve(system, gram[np.ix_(kept, gone)] @ weights[gone])
    return float((change * (gram @ change)).sum() + ridge * (change[kept] ** 2).sum())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), taps=st.integers(1, 3), shared=st.booleans())
def test_downdates_are_fresh_solutions(seed: int, taps: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    n, p = 5, 5 * taps
    x = rng.normal(size=(40, p)) @ rng.normal(size=(p, p))
    gram, weights, ridge = x.T @ x / 40, rng.normal(size=(p, 3)), 0.05
    columns = [np.arange(u * taps, (u + 1) * taps) for u in range(n)]
    if shared:
        columns[0] = np.append(columns[0], p - 1)  # a product: the last column goes with two units
    problem = BlockRegression(gram, weights, columns, ridge)
    gone = np.zeros(0, np.int64)
    reached = 0.0
    for unit in rng.permutation(n):
        prices = problem.price(np.arange(n))
        after = [left_over(gram, weights, np.union1d(gone, columns[u]).astype(np.int64), ridge) for u in range(n)]
        np.testing.assert_allclose(prices, np.array(after) - reached, rtol=1e-7, atol=1e-8)
        problem.remove(int(unit))
        gone = np.union1d(gone, columns[unit]).astype(np.int64)
        reached = after[unit]


def test_twins_stand_in_for_each_other_and_copies_go_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    x[:, 3] = x[:, 0]  # unit 3 gives what unit 0 gives
    weights = np.array([[1.0], [2.0], [3.0], [1.0]])
    problem = BlockRegression(x.T @ x / 200, weights, [np.array([u]) for u in range(4)], 1e-9)
    phi = eliminate([problem], np.zeros(4))
    first, *rest = np.argsort(phi)
    assert first in (0, 3) and phi[first] < 1e-6
    assert sorted(rest) == sorted({0, 1, 2, 3} - {int(first)})
    assert phi.max() == pytest.approx(float(((x @ weights) ** 2).mean()), rel=1e-6)


def test_what_a_unit_costs_elsewhere_counts() -> None:
    gram = np.eye(3)
    problem = BlockRegression(gram, np.array([[1.0], [2.0], [3.0]]), [np.array([u]) for u in range(3)], 0.0)
    assert eliminate([problem], np.array([20.0, 0, 0])).argsort().tolist() == [1, 2, 0]


def test_greedy_is_close_to_the_best_subset() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8))
    gram, weights = x.T @ x / 300, rng.normal(size=(8, 4))
    columns = [np.array([u]) for u in range(8)]
    phi = eliminate([BlockRegression(gram, weights, columns, 1e-6)], np.zeros(8))
    ranked = np.argsort(phi)
    best = min(left_over(gram, weights, np.array(c), 1e-6) for c in combinations(range(8), 4))
    assert phi[ranked[3]] == pytest.approx(left_over(gram, weights, ranked[:4], 1e-6), rel=1e-6)
    assert phi[ranked[3]] <= 2 * best


@pytest.mark.parametrize("name", ["fashion_vgg", "fashion_resdw"])
def test_recon_beats_random_under_least_squares(name: str) -> None:
    accuracy = {}
    for method in ("recon", "random"):
        result = onnxshap.prune(
            MODELS / f"{name}.onnx",
            MODELS / "fashion_calibration.npz",
            eval_data=MODELS / "fashion_test.npz",
            keep_macs=0.25,
            method=method,
            samples=128,
            multiple_of=1,  # what is compared is the choice of units, not how their number is rounded
        )
        accuracy[method] = result.after.score["accuracy"]
    assert accuracy["recon"] > accuracy["random"]
    assert result.scores.evals == 0


@pytest.mark.parametrize("level", [1.0, 1e8])
def test_inputs_that_hardly_vary_are_ranked_by_how_they_do(level: float) -> None:
    levels = (level * np.random.default_rng(1).uniform(0.5, 1, 24)).astype(np.float32)
    model = exactness.net(
        """(float[N,6] x) => (float[N,3] y) {
            h = Mul(x, small) g = Gemm<transB=1>(h, w0, level) y = Gemm(g, w1)
        }""",
        w0=(24, 6), w1=(24, 3), small=np.float32(1e-3), level=levels,
    )  # fmt: skip
    traced = onnxshap.trace(model)
    data = onnxshap.Dataset({"x": np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32)})
    (group,) = traced.groups
    phi = METHODS["recon"](Setting(free_batch(traced), data, MSE(), []), group, np.random.default_rng(0)).phi
    assert np.isfinite(phi).all() and (phi >= 0).all()
    if level == 1:
        assert np.ptp(phi) > 0.1


def test_what_a_constant_chooses_of_is_one_of_the_tensors_on_a_route() -> None:
    """Its place was taken by the constant, which the op reads first: the order of a cut ended in a traceback."""
    model = next(one.model for one in CASES if one.name == "softmax over what a constant chooses")
    data = onnxshap.Dataset({"x": np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)})
    assert onnxshap.prune(model, data, keep_units=0.5, method="recon").verified.rel_err < TOLERANCE


def test_units_that_a_sum_does_not_hold_are_ranked_too() -> None:
    """Of a computed sum of half of them (a flow's log-determinant) the others have no column: BLAS refused that."""
    model = exactness.net(
        """(float[N,6] x) => (float[N,1] s, float[N,3] y) {
            h = Gemm<transB=1>(x, w0) g = Tanh(h) a, b = Split<axis=1>(g)
            q = Mul(a, a) s = ReduceSum(q, axis) y = Gemm(g, w1)
        }""",
        w0=(8, 6), w1=(8, 3), axis=[1],
    )  # fmt: skip
    traced, data = open_model(model, {"x": np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)})
    (group,) = traced.groups
    phi = METHODS["recon"](Setting(free_batch(traced), data, MSE(), []), group, np.random.default_rng(0)).phi
    assert len(phi) == 8 and (phi > 0).all()
    assert phi[:4].min() > phi[4:].max()  # their squares are lost with them


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_regressions_are_what_the_layers_compute(one: Case) -> None:
    traced = onnxshap.trace(one.model)
    if not traced.groups or one.tolerance != TOLERANCE or not one.rows:  # half precision; no images to batch
        return
    free = free_batch(traced)
    specs = input_specs(traced.shaped.graph.model)
    fixed = {n: replace(s, shape=traced.shaped.inputs[n]) for n, s in specs.items()}
    data = random_data(fixed, 4 * traced.batch, 0)
    setting = Setting(free, data, MSE(), [])
    for group in traced.groups:
        values = METHODS["recon"](setting, group, np.random.default_rng(0))
        assert values.phi.shape == (len(group),) and np.isfinite(values.phi).all()
        for layer in layers_of(setting, group):
            if not layer.refitted or layer.kernels is None or layer.states:
                continue
            node = free.shaped.graph.nodes[layer.site.node]
            blocks, ins, taps, outs = layer.kernels.shape
            design = np.concatenate(list(designs(setting, layer, 10**6, np.random.default_rng(0)))).astype(np.float64)
            split = design.reshape(len(design), blocks, ins * taps)
            made = np.einsum("rbp,bpm->rbm", split, layer.kernels.reshape(blocks, ins * taps, outs))
            weight = layer.site.weight
            assert weight is not None
            kinds = {i.name: i.type.tensor_type.elem_type for i in free.shaped.graph.model.graph.input}
            part = extract(free.shaped.graph.model, kinds, {node.output[0]: free.shaped.kinds[node.output[0]]})
            place = free.rows(node.output[0])
            found = [place.take(free.backend.session(part).run(f)[0], range(n)) for n, f in batches(free, data, 100)]
            y = np.concatenate(found).astype(np.float64)
            spread = y.var(axis=tuple(a for a in range(y.ndim) if a != weight.out))
            first = made[..., : layer.starts[1]].reshape(len(made), -1)
            np.testing.assert_allclose(first.var(axis=0), spread, rtol=1e-4, atol=1e-8)


@dataclass(frozen=True)
class _Counting:
    """onnxruntime, which notes how many Convs it was given at a time."""

    memory: int
    convs: list[int] = field(default_factory=list)
    inner: OrtBackend = field(default_factory=lambda: OrtBackend("cpu", 1))
    on_device = False

    def session(self, model: ModelProto, *, optimize: bool = True, frugal: bool = False) -> Session:
        self.convs.append(sum(node.op_type == "Conv" for node in model.graph.node))
        return self.inner.session(model, optimize=optimize, frugal=frugal)

    def resident(self, model: ModelProto) -> Resident:
        return self.inner.resident(model)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_groups_in_order_are_one_way_through_the_model(memory: int) -> None:
    """And give to the last bit what each of them gives alone, though the runtime fuses Convs with the sums behind."""
    blocks = 5
    lines = [
        f"a{k} = Conv(r{k - 1}, v{k}) q{k} = Relu(a{k}) b{k} = Conv(q{k}, w{k}) s{k} = Add(b{k}, r{k - 1}) "
        f"r{k} = Relu(s{k})"
        for k in range(1, blocks + 1)
    ]
    weights: dict[str, Any] = {f"{name}{k}": (6, 6, 1, 1) for k in range(1, blocks + 1) for name in "vw"}
    model = exactness.net(
        "(float[N,3,4,4] x) => (float[N,6,4,4] y) { c = Conv(x, w0) r0 = Relu(c) "
        + " ".join(lines) + f" y = Conv(r{blocks}, w) }}",
        w0=(6, 3, 1, 1), w=(6, 6, 1, 1), **weights,
    )  # fmt: skip
    backend = _Counting(memory)
    traced = replace(onnxshap.trace(model), backend=backend)
    data = onnxshap.Dataset({"x": np.random.default_rng(0).standard_normal((40, 3, 4, 4)).astype(np.float32)})
    setting = Setting(traced, data, MSE(), [])
    inner = [group for group in traced.groups if len(setting.traced.sites([group])) == 1]
    assert len(inner) == blocks

    def values(setting: Setting, group: Group) -> bytes:
        return METHODS["recon"](setting, group, np.random.default_rng(0)).phi.tobytes()

    found = [values(setting, group) for group in inner]
    convs = 2 * blocks  # from the input to what the last of them gives
    assert sum(backend.convs) == convs if memory else sum(backend.convs) > convs
    assert [values(replace(setting), group) for group in inner] == found
    assert [values(setting, group) for group in reversed(inner)] == found[::-1]


@pytest.mark.parametrize(("memory", "convs"), [(2**30, 2), (0, 1 + 2 + 2)])
def test_a_tensor_that_kernels_of_several_sizes_read_is_not_computed_from_the_start_again(
    memory: int, convs: int
) -> None:
    """It is held, or where the memory is none it is computed as it was; what is passed alone is not computed then."""
    model = exactness.net(
        """(float[N,3,4,4] x) => (float[N,5,4,4] y) {
            a = Conv(x, w0) r = Relu(a) b = Conv(r, w1) s = Relu(b)
            c = Conv(s, w2) d = Conv<pads=[1,1,1,1]>(s, w3) y = Add(c, d)
        }""",
        w0=(6, 3, 1, 1), w1=(6, 6, 1, 1), w2=(5, 6, 1, 1), w3=(5, 6, 3, 3),
    )  # fmt: skip
    backend = _Counting(memory)
    traced = replace(onnxshap.trace(model), backend=backend)
    data = onnxshap.Dataset({"x": np.random.default_rng(0).standard_normal((40, 3, 4, 4)).astype(np.float32)})
    setting = Setting(traced, data, MSE(), [])
    first, second = traced.groups
    found = [METHODS["recon"](setting, group, np.random.default_rng(0)).phi for group in (first, second)]
    assert sum(backend.convs) == convs
    backend.convs.clear()
    alone = METHODS["recon"](replace(setting), second, np.random.default_rng(0)).phi
    assert alone.tobytes() == found[1].tobytes() and sum(backend.convs) == (2 if memory else 2 + 2)


@pytest.mark.parametrize("batch", ["N", "3"])
def test_every_frame_of_every_image_is_seen(batch: str) -> None:
    """Frames and images share an axis: of four frames each, three quarters of the images were not looked at."""
    model = exactness.net(
        f"""(float[{batch},4,3,5,5] x) => (float[{batch},20] y) {{
            f = Reshape(x, frames) a = Conv(f, w0) r = Relu(a) b = Conv(r, w1) s = Relu(b) c = Conv(s, w2)
            y = Reshape(c, rows)
        }}""",
        w0=(6, 3, 3, 3), w1=(8, 6, 2, 2), w2=(5, 8, 2, 2), frames=np.array([-1, 3, 5, 5]), rows=np.array([-1, 20]),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(7, 4, 3, 5, 5)).astype(np.float32)
    traced, data = open_model(model, {"x": x})
    setting = Setting(free_batch(traced), data, MSE(), [])
    (layer,) = layers_of(setting, traced.groups[0])
    assert len(np.concatenate(list(designs(setting, layer, 10**6, np.random.default_rng(0))))) == 7 * 4 * 2 * 2


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gates_are_what_comes_in_and_the_states_before(direction: str) -> None:
    """All of it but a unit's own state, which goes with it."""
    both = 1 + (direction == "bidirectional")
    model = exactness.net(
        f"""(float[N,5,3] x) => (float[5,{both},N,4] h, float[N,2] y) {{
            t = Transpose<perm=[1,0,2]>(x) p = MatMul(t, u)
            h, last = RNN<hidden_size=4, direction="{direction}">(p, w, r)
            o = Transpose<perm=[1,0,2]>(last) f = Flatten(o) y = MatMul(f, v)
        }}""",
        u=(3, 6), w=(both, 4, 6), r=(both, 4, 4), v=(4 * both, 2),
    )  # fmt: skip
    traced, data = open_model(model, {"x": np.random.default_rng(0).normal(size=(9, 5, 3)).astype(np.float32)})
    free = free_batch(traced)
    setting = Setting(free, data, MSE(), [])
    (layer,) = layers_of(setting, free.groups[0])
    assert layer.kernels is not None
    rows = np.concatenate(list(designs(setting, layer, 10**6, np.random.default_rng(0))))[..., 0].astype(np.float64)
    assert len(rows) == 9 * 5
    states = free.backend.session(free.shaped.graph.model).run(dict(data.inputs))[0]  # [5, directions, 9, 4]
    r = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "r"))
    for block, part in enumerate(np.split(rows, both, axis=1)):
        fed = part @ layer.kernels[block, :, 0] + part[:, 6:] * np.diagonal(r[block])
        given = np.tanh(fed)
        own = states[:, block].reshape(-1, 4)
        np.testing.assert_allclose(given[np.lexsort(given.T)], own[np.lexsort(own.T)], atol=1e-5)


def test_a_state_that_only_other_states_read_is_needed() -> None:
    """It was taken for the cheapest: what reads the last states was all that was looked at."""
    rng = np.random.default_rng(0)
    r, v = 0.3 * rng.normal(size=(1, 24, 8)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    r[0, :, 2], v[2] = 5 * r[0, :, 2], 0
    model = exactness.net(
        """(float[6,N,5] x) => (float[N,2] y) {
            h, last = GRU<hidden_size=8>(x, w, r) n = Neg(h) e = Slice(n, five, six, zero) s = Squeeze(e, places)
            y = MatMul(s, v)
        }""",
        w=(1, 24, 5), r=r, v=v, five=[5], six=[6], zero=[0], places=[0, 1],
    )  # fmt: skip
    traced, data = open_model(model, {"x": rng.normal(size=(80, 6, 5)).astype(np.float32)})
    group = next(g for g in traced.groups if len(g) == 8)
    phi = METHODS["recon"](Setting(free_batch(traced), data, MSE(), []), group, np.random.default_rng(0)).phi
    assert np.argsort(phi).tolist().index(2) > 2


_PEAK = """
import resource
import numpy as np
import onnxshap
from onnxshap.backend import OrtBackend
from onnxshap.game import Setting
from onnxshap.payoffs import MSE
from tests import exactness

body = "a = Conv(x, w0) r = Relu(a) b = Conv(r, w1) s = Relu(b) c = Concat<axis=1>(s, r) y = Conv(c, w2)"
model = exactness.net(
    "(float[N,3,128,128] x) => (float[N,1,128,128] y) { " + body + " }",
    w0=(32, 3, 1, 1), w1=(32, 32, 1, 1), w2=(1, 64, 1, 1),
)
traced = onnxshap.trace(model, backend=OrtBackend("cpu", 1, MEMORY))
data = onnxshap.Dataset({"x": np.random.default_rng(0).random((64, 3, 128, 128), np.float32)})
setting = Setting(traced, data, MSE(), [])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for step in setting.route.steps:
    for _ in setting.route(step):
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others count it in other units")
@pytest.mark.parametrize("memory", [2**26, 2**28])
def test_a_walk_takes_about_the_memory_given(memory: int) -> None:
    """Tensors of 2 MiB an image: all that lives at a time is 8 MiB of one, half a GiB of all."""
    code = _PEAK.replace("MEMORY", str(memory))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert int(run.stdout) < 1.5 * memory


@pytest.mark.parametrize(("memory", "images"), [(2**30, 32), (5 * 2**20, 32), (1_100_000, 2), (0, 1)])
def test_batches_of_a_walk_are_smaller_only_where_it_would_not_fit(memory: int, images: int) -> None:
    """Of each of the 40 images 64 KiB are there at a time: what one Conv reads and gives, of 32 KiB each."""
    model = exactness.net(
        "(float[N,3,32,32] x) => (float[N,1,32,32] y) { a = Conv(x, w0) r = Relu(a) y = Conv(r, w1) }",
        w0=(8, 3, 1, 1), w1=(1, 8, 1, 1),
    )  # fmt: skip
    traced = onnxshap.trace(model, backend=OrtBackend(memory=memory))
    data = onnxshap.Dataset({"x": np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)})
    route = Setting(traced, data, MSE(), []).route
    assert len(route.walk.batches[0]["x"]) == images
    assert all(values.flags.owndata for values in route("r"))  # else all that a run took is kept along with one tensor


def test_patches_copy_no_more_than_they_give() -> None:
    x = np.random.default_rng(0).standard_normal((4, 8, 64, 64)).astype(np.float32)
    x[:, :, 0, 0] = np.nan  # read by no tap of these, though what reads padding has to be fed something
    reads = taps("Conv", {"pads": [1, 1, 1, 1]}, (64, 64), (64, 64), (3, 3))[-10:]
    assert (reads == 64 * 64).any()
    tracemalloc.start()
    found = patches(x, reads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes // 4
    padded = np.concatenate([x.reshape(4, 8, -1), np.zeros((4, 8, 1), np.float32)], axis=2)
    np.testing.assert_array_equal(found, padded[:, :, reads])
