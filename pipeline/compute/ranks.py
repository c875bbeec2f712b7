"""The processes that train together: read this one's rank as torchrun or SLURM set it, and exchange values.

`launcher` starts the processes where nobody else has.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STARTED_BY = "BODYSEG_STARTED_BY"
"""Environment variable of a process that `launcher` started: the process id of the one that did."""

THIS_PROGRAM = "this program"

PATIENCE_S = 20.0
"""Seconds that the other processes wait for the first one to write its files."""

_FAILURE, _WRITTEN = "bodyseg/failure", "bodyseg/written"


class ProcessError(RuntimeError):
    """Another process of the training has ended, or cannot be started; one line that says which and what to do."""

    is_input_error = True


@dataclass(frozen=True)
class Rank:
    """Which of the processes that train together this is; a process alone is 0 of 1."""

    rank: int = 0
    """Number of this process among all."""
    world_size: int = 1
    """How many processes train together."""
    local_rank: int = 0
    """Number of this process among those of its machine."""
    local_world_size: int = 1
    """How many processes this machine runs."""
    node: int = 0
    """Number of this machine."""
    address: str = "127.0.0.1"
    """Where the processes find each other."""
    port: int = 0
    """Port at that address."""
    started_by: str = ""
    """Who started the processes, for messages: torchrun, SLURM, or this program."""

    @property
    def n_nodes(self) -> int:
        """Machines that take part, where each runs as many processes as this one."""
        return max(1, self.world_size // self.local_world_size)


def read_rank(environment: Mapping[str, str] | None = None) -> Rank:
    """Read this process's rank from the environment (its own, unless another is given).

    torchrun, and whoever starts processes by hand, sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
    (and LOCAL_WORLD_SIZE where there is more than one machine); srun sets SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID
    and SLURM_NTASKS. The former count inside the latter: torchrun may run in a SLURM job.

    Raises:
        ProcessError: a variable is missing or not a number.
    """
    given = os.environ if environment is None else environment
    if _number(given, "WORLD_SIZE", 1) > 1 and "RANK" in given:
        return _rank_by_torchrun(given)
    if _n_slurm_tasks(given) > 1:
        return _rank_by_slurm(given)
    return Rank()


def _rank_by_torchrun(given: Mapping[str, str]) -> Rank:
    world_size = _number(given, "WORLD_SIZE")
    return Rank(
        rank=_number(given, "RANK"),
        world_size=world_size,
        local_rank=_number(given, "LOCAL_RANK"),
        local_world_size=_number(given, "LOCAL_WORLD_SIZE", world_size),
        node=_number(given, "GROUP_RANK", 0),
        address=_text(given, "MASTER_ADDR"),
        port=_number(given, "MASTER_PORT"),
        started_by=THIS_PROGRAM if STARTED_BY in given else "torchrun",
    )


def _rank_by_slurm(given: Mapping[str, str]) -> Rank:
    world_size, n_nodes = _n_slurm_tasks(given), _number(given, "SLURM_NNODES", 1)
    if world_size % n_nodes:
        raise ProcessError(
            f"SLURM runs {world_size} tasks on {n_nodes} nodes; every node needs equally many: use --ntasks-per-node"
        )
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or given.get("SLURM_NODELIST", "")
    return Rank(
        rank=_number(given, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(given, "SLURM_LOCALID"),
        local_world_size=world_size // n_nodes,
        node=_number(given, "SLURM_NODEID", 0),
        address=given.get("MASTER_ADDR") or first_node(nodes) or "127.0.0.1",
        # Every process of a job finds the same port, and two jobs on one machine rarely do.
        port=_number(given, "MASTER_PORT", 15000 + _number(given, "SLURM_JOB_ID", 0) % 10000),
        started_by="SLURM",
    )


def _n_slurm_tasks(given: Mapping[str, str]) -> int:
    """Tasks of this job step; 1 in a batch script itself, where SLURM_NTASKS says what srun would start."""
    if "SLURM_PROCID" not in given or "SLURM_LOCALID" not in given:
        return 1
    if "SLURM_STEP_ID" not in given and "SLURM_STEPID" not in given and "SLURM_STEP_NUM_TASKS" not in given:
        return 1
    return _number(given, "SLURM_STEP_NUM_TASKS", _number(given, "SLURM_NTASKS", 1))


def first_node(nodes: str) -> str:
    """The first host of a SLURM node list: "gpu[07-09,12],cpu1" gives "gpu07"."""
    host = re.match(r"([^\[,\s]*)(?:\[([^\],-]*)[^\]]*\])?([^\[,\s]*)", nodes)
    return "".join(part or "" for part in host.groups()) if host else ""


def _text(given: Mapping[str, str], name: str) -> str:
    if not given.get(name):
        raise ProcessError(f"environment variable {name} is missing; torchrun sets it, or set it in every process")
    return given[name]


def _number(given: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and not given.get(name):
        return default
    text = _text(given, name)
    if not re.fullmatch(r"\d{1,9}", text):
        raise ProcessError(f"environment variable {name}: expected a number of 0 or more, found {text!r:.40}")
    return int(text)


def is_first_process() -> bool:
    """Whether this is the process that writes files and prints; the only one of a training in one process.

    Right before and after the processes have found each other.
    """
    return dist.get_rank() == 0 if _are_connected() else read_rank().rank == 0


def n_processes() -> int:
    """How many processes are connected: 1 before a training has begun, and in one of one process."""
    return dist.get_world_size() if _are_connected() else 1


def _are_connected() -> bool:
    return dist.is_available() and dist.is_initialized()


# Exchanging values ------------------------------------------------------------------------------------------------


def gathered(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes along the first axis, in the processes' order; of equal shape in all.

    Every process gets the same bits, which a sum on the way would not promise. Carries no gradient.
    """
    if n_processes() == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(n_processes())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def highest(number: int, device: torch.device) -> int:
    """The highest of the processes' numbers; waits until all of them call this."""
    if n_processes() == 1:
        return number
    return int(gathered(torch.tensor([number], device=device)).max())


def gather_texts(text: str) -> list[str]:
    """Every process's text, in the processes' order; waits until all of them call this."""
    if n_processes() == 1:
        return [text]
    texts: list[Any] = [None] * n_processes()
    dist.all_gather_object(texts, text)
    return texts


def report_failure(text: str) -> None:
    """Leave the reason of this process's end where the first process looks for it, see `reported_failure`."""
    if n_processes() > 1:
        with contextlib.suppress(Exception):  # the store lives in the first process, which may be gone
            _store().set(_FAILURE, f"process {dist.get_rank()}: {text}")


def reported_failure(wait_s: float = 2.0) -> str | None:
    """The reason that another process reported before it ended; None where none did within the time."""
    if n_processes() == 1:
        return None
    until = time.monotonic() + wait_s
    with contextlib.suppress(Exception):
        while not _store().check([_FAILURE]):
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
        return _store().get(_FAILURE).decode(errors="replace")
    return None


def end_after_the_first() -> None:
    """Let the first process end before the others: torchrun and SLURM send the rest SIGTERM as soon as one has ended.

    The first one calls this when its files are written.
    """
    if n_processes() == 1:
        return
    with contextlib.suppress(Exception):  # the store is gone: so is the first process
        if is_first_process():
            _store().set(_WRITTEN, "")
            return
        until = time.monotonic() + PATIENCE_S
        while not _store().check([_WRITTEN]) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1.0)  # it still has a line to print


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process has gone: torch has no one type for it on all backends."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, dist.DistError) or re.search(r"gloo[/\\]|Connection (closed|reset) by peer", str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
