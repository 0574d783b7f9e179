"""`onnxshap inspect`."""

from __future__ import annotations

import click

from onnxshap.cli.options import Shapes, data_option, json_option, model_argument, run_options, talk_options
from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import Command
from onnxshap.cli.shared import backend_of, print_found


@click.command(cls=Command, short_help="Show what can be cut from MODEL, and what stays and why.")
@model_argument
@data_option()
@run_options
@json_option
@talk_options
@click.pass_obj
def inspect(
    screen: Screen, model: str, data: str | None, as_json: bool, input_shapes: Shapes, provider: str, threads: int
) -> None:
    """Show what can be cut from MODEL, what a unit costs, and what stays and why.

    With --data it is told at their sizes, and of models that run on real inputs alone.
    """
    from onnxshap import report
    from onnxshap.tracing import trace

    with screen.progress() as tell:
        tell("trace", 0, 1)
        backend, shapes = backend_of(screen, provider, threads), dict(input_shapes)
        if data is None:
            traced = trace(model, input_shapes=shapes, backend=backend)
        else:
            from onnxshap.opening import open_model  # as much again as the rest, for what only data need

            traced, _ = open_model(model, data, backend=backend, input_shapes=shapes, own=True)
        found = report.inspection(traced, model=model)
    screen.notes(found["notes"])
    print_found(as_json, found, report.inspection_tables(found))
