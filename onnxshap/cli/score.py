"""`onnxshap score`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxshap.cli.options import (
    Shapes,
    data_options,
    journal_option,
    json_option,
    method_option,
    model_argument,
    run_options,
    score_options,
    talk_options,
)
from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import Command, option, section
from onnxshap.cli.shared import backend_of, check_outputs, need_data, output_of, print_found, say_defaults, say_unplayed
from onnxshap.cli.types import OneOf, bases


@click.command(cls=Command, short_help="Value the units of MODEL, for `prune --values`.")
@model_argument
@section(
    "Output",
    option("-o", "--output", metavar="FILE", help="The values file.  [default: MODEL's stem + .values.json]"),
)
@data_options(judging=None)
@method_option
@section(
    "Values",
    option(
        "--basis",
        type=OneOf(bases),
        help="Units of linear groups as combinations (as prune's default), or as in the file.  [default: own]",
    ),
)
@score_options
@journal_option
@run_options
@json_option
@talk_options
@click.pass_obj
def score(
    screen: Screen, model: str, output: str | None, data: str | None, labels: str | None, payoff: str | None,
    seed: int, method: str | None, basis: str | None, baseline: str, samples: int | None, max_evals: int | None,
    max_seconds: float | None, decided: float, journal: str | None, workers: int, cluster: str | None,
    include: tuple[str, ...], exclude: tuple[str, ...], as_json: bool, input_shapes: Shapes, provider: str,
    threads: int, memory: int,
) -> None:  # fmt: skip
    """Value the units of MODEL; `prune --values` takes the file.

    Results are kept in a journal beside the output until it is written: the same command goes on after a kill.
    """
    from onnxshap import api, report

    need_data(data, labels)
    say_defaults(screen, data, payoff)
    written = output_of(output, model, ".values.json")
    kept = journal or f"{written}.journal"
    check_outputs({"-o": written, "--journal": kept}, model, data, labels)
    with screen.progress() as tell:
        tell("trace", 0, 1)
        found = api.score(
            model, data, labels=labels, method=method, payoff=payoff, baseline=baseline, include=include,
            exclude=exclude, samples=samples, max_evals=max_evals, max_seconds=max_seconds, decided=decided, seed=seed,
            backend=backend_of(screen, provider, threads, memory), input_shapes=dict(input_shapes), journal=kept,
            workers=workers, cluster=cluster, progress=tell, basis=basis, say=screen.at_once,
        )  # fmt: skip
    report.write_json(report.values_report(found), written)
    Path(kept).unlink(missing_ok=True)
    print_found(as_json, report.values_report(found), [report.values_table(found)])
    screen.notes(found.notes)
    say_unplayed(screen, found.method)
    screen.note(f"wrote {written}")
