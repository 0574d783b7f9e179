"""The command line: options in, tables or JSON on stdout, everything else on stderr.

Exit codes: 0 ok; 1 the model, data or budget cannot be served; 2 usage; 3 verification failed; 130 interrupted.
The library is imported inside the commands, so that `--help`, usage errors and completion are quick.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxshap import __version__
from onnxshap.errors import ModelError, OnnxshapError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from onnxshap.api import Progress as Tell
    from onnxshap.backend import OrtBackend

DEFAULT_KEEP_MACS = 0.5
_STAGES = {
    "trace": "reading the model",
    "score": "scoring units",
    "cut": "cutting and checking",
    "repair": "refitting weights",
    "distill": "tuning weights",
    "curves": "measuring widths",
    "search": "searching",
    "sweep": "cutting to every budget",
    "time": "timing Convs",
    "weigh": "weighing layers",
}
_PIPE_WIDTH = 1000
_INTERRUPTED = 130
Command = TypeVar("Command", bound=Callable[..., Any])


# --- what the user sees besides results ------------------------------------------------------------------------------


@dataclass
class Screen:
    """Everything that goes to stderr.

    Attributes:
        quiet: only errors.
        verbose: also seconds, frozen axes, causes and tracebacks.
    """

    quiet: bool = False
    verbose: bool = False
    _pending: list[str] = field(default_factory=list)
    _bar: Progress | None = None

    def note(self, text: str) -> None:
        """Say something."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(f"onnxshap: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(f"onnxshap: {text}", err=True)

    def later(self, text: str) -> None:
        """Say something once the input has been found good, so that a refusal stays one line."""
        self._pending.append(text)

    def flush(self) -> None:
        """Say what was put off."""
        for text in self._pending:
            self.note(text)
        self._pending.clear()

    def detail(self, text: str) -> None:
        """Say something that only -v asks for."""
        if self.verbose:
            self.note(text)

    @contextmanager
    def progress(self) -> Iterator[Tell]:
        """Yield what the pipeline tells its progress to: one bar on a terminal, nothing elsewhere."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        bars = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TextColumn("elapsed,"), Remaining(compact=True), TextColumn("left"))
        hidden = self.quiet or not sys.stderr.isatty()
        with Progress(*bars, *times, console=Console(stderr=True), transient=True, disable=hidden) as bar:
            current = "trace"
            task = bar.add_task(_STAGES[current], total=1)

            def tell(stage: str, done: int, total: int) -> None:
                nonlocal current
                if stage != "trace":
                    self.flush()
                if stage != current:
                    current = stage
                    bar.reset(task, description=_STAGES.get(stage, stage), total=total)
                bar.update(task, completed=done, total=total)

            self._bar = None if hidden else bar
            try:
                yield tell
            finally:
                self._bar = None
        self.flush()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Main(click.Group):
    """Turns what the library raises into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("onnxshap: interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except OnnxshapError as error:
            click.echo(f"onnxshap: error: {_one_line(error)}", err=True)
            if _verbose(ctx):
                for cause in _causes(error):
                    click.echo(f"onnxshap: caused by {type(cause).__name__}: {_one_line(cause)}", err=True)
            ctx.exit(error.exit_code)
        except Exception as error:  # noqa: BLE001 (the last resort: a user gets one line, and -v the rest)
            if _verbose(ctx):
                click.echo(traceback.format_exc(), err=True, nl=False)
            what = f"{type(error).__name__}: {_one_line(error)}"
            hint = "please report it" if _verbose(ctx) else "run with -v for the traceback, and please report it"
            click.echo(f"onnxshap: internal error: {what} ({hint})", err=True)
            ctx.exit(1)


def _verbose(ctx: click.Context) -> bool:
    screen = ctx.find_object(Screen)
    return screen is not None and screen.verbose


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__) is not None:
        yield cause
        error = cause


# --- option types ----------------------------------------------------------------------------------------------------


