"""Names of segments in .seg.nrrd headers, as SimpleITK reads them back."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.support.evaluation import save_seg_nrrd
from transforms.io.errors import VolumeError
from transforms.io.segment_names import segment_values


def test_the_header_says_which_value_is_which_segment(tmp_path):
    path = save_seg_nrrd(np.zeros((4, 5, 6), np.uint8), tmp_path / "a.seg.nrrd", {"left kidney": 7, "liver": 2})
    assert segment_values(path) == {"left kidney": 7, "liver": 2}
    image = sitk.ReadImage(str(path))
    assert image.GetMetaData("Segment0_Name") == "left kidney"
    assert image.GetMetaData("Segment0_LabelValue") == "7"


def test_a_file_without_names_has_none(tmp_path):
    voxels = np.zeros((4, 5, 6), np.uint8)
    assert segment_values(save_seg_nrrd(voxels, tmp_path / "a.nrrd", {})) is None
    assert segment_values(save_seg_nrrd(voxels, tmp_path / "b.nrrd", {"Segment_1": 1, "Segment_2": 2})) is None
    assert segment_values(tmp_path / "c.nii.gz") is None


@pytest.mark.parametrize(
    ("values", "words"),
    [({"liver": 1, "spleen": 1}, "values of their own"), ({"liver": 70000}, "values up to 65535")],
)
def test_segments_that_share_a_value_or_have_an_impossible_one_are_refused(tmp_path, values, words):
    path = save_seg_nrrd(np.zeros((4, 5, 6), np.uint8), tmp_path / "a.seg.nrrd", values)
    with pytest.raises(VolumeError, match=words):
        segment_values(path)
