"""Small data sets of every layout on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def volume(path: Path) -> Path:
    """Write a NIfTI file of 2×2×2 zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def nnunet(root: Path, cases=("a", "b", "c"), channels=1, **extra) -> Path:
    for case in cases:
        for channel in range(channels):
            volume(root / f"imagesTr/{case}_{channel:04d}.nii.gz")
        volume(root / f"labelsTr/{case}.nii.gz")
    names = {str(channel): name for channel, name in zip(range(channels), ("CT", "PET"), strict=False)}
    write_json(root / "dataset.json", {"channel_names": names, "labels": LABELS, "file_ending": ".nii.gz", **extra})
    return root


def totalsegmentator(root: Path, cases=("s1", "s2"), structures=("spleen", "liver"), image="ct") -> Path:
    for case in cases:
        volume(root / f"{case}/{image}.nii.gz")
        for structure in structures:
            volume(root / f"{case}/segmentations/{structure}.nii.gz")
    return root


def pairs(root: Path, cases=("x", "y"), names: Any = LABELS) -> Path:
    for case in cases:
        volume(root / f"images/{case}.nii.gz")
        volume(root / f"labels/{case}.nii")
    if names:
        write_json(root / "labels.json", names)
    return root


def decathlon(root: Path, cases="abc", **extra) -> dict[str, Any]:
    """Write a Decathlon data set; the content of its dataset.json is returned."""
    for case in cases:
        volume(root / f"imagesTr/{case}.nii.gz")
        volume(root / f"labelsTr/{case}.nii.gz")
    description = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "2": "tumour", "1": "liver"},
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases],
        **extra,
    }
    write_json(root / "dataset.json", description)
    return description


def refused(root: Path, *words: str, **options: Any) -> None:
    """Assert that listing a data set ends in lines that hold all of the words."""
    with pytest.raises(DatasetError) as error:
        list_cases(root, **options)
    assert not any("\n" in line for line in error.value.lines)
    for word in words:
        assert word in str(error.value)
