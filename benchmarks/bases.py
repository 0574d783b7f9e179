"""What is gained by putting units that only linear ops touch into other bases before they are cut.

    python benchmarks/bases.py [--model NAME] [--seed 0] [--method recon]

Per net and seed 500 of the 1000 calibration images are given to the scoring, the curves and the refit, without labels;
the KL divergence to the original's class scores is that of the other 500, accuracy that of the 2000 test images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from processes import measured
from tables import made_by, mean_and_spread, table

from onnxshap import OrtBackend, prune
from onnxshap.bases import BASES
from onnxshap.calibrate import run_all
from onnxshap.opening import calibration, open_model
from onnxshap.payoffs import Fidelity

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vit", "fashion_resdw")
BUDGETS = (0.5, 0.25)
IMAGES = 500
Found = tuple[str, str, float, float, float, float]
"""Net, basis, budget, divergence, points of accuracy lost, seconds."""


def measure(model: str, seed: int, method: str) -> list[Found]:
    """Return the figures of one net and seed."""
    traced, whole = open_model(
        FOLDER / f"{model}.onnx", FOLDER / "fashion_calibration.npz", backend=OrtBackend("cpu", 1)
    )
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False))
    pool, rest = whole.take(chosen), whole.take(np.setdiff1d(np.arange(len(whole)), chosen))
    test = calibration(traced, FOLDER / "fashion_test.npz")
    fidelity = Fidelity.of(run_all(traced, traced.source, rest), traced.outputs)
    found = []
    for basis in BASES:
        for budget in BUDGETS:
            started = time.perf_counter()
            cut = prune(
                traced, {"image": pool.inputs["image"]}, eval_data=test, method=method, keep_macs=budget, basis=basis,
                allocation="curves", seed=seed,
            )  # fmt: skip
            spent = time.perf_counter() - started
            lost = cut.before.score["accuracy"] - cut.after.score["accuracy"]
            away = fidelity.lost(run_all(traced, cut.model, rest))
            found.append((model, basis, budget, away, 100 * lost, spent))
            click.echo(f"{model}, seed {seed}, {basis}, {budget:g}: {away:.4f}, {100 * lost:.2f}", err=True)
    return found


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, default=MODELS, help="A net of models/; again for more.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), help="Repeatable.")
@click.option("--method", default="recon", show_default=True, help="What chooses the units.")
@click.option("--jobs", default=1, show_default=True, help="Processes of one thread each.")
def main(models: Sequence[str], seeds: Sequence[int], method: str, jobs: int) -> None:
    """Print the table."""
    found = [row for rows in measured(measure, [(m, s, method) for m in models for s in seeds], jobs) for row in rows]
    rows = []
    for model, basis, budget in dict.fromkeys(row[:3] for row in found):
        own = [row for row in found if row[:3] == (model, basis, budget)]
        cells = [mean_and_spread([row[k] for row in own], digits) for k, digits in ((3, 4), (4, 2))]
        rows.append([model, basis, f"{budget:g}", *cells, f"{np.mean([row[5] for row in own]):.0f}"])
    click.echo("# Units in other bases before a cut\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\nValues by {method}, widths by curves, repair lstsq; means and standard deviations over seeds "
        f"{', '.join(map(str, seeds))}. Divergence: KL to the original on 500 images that nothing else saw; lost: "
        "points of accuracy on 2000 test images; seconds: of the whole job.\n"
    )
    click.echo(table(["net", "basis", "MACs kept", "divergence", "lost", "seconds"], rows))


if __name__ == "__main__":
    main()
