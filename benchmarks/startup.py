"""How long a person waits for help: whole processes. Imports none of the libraries it times."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.measure import Measurement


def plain(n: int = 1) -> Measurement:
    """Importing MONAI, which a script does before it looks at its arguments."""
    return _seconds([sys.executable, "-c", "import monai"], n)


def ours(n: int = 1) -> Measurement:
    """The help of the command with the most settings."""
    return _seconds([sys.executable, "-m", "pipeline", "train", "--help"], n)


def _seconds(command: list[str], n: int) -> Measurement:
    seconds = []
    for _ in range(n + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return Measurement(seconds[1:])  # the first one reads the files from disk
