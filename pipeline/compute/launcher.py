"""Start the other processes of a training on this machine with this one's command line, watch them, end them together.

Lightning starts processes too, but kills the first one five seconds after another has died, before it could say why.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from pipeline.compute.ranks import (
    STARTED_BY,
    THIS_PROGRAM,
    ProcessError,
    is_lost_connection,
    n_processes,
    read_rank,
    reported_failure,
)
from pipeline.compute.signals import STOPPING, handling
from pipeline.console.text import one_line

GRACE_S = 10.0
"""Seconds that a process has to end by itself after another one of its training has."""

EXIT_LOST = 2
"""Exit code of a process that could not end by itself."""

GO_ON = "continue with --resume (a cross-validation: repeat its command)"
"""What to do once the cause is gone."""

_POLL_S = 0.5


@dataclass(frozen=True)
class Others:
    """The other processes of a training, which import what they need and wait for `launch`."""

    children: list[subprocess.Popen]
    environment: dict[str, str]
    """The variables that torchrun sets, of this process."""

    def begin(self) -> None:
        """Let them go on."""
        for child in self.children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):  # it has ended: the watch says so
                child.stdin.write(b"\n")
                child.stdin.flush()


@contextlib.contextmanager
def others_ready(n: int, *, command: Sequence[str] | None = None, grace_s: float = GRACE_S) -> Iterator[Others | None]:
    """Start n − 1 more processes of this machine, unless somebody has started them already: they import meanwhile.

    In those, this waits until the first one calls `launch`, and ends the process where it does not come to that.

    Args:
        n: processes of this machine, this one included.
        command: the program of the other processes; None: this one's own.
        grace_s: seconds that a process has to end by itself after the first one has.

    Raises:
        ProcessError: this process's own command cannot be repeated.
    """
    if STARTED_BY in os.environ:
        end_with_parent(int(os.environ[STARTED_BY]), grace_s)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        if not sys.stdin.buffer.read(1):
            sys.exit(0)
        yield None
    elif n == 1 or read_rank().world_size > 1:
        yield None
    else:
        with socket.socket() as port:  # kept from other programs; torch listens there, since both ask for SO_REUSEADDR
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(("127.0.0.1", 0))
            environment = _environment(n, port.getsockname()[1])
            children: list[subprocess.Popen] = []
            try:
                heard: list[int] = []
                with handling(lambda number, _: heard.append(number)):  # later, when all that were started are known
                    # They hear of signals once they wait: Ctrl-C, which all get, is for this process to tell.
                    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
                    try:
                        for rank in range(1, n):
                            children.append(_start(command or _own_command(n), environment, rank))
                    finally:
                        signal.pthread_sigmask(signal.SIG_SETMASK, before)
                if heard:
                    signal.raise_signal(heard[0])
                yield Others(children, environment)
            finally:
                end_children(children)
                for child in children:
                    with contextlib.suppress(OSError):
                        child.stdin.close()  # type: ignore[union-attr]  # a pipe


@contextlib.contextmanager
def launch(
    others: Others | None,
    when_lost: Callable[[str], None],
    *,
    grace_s: float = GRACE_S,
) -> Iterator[None]:
    """Train inside together with the processes that `others_ready` has started; None: alone, or as one of them.

    Args:
        others: the other processes.
        when_lost: called with a sentence, from another thread, where this process has to be ended because it still
            waits for one that has died, as in a rendezvous or on a GPU.
        grace_s: seconds that a process has to end by itself after another one has.

    Raises:
        ProcessError: another process has ended, with its own reason where it left one; or they did not meet.
    """
    if others is not None:
        with variables(others.environment):
            others.begin()
            patience_s = _POLL_S
            try:
                with _watched(others.children, when_lost, grace_s), _in_words(others.children):
                    yield
                patience_s = grace_s
            finally:
                end_children(others.children, patience_s)
    elif read_rank().world_size > 1:
        with _in_words([]):
            yield
    else:
        yield


@contextlib.contextmanager
def _in_words(children: list[subprocess.Popen]) -> Iterator[None]:
    """Say what became of a process whose connection was lost; leave the others when the training is over."""
    try:
        yield
    except BaseException as error:
        if is_lost_connection(error):
            raise ProcessError(_what_became(children, error)) from error
        raise
    if dist.is_initialized():
        dist.destroy_process_group()


def _what_became(children: list[subprocess.Popen], error: BaseException) -> str:
    """Word an error between processes: the other's own reason, how a child ended, else what the connection says."""
    if dist.is_initialized():
        reason = one_line(error, 200)
        lost = f"another process has ended or cannot be reached ({reason})"
        return _sentence(reported_failure() or _dead(children, wait_s=2.0) or lost)
    dead = _dead(children, wait_s=2.0)
    return _sentence(dead) if dead else _not_met(str(error))


