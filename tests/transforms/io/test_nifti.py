"""NIfTI headers and voxels: as nibabel and SimpleITK read them, and what must be refused."""

from __future__ import annotations

import gzip
import random
import zlib

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from tests.support.volume_files import (
    OBLIQUE,
    itk_affine,
    patch,
    refused,
    save,
    volume,
)
from transforms.io.errors import VolumeError
from transforms.io.load import LoadVolumed, disagreeing_forms, read_geometry, read_volume

REAL_NIFTI = [
    "awkward_nifti/CT_AVM.nii.gz", "awkward_nifti/CT_pitch.nii.gz", "awkward_nifti/anatomical.nii",
    "awkward_nifti/reoriented_anat_moved.nii", "awkward_nifti/example4d.nii.gz", "awkward_nifti/example_nifti2.nii.gz",
    "awkward_nifti/t2.nii.gz", "awkward_nifti/t2_seg-manual_labeled.nii.gz", "abdomen_ct/example_ct.nii.gz",
    "spine_crops/sample_ct/sub-ct_label-22_ct.nii.gz", "spine_crops/sample_mri/sub-mri_label-6_T2w.nii.gz",
    "mismatched_pair/ct_cropped.nii.gz", "hippocampus/imagesTr/hippocampus_003_0000.nii.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL_NIFTI)
def test_real_nifti_reads_as_in_nibabel_and_lies_where_simpleitk_puts_it(shared_data, name):
    path = shared_data / name
    ours, theirs = read_volume(path), nib.load(path)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)
    np.testing.assert_allclose(ours.array, theirs.get_fdata(), rtol=1e-6, atol=1e-4)
    assert ours.array.dtype.isnative
    assert (read_geometry(path).shape, read_geometry(path).dtype) == (ours.array.shape, ours.array.dtype)
    if "NIFTI" not in name and ours.array.ndim == 3:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        np.testing.assert_allclose(ours.affine, itk_affine(reader), atol=2e-3)


def test_big_endian_and_nifti2_files_read_alike(tmp_path):
    array = volume()
    nib.save(nib.Nifti1Image(array, OBLIQUE, nib.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(array, OBLIQUE), tmp_path / "two.nii.gz")
    for name in ("big.nii", "two.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name).array, array)


def test_of_a_large_packed_file_little_more_than_the_header_is_read_for_its_geometry(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 2**15, (64, 64, 64)).astype(np.int16))
    before = psutil.Process().io_counters().read_chars
    assert read_geometry(path).shape == (64, 64, 64)
    assert psutil.Process().io_counters().read_chars - before < 2**18 < path.stat().st_size


def test_a_qform_serves_where_the_sform_has_no_code(tmp_path):
    def qform_only(header):
        header.set_qform(OBLIQUE, code=1)
        header.set_sform(np.diag([9.0, 9, 9, 1]), code=0)

    path = save(tmp_path / "q.nii", volume(), change=qform_only)
    np.testing.assert_allclose(read_volume(path).affine, OBLIQUE, atol=1e-4)


def test_microns_become_millimetres_as_in_simpleitk(tmp_path):
    def microns(header):
        header.set_qform(np.diag([500.0, 500, 500, 1]), code=1)
        header.set_xyzt_units("micron")

    path = save(tmp_path / "mouse.nii", volume(), np.diag([500.0, 500, 500, 1]), change=microns)
    assert read_geometry(path).spacing_mm == pytest.approx((0.5, 0.5, 0.5))
    assert sitk.ReadImage(str(path)).GetSpacing() == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1.0), ("meter", 1000.0), ("micron", 0.001)])
