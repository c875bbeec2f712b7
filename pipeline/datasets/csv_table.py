"""Read CSV tables: lists of cases, meta.csv."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.errors import DatasetError
from pipeline.files.regular import read_regular

_MAX_BYTES = 64 * 2**20


class TableRow(NamedTuple):
    """A row of a table."""

    line: int
    """Its line in the file, from 1; the last one where a cell spans several."""
    cells: dict[str, str]
    """Its cells by the name of their column (lower case), without blanks around them."""


def read_csv(path: Path) -> list[TableRow]:
    """Return the rows of a table whose first row names the columns.

    As spreadsheets write them: separated by ",", ";" or tabs, in UTF-8, UTF-16 or Windows' cp1252, with blank lines and
    with separators at the end of lines. Columns without a name are passed over.

    Raises:
        DatasetError: a file that cannot be read, two columns of one name, or a row of another length.
    """
    lines = _lines(path)
    if not lines:
        return []
    columns = [cell.strip().lower() for cell in _without_end(lines[0][1])]
    twice = [name for name, count in Counter(columns).items() if count > 1 and name]
    if twice:
        raise DatasetError(
            "dataset", path, "columns of different names", f"{Counter(columns)[twice[0]]} columns {twice[0]!r}",
            "rename or remove all but one (several image channels go into one cell: ct.nii.gz|pet.nii.gz)",
        )  # fmt: skip
    rows = []
    for number, cells in lines[1:]:
        line = cells[: len(columns)] + _without_end(cells[len(columns) :])
        if len(line) != len(columns):
            raise DatasetError(
                "dataset", path, f"{len(columns)} columns in row {number}", str(len(line)), "correct that row"
            )
        rows.append(TableRow(number, {name: cell.strip() for name, cell in zip(columns, line, strict=True) if name}))
    return rows


def _without_end(cells: list[str]) -> list[str]:
    """The cells without the empty ones at the end."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of every line that holds any, with the line's number."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            found = f"{path.stat().st_size} bytes"
            raise DatasetError("dataset", path, "a table of cases", found, "name the list of cases itself")
        text = _decoded(read_regular(path, _MAX_BYTES))
        if "\0" in text:
            raise ValueError("it holds zero bytes")
        header = text.split("\n", 1)[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
        return [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except DatasetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            "dataset", path, "a CSV table", f"one that cannot be read as CSV ({error})", "repair the file"
        ) from error


def _decoded(content: bytes) -> str:
    """The text of a file in UTF-8, UTF-16 (which begins with a byte order mark) or cp1252."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")
