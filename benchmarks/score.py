"""How fast and how exact is the score stage: against the paper's own code, and against what the runtime can do?

    python benchmarks/score.py --torchpruner PATH > benchmarks/score.md    # the reading under it is written by hand

PATH is a checkout of github.com/marcoancona/TorchPruner, the code of the paper; torch is needed. The net is VGG-like
(six 3x3 convolutions of 32, 32, 64, 64, 128 and 128 channels, a hidden layer of 256; `--channels` and `--hidden` make
another), trained for some epochs on `models/fashion_calibration.npz`; both sides score the same images on the same
exported weights, one thread each, and seconds are processor time, so that other work on the machine counts little.

paper     `ShapleyAttributionMetric` with `forward_partial`, 5 permutations shared by all images, all images one batch
ours      `Permutation`: the same number of rows; and as few rows as give no more error than the paper's code

"Same error": from four walks on a tenth more rows each time, until the mean error of some draws is no larger.

"quick": the same with `shapley-quick`, which has a bias; it is in the error.

Both play the same game: masks behind the ReLU, zeros, the cross entropy of the label. The exact values are those of
15 pairs an image of other draws; error is squared, over the variance of the exact values, the mean over seeds.

The engine's own tables: rows a second with everything off (one row at a time through the whole model), with the prefix
kept, with rows batched, with running sums; and against the bare suffix, the unmasked rest of the model behind the
group's first linear ops' inputs, run by onnxruntime at its best batch size.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from tables import made_by, table

from onnxshap import payoffs
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, run_all
from onnxshap.core import FloatArray
from onnxshap.estimators.permutation import Permutation
from onnxshap.estimators.rows import coalition_removals
from onnxshap.game import GroupGame, Setting
from onnxshap.game.activations import Activations
from onnxshap.game.halves import halve
from onnxshap.graph import extract
from onnxshap.groups import Group
from onnxshap.masking import mask_name, masked_model
from onnxshap.opening import open_model

FOLDER = Path(__file__).parent.parent / "models"
CHANNELS = (32, 32, 64, 64, 128, 128)
HIDDEN = 256
PERMUTATIONS = 5
IMAGES = 8
"""Images of the table of cost against units: half of a block of jobs."""
DEEP = 4
"""Pixels of the nets of the table of cost against units: what is left of an image in a last block."""
QUICK = 0.5
"""Of the units: the largest coalitions of `shapley-quick`."""
_SECONDS = 0.5
"""Processor time that a rate is measured for, at least."""


# --- the net ---------------------------------------------------------------------------------------------------------


def build(widths: Sequence[int], hidden: int, size: int) -> Any:
    """Return a VGG-like torch module for one-channel images of `size` pixels, with `forward_partial`."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            channels, side = 1, size
            for number, width in enumerate(widths):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
                if number % 2:
                    layers.append(nn.MaxPool2d(2))
                    side //= 2
            layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return self.layers(x)

        def forward_partial(self, x: Any, to_module: Any = None, from_module: Any = None) -> Any:
            modules = list(self.layers)
            start = 0 if from_module is None else modules.index(from_module) + 1
            stop = len(modules) if to_module is None else modules.index(to_module) + 1
            for module in modules[start:stop]:
                x = module(x)
            return x

    torch.manual_seed(0)
    return Net()


def train(net: Any, images: Any, labels: Any, epochs: int) -> None:
    """Train with Adam and shifts; enough for values that are not noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(50):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            loss = torch.nn.functional.cross_entropy(net(images[chosen].roll(shift, (2, 3))), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


def export(net: Any, images: Any, path: Path) -> None:
    """Write the net as ONNX, BatchNormalization folded, its batch free."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (images[:2],), path, dynamo=False, input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip


def setting_of(path: Path, images: int) -> Setting:
    """Return the zero-filled games of cross entropy on the first calibration images."""
    traced, whole = open_model(path, FOLDER / "fashion_calibration.npz", backend=OrtBackend("cpu", 1))
    data = whole.take(slice(0, images))
    free = free_batch(traced)
    reference = run_all(free, free.shaped.graph.model, data)
    return Setting(free, data, payoffs.choose("ce", reference, data.labels, ["logits"]), reference)


