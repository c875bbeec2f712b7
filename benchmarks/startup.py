"""How long a person waits for help, and for a command to begin: whole processes. Imports none of what it times."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import Measurement


def plain(n: int = 1) -> Measurement:
    """Importing MONAI, which a script does before it looks at its arguments."""
    return _seconds([sys.executable, "-c", "import monai"], n)


def ours(n: int = 1) -> Measurement:
    """The help of the command with the most settings."""
    return _seconds([sys.executable, "-m", "pipeline", "train", "--help"], n)


def command(name: str, n: int = 1) -> Measurement:
    """A command until it has imported what it computes with and finds that its scans are not there."""
    with tempfile.TemporaryDirectory() as folder:
        missing = str(Path(folder, "missing"))
        flags = ["scan", "--output", folder] if name == "predict" else []
        return _seconds([sys.executable, "-m", "pipeline", name, missing, *flags], n, expected_code=2)


def _seconds(command: list[str], n: int, expected_code: int = 0) -> Measurement:
    seconds = []
    for _ in range(n + 1):
        start = time.perf_counter()
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
        if done.returncode != expected_code:
            raise subprocess.CalledProcessError(done.returncode, command)
    return Measurement(seconds[1:])  # the first one reads the files from disk
