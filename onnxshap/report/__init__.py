"""What was done, for programs and for people: JSON objects (`reports`), files, terminal tables, a page, a plot."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxshap.report.files import as_json, json_file, prune_report_file, read_values, write_json, write_prune_report
    from onnxshap.report.inspections import SCHEMA_VERSION, Report, inspection
    from onnxshap.report.reports import (
        SUFFIXES,
        comparison,
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

if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        """Import what reports are of on first use: a look at a model needs none of it."""
        if name in __all__:
            import importlib

            for home in ("inspections", "tables", "files", "reports"):
                module = importlib.import_module(f"onnxshap.report.{home}")
                if hasattr(module, name):
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
