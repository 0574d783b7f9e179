"""What is left of the accuracy without fine-tuning: our stages and other pruners in the low-data protocol of the paper.

    python benchmarks/accuracy.py [--model NAME] [--method recon] [--seed 0] [--budget 0.5] [--distill]
                                  [--distill-seconds 480] [--multiple-of 2] [--rounds] [--peers] [--imagenet DIR]
                                  [--jobs 2]

For every net and every seed 500 calibration images are drawn; values, curves and repairs see only these (labels are
read by payoffs of methods that play a game and by Taylor of the peers, by nothing else). The cut keeps a share of the
multiply-accumulates; widths are uniform or follow the curves; what the cut leaves behind is zero, the means, refitted
(`lstsq`), or refitted and tuned (`distill`). Accuracy is that of test images which nothing else looks at: the 2000 of
models/, or the other 500 of the 1000 in DIR (`imagenet.py` says which). `--peers` adds those of `peers.py`, `--rounds`
cuts half of the way first and ranks and measures again.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import imagenet
import numpy as np
from onnx import ModelProto
from processes import measured
from scipy.special import log_softmax
from tables import made_by, mean_and_spread, table

from onnxshap.api import score
from onnxshap.backend import OrtBackend
from onnxshap.bases import turned
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import Dataset, FloatArray
from onnxshap.graph.writing import put_in
from onnxshap.methods import GAMELESS
from onnxshap.opening import calibration, open_model
from onnxshap.plan import Budget
from onnxshap.plan.cutter import Cutter
from onnxshap.plan.options import REFITS
from onnxshap.tracing import Traced

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg", "fashion_resdw", "fashion_resnet20", "fashion_vit")
BUDGETS = (0.75, 0.5, 0.25)
STAGES = (
    ("none", "uniform"),
    ("fold", "uniform"),
    ("lstsq", "uniform"),
    ("lstsq", "curves"),
)
IN_ROUNDS = ("lstsq", "iterative")
IMAGES = 500
HALF = 0.5
"""The budget at which cuts are tuned, losses and seconds are told."""
OURS = "onnxshap"
Row = tuple[str, ...]
"""Whose cut it is, what ranks the channels, the widths, and what follows."""


@dataclass(frozen=True)
class Task:
    """One net and seed, and what is measured on it."""

    model: str
    seed: int
    method: str
    budgets: tuple[float, ...]
    distilled: bool
    rounds: bool
    ours: bool
    peers: bool
    images: Path | None
    distill_seconds: float | None = None
    multiple_of: int | None = None


@dataclass
class Found:
    """Figures of one net and seed: (row, budget) -> share right, mean cross entropy, seconds spent, share of MACs."""

    model: str
    seed: int
    unpruned: tuple[float, float]
    accuracy: dict[tuple[Row, float], float] = field(default_factory=dict)
    loss: dict[tuple[Row, float], float] = field(default_factory=dict)
    seconds: dict[tuple[Row, float], float] = field(default_factory=dict)
    macs: dict[tuple[Row, float], float] = field(default_factory=dict)

    def add(self, row: Row, budget: float, figures: tuple[float, float], seconds: float, macs: float) -> None:
        """Add a cut's figures, and say so."""
        key = row, budget
        (self.accuracy[key], self.loss[key]), self.seconds[key], self.macs[key] = figures, seconds, macs
        click.echo(
            f"{self.model}, seed {self.seed}, {', '.join(row)}, {budget:g}: {100 * figures[0]:.2f} %, "
            f"loss {figures[1]:.4f}, {macs:.4f} of the MACs, {seconds:.0f} s",
            err=True,
        )

    def plus(self, new: Found) -> Found:
        """Return the figures of both, the new ones where both have some."""
        tables = [{**getattr(self, name), **getattr(new, name)} for name in ("accuracy", "loss", "seconds", "macs")]
        return Found(self.model, self.seed, new.unpruned, *tables)


def opened(task: Task) -> tuple[Traced, Dataset, Dataset]:
    """Return the net, the images to calibrate with, and those to test with."""
    rng, backend = np.random.default_rng(task.seed), OrtBackend("cpu", 1)
    if task.model in imagenet.NETS:
        assert task.images is not None
        whole = imagenet.images(task.images)
        order = rng.permutation(len(whole))
        pool, test = (whole.take(np.sort(part)) for part in (order[:IMAGES], order[IMAGES:]))
        return open_model(imagenet.exported(task.model), None, backend=backend)[0], pool, test
    traced, whole = open_model(FOLDER / f"{task.model}.onnx", FOLDER / "fashion_calibration.npz", backend=backend)
    chosen = np.sort(rng.choice(len(whole), IMAGES, replace=False))
    return traced, whole.take(chosen), calibration(traced, FOLDER / "fashion_test.npz")


