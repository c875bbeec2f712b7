"""Kill cache building, prediction and evaluation at random moments, go on, and compare with undisturbed results.

`make soak` does so for some minutes and prints the figures; tests/whole_program/test_soak_commands.py for seconds. Each
is the real command line in a process of its own, as in `tests.soak`.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from pipeline.cache.entry import CacheError, read_entry
from pipeline.files.atomic import UNFINISHED
from tests.support.evaluation import blobs, save
from tests.support.tiny_prediction import checkpoint
from tests.support.tiny_training import SERVER, differences, finish, start, strict_json, tiny_training
from tests.support.volume_files import write_series

PRELOADED = ["__main__", "pipeline.cli.main", "pipeline.train", "pipeline.predict", "pipeline.evaluate", "highdicom"]
N_CASES = 2
N_SCORED = 20
CHANGES_EACH_TIME = {"seconds", "peak_memory_mb", "created"}
"""Keys of JSON results that say how it went."""


@dataclass(frozen=True)
class Work:
    """A command whose results are known."""

    name: str
    arguments: Callable[[str], list[str]]
    """Of a start that works on the folder of this name."""
    faults: Callable[[str], list[str]]
    """What is wrong in that folder, whenever the command was killed."""
    outcome: Callable[[str], dict[str, Any]]
    """What the finished folder holds, by file or fact."""
    is_complete: Callable[[str], bool] = lambda _: False
    """Whether the command has nothing left to do there and would say so with another exit code."""


@dataclass
class Figures:
    """What a soak of one command found."""

    name: str
    rounds: int = 0
    kills: int = 0
    in_mid_write: int = 0
    """Kills that left a half-written file."""
    faults: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        wrong = [*self.faults, *(f"{name} differs" for name in self.differences)]
        return (
            f"{self.name}: {self.rounds} rounds, {self.kills} kills ({self.in_mid_write} in the middle of writing a "
            f"file), {', '.join(wrong[:20]) or 'nothing wrong, nothing differs'}"
        )


def works(folder: Path) -> Iterator[Work]:
    """The commands; each may use what the one before has left in the folder "whole"."""
    yield _caching(folder)
    yield _prediction(folder)
    yield _evaluation(folder)


def soak(folder: Path, *, seconds: float, kills_a_round: int, seed: int = 0) -> list[Figures]:
    """Kill and continue each command for a third of the time, and until one was killed at least.

    Raises RuntimeError where a command ends otherwise than by a kill or well.
    """
    SERVER.set_forkserver_preload(PRELOADED)
    finish(["--help"], folder / "help.txt")  # pays for the imports
    moments = random.Random(seed)
    return [_soak(work, folder, seconds / 3, kills_a_round, moments) for work in works(folder)]


def _soak(work: Work, folder: Path, seconds: float, kills_a_round: int, moments: random.Random) -> Figures:
    figures, output = Figures(work.name), folder / f"{work.name}.txt"
    began = time.monotonic()
    finish(work.arguments(f"{work.name}_whole"), output)
    lasts_s = time.monotonic() - began
    expected = work.outcome(f"{work.name}_whole")
    began = time.monotonic()
    while not figures.kills or time.monotonic() - began < seconds:
        name = f"{work.name}_{figures.rounds}"
        for _ in range(kills_a_round):
            started = time.monotonic()
            process = start(work.arguments(name), output)
            process.join(moments.uniform(0, lasts_s))
            process.kill()
            process.join()
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"exit code {process.exitcode}: {output.read_text()[-2000:]}")
            if process.exitcode == 0 or work.is_complete(name):
                lasts_s = min(lasts_s, time.monotonic() - started)  # the machine had less to do than before
                break
            figures.kills += 1
            figures.in_mid_write += any((folder / name).rglob(f"*{UNFINISHED}")) or any((folder / name).rglob("*.tmp"))
            figures.faults += work.faults(name)
        else:
            finish(work.arguments(name), output)
        found = work.outcome(name)
        figures.faults += work.faults(name)
        figures.differences += [key for key in expected | found if found.get(key) != expected.get(key)]
        figures.rounds += 1
    return figures


def _caching(folder: Path) -> Work:
    """A training of one epoch with a cache of its own: most of it is preparing the cases."""

    def training(name: str) -> tuple[list[str], Path]:
        where = {"data.cache_dir": str(folder / name / "cache"), "log_dir": str(folder / name)}
        return tiny_training(folder, "run", max_epochs=1, **where)

    def entries(name: str) -> list[Path]:
        return sorted((folder / name / "cache").glob("*.bodycase"))

    def faults(name: str) -> list[str]:
        found = []
        for path in entries(name):
            try:
                read_entry(path)
            except CacheError as error:
                found.append(str(error))
        return found

    def outcome(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in entries(name):
            _, image, label = read_entry(path)
            assert label is not None
            arrays = [np.ascontiguousarray(one.as_tensor()) for one in (image, label)]
            found[path.name] = [hashlib.sha256(one).hexdigest() for one in arrays]
        return found | {"training": differences(training("caching_whole")[1], training(name)[1])}

    def is_complete(name: str) -> bool:
        return (training(name)[1] / "training_summary.json").exists()

    return Work("caching", lambda name: [*training(name)[0], "--resume"], faults, outcome, is_complete)


def _prediction(folder: Path) -> Work:
    """Every kind of file that a prediction writes, of DICOM series."""
    run = checkpoint(folder / "model.ckpt")
    for n in range(N_CASES):
        write_series(folder / "series" / f"case{n}", 5 + n, modality="CT")
    options = "--formats nifti,nrrd,dicom --per_structure --probabilities liver --preview --device cpu --precision 32"

    def arguments(name: str) -> list[str]:
        return ["predict", str(run), str(folder / "series"), "--output", str(folder / name), *options.split()]

    def faults(name: str) -> list[str]:
        """A record names files that are not there or hold something else."""
        found = []
        for path in (folder / name).glob("*.json"):
            for file, content in strict_json(path)["contents"].items():
                written = folder / name / file
                if not written.is_file() or hashlib.sha256(written.read_bytes()).hexdigest() != content["sha256"]:
                    found.append(f"{path.name} names {file}, which is another or missing")
        return found

    return Work("prediction", arguments, faults, lambda name: _files(folder / name))


def _evaluation(folder: Path) -> Work:
    """The scores of label maps that overlap in part."""
    for n in range(N_SCORED):
        label = blobs(n)
        save(label, folder / "labels" / f"case{n}.nii.gz")
        save(np.roll(label, 1, axis=n % 3), folder / "predictions" / f"case{n}.nii.gz")
    where = ["--predictions", str(folder / "predictions"), "--labels", str(folder / "labels")]

    def arguments(name: str) -> list[str]:
        return ["evaluate", *where, "--output", str(folder / name), "--workers", "1"]

    def faults(name: str) -> list[str]:
        found = []
        for path in (folder / name).glob("*.json"):
            try:
                strict_json(path)
            except ValueError as error:
                found.append(f"{path.name}: {error}")
        return found

    return Work("evaluation", arguments, faults, lambda name: _files(folder / name))


def _files(folder: Path) -> dict[str, Any]:
    """What the files of results hold, without how long it took and the identifiers that are new each time."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (not path.name.startswith(".") or path.name.endswith(UNFINISHED))
    }


def _content(path: Path) -> Any:
    if path.suffix == ".dcm":
        data = pydicom.dcmread(path)
        segments = [(one.SegmentNumber, one.SegmentLabel) for one in data.SegmentSequence]
        return hashlib.sha256(data.PixelData).hexdigest(), segments
    if path.suffix != ".json":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    document = strict_json(path)
    contents = {name: one for name, one in document.pop("contents", {}).items() if not name.endswith(".dcm")}
    return {key: value for key, value in document.items() if key not in CHANGES_EACH_TIME} | contents


def main() -> int:
    """Print the figures; exit code 1 where something was wrong or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        figures = soak(Path(folder), seconds=60 * given.minutes, kills_a_round=4, seed=given.seed)
    print(*figures, sep="\n")
    return 1 if any(one.faults or one.differences for one in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
