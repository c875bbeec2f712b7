"""Voxel grids: which are the same, and how axes lie along each other."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize("number", [0, 13, 30])
def test_a_label_cropped_to_its_content_is_padded(tmp_path, number):
    """As 3D Slicer stores a segmentation: on the image's lattice, along any axes, and only as large as its content."""
    whole = np.zeros((9, 8, 7), np.uint8)
    whole[2:5, 3:7, 1:6] = np.random.default_rng(0).integers(1, 5, (3, 4, 5))
    image = save(tmp_path / "image.nii", volume((9, 8, 7)))
    part = nib.Nifti1Image(whole, OBLIQUE).slicer[2:5, 3:7, 1:6].as_reoriented(ALL_ORIENTATIONS[number])
    label = save(tmp_path / "label.nii", np.asarray(part.dataobj), part.affine)
    case = LoadVolumed()({"image": image, "label": label})
    assert np.array_equal(case["label"][0].numpy(), whole)
    assert torch.equal(case["label"].affine, case["image"].affine)
    mask = save(tmp_path / "mask.nii", (np.asarray(part.dataobj) > 2).astype(np.uint8), part.affine)
    merged = LoadVolumed()({"image": image, "label": [(2, mask)]})["label"][0].numpy()
    assert np.array_equal(merged, 2 * (whole > 2))


@pytest.mark.parametrize("shift", [(0.5, 0, 0), (0, 0, -2), (0, 6, 0)])
def test_a_part_between_the_voxels_or_beyond_them_is_refused(tmp_path, shift):
    image = save(tmp_path / "image.nii", volume((9, 8, 7)))
    moved = OBLIQUE @ nib.affines.from_matvec(np.eye(3), np.array(shift))
    label = save(tmp_path / "label.nii", volume((3, 4, 5), np.uint8), moved)
    with pytest.raises(VolumeError, match="mm apart"):
        LoadVolumed()({"image": image, "label": label})


def test_a_channel_is_never_padded(tmp_path):
    image = save(tmp_path / "image.nii", volume((9, 8, 7)))
    part = save(tmp_path / "part.nii", volume((3, 4, 5)))
    with pytest.raises(VolumeError, match="the channel on its image's voxel grid"):
        LoadVolumed("image")({"image": [image, part]})
