"""Where the images of files of fixed sizes lie, by what the ops do with the axes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxshap import compare, prune
from onnxshap.calibrate import free_batch
from onnxshap.core import Array
from onnxshap.errors import DataError
from onnxshap.opening import open_model
from onnxshap.tracing import trace
from tests.exactness import TOLERANCE, check_exact, net
from tests.zeroing import relative_error, run


def steps_first(batch: int, last: bool = True, first: str = "") -> ModelProto:
    """Return a recurrent net of seven steps, as torch writes it by default."""
    given = f"[{batch},3]" if last else f"[7,{batch},3]"
    dims = f"[{batch},7,5]" if first else f"[7,{batch},5]"
    ending = "o = Gather<axis=0>(r, final)" if last else "o = Identity(r)"
    return net(
        f"""(float{dims} x) => (float{given} y) {{
            {first or "t = Identity(x)"}
            s = LSTM<hidden_size=8>(t, w, u)
            z = Squeeze(s, one)
            h = MatMul(z, w1)
            r = Relu(h)
            {ending}
            y = MatMul(o, w2)
        }}""",
        opset=13, w=(1, 32, 5), u=(1, 32, 8), w1=(8, 6), w2=(6, 3), one=[1], final=np.array(-1),
    )  # fmt: skip


def images(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_images_of_steps_lie_on_the_second_axis(batch: int, last: bool) -> None:
    model = steps_first(batch, last)
    traced, data = open_model(model, images(5, 7, 5))
    assert traced.shaped.batch_axes == {"x": 1} and traced.batch == batch and len(data) == 5
    assert traced.output_axes == ((0,) if last else (1,))
    check_exact(model)
    with pytest.raises(DataError, match=r"the model wants \[n, 7, 5\]"):
        open_model(model, images(24, batch, 5))


def test_steps_first_files_are_scored_as_batches_of_one_are() -> None:
    data = images(4, 7, 5)
    found = [prune(steps_first(batch), data, keep_units=0.5, method="shapley", repair="none") for batch in (1, 3)]
    for name, values in found[0].scores.values.items():
        assert np.allclose(values.phi, found[1].scores.values[name].phi, atol=1e-5)
    figures = compare(steps_first(3), found[1].model, data, payoff="mse")
    assert figures[0].score["mse"] == 0 and figures[1].score["mse"] < 0
    feeds = {"x": np.moveaxis(data[:3], 0, 1)}
    single = np.concatenate([run(found[0].model, {"x": x[:, None]})[0] for x in data[:3]])
    assert relative_error([single], run(found[1].model, feeds)) <= TOLERANCE


def test_images_first_that_are_turned_for_a_recurrent_op_stay_where_they_are() -> None:
    traced = trace(steps_first(3, first="t = Transpose<perm=[1,0,2]>(x)"))
    assert traced.shaped.batch_axes == {"x": 0}


UNBATCHED = {
    "features": net(
        """(float[16] x) => (float[3] y) {
            a = MatMul(x, w0) r = Relu(a) b = MatMul(r, w1) c = Relu(b) y = MatMul(c, w2)
        }""",
        w0=(16, 8), w1=(8, 6), w2=(6, 3),
    ),
    "a set": net(
        """(float[9,4] x) => (float[3] y) {
            a = MatMul(x, w0) r = Relu(a) p = ReduceMean<axes=[0],keepdims=0>(r) b = MatMul(p, w1) c = Relu(b)
            y = MatMul(c, w2)
        }""",
        w0=(4, 8), w1=(8, 6), w2=(6, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNBATCHED)
def test_an_input_that_is_summed_over_is_one_sample(name: str) -> None:
    model = UNBATCHED[name]
    traced = trace(model)
    shape = traced.shaped.inputs["x"]
    assert traced.shaped.batch_axes == {"x": None} and traced.single
    check_exact(model)
    done = prune(model, images(6, *shape), keep_units=0.5, method="shapley", multiple_of=1)
    assert done.eval_images == 6 and run(done.model, {"x": images(*shape)})[0].shape == (3,)
    assert prune(model, keep_units=0.5, method="l1").eval_images > 1  # noise is taken so, too


def test_an_axis_that_every_output_has_is_that_of_the_images_though_it_is_mixed() -> None:
    model = net("(float[4,6] x) => (float[4,3] y) { m = Softmax<axis=0>(x) y = MatMul(m, w) }", w=(6, 3))
    assert trace(model).shaped.batch_axes == {"x": 0}


def test_three_images_are_no_colours() -> None:
    """The exporter did not tell the sizes of the output, of which axis 0 might be anything."""
    net_of_3 = net(
        """(float[3,4,9] x) => (float[found,5] y) {
            a = Conv(x, w0) r = Relu(a) b = Conv(r, w1) c = Relu(b) p = ReduceMean<axes=[2],keepdims=0>(c)
            y = MatMul(p, w2)
        }""",
        w0=(8, 4, 1), w1=(6, 8, 3), w2=(6, 5),
    )  # fmt: skip
    traced, data = open_model(net_of_3, images(8, 4, 9))
    assert traced.shaped.batch_axes == {"x": 0} and len(data) == 8 and free_batch(traced).shaped.free_batch
    check_exact(net_of_3)


def test_colours_of_a_picture_are_no_images() -> None:
    picture = net(
        """(float[3,8,8] x) => (float[found,5] y) {
            u = Unsqueeze(x, first) a = Conv(u, w0) r = Relu(a) p = ReduceMean<axes=[2,3],keepdims=0>(r)
            y = MatMul(p, w1)
        }""",
        w0=(8, 3, 3, 3), w1=(8, 5), first=[0], opset=13,
    )  # fmt: skip
    traced, data = open_model(picture, images(4, 3, 8, 8))
    assert traced.shaped.batch_axes == {"x": None} and len(data) == 4