# --- against the paper's code ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Against:
    """One layer: rows, seconds and errors of both sides."""

    layer: str
    units: int
    rows: int
    paper_seconds: float
    seconds: float
    paper_error: float
    error: float
    same_seconds: float
    same_rows: int
    quick_seconds: float
    quick_rows: int
    paper_bias: float

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        return [
            self.layer, f"{self.units}", f"{self.rows}", f"{self.paper_seconds:.2f}", f"{self.seconds:.2f}",
            f"{self.paper_seconds / self.seconds:.1f}x", f"{self.paper_error:.3f}", f"{self.error:.4f}",
            f"{self.paper_error / self.error:.0f}x", f"{self.same_rows}", f"{self.same_seconds:.3f}",
            f"{self.paper_seconds / self.same_seconds:.0f}x", f"{self.quick_rows}", f"{self.quick_seconds:.3f}",
            f"{self.paper_seconds / self.quick_seconds:.0f}x", f"{self.paper_bias:.0e}",
        ]  # fmt: skip


HEADER = [
    "layer", "units", "rows", "paper s", "ours s", "faster", "paper error", "ours error", "more exact",
    "rows, same error",
    "s, same error", "faster, same error", "rows, quick", "s, quick", "faster, quick", "games differ",
]  # fmt: skip


def quietly(work: Callable[[], Any]) -> Any:
    """Return what something gives, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


def processor(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds that something takes, and what it gives."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def compare(
    setting: Setting, group: Group, net: Any, module: Any, loader: Any, seeds: int, exact_pairs: int, draws: int
) -> Against:
    """Return the figures of one layer."""
    import torch
    from torchpruner.attributions import ShapleyAttributionMetric

    n, images = len(group), len(setting.data)
    truth = Permutation(pairs=exact_pairs)(GroupGame(setting, group), np.random.default_rng(99)).phi

    def error(phi: FloatArray) -> float:
        return float(np.mean((phi - truth) ** 2) / truth.var())

    metric = ShapleyAttributionMetric(
        net, loader, torch.nn.functional.cross_entropy, torch.device("cpu"), sv_samples=PERMUTATIONS
    )
    rows = images * PERMUTATIONS * n
    paper, ours = [], []
    bias = 0.0
    for seed in range(seeds):
        np.random.seed(seed)  # noqa: NPY002 - theirs draws from it
        seconds, phi = processor(lambda: quietly(lambda: metric.run(module, find_best_evaluation_module=True)))
        paper.append((seconds, error(phi)))
        bias = max(bias, abs(phi.sum() - truth.sum()) / abs(truth.sum()))
        seconds, values = processor(lambda s=seed: spend(setting, group, rows, s))
        ours.append((seconds, error(values.phi)))
    wanted = float(np.mean([e for _, e in paper]))
    same: list[tuple[float, int]] = []
    for share in (1.0, QUICK):
        budget = 4 * (n + 1)
        while True:  # a tenth more each time, until the error over the draws is as small
            found = [
                processor(lambda s=seed, b=budget, q=share: spend(setting, group, b, s, q)) for seed in range(draws)
            ]
            if np.mean([error(v.phi) for _, v in found]) <= wanted or budget >= rows:
                break
            budget = int(1.1 * budget) + 1
        same.append((min(s for s, _ in found), found[0][1].evals))
    return Against(
        group.name.split("/")[-1] or group.name, n, rows,
        min(s for s, _ in paper), min(s for s, _ in ours),
        wanted, float(np.mean([e for _, e in ours])),
        *same[0], *same[1], bias,
    )  # fmt: skip


def spend(setting: Setting, group: Group, rows: int, seed: int, share: float = 1.0) -> Any:
    """Return the values that so many rows give; opening the game counts."""
    return Permutation(pairs=PERMUTATIONS, max_evals=rows, max_share=share)(
        GroupGame(setting, group), np.random.default_rng(seed)
    )


# --- against the runtime ---------------------------------------------------------------------------------------------


def rate(work: Callable[[], int]) -> float:
    """Return rows a second of processor time: the fastest of some repeats."""
    work()
    best, spent = 0.0, 0.0
    while spent < _SECONDS:
        seconds, rows = processor(work)
        best, spent = max(best, rows / max(seconds, 1e-9)), spent + max(seconds, 1e-3)
    return best


@dataclass(frozen=True)
class Speed:
    """Rows a second of one group: the whole model row by row, prefix, batches, running sums; the bare suffix."""

    layer: str
    units: int
    alone: float
    prefixed: float
    batched: float
    summed: float | None
    bare: float
    payoff: float

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        best = self.summed or self.batched
        return [
            self.layer, f"{self.units}", f"{self.alone:.0f}", f"{self.prefixed / self.alone:.1f}x",
            f"{self.batched / self.prefixed:.1f}x", f"{self.summed / self.batched:.1f}x" if self.summed else "-",
            f"{best:.0f}", f"{self.bare:.0f}", f"{self.batched / self.bare:.2f}", f"{best / self.bare:.2f}",
            f"{self.payoff:.1f}",
        ]  # fmt: skip


SPEED = [
    "layer", "units", "rows/s, one by one", "prefix", "batched", "running sums", "rows/s", "bare suffix, rows/s",
    "masks / bare", "all / bare", "us of the payoff",
]  # fmt: skip


def speed(setting: Setting, group: Group) -> Speed:
    """Return the rates of one group."""
    n, rng = len(group), np.random.default_rng(0)
    game = GroupGame(setting, group)
    few = np.arange(min(4, len(setting.data)))
    orders = np.stack([rng.permutation(n)[: n - 1] for _ in few])
    whole = setting.traced.backend.session(masked_model(setting.traced, [group], setting.means))
    mask = mask_name(group)

    def alone() -> int:
        for k in range(min(8, n - 1)):
            coalition = np.ones((1, n), np.float32)
            coalition[0, orders[0, : k + 1]] = 0
            feeds = {name: value[:1] for name, value in setting.data.inputs.items()}
            whole.run({**feeds, mask: coalition})
        return min(8, n - 1)

    halves = halve(setting.traced, masked_model(setting.traced, [group], setting.means), mask)
    assert halves.suffix is not None
    kept = Activations(setting, halves.prefix, halves.boundary)
    suffix = setting.traced.backend.session(halves.suffix)

    def prefixed() -> int:
        for k in range(min(32, n - 1)):
            coalition = np.ones((1, n), np.float32)
            coalition[0, orders[0, : k + 1]] = 0
            feeds = {**kept.take(few[:1]), mask: coalition}
            suffix.run({name: feeds[name] for name in suffix.inputs})
        return min(32, n - 1)

    def batched() -> int:
        return coalition_removals(game, few, orders).size

    def summed() -> int:
        return game.removals(few, orders).size

    reference = np.zeros((256, 10), np.float32)
    seconds, _ = processor(
        lambda: [setting.payoff([reference], [reference], np.zeros(256, np.int64)) for _ in range(20)]
    )
    return Speed(
        group.name.split("/")[-1] or group.name, n, rate(alone), rate(prefixed), rate(batched),
        rate(summed) if game._walks is not None else None, bare(setting, group), seconds / 20 / 256 * 1e6,
    )  # fmt: skip


def bare(setting: Setting, group: Group) -> float:
    """Return rows a second of the unmasked model behind the group's boundary, at the best of some batch sizes."""
    traced = setting.traced
    halves = halve(traced, masked_model(traced, [group], setting.means), mask_name(group))
    kinds = {name: traced.shaped.kinds.get(name, 1) for name in halves.boundary}
    outputs = {traced.shaped.graph.model.graph.output[k].name: 1 for k in halves.outputs}
    session = traced.backend.session(extract(traced.shaped.graph.model, kinds, outputs))
    kept = Activations(setting, halves.prefix, halves.boundary)
    best = 0.0
    for rows in (8, 32, 128, 512):
        feeds = kept.take(np.arange(rows) % min(4, len(setting.data)))
        feeds = {name: feeds[name] for name in session.inputs}

        def work(feeds: Any = feeds, rows: int = rows) -> int:
            session.run(feeds)
            return rows

        best = max(best, rate(work))
    return best


