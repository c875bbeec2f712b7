"""Tables on a screen whose cells go on in the next line where they are too wide."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pipeline.console.text import printable

PAGE_WIDTH = 100
"""Columns of a table of sentences where the output is no terminal."""


def screen_width() -> int | None:
    """Columns of the terminal; None where the output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def empty_table() -> Table:
    """A table with a line under its headings and no frame; give its columns `overflow="fold"` to lose no text."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def wrapped(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Write a table of texts that is at most `width` columns wide.

    >>> print(wrapped(["setting", "because"], [["lr", "for short schedules"]], 24))
    setting  because
    ────────────────────────
    lr       for short
             schedules
    """
    table = empty_table()
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return rendered(table, width)


def natural_width(table: Table) -> int:
    """Columns that a table takes where no cell goes on in the next line."""
    console = _console(None)
    return Measurement.get(console, console.options, table).maximum


def rendered(table: Table, width: int | None) -> str:
    """Write a table without colours, at most `width` columns wide; None: as wide as it takes."""
    console = _console(width)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # the StringIO given below
    return "\n".join(line.rstrip() for line in lines)


def _console(width: int | None) -> Console:
    return Console(
        file=io.StringIO(), width=width or 10_000, color_system=None, force_terminal=False, legacy_windows=False
    )
