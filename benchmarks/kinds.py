"""Does what is cut by default keep what nets of every kind are for, not only those of models/?

    python benchmarks/kinds.py [--kind NAME] [--seeds 2] > benchmarks/kinds.md     # needs torch and onnxscript

`kinds_nets.py` trains small nets of many kinds on made-up data, which takes minutes once (`--nets` keeps them).
Per seed, 300 inputs without labels are drawn; `sweep` cuts by them, at three budgets, as it does by default, by other
values, and as a tool does that cuts by norms, the same share of every layer, and mends nothing. What is measured is
what the net is for, on test data with targets: accuracy in % of classes (of pixels, of characters), else 100 times
R^2, one minus the squared error over the targets' variance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from kinds_nets import KINDS, make
from processes import measured
from tables import made_by, mean_and_spread, table

from onnxshap.backend import OrtBackend
from onnxshap.sweeping import sweep

BUDGETS = (0.75, 0.5, 0.25)
IMAGES = 300
WAYS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "recon": {"methods": ["recon"]},
    "l1": {"methods": ["l1"]},
    "random": {"methods": ["random"]},
    "l1, not mended": {"methods": ["l1"], "repair": "none", "allocation": "uniform", "basis": "own"},
}


@dataclass(frozen=True)
class Found:
    """What a seed found of one kind: the score of the whole net, and by way and budget."""

    kind: str
    seed: int
    whole: float
    scores: Mapping[tuple[str, float], float]


def measure(kind: str, seed: int, folder: str) -> Found:
    """Return the scores of a net of a kind, cut in all ways."""
    net, calibration, test = make(kind, Path(folder))
    with np.load(calibration) as file:
        count = len(file[file.files[0]])
        chosen = np.sort(np.random.default_rng(seed).choice(count, IMAGES, replace=False))
        data = {name: file[name][chosen] for name in file.files}
    scores = dict[tuple[str, float], float]()
    whole = 0.0
    for way, options in WAYS.items():
        started = time.perf_counter()
        found = sweep(net, data, eval_data=test, keep=BUDGETS, seed=seed, backend=OrtBackend("cpu", 1), **options)
        whole = share(found.before.score)
        scores.update({(way, p.keep_macs): share(p.figures.score) for curve in found.curves for p in curve.points})
        click.echo(f"{kind}, seed {seed}, {way}: {time.perf_counter() - started:.0f} s", err=True)
    return Found(kind, seed, whole, scores)


def share(score: Mapping[str, float]) -> float:
    """Return accuracy in %, else 100 R^2."""
    return 100 * (score["accuracy"] if "accuracy" in score else 1 + score["mse"])


def rows_of(found: Sequence[Found]) -> list[list[str]]:
    """Return the rows of one kind, one a budget."""
    first = found[0]
    rows = []
    for budget in BUDGETS:
        cells = [
            mean_and_spread([f.scores[way, budget] for f in found], 1) if (way, budget) in first.scores else "-"
            for way in WAYS
        ]
        rows.append([f"{first.kind}, {first.whole:.1f}" if budget == BUDGETS[0] else "", f"{budget:g}", *cells])
    return rows


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="A kind; again for more.")
@click.option("--nets", default="kinds", show_default=True, help="The folder that keeps the trained nets.")
@click.option("--seeds", default=2, show_default=True, help="Seeds, counted from 0.")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(kinds: Sequence[str], nets: str, seeds: int, jobs: int) -> None:
    """Print the table."""
    Path(nets).mkdir(exist_ok=True)
    chosen = kinds or tuple(KINDS)
    found = list(measured(measure, [(kind, 0, nets) for kind in chosen], jobs))  # the first one trains
    found += measured(measure, [(kind, seed, nets) for seed in range(1, seeds) for kind in chosen], jobs)
    over = f"mean and standard deviation over seeds 0 to {seeds - 1}" if seeds > 1 else "seed 0"
    click.echo("# What nets of many kinds keep\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\nAccuracy in %, or 100 R^2, on test data, {over}; beside the kind that of the whole net. {IMAGES} inputs "
        "without labels; what is done in the columns: the docstring of `benchmarks/kinds.py`.\n"
    )
    every = [sorted((f for f in found if f.kind == kind), key=lambda f: f.seed) for kind in chosen]
    click.echo(table(["kind", "MACs", *WAYS], [row for one in every for row in rows_of(one)]))


if __name__ == "__main__":
    main()
