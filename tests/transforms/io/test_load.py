"""Reading volumes: geometry and values as other libraries have them, and everything that must be refused."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import Orientationd
from nibabel.orientations import inv_ornt_aff, io_orientation

from transforms.io.errors import VolumeError
from transforms.io.load import LoadVolumed, disagreeing_forms, read_geometry, read_volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.8, 1.1, 2.5]), [-31.0, 12.5, 300.25]
)
ALL_ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume(shape=(5, 6, 7), dtype=np.int16, high=100):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def save(path: Path, array, affine=OBLIQUE, *, slope=None, change=None) -> Path:
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    if slope:
        image.header.set_slope_inter(*slope)
    if change:
        change(image.header)
    nib.save(image, path)
    return path


def patch(path: Path, offset: int, fmt: str, *values) -> Path:
    """Overwrite bytes of an uncompressed header: what libraries would not write."""
    content = bytearray(path.read_bytes())
    struct.pack_into(fmt, content, offset, *values)
    path.write_bytes(bytes(content))
    return path


def itk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def itk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_series(folder: Path, n=4, *, slope=1.0, intercept=0.0, modality="MR", signed=0, change=None) -> np.ndarray:
    """Write an oblique series, files named against the order of the slices; return stored values (I, J, K)."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(1).integers(-500 if signed else 0, 2000, (6, 5, n)).astype(np.int16)
    rotation = nib.eulerangles.euler2mat(0.3, 0.2, -0.1)
    for k in range(n):
        header = pydicom.Dataset()
        header.SOPClassUID = pydicom.uid.MRImageStorage if modality == "MR" else pydicom.uid.CTImageStorage
        header.SOPInstanceUID, header.SeriesInstanceUID = f"1.2.3.{k + 1}", "1.2.3"
        header.StudyInstanceUID, header.Modality, header.PatientID = "1.2", modality, "nobody"
        header.Rows, header.Columns, header.PixelSpacing = 5, 6, [0.9, 0.7]
        header.ImageOrientationPatient = [round(float(v), 9) for v in rotation[:, :2].T.ravel()]
        header.ImagePositionPatient = [round(float(v), 6) for v in rotation[:, 2] * 2.5 * k + [10, 20, 30]]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, signed
        header.RescaleSlope, header.RescaleIntercept = str(slope), str(intercept)
        header.PixelData = stored[:, :, k].T.tobytes()
        if change:
            change(header, k)
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.save_as(folder / f"slice{n - k}", enforce_file_format=True)
    return stored


# --- geometry and values, as other libraries have them


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


@pytest.mark.parametrize("name", ["nrrd/brain1_image.nrrd", "nrrd/brain1_label.nrrd", "dicom_seg/liver_seg.nrrd"])
def test_real_nrrd_reads_as_in_simpleitk(shared_data, name):
    ours, theirs = read_volume(shared_data / name), sitk.ReadImage(str(shared_data / name))
    assert np.array_equal(ours.array, sitk.GetArrayFromImage(theirs).T)
    np.testing.assert_allclose(ours.affine, itk_affine(theirs), atol=1e-9)


@pytest.mark.parametrize("folder", ["abdomen_ct_dicom/series", "dicom_seg/ct-3slice", "dicom_compressed/rle"])
def test_a_real_dicom_series_reads_as_in_simpleitk(shared_data, folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(shared_data / folder)))
    theirs, ours = reader.Execute(), read_volume(shared_data / folder)
    assert np.array_equal(ours.array, sitk.GetArrayFromImage(theirs).T)
    np.testing.assert_allclose(ours.affine, itk_affine(theirs), atol=1e-3)
    assert ours.modality == ("MR" if "compressed" in folder else "CT")


