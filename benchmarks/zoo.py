"""Cuts half of every group of every model of a folder and checks the result: coverage and exactness.

    python benchmarks/zoo.py FOLDER_OF_ONNX_FILES [--share 0.5] [--seed 0]

For every file: whether the cut file runs with the right shapes; its largest difference from the masked model and from
the original with the removed slices zeroed, over the largest output (zeros left behind, random choice); MACs and
parameters kept; the share of the weight tensors (rank >= 2, read by Conv, ConvTranspose, Gemm or MatMul) that lost
slices; seconds for trace, plan, cut; and why axes stay. A line a model, a summary at the end.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import onnx
from numpy.typing import NDArray

import onnxshap
from onnxshap.calibrate import free_batch
from onnxshap.data import random_data
from onnxshap.masking import mask_name
from onnxshap.plan import Candidate
from onnxshap.shapes import input_specs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.zeroing import relative_error, run, zeroed

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def random_plan(traced: onnxshap.Traced, share: float, seed: int) -> Mapping[str, NDArray[np.bool_]]:
    """Return a plan that keeps a random share of every group."""
    rng = np.random.default_rng(seed)
    candidates = [Candidate(g.name, g.units, rng.random(len(g))) for g in traced.groups]
    return onnxshap.make_plan(candidates, onnxshap.Budget(units=share, multiple_of=1), lambda keep: {}, traced.covers)


def touched(traced: onnxshap.Traced, keep: Mapping[str, NDArray[np.bool_]]) -> tuple[int, int]:
    """Return how many weight tensors lose slices, of how many."""
    live, cut, total = traced.alive(keep), 0, 0
    for node in traced.shaped.graph.nodes:
        if node.op_type not in LINEAR:
            continue
        for name in node.input[:2]:
            shape = traced.shaped.shapes.get(name, ())
            if name in traced.shaped.constants and len(shape) >= 2:
                total += 1
                cut += any(live.cut(name, axis) for axis in range(len(shape)))
    return cut, total


def check(path: Path, share: float, seed: int) -> dict[str, object]:
    """Return one row of the table."""
    source = onnx.load(path)
    start = time.perf_counter()
    traced = onnxshap.trace(source)
    keep = random_plan(traced, share, seed)
    small = onnxshap.drop_units(traced, keep)
    seconds = time.perf_counter() - start
    specs = input_specs(traced.shaped.graph.model)
    feeds = {
        name: random_data({name: type(spec)(name, spec.dtype, traced.shaped.inputs[name])}, traced.batch, seed).inputs[
            name
        ]
        for name, spec in specs.items()
    }
    got, before = run(small, feeds), run(source, feeds)
    masks = {mask_name(g): keep[g.name][None].astype(np.float32) for g in traced.groups}
    masked = run(onnxshap.insert_masks(free_batch(traced)), {**feeds, **masks})
    redone = run(zeroed(source, onnxshap.removed_slices(traced, keep)), feeds)
    cut, total = touched(traced, keep)
    live, cost = traced.alive(keep), traced.cost
    return {
        "shapes": [a.shape for a in got] == [a.shape for a in before],
        "masked": relative_error(got, masked),
        "zeroed": relative_error(got, redone),
        "macs": cost.macs(live) / max(1, cost.macs()),
        "params": cost.params(live) / max(1, cost.params()),
        "touched": cut / max(1, total),
        "nodes": len(source.graph.node),
        "groups": len(traced.groups),
        "seconds": seconds,
        "frozen": Counter(f.reason for f in traced.frozen).most_common(2),
    }


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--share", default=0.5, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, share: float, seed: int) -> None:
    """Print the table."""
    rows: list[dict[str, object]] = []
    print("| model | nodes | groups | shapes | masked | zeroed | MACs | params | weights cut | s | what stays |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    files = sorted(folder.glob("*.onnx"))
    for path in files:
        try:
            row = check(path, share, seed)
        except Exception as error:  # noqa: BLE001 - a benchmark reports every failure and goes on
            print(f"| {path.stem} | failed: {type(error).__name__}: {str(error)[:200]} |", flush=True)
            continue
        rows.append(row)
        why = "; ".join(f"{count} x {reason}" for reason, count in row["frozen"])  # type: ignore[attr-defined]
        print(
            f"| {path.stem} | {row['nodes']} | {row['groups']} | {'ok' if row['shapes'] else 'WRONG'} "
            f"| {row['masked']:.1e} | {row['zeroed']:.1e} | {row['macs']:.3f} | {row['params']:.3f} "
            f"| {row['touched']:.2f} | {row['seconds']:.1f} | {why} |",
            flush=True,
        )
    exact = sum(bool(r["shapes"]) and r["masked"] < 1e-4 and r["zeroed"] < 1e-4 for r in rows)  # type: ignore[operator]
    kept = np.mean([float(r["params"]) for r in rows]) if rows else float("nan")  # type: ignore[arg-type]
    deep = sum(float(r["touched"]) >= 0.95 for r in rows)  # type: ignore[arg-type]
    print(f"\n{exact} of {len(files)} exact; mean params kept {kept:.3f}; {deep} cut >= 95 % of their weight tensors")


if __name__ == "__main__":
    main()
