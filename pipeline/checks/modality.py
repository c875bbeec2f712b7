"""Which way of scaling intensities suits a data set: by its channels' names, its DICOM headers, its darkest voxels."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.checks.voxel_statistics import ImageFacts

_AIR_HU = -500
"""A scan whose darkest voxels lie below this is a CT: MR and other intensities have no such values."""
_IMAGES_LOOKED_AT = 3
"""How many images decide where neither the data set nor a header names the modality."""


def choose_intensity(channel_names: Sequence[str], images: Sequence[ImageFacts], wanted: str) -> dict[str, str]:
    """Decide how intensities are scaled where the settings say "auto".

    Args:
        channel_names: as the data set names them.
        images: the cases' first channels, in the cases' order.
        wanted: what the settings say.

    Returns:
        "intensity" ("ct", "mr", "zscore"; "unknown" where no image tells) and "because", the reason in words.
    """
    if wanted != "auto":
        return _chosen(wanted, "data.intensity says so")
    names = " ".join(channel_names).upper()
    if "CT" in names.split():
        return _chosen("ct", f"the data set's channels are named {list(channel_names)}")
    if any(word in names for word in ("MR", "T1", "T2", "FLAIR", "DWI", "ADC")):
        return _chosen("mr", f"the data set's channels are named {list(channel_names)}")
    return _by_images(images[:_IMAGES_LOOKED_AT])


def _by_images(images: Sequence[ImageFacts]) -> dict[str, str]:
    if not images:
        return _chosen("unknown", "no image could be read")
    modalities = {image.modality for image in images} - {None}
    if modalities in ({"CT"}, {"MR"}):
        modality = modalities.pop()
        return _chosen(str(modality).lower(), f"the DICOM headers say {modality}")
    darkest = sorted(image.minimum for image in images)[len(images) // 2]
    if darkest < _AIR_HU:
        return _chosen("ct", f"the darkest voxels are at {darkest:g}, as air in HU")
    return _chosen("mr", f"the darkest voxels are at {darkest:g}, which is not air in HU")


def _chosen(intensity: str, because: str) -> dict[str, str]:
    return {"intensity": intensity, "because": because}
