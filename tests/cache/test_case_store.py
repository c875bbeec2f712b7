"""Which entry belongs to which case: unchanged files are not read again, changed ones are never mistaken."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.cache import key as cache_key
from pipeline.cache.build import CacheBuildError
from pipeline.cache.entry import CacheError, CannotWriteError, read_header
from pipeline.cache.folder import cache_info, prune
from tests.support.cached_cases import N_CLASSES, entries, make_chain, read


def test_the_second_start_builds_nothing_and_reads_no_source(make, met, items, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    make().build()
    assert met() == sorted(item["case"] for item in items)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a source was read again"))
    dataset = make()
    dataset.build()
    assert dataset[3]["case"] == "body_03"
    assert len(met()) == len(items)


def test_a_changed_file_is_prepared_again_even_with_its_old_time_and_size(make, met, items, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    path = items[0]["label"].with_suffix("")
    read(items[0]["label"]).to_filename(path)
    items[0]["label"] = path
    before = make(items[:1])[0]["label"]
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[352:] = bytes((value + 1) % N_CLASSES for value in raw[352:])  # in place, behind the header
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = make(items[:1])[0]["label"]
    assert torch.equal(after.as_tensor(), (before.as_tensor() + 1) % N_CLASSES)
    assert met() == ["body_00", "body_00"]


def test_a_touched_or_moved_file_of_the_same_content_is_not(make, met, items, tmp_path):
    make().build()
    os.utime(items[0]["image"])
    shutil.move(items[1]["image"], tmp_path / "moved.nii.gz")
    items[1]["image"] = tmp_path / "moved.nii.gz"
    make(items).build()
    assert len(met()) == len(items)


def test_a_folder_that_was_removed_is_made_again(make, met, items):
    dataset = make()
    dataset.build()
    before = dataset[0]["image"].as_tensor()
    shutil.rmtree(dataset.store.folder)
    assert torch.equal(dataset[0]["image"].as_tensor(), before)
    assert met().count("body_00") == 2
    assert cache_info(dataset.store.folder).n_entries == 1
    shutil.rmtree(dataset.store.folder)
    dataset.store.folder.write_text("a file in its place")
    with pytest.raises(CannotWriteError, match=r"cache folder .*: cannot be written \((File exists|Not a directory)\)"):
        dataset[0]


def test_an_entry_that_is_pruned_between_writing_and_reading_is_prepared_once_more(make, met):
    store, times = make().store, []

    def read_after_a_prune(path):
        times.append(path.exists())
        if len(times) == 2:
            prune(store.folder, 0)
        return read_header(path)

    assert store.read(0, read_after_a_prune).case == "body_00"
    assert (times, met().count("body_00")) == ([False, True, True], 2)


class Edit:
    """A chain's first part that changes a label while its case is prepared, as somebody does who corrects labels."""

    def __init__(self, case: str, label: Path, other: Path) -> None:
        self.case, self.label, self.other = case, label, other

    def __call__(self, item: dict) -> dict:
        if item["case"] == self.case:
            self.label.write_bytes(self.other.read_bytes())
        return item


@pytest.mark.fault(
    "labels that are edited while the cache is built",
    'the build ends with the case and "start again"; no entry holds them under the name of the old ones',
)
@pytest.mark.parametrize("workers", [1, 2])
def test_labels_edited_during_a_build_are_not_stored_under_the_name_of_the_old_ones(make, items, workers):
    before = items[3]["label"].read_bytes()
    edited = make(note=Edit("body_03", items[3]["label"], items[2]["label"]))
    with pytest.raises(CacheBuildError, match=r"1 of 5 .*case body_03: its files have changed since .*; start again"):
        edited.build(workers=workers)
    items[3]["label"].write_bytes(before)
    expected = make_chain()(items[3])["label"]
    assert torch.equal(make()[3]["label"].as_tensor(), expected.as_tensor())


@pytest.mark.fault(
    "an image that is replaced, and its entry removed, during a training",
    "one line with the case; nothing is stored under the old name",
)
def test_what_changed_during_a_training_is_not_stored_under_its_old_name_either(make, items):
    dataset = make()
    dataset.build()
    before = items[0]["image"].read_bytes()
    items[0]["image"].write_bytes(items[1]["image"].read_bytes())
    prune(dataset.store.folder, 0)
    with pytest.raises(CacheError, match="case body_00: its files have changed since they were hashed; start again"):
        dataset[0]
    assert entries(dataset) == []
    items[0]["image"].write_bytes(before)
    assert dataset[0]["case"] == "body_00"