class _OneOf(click.Choice):  # type: ignore[type-arg] # generic since click 8.4
    """One of the library's names, looked up when they are needed."""

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self.case_sensitive = True
        self._load = load

    def __getattr__(self, name: str) -> Any:
        if name != "choices":
            raise AttributeError(name)
        self.choices = tuple(self._load())
        return self.choices


class _Share(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A share of the whole, as 0.5 or 50%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        number, percent = value.removesuffix("%"), value.endswith("%")
        try:
            return float(number) / (100 if percent else 1)
        except ValueError:
            self.fail(f"{value!r} is no share; give one like 0.5 or 50%", param, ctx)


class _Bytes(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A number of bytes, as 1000000, 512M or 4G."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
        powers = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
        try:
            found = int(float(number) * 1024 ** powers[unit])
        except (ValueError, KeyError, OverflowError):
            found = 0
        if found < 1:
            self.fail(f"{value!r} is no size; give bytes, or one like 512M or 4G", param, ctx)
        return found


class _InputShape(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """An input's name and its shape, as NAME=1,3,48,192."""

    name = "name=shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[int]]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.rpartition("=")
        sizes = [int(size) if size.strip().isdecimal() else 0 for size in text.split(",")]
        if not equals or not name or not all(sizes):
            self.fail(f"{value!r} is no shape; give one like NAME=1,3,48,192", param, ctx)
        return name, sizes


class _Shares(_Share):
    """Several shares, as 0.9,0.5 or 90%,50%."""

    name = "shares"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(super(_Shares, self).convert(one.strip(), param, ctx) for one in value.split(","))


class _FilePath(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A path with one of some suffixes."""

    name = "file"

    def __init__(self, what: str, *suffixes: str) -> None:
        self._what, self._suffixes = what, suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if Path(value).suffix.lower() not in self._suffixes:
            self.fail(f"{value!r}: {self._what} ends in {' or '.join(self._suffixes)}", param, ctx)
        return str(value)


def _methods() -> Iterable[str]:
    from onnxshap.methods import METHODS

    return METHODS


def _payoffs() -> Iterable[str]:
    from onnxshap.payoffs import NAMES

    return NAMES


def _providers() -> Iterable[str]:
    from onnxshap.backend import AUTO, PROVIDERS

    return (*PROVIDERS, AUTO)


def _baselines() -> Iterable[str]:
    from onnxshap.api import BASELINES

    return BASELINES


def _repairs() -> Iterable[str]:
    from onnxshap.cutter import REPAIRS

    return REPAIRS


def _pivot_repairs() -> Iterable[str]:
    from onnxshap.pivoting import REPAIRS

    return REPAIRS


def _codecs() -> Iterable[str]:
    from onnxshap.unification import CODECS

    return CODECS


def _allocations() -> Iterable[str]:
    from onnxshap.cutter import ALLOCATIONS

    return ALLOCATIONS


# --- options that commands share -------------------------------------------------------------------------------------


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Screen).quiet = value


def _loud(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Screen).verbose = value


model_argument = click.argument("model", type=click.Path())
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
talk_options = _options(
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_quiet, help="No progress, no notes."),
    click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_loud, help="Also seconds, causes, tracebacks."
    ),
)
run_options = _options(
    click.option(
        "--input-shape", "input_shapes", type=_InputShape(), multiple=True, metavar="NAME=1,3,48,192",
        help="Shape of an input with free dimensions, where there is no data; may be repeated.",
    ),
    click.option(
        "--provider", type=_OneOf(_providers), default="cpu", show_default=True,
        help="What runs the model; auto: CUDA where it is usable, else the CPU.",
    ),
    click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="Threads; 0 = all cores."),
)  # fmt: skip
data_options = _options(
    click.option(
        "--data", metavar="DATA",
        help="Calibration data: .npz (arrays named as the inputs; `labels` or `y`: the targets), .npy, a folder of "
             "images (subfolders: labels) or module:function. Without: random inputs.",
    ),
    click.option("--labels", metavar="FILE", help="Labels for --data: .npy, .npz, .txt or .csv."),
    click.option("--payoff", type=_OneOf(_payoffs), help="What outputs are worth; by default what fits them."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all randomness."),
)  # fmt: skip
method_option = click.option(
    "--method", type=_OneOf(_methods), default="shapley", show_default=True, help="How to value units."
)
journal_option = click.option(
    "--journal", metavar="FILE", help="Where results are kept until the end: a killed run goes on there."
)
score_options = _options(
    click.option(
        "--baseline", type=_OneOf(_baselines), default="mean", show_default=True,
        help="What stands in for a removed unit while scoring.",
    ),
    click.option(
        "--samples", type=int, help="Most images to score with.  [default: 128, fewer for models that take long]"
    ),
    click.option("--max-evals", type=click.IntRange(1), help="Most (image, coalition) evaluations."),
    click.option("--max-seconds", type=float, help="Most seconds of scoring."),
    click.option(
        "--decided", type=float, default=0.1, show_default=True,
        help="End a group when the expected share of misplaced units is below; 0: never.",
    ),
    click.option(
        "--memory", type=_Bytes(), default="1G", show_default=True,
        help="Activations to keep at a time, of each worker: bytes, or as 512M or 4G.",
    ),
    click.option("--workers", type=click.IntRange(0), default=0, help="Processes to score with, on this machine."),
    click.option("--cluster", metavar="ADDRESS", help="A dask.distributed scheduler to score with, tcp://host:8786."),
    click.option("--include", multiple=True, metavar="GLOB", help="Only groups or nodes of that name; repeatable."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="No groups or nodes of that name; repeatable."),
)  # fmt: skip

width_options = _options(
    click.option("--multiple-of", type=int, help="Widths are multiples of it. [default: 8 or 4 where groups are wide]"),
    click.option("--min-units", type=int, default=1, show_default=True, help="No group gets narrower."),
)
repair_options = _options(
    click.option(
        "--repair",
        type=_OneOf(_repairs),
        help="What is done about what the cut leaves behind.  [default: lstsq with --data, else fold]",
    ),
    click.option(
        "--allocation",
        type=_OneOf(_allocations),
        help="How widths are shared out.  [default: curves with lstsq, where affordable, else uniform]",
    ),
    click.option("--distill-seconds", type=float, help="Most that --repair distill tunes a model for.  [default: 480]"),
)


# --- commands --------------------------------------------------------------------------------------------------------


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxshap")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make an exported ONNX model smaller and faster, without its training code."""
    for stream in (sys.stdout, sys.stderr):  # names that a terminal cannot show must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    ctx.obj = Screen()


@main.command()
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
        traced = trace(model, input_shapes=dict(input_shapes), backend=_backend(screen, provider, threads))
        found = report.inspection(traced, model=model)
    _print(as_json, found, report.inspection_tables(found))


@main.command()
@model_argument
@click.option("-o", "--output", metavar="FILE", help="The smaller model. [default: MODEL's stem + .pruned.onnx]")
@click.option("--keep-macs", type=_Share(), help="Share of the multiply-accumulates to keep, as 0.5 or 50%.")
@click.option("--keep-params", type=_Share(), help="Share of the parameters to keep.")
@click.option("--keep-bytes", type=_Share(), help="Share of the weights' bytes to keep.")
@click.option("--keep-units", type=_Share(), help="Share of every group to keep, no search.")
@click.option("--target-latency", type=float, metavar="MS", help="Most milliseconds a run may take here, measured.")
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="The smallest model that loses at most X accuracy (or agreement) on --eval-data, or on data held out.",
)
@width_options
@data_options
@click.option("--eval-data", metavar="DATA", help="Held-out data for the scores before and after. [default: --data]")
@method_option
@score_options
@journal_option
@click.option("--values", metavar="FILE", help="Values that `onnxshap score` wrote, instead of scoring.")
@repair_options
@click.option(
    "--report",
    "report_path",
    type=_FilePath("a report", ".json", ".html"),
    metavar="FILE",
    help="Also write a .json or .html report.",
)
@click.option("--dry-run", is_flag=True, help="Do everything, write nothing.")
@json_option
@run_options
@talk_options
@click.pass_context
def prune(
    ctx: click.Context, model: str, output: str | None, keep_macs: float | None, keep_params: float | None,
    keep_bytes: float | None, keep_units: float | None, target_latency: float | None, max_drop: float | None,
    multiple_of: int | None, min_units: int, data: str | None, labels: str | None,
    payoff: str | None, seed: int, eval_data: str | None, method: str, baseline: str, samples: int | None,
    max_evals: int | None, max_seconds: float | None, decided: float, journal: str | None, workers: int,
    cluster: str | None, include: tuple[str, ...], exclude: tuple[str, ...], values: str | None, repair: str | None,
    allocation: str | None, distill_seconds: float | None,
    report_path: str | None, dry_run: bool, as_json: bool, input_shapes: Shapes, provider: str, threads: int,
    memory: int,
) -> None:  # fmt: skip
    """Write a smaller MODEL with the same inputs and outputs.

    Without a budget half of the multiply-accumulates stay.
    """
    from onnxshap import api, report

    screen = ctx.find_object(Screen) or Screen()
    _need_data(data, labels)
    if values is not None:
        _no_effect(ctx, "--values", "method", "max_evals", "max_seconds", "decided", "journal", "workers", "cluster")
    budgets = (keep_macs, keep_params, keep_bytes, keep_units, target_latency, max_drop)
    unbudgeted = all(budget is None for budget in budgets)
    _say_defaults(screen, data, payoff, budget=not unbudgeted)
    written = None if dry_run else output or str(_beside(model, ".pruned.onnx"))
    sources = {**_sources(model, data, labels, eval_data), "--values": values}
    if not dry_run:
        _check_outputs({"-o": written, "--report": report_path, "--journal": journal}, sources)
    with screen.progress() as tell:
        result = api.prune(
            model, data, labels=labels, eval_data=eval_data,
            keep_macs=DEFAULT_KEEP_MACS if unbudgeted else keep_macs, keep_params=keep_params, keep_units=keep_units,
            keep_bytes=keep_bytes, target_latency=target_latency, max_drop=max_drop, allocation=allocation,
            distill_seconds=distill_seconds,
            multiple_of=multiple_of, min_units=min_units, include=include, exclude=exclude, method=method,
            payoff=payoff, baseline=baseline, repair=repair, samples=samples, max_evals=max_evals,
            max_seconds=max_seconds, decided=decided, journal=journal, workers=workers, cluster=cluster, seed=seed,
            values=None if values is None else report.read_values(values),
            backend=_backend(screen, provider, threads, memory), input_shapes=dict(input_shapes), output=written,
            progress=tell,
        )  # fmt: skip
    found = report.prune_report(result, model=model, output=written, seed=seed)
    if report_path is not None and not dry_run:
        report.write_prune_report(found, report_path)
    _print(as_json, found, report.prune_tables(found))
    for line in report.frozen_lines(found):
        screen.detail(line)
    screen.detail("seconds: " + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items()))
    if journal is not None:
        Path(journal).unlink(missing_ok=True)
    screen.note("dry run: nothing written" if dry_run else f"wrote {_and(written, report_path)}")


@main.command()
@model_argument
@click.option("-o", "--output", metavar="FILE", help="The values file. [default: MODEL's stem + .values.json]")
@data_options
@method_option
@score_options
@journal_option
@json_option
@run_options
@talk_options
@click.pass_obj
def score(
    screen: Screen, model: str, output: str | None, data: str | None, labels: str | None, payoff: str | None,
    seed: int, method: str, baseline: str, samples: int | None, max_evals: int | None, max_seconds: float | None,
    decided: float, journal: str | None, workers: int, cluster: str | None, include: tuple[str, ...],
    exclude: tuple[str, ...], as_json: bool, input_shapes: Shapes, provider: str, threads: int, memory: int,
) -> None:  # fmt: skip
    """Value the units of MODEL; `prune --values` takes the file.

    Results are kept in a journal beside the output until it is written: the same command goes on after a kill.
    """
    from onnxshap import api, report

    _need_data(data, labels)
    _say_defaults(screen, data, payoff)
    written = output or str(_beside(model, ".values.json"))
    kept = journal or f"{written}.journal"
    _check_outputs({"-o": written, "--journal": kept}, _sources(model, data, labels))
    with screen.progress() as tell:
        tell("trace", 0, 1)
        found = api.score(
            model, data, labels=labels, method=method, payoff=payoff, baseline=baseline, include=include,
            exclude=exclude, samples=samples, max_evals=max_evals, max_seconds=max_seconds, decided=decided, seed=seed,
            backend=_backend(screen, provider, threads, memory), input_shapes=dict(input_shapes), journal=kept,
            workers=workers, cluster=cluster, progress=tell,
        )  # fmt: skip
    report.write_json(report.values_report(found), written)
    Path(kept).unlink(missing_ok=True)
    _print(as_json, report.values_report(found), [report.values_table(found)])
    screen.note(f"wrote {written}")


@main.command()
@model_argument
@click.option("--keep", type=_Shares(), help="Shares of the MACs to keep, as 0.9,0.5.  [default: 0.9 down to 0.1]")
@click.option("--max-drop", type=float, metavar="X", help="Mark the fewest MACs that lose at most X.")
@width_options
@data_options
@click.option("--eval-data", metavar="DATA", help="Held-out data to judge by. [default: two fifths of --data]")
@click.option("--method", "methods", type=_OneOf(_methods), multiple=True, help="How to value units; may be repeated.")
@score_options
@repair_options
@click.option(
    "-o", "--output", type=_FilePath("it", ".json"), metavar="FILE.json", help="Also write what --json prints."
)
@click.option(
    "--plot",
    type=_FilePath("a plot", ".svg", ".png", ".html"),
    metavar="FILE",
    help="Also draw it: .svg, .png or .html (needs `onnxshap[plot]`).",
)
@json_option
@run_options
@talk_options
@click.pass_obj
def sweep(
    screen: Screen, model: str, keep: tuple[float, ...] | None, max_drop: float | None, multiple_of: int | None,
    min_units: int, data: str | None, labels: str | None, payoff: str | None, seed: int, eval_data: str | None,
    methods: tuple[str, ...], baseline: str, samples: int | None, max_evals: int | None, max_seconds: float | None,
    decided: float, workers: int, cluster: str | None, include: tuple[str, ...], exclude: tuple[str, ...],
    repair: str | None, allocation: str | None, distill_seconds: float | None, output: str | None, plot: str | None,
    as_json: bool, input_shapes: Shapes, provider: str, threads: int, memory: int,
) -> None:  # fmt: skip
    """Show what MODEL loses, and saves, at many budgets: one scoring a method.

    The knee is the point after which more is lost for what is saved.
    """
    from onnxshap import report, sweeping

    if data is None:
        raise click.UsageError("sweep needs --data")
    _say_defaults(screen, data, payoff)
    _check_outputs({"-o": output, "--plot": plot}, _sources(model, data, labels, eval_data))
    if plot is not None:
        from onnxshap.plot import require, write_plot

        require()
    with screen.progress() as tell:
        result = sweeping.sweep(
            model, data, labels=labels, eval_data=eval_data, methods=methods or ("shapley",),
            keep=sweeping.KEEP if keep is None else keep, multiple_of=multiple_of, min_units=min_units,
            include=include, exclude=exclude, payoff=payoff, baseline=baseline, repair=repair, allocation=allocation,
            distill_seconds=distill_seconds, samples=samples, max_evals=max_evals, max_seconds=max_seconds,
            decided=decided, seed=seed, workers=workers, cluster=cluster,
            backend=_backend(screen, provider, threads, memory), input_shapes=dict(input_shapes), progress=tell,
        )  # fmt: skip
    found = report.sweep_report(result, model=model, seed=seed, max_drop=max_drop)
    if output is not None:
        report.write_json(found, output)
    if plot is not None:
        write_plot(found, plot)
    _print(as_json, found, report.sweep_tables(found))
    for share, why in result.left_out.items():
        screen.note(f"left out {share:g}: {why}")
    if output is not None or plot is not None:
        screen.note(f"wrote {_and(output, plot)}")


@main.command()
@model_argument
@click.option("-o", "--output", metavar="FILE", help="The model. [default: MODEL's stem + .unified.onnx]")
@click.option(
    "--keep-bytes", type=_Share(), default=0.5, show_default=True, help="Share of the compressed file to keep."
)
@click.option("--block", type=int, default=8, show_default=True, help="Weights that share a magnitude.")
@click.option("--codec", type=_OneOf(_codecs), default="gzip", show_default=True, help="What compresses the file.")
@data_options
@click.option("--eval-data", metavar="DATA", help="Held-out data for the scores before and after. [default: --data]")
@json_option
@run_options
@talk_options
@click.pass_obj
def unify(
    screen: Screen, model: str, output: str | None, keep_bytes: float, block: int, codec: str, data: str | None,
    labels: str | None, payoff: str | None, seed: int, eval_data: str | None, as_json: bool, input_shapes: Shapes,
    provider: str, threads: int,
) -> None:  # fmt: skip
    """Write MODEL with weights that share magnitudes: a file that compresses better, and runs no faster."""
    from onnxshap import report, unification

    _need_data(data, labels)
    _say_defaults(screen, data, payoff)
    written = output or str(_beside(model, ".unified.onnx"))
    _check_outputs({"-o": written}, _sources(model, data, labels, eval_data))
    with screen.progress() as tell:
        result = unification.unify(
            model, data, labels=labels, eval_data=eval_data, keep_bytes=keep_bytes, block=block, codec=codec,
            payoff=payoff, seed=seed, backend=_backend(screen, provider, threads), input_shapes=dict(input_shapes),
            output=written, progress=tell,
        )  # fmt: skip
    found = report.unify_report(result, model=model, output=written, seed=seed)
    _print(as_json, found, report.unify_tables(found))
    screen.note(f"wrote {written}")


@main.command()
@model_argument
@click.option("-o", "--output", metavar="FILE", help="The model. [default: MODEL's stem + .pivoted.onnx]")
@click.option(
    "--groups", type=int, multiple=True, metavar="K", help="Groups that a Conv may get; may be repeated.  [default: 2]"
)
@click.option(
    "--keep-macs", type=_Share(), help="Share of the multiply-accumulates to keep.  [default: what is faster]"
)
@click.option(
    "--max-drop", type=float, metavar="X", help="As many Convs as lose at most X accuracy on --eval-data, or held out."
)
@click.option("--multiple-of", type=int, default=4, show_default=True, help="Widths of a group are multiples of it.")
@click.option("--untimed", is_flag=True, help="Also where it is not measured faster: no clock decides.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only Convs of that name; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No Convs of that name; repeatable.")
@click.option(
    "--repair",
    type=_OneOf(_pivot_repairs),
    help="What is done about the weights that are dropped.  [default: lstsq with --data]",
)
@data_options
@click.option("--eval-data", metavar="DATA", help="Held-out data for the scores before and after. [default: --data]")
@json_option
@run_options
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

    _need_data(data, labels)
    _say_defaults(screen, data, payoff)
    written = output or str(_beside(model, ".pivoted.onnx"))
    _check_outputs({"-o": written}, _sources(model, data, labels, eval_data))
    with screen.progress() as tell:
        result = pivoting.pivot(
            model, data, labels=labels, eval_data=eval_data, groups=groups or pivoting.GROUPS, keep_macs=keep_macs,
            max_drop=max_drop, multiple_of=multiple_of, include=include, exclude=exclude, timed=not untimed,
            repair=repair, payoff=payoff, seed=seed, backend=_backend(screen, provider, threads),
            input_shapes=dict(input_shapes), output=written, progress=tell,
        )  # fmt: skip
    found = report.pivot_report(result, model=model, output=written, seed=seed)
    _print(as_json, found, report.pivot_tables(found))
    for line in found["left"]:
        screen.detail(f"whole: {line}")
    screen.note(f"wrote {written}")


@main.command(name="eval")
@model_argument
@click.argument("other", required=False, type=click.Path())
@data_options
@json_option
@run_options
@talk_options
@click.pass_obj
def evaluate(
    screen: Screen, model: str, other: str | None, data: str | None, labels: str | None, payoff: str | None,
    seed: int, as_json: bool, input_shapes: Shapes, provider: str, threads: int,
) -> None:  # fmt: skip
    """Show size, latency and scores of MODEL, side by side with OTHER on the same data."""
    from onnxshap import api, report

    _need_data(data, labels)
    _say_defaults(screen, data, payoff)
    backend = _backend(screen, provider, threads)
    with screen.progress() as tell:
        tell("trace", 0, 1)
        traced, dataset = api.open_model(
            model, data, labels=labels, seed=seed, backend=backend, input_shapes=dict(input_shapes)
        )
        figures = api.compare(traced, other, dataset, payoff=payoff, seed=seed, backend=backend)
    names = [model] if other is None else [model, other]
    found = report.comparison(names, figures, images=len(dataset), source=dataset.source)
    _print(as_json, found, [report.figures_table(_short(names), found["models"], dataset.source)])


# --- what commands share ---------------------------------------------------------------------------------------------

Shapes = Sequence[tuple[str, list[int]]]


def _backend(screen: Screen, provider: str, threads: int, memory: int | None = None) -> OrtBackend:
    from onnxshap.backend import AUTO, MEMORY, OrtBackend

    if provider != AUTO:
        return OrtBackend(provider, threads, memory or MEMORY)
    found = OrtBackend.fastest(threads, memory or MEMORY)
    screen.note(f"provider: {found.provider}")
    return found


def _beside(model: str, suffix: str) -> Path:
    return Path(model).with_name(Path(model).stem + suffix) if Path(model).name else Path(suffix)


def _short(paths: Sequence[str]) -> list[str]:
    """Return the file names where they differ, else the paths."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def _and(*paths: str | None) -> str:
    return " and ".join(path for path in paths if path is not None)


def _need_data(data: str | None, labels: str | None) -> None:
    if labels is not None and data is None:
        raise click.UsageError("--labels needs --data")


def _no_effect(ctx: click.Context, option: str, *names: str) -> None:
    """Refuse options that another one makes pointless."""
    for name in names:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} brings its own values; leave out --{name.replace('_', '-')}")


def _say_defaults(screen: Screen, data: str | None, payoff: str | None, *, budget: bool = True) -> None:
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


def _sources(model: str, data: str | None, labels: str | None, eval_data: str | None = None) -> dict[str, str | None]:
    """Return what a command reads, by what messages call it."""
    return {"the model": model, "--data": data, "--labels": labels, "--eval-data": eval_data}


def _check_outputs(outputs: Mapping[str, str | None], sources: Mapping[str, str | None]) -> None:
    """Refuse outputs that could not be written at the end, or would replace what is read.

    Raises:
        ModelError: an output is an input or another output, no plain file, or in a folder that cannot be written.
    """
    if not Path(sources["the model"] or "").is_file():
        return  # a missing model is told first
    taken = {os.path.realpath(path): name for name, path in sources.items() if path is not None}
    for name, output in outputs.items():
        if output is None:
            continue
        path = Path(output)
        if (other := taken.get(os.path.realpath(path))) is not None:
            raise ModelError(f"{output}: would replace {other}; give {name} another path")
        taken[os.path.realpath(path)] = name
        if path.exists() and not path.is_file():
            raise ModelError(f"{output}: is no plain file; give {name} another path")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise ModelError(f"{output}: cannot be written ({error.strerror}); give {name} another path") from error


def _print(as_json: bool, found: dict[str, Any], tables: Sequence[RenderableType]) -> None:
    """Print the result on stdout."""
    from rich.console import Console

    from onnxshap import report

    if as_json:
        click.echo(report.as_json(found), nl=False)
    else:
        report.show(tables, Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH))
