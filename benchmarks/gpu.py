"""What a device makes of the score stage: are the values the processor's, and how much of the device do they use?

    python benchmarks/gpu.py [--model FILE --data FILE] [--provider cuda] [--images 8] [--groups 6] [--rows 8192]

Without FILE, all groups of the nets of models/. Values are those of one antithetic pair of permutations an image, on
the device and on the processor; the largest difference is told as a share of the values' spread, their standard
deviation over the group. Rows a second are those of walks over as many images as make up the rows, games open and
warm, on the clock: the processor's with all of its threads, and the device's. The suffix's multiply-accumulates are
those of the nodes that are run for every row; the device's matrix rate is that of a chain of products of 8,192 x 8,192
float32 numbers, computed as exactly (no TF32), by the same runtime.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import onnx.parser
from tables import made_by, table

from onnxshap import payoffs
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, run_all, site_means
from onnxshap.core import FloatArray
from onnxshap.estimators.permutation import Permutation
from onnxshap.game import GroupGame, Setting
from onnxshap.game.halves import halve
from onnxshap.groups import Group
from onnxshap.masking import mask_name, masked_model
from onnxshap.opening import open_model

FOLDER = Path(__file__).parent.parent / "models"
NETS = ("fashion_vgg", "fashion_resdw", "fashion_resnet20", "fashion_vit")
SIDE, PRODUCTS = 8192, 10
"""Of the matrices whose products tell the device's rate."""
SECONDS = 1.0
"""Of every measurement, about."""
HEADER = [
    "group", "units", "million MACs a row", "processor, rows/s", "device, rows/s", "faster", "TMAC/s",
    "share of the matrix rate", "difference / spread",
]  # fmt: skip


def setting_of(model: Path, data: Path, images: int, backend: OrtBackend) -> Setting:
    """Return the games of a net on its first images."""
    traced, whole = open_model(model, data, backend=backend)
    free, part = free_batch(traced), whole.take(slice(0, images))
    reference = run_all(free, free.shaped.graph.model, part)
    names = [o.name for o in free.shaped.graph.model.graph.output]
    payoff = payoffs.choose("kl", reference, None, names)
    return Setting(free, part, payoff, reference, site_means(free, part))


def rate(work: Callable[[], int]) -> float:
    """Return what something does a second, at its fastest of some repeats; the first run, which also prepares, is none.

    As many repeats as fit in the time, at least two.
    """
    work()
    best, spent, runs = 0.0, 0.0, 0
    while spent < SECONDS or runs < 2:
        begun = time.perf_counter()
        done = work()
        seconds = time.perf_counter() - begun
        best, spent, runs = max(best, done / seconds), spent + seconds, runs + 1
    return best


def matrix_rate(backend: OrtBackend, side: int = SIDE) -> float:
    """Return multiply-accumulates a second of products of square matrices that stay on the device."""
    names = ["x", *(f"p{k}" for k in range(PRODUCTS))]
    products = "".join(f"{b} = MatMul({a}, w)\n" for a, b in itertools.pairwise(names))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 13]> rate (float[n,{side}] x, float[{side},{side}] w) => (float s) '
        f"{{ {products} s = ReduceMax<keepdims=0>({names[-1]}) }}"
    )
    resident, rng = backend.resident(model), np.random.default_rng(0)
    resident.keep({name: rng.normal(size=(side, side), scale=side**-0.5).astype(np.float32) for name in ("x", "w")})

    def work() -> int:
        resident.run({})
        return PRODUCTS * side**3

    return rate(work)


def suffix_macs(setting: Setting, group: Group) -> float:
    """Return the multiply-accumulates of what is run for every row of a group."""
    traced = setting.traced
    shaped = traced.shaped
    suffix = halve(traced, masked_model(traced, [group], setting.means), mask_name(group)).suffix
    made = set() if suffix is None else {o for node in suffix.graph.node for o in node.output}
    total = sum(
        math.prod(shaped.shapes[tensor][axis] for tensor, axis in axes)
        for number, axes in traced.labels.trace.macs
        if set(shaped.graph.nodes[number].output) & made
    )
    return total / shaped.batch


def rows_a_second(setting: Setting, group: Group, rows: int) -> float:
    """Return those of walks over all images, as many walks as make up the rows."""
    game, rng = GroupGame(setting, group), np.random.default_rng(0)
    n = len(group)
    walks = max(1, rows // max(1, n - 1))
    images = np.sort(np.arange(walks) % len(setting.data))
    orders = np.stack([rng.permutation(n)[: n - 1] for _ in range(walks)])
    if walks == 1:
        orders = orders[:, :rows]
    return rate(lambda: int(game.removals(images, orders).size))


def values_of(setting: Setting, group: Group) -> FloatArray:
    """Return the group's values by a pair of walks an image."""
    return Permutation()(GroupGame(setting, group), np.random.default_rng(0)).phi


def compare(
    here: Setting, there: Setting, groups: int | None, rows: int, slow: int, most: float
) -> Iterator[list[str]]:
    """Yield the rows of a net's table: evenly picked groups, or all."""
    found = [group for group in there.traced.groups if len(group) > 1]
    if groups is not None and groups < len(found):
        found = [found[k] for k in np.unique(np.linspace(0, len(found) - 1, groups).round().astype(int))]
    for group in found:
        ours, theirs = values_of(there, group), values_of(here, group)
        apart = float(np.abs(ours - theirs).max() / max(float(theirs.std()), 1e-30))
        slower, faster = rows_a_second(here, group, slow), rows_a_second(there, group, rows)
        macs = suffix_macs(there, group)
        cells = [
            group.name.split("/")[-1] or group.name, f"{len(group)}", f"{macs / 1e6:.2f}", f"{slower:.0f}",
            f"{faster:.0f}", f"{faster / slower:.1f}x", f"{faster * macs / 1e12:.2f}", f"{faster * macs / most:.2f}",
            f"{apart:.0e}",
        ]  # fmt: skip
        click.echo("  ".join(cells), err=True)
        yield cells


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="Another net than those of models/.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Its images.")
@click.option("--provider", default="cuda", show_default=True, help="What is compared with the processor.")
@click.option("--images", default=8, show_default=True, help="Of the values.")
@click.option("--groups", type=int, help="Evenly picked ones of every net.  [default: all]")
@click.option("--rows", default=8192, show_default=True, help="Of a measurement on the device, at least one walk.")
@click.option("--slow-rows", default=256, show_default=True, help="On the processor.")
@click.option("--side", default=SIDE, show_default=True, help="Of the matrices of the matrix rate.")
def main(
    model: Path | None, data: Path | None, provider: str, images: int, groups: int | None, rows: int, slow_rows: int,
    side: int,
) -> None:  # fmt: skip
    """Print the tables."""
    device, processor = OrtBackend(provider), OrtBackend("cpu")
    most = matrix_rate(device, side)
    click.echo("# The score stage on a device\n")
    click.echo(made_by(f"provider {provider}, and the processor with all threads"))
    click.echo(f"\nMatrix rate of the device: {most / 1e12:.2f} TMAC/s in float32.")
    nets = [(model, data)] if model and data else [
        (FOLDER / f"{name}.onnx", FOLDER / "fashion_calibration.npz") for name in NETS
    ]  # fmt: skip
    for file, inputs in nets:
        settings = [setting_of(file, inputs, images, backend) for backend in (processor, device)]
        cells = list(compare(settings[0], settings[1], groups, rows, slow_rows, most))
        click.echo(f"\n## {file.stem}\n\n{table(HEADER, cells)}")


if __name__ == "__main__":
    main()
