"""How much of the saved multiply-accumulates is seen as saved time in ONNX Runtime, by the step of the widths.

    python benchmarks/latency.py [--imagenet DIR] [--keep 0.5] [--model NAME] [--step 8]

Every net is cut to a share of its multiply-accumulates at uniform widths and at those the curves choose, in
multiples of each step (`auto`: what `prune` does without --multiple-of). Files are run in turn with the original,
one thread, batch 1 and 16; the least time of all turns counts, which is what a busy machine disturbs least. seen: time
saved over multiply-accumulates saved. filled: multiply-accumulates of all Convs over the original's with their channels
filled up to multiples of 16, as a processor with AVX-512 runs them (onnxruntime's blocks of channels). The second table
holds `--target-latency` to what the file then takes, over the original, measured the same way. Nets with real weights
need --imagenet (`imagenet.py`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

import click
import imagenet
import numpy as np
from onnx import ModelProto, shape_inference
from tables import made_by, table

from onnxshap.api import prune, score
from onnxshap.backend import OrtBackend
from onnxshap.calibrate import free_batch, usual_batch
from onnxshap.core import Dataset
from onnxshap.measure import latencies
from onnxshap.opening import open_model
from onnxshap.plan import Budget
from onnxshap.plan.cutter import Cutter
from onnxshap.tracing import Traced

FOLDER = Path(__file__).parent.parent / "models"
MODELS = ("fashion_vgg", "fashion_resdw", "fashion_resnet20", "fashion_vit")
STEPS = (None, 1, 4, 8, 16)
IMAGES = 100
BATCHES = (1, 16)
TARGETS = (0.8, 0.6)
TURNS = 15
BLOCK = 16
"""Channels that onnxruntime runs together with AVX-512."""
SECONDS = 0.02
"""A turn of one file takes at least this long: small nets run many times."""


def least_times(traced: Traced, models: Sequence[ModelProto], data: Dataset, batch: int) -> list[float]:
    """Return the least seconds of a run of each model over `TURNS` turns; the order of the files turns with them."""
    feeds = dict(data.take(np.resize(np.arange(len(data)), batch)).inputs)
    sessions = [traced.backend.session(model) for model in models]
    started = time.perf_counter()
    for session in sessions:
        session.run(feeds)
    runs = max(1, round(SECONDS / ((time.perf_counter() - started) / len(sessions))))
    best = np.full(len(sessions), np.inf)
    for turn in range(TURNS):
        for k in np.roll(np.arange(len(sessions)), turn):
            for _ in range(runs):
                started = time.perf_counter()
                sessions[k].run(feeds)
                best[k] = min(best[k], time.perf_counter() - started)
    return [float(seconds) for seconds in best]


def filled(model: ModelProto) -> float:
    """Return the multiply-accumulates of an image's Convs with channels filled up to blocks; fewer than one stay."""
    inferred = shape_inference.infer_shapes(model).graph
    weights = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *inferred.output)}
    found = 0
    for node in inferred.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            out, inside, *kernel = weights[node.input[1]]
            read = inside if inside < BLOCK else -(-inside // BLOCK) * BLOCK
            positions = [dim.dim_value for dim in shapes[node.output[0]]][2:]
            found += -(-out // BLOCK) * BLOCK * read * math.prod((*kernel, *positions))
    return float(found)


def opened(name: str, images: Path | None) -> tuple[Traced, Dataset]:
    """Return a net and its images."""
    backend = OrtBackend("cpu", 1)
    if name in imagenet.NETS:
        assert images is not None
        return open_model(imagenet.exported(name), None, backend=backend)[0], imagenet.images(images)
    return open_model(FOLDER / f"{name}.onnx", FOLDER / "fashion_calibration.npz", backend=backend)


def rows_of(name: str, images: Path | None, keep: float, steps: Sequence[int | None]) -> list[list[str]]:
    """Return the table's rows of one net."""
    traced, data = opened(name, images)
    data = data.take(np.random.default_rng(0).permutation(len(data))[:IMAGES])
    phi = {n: v.phi for n, v in score(traced, data, method="l2").values.items()}
    shares: list[tuple[str, str, float]] = []
    models, held = [traced.source], [traced]  # what a model names is held while it is timed
    for allocation in ("uniform", "curves"):
        cutter = Cutter(traced, free_batch(traced), traced.groups, phi, data, "none", allocation)
        for step in steps:
            plan = cutter.plan(Budget(macs=keep, multiple_of=step))
            kept = traced.cost.macs(traced.alive(plan)) / traced.cost.macs()
            shares.append((allocation, "auto" if step is None else str(step), kept))
            model, weights = cutter.rough(plan)
            models.append(model)
            held.append(weights)
            click.echo(f"{name}: {shares[-1]}", err=True)
    times = [least_times(traced, models, data, batch) for batch in BATCHES]
    blocks = [filled(model) for model in models]
    found = []
    for k, (allocation, named, kept) in enumerate(shares, 1):
        cells = []
        for of_batch in times:
            ratio = of_batch[k] / of_batch[0]
            cells += [f"{ratio:.2f}", f"{(1 - ratio) / (1 - kept):.2f}"]
        inside = f"{blocks[k] / blocks[0]:.3f}" if blocks[0] else "-"
        found.append([name, allocation, named, f"{kept:.3f}", inside, *cells])
    return found


def targets_of(name: str, images: Path | None) -> list[list[str]]:
    """Return what `--target-latency` gives, asked for some shares of the original's time: one row a net."""
    traced, data = opened(name, images)
    data = data.take(slice(0, IMAGES))
    backend = OrtBackend("cpu", 1)
    (whole,) = latencies(backend, [traced.source], usual_batch(traced, data))
    cells = []
    for share in TARGETS:
        found = prune(
            traced, data, target_latency=share * whole, method="l2", allocation="uniform", repair="none",
            backend=backend,
        )  # fmt: skip
        times = least_times(traced, [traced.source, found.model], data, 1)
        cells.append(f"{times[1] / times[0]:.3f}")
        click.echo(f"{name}: asked for {share:g}, got {cells[-1]}", err=True)
    return [[name, *cells]]


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", "models", multiple=True, help="One of the nets; again for more.  [default: all]")
@click.option("--step", "steps", multiple=True, type=int, help="Step of the widths; again for more.")
@click.option("--keep", default=0.5, show_default=True, help="Share of the multiply-accumulates.")
@click.option("--imagenet", "images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Its folder.")
def main(models: Sequence[str], steps: Sequence[int], keep: float, images: Path | None) -> None:
    """Print the table."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    models = models or (*MODELS, *(imagenet.NETS if images is not None else ()))
    rows = [row for name in models for row in rows_of(name, images, keep, steps or STEPS)]
    click.echo("# Time saved, by the step of the widths\n")
    click.echo(made_by("one thread"))
    click.echo(f"\nTimes over the original's at {keep:g} of its multiply-accumulates, least of {TURNS} turns.\n")
    header = ["net", "widths", "step", "MACs", "filled", *(h for b in BATCHES for h in (f"time, batch {b}", "seen"))]
    click.echo(table(header, rows))
    click.echo("\nTime over the original's, of the file that `--target-latency` gives (uniform widths, batch 1):\n")
    click.echo(
        table(["net", *(f"asked for {t:g}" for t in TARGETS)], [r for n in models for r in targets_of(n, images)])
    )


if __name__ == "__main__":
    main()
