"""Write HTML in which names from foreign files are text and nothing else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pipeline.console.text import printable


def text(value: object) -> str:
    """A value as text of HTML, also inside a quoted attribute.

    >>> text('<b onclick="x">')
    '&lt;b onclick=&quot;x&quot;&gt;'
    """
    return html.escape(printable(str(value)), quote=True)


def data(name: str, document: Any) -> str:
    """A JSON document that the page's script reads; nothing in it can end its element."""
    written = json.dumps(document, ensure_ascii=True, allow_nan=False)
    return f'<script type="application/json" id="{name}">{written.replace("<", chr(92) + "u003c")}</script>'


class Cell(NamedTuple):
    """A cell of a table."""

    shown: str
    """HTML."""
    order: float | str
    """What the column is sorted by; NaN comes last."""


def words(value: object) -> Cell:
    """A cell of text."""
    return Cell(text(value), str(value).lower())


def number(value: float | None, digits: int = 3) -> Cell:
    """A cell with a number; a dash where there is none."""
    if value is None or math.isnan(value):
        return Cell("–", math.nan)
    return Cell(f"{value:.{digits}f}", value)


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table whose columns are sorted by a click on their heading."""
    head = "".join(f'<th><button type="button">{text(heading)}</button></th>' for heading in headings)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell.order, str):
        return f'<td data-order="{text(cell.order)}">{cell.shown}</td>'
    order = "" if math.isnan(cell.order) else repr(cell.order)
    return f'<td class="number" data-order="{order}">{cell.shown}</td>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and values, one a line; what is None or empty is left out."""
    lines = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs if value not in (None, "", [], {}))
    return f"<dl>{''.join(lines)}</dl>"


def section(title: str, *parts: str) -> str:
    """A section with its heading; "" where it has no content."""
    content = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""
