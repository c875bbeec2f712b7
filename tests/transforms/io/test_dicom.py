"""DICOM series: as SimpleITK and pydicom read them, and slices that make no volume."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
from pydicom.pixels import apply_rescale

from tests.support.volume_files import (
    itk_affine,
    refused,
    write_series,
)
from transforms.io.errors import VolumeError
from transforms.io.load import known_kind, read_volume


@pytest.mark.parametrize("folder", ["abdomen_ct_dicom/series", "dicom_seg/ct-3slice", "dicom_compressed/rle"])
def test_a_real_dicom_series_reads_as_in_simpleitk(shared_data, folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(shared_data / folder)))
    theirs, ours = reader.Execute(), read_volume(shared_data / folder)
    assert np.array_equal(ours.array, sitk.GetArrayFromImage(theirs).T)
    np.testing.assert_allclose(ours.affine, itk_affine(theirs), atol=1e-3)
    assert ours.geometry.modality == ("MR" if "compressed" in folder else "CT")


def test_compressed_dicom_series_hold_the_same_pixels(shared_data):
    rle, jpeg2000 = (read_volume(shared_data / "dicom_compressed" / name).array for name in ("rle", "jpeg2000"))
    assert np.array_equal(rle, jpeg2000)
    files = sorted((shared_data / "dicom_compressed/rle").glob("*.dcm"), reverse=True)  # the normal points to -x
    assert np.array_equal(rle.T, [pydicom.dcmread(file).pixel_array for file in files])


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


def test_a_folder_is_asked_once_what_it_holds(tmp_path, monkeypatch):
    write_series(tmp_path)
    opened = []
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode, **more: opened.append(path) or plain(path, *mode, **more))
    read_volume(tmp_path)
    assert len({opened.count(path) for path in tmp_path.iterdir()}) == 1


def test_other_files_in_a_dicom_folder_are_passed_over(tmp_path):
    stored = write_series(tmp_path / "series")
    (tmp_path / "series/LICENCE").write_text("Do as you please.")
    (tmp_path / "series/.hidden").write_bytes(b"\0" * 200)
    report = tmp_path / "report"
    write_series(report, n=2, change=lambda header, k: setattr(header, "Modality", "SR"))
    for path in report.iterdir():
        path.rename(tmp_path / "series" / f"report_{path.name}")
    assert np.array_equal(read_volume(tmp_path / "series").array, stored)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("ct_head_tilted_dicom", ("18.5 degrees", "gantry tilt")),
        ("dicom_series_faults/gantry_tilt", ("14.0 degrees", "only the one with _Tilt in its name")),
        ("ct_head_tilted_dicom", ("1.081 to 6.999 mm apart", "(_Tilt_Eq where there is one) is upright")),
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


@pytest.mark.parametrize("slope", ["0", "0.0"])
def test_a_rescale_slope_of_zero_is_refused(tmp_path, slope):
    """GDCM reads it as 1: the header's type would be too small for 40000 - 1024, which came out as -26560."""
    write_series(tmp_path / "series", slope=slope, intercept=-1024, modality="CT")
    refused(tmp_path / "series", "RescaleSlope 0", "rescale slope and intercept")


def test_a_slice_beside_the_stack_is_refused(tmp_path):
    """No affine has slice 1 of 4 where its header says: 0.3 mm aside passes as rounding, 20 mm do not."""

    def aside(mm):
        def move(header, k):
            if k == 1:
                along_row = np.array(header.ImageOrientationPatient[:3], float)
                place = np.array(header.ImagePositionPatient, float) + mm * along_row
                header.ImagePositionPatient = [round(float(v), 6) for v in place]

        return move

    stored = write_series(tmp_path / "near", change=aside(0.3))
    assert np.array_equal(read_volume(tmp_path / "near").array, stored)
    write_series(tmp_path / "far", change=aside(20))
    refused(tmp_path / "far", "slice3 20.0 mm aside", "one straight stack")


def test_pixels_that_are_not_in_the_lowest_bits_are_refused(tmp_path):
    write_series(tmp_path / "series", change=_set(HighBit=15))
    refused(tmp_path / "series", "HighBit 11 for 12 bits stored", "found HighBit 15")


