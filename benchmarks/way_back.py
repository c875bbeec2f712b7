"""From features on the network's grid to a label map on the scan's: MONAI's Invertd on full logits against slabs.

Both methods are given the same 32 features and the same head, as a network leaves them: of a body's structures, or of
noise, in which no two voxels are alike. Reading, writing and the check that the two agree are not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Resized
from torch import Tensor, nn

from benchmarks.inputs import phantom
from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from transforms.chains import RAS
from transforms.resize import align_grids
from transforms.restore import FeatureMap, restore

SPACING_MM = (0.8, 0.8, 1.0)
WARM_UP = {"source_size": (12, 12, 12), "size": (8, 8, 8)}
"""Sizes of a first volume, after which the libraries have loaded what they load on first use."""
CODE_NOISE = 0.1
"""Deviation of the features from the code of their class, whose length is 1."""
CODE_GAIN = 8.0
"""Logit of a voxel's own class."""
SLOPE = 2.0
"""Of the features along an axis, end to middle: the noise's standard deviation is 1."""
N_GROUPS = 5
"""Of classes, in whose centroids both methods must agree: single classes may be too rare for a steady one."""


def plain(
    source_size: Sequence[int], size: Sequence[int], n_classes: int, n: int = 1, noise: bool = False
) -> Measurement:
    """The head, Invertd with linear interpolation on the logits, then the argmax; a first small volume before."""
    _monais_way(**WARM_UP, n_classes=n_classes, noise=True)()
    return measure(_monais_way(source_size, size, n_classes, noise), n=n, value=partial(agreement, n_classes=n_classes))


def ours(
    source_size: Sequence[int], size: Sequence[int], n_classes: int, n: int = 1, noise: bool = False
) -> Measurement:
    """Head and argmax inside each slab; a first small volume before."""
    _our_way(**WARM_UP, n_classes=n_classes, noise=True)()
    return measure(_our_way(source_size, size, n_classes, noise), n=n, value=partial(agreement, n_classes=n_classes))


def _monais_way(
    source_size: Sequence[int], size: Sequence[int], n_classes: int, noise: bool
) -> Callable[[], np.ndarray]:
    keys = ["image"]
    chain = Compose([Orientationd(keys, "RAS", labels=RAS), Resized(keys, size, mode="trilinear", align_corners=False)])
    # What Invertd needs of the image is the record of its transforms.
    scan = MetaTensor(torch.zeros(1, *source_size), affine=torch.from_numpy(_lps_affine(source_size)))
    image = chain({"image": scan})["image"]
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False, to_tensor=True)
    features, head = _features_and_head(size, n_classes, noise)

    @torch.no_grad()
    def work() -> np.ndarray:
        logits = MetaTensor(head(features[None])[0], meta=image.meta, applied_operations=image.applied_operations)
        restored = back({"image": image, "pred": logits})["pred"]
        return restored.as_tensor().argmax(0).to(torch.uint8).numpy()

    return work


def _our_way(source_size: Sequence[int], size: Sequence[int], n_classes: int, noise: bool) -> Callable[[], np.ndarray]:
    affine = _lps_affine(source_size)
    target_affine = np.diag([*SPACING_MM, 1.0]) @ align_grids(source_size, size).matrix
    features, head = _features_and_head(size, n_classes, noise)
    weight, bias = head.weight.detach().flatten(1), head.bias.detach()

    def work() -> np.ndarray:
        return restore([FeatureMap(features, target_affine, weight, bias)], source_size, affine).segmentation

    return work


def _lps_affine(source_size: Sequence[int]) -> np.ndarray:
    """The affine of a scan that lies LPS, as most CTs do; turned to RAS its first voxel lies at 0 mm."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:2, 3] = (np.asarray(source_size[:2]) - 1) * SPACING_MM[:2]
    return affine


def _features_and_head(
    size: Sequence[int], n_classes: int, noise: bool, n_features: int = 32
) -> tuple[Tensor, nn.Conv3d]:
    """A code for the class of each voxel of a body, blurred by a little noise, and the head that reads it.

    Or noise alone, and a slope along each axis in three of the features: classes lie somewhere, and a flip moves them.
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    features = torch.randn(n_features, *size, generator=generator)
    head = nn.Conv3d(n_features, n_classes, 1)
    if not noise:
        code = nn.functional.normalize(torch.randn(n_classes, n_features, generator=generator))
        label = torch.from_numpy(phantom(size, noise_hu=0.0).label.astype(np.int64)) % n_classes
        features.mul_(CODE_NOISE).add_(code[label].permute(3, 0, 1, 2))
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            head.weight.copy_(CODE_GAIN * code[..., None, None, None])
        return features, head
    for axis, n in enumerate(size):
        features[axis] += torch.linspace(-SLOPE, SLOPE, n).view([-1 if a == axis else 1 for a in range(3)])
    return features, head


def agreement(label: np.ndarray, n_classes: int) -> list[float]:
    """Return what both methods must agree in: each class's share of the voxels, and the centroids of groups of classes.

    A flipped map has the same shares, but other centroids. These are given along i, j and k, 0 to 1; every N_GROUPS-th
    class is of one group.
    """
    # (axis, slice, class), slice by slice: bincount works on 64-bit integers.
    counts = [
        np.array([np.bincount(part.ravel(order="K"), minlength=n_classes) for part in np.moveaxis(label, axis, 0)])
        for axis in range(3)
    ]
    of_class = counts[0].sum(0)
    group = np.arange(n_classes)[:, None] % N_GROUPS == np.arange(N_GROUPS)
    centroids = [(np.linspace(0, 1, len(c)) @ c @ group) / (of_class @ group).clip(min=1) for c in counts]
    return [*(of_class / label.size).tolist(), *np.concatenate(centroids).tolist()]
