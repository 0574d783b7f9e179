"""What was done, for programs and for people: JSON objects (`reports`), files, terminal tables, a page, a plot."""

from onnxshap.report.files import as_json, json_file, prune_report_file, read_values, write_json, write_prune_report
from onnxshap.report.reports import (
    SCHEMA_VERSION,
    SUFFIXES,
    Report,
    comparison,
    inspection,
    pivot_report,
    prune_report,
    sweep_report,
    unify_report,
    values_report,
)
from onnxshap.report.tables import (
    figures_table,
    frozen_lines,
    inspection_tables,
    pivot_tables,
    prune_tables,
    show,
    sweep_tables,
    unify_tables,
    values_table,
)

__all__ = [
    "SCHEMA_VERSION",
    "SUFFIXES",
    "Report",
    "as_json",
    "comparison",
    "figures_table",
    "frozen_lines",
    "inspection",
    "inspection_tables",
    "json_file",
    "pivot_report",
    "pivot_tables",
    "prune_report",
    "prune_report_file",
    "prune_tables",
    "read_values",
    "show",
    "sweep_report",
    "sweep_tables",
    "unify_report",
    "unify_tables",
    "values_report",
    "values_table",
    "write_json",
    "write_prune_report",
]
