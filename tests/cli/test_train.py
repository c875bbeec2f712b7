"""`bodyseg train`: the training does not depend on who reads what it prints."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.phantoms.sample_dataset import write_dataset
from tests.support.paths import ROOT


@pytest.mark.timeout(300)
def test_a_training_whose_terminal_is_closed_and_whose_log_is_full_completes(tmp_path):
    write_dataset(tmp_path / "phantoms", n_cases=3, seed=1, voxel_mm=24.0)
    master, slave = pty.openpty()
    os.close(master)
    command = f"train --dataset_root {tmp_path / 'phantoms'} --target_size 16 16 16 --max_epochs 1 --warmup_epochs 0"
    command += f" --base_channels 2 --batch_size 1 --num_workers 0 --n_gpus 0 --log_dir {tmp_path / 'logs'}"
    command += f" --data.cache_dir {tmp_path / 'cache'} --precision 32"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command.split()], stdout=full, stderr=slave, check=False, cwd=ROOT
        )
    os.close(slave)
    assert done.returncode == 0
    (run,) = (tmp_path / "logs").iterdir()
    assert json.loads((run / "training_summary.json").read_text())["status"] == "completed"
