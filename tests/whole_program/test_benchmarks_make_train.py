"""What is measured as `make train` is what the Makefile does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import make_train
from tests.support.paths import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_commands_are_those_of_the_makefile():
    said = subprocess.run(["make", "-n", "train"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said = re.sub(r"\S*/(?=bodyseg|python )", "", said)
    places = [said.index(command) for command in make_train.COMMANDS]
    assert places == sorted(places)
    assert set(re.findall(r"^bodyseg (\w+)", said, flags=re.MULTILINE)) == {"sample", "plot"}


def test_its_time_is_that_of_all_commands_and_its_memory_that_of_the_training(tmp_path, monkeypatch):
    asked = []

    def pretend(command, cwd, **_):
        asked.append(command[1:])
        run = Path(cwd, "logs", "sample_bs1")
        run.mkdir(parents=True, exist_ok=True)
        found = {"best_val_mIoU": 0.5, "total_epochs": 20, "peak_memory_gb": 1.25}
        (run / "training_summary.json").write_text(json.dumps(found))

    monkeypatch.setattr(make_train.subprocess, "run", pretend)
    found = make_train.ours(str(tmp_path))
    assert asked == [
        ["-m", "pipeline", "sample", "sample"],
        [str(ROOT / "train_body.py"), "--config", str(ROOT / "configs" / "sample.yaml"), "--overwrite"],
        ["-m", "pipeline", "plot", str(tmp_path / "logs" / "sample_bs1")],
    ]
    assert found.peak_bytes == 1_250_000_000
    parts = [found.facts[f"seconds_of_{name}"] for name in ("sample", "train_body.py", "plot")]
    assert found.seconds == [pytest.approx(sum(parts))]
