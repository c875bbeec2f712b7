"""Read CSV tables: lists of cases, meta.csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.errors import DatasetError

_MAX_BYTES = 64 * 2**20


class TableRow(NamedTuple):
    """A row of a table."""

    line: int
    """Its line in the file, from 1; the last one where a cell spans several."""
    cells: dict[str, str]
    """Its cells by the name of their column (lower case), without blanks around them."""


def read_csv(path: Path) -> list[TableRow]:
    """Return the rows of a table whose first row names the columns; "," and ";" both separate. Blank lines are skipped.

    Raises:
        DatasetError: a file that cannot be read, two columns of one name, or a row of another length.
    """
    lines = _lines(path)
    if not lines:
        return []
    columns = [cell.strip().lower() for cell in lines[0][1]]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DatasetError(
            "dataset", path, "columns of different names", f"{Counter(columns)[twice[0]]} columns {twice[0]!r}",
            "rename or remove all but one (several image channels go into one cell: ct.nii.gz|pet.nii.gz)",
        )  # fmt: skip
    rows = []
    for number, line in lines[1:]:
        if len(line) != len(columns):
            raise DatasetError(
                "dataset", path, f"{len(columns)} columns in row {number}", str(len(line)), "correct that row"
            )
        rows.append(TableRow(number, dict(zip(columns, (cell.strip() for cell in line), strict=True))))
    return rows


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of every line that holds any, with the line's number."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            found = f"{path.stat().st_size} bytes"
            raise DatasetError("dataset", path, "a table of cases", found, "name the list of cases itself")
        text = path.read_text(encoding="utf-8-sig")
        header = text.split("\n", 1)[0]
        reader = csv.reader(io.StringIO(text), delimiter=";" if header.count(";") > header.count(",") else ",")
        return [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except DatasetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            "dataset", path, "a CSV table", f"one that cannot be read as CSV ({error})", "repair the file"
        ) from error
