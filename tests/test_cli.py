"""The commands as users meet them: results on stdout, the rest on stderr, one line and a code for what is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import onnxshap
from onnxshap import api, cli, opening, valuing
from onnxshap.cli.screen import Lines, Screen
from onnxshap.cli.sections import Option
from onnxshap.cli.shared import output_of
from onnxshap.core import Array
from onnxshap.errors import ModelError, VerifyError
from onnxshap.methods import Whole
from onnxshap.payoffs import NAMES
from onnxshap.plan import cutter
from onnxshap.plan.options import ALLOCATIONS, REPAIRS
from onnxshap.scoring import score_groups
from tests.commands import call, fine, refused
from tests.exactness import net as wide
from tests.nets import SMALL
from tests.nets import small as net

UNPRUNABLE = """<ir_version: 8, opset_import: ["" : 17]>
plain (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"""
ENDLESS = """<ir_version: 8, opset_import: ["" : 17]>
endless (float[N, 3] x) => (float[N, 4] y) <float[8, 3] w = {W}, float[4, 8] v = {V}, float[1] zero = {0.0}>
{ h = Gemm <transB = 1> (x, w) r = Relu (h) o = Gemm <transB = 1> (r, v) y = Div (o, zero) }""".replace(
    "W", ", ".join(["0.5"] * 24)
).replace("V", ", ".join(["0.25"] * 32))
RNG = np.random.default_rng(8)
IMAGES = RNG.normal(size=(8, 3, 4, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 8)
FEW = ("--samples", "4", "--keep-units", "0.5")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a model and data for it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "m.onnx")
    np.savez("d.npz", image=IMAGES, labels=LABELS)
    yield tmp_path


def run(path: Path | str, images: Array = IMAGES) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {"image": images})
    return outputs[0]


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    for part in (report, report.get("before", {}), report.get("after", {})):
        part.pop("seconds", None)
        part.pop("latency_ms", None)
    return report


# --- the main job ----------------------------------------------------------------------------------------------------


def test_prune_writes_a_smaller_model_beside_the_model(here: Path) -> None:
    result = fine("prune", "m.onnx", "--data", "d.npz", *FEW)
    assert run("m.pruned.onnx").shape == (8, 4)
    assert (here / "m.pruned.onnx").stat().st_size < (here / "m.onnx").stat().st_size
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["first", "8", "4", "50%", "last"] in rows
    assert {"MACs", "parameters", "file", "latency", "ce", "accuracy"} <= {row[0] for row in rows if row}
    assert result.stderr == "onnxshap: wrote m.pruned.onnx\n"
    assert sorted(path.name for path in here.iterdir()) == ["d.npz", "m.onnx", "m.pruned.onnx"]


def test_prune_alone_works_and_says_in_one_line_what_stands_in(here: Path) -> None:
    result = fine("prune", "m.onnx")
    note, wrote = result.stderr.splitlines()
    assert note.startswith("onnxshap: note: no --data: random inputs and a fidelity payoff")
    assert "keeping 50% of the MACs" in note and wrote == "onnxshap: wrote m.pruned.onnx"
    assert "on noise" in result.stdout and "random inputs" in result.stdout
    before, after = (onnxshap.trace(name).cost.macs() for name in ("m.onnx", "m.pruned.onnx"))
    assert after == before // 2


@pytest.mark.parametrize("command", ["prune", "sweep"])
def test_what_units_are_scored_by_is_told_before_they_are_and_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    events: list[str] = []

    def scoring(*arguments: Any) -> Any:
        events.append("scored")
        return score_groups(*arguments)

    monkeypatch.setattr(valuing, "score_groups", scoring)
    monkeypatch.setattr(Screen, "note", lambda _, text: events.append(text))
    monkeypatch.setattr(valuing, "RATE", 1)
    more = ["--keep", "0.5", "--eval-data", "d.npz"] if command == "sweep" else []
    limits = ((1, "note: units are valued by recon: 20 images"), (10**15, "note: shapley plays on"))
    for limit, told in limits:
        monkeypatch.setattr(valuing, "ASIDE", limit)
        events.clear()
        fine(command, "m.onnx", "--data", "d.npz", *more)
        (place,) = (k for k, text in enumerate(events) if text.startswith(told))
        assert place < events.index("scored")


@pytest.mark.parametrize("command", ["prune", "sweep"])
def test_options_of_a_game_that_is_not_played_are_told_to_have_no_effect(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(valuing, "ASIDE", 1)
    more = ["--keep", "0.5", "--eval-data", "d.npz"] if command == "sweep" else []
    said = fine(command, "m.onnx", "--data", "d.npz", "--baseline", "zero", "--workers", "2", *more).stderr
    assert "units are valued by recon" in said
    assert said.count("--baseline, --workers have no effect: recon is without a game") == 1
    assert "no effect" not in fine(command, "m.onnx", "--data", "d.npz", *more).stderr


def test_a_sweep_names_its_own_options_and_tells_what_changed_nothing(here: Path) -> None:
    for keep, told in (("2", "error: --keep is 2; give"), ("0.0001", "error: --keep 0.0001 cannot be reached")):
        assert told in call("sweep", "m.onnx", "--data", "d.npz", "--eval-data", "d.npz", "--keep", keep).stderr
    assert "error: --keep-macs is 2; give" in call("prune", "m.onnx", "--data", "d.npz", "--keep-macs", "2").stderr
    swept = ["sweep", "m.onnx", "--data", "d.npz", "--eval-data", "d.npz", "--keep", "0.5", "--method", "l1"]
    for more, times in (([], 0), (["--basis", "principal"], 1)):
        assert fine(*swept, *more).stderr.count("note: --basis principal: all units are the file's") == times


@pytest.mark.parametrize("share", ["0.5", "50%"])
def test_shares_are_numbers_or_percentages(here: Path, share: str) -> None:
    result = fine("prune", "m.onnx", "--data", "d.npz", "--samples", "2", "--keep-params", share, "--json")
    report = json.loads(result.stdout)
    assert 0.3 < report["after"]["params"] / report["before"]["params"] <= 0.5
    assert "note" not in result.stderr


def test_output_and_reports_go_where_they_are_wanted(here: Path) -> None:
    (here / "out").mkdir()
    Path("out/small.onnx").write_text("what was there before")
    common = ("prune", "m.onnx", "--data", "d.npz", *FEW, "-o", "out/small.onnx")
    first = fine(*common, "--report", "out/r.json")
    assert first.stderr == "onnxshap: wrote out/small.onnx and out/r.json\n"
    assert run("out/small.onnx").shape == (8, 4)
    report = json.loads(Path("out/r.json").read_text())
    assert (report["model"], report["output"]) == ("m.onnx", "out/small.onnx")
    assert report["data"] == {"n": 4, "source": "d.npz"} and report["eval_data"] == {"n": 8, "source": "d.npz"}
    assert report["after"]["bytes"] == Path("out/small.onnx").stat().st_size
    fine(*common, "--report", "out/r.html")
    assert "<h1>m.onnx</h1>" in Path("out/r.html").read_text()
    assert sorted(path.name for path in Path("out").iterdir()) == ["r.html", "r.json", "small.onnx"]


def test_one_seed_gives_the_same_bytes(here: Path) -> None:
    found = []
    for seed in ("0", "0", "1"):
        fine("prune", "m.onnx", "--data", "d.npz", *FEW, "--seed", seed, "--report", "r.json")
        found.append((Path("m.pruned.onnx").read_bytes(), timeless(json.loads(Path("r.json").read_text()))))
    assert found[0] == found[1]
    assert json.dumps(found[0][1]) == json.dumps(found[1][1])
    (group,), (other,) = found[0][1]["groups"], found[2][1]["groups"]
    assert group["values"] != other["values"]


def test_json_on_stdout_is_the_report(here: Path) -> None:
    result = fine("prune", "m.onnx", "--data", "d.npz", *FEW, "--json", "--report", "r.json")
    assert result.stdout == Path("r.json").read_text()


def test_a_dry_run_tells_everything_and_writes_nothing(here: Path) -> None:
    wet = timeless(json.loads(fine("prune", "m.onnx", "--data", "d.npz", *FEW, "--json").stdout))
    Path("m.pruned.onnx").unlink()
    result = fine("prune", "m.onnx", "--data", "d.npz", *FEW, "--json", "--dry-run", "--report", "r.json")
    why = "--report has no effect: a dry run writes nothing; --json prints the report"
    assert result.stderr == f"onnxshap: note: {why}\nonnxshap: dry run: nothing written\n"
    assert sorted(path.name for path in here.iterdir()) == ["d.npz", "m.onnx"]
    assert timeless(json.loads(result.stdout)) == {**wet, "output": None}


def test_include_and_exclude_choose_groups(here: Path) -> None:
    two_groups = SMALL.replace("[last]", "[middle] hidden = Gemm (flat, mid_w) warm = Relu (hidden) [last]")
    model = onnx.parser.parse_model(two_groups.replace("(flat, last_w", "(warm, last_w"))
    model.graph.initializer.extend(net().graph.initializer)
    model.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=(8, 8)).astype(np.float32), "mid_w"))
    onnx.save(model, "two.onnx")

    def kept(*options: str) -> dict[str, int]:
        result = fine("prune", "two.onnx", "--method", "l1", "--keep-units", "0.5", "--json", "--dry-run", *options)
        return {group["name"]: group["kept"] for group in json.loads(result.stdout)["groups"]}

    assert kept() == {"first": 4, "middle": 4}
    assert kept("--exclude", "mid*") == kept("--include", "first") == {"first": 4, "middle": 8}
    assert "pattern 'nothing*' matches no group" in refused("prune", "two.onnx", "--include", "nothing*")


# --- scores, eval, inspect -------------------------------------------------------------------------------------------


def test_values_are_scored_once_and_used_for_any_budget(here: Path) -> None:
    result = fine("score", "m.onnx", "--data", "d.npz", "--samples", "4", "-o", "v.json")
    assert result.stderr == "onnxshap: wrote v.json\n" and "first" in result.stdout
    values = json.loads(Path("v.json").read_text())
    direct = json.loads(fine("prune", "m.onnx", "--data", "d.npz", *FEW, "--json", "-o", "direct.onnx").stdout)
    reused = fine("prune", "m.onnx", "--data", "d.npz", *FEW, "--values", "v.json", "--json", "-o", "reused.onnx")
    assert direct["groups"] == json.loads(reused.stdout)["groups"]
    assert direct["groups"][0]["values"] == values["groups"]["first"]["values"]
    assert Path("direct.onnx").read_bytes() == Path("reused.onnx").read_bytes()


def test_values_of_principal_units_serve_cuts_and_sweeps(here: Path) -> None:
    model = wide(
        "(float[N,6] x) => (float[N,3] y) { h = MatMul(x, w0) g = MatMul(h, w1) r = Relu(g) y = MatMul(r, w2) }",
        w0=(6, 8), w1=(8, 16), w2=(16, 3),
    )  # fmt: skip
    onnx.save(model, "wide.onnx")
    np.savez("x.npz", x=RNG.normal(size=(60, 6)).astype(np.float32))
    common = ("wide.onnx", "--data", "x.npz")
    fine("score", *common, "--method", "recon", "--basis", "principal", "-o", "v.json")
    values = json.loads(Path("v.json").read_text())
    assert (values["basis"], list(values["bases"])) == ("principal", ["h"])
    fine("prune", *common, "--method", "recon", "-o", "direct.onnx")
    fine("prune", *common, "--values", "v.json", "-o", "reused.onnx")
    assert Path("direct.onnx").read_bytes() == Path("reused.onnx").read_bytes()
    said = refused("prune", *common, "--values", "v.json", "--basis", "own", "-o", "own.onnx")
    assert "--basis own needs values of its own units, these are of basis principal; leave --basis out" in said
    swept = fine("sweep", *common, "--values", "v.json", "--keep", "0.5", "--json")
    assert json.loads(swept.stdout)["turned"] == ["h"] and "the values may rest on images that are held" in swept.stderr
    seen = fine("sweep", *common, "--values", "v.json", "--keep", "0.5", "--eval-data", "x.npz").stderr
    assert "held out" not in seen


def test_score_names_its_file_after_the_model_and_prints_it_as_json(here: Path) -> None:
    result = fine("score", "m.onnx", "--data", "d.npz", "--samples", "2", "--method", "loo", "--json")
    assert result.stdout == Path("m.values.json").read_text()
    assert json.loads(result.stdout)["method"] == "loo"


def test_values_of_another_model_are_refused(here: Path) -> None:
    fine("score", "m.onnx", "--data", "d.npz", "--samples", "2", "-o", "v.json")
    other = net()
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "first_w"))
    onnx.save(other, "other.onnx")
    assert "another model" in refused("prune", "other.onnx", "--data", "d.npz", "--values", "v.json")
    assert "no values file" in refused("prune", "m.onnx", "--values", "m.onnx", "--dry-run")


def test_values_of_some_groups_serve_cuts_of_those(here: Path) -> None:
    model = wide(
        """(float[N,6] x) => (float[N,3] y)
        { h = MatMul(x, w0) a = Relu(h) g = MatMul(a, w1) b = Relu(g) y = MatMul(b, w2) }""",
        w0=(6, 8), w1=(8, 16), w2=(16, 3),
    )  # fmt: skip
    onnx.save(model, "two.onnx")
    np.savez("x.npz", x=RNG.normal(size=(6, 6)).astype(np.float32))
    common = ("two.onnx", "--data", "x.npz")
    fine("score", *common, "--method", "l1", "--include", "h", "-o", "v.json")
    told = refused("prune", *common, "--values", "v.json", "--keep-units", "0.5")
    assert "the values lack group" in told and "give the --include and --exclude that the model was scored with" in told
    fine("prune", *common, "--values", "v.json", "--keep-units", "0.5", "--include", "h")


def test_eval_puts_models_side_by_side(here: Path) -> None:
    fine("prune", "m.onnx", "--data", "d.npz", *FEW)
    both = json.loads(fine("eval", "m.onnx", "m.pruned.onnx", "--data", "d.npz", "--json").stdout)
    assert both["data"] == {"n": 8, "source": "d.npz"}
    first, second = both["models"]
    top = run("m.onnx").argmax(1)
    assert first["score"]["accuracy"] == (top == LABELS).mean() and first["score"]["agreement"] == 1.0
    assert second["score"]["agreement"] == (run("m.pruned.onnx").argmax(1) == top).mean()
    assert second["macs"] == first["macs"] / 2
    table = fine("eval", "m.onnx", "m.pruned.onnx", "--data", "d.npz").stdout
    assert "m.pruned.onnx" in table.splitlines()[0] and "x 0.500" in table
    assert "change" not in fine("eval", "m.onnx", "--data", "d.npz").stdout


def test_eval_takes_probabilities_for_what_they_are(here: Path) -> None:
    model = net()
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["scores"]))
    onnx.save(model, "p.onnx")
    found = json.loads(fine("eval", "m.onnx", "p.onnx", "--data", "d.npz", "--json").stdout)
    first, second = (m["score"]["ce"] for m in found["models"])
    assert second == pytest.approx(first, abs=1e-5)


def test_an_output_without_a_name_is_none(here: Path) -> None:
    assert "give -o another path" in refused("prune", "m.onnx", "-o", "", "--method", "l1")


def test_nobody_reads_the_errors(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["prune", "m.onnx", "--data", "d.npz", "-o", "small.onnx", *FEW])
    sys.stderr.close()
    assert ended.value.code == 0
    assert Path("small.onnx").exists()


def test_eval_refuses_models_that_do_not_compare(here: Path) -> None:
    Path("other.onnx").write_bytes(onnx.parser.parse_model(UNPRUNABLE).SerializeToString())
    line = refused("eval", "m.onnx", "other.onnx", "--data", "d.npz")
    assert "inputs are 'x'" in line
    assert "no such file" in refused("eval", "m.onnx", "missing.onnx")
    flat = onnx.parser.parse_model(
        UNPRUNABLE.replace("x)", "image)").replace(" x ", " image ").replace("3] x", "3] image")
    )
    onnx.save(flat, "flat.onnx")
    line = refused("eval", "m.onnx", "flat.onnx", "--data", "d.npz")
    assert "the second model's input 'image' has 2 dimensions, the first's 4" in line


def test_shapes_beside_data_are_theirs(here: Path) -> None:
    common = ("prune", "m.onnx", "--data", "d.npz", "--method", "l1", "--input-shape")
    assert "a shape is given for 'x', the model's inputs are 'image'" in refused(*common, "x=1,3,4,4")
    assert "the shape given [1, 3, 5, 4]; leave one of them out" in refused(*common, "image=1,3,5,4")
    fine(*common, "image=1,3,4,4")


def test_inspect_says_why_a_model_has_nothing_to_cut(here: Path) -> None:
    Path("plain.onnx").write_bytes(onnx.parser.parse_model(UNPRUNABLE).SerializeToString())
    why = "nothing can be cut: no weights make an axis"
    assert why in fine("inspect", "plain.onnx").stderr
    assert why in json.loads(fine("inspect", "plain.onnx", "--json").stdout)["notes"][0]
    assert "nothing can be cut" not in fine("inspect", "m.onnx").stderr


def test_inspect_lists_groups_and_what_stays(here: Path) -> None:
    table = fine("inspect", "m.onnx")
    assert table.stderr == "" and "scores, axis 1" in table.stdout
    found = json.loads(fine("inspect", "m.onnx", "--json").stdout)
    assert [(g["name"], g["units"], g["params"]) for g in found["groups"]] == [("first", 8, 32)]
    assert found["frozen"][0]["tensor"] == "scores"


def test_input_shapes_choose_free_dimensions(here: Path) -> None:
    onnx.save(onnx.parser.parse_model(SMALL.replace("3, 4, 4]", "3, H, W]")), "free.onnx")
    model = onnx.load("free.onnx")
    model.graph.initializer.extend(net().graph.initializer)
    onnx.save(model, "free.onnx")

    def inputs(*options: str) -> list[int]:
        shape: list[int] = json.loads(fine("inspect", "free.onnx", "--json", *options).stdout)["inputs"]["image"]
        return shape[1:]

    assert inputs("--input-shape", "image=1,3,6,10") == [3, 6, 10] != inputs()
    assert "'images', the model's inputs are 'image'" in refused(
        "inspect", "free.onnx", "--input-shape", "images=1,3,6,6"
    )
    assert "only free dimensions" in refused("inspect", "free.onnx", "--input-shape", "image=1,4,6,6")


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "baked.onnx", "baked.onnx"),
        ("sweep", "baked.onnx", "--keep", "0.5", "--method", "l1"),
        ("unify", "baked.onnx", "--keep-bytes", "0.9"),
        ("pivot", "baked.onnx", "--untimed"),
    ],
)
def test_every_command_tells_how_the_model_was_taken(here: Path, command: tuple[str, ...]) -> None:
    model = wide(
        """(float[N,3,4,4] image) => (float[N,128] y) {
            a = Conv<kernel_shape=[1,1]>(image, u) b = Relu(a) c = Conv<kernel_shape=[1,1]>(b, v) d = Relu(c)
            e = Conv<kernel_shape=[1,1]>(d, w) y = Reshape(e, apart)
        }""",
        u=(8, 3, 1, 1), v=(8, 8, 1, 1), w=(8, 8, 1, 1), apart=[2, 128],
    )  # fmt: skip
    onnx.save(model, "baked.onnx")
    np.savez("many.npz", image=np.repeat(IMAGES, 5, axis=0))
    result = fine(*command, "--data", "many.npz", "--json")
    (note,) = json.loads(result.stdout)["notes"]
    assert "takes 2 images" in note and f"onnxshap: note: {note}" in result.stderr.splitlines()


def test_a_sweep_tells_what_no_image_sees(here: Path) -> None:
    model = wide(
        "(float[N,3] x) => (float[N,4] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }",
        w=(3, 8), v=np.zeros((8, 4), np.float32),
    )  # fmt: skip
    onnx.save(model, "still.onnx")
    np.savez("x.npz", x=RNG.normal(size=(40, 3)).astype(np.float32))
    said = fine("sweep", "still.onnx", "--data", "x.npz", "--keep", "0.5", "--method", "l1", "--repair", "none").stderr
    assert (
        said == "onnxshap: note: x.npz, held out: the outputs did not change at all on these inputs: neither the "
        "scores nor the check say anything of the change; give --data that the model is meant for\n"
    )


def test_what_kills_the_process_says_where(here: Path) -> None:
    """Kernels of onnxruntime may: of integers, the least divided by -1."""
    Path("crash.py").write_text("import os, signal\n\ndef f():\n    os.kill(os.getpid(), signal.SIGFPE)\n")
    command = [sys.executable, "-m", "onnxshap", "prune", "m.onnx", "--data", "crash:f"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGFPE and done.stdout == ""
    assert done.stderr.startswith("Fatal Python error: Floating") and "crash.py" in done.stderr


def test_data_choose_free_dimensions_too(here: Path) -> None:
    model = onnx.parser.parse_model(SMALL.replace("3, 4, 4]", "3, H, W]"))
    model.graph.initializer.extend(net().graph.initializer)
    onnx.save(model, "free.onnx")
    np.save("images.npy", np.zeros((3, 3, 5, 9), np.float32))
    found = json.loads(fine("inspect", "free.onnx", "--json", "--data", "images.npy").stdout)
    assert found["inputs"]["image"][1:] == [3, 5, 9] and found["notes"] == []
    assert "no_such.npy" in refused("inspect", "free.onnx", "--data", "no_such.npy")


# --- bad input: exit code 1, one line, nothing written ---------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "prune", "score", "eval", "unify", "pivot"])
def test_missing_truncated_and_foreign_models_are_refused(here: Path, command: str) -> None:
    whole = Path("m.onnx").read_bytes()
    Path("truncated.onnx").write_bytes(whole[: len(whole) // 2])
    Path("text.onnx").write_text("this is no model\n")
    Path("empty.onnx").write_bytes(b"")
    assert "missing.onnx: no such file; give the path" in refused(command, "missing.onnx")
    assert "no/where.onnx: no such file" in refused(command, "no/where.onnx")
    assert "truncated.onnx: not an ONNX file, or a truncated one" in refused(command, "truncated.onnx")
    assert "text.onnx: not an ONNX file" in refused(command, "text.onnx")
    assert "empty.onnx: not an ONNX model" in refused(command, "empty.onnx")
    assert ".: cannot be read" in refused(command, ".")


WRONG = RNG.normal(size=(8, 3, 4, 5)).astype(np.float32)
NAN, INF = IMAGES.copy(), IMAGES.copy()
NAN[5, 1, 2, 3], INF[6, 0, 0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"picture": IMAGES}, "has 'picture', the model's inputs are 'image'"),
        ({"image": IMAGES, "extra": IMAGES}, "the model's inputs are 'image'"),
        ({"labels": LABELS}, "the model's inputs are 'image'"),
        ({"image": WRONG}, "shape [8, 3, 4, 5], the model wants [n, 3, 4, 4]"),
        ({"image": IMAGES[0]}, "shape [3, 4, 4], the model wants [n, 3, 4, 4]"),
        ({"image": IMAGES.astype(np.uint8)}, "is uint8, the model wants float32"),
        ({"image": IMAGES.astype(np.complex64)}, "is complex64, the model wants float32"),
        ({"image": IMAGES, "labels": LABELS[:5]}, "5 labels for 8 images"),
        ({"image": IMAGES, "labels": LABELS + 3}, "is not in [0, 4), the classes of output 'scores'"),
        ({"image": IMAGES, "labels": LABELS - 1}, "is not in [0, 4), the classes of output 'scores'"),
        ({"image": NAN}, "NaN or Inf (in float32) in row 5"),
        ({"image": INF}, "NaN or Inf (in float32) in row 6"),
        ({"image": IMAGES[:0]}, "is empty: give at least one image"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "score", "eval", "unify", "pivot"])
def test_data_that_do_not_fit_are_refused(here: Path, command: str, arrays: dict[str, Array], words: str) -> None:
    np.savez("bad.npz", **arrays)  # type: ignore[arg-type]
    line = refused(command, "m.onnx", "--data", "bad.npz")
    assert words in line and "bad.npz" in line


def test_data_files_that_cannot_be_read_are_refused(here: Path) -> None:
    Path("cut.npz").write_bytes(Path("d.npz").read_bytes()[:300])
    Path("data.pkl").write_bytes(b"")
    (here / "folder").mkdir()
    assert "missing.npz: no such file or folder" in refused("prune", "m.onnx", "--data", "missing.npz")
    assert "cut.npz: cannot be read as .npz" in refused("prune", "m.onnx", "--data", "cut.npz")
    assert "data.pkl: cannot read .pkl" in refused("prune", "m.onnx", "--data", "data.pkl")
    assert "folder: no images" in refused("prune", "m.onnx", "--data", "folder")
    assert "missing.txt: cannot be read" in refused("prune", "m.onnx", "--data", "d.npz", "--labels", "missing.txt")


def test_labels_of_a_file_of_their_own_are_checked_too(here: Path) -> None:
    Path("few.txt").write_text("1\n2\n")
    Path("words.csv").write_text("cat\n" * 8)
    assert "2 labels for 8 images" in refused("prune", "m.onnx", "--data", "d.npz", "--labels", "few.txt")
    assert "line 1 is 'cat'" in refused("prune", "m.onnx", "--data", "d.npz", "--labels", "words.csv")


def test_outputs_with_inf_are_refused(here: Path) -> None:
    Path("endless.onnx").write_bytes(onnx.parser.parse_model(ENDLESS).SerializeToString())
    np.save("x.npy", np.ones((4, 3), np.float32))
    for command in ("prune", "score"):
        line = refused(command, "endless.onnx", "--data", "x.npy")
        assert "x.npy: output 'y' of the original model has NaN or Inf" in line
        assert "check the data" in line
    assert "NaN or Inf" in refused("eval", "endless.onnx", "--data", "x.npy")


def test_random_inputs_that_give_inf_are_not_the_users(here: Path) -> None:
    model = onnx.parser.parse_model(ENDLESS)
    Path("endless.onnx").write_bytes(model.SerializeToString())
    line = refused("prune", "endless.onnx", "--method", "random")
    assert "random: output 'y'" in line
    assert "give --data" in line
    assert "check the data" not in line


def test_evaluation_data_are_checked_before_the_scoring(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnxshap.METHODS, "shapley", Whole(unreachable))
    np.savez("unlabelled.npz", image=IMAGES)
    np.savez("bad.npz", image=IMAGES, labels=LABELS + 9)
    common = ("prune", "m.onnx", "--data", "d.npz", "--eval-data")
    assert "unlabelled.npz: payoff 'ce': there are no labels" in refused(*common, "unlabelled.npz")
    assert "bad.npz: labels" in refused(*common, "bad.npz")
    assert "missing.npz: no such file" in refused(*common, "missing.npz")


def unreachable(*_: object) -> Any:
    raise AssertionError("scored what was to be refused first")


def test_impossible_budgets_are_refused_before_the_scoring(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnxshap.METHODS, "shapley", Whole(unreachable))
    common = ("prune", "m.onnx", "--data", "d.npz")
    assert "--keep-macs 0.01 cannot be reached: the smallest allowed plan keeps 0.125" in refused(
        *common, "--keep-macs", "0.01"
    )
    assert "keep-params 0.1 cannot be reached" in refused(*common, "--keep-params", "10%")
    assert "keeps 0.500" in refused(*common, "--keep-macs", "0.4", "--min-units", "4")
    told = refused(*common, "--keep-macs", "0.2", "--keep-units", "0.5")
    assert "--keep-units 0.5 beside it, which settles all widths, keeps 0.500" in told and "lower --keep-units" in told
    for share in ("0", "1.5", "-0.5", "120%", "nan", "50"):
        assert "give the share to keep, above 0 and at most 1" in refused(*common, f"--keep-macs={share}")
    assert "min-units is 0" in refused(*common, "--min-units", "0")
    assert "multiple-of is 0" in refused(*common, "--multiple-of", "0")
    assert "samples is 0; give at least 1" in refused(*common, "--samples", "0")


def test_too_few_evaluations_are_refused(here: Path) -> None:
    result = call("prune", "m.onnx", "--data", "d.npz", *FEW, "--max-evals", "3")
    assert result.exit_code == 1 and "group 'first'" in result.stderr and len(result.stderr.splitlines()) == 1


def test_models_without_anything_to_cut_are_refused(here: Path) -> None:
    Path("plain.onnx").write_bytes(onnx.parser.parse_model(UNPRUNABLE).SerializeToString())
    assert "nothing can be cut: no weights make an axis" in refused("prune", "plain.onnx")
    assert "nothing can be cut: --include and --exclude leave no group" in refused("prune", "m.onnx", "--exclude", "*")
    assert "0 units in 0 groups" in fine("inspect", "plain.onnx").stdout


def test_outputs_that_cannot_be_written_are_refused_before_the_scoring(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxshap.opening.given.open_model", unreachable)
    (here / "folder").mkdir()
    for command in ("prune", "score"):
        common = (command, "m.onnx", "--data", "d.npz")
        assert "no/x.onnx: cannot be written (No such file or directory)" in refused(*common, "-o", "no/x.onnx")
        assert "d.npz/x: cannot be written (Not a directory)" in refused(*common, "-o", "d.npz/x")
        assert "folder: is no plain file" in refused(*common, "-o", "folder")
        assert "the output path is empty; give -o another path" in refused(*common, "-o", "")
        assert "m.onnx: would replace the model; give -o another path" in refused(*common, "-o", "folder/../m.onnx")
        assert "d.npz: would replace --data" in refused(*common, "-o", "d.npz")
    common = ("prune", "m.onnx", "--data", "d.npz")
    assert "no/r.json: cannot be written" in refused(*common, "--report", "no/r.json")
    assert "x.json: would replace -o" in refused(*common, "-o", "x.json", "--report", "x.json")


def test_a_folder_that_becomes_unwritable_leaves_nothing_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Path("m.pruned.onnx").write_text("before")
    monkeypatch.setattr("onnxshap.graph.writing.write_whole", full)
    assert "m.pruned.onnx: cannot be written (No space left on device)" in refused(
        "prune", "m.onnx", "--data", "d.npz", *FEW
    )


def test_a_report_that_cannot_be_written_leaves_no_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if "r.json" in path.name or "s.json" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    common = ("prune", "m.onnx", "--data", "d.npz", *FEW)
    assert "r.json: cannot be written (No space left on device)" in refused(*common, "--report", "r.json")
    result = call("sweep", "m.onnx", "--data", "d.npz", "--eval-data", "d.npz", "--keep", "0.5", "-o", "s.json",
                  "--samples", "4", "--plot", "s.svg")  # fmt: skip
    assert result.exit_code == 1 and not Path("s.svg").exists()


def test_names_as_long_as_a_file_may_have_are_written(here: Path) -> None:
    name = "x" * 250 + ".onnx"
    assert fine("prune", "m.onnx", "--data", "d.npz", *FEW, "-o", name).stderr == f"onnxshap: wrote {name}\n"
    assert run(name).shape == (8, 4)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 251 + ".json"])
def test_names_that_are_too_long_are_refused_before_the_scoring(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("onnxshap.opening.given.open_model", unreachable)
    for command in ("prune", "score"):
        assert "cannot be written (File name too long)" in refused(command, "m.onnx", "--data", "d.npz", "-o", name)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    said = refused("prune", f"{name}x" * 2)
    assert "File name too long" in said or "no such file" in said


def test_a_result_that_cannot_be_printed_is_one_error(here: Path) -> None:
    command = [sys.executable, "-m", "onnxshap", "inspect", "m.onnx"]
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr == (
        "onnxshap: error: the result cannot be printed (No space left on device); print it elsewhere\n"
    )
    closed = subprocess.run(["sh", "-c", f"{' '.join(command)} >&-"], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_names_of_a_file_are_shown_as_a_terminal_may_show_them(here: Path) -> None:
    model = net()
    model.graph.node[0].input[0] = "\x1b[31m" + "long" * 2000
    onnx.save(model, "odd.onnx")
    said = refused("inspect", "odd.onnx")
    assert "\x1b" not in said and "\\x1b[31m" in said and len(said) < 2000 and said.endswith("export it again")


def test_a_cut_that_fails_its_checks_exits_with_3_and_writes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: object) -> None:
        raise VerifyError("the cut model differs from its masked twin by 1")

    monkeypatch.setattr(cutter, "verify", differs)
    assert "differs" in refused("prune", "m.onnx", "--data", "d.npz", *FEW, "--report", "r.json", code=3)


# --- usage, notes, trouble -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prune",), "Missing argument 'MODEL'"),
        (("prune", "m.onnx", "--keep-macs", "half"), "'half' is no share; give one like 0.5 or 50%"),
        (("prune", "m.onnx", "--method", "magic"), "'magic' is not one of 'shapley'"),
        (("prune", "m.onnx", "--payoff", "joy"), "'joy' is not one of 'ce'"),
        (("prune", "m.onnx", "--report", "r.txt"), "'r.txt': a report ends in .json or .html"),
        (("prune", "m.onnx", "--labels", "l.txt"), "--labels needs --data"),
        (("prune", "m.onnx", "--values", "v.json", "--method", "l1"), "leave out --method"),
        (("sweep", "m.onnx", "--values", "v.json", "--method", "l1"), "leave out --method"),
        (("prune", "m.onnx", "--input-shape", "image"), "give one like NAME=1,3,48,192"),
        (("inspect", "m.onnx", "--input-shape", "image=1,0,3"), "give one like NAME=1,3,48,192"),
        (("inspect", "m.onnx", "--provider", "abacus"), "'abacus' is not one of 'cpu'"),
        (("score", "m.onnx", "--memory", "many"), "'many' is no size; give bytes, or one like 512M or 4G"),
        (("score", "m.onnx", "--memory", "0"), "'0' is no size; give bytes, or one like 512M or 4G"),
        (("shrink", "m.onnx"), "No such command 'shrink'"),
    ],
)
def test_usage_errors_exit_with_2(here: Path, arguments: tuple[str, ...], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stdout == ""


def test_every_option_reaches_the_library(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def record(*arguments: object, **options: Any) -> None:
        given.append({"arguments": arguments, **options})
        raise ModelError("recorded")

    monkeypatch.setattr(api, "prune", record)
    monkeypatch.setattr(api, "score", record)
    monkeypatch.setattr(opening, "open_model", record)
    run = shlex.split("--provider cuda --threads 3 --input-shape a=1,2 --input-shape b=c=4 --seed 5")
    data = shlex.split("m.onnx --data d.npz --labels l.npy --payoff mse")
    score = shlex.split(
        "--method l2 --baseline zero --samples 7 --memory 2M --max-evals 99 --max-seconds 9 --decided 0.2 "
        "--journal j.journal --workers 2 --cluster tcp://c:1 --include i --include j --exclude e"
    )
    cut = shlex.split(
        "--keep-macs 0.4 --keep-params 0.6 --keep-units 0.7 --keep-bytes 0.8 --target-latency 1.5 --max-drop 0.01 "
        "--multiple-of 4 --min-units 2 --allocation uniform --distill-seconds 33 --basis own --repair none "
        "--low-rank spatial"
    )
    scoring = (*run, *data, *score)
    refused("prune", *scoring, *cut, "--eval-data", "e.npz", "-o", "out.onnx")
    refused("score", *scoring, "--basis", "principal")
    refused("eval", *run, *data)
    everywhere = {
        "arguments": ("m.onnx", "d.npz"), "labels": "l.npy", "seed": 5, "backend": onnxshap.OrtBackend("cuda", 3),
        "input_shapes": {"a": [1, 2], "b=c": [4]},
    }  # fmt: skip
    scored = {
        "backend": onnxshap.OrtBackend("cuda", 3, 2**21),
        "payoff": "mse", "method": "l2", "baseline": "zero", "samples": 7, "max_evals": 99, "include": ("i", "j"),
        "exclude": ("e",), "max_seconds": 9.0, "decided": 0.2, "journal": "j.journal", "workers": 2,
        "cluster": "tcp://c:1",
    }  # fmt: skip
    pruned = {
        "keep_macs": 0.4, "keep_params": 0.6, "keep_units": 0.7, "multiple_of": 4, "min_units": 2,
        "eval_data": "e.npz", "repair": "none", "output": "out.onnx", "values": None,
        "keep_bytes": 0.8, "target_latency": 1.5, "max_drop": 0.01, "allocation": "uniform", "distill_seconds": 33.0,
        "low_rank": "spatial", "basis": "own",
    }  # fmt: skip
    for found in given:
        found.pop("progress", None)
        found.pop("beside", None)
        found.pop("say", None)
    assert given == [{**everywhere, **scored, **pruned}, {**everywhere, **scored, "basis": "principal"}, everywhere]


def test_choices_are_the_librarys(here: Path) -> None:
    text = " ".join(call("prune", "--help").stdout.split())
    assert f"--method NAME How to value units. [default: {valuing.METHOD}; " in text
    assert ", ".join(onnxshap.METHODS) in text
    for names in (NAMES, valuing.BASELINES, REPAIRS, ALLOCATIONS, [*onnxshap.backend.PROVIDERS, "auto"]):
        assert f"[{'|'.join(names)}]" in text.replace("| ", "|")


def test_auto_says_what_it_took(here: Path) -> None:
    said = fine("inspect", "m.onnx", "--provider", "auto").stderr
    assert "provider: cpu" in said or "provider: cuda" in said


def test_quiet_says_nothing_and_verbose_more(here: Path) -> None:
    assert fine("prune", "m.onnx", "-q").stderr == ""
    loud = fine("prune", "m.onnx", "--data", "d.npz", *FEW, "-v").stderr
    assert "onnxshap: scores, axis 1 stays: " in loud and "onnxshap: seconds: trace 0." in loud
    Path("text.onnx").write_text("this is no model\n")
    lines = call("prune", "text.onnx", "-v").stderr.splitlines()
    assert len(lines) > 1 and lines[0].startswith("onnxshap: error: ")
    assert lines[1].startswith("onnxshap: caused by DecodeError")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--normalize", "imagenet"), "--normalize has no effect: there are no images, which --data gives"),
        (("--workers", "2", "--decided", "0.1"), "--decided, --workers have no effect: l1 is without a game"),
        (("--baseline", "zero"), "--baseline has no effect: l1 is without a game"),
        (("--method", "taylor", "--baseline", "mean"), "--baseline has no effect: taylor leaves nothing"),
        (("--distill-seconds", "9"), "--distill-seconds has no effect: nothing is distilled without --repair distill"),
        (("--allocation", "uniform", "--keep-units", "0.5"), "--allocation has no effect: --keep-units says"),
    ],
)
def test_options_without_effect_are_told(here: Path, arguments: tuple[str, ...], words: str) -> None:
    common = ("prune", "m.onnx", "--method", "l1", "--samples", "2", "--keep-macs", "0.5")
    said = fine(*common, *arguments).stderr.splitlines()
    (told,) = [line for line in said if "no effect" in line]
    assert told.startswith("onnxshap: note: ") and words in told
    assert "no effect" not in fine(*common).stderr + fine(*common, *arguments, "-q").stderr


def test_options_without_effect_are_told_by_every_command(here: Path) -> None:
    common = ("--data", "d.npz", "--eval-data", "d.npz")
    said = fine(
        "sweep", "m.onnx", *common, "--keep", "0.5", "--method", "l1", "--method", "l2", "--workers", "2"
    ).stderr
    assert "note: --workers has no effect: l1, l2 is without a game" in said
    said = fine(
        "sweep", "m.onnx", *common, "--keep", "0.5", "--method", "l1", "--method", "loo", "--decided", "0"
    ).stderr
    assert "no effect" not in said
    assert (
        "--normalize has no effect" in fine("unify", "m.onnx", "--keep-bytes", "0.9", "--normalize", "0.5/0.5").stderr
    )
    fine("score", "m.onnx", "--data", "d.npz", "--samples", "2", "-o", "v.json")
    more = ("--baseline", "zero", "--samples", "2")
    said = fine("prune", "m.onnx", "--data", "d.npz", "--values", "v.json", *more).stderr
    assert "--baseline, --samples have no effect: --values brings its own values" in said


def test_a_latency_that_the_model_has_is_told_beside_other_budgets(here: Path) -> None:
    said = fine("prune", "m.onnx", "--method", "l1", "--target-latency", "1e6", "--keep-macs", "0.5").stderr
    assert "note: --target-latency had no effect: the model itself ran in " in said
    alone = ("prune", "m.onnx", "--data", "d.npz", "--method", "l1", "--target-latency", "1e6")
    assert "the model already runs in" in refused(*alone)


@pytest.mark.parametrize("taken", [1.5, 2.5])
def test_a_smaller_model_that_takes_longer_is_told_of(
    here: Path, monkeypatch: pytest.MonkeyPatch, taken: float
) -> None:
    monkeypatch.setattr("onnxshap.evaluation.latencies", lambda *_: [2.0, taken])
    said = fine("prune", "m.onnx", "--method", "l1", "--keep-macs", "0.5").stderr
    assert ("took longer here, 2.5 ms for 2:" in said) == (taken > 2)


def test_accuracy_as_a_payoff_is_warned_of(here: Path) -> None:
    result = fine("score", "m.onnx", "--data", "d.npz", "--samples", "2", "--payoff", "accuracy")
    assert "onnxshap: warning: payoff accuracy" in result.stderr


def broken(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api, "prune", raising)


def test_what_nobody_expected_is_one_line_and_with_v_the_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(KeyError("odd\nkey"), monkeypatch)
    result = call("prune", "m.onnx")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("onnxshap: internal error: KeyError: ") and "run with -v for the traceback" in line
    result = call("prune", "m.onnx", "-v")
    assert result.exit_code == 1 and "Traceback (most recent call last)" in result.stderr


def test_too_little_memory_is_no_internal_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(MemoryError("Unable to allocate 3.00 TiB"), monkeypatch)
    assert refused("prune", "m.onnx").startswith(
        "onnxshap: error: out of memory (Unable to allocate 3.00 TiB); a smaller"
    )


def test_messages_of_several_lines_become_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(ModelError("first\n  second"), monkeypatch)
    assert refused("prune", "m.onnx") == "onnxshap: error: first second"


def test_an_interrupt_exits_with_130_without_a_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(KeyboardInterrupt(), monkeypatch)
    result = call("prune", "m.onnx")
    assert (result.exit_code, result.stderr, result.stdout) == (130, "onnxshap: interrupted\n", "")


def test_an_interrupt_that_a_library_takes_for_an_error_is_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those in C++ do while they are imported, and as a function of the user's may."""
    for error in (ImportError("initialization failed"), ModelError("failed")):
        error.__cause__ = KeyboardInterrupt()
        broken(error, monkeypatch)
        result = call("prune", "m.onnx")
        assert (result.exit_code, result.stderr, result.stdout) == (130, "onnxshap: interrupted\n", "")


def test_a_signal_that_ends_a_run_is_no_exit_of_a_function(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told as data that cannot be read, or as an ImportError of what was being imported."""
    lines = ("import os, signal", "def f():", "    os.kill(os.getpid(), signal.SIGTERM)")
    Path("ends.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(here))
    result = call("score", "m.onnx", "--data", "ends:f")
    assert (result.exit_code, result.stderr, result.stdout) == (128 + signal.SIGTERM, "", "")


def test_an_interrupt_before_there_is_a_command_is_one(here: Path) -> None:
    Path("click.py").write_text("raise KeyboardInterrupt")
    command = [sys.executable, "-c", "from onnxshap.cli import main"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "onnxshap: interrupted\n")


def test_an_interrupt_of_code_given_as_text_is_one_like_others(here: Path) -> None:
    """As of what a dataclass makes of itself while modules are imported: the exit code was -2."""
    Path("click.py").write_text("exec('raise KeyboardInterrupt')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    command = [sys.executable, "-m", "onnxshap", "inspect", "m.onnx"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "onnxshap: interrupted\n")


def test_a_function_that_prints_leaves_stdout_to_the_results(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("loud.py").write_text(
        "import numpy as np\ndef f():\n    print('noise')\n    return np.load('d.npz')['image']\n"
    )
    result = fine("prune", "m.onnx", "--data", "loud:f", "--method", "l1", "--keep-macs", "0.5", "--json")
    assert json.loads(result.stdout)["data"]["source"] == "loud:f" and "noise" in result.stderr.splitlines()


@pytest.mark.parametrize("option", ["--data", "--eval-data", "--labels"])
def test_an_empty_path_is_not_the_folder_one_is_in(here: Path, option: str) -> None:
    """As of a variable that is not set."""
    pictures()
    given = {"--data": "d.npz", option: ""}
    for more in ((), ("--normalize", "imagenet")) if option == "--data" else ((),):
        said = refused("prune", "m.onnx", *(part for pair in given.items() for part in pair), *more, "--method", "l1")
        assert "is empty: give .np" in said


def test_too_few_images_are_told_before_the_scoring(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valuing, "score_groups", unreachable)
    for allocation in ("curves", "iterative"):
        said = refused("prune", "m.onnx", "--data", "d.npz", "--keep-macs", "0.5", "--allocation", allocation)
        assert f"allocation {allocation} needs at least 34 images" in said
    np.savez("few.npz", **{name: values[:3] for name, values in np.load("d.npz").items()})
    for command in (("prune",), ("sweep", "--eval-data", "d.npz")):
        assert "lstsq needs at least 5 images" in refused(*command, "m.onnx", "--data", "few.npz", "--repair", "lstsq")


def test_every_command_documents_every_option() -> None:
    for command in cli.main.commands.values():
        assert command.help
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, f"{command.name} {option.name}"


def test_the_help_lists_commands_in_full_and_options_by_section() -> None:
    listed = call("--help").stdout.split("Commands:")[1]
    assert "..." not in listed
    assert [line.split()[0] for line in listed.splitlines() if line] == list(cli.main.commands)
    for name, command in cli.main.commands.items():
        titles = [line[:-1] for line in call(name, "--help").stdout.splitlines() if re.fullmatch(r"\w+:", line)]
        assert titles == list(dict.fromkeys(titles)) and titles[-1] == "Options"
        own = [option for option in command.params if isinstance(option, click.Option)]
        assert all(isinstance(option, Option) and option.section in titles[:-1] for option in own)


def test_the_help_fits_a_terminal() -> None:
    for name in cli.main.commands:
        assert max(map(len, call(name, "--help").stdout.splitlines())) <= 80, name


# --- as a process ----------------------------------------------------------------------------------------------------


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxshap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_module_runs_with_results_alone_on_stdout(here: Path) -> None:
    done = process("prune", "m.onnx", "--samples", "2", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == "m.onnx"
    note, wrote = done.stderr.splitlines()
    assert "no --data" in note and wrote == "onnxshap: wrote m.pruned.onnx"


def test_a_model_may_come_through_a_pipe(here: Path) -> None:
    command = [sys.executable, "-m", "onnxshap", "prune", "/dev/stdin", "-o", "small.onnx", "--method", "l1", "-q"]
    with subprocess.Popen(["cat", "m.onnx"], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(command, stdin=cat.stdout, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "") and run("small.onnx").shape == (8, 4)


def test_a_dash_is_stdin_and_no_output(here: Path) -> None:
    """Stdin says no name: one made of /dev/stdin would be written beside the devices."""

    def piped(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "onnxshap", "prune", "-", "--method", "l1", "-q", *options]
        with Path("m.onnx").open("rb") as stream:
            return subprocess.run(command, stdin=stream, capture_output=True, text=True, timeout=60, check=False)

    done = piped("-o", "small.onnx")
    assert (done.returncode, done.stderr) == (0, "") and run("small.onnx").shape == (8, 4)
    nameless = piped()
    assert nameless.returncode == 2 and "is no name that the output's could be made of: give -o" in nameless.stderr
    with pytest.raises(click.UsageError, match="give -o"):
        output_of(None, "/proc/self/fd/63", ".pruned.onnx")
    assert output_of(None, "/dev/shm/m.onnx", ".pruned.onnx") == "/dev/shm/m.pruned.onnx"  # a folder as others
    result = call("prune", "m.onnx", "--method", "l1", "-o", "-")
    assert result.exit_code == 2 and "stdout carries tables" in result.stderr and not Path("-").exists()


def test_names_that_the_locale_lacks_are_written(here: Path) -> None:
    command = [sys.executable, "-m", "onnxshap", "prune", "m.onnx", "--method", "l1", "-q", "-o", "\u00e9.onnx"]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and run("\u00e9.onnx").shape == (8, 4)


def test_a_process_fails_with_one_line_and_its_code(here: Path) -> None:
    done = process("prune", "missing.onnx")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "onnxshap: error: missing.onnx: no such file; give the path of an .onnx model\n"
    assert process("prune").returncode == 2


def test_help_does_not_load_the_library(here: Path) -> None:
    code = (
        "import sys; from onnxshap.cli import main; main(['--help'], standalone_mode=False); "
        "sys.exit(bool({'onnx', 'numpy', 'onnxruntime', 'scipy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "inspect" in done.stdout and done.stderr == ""
    assert f"version {onnxshap.__version__}" in call("--version").stdout


def test_a_look_at_a_model_loads_nothing_that_changes_it(here: Path) -> None:
    code = (
        "import sys; from onnxshap.cli import main; main(['inspect', 'm.onnx'], standalone_mode=False); "
        "sys.exit(any(name in sys.modules for name in ('onnxshap.api', 'onnxshap.plan', 'onnxshap.repair')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "units" in done.stdout


def test_a_prune_loads_no_library_that_few_models_need(here: Path) -> None:
    code = (
        "import sys, onnxshap.api, onnxshap.report; "
        "sys.exit(bool({'scipy.optimize', 'onnx_graphsurgeon', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_threads_are_numpys_too() -> None:
    code = (
        "from threadpoolctl import threadpool_info\n"
        "from onnxshap.cli.shared import backend_of\n"
        "backend_of(None, 'cpu', 1)\n"
        "import numpy.linalg, scipy.linalg\n"
        "print({one['num_threads'] for one in threadpool_info() if one['user_api'] == 'blas'})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "{1}\n"


def test_where_no_bar_is_shown_lines_tell_of_long_stages() -> None:
    said: list[str] = []
    now = iter([0.0, 30.0, 61.0, 90.0, 182.0, 200.0, 7000.0, 7100.0, 7170.0, 7200.0])
    lines = Lines(said.append, lambda: next(now))
    for done in (0, 10, 20, 30, 60, 60, 500):
        lines.tell("score", done, 1000)
    for done in (0, 5, 10):
        lines.tell("repair", done, 10)
    hint = "--samples, --max-seconds (one image a group at least) or a --method without a game (recon) take less"
    assert said == [
        f"scoring units: 2% after 61 s, some 50 minutes left; {hint}",
        "scoring units: 6% after 3 minutes, some 48 minutes left",
        "scoring units: 50% after 117 minutes, some 117 minutes left",
        "refitting weights: 50% after 70 s, some 70 s left",
    ]


def test_what_comes_before_the_first_step_is_not_taken_for_the_pace() -> None:
    """Workers that start: some 6 hours were told of half a minute."""
    said: list[str] = []
    now = iter([0.0, 85.0, 86.0, 87.0, 146.0])
    lines = Lines(said.append, lambda: next(now))
    for done in (0, 4, 20, 40, 900):
        lines.tell("score", done, 1000)
    assert said == ["scoring units: 2% after 86 s, some 61 s left"]


def test_what_a_journal_knows_is_not_taken_for_the_pace() -> None:
    """Some 6 seconds were told of where 19 minutes were left."""
    said: list[str] = []
    now = iter([0.0, 0.1, 40.0, 60.1])
    lines = Lines(said.append, lambda: next(now))
    for done in (0, 900, 900, 905):
        lines.tell("score", done, 1000)
    (line,) = said
    assert line.startswith("scoring units: 90% after 60 s, some 19 minutes left")


def test_a_search_tells_how_far_it_is_though_other_stages_make_it_up() -> None:
    said: list[str] = []
    now = iter(np.arange(0.0, 1000.0, 7.0))
    lines = Lines(said.append, lambda: next(now))
    for number in range(5):
        lines.tell("search", number, 7)
        for done in range(3):
            lines.tell("repair", done, 3)
    assert said == ["searching: 14% after 28 s, some 3 minutes left", "searching: 43% after 84 s, some 112 s left"]


def test_ten_seconds_tell_of_a_stage_that_goes_on_and_of_no_other() -> None:
    said: list[str] = []
    now = iter([0.0, 11.0, 20.0, 61.0, 100.0, 112.0, 125.0])
    lines = Lines(said.append, lambda: next(now))
    for done in (0, 1, 2, 6):
        lines.tell("curves", done, 10)
    for done in (0, 5, 9):
        lines.tell("repair", done, 10)
    assert said == [
        "measuring widths: 10% after 11 s, some 99 s left",
        "measuring widths: 60% after 61 s, some 40 s left",
    ]


def test_normalize_reaches_both_kinds_of_data(here: Path) -> None:
    for name in ("--data", "--eval-data"):
        given = {"--data": "d.npz", "--eval-data": "d.npz"} | {name: "pictures"}
        Path("pictures").mkdir(exist_ok=True)
        Path("pictures", "a.png").write_bytes(b"no image")
        told = refused("prune", "m.onnx", *(x for pair in given.items() for x in pair), "--normalize", "0.5")
        assert "normalize '0.5': unknown: use 'none', 'imagenet', or mean/deviation" in told
    assert "is for folders of images" in refused("score", "m.onnx", "--data", "d.npz", "--normalize", "imagenet")


def test_data_of_the_model_are_not_replaced(here: Path) -> None:
    """Neither by the smaller model, nor by its data, a report, values or a journal."""
    onnx.save(onnx.load("m.onnx"), "m.onnx", save_as_external_data=True, location="m.bin.json", size_threshold=0)
    for given in (
        ("prune", "m.onnx", "--data", "d.npz", "-o", "m.bin.json"),
        ("prune", "m.onnx", "--data", "d.npz", "--report", "m.bin.json"),
        ("prune", "m.onnx", "--data", "d.npz", "--journal", "m.bin.json"),
        ("score", "m.onnx", "--data", "d.npz", "-o", "m.bin.json"),
    ):
        assert "would replace data of the model" in refused(*given)
    with pytest.raises(ModelError, match="would replace data of the model"):
        onnxshap.prune("m.onnx", "d.npz", keep_units=0.5, method="l1", output="m.bin.json")
    onnx.checker.check_model("m.onnx", full_check=True)


def pictures() -> None:
    """A folder of images for the model, one of them a link to a file elsewhere."""
    Path("pictures").mkdir()
    for number in range(3):
        Image.fromarray(RNG.integers(0, 255, (4, 4, 3)).astype(np.uint8)).save(f"pictures/{number}.png")
    Path("pictures/2.png").rename("elsewhere.png")
    Path("pictures/2.png").symlink_to("../elsewhere.png")


def test_images_of_the_data_are_not_replaced_and_none_is_added(here: Path) -> None:
    pictures()
    common = ("prune", "m.onnx", "--data", "pictures", "--method", "l1", "--repair", "none")
    for output in ("pictures/0.png", "elsewhere.png", "pictures/2.png"):
        assert f"{output}: would replace --data; give -o another path" in refused(*common, "-o", output)
        assert f"{output}: would replace --data" in refused(*common, "--normalize", "imagenet", "-o", output)
    assert "new.png: would be one of the images of --data" in refused(*common, "-o", "pictures/new.png")
    assert "would replace --eval-data" in refused(
        "unify", "m.onnx", "--data", "d.npz", "--eval-data", "pictures", "-o", "pictures/1.png"
    )
    assert "would be one of the images of --data" in refused(
        "sweep", "m.onnx", "--data", "pictures", "--plot", "pictures/p.png"
    )
    for _ in range(2):  # what is no image may lie there, and be written again
        fine(*common, "-o", "pictures/small.onnx")


def test_the_library_replaces_nothing_that_it_reads(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the model, by whatever path, nor data or labels; told before anything is traced."""
    pictures()
    np.save("labels.npy", LABELS)
    Path("link.onnx").symlink_to("m.onnx")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    traced = onnxshap.trace("m.onnx")
    jobs: list[Any] = [onnxshap.prune, onnxshap.unify, onnxshap.pivot]
    monkeypatch.setattr("onnxshap.opening.layouts.trace", unreachable)
    for job in jobs:
        for output in ("m.onnx", here / "m.onnx", "link.onnx"):
            for model in ("m.onnx", here / "m.onnx", "link.onnx", traced):
                with pytest.raises(ModelError, match=r"\.onnx: would replace the model; give output another path"):
                    job(model, "d.npz", output=output)
        for output, words in (("d.npz", "data"), ("labels.npy", "labels"), ("pictures/0.png", "eval_data")):
            with pytest.raises(ModelError, match=f"{output}: would replace {words}; give output another path"):
                job("m.onnx", "d.npz", labels="labels.npy", eval_data="pictures", output=output)
        for output in ("", "nowhere/m.onnx", here):
            with pytest.raises(ModelError, match="; give output another path"):
                job("m.onnx", "d.npz", output=output)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_values_are_not_replaced(here: Path) -> None:
    fine("score", "m.onnx", "--data", "d.npz", "--samples", "2", "-o", "v.json")
    common = ("prune", "m.onnx", "--data", "d.npz", "--values", "v.json")
    assert "v.json: would replace --values" in refused(*common, "--report", "v.json")
    swept = ("sweep", "m.onnx", "--data", "d.npz", "--values", "v.json", "--eval-data", "d.npz")
    assert "v.json: would replace --values" in refused(*swept, "-o", "v.json")


def test_steps_get_finer_where_aligned_widths_leave_much_of_a_budget(here: Path) -> None:
    model = wide(
        "(float[N,6] x) => (float[N,3] y) { h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1) }", w0=(6, 64), w1=(64, 3)
    )
    onnx.save(model, "wide.onnx")
    common = ("prune", "wide.onnx", "--method", "l1", "--repair", "none", "--json", "--dry-run")

    def kept(*options: str) -> int:
        found = json.loads(fine(*common, *options).stdout)
        return int(found["groups"][0]["kept"])

    assert [kept("--keep-macs", share) for share in ("0.36", "0.32", "0.26", "0.06")] == [22, 20, 16, 3]
    assert kept("--keep-macs", "0.36", "--multiple-of", "8") == 16
