"""The smallest training, as a process of its own or in this one, and what a test asks about it afterwards."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.config.settings import Config
from tests.support.settings import settings as settings_from

SERVER = multiprocessing.get_context("forkserver")
"""Forks processes that have paid for the imports already."""
SERVER.set_forkserver_preload(["__main__", "pipeline.cli.main", "pipeline.train"])

EPOCHS = 4
WHOLE = "whole_bs1_lr0.003_ch2_aug"
"""Run folder of the training that nothing happens to, see the fixture `work`."""


def run_command(arguments: Sequence[str], output: Path, before: Callable[[], object] | None = None) -> None:
    """Be `bodyseg ARGUMENTS` with both output streams in a file; `before` breaks something first."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not started by a server
    # As in the tests' own process: the server has the environment in which the first test of all started it
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if before is not None:
        before()
    from pipeline.cli.main import main

    sys.exit(main(list(arguments)))


def start(arguments: Sequence[str], output: Path, before: Callable[[], object] | None = None) -> BaseProcess:
    """Start a command in a process of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    process = SERVER.Process(target=run_command, args=(arguments, output, before))
    process.start()
    return process


def finish(arguments: Sequence[str], output: Path) -> None:
    """Run a command in a process of its own to its end. Raises RuntimeError where it does not end well."""
    process = start(arguments, output)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"exit code {process.exitcode}: {output.read_text()[-2000:]}")


def strict_json(path: Path) -> dict[str, Any]:
    """Parse a file as JSON has it: without NaN and Infinity."""

    def refuse(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)


def n_epochs(run: Path) -> int:
    """Finished epochs in the log; 0 while there is none."""
    try:
        history = strict_json(run / "training_log.json")["training_history"]
    except FileNotFoundError:
        return 0
    lengths = {len(values) for values in history.values()}
    if len(lengths) != 1:
        raise ValueError(f"arrays of unequal length {lengths}")
    return lengths.pop()


LIMIT_S = 240.0
"""How long a process may take for what takes seconds: longer than any machine is busy with other things."""


def wait_until(condition: Callable[[], bool], process: BaseProcess, limit_s: float = LIMIT_S) -> bool:
    """Wait for a condition while the process lives; False: it ended first."""
    began = time.monotonic()
    while not condition():
        if not process.is_alive():
            return condition()
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"nothing after {limit_s} s")
        time.sleep(0.002)
    return True


def pause_after(n_more: int, before: Callable[[], object] | None = None) -> None:
    """Be a training that stops itself (SIGSTOP) as soon as the log has so many more epochs than it began with.

    What a test then does to it happens at that moment, however busy the machine is; `before` breaks something first.
    """
    from pipeline.runs.run_folder import RunFolder

    if before is not None:
        before()
    write, lengths = RunFolder.write_log, []

    def write_and_pause(folder: RunFolder, log: Any) -> None:
        write(folder, log)
        lengths.append(len(log))
        if lengths[-1] == lengths[0] + n_more:
            os.kill(os.getpid(), signal.SIGSTOP)

    RunFolder.write_log = write_and_pause  # type: ignore[method-assign]


def is_paused(process: BaseProcess) -> bool:
    """Whether a process has stopped itself."""
    try:
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def go_on(process: BaseProcess, *signals: int) -> None:
    """Let a process that has stopped itself continue, with these signals first."""
    for number in (*signals, signal.SIGCONT):
        os.kill(process.pid or 0, number)


def tiny_training(folder: Path, name: str, *, max_epochs: int, **more: str) -> tuple[list[str], Path]:
    """Command line and run folder of the smallest training; writes its data set if there is none."""
    if not (folder / "data").exists():
        from pipeline.phantoms.sample_dataset import write_dataset

        write_dataset(folder / "data", n_cases=4, seed=1, voxel_mm=24.0)
    settings = {
        "exp_name": name,
        "log_dir": str(folder / "logs"),
        "dataset_root": str(folder / "data"),
        "data.cache_dir": str(folder / "cache"),
        "target_size": "16 16 24",
        "batch_size": "1",
        "num_workers": "0",
        "base_channels": "2",
        "data_aug": "true",
        "lr": "0.003",
        "warmup_epochs": "1",
        "n_gpus": "0",
        "precision": "32",
        "max_epochs": str(max_epochs),
        "training.overlay_every": "0",
    }
    settings |= more
    flags = [word for key, value in settings.items() for word in (f"--{key}", *value.split(" "))]
    run = f"{name}_bs{settings['batch_size']}_lr{settings['lr']}_ch{settings['base_channels']}_aug"
    return ["train", *flags], Path(settings["log_dir"]) / run


def differences(one: Path, two: Path) -> list[str]:
    """Name what is not the same, bit for bit, in two finished runs."""
    import torch

    found = []
    logs = [strict_json(run / "training_log.json") for run in (one, two)]
    found += [key for key in ("training_history", "best_metrics", "per_class_iou") if logs[0][key] != logs[1][key]]
    best = [torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True) for run in (one, two)]
    weights = [checkpoint["state_dict"] for checkpoint in best]
    if weights[0].keys() != weights[1].keys():
        found.append("names of weights")
    found += [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    statuses = [strict_json(run / "training_summary.json")["status"] for run in (one, two)]
    return found + ([] if statuses == ["completed"] * 2 else [f"status {statuses}"])


def settings_of(work: Path, name: str, **settings: str) -> tuple[Config, Path]:
    """Return the settings and the run folder of the tiny training, for calls in this process."""
    command, run = tiny_training(work, name, **({"max_epochs": 2} | settings))  # type: ignore[arg-type]
    return settings_from(*command[1:]), run


def train(
    work: Path,
    name: str,
    *more: str,
    max_epochs: int = EPOCHS,
    before: Callable[[], object] | None = None,
    pause: int | None = None,
    **settings: str,
) -> tuple[BaseProcess, Path, Path]:
    """Start a training; return its process, its run folder and the file with what it prints.

    Given `pause`, wait until that many epochs are finished: the process then stands still, see `pause_after`.
    """
    command, run = tiny_training(work, name, max_epochs=max_epochs, **settings)
    output = work / f"{name}.txt"
    output.unlink(missing_ok=True)
    if pause is None:
        return start([*command, *more], output, before), run, output
    process = start([*command, *more], output, partial(pause_after, pause, before))
    assert wait_until(lambda: is_paused(process), process), output.read_text()
    assert n_epochs(run) >= pause
    return process, run, output


def ended(process: BaseProcess, run: Path, output: Path, *, code: int) -> str:
    """Wait for the end, expect the exit code, and return what was printed."""
    process.join(LIMIT_S)
    said = output.read_text()
    assert process.exitcode == code, said
    return said


def complaint(said: str) -> str:
    """Return the one line after "bodyseg:", which must be the last."""
    assert "Traceback" not in said, said
    line = said.splitlines()[-1]
    assert line.startswith("bodyseg: "), said
    return line


def summary(run: Path) -> dict[str, Any]:
    """Parse training_summary.json."""
    return strict_json(run / "training_summary.json")


def resumed(work: Path, name: str, **settings: str) -> list[str]:
    """Resume to the end, and name what differs from the training that nothing happened to."""
    process, run, output = train(work, name, "--resume", **settings)
    ended(process, run, output, code=0)
    return differences(work / "logs" / WHOLE, run)


def interrupted_run(work: Path, name: str) -> Path:
    """Stop a training after its second epoch."""
    process, run, output = train(work, name, pause=2)
    go_on(process, signal.SIGTERM)
    ended(process, run, output, code=143)
    return run


def description(name: str) -> Any:
    """What the best weights of a network for "background" and "a" would carry."""
    from pipeline.training.checkpoint import CheckpointDescription
    from pipeline.training.prepared_data import Preprocessing

    preprocessing = Preprocessing((16, 16, 24), "ct", (-1000.0, 1000.0), (0.5, 99.5), False, (0, 1))
    return CheckpointDescription(name, {}, preprocessing, ("background", "a"), ("CT",), ())


@contextlib.contextmanager
def ending_of(work: Path, name: str, *, num_workers: int = 0) -> Iterator[tuple[Any, Path]]:
    """The end of a training in this process, whose epochs are up to the caller; (recorder, run folder)."""
    from pipeline.runs.run_folder import RunFolder
    from pipeline.training.ending import record_ending
    from pipeline.training.recorder import RunRecorder

    settings, _ = settings_of(work, name, num_workers=str(num_workers))
    run = work / "logs" / name
    folder = RunFolder.at(run)
    folder.make_ready(keep=False)
    recorder = RunRecorder(folder, description(name), settings)
    with record_ending(recorder):
        yield recorder, run