def test_compressed_dicom_series_hold_the_same_pixels(shared_data):
    rle, jpeg2000 = (read_volume(shared_data / "dicom_compressed" / name).array for name in ("rle", "jpeg2000"))
    assert np.array_equal(rle, jpeg2000)
    files = sorted((shared_data / "dicom_compressed/rle").glob("*.dcm"), reverse=True)  # the normal points to -x
    assert np.array_equal(rle.T, [pydicom.dcmread(file).pixel_array for file in files])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_comes_back_as_written(tmp_path, suffix):
    array, path = volume(), tmp_path / f"scan{suffix}"
    if suffix in (".nii", ".nii.gz"):
        save(path, array)
    elif suffix == ".img":
        nib.save(nib.Nifti1Pair(array, OBLIQUE), path)
    else:
        sitk.WriteImage(itk_image(array, OBLIQUE), str(path), useCompression=suffix in (".nrrd", ".mha"))
    found = read_volume(path)
    assert np.array_equal(found.array, array)
    assert found.array.dtype == np.int16
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(read_geometry(path).spacing_mm, (0.8, 1.1, 2.5), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
def test_all_48_orientations_come_back_as_written(tmp_path, suffix):
    base = nib.Nifti1Image(volume(), OBLIQUE)
    for number, orientation in enumerate(ALL_ORIENTATIONS):
        turned = base.as_reoriented(orientation)
        array, path = np.asarray(turned.dataobj), tmp_path / f"{number}{suffix}"
        if suffix == ".nii":
            save(path, array, turned.affine)
        else:
            sitk.WriteImage(itk_image(array, turned.affine), str(path))
        found = read_volume(path)
        assert np.array_equal(found.array, array)
        np.testing.assert_allclose(found.affine, turned.affine, atol=1e-5)


def test_big_endian_and_nifti2_files_read_alike(tmp_path):
    array = volume()
    nib.save(nib.Nifti1Image(array, OBLIQUE, nib.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(array, OBLIQUE), tmp_path / "two.nii.gz")
    for name in ("big.nii", "two.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name).array, array)


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
    assert found.form_gap_mm == pytest.approx(40, rel=1e-4)
    assert disagreeing_forms(found.geometry, found.form_gap_mm).startswith("40 mm between them")
    assert caplog.text == ""
    LoadVolumed(("image",))({"image": path})
    assert "sform and qform disagree, 40 mm between them" in caplog.text


def test_forms_that_differ_by_the_rounding_of_a_quaternion_agree(tmp_path):
    def both(header):
        header.set_qform(OBLIQUE, code=1)

    found = read_volume(save(tmp_path / "two.nii", volume(), change=both))
    assert 0 < found.form_gap_mm < 0.01
    assert disagreeing_forms(found.geometry, found.form_gap_mm) == ""


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2.5, 0.75), (0.0123456789, -7)])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dicom_values_are_rescaled_and_slices_sorted(tmp_path, slope, intercept, modality):
    stored = write_series(tmp_path / "series", slope=slope, intercept=intercept, modality=modality)
    found = read_volume(tmp_path / "series")
    np.testing.assert_allclose(found.array, stored * slope + intercept, rtol=1e-6)
    assert found.array.dtype == (np.int16 if slope == 1 else np.float32)
    assert np.linalg.norm(found.affine[:3, :3], axis=0) == pytest.approx([0.7, 0.9, 2.5], abs=1e-5)
    np.testing.assert_allclose(found.affine[:3, 3], [-10, -20, 30])  # the first slice's position, LPS to RAS


def test_every_dicom_slice_has_its_own_slope(tmp_path):
    def own(header, k):
        header.RescaleSlope = str(1 + 0.5 * k)

    stored = write_series(tmp_path / "series", change=own)
    np.testing.assert_allclose(read_volume(tmp_path / "series").array, stored * (1 + 0.5 * np.arange(4)), rtol=1e-6)


def test_signed_dicom_pixels_keep_their_sign(tmp_path):
    stored = write_series(tmp_path / "series", signed=1)
    assert np.array_equal(read_volume(tmp_path / "series").array, stored)


