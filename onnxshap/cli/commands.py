"""The group of all commands."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import sys
import threading
from pathlib import Path

import click

from onnxshap import __version__
from onnxshap.cli.evaluate import evaluate
from onnxshap.cli.inspect import inspect
from onnxshap.cli.pivot import pivot
from onnxshap.cli.prune import prune
from onnxshap.cli.score import score
from onnxshap.cli.screen import Ended, Main, Screen
from onnxshap.cli.sweep import sweep
from onnxshap.cli.unify import unify


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxshap")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make an exported ONNX model smaller and faster, without its training code."""
    if sys.stderr is None:  # closed by who called: nothing can be said
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    elif not faulthandler.is_enabled():  # a kernel that divides by zero ends the process: where it was is said
        with contextlib.suppress(OSError):
            faulthandler.enable(os.dup(_STDERR), all_threads=False)  # which is silenced at times
    for stream in (sys.stdout, sys.stderr):  # names that a terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():  # what cleans up after Ctrl-C does after these, too
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
                signal.signal(number, _end)
    ctx.obj = Screen()


_STDERR = 2


def _end(number: int, frame: object) -> None:
    """End as an interrupted run does, its processes and temporary files with it."""
    raise Ended(number)


for command in (inspect, prune, score, sweep, unify, pivot, evaluate):
    main.add_command(command)
