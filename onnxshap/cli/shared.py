"""What commands share: checks before the work, defaults that are told, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxshap.cli.screen import Screen
from onnxshap.errors import ModelError, OnnxshapError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxshap.backend import OrtBackend

DEFAULT_KEEP_MACS = 0.5
_PIPE_WIDTH = 1000


def backend_of(screen: Screen, provider: str, threads: int, memory: int | None = None) -> OrtBackend:
    """Return what runs models, the provider told where it was chosen here; numpy takes as many threads as it."""
    from onnxshap.backend import AUTO, MEMORY, OrtBackend
    from onnxshap.blas import at_most

    at_most(threads)
    if provider != AUTO:
        return OrtBackend(provider, threads, memory or MEMORY)
    found = OrtBackend.fastest(threads, memory or MEMORY)
    screen.later(f"provider: {found.provider}")
    return found


def output_of(output: str | None, model: str, suffix: str) -> str:
    """Return where to write: where the user says, else beside the model, by its stem and a suffix."""
    if output is not None:
        return output
    return str(Path(model).with_name(Path(model).stem + suffix) if Path(model).name else Path(suffix))


def listed(*paths: str | None) -> str:
    """Return the paths that there are in one line."""
    return " and ".join(path for path in paths if path is not None)


def need_data(data: str | None, labels: str | None) -> None:
    """Refuse labels of no data."""
    if labels is not None and data is None:
        raise click.UsageError("--labels needs --data")


def say_defaults(screen: Screen, data: str | None, payoff: str | None, *, budget: bool = True) -> None:
    """Say what stands in for what the user did not give."""
    half = f"keeping {DEFAULT_KEEP_MACS:.0%} of the MACs (--keep-macs)"
    if data is None:
        text = (
            "no --data: random inputs and a fidelity payoff, so values and scores only tell how outputs on noise change"
        )
        screen.later(f"note: {text}" + ("" if budget else f"; no budget: {half}"))
    elif not budget:
        screen.later(f"note: no budget given: {half}")
    if payoff == "accuracy":
        screen.later("warning: payoff accuracy is mostly 0 or 1 an image and ranks units badly; prefer ce or kl")


def check_outputs(
    outputs: Mapping[str, str | None], model: str, data: str | None, labels: str | None, eval_data: str | None = None,
    values: str | None = None,
) -> None:  # fmt: skip
    """Refuse outputs that could not be written at the end, or would replace what is read.

    Raises:
        ModelError: as `outputs.check_outputs`; of a model that cannot be read nothing is said until it is opened.
    """
    from onnxshap import outputs as checks
    from onnxshap.graph import read

    try:
        source = read(model)
    except ModelError:
        return
    sources = {"--data": data, "--labels": labels, "--eval-data": eval_data, "--values": values}
    checks.check_outputs(outputs, source, sources)


def print_found(as_json: bool, found: dict[str, Any], tables: Sequence[RenderableType]) -> None:
    """Print the result on stdout."""
    from rich.console import Console

    from onnxshap import report

    if sys.stdout is None:  # closed by who called
        return
    try:
        if as_json:
            click.echo(report.as_json(found), nl=False)
        else:
            report.show(tables, Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OnnxshapError(f"the result cannot be printed ({error.strerror}); print it elsewhere") from error
