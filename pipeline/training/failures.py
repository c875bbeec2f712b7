"""Say in one sentence what broke a training: out of memory, a disk error, an error in a data worker."""

from __future__ import annotations

import errno
import re
import resource

import torch

from pipeline.compute.launcher import GO_ON
from pipeline.compute.memory import (
    MORE_SHARED_MEMORY,
    free_memory_bytes,
    lacks_shared_memory,
    memory_bytes,
    ran_out_of_memory,
    shared_memory,
)
from pipeline.compute.ranks import ProcessError
from pipeline.config.settings import Config
from pipeline.console.text import gigabytes
from pipeline.files.atomic import FileError, disk_error
from pipeline.training.cost import less_memory
from pipeline.training.lightning_module import TrainingError

_ASKED_FOR = re.compile(
    r"(?:allocate|allocate:|tried to allocate) +(?P<n>[\d.]+) ?(?P<unit>bytes|[KMGT]i?B)", re.IGNORECASE
)

_UNITS = {"BYTES": 1, **{f"{letter}B": 1024**n for n, letter in enumerate("KMGT", start=1)}}

_IN_A_WORKER = re.compile(r"in DataLoader worker process \d+\.\nOriginal ")
"""torch raises a worker's exception again, of the same type, with the worker's whole traceback as its message."""

_NO_SHARED_MEMORY = re.compile(r"shared memory|</torch_|/dev/shm|signal: Bus error", re.IGNORECASE)
"""How torch says it, or that a worker was killed when it wrote into a page that the shared memory does not have."""

_NO_FILES = re.compile("too many open files", re.IGNORECASE)
"""The system's words, which torch repeats without the OSError when batches come from workers."""

_WORKER_KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (?P<how>is killed by signal: \w+|exited)"
)


def in_one_sentence(error: BaseException, settings: Config, *, epoch: int) -> BaseException:
    """Return the error to raise for one that ended a training: a TrainingError in plain words if its kind is known.

    Args:
        error: what was raised; returned itself where its kind is unknown.
        settings: the training's, some of which an error about memory may advise to lower.
        epoch: in which epoch, counted from 0.
    """
    if isinstance(error, TrainingError | FileError | ProcessError):
        return error
    sentence = _sentence(error, settings, epoch)
    return error if sentence is None else TrainingError(sentence)


def _sentence(error: BaseException, settings: Config, epoch: int) -> str | None:
    text = str(error)
    sentence = None
    if isinstance(error, RuntimeError | OSError) and _NO_SHARED_MEMORY.search(text):
        sentence = _shared_memory_sentence(settings, epoch)
    elif ran_out_of_memory(error):
        sentence = _memory_sentence(error, settings, epoch)
    elif isinstance(error, RuntimeError) and (killed := _WORKER_KILLED.search(text)):
        sentence = _killed_worker_sentence(killed, settings, epoch)
    elif _IN_A_WORKER.search(text):
        sentence = f"epoch {epoch}: {_last_words(text)}"
    elif isinstance(error, OSError | RuntimeError):
        sentence = _system_sentence(error, settings, epoch)
    return sentence


def _system_sentence(error: Exception, settings: Config, epoch: int) -> str | None:
    """Word an error of the operating system; those of writing the run folder were worded where they occurred."""
    if _NO_FILES.search(str(error)):
        fewer = ", or lower --num_workers" if settings.data.num_workers else ""
        return f"too many open files in epoch {epoch}; raise the limit with `ulimit -n`{fewer}"
    refusal = disk_error(error)
    if refusal is None or refusal.errno is None:
        return None
    if refusal.errno == errno.ENOSPC and lacks_shared_memory():
        return _shared_memory_sentence(settings, epoch)
    file = f" ({refusal.filename})" if refusal.filename else ""
    reason = f"{refusal.strerror or refusal}{file} in epoch {epoch}"
    return f"{reason}; fix the cause, then {GO_ON}"


def _shared_memory_sentence(settings: Config, epoch: int) -> str:
    free, total = shared_memory() or (0, 0)
    return (
        f"the shared memory (/dev/shm) of the data workers ran out in epoch {epoch}: {gigabytes(free)} free of "
        f"{gigabytes(total)} ({_size_in_words(settings)}); start with --num_workers 0, or {MORE_SHARED_MEMORY}"
    )


def _memory_sentence(error: BaseException, settings: Config, epoch: int) -> str:
    in_worker = _IN_A_WORKER.search(str(error)) is not None
    on_gpu = not in_worker and (isinstance(error, torch.OutOfMemoryError) or "CU" in str(error))
    requested = ""
    if asked := _ASKED_FOR.search(str(error)):
        n_bytes = float(asked["n"]) * _UNITS[asked["unit"].upper().replace("IB", "B")]
        requested = f"{gigabytes(n_bytes)} asked for, "
    free, total = _free_and_total(on_gpu)
    where = "of the GPU" if on_gpu else "of a data worker" if in_worker else "of this process"
    return (
        f"the memory {where} ran out in epoch {epoch}: {requested}{gigabytes(free)} free of {gigabytes(total)} "
        f"({_size_in_words(settings)}); {less_memory(settings, workers_first=in_worker)}"
    )


def _killed_worker_sentence(killed: re.Match[str], settings: Config, epoch: int) -> str:
    free, total = _free_and_total(on_gpu=False)
    return (
        f"data worker {killed['pid'].strip()} {killed['how']} in epoch {epoch}, as happens when memory runs out: "
        f"{gigabytes(free)} free of {gigabytes(total)} now ({_size_in_words(settings)}); "
        f"{less_memory(settings, workers_first=True)}"
    )


def _size_in_words(settings: Config) -> str:
    data = settings.data
    size = "×".join(map(str, data.target_size))
    return f"batch_size {data.batch_size}, target_size {size}, num_workers {data.num_workers}"


def _free_and_total(on_gpu: bool) -> tuple[float, float]:
    if on_gpu and torch.cuda.is_available():
        return torch.cuda.mem_get_info()
    total = memory_bytes("cpu")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return free_memory_bytes(), total if limit == resource.RLIM_INFINITY else min(total, limit)


def _last_words(text: str) -> str:
    """A worker's exception without its traceback, its type left out: the last line of the traceback."""
    last = text.rstrip().splitlines()[-1]
    return re.sub(r"^[\w.]+(?:Error|Exception): ", "", last)
