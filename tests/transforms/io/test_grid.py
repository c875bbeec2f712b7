"""Voxel grids: which are the same, and how axes lie along each other."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import inv_ornt_aff, io_orientation

from tests.support.volume_files import (
    ALL_ORIENTATIONS,
    OBLIQUE,
    save,
    volume,
)
from transforms.io.errors import VolumeError
from transforms.io.grid import Geometry, axes_onto
from transforms.io.load import LoadVolumed


@pytest.mark.parametrize(("shift", "accepted"), [(0.07, True), (0.09, False)])
def test_the_tolerance_is_a_tenth_of_the_smallest_voxel_edge(tmp_path, shift, accepted):
    image = save(tmp_path / "image.nii", volume())  # smallest edge 0.8 mm
    moved = nib.affines.from_matvec(np.eye(3), [shift, 0, 0]) @ OBLIQUE
    label = save(tmp_path / "label.nii", volume(dtype=np.uint8), moved)
    if accepted:
        assert LoadVolumed()({"image": image, "label": label})["label"].shape == (1, 5, 6, 7)
    else:
        with pytest.raises(VolumeError, match=r"0.09 mm apart at the furthest corner \(tolerance 0.08 mm\)"):
            LoadVolumed()({"image": image, "label": label})


def test_a_label_in_any_of_48_orientations_lands_on_the_image(tmp_path):
    array = volume(dtype=np.uint8)
    image = save(tmp_path / "image.nii", array.astype(np.int16))
    base = nib.Nifti1Image(array, OBLIQUE)
    for number, orientation in enumerate(ALL_ORIENTATIONS):
        turned = base.as_reoriented(orientation)
        label = save(tmp_path / f"label{number}.nii", np.asarray(turned.dataobj), turned.affine)
        case = LoadVolumed()({"image": image, "label": label, "case": "x"})
        assert np.array_equal(case["label"][0].numpy(), array)
        assert np.array_equal(case["image"][0].numpy(), array)


def test_nibabel_agrees_on_the_way_between_grids():
    """The reference of the 48-orientation tests itself: the turned affine puts the same voxel at the same place."""
    turned = nib.Nifti1Image(volume(), OBLIQUE).as_reoriented(ALL_ORIENTATIONS[11])
    np.testing.assert_allclose(turned.affine, OBLIQUE @ inv_ornt_aff(ALL_ORIENTATIONS[11], (5, 6, 7)))
    assert io_orientation(OBLIQUE)[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("number", range(0, 48, 5))
def test_a_change_of_axes_can_be_undone(number):
    turned = nib.Nifti1Image(volume(), OBLIQUE).as_reoriented(ALL_ORIENTATIONS[number])
    first = Geometry(turned.shape, turned.affine, np.dtype(np.int16), "nifti")
    change = axes_onto(first, Geometry((5, 6, 7), OBLIQUE, np.dtype(np.int16), "nifti"))
    assert np.array_equal(change.apply(np.asarray(turned.dataobj)), volume())
    assert np.array_equal(change.undo(volume()), np.asarray(turned.dataobj))


@pytest.mark.parametrize("degrees", [0, 0.3, 5, 20])
def test_the_shear_of_a_grid_is_the_angle_missing_from_a_right_one(degrees):
    shear = np.eye(4)
    shear[0, 1] = np.tan(np.radians(degrees))
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.4, 0.2, -0.1) @ np.diag([0.5, 0.7, 3.0])) @ shear
    expected = np.degrees(np.arctan2(np.tan(np.radians(degrees)) * 0.5, 0.7))  # voxels are 0.5 and 0.7 mm wide
    geometry = Geometry((5, 6, 7), turned, np.dtype(np.int16), "nifti")
    assert geometry.shear_degrees == pytest.approx(expected, abs=1e-6)