def scaling(folder: Path, units: Sequence[int]) -> Iterator[list[str]]:
    """Yield rows of cost against width: nets of two convolutions and two Gemm, a pair of walks."""
    import torch

    for width in units:
        path = folder / f"width{width}.onnx"
        export(build((width, width), 64, DEEP).eval(), torch.zeros(2, 1, DEEP, DEEP), path)
        pixels = np.random.default_rng(0).normal(size=(IMAGES, 1, DEEP, DEEP)).astype(np.float32)
        traced, data = open_model(path, pixels, backend=OrtBackend("cpu", 1))
        free = free_batch(traced)
        reference = run_all(free, free.shaped.graph.model, data)
        setting = Setting(free, data, payoffs.choose("kl", reference, None, ["logits"]), reference)
        for group in setting.traced.groups[:2]:
            game, rng = GroupGame(setting, group), np.random.default_rng(0)
            orders = np.stack([rng.permutation(len(group))[:-1] for _ in range(2 * IMAGES)])
            images = np.repeat(np.arange(IMAGES), 2)
            found = rate(lambda g=game, i=images, o=orders: g.removals(i, o).size)
            plain = bare(setting, group)
            yield [
                f"{width}",
                behind(setting, group),
                f"{1e6 / found:.2f}",
                f"{1e6 / plain:.2f}",
                f"{found / plain:.1f}x",
            ]


