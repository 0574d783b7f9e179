"""The plot of a sweep, as SVG, PNG or one HTML page; the only owner of matplotlib."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxshap.errors import OnnxshapError
from onnxshap.graph import whole_file
from onnxshap.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".html")
"""The kinds of plots."""
_AXES = (("macs", "MACs kept"), ("params", "parameters kept"), ("latency", "latency, share of the original's"))


def require() -> None:
    """Refuse to go on where there is no matplotlib.

    Raises:
        OnnxshapError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OnnxshapError("a plot needs matplotlib; pip install 'onnxshap[plot]', or leave out --plot") from error


def write_plot(report: Report, path: str | Path) -> None:
    """Draw the report of a sweep: the score against MACs, parameters and latency; whole or not at all.

    The same report gives the same bytes.

    Raises:
        OnnxshapError: there is no matplotlib, or the path's suffix is none of `SUFFIXES`.
        ModelError: the path cannot be written.
    """
    require()
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise OnnxshapError(f"{path}: a plot ends in {', '.join(SUFFIXES)}")
    drawn = _drawn(report, "png" if suffix == ".png" else "svg")
    if suffix == ".html":
        name = html.escape(Path(report["model"]).name)
        svg = drawn.decode()
        drawn = _PAGE.format(name=name, svg=svg[svg.index("<svg") :]).encode()
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(drawn)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>onnxshap sweep: {name}</title></head>
<body>
{svg}
</body>
</html>
"""


def _drawn(report: Report, kind: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "onnxshap", "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        panels = figure.subplots(1, len(_AXES), sharey=True)
        for axes, (key, label) in zip(panels, _AXES, strict=True):
            _panel(axes, report, key)
            axes.set_xlabel(label)
        panels[0].set_ylabel(report["score"])
        panels[0].legend()
        figure.suptitle(Path(report["model"]).name)
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _panel(axes: Axes, report: Report, key: str) -> None:
    """Draw the scores with the standard errors of the losses, the knee as a star, the last point within as a ring."""
    name = report["score"]
    whole = report["before"]["score"][name]
    unnamed = {"knee", "within"}
    for number, curve in enumerate(report["methods"]):
        points: list[dict[str, Any]] = curve["points"]
        x, y = [p["shares"][key] for p in points], [p["score"][name] for p in points]
        spread = [p["drop"]["stderr"] or 0.0 for p in points]
        colour = f"C{number % 10}"
        axes.errorbar([1, *x], [whole, *y], [0, *spread], color=colour, marker=".", capsize=2, label=curve["method"])
        for mark, symbol, fill, size in (("knee", "*", "full", 14), ("within", "o", "none", 11)):
            at = [(p["shares"][key], p["score"][name]) for p in points if p["keep_macs"] == curve[mark]]
            if at:
                label = mark if mark in unnamed else None
                unnamed.discard(mark)
                axes.plot(*at[0], symbol, markersize=size, color=colour, fillstyle=fill, label=label, linestyle="")
    if report["max_drop"] is not None:
        axes.axhline(whole - report["max_drop"], linestyle="--", linewidth=1, color="0.5")
    axes.grid(alpha=0.3)
