"""A result that is made again leaves nothing of the earlier one, and touches nothing that is not the earlier one's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.inference.earlier_files import remove_earlier
from pipeline.inference.inputs import InputCase
from pipeline.writers.outputs import OutputOptions
from tests.support.small_disk import small_disk
from tests.support.tiny_prediction import checkpoint, predicted, scan, voxels


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_evaluated_after_overwriting_is_the_new_result(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    other = checkpoint(tmp_path / "other.ckpt", seed=3)
    predicted([run], [path], out, per_structure=True, probabilities=("liver",), preview=True)
    assert predicted([other], [path], out, formats=("nrrd",), overwrite=True).n_done == 1
    assert files_in(out) == ["case.json", "case.seg.nrrd", "labels.ctbl"]
    predicted([other], [path], tmp_path / "other")
    truth = nib.load(tmp_path / "other" / "case.nii.gz")
    (tmp_path / "labels").mkdir()
    nib.save(truth, tmp_path / "labels" / "case.nii.gz")
    dice = evaluate(out, tmp_path / "labels").cases[0].dice
    assert set(dice[~np.isnan(dice)]) == {1.0}


@pytest.mark.fault(
    "the disk is full when a finished case is made again (`--overwrite`)", "the earlier result stays whole; exit 1"
)
def test_a_full_disk_leaves_the_earlier_result_of_a_case_that_is_made_again(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz", shape=(80, 81, 82))
    with small_disk(tmp_path / "disk", "64k") as out:
        predicted([run], [path], out, min_volume_ml=1e6)  # of no structure: a small file
        before = {name: (out / name).read_bytes() for name in files_in(out)}
        (out / "filling").write_bytes(bytes(44 << 10))
        report = predicted([run], [path], out, overwrite=True)
        assert "cannot be written (No space left on device)" in report.cases[0].error
        (out / "filling").unlink()
        assert {name: (out / name).read_bytes() for name in files_in(out)} == before
        assert predicted([run], [path], out, min_volume_ml=1e6).n_skipped == 1


def test_a_file_that_a_person_changed_is_left_and_warned_of(run, tmp_path, caplog):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)
    (out / "case.nii.gz").write_bytes(b"corrected by hand")
    predicted([run], [path], out, formats=("nrrd",), overwrite=True)
    assert (out / "case.nii.gz").read_bytes() == b"corrected by hand"
    assert f"case case: in {out}, case.nii.gz may be taken for this result" in caplog.text
    caplog.clear()
    predicted([run], [path], out, overwrite=True)
    assert voxels(out / "case.nii.gz").shape == (14, 17, 11)
    assert not caplog.records


def test_a_scan_that_lies_among_the_results_is_not_removed(run, tmp_path, caplog):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)
    before = (out / "case.nii.gz").read_bytes()
    predicted([run], [out / "case.nii.gz"], out, formats=("nrrd",), overwrite=True)
    assert (out / "case.nii.gz").read_bytes() == before
    assert not [record for record in caplog.records if "may be taken" in record.message]


@pytest.mark.parametrize("name", ["../beside.nii.gz", "other.nii.gz", "linked.nii.gz", "case/segmentations/a.nii.gz"])
def test_a_record_removes_no_file_but_the_cases_own(run, tmp_path, name):
    out = tmp_path / "out"
    predicted([run], [scan(tmp_path / "linked.nii.gz")], out)
    target = scan(tmp_path / "beside.nii.gz", (2, 2, 2))
    (out / "linked.nii.gz").unlink()
    (out / "linked.nii.gz").symlink_to(target)
    (out / "other.nii.gz").write_bytes(target.read_bytes())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.nii.gz").write_bytes(target.read_bytes())
    (out / "case").mkdir()
    (out / "case" / "segmentations").symlink_to(tmp_path / "elsewhere")
    record = json.loads((out / "linked.json").read_text())
    case = "linked" if name.startswith("linked") else "case"
    content = {"bytes": target.stat().st_size, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}
    record |= {"case": case, "files": [name], "contents": {name: content}}
    (out / f"{case}.json").write_text(json.dumps(record))
    before = files_in(tmp_path)
    remove_earlier(InputCase(case, (tmp_path / "scan.nii.gz",)), OutputOptions(out, ("background", "liver")))
    assert set(before) - set(files_in(tmp_path)) == {f"out/{case}.json"}


@pytest.mark.parametrize("name", ["case.nii.gz", "case.png", "case/segmentations/liver.nii.gz"])
def test_files_of_another_origin_are_not_replaced_unasked(run, tmp_path, name):
    """A label beside its scan, a picture, the masks that a data set has of a case."""
    path, out = scan(tmp_path / "case_0000.nii.gz"), tmp_path / "out"
    foreign = out / name
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"by hand")
    options = {"per_structure": True, "preview": True}
    report = predicted([run], [path], out, **options)
    assert (
        f"{foreign}: is there already and is no finished result of this case (it has no case.json)"
        in report.cases[0].error
    )
    assert foreign.read_bytes() == b"by hand"
    assert predicted([run], [path], out, overwrite=True, **options).n_done == 1
    assert foreign.read_bytes() != b"by hand"
