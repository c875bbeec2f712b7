"""The minute of `make train`: its commands once things are installed, one after the other, each its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measurement import Measurement

ROOT = Path(__file__).resolve().parents[1]

COMMANDS = ("bodyseg sample sample", "python train_body.py --config configs/sample.yaml --overwrite", "bodyseg plot")
"""As the Makefile has them; `plot` is given the run."""


def ours(folder: str) -> Measurement:
    """Write the sample data set, train on it and draw its curves, in an empty folder; seconds of all three together."""
    seconds = {}
    for command in COMMANDS:
        runs = [str(run) for run in Path(folder, "logs").glob("sample_*")] if command.endswith("plot") else []
        start = time.perf_counter()
        subprocess.run([*_here(command), *runs], cwd=folder, env=_environment(), check=True, stdout=subprocess.DEVNULL)
        seconds[f"seconds_of_{command.split()[1]}"] = time.perf_counter() - start
    (run,) = Path(folder, "logs").glob("sample_*")
    summary = json.loads((run / "training_summary.json").read_text(encoding="utf-8"))
    facts = seconds | {"best_val_mIoU": summary["best_val_mIoU"], "epochs": summary["total_epochs"]}
    return Measurement([sum(seconds.values())], None, round(summary["peak_memory_gb"] * 1e9), facts=facts)


def _here(command: str) -> list[str]:
    """A command for this interpreter, started elsewhere."""
    program, *words = command.split()
    first = ["-m", "pipeline"] if program == "bodyseg" else []
    return [sys.executable, *first, *(str(ROOT / word) if (ROOT / word).is_file() else word for word in words)]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
