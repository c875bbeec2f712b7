"""The picture of a validation shows label and prediction of a case on the same slices."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.visualisation.anatomy_colours import TABLE
from pipeline.visualisation.validation_picture import ValidationSample, cut_sample, validation_picture


def sample(affine) -> ValidationSample:
    label, segmentation = torch.zeros((2, 24, 20, 22), dtype=torch.uint8)
    label[14:20, 8:12, 12:20] = 1  # to the patient's right
    segmentation[4:10, 8:12, 12:20] = 2  # to the left
    return ValidationSample("liver_07", torch.rand(2, 24, 20, 22), label, segmentation, affine)


def coloured(picture: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere(np.abs(picture.astype(int) - TABLE[name]).max(-1) <= 2)


def test_the_label_is_above_the_prediction_and_both_are_at_their_places():
    picture = validation_picture(
        cut_sample(sample(np.diag([1.0, 1.0, 2.0, 1.0]))), ["background", "liver", "spleen"], epoch=3
    )
    assert picture.dtype == np.uint8
    half = len(picture) // 2
    liver, spleen = coloured(picture, "liver"), coloured(picture, "spleen")
    assert liver[:, 0].max() < half < spleen[:, 0].min()
    first = slice(0, picture.shape[1] // 3)  # the axial plane: right is left
    liver, spleen = (found[found[:, 1] < first.stop] for found in (liver, spleen))
    assert np.median(liver[:, 1]) < np.median(spleen[:, 1])
    assert min(picture.shape[:2]) > 500


def test_ignored_voxels_and_an_empty_prediction_are_drawn():
    empty = sample(np.eye(4))
    empty.segmentation[:] = 0
    empty.label[0] = 255
    assert validation_picture(cut_sample(empty), ["background", "liver"], epoch=0).shape[2] == 3