def test_other_files_in_a_dicom_folder_are_passed_over(tmp_path):
    stored = write_series(tmp_path / "series")
    (tmp_path / "series/LICENCE").write_text("Do as you please.")
    (tmp_path / "series/.hidden").write_bytes(b"\0" * 200)
    report = tmp_path / "report"
    write_series(report, n=2, change=lambda header, k: setattr(header, "Modality", "SR"))
    for path in report.iterdir():
        path.rename(tmp_path / "series" / f"report_{path.name}")
    assert np.array_equal(read_volume(tmp_path / "series").array, stored)


# --- what must be refused


def refused(path, *words):
    with pytest.raises(VolumeError) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("ct_head_tilted_dicom", ("18.5 degrees", "gantry tilt")),
        ("dicom_series_faults/gantry_tilt", ("14.0 degrees",)),
        ("dicom_series_faults/uneven_spacing", ("10 mm between", "0009", "0010", "usually 5 mm")),
        ("ct_lung_dicom", ("not evenly spaced", "2 missing")),
    ],
)
def test_real_dicom_faults_are_refused_with_their_numbers(shared_data, folder, words):
    refused(shared_data / folder, *words)


def _set(**values):
    def change(header, k):
        for name, value in values.items():
            if k == 2:
                setattr(header, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(SeriesInstanceUID="1.2.9"), ("expected one series, found 2", "1.2.9")),
        (_set(Rows=4, PixelData=b"\0" * 48), ("picture size", "1 of 4")),
        (_set(PixelSpacing=[0.9, 0.8]), ("pixel spacing", "slice2")),
        (_set(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), ("orientation", "slice2")),
        (_set(ImagePositionPatient=[10, 20, 30]), ("same place", "slice4")),
        (_set(PixelSpacing=[0, 0]), ("spacing",)),
        (_set(ImagePositionPatient=None), ("ImagePositionPatient",)),
        (_set(NumberOfFrames=3), ("multi-frame",)),
        (_set(SamplesPerPixel=3), ("colour",)),
    ],
)
def test_dicom_slices_that_make_no_volume_are_refused(tmp_path, change, words):
    write_series(tmp_path / "series", change=change)
    with pytest.raises(VolumeError) as error:
        read_volume(tmp_path / "series")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_or_damaged_dicom_slice_is_refused(tmp_path):
    write_series(tmp_path / "a", n=8)
    (tmp_path / "a/slice4").unlink()
    refused(tmp_path / "a", "5 mm between slice5 and slice3", "1 missing")
    write_series(tmp_path / "b")
    content = (tmp_path / "b/slice2").read_bytes()
    (tmp_path / "b/slice2").write_bytes(content[:-20])
    with pytest.raises(VolumeError, match="slice2"):
        read_volume(tmp_path / "b")
    (tmp_path / "b/slice2").rename(tmp_path / "b/slice2.dcm")
    (tmp_path / "b/slice2.dcm").write_bytes(b"nothing")
    with pytest.raises(VolumeError, match=r"slice2.dcm: expected a DICOM file"):
        read_volume(tmp_path / "b")


