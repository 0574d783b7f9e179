"""Constants of a graph that restate a width, and how they follow it when the width shrinks.

An initializer with a traced axis is simply compressed to its live positions. These are the other ones: a Reshape target
lists widths (`widths`), a Slice lists bounds on an axis (`positions`), a mean counts what it divides by (`statistics`),
and what is removed may leave something behind that still counts (`residues`).
A rule states which of them its op has; the rewrite applies those that touch a cut axis.
"""

from onnxshap.labels.fixups.edit import Edit, Fixup, give, name_axes, set_attribute, takes_all
from onnxshap.labels.fixups.positions import Bounds, Grid, PadCount, Selection, Table, grid, grid_of
from onnxshap.labels.fixups.residues import Chain, Residue, Step
from onnxshap.labels.fixups.statistics import Divisor, Extreme, Refilled, RootMeanSquare, Statistics
from onnxshap.labels.fixups.widths import (
    Declared,
    Default,
    GroupCount,
    HeadCount,
    Parts,
    Scaled,
    SingleAxes,
    Told,
    UnequalParts,
    Widths,
)

__all__ = [
    "Bounds",
    "Chain",
    "Declared",
    "Default",
    "Divisor",
    "Edit",
    "Extreme",
    "Fixup",
    "Grid",
    "GroupCount",
    "HeadCount",
    "PadCount",
    "Parts",
    "Refilled",
    "Residue",
    "RootMeanSquare",
    "Scaled",
    "Selection",
    "SingleAxes",
    "Statistics",
    "Step",
    "Table",
    "Told",
    "UnequalParts",
    "Widths",
    "give",
    "grid",
    "grid_of",
    "name_axes",
    "set_attribute",
    "takes_all",
]
