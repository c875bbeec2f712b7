"""Write the sample data set: whole-body phantoms in the nnU-Net raw layout."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console.progress import Progress
from pipeline.files.atomic import FileError, write_error
from pipeline.files.json_files import read_json, write_json
from pipeline.phantoms import anatomy, phantom, shapes
from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.phantoms.nifti import write_nifti
from pipeline.phantoms.phantom import ORIENTATIONS, PhantomError, make_body

UNFINISHED = ".unfinished_phantoms"
"""A file that lies in the folder while phantoms are written: without dataset.json it alone says whose the files are."""


def write_dataset(
    folder: str | Path, *, n_cases: int = 24, seed: int = 0, voxel_mm: float = 7.0, progress: Progress | None = None
) -> bool:
    """Write phantoms in the nnU-Net raw layout: dataset.json, imagesTr/body_000_0000.nii.gz, labelsTr/body_000.nii.gz.

    Returns False where the folder already holds exactly this data set, True once it was written. dataset.json comes
    last and in one step, so an interrupted write is seen and done again. Case n is the same in data sets of any size.

    Raises:
        PhantomError: numbers that make no data set, or a folder that holds another one, which is not replaced.
        FileError: the disk refuses.
    """
    if n_cases < 1 or not 0 < voxel_mm < math.inf:
        raise PhantomError(f"n_cases, voxel_mm: expected positive numbers, found {n_cases} and {voxel_mm}")
    if seed < 0:
        raise PhantomError(f"seed: expected 0 or more, found {seed}")
    folder, recipe = Path(folder), _recipe(n_cases, seed, voxel_mm)
    found = _found_recipe(folder)
    if found == recipe and all(path.is_file() for n in range(n_cases) for path in _case_paths(folder, n)):
        return False
    unfinished = folder / UNFINISHED
    if found is None and not unfinished.exists() and (others := sorted(folder.glob("*Tr/body_*.nii.gz"))):
        expected, remedy = "only phantoms under such names", "choose another folder"
        raise PhantomError(f"{folder}: expected {expected}, found {others[0].name} without a dataset.json; {remedy}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        _clear(folder)
        codes = np.random.default_rng(seed).permutation(ORIENTATIONS)
        for n in range(n_cases):
            body = make_body([seed, n], voxel_mm=voxel_mm, orientation=str(codes[n % len(codes)]))
            image_path, label_path = _case_paths(folder, n)
            write_nifti(image_path, body.image, body.affine)
            write_nifti(label_path, body.label, body.affine)
            if progress:
                progress(n + 1, n_cases)
    except OSError as error:
        raise write_error(folder, error) from error
    write_json(folder / "dataset.json", recipe)
    unfinished.unlink(missing_ok=True)
    return True


def _recipe(n_cases: int, seed: int, voxel_mm: float) -> dict[str, Any]:
    """Contents of dataset.json; its "phantom" tells whether the cases beside it are the ones asked for."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (shapes, anatomy, phantom))
    made_by = {"seed": seed, "voxel_mm": voxel_mm, "code": hashlib.sha256(code).hexdigest()[:16]}
    return {
        "name": "BodyPhantom",
        "channel_names": {"0": "CT"},
        "labels": {name: value for value, name in enumerate(CLASS_NAMES)},
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
        "phantom": made_by,
    }


def _found_recipe(folder: Path) -> dict[str, Any] | None:
    path = folder / "dataset.json"
    if not os.path.lexists(path):
        return None
    try:
        found = read_json(path)
    except FileError:
        found = {}
    if "phantom" not in found:
        raise PhantomError(f"{folder}: holds another data set's dataset.json; choose another folder")
    return found


def _case_paths(folder: Path, n: int) -> tuple[Path, Path]:
    return folder / "imagesTr" / f"body_{n:03d}_0000.nii.gz", folder / "labelsTr" / f"body_{n:03d}.nii.gz"


def _clear(folder: Path) -> None:
    """Remove an older or half-written phantom data set, the file that declares it whole first."""
    (folder / "dataset.json").unlink(missing_ok=True)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in (folder / name).glob("body_*.nii.gz"):
            path.unlink()
