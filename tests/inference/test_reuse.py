"""Whether an earlier result still holds: continued on other machines, from other spellings of a path, or changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.support.paths import ROOT
from tests.support.tiny_prediction import checkpoint, predicted, scan, scans, voxels


def test_a_scan_that_was_replaced_is_done_again(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    predicted([run], [path], tmp_path / "out")
    before = voxels(tmp_path / "out" / "case.nii.gz")
    assert predicted([run], [path], tmp_path / "out").n_skipped == 1
    scan(path, seed=5)
    assert predicted([run], [path], tmp_path / "out").n_done == 1
    assert not np.array_equal(voxels(tmp_path / "out" / "case.nii.gz"), before)


def test_channels_that_change_places_are_done_again(tmp_path):
    """Two files of one name, size and time in the folders of their channels."""
    run, listed, out = checkpoint(tmp_path / "two.ckpt", channels=("T1", "T2")), tmp_path / "cases.json", tmp_path / "o"
    files = [str(scan(tmp_path / name / "case.nii", seed=seed)) for seed, name in enumerate(("T1", "T2"))]
    for file in files:
        os.utime(file, (1.7e9, 1.7e9))
    found = []
    for images, output in ((files[::-1], out), (files, out), (files, out), (files, tmp_path / "fresh")):
        listed.write_text(json.dumps([{"case": "case", "image": images}]))
        (record,) = predicted([run], [listed], output).cases
        found.append((record.status, voxels(output / "case.nii.gz")))
    assert [status for status, _ in found] == ["done", "done", "skipped", "done"]
    assert not np.array_equal(found[0][1], found[3][1])
    assert np.array_equal(found[1][1], found[3][1])


def test_a_repeated_batch_skips_what_is_finished_and_an_interrupted_case_is_done_again(run, tmp_path):
    scans(tmp_path / "in", 2)
    predicted([run], [tmp_path / "in"], tmp_path / "out")
    before = (tmp_path / "out" / "case1.nii.gz").read_bytes()
    (tmp_path / "out" / "case1.json").unlink()
    (tmp_path / "out" / "case1.nii.gz").unlink()
    left_by_killed(run, tmp_path / "in", tmp_path / "out", "case1")
    again = predicted([run], [tmp_path / "in"], tmp_path / "out")
    assert [record.status for record in again.cases] == ["skipped", "done"]
    assert (tmp_path / "out" / "case1.nii.gz").read_bytes() == before
    other = checkpoint(tmp_path / "other.ckpt", seed=1)
    report = predicted([other], [tmp_path / "in"], tmp_path / "out")
    assert "another run" in report.cases[0].error
    assert predicted([other], [tmp_path / "in"], tmp_path / "out", overwrite=True).n_done == 2


def test_a_checkpoint_that_was_written_again_makes_no_case_again(tmp_path):
    """As a resumed training writes it, of a later version, with more beside the same weights."""
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    first, again = checkpoint(tmp_path / "first.ckpt"), tmp_path / "again.ckpt"
    predicted([first], [path], out)
    content = torch.load(first, weights_only=True)
    for changed, n_skipped in (
        ({"epoch": 7, "val_mIoU": 0.25, "scans": None, "sided_pairs": None}, 1),
        ({"preprocessing": content["preprocessing"] | {"window": [-100.0, 240.0]}}, 0),
        ({"state_dict": {name: value + 1 for name, value in content["state_dict"].items()}}, 0),
    ):
        torch.save(content | changed, again)
        assert again.read_bytes() != first.read_bytes()
        report = predicted([again], [path], out)
        assert (report.n_skipped, report.n_failed) == (n_skipped, 1 - n_skipped)


def left_by_killed(run, scans_, out, case):
    """Segment scans in a process that is killed right after its label map of a case has got its name."""
    program = f"""
import os
from pathlib import Path
from tests.support.tiny_prediction import predicted
replace = Path.replace
def and_die(self, target):
    replace(self, target)
    if Path(target).name == {case + ".nii.gz"!r}:
        os.kill(os.getpid(), 9)
