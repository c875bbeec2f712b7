"""Follow a training in a CSV file of its run folder, a line an epoch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.trackers import CsvOptions
from pipeline.console.text import printable
from pipeline.files.atomic import make_folder, write_atomically
from pipeline.files.regular import read_regular
from pipeline.training.tracked_run import Ending, Remembered, TrackedRun, distinct


class CsvTracker:
    """csv/metrics.csv: one column for each number of an epoch, and its number as "epoch" and "step"."""

    run_id: str | None = None

    def __init__(self, options: CsvOptions, run: TrackedRun) -> None:
        self.place = str(run.folder.epoch_table)
        self.remedy = "free space or make its folder writable"
        self._file = run.folder.epoch_table
        self._names = distinct(run.metric_names, printable)
        self._columns: list[str] = []

    def open(self, run: TrackedRun, settings: Mapping[str, Any], before: Remembered | None, n_epochs: int) -> int:
        """Replace the file, at one stroke, by the header and its whole lines; settings stand in training_config.json.

        Raises FileError: the disk refuses; the old file is then untouched.
        """
        if not run.folder.path.is_dir():
            raise FileNotFoundError(f"{run.folder.path} is gone")
        lines = lines_of(self._file)[:n_epochs]
        self._columns = sorted({"epoch", "step", *self._names.values()}.union(*lines))
        header = dict(zip(self._columns, self._columns, strict=True))
        make_folder(self._file.parent)
        write_atomically(self._file, lambda stream: stream.write(self._written([header, *lines])))
        return len(lines)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the line of an epoch. Raises OSError: the file is gone, or the disk refuses."""
        line = {self._names[name]: value for name, value in numbers.items()}
        with self._file.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(self._written([line | {"epoch": epoch, "step": epoch}]))

    def _written(self, lines: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns).writerows(lines)
        return text.getvalue().encode()

    def close(self, ending: Ending) -> None:
        """Every line is written when its epoch ends."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of epochs 0, 1, 2, … in the file, as far as they are whole; none where there is no such file."""
    try:
        text = read_regular(path).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]  # what follows was cut by a kill or a full disk
    lines: list[dict[str, Any]] = []
    for line in csv.DictReader(io.StringIO(whole, newline="")):
        if line.get("step") != str(len(lines)) or None in line or None in line.values():
            break
        lines.append(line)
    return lines
