"""Which way of scaling suits a channel: whole words of its name decide, then headers, then the voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.checks.modality import choose_intensity, intensity_by_name
from pipeline.checks.voxel_statistics import ImageStatistics, measure_image
from transforms.io.load import read_volume


def image(folder: Path, array: np.ndarray) -> ImageStatistics:
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "image.nii")
    return measure_image(read_volume(folder / "image.nii"), folder / "image.nii")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("CT", "ct"), ("HeadCT", "ct"), ("CT1", "ct"), ("CT_T1", "ct"), ("LDCT1", "ct"), ("ct", "ct"), ("CTA", "ct"),
        ("T1", "mr"), ("T1w", "mr"), ("t1ce", "mr"), ("T2-FLAIR", "mr"), ("MRI", "mr"), ("ADC", "mr"), ("T1Gd", "mr"),
        ("PET", "zscore"), ("PT1", "zscore"), ("PT2", "zscore"), ("SUVbw", "zscore"),
        ("organ_mask", "rescale"), ("PriorMask", "rescale"),
        # What was drawn on a scan is named after it and is not one.
        ("CT_mask", "rescale"), ("ct_seg", "rescale"), ("CT segmentation", "rescale"), ("ct prior", "rescale"),
        ("T1_mask", "rescale"), ("T1mask", "rescale"), ("T2Seg", "rescale"), ("PET_mask", "rescale"),
        ("SUVmask", "rescale"), ("CT_masked", "ct"), ("T1_segmented", "mr"),
        # nnU-Net's own words, channel_name_to_normalization_mapping
        ("noNorm", "none"), ("zscore", "zscore"), ("rescale_to_0_1", "rescale"), ("rgb_to_0_1", "rescale"),
        ("image", None), ("channel_0", None), ("contrast", None), ("T12", None), ("sector", None), ("primary", None),
    ],
)  # fmt: skip
def test_words_of_a_name_decide_and_not_its_letters(name: str, way: str | None) -> None:
    assert intensity_by_name(name) == way


def test_every_channel_is_scaled_in_its_own_way(tmp_path: Path) -> None:
    hu = image(tmp_path, np.arange(-1000, 1000, dtype=np.int16).reshape(20, 10, 10))
    suv = image(tmp_path, np.linspace(0, 20, 2000, dtype=np.float32).reshape(20, 10, 10))
    choice = choose_intensity(["CT", "PET"], [[hu], [suv]], "auto")
    assert choice.by_channel == ("ct", "zscore")
    assert choice.to_document()["intensity"] == ["ct", "zscore"]
    choice = choose_intensity(["CT", "other"], [[hu], [suv]], "auto")
    assert choice.by_channel == ("ct", "mr")
    assert choice.because == (
        "CT: the data set's channels are named CT, other; other: the darkest voxels are at 0, which is not air in HU"
    )
    assert choose_intensity(["CT", "PET"], [[hu], [suv]], "zscore").intensity == "zscore"


def test_a_mask_is_told_by_its_two_values(tmp_path: Path) -> None:
    mask = np.zeros((20, 10, 10), np.uint8)
    mask[5:8] = 1
    assert choose_intensity(["extra"], [[image(tmp_path, mask)]], "auto").intensity == "0to1"


@pytest.mark.parametrize(
    ("name", "highest", "way"),
    [
        ("prior", (0.3, 0.9), "0to1"),
        ("prior", (1, 0, 1), "0to1"),  # an empty mask among others
        ("prior", (77, 230), "0to255"),
        ("rgb_to_0_1", (250, 255), "0to255"),
        ("rescale_to_0_1", (0.3, 0.9), "rescale"),  # every image by its own extremes, as nnU-Net does by this name
        ("prior", (1, 255), "rescale"),  # masks of ones beside masks of 255: no range serves both
        ("prior", (3, 3), "rescale"),
        ("prior", (0.003, 0.004), "rescale"),
        ("prior", (300, 100), "rescale"),
        ("prior", (-4, 1), "rescale"),
    ],
)
def test_values_within_a_fixed_range_are_scaled_by_it(
    tmp_path: Path, name: str, highest: tuple[float, ...], way: str
) -> None:
    images = [image(tmp_path, np.linspace(0, end, 60, dtype=np.float32).reshape(5, 4, 3)) for end in highest]
    assert choose_intensity([name], [images], "auto").intensity == way


def test_without_an_image_nothing_is_known() -> None:
    assert choose_intensity(["image"], [[]], "auto").intensity == "unknown"
