"""The paper's own setting: layers cut one by one from the output inward, each scored on the net as cut so far.

    python benchmarks/paper.py [--model FILE] [--method shapley] [--seeds 3] [--keep 0.5]

No layer is repaired and removed units count as zeros while scoring (`zeros`), as in Ancona et al. 2020; beside it what
changes where they count as their means, which go into the biases before moments are matched (`means`), and where the
layers behind each cut are also refitted (`refit`). 500 labelled images, payoff cross entropy; the same share of every
layer stays. Accuracy is that of the 2000 test images after the last cut, and over all steps (the mean of the accuracies
after every cut), which tells rankings apart where the last cut leaves little.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from processes import measured
from tables import made_by, mean_and_spread, table

from onnxshap.api import prune
from onnxshap.backend import OrtBackend
from onnxshap.errors import BudgetError
from onnxshap.groups import Group
from onnxshap.methods import GAMELESS
from onnxshap.opening import calibration, open_model

FOLDER = Path(__file__).parent.parent / "models"
MODEL = "fashion_vgg.onnx"
METHODS = (
    "shapley",
    "shapley-mean+2sigma",
    "loo",
    "taylor",
    "taylor-signed",
    "sensitivity",
    "apoz",
    "l1",
    "l2",
    "random",
)
SETTINGS = {"zeros": ("zero", "none"), "means": ("mean", "fold"), "refit": ("mean", "lstsq")}
KEEPS = (0.75, 0.5)
IMAGES = 500
Key = tuple[str, str, float]


def measure(model: str, seed: int, methods: Sequence[str], keeps: Sequence[float]) -> dict[Key, tuple[float, float]]:
    """Return (method, setting, share kept) -> accuracy after the last cut, and its mean over all cuts."""
    backend = OrtBackend("cpu", 1)
    traced, whole = open_model(FOLDER / model, FOLDER / "fashion_calibration.npz", backend=backend)
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False))
    pool, test = whole.take(chosen), calibration(traced, FOLDER / "fashion_test.npz")
    order = {node.name or node.output[0]: k for k, node in enumerate(traced.shaped.graph.nodes)}
    groups = sorted(traced.groups, key=lambda g: -_place(g, order))
    found = {}
    for method in methods:
        for setting, (baseline, repair) in SETTINGS.items():
            for keep in keeps:
                net, steps = traced.source, []
                for group in groups:
                    try:
                        cut = prune(
                            net, pool, eval_data=test, keep_units=keep, include=[group.name], method=method,
                            payoff="ce", baseline=baseline, repair=repair, seed=seed, backend=backend, decided=0,
                            samples=None if method in GAMELESS else IMAGES, multiple_of=1,
                        )  # fmt: skip
                    except BudgetError as error:
                        raise RuntimeError(f"{group.name} is not found once others are cut") from error
                    net = cut.model
                    steps.append(cut.after.score["accuracy"])
                found[method, setting, keep] = steps[-1], float(np.mean(steps))
                click.echo(f"{model}, seed {seed}, {method}, {setting}, {keep:g}: "
                           + " ".join(f"{100 * a:.1f}" for a in steps), err=True)  # fmt: skip
    return found


def _place(group: Group, order: dict[str, int]) -> int:
    return order.get(group.name, 0)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", default=MODEL, show_default=True, help="A file of models/.")
@click.option("--method", "methods", multiple=True, default=METHODS, help="A row; again for more.")
@click.option("--keep", "keeps", multiple=True, type=float, default=KEEPS, help="Share of every layer; repeatable.")
@click.option("--seeds", default=3, show_default=True, help="Seeds, counted from 0.")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(model: str, methods: Sequence[str], keeps: Sequence[float], seeds: int, jobs: int) -> None:
    """Print the table."""
    found = list(measured(measure, [(model, seed, methods, keeps) for seed in range(seeds)], jobs))
    click.echo("# The paper's setting\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\n{model}, layers cut from the output inward. Test accuracy in % after the last cut / mean over the cuts; "
        f"mean and standard deviation over seeds 0 to {seeds - 1}; columns: setting and share of every layer kept.\n"
    )
    columns = [(setting, keep) for setting in SETTINGS for keep in keeps]
    rows = [
        [m, *(" / ".join(mean_and_spread([100 * f[m, s, k][part] for f in found], 1) for part in (0, 1))
              for s, k in columns)]
        for m in methods
    ]  # fmt: skip
    click.echo(table(["method", *(f"{setting} {keep:g}" for setting, keep in columns)], rows))


if __name__ == "__main__":
    main()