def test_the_distance_between_sform_and_qform_is_measured_in_millimetres(tmp_path, caplog, unit, mm):
    """The forms lie 40 mm apart; one file says so in mm, one in metres, one in microns."""
    sform = np.diag([2.0, 2, 2, mm]) / mm
    qform = sform.copy()
    qform[1, 3] += 40 / mm

    def moved(header):
        header.set_qform(qform, code=1)
        header.set_xyzt_units(unit)

    path = save(tmp_path / "two.nii", volume(), sform, change=moved)
    found = read_volume(path)
    assert found.geometry.spacing_mm == pytest.approx((2, 2, 2), rel=1e-5)
    assert found.geometry.form_gap_mm == pytest.approx(40, rel=1e-4)
    assert disagreeing_forms(found.geometry).startswith("40 mm between them")
    assert caplog.text == ""
    LoadVolumed(("image",))({"image": path})
    assert "sform and qform disagree, 40 mm between them" in caplog.text


def test_forms_that_differ_by_the_rounding_of_a_quaternion_agree(tmp_path):
    def both(header):
        header.set_qform(OBLIQUE, code=1)

    found = read_volume(save(tmp_path / "two.nii", volume(), change=both))
    assert 0 < found.geometry.form_gap_mm < 0.01
    assert disagreeing_forms(found.geometry) == ""


@pytest.mark.parametrize(
    ("offset", "fmt", "values", "words"),
    [
        (252, "<2h", (0, 0), ("sform_code 0", "left and right are unknown")),
        (280, "<4f", (0, 0, 0, 0), ("singular",)),
        (280, "<4f", (float("nan"), 0, 0, 0), ("finite affine",)),
        (42, "<1h", (-5,), ("shape (-5, 6, 7)",)),
        (42, "<1h", (0,), ("shape (0, 6, 7)",)),
        (40, "<1h", (9,), ("expected 3 axes",)),
        (70, "<2h", (128, 24), ("one real number",)),
        (70, "<2h", (77, 16), ("voxel type",)),
        (344, "<4s", (b"\0\0\0\0",), ("ANALYZE",)),
        (0, "<4s", (b"\0\0\0\0",), ("expected a NIfTI file",)),
        (112, "<2f", (2.0, float("inf")), ("scl_inter",)),
    ],
)
def test_impossible_nifti_headers_are_refused(tmp_path, offset, fmt, values, words):
    refused(patch(save(tmp_path / "odd.nii", volume()), offset, fmt, *values), *words)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan")])
def test_a_qform_without_a_positive_spacing_is_refused(tmp_path, spacing):
    def qform_only(header):
        header.set_qform(OBLIQUE, code=1)
        header.set_sform(None, code=0)

    path = save(tmp_path / "q.nii", volume(), change=qform_only)
    refused(patch(path, 80, "<1f", spacing), "positive spacing")


@pytest.mark.parametrize(
    ("header", "offset"), [(nib.Nifti1Header, 0), (nib.Nifti1Header, 348), (nib.Nifti2Header, 352)]
)
def test_a_single_file_whose_voxels_begin_inside_its_header_is_refused(tmp_path, header, offset):
    is_first = header is nib.Nifti1Header
    nib.save((nib.Nifti1Image if is_first else nib.Nifti2Image)(volume(), OBLIQUE), tmp_path / "a.nii")
    read_volume(tmp_path / "a.nii")
    path = patch(tmp_path / "a.nii", 108 if is_first else 168, "<f" if is_first else "<q", offset)
    refused(path, f"at byte {header.single_vox_offset} or later", f"found vox_offset {offset} inside it")


def test_a_damaged_gzip_stream_is_refused_wherever_zlib_refuses_it(tmp_path):
    array = np.random.default_rng(0).integers(0, 40, (12, 11, 10), np.uint8)
    path = save(tmp_path / "ct.nii.gz", array, np.eye(4))
    whole, generator, accepted = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        del damaged[len(whole) - generator.choice((0, 0, 0, 1, 9, 200)) :]
        path.write_bytes(damaged)
        try:
            gzip.decompress(damaged)
        except (OSError, EOFError, zlib.error):
            with pytest.raises(VolumeError):
                read_volume(path)
        else:
            accepted += 1
            np.testing.assert_array_equal(read_volume(path).array, array)
    assert 0 < accepted < 20  # the time and the system in the stream's header
