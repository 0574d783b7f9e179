"""How exact are sampled Shapley values at equal cost, and which cheap methods rank like them?

    python benchmarks/estimators.py > benchmarks/estimators.md        # the reading at its end is written by hand

About a quarter of an hour. Every layer is one game: `--images` calibration images, removed channels replaced by their
calibration means, payoff ce. Every estimator gets the same number of (image, coalition) rows and is compared with a
reference from many antithetic pairs on the same images, drawn from another stream of random numbers. What is measured
is therefore the noise of the permutations (and, below one walk an image, of leaving images out), not how far the
images stand for all images.

squared error   mean over units of (phi - reference)^2, over the variance of the reference over units:
                0 exact, 1 no better than giving every unit the same value
spread          standard deviation over seeds; that of a ratio is its standard error
k               evaluations per unit and image: k walks an image, 2 + k (units - 1) rows each; the same rows in pairs
                on half of the images where those are drawn by class
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr
from tables import made_by, mean_and_spread, table

from onnxshap import METHODS, Dataset, OrtBackend, Values, payoffs, site_means
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import CoalitionMatrix, FloatArray, Game, ImageIndex, IntArray
from onnxshap.estimators import LeaveOneOut, Permutation, SharedPermutation
from onnxshap.game import GroupGame, Setting
from onnxshap.opening import open_model
from onnxshap.tracing import Traced

MODELS = Path(__file__).parent.parent / "models"
LAYERS = (
    ("fashion_vgg.onnx", "node_Conv_85"),
    ("fashion_vgg.onnx", "node_Conv_89"),
    ("fashion_resdw.onnx", "/9/Conv"),
)
EVALS = (0.5, 1, 2, 5, 10, 20)
BATCHES = 10
REFERENCE_STREAM = 777_777
PAIR, SINGLE, UNSORTED, WALKS, SHARED = ESTIMATORS = (
    "antithetic pairs, images by class (`shapley`)",
    "single permutations, images by class",
    "antithetic pairs, images in no order",
    "one walk an image, images in no order",
    "permutations shared by all images (the paper's)",
)
"""Below one pair an image not all images are used, so it counts how they are drawn."""


@dataclass(frozen=True)
class SomeImages:
    """A game on some of its images, of which nothing tells which are alike."""

    game: Game
    chosen: IntArray

    @property
    def n_units(self) -> int:
        """Players."""
        return self.game.n_units

    @property
    def n_images(self) -> int:
        """Images chosen."""
        return len(self.chosen)

    def __call__(self, images: ImageIndex, coalitions: CoalitionMatrix) -> FloatArray:
        """Return float64[rows]."""
        return self.game(self.chosen[images], coalitions)


@dataclass(frozen=True)
class Reference:
    """Values taken for true.

    Attributes:
        phi: float64[n_units].
        error: its own squared error over the variance of phi, from the spread of independent parts of it.
        pairs: antithetic pairs an image.
    """

    phi: FloatArray
    error: float
    pairs: int

    def squared_error(self, phi: FloatArray) -> float:
        """Return the mean squared error of `phi`, over the variance of the reference."""
        return float(np.mean((phi - self.phi) ** 2) / np.var(self.phi))

    def spearman(self, phi: FloatArray) -> float:
        """Return the rank correlation."""
        return float(spearmanr(phi, self.phi).statistic)

    def bottom_half(self, phi: FloatArray) -> float:
        """Return which share of the lower half of the units is also the lower half of the reference."""
        half = len(phi) // 2
        lower = [set(np.argsort(values, kind="stable")[:half].tolist()) for values in (phi, self.phi)]
        return len(lower[0] & lower[1]) / half


def make_setting(traced: Traced, data: Dataset) -> Setting:
    """Return the mean-filled ce game's setting."""
    free = free_batch(traced)
    reference = run_all(free, free.shaped.graph.model, data)
    names = [o.name for o in free.shaped.graph.model.graph.output]
    return Setting(
        free, data, payoffs.choose("ce", reference, data.labels, names), reference, site_means(free, data)
    )  # fmt: skip


