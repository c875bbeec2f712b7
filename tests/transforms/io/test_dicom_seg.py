"""DICOM SEG files as label maps, against the same segmentation as NRRD and against our own writer."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from pipeline.writers.dicom_seg import write_dicom_seg
from tests.support.segmentations import segmentation_of
from tests.support.volume_files import itk_affine
from tests.support.volumes import write_series
from transforms.io.dicom_seg import is_dicom_seg, read_dicom_seg, segment_numbers
from transforms.io.errors import VolumeError


def at_points(segments, affine, shape):
    """The segments looked up at the voxel centres of another grid."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    to_ours = np.linalg.solve(segments.affine, affine)
    inside = np.rint(index @ to_ours[:3, :3].T + to_ours[:3, 3]).astype(int)
    return segments.array[tuple(np.moveaxis(inside, -1, 0))]


def test_a_published_dicom_seg_holds_what_its_nrrd_holds(shared_data):
    path = shared_data / "dicom_seg" / "liver.dcm"
    assert is_dicom_seg(path)
    assert segment_numbers(path) == {"Liver": 1}
    image = sitk.ReadImage(str(shared_data / "dicom_seg" / "liver_seg.nrrd"))
    theirs = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert np.array_equal(at_points(read_dicom_seg(path), itk_affine(image), theirs.shape), theirs)


def test_what_our_writer_writes_is_read_back(tmp_path):
    write_series(tmp_path / "series", [0, 3, 6, 9])
    segmentation = segmentation_of(tmp_path / "series")
    write_dicom_seg(segmentation, tmp_path / "a.dcm")
    segments = read_dicom_seg(tmp_path / "a.dcm")
    numbers = segment_numbers(tmp_path / "a.dcm")
    assert set(numbers) > {"liver", "kidney_left"}
    for name in ("liver", "kidney_left"):
        number = numbers[name]
        found = nib.affines.apply_affine(segments.affine, np.argwhere(segments.array == number))
        inside = segmentation.array == segmentation.class_names.index(name)
        expected = nib.affines.apply_affine(segmentation.affine, np.argwhere(inside))
        assert np.allclose(sorted(found.tolist()), sorted(expected.tolist()), atol=1e-4)


@pytest.mark.parametrize("off", ["rounded", "by 5 %", "by 5 %, frames with orientations of their own"])
def test_slices_as_uneven_as_a_series_may_be_make_a_volume(tmp_path, off):
    """Thin slices whose positions were rounded to hundredths of a mm; slices that lie a little beside their places."""
    even = 0.625 * np.arange(40)
    heights = even.round(2) if off == "rounded" else even + 0.625 * np.random.default_rng(1).uniform(-0.05, 0.05, 40)
    write_series(tmp_path / "series", heights.tolist())
    segmentation = segmentation_of(tmp_path / "series")
    write_dicom_seg(segmentation, tmp_path / "a.dcm")
    if "frames" in off:
        header = pydicom.dcmread(tmp_path / "a.dcm")
        orientation = header.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence")
        for frame in header.PerFrameFunctionalGroupsSequence:
            frame["PlaneOrientationSequence"] = orientation
        header.save_as(tmp_path / "a.dcm")
    segments = read_dicom_seg(tmp_path / "a.dcm")
    found = at_points(segments, segmentation.affine, segmentation.array.shape)
    numbers = segment_numbers(tmp_path / "a.dcm")
    for name in ("liver", "kidney_left"):
        inside = segmentation.array == segmentation.class_names.index(name)
        assert np.array_equal(found == numbers[name], inside)


def edit_written(tmp_path, edit):
    """A DICOM SEG of forty slices 3 mm apart, changed by hand."""
    write_series(tmp_path / "series", [3.0 * n for n in range(40)])
    write_dicom_seg(segmentation_of(tmp_path / "series"), tmp_path / "a.dcm")
    header = pydicom.dcmread(tmp_path / "a.dcm")
    edit(header)
    header.save_as(tmp_path / "a.dcm")
    return tmp_path / "a.dcm"


def widen_the_upper_half(header):
    """Steps of 3.5 mm in the upper half: near the mean of 3.25 mm, but the errors add up to 5 mm."""
    for frame in header.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        position[2] = position[2] + 0.5 * max(0, position[2] / 3 - 20)


def fill_the_segments(header):
    header.PixelData = b"\xff" * len(header.PixelData)


@pytest.mark.parametrize(("edit", "found"), [(widen_the_upper_half, "volume"), (fill_the_segments, "overlap")])
def test_frames_that_make_no_label_map_are_refused_with_the_reason(tmp_path, edit, found):
    path = edit_written(tmp_path, edit)
    with pytest.raises(VolumeError, match=f"expected a DICOM SEG whose segments make one label map, found .*{found}"):
        read_dicom_seg(path)


def test_other_files_are_none_and_a_damaged_one_is_refused(tmp_path):
    write_series(tmp_path / "series", [0, 3])
    slice_ = next((tmp_path / "series").iterdir())
    assert not is_dicom_seg(slice_)
    (tmp_path / "text.dcm").write_text("no DICOM")
    assert not is_dicom_seg(tmp_path / "text.dcm")
    assert not is_dicom_seg(tmp_path / "nowhere.dcm")
    for read in (read_dicom_seg, segment_numbers):
        with pytest.raises(VolumeError, match="expected a DICOM SEG whose segments make one label map"):
            read(slice_)
