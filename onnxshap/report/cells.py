"""The look of tables, and numbers for reading."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.cells import cell_len
from rich.console import Console, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

_LEAST = 5
"""Characters that are left of a column that is shortened, before names fold."""
_NO_LIMIT = 10**6


def empty_table(*columns: str) -> Table:
    """Return an empty table; a column whose name starts with > is aligned to the right, with ~ shortened to fit."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    for name in columns:
        cut = name.startswith("~")
        right = name.startswith(">")
        # rich takes from the columns that may wrap first; those cells do not wrap but end in an ellipsis
        overflow: OverflowMethod = "ellipsis" if cut else "fold"
        table.add_column(
            Text(name.lstrip(">~")), justify="right" if right else "left", no_wrap=not cut, overflow=overflow
        )
    return table


def add_row_of(table: Table, *cells: object) -> None:
    """Add a row of cells, those of columns that may be shortened on one line."""
    shortened = (column.overflow == "ellipsis" for column in table.columns)
    table.add_row(*(Text(str(cell), no_wrap=cut or None) for cell, cut in zip(cells, shortened, strict=True)))


def make_fit(table: Table, console: Console) -> None:
    """Let names and titles of a table fold where they leave no room for what stands beside them: no number is cut."""
    whole = console.measure(table, options=console.options.update(max_width=_NO_LIMIT)).maximum
    shrinking = [column for column in table.columns if not column.no_wrap]
    spare = sum(max(0, _widest((column.header, *column.cells)) - _LEAST) for column in shrinking)
    if whole - spare > console.width:
        for column in table.columns:
            column.no_wrap = False
            if column.justify == "right":
                column.min_width = _widest(column.cells)  # its title may fold
            elif column.overflow == "ellipsis":
                column.max_width = _LEAST


def _widest(cells: Iterable[RenderableType]) -> int:
    return max((cell_len(str(cell)) for cell in cells), default=0)


def plural(n: int, noun: str) -> str:
    """Return how many there are of a noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def count(value: int) -> str:
    """Return a number with a unit prefix.

    >>> count(812), count(35_196), count(5_089_856)
    ('812', '35.2 k', '5.09 M')
    >>> count(999_999)
    '1.00 M'
    """
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{digits(value / size)} {prefix}"
    return str(value)


def in_bytes(value: int) -> str:
    """Return a number of bytes with a unit prefix."""
    return f"{value} B" if value < 1000 else f"{count(value)}B"


def in_milliseconds(value: float) -> str:
    """Return milliseconds with three digits."""
    return f"{digits(value)} ms"


def digits(value: float) -> str:
    """Return a number with three digits.

    >>> digits(4.4), digits(182.3)
    ('4.40', '182')
    """
    return f"{value:#.3g}".rstrip(".")
