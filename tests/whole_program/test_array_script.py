"""docs/cross_validate.sbatch: a job array in which each task trains a fold, without a cluster."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.paths import ROOT
from tests.support.settings import settings


@pytest.mark.parametrize(("code", "requeued"), [(0, ""), (138, "requeue 4711\n")])
def test_the_array_script_gives_each_task_the_same_command_and_goes_on_when_time_was_up(tmp_path, code, requeued):
    """The line of docs/cluster.md, with what sbatch, srun and the program would be in the place of them."""
    (line,) = [
        line for line in (ROOT / "docs/cluster.md").read_text().splitlines() if line.startswith("sbatch --array")
    ]
    _, array, script, *flags = line.split()
    programs = {
        "srun": 'shift; exec "$@"',
        "scontrol": 'echo "$@" >> queue',
        "python": f'echo "$@" > said; exit {code}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "python", "SLURM_JOB_ID": "4711"}
    done = subprocess.run(["bash", str(ROOT / script), *flags], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "said").read_text().split() == ["-m", "pipeline", "cross-validate", *flags]
    assert ((tmp_path / "queue").read_text() if (tmp_path / "queue").exists() else "") == requeued
    assert array == "--array=0-4"
    assert settings("--dataset_root", "d", *flags[2:]).data.folds == 5
