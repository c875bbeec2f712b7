"""What a training says that ran out of memory, files or workers."""

from __future__ import annotations

import os
import re
import resource
import shutil
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.training.lightning_module import TrainingError
from tests.support.tiny_training import complaint, ended, ending_of, go_on, summary, train


def starve():
    """Leave this process 48 MiB beyond what it has."""
    limit = psutil.Process().memory_info().vms + 48 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.fault(
    "a training that needs more memory than it may have",
    "one line with the memory asked for and there, and three settings that help",
)
def test_running_out_of_memory_is_said_with_the_numbers_and_the_settings_that_help(work):
    settings = {"base_channels": "8", "target_size": "64 64 64", "batch_size": "2"}
    process, run, output = train(work, "starved", before=starve, **settings)
    said = complaint(ended(process, run, output, code=2))
    # Where it ends inside oneDNN nothing says how much was asked for.
    numbers = r"(\d+\.\d+ [GM]B asked for, )?(0\.0\d G|\d\.\d M)B free"
    assert re.search(f"the memory of this process ran out in epoch 0: {numbers}", said)
    assert "(batch_size 2, target_size 64×64×64, num_workers 0)" in said
    assert "lower --batch_size, or set --model.checkpointing true, or choose a smaller --target_size" in said
    found = summary(run)
    assert (found["status"], f"bodyseg: {found['reason']}") == ("failed", said)


@pytest.mark.fault(
    "a data worker killed by the kernel", "one line that says so and what helps, exit 2; `--resume` goes on"
)
def test_a_killed_data_worker_ends_the_training_and_says_what_helps(work):
    process, run, output = train(work, "bereft", num_workers="1", pause=1)
    for worker in psutil.Process(process.pid).children():
        worker.kill()
    go_on(process)
    said = complaint(ended(process, run, output, code=2))
    assert re.search(r"data worker \d+ (is killed by signal: Killed|exited) in epoch \d+, as happens when memory", said)
    assert "lower --num_workers" in said
    assert summary(run)["status"] == "failed"


@pytest.mark.fault(
    "a case that disappears, read by a data worker", "one line with the case; the worker's own traceback under --debug"
)
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_in_a_data_worker_reaches_the_top_with_the_case(work, tmp_path, debug):
    shutil.copytree(work / "data", tmp_path / "data")
    shutil.copytree(work / "cache", tmp_path / "cache")
    places = {"dataset_root": str(tmp_path / "data"), "data.cache_dir": str(tmp_path / "cache")}
    name = f"lost{debug}"
    process, run, output = train(work, name, *["--debug"] * debug, num_workers="1", pause=1, **places)
    shutil.rmtree(tmp_path / "data")
    for entry in (path for path in (tmp_path / "cache").rglob("*") if path.is_file()):
        entry.unlink()
    go_on(process)
    said = ended(process, run, output, code=1 if debug else 2)
    reason = summary(run)["reason"]
    assert "case body_0" in reason
    if debug:
        assert "in DataLoader worker process 0" in said
        assert 'cached_dataset.py", line' in said
    else:
        assert complaint(said) == f"bodyseg: {reason}"


def open_one_too_many():
    """Meet the system's own refusal of one more file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        Path(os.devnull).open().close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_one_too_many_as_torch():
    """As a DataLoader does it (torch 2.13, _try_get_data)."""
    try:
        open_one_too_many()
    except OSError:
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.") from None


@pytest.mark.fault("too many open files", "one line with the limit to raise, exit 2")
@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (
            partial(open, "/no/such/scan.nii.gz"),
            r"No such file or directory \(/no/such/scan.nii.gz\) in epoch 0; fix the",
        ),
        (open_one_too_many, r"^too many open files in epoch 0; raise the limit with `ulimit -n`, or lower --num_"),
        (open_one_too_many_as_torch, r"^too many open files in epoch 0; raise the limit with `ulimit -n`, or lower"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_said_to_be_unwritable(work, raised, words):
    with (
        pytest.raises(TrainingError, match=words) as caught,
        ending_of(work, "unreadable", num_workers=2) as (_, run),
    ):
        raised()
    assert summary(run)["reason"] == str(caught.value)
    assert "written" not in str(caught.value)
