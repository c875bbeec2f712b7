"""Which files a case becomes: masks as TotalSegmentator has them, inputs never overwritten."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.writers.nifti import write_nifti
from pipeline.writers.outputs import (
    OutputOptions,
    check_no_source_is_overwritten,
    check_table,
    write_files,
    write_table,
)
from pipeline.writers.seg_nrrd import write_seg_nrrd
from pipeline.writers.segmentation import SegmentationError, values_of
from tests.support.killed_writer import KILLED
from tests.support.paths import ROOT
from tests.support.segmentations import NAMES, save_source, segmentation_of


def test_every_structure_becomes_a_mask_as_totalsegmentator_has_them(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"))
    options = OutputOptions(tmp_path / "out", NAMES, formats=(), per_structure=True)
    list(write_files(segmentation, options.files("case"), probabilities={}))
    found = sorted(path.name for path in (tmp_path / "out" / "case" / "segmentations").iterdir())
    assert found == sorted(
        f"{n}.nii.gz" for n in ("liver", "kidney_left", "evil_name", "kidney_left_2", "Kidney_Left_3")
    )
    assert [path.name for path in tmp_path.iterdir() if "evil" in path.name] == []


def test_an_output_never_overwrites_an_input(tmp_path):
    source = save_source(tmp_path / "case.nii.gz")
    with pytest.raises(SegmentationError, match="is an input"):
        check_no_source_is_overwritten({"case": [source]}, OutputOptions(tmp_path, NAMES))


def test_equal_segmentations_are_equal_files(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "source.nii.gz"))
    for write, suffix in [(write_nifti, ".nii.gz"), (write_seg_nrrd, ".seg.nrrd")]:
        write(segmentation, tmp_path / f"a{suffix}")
        write(segmentation, tmp_path / f"b{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((0, 3, 207, 9, 1, 2), np.uint8), ((0, 3, 207, 300, 1, 2), np.uint16), ((0, 3, 70000, 2**31 - 1, 1, 2), np.int32)],
)
def test_every_format_holds_the_label_values_of_the_data_set(tmp_path, values, dtype):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"), label_values=values)
    expected = np.array(values)[segmentation.array]
    assert len(np.unique(expected)) == 4
    options = OutputOptions(tmp_path / "out", NAMES, values, ("nifti", "nrrd"), per_structure=True)
    list(write_files(segmentation, options.files("case"), probabilities={}))
    write_table(options, None, replace=False)
    nifti = nib.load(tmp_path / "out" / "case.nii.gz")
    assert nifti.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), expected)
    nrrd = sitk.ReadImage(tmp_path / "out" / "case.seg.nrrd")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(nrrd).T, expected)
    assert [int(nrrd.GetMetaData(f"Segment{n}_LabelValue")) for n in range(5)] == list(values[1:])
    (extension,) = nifti.header.extensions
    labels = ElementTree.fromstring(extension.content.rstrip(b"\x00")).findall(".//Label")
    assert [int(label.get("Key")) for label in labels] == list(values)
    lines = [line.split() for line in (tmp_path / "out" / "labels.ctbl").read_text().splitlines()[1:]]
    assert [int(line[0]) for line in lines] == list(values)
    assert [line[5] for line in lines] == ["0", *["255"] * 5]
    mask = nib.load(tmp_path / "out" / "case" / "segmentations" / "kidney_left.nii.gz").get_fdata()
    np.testing.assert_array_equal(mask, segmentation.array == 2)


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 1, 1, 2, 3, 4), (0, -1, 1, 2, 3, 4), (0, 2**31, 1, 2, 3, 4)])
def test_label_values_that_no_file_can_hold_are_refused(values):
    with pytest.raises(SegmentationError, match="label values"):
        values_of(NAMES, values)


def test_the_half_of_a_table_that_a_killed_process_left_is_removed(tmp_path):
    options = OutputOptions(tmp_path, ("background", "liver"))
    subprocess.run([sys.executable, "-c", KILLED, str(options.table_file)], cwd=ROOT, check=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".writing"]
    write_table(options, None, replace=False)
    assert {path.name for path in tmp_path.iterdir()} - {".labels.ctbl.lock"} == {"labels.ctbl"}


def test_a_table_of_other_classes_that_appeared_meanwhile_is_not_replaced(tmp_path):
    ours = OutputOptions(tmp_path, NAMES)
    before = check_table(ours, [])
    theirs = OutputOptions(tmp_path, ("background", "lung"))
    write_table(theirs, check_table(theirs, []), replace=False)
    for replace in (False, True):
        with pytest.raises(SegmentationError, match="another process has begun"):
            write_table(ours, before, replace=replace)
