"""What broke a training, in one sentence: memory that ran out, a disk that refused, an error in a data worker."""

from __future__ import annotations

import re
import resource

import torch

from pipeline.compute.memory import free_memory_bytes, memory_bytes
from pipeline.compute.ranks import ProcessError
from pipeline.config.settings import Config
from pipeline.console.text import gigabytes
from pipeline.files.atomic import FileError, disk_error
from pipeline.training.lightning_module import TrainingError

_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|unable to allocate|std::bad_alloc|MemoryError"
    r"|ALLOC_FAILED|could not create a memory object",
    re.IGNORECASE,
)
"""How torch's allocators, numpy, oneDNN, CUDA's libraries and the system say that there was no memory left."""

_ASKED_FOR = re.compile(
    r"(?:allocate|allocate:|tried to allocate) +(?P<n>[\d.]+) ?(?P<unit>bytes|[KMGT]i?B)", re.IGNORECASE
)

_UNITS = {"BYTES": 1, **{f"{letter}B": 1024**n for n, letter in enumerate("KMGT", start=1)}}

_IN_A_WORKER = re.compile(r"in DataLoader worker process \d+\.\nOriginal ")
"""torch raises a worker's exception anew, of the same type, with the worker's whole traceback as its message."""

_NO_FILES = re.compile("too many open files", re.IGNORECASE)
"""The system's words, which torch repeats without the OSError when batches come from workers."""

_WORKER_KILLED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ?(?P<pid>[\d, ]+)\) (?P<how>is killed by signal: \w+|exited)"
)


def in_one_sentence(error: BaseException, config: Config, *, epoch: int) -> BaseException:
    """Give the error to raise for one that ended a training: worded for a person where its kind is known, else itself.

    Args:
        error: what was raised.
        config: the settings, for the ones that help.
        epoch: in which epoch, counted from 0.
    """
    text = str(error)
    if isinstance(error, TrainingError | FileError | ProcessError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(text):
        return TrainingError(_memory_sentence(error, config, epoch))
    if isinstance(error, RuntimeError) and (killed := _WORKER_KILLED.search(text)):
        return TrainingError(_killed_worker_sentence(killed, config, epoch))
    if _IN_A_WORKER.search(text):
        return TrainingError(f"epoch {epoch}: {_last_words(text)}")
    if isinstance(error, OSError | RuntimeError) and (said := _system_sentence(error, config, epoch)):
        return TrainingError(said)
    return error


def _system_sentence(error: Exception, config: Config, epoch: int) -> str | None:
    """Word what the system refused; the run folder's own disk errors have been worded where they were written."""
    if _NO_FILES.search(str(error)):
        fewer = ", or lower --num_workers" if config.data.num_workers else ""
        return f"too many open files in epoch {epoch}; raise the limit with `ulimit -n`{fewer}"
    refusal = disk_error(error)
    if refusal is None or refusal.errno is None:
        return None
    file = f" ({refusal.filename})" if refusal.filename else ""
    reason = f"{refusal.strerror or refusal}{file} in epoch {epoch}"
    return f"{reason}; see to its cause and go on with --resume"


def _memory_sentence(error: BaseException, config: Config, epoch: int) -> str:
    in_worker = _IN_A_WORKER.search(str(error)) is not None
    on_gpu = not in_worker and (isinstance(error, torch.OutOfMemoryError) or "CU" in str(error))
    asked = _ASKED_FOR.search(str(error))
    wanted = (
        f"{gigabytes(float(asked['n']) * _UNITS[asked['unit'].upper().replace('IB', 'B')])} asked for, "
        if asked
        else ""
    )
    free, total = _free_and_total(on_gpu)
    where = "of the GPU" if on_gpu else "of a data worker" if in_worker else "of this process"
    return (
        f"the memory {where} ran out in epoch {epoch}: {wanted}{gigabytes(free)} free of {gigabytes(total)} "
        f"({_size_in_words(config)}); {_remedies(config, workers_first=in_worker)}"
    )


def _killed_worker_sentence(killed: re.Match[str], config: Config, epoch: int) -> str:
    free, total = _free_and_total(on_gpu=False)
    return (
        f"data worker {killed['pid'].strip()} {killed['how']} in epoch {epoch}, as happens when memory runs out: "
        f"{gigabytes(free)} free of {gigabytes(total)} now ({_size_in_words(config)}); "
        f"{_remedies(config, workers_first=True)}"
    )


def _size_in_words(config: Config) -> str:
    size = "×".join(map(str, config.data.target_size))
    return f"batch_size {config.data.batch_size}, target_size {size}, num_workers {config.data.num_workers}"


def _remedies(config: Config, *, workers_first: bool) -> str:
    """Name three settings that help and are not yet as low as they go, the least costly first."""
    is_body_net = config.model.network is None
    known = {
        "lower --num_workers": workers_first and config.data.num_workers > 0,
        "lower --batch_size": config.data.batch_size > 1,
        "set --model.checkpointing true": is_body_net and not config.model.checkpointing,
        "choose a smaller --target_size": True,
        "train the light model (--use_light_model)": is_body_net and not config.model.use_light_model,
        "lower --base_channels": is_body_net and config.model.base_channels > 1,
    }
    return ", or ".join([remedy for remedy, helps in known.items() if helps][:3])


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
