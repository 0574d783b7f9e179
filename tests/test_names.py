"""A file may have any names, those too that the package gives to what it adds: the cut is the same, and as exact."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import ModelProto

import onnxshap
from onnxshap.backend import OrtBackend
from onnxshap.core import Dataset
from onnxshap.game import GroupGame, walks
from onnxshap.graph import Names
from onnxshap.masking import insert_masks, mask_name
from onnxshap.rewrite import drop_units
from onnxshap.tracing import trace
from tests import test_batching, test_branches, test_game, test_loops, test_repair, test_shared
from tests.cases import CASES
from tests.drawing import nets
from tests.exactness import check_exact, random_feeds
from tests.taken import heard, innocent, names_of, renamed, with_bystanders
from tests.zeroing import run

BY_PASS = {
    "what is added behind an op that takes means up": "matmul",
    "what a mean or a norm goes on counting": "group norm of one group over free space, opset 18",
    "roots of mean squares with computed scales": "rms norm with a computed scale",
    "what is left of a sum": "a mean of what is not zero where channels are removed",
    "zeros that are filled in": "lrn, opset 17",
    "positions that are gathered": "channel shuffle between grouped convs",
    "axes of a Squeeze": "squeeze and excite",
    "fused ops": "FusedConv",
    "a fused norm with positions": "SkipLayerNormalization of a sum with positions",
    "tables": "EmbedLayerNormalization of three tables, the sum and a mask counted",
    "codes": "QLinearConv, depthwise and grouped",
    "biases in codes": "QDQ",
    "arithmetic of sizes": "widths computed from shapes",
    "heads": "attention: heads and head size",
    "shared weights": "one weight used twice",
}
"""What adds something -> the case of `tests.cases` in which it does."""
MODELS: dict[str, ModelProto] = {
    **{what: next(c.model for c in CASES if c.name == name) for what, name in BY_PASS.items()},
    "images merged with windows": test_batching.FIXED["windows"],
    "sizes of one image": test_batching.FIXED["sizes of a Resize"],
    "one image's constants": test_batching.FIXED["class token"],
    "towers": test_shared.NETS["two towers that turn their weight"],
    "bodies of an If": test_branches.on_sum(
        test_branches.body(test_branches.WIDE, wa=(6, 10), wb=(10, 6)),
        test_branches.body(test_branches.OTHER, ua=(6, 9), ub=(9, 6)),
    ),
    "the body of a loop": test_loops.looped(test_loops.PAIR, w=(4, 8), u=(8, 4)),
}


def made_for(model: ModelProto) -> list[str]:
    """Return the names that a model does not have, of all that is run to cut it in every way."""
    with heard() as found:
        check_exact(model)
    own = names_of(model)
    return [name for name in found if name not in own and not name.startswith("zeroed_")]  # those are the oracle's


def drawn(model: ModelProto, names: list[str], seed: int) -> dict[str, str]:
    """Return some of the names for half of the tensors of a model; of the others the package makes its own."""
    rng = random.Random(seed)
    chosen = [name for name in innocent(model) if rng.random() < 0.5]
    return dict(zip(chosen, rng.sample(names, len(names)), strict=False))


# --- the names -------------------------------------------------------------------------------------------------------


def parsed(text: str) -> onnx.GraphProto:
    graph: onnx.GraphProto = onnx.parser.parse_graph(f"net {text}")
    return graph


def test_names_of_all_kinds_are_taken() -> None:
    graph = parsed("""(bool x, float w) => (float y) <float stored = {1.0}> {
        [node] a = Neg(w)
        y = If(x) <then_branch = t () => (float in_then) { [inner] in_then = Add(a, stored) },
                   else_branch = e () => (float in_else) <float held = {2.0}> { in_else = Identity(held) }>
    }""")
    names = Names(graph, ["outside"])
    taken = ["x", "w", "stored", "node", "a", "y", "in_then", "inner", "in_else", "held", "outside"]
    assert all(name in names for name in taken)
    assert [names.new(name) for name in taken] == [f"{name}.2" for name in taken]
    assert [names.new("z"), names.new("z"), names.new("a")] == ["z", "z.2", "a.3"]


def test_a_name_with_a_number_is_taken_too() -> None:
    names = Names(onnx.GraphProto(node=[onnx.NodeProto(output=["x", "x.2", "w.use3"])]))
    assert names.new("x") == "x.3"
    assert [names.numbered("w.use", 2) for _ in range(2)] == ["w.use2", "w.use4"]


def test_a_node_may_be_called_like_a_tensor_but_not_like_a_node() -> None:
    names = Names(parsed("(float x) => (float y) { [x] y = Neg(x) }"))
    assert [names.node("y"), names.node("y"), names.node("x")] == ["y", "y.2", "x.2"]
    new = names.new("z")
    assert names.node(new) != new, "a new name is for a tensor and its node"


def test_a_body_that_is_opened_keeps_its_names() -> None:
    graph = parsed("""(bool x, float w) => (float y) {
        y = If(x) <then_branch = t () => (float a) { [n] a = Neg(w) }, else_branch = e () => (float a) { a = Exp(w) }>
    }""")
    names = Names(graph)
    for branch, wanted in zip((a.g for a in graph.node[0].attribute), ("a.2", "a"), strict=True):
        names.opened(branch)  # the other branch still has a tensor of the name
        assert names.new("a") == wanted
    assert names.node("n") == "n"


def test_many_new_names_take_no_longer_each_than_few() -> None:
    names = Names(onnx.GraphProto())
    start = time.process_time()
    found = {names.new("w") for _ in range(100_000)}
    assert len(found) == 100_000
    assert time.process_time() - start < 5  # each looking through all before it would take minutes


# --- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_cut_is_exact_where_all_names_are_taken(model: ModelProto) -> None:
    names = made_for(model)
    for _ in range(2):  # and what is made instead of them
        crowded = with_bystanders(model, names)
        names += made_for(crowded)
    traced, others = trace(model), trace(crowded)
    assert [len(g) for g in others.groups] == [len(g) for g in traced.groups]
    halves = [{g.name: np.arange(len(g)) % 2 == 0 for g in one.groups} for one in (traced, others)]
    feeds = dict(random_feeds(model, traced.shaped.inputs, 0).inputs)
    plain, crowd = (run(drop_units(one, keep), feeds) for one, keep in zip((traced, others), halves, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(plain, crowd[:-1], strict=True))


@pytest.mark.parametrize("what", MODELS)
def test_a_cut_is_exact_where_tensors_are_called_like_what_is_added(what: str) -> None:
    model = MODELS[what]
    check_exact(renamed(model, drawn(model, made_for(model), len(what))))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=nets(most=6), seed=st.integers(0, 9))
def test_cuts_of_random_nets_are_exact_whatever_their_tensors_are_called(model: ModelProto, seed: int) -> None:
    other = renamed(model, drawn(model, made_for(model), seed))
    note(onnx.printer.to_text(other))
    check_exact(other, tolerance=3e-5)


def test_an_if_keeps_its_name_while_its_branches_stand_outside() -> None:
    plain = MODELS["bodies of an If"]
    folds = [name for name in made_for(plain) if name.endswith(".fold")]
    assert folds, "names of nodes alone"
    for name in folds:
        model = renamed(plain, {})
        choice = next(node for node in model.graph.node if node.op_type == "If")
        choice.name = name
        traced = trace(model)
        for data in test_branches.both_ways():
            check_exact(model, data=data)
        small = drop_units(traced, {g.name: np.arange(len(g)) % 2 == 0 for g in traced.groups})
        assert name in [node.name for node in small.graph.node if node.op_type == "If"]


def test_what_was_masked_is_masked_again() -> None:
    model = test_game.NETS["convolutions"]
    first, *others = trace(model).groups
    once = insert_masks(model, [first])
    traced = trace(once)
    assert [g.name for g in traced.groups] == [g.name for g in others], "the channels of a mask stay"
    twice = insert_masks(traced)
    feeds = dict(random_feeds(model, trace(model).shaped.inputs, 0).inputs)
    masks = {mask_name(g): (np.arange(len(g)) % 2)[None].astype(np.float32) for g in [first, *others]}
    assert np.array_equal(run(twice, feeds | masks)[0], run(insert_masks(model), feeds | masks)[0])


def test_a_model_with_masks_that_leave_means_behind_is_cut_like_any_other() -> None:
    model = test_game.NETS["convolutions"]
    first = trace(model).groups[0]
    means = {(site.node, site.input): np.ones(len(first)) for site in trace(model).sites([first])}
    check_exact(insert_masks(model, [first], means))


@pytest.mark.parametrize("name", ["1", "a.minus1"])
def test_groups_may_be_called_like_what_masks_are_made_of(name: str) -> None:
    check_exact(renamed(test_shared.NETS["two towers"], {"a": name}))


def test_the_mask_of_a_group_has_a_name_of_its_own() -> None:
    model = renamed(MODELS["what is added behind an op that takes means up"], {"b": "onnxshap.mask.a"})
    assert [g.name for g in trace(model).groups] == ["a#2"]
    check_exact(model)


@pytest.mark.parametrize(
    "case", ["Attention on three axes", "com.microsoft.Attention", "com.microsoft.MultiHeadAttention"]
)
def test_heads_are_no_tensors(case: str) -> None:
    """Rules keep them as axes of their own, by names like those of tensors."""
    one = next(c for c in CASES if c.name == case)
    ops = [n for n in one.model.graph.node if n.op_type.endswith("Attention")]
    heads = {f"{node.output[0]}.{name}" for node in ops for name in ("heads", "q", "kv")}
    others = [name for name in innocent(one.model) if all(name not in (*n.input, *n.output) for n in ops)]
    model = renamed(one.model, dict(zip(others, sorted(heads), strict=False)))
    assert [len(g) for g in trace(model).groups] == list(one.sizes)
    check_exact(model, tolerance=one.tolerance)


# --- from data to file -----------------------------------------------------------------------------------------------

FROM_DATA: Mapping[str, Mapping[str, Any]] = {
    "convolutions": {},
    "transposed and in groups": {"method": "l1", "repair": "fold"},
    "a GRU": {"method": "l1", "repair": "fold"},
    "an LSTM whose states nobody reads": {"method": "l1"},
    "bodies of an If": {},
    "the body of a loop": {"repair": "fold"},
    "one image's constants": {},
}


def called(model: ModelProto) -> ModelProto:
    """Return a model whose nodes have names of their own: groups are called like them, whatever tensors are called."""
    made = renamed(model, {})
    for k, node in enumerate(made.graph.node):
        node.name = f"n{k}"
    return made


def from_data(what: str) -> tuple[ModelProto, Dataset]:
    """Return a model and images that it is pruned with."""
    if what in ("a GRU", "an LSTM whose states nobody reads"):
        model, data = test_repair.recurrent("GRU" if what == "a GRU" else "LSTM whose states nobody reads")
        return called(model), data
    model = called(MODELS.get(what) or test_game.NETS[what])
    rng = np.random.default_rng(0)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim][1:] for i in model.graph.input}
    inputs = {name: rng.normal(size=(40, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return model, Dataset(inputs, None, "random")


@pytest.mark.parametrize("what", FROM_DATA)
def test_what_is_pruned_and_repaired_is_the_same_whatever_tensors_are_called(what: str) -> None:
    model, data = from_data(what)
    given = {"keep_units": 0.5, "samples": 8, "payoff": "mse", "repair": "lstsq", **FROM_DATA[what]}
    with heard() as found:
        plain = onnxshap.prune(model, data, **given)
    own = names_of(model)
    names = [name for name in found if name not in own]
    other = onnxshap.prune(renamed(model, drawn(model, names, len(what))), data, **given)
    assert [kept.tolist() for kept in other.keep.values()] == [kept.tolist() for kept in plain.keep.values()]
    assert [(one.before, one.after) for one in other.refits] == [(one.before, one.after) for one in plain.refits]
    feeds = {name: values[:1] for name, values in data.inputs.items()}
    got, wanted = (run(result.model, feeds) for result in (other, plain))
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("repair", ["fold", "lstsq"])
def test_what_was_pruned_is_pruned_again_and_again(repair: str) -> None:
    model, data = from_data("transposed and in groups")
    for _ in range(3):
        model = onnxshap.prune(model, data, keep_units=0.8, multiple_of=1, method="l1", repair=repair).model
    check_exact(model, tolerance=3e-5)


@pytest.mark.parametrize("least", [0, np.inf], ids=["running sums", "masks"])
def test_units_have_the_same_values_whatever_tensors_are_called(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "_LEAST_WORK", least)
    model = test_game.NETS["convolutions"]

    def values(model: ModelProto) -> list[list[bytes]]:
        shared, found = test_game.setting(model, filled=True), []
        for group in shared.traced.groups:
            with monkeypatch.context() as patch:  # the processor stands in for a device, where rows are gathered
                patch.setattr(OrtBackend, "on_device", least > 0)
                found.append([part.tobytes() for part in test_game.removed(GroupGame(shared, group))])
        return found

    with heard() as found:
        wanted = values(model)
    own = names_of(model)
    names = [name for name in found if name not in own]
    assert ("onnxshap.rows" if least else "weights") in names
    for name in ("ar", "br", "p", "f"):  # in front of, between and behind the masks
        assert values(renamed(model, {name: "onnxshap.rows"})) == wanted
        assert values(renamed(model, {name: "weights"})) == wanted
    for seed in range(3):
        assert values(renamed(model, drawn(model, names, seed))) == wanted
