"""The processes of a machine list a data set once, and hand nothing to strangers."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.cache.folder import one_at_a_time
from pipeline.compute.ranks import STARTED_BY
from pipeline.config.settings import Config, DataConfig
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.training.handed_over import HandOver, in_turn
from pipeline.training.prepared_data import prepare_data
from tests.support.questions import counted

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed")
    write_dataset(folder / "data", n_cases=4, seed=3, voxel_mm=20.0)
    return Config(data=DataConfig(str(folder / "data"), target_size=(8, 8, 12), cache_dir=str(folder / "cache")))


@pytest.fixture(scope="module")
def prepared(config):
    return prepare_data(config)


@pytest.fixture
def private(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"bodyseg-{os.geteuid()}"


@pytest.fixture(params=["this program", "torchrun"])
def others(request, private, monkeypatch):
    """Make this process the one that lists, then one of the others."""

    def be(rank: int) -> None:
        if request.param == "torchrun":
            started = TORCHRUN | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        else:
            started = TORCHRUN | {STARTED_BY: str(os.getpid())} if rank else {}
        for name, value in started.items():
            monkeypatch.setenv(name, value)

    return be


def test_another_process_of_the_machine_asks_nothing_about_the_data(config, prepared, others, private):
    others(0)
    with HandOver(2) as first:
        assert first.take(config) is None
        first.leave(config, prepared)
        others(1)
        with counted() as asked, HandOver(2) as second:
            taken = second.take(config)
            contents, lost = taken.contents(), taken.lost_classes()
        assert asked["scandir"] == asked["listdir"] == asked["lstat"] == 0
        assert asked["stat"] <= 2  # whose the folder is that it was left in; nothing about the data
        assert contents == prepared.contents()
        assert lost == prepared.lost_classes()
        for mine, theirs in ((taken.train, prepared.train), (taken.val, prepared.val)):
            assert [item["case"] for item in mine.store.items] == [item["case"] for item in theirs.store.items]
            assert np.array_equal(mine[0]["image"], theirs[0]["image"])
    assert list(private.iterdir()) == []


def test_what_was_left_before_this_training_or_for_another_is_not_taken(config, prepared, private, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    other = Config(data=DataConfig("elsewhere"))
    earlier = HandOver(2)
    earlier.leave(config, prepared)
    assert HandOver(2).take(config) is not None
    assert HandOver(2).take(other) is None
    with HandOver(2):
        pass  # a training of this process, whose end makes what lies there old
    assert HandOver(2).take(config) is None
    earlier._left.write_bytes(b"damaged")
    assert HandOver(2).take(config) is None


def test_what_a_killed_training_has_left_goes_after_a_day(config, prepared, others, private):
    others(0)
    killed = HandOver(2)
    killed.leave(config, prepared)
    day_old, younger = private / "day_old.data", private / "younger.data"
    killed._left.rename(day_old)
    younger.write_bytes(b"of another training that runs")
    os.utime(day_old, (0, 0))
    with HandOver(2) as handed:
        handed.leave(config, prepared)
        assert {path.name for path in private.iterdir()} == {"younger.data", handed._left.name}


@pytest.mark.parametrize("spoil", [lambda folder: folder.mkdir(), lambda folder: folder.symlink_to(folder.parent)])
def test_a_folder_that_others_may_write_into_is_not_used(config, prepared, private, monkeypatch, spoil):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    spoil(private)
    if not private.is_symlink():
        private.chmod(0o777)
    HandOver(2).leave(config, prepared)
    assert HandOver(2).take(config) is None
    assert [path for path in Path(private).iterdir() if path.is_file()] == []


def test_a_process_says_once_that_it_waits_while_another_prepares_the_data(tmp_path, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    said, entered = StringIO(), []
    console = Console(file=said, width=100)

    def prepare():
        with in_turn(tmp_path / "cache", console):
            entered.append(True)

    other = threading.Thread(target=prepare)
    with one_at_a_time(tmp_path / "cache", f"{socket.gethostname()} 127.0.0.1:29500", lambda: None):
        other.start()
        while not said.getvalue():
            time.sleep(0.01)
        assert not entered
    other.join()
    assert entered
    assert said.getvalue() == "Process 1 waits for another one that prepares the data\n"
