"""Choose how each channel's intensities are scaled: by the channels' names, DICOM headers, or the darkest voxels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.checks.voxel_statistics import ImageStatistics
from transforms.intensity import AIR_HU, FIXED_RANGES

_IMAGES_USED = 3
"""How many images decide where neither the data set nor a header names the modality."""

_LEAST_USE = 0.1
"""Share of a fixed range that the values of a data set reach at least: below, too little contrast would be left."""

_BY_IMAGE = "rescaleto01"
"""nnU-Net's name for scaling every image by its own extremes; a channel of this name is scaled so in any case."""

_NNUNET = {"ct": "ct", "nonorm": "none", "zscore": "zscore", "rescaleto01": "rescale", "rgbto01": "rescale"}
"""Names by which nnU-Net's dataset.json chooses a normalisation (`channel_name_to_normalization_mapping`)."""

_WORDS = (
    # Before the scans: "CT_mask" and "T1mask" are masks that were drawn on one.
    ("rescale", r"\w*(masks?|segmentations?|seg)|clicks?|scribbles?|prior|probabilit(y|ies)"),
    ("ct", r"(ld|nc|ce|cb|hr|pc|de)?cta?\d*"),  # CT, CT1, LDCT, CBCT, CTA
    ("zscore", r"pet\d*|pt\d*|suv\w*|fdg|psma|spect"),  # hot spots, which percentiles would cut off
    ("mr", r"mri?\d*|mra|flair|dwi|adc(map)?|swi|mprage|tof|stir|dixon|lge|pdw?|t[12](?!\d)\w*"),
)
"""How a channel is scaled that has one of these words (whole words, in any case) in its name; the first that fits."""


@dataclass(frozen=True)
class IntensityChoice:
    """How intensities are scaled, and why."""

    by_channel: tuple[str, ...]
    """A way of `transforms.intensity.INTENSITIES` for each channel; "unknown" where no image tells."""
    because: str
    """The reason in words."""

    @property
    def intensity(self) -> str | tuple[str, ...]:
        """The one way of all channels, or where they differ one a channel, as `preprocessing_chain` takes it."""
        return self.by_channel[0] if len(set(self.by_channel)) == 1 else self.by_channel

    @property
    def in_words(self) -> str:
        """The ways and the reason: "ct, zscore (the data set's channels are named CT, PET)"."""
        ways = self.intensity if isinstance(self.intensity, str) else ", ".join(self.intensity)
        return f"{ways} ({self.because})"

    def completed(self, other: IntensityChoice) -> IntensityChoice:
        """Take another choice for the channels of which this one is unknown."""
        if "unknown" not in self.by_channel:
            return self
        ways = tuple(b if a == "unknown" else a for a, b in zip(self.by_channel, other.by_channel, strict=True))
        return IntensityChoice(ways, f"{self.because}; the others: {other.because}")

    def to_document(self) -> dict[str, Any]:
        """The choice as training_config.json has it."""
        ways = self.intensity if isinstance(self.intensity, str) else list(self.intensity)
        return {"intensity": ways, "because": self.because}


def choose_intensity(
    channel_names: Sequence[str], images: Sequence[Sequence[ImageStatistics]], setting: str
) -> IntensityChoice:
    """Decide how the intensities of each channel are scaled where the settings say "auto".

    Args:
        channel_names: as the data set names them.
        images: of each channel the cases' images, in the cases' order.
        setting: data.intensity: "auto", or one way for all channels.
    """
    if setting != "auto":
        return IntensityChoice((setting,) * len(channel_names), "data.intensity says so")
    ways: list[str] = []
    reasons: dict[str, list[str]] = {}
    for name, of_channel in zip(channel_names, images, strict=True):
        way = intensity_by_name(name)
        reason = f"the data set's channels are named {', '.join(channel_names)}"
        if way is None:
            way, reason = _by_images(of_channel[:_IMAGES_USED])
        if way == "rescale" and _plain(name) != _BY_IMAGE:
            way = _fixed_range(of_channel) or way
        ways.append(way)
        reasons.setdefault(reason, []).append(name)
    if len(reasons) == 1:
        return IntensityChoice(tuple(ways), next(iter(reasons)))
    return IntensityChoice(tuple(ways), "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()))


def intensity_by_name(channel_name: str) -> str | None:
    """Return how a channel of this name is scaled; None where the name does not say.

    Words decide, not letters: "HeadCT" is a CT although it holds "ADC".

    Example:
        >>> [intensity_by_name(name) for name in ("HeadCT", "CT_T1", "T1w", "PT1", "organ_mask", "noNorm", "image")]
        ['ct', 'ct', 'mr', 'zscore', 'rescale', 'none', None]
    """
    if _plain(channel_name) in _NNUNET:
        return _NNUNET[_plain(channel_name)]
    # Apart at all that is neither letter nor digit, and before a capital in CamelCase.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[\W_]+", " ", channel_name)).lower().split()
    for way, pattern in _WORDS:
        if any(re.fullmatch(pattern, word) for word in words):
            return way
    return None


def _plain(channel_name: str) -> str:
    return re.sub(r"[\W_]", "", channel_name).lower()


def _fixed_range(images: Sequence[ImageStatistics]) -> str | None:
    """The range that all values of a data set lie within and use: 0.3 in one case and 0.9 in another stay apart.

    None where there is none, or where some images may hold 0 and 1 and others 0 and 255: only their own extremes serve
    all of those.
    """
    highest = [image.maximum for image in images if np.isfinite(image.maximum)]
    lowest = [image.minimum for image in images if np.isfinite(image.minimum)]
    if not highest or min(lowest) < 0:
        return None
    for way, (_, end) in FIXED_RANGES.items():
        if _LEAST_USE * end < max(highest) <= end:
            return way if end == 1 or not any(0 < value <= 1 for value in highest) else None
    return None


def _by_images(images: Sequence[ImageStatistics]) -> tuple[str, str]:
    """Return a way of scaling and the reason."""
    if not images:
        return "unknown", "no image could be read"
    modalities = {image.modality for image in images} - {None}
    if modalities in ({"CT"}, {"MR"}):
        modality = str(modalities.pop())
        return modality.lower(), f"the DICOM headers say {modality}"
    if all(image.is_two_valued for image in images):
        return "rescale", "the images have two values, as masks do"
    darkest = sorted(image.minimum for image in images)[len(images) // 2]
    if darkest < AIR_HU:
        return "ct", f"the darkest voxels are at {darkest:g}, as air in HU"
    return "mr", f"the darkest voxels are at {darkest:g}, which is not air in HU"