def test_truncated_and_damaged_files_are_refused(tmp_path):
    whole = save(tmp_path / "whole.nii.gz", volume((20, 20, 20), high=1000)).read_bytes()
    cut = tmp_path / "cut.nii.gz"
    for length in (1, 5, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        cut.write_bytes(whole[:length])
        refused(cut)
    flipped = bytearray(whole)
    flipped[-6] ^= 0xFF  # gzip's check sum, behind the last voxel
    cut.write_bytes(bytes(flipped))
    refused(cut, "CRC")
    plain = save(tmp_path / "plain.nii", volume())
    plain.write_bytes(plain.read_bytes()[:-1])
    refused(plain, "truncated")
    for suffix in (".mha", ".nrrd"):
        for compressed in (False, True):
            path = tmp_path / f"scan{compressed}{suffix}"
            sitk.WriteImage(itk_image(volume((20, 20, 20)), OBLIQUE), str(path), useCompression=compressed)
            path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
            refused(path)


def test_headers_that_claim_too_much_are_refused_before_memory_is_taken(tmp_path):
    big = patch(save(tmp_path / "big.nii", volume()), 40, "<8h", 3, 10000, 10000, 10000, 1, 1, 1, 1)
    refused(big, "1e+12 voxels")
    for name, opened in (("b.nii", Path.open), ("b.nii.gz", gzip.open)):
        medium = patch(save(tmp_path / "medium.nii", volume()), 40, "<8h", 3, 900, 900, 900, 1, 1, 1, 1)
        with opened(tmp_path / name, "wb") as file:
            file.write(medium.read_bytes())
        refused(tmp_path / name, "1458000352 bytes")
    for suffix in (".mha", ".nrrd"):
        path = tmp_path / f"big{suffix}"
        sitk.WriteImage(itk_image(volume(), OBLIQUE), str(path))
        old, new = (b"5 6 7", b"10000 10000 10000")
        path.write_bytes(path.read_bytes().replace(old, new))
        refused(path, "1e+12 voxels")
        path.write_bytes(path.read_bytes().replace(new, b"900 900 900"))
        refused(path, "1458000000 bytes")


def _codes(header):
    header["sform_code"] = header["qform_code"] = 0


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
    ("name", "old", "new", "words"),
    [
        ("a.nrrd", b"space: left-posterior-superior", b"space: scanner-xyz", ("left and right are unknown",)),
        ("a.nrrd", b"encoding: raw", b"encoding: bzip2", ("encoding",)),
        ("a.nrrd", b"type: short", b"type: block", ("number type",)),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 5 6 x", ("sizes",)),
        ("a.nhdr", b"data file: a.raw", b"data file: ../a.raw", ("outside its own folder",)),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = /etc/hostname", ("outside its own folder",)),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = b.raw", ("missing",)),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = LIST", ("one file",)),
        ("a.mha", b"ElementSpacing", b"NoElementSpacing", ("voxel size is unknown",)),
        ("a.mha", b"ElementType = MET_SHORT", b"ElementType = MET_NOTHING", ("number type",)),
        ("a.mha", b"TransformMatrix = ", b"TransformMatrix = 0 0 0 0 0 0 0 0 0 ", ()),
    ],
)
def test_impossible_nrrd_and_metaimage_headers_are_refused(tmp_path, name, old, new, words):
    path = tmp_path / name
    sitk.WriteImage(itk_image(volume(), np.diag([1.0, 1, 1, 1])), str(path), useCompression=False)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    refused(path, *words)


META_HEAD = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nOffset = 0 0 0\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 1\nDimSize = 5 6 7\nElementType = MET_SHORT\n"
)
NRRD_HEAD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 6 7\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n"
)


def remarks(ending: str) -> str:
    return "".join(f"Remark{n} = {'x' * 100}\n" for n in range(12000)) + ending