def behind(setting: Setting, group: Group) -> str:
    """Return the op that first sums over a group's units."""
    first = min(site.node for site in setting.traced.sites([group]) if site.weight is not None)
    return setting.traced.shaped.graph.nodes[first].op_type


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--torchpruner", type=click.Path(path_type=Path), help="A checkout of the paper's code; else left out.")
@click.option("--images", default=150, show_default=True, help="Images to score.")
@click.option("--seeds", default=2, show_default=True, help="Seeds, counted from 0.")
@click.option("--exact-pairs", default=15, show_default=True, help="Pairs an image of the exact values.")
@click.option("--draws", default=16, show_default=True, help="Of ours, whose mean error says whether it is as small.")
@click.option("--epochs", default=12, show_default=True, help="Of training.")
@click.option("--channels", default=",".join(map(str, CHANNELS)), show_default=True, help="Of the convolutions.")
@click.option("--hidden", default=HIDDEN, show_default=True, help="Units of the hidden layer.")
@click.option("--first", is_flag=True, help="The first table alone.")
@click.option("--widths", default="32,128,512,2048", show_default=True, help="Of the table of cost against units.")
def main(
    torchpruner: Path | None, images: int, seeds: int, exact_pairs: int, draws: int, epochs: int, channels: str,
    hidden: int, first: bool, widths: str,
) -> None:  # fmt: skip
    """Print the tables."""
    import torch

    torch.set_num_threads(1)
    with np.load(FOLDER / "fashion_calibration.npz") as stored:
        named = {name: stored[name] for name in stored.files}
    pixels = torch.from_numpy(next(v for v in named.values() if v.ndim == 4).astype(np.float32))
    labels = torch.from_numpy(next(v for v in named.values() if v.ndim == 1).astype(np.int64))
    net = build([int(c) for c in channels.split(",")], hidden, pixels.shape[-1])
    train(net, pixels, labels, epochs)
    click.echo("# The score stage: speed and exactness\n")
    click.echo(made_by("one thread, processor time"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg.onnx"
        export(net, pixels, path)
        setting = setting_of(path, images)
        if torchpruner is not None:
            sys.path.insert(0, str(torchpruner))
            found = []
            inner = [m for m in net.layers if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)][:-1]
            batch = torch.utils.data.TensorDataset(pixels[:images], labels[:images])
            loader = torch.utils.data.DataLoader(batch, batch_size=images)
            for group, module in zip(setting.traced.groups, inner, strict=True):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found.append(compare(setting, group, net, module, loader, seeds, exact_pairs, draws))
                click.echo("  ".join(found[-1].cells), err=True)
            click.echo(f"\n## Against the paper's code, {images} images, {seeds} seeds, {channels} and {hidden}\n")
            click.echo(table(HEADER, [f.cells for f in found]))
            click.echo(f"\nGeometric means: {means(found)}")
        if first:
            return
        speeds = []
        for group in setting.traced.groups:
            speeds.append(speed(setting, group))
            click.echo("  ".join(speeds[-1].cells), err=True)
        click.echo("\n## Rows a second\n")
        click.echo(table(SPEED, [s.cells for s in speeds]))
        rows = list(scaling(Path(folder), [int(w) for w in widths.split(",")]))
        click.echo(f"\n## Cost against units: two convolutions of so many channels at {DEEP} x {DEEP}, two Gemm\n")
        click.echo(table(["channels", "behind", "us a row", "bare suffix, us", "faster"], rows))


def means(found: Sequence[Against]) -> str:
    """Return the geometric means over layers."""

    def mean(values: Sequence[float]) -> float:
        return float(np.exp(np.mean(np.log(values))))

    return (
        f"at equal rows {mean([f.paper_seconds / f.seconds for f in found]):.1f}x faster and "
        f"{mean([f.paper_error / f.error for f in found]):.0f}x more exact; to the same error "
        f"{mean([f.paper_seconds / f.same_seconds for f in found]):.0f}x faster, "
        f"{mean([f.paper_seconds / f.quick_seconds for f in found]):.0f}x with `shapley-quick`."
    )


if __name__ == "__main__":
    main()
