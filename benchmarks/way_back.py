"""From features on the network's grid to a label map on the scan's: MONAI's Invertd on full logits against slabs.

Both sides are given the same 32 features and the same head, as a network leaves them; reading and writing are not part
of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Resized
from torch import Tensor, nn

from benchmarks.measure import Measurement, measure
from transforms.chains import RAS
from transforms.resize import place
from transforms.restore import FeatureMap, restore

SPACING_MM = (0.8, 0.8, 1.0)
WARM_UP = {"source_size": (12, 12, 12), "size": (8, 8, 8)}
"""Sizes of a first volume, after which the libraries have loaded what they load on first use."""


def plain(source_size: Sequence[int], size: Sequence[int], n_classes: int, n: int = 1) -> Measurement:
    """The head, Invertd with linear interpolation on the logits, then the argmax; a first small volume before."""
    _monais_way(**WARM_UP, n_classes=n_classes)()
    return measure(_monais_way(source_size, size, n_classes), n=n)


def ours(source_size: Sequence[int], size: Sequence[int], n_classes: int, n: int = 1) -> Measurement:
    """Head and argmax inside each slab; a first small volume before."""
    _our_way(**WARM_UP, n_classes=n_classes)()
    return measure(_our_way(source_size, size, n_classes), n=n)


def _monais_way(source_size: Sequence[int], size: Sequence[int], n_classes: int):
    keys = ["image"]
    chain = Compose([Orientationd(keys, "RAS", labels=RAS), Resized(keys, size, mode="trilinear", align_corners=False)])
    # What Invertd needs of the image is the record of its transforms.
    scan = MetaTensor(torch.zeros(1, *source_size), affine=torch.from_numpy(_lps_affine(source_size)))
    image = chain({"image": scan})["image"]
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False, to_tensor=True)
    features, head = _features_and_head(size, n_classes)

    @torch.no_grad()
    def work() -> list[float]:
        logits = MetaTensor(head(features[None])[0], meta=image.meta, applied_operations=image.applied_operations)
        restored = back({"image": image, "pred": logits})["pred"]
        return _shares(restored.as_tensor().argmax(0).to(torch.uint8).numpy(), n_classes)

    return work


def _our_way(source_size: Sequence[int], size: Sequence[int], n_classes: int):
    affine = _lps_affine(source_size)
    target_affine = np.diag([*SPACING_MM, 1.0]) @ place(source_size, size).matrix
    features, head = _features_and_head(size, n_classes)
    weight, bias = head.weight.detach().flatten(1), head.bias.detach()

    def work() -> list[float]:
        restored = restore([FeatureMap(features, target_affine, weight, bias)], source_size, affine)
        return _shares(restored.segmentation, n_classes)

    return work


def _lps_affine(source_size: Sequence[int]) -> np.ndarray:
    """The affine of a scan that lies LPS, as most CTs do; turned to RAS its first voxel lies at 0 mm."""
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:2, 3] = (np.asarray(source_size[:2]) - 1) * SPACING_MM[:2]
    return affine


def _features_and_head(size: Sequence[int], n_classes: int, n_features: int = 32) -> tuple[Tensor, nn.Conv3d]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    return torch.randn(n_features, *size, generator=generator), nn.Conv3d(n_features, n_classes, 1)


def _shares(label: np.ndarray, n_classes: int) -> list[float]:
    """Each class's share of the voxels, slice by slice along the slowest axis: bincount wants 64-bit integers."""
    slowest = int(np.argmax(label.strides))
    counts = sum(np.bincount(part.ravel(order="K"), minlength=n_classes) for part in np.moveaxis(label, slowest, 0))
    return (np.asarray(counts) / label.size).tolist()
