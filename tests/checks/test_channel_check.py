"""Channels are checked as the network sees them; the numbers are those of `transforms.intensity` itself."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.check import check
from pipeline.checks.channel_check import Scaling
from pipeline.checks.voxel_statistics import measure_image
from tests.support.volumes import AFFINE, SHAPE, Folder, configured, organs, save
from transforms.io.load import read_volume


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def kinds(folder: Folder, **data: object) -> dict[str, str]:
    """Kinds of the findings, and what was found."""
    folder.write()
    settings = configured(folder.root / "cases.json", data={"cache_dir": str(folder.root / "cache"), **data})
    return {finding.kind: finding.found for finding in check(settings, measure=False).findings}


def soft_tissue(seed: int) -> np.ndarray:
    """A CT of air and of organs between 30 and 60 HU."""
    rng = np.random.default_rng(seed)
    label = organs().astype(int)
    body = np.where(label > 0, 30 + 10 * label, -1000) + rng.integers(-3, 4, SHAPE)
    return body.astype(np.int16)


def fill(folder: Folder, make: object) -> None:
    for seed, name in enumerate("abcd"):
        save(folder.image(name), make(seed))


def test_a_window_beside_the_voxels_is_an_error(folder: Folder) -> None:
    fill(folder, soft_tissue)
    assert kinds(folder, window=(-160, 240)) == {}
    assert "channel_lost" in kinds(folder, window=(300, 3000))


def test_values_that_float32_does_not_tell_apart_are_warned_of(folder: Folder) -> None:
    """A step of float32 is 64 at 2^30; below 2^24 it holds every whole number."""
    for offset in (2**30, 2**20):
        fill(folder, lambda seed, offset=offset: soft_tissue(seed).astype(np.int32) + offset)
        found = kinds(folder, intensity="zscore").get("channel_squeezed", "")
        assert ("float32 has steps of 64" in found) == (offset == 2**30)


def test_values_that_a_header_moves_far_from_those_of_its_modality_are_warned_of(folder: Folder) -> None:
    """Scale factor and offset of NIfTI, which a header gives in float32: an offset of 2^30, or a second -1024."""
    fill(folder, soft_tissue)
    scaled = nib.Nifti1Image(soft_tissue(0), AFFINE)
    for offset, of_channel, kind, words in (
        (2**30, "zscore", "channel_squeezed", "float32 has steps of 64"),
        (-1024, "ct", "odd_intensities", "was the intercept (often -1024) added twice?"),
    ):
        scaled.header.set_slope_inter(1, offset)
        nib.save(scaled, folder.image("a"))
        assert words in kinds(folder, intensity=of_channel, window=(-1024, 400))[kind]


def test_a_channel_that_is_the_label_is_named(folder: Folder) -> None:
    """Whatever numbers it has for the classes, two of which may share one; a voxel less of a class is another image."""
    fill(folder, soft_tissue)
    folder.channel_names = ["CT", "second"]
    for case in folder.cases:
        case["image"] = [f"{case['case']}.nii.gz", f"{case['case']}_second.nii.gz"]
    almost = organs().copy()
    almost[2, 4, 4] = 0
    images = (np.array([3, 1, 0, 200], np.int16)[organs()], organs() / 3, almost, organs() > 0)
    for name, image in zip("abcd", images, strict=True):
        save(folder.root / f"{name}_second.nii.gz", image.astype(np.float32))
    assert kinds(folder)["label_in_channel"] == "channel second with one value in every class in 3 of 4 cases: a, b, d"


def test_classes_beyond_the_window_are_named(folder: Folder) -> None:
    fill(folder, soft_tissue)
    found = kinds(folder, window=(-1000, 45))
    assert set(found) == {"class_cut_off"}
    assert "kidney_right, liver at one end of data.window (-1000 to 45 HU)" in found["class_cut_off"]


def test_hot_spots_above_the_percentile_are_named(folder: Folder) -> None:
    """Lesions of 0.3 % of the body at twice to ten times its intensity: all become 1 by the 99.5th percentile."""
    folder.channel_names = ["scan"]

    def hot(seed: int) -> np.ndarray:
        scan = np.random.default_rng(seed).uniform(0.5, 1.5, SHAPE).astype(np.float32)
        scan[organs() == 1] = 0.9
        label = (organs() == 1).astype(np.uint8)
        spots = [(3, 5, 5), (4, 5, 5), (3, 6, 5), (4, 6, 5)]
        for n, place in enumerate(spots):
            scan[place] = 4 + 4 * n + seed
            label[place] = 3
        label[organs() == 2] = 2
        save(folder.label("abcd"[seed]), label)
        return scan

    fill(folder, hot)
    found = kinds(folder)
    assert set(found) == {"class_cut_off"}
    assert "liver at one end of data.percentiles (0.5 to 99.5)" in found["class_cut_off"]
    assert kinds(folder, intensity="zscore") == {}
    folder.channel_names = ["PET"]  # whose hot spots are kept
    assert kinds(folder) == {}


def test_a_mask_with_a_ct_is_scaled_as_a_mask(folder: Folder) -> None:
    fill(folder, soft_tissue)
    folder.channel_names = ["CT", "prior"]
    for seed, case in enumerate(folder.cases):
        name = case["case"]
        mask = (organs() > 0).astype(np.uint8)
        mask[seed, 0, 0] = 1
        save(folder.root / f"{name}_prior.nii.gz", mask)
        case["image"] = [f"{name}.nii.gz", f"{name}_prior.nii.gz"]
    folder.write()
    report = check(configured(folder.root / "cases.json"), measure=False)
    assert report.findings == ()
    assert report.fingerprint is not None
    assert report.fingerprint.intensity.by_channel == ("ct", "0to1")


def test_outliers_that_squeeze_a_rescaled_channel_are_named(folder: Folder) -> None:
    folder.channel_names = ["rescale_to_0_1"]

    def with_outlier(seed: int) -> np.ndarray:
        scan = np.random.default_rng(seed).uniform(0, 1, SHAPE).astype(np.float32)
        scan[0, 0, 0] = 1000
        return scan

    fill(folder, with_outlier)
    assert set(kinds(folder)) == {"channel_squeezed"}


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (5, 95), (1, 99)])
def test_the_limits_are_those_that_the_chain_cuts_at(tmp_path: Path, percentiles: tuple[float, float]) -> None:
    array = np.random.default_rng(0).gamma(2, 100, (20, 20, 20)).astype(np.float32)
    array[:5] = 0
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    image = measure_image(read_volume(tmp_path / "a.nii"), tmp_path / "a.nii")
    limits = Scaling((-1000, 1000), percentiles).limits(image, "mr")
    expected = np.percentile(array[array != 0], percentiles)
    tolerance = 1e-5 if percentiles != (1, 99) else 0.2  # between known percentiles it is interpolated
    assert limits == pytest.approx(expected, rel=tolerance)
