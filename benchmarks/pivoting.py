"""Convs in groups against fewer channels: accuracy and time at equal multiply-accumulates.

    python benchmarks/pivoting.py [--model NAME]

Every net of models/ is pivoted as by default (only what is measured faster), and to two budgets whatever the time; then
cut by `prune --method recon` to the shares of the multiply-accumulates that each of them came to. The same 1,000
images, held-out accuracy on 2,000 others. Times are those of the whole file over the original's, one thread, one image.
The second table: single Convs in groups, times over the whole Conv's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.parser
from latency import least_times
from tables import made_by, table

import onnxshap
from onnxshap.backend import OrtBackend
from onnxshap.measure import latencies
from onnxshap.opening import open_model
from onnxshap.pivoting.grouping import grouped

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg", "fashion_resdw", "fashion_resnet20")
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "--untimed --keep-macs 0.7": {"timed": False, "keep_macs": 0.7},
    "--untimed --groups 2 --groups 4 --keep-macs 0.5": {"timed": False, "keep_macs": 0.5, "groups": (2, 4)},
}


SIZES = ((16, 3, 28), (32, 3, 14), (64, 3, 7), (64, 3, 56), (128, 3, 28), (256, 3, 14), (256, 1, 14), (512, 1, 7))
"""Channels, kernel and space of the Convs of the second table."""
GROUPS = (2, 4, 8)


def alone(channels: int, kernel: int, space: int) -> list[str]:
    """Return a row of the second table."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    conv (float[1,{channels},{space},{space}] x) => (float[1,{channels},{space},{space}] y) {{
      y = Conv<pads=[{", ".join([str(kernel // 2)] * 4)}]>(x, w)
    }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    shape = (channels, channels, kernel, kernel)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "w"))
    feeds = {"x": rng.normal(size=(1, channels, space, space)).astype(np.float32)}
    times = latencies(OrtBackend("cpu", 1), [model, *(grouped(model, {"y": k}) for k in GROUPS)], feeds)
    size = f"{channels} channels, {kernel} x {kernel}, {space} x {space}"
    return [size, f"{times[0]:.3f}", *(f"{ms / times[0]:.2f}" for ms in times[1:])]


def rows_of(name: str) -> list[list[str]]:
    """Return the table's rows of one net."""
    backend = OrtBackend("cpu", 1)
    traced, data = open_model(FOLDER / f"{name}.onnx", FOLDER / "fashion_calibration.npz", backend=backend)
    test, whole = FOLDER / "fashion_test.npz", traced.cost.macs()
    found = []
    for label, options in RUNS.items():
        try:
            ours = onnxshap.pivot(traced, data, eval_data=test, backend=backend, **options)
        except onnxshap.BudgetError as error:
            click.echo(f"{name}, {label}: {error}", err=True)
            found.append([name, f"pivot {label}", *["-"] * 5])  # not faster: nothing is made
            continue
        share = ours.after.macs / whole
        theirs = onnxshap.prune(traced, data, eval_data=test, keep_macs=share, method="recon", backend=backend)
        times = least_times(traced, [traced.source, ours.model, theirs.model], data, 1)
        for what, one, seconds in ((f"pivot {label}", ours, times[1]), ("prune --method recon", theirs, times[2])):
            score = one.after.score["accuracy"]
            cells = [f"{one.after.macs / whole:.3f}", f"{one.after.params / one.before.params:.3f}"]
            cells += [
                f"{seconds / times[0]:.2f}",
                f"{100 * score:.2f}",
                f"{100 * (score - one.before.score['accuracy']):+.2f}",
            ]
            found.append([name, what, *cells])
            click.echo(f"{found[-1]}", err=True)
    return found


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, help="One of the nets; again for more.  [default: all]")
def main(models: Sequence[str]) -> None:
    """Print the table."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    rows = [row for name in models or MODELS for row in rows_of(name)]
    click.echo("# Convs in groups against fewer channels\n")
    click.echo(made_by("one thread"))
    click.echo("\nShares of the original's; accuracy in percent, and what it changed, in points.\n")
    click.echo(table(["net", "made by", "MACs", "parameters", "time", "accuracy", "change"], rows))
    click.echo("\nA Conv alone, milliseconds whole, and time over that in groups:\n")
    click.echo(table(["Conv", "whole", *(f"{k} groups" for k in GROUPS)], [alone(*size) for size in SIZES]))


if __name__ == "__main__":
    main()
