"""`onnxshap eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from onnxshap.cli.options import Shapes, data_options, json_option, model_argument, run_options, talk_options
from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import Command
from onnxshap.cli.shared import backend_of, need_data, print_found, say_defaults
from onnxshap.cli.types import ModelPath


@click.command(name="eval", cls=Command, short_help="Show size, latency and scores of MODEL and OTHER.")
@model_argument
@click.argument("other", required=False, type=ModelPath())
@data_options(judging=None)
@run_options
@json_option
@talk_options
@click.pass_obj
def evaluate(
    screen: Screen, model: str, other: str | None, data: str | None, labels: str | None, payoff: str | None,
    seed: int, as_json: bool, input_shapes: Shapes, provider: str, threads: int,
) -> None:  # fmt: skip
    """Show size, latency and scores of MODEL, side by side with OTHER on the same data."""
    from onnxshap import comparing, report
    from onnxshap.opening import open_model

    need_data(data, labels)
    say_defaults(screen, data, payoff)
    backend = backend_of(screen, provider, threads)
    with screen.progress() as tell:
        tell("trace", 0, 1)
        traced, dataset = open_model(
            model, data, labels=labels, seed=seed, backend=backend, input_shapes=dict(input_shapes)
        )
        figures = comparing.compare(traced, other, dataset, payoff=payoff, seed=seed, backend=backend)
    names = [model] if other is None else [model, other]
    found = report.comparison(names, figures, images=len(dataset), source=dataset.source)
    print_found(as_json, found, [report.figures_table(_short(names), found["models"], dataset.source)])
    screen.notes(found["notes"])


def _short(paths: Sequence[str]) -> list[str]:
    """Return the file names where they differ, else the paths."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
