"""Names in the headers of .seg.nrrd and DICOM SEG files: which class each value is, and which files cannot be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.case_files import list_case_files
from pipeline.evaluation.options import EvaluationError
from pipeline.writers.dicom_seg import write_dicom_seg
from pipeline.writers.outputs import OutputOptions, write_files
from tests.support.evaluation import blobs, save, save_seg_nrrd, write_names
from tests.support.segmentations import segmentation_of
from tests.support.volumes import write_series

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def save_exchanged(array, path, n, values=(1, 2)):
    """Write a map of liver and spleen whose header names them; in every other file they have exchanged values."""
    liver, spleen = values if n % 2 else values[::-1]
    return save_seg_nrrd(np.array([0, liver, spleen], np.uint8)[array], path, {"liver": liver, "spleen": spleen})


@pytest.mark.parametrize("named_beside", [True, False])
def test_names_in_the_headers_of_seg_nrrd_say_what_the_values_of_each_file_mean(tmp_path, named_beside):
    for n, case in enumerate("abc"):
        array = blobs(n, n_classes=3)
        save_exchanged(array, tmp_path / "predictions" / f"{case}.seg.nrrd", n)
        save(array, tmp_path / "labels" / f"{case}.nii.gz")
    write_names(tmp_path / "labels", {"background": 0, "liver": 1, "spleen": 2})
    if named_beside:
        write_names(tmp_path / "predictions", {"background": 0, "spleen": 1, "liver": 2})
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert [case.mean_dice for case in result.cases] == [1.0, 1.0, 1.0]
    both = evaluate(tmp_path / "predictions", tmp_path / "predictions")
    assert [case.mean_dice for case in both.cases] == [1.0, 1.0, 1.0]


def test_a_file_without_names_beside_headers_that_disagree_is_refused(tmp_path):
    for n, case in enumerate("ab"):
        save_exchanged(blobs(n, n_classes=3), tmp_path / f"{case}.seg.nrrd", n)
    save(blobs(3, n_classes=3), tmp_path / "c.nii.gz")
    with pytest.raises(EvaluationError, match=r"case c: .*c\.nii\.gz: expected names of segments in its header"):
        list_case_files(tmp_path, "prediction")


def test_values_without_names_beside_headers_that_disagree_are_refused(tmp_path):
    """They were taken for the order of the names, liver and spleen; here they are the spleen and the liver."""
    for n, case in enumerate("ab"):
        array = blobs(n, n_classes=3)
        save_exchanged(array, tmp_path / "labels" / f"{case}.seg.nrrd", n, (7, 4))
        save(np.array([0, 2, 1], np.uint8)[array], tmp_path / "predictions" / f"{case}.nii.gz")
    folders = tmp_path / "predictions", tmp_path / "labels"
    with pytest.raises(EvaluationError, match="labels have headers that disagree on the values; name them"):
        evaluate(*folders)
    result = evaluate(*folders, class_names={"spleen": 1, "liver": 2})
    assert [case.mean_dice for case in result.cases] == [1.0, 1.0]


def test_headers_that_agree_serve_for_files_without_names(tmp_path):
    save_exchanged(blobs(1, n_classes=3), tmp_path / "a.seg.nrrd", 1, (4, 9))
    save(np.zeros((3, 3, 3), np.uint8), tmp_path / "b.nii.gz")
    table = list_case_files(tmp_path, "prediction").table
    assert (table.names, table.values) == (("background", "liver", "spleen"), (0, 4, 9))


def test_headers_that_spell_a_name_otherwise_mean_one_class(tmp_path):
    for case, header in {"a": {"Liver": 1, "spleen": 2}, "b": {"liver": 1, "Spleen": 2}, "c": {"liver": 1}}.items():
        save_seg_nrrd(blobs(1, n_classes=len(header) + 1), tmp_path / "predictions" / f"{case}.seg.nrrd", header)
        save(blobs(1, n_classes=len(header) + 1), tmp_path / "labels" / f"{case}.nii.gz")
    write_names(tmp_path / "labels", LABELS)
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert [case.mean_dice for case in result.cases] == [1.0, 1.0, 1.0]
    # Two names of one file are two classes.
    save_seg_nrrd(blobs(1, n_classes=3), tmp_path / "two" / "a.seg.nrrd", {"T1+": 1, "T1": 2})
    save_seg_nrrd(blobs(1, n_classes=3), tmp_path / "two" / "b.seg.nrrd", {"T1": 2, "T1+": 1})
    assert list_case_files(tmp_path / "two", "prediction").table.names == ("background", "T1+", "T1")


def test_what_predictions_mark_as_to_be_ignored_is_background(tmp_path):
    label = blobs(1, n_classes=3)
    label[:2] = 0
    for kind, value in (("labels", 0), ("predictions", 9)):
        array = label.copy()
        array[:2] = value
        save(array, tmp_path / kind / "a.nii.gz")
        write_names(tmp_path / kind, {**LABELS, "ignore": 9})
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert result.cases[0].dice.tolist() == [1.0, 1.0, 1.0]
    assert result.notes == ("voxels that the predictions mark as to be ignored count as background",)


def of_one_case(root, array, header, label=None, *, beside=True):
    """A prediction whose header has these names, its label, and the same labels.json beside both."""
    save_seg_nrrd(array, root / "predictions" / "a.seg.nrrd", header)
    save(blobs(1, n_classes=3) if label is None else label, root / "labels" / "a.nii.gz")
    for kind in ("predictions", "labels") if beside else ("labels",):
        write_names(root / kind, LABELS)
    return evaluate(root / "predictions", root / "labels")


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ({"liver": 2, "spleen": 1, "": 0}, None),
        ({"Liver": 2, "spleen": 1}, "the predictions' segment Liver (a) is taken for the class liver"),
        (
            {"liver": 2, "spleen": 1, "tumour": 7},
            "the predictions' segment tumour (a) is no class: counted as background",
        ),
        ({"Leber": 1, "Milz": 2}, "the predictions' segment Leber (a) is taken for the class liver"),  # by value
    ],
)
def test_a_header_counts_where_its_names_are_not_quite_those_beside_the_files(tmp_path, header, note):
    label = blobs(1, n_classes=3)
    array = label if "Leber" in header else np.array([0, 2, 1], np.uint8)[label]
    if "tumour" in header:
        label[:3], array[:3] = 0, 7
    evaluation = of_one_case(tmp_path, array, header, label)
    assert evaluation.cases[0].dice.tolist() == [1.0, 1.0, 1.0]
    assert note is None or note in " ".join(evaluation.notes)
    assert bool(evaluation.notes) == bool(note)


def test_a_header_without_any_known_name_is_refused_by_case(tmp_path):
    save(blobs(2, n_classes=3), tmp_path / "predictions" / "b.nii.gz")
    save(blobs(2, n_classes=3), tmp_path / "labels" / "b.nii.gz")
    evaluation = of_one_case(tmp_path, blobs(1, n_classes=3), {"Leber": 2, "Milz": 5})
    assert [case.case for case in evaluation.cases] == ["b"]
    assert evaluation.exit_code == 1
    assert (
        "a.seg.nrrd: expected segments with names of the classes (liver, spleen), found Leber, Milz;"
        in (evaluation.refused["a"])
    )


def test_a_value_that_a_header_does_not_name_is_of_no_class(tmp_path):
    with pytest.raises(EvaluationError, match=r"case a: .*found 2 "):  # liver alone is named: 2 is not the spleen
        of_one_case(tmp_path, blobs(1, n_classes=3), {"liver": 1})


def test_a_damaged_header_is_refused_by_case(tmp_path):
    save_exchanged(blobs(1, n_classes=3), tmp_path / "predictions" / "a.seg.nrrd", 1)
    save_seg_nrrd(blobs(2, n_classes=3), tmp_path / "predictions" / "b.seg.nrrd", {"liver": 1, "spleen": 1})
    for case in "ab":
        save(blobs(1, n_classes=3), tmp_path / "labels" / f"{case}.nii.gz")
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert list(evaluation.refused) == ["b"]
    assert "segments with names and values of their own" in evaluation.refused["b"]


def test_ignored_voxels_that_a_header_names_stay_ignored(tmp_path):
    label = blobs(1, n_classes=3)
    wrong = label.copy()
    wrong[:4] = 0
    label[:4] = 9
    save_seg_nrrd(label, tmp_path / "labels" / "a.seg.nrrd", {"spleen": 2, "liver": 1, "ignore": 9})
    save(wrong, tmp_path / "predictions" / "a.nii.gz")
    write_names(tmp_path / "labels", {**LABELS, "ignore": 255})
    (case,) = evaluate(tmp_path / "predictions", tmp_path / "labels").cases
    assert case.dice.tolist() == [1.0, 1.0, 1.0]


def test_ignored_voxels_stay_ignored_where_headers_alone_name_the_classes_and_disagree(tmp_path):
    for n, case in enumerate("ab"):
        label = blobs(n, n_classes=3)
        wrong = label.copy()
        wrong[:4] = 1
        values = (1, 2) if n else (2, 1)
        label = np.array([0, *values], np.uint8)[label]
        label[:4] = 9
        header = {"liver": values[0], "spleen": values[1], "ignore": 9}
        save_seg_nrrd(label, tmp_path / "labels" / f"{case}.seg.nrrd", header)
        save(wrong, tmp_path / "predictions" / f"{case}.nii.gz")
    write_names(tmp_path / "predictions", LABELS)
    result = evaluate(tmp_path / "predictions", tmp_path / "labels")
    assert [case.dice.tolist() for case in result.cases] == [[1.0, 1.0, 1.0]] * 2


@pytest.mark.parametrize("odd", ["Kidney  left", "lesion \\ cyst", "left ventricle wall segment 12 of the model " * 2])
def test_a_dicom_seg_is_read_by_the_names_that_were_cut_and_cleaned_for_it(tmp_path, odd):
    """Its numbers count the structures that occur: without the first class, 1 is the second."""
    write_series(tmp_path / "series", [0, 3, 6, 9])
    names = ("background", "aorta", "liver", odd)
    array = np.zeros_like(segmentation_of(tmp_path / "series").array)
    array[1:4], array[5:8] = 2, 3
    segmentation = replace(segmentation_of(tmp_path / "series", names), array=array)
    for folder, formats in (("predictions", ("dicom",)), ("labels", ("nifti",))):
        files = OutputOptions(tmp_path / folder, names, formats=formats).files("a")
        list(write_files(segmentation, files, probabilities={}))
        write_names(tmp_path / folder, {name: value for value, name in enumerate(names)})
    (case,) = evaluate(tmp_path / "predictions", tmp_path / "labels").cases
    assert case.dice[2:].tolist() == [1.0, 1.0]
    (tmp_path / "predictions" / "labels.json").unlink()  # and without anything that has the names in full
    (case,) = evaluate(tmp_path / "predictions", tmp_path / "labels").cases
    assert case.dice[1:].tolist() == [1.0, 1.0]


def test_a_dicom_seg_of_other_structures_is_refused_though_its_numbers_are_values_of_classes(tmp_path):
    write_series(tmp_path / "series", [0, 3, 6, 9])
    whole = segmentation_of(tmp_path / "series", ("background", "Leber", "Milz"))
    array = np.minimum(whole.array, 2)
    (tmp_path / "predictions").mkdir()
    write_dicom_seg(replace(whole, array=array), tmp_path / "predictions" / "a.dcm")
    save(array, tmp_path / "labels" / "a.nii.gz", whole.affine)
    for kind in ("predictions", "labels"):
        write_names(tmp_path / kind, LABELS)
    with pytest.raises(EvaluationError, match=r"a\.dcm: expected segments with names .*, found Leber, Milz; rename"):
        evaluate(tmp_path / "predictions", tmp_path / "labels")
