"""The CT window of the labelled voxels against percentiles of the pooled voxels themselves."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.checks.case_check import CheckedCase
from pipeline.checks.modality import IntensityChoice, choose_intensity
from pipeline.checks.voxel_statistics import measure_image
from pipeline.checks.window import LEAST_DEVIATION, WIDEST, choose_mean_std, choose_window, window_use
from transforms.io.load import read_volume

CT = IntensityChoice(("ct",), "named so")
SHAPE = (20, 20, 20)


def checked(folder: Path, case: str, hu: np.ndarray, label: np.ndarray | None) -> CheckedCase:
    path = folder / f"{case}.nii"
    nib.save(nib.Nifti1Image(hu.astype(np.int16), np.eye(4)), path)
    return CheckedCase(case, case, (measure_image(read_volume(path), path, label, 3),), None, ())


def case_of(folder: Path, name: str, mean: float, deviation: float) -> tuple[CheckedCase, np.ndarray]:
    random = np.random.default_rng(ord(name))
    label = np.zeros(SHAPE, np.uint8)
    label[4:16, 4:16, 4:16] = random.integers(1, 3, (12, 12, 12))
    hu = np.where(label > 0, random.normal(mean, deviation, SHAPE), -1000).round()
    return checked(folder, name, hu, label), hu[label > 0]


def test_the_window_holds_99_percent_of_the_labelled_voxels_of_all_cases(tmp_path: Path) -> None:
    cases, voxels = zip(
        *(case_of(tmp_path, *args) for args in (("a", 40, 60), ("b", 55, 50), ("c", 20, 70))), strict=True
    )
    low, high = choose_window(cases, CT, "auto")
    expected = np.percentile(np.concatenate(voxels), (0.5, 99.5))
    np.testing.assert_allclose((low, high), expected, atol=2)
    alone = choose_window(cases[:1], CT, "auto")
    np.testing.assert_allclose(alone, np.percentile(voxels[0], (0.5, 99.5)), atol=1)


def test_only_training_cases_decide(tmp_path: Path) -> None:
    cases = [case_of(tmp_path, "a", 40, 60)[0], case_of(tmp_path, "b", 900, 60)[0]]
    assert choose_window(cases, CT, "auto", training=["a"]) == choose_window(cases[:1], CT, "auto")
    assert choose_window(cases, CT, "auto")[1] > 900


def test_a_window_is_never_narrower_than_the_noise_of_a_scanner(tmp_path: Path) -> None:
    label = np.ones(SHAPE, np.uint8)
    flat = checked(tmp_path, "flat", np.full(SHAPE, 40), label)
    assert choose_window([flat], CT, "auto") == (-10, 90)


def test_mean_and_deviation_are_those_of_the_labelled_voxels_within_the_window(tmp_path: Path) -> None:
    cases, voxels = zip(*(case_of(tmp_path, *args) for args in (("a", 40, 60), ("b", 900, 50))), strict=True)
    for window in ((-1000.0, 2000.0), (0.0, 100.0)):
        pooled = np.clip(np.concatenate(voxels), *window)
        found = choose_mean_std(cases, CT, window)
        assert found is not None
        np.testing.assert_allclose(found, (pooled.mean(), pooled.std()), atol=1)
    assert choose_mean_std(cases, CT, (-1000.0, 2000.0), ["a"]) == choose_mean_std(cases[:1], CT, (-1000.0, 2000.0))
    assert choose_mean_std(cases, IntensityChoice(("mr",), "named so"), WIDEST) is None
    flat = checked(tmp_path, "flat", np.full(SHAPE, 40), np.ones(SHAPE, np.uint8))
    assert choose_mean_std([flat], CT, (-10.0, 90.0)) == (40, round(LEAST_DEVIATION, 2))


def test_numbers_in_the_settings_win_and_without_labels_it_is_the_widest(tmp_path: Path) -> None:
    case, _ = case_of(tmp_path, "a", 40, 60)
    assert choose_window([case], CT, (-160.0, 240.0)) == (-160, 240)
    assert choose_window([case], IntensityChoice(("mr",), "named so"), "auto") == WIDEST
    unlabelled = checked(tmp_path, "u", np.zeros(SHAPE), None)
    assert choose_window([unlabelled], CT, "auto") == WIDEST
    assert choose_window([], CT, "auto") == WIDEST


def test_each_ct_channel_counts_and_no_other(tmp_path: Path) -> None:
    case, _ = case_of(tmp_path, "a", 40, 60)
    bright, _ = case_of(tmp_path, "b", 2000, 10)
    both = replace(case, images=(*case.images, *bright.images))
    assert choose_window([both], IntensityChoice(("ct", "mr"), "named so"), "auto") == choose_window([case], CT, "auto")
    assert choose_window([both], IntensityChoice(("ct", "ct"), "named so"), "auto")[1] > 2000
    assert choose_window([case], IntensityChoice(("ct", "ct"), "named so"), "auto") == WIDEST  # a channel is missing


def test_a_mask_that_is_named_after_the_ct_leaves_its_window_alone(tmp_path: Path) -> None:
    case, _ = case_of(tmp_path, "a", -850, 15)
    label = np.zeros(SHAPE, np.uint8)
    label[4:16, 4:16, 4:16] = 1
    mask = checked(tmp_path, "mask", label, label)
    both = replace(case, images=(*case.images, *mask.images))
    choice = choose_intensity(["CT", "CT_mask"], [[image] for image in both.images], "auto")
    assert choice.by_channel == ("ct", "0to1")
    assert choose_window([both], choice, "auto") == choose_window([case], CT, "auto")


def test_check_says_how_much_of_the_window_the_labelled_voxels_use(tmp_path: Path) -> None:
    cases, voxels = zip(*(case_of(tmp_path, *args) for args in (("a", 40, 60), ("b", 55, 50))), strict=True)
    pooled = np.concatenate(voxels)
    bottom, top = np.percentile(pooled, (5, 95))
    for low, high in ((-1000.0, 1000.0), (0.0, 100.0), (100.0, 400.0)):
        words = window_use(cases, CT, (low, high))
        found = re.fullmatch(
            r"90 % of the labelled voxels lie within (\S+) to (\S+) HU and use (\d+) % of the window "
            rf"{low:g} to {high:g}, which cuts off (\S+) % of all",
            words,
        )
        assert found is not None, words
        used = max(min(top, high) - max(bottom, low), 0) / (high - low)
        cut_off = np.mean((pooled < low) | (pooled > high))
        numbers = [float(number) for number in found.groups()]
        np.testing.assert_allclose(numbers, [bottom, top, 100 * used, 100 * cut_off], atol=1.5)
    assert window_use(cases, IntensityChoice(("mr",), "named so"), (-1000.0, 1000.0)) == ""