@pytest.mark.fault(
    "NRRD and MetaImage headers that ITK reads in another way than we do, so that it takes voxels from elsewhere",
    "refused in one line, nothing is read",
)
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("a.mha", "elementdatafile = LOCAL\n\nElementDataFile = {secret}\n"),
        ("a.mha", "elementdatafile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mhd", "elementdatafile = inside.raw\n\nElementDataFile = ../secret.raw\n"),
        ("a.mha", remarks("elementdatafile = LOCAL\n\nElementDataFile = {secret}\n")),
        ("a.mha", "elementdatafile = LOCAL\n" + remarks("ElementDataFile = {secret}\n")),
        ("a.mha", "Comment =\nElementDataFile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mha", "Remark\nElementDataFile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mha", "ElementDataFile = = {secret}\n"),
        ("a.mha", "ElementDataFile = LoCaL\n"),
        ("a.mha", "ElementDataFile = é.raw\n"),
        ("a.mha", "ElementDataFile = ~.raw\n"),
        pytest.param(
            *("a.mhd", "ElementDataFile = unreadable.raw\n"),
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file"),
        ),
        ("a.nrrd", "# x\rdata file: {secret}\n\n"),
        ("a.nrrd", "data file: inside.raw\ndatafile: {secret}\n\n"),
        ("a.nhdr", "data file: inside.raw \n\n"),
        ("a.nhdr", " \ndata file: {secret}\n\n"),
    ],
)
def test_no_header_brings_voxels_from_outside_its_folder(tmp_path, monkeypatch, name, end):
    folder, secret = tmp_path / "data", tmp_path / "secret.raw"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)  # where a name that begins with "~" is looked for
    volume().tofile(secret)
    inside = np.zeros((5, 6, 7), np.int16).tobytes()
    (folder / "= " / str(tmp_path)[1:]).mkdir(parents=True)
    for own in ("inside.raw", "~.raw", f"= {secret}", "Ã©.raw"):
        (folder / own).write_bytes(inside)
    for link in ("inside.raw ", "LoCaL", "é.raw", "unreadable.raw.gz"):
        (folder / link).symlink_to(secret)
    (tmp_path / "~.raw").symlink_to(secret)
    unreadable = folder / "unreadable.raw"
    unreadable.write_bytes(inside)
    unreadable.chmod(0)
    head = META_HEAD if name.startswith("a.mh") else NRRD_HEAD
    (folder / name).write_bytes((head + end.replace("{secret}", str(secret))).encode() + inside)
    with pytest.raises(VolumeError, match=name):
        read_volume(folder / name)


@pytest.mark.parametrize(
    ("header", "offset"), [(nib.Nifti1Header, 0), (nib.Nifti1Header, 348), (nib.Nifti2Header, 352)]
)
def test_a_single_file_whose_voxels_begin_inside_its_header_is_refused(tmp_path, header, offset):
    is_first = header is nib.Nifti1Header
    nib.save((nib.Nifti1Image if is_first else nib.Nifti2Image)(volume(), OBLIQUE), tmp_path / "a.nii")
    read_volume(tmp_path / "a.nii")
    path = patch(tmp_path / "a.nii", 108 if is_first else 168, "<f" if is_first else "<q", offset)
    refused(path, f"at byte {header.single_vox_offset} or later", f"found vox_offset {offset} inside it")


def test_paths_that_are_no_volume_are_refused(tmp_path):
    refused(tmp_path / "absent.nii.gz", "no such file")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "notes.txt", ".nii.gz")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "without DICOM")
    nib.save(nib.Nifti1Pair(volume(), OBLIQUE), tmp_path / "pair.img")
    (tmp_path / "pair.hdr").unlink()
    refused(tmp_path / "pair.img", "its data file pair.hdr in the same folder, found it missing")


@pytest.mark.filterwarnings("ignore:.*explicit VR:UserWarning")  # pydicom's, about the damage that is done here
def test_flipped_bytes_never_give_anything_but_a_volume_or_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    nifti = save(tmp_path / "a.nii", volume(), OBLIQUE)
    sitk.WriteImage(itk_image(volume(), OBLIQUE), str(tmp_path / "a.nrrd"))
    sitk.WriteImage(itk_image(volume(), OBLIQUE), str(tmp_path / "a.mha"))
    write_series(tmp_path / "series", n=3)
    for path in (nifti, tmp_path / "a.nrrd", tmp_path / "a.mha", tmp_path / "series/slice2"):
        whole = path.read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            content[rng.integers(0, min(len(whole), 700))] = rng.integers(0, 256)
            path.write_bytes(bytes(content))
            with contextlib.suppress(VolumeError):
                read_volume(path.parent if path.name.startswith("slice") else path)
        path.write_bytes(whole)


# --- image and label of a case


