"""What accuracy does every ranking method leave, at three budgets, with and without repair, on held-out images?

    python benchmarks/methods.py > benchmarks/methods.md        # the reading under the tables is written by hand

About two hours with two processes of one thread. Per seed: 500 images are drawn from
`models/fashion_calibration.npz`; every method that plays a game scores on the same `--samples` of them, those that
play none on all 500 (the defaults of `prune`), and the means that are folded and the least squares are fitted on all
500. Widths come from the budget alone, so that all methods cut the same number of units of every group. The seed
draws the images, the permutations, the probes and the random ranking. Accuracy is that of `models/fashion_test.npz`,
2000 images that are used for nothing else. Every cut model is compared with its masked twin (`verify`) before it is
measured.

none    what is removed leaves nothing
fold    its calibration mean goes into the consumers' biases
lstsq   folded, then the consumers are refitted by least squares; units go in the order for that (`methods/ranking`)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from onnx import ModelProto
from processes import measured
from tables import made_by, mean_and_spread, table

from onnxshap import METHODS, Budget, Dataset, OrtBackend, Traced, make_plan, payoffs, score, site_means
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import BoolArray, FloatArray
from onnxshap.game import Setting
from onnxshap.graph import finish
from onnxshap.methods import GAMELESS
from onnxshap.opening import calibration, open_model
from onnxshap.plan import Candidate
from onnxshap.repair import refit
from onnxshap.rewrite import Removal, drop_units
from onnxshap.verify import verify

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg.onnx", "fashion_resdw.onnx", "fashion_resnet20.onnx")
BUDGETS = (0.75, 0.5, 0.25)
REPAIRS = ("none", "fold", "lstsq")
IMAGES = 500
ZERO_FILLED = "shapley (zero-filled)"


@dataclass(frozen=True)
class Found:
    """What one seed found on one model.

    Attributes:
        model: file name.
        seed: the seed.
        unpruned: accuracy.
        accuracy: row of the table -> float64[budgets, repairs].
        kept: budget -> shares of MACs and parameters kept.
        evals: row -> rows evaluated.
    """

    model: str
    seed: int
    unpruned: float
    accuracy: Mapping[str, FloatArray]
    kept: Mapping[float, tuple[float, float]]
    evals: Mapping[str, int]


@dataclass(frozen=True)
class Bench:
    """One model with the images of one seed."""

    traced: Traced
    free: Traced
    pool: Dataset
    test: Dataset
    seed: int

    def shares(self, keep: Mapping[str, BoolArray]) -> dict[str, float]:
        """Return the shares of MACs and parameters that a plan keeps."""
        live, cost = self.traced.alive(keep), self.traced.cost
        return {"macs": cost.macs(live) / cost.macs(), "params": cost.params(live) / cost.params()}

    def plan(self, order: Mapping[str, FloatArray], macs: float) -> dict[str, BoolArray]:
        """Return the plan that `prune` makes where units go in some order, group name -> float64[n_units]."""
        candidates = [Candidate(g.name, g.units, order[g.name]) for g in self.traced.groups]
        return make_plan(candidates, Budget(macs=macs), self.shares, self.traced.covers)

    def accuracy(self, model: ModelProto) -> float:
        """Return the share of test images whose class a model finds."""
        logits = run_all(self.traced, model, self.test)[0]
        return float(np.mean(logits.argmax(axis=1) == self.test.labels))

    def cut_accuracies(self, keep: Mapping[str, BoolArray], refitted_keep: Mapping[str, BoolArray]) -> list[float]:
        """Return the accuracy after a cut, for every repair, as `prune` goes; one plan is that of the refit."""
        graph, means = self.traced.shaped.graph, site_means(self.free, self.pool)
        found = []
        for left in ({}, means):
            small = drop_units(self.traced, keep, left)
            verify(Removal(self.traced, self.free, keep, left), small, self.pool)
            found.append(self.accuracy(small))
        refitted, _ = refit(Removal(self.traced, self.free, refitted_keep, means), self.pool, self.seed)
        return [*found, self.accuracy(finish(refitted, graph))]


def measure(model: str, seed: int, methods: Sequence[str], samples: int) -> Found:
    """Return the accuracies of all methods on one model with one seed."""
    traced, whole = open_model(FOLDER / model, FOLDER / "fashion_calibration.npz", backend=OrtBackend("cpu", 1))
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False))
    test = calibration(traced, FOLDER / "fashion_test.npz")
    bench = Bench(traced, free_batch(traced), whole.take(chosen), test, seed)
    setting = Setting(bench.free, bench.pool, payoffs.MSE(), [])
    accuracy, kept, evals = {}, {}, {}
    for row in methods:
        started = time.perf_counter()
        method, baseline = ("shapley", "zero") if row == ZERO_FILLED else (row, "mean")
        scores = score(
            traced, bench.pool, method=method, payoff="ce", baseline=baseline, decided=0, seed=seed,
            samples=None if method in GAMELESS else samples,
        )  # fmt: skip
        plain, refitted = (scores.order(traced.groups, within) for within in (None, setting))
        plans = {macs: bench.plan(plain, macs) for macs in BUDGETS}
        accuracy[row] = np.array([bench.cut_accuracies(plans[macs], bench.plan(refitted, macs)) for macs in BUDGETS])
        shares = {macs: bench.shares(keep) for macs, keep in plans.items()}
        kept, evals[row] = {macs: (s["macs"], s["params"]) for macs, s in shares.items()}, scores.evals
        click.echo(f"{model}, seed {seed}, {row}: {time.perf_counter() - started:.0f} s", err=True)
    return Found(model, seed, bench.accuracy(traced.source), accuracy, kept, evals)


def section(found: Sequence[Found]) -> str:
    """Return the part of the page about one model."""
    first = found[0]
    kept = "; ".join(f"{b:g}: {macs:.3f} and {params:.3f}" for b, (macs, params) in first.kept.items())
    rows = []
    for name in first.accuracy:
        cells = [
            mean_and_spread([100 * f.accuracy[name][b, r] for f in found], 1)
            for r in range(len(REPAIRS))
            for b in range(len(BUDGETS))
        ]
        rows.append([name, f"{first.evals[name] / 1000:.0f}", *cells])
    header = ["method", "rows (1000)", *[f"{repair} {b:g}" for repair in REPAIRS for b in BUDGETS]]
    return "\n".join([
        f"## {first.model}\n",
        f"Unpruned: {100 * first.unpruned:.2f} %. MACs and parameters kept: {kept}.\n",
        table(header, rows),
    ])  # fmt: skip


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, default=MODELS, help="A file of models/; again for more.")
@click.option("--method", "methods", multiple=True, help="A row of the table; default all.")
@click.option("--samples", default=128, show_default=True, help="Images to score on, of the 500.")
@click.option("--seeds", default=3, show_default=True, help="Seeds, counted from 0.")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(models: Sequence[str], methods: Sequence[str], samples: int, seeds: int, jobs: int) -> None:
    """Print the table of every model."""
    rows = [m for m in METHODS if m != "exact"]
    rows.insert(rows.index("shapley") + 1, ZERO_FILLED)
    # the larger model first, so that no process is left alone with it
    tasks = [(m, s, methods or rows, samples) for s in range(seeds) for m in reversed(models)]
    found = list(measured(measure, tasks, jobs))
    click.echo("# Accuracy after pruning, by method\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\nTest accuracy in %, mean and standard deviation over seeds 0 to {seeds - 1}; columns are repair and "
        f"`--keep-macs`. Scored on {samples} images with labels, without a game on all (payoff ce, mean-filled games "
        f"unless said otherwise), repaired on {IMAGES}; all methods cut the same widths. 2000 test images: differences "
        "below about 1 point are "
        "noise of the test set as well. What is measured: the docstring of `benchmarks/methods.py`."
    )
    for model in models:
        click.echo("\n" + section(sorted((f for f in found if f.model == model), key=lambda f: f.seed)))


if __name__ == "__main__":
    main()
