"""Kill a training at random moments, resume it each time, and hold it against one that nobody interrupted.

`make soak` kills 50 times and prints the figures; tests/training/test_signals.py kills five times. A training is the
real command line in a process of its own, forked from a server that has paid for the imports once.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.tiny_training import (
    LIMIT_S,
    SERVER,
    differences,
    finish,
    n_epochs,
    pause_after,
    start,
    strict_json,
    tiny_training,
    wait_until,
)

FILES = ("training_config.json", "training_log.json", "training_summary.json")
SHARE_OF_EARLY_KILLS = 0.25
"""Of the kills, how many come before the first batch; the others come while the network trains or files are written."""
MOST_EPOCHS = 2
"""Epochs that are trained between two kills, see `pause_after`: else a busy machine might train all of them."""


def follow(run: Path, stop: Any, found: Any) -> None:
    """Parse the three files again and again until asked to stop; put (reads, sentences about what was wrong)."""
    reads, faults, most = 0, [], 0
    while not stop.is_set():
        for name in FILES:
            try:
                strict_json(run / name)
                reads += 1
            except FileNotFoundError:
                pass  # not yet written, or the run has no ending yet
            except ValueError as error:
                faults.append(f"{name}: {error}")
        try:
            count = n_epochs(run)
        except ValueError as error:
            faults.append(str(error))
            continue
        if count < most:
            faults.append(f"{most} epochs, then {count}")
        most = max(most, count)
        time.sleep(0.001)
    found.put((reads, faults))


@dataclass
class Figures:
    """What a soak found."""

    kills: int = 0
    in_mid_write: int = 0
    """Kills that left a half-written file beside the whole one."""
    epochs: int = 0
    reads: int = 0
    faults: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    minutes: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.in_mid_write} in the middle of writing a file), {self.epochs} epochs, "
            f"{self.reads} reads, {len(self.faults)} wrong; beside the uninterrupted run "
            f"{'nothing differs' if not self.differences else ', '.join(self.differences)}; {self.minutes:.1f} minutes"
        )


def soak(folder: Path, *, kills: int, max_epochs: int, seed: int = 0, say: Callable[[str], None] = print) -> Figures:
    """Kill and resume; raises RuntimeError where a training ends otherwise than by a kill or complete.

    max_epochs must be more than are trained between the kills, about one for four kills; never more than MOST_EPOCHS
    for each.
    """
    first, moments, figures = time.monotonic(), random.Random(seed), Figures(epochs=max_epochs)
    # The first training pays for the server's imports and fills the cache; the others all start alike.
    finish(tiny_training(folder, "first", max_epochs=1)[0], folder / "first.txt")
    whole, run_whole = tiny_training(folder, "whole", max_epochs=max_epochs)
    startup_s, epoch_s = _uninterrupted(whole, run_whole, folder / "whole.txt")
    say(f"uninterrupted: {startup_s:.2f} s to the first batch, {epoch_s:.2f} s an epoch")
    killed, run = tiny_training(folder, "killed", max_epochs=max_epochs)
    with _followed(run, figures):
        while figures.kills < kills:
            began = time.time_ns()
            process = start([*killed, "--resume"], folder / "killed.txt", partial(pause_after, MOST_EPOCHS))
            if moments.random() < SHARE_OF_EARLY_KILLS:
                startup_s = min(startup_s, _wait(process, run, moments.uniform(0, startup_s)))
            else:
                _wait_for_training(process, run, began)
                epoch_s = min(epoch_s, _wait(process, run, moments.uniform(0, 1.5 * epoch_s)) / MOST_EPOCHS)
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                raise RuntimeError(f"exit code {process.exitcode}: {(folder / 'killed.txt').read_text()[-2000:]}")
            figures.kills += 1
            figures.in_mid_write += any(run.rglob(".*.writing"))
            if figures.kills % 10 == 0:
                say(f"{figures.kills} kills, {n_epochs(run)} of {max_epochs} epochs")
        finish([*killed, "--resume"], folder / "killed.txt")
    figures.differences = differences(run_whole, run)
    figures.minutes = (time.monotonic() - first) / 60
    return figures


@contextmanager
def _followed(run: Path, figures: Figures) -> Iterator[None]:
    """Let another process `follow` the run meanwhile, and put what it found into the figures."""
    stop, found = SERVER.Event(), SERVER.Queue()
    reader = SERVER.Process(target=follow, args=(run, stop, found))
    reader.start()
    try:
        yield
    finally:  # a process that is left would keep this one from ending
        stop.set()
        figures.reads, figures.faults = found.get(timeout=LIMIT_S)
        reader.join()


def _uninterrupted(arguments: list[str], run: Path, output: Path) -> tuple[float, float]:
    """Train to the end; seconds until the first batch, and per epoch."""
    began, written = time.monotonic(), time.time_ns()
    process = start(arguments, output)
    _wait_for_training(process, run, written)
    first_batch = time.monotonic()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"exit code {process.exitcode}: {output.read_text()[-2000:]}")
    return first_batch - began, (time.monotonic() - first_batch) / n_epochs(run)


def _wait(process: BaseProcess, run: Path, seconds: float) -> float:
    """Wait so long, or until MOST_EPOCHS more are finished; seconds that these took, infinite where they were not."""
    began, most = time.monotonic(), n_epochs(run) + MOST_EPOCHS
    wait_until(lambda: time.monotonic() - began >= seconds or n_epochs(run) >= most, process, seconds + LIMIT_S)
    return time.monotonic() - began if n_epochs(run) >= most else math.inf


def _wait_for_training(process: BaseProcess, run: Path, began: int) -> None:
    """Wait until the training started at a time in ns has written its log: it does so right before the first batch."""
    log = run / "training_log.json"

    def is_written() -> bool:
        try:
            return log.stat().st_mtime_ns > began
        except FileNotFoundError:
            return False

    wait_until(is_written, process)


def main() -> int:
    """Print the figures; exit code 1 where something was lost, wrong or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        figures = soak(Path(folder), kills=given.kills, max_epochs=given.kills + 20, seed=given.seed)
    print(figures)
    print(*figures.faults[:20], sep="\n")
    return 1 if figures.faults or figures.differences else 0


if __name__ == "__main__":
    sys.exit(main())
