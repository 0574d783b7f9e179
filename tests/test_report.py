"""Reports say what happened, the same twice; values files come back as they were, and anything else is refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import onnxshap
from onnxshap import report
from onnxshap.core import Array, Values
from onnxshap.errors import DataError, ModelError
from onnxshap.plan.judging import Drop, Estimate
from onnxshap.report.cells import count
from tests.nets import small as net


@pytest.fixture(scope="module")
def images() -> dict[str, Array]:
    rng = np.random.default_rng(6)
    return {"image": rng.normal(size=(12, 3, 4, 4)).astype(np.float32), "labels": rng.integers(0, 4, 12)}


@pytest.fixture(scope="module")
def pruned(images: dict[str, Array]) -> onnxshap.Pruned:
    return onnxshap.prune(net(), images, keep_units=0.5, samples=6, repair="fold")


@pytest.fixture
def scores() -> onnxshap.Scores:
    a = Values(np.array([0.1, -1e-17, 3.0]), np.array([0.0, 1 / 3, 2.0]), 12, spread=np.array([0.0, 1 / 7, 5.0]))
    values = {"a": a, "b": Values(*np.ones((2, 1)))}
    return onnxshap.Scores(values, "shapley", "ce", 3, 6, "x.npz", "0" * 64)


def text_of(*items: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.show(items, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_report_has_every_field_of_the_contract_and_tells_the_cut(pruned: onnxshap.Pruned) -> None:
    found = json.loads(report.as_json(report.prune_report(pruned, model="m.onnx", output="o.onnx", seed=0)))
    assert {"model": "m.onnx", "output": "o.onnx", "seed": 0, "schema_version": 1}.items() <= found.items()
    assert {"method": "shapley", "payoff": "ce", "repair": "fold", "evals": 96}.items() <= found.items()
    assert found["data"] == {"n": 6, "source": "memory"}
    assert found["eval_data"] == {"n": 12, "source": "memory"}
    assert {"trace", "score", "plan", "cut", "verify", "measure"} <= set(found["seconds"])
    (group,) = found["groups"]
    keep, values = pruned.keep["first"], pruned.scores.values["first"]
    assert (group["name"], group["units"], group["kept"]) == ("first", 8, 4)
    assert group["removed"] == [i for i in range(8) if not keep[i]] and len(group["removed"]) == 4
    assert group["values"] == values.phi.tolist() and group["stderr"] == values.stderr.tolist()
    assert group["producers"] == ["first"] and group["consumers"] == ["last"]
    (frozen,) = found["frozen"]
    assert (frozen["tensor"], frozen["axis"]) == ("scores", 1) and "output" in frozen["reason"]
    for side, figures in (("before", pruned.before), ("after", pruned.after)):
        assert found[side]["macs"] == figures.macs and found[side]["params"] == figures.params
        assert found[side]["bytes"] == figures.bytes and found[side]["latency_ms"] > 0
        assert found[side]["score"] == figures.score and set(figures.score) == {"ce", "accuracy", "agreement"}
    assert found["after"]["macs"] == found["before"]["macs"] / 2  # both layers lose half of their weights
    assert set(found["verify"]) == {"max_abs_err", "rel_err"} and found["verify"]["rel_err"] < 1e-5
    cut = {(s["initializer"], s["node"], s["input"], s["axis"]): s["indices"] for s in found["removed_slices"]}
    dead = group["removed"]
    assert cut == {
        ("first_w", "first_out", 1, 0): dead,
        ("first_b", "first_out", 2, 0): dead,
        ("last_w", "scores", 1, 1): dead,
    }


def test_the_documentation_names_every_field_of_the_report(pruned: onnxshap.Pruned) -> None:
    told = (Path(__file__).parent.parent / "docs" / "options.md").read_text().split("## Reports")[1]
    fields = report.prune_report(pruned, model="m.onnx", output="o.onnx", seed=0)
    assert [name for name in fields if f"`{name}`" not in told] == []


def test_two_runs_with_one_seed_report_the_same_but_for_times(
    pruned: onnxshap.Pruned, images: dict[str, Array]
) -> None:
    again = onnxshap.prune(net(), images, keep_units=0.5, samples=6, repair="fold")

    def timeless(result: onnxshap.Pruned) -> str:
        found = report.prune_report(result, model="m", output=None, seed=0)
        for part in (found, found["before"], found["after"]):
            part.pop("seconds", None)
            part.pop("latency_ms", None)
        return report.as_json(found)

    assert timeless(again) == timeless(pruned)
    other = onnxshap.prune(net(), images, keep_units=0.5, samples=6, repair="fold", seed=1)
    assert timeless(other) != timeless(pruned)


def test_groups_that_were_left_out_have_no_values_and_stay_whole(pruned: onnxshap.Pruned) -> None:
    bare = replace(pruned, keep={}, scores=replace(pruned.scores, values={}))
    (group,) = report.prune_report(bare, model="m", output=None, seed=0)["groups"]
    assert group["values"] is None and group["stderr"] is None
    assert group["kept"] == 8 and group["removed"] == []


def test_json_never_holds_nan(pruned: onnxshap.Pruned) -> None:
    figures = replace(pruned.after, latency_ms=float("nan"), score={"ce": float("-inf")})
    values = {"first": Values(np.full(8, np.nan), np.full(8, np.inf))}
    broken = replace(pruned, after=figures, scores=replace(pruned.scores, values=values))
    text = report.as_json(report.prune_report(broken, model="m", output=None, seed=0))
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    assert found["after"]["latency_ms"] is None and found["after"]["score"] == {"ce": None}
    assert found["groups"][0]["values"] == [None] * 8
    assert "-" in text_of(*report.prune_tables(found))  # a table can be drawn from it


def test_json_is_laid_out_for_people_and_says_the_same() -> None:
    value = {"b": [1.5, 2], "a": {"x": [], "y": [{"k": 1}, {"k": 'ü"'}]}, "n": None, "t": True, "e": {}}
    text = report.as_json(value)
    assert json.loads(text) == value and list(json.loads(text)) == list(value)
    assert '  "b": [1.5, 2],\n' in text and '      {"k": 1},\n' in text


def test_values_files_come_back_as_they_were(scores: onnxshap.Scores, tmp_path: Path) -> None:
    path, scores = tmp_path / "v.json", replace(scores, notes=("what to know of them",))
    report.write_json(report.values_report(scores), path)
    found = report.read_values(path)
    assert replace(found, values={}) == replace(scores, values={})
    assert list(found.values) == ["a", "b"]
    for name, values in scores.values.items():
        np.testing.assert_array_equal(found.values[name].phi, values.phi)
        np.testing.assert_array_equal(found.values[name].stderr, values.stderr)
        np.testing.assert_array_equal(found.values[name].spread, values.spread)
        assert found.values[name].evals == values.evals
    assert list(tmp_path.iterdir()) == [path]


def damaged(scores: onnxshap.Scores, *place: str, value: object) -> str:
    """A values file with something else in one place."""
    content = json.loads(report.as_json(report.values_report(scores)))
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("schema_version",), 2, "schema_version is 2, this program reads 1"),
        (("groups",), [], "lacks 'groups', or it is no object"),
        (("method",), None, "lacks 'method', or it is no string"),
        (("method",), "mine", "its 'method' is none of shapley, "),
        (("notes",), [7], "it has 'notes' that are no strings"),
        (("seed",), True, "lacks 'seed', or it is no integer"),
        (("model_sha256",), 7, "lacks 'model_sha256'"),
        (("payoff",), 7, "lacks 'payoff'"),
        (("groups", "a"), 1, "group 'a' is no object"),
        (("groups", "a", "evals"), "12", "group 'a' lacks 'evals'"),
        (("groups", "a", "values"), [1.0, 2.0], "group 'a' has 2 values and 3 stderr"),
        (("groups", "a", "stderr"), [1.0, -2.0, 0.0], "group 'a' has a stderr or a spread below 0"),
        (("groups", "a", "spread"), [-1.0, 2.0, 0.0], "group 'a' has a stderr or a spread below 0"),
        (("groups", "a", "values"), [1.0, None, 2.0], "group 'a' has 'values' that are no finite numbers"),
        (("groups", "a", "stderr"), [1.0, True, 2.0], "group 'a' has 'stderr' that are no finite numbers"),
        (("groups", "a", "values"), [1.0, float("nan"), 2.0], "has NaN"),
        (("groups", "a", "values"), [1.0, 10**400, 2.0], "no values file"),
    ],
)
def test_damaged_values_files_are_refused(
    place: tuple[str, ...], value: object, words: str, scores: onnxshap.Scores, tmp_path: Path
) -> None:
    path = tmp_path / "v.json"
    path.write_text(damaged(scores, *place, value=value))
    with pytest.raises(DataError) as caught:
        report.read_values(path)
    assert words in str(caught.value) and str(path) in str(caught.value) and "onnxshap score" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'"text"', b"[" * 100_000, b'{"schema_version": 1}']
)
def test_foreign_files_are_no_values_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no values file \(.*\); make one with `onnxshap score"):
        report.read_values(path)


def test_a_report_of_a_cut_is_no_values_file(pruned: onnxshap.Pruned, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    report.write_prune_report(report.prune_report(pruned, model="m", output=None, seed=0), path)
    with pytest.raises(DataError, match="no values file"):
        report.read_values(path)


def test_missing_values_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v\.json: cannot be read \(No such file"):
        report.read_values(tmp_path / "v.json")


def test_files_appear_whole_or_not_at_all(scores: onnxshap.Scores, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text("before")
    broken = {**report.values_report(scores), "images": object()}
    with pytest.raises(TypeError):
        report.write_json(broken, path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ModelError, match="cannot be written"):
        report.write_json(report.values_report(scores), tmp_path / "no" / "v.json")


def test_inspection_tells_what_one_unit_costs() -> None:
    found = report.inspection(onnxshap.trace(net()), model="m.onnx")
    (group,) = found["groups"]
    assert (group["name"], group["units"]) == ("first", 8)
    assert group["macs"] == 4 * 4 * 3 * 9 + 4  # a filter's and its column of the Gemm
    assert group["params"] == 3 * 9 + 1 + 4
    assert found["macs"] == 8 * group["macs"] and found["params"] == 8 * group["params"] + 4
    text = text_of(*report.inspection_tables(json.loads(report.as_json(found))))
    row = next(line for line in text.splitlines() if line.startswith("first"))
    assert row.split() == ["first", "channel", "8", "436", "32", "first", "last"]
    assert "scores, axis 1" in text and "model output" in text and "8 units in 1 group;" in text


def test_tables_tell_sizes_as_ratios_and_scores_as_differences(pruned: onnxshap.Pruned) -> None:
    found = report.prune_report(pruned, model="m", output=None, seed=0)
    found["before"] |= {"macs": 5_089_856, "bytes": 158_040, "latency_ms": 0.2, "score": {"ce": -0.25, "top": 1.0}}
    found["after"] |= {"macs": 2_544_928, "bytes": 900, "latency_ms": None, "score": {"ce": -0.5, "top": 1.0}}
    rows = [line.split() for line in text_of(*report.prune_tables(found)).splitlines()]
    assert ["MACs", "5.09", "M", "2.54", "M", "x", "0.500"] in rows
    assert ["file", "158", "kB", "900", "B", "x", "0.006"] in rows
    assert ["latency", "0.200", "ms", "-"] in rows
    assert ["ce", "-0.2500", "-0.5000", "-0.2500"] in rows
    assert ["top", "1.0000", "1.0000", "+0.0000"] in rows
    assert ["first", "8", "4", "50%", "last"] in rows


def test_scores_that_four_places_call_nothing_are_told_all_the_same(pruned: onnxshap.Pruned) -> None:
    found = report.prune_report(pruned, model="m", output=None, seed=0)
    found["before"]["score"], found["after"]["score"] = {"mse": 0.0, "same": 0.0}, {"mse": -7.7e-6, "same": -1e-12}
    rows = [line.split() for line in text_of(*report.prune_tables(found)).splitlines()]
    assert ["mse", "0.0000", "-7.7e-06", "-7.7e-06"] in rows
    assert ["same", "0.0000", "0.0000", "+0.0000"] in rows


def test_what_is_expected_of_other_images_is_told_where_more_is_known_of_them(pruned: onnxshap.Pruned) -> None:
    seen = Drop("accuracy", 0.02, 0.01, 40)
    told = "Lost: 0.0200 +- 0.0100 accuracy on 40 held-out images"
    for drop, text in (
        (seen, f"{told}.\n"),
        (replace(seen, expected=Estimate(0.01, 0.005)), f"{told}; of others 0.0100 +- 0.0050 is expected.\n"),
    ):
        found = report.prune_report(replace(pruned, drop=drop), model="m", output=None, seed=0)
        assert text in text_of(*report.prune_tables(found))


def test_scores_on_random_inputs_are_named_so(pruned: onnxshap.Pruned) -> None:
    found = report.prune_report(pruned, model="m", output=None, seed=0)
    assert "on noise" not in text_of(*report.prune_tables(found))
    found["eval_data"]["source"] = "random"
    assert "agreement on noise" in text_of(*report.prune_tables(found))


def test_names_are_shown_as_they_are_and_tables_fit_the_terminal(pruned: onnxshap.Pruned) -> None:
    found = report.prune_report(pruned, model="m", output=None, seed=0)
    found["groups"][0] |= {"name": "[red]/conv[/]", "consumers": ["/a/long/name/of/a/node"] * 9}
    text = text_of(*report.prune_tables(found), width=80)
    assert "[red]/conv[/]" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "and 6 more" in text_of(*report.prune_tables(found), width=300)


def test_scores_that_are_no_shares_of_images_say_what_much_is(images: dict[str, Array]) -> None:
    for payoff, told in (("mse", True), ("ce", False)):
        found = onnxshap.prune(net(), images, keep_units=0.5, samples=6, repair="fold", payoff=payoff)
        text = text_of(*report.prune_tables(report.prune_report(found, model="m", output=None, seed=0)), width=300)
        assert ("higher is better; mse is minus the squared error over the variance" in text) == told


def test_the_page_holds_the_tables_and_needs_nothing_else(pruned: onnxshap.Pruned, tmp_path: Path) -> None:
    found = report.prune_report(pruned, model="dir/<m>.onnx", output="o.onnx", seed=0)
    found["groups"][0]["name"] = "<script>first</script>"
    path = tmp_path / "r.HTML"
    report.write_prune_report(found, path)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "<title>onnxshap: &lt;m&gt;.onnx</title>" in page
    assert "parameters" in page and "accuracy" in page and "scores, axis 1 stays" in page and "o.onnx" in page
    assert "&lt;script&gt;first" in page and "<script" not in page
    assert "http" not in page and "src=" not in page
    report.write_prune_report(found, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("width", [80, 100])
def test_numbers_are_never_cut_whatever_the_names(width: int) -> None:
    """As of tf2onnx, where names tell the path of a layer through all scopes: they fold."""
    name = "StatefulPartitionedCall/" + "/".join(f"block_{i}_expand_relu" for i in range(9))
    model = net()
    for node in model.graph.node:
        node.name = f"{name}/{node.output[0]}"
    found = report.inspection(onnxshap.trace(model), model="m.onnx")
    (group,) = found["groups"]
    rows = [line.split() for line in text_of(*report.inspection_tables(found), width=width).splitlines()]
    first = next(row for row in rows if "channel" in row)
    assert first[1:-2] == ["channel", "8", *count(group["macs"]).split(), *count(group["params"]).split()]
    assert group["name"] in "".join(row[0] for row in rows if row)


def test_what_a_notebook_shows_of_a_result_is_its_figures(pruned: onnxshap.Pruned) -> None:
    shown = repr(pruned)
    assert "before=Figures(macs=" in shown and "repair='fold'" in shown and "ModelProto" not in shown
    assert len(shown) < 2000 and len(repr(pruned.traced)) < 500


def test_titles_as_long_as_a_path_fold_too(pruned: onnxshap.Pruned) -> None:
    found = report.prune_report(pruned, model="m.onnx", output=None, seed=0)
    names = [f"{letter * 150}.onnx" for letter in "ab"]
    drawn = text_of(report.figures_table(names, [found["before"], found["after"]], "memory"), width=80)
    rows = [line.split() for line in drawn.splitlines()]
    assert ["parameters", "260", "132", "x", "0.508"] in rows
    for column, name in enumerate(names):
        assert "".join(row[column] for row in rows[: [len(row) == 1 for row in rows].index(True)]) == name


def test_values_that_a_limit_ended_say_on_how_few_images_they_rest(images: dict[str, Array]) -> None:
    def told(**limits: Any) -> str:
        found = onnxshap.prune(net(), images, keep_units=0.5, repair="none", decided=0, **limits)
        items = report.prune_tables(report.prune_report(found, model="m.onnx", output=None, seed=0))
        return text_of(items[-1])

    whole, short = told(), told(max_evals=100)
    assert "that max-evals ended" not in whole
    assert "group" in short and "that max-evals ended)" in short
