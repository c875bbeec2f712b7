"""What is measured of voxels, against numbers known by construction or computed by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.checks import voxel_statistics
from pipeline.checks.voxel_statistics import (
    CLASS_PERCENTILES,
    PERCENTILES,
    measure_image,
    measure_label,
    thickness_voxels,
)
from transforms.io.load import Volume, read_volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.8, 1.1, 2.5]), [-31.0, 12.5, 300.25]
)


def written(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Volume:
    nib.save(nib.Nifti1Image(array, affine), path)
    return read_volume(path)


def test_intensities_are_numpys_percentiles(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(100, 20, (12, 9, 7)).astype(np.float32)
    array[:4] = 0
    found = measure_image(written(tmp_path / "a.nii", array), tmp_path / "a.nii")
    assert found.intensities == pytest.approx(np.percentile(array.astype(float), PERCENTILES), rel=1e-6)
    assert found.foreground == pytest.approx(np.percentile(array[4:].astype(float), PERCENTILES), rel=1e-6)
    assert (found.minimum, found.maximum) == (array.min(), array.max())
    assert not found.is_two_valued


@pytest.mark.parametrize(("values", "is_mask"), [((0, 1), True), ((0, 1, 0.5), False), ((-3, 40, 7), False)])
def test_a_third_value_in_one_voxel_is_seen_beyond_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[float, ...], is_mask: bool
) -> None:
    monkeypatch.setattr(voxel_statistics, "SAMPLE", 20)
    array = np.full((12, 9, 7), values[0], np.float32)
    array[6:] = values[1]
    array[4, 4, 4] = values[-1]
    assert measure_image(written(tmp_path / "a.nii", array), tmp_path / "a.nii").is_two_valued is is_mask


def test_intensities_of_classes_are_those_of_their_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (12, 9, 7)).astype(np.uint8)
    label[label == 2] = 255  # ignored
    array = rng.normal(0, 1, label.shape) + 100 * label
    found = measure_image(written(tmp_path / "a.nii", array), tmp_path / "a.nii", label, n_classes=4)
    assert np.isnan(found.by_class[0]).all()
    assert np.isnan(found.by_class[2]).all()
    for index in (1, 3):
        assert found.by_class[index] == pytest.approx(np.percentile(array[label == index], CLASS_PERCENTILES))
    assert found.labelled is not None
    assert found.labelled.counts.sum() == np.count_nonzero((label == 1) | (label == 3))


def test_of_many_labelled_voxels_evenly_spread_ones_are_measured_however_they_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voxel_statistics, "LABELLED_SAMPLE", 9000)
    array = np.add.outer(np.add.outer(np.arange(60), 3 * np.arange(50)), 7 * np.arange(40)).astype(np.int16)
    label = np.random.default_rng(1).integers(0, 3, array.shape).astype(np.uint8)
    volume = written(tmp_path / "a.nii", array)
    found = [
        measure_image(volume, tmp_path / "a.nii", np.asarray(label, order=order), n_classes=3) for order in ("C", "F")
    ]
    counts = [image.labelled.counts for image in found if image.labelled is not None]
    assert np.array_equal(*counts)
    assert found[0].by_class == found[1].by_class
    assert counts[0].sum() == pytest.approx(9000, rel=0.02)
    for index in (1, 2):
        assert found[0].by_class[index] == pytest.approx(np.percentile(array[label == index], CLASS_PERCENTILES), abs=3)


@pytest.mark.parametrize(
    ("value", "n_bad"), [(np.nan, 1), (np.inf, 1), (1e300, 1), (-1e300, 1), (3e38, 0)]
)  # the largest float32 is 3.4e38
def test_what_no_network_can_take_is_counted(tmp_path: Path, value: float, n_bad: int) -> None:
    array = np.random.default_rng(0).normal(0, 1, (4, 5, 6))
    array[1, 2, 3] = value
    found = measure_image(written(tmp_path / "a.nii", array), tmp_path / "a.nii")
    assert found.n_not_finite == n_bad


def test_equal_voxels_have_equal_content_along_any_axes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(array, OBLIQUE)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "turned.nii")
    contents = {
        measure_image(written(tmp_path / "a.nii", array), tmp_path / "a.nii").content,
        measure_image(written(tmp_path / "b.nii", array.astype(np.float64)), tmp_path / "b.nii").content,
        measure_image(read_volume(tmp_path / "turned.nii"), tmp_path / "turned.nii").content,
    }
    assert len(contents) == 1


def test_sizes_and_centroids_are_those_of_the_voxels() -> None:
    label = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.uint8)
    label[0, 0, 0] = 255
    found = measure_label(label, OBLIQUE, 5)
    assert found.class_voxels.tolist() == [int((label == index).sum()) for index in range(5)]
    assert found.voxel_ml == pytest.approx(0.8 * 1.1 * 2.5 / 1000)
    for index in (1, 2, 3):
        expected = nib.affines.apply_affine(OBLIQUE, np.argwhere(label == index)).mean(axis=0)
        assert found.centroids_mm[index] == pytest.approx(expected)
    assert np.isnan(found.centroids_mm[[0, 4]]).all()
    assert np.isnan(found.thickness_mm[[0, 4]]).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_box_is_as_thick_as_it_is_however_its_label_lies_in_memory(order: tuple[int, int, int]) -> None:
    label = np.zeros((9, 11, 13), np.uint8).transpose(order)
    label[1:4, 2:7, 1:8] = 2
    found = measure_label(label, np.diag([1.0, 2.0, 3.0, 1.0]), 3)
    assert found.thickness_mm[2].tolist() == [3, 10, 21]


def test_a_vessel_is_as_thick_as_it_was_drawn() -> None:
    label = np.zeros((40, 30, 20), np.uint8)
    label[10:12, 5:8, :] = 1  # 2 × 3 × 20 voxels, and a thin tail
    label[11, 8:25, 3] = 1
    assert thickness_voxels(label == 1).tolist() == [2, 3, 20]
    turned = np.array([[0, 0, -2.0, 0], [0.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])  # axes i, j, k along y, z, x
    assert measure_label(label, turned, 2).thickness_mm[1] == pytest.approx([40, 1, 3])


def test_a_single_voxel_and_two_apart_are_one_voxel_thick() -> None:
    inside = np.zeros((5, 5, 5), bool)
    inside[1, 1, 1] = inside[3, 1, 1] = True
    assert thickness_voxels(inside).tolist() == [1, 1, 1]
