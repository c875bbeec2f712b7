"""Write a volume as NIfTI with its affine as sform and qform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
from isal import igzip
from numpy.typing import NDArray

from pipeline.phantoms.shapes import Points


def write_nifti(path: Path, array: NDArray[Any], affine: Points) -> Path:
    """Write (I, J, K) with `affine` (voxel -> world mm, RAS+) in its own dtype; returns the path. Raises OSError."""
    picture = nib.Nifti1Image(array, affine)
    picture.set_sform(affine, code="scanner")
    picture.set_qform(affine, code="scanner")
    picture.header.set_xyzt_units("mm")
    content = picture.to_bytes()
    if path.suffix == ".gz":
        content = igzip.compress(content, 1, mtime=0)
    # nib.save leaves a file open that a full disk refuses, for the interpreter to stumble over.
    path.write_bytes(content)
    return path
