"""Options that commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import option, section
from onnxshap.cli.types import (
    Bytes,
    InputShape,
    ModelPath,
    OneOf,
    allocations,
    baselines,
    bases,
    low_ranks,
    methods,
    payoffs,
    providers,
    repairs,
)

Command = TypeVar("Command", bound=Callable[..., Any])


def _quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Screen).quiet = value


def _loud(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Screen).verbose = value


def _keep(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_NORMALIZE] = value


def _normalized(ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    """Return data, of a folder whose images are to be normalised what says so."""
    if value is None or _NORMALIZE not in ctx.meta:
        return value
    from onnxshap.data import Images

    return Images(Path(value), ctx.meta[_NORMALIZE]) if value else value


_NORMALIZE = "onnxshap.normalize"
model_argument = click.argument("model", type=ModelPath())
json_option = section("Output", option("--json", "as_json", is_flag=True, help="Print JSON instead of tables."))
talk_options = section(
    "Output",
    option("-q", "--quiet", is_flag=True, expose_value=False, callback=_quiet, help="No progress, no notes."),
    option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_loud, help="Also seconds, causes, tracebacks."
    ),
)
run_options = section(
    "Running",
    option(
        "--input-shape", "input_shapes", type=InputShape(), multiple=True, metavar="NAME=1,3,48,192",
        help="Shape of an input with free dimensions, where there is no data; repeatable.",
    ),
    option(
        "--provider", type=OneOf(providers), default="cpu", show_default=True,
        help="What runs the model; auto: CUDA where it is usable, else the CPU.",
    ),
    option("--threads", type=click.IntRange(0, 1024), default=0, show_default=True, help="Threads; 0: all cores."),
)  # fmt: skip


def data_option(without: str | None = "random inputs") -> Callable[[Command], Command]:
    """Return the option of the calibration data, and what stands in for them; None = nothing does."""
    text = (
        "Sample inputs: .npz (arrays named as the inputs; `labels` or `y`: the targets), .npy, a folder of images "
        f"(subfolders: labels) or module:function.  [{'required' if without is None else f'default: {without}'}]"
    )
    return section("Data", option("--data", metavar="DATA", callback=_normalized, help=text))


def data_options(without: str | None = "random inputs", judging: str | None = "--data") -> Callable[[Command], Command]:
    """Return the options of data, what stands in for them, and what for held-out ones; None = there are no such."""
    text = f"Held-out data for the scores before and after.  [default: {judging}]"
    more = [option("--eval-data", metavar="DATA", callback=_normalized, help=text)] if judging is not None else []
    return section(
        "Data",
        data_option(without),
        option(
            "--normalize", metavar="MEAN/STD", is_eager=True, expose_value=False, callback=_keep,
            help="Of folders of images, whose pixels are in [0, 1] for float inputs (resized without a crop): "
                 "imagenet, or 0.5/0.5, or one a channel.  [default: as they are]",
        ),
        option("--labels", metavar="FILE", help="Labels for --data: .npy, .npz, .txt or .csv."),
        *more,
        option("--payoff", type=OneOf(payoffs), help="What outputs are worth.  [default: what fits them]"),
        option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all randomness."),
    )  # fmt: skip


method_option = section(
    "Values",
    option(
        "--method",
        type=OneOf(methods),
        help="How to value units.  [default: shapley; recon where that would take long]",
    ),
)
journal_option = section(
    "Values",
    option("--journal", metavar="FILE", help="Where results are kept until the end: a killed run goes on there."),
)
values_option = section(
    "Values",
    option("--values", metavar="FILE", help="Values that `onnxshap score` wrote, instead of scoring."),
)
choice_options = section(
    "Values",
    option("--include", multiple=True, metavar="GLOB", help="Only groups or nodes of that name; repeatable."),
    option("--exclude", multiple=True, metavar="GLOB", help="No groups or nodes of that name; repeatable."),
)
score_options = section(
    "Values",
    option(
        "--baseline", type=OneOf(baselines), default="mean", show_default=True,
        help="What stands in for a removed unit while scoring.",
    ),
    option("--samples", type=int, help="Most images to score with.  [default: 128, fewer for models that take long]"),
    option("--max-evals", type=click.IntRange(1), help="Most (image, coalition) evaluations."),
    option(
        "--max-seconds", type=float, metavar="SECONDS",
        help="Most time for scoring and the order of a refit's cut, though every group gets one image.",
    ),
    option(
        "--decided", type=float, metavar="SHARE", default=0.1, show_default=True,
        help="End a group when the expected share of misplaced units is below; 0: never.",
    ),
    choice_options,
    option("--workers", type=click.IntRange(0), default=0, help="Processes to score with, on this machine."),
    option("--cluster", metavar="ADDRESS", help="A dask.distributed scheduler to score with, tcp://host:8786."),
    option(
        "--memory", type=Bytes(), default="1G", show_default=True,
        help="Activations to keep at a time, of each worker: bytes, or as 512M or 4G.",
    ),
)  # fmt: skip
width_options = section(
    "Budget",
    option("--multiple-of", type=int, help="Widths are multiples of it.  [default: 16, finer where that pays]"),
    option("--min-units", type=int, default=1, show_default=True, help="No group gets narrower."),
)
repair_options = section(
    "Repair",
    option(
        "--repair",
        type=OneOf(repairs),
        help="What is done about what the cut leaves behind.  [default: lstsq with --data, none without]",
    ),
    option(
        "--basis",
        type=OneOf(bases),
        help="Units of linear groups as combinations, or as in the file.  [default: principal with lstsq and --data]",
    ),
    option(
        "--allocation",
        type=OneOf(allocations),
        help="How widths are shared out.  [default: curves with lstsq, where affordable, else uniform]",
    ),
    option(
        "--low-rank",
        type=OneOf(low_ranks),
        help="Layers may become two of lower rank, beside narrower: dense Convs, or all.  [default: none does]",
    ),
    option(
        "--distill-seconds", type=float, metavar="SECONDS",
        help="Most time that --repair distill tunes a model for.  [default: 480]",
    ),
)  # fmt: skip
Shapes = Sequence[tuple[str, list[int]]]
