"""A batch that is free by its name alone is the one that the file was written out for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxshap import prune
from onnxshap.calibrate import free_batch
from onnxshap.core import Dataset
from onnxshap.errors import ModelError
from onnxshap.opening import open_model
from onnxshap.tracing import trace
from tests.exactness import TOLERANCE, check_exact, net
from tests.zeroing import relative_error, run


def written_out(batch: int, kind: str = "float", first: str = "h = MatMul(x, w0)", **tensors: Any) -> ModelProto:
    """Return a net whose batch is free by name, a Reshape of it written out for some images."""
    inputs = {"w0": (5, 8), **tensors}
    return net(
        f"""({kind}[N,4,5] x) => (float[N,3] y) {{
            {first}
            r = Relu(h)
            f = MatMul(r, w1)
            a = Relu(f)
            s = Reshape(a, apart)
            p = ReduceMean<axes=[1],keepdims=0>(s)
            y = MatMul(p, w2)
        }}""",
        opset=13, w1=(8, 6), w2=(6, 3), apart=[batch, 4, 6], **inputs,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_the_batch_that_a_reshape_is_written_out_for_is_fixed(batch: int) -> None:
    model = written_out(batch)
    model.graph.node[4].name = "apart"
    traced = trace(model)
    assert traced.batch == batch and not traced.shaped.free_batch
    assert len(traced.notes) == 1 and f"Reshape 'apart' takes {batch} image" in traced.notes[0]
    assert [len(g) for g in traced.groups] == [8, 6]
    assert free_batch(traced).shaped.free_batch  # for evaluation alone
    images = np.random.default_rng(1).normal(size=(batch, 4, 5)).astype(np.float32)
    check_exact(model, data=Dataset({"x": images}, source="random"))


def test_such_a_file_is_cut_with_any_number_of_images() -> None:
    model, images = written_out(3), np.random.default_rng(0).normal(size=(7, 4, 5)).astype(np.float32)
    small = prune(model, images, keep_units=0.5, method="shapley", samples=4).model
    whole = prune(model, images, keep_units=1.0, method="l1", repair="none").model
    assert run(small, {"x": images[:3]})[0].shape == (3, 3)
    assert relative_error(run(model, {"x": images[:3]}), run(whole, {"x": images[:3]})) <= TOLERANCE


def test_a_size_that_only_the_user_knows_is_tried() -> None:
    """A list of states is as long as there are images: nothing names seven."""
    model = net(
        """(float[N,4,5] x) => (float[N,4] y) {
            t = Transpose<perm=[1,0,2]>(x)
            s, last = LSTM<hidden_size=4>(t, w, r, , , start, start)
            y = Squeeze(last, first)
        }""",
        w=(1, 16, 5), r=(1, 16, 4), start=(1, 7, 4), first=[0], opset=13,
    )  # fmt: skip
    with pytest.raises(ModelError, match="does not run at x"):
        trace(model)
    assert trace(model, input_shapes={"x": [7, 4, 5]}).shaped.baked == 7


def test_a_batch_that_runs_at_any_size_stays_free() -> None:
    traced = trace(written_out(-1))
    assert traced.shaped.free_batch and not traced.notes


IDS: dict[str, Any] = {"table": np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)}
LOOKED_UP = "e = Gather<axis=0>(table, ids) h = MatMul(e, w0)"


def of_ids(batch: int) -> ModelProto:
    model = written_out(batch, first=LOOKED_UP, **IDS)
    del model.graph.input[:]
    model.graph.input.append(net("(int64[N,4] ids) => (int64[N,4] y) { y = Identity(ids) }").graph.input[0])
    return model


def test_shapes_that_the_exporter_noted_for_one_image_fix_no_batch() -> None:
    """onnxruntime makes a Gemm of MatMul and Add, and its rows of the shape that is noted."""
    model = net(
        """(float[N,3,4] x) => (float[N,3,2] y) {
            t = Transpose<perm=[1,0,2]>(x)
            m = MatMul(t, w0)
            h = Add(m, b0)
            r = Relu(h)
            z = MatMul(r, w1)
            y = Transpose<perm=[1,0,2]>(z)
        }""",
        opset=13, w0=(4, 8), b0=(8,), w1=(8, 2),
    )  # fmt: skip
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 1, width])
        for name, width in {"t": 4, "m": 8, "h": 8}.items()
    )
    with pytest.raises(Exception, match="requested_shape"):
        run(model, {"x": np.zeros((2, 3, 4), np.float32)})
    data = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    cut = prune(model, data, keep_units=0.5, method="l1")
    assert cut.eval_images == 6 and cut.traced.shaped.free_batch
    assert run(cut.model, {"x": data})[0].shape == (6, 3, 2)


@pytest.mark.parametrize("joined", [False, True])
def test_a_length_that_is_free_by_name_alone_is_the_one_that_is_written(joined: bool) -> None:
    """Attention is written out for some steps: no usual number of them runs."""
    sizes = "many = Shape<start=0, end=1>(x) apart = Concat<axis=0>(many, steps, wide)" if joined else ""
    stored: dict[str, Any] = {"steps": [7], "wide": [6]} if joined else {"apart": [0, 7, 6]}
    model = net(
        f"""(float[N,steps,4] x) => (float[N,M,2] y) {{
            m = MatMul(x, w0)
            {sizes}
            h = Reshape(m, apart)
            r = Relu(h)
            y = MatMul(r, w1)
        }}""",
        opset=15, w0=(4, 6), w1=(6, 2), **stored,
    )  # fmt: skip
    assert trace(model).shaped.inputs == {"x": (2, 7, 4)}
    assert check_exact(model).dropped
    assert prune(model, keep_units=0.5, method="l1").traced.shaped.free_batch


def test_ids_are_no_excuse_for_a_batch_that_is_written_out() -> None:
    """An image that runs runs once more, or the batch is at fault, whatever its ids are."""
    traced = trace(of_ids(2))
    assert not traced.shaped.free_batch and traced.batch == 2 and traced.notes
    traced, _ = open_model(of_ids(2), np.random.default_rng(1).integers(0, 9, (5, 4)))
    assert not traced.shaped.free_batch and traced.batch == 2 and traced.notes


END_MARK = net(
    """(int64[N,6] ids) => (float[N,3] y) {
        e = Gather<axis=0>(table, ids) h = MatMul(e, w0) r = Relu(h) s = Shape(r) front = Slice(s, nil, two)
        sizes = Concat<axis=0>(front, heads) a = Reshape(r, sizes) t = Tanh(a) flat = Concat<axis=0>(front, last)
        b = Reshape(t, flat)
        ends = Equal(ids, mark) found = NonZero(ends) places = Transpose<perm=[1,0]>(found) c = GatherND(b, places)
        n = Slice(s, nil, one) rows = Concat<axis=0>(n, last, width) d = Reshape(c, rows) f = Gather<axis=1>(d, final)
        g = MatMul(f, w1) k = Relu(g) y = MatMul(k, w2)
    }""",
    opset=13, table=(9, 5), w0=(5, 8), w1=(8, 6), w2=(6, 3), nil=[0], one=[1], two=[2], heads=[2, 4], last=[-1],
    mark=np.array(8), final=np.array(-1), width=[8],
)  # fmt: skip


def test_images_that_need_an_end_mark_are_the_users_at_other_sizes_too() -> None:
    with pytest.raises(ModelError, match="does not run at ids"):
        trace(END_MARK)
    ids = np.random.default_rng(1).integers(0, 8, (5, 6))
    ids[:, -1] = 8
    traced, _ = open_model(END_MARK, ids)
    assert traced.shaped.free_batch and not traced.notes
    assert not any("gets its shape from the data" in axis.reason for axis in traced.frozen)


def windowed(batch: int | None, length: int | str = 8) -> ModelProto:
    """Return a net that puts windows together again as many exporters write it: [images, rows, columns, -1].

    It runs with any number of images, also where that of an export is written out.
    """
    written: dict[str, Any] = {} if batch is None else {"images": [batch]}
    return net(
        f"""(float[N,{length},5] x) => (float[N,3] y) {{
            {"" if written else "images = Shape<start=0, end=1>(x)"}
            many = Shape<start=1, end=2>(x)
            rows = Div(many, four)
            windows = Concat<axis=0>(images, rows, four, rest)
            whole = Concat<axis=0>(images, many, rest)
            h = MatMul(x, w0)
            parts = Reshape(h, cut)
            f = MatMul(parts, w1)
            a = Relu(f)
            apart = Reshape(a, windows)
            turned = Transpose<perm=[0,2,1,3]>(apart)
            joined = Reshape(turned, whole)
            sizes = Shape<start=0, end=2>(x)
            all = Concat<axis=0>(sizes, features)
            back = Reshape(joined, all)
            r = Relu(back)
            p = ReduceMean<axes=[1],keepdims=0>(r)
            y = MatMul(p, w2)
        }}""",
        opset=15, w0=(5, 8), w1=(8, 6), w2=(6, 3), cut=[-1, 4, 8], four=[4], rest=[-1], features=[6],
        **written,
    )  # fmt: skip


def test_a_batch_whose_images_are_mixed_is_found_at_sizes_that_are_free_too() -> None:
    traced = trace(windowed(2, "L"))
    assert traced.shaped.baked == 2 and traced.shaped.elsewhere
    assert all(trace(windowed(None, length)).shaped.free_batch for length in (8, "L"))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_whose_images_are_mixed_at_all_sizes_but_one_is_fixed_to_that(batch: int) -> None:
    model = windowed(batch)
    images = np.random.default_rng(1).normal(size=(6, 8, 5)).astype(np.float32)
    alone = np.concatenate([run(model, {"x": images[k : k + batch]})[0] for k in range(0, 6, batch)])
    assert relative_error(run(model, {"x": images}), [alone]) > 0.01
    traced = trace(model)
    assert traced.batch == batch and not traced.shaped.free_batch
    assert len(traced.notes) == 1 and f"'apart' is written out for {batch} image" in traced.notes[0]
    assert [len(g) for g in traced.groups] == [8, 6]
    freed = free_batch(traced)
    assert freed.shaped.free_batch
    assert relative_error(run(freed.shaped.graph.model, {"x": images}), [alone]) <= TOLERANCE
    check_exact(model, data=Dataset({"x": images[:batch]}, source="random"))
    assert prune(model, images, keep_units=0.5, method="l1").eval_images == 6


def test_images_that_are_put_together_on_purpose_fix_no_batch() -> None:
    """A list of all that the images give has no place for features of several images."""
    model = net(
        """(float[N,4] x) => (float[1,K] y) {
            h = MatMul(x, w0)
            r = Relu(h)
            z = MatMul(r, w1)
            y = Reshape(z, one)
        }""",
        opset=13, w0=(4, 8), w1=(8, 2), one=[1, -1],
    )  # fmt: skip
    assert trace(model).shaped.baked is None


def heads(batch: int, length: int | str) -> ModelProto:
    """Return a net that takes heads apart as [images, positions, heads, -1], the images written out."""
    return net(
        f"""(float[N,{length},5] x) => (float[N,{length},3] y) {{
            h = MatMul(x, w0)
            parts = Shape<start=1, end=2>(x)
            cut = Concat<axis=0>(images, parts, four, rest)
            a = Reshape(h, cut)
            b = Transpose<perm=[0,2,1,3]>(a)
            c = Softmax<axis=2>(b)
            d = Transpose<perm=[0,2,1,3]>(c)
            whole = Shape(h)
            e = Reshape(d, whole)
            f = MatMul(e, w1)
            r = Relu(f)
            y = MatMul(r, w2)
        }}""",
        opset=15, w0=(5, 8), w1=(8, 6), w2=(6, 3), four=[4], rest=[-1], images=[batch],
    )  # fmt: skip


@pytest.mark.parametrize("length", [6, "L"])
@pytest.mark.parametrize("batch", [1, 2])
def test_heads_that_are_taken_apart_are_no_images(batch: int, length: int | str) -> None:
    """By shapes alone the batch is as many times too large as there are heads, and images of that are mixed."""
    traced = trace(heads(batch, length))
    assert traced.shaped.baked == batch
    assert f"written out for {batch} image" in traced.notes[0]


def test_what_is_laid_out_otherwise_for_a_while_fixes_no_batch() -> None:
    """The last axis grows with the images, but what is between goes number by number."""
    model = net(
        """(float[N,6,5] x) => (float[N,6,3] y) {
            h = MatMul(x, w0)
            a = Reshape(h, rows)
            r = Relu(a)
            s = Shape(h)
            b = Reshape(r, s)
            y = MatMul(b, w1)
        }""",
        opset=13, w0=(5, 8), w1=(8, 3), rows=[2, -1],
    )  # fmt: skip
    traced = trace(model)
    assert traced.shaped.baked is None and traced.shaped.free_batch and not traced.notes


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("length", [8, "L"])
def test_the_batch_is_the_one_written_out_where_parts_of_it_or_several_run_too(batch: int, length: int | str) -> None:
    """Two images run as half of what they are, 64 as eight of each, and one more of neither does."""
    traced = trace(windowed(batch, length))
    assert traced.shaped.baked == batch == traced.batch
    assert [len(g) for g in traced.groups] == [8, 6]
    assert f"'apart' is written out for {batch} images" in traced.notes[0]


def test_images_that_are_torn_but_not_mixed_fix_the_batch() -> None:
    """Positions of one image are put side by side: nothing of another, and not what it gives alone."""
    model = net(
        """(float[N,4,5] x) => (float[N,4,3] y) {
            h = MatMul(x, w0)
            a = Relu(h)
            b = Reshape(a, written)
            t = Transpose<perm=[0,1,3,2,4]>(b)
            c = Reshape(t, whole)
            y = MatMul(c, w1)
        }""",
        opset=13, w0=(5, 8), w1=(8, 3), written=[1, 2, 2, 1, -1], whole=[-1, 4, 8],
    )  # fmt: skip
    last = net(
        "(float[N,4,5] x) => (float[N,4,K] y) { h = MatMul(x, w0) a = Relu(h) b = MatMul(a, w1) y = Reshape(b, one) }",
        opset=13, w0=(5, 8), w1=(8, 3), one=[1, 4, -1],
    )  # fmt: skip
    assert trace(last).shaped.baked == 1
    assert trace(model).shaped.baked is None  # number by number, as it happens
    model.graph.node[3].attribute[0].ints[:] = [0, 2, 3, 1, 4]
    assert trace(model).shaped.baked == 1


def test_a_batch_is_found_beside_outputs_that_are_found_in_images() -> None:
    """As many as are found, of other shapes with other images: they tell nothing of the batch, the scores do."""
    model = windowed(2)
    model.graph.node.append(onnx.helper.make_node("NonZero", ["r"], ["places"]))
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info("places", onnx.TensorProto.INT64, [3, None]))
    assert trace(model).shaped.baked == 2
