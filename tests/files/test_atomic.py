"""A file is written whole or not at all: against readers, kills, full disks and missing permissions."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.files.atomic import FileError, check_writable, remove_half_written, renamed_together, write_atomically
from pipeline.files.json_files import write_json
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from tests.support.finished_run import start
from tests.support.killed_writer import KILLED
from tests.support.paths import ROOT

WRITER = """
import sys
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
folder, log = RunFolder(sys.argv[1], "run"), TrainingLog()
for epoch in range(10_000):
    log.append_epoch(epoch, train_loss=1 / 3, train_accuracy=None, val_loss=2.0, val_mIoU=epoch / 7, learning_rate=1e-4)
    folder.write_log(log)
    print(epoch, flush=True)
"""

KILLED_ELSEWHERE = "import socket; socket.gethostname = lambda: 'node-7.cluster'" + KILLED


def writer(log_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(log_dir)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_reader_never_meets_a_half_written_log(tmp_path):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    folder.write_log(TrainingLog())
    lengths = []
    with writer(tmp_path) as process:
        while len(set(lengths)) <= 20:
            assert process.poll() is None
            history = json.loads(folder.log.read_bytes())["training_history"]
            assert len({len(values) for values in history.values()}) == 1
            lengths.append(len(history["epoch"]))
        process.kill()
    assert lengths == sorted(lengths)
    assert len(folder.read_log()) >= lengths[-1]


def test_a_log_is_whole_after_a_kill_at_any_moment(tmp_path):
    folder, moments = RunFolder(tmp_path, "run"), random.Random(0)
    start(folder)
    for _ in range(5):
        with writer(tmp_path) as process:
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            said = [int(line) for line in process.stdout.read().split()]
        assert len(folder.read_log()) >= (said[-1] + 1 if said else 1)


@pytest.mark.parametrize(
    "write",
    [
        lambda stream: stream.write(bytes(100_000)),
        lambda stream: torch.save({"w": torch.zeros(100_000)}, stream),  # hides the disk's error under one of its own
    ],
)
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, write):
    path = tmp_path / "best_model.ckpt"
    path.write_bytes(b"good")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(FileError, match=r"best_model\.ckpt: cannot be written \(File too large\); raise the limit"):
            write_atomically(path, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"good"]


def test_a_folder_without_permission_is_named_and_the_old_file_stays(tmp_path):
    folder = RunFolder(tmp_path, "run")
    start(folder)
    folder.write_log(TrainingLog())
    before = folder.log.read_bytes()
    user = os.geteuid()
    folder.path.chmod(0o555)
    if user == 0:
        os.seteuid(65534)  # root writes everywhere
    try:
        with pytest.raises(FileError, match=r"training_log\.json: cannot be written \(Permission denied\); make the"):
            folder.write_log(TrainingLog())
    finally:
        os.seteuid(user)
        folder.path.chmod(0o755)
    assert folder.log.read_bytes() == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_mid_write_passes_through_and_leaves_nothing(tmp_path, error):
    def fail(stream):
        stream.write(b"half")
        raise error

    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(error):
        write_atomically(path, fail)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_are_as_readable_as_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == mode


def test_what_a_killed_writer_left_is_removed_and_what_living_ones_write_stays(tmp_path):
    path = tmp_path / "best_model.ckpt"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    remove_half_written(tmp_path / "other.ckpt")
    assert left.exists()
    (tmp_path / ".hidden.writing").touch()  # not one of ours

    def tidy_meanwhile(stream):
        stream.write(b"whole")
        remove_half_written(path)
        remove_half_written(tmp_path)
        assert not left.exists()

    write_atomically(path, tidy_meanwhile)
    assert path.read_bytes() == b"whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden.writing", "best_model.ckpt"]


def test_what_another_host_writes_stays_until_nobody_has_written_for_an_hour(tmp_path):
    path = tmp_path / "best_model.ckpt"
    subprocess.run([sys.executable, "-c", KILLED_ELSEWHERE, str(path)], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    remove_half_written(path)
    remove_half_written(tmp_path)
    assert left.exists()
    os.utime(left, (time.time() - 4000,) * 2)
    remove_half_written(tmp_path)
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    check_writable(tmp_path / "to" / "be" / "made")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "else")
    for folder in ("file", "file/below", "dangling", "dangling/below"):
        with pytest.raises(
            FileError, match=rf"{folder}: cannot be written \(expected a folder, .* is not one\); name another"
        ):
            check_writable(tmp_path / folder)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root writes everywhere
    try:
        with pytest.raises(FileError, match=r"closed/x: cannot be written \(Permission denied: .*\); make"):
            check_writable(closed / "x")
    finally:
        os.seteuid(user)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_that_belong_together_replace_the_old_ones_when_all_are_on_the_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    seen = []
    with renamed_together(lambda kept: seen.append({path.name: kept[path].read_bytes() for path in kept})):
        for name, content in (("a", b"twice"), ("b", b"new b"), ("a", b"new a")):
            write_atomically(tmp_path / name, lambda stream, content=content: stream.write(content))
        assert (tmp_path / "a").read_bytes() == b"old"
    assert seen == [contents(tmp_path)] == [{"a": b"new a", "b": b"new b"}]


@pytest.mark.parametrize("fails", ["inside", "before", "renaming"])
def test_of_files_that_belong_together_all_or_none_are_written(tmp_path, fails):
    def fail(kept):
        if fails == "before":
            raise FileError("before")
        (tmp_path / "b").mkdir()

    def write_both():
        with renamed_together(fail):
            for name in "ab":
                write_atomically(tmp_path / name, lambda stream: stream.write(b"new"))
            if fails == "inside":
                raise FileError("inside")

    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(FileError):
        write_both()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["old"]
