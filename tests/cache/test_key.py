"""What an entry is named by: the content of its files, the chain, the code and its libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.cache import key as cache_key
from pipeline.cache.build import CacheBuildError
from pipeline.cache.entry import CacheError
from pipeline.cache.folder import prune
from tests.support.cached_cases import N_CLASSES, SIZE, entries, make_chain, read


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


class Edit:
    """A chain's first part that changes a label while its case is prepared, as somebody does who corrects labels."""

    def __init__(self, case: str, label: Path, other: Path) -> None:
        self.case, self.label, self.other = case, label, other

    def __call__(self, item: dict) -> dict:
        if item["case"] == self.case:
            self.label.write_bytes(self.other.read_bytes())
        return item


@pytest.mark.parametrize("workers", [1, 2])
def test_labels_edited_during_a_build_are_not_stored_under_the_name_of_the_old_ones(make, items, workers):
    before = items[3]["label"].read_bytes()
    edited = make(note=Edit("body_03", items[3]["label"], items[2]["label"]))
    with pytest.raises(CacheBuildError, match=r"1 of 5 .*case body_03: its files have changed since .*; start again"):
        edited.build(workers=workers)
    items[3]["label"].write_bytes(before)
    expected = make_chain()(items[3])["label"]
    assert torch.equal(make()[3]["label"].as_tensor(), expected.as_tensor())


def test_what_changed_during_a_training_is_not_stored_under_its_old_name_either(make, items):
    dataset = make()
    dataset.build()
    before = items[0]["image"].read_bytes()
    items[0]["image"].write_bytes(items[1]["image"].read_bytes())
    prune(dataset.folder, 0)
    with pytest.raises(CacheError, match="case body_00: its files have changed since they were hashed; start again"):
        dataset[0]
    assert entries(dataset) == []
    items[0]["image"].write_bytes(before)
    assert dataset[0]["case"] == "body_00"


@pytest.mark.parametrize("change", [{"key": {"size": SIZE, "window": [0, 1]}}, {"n_classes": 6}])
def test_other_parameters_are_another_entry(make, met, change):
    make().build()
    make(**change).build()
    assert len(met()) == 10
    make().build()
    assert len(met()) == 10


def test_other_code_is_another_entry_but_another_comment_is_not(make, met, monkeypatch):
    plain = "def half(x):\n    return x / 2\n"
    said = '"""Halving."""\n\n\ndef half(x):\n    """Halve."""\n    return (x\n            / 2)  # why not\n'
    assert cache_key.without_comments(plain) == cache_key.without_comments(said)
    field = "class A:\n    n: int = 1\nM = 2\n"
    documented = 'class A:\n    n: int = 1\n    """How many."""\nM = 2\n"""Another constant."""\n'
    assert cache_key.without_comments(field) == cache_key.without_comments(documented)
    assert cache_key.without_comments("def f():\n    'only words'\n") == "def f():\n    pass"
    assert cache_key.without_comments(plain) != cache_key.without_comments(plain.replace("2", "3"))
    make().build()
    monkeypatch.setattr(cache_key, "code_version", lambda: "other")
    make().build()
    assert len(met()) == 10


@pytest.mark.parametrize("library", ["monai", "torch", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom"])
def test_another_version_of_what_reads_and_resamples_is_another_entry(monkeypatch, library):
    version = importlib.metadata.version
    before = cache_key.code_version.__wrapped__()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9" * (name == library) + version(name))
    assert cache_key.code_version.__wrapped__() != before


def test_a_folder_of_slices_counts_by_content_and_a_header_with_its_data(tmp_path):
    (tmp_path / "series").mkdir()
    for n in range(3):
        (tmp_path / "series" / f"{n}.dcm").write_bytes(bytes([n]))
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "b.nhdr").write_text("NRRD0004\ndata file: LIST\na.raw\n")
    (tmp_path / "a.raw").write_bytes(b"1")
    (tmp_path / "c.hdr").write_bytes(b"header")
    (tmp_path / "c.img").write_bytes(b"2")

    def contents():
        sources = cache_key.SourceIndex(tmp_path)
        return [sources.content(tmp_path / name) for name in ("series", "a.mhd", "b.nhdr", "c.hdr")]

    before = contents()
    (tmp_path / "series" / "2.dcm").rename(tmp_path / "series" / "z.dcm")
    assert contents() == before
    (tmp_path / "series" / "1.dcm").write_bytes(b"x")
    (tmp_path / "a.raw").write_bytes(b"3")
    (tmp_path / "c.img").write_bytes(b"3")
    assert all(old != new for old, new in zip(before, contents(), strict=True))


def test_a_key_that_json_cannot_hold_is_refused(make):
    with pytest.raises(CacheError, match=r"cache key: .*plain numbers"):
        make(key={"chain": object()})


def test_an_unreadable_line_of_the_source_index_is_passed_over(make, met, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    make().build()
    index = make().folder / "sources.jsonl"
    lines = index.read_text().splitlines()
    huge = json.dumps([*json.loads(lines[4])[:1], 1e999, *json.loads(lines[4])[2:]])
    broken = [lines[4][:30], huge, '["a"]', "nonsense", "[" * 9000, "7"]
    index.write_text("\n".join([*lines[:4], *broken, *lines[5:]]) + "\n\0\xff")
    make().build()
    assert len(met()) == 5
