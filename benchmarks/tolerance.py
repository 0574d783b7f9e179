"""Does `--max-drop` hold on images that the search never saw?

    python benchmarks/tolerance.py [--model FILE] [--seeds 5] [--max-drop 0.01] [--method recon]

Per net and seed 500 of the 1000 calibration images are given to `prune --max-drop`, which holds two fifths of them out
to judge by; the labels are read by the judge only. What counts is what the net then loses on the 2000 test images,
image by image against the original, beside the tolerance and the standard error of both estimates. Where nothing
smaller is found within the tolerance, nothing is written: the net stays whole (MACs kept 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from processes import measured
from tables import made_by, table

from onnxshap.api import prune
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import run_all
from onnxshap.errors import BudgetError
from onnxshap.opening import calibration, open_model

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg.onnx", "fashion_resdw.onnx", "fashion_resnet20.onnx", "fashion_vit.onnx")
IMAGES = 500
Loss = tuple[float, float]
Row = tuple[str, int, float, Loss, Loss, Loss]


def measure(model: str, seed: int, method: str, most: float) -> Row:
    """Return net, seed, share of MACs kept, what the judge saw lost and expected, what the test images lost."""
    backend = OrtBackend("cpu", 1)
    traced, whole = open_model(FOLDER / model, FOLDER / "fashion_calibration.npz", backend=backend)
    test = calibration(traced, FOLDER / "fashion_test.npz")
    pool = whole.take(np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False)))
    try:
        found = prune(traced, pool, max_drop=most, method=method, seed=seed, backend=backend)
    except BudgetError as refusal:  # nothing that is smaller stays within the tolerance: the net is left whole
        click.echo(f"{model}, seed {seed}: {refusal}", err=True)
        return model, seed, 1.0, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    right = [run_all(traced, net, test)[0].argmax(axis=1) == test.labels for net in (traced.source, found.model)]
    lost = right[0].astype(np.float64) - right[1]
    drop = found.drop
    assert drop is not None
    click.echo(f"{model}, seed {seed}: {drop}; {lost.mean():.4f} on test images", err=True)
    tested = float(lost.mean()), float(lost.std(ddof=1) / np.sqrt(len(lost)))
    expected = drop.estimate.mean, drop.estimate.stderr
    return model, seed, found.after.macs / found.before.macs, (drop.mean, drop.stderr), expected, tested


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, default=MODELS, help="A file of models/; again for more.")
@click.option("--method", default="recon", show_default=True, help="What chooses the units.")
@click.option("--max-drop", "most", default=0.01, show_default=True, help="The tolerance.")
@click.option("--seeds", default=5, show_default=True, help="Seeds, counted from 0.")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(models: Sequence[str], method: str, most: float, seeds: int, jobs: int) -> None:
    """Print the table."""
    tasks = [(m, s, method, most) for m in models for s in range(seeds)]
    found = sorted(measured(measure, tasks, jobs), key=lambda r: (models.index(r[0]), r[1]))
    click.echo("# --max-drop on images it never saw\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(f"\n`--max-drop {most:g}`: points of accuracy lost, with one standard error.\n")
    rows = [
        [m, str(seed), f"{macs:.3f}", *(f"{100 * mean:.2f} ± {100 * error:.2f}" for mean, error in losses),
         "yes" if losses[2][0] <= most + np.hypot(losses[1][1], losses[2][1]) else "no"]
        for m, seed, macs, *losses in found
    ]  # fmt: skip
    columns = ("net", "seed", "MACs kept", "lost, judged", "expected", "lost, test", "within the tolerance + its error")
    click.echo(table(columns, rows))


if __name__ == "__main__":
    main()
