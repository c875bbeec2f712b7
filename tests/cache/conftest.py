"""Cases in a folder, and a cache of them."""

from __future__ import annotations

import pytest

from pipeline.cache.cached_dataset import CachedDataset
from tests.support.cached_cases import N_CLASSES, SIZE, Met, Note, make_chain, write_case


@pytest.fixture
def items(tmp_path) -> list[dict]:
    return [write_case(tmp_path, f"body_{n:02d}", n) for n in range(5)]


@pytest.fixture
def met(tmp_path) -> Met:
    return Met(tmp_path / "met.txt")


@pytest.fixture
def make(tmp_path, items, met):
    def dataset(given=None, *, note=None, folder="cache", key=None, chain=None, **more) -> CachedDataset:
        chain = chain or make_chain(note or Note(met.path))
        options = {"key": key or {"size": SIZE}, "n_classes": N_CLASSES, **more}
        return CachedDataset(items if given is None else given, chain, folder=tmp_path / folder, **options)

    return dataset