def figures(traced: Traced, model: ModelProto, test: Dataset) -> tuple[float, float]:
    """Return the share right and the mean cross entropy."""
    assert test.labels is not None
    logits = run_all(traced, model, test)[0].astype(np.float64)
    chosen = log_softmax(logits, axis=1)[np.arange(len(logits)), test.labels]
    return float(np.mean(logits.argmax(axis=1) == test.labels)), float(-chosen.mean())


def measure(task: Task) -> Found:
    """Return the figures of one net and seed."""
    traced, pool, test = opened(task)
    found = Found(task.model, task.seed, figures(traced, traced.source, test))
    if task.ours:
        add_ours(task, found, traced, pool, test)
    if task.peers:
        add_peers(task, found, traced, pool, test)
    return found


def add_ours(task: Task, found: Found, traced: Traced, pool: Dataset, test: Dataset) -> None:
    """Add the figures of our own stages."""
    samples = None if task.method in GAMELESS else 128

    def ranked(part: Traced) -> dict[str, FloatArray]:
        found = score(part, pool, method=task.method, samples=samples, seed=task.seed)
        return {name: value.phi for name, value in found.values.items()}

    own = traced, free_batch(traced), ranked(traced)
    moved = turned(*own[:2], traced.groups, pool)
    other = (moved.traced, free_batch(moved.traced), ranked(moved.traced)) if moved.groups else own
    curves: Mapping[str, FloatArray] | None = None
    stages = [*STAGES, *[IN_ROUNDS] * task.rounds]
    for repair, allocation in (*stages, *[("distill", stages[-1][1])] * task.distilled):
        traced, free, phi = other if repair in REFITS else own
        cutter = Cutter(
            traced, free, traced.groups, phi, pool, repair, allocation, task.seed, rescore=ranked,
            tuning_seconds=task.distill_seconds,
        )  # fmt: skip
        cutter.curves = curves  # one measurement serves all stages
        for budget in task.budgets if repair != "distill" else set(task.budgets) & {HALF}:
            started = time.perf_counter()
            cut = cutter.cut(cutter.plan(Budget(macs=budget, multiple_of=task.multiple_of)))
            spent, kept = time.perf_counter() - started, traced.cost.macs(traced.alive(cut.keep))
            row = OURS, task.method, allocation, repair
            found.add(row, budget, figures(traced, cut.model, test), spent, kept / traced.cost.macs())
        curves = cutter.curves


def add_peers(task: Task, found: Found, traced: Traced, pool: Dataset, test: Dataset) -> None:
    """Add the figures of other pruners."""
    import peers

    (images,), file = pool.inputs.values(), put_in(traced.source)
    if task.model in imagenet.NETS:
        net = imagenet.NETS[task.model]()
    else:
        sys.path.insert(0, str(FOLDER))
        import train

        net = peers.rebuilt(train.RECIPES[task.model.partition("_")[2]].build, file, images)
    whole = traced.cost.macs()
    check = figures(traced, peers.exported(net, peers.torch.from_numpy(images[:2])), test)
    if abs(check[1] - found.unpruned[1]) > 1e-4 * found.unpruned[1]:
        raise RuntimeError(f"{task.model}: the torch module has loss {check[1]}, the file {found.unpruned[1]}")
    started = time.perf_counter()
    for runs in (
        peers.torch_pruning(net, pool, task.budgets, task.seed),
        peers.onnxsim(file, pool, task.budgets),
    ):
        for row, budget, model in runs:
            kept, spent = peers.macs(model) / whole, time.perf_counter() - started
            assert kept <= peers.SLACK * budget + 1e-3, f"{row}: {kept:.4f} of the MACs for {budget:g}"
            found.add(row, budget, figures(traced, model, test), spent, kept)
            started = time.perf_counter()


