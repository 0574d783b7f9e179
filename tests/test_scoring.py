"""The score stage: rules that end a group, journals that outlive a kill, workers that may die, and what is refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxshap
from onnxshap import api, payoffs, valuing
from onnxshap.calibrate import free_batch, run_all, site_means
from onnxshap.core import Array, Dataset, FloatArray, Values
from onnxshap.cost import node_macs
from onnxshap.errors import BudgetError, DataError, ModelError, OnnxshapError
from onnxshap.estimators import Exact, Permutation
from onnxshap.estimators.images import Alike, PerImage, Scope
from onnxshap.game import GroupGame, Setting
from onnxshap.scoring import journal as journals
from onnxshap.scoring import misplaced, runners
from onnxshap.scoring.jobs import plan_group
from onnxshap.scoring.journal import Journal
from onnxshap.scoring.work import fit_work, row_work
from onnxshap.tracing import Traced
from tests.exactness import net as build

RNG = np.random.default_rng(4)
BLOCKS = 11
"""Of 64 images: 1, 1, 2, 4, then 8 each."""
IMAGES = {"x": RNG.normal(size=(96, 3, 6, 6)).astype(np.float32), "labels": RNG.integers(0, 5, 96)}


def net() -> onnx.ModelProto:
    """Two groups, of 12 and 20 units."""
    return build(
        """(float[N,3,6,6] x) => (float[N,5] y) {
            [a] a = Conv<pads=[1,1,1,1]>(x, w0, b0)
            ar = Relu(a)
            [b] b = Conv<pads=[1,1,1,1]>(ar, w1, b1)
            br = Relu(b)
            p = GlobalAveragePool(br)
            f = Flatten(p)
            [c] y = Gemm(f, w2, b2)
        }""",
        w0=(12, 3, 3, 3), b0=(12,), w1=(20, 12, 3, 3), b1=(20,), w2=(20, 5), b2=(5,),
    )  # fmt: skip


def score(**options: Any) -> onnxshap.Scores:
    return onnxshap.score(net(), IMAGES, **({"decided": 0, "samples": 64} | options))


def same(a: onnxshap.Scores, b: onnxshap.Scores) -> bool:
    return a.values.keys() == b.values.keys() and all(
        a.values[k].phi.tobytes() == b.values[k].phi.tobytes()
        and a.values[k].stderr.tobytes() == b.values[k].stderr.tobytes()
        and a.values[k].evals == b.values[k].evals
        for k in a.values
    )


def rules(found: onnxshap.Scores) -> dict[str, tuple[str, int]]:
    return {name: (v.stopped, v.images) for name, v in found.values.items()}


# --- rules -----------------------------------------------------------------------------------------------------------


def test_all_samples_are_used_where_no_rule_ends_a_group() -> None:
    assert rules(score()) == {"a": ("samples", 64), "b": ("samples", 64)}
    assert rules(score(method="l1")) == {"a": ("samples", 64), "b": ("samples", 64)}


def test_a_group_ends_when_its_cut_is_decided() -> None:
    found = score(decided=0.45)
    assert rules(found) == {"a": ("decided", 32), "b": ("decided", 32)}
    assert found.evals == 32 * (2 + 2 * 11) + 32 * (2 + 2 * 19)
    values = found.values["a"]
    assert misplaced(values.phi, values.stderr, 6) < 0.45
    assert same(found, score(decided=0.45))


def test_shared_permutations_never_look_decided() -> None:
    assert rules(score(method="permutation-shared", decided=0.9))["a"] == ("samples", 64)


def test_misplaced_share() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(20.0)
    wrong = []
    for _ in range(2000):
        ranked = np.argsort(-(truth + rng.normal(size=20) * 2))[:10]
        wrong.append(np.mean(ranked < 10))
    # against the true values: what the formula estimates
    assert misplaced(truth, np.full(20, 2.0), 10) == pytest.approx(np.mean(wrong), abs=0.02)
    assert misplaced(truth, np.full(20, 2.0), 20) == misplaced(truth, np.zeros(20), 5) == 0


def test_evaluations_are_shared_in_proportion_to_units() -> None:
    found = score(max_evals=640)
    assert rules(found)["a"][0] == rules(found)["b"][0] == "max-evals"
    assert found.values["a"].evals <= 240 and found.values["b"].evals <= 400
    assert 600 < found.evals <= 640
    loo = score(method="loo", max_evals=640)
    assert loo.values["a"].evals == 240 // 13 * 13 and loo.values["a"].images == 240 // 13
    with pytest.raises(BudgetError, match=r"max_evals is 10, .* too few for group 'a' and 1 more; give 35 or more"):
        score(max_evals=10)
    assert score(max_evals=35).evals <= 35


@pytest.mark.parametrize("payoff", ["ce", "mse"])
def test_evaluations_that_do_not_reach_all_images_go_to_every_class(payoff: str) -> None:
    classes = np.asarray(IMAGES["labels"])
    traced, data = onnxshap.trace(net()), onnxshap.Dataset({"x": np.asarray(IMAGES["x"])}, classes)
    free = free_batch(traced)
    reference = run_all(free, free.shaped.graph.model, data)
    setting = Setting(free, data, payoffs.choose(payoff, reference, data.labels, ["y"]), reference)
    schedule, _ = plan_group(setting, setting.traced.groups[0], 0, "shapley", 0, 24 * 24)
    assert schedule is not None
    spread = abs(np.bincount(classes[schedule.images], minlength=5) - np.bincount(classes, minlength=5) / 4).max()
    if payoff == "ce":
        assert schedule.walks.tolist() == [2] * 24 and spread <= 1
    else:
        assert (schedule.walks == 1).all()


def test_seconds_end_groups_after_one_image_at_least() -> None:
    found = score(max_seconds=1e-9)
    assert rules(found) == {"a": ("max-seconds", 1), "b": ("max-seconds", 1)}
    assert rules(score(max_seconds=1e9))["a"] == ("samples", 64)
    with pytest.raises(BudgetError, match="max_seconds is 0"):
        score(max_seconds=0)
    with pytest.raises(BudgetError, match="decided is 1"):
        score(decided=1)


def test_time_that_is_left_goes_to_the_groups_that_had_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 1000, 1.0))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert rules(score(max_seconds=16)) == {"a": ("max-seconds", 24), "b": ("max-seconds", 48)}
    # most of the time is gone before the first result, as when workers start; then all goes well
    clock = iter([0.0, 0.0, *[6.0] * 200])
    assert rules(score(max_seconds=8)) == {"a": ("samples", 64), "b": ("samples", 64)}


def test_where_sums_run_in_place_of_an_op_a_row_takes_what_is_behind_it() -> None:
    """The time of a last group was told as that of its consumer, which no row runs."""
    traced = onnxshap.trace(net())
    whole, summed = (row_work(traced, traced.groups, summed=s) for s in (False, True))
    macs = node_macs(traced.shaped, traced.labels).tolist()
    ops = {node.op_type: macs[k] for k, node in enumerate(traced.shaped.graph.nodes) if macs[k]}
    assert {name: whole[name] - summed[name] for name in whole} == {"a": ops["Conv"], "b": ops["Gemm"]}
    assert whole["a"] > summed["a"] == whole["b"] > summed["b"]


def test_without_a_game_a_group_takes_what_its_layers_take_to_fit() -> None:
    """A ResNet-18 was told of as 85 % done after 29 % of the time."""
    traced = onnxshap.trace(net())
    run, inputs = 10 * traced.cost.macs() / 2, {"a": 12 * 9, "b": 20}
    found = {name: work * (12 if name == "a" else 20) for name, work in fit_work(traced, traced.groups, 10).items()}
    assert found == pytest.approx({name: run + 15_000 * size**2 for name, size in inputs.items()})
    seen: list[tuple[int, int]] = []
    score(method="recon", progress=lambda stage, d, t: seen.append((d, t)) if stage == "value" else None)
    assert max(d / t for d, t in seen if d < t) > 0.9  # the first group, and that of few inputs begun


def test_progress_moves_within_a_group() -> None:
    seen: list[tuple[int, int]] = []
    score(progress=lambda stage, done, total: seen.append((done, total)) if stage == "score" else None)
    done = [d for d, _ in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] == seen[-1][1]
    assert len(set(done)) == 1 + 2 * BLOCKS
    assert 0.37 < done[BLOCKS] / done[-1] < 0.38  # 12 of 32 units, and little behind each
    seen.clear()
    score(method="sensitivity", progress=lambda stage, d, t: seen.append((d, t)) if stage == "score" else None)
    assert len({d for d, _ in seen}) > 8


def test_the_cut_that_has_to_be_decided_is_that_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def record(*arguments: Any, **_: Any) -> dict[str, Values]:
        seen.update(arguments[4].keep)
        raise DataError("recorded")

    monkeypatch.setattr(valuing, "score_groups", record)
    with pytest.raises(DataError, match="recorded"):
        onnxshap.prune(net(), IMAGES, keep_units=0.25, samples=4, multiple_of=1)
    assert seen == {"a": 3, "b": 5}


def test_reports_tell_the_rule(tmp_path: Path) -> None:
    from onnxshap import report

    found = score(max_evals=640)
    report.write_json(report.values_report(found), tmp_path / "v.json")
    assert rules(report.read_values(tmp_path / "v.json")) == rules(found)
    pruned = onnxshap.prune(net(), IMAGES, keep_units=0.5, values=found, repair="fold")
    groups = report.prune_report(pruned, model="m", output=None, seed=0)["groups"]
    assert [(g["stopped"], g["images"]) for g in groups] == list(rules(found).values())


# --- payoffs of all images together, and methods with payoffs of their own --------------------------------------------


def macro_recall(outputs: Any, labels: Array | None) -> float:
    """Mean over classes of the share that is found: no mean over images."""
    assert labels is not None and len(labels) == len(outputs[0])
    top = outputs[0].argmax(axis=1)
    return float(np.mean([np.mean(top[labels == k] == k) for k in np.unique(labels)]))


def mean_margin(outputs: Any, labels: Array | None) -> float:
    return float(margin(outputs, labels).mean())


def test_a_payoff_may_be_one_number_for_all_images() -> None:
    found = score(payoff=macro_recall, method="shapley-regression", samples=24)
    assert rules(found) == {"a": ("samples", 24), "b": ("samples", 24)}
    assert found.evals == 24 * (2 + 120 + 2 + 200)
    whole = onnxshap.trace(net())
    masks = {onnxshap.mask_name(g): np.zeros((1, len(g)), np.float32) for g in whole.groups if g.name == "a"}
    from onnxshap.opening import calibration, sample

    free = free_batch(whole)
    data = sample(calibration(whole, IMAGES), 24, 0)
    (a,) = [g for g in whole.groups if g.name == "a"]
    masked = onnxshap.insert_masks(free, [a], site_means(free, data))
    none = macro_recall(run_all(free, masked, data, masks), data.labels)
    every = macro_recall(run_all(free, free.shaped.graph.model, data), data.labels)
    assert found.values["a"].phi.sum() == pytest.approx(every - none, abs=1e-9)
    assert same(score(payoff=macro_recall, method="shapley-regression", samples=24, workers=1), found)
    limited = score(payoff=macro_recall, method="shapley-regression", samples=24, max_evals=24 * 160)
    assert 24 * 140 < limited.evals <= 24 * 160


@pytest.mark.parametrize("method", ["shapley", "loo", "exact"])
def test_a_mean_over_images_is_worth_the_same_either_way(method: str) -> None:
    options: dict[str, Any] = {"method": method, "samples": 8, "include": ["a"]}
    one, each = score(payoff=mean_margin, **options), score(payoff=margin, **options)
    assert one.values["a"].phi.sum() == pytest.approx(each.values["a"].phi.sum(), rel=1e-5) or method == "loo"
    if method != "shapley":
        np.testing.assert_allclose(one.values["a"].phi, each.values["a"].phi, rtol=1e-4, atol=1e-7)


def test_methods_that_need_a_payoff_of_each_image_say_so() -> None:
    with pytest.raises(DataError, match="method 'sensitivity' needs one each; use shapley-regression"):
        score(payoff=mean_margin, method="sensitivity")
    with pytest.raises(DataError, match="gave nan for all images: return one finite number"):
        score(payoff=lambda outputs, labels: np.nan)


def test_leave_one_out_of_the_outputs() -> None:
    once, rounds = score(method="loo-logit"), score(method="loo-logit-iterated")
    for name, values in once.values.items():
        assert (values.phi >= 0).all()  # nothing cancels
        order = np.argsort(rounds.values[name].phi, kind="stable")
        first = order[: round(len(values.phi) / 7)]
        assert set(first) <= set(np.argsort(values.phi)[: len(values.phi) // 2])
    assert score(method="loo-logit-iterated", max_evals=600).evals <= 600
    with pytest.raises(BudgetError, match=r"max_evals is 40, .* too few for group 'a' and 1 more; give \d+ or more"):
        score(method="loo-logit-iterated", max_evals=40)


# --- journal ---------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


def until(blocks: int) -> Any:
    """Progress that ends the run after some blocks."""
    told: list[int] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.extend([done] if stage == "score" and done else [])
        if len(told) >= blocks:
            raise KilledError

    return tell


@pytest.mark.parametrize("blocks", [1, 5, 8, 12])
def test_a_journal_goes_on_where_a_run_was_cut_short(tmp_path: Path, blocks: int) -> None:
    path = tmp_path / "j"
    calls, told, kill = list[int](), list[int](), until(blocks)

    def tell(stage: str, done: int, total: int) -> None:
        told.append(done)
        kill(stage, done, total)

    with pytest.raises(KilledError):
        score(journal=path, progress=tell)
    before = path.read_bytes()
    assert before.count(b"\n") >= blocks
    found = score(journal=path, progress=lambda stage, done, total: calls.append(done))
    assert same(found, score())
    assert path.read_bytes().startswith(before)
    assert len(calls) < 2 + 2 * BLOCKS  # what the journal knew was not computed again
    assert calls[0] == 0 < calls[1] <= told[-1]  # and is told before anything is
    assert same(score(journal=path), found)


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "other fields", "other kinds"])
def test_a_damaged_end_is_computed_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "j"
    score(journal=path)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if damage == "cut":
        path.write_bytes(content[:-40])
    elif damage == "flipped":
        lines[5] = lines[5].replace(b'"evals": ', b'"evals": 1', 1)
        path.write_bytes(b"".join(lines))
    elif damage == "header":
        path.write_bytes(lines[0][:20])
    else:  # by hand, its checksum right
        record = json.loads(lines[5])
        record["shape"] = None
        if damage == "other fields":
            del record["shape"]
        del record["crc"]
        record["crc"] = journals._crc(record)
        path.write_bytes(b"".join([*lines[:5], journals._line(record), *lines[6:]]))
    assert same(score(journal=path), score())
    records = path.read_bytes().splitlines()
    assert len(records) == 1 + 2 * BLOCKS and all(json.loads(line) for line in records)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"seed": 1}, "seed"),  # other images are drawn, too
        ({"samples": 32}, r"choice of data \(data, labels, samples\)"),
        ({"method": "loo"}, "method"),
        ({"baseline": "zero"}, "baseline"),
        ({"payoff": "kl"}, "payoff"),
        ({"max_evals": 5000}, "max-evals"),
        ({"include": ["a"]}, "choice of groups"),
    ],
)
def test_a_journal_of_another_run_is_refused(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    path = tmp_path / "j"
    score(journal=path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"j: the journal of a run with another {what}; delete it to start over"):
        score(journal=path, **options)
    assert path.read_bytes() == before


def test_a_journal_knows_functions_by_what_they_give(tmp_path: Path) -> None:
    """They have no name: one that was mended went on with the values of the other."""
    path, given = tmp_path / "j", [lambda y, _: -np.abs(y[0]).max(axis=1), lambda y, _: -np.abs(y[0]).sum(axis=1)]
    found = score(journal=path, payoff=given[0])
    before = path.read_bytes()
    with pytest.raises(DataError, match="the journal of a run with another payoff"):
        score(journal=path, payoff=given[1])
    assert same(score(journal=path, payoff=given[0]), found) and path.read_bytes() == before


@pytest.mark.parametrize(("method", "means"), [("recon", 0), ("shapley", 1)])
def test_means_are_taken_for_games_alone(method: str, means: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else reads what stands in the place of removed channels, and it takes a run of all images."""
    calls = [0]

    def counted(traced: Traced, data: Dataset) -> dict[tuple[int, int], FloatArray]:
        calls[0] += 1
        return site_means(traced, data)

    monkeypatch.setattr("onnxshap.valuing.site_means", counted)
    score(method=method)
    assert calls == [means]


