"""Measures of phantoms in world coordinates, and awkward grids for them."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.phantoms.phantom import Phantom


def centroids_mm(label: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """World position of every class that a label map holds."""
    where, found = np.argwhere(label > 0), label[label > 0]
    counts = np.bincount(found, minlength=len(CLASS_NAMES))
    sums = np.stack([np.bincount(found, weights=column, minlength=len(CLASS_NAMES)) for column in where.T], 1)
    present = [n for n in range(1, len(CLASS_NAMES)) if counts[n]]
    places = nib.affines.apply_affine(affine, sums[present] / counts[present, None])
    return dict(zip((CLASS_NAMES[n] for n in present), places, strict=True))


def volumes_ml(scan: Phantom) -> np.ndarray:
    voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    return np.bincount(scan.label.ravel(), minlength=len(CLASS_NAMES)) * voxel_ml


def tilted_affine(spacing_mm: tuple[float, float, float], origin_mm: tuple[float, float, float]) -> np.ndarray:
    """A left-handed grid turned by 20 degrees about z and 10 about x."""
    a, b = np.radians(20), np.radians(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1, 1, 1]) * spacing_mm
    affine[:3, 3] = origin_mm
    return affine
