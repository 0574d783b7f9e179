"""Options in sections: what `--help` shows of a command with forty of them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from onnxshap.arguments import telling_options

Function = TypeVar("Function", bound=Callable[..., Any])
_FEW = 6
"""Names that stand beside an option in its help."""
_WIDTH = 46
"""Columns that the right side of a help has."""


class Option(click.Option):
    """An option that stands in a section of the help."""

    section = "Options"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return what its help shows on the left and on the right, where many names go, line by line."""
        if (record := super().get_help_record(ctx)) is None:
            return None
        left, right = record
        if isinstance(self.type, click.Choice) and len(self.type.choices) > _FEW:
            names = textwrap.wrap(", ".join(self.type.choices), _WIDTH, break_on_hyphens=False)
            return f"{self.opts[-1]} NAME", "\n\n".join([right, "\n".join(["\b", *names])])
        return left.replace(" INTEGER RANGE", " N").replace(" INTEGER", " N"), right


option = partial(click.option, cls=Option)


def section(title: str, *options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return options that stand together, under a title, in the help of the commands that have them."""

    def add(function: Function) -> Function:
        known: list[click.Parameter] = list(getattr(function, "__click_params__", ()))
        for one in reversed(options):
            function = one(function)
        for param in getattr(function, "__click_params__", ()):
            if isinstance(param, Option) and param not in known:
                param.section = title
        return function

    return add


class Command(click.Command):
    """A command whose help shows its options section by section, in the order in which they are declared."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what the library says names its options."""
        with telling_options([name for param in self.params for name in param.opts]):
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                rows.setdefault(getattr(param, "section", Option.section), []).append(record)
        for title, records in rows.items():
            with formatter.section(title):
                formatter.write_dl(records)
