"""What the benchmarks' tables have in common: Markdown, spreads, and the line that says how to get them again."""

import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

LIBRARIES = ("onnxshap", "numpy", "scipy", "onnx")
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, first column left, the others right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Return the mean and the standard deviation of a figure over seeds."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def made_by(threads: str) -> str:
    """Return the paragraph that names the command, the libraries' versions and the threads."""
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    python = ".".join(map(str, sys.version_info[:3]))
    libraries = ", ".join(f"{name} {version(name)}" for name in (*LIBRARIES, _runtime()))
    return f"`{command}`: Python {python}, {libraries}; {threads}."


def _runtime() -> str:
    from importlib.metadata import PackageNotFoundError

    for name in RUNTIMES:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    raise PackageNotFoundError(RUNTIMES[0])
