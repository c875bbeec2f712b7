"""A tiny training of a folder of four cases: its command line, settings and run, and the files that a check opens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.checks import case_check
from pipeline.checks.case_check import CheckedCase
from tests.support.volumes import Folder, configured


def arguments(folder: Folder, *more: str) -> list[str]:
    """A tiny training as somebody types it."""
    folder.write()
    work = folder.root.parent
    return [
        *f"train --dataset_root {folder.root / 'cases.json'} --log_dir {work}/logs --data.cache_dir {work}/cache"
        " --target_size 16 24 16 --batch_size 1 --num_workers 0 --base_channels 4 --max_epochs 1 --n_gpus 0"
        " --precision 32".split(),
        *more,
    ]  # fmt: skip


def settings(folder: Folder, **data: object) -> object:
    folder.write()
    return configured(folder.root / "cases.json", data={"cache_dir": str(folder.root.parent / "cache"), **data})


def run_of(folder: Folder) -> Path:
    (run,) = (folder.root.parent / "logs").iterdir()
    return run


def record_of(folder: Folder) -> dict:
    return json.loads((run_of(folder) / "training_config.json").read_text())["data"]


def plain(facts: list[CheckedCase]) -> list[str]:
    return [json.dumps(dataclasses.asdict(case), default=lambda v: getattr(v, "tolist", v.__str__)()) for case in facts]


def refusals(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was refused, a line for each; warnings about settings aside."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("bodyseg: ") and not line.startswith("bodyseg: warning: ")]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that inspections open from now on."""
    names: list[str] = []
    real = case_check.read_volume

    def read(path: Path) -> object:
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(case_check, "read_volume", read)
    return names
