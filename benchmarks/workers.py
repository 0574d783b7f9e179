"""How much faster are two local workers than one, and do they find the same?

    python benchmarks/workers.py [--model FILE] [--images 384] [--repeats 2]

The whole of `onnxshap.score`, workers' start included, one onnxruntime thread each; seconds on the clock, so the
machine should have nothing else to do and two cores.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

import onnxshap

FOLDER = Path(__file__).parent.parent / "models"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--model", default="fashion_resnet20.onnx", show_default=True, help="A file of models/.")
@click.option("--images", default=384, show_default=True, help="To score on.")
@click.option("--repeats", default=2, show_default=True, help="Pairs of runs.")
def main(model: str, images: int, repeats: int) -> None:
    """Print a line a pair of runs."""

    def run(workers: int) -> tuple[float, list[bytes]]:
        start = time.perf_counter()
        found = onnxshap.score(
            FOLDER / model, FOLDER / "fashion_calibration.npz", samples=images, decided=0, workers=workers,
            backend=onnxshap.OrtBackend("cpu", 1),
        )  # fmt: skip
        return time.perf_counter() - start, [v.phi.tobytes() for v in found.values.values()]

    for _ in range(repeats):
        (one, values), (two, others) = run(1), run(2)
        same = "the same values" if values == others else "OTHER VALUES"
        click.echo(f"1 worker {one:.1f} s, 2 workers {two:.1f} s: {one / two:.2f}x, {same}")


if __name__ == "__main__":
    main()
