"""Image intensities as a network wants them: CT windows by MONAI, and foreground statistics for MR, which has no unit.

Knows voxel values, not geometry. An image is float (C, I, J, K) and finite (`transforms.load` sees to that), each
channel on its own. Foreground are the voxels
that are not exactly zero, the padding value of scanners and skull-strippers; the statistics come from the foreground
and are applied to every voxel, so that air stays the darkest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, ScaleIntensityRanged
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

INTENSITIES = {
    "ct": "window of HU to 0…1, clipped",
    "mr": "percentiles of the foreground to 0…1, clipped",
    "zscore": "mean 0 and standard deviation 1 over the foreground",
    "none": "left as they are",
}


def scale_percentiles(channel: Tensor, low: float, high: float) -> Tensor:
    """Map the foreground's percentiles `low` and `high` (0…100) of (I, J, K) to 0 and 1 and clip; constant gives 0."""
    bottom, top = np.percentile(_foreground(channel).cpu().numpy(), (low, high)).tolist()
    if top <= bottom:
        return torch.zeros_like(channel)
    return ((channel - bottom) / (top - bottom)).clamp_(0, 1)


def standardise(channel: Tensor) -> Tensor:
    """Subtract the foreground's mean from (I, J, K) and divide by its standard deviation; constant gives 0."""
    mean, std = mean_and_std(_foreground(channel))
    if std <= 1e-6 * abs(mean):
        return torch.zeros_like(channel)
    return (channel - mean) / std


def mean_and_std(values: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation.

    By numpy, whose sums do not depend on the number of threads as torch's do, and in float64, since float32 loses the
    spread of values far from zero.
    """
    array = values.cpu().numpy()
    return float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))


def _foreground(channel: Tensor) -> Tensor:
    values = channel[channel != 0]
    return values if values.numel() else channel.flatten()


class NormaliseChannelsd(MapTransform):
    """Apply a function of one channel, (I, J, K) -> (I, J, K), to every channel of each key."""

    def __init__(
        self,
        keys: str | Sequence[str],
        function: Callable[..., Tensor],
        *arguments: float,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.function, self.arguments = function, arguments

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            plain = convert_to_tensor(d[key], track_meta=False)
            out = torch.stack([self.function(channel, *self.arguments) for channel in plain])
            d[key] = convert_to_dst_type(out, d[key])[0]
        return d


def intensity_transforms(
    key: str, intensity: str, *, window: Sequence[float], percentiles: Sequence[float]
) -> list[MapTransform]:
    """The transforms of one entry of `INTENSITIES`, for `key`: float (C, I, J, K) of file values (HU in a CT)."""
    if intensity == "ct":
        return [ScaleIntensityRanged(key, window[0], window[1], 0.0, 1.0, clip=True)]
    if intensity == "mr":
        return [NormaliseChannelsd(key, scale_percentiles, *percentiles)]
    if intensity == "zscore":
        return [NormaliseChannelsd(key, standardise)]
    return []
