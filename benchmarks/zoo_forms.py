"""Cuts the zoo's models in the forms that onnxruntime's tools write them in: optimised, fused, halved, quantised.

    python benchmarks/zoo_export.py FOLDER                      # writes the models
    python benchmarks/zoo_forms.py FOLDER [--each 2] [--seed 0] [--match 'hf.*'] [--rows FILE.jsonl]

Every file is written in some of the forms, in turn, and then checked as `zoo.py` does. `extended` is what onnxruntime
saves of a session, `fused` what its optimizer for transformers writes, `half` its conversion to float16 with floats
in and out; `qdq`, `qoperator` and `dynamic` are what its quantisation writes, with 7-bit weights, a scale a channel.

The table has a line for each form: how many could be written and loaded, how many of these are exact (within 1e-4 of
the largest output; halves 2e-2, codes 5e-2, run without onnxruntime's optimizations, which change what some of these
compute), and the parameters kept on average, beside those of the same files as they were exported. Then the files that
are not exact, and those that keep a tenth more.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from tables import table
from zoo import check, random_plan

import onnxshap
from onnxshap.shapes import input_specs, noise

HALF, CODES, EXACT = 2e-2, 5e-2, 1e-4
DEEPER = 0.1
"""More of the parameters kept than in the exported form that is told."""


def extended(source: Path, target: Path) -> None:
    """Save what onnxruntime runs, but for layouts of one processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def fused(source: Path, target: Path) -> None:
    """Fuse attention, norms and activations as the optimizer for transformers does."""
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), model_type="bert", opt_level=0, use_gpu=False).save_model_to_file(str(target))


def half(source: Path, target: Path) -> None:
    """Convert weights and activations to float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def dynamic(source: Path, target: Path) -> None:
    """Quantise weights, and activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True)


def quantised(layout: str) -> Callable[[Path, Path], None]:
    """Return what quantises weights and activations in one of two layouts, its ranges those of one random input."""

    def write(source: Path, target: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        traced = onnxshap.trace(source)
        specs = input_specs(traced.shaped.graph.model)
        feeds = {n: noise(n, s.dtype, traced.shaped.inputs[n], 3) for n, s in specs.items()}

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left: Iterator[Mapping[str, NDArray[Any]]] = iter([feeds])

            def get_next(self) -> Mapping[str, NDArray[Any]] | None:
                return next(self.left, None)

        quantize_static(
            source, target, Reader(), quant_format=QuantFormat[layout], per_channel=True, reduce_range=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip

    return write


FORMS: Mapping[str, tuple[Callable[[Path, Path], None], float]] = {
    "extended": (extended, EXACT),
    "fused": (fused, EXACT),
    "half": (half, HALF),
    "qdq": (quantised("QDQ"), CODES),
    "qoperator": (quantised("QOperator"), CODES),
    "dynamic": (dynamic, CODES),
}


def measure(path: Path, form: str, seed: int) -> dict[str, Any]:
    """Return what a file in a form is like after a cut, and what the exported one keeps."""
    write, tolerance = FORMS[form]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            write(path, target)
            ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - what these tools cannot write is not ours
            return {"unwritten": f"{type(error).__name__}: {str(error)[:200]}"}
        try:
            row = check(target, 0.5, seed, tolerance, optimise=tolerance < CODES)
        except Exception as error:  # noqa: BLE001 - a benchmark reports every failure and goes on
            return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    traced = onnxshap.trace(path)
    live = traced.alive(random_plan(traced, 0.5, seed) if traced.groups else {})
    exported = traced.cost.params(live) / max(1, traced.cost.params())
    worst = max(row["masked"], row["zeroed"], *([row["rows"]] if row["rows"] is not None else []))
    return {"exact": bool(row["shapes"] and worst <= tolerance), "worst": worst, "params": row["params"],
            "exported": exported, "stays": row["stays"]}  # fmt: skip


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--each", default=1, show_default=True, help="Forms of every file.")
@click.option("--seed", default=0, show_default=True)
@click.option("--match", default="*", show_default=True, help="Names of files, without .onnx.")
@click.option("--rows", "store", type=click.Path(dir_okay=False, path_type=Path), help="Keeps rows between runs.")
def main(folder: Path, each: int, seed: int, match: str, store: Path | None) -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(4)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if store is not None and store.exists():
        rows = {(row.pop("name"), row.pop("form")): row for row in map(json.loads, store.read_text().splitlines())}
    names = list(FORMS)
    wanted = [
        (path, names[(number + k) % len(names)])
        for number, path in enumerate(sorted(folder.glob(f"{match}.onnx")))
        for k in range(each)
    ]
    for path, form in wanted:
        if (path.stem, form) not in rows:
            rows[path.stem, form] = row = measure(path, form, seed)
            if store is not None:
                with store.open("a") as file:
                    file.write(json.dumps({"name": path.stem, "form": form, **row}, default=float) + "\n")
    chosen = {(path.stem, form): rows[path.stem, form] for path, form in wanted}
    lines = []
    for form in names:
        some = [row for (_, own), row in chosen.items() if own == form]
        done = [row for row in some if "exact" in row]
        means = [f"{np.mean([row[key] for row in done]):.3f}" if done else "-" for key in ("params", "exported")]
        written = sum("unwritten" not in row for row in some)
        worst = f"{max(row['worst'] for row in done):.0e}" if done else "-"
        lines.append([form, str(len(some)), str(written), str(sum(row["exact"] for row in done)), worst, *means])
    print(table(["form", "files", "written", "exact", "worst", "params", "as exported"], lines))
    for (name, form), row in chosen.items():
        if "failed" in row or not row.get("exact", True):
            print(f"\n{name}, {form}: {row.get('failed') or row['worst']}", end="")
        elif "exact" in row and row["params"] > row["exported"] + DEEPER:
            print(
                f"\n{name}, {form}: keeps {row['params']:.2f}, exported {row['exported']:.2f}; {row['stays'][:1]}",
                end="",
            )
    print()


if __name__ == "__main__":
    main()
