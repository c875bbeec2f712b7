"""Random variation of a prepared case on one core: MONAI's chain of the same operations against ours.

What is drawn differs, so there is no value to agree in; strengths and probabilities are the same.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
)

from benchmarks.inputs import image_and_label
from benchmarks.measure import resident_bytes
from benchmarks.measurement import Measurement
from pipeline.compute.memory import forget_peak, peak_memory_bytes
from transforms.augment import Strengths
from transforms.chains import augmentation_chain


def plain(size: Sequence[int], spatial: float, intensity: float, n: int = 4, n_classes: int = 71) -> Measurement:
    """MONAI's chain."""
    return _mean_time(monai_chain(size, spatial, intensity), size, n, n_classes)


def ours(size: Sequence[int], spatial: float, intensity: float, n: int = 4, n_classes: int = 71) -> Measurement:
    """Our chain."""
    chain = augmentation_chain(size, spatial_probability=spatial, intensity_probability=intensity)
    return _mean_time(chain, size, n, n_classes)


def monai_chain(size: Sequence[int], spatial: float, intensity: float) -> Compose:
    """MONAI's transforms with the strengths of ours and the given probabilities."""
    s = Strengths()
    turn, shift = np.radians(s.rotation_deg), [s.translation * n for n in size]
    affine = RandAffined(
        ["image", "label"],
        prob=spatial,
        rotate_range=[turn] * 3,
        scale_range=[s.scale] * 3,
        translate_range=shift,
        mode=["bilinear", "nearest"],
        padding_mode="border",
        cache_grid=True,
        spatial_size=list(size),
    )
    sigma = (0.01, s.blur_sigma)
    return Compose(
        [
            affine,
            RandGaussianSmoothd("image", sigma_x=sigma, sigma_y=sigma, sigma_z=sigma, prob=intensity),
            RandSimulateLowResolutiond("image", prob=intensity, zoom_range=(1 / s.low_resolution, 1.0)),
            RandAdjustContrastd("image", prob=intensity, gamma=(1 / (1 + s.gamma), 1 + s.gamma)),
            RandScaleIntensityd("image", factors=s.gain, prob=intensity),
            RandShiftIntensityd("image", offsets=s.shift, prob=intensity),
            RandGaussianNoised("image", prob=intensity, std=s.noise),
        ]
    )


def _mean_time(chain: Callable[[Any], Any], size: Sequence[int], n: int, n_classes: int) -> Measurement:
    """Mean time of `n` cases on one thread: draws cost differently, so it is not the median that tells the rate."""
    torch.set_num_threads(1)
    image, label = image_and_label(size, n_classes)
    case = {"image": MetaTensor(image[0]), "label": MetaTensor(label[0]), "case": "noise"}
    chain.set_random_state(seed=0)  # type: ignore[attr-defined]
    chain(dict(case))
    forget_peak()
    before, start = resident_bytes(), time.perf_counter()
    for _ in itertools.repeat(None, n):
        chain(dict(case))
    seconds = (time.perf_counter() - start) / n
    peak = peak_memory_bytes()
    return Measurement([seconds], max(0, peak - before), peak, [], {"cases_per_second_and_core": 1 / seconds})
