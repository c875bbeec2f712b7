"""What an entry is named by: the content of its files, the chain, the code and its libraries."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from pipeline.cache import key as cache_key
from pipeline.cache.entry import CacheError
from pipeline.files.checked_lines import checked_line, whole_lines
from tests.support.cached_cases import SIZE
from transforms.io.load import Frames


@pytest.mark.parametrize("change", [{"key": {"size": SIZE, "window": [0, 1]}}, {"n_classes": 6}])
def test_other_parameters_are_another_entry(make, met, change):
    make().build()
    make(**change).build()
    assert len(met()) == 10
    make().build()
    assert len(met()) == 10


def test_frames_in_another_order_or_of_another_file_are_another_entry(tmp_path):
    sources, files = cache_key.SourceIndex(tmp_path), [tmp_path / name for name in ("a.nii", "b.nii")]
    for file in files:
        file.write_bytes(file.name.encode())
    images = [Frames(str(files[0]), (0, 1)), Frames(str(files[0]), (1, 0)), Frames(str(files[1]), (0, 1)), [files[0]]]
    assert len({cache_key.sha256(cache_key.contents_of(image, sources)) for image in images}) == 4


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
    index = make().store.folder / "sources.jsonl"
    lines = list(whole_lines(index))
    huge = json.dumps([*json.loads(lines[4])[:1], 1e999, *json.loads(lines[4])[2:]])
    broken = [lines[4][:30], huge, '["a"]', "nonsense", "[" * 9000, "7"]
    torn = checked_line(lines[4]).replace(b'"]', b'0"]')
    index.write_bytes(b"".join([*map(checked_line, [*lines[:4], *broken, *lines[5:]]), torn, b"nonsense\n\0\xff"]))
    make().build()
    assert len(met()) == 5
