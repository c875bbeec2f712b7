"""The range of a training's scans runs along the world's axes, whatever the files' axis order."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.checks.voxel_statistics import measure_image
from pipeline.planning.scan_range import ScanRange, scan_range
from transforms.io.load import read_volume


def facts_of(path: Path, axes: str, darkest: int):
    """A scan of 10 × 20 × 30 voxels of 1 × 2 × 3 mm along R, A and S, stored along `axes`."""
    array = np.full((10, 20, 30), 50, np.int16)
    array[0, 0, 0] = darkest
    image = nib.Nifti1Image(array, np.diag([1, 2, 3, 1]))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), path)
    return measure_image(read_volume(path), path)


def test_scans_that_differ_in_axis_order_alone_have_one_spacing_and_extent(tmp_path):
    images = [facts_of(tmp_path / f"{axes}.nii", axes, n) for n, axes in enumerate(("RAS", "PSR", "LPI"), start=-2)]
    found = scan_range(images)
    assert found == ScanRange(
        spacing_mm=((1, 2, 3), (1, 2, 3)),
        extent_mm=((10, 40, 90), (10, 40, 90)),
        orientations=("LPI", "PSR", "RAS"),
        modalities=(),
        darkest=(-2, 0),
    )
    assert ScanRange.from_document(json.loads(json.dumps(found.to_document()))) == found


@pytest.mark.parametrize("code", ["\x1b[31mred", "RA", "RRR", "RASP", "xyz", ""])
def test_a_range_of_other_axes_is_none(code):
    document = {"spacing_mm": [[1, 1, 1]] * 2, "extent_mm": [[9, 9, 9]] * 2, "orientations": [code]}
    with pytest.raises(ValueError, match="axis code such as RAS"):
        ScanRange.from_document(document | {"modalities": [], "darkest": [0, 0]})


def test_no_scan_has_no_range():
    assert scan_range([]) is None
