"""Tables on a screen of any width: too wide ones in parts, or with cells that go on in the next line."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pipeline.console.text import printable, shortened_apart

PAGE_WIDTH = 100
"""Columns of a table of sentences where the output is no terminal."""


def wrapped(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, left: Collection[int] | None = None
) -> str:
    """Write a table of texts that is at most `width` columns wide.

    left: columns that are aligned on the left; None: all.

    >>> print(wrapped(["setting", "because"], [["lr", "for short schedules"]], 24))
    setting  because
    ────────────────────────
    lr       for short
             schedules
    """
    every = range(len(headings))
    rows = [[printable(cell) for cell in row] for row in rows]
    return _rendered(_columns(headings, rows, every, every if left is None else left), width)


def in_parts(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, left: Collection[int] = (0,)
) -> str:
    """Write a table whose rows have a line each, in parts one below the other where the screen is too narrow for it.

    Args:
        headings: of the columns; a line break in one is one on the screen.
        rows: texts; a column without any is left out.
        width: columns of the screen; None: as many as it takes.
        left: columns that are aligned on the left. Each part begins with the first column, whose names are cut in their
            middle where they are too long.

    >>> print(in_parts(["structure", "Dice", "IoU"], [["liver", "0.9000", "0.8182"]], 18))
    structure    Dice
    ──────────────────
    liver      0.9000
    <BLANKLINE>
    structure     IoU
    ──────────────────
    liver      0.8182
    """
    shown = [c for c in range(1, len(headings)) if any(row[c] for row in rows)]
    rows = [[printable(cell) for cell in row] for row in rows]
    if width is not None and shown:
        others = max(_cell_width(headings[c], [row[c] for row in rows]) for c in shown)
        names = shortened_apart([row[0] for row in rows], max(8, width - others - 4))
        rows = [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
    parts: list[list[int]] = [[]]
    for c in shown:
        if width is not None and parts[-1] and _width(_columns(headings, rows, [0, *parts[-1], c], left)) > width:
            parts.append([])
        parts[-1].append(c)
    return "\n\n".join(_rendered(_columns(headings, rows, [0, *part], left), width) for part in parts)


def _columns(
    headings: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], left: Collection[int]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # a line under the headings, no frame
    for c in columns:
        table.add_column(Text(headings[c]), justify="left" if c in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[c]) for c in columns))
    return table


def _cell_width(heading: str, cells: Sequence[str]) -> int:
    return max(map(len, [*heading.split("\n"), *cells]))


def _width(table: Table) -> int:
    """Columns that a table takes where no cell goes on in the next line."""
    console = _console(None)
    return Measurement.get(console, console.options, table).maximum


def _rendered(table: Table, width: int | None) -> str:
    """Write a table without colours, at most `width` columns wide; None: as wide as it takes."""
    console = _console(width)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # the StringIO given below
    return "\n".join(line.rstrip() for line in lines)


def _console(width: int | None) -> Console:
    return Console(
        file=io.StringIO(),
        width=width or 10_000,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,  # in a notebook, too, the text is returned and not displayed
        legacy_windows=False,
    )
