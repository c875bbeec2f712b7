"""Every public function of transforms leaves its arguments bit-equal, over dtypes and memory orders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transforms.augment import Draw, RandomAugmentd, change_intensity
from transforms.intensity import INTENSITIES, SCALINGS, mean_and_std, scale_channel
from transforms.left_right import swap_sides
from transforms.resize import align_grids, resize_image, resize_label
from transforms.restore import FeatureMap, restore
from transforms.separable import apply_along, kernel_matrix
from transforms.warp import affine_map, sample_affine

SIZE = (9, 8, 7)
GRID = align_grids(SIZE, (6, 6, 6))
MOVE = affine_map(SIZE, (1, 1, 1), rotation_deg=(5, 0, 9), flips=(0,))
LABELS = [torch.uint8, torch.int16, torch.int32, torch.int64]
DRAW = Draw(gamma=1.3, gain=1.2, shift=0.1, noise=0.1, blur_sigma=0.8, low_resolution=(1.0, 2.0, 1.0), flips=(0, 2))


def ordered(volume, order):
    """The same values with the channels' axes in another order in memory."""
    axes = (0, *(axis + 1 for axis in order))
    return volume.permute(axes).contiguous().permute(np.argsort(axes).tolist())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("dtype", LABELS)
def test_labels_stay_as_they_were(dtype, order):
    label = ordered(torch.randint(0, 4, (1, *SIZE)), order).to(dtype)
    before = label.clone()
    image = torch.rand(1, *SIZE)
    resize_label(label, GRID)
    sample_affine(None, label, MOVE)
    swap_sides(label, (0, 2, 1, 3))
    names = ["background", "a_left", "a_right", "b"]
    RandomAugmentd(SIZE, class_names=names, flips=(0,)).apply({"image": image, "label": label}, DRAW)
    assert torch.equal(label, before)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_stay_as_they_were(dtype, order):
    image = ordered(torch.rand(2, *SIZE) * 900 - 200, order).to(dtype)
    before = image.clone()
    for intensity in INTENSITIES:
        for scaling in SCALINGS:
            scale_channel(image[0], intensity, scaling=scaling)
    mean_and_std(image)
    resize_image(image, GRID)
    sample_affine(image.float(), None, MOVE)
    apply_along(image, kernel_matrix(SIZE[1], 5, 1.6, 0.3).to(dtype), 2)
    change_intensity(image.float(), DRAW)
    RandomAugmentd(SIZE).apply({"image": image.float()}, DRAW)
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_head", [False, True])
def test_features_and_head_stay_as_they_were(dtype, with_head):
    features = torch.randn(3, *SIZE).to(dtype)
    weight = torch.randn(5, 3) if with_head else None
    bias = torch.randn(5) if with_head else None
    affine = np.eye(4)
    kept = [None if t is None else t.clone() for t in (features, weight, bias)]
    restore(
        [FeatureMap(features, affine, weight, bias)] * 2,
        (11, 9, 8),
        np.diag([0.8, 0.9, 0.9, 1.0]),
        probabilities_of=[1],
    )
    for found, before in zip((features, weight, bias), kept, strict=True):
        assert (found is None and before is None) or torch.equal(found, before)
    np.testing.assert_array_equal(affine, np.eye(4))