def _not_met(error: str) -> str:
    """Word why the processes did not meet: torch's error as they gather at the first one's address."""
    here = read_rank()
    of_ours = here.started_by == THIS_PROGRAM
    if "EADDRINUSE" in error:
        remedy = "start again" if of_ours else "start all of them again with another MASTER_PORT"
        return f"port {here.port} of {here.address} is taken, perhaps by another training; {remedy}"
    joined = re.search(r"(\d+)/(\d+) clients joined", error)
    who = f"only {joined[1]} of {joined[2]} processes" if joined else f"process {here.rank} of {here.world_size} alone"
    reason = one_line(error, 200)
    return (
        f"{who} came to {here.address}:{here.port}, where all were to meet ({reason}); see why the others did not "
        "start, whether all can reach that address, and set another MASTER_PORT where the port is taken"
    )


def _environment(n: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets, for this process as the first of n."""
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        STARTED_BY: str(os.getpid()),
    }


@contextlib.contextmanager
def variables(ours: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while: the further processes of a training inherit them."""
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(command: Sequence[str], environment: Mapping[str, str], rank: int) -> subprocess.Popen:
    own = os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return subprocess.Popen(command, env=own, stdin=subprocess.PIPE)


def _own_command(n: int) -> list[str]:
    """This process's own command, as Lightning repeats it too."""
    import __main__  # whatever was started

    specification = getattr(__main__, "__spec__", None)
    if specification is not None:
        return [sys.executable, "-m", specification.name.removesuffix(".__main__"), *sys.argv[1:]]
    script = Path(sys.argv[0])
    if not script.is_file():
        raise ProcessError(
            f"a training with {n} processes starts its program again, and {sys.argv[0] or 'this session'!r} is not "
            "a file; use `bodyseg train`, a script, or torchrun"
        )
    return [sys.executable, str(script.resolve()), *sys.argv[1:]]


def end_children(children: Sequence[subprocess.Popen], patience_s: float = 0.0) -> None:
    """Wait until the children have ended too; end those that do not."""
    until = time.monotonic() + patience_s
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, until - time.monotonic()))
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextlib.contextmanager
def _watched(children: list[subprocess.Popen], when_lost: Callable[[str], None], grace_s: float) -> Iterator[None]:
    """End this process where it has not ended by itself some time after a child has failed."""
    ending = threading.Event()

    def watch() -> None:
        while not ending.wait(_POLL_S):
            if any(child.poll() for child in children) and not ending.wait(grace_s):
                when_lost(_sentence(reported_failure(0.0) or _dead(children) or "another process has ended"))
                end_children(children)
                os._exit(EXIT_LOST)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ending.set()


def _dead(children: list[subprocess.Popen], wait_s: float = 0.0) -> str | None:
    """Say which child has ended, and how; the connection may break a moment before the process is gone.

    None where all of them run or have ended well.
    """
    until = time.monotonic() + wait_s
    while children and not any(child.poll() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    for rank, child in enumerate(children, start=1):
        if code := child.poll():
            if code > 0:
                return f"process {rank} ended with exit code {code}"
            memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
            return f"process {rank} was ended by {signal.Signals(-code).name}{memory}"
    return None


def _sentence(what: str) -> str:
    n = n_processes() if n_processes() > 1 else read_rank().world_size
    return f"{what}; the training of {n} processes ended with it; fix the cause, then {GO_ON}"


def end_with_parent(parent: int, grace_s: float = 0.0) -> None:
    """From now on, end this process `grace_s` seconds after its parent has ended, however that happened.

    Args:
        parent: process id of the parent, as it was when this process was started.
        grace_s: time to end by itself, in seconds.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        time.sleep(grace_s)
        os._exit(EXIT_LOST)

    threading.Thread(target=watch, daemon=True).start()
