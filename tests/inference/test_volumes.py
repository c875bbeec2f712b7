"""What a path is: volumes found below it, named apart, with the geometry that other libraries read."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.inference.inputs import list_sources
from transforms.io.grid import VolumeError


@pytest.fixture
def tree(tmp_path):
    """Two cases of equally named files, a pair of header and data, and what is no volume."""
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([1.0, 2, 3, 1])), tmp_path / case / "ct.nii.gz")
    nib.save(nib.Nifti1Pair(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "pair.img")
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(tmp_path / "flat.mha"))
    (tmp_path / "notes.txt").write_text("no volume")
    (tmp_path / ".hidden.nii").write_bytes(b"")
    return tmp_path


def test_a_folder_tree_gives_every_volume_once_under_its_own_name(tree):
    assert {source.id: source.kind for source in list_sources([tree])} == {
        "a_ct": "nifti",
        "b_ct": "nifti",
        "flat": "metaimage",
        "pair": "nifti",
    }
    assert len(list_sources([tree, tree / "a", tree / "a/ct.nii.gz"])) == 4


def test_a_source_knows_its_geometry_without_its_voxels(tree):
    (source,) = list_sources([tree / "a/ct.nii.gz"])
    assert source.id == "ct"
    assert source.geometry().shape == (3, 4, 5)
    assert source.geometry().spacing_mm == (1.0, 2.0, 3.0)


def test_a_dicom_folder_is_one_volume_wherever_it_lies(shared_data):
    (direct,) = list_sources([shared_data / "dicom_seg/ct-3slice"])
    found = {source.id: source for source in list_sources([shared_data / "dicom_compressed"])}
    assert (direct.id, direct.kind, direct.geometry().shape) == ("ct-3slice", "dicom", (512, 512, 3))
    assert found.keys() == {"rle", "jpeg2000"}


def test_paths_without_volumes_are_refused(tree):
    for path, words in (("absent", "no such file"), ("notes.txt", "found none"), ("b/empty", "found none")):
        (tree / "b/empty").mkdir(exist_ok=True)
        with pytest.raises(VolumeError, match=words) as error:
            list_sources([tree / path])
        assert str(tree / path) in str(error.value)


def test_two_volumes_never_share_a_name(tree):
    with pytest.raises(VolumeError, match="both would be called ct"):
        list_sources([tree / "a/ct.nii.gz", tree / "b/ct.nii.gz"])
