"""Where the images of files of fixed sizes lie, by what the ops do with the axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from onnxshap import compare, prune
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import Array, Dataset
from onnxshap.errors import DataError, ModelError
from onnxshap.masking import insert_masks, mask_name
from onnxshap.opening import open_model
from onnxshap.rewrite import drop_units
from onnxshap.shapes import input_specs
from onnxshap.slices import removed_slices
from onnxshap.tracing import trace
from tests.exactness import TOLERANCE, check_exact, net
from tests.zeroing import relative_error, run, zeroed


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


NAMED = {
    "t, n": ("float[t,n,5] x", "[n,3]"),
    "no names that say it, with a state": ("float[s0,s1,5] x, float[1,s1,8] h", "[s1,3]"),
    "one image": ("float[steps,1,5] x", "[1,3]"),
    "one image, no name": ("float[?,1,5] x", "[1,3]"),
}


@pytest.mark.parametrize("name", NAMED)
def test_steps_of_any_number_are_no_images_whatever_they_are_called(name: str) -> None:
    """Recurrent ops take them for steps, and data of one image an entry of axis 0."""
    given, gives = NAMED[name]
    state = "state" in name
    model = net(
        f"""({given}) => (float{gives} y) {{
            s, last = GRU<hidden_size=8>(x, w, u, none, none, {"h" if state else "none"})
            z = Squeeze(last, zero)
            h1 = MatMul(z, w1)
            r = Relu(h1)
            y = MatMul(r, w2)
        }}""",
        opset=13, w=(1, 24, 5), u=(1, 24, 8), none=[0], zero=[0], w1=(8, 6), w2=(6, 3),
    )  # fmt: skip
    for k in (3, 4, *(() if state else (5,))):
        model.graph.node[0].input[k] = ""
    data = {"x": images(6, 7, 5)} | ({"h": images(6, 1, 8)} if state else {})
    traced, checked = open_model(model, data)
    assert set(traced.shaped.batch_axes.values()) == {1} and traced.output_axes == (0,)
    assert len(checked) == 6 and not traced.notes
    found = run_all(traced, model, checked)[0]
    alone = [run(model, {k: v[i][:, None] for k, v in data.items()})[0] for i in range(6)]
    assert relative_error([found], [np.concatenate(alone)]) <= TOLERANCE
    assert trace(model).shaped.batch_axes == traced.shaped.batch_axes
    pruned = prune(model, data, keep_units=0.5, samples=3)
    assert not pruned.notes and pruned.verified.max_abs_err < 1e-5
    check_exact(model)


@pytest.mark.parametrize("other", ["?", "cases", "n", "batch"])
@pytest.mark.parametrize("steps", ["?,?", "t,n", "s0,s1"])
def test_what_lies_beside_steps_is_an_image_s_own_whatever_its_axis_is_called(steps: str, other: str) -> None:
    model = net(
        f"""(float[{steps},5] x, float[{other},4] c) => (float[?,3] y) {{
            s, last = GRU<hidden_size=8>(x, w, u)
            z = Squeeze(last, zero)
            added = MatMul(c, w0)
            h = Add(z, added)
            r = Relu(h)
            y = MatMul(r, w1)
        }}""",
        opset=13, w=(1, 24, 5), u=(1, 24, 8), zero=[0], w0=(4, 8), w1=(8, 3),
    )  # fmt: skip
    data = {"x": images(6, 7, 5), "c": images(6, 4)}
    traced, checked = open_model(model, data)
    assert traced.shaped.batch_axes == {"x": 1, "c": 0} and not traced.notes
    alone = [run(model, {"x": data["x"][i][:, None], "c": data["c"][i : i + 1]})[0] for i in range(6)]
    assert relative_error(run_all(traced, model, checked), [np.concatenate(alone)]) <= TOLERANCE


@pytest.mark.parametrize(("axes", "made", "images"), [
    ("s,n", "s", 0), ("l,n", "l", 0), ("t,n", "n", 1), ("t,n", "made", 1), ("steps,samples", "samples", 1),
    ("steps,samples", "steps", 0), ("steps,samples", "made", 0), ("s,batch", "s", 1),
])  # fmt: skip
def test_outputs_tell_whether_short_names_are_of_steps_or_of_samples(axes: str, made: str, images: int) -> None:
    model = net(
        f"(float[{axes},5] x) => (float[{made},3] y) {{ m = ReduceMax<axes=[1], keepdims=0>(x) y = MatMul(m, w) }}",
        w=(5, 3),
    )
    assert input_specs(model)["x"].batch == images


STEPS_FIRST = {
    "names": "(float[t,n,4] x) => (float[t,n,2] y) { s = Identity(x)",
    "a convolution": "(float[s0,s1,4] x) => (float[s0,s1,2] y) { s = Identity(x)",
    "a convolution of fixed steps": "(float[5,s1,4] x) => (float[5,s1,2] y) { s = Identity(x)",
    "data, for the batch is 1": "(float[5,1,4] x) => (float[5,1,2] y) { s = Identity(x)",
    "data, for it runs on no others": "(float[s0,s1,4] x) => (float[s0,s1,2] y) {"
    " m = Transpose<perm=[1,2,0]>(x) n = MatMul(m, table) s = Transpose<perm=[2,0,1]>(n)",
    "data, beside a fixed state": "(float[5,1,4] x, float[2,1,4] h) => (float[5,1,2] y) {"
    " m = ReduceSum(h, zero) s = Add(x, m)",
}


@pytest.mark.parametrize("told_by", STEPS_FIRST)
def test_what_tells_that_images_lie_behind_steps(told_by: str) -> None:
    weights: dict[str, Any] = {"w1": (4, 6), "w2": (6, 2), "table": (5, 5), "zero": [0]}
    middle = "v = Relu(a)"
    if "convolution" in told_by:
        middle = "b = Transpose<perm=[1,2,0]>(a) c = Conv<pads=[1,1]>(b, k) d = Relu(c) v = Transpose<perm=[2,0,1]>(d)"
        weights["k"] = (6, 6, 3)
    model = net(f"{STEPS_FIRST[told_by]} a = MatMul(s, w1) {middle} y = MatMul(v, w2) }}", **weights)
    data = {"x": images(6, 5, 4)} | ({"h": images(6, 2, 4)} if "state" in told_by else {})
    traced, checked = open_model(model, data)
    assert set(traced.shaped.batch_axes.values()) == {1} and len(checked) == 6 and not traced.notes
    alone = [run(model, {k: v[i][:, None] for k, v in data.items()})[0] for i in range(6)]
    assert relative_error(run_all(traced, model, checked), [np.stack(alone)[:, :, 0]]) <= TOLERANCE
    pruned = prune(model, data, keep_units=0.5, samples=3)
    assert pruned.traced.groups and not pruned.notes
    with pytest.raises(DataError, match="the model wants"):
        open_model(model, {name: value[..., :3] for name, value in data.items()})


def test_a_convolution_along_the_batch_is_refused_in_a_line() -> None:
    """Steps that are called the batch: as many as there are images in a run."""
    model = net(
        """(float[batch,t,4] x) => (float[batch,t,2] y) {
            a = Transpose<perm=[1,2,0]>(x)
            b = Conv<pads=[1,1]>(a, k1)
            c = Relu(b)
            d = Conv<pads=[1,1]>(c, k2)
            y = Transpose<perm=[2,0,1]>(d)
        }""",
        k1=(8, 4, 3), k2=(2, 8, 3),
    )  # fmt: skip
    with pytest.raises(ModelError, match="runs along the axis of the batch, and takes another one for the images"):
        prune(model, images(24, 5, 4), keep_units=0.5, samples=3)
    assert prune(model, images(24, 5, 4), keep_units=0.5, samples=3, repair="fold").notes


def test_a_batch_that_is_summed_over_by_its_name_is_told() -> None:
    model = net(
        """(float[t,batch,5] x) => (float[t,3] y) {
            h = MatMul(x, w1)
            r = Relu(h)
            m = ReduceMean<axes=[1], keepdims=0>(r)
            y = MatMul(m, w2)
        }""",
        w1=(5, 6), w2=(6, 3),
    )  # fmt: skip
    (note,) = trace(model).notes
    assert note.startswith("input 'x': axis 1 is taken for the batch, as it is called 'batch', but the model sums over")
    assert not trace(steps_first(3)).notes


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


SEQUENCES = {
    "attention": """
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) turned = Transpose<perm=[{turn}]>(k)
        s = MatMul(q, turned) p = Softmax(s) o = MatMul(p, v) a = MatMul(o, w1) r = Relu(a) y = MatMul(r, w2)""",
    "points beside their maximum": """
        a = MatMul(x, wq) r = Relu(a) m = ReduceMax<axes=[{axis}],keepdims=1>(r) b = Sub(r, m) c = MatMul(b, w1)
        d = Relu(c) y = MatMul(d, w2)""",
    "their maximum": """
        a = MatMul(x, wq) r = Relu(a) m = ReduceMax<axes=[{axis}],keepdims=0>(r) c = MatMul(m, w1) d = Relu(c)
        y = MatMul(d, w2)""",
}


def sequences(name: str, batch: str = "", steps: str = "steps") -> ModelProto:
    """Return a net of a sequence or a set, with a batch in front of it or without."""
    whole = "maximum" not in name or "beside" in name
    made = ",".join([*([batch] if batch else []), *([steps] if whole else []), "3"])
    given = ",".join([*([batch] if batch else []), steps, "6"])
    body = SEQUENCES[name].format(turn="0,2,1" if batch else "1,0", axis=1 if batch else 0)
    weights: dict[str, Any] = {"wq": (6, 8), "wk": (6, 8), "wv": (6, 8)} if name == "attention" else {"wq": (6, 8)}
    return net(f"(float[{given}] x) => (float[{made}] y) {{{body}}}", opset=13, **weights, w1=(8, 6), w2=(6, 3))


@pytest.mark.parametrize("steps", ["steps", "9"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_without_a_batch_are_worth_what_those_of_a_batch_are(name: str, steps: str) -> None:
    data = images(12, 9, 6)
    alone, batched = sequences(name, steps=steps), sequences(name, "n", steps)
    for method in ("shapley", "recon"):
        found = [prune(m, data, keep_units=0.5, method=method, samples=4, multiple_of=1) for m in (alone, batched)]
        assert found[0].eval_images == 12 and found[0].traced.shaped.batch_axes == {"x": None}
        assert all(found[0].verified.rel_err <= TOLERANCE and k.sum() == len(k) / 2 for k in found[0].keep.values())
        for (_, one), (_, many) in zip(*(f.scores.values.items() for f in found), strict=True):
            np.testing.assert_allclose(one.phi, many.phi, rtol=1e-4, atol=1e-6)
        figures = [
            compare(m, f.model, data, payoff="mse")[1].score["mse"]
            for m, f in zip((alone, batched), found, strict=True)
        ]
        assert figures[0] == pytest.approx(figures[1], rel=0.2)  # other rows are drawn of them to refit with


def test_a_plan_of_a_sequence_is_exact() -> None:
    model, data = sequences("attention"), images(3, 9, 6)
    traced = trace(model, batch_axes={"x": None})
    keep = {group.name: np.arange(len(group)) % 2 == 0 for group in traced.groups}
    small, masked = drop_units(traced, keep), insert_masks(traced)
    masks = {mask_name(g): keep[g.name][None].astype(np.float32) for g in traced.groups}
    zeros = zeroed(model, removed_slices(traced, keep))
    for x in data:
        rewritten = run(small, {"x": x})
        assert relative_error(run(masked, {"x": x, **masks}), rewritten) <= TOLERANCE
        assert relative_error(run(zeros, {"x": x}), rewritten) <= TOLERANCE


def test_rows_that_are_apart_are_images() -> None:
    apart = net("(float[n,6] x) => (float[n,3] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }",
                w1=(6, 8), w2=(8, 3))  # fmt: skip
    with pytest.raises(DataError, match=r"rows are images; join both axes, x\.reshape\(-1"):
        open_model(apart, images(5, 4, 6))
    with pytest.raises(DataError, match=r"the model wants \[n, 6\]: give one entry an image along axis 0, x.reshape"):
        open_model(trace(apart), images(5, 4, 6))
    assert len(open_model(apart, images(5, 6))[1]) == 5


def test_points_alone_are_one_sample_and_it_is_said() -> None:
    """No output is longer for more points; of attention, rows may be images that know of each other."""
    model = sequences("their maximum")
    assert trace(model).shaped.inputs == {"x": (64, 6)} and "one sample" in trace(model).notes[0]
    done = prune(model, images(20, 6), keep_units=0.5, multiple_of=1)
    assert done.eval_images == 1 and done.traced.shaped.inputs == {"x": (20, 6)} and "one sample" in done.notes[0]
    assert not prune(model, images(9, 20, 6), keep_units=0.5, method="l1").notes
    assert len(open_model(sequences("attention"), images(20, 6))[1]) == 20
    assert trace(sequences("attention", "n")).shaped.batch_axes == {"x": 0}


def test_few_points_at_most_are_no_matter() -> None:
    model = net(
        """(float[n,6] x) => (float[3] y) {
            s = Shape(x) e = Slice(s, zero, one) p = Slice(table, zero, e, zero) a = Add(x, p) b = MatMul(a, w0)
            r = Relu(b) g = ReduceSum<keepdims=0>(r, zero) y = MatMul(g, w1)
        }""",
        opset=13, zero=[0], one=[1], table=(5, 6), w0=(6, 8), w1=(8, 3),
    )  # fmt: skip
    assert trace(model).shaped.inputs == {"x": (4, 6)} and trace(model).shaped.batch_axes == {"x": None}


def test_inputs_of_one_sample_may_be_given_once() -> None:
    model = net(
        """(float[n,6] x, float[2,6] shift) => (float[n,3] y) {
            s = ReduceSum<axes=[0],keepdims=1>(shift) t = Add(x, s) m = ReduceMax<axes=[0],keepdims=1>(t) b = Sub(t, m)
            a = MatMul(b, w1) r = Relu(a) y = MatMul(r, w2)
        }""",
        opset=11, w1=(6, 8), w2=(8, 3),
    )  # fmt: skip
    for shift in (images(2, 6), images(5, 2, 6)):
        traced, data = open_model(model, {"x": images(5, 7, 6), "shift": shift})
        assert traced.shaped.batch_axes == {"x": None, "shift": None} and data.inputs["shift"].shape == (5, 2, 6)


def test_axes_of_a_batch_that_are_none_are_refused() -> None:
    for axes, what in (({"z": None}, "an axis is given for 'z'"), ({"x": 2}, "has 2 dimensions, its batch axis")):
        with pytest.raises(ModelError, match=what):
            trace(sequences("attention"), batch_axes=axes)


def test_a_vector_is_refitted_as_a_row_of_a_batch_is() -> None:
    batch = net(
        """(float[n,16] x) => (float[n,3] y) {
            a = MatMul(x, w0) r = Relu(a) b = MatMul(r, w1) c = Relu(b) y = MatMul(c, w2)
        }""",
        w0=(16, 8), w1=(8, 6), w2=(6, 3),
    )  # fmt: skip
    for method in ("loo", "recon"):
        kw: dict[str, Any] = {"keep_units": 0.5, "multiple_of": 1, "method": method, "payoff": "mse"}
        found = [prune(model, images(40, 16), **kw) for model in (UNBATCHED["features"], batch)]
        for (_, one), (_, many) in zip(*(f.scores.values.items() for f in found), strict=True):
            np.testing.assert_allclose(one.phi, many.phi, rtol=1e-4, atol=1e-6)
        assert found[0].after.score["mse"] == pytest.approx(found[1].after.score["mse"], rel=0.2)
        assert [r.ridge for r in found[0].refits] == [r.ridge for r in found[1].refits] != []


def test_texts_beside_pictures_are_samples_one_by_one() -> None:
    """Outputs of every text of a batch and every picture; of a set alone, how alike its members are."""
    towers = net(
        """(float[n,6] text, float[n,4] picture) => (float[n,n] alike, float[n,5] place) {
            a = MatMul(text, w0) b = Relu(a) place = MatMul(b, w1) c = MatMul(picture, v0) d = Relu(c) e = MatMul(d, v1)
            f = Transpose(e) alike = MatMul(place, f)
        }""",
        w0=(6, 8), w1=(8, 5), v0=(4, 8), v1=(8, 5),
    )  # fmt: skip
    data = {"text": images(40, 6), "picture": images(40, 4)}
    done = prune(towers, data, keep_units=0.5, method="shapley", samples=4, multiple_of=1)
    assert done.eval_images == 40 and "run one by one" in done.notes[0]
    alone = [run(towers, {name: values[k : k + 1] for name, values in data.items()}) for k in range(40)]
    found = run_all(done.traced, towers, Dataset(data))
    assert relative_error(found, [np.concatenate(column) for column in zip(*alone, strict=True)]) <= TOLERANCE
    check_exact(towers)
    members = net(
        """(float[n,6] x) => (float[n,n] y) {
            a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Transpose(c) y = MatMul(c, d)
        }""",
        w0=(6, 8), w1=(8, 5),
    )  # fmt: skip
    assert trace(members).shaped.batch_axes == {"x": None}
    assert prune(members, images(7, 9, 6), keep_units=0.5, method="l1", multiple_of=1).eval_images == 7
