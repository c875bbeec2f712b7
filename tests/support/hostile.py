"""A workspace with a data set and a run, ways to spoil it, and what a row of a table of bad input says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.cli.main import main
from tests.support.volumes import CLASSES, hounsfield, organs, save

TRAIN = (
    "train --dataset_root data --log_dir logs --data.cache_dir cache --target_size 16 16 16 --batch_size 1"
    " --num_workers 0 --base_channels 2 --n_gpus 0 --precision 32 --max_epochs 200 --warmup_epochs 0"
).split()
RESUME = [*TRAIN, "--resume"]
PREDICT = ["predict", "logs/run", "new/scan.nii.gz", "--output", "out", "--device", "cpu", "--precision", "32"]
RUN = "body_unet_bs1_lr0.0001_ch2"


class Bomb:
    """Unpickled, it writes the file "fired" into the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("fired"),)


class Row(NamedTuple):
    """A kind of bad input: how the workspace is spoiled and what is then typed; what the answer has to say."""

    name: str
    spoil: Callable[[], list[str]]
    words: tuple[str, ...]
    code: int = 2
    may_write: tuple[str, ...] = ()


def make_template(workspace: Path) -> Path:
    """Make a data set in nnU-Net's layout, a scan, and a run that was stopped, so that it can be resumed."""
    for folder in ("data/imagesTr", "data/labelsTr", "new"):
        (workspace / folder).mkdir(parents=True)
    for name in "abcd":
        save(workspace / f"data/imagesTr/{name}_0000.nii.gz", hounsfield(name))
        save(workspace / f"data/labelsTr/{name}.nii.gz", organs())
    write_json(
        workspace / "data/dataset.json", {"channel_names": {"0": "CT"}, "labels": CLASSES, "file_ending": ".nii.gz"}
    )
    folds = [{"train": ["a", "b"], "val": ["c", "d"]}]
    write_json(workspace / "data/splits_final.json", folds)
    save(workspace / "new/scan.nii.gz", hounsfield("s"))
    before = Path.cwd()
    os.chdir(workspace)
    try:
        threading.Thread(
            target=_stop_after_two_epochs, args=(Path("logs", RUN, "training_log.json").absolute(),)
        ).start()
        assert main(TRAIN) == 128 + signal.SIGTERM
    finally:
        os.chdir(before)
    (workspace / "logs" / RUN).rename(workspace / "logs/run")
    return workspace


def _stop_after_two_epochs(log: Path) -> None:
    """Ask this process, which trains in its main thread, to stop once two epochs are in the log."""
    deadline = time.monotonic() + 120
    while not log.is_file() or len(json.loads(log.read_bytes())["training_history"]["epoch"]) < 2:
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file and link below a folder: when it was changed, and what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            held = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
            found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, held)
    return found


def table_of(kinds: str, rows: Sequence[Row]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test each row of a table in turn; in the table of faults they are one line."""

    def marked(test: Callable[..., None]) -> Callable[..., None]:
        fault = pytest.mark.fault(
            f"{len(rows)} kinds of {kinds}, through the command line",
            "case or file, expected, found, what to do; exit code 2 (warnings: 1); no traceback, no file written or "
            "changed",
        )
        return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])(fault(test))

    return marked


def check_answer(row: Row, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spoil the workspace, type the command, and check that the answer names the fault and nothing else was touched."""
    arguments = row.spoil()
    before = contents(workspace)
    capsys.readouterr()
    assert main(arguments) == row.code
    said = "".join(capsys.readouterr())
    assert [word for word in row.words if word not in said] == [], said
    assert "Traceback" not in said
    changed = {name for name, state in (contents(workspace).items() ^ before.items())}
    assert not {name for name in changed if not name.startswith(row.may_write or ("-",))}
    if row.code == 2 and arguments[0] != "check":
        assert said.splitlines()[-1].startswith("bodyseg: ")


def edit_json(path: str, **changes: object) -> None:
    write_json(Path(path), json.loads(Path(path).read_text()) | changes)


def listed(**changes: object) -> list[str]:
    """Check an explicit list whose second case is changed."""
    cases = [{"case": n, "image": f"data/imagesTr/{n}_0000.nii.gz", "label": f"data/labelsTr/{n}.nii.gz"} for n in "ab"]
    cases[1] |= changes
    write_json(Path("cases.json"), {"cases": cases, "labels": CLASSES})
    return ["check", "cases.json", "--no_measure"]
