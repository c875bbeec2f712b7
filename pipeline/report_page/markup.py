"""Write HTML in which names from foreign files are text and nothing else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from pipeline.console.text import printable

_MOST_COLUMNS = 6
"""Of facts of runs beside each other: as many as a page of paper holds."""


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


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], meanings: Mapping[str, str] | None = None) -> str:
    """A table whose columns are sorted by a click on their heading.

    Args:
        headings: of the columns.
        rows: a cell a column.
        meanings: what a heading means, shown where the mouse rests on it.
    """
    written = [list(row) for row in rows]
    heads = []
    for column, heading in enumerate(headings):
        is_number = any(not isinstance(row[column].order, str) for row in written)
        meaning = (meanings or {}).get(heading)
        kind = ' class="number"' if is_number else ""
        title = f' title="{text(meaning)}"' if meaning else ""
        heads.append(f'<th scope="col"{kind}><button type="button"{title}>{text(heading)}</button></th>')
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in written)
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table class="sortable">{head}<tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell.order, str):
        return f'<td data-order="{text(cell.order)}">{cell.shown}</td>'
    order = "" if math.isnan(cell.order) else repr(cell.order)
    return f'<td class="number" data-order="{order}">{cell.shown}</td>'


def plain(value: object) -> str:
    """A value of a JSON document in words.

    >>> plain(True), plain([40, 32.0]), plain({"torch": "2.13", "threads": 2})
    ('yes', '40, 32', 'torch: 2.13, threads: 2')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(one)}" for key, one in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


Facts = Iterable[tuple[str, object]]
"""Names and values; what is None or empty is left out."""


def facts(pairs: Facts) -> str:
    """Names and values, one a line."""
    lines = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in _there(pairs).items())
    return f"<dl>{''.join(lines)}</dl>"


def _there(pairs: Facts) -> dict[str, str]:
    return {name: plain(value) for name, value in pairs if value not in (None, "", [], {})}


def side_by_side(columns: Mapping[str, Facts]) -> str:
    """Facts of several runs in a table, those in which all agree once; of one run as `facts` shows them.

    Args:
        columns: by name of the run; of very many, the runs are lines.
    """
    found = {name: _there(pairs) for name, pairs in columns.items()}
    if len(found) == 1:
        ((name, one),) = found.items()
        return f"<h3>{text(name)}</h3>{facts(one.items())}"
    rows = {key: [one.get(key, "–") for one in found.values()] for key in dict.fromkeys(chain(*found.values()))}
    if len(found) > _MOST_COLUMNS:
        shared = {key: values[0] for key, values in rows.items() if len(set(values)) == 1}
        others = [key for key in rows if key not in shared]
        lines = ([words(name), *(words(one.get(key, "–")) for key in others)] for name, one in found.items())
        return facts(shared.items()) + (table(["run", *others], lines) if others else "")
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in ("", *found))
    body = "".join(f'<tr><th scope="row">{text(key)}</th>{_cells(values)}</tr>' for key, values in rows.items())
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table class="facts">{head}<tbody>{body}</tbody></table></div>'


def _cells(values: Sequence[str]) -> str:
    if len(set(values)) == 1:
        return f'<td colspan="{len(values)}">{text(values[0])}</td>'
    return "".join(f"<td>{text(value)}</td>" for value in values)


def legend(colours: Iterable[tuple[str, str]]) -> str:
    """Pairs of name and colour, in lines that break between them."""
    swatch = '<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><rect width="12" height="12" fill="{}"/></svg>'
    keys = (f"<li>{swatch.format(text(colour))}{text(name)}</li>" for name, colour in colours)
    return f'<ul class="legend">{"".join(keys)}</ul>'


def listing(lines: Iterable[str]) -> str:
    """Lines of HTML, one below the other."""
    return f'<ul class="notes">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def folded(summary: str, content: str) -> str:
    """HTML that a click on a line of text opens; on paper it is open."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def section(title: str, *parts: str) -> str:
    """A section with its heading; "" where it has no content."""
    content = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""
