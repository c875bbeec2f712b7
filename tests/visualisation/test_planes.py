"""Planes show the patient as radiologists look at it, whatever the axes of the voxels."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from pipeline.visualisation.planes import best_slice, cut_planes, shown_classes

ORIENTATIONS = ["RAS", "LPS", "PIR", "ASL", "SRP"]


def phantom() -> nib.Nifti1Image:
    """In RAS: class 1 to the right, class 2 in front of it, class 3 towards the head; bright as their index."""
    array = np.zeros((20, 24, 28), np.uint8)
    array[12:16, 8:12, 8:12] = 1
    array[12:16, 14:18, 8:12] = 2
    array[12:16, 8:12, 16:22] = 3
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = -10, 5, -40
    return nib.Nifti1Image(array, affine)


def in_orientation(image: nib.Nifti1Image, codes: str) -> tuple[np.ndarray, np.ndarray]:
    turned = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
    return np.asarray(turned.dataobj), turned.affine


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_right_and_front_are_on_the_left_and_the_head_at_the_top(codes):
    array, affine = in_orientation(phantom(), codes)
    axial, coronal, sagittal = cut_planes(array.astype(float), array, affine, 0.5)
    assert centre(axial.label == 2)[0] < centre(axial.label == 1)[0]  # the front at the top
    assert centre(coronal.label == 3)[0] < centre(coronal.label == 1)[0]
    assert centre(sagittal.label == 2)[1] < centre(sagittal.label == 1)[1]  # the front on the left
    assert centre(sagittal.label == 3)[0] < centre(sagittal.label == 1)[0]
    assert [plane.letters for plane in (axial, coronal, sagittal)] == [tuple("RLAP"), tuple("RLSI"), tuple("APSI")]
    assert np.array_equal(axial.image, axial.label)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_patients_right_is_on_the_pictures_left(codes):
    image = phantom()
    array = np.asarray(image.dataobj).copy()
    array[2:4, 8:12, 8:12] = 4  # further to the left: RAS grows to the right
    turned, affine = in_orientation(nib.Nifti1Image(array, image.affine), codes)
    for plane in cut_planes(turned.astype(float), turned, affine, 0.5)[:2]:
        assert centre(plane.label == 1)[1] < centre(plane.label == 4)[1]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_sizes_and_positions_are_those_of_the_world(codes):
    array, affine = in_orientation(phantom(), codes)
    axial, coronal, sagittal = cut_planes(array.astype(float), array, affine, 0.5)
    assert [plane.pixel_mm for plane in (axial, coronal, sagittal)] == [(2, 1), (3, 1), (3, 2)]
    for plane, axis in zip((sagittal, coronal, axial), range(3), strict=True):
        voxels = np.unique(np.argwhere(np.asarray(phantom().dataobj) > 0)[:, axis])
        assert plane.position_mm in (phantom().affine[axis, axis] * voxels + phantom().affine[axis, 3]).tolist()
    assert coronal.position.startswith("A ")
    assert axial.position.startswith("I ")


def test_a_slice_is_chosen_where_most_structures_are_seen():
    label = np.zeros((10, 10, 12), np.uint8)
    for index, start in enumerate((0, 2, 5), start=1):
        label[3 * index - 2, 2:8, start : start + 6] = index
    label[0, 0:10, 11] = 4  # larger, but alone
    assert best_slice(label, 2) == 5
    assert best_slice(np.zeros((3, 4, 5), np.uint8), 1) == 2


def test_air_is_cut_away_and_small_structures_are_drawn_large():
    image = np.full((100, 100, 100), -1000.0)
    image[20:80, 30:90, 10:60] = 50
    label = np.zeros(image.shape, np.uint8)
    label[48:53, 50:70, 30:40] = 1
    for plane in cut_planes(image, label, np.eye(4), -160):
        assert (plane.image > -160).mean() > 0.55
    label[:] = 0
    label[50:53, 60:63, 30:33] = 1
    for plane in cut_planes(image, label, np.eye(4), -160):
        assert max(plane.size_mm) <= 44
        assert plane.label.any()


def test_another_segmentation_is_cut_alike():
    array, affine = in_orientation(phantom(), "LPS")
    other = np.where(array == 1, 5, 0)
    for plane in cut_planes(array.astype(float), array, affine, 0.5, beside=other):
        assert plane.beside is not None
        assert np.array_equal(plane.beside == 5, plane.label == 1)
    assert shown_classes(cut_planes(array.astype(float), array, affine, 0.5)) == [1, 2, 3]


def test_volumes_without_structures_or_contents_are_cut_too():
    empty = np.zeros((4, 5, 6))
    planes = cut_planes(empty, empty.astype(np.uint8), np.eye(4), 0.5)
    assert [plane.image.shape for plane in planes] == [(5, 4), (6, 4), (6, 5)]


def test_every_orientation_is_handled():
    """All 48 ways in which voxel axes can run give the same three pictures."""
    expected = None
    for order in itertools.permutations(("RL", "AP", "SI")):
        for codes in itertools.product(*order):
            array, affine = in_orientation(phantom(), "".join(codes))
            found = [plane.label.tolist() for plane in cut_planes(array.astype(float), array, affine, 0.5)]
            expected = expected or found
            assert found == expected, codes


def test_a_structure_smaller_than_what_lies_between_the_samples_of_a_large_volume_is_found():
    label = np.zeros((600, 600, 20), np.uint8)
    label[3, 5, 17] = 1
    assert [best_slice(label, axis) for axis in range(3)] == [3, 5, 17]
