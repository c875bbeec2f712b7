"""Intensities against numpy, MONAI and closed forms; constant and empty images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity, ScaleIntensity, ScaleIntensityRange, ScaleIntensityRangePercentiles

from transforms.intensity import INTENSITIES, ScaleIntensityd, mean_and_std, scale_channel
from transforms.io.errors import VolumeError


def apply(intensity, image, window=(-1000, 1000), percentiles=(0.5, 99.5), scaling="centred"):
    chain = ScaleIntensityd("image", intensity, window=window, percentiles=percentiles, scaling=scaling)
    return chain({"image": image, "case": "c1"})["image"]


def test_a_ct_window_maps_hu_to_the_range_and_clips():
    hu = torch.tensor([-3024.0, -1000, 0, 40, 1000, 3071]).reshape(1, 6, 1, 1)
    assert apply("ct", hu).flatten().tolist() == pytest.approx([-1, -1, 0, 0.04, 1, 1])
    assert apply("ct", hu, window=(-160, 240)).flatten().tolist() == pytest.approx([-1, -1, -0.2, 0, 1, 1])


def test_a_mean_and_deviation_are_applied_as_monai_does_after_clipping_to_the_window():
    hu = torch.rand(2, 9, 8, 7) * 4000 - 1500
    clipped = ScaleIntensityRange(-160, 240, -160, 240, clip=True)(hu)
    theirs = NormalizeIntensity(subtrahend=93.5, divisor=61.25)(clipped)
    chain = ScaleIntensityd(
        "image", "ct", window=(-160, 240), percentiles=(0, 100), scaling="centred", mean_std=(93.5, 61.25)
    )
    torch.testing.assert_close(chain({"image": hu})["image"], theirs, atol=1e-5, rtol=0)


def test_a_mean_and_deviation_are_those_of_ct_channels_alone():
    image = torch.rand(2, 9, 8, 7) * 300
    arguments = {"window": (-160, 240), "percentiles": (0.5, 99.5), "scaling": "centred"}
    both = ScaleIntensityd("image", ("ct", "zscore"), **arguments, mean_std=(40, 50))({"image": image})["image"]
    assert torch.equal(both[0], (image[0].clamp(max=240) - 40) / 50)
    assert torch.equal(both[1], scale_channel(image[1], "zscore"))


def test_the_scaling_of_earlier_runs_is_bit_for_bit_that_of_monai():
    """Checkpoints without the argument "scaling" were trained with MONAI's ScaleIntensityRange to 0…1."""
    hu = torch.rand(2, 9, 8, 7) * 4000 - 1500
    for window in ((-1000, 1000), (-160, 240)):
        theirs = ScaleIntensityRange(*window, 0.0, 1.0, clip=True)(hu)
        assert torch.equal(apply("ct", hu, window=window, scaling="unit"), theirs)


