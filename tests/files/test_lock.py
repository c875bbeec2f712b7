"""Locks keep other processes out, say who holds them, and end with their process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from pipeline.files.lock import alone, lock_holder, take_lock
from tests.support.paths import ROOT
from tests.support.small_disk import small_disk

HOLDS = """
import sys
from pathlib import Path
from pipeline.files.lock import take_lock
print(take_lock(Path(sys.argv[1])) is not None, flush=True)
sys.stdin.read()
"""


def test_another_process_is_kept_out_and_named_until_it_ends_however_it_ends(tmp_path):
    path = tmp_path / "a.lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen([sys.executable, "-c", HOLDS, path], **pipes) as other:
            assert other.stdout.readline() == b"True\n"
            assert take_lock(path) is None
            assert lock_holder(path).startswith(f"process {other.pid} on ")
            other.send_signal(end)
        lock = take_lock(path)  # what the dead process left is ignored
        assert lock is not None
        assert lock_holder(path).startswith(f"process {os.getpid()} on ")
        lock.release()
        assert list(tmp_path.iterdir()) == []


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path):
    (tmp_path / "a.lock").write_bytes(b"\x1b]0;title\x07")
    assert lock_holder(tmp_path / "a.lock") == lock_holder(tmp_path / "absent") == "another process"


def test_a_lock_that_a_full_disk_refuses_leaves_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "16k") as disk:
        with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError, match="No space left"):
            take_lock(disk / "a.lock")
        assert [path.name for path in disk.iterdir()] == ["full"]


def test_who_waits_for_a_holder_says_so_once_and_comes_in_when_that_has_ended(tmp_path):
    path, said = tmp_path / "a.lock", []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", HOLDS, path], **pipes) as other:
        assert other.stdout.readline() == b"True\n"

        def waiting():
            said.append(lock_holder(path))
            other.kill()

        with alone(path, waiting):
            assert lock_holder(path).startswith(f"process {os.getpid()} on ")
    assert [holder.partition(" on ")[0] for holder in said] == [f"process {other.pid}"]
    assert list(tmp_path.iterdir()) == []