@pytest.mark.parametrize(("modality", "slope", "intercept"), [("CT", 1, -1024), ("MR", 1, 0), ("MR", 2.5, 3)])
@pytest.mark.parametrize("bits", [12, 16])
def test_white_as_the_lowest_value_changes_no_value(tmp_path, modality, slope, intercept, bits):
    """MONOCHROME1 is for viewers: pydicom has the same values, where SimpleITK (GDCM) has them turned over."""

    def white_is_low(header, k):
        header.PhotometricInterpretation = "MONOCHROME1"
        header.BitsStored, header.HighBit = bits, bits - 1

    folder = tmp_path / "series"
    write_series(folder, modality=modality, slope=slope, intercept=intercept, change=white_is_low)
    slices = [pydicom.dcmread(folder / f"slice{4 - k}") for k in range(4)]
    expected = np.stack([apply_rescale(part.pixel_array, part).T for part in slices], axis=2)
    np.testing.assert_allclose(read_volume(folder).array, expected, rtol=1e-6)
    write_series(tmp_path / "mixed", change=_set(PhotometricInterpretation="MONOCHROME1"))
    plain = write_series(tmp_path / "plain")
    assert np.array_equal(read_volume(tmp_path / "mixed").array, plain)


def test_white_as_the_lowest_of_signed_values_changes_no_value_or_is_refused(tmp_path):
    """GDCM does not read them at all where not all bits are used."""
    full = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 16, "HighBit": 15}
    stored = write_series(tmp_path / "series", signed=1, change=_set(**full))
    assert np.array_equal(read_volume(tmp_path / "series").array, stored)
    write_series(tmp_path / "twelve", signed=1, change=_set(PhotometricInterpretation="MONOCHROME1"))
    refused(tmp_path / "twelve", "slice2", "cannot be decoded")


@pytest.mark.parametrize("meaning", ["PALETTE COLOR", "RGB"])
def test_stored_values_that_stand_for_colours_are_refused(tmp_path, meaning):
    """GDCM looks them up: three values a pixel, where the header says one."""
    write_series(tmp_path / "series", change=_set(PhotometricInterpretation=meaning))
    refused(tmp_path / "series", "one grey-scale slice a file", f"colours (PhotometricInterpretation {meaning})")


def test_a_folder_of_another_modality_says_which(tmp_path):
    write_series(tmp_path / "pet", n=3, change=lambda header, k: setattr(header, "Modality", "PT"))
    refused(tmp_path / "pet", "found none, but 3 of modality PT", "CT or MR series")
    write_series(tmp_path / "one", n=1)
    refused(tmp_path / "one", "found one slice, slice1")


def test_a_single_file_is_told_to_be_named_by_its_folder(tmp_path):
    write_series(tmp_path / "series")
    for name in ("slice2", "slice2.dcm"):
        path = tmp_path / "series" / name
        if not path.exists():
            (tmp_path / "series/slice2").rename(path)
        refused(path, f"name its folder, {path.parent}")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"NumberOfFrames": 7}, "a multi-frame object of 7 frames"),
        ({"SamplesPerPixel": 3}, "a colour picture (3 samples a pixel)"),
        ({"PixelSpacing": None, "ImagePositionPatient": None}, "found no PixelSpacing, ImagePositionPatient"),
    ],
)
def test_slices_that_are_no_grey_slices_are_told_apart(tmp_path, values, words):
    write_series(tmp_path / "series", change=_set(**values))
    with pytest.raises(VolumeError) as error:
        read_volume(tmp_path / "series")
    assert error.value.where.endswith("slice2")
    assert words in str(error.value)


@pytest.mark.parametrize("odd", [0, 3])
def test_the_odd_slice_is_named_and_not_the_good_ones(tmp_path, odd):
    """A localiser among eleven slices, the first or last by name."""

    def localiser(header, k):
        if k == odd:
            header.ImageOrientationPatient = [1, 0, 0, 0, 0, 1]

    write_series(tmp_path / "series", n=4, change=localiser)
    refused(tmp_path / "series", f"found another in 1 of 4 slices, slice{4 - odd} for one")


def test_a_single_file_of_several_frames_is_not_sent_to_its_folder(tmp_path):
    write_series(tmp_path)
    path = min(tmp_path.iterdir())
    header = pydicom.dcmread(path)
    header.NumberOfFrames = 3
    header.save_as(path)
    with pytest.raises(VolumeError, match=r"a multi-frame object of 3 frames; convert it to NIfTI"):
        known_kind(path)


def test_a_series_below_a_name_that_is_no_utf_8_is_refused_where_simpleitk_would_end_the_process(tmp_path):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    write_series(folder)
    refused(folder, "expected a path whose names are UTF-8")
