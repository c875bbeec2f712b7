"""How many processes prepare batches, on machines with few cores and little shared memory."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import pipeline.train
from pipeline.config.settings import Config, ConfigError, DataConfig
from pipeline.train import _data_workers
from pipeline.training.data_workers import choose_data_workers
from pipeline.training.failures import in_one_sentence
from pipeline.training.patch_schedule import PatchSchedule
from tests.support.tiny_training import complaint, ended, start, summary, tiny_training, train

DOCKER = 64 * 2**20
"""Shared memory of a container by default."""


@pytest.mark.parametrize(
    ("asked", "batch", "cores", "free", "number", "prefetched"),
    [
        (4, 10**6, 8, None, 4, 2),
        (4, 10**6, 8, DOCKER, 4, 2),
        (4, 10**6, 2, DOCKER, 2, 2),
        (0, 10**9, 8, DOCKER, 0, 2),
        (4, 8 * 10**6, 8, DOCKER, 4, 1),
        (4, 20 * 10**6, 8, DOCKER, 2, 1),
        (1, 31 * 10**6, 8, DOCKER, 1, 1),
    ],
)
def test_as_many_workers_as_cores_and_shared_memory_allow(asked, batch, cores, free, number, prefetched):
    chosen = choose_data_workers(asked, batch, cores=cores, shared_free=free)
    assert (chosen.number, chosen.prefetched) == (number, prefetched)
    if free is not None and number:
        assert (number * prefetched + 1) * batch <= free
    assert bool(chosen.note) == ((chosen.number, chosen.prefetched) != (asked, 2))


def test_docker_at_the_documented_size_is_told_what_helps():
    with pytest.raises(ConfigError, match=r"a batch takes 0.066 GB, .* has 0.067 GB free; start with --num_workers 0"):
        choose_data_workers(4, 65_536_000, cores=8, shared_free=DOCKER)


class Cases(list):
    """The sizes of prepared cases, as a data set of them has them."""

    size = list.__getitem__


@pytest.mark.parametrize(
    ("growth", "validated", "gigabytes"),
    [([((64, 64, 64), 30, 5)], [(96, 96, 96)], "0.039"), ([], [(96, 96, 96), (300, 300, 400)], "0.180")],
)
def test_larger_batches_of_an_early_stage_or_whole_cases_decide_how_many_workers_there_are(
    monkeypatch, growth, validated, gigabytes
):
    """64×64×64 voxels in batches of 30, before patches of 96×96×96 in batches of 2: 39.3 MB, 8.8 MB."""
    monkeypatch.setattr("pipeline.train.shared_memory", lambda: (DOCKER, DOCKER))
    monkeypatch.setattr("pipeline.train.available_cores", lambda: 8)
    config = Config(data=DataConfig("scans", target_size=(96, 96, 96), batch_size=2, num_workers=4))
    patches = PatchSchedule((96, 96, 96), 2, 1.0, growth)
    prepared = SimpleNamespace(patches=patches, in_channels=1, n_classes=3, val=Cases(validated))
    devices = SimpleNamespace(per_machine=1)
    with pytest.raises(ConfigError, match=f"a batch takes {gigabytes} GB, and the shared memory"):
        _data_workers(config, devices, prepared, print)


def with_shared_memory_of(size):
    """Give this process a /dev/shm of its own (unshare(2), mount(2)); True where it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive_private = 0x00020000, (1 << 14) | (1 << 18)
    if libc.unshare(new_namespace) or libc.mount(None, b"/", None, recursive_private, None):
        return False
    return libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()) == 0


def needs_an_administrator():
    if os.geteuid():
        pytest.skip("a /dev/shm of its own takes an administrator")


@pytest.mark.fault(
    "a /dev/shm too small for a batch (Docker's 64 MB)", "one line before the first batch that says what helps, exit 2"
)
def test_a_training_whose_batches_do_not_fit_the_shared_memory_is_refused_before_the_first_one(work):
    needs_an_administrator()
    process, run, output = train(work, "cramped", num_workers="1", before=partial(with_shared_memory_of, "40k"))
    said = complaint(ended(process, run, output, code=2))
    assert "the shared memory (/dev/shm) has 0.0 MB free; start with --num_workers 0, or give it more" in said
    assert not run.exists()


def have_two_cores_and_little_shared_memory():
    """Be on a machine of two cores, whatever this one has."""
    pipeline.train.available_cores = lambda: 2
    with_shared_memory_of("1140k")


def test_a_training_uses_fewer_workers_where_the_shared_memory_suffices_for_some(work):
    needs_an_administrator()
    process, run, output = train(work, "narrow", num_workers="2", before=have_two_cores_and_little_shared_memory)
    said = ended(process, run, output, code=0)
    assert "with one batch each, not 2: a batch takes 0.0 MB" in said
    assert summary(run)["status"] == "completed"


def exhaust_shared_memory():
    """Print what a training would say of a worker that finds no shared memory left."""
    assert with_shared_memory_of("64k")
    try:
        list(DataLoader([torch.zeros(10**6)] * 2, num_workers=1, batch_size=1))
    except Exception as error:
        settings = Config(data=DataConfig(dataset_root="d", num_workers=1))
        print(in_one_sentence(error, settings, epoch=3), flush=True)
    os._exit(7)


@pytest.mark.fault("a /dev/shm that is full", "one line that says so, with what helps, and not that memory ran out")
def test_full_shared_memory_is_said_as_such(work):
    needs_an_administrator()
    output = work / "exhausted.txt"
    process = start(tiny_training(work, "exhausted", max_epochs=1)[0], output, exhaust_shared_memory)
    said = ended(process, None, output, code=7)
    assert "the shared memory (/dev/shm) of the data workers ran out in epoch 3: 0.0 MB free of 0.1 MB" in said
    assert "start with --num_workers 0, or give it more (docker run --shm-size 8g" in said
