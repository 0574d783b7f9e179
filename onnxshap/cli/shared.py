"""What commands share: checks before the work, defaults that are told, results on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    """Return where to write: where the user says, else beside the model, by its stem and a suffix.

    Raises:
        click.UsageError: the model comes through stdin or a pipe of the shell, which say no name to go by.
    """
    if output is not None:
        return output
    if os.path.dirname(model) in ("/dev", "/dev/fd") or model.startswith("/proc/"):  # noqa: PTH120 - as below
        raise click.UsageError(f"{model} is no name that the output's could be made of: give -o")
    return str(Path(model).with_name(Path(model).stem + suffix) if Path(model).name else Path(suffix))


def listed(*paths: str | None) -> str:
    """Return the paths that there are in one line."""
    return " and ".join(path for path in paths if path is not None)


def need_data(data: str | None, labels: str | None) -> None:
    """Refuse labels of no data."""
    if labels is not None and data is None:
        raise click.UsageError("--labels needs --data")


def is_given(ctx: click.Context, name: str) -> bool:
    """Return whether an option was given, by the name of its parameter."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def refuse_beside(ctx: click.Context, option: str, *names: str) -> None:
    """Refuse options that another one makes pointless."""
    shown = {param.name: param.opts[-1] for param in ctx.command.params}
    for name in names:
        if is_given(ctx, name):
            raise click.UsageError(f"{option} brings its own values; leave out {shown[name]}")


def _idle(given: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield why some options have no effect beside the values of the others, and which ones."""
    from onnxshap.methods import GAMELESS, METHODS, ByImage

    if given["data"] is None and given.get("eval_data") is None:
        yield "there are no images, which --data gives", ["normalize"]
    named = given.get("methods") or [given.get("method") or "shapley"]
    if all(name in GAMELESS for name in named):
        limits = ["max_evals", "max_seconds", "decided", "workers", "cluster"]
        yield f"{', '.join(named)} is without a game", ["baseline", *limits]
    elif all(isinstance(method := METHODS[name], ByImage) and method.zero_filled for name in named):
        yield f"{', '.join(named)} leaves nothing in a removed unit's place", ["baseline"]
    if given.get("values") is not None:
        yield "--values brings its own values", ["baseline", "samples"]
    if given.get("repair") != "distill":
        yield "nothing is distilled without --repair distill", ["distill_seconds"]
    if given.get("keep_units") is not None:
        yield "--keep-units says every width", ["allocation"]
    if given.get("dry_run"):
        yield "a dry run writes nothing; --json prints the report", ["output", "report_path"]


def say_idle(screen: Screen) -> None:
    """Say which options of the command that runs were given and change nothing."""
    ctx = click.get_current_context()
    names = {param.name: param.opts[-1] for param in ctx.command.params}
    for why, options in _idle(ctx.params):
        given = [names[name] for name in options if name in names and is_given(ctx, name)]
        if given:
            screen.later(f"note: {_without_effect(given)}: {why}")


def say_unplayed(screen: Screen, method: str) -> None:
    """Say which options change nothing where a method without a game took the place of the default one.

    A limit in seconds is among what the note on that names.
    """
    from onnxshap.methods import GAMELESS

    ctx = click.get_current_context()
    if method not in GAMELESS or any(ctx.params.get(name) for name in ("method", "methods", "values")):
        return
    names = {param.name: param.opts[-1] for param in ctx.command.params}
    given = [names[name] for name in ("baseline", "decided", "workers") if is_given(ctx, name)]
    if given:
        screen.note(f"note: {_without_effect(given)}: {method} is without a game")


def _without_effect(options: Sequence[str]) -> str:
    return f"{', '.join(options)} {'has' if len(options) == 1 else 'have'} no effect"


def say_defaults(screen: Screen, data: str | None, payoff: str | None, *, budget: bool = True) -> None:
    """Say what stands in for what the user did not give, and what of it has no effect."""
    say_idle(screen)
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
        ModelError: as `written.check_outputs`; of a model that cannot be read nothing is said until it is opened.
        click.UsageError: an output is `-`, which elsewhere is stdout.
    """
    from onnx import ModelProto

    from onnxshap.graph import Source, read
    from onnxshap.opening import written

    if dashed := [name for name, output in outputs.items() if output == "-"]:
        raise click.UsageError(f"{dashed[0]} -: stdout carries tables (or --json); give a path, ./- if that is meant")
    try:
        pipe = os.path.exists(model) and not os.path.isfile(model)  # noqa: PTH110, PTH113 - Path raises at odd names
        source = Source(ModelProto()) if pipe else read(model)  # what comes through a pipe comes once
    except ModelError:
        return
    sources = {"--data": data, "--labels": labels, "--eval-data": eval_data, "--values": values}
    written.check_outputs(outputs, source, sources)


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
