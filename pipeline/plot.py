"""The command "plot": draw the training histories of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.files.atomic import FileError, write_atomically
from pipeline.runs.run_folder import RunFolder, distinct_names, list_runs
from pipeline.visualisation.training_curves import draw_curves

FORMATS = ("png", "pdf", "svg")
DEFAULT_NAME = "training_curves.png"


def plot(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Draw loss, mIoU, training accuracy and learning rate against the epoch, and return the picture's path.

    Args:
        runs: run folders, or folders of them; several share the axes.
        output: a .png, .pdf or .svg file, or a folder; None: training_curves.png in the run's folder, for several
            runs in the working folder.

    Raises:
        FileError: a path without a run, a damaged log, runs without a finished epoch or an unknown format.
    """
    folders = list_runs(runs)
    path = _output_path(folders, output)
    logs = [folder.read_log() for folder in folders]
    if not any(len(log) for log in logs):
        named = folders[0].log if len(folders) == 1 else "these runs"
        raise FileError(f"{named}: expected a finished epoch to draw, found none; wait for the first one")
    picture = draw_curves(distinct_names(folders), logs)
    write_atomically(path, lambda stream: picture.savefig(stream, format=path.suffix[1:].lower(), dpi=110))
    return path


def _output_path(folders: Sequence[RunFolder], output: str | Path | None) -> Path:
    if output is None:
        return folders[0].curves if len(folders) == 1 else Path(DEFAULT_NAME)
    path = Path(output)
    path = path / DEFAULT_NAME if path.is_dir() else path
    if path.suffix[1:].lower() not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise FileError(f'--output {path}: expected a file ending in {known}, found "{path.suffix}"')
    return path