def section(found: Sequence[Found], budgets: Sequence[float]) -> str:
    """Return the part of the page about one model; a dash where a pruner cannot reach a budget."""
    rows = []
    for row in dict.fromkeys(row for f in found for row, _ in f.accuracy):
        cells = [_cell([f.accuracy.get((row, b)) for f in found], 100, 1) for b in budgets]
        spent = [f.seconds[row, HALF] for f in found if (row, HALF) in f.seconds]
        rows.append([*row, *cells, _cell([f.loss.get((row, HALF)) for f in found], 1, 3),
                     f"{np.mean(spent):.0f}" if spent else "-"])  # fmt: skip
    header = ["pruner", "ranked by", "widths", "after the cut", *(f"{b:g}" for b in budgets), "loss", "seconds"]
    accuracy, loss = zip(*(f.unpruned for f in found), strict=True)
    title = f"## {found[0].model}\n\nUnpruned: {100 * np.mean(accuracy):.2f} %, loss {np.mean(loss):.3f}."
    return f"{title}\n\n{table(header, rows)}\n\n{leads(found, budgets)}".rstrip()


def _cell(values: Sequence[float | None], factor: float, digits: int) -> str:
    have = [factor * v for v in values if v is not None]
    return mean_and_spread(have, digits) if len(have) == len(values) else "-"


def leads(found: Sequence[Found], budgets: Sequence[float]) -> str:
    """Return how far our best row without tuning is ahead of the peers' best at each budget, beside the spread."""
    parts = []
    for budget in budgets:
        rows = [row for row, b in found[0].accuracy if b == budget and all((row, b) in f.accuracy for f in found)]
        by_seed = {row: [100 * f.accuracy[row, budget] for f in found] for row in rows}
        sides = [[v for row, v in by_seed.items() if (row[0] == OURS) == ours and row[3] != "distill"]
                 for ours in (True, False)]  # fmt: skip
        if not all(sides):
            return ""
        ours, theirs = (max(side, key=lambda v: float(np.mean(v))) for side in sides)
        spread = math.hypot(*(float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for v in (ours, theirs)))
        parts.append(f"{np.mean(ours) - np.mean(theirs):+.1f} ± {spread:.1f} at {budget:g}")
    return "Our best without tuning less the peers' best: " + ", ".join(parts) + "."


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, help="One of the nets; again for more.  [default: all]")
@click.option("--method", default="recon", show_default=True, help="What chooses the units.")
@click.option("--budget", "budgets", multiple=True, type=float, default=BUDGETS, help="Share of the MACs; repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), help="Repeatable.")
@click.option("--distill", "distilled", is_flag=True, help="Also tune after the refit (needs torch).")
@click.option("--distill-seconds", type=float, help="Most that tuning takes.  [default: as prune's]")
@click.option("--multiple-of", type=int, help="Step of our widths.  [default: as prune's]")
@click.option("--rounds", is_flag=True, help="Also widths in rounds; those are tuned.")
@click.option("--peers", is_flag=True, help="Also other pruners (needs those of peers.py).")
@click.option("--ours/--no-ours", default=True, help="Our own stages.")
@click.option("--imagenet", "images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its folder.")
@click.option("--results", type=click.Path(path_type=Path), help="A file that keeps rows from one run to the next.")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(
    models: Sequence[str], method: str, budgets: Sequence[float], seeds: Sequence[int], distilled: bool,
    distill_seconds: float | None, multiple_of: int | None, rounds: bool, peers: bool, ours: bool,
    images: Path | None, results: Path | None, jobs: int,
) -> None:  # fmt: skip
    """Print the table of every model."""
    models = models or (*MODELS, *(imagenet.NETS if images is not None else ()))
    if images is None and set(models) & set(imagenet.NETS):
        raise click.UsageError("nets with real weights need --imagenet DIR")
    found: dict[tuple[str, int], Found] = {}
    if results is not None and results.exists():
        found = pickle.loads(results.read_bytes())
    tasks = [
        (Task(m, s, method, tuple(budgets), distilled, rounds, ours, peers, images, distill_seconds, multiple_of),)
        for s in seeds
        for m in models
    ]
    for new in measured(measure, tasks if ours or peers else [], jobs):
        key = new.model, new.seed
        found[key] = found[key].plus(new) if key in found else new
        if results is not None:
            results.write_bytes(pickle.dumps(found))
    click.echo("# Accuracy kept without fine-tuning\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    click.echo(
        f"\nTest accuracy in %, mean and standard deviation over seeds {', '.join(map(str, seeds))}; columns are "
        f"shares of the MACs kept; {IMAGES} images for everything. loss: mean cross entropy; seconds: of the cut and "
        "what follows; both at a half."
    )
    for model in models:
        every = [found[model, s] for s in seeds]
        click.echo("\n" + section(every, budgets))


if __name__ == "__main__":
    main()
