"""Intensities against numpy, MONAI and closed forms; constant and empty images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRangePercentiles

from transforms.intensity import INTENSITIES, intensity_transforms


def apply(intensity, image, window=(-1000, 1000), percentiles=(0.5, 99.5)):
    chain = Compose(intensity_transforms("image", intensity, window=window, percentiles=percentiles))
    return chain({"image": image})["image"]


def test_a_ct_window_maps_hu_to_zero_and_one_and_clips():
    hu = torch.tensor([-3024.0, -1000, 0, 40, 1000, 3071]).reshape(1, 6, 1, 1)
    assert apply("ct", hu).flatten().tolist() == pytest.approx([0, 0, 0.5, 0.52, 1, 1])
    assert apply("ct", hu, window=(-160, 240)).flatten().tolist() == pytest.approx([0, 0, 0.4, 0.5, 1, 1])


def test_percentiles_equal_monai_where_no_voxel_is_zero():
    image = torch.rand(1, 20, 20, 20) * 800 + 5
    theirs = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)(image)
    torch.testing.assert_close(apply("mr", image), theirs, atol=1e-5, rtol=0)


def test_z_scores_equal_monai_on_the_foreground():
    image = torch.rand(2, 20, 20, 20) * 800 + 5
    image[:, :9] = 0
    theirs = NormalizeIntensity(nonzero=True, channel_wise=True)(image.clone())
    ours = apply("zscore", image)
    torch.testing.assert_close(ours[:, 9:], theirs[:, 9:], atol=1e-5, rtol=0)
    assert (ours[:, :9].amax((1, 2, 3)) < ours[:, 9:].amin((1, 2, 3))).all()  # MONAI leaves air at the tissue's mean


@pytest.mark.parametrize("intensity", ["mr", "zscore"])
def test_padding_with_zeros_changes_no_tissue(intensity):
    image = torch.rand(1, 12, 12, 12) + 3
    padded = torch.nn.functional.pad(image, (6,) * 6)
    inside = apply(intensity, padded)[:, 6:-6, 6:-6, 6:-6]
    torch.testing.assert_close(inside, apply(intensity, image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 7.0, -1e6, 1e30])
@pytest.mark.parametrize("intensity", [name for name in INTENSITIES if name != "none"])
def test_a_constant_image_gives_a_constant_finite_image(intensity, value):
    out = apply(intensity, torch.full((1, 5, 5, 5), value))
    assert torch.isfinite(out).all()
    assert out.unique().numel() == 1


@pytest.mark.parametrize("intensity", list(INTENSITIES))
def test_affine_and_meta_stay(intensity):
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))
    out = apply(intensity, MetaTensor(torch.rand(2, 5, 6, 7), affine=affine, meta={"modality": "MR"}))
    assert isinstance(out, MetaTensor)
    assert out.shape == (2, 5, 6, 7)
    assert out.dtype == torch.float32
    np.testing.assert_array_equal(out.affine, affine)
    assert out.meta["modality"] == "MR"
