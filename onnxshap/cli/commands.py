"""The group of all commands."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click

from onnxshap import __version__
from onnxshap.cli.evaluate import evaluate
from onnxshap.cli.inspect import inspect
from onnxshap.cli.pivot import pivot
from onnxshap.cli.prune import prune
from onnxshap.cli.score import score
from onnxshap.cli.screen import Main, Screen
from onnxshap.cli.sweep import sweep
from onnxshap.cli.unify import unify


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxshap")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make an exported ONNX model smaller and faster, without its training code."""
    if sys.stderr is None:  # closed by who called: nothing can be said
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):  # names that a terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    ctx.obj = Screen()


for command in (inspect, prune, score, sweep, unify, pivot, evaluate):
    main.add_command(command)