REAL_PAIRS = [
    ("abdomen_ct/example_ct.nii.gz", "abdomen_ct/example_seg_fast_force_split.nii.gz", 62),
    ("abdomen_ct_dicom/series", "abdomen_ct_dicom/label.nii.gz", 32),
    ("spine_crops/sample_ct/sub-ct_label-22_ct.nii.gz",
     "spine_crops/sample_ct/sub-ct_seg-subreg_label-22_msk.nii.gz", 11),
    ("spine_crops/sample_mri/sub-mri_label-6_T2w.nii.gz",
     "spine_crops/sample_mri/sub-mri_seg-vert_label-6_msk.nii.gz", 9),
    ("nrrd/brain1_image.nrrd", "nrrd/brain1_label.nrrd", 2),
    ("dicom_seg/ct-3slice", "dicom_seg/liver_seg.nrrd", 2),
    ("awkward_nifti/t2.nii.gz", "awkward_nifti/t2_seg-manual_labeled.nii.gz", 5),
    ("hippocampus/imagesTr/hippocampus_003_0000.nii.gz", "hippocampus/labelsTr/hippocampus_003.nii.gz", 3),
]  # fmt: skip


@pytest.mark.parametrize(("image", "label", "n_values"), REAL_PAIRS)
def test_real_pairs_end_on_one_grid(shared_data, image, label, n_values):
    case = LoadVolumed()({"image": shared_data / image, "label": shared_data / label, "case": "x"})
    assert case["image"].dtype == torch.float32
    assert case["label"].dtype == torch.uint8
    assert case["image"].shape == case["label"].shape
    assert torch.equal(case["image"].affine, case["label"].affine)
    assert case["label"].unique().numel() == n_values


def test_the_chest_ct_and_its_mask_load_without_a_float_label(shared_data):
    folder = shared_data / "chest_ct"
    case = LoadVolumed()({"image": folder / "cxr.nii.gz", "label": folder / "mask.nii.gz", "case": "chest"})
    assert case["label"].dtype == torch.uint8
    expected = np.bincount(np.asarray(nib.load(folder / "mask.nii.gz").dataobj).ravel(), minlength=256)
    assert np.array_equal(torch.bincount(case["label"].flatten().as_tensor(), minlength=256).numpy(), expected)


def test_a_label_of_a_dicom_series_lands_on_its_organs(shared_data):
    folder = shared_data / "abdomen_ct_dicom"
    case = LoadVolumed()({"image": folder / "series", "label": folder / "label.nii.gz", "case": "x"})
    liver, hu = case["label"][0] == 5, case["image"][0]
    assert 70 < hu[liver].median() < 120  # an enhanced liver; shifted or flipped it would hold air or bone
    assert hu[liver].std() < 40


def test_a_real_mismatched_pair_is_refused_by_name(shared_data):
    folder = shared_data / "mismatched_pair"
    with pytest.raises(VolumeError) as error:
        LoadVolumed()({"image": folder / "ct_cropped.nii.gz", "label": folder / "heart.nii.gz", "case": "heart_01"})
    for word in ("case heart_01", "heart.nii.gz", "(233, 167, 191)", "(122, 102, 112)", "mm apart"):
        assert word in str(error.value)


def test_a_label_in_any_of_48_orientations_lands_on_the_image(tmp_path):
    array = volume(dtype=np.uint8)
    image = save(tmp_path / "image.nii", array.astype(np.int16))
    base = nib.Nifti1Image(array, OBLIQUE)
    for number, orientation in enumerate(ALL_ORIENTATIONS):
        turned = base.as_reoriented(orientation)
        label = save(tmp_path / f"label{number}.nii", np.asarray(turned.dataobj), turned.affine)
        case = LoadVolumed()({"image": image, "label": label, "case": "x"})
        assert np.array_equal(case["label"][0].numpy(), array)
        assert np.array_equal(case["image"][0].numpy(), array)