def test_a_journal_of_another_model_or_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    score(journal=path)
    other = net()
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((12, 3, 3, 3), np.float32), "w0"))
    with pytest.raises(DataError, match="another model"):
        onnxshap.score(other, IMAGES, decided=0, samples=64, journal=path)
    monkeypatch.setattr(valuing, "__version__", "9.9")
    with pytest.raises(DataError, match="another version"):
        score(journal=path)
    for content in (b"\x08\x08:", b"[" * 10**5):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no journal of onnxshap; give another path"):
            score(journal=path)
        assert path.read_bytes() == content
    with pytest.raises(OnnxshapError, match="the journal cannot be read"):
        score(journal=tmp_path)


def test_a_journal_of_a_format_whose_blocks_held_other_images_is_refused(tmp_path: Path) -> None:
    """Who changes what is drawn for a seed has to raise the format: blocks are known by their numbers alone."""
    path, kinds = tmp_path / "j", np.arange(12) % 3
    alike, played = Alike(np.argsort(kinds, kind="stable"), kinds), Permutation()
    cases: list[tuple[PerImage, int | None, Alike | None]] = [
        (played, None, alike), (played, 40, alike), (played, 40, None), (Exact(), None, alike), (Exact(), 64, alike),
    ]  # fmt: skip
    drawn = [
        one.plan(Scope(12, 4, most, known), np.random.default_rng(0)).images.tolist() for one, most, known in cases
    ]
    assert (journals.FORMAT, drawn) == (
        6,
        [
            [5, 4, 3, 11, 10, 9, 8, 7, 6, 0, 2, 1], [8, 10, 9, 0, 4], [0, 2, 3, 4, 5, 7, 9, 11],
            [7, 6, 8, 2, 1, 0, 10, 9, 11, 5, 4, 3], [10, 3, 8, 1],
        ],
    )  # fmt: skip
    score(journal=path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"onnxshap journal": 6', b'"onnxshap journal": 5', 1))
    with pytest.raises(DataError, match="the journal of a run with another version; delete it to start over"):
        score(journal=path)


def test_a_journal_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    told = list[object]()
    with pytest.raises(OnnxshapError, match=r"j: cannot be written \(No such file or directory\); give the journal"):
        score(journal=tmp_path / "away" / "j", progress=lambda *at: told.append(at))
    assert not told


def test_a_journal_whose_folder_goes_away_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(OnnxshapError, match=r"\(No such file or directory\); what it holds is good: mend that and run"):
        score(journal=folder / "j", progress=lambda *_: shutil.rmtree(folder, ignore_errors=True))


def test_a_full_disk_is_one_error_and_the_journal_stays_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    written = 0
    write = os.write

    def full(file: int, line: Any) -> int:
        nonlocal written
        if written + len(line) > 20_000:
            rest = 20_000 - written
            written = 20_000
            if rest:
                return write(file, bytes(line)[:rest])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += len(line)
        return write(file, line)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OnnxshapError, match=r"No space left on device\); what it holds is good: make room"):
        score(journal=path)
    monkeypatch.undo()
    assert Journal(path, json.loads(path.read_bytes().splitlines()[0])).found
    assert same(score(journal=path), score())