Path.replace = and_die
predicted([Path({str(run)!r})], [Path({str(scans_)!r})], Path({str(out)!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == -9
    assert (out / f".{case}.lock").exists()
    assert not (out / f"{case}.json").exists()


def test_what_a_killed_process_left_is_replaced_also_after_the_next_one_failed(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    good, lock = path.read_bytes(), out / ".case.lock"
    left_by_killed(run, path, out, "case")
    path.write_bytes(good[:-60])
    assert predicted([run], [path], out).n_failed == 1
    path.write_bytes(good)
    assert lock.exists()
    assert predicted([run], [path], out).n_done == 1
    assert not lock.exists()


def test_what_a_person_put_there_after_a_kill_is_not_replaced(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    left_by_killed(run, path, out, "case")
    (out / "case.nii.gz").write_bytes(b"corrected by hand")
    for _ in range(2):
        assert "is no finished result of this case" in predicted([run], [path], out).cases[0].error
        assert (out / "case.nii.gz").read_bytes() == b"corrected by hand"
    assert predicted([run], [path], out, overwrite=True).n_done == 1
    assert [file.name for file in out.glob(".*")] == []


def test_a_result_that_was_replaced_only_in_part_is_never_called_finished(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    formats = ("nifti", "nrrd")
    predicted([run], [path], out, formats=formats)
    before = (out / "case.nii.gz").read_bytes()
    (out / "case.seg.nrrd").unlink()
    (out / "case.seg.nrrd").mkdir()  # so that writing fails after the NIfTI has been written
    other = checkpoint(tmp_path / "other.ckpt", seed=1)
    assert predicted([other], [path], out, formats=formats, overwrite=True).n_failed == 1
    (out / "case.seg.nrrd").rmdir()
    assert sorted(path.name for path in out.iterdir()) == ["labels.ctbl"]
    assert predicted([run], [path], out, formats=formats).n_done == 1
    assert (out / "case.nii.gz").read_bytes() == before


def edited(path, edit):
    """Change a record as another machine or an earlier version would have written it."""
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def test_a_batch_is_continued_on_a_machine_that_computes_in_another_precision(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    assert predicted([run], [path], out, precision="auto").n_done == 1
    record = json.loads((out / "case.json").read_text())
    assert record["made_by"]["settings"]["passes"]["precision"] == "auto"
    assert record["precision"] in (["32"], ["bf16"])

    def elsewhere(record):
        record["precision"] = ["16"]

    edited(out / "case.json", elsewhere)
    assert predicted([run], [path], out, precision="auto").n_skipped == 1
    report = predicted([run], [path], out, precision="32")  # asked for by name, and not what was used
    assert "with other settings" in report.cases[0].error


def test_a_precision_by_name_is_content_with_a_result_that_was_computed_in_it(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    trained_in_32 = checkpoint(tmp_path / "m.ckpt", extra={"precision": "32-true"})
    predicted([trained_in_32], [path], out, precision="auto")
    assert json.loads((out / "case.json").read_text())["precision"] == ["32"]
    assert predicted([trained_in_32], [path], out, precision="32").n_skipped == 1
    assert "with other settings" in predicted([trained_in_32], [path], out, precision="bf16").cases[0].error


def test_a_result_of_an_earlier_version_still_holds(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)

    def earlier(record):
        for key in ("precision", "contents", "not_written", "source_content"):
            del record[key]
        del record["made_by"]["settings"]["passes"]["step"]

    edited(out / "case.json", earlier)
    assert predicted([run], [path], out).n_skipped == 1
    assert predicted([run], [path], out, precision="auto").n_skipped == 1


@pytest.mark.fault(
    "scans that were segmented before, given by another spelling of their path, through a link, or moved",
    "they are finished: skipped, exit 0",
)
def test_a_scan_counts_as_the_same_however_its_path_is_spelled(run, tmp_path, monkeypatch):
    path, out = scan(tmp_path / "in" / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("in")
    for spelled in ("in/case.nii.gz", "in", "../" + tmp_path.name + "/in", "link"):
        assert predicted([run], [spelled], out).n_skipped == 1
    (tmp_path / "in").rename(tmp_path / "moved")
    assert predicted([run], ["moved"], out).n_skipped == 1


def test_another_scan_of_the_same_name_is_not_taken_for_the_first(run, tmp_path):
    out = tmp_path / "out"
    predicted([run], [scan(tmp_path / "a" / "case.nii.gz")], out)
    report = predicted([run], [scan(tmp_path / "b" / "case.nii.gz", seed=1)], out)
    assert f"from another scan, {tmp_path / 'a' / 'case.nii.gz'}" in report.cases[0].error
    os.utime(tmp_path / "a" / "case.nii.gz")
    assert predicted([run], [tmp_path / "a"], out).n_done == 1


@pytest.mark.parametrize("in_place", [False, True])
def test_another_scan_of_the_same_name_size_and_time_is_not_taken_for_the_first(run, tmp_path, in_place):
    out, paths = tmp_path / "out", [scan(tmp_path / name / "case.nii", seed=n) for n, name in enumerate("ab")]
    for path in paths:
        os.utime(path, (315532800, 315532800))  # as archives with fixed times are unpacked
    assert paths[0].stat().st_size == paths[1].stat().st_size
    predicted([run], [paths[0]], out)
    before = voxels(out / "case.nii.gz")
    if in_place:
        shutil.copy2(paths[1], paths[0])
        assert predicted([run], [paths[0]], out).n_done == 1
        assert not np.array_equal(voxels(out / "case.nii.gz"), before)
    else:
        assert f"from another scan, {paths[0]}" in predicted([run], [paths[1]], out).cases[0].error
    assert predicted([run], [paths[0]], out).n_skipped == 1


def test_a_record_without_the_scans_content_is_held_against_the_scan_it_names(run, tmp_path, caplog):
    out, paths = tmp_path / "out", [scan(tmp_path / name / "case.nii") for name in "ab"]
    for path in paths:
        os.utime(path, (315532800, 315532800))
    predicted([run], [paths[0]], out)
    edited(out / "case.json", lambda record: record.pop("source_content"))
    assert predicted([run], [paths[1]], out).n_skipped == 1
    paths[0].write_bytes(bytes(paths[0].stat().st_size))
    assert "from another scan" in predicted([run], [paths[1]], out).cases[0].error
    assert not caplog.records
    paths[0].unlink()
    assert predicted([run], [paths[1]], out).n_skipped == 1
    assert f"case case: taken for the scan that was segmented, {paths[0]}, by its name, size and time" in caplog.text


def test_a_result_that_a_person_corrected_is_neither_overwritten_nor_called_ours(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)
    (out / "case.nii.gz").write_bytes(b"corrected")
    report = predicted([run], [path], out)
    assert f"{out / 'case.nii.gz'}: was changed after it was written" in report.cases[0].error
    scan(path, seed=7)  # also where the scan was replaced
    report = predicted([run], [path], out)
    assert f"{out / 'case.nii.gz'}: was changed after it was written" in report.cases[0].error
    assert (out / "case.nii.gz").read_bytes() == b"corrected"
    assert predicted([run], [path], out, overwrite=True).n_done == 1


def test_a_file_that_is_not_a_record_is_named_and_not_overwritten(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    out.mkdir()
    for content in ('{"case": "case", "classes": 3}', "[]", "no JSON"):
        (out / "case.json").write_text(content)
        report = predicted([run], [path], out)
        assert f"{out / 'case.json'}: " in report.cases[0].error
        assert "--overwrite" in report.cases[0].error
        assert (out / "case.json").read_text() == content


def test_a_record_that_names_a_device_is_not_followed(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)

    def hostile(record):
        record["files"] = ["/dev/zero"]
        record["contents"] = {"/dev/zero": {"bytes": 0, "sha256": ""}}

    edited(out / "case.json", hostile)
    assert predicted([run], [path], out).n_done == 1