@pytest.mark.parametrize(("shift", "accepted"), [(0.07, True), (0.09, False)])
def test_the_tolerance_is_a_tenth_of_the_smallest_voxel_edge(tmp_path, shift, accepted):
    image = save(tmp_path / "image.nii", volume())  # smallest edge 0.8 mm
    moved = nib.affines.from_matvec(np.eye(3), [shift, 0, 0]) @ OBLIQUE
    label = save(tmp_path / "label.nii", volume(dtype=np.uint8), moved)
    if accepted:
        assert LoadVolumed()({"image": image, "label": label})["label"].shape == (1, 5, 6, 7)
    else:
        with pytest.raises(VolumeError, match=r"0.09 mm apart at the furthest corner \(tolerance 0.08 mm\)"):
            LoadVolumed()({"image": image, "label": label})


def test_monai_orients_the_tensors_as_nibabel_does(tmp_path):
    flipped = nib.Nifti1Image(volume(dtype=np.uint8), OBLIQUE).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    path = save(tmp_path / "a.nii", np.asarray(flipped.dataobj), flipped.affine)
    case = LoadVolumed()({"image": path, "label": path, "case": "x"})
    ras = nib.as_closest_canonical(flipped)
    turned = Orientationd(("image", "label"), "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(case)
    for key in ("image", "label"):
        assert np.array_equal(turned[key][0].numpy(), np.asarray(ras.dataobj))
        np.testing.assert_allclose(turned[key].affine.numpy(), ras.affine, atol=1e-5)


def test_tensors_carry_float64_affines_and_collate(tmp_path):
    path = save(tmp_path / "a.nii", volume(dtype=np.uint8))
    case = LoadVolumed()({"image": [path, path], "label": path, "case": "x"})
    assert isinstance(case["image"], MetaTensor)
    assert case["image"].shape == (2, 5, 6, 7)
    assert case["image"].affine.dtype == torch.float64
    assert case["image"].meta["modality"] == ""
    assert list_data_collate([case, case])["label"].shape == (2, 1, 5, 6, 7)


def test_one_frame_is_a_volume_and_several_are_named(tmp_path):
    one = save(tmp_path / "one.nii", volume()[..., None])
    assert LoadVolumed("image")({"image": one})["image"].shape == (1, 5, 6, 7)
    two = save(tmp_path / "two.nii", volume((5, 6, 7, 2)))
    assert read_volume(two).array.shape == (5, 6, 7, 2)
    with pytest.raises(VolumeError, match=r"case c7: .*two.nii: .*found 2 frames"):
        LoadVolumed("image")({"image": two, "case": "c7"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_nan_or_infinite_voxels_is_refused(tmp_path, value):
    array = volume(dtype=np.float32)
    array[1, 2, 3] = value
    with pytest.raises(VolumeError, match="found 1 NaN or infinite"):
        LoadVolumed("image")({"image": save(tmp_path / "a.nii", array)})


def test_only_image_and_label_are_loaded(tmp_path):
    with pytest.raises(ValueError, match="mask"):
        LoadVolumed(("image", "mask"))
    with pytest.raises(KeyError):
        LoadVolumed()({"image": save(tmp_path / "a.nii", volume())})
    assert "label" not in LoadVolumed(allow_missing_keys=True)({"image": tmp_path / "a.nii"})


# --- labels are integer all the way


def load_label(path, **options):
    return LoadVolumed("label", **options)({"label": path, "case": "x"})["label"]


def test_a_mask_scaled_to_almost_one_is_one(tmp_path):
    """Slope 2.3e-10 and intercept 0.5: reads 0.99999997, and all zeros when cast."""
    mask = volume(dtype=np.uint8, high=2)
    raw = np.where(mask, 2147483647, -2147483648).astype(np.int32)
    path = save(tmp_path / "a.nii", raw)
    patch(path, 112, "<2f", 2.3283064e-10, 0.5)
    assert nib.load(path).get_fdata().astype(np.uint8).max() == 0
    assert np.array_equal(load_label(path)[0].numpy(), mask)


def test_float_labels_are_rounded_and_fractions_are_counted(tmp_path):
    array = volume(dtype=np.float64, high=5)
    assert np.array_equal(load_label(save(tmp_path / "a.nii", array + 4e-4))[0].numpy(), array)
    array.flat[:3] = (0.5, np.nan, 1.25)
    with pytest.raises(VolumeError, match=r"case x: .*found 3 voxels that are not, .* nearest neighbour"):
        load_label(save(tmp_path / "b.nii", array))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_label_values_become_class_indices(tmp_path, dtype):
    values = [0, 3, 100, 7]
    classes = volume(dtype=np.uint8, high=4)
    path = save(tmp_path / "a.nii", np.array(values)[classes].astype(dtype))
    found = load_label(path, label_values=values)
    assert found.dtype == torch.uint8
    assert np.array_equal(found[0].numpy(), classes)


def test_unknown_label_values_are_named_with_their_counts(tmp_path):
    array = np.zeros((5, 6, 7), np.int16)
    array[0, 0, :3], array[1, 1, 0] = 9, -4
    path = save(tmp_path / "a.nii", array)
    with pytest.raises(VolumeError) as error:
        load_label(path, label_values=[0, 1, 2, 3, 30])
    for word in ("case x", str(path), "-4 (1 voxels), 9 (3 voxels)", "0-3, 30", "label_values"):
        assert word in str(error.value)


def test_more_than_255_classes_stay_integer_and_can_be_oriented(tmp_path):
    array = volume(dtype=np.uint16, high=300)
    array[0, 0, 0] = 999
    path = save(tmp_path / "a.nii", array)
    found = load_label(path, label_values=range(300), ignore_value=999)
    assert found.dtype == torch.int32
    assert found[0, 0, 0, 0] == 65535
    Orientationd("label", "LPS", labels=(("L", "R"), ("P", "A"), ("I", "S")))({"label": found})
    with pytest.raises(VolumeError, match="label_values"):
        load_label(path)


def test_the_ignore_value_is_stored_as_255(tmp_path):
    array = volume(dtype=np.uint8, high=4)
    found = load_label(save(tmp_path / "a.nii", array), label_values=[0, 1, 2], ignore_value=3)
    assert np.array_equal(found[0].numpy(), np.where(array == 3, 255, array))


def test_tables_that_contradict_themselves_are_refused():
    for values, ignored in (([0, 1, 1], None), ([0, 1], 1), ([0, 2**30], None), ([], None)):
        with pytest.raises(ValueError, match="label_values"):
            LoadVolumed(label_values=values, ignore_value=ignored)


def test_masks_are_merged_and_the_later_class_wins(tmp_path, caplog):
    first, second = np.zeros((5, 6, 7), np.uint8), np.zeros((5, 6, 7), np.float64)
    first[:3], second[2:4] = 255, 1
    image = save(tmp_path / "image.nii", volume())
    masks = [(1, save(tmp_path / "liver.nii", first)), (4, save(tmp_path / "vessel.nii", second))]
    with caplog.at_level("DEBUG", "transforms.io.label_values"):
        label = LoadVolumed()({"image": image, "label": masks, "case": "x"})["label"]
    expected = np.zeros((5, 6, 7))
    expected[:2], expected[2:4] = 1, 4
    assert label.dtype == torch.uint8
    assert np.array_equal(label[0].numpy(), expected)
    assert "42 voxels lie in more than one" in caplog.text
    save(tmp_path / "map.nii", volume(dtype=np.uint8))
    with pytest.raises(VolumeError, match="0 and one other value"):
        LoadVolumed()({"image": image, "label": [(1, tmp_path / "map.nii")], "case": "x"})


def test_nibabel_agrees_on_the_way_between_grids():
    """The reference of the 48-orientation tests itself: the turned affine puts the same voxel at the same place."""
    turned = nib.Nifti1Image(volume(), OBLIQUE).as_reoriented(ALL_ORIENTATIONS[11])
    np.testing.assert_allclose(turned.affine, OBLIQUE @ inv_ornt_aff(ALL_ORIENTATIONS[11], (5, 6, 7)))
    assert io_orientation(OBLIQUE)[:, 0].tolist() == [0, 1, 2]
