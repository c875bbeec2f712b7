"""A scan in memory is segmented as the same scan in a file, which nibabel reads back."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from networks.errors import NetworkError
from pipeline.inference.passes import InferenceOptions
from pipeline.inference.segmenter import Segmenter
from tests.support.tiny_prediction import checkpoint, predicted, scan
from transforms.io.errors import VolumeError

FLOAT32 = InferenceOptions(precision="32")


@pytest.mark.parametrize("tta", ["", "x"])
def test_it_returns_what_predict_writes(tmp_path, tta):
    runs = [checkpoint(tmp_path / f"{seed}.ckpt", seed=seed, label_values=[0, 3, 207, 300]) for seed in (0, 1)]
    path = scan(tmp_path / "case.nii.gz")
    predicted(runs, [path], tmp_path / "out", tta=tta)
    written, image = nib.load(tmp_path / "out" / "case.nii.gz"), nib.load(path)
    array = np.asarray(image.dataobj)
    before = array.copy()
    segmenter = Segmenter(runs, tta=tta, inference=FLOAT32)
    labels = segmenter(array, image.affine)
    np.testing.assert_array_equal(labels, np.asarray(written.dataobj))
    assert labels.dtype == written.get_data_dtype()
    assert set(np.unique(labels)) <= set(segmenter.values.values()) == {0, 3, 207, 300}
    assert np.array_equal(array, before)
    indices = Segmenter(runs, tta=tta, inference=FLOAT32, class_indices=True)(array, image.affine)
    np.testing.assert_array_equal(np.array([0, 3, 207, 300])[indices], labels)


def test_windows_are_those_of_predict(tmp_path):
    run, path = checkpoint(tmp_path / "m.ckpt"), scan(tmp_path / "case.nii.gz")
    predicted([run], [path], tmp_path / "out", roi=(8, 8, 8))
    image = nib.load(path)
    labels = Segmenter(run, inference=replace(FLOAT32, roi=(8, 8, 8)))(image.get_fdata(), image.affine)
    np.testing.assert_array_equal(labels, np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj))


@pytest.mark.parametrize(
    ("array", "affine", "error", "words"),
    [
        (np.zeros((2, 8, 8, 8)), np.eye(4), NetworkError, r"takes 1 channel \(CT\), found 2"),
        (np.zeros((8, 8)), np.eye(4), VolumeError, r"shape \(8, 8\) of float64"),
        (np.full((8, 8, 8), "a"), np.eye(4), VolumeError, "expected numbers"),
        (np.full((8, 8, 8), np.nan), np.eye(4), VolumeError, "512 NaN or infinite voxels"),
        (np.full((8, 8, 8), 1e303), np.eye(4), VolumeError, "512 voxels beyond 3.4e38, as float32 holds them"),
        (np.zeros((8, 8, 8)), np.zeros((4, 4)), VolumeError, "singular"),
        (np.zeros((8, 8, 8)), np.eye(3), VolumeError, r"4×4 affine, found shape \(3, 3\)"),
    ],
)
def test_what_is_no_scan_is_refused(tmp_path, array, affine, error, words):
    with pytest.raises(error, match=words):
        Segmenter(checkpoint(tmp_path / "m.ckpt"))(array, affine)
