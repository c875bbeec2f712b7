"""Label maps for the tests of metrics, and what MONAI says about a pair of them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from monai.networks import one_hot
from scipy import ndimage
from torch import Tensor

from pipeline.metrics.overlap import joint_histogram

N_CLASSES = 6


def cases(n_cases: int = 4, grid: tuple[int, ...] = (9, 8, 7), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make label maps and predictions (cases, 1, *grid) with empty, absent and falsely predicted classes."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randint(0, N_CLASSES, (n_cases, 1, *grid), generator=generator)
    prediction = torch.where(torch.rand(reference.shape, generator=generator) < 0.6, reference, 1)
    reference[0][reference[0] == 2] = 0  # falsely predicted
    prediction[1][prediction[1] == 3] = 0  # missed
    reference[2] = prediction[2] = 0  # nothing there
    reference[reference == 5], prediction[prediction == 5] = 0, 0  # in no case
    return reference, prediction


def histograms(reference: Tensor, prediction: Tensor, ignore_index: int | None = None) -> Tensor:
    """The joint histogram of each case of `cases`."""
    pairs = zip(reference, prediction, strict=True)
    return torch.stack([joint_histogram(r, p, N_CLASSES, ignore_index) for r, p in pairs])


def blobs(seed: int, grid: tuple[int, ...] = (19, 16, 13), n_classes: int = 5, sigma: float = 1.5) -> np.ndarray:
    """Make a smooth random label map that touches every rim of the volume."""
    noise = np.random.default_rng(seed).normal(size=(n_classes, *grid))
    return ndimage.gaussian_filter(noise, (0, sigma, sigma, sigma)).argmax(0).astype(np.uint8)


def monai_surfaces(
    reference: np.ndarray, prediction: np.ndarray, n_classes: int, tolerance_mm: float, spacing_mm: object
) -> tuple[np.ndarray, np.ndarray]:
    """HD95 and surface Dice of the foreground classes by monai.metrics, surfaces counted in voxels."""
    maps = [one_hot(torch.from_numpy(v.astype(np.int64))[None, None], n_classes) for v in (prediction, reference)]
    with warnings.catch_warnings():
        # MONAI 1.6.1 calls its own function with an argument that it deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        distance = compute_hausdorff_distance(*maps, percentile=95, spacing=spacing_mm)
        dice = compute_surface_dice(*maps, [tolerance_mm] * (n_classes - 1), spacing=spacing_mm)
    return distance[0].numpy(), dice[0].numpy()
