"""`onnxshap unify`."""

from __future__ import annotations

import click

from onnxshap.cli.options import (
    Shapes,
    data_options,
    json_option,
    model_argument,
    run_options,
    talk_options,
)
from onnxshap.cli.screen import Screen
from onnxshap.cli.sections import Command, option, section
from onnxshap.cli.shared import backend_of, check_outputs, need_data, output_of, print_found, say_defaults
from onnxshap.cli.types import OneOf, Share, codecs


@click.command(cls=Command, short_help="Write MODEL as a file that compresses better.")
@model_argument
@section("Output", option("-o", "--output", metavar="FILE", help="The model.  [default: MODEL's stem + .unified.onnx]"))
@section(
    "Budget",
    option("--keep-bytes", type=Share(), default=0.5, show_default=True, help="Share of the compressed file to keep."),
    option(
        "--block", type=click.IntRange(max=2**31), default=8, show_default=True, help="Weights that share a magnitude."
    ),
    option("--codec", type=OneOf(codecs), default="gzip", show_default=True, help="What compresses the file."),
)
@data_options()
@run_options
@json_option
@talk_options
@click.pass_obj
def unify(
    screen: Screen, model: str, output: str | None, keep_bytes: float, block: int, codec: str, data: str | None,
    labels: str | None, payoff: str | None, seed: int, eval_data: str | None, as_json: bool, input_shapes: Shapes,
    provider: str, threads: int,
) -> None:  # fmt: skip
    """Write MODEL with weights that share magnitudes: a file that compresses better, and runs no faster."""
    from onnxshap import report, unification

    need_data(data, labels)
    say_defaults(screen, data, payoff)
    written = output_of(output, model, ".unified.onnx")
    check_outputs({"-o": written}, model, data, labels, eval_data)
    with screen.progress() as tell:
        result = unification.unify(
            model, data, labels=labels, eval_data=eval_data, keep_bytes=keep_bytes, block=block, codec=codec,
            payoff=payoff, seed=seed, backend=backend_of(screen, provider, threads), input_shapes=dict(input_shapes),
            output=written, progress=tell,
        )  # fmt: skip
    found = report.unify_report(result, model=model, output=written, seed=seed)
    print_found(as_json, found, report.unify_tables(found))
    screen.notes(result.notes)
    screen.note(f"wrote {written}")