@pytest.mark.parametrize(("scaling", "low"), [("centred", -1), ("unit", 0)])
def test_percentiles_equal_monai_where_no_voxel_is_zero(scaling, low):
    image = torch.rand(1, 20, 20, 20) * 800 + 5
    theirs = ScaleIntensityRangePercentiles(0.5, 99.5, low, 1, clip=True)(image)
    torch.testing.assert_close(apply("mr", image, scaling=scaling), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaling", ["centred", "unit"])
def test_rescaling_takes_the_lowest_and_the_highest_value_to_the_range(scaling):
    image = torch.rand(1, 20, 20, 20) * 800 - 300
    low, high = (-1, 1) if scaling == "centred" else (0, 1)
    theirs = ScaleIntensity(low, high)(image)
    torch.testing.assert_close(apply("rescale", image, scaling=scaling), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("way", "end"), [("0to1", 1.0), ("0to255", 255.0)])
@pytest.mark.parametrize(("scaling", "low"), [("centred", -1), ("unit", 0)])
def test_a_fixed_range_is_the_same_for_every_image(way, end, scaling, low):
    """A probability of 0.3 in one case and of 0.9 in another do not look alike."""
    weak, strong = torch.rand(2, 1, 9, 9, 9) * torch.tensor([0.3 * end, 1.2 * end]).view(2, 1, 1, 1, 1)
    for image in (weak, strong):
        theirs = ScaleIntensityRange(0, end, low, 1, clip=True)(image)
        torch.testing.assert_close(apply(way, image, scaling=scaling), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("intensity", ["mr", "zscore", "0to1", "rescale", "none"])
def test_a_mask_keeps_its_two_values_apart(intensity):
    """Its foreground, the voxels that are not 0, is constant: that is no reason to lose the channel."""
    mask = torch.zeros(1, 10, 10, 10)
    mask[:, 2:5, 3:7, 4:6] = 1
    out = apply(intensity, mask)
    assert out.unique().numel() == 2
    assert torch.equal(out > out.min(), mask > 0)
    few = torch.zeros(1, 30, 30, 30)
    few[:, 3:25, 3:25, 3:25] = 100
    few[:, 5:8, 5:8, 5:8] = 500  # under half a percent of the foreground
    assert apply("mr", few).unique().numel() >= 2


@pytest.mark.parametrize("intensity", ["mr", "rescale"])
@pytest.mark.parametrize("value", [1.0, 255.0])
def test_an_empty_and_a_full_mask_are_what_a_mask_is_outside_and_inside(intensity, value):
    mask = torch.zeros(1, 10, 10, 10)
    mask[:, 2:5, 3:7, 4:6] = value
    outside, inside = apply(intensity, mask).unique().tolist()
    assert apply(intensity, torch.zeros(1, 4, 4, 4)).unique().tolist() == [outside]
    assert apply(intensity, torch.full((1, 4, 4, 4), value)).unique().tolist() == [inside]
    assert not apply(intensity, torch.full((1, 4, 4, 4), value), scaling="unit").any()  # as earlier runs were trained


@pytest.mark.parametrize("intensity", ["mr", "zscore"])
def test_runs_of_earlier_versions_keep_their_masks_at_zero(intensity):
    mask = torch.zeros(1, 6, 6, 6)
    mask[:, 2:5] = 1
    assert not apply(intensity, mask, scaling="unit").any()


def test_every_channel_is_scaled_in_its_own_way():
    ct, mr, mask = torch.rand(3, 9, 9, 9) * torch.tensor([2000.0, 50, 1]).view(3, 1, 1, 1) - 100
    image = torch.stack([ct, mr, (mask > -99.5).float()])
    out = apply(["ct", "zscore", "none"], image, window=(-160, 240))
    for channel, one, way in zip(out, image, ("ct", "zscore", "none"), strict=True):
        assert torch.equal(channel, scale_channel(one, way, window=(-160, 240)))
    assert torch.equal(out[2], image[2])
    with pytest.raises(VolumeError, match=r"case c1: image: expected 3 channels \(ct, zscore, none\), found 2"):
        apply(["ct", "zscore", "none"], image[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_soft_tissue_keeps_its_contrast_in_every_precision(dtype):
    """Between 0 and 100 HU all whole HU stay different numbers, at the widest documented window."""
    hu = torch.arange(0.0, 101).view(1, 101, 1, 1)
    assert apply("ct", hu).to(dtype).unique().numel() == 101


def test_mean_and_deviation_are_those_of_float64_far_from_zero():
    values = torch.rand(40, 40, 30) + 1e6
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(values.double().mean().item(), rel=1e-12)
    assert std == pytest.approx(values.double().std(correction=0).item(), rel=1e-9)


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


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_slabs_are_scaled_as_the_whole_bit_for_bit_however_they_lie_in_memory(order):
    rng = np.random.default_rng(0)
    hu = torch.from_numpy(rng.normal(0, 400, (35, 18, 50)).astype(np.float32)).permute(order)
    low, high = -157.0, 243.0
    scaled = scale_channel(hu, "ct", window=(low, high))
    assert torch.equal(scaled, ((hu - low) / (high - low) * 2 - 1).clamp(-1, 1))
    assert scaled.permute(2, 1, 0).is_contiguous()  # in the memory order of most files, whatever the scan's own
    assert torch.equal(
        scale_channel(hu, "ct", window=(low, high), mean_std=(41.3, 57.1)), (hu.clamp(low, high) - 41.3) / 57.1
    )
    mean, std = mean_and_std(hu)
    assert torch.equal(scale_channel(hu, "zscore"), (hu - mean) / std)


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, MetaTensor])
@pytest.mark.parametrize("intensity", ["ct", "mr", "zscore"])
def test_whole_numbers_are_scaled_as_the_same_numbers_in_float(intensity, kind):
    image = torch.arange(-160, 240, dtype=torch.int16).reshape(1, 10, 8, 5)
    scale = ScaleIntensityd("image", intensity, window=(-160, 240), percentiles=(0, 100), scaling="centred")
    scaled = torch.as_tensor(scale({"image": kind(image)})["image"])
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, scale({"image": image.float()})["image"])
    assert scaled.unique().numel() > 300


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int64])
@pytest.mark.parametrize("intensity", INTENSITIES)
def test_whole_numbers_of_every_type_are_scaled_also_where_all_but_zeros_are_equal(intensity, dtype):
    for values in (torch.arange(60), torch.full((60,), 7), torch.arange(60) // 30 * 7):
        image = values.reshape(1, 5, 4, 3).to(dtype)
        assert torch.equal(apply(intensity, image), apply(intensity, image.float()))
