"""Trainings whose disk fills up, turns read-only, or refuses a file, or whose folders are removed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import subprocess

import pytest
import torch

from tests.support.small_disk import small_disk
from tests.support.tiny_training import (
    WHOLE,
    complaint,
    differences,
    ended,
    go_on,
    n_epochs,
    start,
    summary,
    tiny_training,
    train,
)

FAILED = 'one line, exit 2, "failed" with the reason; old files whole'


def hindered(work, name, hinder, *, before=None, **settings):
    """Train one epoch, hinder the disk, and let it go on; the run, its complaint, and best_model.ckpt before."""
    process, run, output = train(work, name, before=before, pause=1, **settings)
    best = (run / "checkpoints" / "best_model.ckpt").read_bytes()
    hinder(process, run)
    go_on(process)
    return run, complaint(ended(process, run, output, code=2)), best


def unharmed(run, best):
    """The old weights are there, whole, and nothing half written is beside them; the log is valid."""
    checkpoint = run / "checkpoints" / "best_model.ckpt"
    assert checkpoint.read_bytes() == best
    assert torch.load(checkpoint, weights_only=True)["format"] == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best_model.ckpt"]
    assert n_epochs(run) >= 1


@pytest.mark.fault("a checkpoint that the disk refuses (file size limit)", FAILED)
def test_a_refused_checkpoint_ends_the_training_as_failed_with_the_old_one_untouched(work):
    def limit(process, run):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    run, said, best = hindered(work, "limited", limit)
    assert "ckpt: cannot be written (File too large); raise the limit of a file's size" in said
    assert "; the old file is untouched" in said
    unharmed(run, best)
    assert (summary(run)["status"], f"bodyseg: {summary(run)['reason']}") == ("failed", said)
    settings = {"max_epochs": str(n_epochs(run) + 1)}
    command, _ = tiny_training(work, "limited", max_epochs=1)
    process = start([*command, "--resume", "--max_epochs", settings["max_epochs"]], work / "limited.txt")
    ended(process, run, work / "limited.txt", code=0)
    assert summary(run)["total_epochs"] == int(settings["max_epochs"])


@pytest.fixture
def disk(work, request):
    with small_disk(work / request.node.name, "4m") as disk:
        yield disk


@pytest.mark.fault(
    "a disk that is full to the last byte", "one line, exit 2; old files whole; `--resume` after freeing space"
)
def test_a_full_disk_ends_the_training_clearly_and_it_goes_on_once_there_is_space(work, disk):
    ballast = disk / "ballast"

    def fill(process, run):
        with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))

    run, said, best = hindered(work, "full", fill, log_dir=str(disk))
    assert "cannot be written (No space left on device); free space on that disk" in said
    unharmed(run, best)
    assert not (run / "training_summary.json").exists()  # there was no byte for it
    ballast.unlink()
    last = n_epochs(run) + 1
    process, run, output = train(work, "full", "--resume", max_epochs=last, log_dir=str(disk))
    ended(process, run, output, code=0)
    assert summary(run)["status"] == "completed"


@pytest.mark.fault("a disk that becomes read-only", "one line, exit 2; old files whole")
def test_a_disk_that_becomes_read_only_ends_the_training_clearly(work, disk):
    def freeze(process, run):
        # files open for writing would keep the disk busy: a bind mount over the checkpoints turns alone
        folder = str(run / "checkpoints")
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

    run, said, best = hindered(work, "frozen", freeze, log_dir=str(disk))
    try:
        assert "best_model.ckpt: cannot be written (Read-only file system); make the folder writable" in said
        unharmed(run, best)
        assert (summary(run)["status"], f"bodyseg: {summary(run)['reason']}") == ("failed", said)
    finally:
        subprocess.run(["umount", "-l", str(run / "checkpoints")], check=True)


def heed_permissions():
    """Give up the privilege of an administrator to write where nobody may (CAP_DAC_OVERRIDE, capabilities(7))."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: the lower 32 bits, then the upper
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1)
    assert libc.capset(header, sets) == 0


@pytest.mark.fault("a checkpoint folder that loses its write permission", FAILED)
def test_a_lost_permission_is_not_swallowed(work):
    def forbid(process, run):
        (run / "checkpoints").chmod(0o555)

    run, said, best = hindered(work, "forbidden", forbid, before=heed_permissions)
    assert "best_model.ckpt: cannot be written (Permission denied); make the folder writable" in said
    unharmed(run, best)
    assert (summary(run)["status"], f"bodyseg: {summary(run)['reason']}") == ("failed", said)


def removed(work, name, folder, *, code, **settings):
    """Remove a folder after the first epoch of a training; its run folder and what it said until its end."""
    process, run, output = train(work, name, pause=1, **settings)
    shutil.rmtree(folder(run))
    go_on(process)
    return run, ended(process, run, output, code=code)


@pytest.mark.fault(
    "TensorBoard's folder removed during a training", "one warning; the training goes on, and so do later curves"
)
def test_without_tensorboards_folder_a_training_goes_on(work):
    run, said = removed(work, "untracked", lambda run: run / "version_0", code=0)
    assert said.count("the training goes on without its curves") == said.count("WARNING") == 1
    assert differences(work / "logs" / WHOLE, run) == []
    assert len(list((run / "version_0").glob("events.out.tfevents.*"))) == 1


@pytest.mark.fault(
    "the cache folder removed during a training", "the cases are prepared again; the result is the same bit for bit"
)
def test_without_its_cache_folder_a_training_prepares_its_cases_again(work):
    cache = work / "removed_cache"
    run, said = removed(work, "uncached", lambda _: cache, code=0, **{"data.cache_dir": str(cache)})
    assert "WARNING" not in said
    assert differences(work / "logs" / WHOLE, run) == []
    assert {path.suffix for path in cache.iterdir()} - {".jsonl"} == {".TAG", ".bodycase"}  # and its index


@pytest.mark.fault("the run folder removed during a training", "one line that says so, exit 2")
def test_a_removed_run_folder_is_said_to_be_gone(work):
    run, said = removed(work, "gone", lambda run: run, code=2)
    assert complaint(said).endswith("(No such file or directory); there is no such folder (any more)")
    assert not run.exists()
