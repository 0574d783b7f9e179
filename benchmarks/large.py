"""How long would all groups of a large net take to score? Measured on some rows of every group of one image.

    python benchmarks/large.py MODEL.onnx --size 128 --images 128 --walks 2

Prints, a group: how its rows are played (running sums or masks), milliseconds a row and seconds an image, and for the
whole net processor seconds on one thread: every group's rows take as long as those that were played, opening a game and
an image's first row are counted as they are. With two idle cores and two workers it is half of that on the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np
from tables import made_by, table

from onnxshap import payoffs
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, run_all, site_means
from onnxshap.game import GroupGame, Setting
from onnxshap.opening import open_model


def seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds that something takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("model")
@click.option("--size", default=224, show_default=True, help="Pixels of the square input.")
@click.option("--channels", default=3, show_default=True, help="Of the input.")
@click.option("--images", default=128, show_default=True, help="To reckon for.")
@click.option("--walks", default=2, show_default=True, help="An image; 2 are one antithetic pair.")
@click.option("--rows", default=64, show_default=True, help="Of a walk that is played.")
@click.option("--played", default=8, show_default=True, help="Walks that are played, a group.")
def main(model: str, size: int, channels: int, images: int, walks: int, rows: int, played: int) -> None:
    """Print the table."""
    pixels = np.random.default_rng(0).normal(size=(2, channels, size, size)).astype(np.float32)
    traced, data = open_model(model, pixels, backend=OrtBackend("cpu", 1))
    free = free_batch(traced)
    reference = run_all(free, free.shaped.graph.model, data)
    names = [o.name for o in free.shaped.graph.model.graph.output]
    setting = Setting(free, data, payoffs.choose("kl", reference, None, names), reference, site_means(free, data))
    lines, total = [], 0.0
    for group in free.groups:
        game: list[GroupGame] = []
        opening = seconds(lambda g=group, into=game: into.append(GroupGame(setting, g)))
        shuffled = [np.random.default_rng(k).permutation(len(group)) for k in range(played)]
        orders = np.stack(shuffled)[:, : min(rows, len(group) - 1)]
        same = np.zeros(played, np.intp)
        first = seconds(lambda g=game, o=orders[:1], i=same[:1]: g[0].removals(i, o))
        seconds(lambda g=game, o=orders, i=same: g[0].removals(i, o))  # the rows of a run are found by trying
        row = seconds(lambda g=game, o=orders, i=same: g[0].removals(i, o)) / orders.size
        again = row * len(orders[0])
        image = max(0.0, first - again) + row * (2 + walks * (len(group) - 1))
        total += opening + image * images
        how = "running sums" if game[0]._walks is not None else "masks"
        lines.append([group.name, f"{len(group)}", how, f"{1e3 * row:.2f}", f"{image:.2f}"])
    click.echo(made_by("one thread, processor time"))
    click.echo(f"\n{traced.cost.macs() / 1e9:.2f} billion multiply-accumulates, {len(free.groups)} groups.\n")
    click.echo(table(["group", "units", "rows by", "ms a row", "s an image"], lines))
    click.echo(f"\nAll groups, {images} images, {walks} walk(s) each: {total:.0f} s on one thread.")


if __name__ == "__main__":
    main()
