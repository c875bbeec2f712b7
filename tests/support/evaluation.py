"""Label maps on disk for the tests of evaluation, and what SimpleITK says about a pair of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

from pipeline.datasets.class_table import ClassTable
from tests.support import label_maps
from tests.support.paths import ROOT

AFFINE = np.array([[-0.9, 0, 0, 30], [0, 1.1, 0, -40], [0, 0, 2.0, 5], [0, 0, 0, 1]])
TABLE = ClassTable(("background", "liver", "spleen", "left", "right"), (0, 1, 2, 3, 4))
SHAPE = (30, 28, 20)
SCHEMA = json.loads((ROOT / "docs" / "metrics.schema.json").read_text("utf-8"))


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI file, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def blobs(seed: int, n_classes: int = 5, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A smooth random label map."""
    return label_maps.blobs(seed, shape, n_classes, sigma=2)


def save_masks(array: np.ndarray, folder: Path, names: tuple[str, ...]) -> None:
    """Write one mask a structure, `names[0]` being the background."""
    for value, name in enumerate(names):
        if value:
            save((array == value).astype(np.uint8), folder / f"{name}.nii.gz")


def write_names(folder: Path, values: dict[str, int]) -> None:
    """Write a labels.json."""
    (folder / "labels.json").write_text(json.dumps(values))


def three_cases(root: Path) -> Path:
    """Cases a, b, c with labels.json in root/labels; those in root/predictions are worse from case to case."""
    for shift, case in enumerate("abc", start=1):
        label = blobs(shift)
        save(label, root / "labels" / f"{case}.nii.gz")
        save(np.roll(label, shift, 1), root / "predictions" / f"{case}.nii.gz")
    write_names(root / "labels", dict(zip(TABLE.names, TABLE.values, strict=True)))
    return root


def sitk_dice(prediction: np.ndarray, label: np.ndarray, of_prediction: int, of_label: int) -> float:
    """SimpleITK's Dice of one value of the prediction against one of the label."""
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    masks = (prediction == of_prediction, label == of_label)
    overlap.Execute(*[sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks])
    return overlap.GetDiceCoefficient(1)


def save_seg_nrrd(array: np.ndarray, path: Path, values: dict[str, int]) -> Path:
    """Write a NRRD file on AFFINE's grid whose header names segments as 3D Slicer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for n, (name, value) in enumerate(values.items()):
        image.SetMetaData(f"Segment{n}_Name", name)
        image.SetMetaData(f"Segment{n}_LabelValue", str(value))
    sitk.WriteImage(image, str(path))
    return path