def make_reference(game: Game, pairs: int) -> Reference:
    """Return the reference and its own error."""
    share = -(-pairs // BATCHES)
    parts = np.stack(
        [Permutation(pairs=share)(game, np.random.default_rng([REFERENCE_STREAM, k])).phi for k in range(BATCHES)]
    )
    phi = parts.mean(axis=0)
    variance = parts.var(axis=0, ddof=1).mean() / BATCHES
    return Reference(phi, float(variance / np.var(phi)), share * BATCHES)


def budget(game: Game, k: float) -> int:
    """Return the rows of k evaluations per unit and image; below 1, of one walk on that share of the images."""
    images, walks = (game.n_images, int(k)) if k >= 1 else (int(k * game.n_images), 1)
    return images * (2 + walks * (game.n_units - 1))


def drawn(game: Game, share: float, rng: np.random.Generator) -> SomeImages:
    """Return a game on a share of its images, drawn in no order."""
    return SomeImages(game, np.sort(rng.permutation(game.n_images)[: int(share * game.n_images)]))


def run(name: str, game: Game, k: float, seed: int) -> Values:
    """Return the values of an estimator with `budget` rows, or hardly fewer."""
    rng = np.random.default_rng([seed, round(10 * k), ESTIMATORS.index(name)])
    pairs = math.ceil(k / 2)
    estimators: dict[str, Callable[[], Values]] = {
        PAIR: lambda: Permutation(pairs=pairs, max_evals=budget(game, k))(game, rng),
        SINGLE: lambda: Permutation(pairs=pairs, antithetic=False, max_evals=budget(game, k))(game, rng),
        UNSORTED: lambda: Permutation()(drawn(game, k / 2, rng), rng),
        WALKS: lambda: Permutation(max_evals=budget(game, k))(drawn(game, k, rng), rng),
        SHARED: lambda: SharedPermutation(permutations=int(k))(game, rng),
    }
    values = estimators[name]()
    assert budget(game, k) - game.n_images <= values.evals <= budget(game, k)
    return values


def ratio(upper: Sequence[float], lower: Sequence[float]) -> str:
    """Return the ratio of two means and its standard error."""
    found = float(np.mean(upper) / np.mean(lower))
    relative = math.hypot(*(np.std(v, ddof=1) / math.sqrt(len(v)) / np.mean(v) for v in (upper, lower)))
    return f"{found:.1f} ± {found * relative:.1f}"


def error_table(game: Game, reference: Reference, seeds: Sequence[int]) -> str:
    """Return the table of squared errors at equal rows."""
    errors: dict[tuple[str, float], list[float]] = {}
    for name in ESTIMATORS:
        for k in EVALS:
            if (name == SHARED and k < 1) or (name in (UNSORTED, WALKS) and k > 1):
                continue
            started = time.perf_counter()
            errors[name, k] = [reference.squared_error(run(name, game, k, seed).phi) for seed in seeds]
            click.echo(f"  {name}, k = {k:g}: {time.perf_counter() - started:.0f} s", err=True)
    alone = reference.squared_error(LeaveOneOut()(game, np.random.default_rng(0)).phi)

    def cells(name: str) -> list[str]:
        return [mean_and_spread(errors[name, k], 4) if (name, k) in errors else "" for k in EVALS]

    def ratios(name: str) -> list[str]:
        return [ratio(errors[SHARED, k], errors[name, k]) if k >= 1 else "" for k in EVALS]

    return table(
        ["squared error at k =", *[f"{k:g}" for k in EVALS]],
        [
            ["rows", *[f"{budget(game, k):,}" for k in EVALS]],
            *[[name, *cells(name)] for name in ESTIMATORS],
            ["leave-one-out", *[f"{alone:.4f}" if k == 1 else "" for k in EVALS]],
            ["**ratio shared / pairs**", *ratios(PAIR)],
            ["ratio shared / single permutations", *ratios(SINGLE)],
        ],
    )


def ranking_table(setting: Setting, place: int, reference: Reference, seeds: Sequence[int]) -> str:
    """Return the table of rank correlations, every method with its own defaults on all images."""
    group, rows = setting.traced.groups[place], []
    for method, play in METHODS.items():
        if method == "exact":
            continue
        found = [play(setting, group, np.random.default_rng([seed, 2]), None) for seed in seeds]
        evals = found[0].evals / (len(group) * len(setting.data))
        rows.append([
            method,
            f"{evals:.2f}" if evals else "0",
            mean_and_spread([reference.spearman(v.phi) for v in found], 3),
            mean_and_spread([reference.bottom_half(v.phi) for v in found], 3),
        ])  # fmt: skip
    return table(["method", "evaluations per unit and image", "Spearman", "lower half found"], rows)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--layer", "layers", nargs=2, multiple=True, default=LAYERS, metavar="MODEL GROUP",
              help="A file of models/ and one of its groups; again for more.")  # fmt: skip
@click.option("--images", default=200, show_default=True, help="Calibration images, drawn once.")
@click.option("--pairs", default=200, show_default=True, help="Antithetic pairs an image of the reference.")
@click.option("--seeds", default=10, show_default=True, help="Seeds per estimator, counted from 0.")
@click.option("--threads", default=1, show_default=True, help="Threads of onnxruntime.")
def main(layers: Sequence[tuple[str, str]], images: int, pairs: int, seeds: int, threads: int) -> None:
    """Print the tables of every layer."""
    click.echo("# Estimators of Shapley values at equal rows\n")
    click.echo(made_by(f"onnxruntime on {threads} thread(s)"))
    click.echo(
        f"\n{images} images of `fashion_calibration.npz` (seed 0), mean-filled masks, payoff ce, mean and spread over "
        f"seeds 0 to {seeds - 1}. What is measured: the docstring of `benchmarks/estimators.py`."
    )
    for model, name in layers:
        traced, whole = open_model(
            MODELS / model, MODELS / "fashion_calibration.npz", backend=OrtBackend("cpu", threads)
        )
        chosen = np.sort(np.random.default_rng(0).choice(len(whole), images, replace=False))
        setting = make_setting(traced, whole.take(chosen))
        place = [g.name for g in traced.groups].index(name)
        game = GroupGame(setting, traced.groups[place])
        started = time.perf_counter()
        reference = make_reference(game, pairs)
        click.echo(f"{model} {name}: reference {time.perf_counter() - started:.0f} s", err=True)
        click.echo(f"\n## {model}, {name}: {game.n_units} units\n")
        click.echo(
            f"Reference: {reference.pairs} antithetic pairs an image; its own squared error is {reference.error:.1e} "
            f"(standard error {math.sqrt(reference.error):.4f} standard deviations of phi).\n"
        )
        click.echo(error_table(game, reference, range(seeds)))
        click.echo("\nRankings, all images, methods as `--method` runs them:\n")
        click.echo(ranking_table(setting, place, reference, range(seeds)))


if __name__ == "__main__":
    main()
