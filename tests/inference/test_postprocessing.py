"""Cleaning by connected components removes what SimpleITK counts as small or second pieces."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.inference.postprocessing import PostprocessingOptions, clean
from tests.support.tiny_prediction import LOGITS_ONLY, NAMES, checkpoint, predicted, scan


def test_only_the_largest_piece_and_no_speck_stays():
    label = np.zeros((20, 20, 20), np.uint8)
    label[1:5, 1:5, 1:5] = 1
    label[10:13, 10:13, 10:13] = 1
    label[18, 18, 18] = 2
    label[8:10, 8:10, 8:10] = 2
    removed = clean(label, 0.001, PostprocessingOptions(keep_largest=(1,), min_volume_ml=0.002))
    assert removed == 27 + 1
    assert [int((label == c).sum()) for c in (1, 2)] == [64, 8]
    assert clean(label, 0.001, PostprocessingOptions()) == 0


def pieces(path, value):
    """Sizes of a class's connected pieces in voxels, by SimpleITK, largest first."""
    components = sitk.ConnectedComponent(sitk.ReadImage(path) == value, True)
    return sorted(np.bincount(sitk.GetArrayFromImage(components).ravel())[1:], reverse=True)


def test_the_largest_piece_of_named_classes_stays_and_specks_go_by_their_volume_in_ml(tmp_path):
    path = scan(tmp_path / "case.nii.gz", shape=(34, 29, 31))
    noisy = checkpoint(tmp_path / "m.ckpt", network=LOGITS_ONLY, target=(16, 16, 32))
    predicted([noisy], [path], tmp_path / "all")
    counts = {value: pieces(tmp_path / "all" / "case.nii.gz", value) for value in (1, 2, 3)}
    assert min(len(sizes) for sizes in counts.values()) > 10  # else little is shown below
    predicted([noisy], [path], tmp_path / "largest", keep_largest=("kidney_right",))
    for value, before in counts.items():
        kept = before[:1] if NAMES[value] == "kidney_right" else before
        assert pieces(tmp_path / "largest" / "case.nii.gz", value) == kept
    # A voxel has 1 · 2 · 3 mm³ = 0.006 ml.
    report = predicted([noisy], [path], tmp_path / "specks", min_volume_ml=0.057)
    for value, before in counts.items():
        assert pieces(tmp_path / "specks" / "case.nii.gz", value) == [n for n in before if n >= 10]
    removed = sum(n for sizes in counts.values() for n in sizes if n < 10)
    assert report.cases[0].voxels_removed == removed > 0


def test_a_piece_of_exactly_the_least_volume_stays():
    for n_voxels in range(1, 60):
        for voxel_ml in (0.001, 0.0015, 0.003, 0.0072, float(np.float32(0.7)) ** 2 * 1.5 / 1000):
            label = np.zeros((1, 1, 60), np.uint8)
            label[..., :n_voxels] = 1
            assert clean(label, voxel_ml, PostprocessingOptions(min_volume_ml=round(n_voxels * voxel_ml, 9))) == 0
            smallest_that_stays = PostprocessingOptions(min_volume_ml=(n_voxels + 0.01) * voxel_ml)
            assert clean(label, voxel_ml, smallest_that_stays) == n_voxels
