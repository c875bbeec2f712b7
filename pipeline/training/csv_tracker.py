"""Follow a training in a CSV file of its run folder, a line an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger

from pipeline.config.trackers import CsvOptions
from pipeline.console.text import printable
from pipeline.files.regular import read_regular
from pipeline.training.tracked_run import Ending, Remembered, TrackedRun, distinct


class CsvTracker:
    """csv/metrics.csv, written by Lightning's CSVLogger.

    That one writes over a file that it finds, so the lines that a resumed training has written before are read first
    and written again.
    """

    run_id: str | None = None

    def __init__(self, options: CsvOptions, run: TrackedRun) -> None:
        self.place = str(run.folder.epoch_table)
        self.remedy = "free space or make its folder writable"
        self._file = run.folder.epoch_table
        self._logger: CSVLogger | None = None
        self._names: dict[str, str] = {}

    def open(self, run: TrackedRun, settings: Mapping[str, Any], before: Remembered | None, n_epochs: int) -> int:
        """Open the file with the lines of the epochs that it has; settings stand in training_config.json."""
        if not run.folder.path.is_dir():
            raise FileNotFoundError(f"{run.folder.path} is gone")
        lines = lines_of(self._file)[:n_epochs]
        self._names = distinct(run.metric_names, printable)
        folder = self._file.parent
        self._logger = CSVLogger(folder.parent.parent, folder.parent.name, folder.name, flush_logs_every_n_steps=1)
        for epoch, line in enumerate(lines):
            self._logger.experiment.log_metrics(line, epoch)
        self._logger.save()
        return len(lines)

    def write(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the line of an epoch."""
        assert self._logger is not None
        line: dict[str, Any] = {self._names[name]: value for name, value in numbers.items()}
        line["epoch"] = epoch
        self._logger.log_metrics(line, epoch)

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
        lines.append({name: value for name, value in line.items() if name != "step" and value})
    return lines
