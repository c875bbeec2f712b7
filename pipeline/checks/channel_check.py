"""Check the intensities of every channel as the network will see them: after they are scaled. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.checks.case_check import CheckedCase, whole_cases
from pipeline.checks.findings import Finding
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.voxel_statistics import PERCENTILES, ImageStatistics
from pipeline.console.text import some_of
from pipeline.datasets.dataset import Dataset
from transforms.intensity import AIR_HU

_HU_RANGE = 10.0  # a CT whose values span less was scaled: bone and air are 2000 HU apart
_HU_MEDIAN = 1500.0  # dense bone; half of no scan lies above it
_HU_TISSUE = -200.0  # less dense than fat; some voxels of every scan lie above it
_HU_HIGHEST = 10000.0  # of the 99.5th percentile: extended scales end at 32767, but only metal reaches so far
_SQUEEZED = 0.01  # of the range: what 99 % of the voxels have to fill at least
_LEAST_STEPS = 256  # of float32 between the darkest and the brightest voxels: as many greys as a screen has
_NAMES_LISTED = 8


@dataclass(frozen=True)
class Scaling:
    """The settings that intensities are scaled by."""

    window: tuple[float, float]
    """HU that become the ends of the range, for "ct"."""
    percentiles: tuple[float, float]
    """Percentiles of the foreground that become the ends of the range, for "mr"."""
    mean_std: tuple[float, float] | None = None
    """HU that become 0 and a step of 1 within the window, for "ct"; None: the window becomes the range."""

    def limits(self, image: ImageStatistics, intensity: str) -> tuple[float, float] | None:
        """The intensities of an image that become the ends of the range; None where nothing is cut off."""
        if intensity == "ct":
            return self.window
        if intensity != "mr":
            return None
        known = (0.0, *PERCENTILES, 100.0)
        values = (min(image.foreground), *image.foreground, image.maximum)
        low, high = np.interp(self.percentiles, known, values).tolist()
        return (low, high) if low < high else (image.minimum, image.maximum)


def check_channels(
    cases: Sequence[CheckedCase], dataset: Dataset, intensity: IntensityChoice, scaling: Scaling
) -> Iterator[Finding]:
    """Find channels that scaling makes useless, and intensities that are unusual for their modality.

    Errors: a channel that has one value everywhere once it is scaled. Warnings: intensities that are not those of a CT
    in HU, or of another modality; 99 % of the voxels within a hundredth of the range; a class of which more than half
    of the voxels are cut off, in more than half of its cases; a channel that was drawn from the label.
    """
    whole = whole_cases(cases, len(intensity.by_channel))
    for case in whole:
        for image, way in zip(case.images, intensity.by_channel, strict=True):
            if not image.is_constant:
                yield from _check_image(case.case, image, way, scaling)
    for channel, (name, way) in enumerate(zip(dataset.channel_names, intensity.by_channel, strict=True)):
        images = [case.images[channel] for case in whole]
        yield from _label_as_channel([c.case for c in whole if c.images[channel].shows_label], dataset, name)
        yield from _cut_off_classes(images, dataset, name, way, scaling)


def _label_as_channel(cases: Sequence[str], dataset: Dataset, channel: str) -> Iterator[Finding]:
    """Warn of a channel that shows the network what it is to find."""
    if cases:
        yield Finding(
            "warning", "label_in_channel", "", str(dataset.root), "images that do not show what is to be segmented",
            f"channel {channel} with one value in every class in {len(cases)} of {len(dataset.cases)} cases: "
            f"{some_of(cases, 5)}",
            "take it out of the images if it was drawn from the label: scores would mean nothing",
        )  # fmt: skip


def _check_image(case: str, image: ImageStatistics, way: str, scaling: Scaling) -> Iterator[Finding]:
    file = str(image.path)
    values = f"values from {image.minimum:g} to {image.maximum:g}"
    if way == "ct":
        low, high = scaling.window
        if image.maximum <= low or image.minimum >= high:
            expected = f"intensities within the window of {low:g} to {high:g} HU (data.window)"
            remedy = "set data.window or data.intensity: the network would see one value everywhere"
            yield Finding("error", "channel_lost", case, file, expected, values, remedy)
            return
    yield from _unusual(case, image, way, values)
    yield from _too_coarse(case, image, values)
    if way == "rescale":
        spread = image.intensities[-1] - image.intensities[0]
        if not image.is_two_valued and spread < _SQUEEZED * (image.maximum - image.minimum):
            found = f"{values}, 99 % of the voxels within {spread:g} of each other"
            remedy = "set data.intensity to mr or zscore, or remove the outliers"
            yield Finding("warning", "channel_squeezed", case, file, "intensities that fill their range", found, remedy)


def _unusual(case: str, image: ImageStatistics, way: str, values: str) -> Iterator[Finding]:
    """Warn of intensities that are not those of the modality that a channel is scaled as."""
    if way not in ("ct", "mr"):
        return
    modality = way.upper()
    expected = f"a {modality} scan"
    found = ""
    remedy = "look at the scan; drop it or set data.intensity"
    if image.modality not in (None, modality):
        found = f"{image.modality} according to its DICOM header"
    elif way == "ct":
        expected = "Hounsfield units, air near -1000 and water at 0"
        found = _why_not_hu(image, values)
        remedy = "export it in HU (rescale slope and intercept applied), or set data.intensity if it is no CT"
    elif image.intensities[0] <= AIR_HU:
        expected = "MR intensities"
        found = f"{values}, which looks like a CT in HU"
    if found:
        yield Finding("warning", "odd_intensities", case, str(image.path), expected, found, remedy)


def _too_coarse(case: str, image: ImageStatistics, values: str) -> Iterator[Finding]:
    """Warn of values so far from zero that float32, in which volumes are read, does not tell them apart."""
    kind, low, high = np.dtype(image.dtype), image.foreground[0], image.foreground[-1]
    if kind.itemsize < 4 or low * high <= 0:
        return
    step = float(np.spacing(np.float32(min(abs(low), abs(high)))))
    if 0 < high - low < _LEAST_STEPS * step and (kind == np.float64 or step > 1):
        found = f"{values}, of which 99 % lie within {high - low:g} of each other and float32 has steps of {step:g}"
        remedy = "subtract the same number from every voxel of all images, and save them again"
        expected = "values that float32 tells apart"
        yield Finding("warning", "channel_squeezed", case, str(image.path), expected, found, remedy)


def _why_not_hu(image: ImageStatistics, values: str) -> str:
    """Say why intensities are not HU; empty where they may be."""
    if image.maximum - image.minimum <= _HU_RANGE:
        return f"{values}: scaled already?"
    if image.minimum >= 0:
        return f"{values}, none below 0: the intercept (often -1024) is missing, or it is no CT"
    if image.intensities[2] > _HU_MEDIAN or image.intensities[-1] > _HU_HIGHEST:
        return f"{values}, half of them above {image.intensities[2]:g}"
    if image.intensities[-1] < _HU_TISSUE:
        return f"{values}, 99 % of them below {_HU_TISSUE:g}: was the intercept (often -1024) added twice?"
    return ""


def _cut_off_classes(
    images: Sequence[ImageStatistics], dataset: Dataset, channel: str, way: str, scaling: Scaling
) -> Iterator[Finding]:
    held = np.zeros(len(dataset.classes.names), int)
    cut_off = np.zeros(len(dataset.classes.names), int)
    for image in images:
        limits = scaling.limits(image, way)
        if limits is None or not image.by_class or image.is_constant:
            continue
        medians = np.array(image.by_class)[:, 1]
        held += np.isfinite(medians)
        with np.errstate(invalid="ignore"):
            cut_off += (medians <= limits[0]) | (medians >= limits[1])
    lost = np.flatnonzero(2 * cut_off > held)
    if lost.size:
        names = some_of([dataset.classes.names[index] for index in lost], _NAMES_LISTED)
        setting = f"data.window ({scaling.window[0]:g} to {scaling.window[1]:g} HU)"
        if way == "mr":
            setting = f"data.percentiles ({scaling.percentiles[0]:g} to {scaling.percentiles[1]:g})"
        expected = f"classes within the intensities that the network can tell apart in channel {channel}"
        found = f"more than half of the voxels of {names} at one end of {setting}"
        yield Finding(
            "warning", "class_cut_off", "", str(dataset.root), expected, found,
            "widen it, or set data.intensity to zscore, if these intensities matter",
        )  # fmt: skip