def test_a_killed_command_goes_on_and_writes_the_same_bytes(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **IMAGES)  # type: ignore[arg-type]
    command = [sys.executable, "-m", "onnxshap", "score", "m.onnx", "--data", "d.npz", "--decided", "0", "-o"]
    environment = os.environ | {"PYTHONPATH": str(Path(onnxshap.__file__).parent.parent)}
    slow = [
        sys.executable, "-c",
        "import os, sys, time; from onnxshap import cli; from onnxshap.scoring import journal\n"
        "add = journal.Journal.add\n"
        "def slowly(*a): add(*a); time.sleep(0.2)\n"
        "journal.Journal.add = slowly; sys.argv[0] = 'onnxshap'; cli.main()",
        *command[3:],
    ]  # fmt: skip
    kept = tmp_path / "v.json.journal"
    with subprocess.Popen([*slow, "v.json"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while (not kept.exists() or kept.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert kept.read_bytes().count(b"\n") >= 4 and not (tmp_path / "v.json").exists()
    for name in ("v.json", "whole.json"):
        subprocess.run([*command, name], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "v.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npz", "m.onnx", "v.json", "whole.json"]


# --- workers ---------------------------------------------------------------------------------------------------------


def margin(outputs: Any, labels: Array | None) -> Array:
    """A payoff that workers can import."""
    return np.asarray(outputs[0].max(axis=1), np.float64)


def deadly(outputs: Any, labels: Array | None) -> Array:
    """Ends the worker that asks for it."""
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    return margin(outputs, labels)


def broken(outputs: Any, labels: Array | None) -> Array:
    """Fails."""
    raise KeyError("no such class")


def test_workers_find_the_same_and_a_killed_one_changes_nothing(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        children = multiprocessing.active_children()
        if stage == "score" and done > 0 and children and not killed:
            killed.append(children[0].pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    path = tmp_path / "j"
    found = score(workers=2, progress=kill, payoff=margin, journal=path)
    assert killed and same(found, score(payoff=margin))
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "0"
    keys = [(r["group"], r["block"]) for r in map(json.loads, path.read_bytes().splitlines()[1:])]
    assert len(keys) == len(set(keys)) == 2 * BLOCKS  # nothing lost, nothing twice


def test_an_interrupt_of_a_terminal_is_for_who_started_the_workers(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C goes to all processes: the workers printed a traceback each."""
    workers = set[int]()

    def interrupt(stage: str, done: int, total: int) -> None:
        for pid in {child.pid or 0 for child in multiprocessing.active_children()} - workers:
            workers.add(pid)
            os.kill(pid, signal.SIGINT)

    found = score(workers=2, progress=interrupt, payoff=margin)
    assert 1 <= len(workers) <= 2
    assert same(score(payoff=margin), found)
    assert capfd.readouterr().err == ""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Interrupts raise, also where the tests run in the background of a shell, which lets them be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("place", ["starting", "ending"])
def test_an_interrupt_waits_until_workers_have_started_or_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Whatever thread it comes to: one that came in between left a folder behind, or half a worker with a traceback."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    owner, name = (Path, "write_bytes") if place == "starting" else (ProcessPoolExecutor, "shutdown")
    done, before = list[str](), dict(os.environ)
    original = getattr(owner, name)

    def interrupted(*args: Any, **options: Any) -> Any:
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, None)  # as where it came to a thread that does not block it
        result = original(*args, **options)
        done.append(name)
        return result

    def pause(stage: str, done: int, total: int) -> None:
        if stage == "score" and done > 0:
            raise KilledError

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(workers=1, payoff=margin, progress=pause)
    assert done == [name] and list(tmp_path.iterdir()) == [] and dict(os.environ) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_workers_died_of_meanwhile_is_one() -> None:
    """One of all processes of a job: workers were started anew, and it went on."""
    with pytest.raises(KeyboardInterrupt), runners._undisturbed():
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, None)
        raise BrokenProcessPool


def test_workers_that_keep_dying_and_failing_payoffs_are_one_error() -> None:
    with pytest.raises(OnnxshapError, match="workers keep dying"):
        score(workers=1, payoff=deadly)
    with pytest.raises(DataError, match=r"payoff 'custom': the function failed \(KeyError: 'no such class'\)"):
        score(workers=1, payoff=broken)
    with pytest.raises(OnnxshapError, match="cannot be sent to workers"):
        score(workers=1, payoff=lambda outputs, labels: outputs[0][:, 0])
    with pytest.raises(OnnxshapError, match="workers is -1"):
        score(workers=-1)


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "m.onnx")
    script = tmp_path / "script.py"
    script.write_text(f"import onnxshap; onnxshap.score({str(tmp_path / 'm.onnx')!r}, workers=1)")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "OnnxshapError: workers keep dying" in done.stderr
    assert "a script that starts workers needs" in done.stderr.splitlines()[-1]


def test_methods_without_a_game_need_no_workers() -> None:
    assert same(score(workers=2, method="recon"), score(method="recon"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, "the function failed .KeyError"),
        (lambda outputs, labels: np.full(len(labels), np.nan), "gave nan in row 0: return finite numbers"),
        (lambda outputs, labels: outputs[0], r"gave shape \[\d+, 5\] for \d+ rows: return one number a row"),
        (lambda outputs, labels: "many", "the function failed .ValueError"),
    ],
)
def test_payoffs_that_fail_are_one_error(function: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        score(payoff=function, journal=tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_a_cluster_that_cannot_be_reached_is_one_error() -> None:
    pytest.importorskip("distributed")
    for address in ("tcp://127.0.0.1:9", "nonsense://here", "no-address"):
        with pytest.raises(OnnxshapError, match=f"cluster '{address}' cannot be reached"):
            score(cluster=address)
    with pytest.raises(OnnxshapError, match="workers or cluster, not both"):
        score(cluster="tcp://127.0.0.1:9", workers=1)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tls://127.0.0.1:9"])
def test_an_address_that_can_be_none_is_one_line_at_once(tmp_path: Path, address: str) -> None:
    """A process of its own: what is left of a client speaks when it is collected."""
    pytest.importorskip("distributed")
    onnx.save(net(), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "onnxshap", "score", "m.onnx", "--samples", "2", "-q", "--cluster", address]
    start = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"onnxshap: error: cluster '{address}' cannot be reached (")
    assert (done.returncode, done.stdout, [p.name for p in tmp_path.iterdir()]) == (1, "", ["m.onnx"])
    assert time.monotonic() - start < 15


def test_an_empty_address_is_none() -> None:
    with pytest.raises(OnnxshapError, match="the cluster's address is empty; give one like tcp://host:8786"):
        score(cluster="")


@pytest.mark.parametrize("place", ["__init__", "submit"])
def test_a_machine_that_takes_no_workers_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = dict(os.environ)
    monkeypatch.setattr(f"onnxshap.scoring.runners.ProcessPoolExecutor.{place}", full)
    with pytest.raises(OnnxshapError, match=r"workers cannot be started \(.*temporarily unavailable\); use fewer"):
        score(workers=1)
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_finds_the_same_and_may_lose_a_worker() -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        killed: list[int] = []

        def kill(stage: str, done: int, total: int) -> None:
            if stage == "score" and done > 0 and not killed:
                killed.append(next(iter(cluster.workers.values())).process.pid)
                os.kill(killed[0], signal.SIGKILL)

        found = score(cluster=cluster.scheduler_address, payoff=margin, progress=kill)
        assert killed and same(found, score(payoff=margin))
        with pytest.raises(DataError, match=r"payoff 'custom': the function failed \(KeyError: 'no such class'\)"):
            score(cluster=cluster.scheduler_address, payoff=broken)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_whose_workers_all_leave_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(runners, "PATIENCE", 0.5)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:

        def leave(stage: str, done: int, total: int) -> None:
            if stage == "score" and done > 0:
                cluster.scale(0)

        with pytest.raises(
            OnnxshapError, match=r"cluster .tcp.* (has no worker left|was lost).* the same command again"
        ):
            score(cluster=cluster.scheduler_address, payoff=margin, progress=leave)


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_disappears_is_one_error_and_the_journal_goes_on(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    path = tmp_path / "j"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:

        def end(stage: str, done: int, total: int) -> None:
            if stage == "score" and done > 0:
                cluster.close()

        with pytest.raises(OnnxshapError, match=r"cluster .tcp.* was lost .*same command again .*go on with journal"):
            score(cluster=cluster.scheduler_address, payoff=margin, progress=end, journal=path)
    assert len(path.read_bytes().splitlines()) > 1
    assert same(score(payoff=margin, journal=path), score(payoff=margin))


@pytest.mark.parametrize(
    "cell",
    ["h, c = LSTM<hidden_size=5>(u, wi, wh)  s = Squeeze(h, one)", "h = MatMul(u, wm)  s = Relu(h)"],
    ids=["recurrent, one by one", "linear, by rows"],
)
def test_outputs_may_have_their_images_on_another_axis(cell: str) -> None:
    """Text recognition gives [steps, images, classes]."""

    def recogniser(end: str) -> onnx.ModelProto:
        text = f"""(float[N,7,6] x) => ({end}
            a = MatMul(x, w0)
            r = Relu(a)
            u = Transpose<perm=[1,0,2]>(r)
            {cell.replace("  ", chr(10))}
        }}"""
        model = build(text, w0=(6, 8), w1=(5, 3), one=[1], wi=(1, 20, 8), wh=(1, 20, 5), wm=(8, 5))
        used = {name for node in model.graph.node for name in node.input}
        for item in [t for t in model.graph.initializer if t.name not in used]:
            model.graph.initializer.remove(item)
        return model

    steps_first = recogniser("float[T,N,3] y) { y = MatMul(s, w1)")
    images_first = recogniser("float[N,T,3] y) { z = MatMul(s, w1)  y = Transpose<perm=[1,0,2]>(z)")
    data = {"x": np.random.default_rng(0).normal(size=(30, 7, 6)).astype(np.float32)}
    one, other = (api.score(model, data, samples=20, payoff="mse").values for model in (steps_first, images_first))
    assert list(one) == list(other)
    for name, values in one.items():
        assert values.phi == pytest.approx(other[name].phi, abs=1e-6)
    assert api.prune(steps_first, data, keep_units=0.5, samples=20).verified.rel_err < 1e-5


def test_an_output_without_an_axis_of_images_is_that_of_the_one_image_a_run_has() -> None:
    """A text recogniser for one image of any width, which declares its output with a rank that it does not have."""
    model = build(
        """(float[1,T,6] x) => (float[1,S] y) {
        a = MatMul(x, w0)
        r = Relu(a)
        u = Transpose<perm=[1,0,2]>(r)
        f = Reshape(u, flat)
        m = MatMul(f, w1)
        s = Shape(x)
        t = Gather<axis=0>(s, one)
        n = Unsqueeze(t, zero)
        k = Concat<axis=0>(n, rest)
        y = Reshape(m, k)
    }""",
        w0=(6, 8),
        w1=(8, 3),
        flat=[-1, 8],
        one=np.array(1),
        zero=[0],
        rest=[1, 3],
    )
    data = {"x": np.random.default_rng(0).normal(size=(30, 7, 6)).astype(np.float32)}
    result = api.prune(model, data, keep_units=0.5, samples=20)
    assert [int(keep.sum()) for keep in result.keep.values()] == [4]
    assert result.verified.rel_err < 1e-5


def test_workers_end_with_who_started_them(tmp_path: Path) -> None:
    """Also where that one is killed without a chance to end them."""
    model, data = (Path(__file__).parent.parent / "models" / n for n in ("fashion_vgg.onnx", "fashion_calibration.npz"))
    command = [sys.executable, "-m", "onnxshap", "score", str(model), "--data", str(data), "--samples", "1000"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        temporary = tmp_path / number.name
        temporary.mkdir()
        run = subprocess.Popen(
            [*command, "--decided", "0", "--workers", "1", "-o", str(tmp_path / "v.json")],
            env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert eventually(lambda: any(temporary.glob("onnxshap-*/payload"))), "no worker was started"  # noqa: B023
        time.sleep(5)  # it reads that, and watches from then on
        run.send_signal(number)
        run.wait(60)
        assert eventually(lambda: not any(temporary.glob("onnxshap-*"))), "a worker is left"  # noqa: B023


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def test_what_runs_only_whole_is_told_of_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of mixtures split by what is counted: without the units that choose, nothing is left to split."""

    def refuse(game: GroupGame, images: object, coalitions: object) -> Array:
        raise ModelError("the model refused to run on x: Split size 1 exceeds 0")

    monkeypatch.setattr(GroupGame, "__call__", refuse)
    said = "^group 'a' cannot be scored by leaving units out: .*exceeds 0; exclude 'a' keeps .*method recon"
    with pytest.raises(ModelError, match=said):
        onnxshap.score(net(), IMAGES, samples=4)
    assert onnxshap.score(net(), IMAGES, samples=4, method="recon").values
