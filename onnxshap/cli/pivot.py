"""`onnxshap pivot`."""

from __future__ import annotations

import click

from onnxshap.cli.options import (
    Shapes,
    data_options,
    json_option,
    model_argument,
    run_options,
    talk_options,
)
from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import Command, option, section
from onnxshap.cli.shared import backend_of, check_outputs, need_data, output_of, print_found, say_defaults
from onnxshap.cli.types import OneOf, Share, pivot_repairs


@click.command(cls=Command, short_help="Write MODEL with Convs in groups, where that is faster here.")
@model_argument
@section("Output", option("-o", "--output", metavar="FILE", help="The model.  [default: MODEL's stem + .pivoted.onnx]"))
@section(
    "Budget",
    option(
        "--groups", type=int, multiple=True, metavar="K", help="Groups that a Conv may get; repeatable.  [default: 2]"
    ),
    option("--keep-macs", type=Share(), help="Share of the multiply-accumulates to keep.  [default: what is faster]"),
    option(
        "--max-drop",
        type=float,
        metavar="X",
        help="As many Convs as lose at most X accuracy (or agreement) on --eval-data, or on data held out.",
    ),
    option("--multiple-of", type=int, default=4, show_default=True, help="Widths of a group are multiples of it."),
    option("--untimed", is_flag=True, help="Also where it is not measured faster: no clock decides."),
    option("--include", multiple=True, metavar="GLOB", help="Only Convs of that name; repeatable."),
    option("--exclude", multiple=True, metavar="GLOB", help="No Convs of that name; repeatable."),
)
@data_options()
@section(
    "Repair",
    option(
        "--repair",
        type=OneOf(pivot_repairs),
        help="What is done about the weights that are dropped.  [default: lstsq with --data, none without]",
    ),
)
@run_options
@json_option
@talk_options
@click.pass_obj
def pivot(
    screen: Screen, model: str, output: str | None, groups: tuple[int, ...], keep_macs: float | None,
    max_drop: float | None, multiple_of: int, untimed: bool, include: tuple[str, ...], exclude: tuple[str, ...],
    repair: str | None, data: str | None, labels: str | None, payoff: str | None, seed: int, eval_data: str | None,
    as_json: bool, input_shapes: Shapes, provider: str, threads: int,
) -> None:  # fmt: skip
    """Write MODEL with Convs in groups, their channels in the order that keeps most, where that is faster here."""
    from onnxshap import pivoting, report

    need_data(data, labels)
    say_defaults(screen, data, payoff)
    written = output_of(output, model, ".pivoted.onnx")
    check_outputs({"-o": written}, model, data, labels, eval_data)
    with screen.progress() as tell:
        result = pivoting.pivot(
            model, data, labels=labels, eval_data=eval_data, groups=groups or pivoting.GROUPS, keep_macs=keep_macs,
            max_drop=max_drop, multiple_of=multiple_of, include=include, exclude=exclude, timed=not untimed,
            repair=repair, payoff=payoff, seed=seed, backend=backend_of(screen, provider, threads),
            input_shapes=dict(input_shapes), output=written, progress=tell,
        )  # fmt: skip
    found = report.pivot_report(result, model=model, output=written, seed=seed)
    print_found(as_json, found, report.pivot_tables(found))
    screen.notes(result.notes)
    for line in found["left"]:
        screen.detail(f"whole: {line}")
    screen.note(f"wrote {written}")
