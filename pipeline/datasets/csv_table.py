"""Read CSV tables: lists of cases, meta.csv."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.errors import DatasetError
from pipeline.files.foreign_text import decoded
from pipeline.files.regular import read_regular

_MAX_BYTES = 64 * 2**20
_SEPARATORS = ",;\t|"


class TableRow(NamedTuple):
    """A row of a table."""

    line: int
    """Its line in the file, from 1; the last one where a cell spans several."""
    cells: dict[str, str]
    """Its cells by the name of their column (lower case), without blanks around them."""


def read_csv(path: Path) -> list[TableRow]:
    """Return the rows of a table whose first row names the columns.

    As spreadsheets write them: separated by ",", ";", tabs or "|", in UTF-8, UTF-16 or Windows' cp1252, with blank
    lines, with separators at the end of lines, and with Excel's "sep=;" or lines of "#" in front. Columns without a
    name are passed over.

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
        text = decoded(read_regular(path, _MAX_BYTES))
        if "\0" in text:
            raise ValueError("it holds zero bytes")
        in_front = re.match(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n?|\n))*", text)
        header = text[in_front.end() if in_front else 0 :].split("\n", 1)[0].split("\r", 1)[0]
        stated = re.fullmatch(rf"sep=([{_SEPARATORS}])", header.strip(), re.IGNORECASE)
        separator = stated[1] if stated else max(_SEPARATORS, key=header.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
        lines = list(itertools.dropwhile(lambda line: line[1][0].lstrip().startswith("#"), lines))
        return lines[1:] if stated else lines
    except DatasetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            "dataset", path, "a CSV table", f"one that cannot be read as CSV ({error})", "repair the file"
        ) from error
