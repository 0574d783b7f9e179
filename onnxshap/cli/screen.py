"""What the user sees besides results: notes and a bar on stderr, errors in one line."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import click

from onnxshap.arguments import telling_options
from onnxshap.clock import span
from onnxshap.errors import OnnxshapError, one_line

if TYPE_CHECKING:
    from rich.progress import Progress

    from onnxshap.progress import Progress as Tell

_STAGES = {
    "trace": "reading the model",
    "split": "splitting layers",
    "score": "scoring units",
    "value": "valuing units",
    "order": "putting units in order",
    "cut": "cutting and checking",
    "repair": "refitting weights",
    "distill": "tuning weights",
    "curves": "measuring widths",
    "search": "searching",
    "sweep": "cutting to every budget",
    "time": "timing Convs",
    "measure": "measuring before and after",
    "weigh": "weighing layers",
}
_SHORTER = {
    "score": "--samples, --max-seconds (one image a group at least) or a --method without a game (recon) take less",
    "value": "--samples or a --method of norms (l2) take less",
}
"""What shortens a stage."""
_FIRST_LINE, _NEXT_LINE, _LAST_PAUSE = 10.0, 60.0, 600.0
"""Seconds until a line tells how far a stage is, until the next one does, and most seconds between two."""
_WORTH = 30.0
"""Seconds left that the first line is worth."""
_TELLING = 0.05
"""Of a stage: a first step that is less says nothing of the others."""
_AT_ONCE = 1.0
"""Seconds within which a first step takes no time."""
_LONG = 600.0
"""Seconds left that a hint is worth."""
_INTERRUPTED = 130
_LONGEST = 1200


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
    _said: set[str] = field(default_factory=set)
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

    def at_once(self, text: str) -> None:
        """Say what the user should know while it goes on; `notes` leaves it out."""
        self.flush()
        if text not in self._said:
            self._said.add(text)
            self.note(f"note: {text}")

    def notes(self, texts: Iterable[str]) -> None:
        """Say what the user should know of how a model was taken."""
        for text in texts:
            if text not in self._said:
                self.note(f"note: {text}")

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
        """Yield what the pipeline tells its progress to: one bar on a terminal, now and then a line elsewhere."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        bars = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TextColumn("elapsed,"), Remaining(compact=True), TextColumn("left"))
        hidden = self.quiet or not sys.stderr.isatty()
        with Progress(*bars, *times, console=Console(stderr=True), transient=True, disable=hidden) as bar:
            current = "trace"
            task = bar.add_task(_STAGES[current], total=1)
            lines = Lines(self.note)

            def tell(stage: str, done: int, total: int) -> None:
                nonlocal current
                if stage != "trace":
                    self.flush()
                if stage != current:
                    current = stage
                    bar.reset(task, description=_STAGES.get(stage, stage), total=total)
                bar.update(task, completed=done, total=total)
                if hidden:
                    lines.tell(stage, done, total)

            self._bar = None if hidden else bar
            try:
                with redirect_stdout(sys.stderr):  # where only results go: functions of the user's may print
                    yield tell
            finally:
                self._bar = None
        self.flush()


@dataclass
class Lines:
    """Progress where no bar can be shown, as in the log of a pipeline: a line after a minute, then ever fewer.

    A stage goes on while others are told in between, of which a search is made up; it begins anew where it falls back.

    Attributes:
        say: takes a line.
        clock: seconds.
    """

    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _stages: dict[str, _Stage] = field(default_factory=dict)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is, if it is time to."""
        now = self.clock()
        known = self._stages.get(stage)
        if known is None or done < known.done:
            known = self._stages[stage] = _Stage(now, now + _FIRST_LINE)
        known.done = done
        known.first = known.first or ((now, done) if done else None)
        if now < known.next or not 0 < done < total:
            return
        spent, left = now - known.start, known.left(now, total)
        if left is None:
            return
        if spent < _NEXT_LINE and left < _WORTH:
            return
        hint = f"; {_SHORTER[stage]}" if stage in _SHORTER and not known.hinted and left > _LONG else ""
        what = _STAGES.get(stage, stage)
        self.say(f"{what}: {done / total:.0%} after {span(spent)}, some {span(left)} left{hint}")
        known.hinted = known.hinted or bool(hint)
        known.next = now + known.pause if spent >= _NEXT_LINE else known.start + _NEXT_LINE
        known.pause = min(2 * known.pause, _LAST_PAUSE) if spent >= _NEXT_LINE else known.pause


@dataclass
class _Stage:
    """When a stage began, when a line is due, the seconds from line to line, how far it is, and its first step."""

    start: float
    next: float
    pause: float = 2 * _NEXT_LINE
    done: int = 0
    hinted: bool = False
    first: tuple[float, int] | None = None

    def left(self, now: float, total: int) -> float | None:
        """Return the seconds left: what came before the first step, as workers that start, may come once.

        A first step that took no time, as what a journal knows, tells nothing of the others. None where no step does.
        """
        when, begun = self.first or (self.start, 0)
        rest, at_once = total - self.done, when - self.start < _AT_ONCE
        whole = (now - self.start) * rest / self.done
        if self.done == begun:
            return None if at_once or self.done < _TELLING * total else whole
        since = (now - when) * rest / (self.done - begun)
        return since if at_once else min(whole, since)


def _one_line(error: BaseException) -> str:
    """Return a message as a terminal may show it: names in it are a file's, of any length, with any characters."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in one_line(error))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class Ended(KeyboardInterrupt):
    """A signal that ends the process as an interrupt does: no function of the user's is taken to have exited.

    Attributes:
        exit_code: as shells tell it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Main(click.Group):
    """Turns what the library raises into one line and an exit code; lists commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as they were added."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises ends in an exit code."""
        try:
            with telling_options():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as interrupt:
            _end_interrupted(ctx, interrupt)
        except OnnxshapError as error:
            if (behind := _interrupt_behind(error)) is not None:
                _end_interrupted(ctx, behind)
            click.echo(f"onnxshap: error: {_one_line(error)}", err=True)
            if _verbose(ctx):
                for cause in _causes(error):
                    click.echo(f"onnxshap: caused by {type(cause).__name__}: {_one_line(cause)}", err=True)
            ctx.exit(error.exit_code)
        except MemoryError as error:
            why = f"out of memory ({_one_line(error)})"
            click.echo(f"onnxshap: error: {why}; a smaller --memory, fewer images or a larger machine help", err=True)
            ctx.exit(OnnxshapError.exit_code)
        except Exception as error:  # noqa: BLE001 (the last resort: a user gets one line, and -v the rest)
            if (behind := _interrupt_behind(error)) is not None:
                _end_interrupted(ctx, behind)
            if _verbose(ctx):
                click.echo(traceback.format_exc(), err=True, nl=False)
            what = f"{type(error).__name__}: {_one_line(error)}"
            hint = "please report it" if _verbose(ctx) else "run with -v for the traceback, and please report it"
            click.echo(f"onnxshap: internal error: {what} ({hint})", err=True)
            ctx.exit(1)


def _end_interrupted(ctx: click.Context, interrupt: KeyboardInterrupt) -> NoReturn:
    if isinstance(interrupt, Ended):
        ctx.exit(interrupt.exit_code)
    click.echo("onnxshap: interrupted", err=True)
    ctx.exit(_INTERRUPTED)


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that an error came of: a library that is being imported makes an ImportError of it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found


def _verbose(ctx: click.Context) -> bool:
    screen = ctx.find_object(Screen)
    return screen is not None and screen.verbose


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__) is not None:
        yield cause
        error = cause
