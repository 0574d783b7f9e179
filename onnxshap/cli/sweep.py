"""`onnxshap sweep`."""

from __future__ import annotations

from contextlib import nullcontext

import click

from onnxshap.cli.options import (
    Shapes,
    data_options,
    json_option,
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
    backend_of,
    check_outputs,
    listed,
    print_found,
    refuse_beside,
    say_defaults,
    say_unplayed,
)
from onnxshap.cli.types import FilePath, OneOf, ShareList, methods


@click.command(cls=Command, short_help="Show what MODEL loses and saves at many budgets.")
@model_argument
@section(
    "Output",
    option("-o", "--output", type=FilePath("it", ".json"), metavar="FILE.json", help="Also write what --json prints."),
    option(
        "--plot",
        type=FilePath("a plot", ".svg", ".png", ".html"),
        metavar="FILE",
        help="Also draw it: .svg, .png or .html (needs `onnxshap[plot]`).",
    ),
)
@section(
    "Budget",
    option("--keep", type=ShareList(), help="Shares of the MACs to keep, as 0.9,0.5.  [default: 0.9 down to 0.1]"),
    option(
        "--max-drop", type=float, metavar="X", help="Mark the fewest MACs that lose at most X accuracy (or agreement)."
    ),
)
@width_options
@data_options(None, "two fifths of --data")
@section(
    "Values",
    option("--method", "methods", type=OneOf(methods), multiple=True, help="How to value units; repeatable."),
)
@values_option
@score_options
@repair_options
@run_options
@json_option
@talk_options
@click.pass_context
def sweep(
    ctx: click.Context, model: str, keep: tuple[float, ...] | None, max_drop: float | None, multiple_of: int | None,
    min_units: int, data: str | None, labels: str | None, payoff: str | None, seed: int, eval_data: str | None,
    methods: tuple[str, ...], baseline: str, samples: int | None, max_evals: int | None, max_seconds: float | None,
    decided: float, workers: int, cluster: str | None, include: tuple[str, ...], exclude: tuple[str, ...],
    values: str | None, repair: str | None, basis: str | None, allocation: str | None, low_rank: str | None,
    distill_seconds: float | None,
    output: str | None, plot: str | None, as_json: bool, input_shapes: Shapes, provider: str, threads: int, memory: int,
) -> None:  # fmt: skip
    """Show what MODEL loses, and saves, at many budgets: one scoring a method.

    The knee is the point after which more is lost for what is saved.
    """
    from onnxshap import report, sweeping
    from onnxshap.plan.judging import check_drop

    screen = ctx.find_object(Screen) or Screen()
    check_drop(max_drop)
    if values is not None:
        refuse_beside(ctx, "--values", "methods", "max_evals", "max_seconds", "decided", "workers", "cluster")
    if data is None:
        raise click.UsageError("sweep needs --data")
    say_defaults(screen, data, payoff)
    check_outputs({"-o": output, "--plot": plot}, model, data, labels, eval_data, values)
    if plot is not None:
        from onnxshap.report.plot import require, write_plot

        require()
    with screen.progress() as tell:
        result = sweeping.sweep(
            model, data, labels=labels, eval_data=eval_data, methods=methods or None,
            keep=sweeping.KEEP if keep is None else keep, multiple_of=multiple_of, min_units=min_units,
            include=include, exclude=exclude, payoff=payoff, baseline=baseline, repair=repair, basis=basis,
            low_rank=low_rank, allocation=allocation, distill_seconds=distill_seconds, samples=samples,
            max_evals=max_evals, max_seconds=max_seconds, decided=decided, seed=seed, workers=workers, cluster=cluster,
            values=None if values is None else report.read_values(values),
            backend=backend_of(screen, provider, threads, memory), input_shapes=dict(input_shapes), progress=tell,
            say=screen.at_once,
        )  # fmt: skip
    found = report.sweep_report(result, model=model, seed=seed, max_drop=max_drop)
    with nullcontext() if output is None else report.json_file(found, output):
        if plot is not None:
            write_plot(found, plot)
    print_found(as_json, found, report.sweep_tables(found))
    screen.notes(result.notes)
    say_unplayed(screen, result.curves[0].method)
    for share, why in result.left_out.items():
        screen.note(f"left out {share:g}: {why}")
    if output is not None or plot is not None:
        screen.note(f"wrote {listed(output, plot)}")
