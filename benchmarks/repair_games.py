"""Which units to cut where least squares follow: do games that know about the repair beat the greedy `recon`?

    python benchmarks/repair_games.py > benchmarks/repair_games.md        # the reading is written by hand

Same data, budgets, widths and least squares as `benchmarks/methods.py`; only the ranking within each group differs.
Test accuracy after `lstsq`, in %, mean and spread over seeds.

random          what the repair makes of any choice
recon           backward greedy by the error the refit leaves (`--method recon`)
shapley-recon   Shapley values of v(S) = - error of the refit from S, antithetic walks of inverse downdates
cut-recon       the same marginal contributions, counted only while between 70 and 30 % of the units are there
                (a semivalue around the cut)
recon-sensed    `recon` with every output's squared error counted by what it does to the logits: noise is added to one
                channel of the consumer at a time (the diagonal of the residual covariance's weight)
recon-sensed-half   the square root of that weight: halfway to `recon`
recon-sensed-flat   with noise that is the same in all positions of an image
refit-kl        seven rounds of leave-one-out: KL to the original outputs with the consumers refitted for every
                coalition, from one Gram matrix
shapley-refit   Shapley values of the same payoff, antithetic walks
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from methods import FOLDER, IMAGES, MODELS, Bench
from tables import made_by, mean_and_spread, table

from onnxshap import OrtBackend, payoffs, site_means
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import FloatArray
from onnxshap.game import Setting
from onnxshap.graph import attributes, extract, finish, is_op
from onnxshap.groups import Group
from onnxshap.methods.elimination import BlockRegression, eliminate
from onnxshap.methods.recon import JointLayer, layers_of, regressions
from onnxshap.opening import calibration, open_model
from onnxshap.repair import refit
from onnxshap.rewrite import Removal
from onnxshap.taps import patches, taps

BUDGETS = (0.5, 0.25)
WALKS = 8
LOSS_IMAGES = 48
LOSS_WALKS = 4
ROUNDS = 7
Ranking = Callable[[Setting, Group, np.random.Generator], FloatArray]


# --- games on the reconstruction error -------------------------------------------------------------------------------


def _walks(n: int, walks: int, rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    fresh = [rng.permutation(n) for _ in range(walks // 2)]
    return [order for one in fresh for order in (one, one[::-1])]


def recon(setting: Setting, group: Group, rng: np.random.Generator) -> FloatArray:
    """Return the greedy's values."""
    return eliminate(*regressions(setting, group, rng))


def _marginals(setting: Setting, group: Group, rng: np.random.Generator, high: float, low: float) -> FloatArray:
    problems, fixed = regressions(setting, group, rng)
    n = len(group)
    total, count = np.zeros(n), np.zeros(n)
    for order in _walks(n, WALKS, rng):
        now = copy.deepcopy(problems)
        for place, unit in enumerate(order):
            if low * n <= n - place <= high * n:
                total[unit] += fixed[unit] + sum(p.price(np.array([unit]))[0] for p in now)
                count[unit] += 1
            for problem in now:
                problem.remove(int(unit))
    return total / np.maximum(count, 1)


def shapley_recon(setting: Setting, group: Group, rng: np.random.Generator) -> FloatArray:
    """Return Shapley values of minus the reconstruction error."""
    return _marginals(setting, group, rng, 1.0, 0.0)


def cut_recon(setting: Setting, group: Group, rng: np.random.Generator) -> FloatArray:
    """Return marginal contributions around the cut."""
    return _marginals(setting, group, rng, 0.7, 0.3)


# --- what an error in an output does to the logits -------------------------------------------------------------------


