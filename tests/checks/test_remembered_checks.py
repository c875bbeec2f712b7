"""No case is opened twice, and what is remembered is what was found."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.cache import build
from pipeline.cache import key as cache_key
from pipeline.check import check
from pipeline.checks import case_check, remembered_checks
from pipeline.checks.case_check import check_cases
from pipeline.checks.findings import BadDataError
from pipeline.checks.remembered_checks import check_changed_cases
from pipeline.checks.screening import list_configured, screen
from pipeline.datasets.listing import list_cases
from pipeline.files.checked_lines import checked_line, whole_lines
from pipeline.training.prepared_data import prepare_data
from tests.support.screening import opened, plain, settings
from tests.support.volumes import Folder, cut, hounsfield, organs, save, use_series, with_value, write_series
from transforms.io import load


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def test_a_second_start_opens_no_case(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(folder.root / "series", [3.0 * k for k in range(12)])
    save(folder.label("c"), organs()[::-1], np.diag([-2.0, -2.0, 3.0, 1.0]))
    folder["c"]["image"] = "series"
    names = opened(monkeypatch)
    first = prepare_data(settings(folder))
    assert sorted(names) == sorted(
        ["a.nii.gz", "a_label.nii.gz", "b.nii.gz", "b_label.nii.gz", "c_label.nii.gz", "d.nii.gz", "d_label.nii.gz",
         "series"]
    )  # fmt: skip
    names.clear()
    second = prepare_data(settings(folder))
    assert names == []
    assert (second.split, second.preprocessing) == (first.split, first.preprocessing)
    save(folder.image("b"), hounsfield("x"))
    prepare_data(settings(folder))
    assert names == ["b.nii.gz", "b_label.nii.gz"]
    names.clear()
    folder.labels["spleen"] = 4
    prepare_data(settings(folder))
    assert len(names) == 8  # with other classes other values are known


def test_frames_that_change_places_are_opened_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder.image("a"), np.stack([hounsfield("a"), hounsfield("b")], -1))
    dataset = list_cases(folder.write())
    orders = [replace(dataset.cases[0], frames=frames) for frames in ((0, 1), (0, 1), (1, 0))]
    names = opened(monkeypatch)
    one, same, turned = (
        check_changed_cases(replace(dataset, cases=(case,)), folder.root / "cache")[0] for case in orders
    )
    assert names == ["a.nii.gz", "a_label.nii.gz"] * 2
    assert [image.content for image in same.images] == [image.content for image in one.images]
    assert [image.content for image in turned.images] == [image.content for image in one.images[::-1]]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_data_set_below_a_folder_whose_name_is_not_utf8_is_prepared_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / os.fsdecode(b"of_1999_\xff")
    root.mkdir()
    folder = Folder(root)
    prepare_data(settings(folder, cache_dir=str(tmp_path / "cache")))
    names = opened(monkeypatch)
    prepare_data(settings(folder, cache_dir=str(tmp_path / "cache")))
    assert names == []


def test_what_is_remembered_is_what_was_found(folder: Folder, tmp_path: Path) -> None:
    save(folder.image("a"), np.full(organs().shape, -1000, np.int16))
    save(folder.label("b"), 0 * organs())
    config = settings(folder)
    dataset, _ = list_configured(config)
    fresh = check_cases(dataset.cases, dataset)
    for _ in range(2):
        assert plain(check_changed_cases(dataset, tmp_path / "cache")) == plain(fresh)
    assert {finding.kind for case in fresh for finding in case.findings} == {"constant_image", "empty_label"}
    text = [str(finding) for finding in screen(config).findings]
    assert text == [str(finding) for finding in screen(config).findings]
    assert text == [str(finding) for finding in check(folder.root / "cases.json").findings]


def test_a_repaired_case_is_seen(folder: Folder) -> None:
    whole = folder.image("b").read_bytes()
    cut(folder.image("b"), 2000)
    with pytest.raises(BadDataError, match="case b"):
        screen(settings(folder))
    folder.image("b").write_bytes(whole)
    assert screen(settings(folder)).skipped == {}


@pytest.mark.fault("a damaged memory of inspections", "the cases are opened again")
def test_a_damaged_memory_is_not_believed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(folder)
    expected = screen(config)
    memory = folder.root.parent / "cache" / "inspections.jsonl"
    lines = list(whole_lines(memory))
    assert len(lines) == 4
    torn = [lines[0][:300], re.sub(r'"shape": \[\d+', '"shape": "x', lines[1]), lines[2].replace('"images"', '"pics"')]
    memory.write_bytes(b"".join(map(checked_line, [*torn, lines[3]])) + b"\xff\xfe no text")
    names = opened(monkeypatch)
    assert plain(screen(config).cases) == plain(expected.cases)
    assert len(names) == 6


@pytest.mark.parametrize("case", ["[]", "{}"])
def test_a_line_about_what_is_no_case_is_passed_over_where_the_files_are_not_known(folder: Folder, case: str) -> None:
    expected = screen(settings(folder))
    cache = folder.root.parent / "cache"
    (cache / "sources.jsonl").unlink(missing_ok=True)
    lines = [re.sub(r'"case": "\w"', f'"case": {case}', line) for line in whole_lines(cache / "inspections.jsonl")]
    (cache / "inspections.jsonl").write_bytes(b"".join(map(checked_line, lines)))
    assert plain(screen(settings(folder)).cases) == plain(expected.cases)


def test_a_flipped_digit_is_not_believed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another count of voxels would be other class weights, without a word."""
    config = settings(folder)
    expected = plain(list(screen(config).cases))
    memory = folder.root.parent / "cache" / "inspections.jsonl"
    text = memory.read_text()
    memory.write_text(text.replace('"class_voxels": [', '"class_voxels": [1').replace('"case": "a"', '"case": "x"'))
    names = opened(monkeypatch)
    assert plain(list(screen(config).cases)) == expected
    assert len(names) == 8


