"""Processes that share a cache folder: work is shared, and what is being written is left alone."""

from __future__ import annotations

from pipeline.cache import folder as cache_folder
from pipeline.cache.folder import prune
from tests.support.cached_cases import Note, build_in_process, entries


def test_processes_that_build_at_once_share_the_work(make, met, items):
    processes = [build_in_process(make(note=Note(met.path, seconds=0.1)), 1) for _ in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert met() == sorted(item["case"] for item in items)
    dataset = make()
    dataset.build()
    assert len(met()) == len(items)
    assert {path.suffix for path in dataset.store.folder.iterdir()} - {".jsonl"} == {
        ".TAG",
        ".bodycase",
    }  # and its index


def test_prune_leaves_alone_what_another_process_is_writing(make):
    dataset = make()
    dataset.build()
    name = entries(dataset)[0].stem
    temporary = dataset.store.folder / f"{name}.tmp"
    temporary.write_bytes(b"half")
    with cache_folder.locked(dataset.store.folder / f"{name}.lock", wait=False) as alone:
        assert alone
        assert prune(dataset.store.folder, 10**12).files == ()
    assert prune(dataset.store.folder, 10**12).files == (temporary,)
