"""`onnxshap inspect`."""

from __future__ import annotations

import click

from onnxshap.cli.options import Shapes, json_option, model_argument, run_options, talk_options
from onnxshap.cli.screen import Screen
from onnxshap.cli.shared import backend_of, print_found


@click.command()
@model_argument
@json_option
@run_options
@talk_options
@click.pass_obj
def inspect(screen: Screen, model: str, as_json: bool, input_shapes: Shapes, provider: str, threads: int) -> None:
    """Show what can be cut from MODEL, what a unit costs, and what stays and why."""
    from onnxshap import report
    from onnxshap.tracing import trace

    with screen.progress() as tell:
        tell("trace", 0, 1)
        traced = trace(model, input_shapes=dict(input_shapes), backend=backend_of(screen, provider, threads))
        found = report.inspection(traced, model=model)
    screen.notes(traced.notes)
    print_found(as_json, found, report.inspection_tables(found))