def test_processes_that_start_together_hash_and_open_every_case_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(folder)
    names = opened(monkeypatch)
    hashed: list[str] = []
    real_digest, real_keys, all_looked = hashlib.file_digest, remembered_checks._keys, threading.Barrier(3, timeout=60)
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: (hashed.append(file.name), real_digest(file, how))[1])
    monkeypatch.setattr(remembered_checks, "_keys", lambda *args: (real_keys(*args), all_looked.wait())[0])
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    found: list[list[str]] = []
    starts = [threading.Thread(target=lambda: found.append(plain(list(screen(config).cases)))) for _ in range(3)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert len(names) == len(hashed) == 8
    assert list((folder.root.parent / "cache").glob("*.lock")) == []


def test_what_was_found_with_nan_filled_is_not_remembered_without(folder: Folder) -> None:
    save(folder.image("b"), with_value(hounsfield("b"), np.nan))
    first = prepare_data(settings(folder, fill_nan=-1024))
    assert first.preprocessing.arguments()["fill_nan"] == -1024
    with pytest.raises(BadDataError, match=r"case b: .* set data\.fill_nan"):
        screen(settings(folder))
    other = {case.case: case.images[0].minimum for case in screen(settings(folder, fill_nan=-3000)).cases}
    assert (other["a"], other["b"]) == (hounsfield("a").min(), -3000)


@pytest.mark.parametrize("counts", ["class_voxels", "counts"])
@pytest.mark.parametrize("count", ["1e999", str(2**70), "null", '"many"', "[]", "NaN"])
def test_a_number_that_no_count_can_be_is_not_believed(folder: Folder, counts: str, count: str) -> None:
    """An OverflowError out of one damaged line ended every start with a traceback."""
    config = settings(folder)
    expected = plain(list(screen(config).cases))
    memory = folder.root.parent / "cache" / "inspections.jsonl"
    lines = list(whole_lines(memory))
    lines[0] = re.sub(rf'"{counts}": \[\d+', f'"{counts}": [{count}', lines[0])
    memory.write_bytes(b"".join(map(checked_line, lines)))
    assert plain(list(screen(config).cases)) == expected


def test_files_that_change_while_they_are_checked_are_not_remembered(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new voxels must not be remembered under the name of the old ones."""
    config = settings(folder)
    real = case_check.read_volume

    def replaced(path: Path) -> object:
        if Path(path) == folder.image("b"):
            save(folder.image("b"), hounsfield("x"))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(case_check, "read_volume", replaced)
        screen(config)
    save(folder.image("b"), hounsfield("b"))
    contents = {case.case: case.images[0].content for case in screen(config).cases}
    fresh = {case.case: case.images[0].content for case in check_cases(*_listed(config))}
    assert contents == fresh


def test_lines_of_earlier_versions_about_the_same_cases_are_not_kept(tmp_path: Path) -> None:
    texts = {f"{version}{case}": f'{{"case": "{case}", "of": {version}}}' for version in (0, 1) for case in "abc"}
    lines = tmp_path / "inspections.jsonl"
    lines.write_bytes(b"".join(checked_line(f"{key} {text}") for key, text in texts.items()))
    assert remembered_checks._lines(lines, {"1a", "1b", "2c"}) == {key: texts[key] for key in ("1a", "1b")}
    assert remembered_checks._lines(lines, {"1a"}, {"c"}).keys() == {"1a", "0c", "1c"}  # c's key is not known yet


def _listed(config: object) -> tuple:
    dataset, _ = list_configured(config)
    return dataset.cases, dataset


def test_a_new_case_is_hashed_once_right_before_it_is_opened(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set larger than the memory comes from the disk once for hash and check, and once more to be prepared."""
    use_series(folder, [3.0 * k for k in range(12)])
    save(folder.label("c"), organs()[::-1], np.diag([-2.0, -2.0, 3.0, 1.0]))
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    for module in (case_check, build):
        monkeypatch.setattr(module, "workers_that_fit", lambda n_bytes: 1)
    asked: list[tuple[str, str]] = []

    def noted(module: ModuleType, name: str, what: str) -> None:
        original = getattr(module, name)

        def ask(path: Path) -> object:
            named = path.parent.name if path.suffix == ".dcm" else path.name
            if path.suffix != ".jsonl" and (not asked or asked[-1] != (what, named) or path.suffix != ".dcm"):
                asked.append((what, named))
            return original(path)

        monkeypatch.setattr(module, name, ask)

    noted(cache_key, "sha256_of", "hash")
    noted(case_check, "read_volume", "open")
    noted(load, "_open_frame", "prepare")
    prepare_data(settings(folder))
    files = {case: [f"{case}.nii.gz" if case != "c" else "series", f"{case}_label.nii.gz"] for case in "abcd"}
    first = [(what, file) for case in "abcd" for what in ("hash", "open") for file in files[case]]
    assert asked[: len(first)] == first
    assert sorted(asked[len(first) :]) == sorted(("prepare", file) for case in "abcd" for file in files[case])
    asked.clear()
    prepare_data(settings(folder))
    assert asked == []
