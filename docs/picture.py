"""Draws docs/prune.svg, the README's picture: what `onnxshap prune` prints for the example net, before and after.

python docs/picture.py
"""

from __future__ import annotations

import io
import os
from pathlib import Path

from rich.console import Console
from rich.text import Text

import onnxshap
from onnxshap import report

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (
    "onnxshap prune fashion_vgg.onnx --data fashion_calibration.npz --eval-data fashion_test.npz --keep-macs 0.5 "
    "--threads 1"
)


def main() -> None:
    """Prune the example net and record the tables."""
    os.chdir(ROOT / "models")  # the picture names files as the command does
    result = onnxshap.prune(
        "fashion_vgg.onnx", "fashion_calibration.npz", eval_data="fashion_test.npz", keep_macs=0.5,
        backend=onnxshap.OrtBackend("cpu", 1),
    )  # fmt: skip
    console = Console(record=True, width=116, file=io.StringIO())
    console.print(Text(f"$ {COMMAND}\n", style="bold"))
    found = report.prune_report(result, model="fashion_vgg.onnx", output="fashion_vgg.pruned.onnx", seed=0)
    for table in report.prune_tables(found):
        console.print(table)
    (ROOT / "docs" / "prune.svg").write_text(console.export_svg(title="onnxshap", unique_id="onnxshap"))


if __name__ == "__main__":
    main()
