"""Locks keep other processes out, say who holds them, and end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from pipeline.files.lock import lock_holder, take_lock
from tests.support.paths import ROOT

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