@dataclass
class Behind:
    """The model from the outputs of a group's consumers on."""

    setting: Setting
    group: Group

    def __post_init__(self) -> None:
        """Open the sessions and remember the originals."""
        traced = self.setting.traced
        model, kinds = traced.shaped.graph.model, traced.shaped.kinds
        self.layers = [layer for layer in layers_of(self.setting, self.group) if layer.refitted]
        self.nodes = [node for layer in self.layers for node in layer.nodes]
        self.names = [traced.shaped.graph.nodes[node].output[0] for node in self.nodes]
        inputs = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        data = self.setting.data.take(np.arange(min(LOSS_IMAGES, len(self.setting.data))))
        self.feeds = dict(data.inputs)
        self.ys = traced.backend.session(extract(model, inputs, {n: kinds.get(n, 1) for n in self.names})).run(
            self.feeds
        )
        outputs = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
        self.last = [n for n in self.names if n in outputs]
        self.session = traced.backend.session(
            extract(model, inputs | {n: kinds.get(n, 1) for n in self.names if n not in outputs}, outputs)
        )
        self.reference = run_all(traced, model, data)
        self.payoff = payoffs.choose("kl", self.reference, None, list(outputs))

    def logits(self, ys: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Return the outputs for other outputs of the consumers."""
        feeds = {n: y.astype(np.float32) for n, y in zip(self.names, ys, strict=True) if n not in self.last}
        feeds |= self.feeds
        found = self.session.run({n: feeds[n] for n in self.session.inputs})
        return [
            ys[self.names.index(n)] if n in self.last else v for n, v in zip(self.session.outputs, found, strict=True)
        ]

    def kl(self, ys: Sequence[np.ndarray[Any, Any]]) -> float:
        """Return the mean KL to the original."""
        return -float(self.payoff(self.logits(ys), self.reference, None).mean())


def sensed(
    setting: Setting, group: Group, rng: np.random.Generator, power: float = 1.0, *, flat: bool = False
) -> FloatArray:
    """Return the greedy's values with errors counted by what they do to the logits."""
    behind = Behind(setting, group)
    importance: dict[int, FloatArray] = {}
    for k, (node, y) in enumerate(zip(behind.nodes, behind.ys, strict=True)):
        out = next(layer for layer in behind.layers if node in layer.nodes).site.weight
        assert out is not None
        found = np.zeros(y.shape[out.out])
        for channel in range(len(found)):
            at: list[Any] = [slice(None)] * y.ndim
            at[out.out] = channel
            step = 0.3 * y[tuple(at)].std() + 1e-6
            noisy = y.copy()
            shape = noisy[tuple(at)].shape
            noisy[tuple(at)] += step * rng.normal(size=(shape[0], *(1 if flat else n for n in shape[1:])))
            ys = [*behind.ys[:k], noisy, *behind.ys[k + 1 :]]
            moved = behind.logits(ys)[0] - behind.reference[0]
            found[channel] = (moved**2).sum(axis=1).mean() / step**2
        importance[node] = (found + 1e-3 * found.mean() + 1e-12) ** power
    return eliminate(*regressions(setting, group, rng, importance))


# --- the loss after a refit ------------------------------------------------------------------------------------------


@dataclass
class RefitGame:
    """KL to the original with the consumers refitted for the coalition (one block a layer)."""

    behind: Behind
    problems: list[BlockRegression]

    def __post_init__(self) -> None:
        """Keep the inputs of the layers and their weights."""
        self.xs, self.starts = [], []
        for layer, problem in zip(self.behind.layers, self.problems, strict=True):
            assert layer.blocks == 1
            self.xs.append(_inputs(self.behind, layer))
            self.starts.append(problem.weights())

    def value(self, now: Sequence[BlockRegression], without: int | None = None) -> float:
        """Return the mean KL for the present state of the regressions, one more unit removed if asked for."""
        ys, k = [], 0
        for layer, x, start, problem in zip(self.behind.layers, self.xs, self.starts, now, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                change = problem.weights(without) - start
            assert layer.kernels is not None
            flat = layer.kernels.reshape(-1, layer.kernels.shape[3])
            norms = np.linalg.norm(start, axis=0) / np.maximum(np.linalg.norm(flat, axis=0), 1e-30)
            delta = (x @ (change / np.maximum(norms, 1e-30)).astype(np.float32)).reshape(*x.shape[:-1], -1)
            for node, a, b in zip(layer.nodes, layer.starts, layer.starts[1:], strict=False):
                y = self.behind.ys[self.behind.nodes.index(node)]
                weight = layer.site.weight
                assert weight is not None
                step = np.moveaxis(delta[..., a:b].reshape(len(y), -1, b - a), -1, 1)
                moved = np.moveaxis(y, weight.out, 1)
                ys.append(np.moveaxis((moved.reshape(step.shape) + step).reshape(moved.shape), 1, weight.out))
                k += 1
        return self.behind.kl(ys)


def _inputs(behind: Behind, layer: JointLayer) -> np.ndarray[Any, Any]:
    """Return the centred inputs [images, positions, channels x taps] of a layer."""
    traced = behind.setting.traced
    model, shapes = traced.shaped.graph.model, traced.shaped.shapes
    inputs = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    site, node = layer.site, traced.shaped.graph.nodes[layer.site.node]
    x = traced.backend.session(extract(model, inputs, {site.tensor: 1})).run(behind.feeds)[0]
    if is_op(node, "Conv"):
        space, made = shapes[site.tensor][2:], shapes[node.output[0]][2:]
        reads = taps(node.op_type, attributes(node), space, made, shapes[node.input[1]][2:])
        rows = patches(x, reads).transpose(0, 2, 1, 3)
        rows = rows.reshape(*rows.shape[:2], -1)
    else:
        rows = np.moveaxis(x, site.axis, -1).reshape(len(x), -1, x.shape[site.axis])
    return rows - rows.mean(axis=(0, 1))


def _refit_game(setting: Setting, group: Group, rng: np.random.Generator) -> RefitGame | None:
    behind = Behind(setting, group)
    problems, fixed = regressions(setting, group, rng)
    if fixed.any() or any(layer.blocks > 1 for layer in behind.layers):
        return None
    return RefitGame(behind, problems)


def refit_kl(setting: Setting, group: Group, rng: np.random.Generator) -> FloatArray:
    """Return the order of removal in rounds of leave-one-out."""
    game = _refit_game(setting, group, rng)
    if game is None:
        return recon(setting, group, rng)
    n, now = len(group), copy.deepcopy(game.problems)
    phi, present, done = np.zeros(n), np.ones(n, np.bool_), 0
    for number in range(1, ROUNDS + 1):
        left = np.flatnonzero(present)
        costs = (
            {int(u): game.value(now, int(u)) for u in left} if number < ROUNDS else dict.fromkeys(left.tolist(), 0.0)
        )
        for unit in sorted(costs, key=lambda u: costs[u])[: round(n * number / ROUNDS) - done]:
            done += 1
            phi[unit], present[unit] = done, False
            for problem in now:
                problem.remove(unit)
    return phi


def shapley_refit(setting: Setting, group: Group, rng: np.random.Generator) -> FloatArray:
    """Return Shapley values of minus the KL after the refit."""
    game = _refit_game(setting, group, rng)
    if game is None:
        return recon(setting, group, rng)
    n = len(group)
    total = np.zeros(n)
    for order in _walks(n, LOSS_WALKS, rng):
        now, before = copy.deepcopy(game.problems), 0.0
        for unit in order:
            for problem in now:
                problem.remove(int(unit))
            after = game.value(now)
            total[unit] += after - before
            before = after
    return total / LOSS_WALKS


RANKINGS: Mapping[str, Ranking] = {
    "random": lambda setting, group, rng: rng.random(len(group)),
    "recon": recon,
    "shapley-recon": shapley_recon,
    "cut-recon": cut_recon,
    "recon-sensed": sensed,
    "recon-sensed-half": lambda setting, group, rng: sensed(setting, group, rng, 0.5),
    "recon-sensed-flat": lambda setting, group, rng: sensed(setting, group, rng, flat=True),
    "refit-kl": refit_kl,
    "shapley-refit": shapley_refit,
}


def measure(model: str, seed: int, rows: Sequence[str]) -> dict[str, list[float]]:
    """Return, by ranking, the accuracies at the budgets and the seconds of the ranking."""
    traced, whole = open_model(FOLDER / model, FOLDER / "fashion_calibration.npz", backend=OrtBackend("cpu", 1))
    chosen = np.sort(np.random.default_rng(seed).choice(len(whole), IMAGES, replace=False))
    bench = Bench(
        traced, free_batch(traced), whole.take(chosen), calibration(traced, FOLDER / "fashion_test.npz"), seed
    )
    setting = Setting(bench.free, bench.pool, payoffs.MSE(), [])
    means = site_means(bench.free, bench.pool)
    found = {}
    for row in rows:
        started = time.perf_counter()
        order = {
            g.name: RANKINGS[row](setting, g, np.random.default_rng([seed, k])) for k, g in enumerate(traced.groups)
        }
        seconds = time.perf_counter() - started
        accuracies = []
        for macs in BUDGETS:
            refitted, _ = refit(Removal(bench.traced, bench.free, bench.plan(order, macs), means), bench.pool, seed)
            accuracies.append(100 * bench.accuracy(finish(refitted, bench.traced.shaped.graph)))
        found[row] = [*accuracies, seconds]
        click.echo(f"{model}, seed {seed}, {row}: {accuracies} {seconds:.0f} s", err=True)
    return found


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, default=MODELS, help="A file of models/; again for more.")
@click.option("--ranking", "rankings", multiple=True, help="A row of the table; default all.")
@click.option("--seeds", default=3, show_default=True, help="Seeds, counted from 0.")
@click.option("--jobs", default=2, show_default=True, help="Processes of one thread each.")
def main(models: Sequence[str], rankings: Sequence[str], seeds: int, jobs: int) -> None:
    """Print the table of every model."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    rows, found = list(rankings or RANKINGS), {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = {pool.submit(measure, m, s, rows): (m, s) for m in models for s in range(seeds)}
        for done in as_completed(tasks):
            found[tasks[done]] = done.result()
    click.echo("# Games that know about the repair\n")
    click.echo(made_by(f"{jobs} processes of one thread"))
    for model in models:
        body = [
            [row, *(mean_and_spread([found[model, s][row][k] for s in range(seeds)], 1) for k in range(len(BUDGETS))),
             f"{np.mean([found[model, s][row][-1] for s in range(seeds)]):.0f}"]
            for row in rows
        ]  # fmt: skip
        click.echo(f"\n## {model}\n\n" + table(["ranking", *(f"lstsq {b:g}" for b in BUDGETS), "seconds"], body))


if __name__ == "__main__":
    main()
