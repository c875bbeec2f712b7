"""Scale image intensities by channel: a CT by its window of HU, MR and others, which have no unit, by statistics.

An image is (C, I, J, K) and finite; whole numbers are scaled as float32. Foreground are the voxels that are not exactly
zero, the padding value of scanners and skull-strippers; the statistics come from the foreground and are applied to
every voxel, so that air stays the darkest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from transforms.io.errors import VolumeError
from transforms.io.load import KEPT_TYPES
from transforms.large_pages import empty_like

INTENSITIES = {
    "ct": "the window of HU becomes the range, or a mean and deviation in HU 0 and 1; what lies outside is clipped",
    "mr": "two percentiles of the foreground become the range, what lies outside is clipped",
    "zscore": "mean 0 and standard deviation 1 over the foreground",
    "0to1": "0 and 1 become the range, what lies outside is clipped: masks, probabilities",
    "0to255": "0 and 255 become the range, what lies outside is clipped: the same as bytes",
    "rescale": "the lowest and the highest value of the image become the range: masks with other values",
    "none": "left as they are",
}
"""Ways of scaling a channel, and what each does; the range is one of `SCALINGS`."""

_SUMMED_AT_ONCE = 2**15
"""Voxels, 256 kB in float64: they stay in a CPU's cache."""

AIR_HU = -500.0
"""A scan with values below this is a CT in HU: air is at −1000, and other kinds of images have no such values."""

FIXED_RANGES = {"0to1": (0.0, 1.0), "0to255": (0.0, 255.0)}
"""Values that become the range whatever an image holds, by the way of scaling: a probability of 0.3 stays one."""

SCALINGS = {"centred": (-1.0, 1.0), "unit": (0.0, 1.0)}
"""Ranges that all ways but "zscore" and "none" scale to. Networks compute in bfloat16, too, whose steps are 1/256 of a
value: with a window of −1000…1000, a CT at 40 HU has steps of 0.25 HU in −1…1, and of 8 HU in 0…1.

"unit" is what checkpoints without this argument were trained with; a channel whose foreground is constant (a mask, also
an empty or a full one) then becomes 0 everywhere."""


_SLAB = 16
"""Slices that are scaled at once: of float32 they fill a line of the cache."""

_KEPT_TYPES = tuple(torch.from_numpy(np.empty(0, kept)).dtype for kept in KEPT_TYPES)
"""Whole numbers that are scaled as they are; others become float32 first: torch has no extremes of uint16."""


def scale_channel(
    channel: Real[Tensor, "I J K"] | Bool[Tensor, "I J K"],
    intensity: str,
    *,
    window: Sequence[float | int] = (-1000.0, 1000.0),
    percentiles: Sequence[float | int] = (0.5, 99.5),
    scaling: str = "centred",
    mean_std: Sequence[float | int] | None = None,
) -> Float[Tensor, "I J K"]:
    """Scale one channel as an entry of `INTENSITIES` says.

    With `mean_std` the first of its HU becomes 0 in a CT that was clipped to the window, and the second a step of 1
    (nnU-Net's CTNormalization, with the numbers of a whole data set); None: the window becomes the range.

    A constant channel becomes 0 with "zscore". With "mr" and "rescale" it becomes what it would be beside zeros: the
    top of the range above 0 (a full mask), else the bottom (an empty mask).

    >>> hu = torch.tensor([-1024.0, -160, 40, 240, 3000]).view(5, 1, 1)
    >>> scale_channel(hu, "ct", window=(-160, 240)).flatten()
    tensor([-1., -1.,  0.,  1.,  1.])
    >>> scale_channel(hu, "ct", window=(-160, 240), mean_std=(40, 50)).flatten()
    tensor([-4., -4.,  0.,  4.,  4.])
    >>> scale_channel(torch.tensor([0.0, 0, 1, 1]).view(4, 1, 1), "mr").flatten()
    tensor([-1., -1.,  1.,  1.])
    """
    if not channel.is_floating_point() and channel.dtype not in _KEPT_TYPES:
        channel = channel.float()
    if intensity == "none":
        return _in_slabs(channel, lambda slab: slab)
    if intensity == "zscore":
        return _standardised(channel, by_foreground_alone=scaling == "unit")
    if intensity == "ct" and mean_std is not None:
        mean, std = mean_std
        return _in_slabs(channel, lambda slab: slab.clamp(*window).sub_(mean).div_(std))
    low, high = _limits(channel, intensity, window, percentiles, by_foreground_alone=scaling == "unit")
    bottom, top = SCALINGS[scaling]
    if high <= low:
        constant = top if low > 0 and scaling != "unit" else bottom
        return _in_slabs(channel, lambda slab: torch.full_like(slab, constant))
    return _in_slabs(
        channel,
        lambda slab: slab.sub(low).div_(high - low).mul_(top - bottom).add_(bottom).clamp_(bottom, top),
    )


