"""Make the tensors and files that all methods are given; seeded, so that every process makes the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from pipeline.phantoms.anatomy import CLASS_NAMES, draw_body
from pipeline.phantoms.phantom import Phantom, render

BLOCK = 8  # voxels: classes lie in blocks, as structures do, not in salt and pepper


def blocky_label(size: Sequence[int], n_classes: int, batch: int = 1) -> Tensor:
    """Label map (B, 1, I, J, K) uint8 whose classes fill blocks of 8×8×8 voxels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(
        n_classes, (batch, 1, *(-(-n // BLOCK) for n in size)), generator=generator, dtype=torch.uint8
    )
    for axis in (2, 3, 4):
        coarse = coarse.repeat_interleave(BLOCK, axis)
    return coarse[..., : size[0], : size[1], : size[2]].contiguous()


def image_and_label(size: Sequence[int], n_classes: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Image (B, 1, I, J, K) float32 in which the classes can be told apart through noise, and its label."""
    label = blocky_label(size, n_classes, batch)
    noise = torch.randn(label.shape, generator=torch.Generator().manual_seed(2))
    return label.float().div_(n_classes).add_(noise, alpha=0.05), label


def phantom(size: Sequence[int], seed: int = 0, *, noise_hu: float = 12.0) -> Phantom:
    """A whole body that fills a grid of the given size, in RAS, axis-parallel."""
    body = draw_body(np.random.default_rng([seed, 0]))
    low, high = body.reach_mm.min(0) - 10, body.reach_mm.max(0) + 10
    affine = np.diag([*((high - low) / np.asarray(size)), 1.0])
    affine[:3, 3] = low + affine.diagonal()[:3] / 2
    return render(body, size, affine.astype(np.float32).astype(float), noise_hu=noise_hu, seed=seed)


def write_label_pair(folder: str, size: Sequence[int]) -> None:
    """Write reference.npy and prediction.npy, label maps (I, J, K) of 71 classes, and spacing_mm.npy.

    The prediction lies a voxel off along the first axis, and misses twelve boxes: near surfaces and far ones.
    """
    made, rng = phantom(size, noise_hu=0.0), np.random.default_rng(0)
    prediction, edge = np.roll(made.label, 1, axis=0), np.maximum(2, np.asarray(size) // 12)
    for start in rng.integers(0, np.asarray(size) - edge, (12, 3)):
        prediction[tuple(slice(a, a + n) for a, n in zip(start, edge, strict=True))] = 0
    np.save(Path(folder) / "reference.npy", made.label)
    np.save(Path(folder) / "prediction.npy", prediction)
    np.save(Path(folder) / "spacing_mm.npy", np.abs(made.affine.diagonal()[:3]))


def read_label_pair(folder: str) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Reference, prediction and spacing in mm of `write_label_pair`."""
    reference, prediction, spacing = (
        np.load(Path(folder) / f"{name}.npy", allow_pickle=False) for name in ("reference", "prediction", "spacing_mm")
    )
    return reference, prediction, spacing.tolist()


def write_scan(folder: str, source_size: Sequence[int]) -> dict[str, str]:
    """Write a CT with 71 labelled structures as two compressed NIfTI files, lying LPS; the item a chain takes."""
    made = phantom(source_size)
    flipped = made.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    flipped[:2, 3] += made.affine.diagonal()[:2] * (np.asarray(source_size[:2]) - 1)
    item = scan_item(folder)
    for key, array in (("image", made.image), ("label", made.label)):
        nib.save(nib.Nifti1Image(array[::-1, ::-1], flipped), item[key])
    return item


def scan_item(folder: str, case: str = "phantom") -> dict[str, str]:
    """The item of `write_scan`, under any case id."""
    return {"image": str(Path(folder) / "ct.nii.gz"), "label": str(Path(folder) / "label.nii.gz"), "case": case}


N_PHANTOM_CLASSES = len(CLASS_NAMES)
