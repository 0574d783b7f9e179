"""What is left of the accuracy without fine-tuning, stage by stage: the low-data protocol of the paper.

    python benchmarks/accuracy.py [--model FILE] [--method recon] [--seeds 3] [--budget 0.5] [--distill] [--jobs 2]

For every net of models/ and every seed: 500 of the 1000 calibration images are drawn; values, curves and repairs see
only these (labels are read by payoffs of methods that play a game, by nothing else). The cut keeps a share of the
multiply-accumulates; widths are uniform or follow the curves; what the cut leaves behind is zero, the means, refitted
(`lstsq`), or refitted and tuned (`distill`). Accuracy is that of the 2000 test images, which nothing else looks at.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from tables import made_by, mean_and_spread, table

from onnxshap.api import calibration, open_model, score
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, run_all
from onnxshap.cutter import Cutter
from onnxshap.plan import Budget

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg.onnx", "fashion_resdw.onnx", "fashion_resnet20.onnx")
BUDGETS = (0.75, 0.5, 0.25)
STAGES = (
    ("none", "uniform"),
    ("fold", "uniform"),
    ("lstsq", "uniform"),
    ("lstsq", "curves"),
)
DISTILLED = ("distill", "curves")
IMAGES = 500


@dataclass(frozen=True)
class Found:
    """Accuracies of one net and seed: (budget, repair, allocation) -> share right, and seconds spent on it."""

    model: str
    seed: int
    unpruned: float
    accuracy: dict[tuple[float, str, str], float]
    seconds: dict[tuple[float, str, str], float]


def measure(model: str, seed: int, method: str, budgets: Sequence[float], distilled: bool) -> Found:
    """Return the accuracies of one net and seed."""
    traced, whole = open_model(FOLDER / model, FOLDER / "fashion_calibration.npz", backend=OrtBackend("cpu", 1))
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False))
    pool, test = whole.take(chosen), calibration(traced, FOLDER / "fashion_test.npz")
    values = score(traced, pool, method=method, samples=128, seed=seed).values
    phi, free = {name: found.phi for name, found in values.items()}, free_batch(traced)

    def accuracy(net: object) -> float:
        logits = run_all(traced, net, test)[0]  # type: ignore[arg-type]
        return float(np.mean(logits.argmax(axis=1) == test.labels))

    accuracies, seconds = {}, {}
    cutters: dict[str, Cutter] = {}
    for repair, allocation in (*STAGES, *((DISTILLED,) if distilled else ())):
        cutter = Cutter(traced, free, traced.groups, phi, pool, repair, allocation, seed)
        if allocation in cutters:  # one measurement of the curves serves all stages
            cutter.curves = cutters[allocation].curves
        cutters[allocation] = cutter
        for budget in budgets:
            started = time.perf_counter()
            cut = cutter.cut(cutter.plan(Budget(macs=budget)))
            key = budget, repair, allocation
            accuracies[key], seconds[key] = accuracy(cut.model), time.perf_counter() - started
            click.echo(f"{model}, seed {seed}, {key}: {100 * accuracies[key]:.2f}, {seconds[key]:.0f} s", err=True)
    return Found(model, seed, accuracy(traced.source), accuracies, seconds)


def section(found: Sequence[Found], budgets: Sequence[float]) -> str:
    """Return the part of the page about one model."""
    stages = list(dict.fromkeys((repair, allocation) for _, repair, allocation in found[0].accuracy))
    rows = [
        [repair, allocation, *(mean_and_spread([100 * f.accuracy[b, repair, allocation] for f in found], 1)
                               for b in budgets)]
        for repair, allocation in stages
    ]  # fmt: skip
    header = ["repair", "widths", *(f"{b:g}" for b in budgets)]
    return f"## {found[0].model}\n\nUnpruned: {100 * found[0].unpruned:.2f} %.\n\n{table(header, rows)}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, default=MODELS, help="A file of models/; again for more.")
@click.option("--method", default="recon", show_default=True, help="What chooses the units.")
@click.option("--budget", "budgets", multiple=True, type=float, default=BUDGETS, help="Share of the MACs; repeatable.")
@click.option("--seeds", default=3, show_default=True, help="Seeds, counted from 0.")
@click.option("--distill", "distilled", is_flag=True, help="Also tune after the refit (needs torch).")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(models: Sequence[str], method: str, budgets: Sequence[float], seeds: int, distilled: bool, jobs: int) -> None:
    """Print the table of every model."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    found = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [(m, s, method, budgets, distilled) for s in range(seeds) for m in models]
        for done in as_completed([pool.submit(measure, *task) for task in tasks]):
            found.append(done.result())
    click.echo("# Accuracy kept without fine-tuning, stage by stage\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\nTest accuracy in %, mean and standard deviation over seeds 0 to {seeds - 1}; columns are `--keep-macs`. "
        f"Units chosen by `{method}`; {IMAGES} images for everything; 2000 test images."
    )
    for model in models:
        every = sorted((f for f in found if f.model == model), key=lambda f: f.seed)
        click.echo("\n" + section(every, budgets))


if __name__ == "__main__":
    main()
