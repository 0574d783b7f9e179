"""What is gained where layers may become two of lower rank, beside narrower ones.

    python benchmarks/low_rank.py [--model NAME] [--seed 0] [--method recon] [--budget 0.5] [--multiple-of 2]

Per net and seed 500 of the 1000 calibration images are given to the scoring, the curves and the refit, without labels;
the KL divergence to the original's class scores is that of the other 500, by which all was chosen, accuracy that of the
2000 test images. Latency: one thread, one image, as a share of the original's, both measured in turn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from processes import measured
from tables import made_by, mean_and_spread, table

from onnxshap import OrtBackend, score
from onnxshap.bases import turned
from onnxshap.calibrate import free_batch, run_all, usual_batch
from onnxshap.factors import LOW_RANK, factored
from onnxshap.graph.writing import put_in
from onnxshap.measure import latencies
from onnxshap.opening import calibration, open_model
from onnxshap.payoffs import Fidelity
from onnxshap.plan import Budget
from onnxshap.plan.cutter import Cutter

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg", "fashion_resdw", "fashion_resnet20")
WAYS = ("whole", *LOW_RANK)
"""Layers that may become two."""
BUDGETS = (0.75, 0.5, 0.25)
IMAGES = 500
Found = tuple[str, float, str, float, float, float, int, float]
"""Net, budget, layers, divergence, points of accuracy lost, latency as a share, layers that became two, seconds."""


def measure(
    model: str, seed: int, method: str, budgets: Sequence[float], multiple_of: int | None, ways: Sequence[str]
) -> list[Found]:  # fmt: skip
    """Return the figures of one net and seed."""
    traced, whole = open_model(
        FOLDER / f"{model}.onnx", FOLDER / "fashion_calibration.npz", backend=OrtBackend("cpu", 1)
    )
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False))
    pool, rest = whole.take(chosen), whole.take(np.setdiff1d(np.arange(len(whole)), chosen))
    test = calibration(traced, FOLDER / "fashion_test.npz")
    assert test.labels is not None
    fidelity = Fidelity.of(run_all(traced, traced.source, rest), traced.outputs)
    right = np.mean(run_all(traced, traced.source, test)[0].argmax(axis=1) == test.labels)
    moved = turned(traced, free_batch(traced), traced.groups, pool)
    base, free = moved.traced, free_batch(moved.traced)
    samples = 128 if method == "shapley" else None
    values = {
        name: one.phi for name, one in score(base, pool, method=method, samples=samples, seed=seed).values.items()
    }
    found = []
    for layers in ways:
        started = time.perf_counter()
        made = factored(base, free, base.groups, pool, layers) if layers in LOW_RANK else None
        split = made if made is not None and made.most else None
        cutter = Cutter(base, free, base.groups, values, pool, "lstsq", "curves", seed, turned=moved, factored=split)
        for budget in budgets:
            cut = cutter.cut(cutter.plan(Budget(macs=budget, multiple_of=multiple_of)))
            spent = time.perf_counter() - started
            away = fidelity.lost(run_all(traced, cut.model, rest))
            lost = 100 * float(right - np.mean(run_all(traced, cut.model, test)[0].argmax(axis=1) == test.labels))
            one, small = latencies(traced.backend, [traced.source, put_in(cut.model)], usual_batch(traced, rest))
            found.append((model, budget, layers, away, lost, small / one, len(cut.low_rank), spent))
            click.echo(
                f"{model}, seed {seed}, {layers}, {budget:g}: {away:.4f}, {lost:.2f}, latency {small / one:.3f}, "
                f"{cut.macs / traced.cost.macs():.3f} of the MACs, {[(r.node, r.rank) for r in cut.low_rank]}, "
                f"{[int(kept.sum()) for kept in cut.units(base.groups).values()]}, {spent:.0f} s",
                err=True,
            )
    return found


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, default=MODELS, help="A net of models/; again for more.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), help="Repeatable.")
@click.option("--method", default="recon", show_default=True, help="What chooses the units.")
@click.option("--budget", "budgets", multiple=True, type=float, default=BUDGETS, help="Share of the MACs; repeatable.")
@click.option("--multiple-of", type=int, help="Step of the widths.  [default: as prune's]")
@click.option(
    "--layers", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS, help="Repeatable.  [default: all]"
)
@click.option("--jobs", default=1, show_default=True, help="Processes of one thread each.")
def main(
    models: Sequence[str], seeds: Sequence[int], method: str, budgets: Sequence[float], multiple_of: int | None,
    ways: Sequence[str], jobs: int,
) -> None:  # fmt: skip
    """Print the table."""
    tasks = [(m, s, method, tuple(budgets), multiple_of, tuple(ways)) for m in models for s in seeds]
    found = [row for rows in measured(measure, tasks, jobs) for row in rows]
    rows = []
    for model, budget, layers in dict.fromkeys(row[:3] for row in found):
        own = [row for row in found if row[:3] == (model, budget, layers)]
        cells = [mean_and_spread([float(row[k]) for row in own], digits) for k, digits in ((3, 4), (4, 2), (5, 2))]
        two, spent = (f"{np.mean([row[k] for row in own]):.0f}" for k in (6, 7))
        rows.append([model, f"{budget:g}", layers, *cells, two, spent])
    click.echo("# Layers as two of lower rank\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\nValues by {method}, widths (and ranks) by curves, repair lstsq; means and standard deviations over seeds "
        f"{', '.join(map(str, seeds))}. Divergence: KL to the original on 500 images that nothing else saw; lost: "
        "points of accuracy on 2000 test images; latency: of one image, in one thread, as a share of the original's; "
        "two: layers that became two; seconds: of curves, plans and cuts, the earlier budgets' included.\n"
    )
    click.echo(table(["net", "MACs kept", "layers", "divergence", "lost", "latency", "two", "seconds"], sorted(rows)))


if __name__ == "__main__":
    main()
