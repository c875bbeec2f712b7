"""Label maps on the grids of other label maps: voxels keep their places in the world."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.class_table import ClassTable
from pipeline.evaluation.label_maps import LabelMap, covering, onto_label, read_label_map
from tests.support.evaluation import AFFINE, blobs, save
from transforms.io.errors import VolumeError


def points(label_map):
    """World coordinates of the foreground, sorted."""
    return sorted(nib.affines.apply_affine(label_map.affine, np.argwhere(label_map.indices)).round(3).tolist())


def test_a_cropped_map_is_extended_over_another_grid_along_turned_axes_too():
    array = np.zeros((12, 11, 10), np.uint8)
    array[3:7, 4:8, 2:6] = 1
    whole = LabelMap(array, AFFINE)
    box = nib.Nifti1Image(array, AFFINE).slicer[2:9, 3:9, 1:7]
    turned = box.as_reoriented(nib.orientations.ornt_transform(
        nib.io_orientation(box.affine), nib.orientations.axcodes2ornt("SPL")))  # fmt: skip
    for part in (box, turned):
        cropped = LabelMap(np.asarray(part.dataobj), part.affine)
        extended = covering(cropped, whole)
        assert sorted(extended.indices.shape) == sorted(array.shape)
        assert points(extended) == points(whole)
        found, resampled = onto_label(extended, whole, (None, None), "a", resample=False)
        assert np.array_equal(found, array)
        assert not resampled
    assert covering(whole, LabelMap(np.asarray(box.dataobj), box.affine)).indices.shape == array.shape


def test_a_map_on_another_lattice_is_not_extended():
    small = LabelMap(np.ones((3, 3, 3), np.uint8), AFFINE @ np.diag([1, 1, 1.5, 1]))
    assert covering(small, LabelMap(np.zeros((9, 9, 9), np.uint8), AFFINE)) is small


def test_a_file_is_read_as_indices_and_refused_by_case(tmp_path):
    table = ClassTable(("background", "liver", "spleen"), (0, 30, 20))
    stored = np.array([0, 30, 20], np.uint8)[blobs(1, 3)]
    found = read_label_map(save(stored, tmp_path / "a.nii"), "a", table)
    assert np.array_equal(found.indices, blobs(1, 3))
    assert np.allclose(found.affine, AFFINE)
    with pytest.raises(VolumeError, match=r"case a: .*--class_names NAME=VALUE"):
        read_label_map(save(stored + np.uint8(1), tmp_path / "b.nii"), "a", table)
