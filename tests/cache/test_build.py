"""Building: every failure named, kills and full disks survived, free disk space checked before the work."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from pipeline.cache import build
from pipeline.cache import entry as cache_entry
from pipeline.cache import folder as cache_folder
from pipeline.cache.build import CacheBuildError, build_entries
from pipeline.cache.entry import CacheError
from pipeline.cache.folder import prune
from pipeline.compute import memory
from tests.support.cached_cases import Note, build_in_process, entries


def test_a_truncated_or_lengthened_entry_is_noticed_before_training(make, met):
    dataset = make()
    dataset.build()
    short, long, *_ = entries(dataset)
    os.truncate(short, short.stat().st_size - 1)
    os.truncate(long, long.stat().st_size + 4096)
    make().build()
    assert len(met()) == 7


def test_every_failing_case_is_named_and_the_others_are_kept(make, met):
    dataset = make(note=Note(met.path, bad=("body_01", "body_03")))
    with pytest.raises(CacheBuildError, match="2 of 5 cases could not be prepared: case body_01: exp") as caught:
        dataset.build(workers=2)
    assert [case for case, _ in caught.value.failures] == ["body_01", "body_03"]
    assert "\n" not in str(caught.value)
    assert len(entries(dataset)) == 3
    make().build()
    assert len(met()) == 7


def test_a_missing_source_is_named_with_its_case(make, items):
    items[2]["image"].unlink()
    with pytest.raises(CacheBuildError, match=r"1 of 5 .*case body_02: .*body_02_image.nii.gz: No such file"):
        make().build()


def test_a_class_that_the_data_set_does_not_have_is_refused(make):
    with pytest.raises(CacheBuildError, match=r"5 of 5 .*body_00: the label holds class 3, but the classes are 0 to 2"):
        make(n_classes=3).build()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_midway_continues_where_it_stood(make, met, items, workers):
    dataset = make(note=Note(met.path, seconds=0.3))
    process = build_in_process(dataset, workers)
    while len(entries(dataset)) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in entries(dataset)}
    for path in kept:
        cache_entry.read_entry(path)
    make(note=Note(met.path)).build()
    assert len(entries(dataset)) == len(items)
    # what was being prepared at the kill is prepared twice, what was finished once
    assert len(items) <= len(met()) <= len(items) + workers
    assert not list(dataset.store.folder.glob("*.tmp"))


def test_a_kill_while_an_entry_is_written_leaves_no_half_of_it(make, monkeypatch):
    dataset = make()
    monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    process = build_in_process(dataset, 1)
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    assert entries(dataset) == []
    assert len(list(dataset.store.folder.glob("*.tmp"))) == 1
    removed = prune(dataset.store.folder, 10**12)
    assert [path.suffix for path in removed.files] == [".tmp"]
    dataset.build()
    assert {path.suffix for path in dataset.store.folder.iterdir()} - {".jsonl"} == {
        ".TAG",
        ".bodycase",
    }  # and its index


class Fatal:
    """Kills the process that prepares this case, as the kernel does when memory runs out."""

    def __call__(self, item: dict) -> dict:
        if item["case"] == "body_03":
            os.kill(os.getpid(), signal.SIGKILL)
        return item


def test_the_death_of_a_building_process_ends_in_a_sentence(make):
    dataset = make(note=Fatal())
    with pytest.raises(CacheError, match=r"of 2 processes that prepare cases died .*what is done is kept: end other"):
        dataset.build(workers=2)
    assert entries(dataset)


def test_a_full_disk_ends_the_build_without_blaming_a_case(make, monkeypatch):
    dataset = make()
    dataset.build(workers=1)
    shutil.rmtree(dataset.store.folder)
    cache_folder.open_folder(dataset.store.folder)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match=r"No space left on device\); free space on that disk") as caught:
        dataset.build()
    assert not isinstance(caught.value, CacheBuildError)
    # Of files that had not changed for a while, what they hash to is known by now
    assert {path.name for path in dataset.store.folder.iterdir()} <= {"CACHEDIR.TAG", "sources.jsonl"}


@pytest.mark.fault(
    "a shared memory (/dev/shm) too full to start another process, while the cache is built",
    "one warning that says how to enlarge it; the cases are prepared all the same, by one process",
)
def test_a_full_shared_memory_leaves_the_work_to_this_process(make, met, monkeypatch, caplog):
    monkeypatch.setattr(build, "DataLoader", None)  # which would start processes
    monkeypatch.setattr(memory, "shared_memory", lambda: (0, 64 << 20))
    make().build(workers=2)
    assert len(met()) == 5
    assert "the shared memory (/dev/shm) is full" in caplog.text


def test_a_disk_that_is_too_small_is_refused_before_the_work(make, met, monkeypatch):
    size = 4096 * 3
    usage = shutil.disk_usage("/")._replace(free=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"for 4 cases, its disk has 0\.0 MB free; free some"):
        make().build()
    assert len(met()) == 1


def test_disk_space_for_training_and_validation_is_checked_at_once(make, items, met, monkeypatch):
    training, validation = make(items[:3]), make(items[3:])
    make(items[:1]).build()
    size = entries(training)[0].stat().st_size
    usage = shutil.disk_usage("/")._replace(free=3 * size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"needs .* for 4 cases, its disk has"):
        build_entries([training.store, validation.store])
    with pytest.raises(CacheError, match=r"prepared with these settings and needs .* more; its limit is"):
        build_entries([training.store, validation.store], max_bytes=4 * size)
    assert met() == ["body_00"]
    monkeypatch.undo()
    build_entries([training.store, validation.store], workers=2)
    assert met() == sorted(item["case"] for item in items)


def refuse(item: dict) -> dict:
    raise ValueError("expected a body")


def test_a_short_case_id_is_named_although_its_letters_occur_in_the_message(make, items):
    with pytest.raises(CacheBuildError, match="1 of 1 cases could not be prepared: case e: expected a body"):
        make([items[0] | {"case": "e"}], chain=refuse).build()


def test_building_draws_nothing_from_the_generators_that_training_uses(make):
    before = torch.get_rng_state(), repr(np.random.get_state())
    make().build(workers=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == repr(np.random.get_state())


def test_progress_counts_every_case_once(make):
    seen = []
    make().build(lambda done, total, what, note="": seen.append((what, done, total)), workers=2)
    for stage in ("hashing sources", "preparing cases"):
        assert [state for state in seen if state[0] == stage] == [(stage, n, 5) for n in range(1, 6)]
