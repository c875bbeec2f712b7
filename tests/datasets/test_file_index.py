"""Folders are read once, and links, pipes and files that are gone are told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.datasets.file_index import FileIndex
from tests.support.datasets import volume


def test_a_folder_is_read_once(tmp_path, monkeypatch):
    for name in "abc":
        volume(tmp_path / f"{name}.nii.gz")
    read: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(str(path)) or scandir(path))
    monkeypatch.setattr(Path, "stat", lambda self, **options: pytest.fail(f"{self} was asked for by itself"))
    files = FileIndex()
    found = files.volumes(tmp_path)
    assert [path.name for path in found] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert all(files.is_volume(path) and files.is_file(path) for path in found)
    assert read == [str(tmp_path)]


def test_hidden_files_and_second_halves_of_a_pair_are_left_out(tmp_path):
    for name in ("a.hdr", "a.img", "._b.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.nii.gz").mkdir()
    files = FileIndex()
    assert [path.name for path in files.visible(tmp_path)] == ["a.hdr", "a.img", "folder.nii.gz", "notes.txt"]
    assert [path.name for path in files.volume_files(tmp_path)] == ["a.hdr"]
    assert [path.name for path in files.volumes(tmp_path)] == ["a.hdr"]
    assert files.folders(tmp_path) == [tmp_path / "folder.nii.gz"]
    assert files.visible(tmp_path / "absent") == []


def test_what_is_not_a_file_is_not_a_volume(tmp_path):
    files = FileIndex()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.nii.gz").symlink_to(tmp_path / "circle.nii.gz")
    assert not files.is_volume(tmp_path / "pipe.nii.gz")
    for name in ("gone.nii.gz", "circle.nii.gz", "absent.nii.gz"):
        assert not files.is_file(tmp_path / name)
        with pytest.raises(FileNotFoundError):
            files.is_volume(tmp_path / name)


def test_only_links_that_leave_the_data_set_leave_it(tmp_path):
    root, outside = tmp_path / "set", tmp_path / "outside"
    volume(root / "a.nii.gz")
    volume(outside / "b.nii.gz")
    (root / "here.nii.gz").symlink_to(root / "a.nii.gz")
    (root / "away.nii.gz").symlink_to(outside / "b.nii.gz")
    (root / "folder").symlink_to(outside)
    (tmp_path / "link").symlink_to(root)
    files = FileIndex()
    for name, leaves in (("a.nii.gz", False), ("here.nii.gz", False), ("away.nii.gz", True), ("folder/b.nii.gz", True)):
        assert files.leaves(root / name, root) is leaves
    assert not files.leaves(tmp_path / "link" / "a.nii.gz", tmp_path / "link")
