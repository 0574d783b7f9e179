"""`onnxshap prune`: the main job."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxshap.cli.options import (
    Shapes,
    data_options,
    journal_option,
    json_option,
    method_option,
    model_argument,
    repair_options,
    run_options,
    score_options,
    talk_options,
    values_option,
    width_options,
)
from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import Command, option, section
from onnxshap.cli.shared import (
    DEFAULT_KEEP_MACS,
    backend_of,
    check_outputs,
    listed,
    need_data,
    output_of,
    print_found,
    refuse_beside,
    say_defaults,
    say_unplayed,
)
from onnxshap.cli.types import FilePath, Share

if TYPE_CHECKING:
    from onnxshap.api import Pruned


@click.command(cls=Command)
@model_argument
@section(
    "Output",
    option("-o", "--output", metavar="FILE", help="The smaller model.  [default: MODEL's stem + .pruned.onnx]"),
    option(
        "--report",
        "report_path",
        type=FilePath("a report", ".json", ".html"),
        metavar="FILE",
        help="Also write a .json or .html report.",
    ),
    option("--dry-run", is_flag=True, help="Do everything, write nothing."),
)
@section(
    "Budget",
    option("--keep-macs", type=Share(), help="Share of the multiply-accumulates to keep, as 0.5 or 50%."),
    option("--keep-params", type=Share(), help="Share of the parameters to keep."),
    option("--keep-bytes", type=Share(), help="Share of the weights' bytes to keep."),
    option("--keep-units", type=Share(), help="Share of every group to keep, no search."),
    option("--target-latency", type=float, metavar="MS", help="Most milliseconds a run may take here, measured."),
    option(
        "--max-drop",
        type=float,
        metavar="X",
        help="The smallest model that loses at most X accuracy (or agreement) on --eval-data, or on data held out.",
    ),
)
@width_options
@data_options()
@method_option
@values_option
@score_options
@journal_option
@repair_options
@run_options
@json_option
@talk_options
@click.pass_context
def prune(
    ctx: click.Context, model: str, output: str | None, keep_macs: float | None, keep_params: float | None,
    keep_bytes: float | None, keep_units: float | None, target_latency: float | None, max_drop: float | None,
    multiple_of: int | None, min_units: int, data: str | None, labels: str | None,
    payoff: str | None, seed: int, eval_data: str | None, method: str | None, baseline: str, samples: int | None,
    max_evals: int | None, max_seconds: float | None, decided: float, journal: str | None, workers: int,
    cluster: str | None, include: tuple[str, ...], exclude: tuple[str, ...], values: str | None, repair: str | None,
    basis: str | None, allocation: str | None, low_rank: str | None,
    distill_seconds: float | None,
    report_path: str | None, dry_run: bool, as_json: bool, input_shapes: Shapes, provider: str, threads: int,
    memory: int,
) -> None:  # fmt: skip
    """Write a smaller MODEL with the same inputs and outputs.

    Without a budget half of the multiply-accumulates stay.
    """
    from onnxshap import api, report

    screen = ctx.find_object(Screen) or Screen()
    need_data(data, labels)
    if values is not None:
        refuse_beside(ctx, "--values", "method", "max_evals", "max_seconds", "decided", "journal", "workers", "cluster")
    budgets = (keep_macs, keep_params, keep_bytes, keep_units, target_latency, max_drop)
    unbudgeted = all(budget is None for budget in budgets)
    say_defaults(screen, data, payoff, budget=not unbudgeted)
    written = None if dry_run else output_of(output, model, ".pruned.onnx")
    if not dry_run:
        outputs = {"-o": written, "--report": report_path, "--journal": journal}
        check_outputs(outputs, model, data, labels, eval_data, values)

    def with_report(done: Pruned) -> AbstractContextManager[object]:
        if report_path is None:
            return nullcontext()
        return report.prune_report_file(report.prune_report(done, model=model, output=written, seed=seed), report_path)

    with screen.progress() as tell:
        result = api.prune(
            model, data, labels=labels, eval_data=eval_data,
            keep_macs=DEFAULT_KEEP_MACS if unbudgeted else keep_macs, keep_params=keep_params, keep_units=keep_units,
            keep_bytes=keep_bytes, target_latency=target_latency, max_drop=max_drop, allocation=allocation,
            distill_seconds=distill_seconds, basis=basis, low_rank=low_rank,
            multiple_of=multiple_of, min_units=min_units, include=include, exclude=exclude, method=method,
            payoff=payoff, baseline=baseline, repair=repair, samples=samples, max_evals=max_evals,
            max_seconds=max_seconds, decided=decided, journal=journal, workers=workers, cluster=cluster, seed=seed,
            values=None if values is None else report.read_values(values),
            backend=backend_of(screen, provider, threads, memory), input_shapes=dict(input_shapes), output=written,
            beside=with_report, progress=tell, say=screen.at_once,
        )  # fmt: skip
    found = report.prune_report(result, model=model, output=written, seed=seed)
    print_found(as_json, found, report.prune_tables(found))
    taken, whole = result.after.latency_ms, result.before.latency_ms
    if target_latency is not None and whole is not None and whole <= target_latency:
        screen.note(f"note: --target-latency had no effect: the model itself ran in {whole:.3g} ms")
    if target_latency is not None and taken is not None and taken > _NOISE * target_latency:
        screen.note(
            f"note: the search measured at most {target_latency:g} ms, at the end it took {taken:.3g}: something "
            "else ran beside; measure it on an idle machine"
        )
    if target_latency is None and taken is not None and whole is not None and taken > _NOISE * whole > _CALL:
        screen.note(
            f"note: the smaller model took longer here, {taken:.3g} ms for {whole:.3g}: layers this narrow leave the "
            "processor's vector units idle; --multiple-of 8 or 16, or --target-latency MS, keeps to widths that gain"
        )
    screen.notes(result.notes)
    say_unplayed(screen, result.scores.method)
    for line in report.frozen_lines(found):
        screen.detail(line)
    screen.detail("seconds: " + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items()))
    if journal is not None:
        Path(journal).unlink(missing_ok=True)
    screen.note("dry run: nothing written" if dry_run else f"wrote {listed(written, report_path)}")


_NOISE = 1.05
"""How much longer than asked a model may take at the end without a word: two measurements differ."""
_CALL = 0.1
"""Milliseconds below which the time of a run is that of the call."""
