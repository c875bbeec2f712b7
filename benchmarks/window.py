"""A long scan through a sliding window: MONAI's on logits against windows on features, handed on slice by slice.

Both methods are given the same image on the network's grid, the same small network (32 features by one convolution:
what is compared is what surrounds a network) and the same head, and end in a label map on the scan's own grid, so that
its classes can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from benchmarks.way_back import agreement
from networks.sliding_window import SlidingWindow, gaussian_weights
from transforms.resize import align_grids
from transforms.restore import FeatureMap, FeatureStream, restore

N_FEATURES = 32
SLOPE = 2.0
"""Of the image, end to middle along its longest axis: the noise's standard deviation is 1."""


def plain(
    source_size: Sequence[int], size: Sequence[int], window: Sequence[int], n_classes: int, overlap: float = 0.5
) -> Measurement:
    """MONAI's sliding_window_inference on the logits of all classes, then onto the scan's grid."""
    network = _Network(size, n_classes)
    weights = torch.einsum("i,j,k->ijk", *map(gaussian_weights, window))

    def work() -> FeatureMap:
        logits = sliding_window_inference(
            network.image[None], tuple(window), 1, network.logits, overlap=overlap, roi_weight_map=weights
        )
        assert isinstance(logits, Tensor)
        return FeatureMap(logits[0], network.affine(source_size))

    return _measured(work, source_size, n_classes)


def ours(
    source_size: Sequence[int], size: Sequence[int], window: Sequence[int], n_classes: int, overlap: float = 0.5
) -> Measurement:
    """Blended features as the slices of the scan's grid ask for them."""
    network = _Network(size, n_classes)

    def work() -> FeatureStream:
        slices = SlidingWindow(network.features, network.image, window, step=1 - overlap, axis=2).slices
        i, j, k = size
        return FeatureStream(
            slices,
            (i, j, k),
            2,
            network.affine(source_size),
            n_classes,
            network.head.weight.flatten(1),
            network.head.bias,
        )

    return _measured(work, source_size, n_classes)


def _measured(
    work: Callable[[], FeatureMap | FeatureStream], source_size: Sequence[int], n_classes: int
) -> Measurement:
    @torch.no_grad()
    def whole() -> np.ndarray:
        return restore([work()], source_size, np.eye(4)).segmentation

    return measure(whole, value=partial(agreement, n_classes=n_classes))


class _Network:
    """A network, and an image on its grid in whose ends classes differ."""

    def __init__(self, size: Sequence[int], n_classes: int) -> None:
        torch.manual_seed(0)
        self.size = size
        self.convolution = nn.Conv3d(1, N_FEATURES, 3, padding=1).requires_grad_(False)
        self.head = nn.Conv3d(N_FEATURES, n_classes, 1).requires_grad_(False)
        self.image = torch.randn(1, *size).add_(torch.linspace(-SLOPE, SLOPE, size[2]))

    def features(self, window: Tensor) -> Tensor:
        return self.convolution(window).relu_()

    def logits(self, window: Tensor) -> Tensor:
        return self.head(self.features(window))

    def affine(self, source_size: Sequence[int]) -> np.ndarray:
        """Of the network's grid, over the same field of view as the scan's, whose affine is the identity."""
        return align_grids(source_size, self.size).matrix
