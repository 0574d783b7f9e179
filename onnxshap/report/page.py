"""The report of a cut as one self-contained HTML page."""

from __future__ import annotations

import html
import io
from pathlib import Path

from rich.console import Console
from rich.text import Text

from onnxshap.report.inspections import Report
from onnxshap.report.tables import frozen_lines, prune_tables, show

_PAGE_WIDTH = 132


def page(report: Report) -> str:
    """Return one self-contained HTML page with the tables of a cut."""
    console = Console(record=True, file=io.StringIO(), width=_PAGE_WIDTH, color_system="truecolor", force_terminal=True)
    shown = prune_tables(report)
    if report["frozen"]:
        shown.append(Text("\nAxes that stay:\n" + "\n".join(frozen_lines(report))))
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    shown.append(Text(f"\nSeed: {report['seed']}. Time: {seconds}."))
    show(shown, console)
    body = console.export_html(inline_styles=True, code_format="{code}")
    name = html.escape(Path(report["model"]).name)
    written = html.escape(report["output"] or "not written")
    return _PAGE.replace("@NAME@", name).replace("@OUTPUT@", written).replace("@BODY@", body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>onnxshap: @NAME@</title>
<style>
  :root { color-scheme: light dark; }
  body { font-family: system-ui, sans-serif; line-height: 1.5; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; margin-bottom: 0; }
  pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.85rem;
        line-height: 1.35; overflow-x: auto; padding: 1rem; border: 1px solid #8884; border-radius: 0.5rem; }
</style>
</head>
<body>
<h1>@NAME@</h1>
<p>Cut by onnxshap; output: @OUTPUT@</p>
<pre>@BODY@</pre>
</body>
</html>
"""