def _limits(
    channel: Tensor,
    intensity: str,
    window: Sequence[float | int],
    percentiles: Sequence[float | int],
    *,
    by_foreground_alone: bool,
) -> tuple[float, float]:
    """The values that become the ends of the range."""
    if intensity == "ct":
        return float(window[0]), float(window[1])
    if intensity in FIXED_RANGES:
        return FIXED_RANGES[intensity]
    if intensity == "mr":
        low, high = np.percentile(_foreground(channel).cpu().numpy(), tuple(percentiles)).tolist()
        if low < high or by_foreground_alone:
            return low, high
    low, high = torch.aminmax(channel)
    return float(low), float(high)


def _standardised(channel: Tensor, *, by_foreground_alone: bool) -> Tensor:
    mean, std = mean_and_std(_foreground(channel))
    if _is_constant(mean, std) and not by_foreground_alone:
        mean, std = mean_and_std(channel)
    if _is_constant(mean, std):
        return _in_slabs(channel, torch.zeros_like)
    return _in_slabs(channel, lambda slab: slab.sub(mean).div_(std))


def _in_slabs(channel: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """Scale slab by slab along the axis that is slowest in memory, into a volume whose first axis is the fastest.

    Most scans lie so in their files. Where one does not, it is turned here, so that what follows computes the same of
    equal voxels; turned as a whole, with a temporary a step, a large CT takes four times as long: neither the lines of
    the cache that are read nor those that are written are used up at once.
    """
    scaled = empty_like(channel.new_empty(0, dtype=_float_type(channel)), channel.shape[::-1]).permute(2, 1, 0)
    axis = max(range(3), key=channel.stride)
    for slab, target in zip(channel.split(_SLAB, axis), scaled.split(_SLAB, axis), strict=True):
        target.copy_(scale(slab.to(scaled.dtype)))
    return scaled


def _is_constant(mean: float | Tensor, std: float | Tensor) -> bool:
    return float(std) <= 1e-6 * abs(float(mean))


def mean_and_std(values: Real[Tensor, "*grid"]) -> tuple[float | Tensor, float | Tensor]:
    """Mean and population standard deviation; on an accelerator 0-d tensors, so that the host waits for nothing.

    On a CPU by numpy, whose sums do not depend on the number of threads as torch's do; in float64, since float32 loses
    the spread of values far from zero; and part by part, since float64 copies of a volume take longer than the sums.

    >>> mean_and_std(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    if values.device.type != "cpu":
        std, mean = torch.std_mean(values.double(), correction=0)
        return mean, std
    flat = values.numpy().reshape(-1)
    n = flat.size
    # Of the differences to one of the values: the squares of values far from zero would cancel.
    origin = float(flat[0])
    total = squares = 0.0
    for start in range(0, n, _SUMMED_AT_ONCE):
        part = np.subtract(flat[start : start + _SUMMED_AT_ONCE], origin, dtype=np.float64)
        total += float(part.sum())
        squares += float(np.square(part, out=part).sum())
    above = total / n
    return origin + above, math.sqrt(max(0.0, squares / n - above**2))


def _foreground(channel: Tensor) -> Tensor:
    values = channel[channel != 0]
    return (values if values.numel() else channel.flatten()).to(_float_type(channel))


def _float_type(channel: Tensor) -> torch.dtype:
    """What a channel is scaled in: what is scaled is no whole number any more."""
    return channel.dtype if channel.is_floating_point() else torch.float32


class ScaleIntensityd(MapTransform):
    """Apply `scale_channel` to every channel of each key, (C, I, J, K) of file values (HU in a CT).

    `intensity` is one way for all channels, or one a channel; the call raises VolumeError for another number of
    channels.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        intensity: str | Sequence[str],
        *,
        window: Sequence[float | int],
        percentiles: Sequence[float | int],
        scaling: str,
        mean_std: Sequence[float | int] | None = None,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.intensity = intensity if isinstance(intensity, str) else tuple(intensity)
        self.window = tuple(window)
        self.percentiles = tuple(percentiles)
        self.scaling = scaling
        self.mean_std = None if mean_std is None else tuple(mean_std)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            plain = convert_to_tensor(d[key], track_meta=False)
            ways = self._ways(len(plain), str(d.get("case", "?")))
            scaled = [self._scaled(channel, way) for channel, way in zip(plain, ways, strict=True)]
            turned = [channel.permute(2, 1, 0) for channel in scaled]  # as they lie in memory
            out = torch.stack(turned) if len(turned) > 1 else turned[0][None]  # a single one is not copied
            out = out.permute(0, 3, 2, 1)
            d[key] = convert_to_dst_type(out, d[key], dtype=out.dtype)[0]
        return d

    def _scaled(self, channel: Tensor, intensity: str) -> Tensor:
        return scale_channel(
            channel,
            intensity,
            window=self.window,
            percentiles=self.percentiles,
            scaling=self.scaling,
            mean_std=self.mean_std,
        )

    def _ways(self, n_channels: int, case: str) -> tuple[str, ...]:
        if isinstance(self.intensity, str):
            return (self.intensity,) * n_channels
        if len(self.intensity) != n_channels:
            expected = f"{len(self.intensity)} channels ({', '.join(self.intensity)})"
            remedy = "give the channels that the chain was made for"
            raise VolumeError("wrong_channels", "image", expected, f"{n_channels}", remedy, case)
        return self.intensity
