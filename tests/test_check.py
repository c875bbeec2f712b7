"""Bad cases of every kind are named; good ones, also awkward ones, pass; the estimate holds against real files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pipeline.check import Report, check, to_json, to_text
from pipeline.checks.findings import BadDataError, Finding, errors, refuse_errors
from pipeline.cli.main import main
from pipeline.phantoms.sample_dataset import write_dataset
from tests.support.volumes import (
    AFFINE,
    BAD,
    CLASSES,
    Bad,
    Folder,
    configured,
    cut,
    hounsfield,
    organs,
    save,
    use_series,
    with_value,
    without_split_column,
    write_series,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_every_kind_of_bad_case_is_named(folder: Folder, bad: Bad) -> None:
    bad.spoil(folder)
    report = folder.check()
    found = [f for f in report.findings if f.case == bad.case and (f.kind == bad.kind or not bad.kind)]
    assert len(found) == 1, report.findings
    finding = found[0]
    assert finding.severity == bad.severity
    assert bad.expected in finding.expected
    assert bad.found in finding.found
    assert bad.remedy in finding.remedy
    assert finding.remedy
    assert report.exit_code == (2 if bad.severity == "error" else 1)
    # Nothing else is complained of: neither other cases nor other things of this one.
    assert {f.kind for f in report.findings} == {finding.kind}
    text = to_text(report)
    assert finding.expected in text
    assert finding.found in text


def test_there_are_at_least_25_kinds_of_bad_case() -> None:
    assert len({bad.name for bad in BAD}) >= 25


def test_a_good_data_set_has_no_findings(folder: Folder) -> None:
    report = folder.check()
    assert report.findings == ()
    assert report.exit_code == 0
    assert "Training can start." in to_text(report)


def test_one_frame_of_four_dimensions_and_a_flipped_label_are_accepted(folder: Folder) -> None:
    save(folder.image(), hounsfield("c")[..., None])
    flipped = AFFINE @ np.array([[-1, 0, 0, 15], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    save(folder.label(), organs()[::-1], flipped)
    (finding,) = folder.check().findings
    assert (finding.severity, finding.kind, finding.case) == ("warning", "label_axes", "c")


def test_a_whole_dicom_series_with_its_label_is_accepted(folder: Folder) -> None:
    use_series(folder, [3.0 * k for k in range(12)])
    save(folder.label(), organs()[::-1], np.diag([-2.0, -2.0, 3.0, 1.0]))
    assert folder.check().findings == ()


def test_all_bad_cases_are_found_in_one_pass(folder: Folder) -> None:
    cut(folder.image("a"), 2000)
    save(folder.image("c"), with_value(hounsfield("c"), np.nan))
    save(folder.label("c"), with_value(organs(), 9, np.uint8))
    save(folder.label("d"), 0 * organs())
    report = folder.check()
    kinds = {(finding.case, finding.kind) for finding in report.findings if finding.case}
    assert kinds == {("a", "unreadable"), ("c", "not_finite"), ("c", "label_unknown_values"), ("d", "empty_label")}
    assert len(errors(report.findings)) == 3
    with pytest.raises(BadDataError) as refused:
        refuse_errors(report.findings, "repair them")
    assert refused.value.lines[0].startswith(f"case a: {folder.image('a')}: expected a whole, readable volume, found ")
    assert refused.value.lines[3:] == ("3 errors in the data in 2 cases; repair them",)


def test_masks_are_merged_and_bad_ones_named(tmp_path: Path) -> None:
    for name in "abcd":
        masks = tmp_path / name / "segmentations"
        masks.mkdir(parents=True)
        save(tmp_path / name / "ct.nii.gz", hounsfield(name))
        for structure, value in list(CLASSES.items())[1:]:
            save(masks / f"{structure}.nii.gz", (organs() == value).astype(np.uint8) * 255)
    report = check(tmp_path, workers=1)
    assert report.findings == ()
    assert report.fingerprint is not None
    sizes = {c.name: c.n_voxels for c in report.fingerprint.classes[1:]}
    assert sizes == {"kidney_left": 4 * 27, "kidney_right": 4 * 27, "liver": 4 * 48}
    save(tmp_path / "b" / "segmentations" / "liver.nii.gz", organs())
    (finding,) = (f for f in check(tmp_path, workers=1).findings if f.severity == "error")
    assert (finding.kind, finding.case) == ("label_unknown_values", "b")
    assert finding.expected == "a mask of 0 and one other value"
    assert "1 (27 voxels), 2 (27 voxels), 3 (48 voxels)" in finding.found


@pytest.mark.parametrize(("spoil", "code"), [("nothing", 0), ("label", 1), ("image", 2)])
def test_the_exit_code_tells_errors_from_warnings(
    folder: Folder, capsys: pytest.CaptureFixture[str], spoil: str, code: int
) -> None:
    if spoil == "label":
        save(folder.label(), 0 * organs())
    if spoil == "image":
        cut(folder.image(), 2000)
    before = {path: path.read_bytes() for path in [folder.write(), *folder.root.iterdir()]}
    assert main(["check", str(folder.root / "cases.json"), "--no_measure"]) == code
    result = {0: "0 errors, 0 warnings", 1: "0 errors, 1 warning", 2: "1 error, 0 warnings"}[code]
    assert f"Result: {result}." in capsys.readouterr().out
    assert main(["check", str(folder.root / "cases.json"), "--no_measure", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert {path: path.read_bytes() for path in folder.root.iterdir()} == before


def test_cases_that_cannot_be_listed_hide_no_other(folder: Folder) -> None:
    folder.label("a").unlink()
    folder.label("b").unlink()
    cut(folder.image("c"), 2000)
    without_split_column(folder)
    report = folder.check()
    found = {(finding.case, finding.kind) for finding in report.findings if finding.severity == "error"}
    assert found >= {("a", "missing_file"), ("b", "missing_file"), ("c", "unreadable")}
    assert report.fingerprint is not None
    assert report.fingerprint.n_cases == 2


def test_a_folder_that_is_no_data_set_is_one_error(tmp_path: Path) -> None:
    report = check(tmp_path)
    (finding,) = report.findings
    assert (finding.severity, finding.kind, finding.file) == ("error", "dataset", str(tmp_path))
    assert finding.expected == "a data set"
    assert "dataset.json" in finding.found
    assert report.exit_code == 2


def test_the_json_report_says_the_same(folder: Folder) -> None:
    save(folder.label("c"), with_value(organs(), 7, np.uint8))
    report = folder.check()
    document = json.loads(to_json(report), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert document["exit_code"] == 2
    assert [Finding(**finding) for finding in document["findings"]] == list(report.findings)
    assert document["fingerprint"]["classes"][3]["name"] == "liver"
    assert document["estimate"] is None


def test_checking_phantoms_of_all_orientations_finds_no_error(tmp_path: Path) -> None:
    write_dataset(tmp_path, n_cases=4, voxel_mm=14.0)
    seen: list[tuple[int, int]] = []
    report = check(tmp_path, progress=lambda done, total, what, note="": seen.append((done, total)))
    assert errors(report.findings) == ()
    assert not {f.kind for f in report.findings} & {"sides_swapped", "odd_intensities", "sform_qform"}
    assert sorted(seen) == [(n, 4) for n in range(1, 5)]
    assert check(tmp_path, workers=1) == report


def test_a_contradicting_class_count_is_an_error(folder: Folder) -> None:
    folder.check()
    settings = configured(folder.root / "cases.json", model={"n_classes": 71}, data={"cache_dir": "cache"})
    (finding,) = check(settings, measure=False, workers=1).findings
    assert finding.expected == "71 classes with the background (model.n_classes)"
    assert finding.found == "4 in the data set"


def test_the_hippocampus_data_set_has_nothing_to_complain_of(shared_data: Path) -> None:
    report = check(shared_data / "hippocampus")
    assert report.findings == ()
    assert report.fingerprint is not None
    assert [c.n_cases for c in report.fingerprint.classes] == [120, 120, 120]


@pytest.mark.parametrize(
    ("image", "label", "kinds"),
    [
        ("mismatched_pair/ct_cropped.nii.gz", "mismatched_pair/heart.nii.gz", {"grid_mismatch"}),
        ("ct_head_tilted_dicom", "mismatched_pair/heart.nii.gz", {"dicom_gantry_tilt"}),
        ("ct_lung_dicom", "mismatched_pair/heart.nii.gz", {"dicom_missing_slices"}),
        ("dicom_series_faults/uneven_spacing", "mismatched_pair/heart.nii.gz", {"dicom_missing_slices"}),
        ("dicom_series_faults/gantry_tilt", "mismatched_pair/heart.nii.gz", {"dicom_gantry_tilt"}),
        ("dicom_seg/ct-3slice", "dicom_seg/liver_seg.nrrd", set()),
        ("nrrd/brain1_image.nrrd", "nrrd/brain1_label.nrrd", set()),
        ("awkward_nifti/example4d.nii.gz", "mismatched_pair/heart.nii.gz", {"not_3d"}),
    ],
)
def test_real_files_are_judged_rightly(
    shared_data: Path, tmp_path: Path, image: str, label: str, kinds: set[str]
) -> None:
    case = {"case": "real", "image": str(shared_data / image), "label": str(shared_data / label)}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": [case], "labels": {"structure": 1}}))
    assert {finding.kind for finding in check(path, workers=1).findings if finding.case} == kinds


def test_a_real_scan_with_a_mirrored_header_has_its_sides_swapped(shared_data: Path, tmp_path: Path) -> None:
    labels = next(v for k, v in json.loads((shared_data / "class_names.json").read_text()).items() if "abdomen" in k)
    for name in ("example_ct", "example_seg_fast_force_split"):
        real = nib.load(shared_data / "abdomen_ct" / f"{name}.nii.gz")
        save(tmp_path / f"{name}.nii.gz", np.asanyarray(real.dataobj), np.diag([-1.0, 1.0, 1.0, 1.0]) @ real.affine)
    kinds = {}
    for folder in (shared_data / "abdomen_ct", tmp_path):
        image, label = folder / "example_ct.nii.gz", folder / "example_seg_fast_force_split.nii.gz"
        path = tmp_path / "cases.json"
        path.write_text(json.dumps({"cases": [{"image": str(image), "label": str(label)}], "labels": labels}))
        kinds[folder] = {f.kind for f in check(path, workers=1).findings if f.case}
    assert kinds == {shared_data / "abdomen_ct": set(), tmp_path: {"sides_swapped"}}


def test_pydicom_reads_the_series_of_these_tests(tmp_path: Path) -> None:
    write_series(tmp_path, [0, 3])
    slices = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    assert np.array_equal(slices[1].pixel_array.T, hounsfield("c")[:, :, 1])


def test_the_same_cause_in_many_cases_is_written_once_and_json_has_all(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "images").mkdir(exist_ok=True)
        save(tmp_path / "images" / f"c{number:02d}.nii.gz", hounsfield("a"))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES))
    report = check(tmp_path, workers=1)
    assert {finding.case for finding in report.findings} >= {f"c{number:02d}" for number in range(30)}
    text = to_text(report)
    assert text.count("expected  a label beside the image") == 1
    assert "case c00" in text
    assert "and 29 more: c01, c02, c03, c04, c05 and 24 more" in text
    assert len(json.loads(to_json(report))["findings"]) == len(report.findings)


def test_what_differs_by_its_numbers_alone_is_one_cause(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(3):
        save(tmp_path / "images" / f"c{number}.nii.gz", hounsfield("abc"[number]))
        affine = AFFINE.copy()
        affine[:3, 3] += 50 * (number + 1)
        save(tmp_path / "labels" / f"c{number}.nii.gz", organs(), affine)
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES))
    report = check(tmp_path, workers=1)
    assert len({finding.found for finding in report.findings if finding.kind == "grid_mismatch"}) == 3
    assert "and 2 more: c1, c2" in to_text(report)
    assert "others: other numbers, see --json" in to_text(report)


def test_the_text_names_a_case_with_several_files_of_one_cause_once() -> None:
    masks = [
        Finding("warning", "sform_qform", case, f"{case}/organ{mask}.nii", "one position", "two", "look")
        for case in ("s01", "s02", "s03")
        for mask in range(31)
    ]
    text = to_text(Report(tuple(masks), None, None))
    assert "case s01  s01/organ0.nii and 92 more of 3 cases: s01, s02, s03\n" in text
    assert "organ0.nii and 1 more: s02\n" in to_text(Report((masks[0], masks[31]), None, None))


def test_one_unknown_value_is_one_cause_however_many_voxels_hold_it_and_another_value_is_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number, value in enumerate((7, 7, 9)):
        label = organs()
        label[: number + 1, 0, 0] = value
        save(tmp_path / "images" / f"c{number}.nii.gz", hounsfield("abc"[number]))
        save(tmp_path / "labels" / f"c{number}.nii.gz", label)
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES))
    text = to_text(check(tmp_path, workers=1))
    assert "c0.nii.gz and 1 more: c1" in text
    assert "c2.nii.gz\n" in text
    assert "found     7 (1 voxels) (others" in text
    assert "found     9 (3 voxels)\n" in text


def test_values_that_are_left_out_stand_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "ab":
        label = organs()
        label[:2, :2, 0] = 200
        save(tmp_path / "images" / f"{name}.nii.gz", hounsfield(name))
        save(tmp_path / "labels" / f"{name}.nii.gz", label)
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES | {"ignore": 200}))
    report = check(tmp_path, workers=1)
    assert report.fingerprint is not None
    assert (report.fingerprint.ignored_values, report.fingerprint.n_ignored_voxels) == ((200,), 8)
    assert "200  (left out of loss and scores)" in to_text(report)
