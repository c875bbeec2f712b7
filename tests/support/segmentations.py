"""A segmentation for the writers' tests, and scans for it to lie on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from pipeline.writers.segmentation import Segmentation
from transforms.io.load import read_geometry

NAMES = ("background", "liver", "kidney_left", "../../evil\nname", "kidney left", "Kidney_Left")


def segmentation_of(source: Path, names=NAMES, label_values=()) -> Segmentation:
    geometry = read_geometry(source)
    array = np.zeros(geometry.shape[:3], np.uint8, order="F")
    i, j, k = (n // 3 for n in array.shape)
    array[: i + 1, : j + 1, : k + 1] = 1
    array[i + 2 :, j:, k:] = 2
    array[0, 0, -1] = 3
    return Segmentation(array, geometry.affine, names, source, geometry.kind, label_values)


def save_source(path: Path, affine=None, shape=(6, 7, 8)) -> Path:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([1, 2, 3, 1]) if affine is None else affine), path)
    return path
