"""The preview shows the scan's own voxels with the structures where they are."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as mpl_image

from pipeline.visualisation.anatomy_colours import TABLE
from pipeline.writers.preview import write_preview
from pipeline.writers.segmentation import Segmentation


@pytest.mark.parametrize("codes", [(-1, 1, -1), (1, 1, 1), (1, -1, -1)])
def test_the_structures_lie_where_they_are_in_the_patient(tmp_path, codes):
    """The liver towards the patient's right, front and feet: left, up and down in the pictures."""
    affine = np.diag([*(2.0 * sign for sign in codes), 1.0])
    in_ras = np.zeros((40, 40, 40), np.uint8)
    in_ras[24:36, 24:36, 2:14] = 1
    label = np.asfortranarray(in_ras[tuple(slice(None, None, sign) for sign in codes)])
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(np.where(label, 60, 20).astype(np.int16), affine), path)
    write_preview(Segmentation(label, affine, ("background", "liver"), path, "nifti"), tmp_path / "a.png", is_ct=True)
    picture = (255 * mpl_image.imread(tmp_path / "a.png")[..., :3]).round().astype(int)
    contour = (np.abs(picture - TABLE["liver"]).max(-1) <= 2)[60:]  # below the title
    columns = np.flatnonzero((picture[60:, :, 0] < 250).sum(0) > 300)
    starts = [0, *(np.flatnonzero(np.diff(columns) > 8) + 1), len(columns)]
    assert len(starts) == 4
    for number, (up, across) in enumerate([(True, True), (False, True), (False, True)]):
        part = columns[starts[number] : starts[number + 1]]
        rows = np.flatnonzero((picture[60:, part, 0] < 250).sum(1) > 0.9 * len(part))
        found = np.argwhere(contour[rows[0] : rows[-1] + 1, part[0] : part[-1] + 1])
        middle = found.mean(0) / (len(rows), len(part))
        assert bool(middle[0] < 0.45) is up
        assert bool(middle[1] < 0.45) is across


def test_every_voxel_of_the_scan_is_drawn(tmp_path):
    """A chequerboard of single voxels survives: nothing was resampled."""
    board = np.indices((64, 64, 3)).sum(0) % 2
    path = tmp_path / "mr.nii.gz"
    nib.save(nib.Nifti1Image((board * 100 + 5).astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0])), path)
    label = np.zeros(board.shape, np.uint8, order="F")
    write_preview(
        Segmentation(label, np.diag([1.0, 1.0, 4.0, 1.0]), ("background", "a"), path, "nifti"), tmp_path / "a.png"
    )
    picture = mpl_image.imread(tmp_path / "a.png")[..., 0]
    row = picture[82 + 105]  # through the axial picture
    changes = np.count_nonzero(np.abs(np.diff(row)) > 0.9)
    assert changes >= 62
