"""The cache folder: its size and its limit, and that nothing of anybody else is touched."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from pipeline.cache.entry import CacheError, CannotWriteError
from pipeline.cache.folder import cache_info, open_folder, prune
from tests.support.cached_cases import entries


def test_the_size_limit_removes_other_chains_first_used_longest_ago(make):
    for n, key in enumerate(({"n": 0}, {"n": 1})):
        dataset = make(key=key)
        dataset.build()
        for path in dataset.store.folder.glob(f"{dataset.store.chain_id}-*"):
            os.utime(path, (1000 + n, 1000 + n))
    size = cache_info(dataset.store.folder).n_bytes // 10
    third = make(key={"n": 2}, max_bytes=12 * size)
    third.build()
    left = {(chain.parameters or {})["n"]: chain.n_entries for chain in cache_info(dataset.store.folder).chains}
    assert left == {2: 5, 1: 5} | ({0: left[0]} if 0 in left else {})
    assert left.get(0, 0) <= 2
    assert cache_info(dataset.store.folder).n_bytes <= 12 * size


def test_a_limit_below_what_the_chain_itself_needs_is_refused(make, met):
    make(key={"n": 0}).build()
    with pytest.raises(CacheError, match=r"prepared with these settings and needs .* more; its limit is"):
        make(max_bytes=30_000).build()
    assert cache_info(make().store.folder).chains[-1].n_entries == 5


def test_a_lowered_limit_holds_although_nothing_is_built(make):
    make(key={"n": 0}).build()
    make().build()
    make(max_bytes=1).build()
    assert [chain.parameters for chain in cache_info(make().store.folder).chains] == [{"size": [12, 10, 14]}]


def test_info_says_what_the_folder_holds(make):
    make().build()
    dataset = make(key={"window": [-1000, 1000]})
    dataset.build()
    info = cache_info(dataset.store.folder)
    assert info.n_entries == 10
    assert info.n_bytes == sum(path.stat().st_size for path in entries(dataset))
    assert {json.dumps(chain.parameters) for chain in info.chains} == {
        '{"size": [12, 10, 14]}',
        '{"window": [-1000, 1000]}',
    }
    assert info.free_bytes > 0


def test_a_folder_that_holds_something_else_does_not_become_a_cache(tmp_path):
    """Backups leave out what lies in a folder with CACHEDIR.TAG."""
    (tmp_path / "thesis.txt").write_text("keep")
    with pytest.raises(CacheError, match=r"found one that holds thesis\.txt; name a folder of its own"):
        open_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    for name in ("lost+found", ".nfs1", f"{'a' * 16}-{'b' * 32}.bodycase", "sources.jsonl", "CACHEDIR.TAG.1"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / name).write_text("")
    open_folder(tmp_path / "cache")
    open_folder(tmp_path / "cache")
    assert (tmp_path / "cache" / "CACHEDIR.TAG").exists()


def test_prune_touches_nothing_that_is_not_recognisably_ours(make, tmp_path):
    dataset = make()
    dataset.build()
    theirs = [dataset.store.folder / name for name in ("notes.txt", "x.bodycase", "sub")]
    theirs[0].write_text("mine")
    theirs[1].write_text("mine")
    theirs[2].mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    link = dataset.store.folder / f"{'a' * 16}-{'b' * 32}.bodycase"
    link.symlink_to(target)
    removed = prune(dataset.store.folder, 0)
    assert len(removed.files) == 5
    assert removed.n_bytes > 0
    assert sorted(dataset.store.folder.iterdir()) == sorted([*theirs, link, dataset.store.folder / "CACHEDIR.TAG"])
    assert target.read_text() == "precious"


@pytest.mark.timeout(240)
def test_pipes_in_the_place_of_its_files_are_passed_over(make, met):
    make().build()
    entry = entries(make())[0]
    for path in (entry, entry.parent / "sources.jsonl", entry.parent / "inspections.jsonl"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    dataset = make()
    dataset.build()
    assert len(met()) == 6
    assert entry.is_file()
    (dataset.store.folder / "CACHEDIR.TAG").unlink()
    os.mkfifo(dataset.store.folder / "CACHEDIR.TAG")
    with pytest.raises(CacheError, match="another program's cache"):
        make()


def test_a_folder_without_our_tag_is_left_alone(tmp_path, make):
    name = f"{'a' * 16}-{'b' * 32}.bodycase"
    (tmp_path / name).write_text("mine")
    for function in (lambda: prune(tmp_path, 0), lambda: cache_info(tmp_path)):
        with pytest.raises(CacheError, match="not a cache folder of bodyseg"):
            function()
    assert (tmp_path / name).exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# cargo\n")
    with pytest.raises(CacheError, match="another program's cache"):
        make(folder="foreign")


def test_a_folder_that_may_only_be_read_is_named(make, monkeypatch):
    dataset = make()
    dataset.build()

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(
        CannotWriteError, match=r"cache folder .*cannot be written \(Permission denied\); make the folder"
    ):
        prune(dataset.store.folder, 0)
