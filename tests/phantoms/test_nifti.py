"""A written volume as nibabel and SimpleITK read it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK

from pipeline.phantoms.nifti import write_nifti
from tests.support.phantoms import tilted_affine


def test_voxels_and_both_affines_are_read_back(tmp_path: Path) -> None:
    affine = tilted_affine((1.5, 2.0, 3.0), (10.0, -20.0, 30.0))
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = write_nifti(tmp_path / "volume.nii.gz", array, affine)
    picture = nib.Nifti1Image.from_filename(path)
    assert picture.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(picture.dataobj), array)
    np.testing.assert_allclose(picture.header.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(picture.header.get_qform(), affine, atol=1e-5)
    assert picture.header.get_xyzt_units()[0] == "mm"
    itk = SimpleITK.ReadImage(str(path))
    np.testing.assert_allclose(np.array(itk.GetOrigin()) * (-1, -1, 1), affine[:3, 3], atol=1e-4)
