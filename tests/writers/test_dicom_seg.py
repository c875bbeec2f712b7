"""DICOM SEG results: highdicom reads them back, dciodvfy finds no error, they refer to the source's slices."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from pipeline.files.atomic import FileError
from pipeline.writers.dicom_seg import check_series, write_dicom_seg
from pipeline.writers.segmentation import SegmentationError
from tests.support.segmentations import save_source, segmentation_of
from tests.support.volume_files import LPS
from tests.support.volumes import write_series


def test_a_dicom_seg_is_read_back_by_highdicom_on_the_source_slices(shared_data, tmp_path):
    segmentation = segmentation_of(shared_data / "dicom_seg" / "ct-3slice", label_values=(0, 30, 207, 1, 2, 3))
    write_dicom_seg(segmentation, tmp_path / "seg.dcm")
    theirs = hd.seg.segread(tmp_path / "seg.dcm")
    assert [theirs.get_segment_description(n).segment_label for n in theirs.segment_numbers] == [
        "liver", "kidney_left", "../../evil name",
    ]  # fmt: skip
    descriptions = [theirs.get_segment_description(n).SegmentDescription for n in theirs.segment_numbers]
    assert descriptions == ["Label value 30", "Label value 207", "Label value 1"]
    liver, kidney, _ = (theirs.get_segment_description(n) for n in theirs.segment_numbers)
    assert liver.segmented_property_type.value == "10200004"
    assert kidney.segmented_property_type.value == "64033007"
    (side,) = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert (side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning) == ("7771000", "SCT", "Left")
    volume = theirs.get_volume(combine_segments=True)
    to_ours = np.linalg.solve(LPS @ segmentation.affine, volume.affine)
    ours = np.zeros_like(segmentation.array)
    for index in np.argwhere(volume.array):
        ours[tuple(np.rint(to_ours @ [*index, 1])[:3].astype(int))] = volume.array[tuple(index)]
    np.testing.assert_array_equal(ours, segmentation.array)
    assert len(theirs.get_source_image_uids()) == 3


def test_highdicom_reads_where_an_abnormal_structure_lies(shared_data, tmp_path):
    names = ("background", "liver_tumor", "kidney_cyst_left", "spleen")
    write_dicom_seg(segmentation_of(shared_data / "dicom_seg" / "ct-3slice", names), tmp_path / "seg.dcm")
    theirs = hd.seg.segread(tmp_path / "seg.dcm")
    tumour, cyst, spleen = (theirs.get_segment_description(n) for n in (1, 2, 3))
    assert [one.segmented_property_type.value for one in (tumour, cyst)] == ["108369006", "367643001"]
    assert [one.anatomic_regions[0].value for one in (tumour, cyst)] == ["10200004", "64033007"]
    (side,) = cyst.AnatomicRegionSequence[0].AnatomicRegionModifierSequence
    assert side.CodeValue == "7771000"
    assert not spleen.anatomic_regions


def test_a_dicom_seg_without_any_structure_is_written_without_a_word_of_another_library(shared_data, tmp_path, caplog):
    segmentation = segmentation_of(shared_data / "dicom_seg" / "ct-3slice")
    write_dicom_seg(dataclasses.replace(segmentation, array=0 * segmentation.array), tmp_path / "seg.dcm")
    assert not hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True).array.any()
    assert "omit_empty_frames" not in caplog.text


def test_a_dicom_seg_of_an_anonymised_series_refers_to_the_uids_in_the_files_meta_information(shared_data, tmp_path):
    series = shared_data / "abdomen_ct_dicom" / "series"
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in series.iterdir()]
    assert {str(header.SOPInstanceUID) + str(header.StudyInstanceUID) for header in headers} == {""}
    for name in ("a.dcm", "b.dcm"):
        (repair,) = write_dicom_seg(segmentation_of(series), tmp_path / name)
    first, second = (hd.seg.segread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    referred = {str(instance) for _, _, instance in first.get_source_image_uids()}
    assert referred == {str(header.file_meta.MediaStorageSOPInstanceUID) for header in headers}
    assert first.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.StudyInstanceUID.is_valid
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert "StudyInstanceUID and SeriesInstanceUID blank" in repair


@pytest.mark.parametrize("series", ["dicom_seg/ct-3slice", "abdomen_ct_dicom/series", "dicom_compressed/rle"])
def test_dciodvfy_finds_no_error_in_a_dicom_seg(shared_data, tmp_path, series):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    write_dicom_seg(segmentation_of(shared_data / series), tmp_path / "seg.dcm")

    def errors(path):
        said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        return {line for line in said.stderr.splitlines() if line.startswith("Error")}

    # What is repeated from the source unchanged (a text that is too long) is the source's error.
    (first,) = sorted((shared_data / series).iterdir())[:1]
    assert errors(tmp_path / "seg.dcm") - errors(first) == set()


def test_a_dicom_seg_without_a_usable_series_is_refused_in_one_sentence(shared_data, tmp_path):
    with pytest.raises(SegmentationError, match="found nifti"):
        write_dicom_seg(segmentation_of(save_source(tmp_path / "s.nii.gz")), tmp_path / "seg.dcm")
    nameless = tmp_path / "nameless"
    shutil.copytree(shared_data / "dicom_seg" / "ct-3slice", nameless)
    blanked(nameless / "02.dcm", "SOPInstanceUID")
    with pytest.raises(SegmentationError, match="SOPInstanceUID, found none in 1 of 3 files, nor in their meta"):
        write_dicom_seg(segmentation_of(nameless), tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def blanked(path: Path, *keywords: str) -> None:
    """Empty some UIDs of a file, in the header and in the meta information."""
    header = pydicom.dcmread(path)
    for keyword in keywords:
        setattr(header, keyword, "")
        if f"MediaStorage{keyword}" in header.file_meta:
            setattr(header.file_meta, f"MediaStorage{keyword}", "")
    pydicom.dcmwrite(path, header, enforce_file_format=False)


def edited(series: Path, folder: Path, edit) -> Path:
    """A copy of a series whose headers `edit(header, number)` has changed."""
    folder.mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        header = pydicom.dcmread(path)
        edit(header, number)
        pydicom.dcmwrite(folder / path.name, header, enforce_file_format=False)
    return folder


def test_a_series_with_a_frame_of_reference_for_every_slice_has_a_seg_in_that_of_the_first(shared_data, tmp_path):
    def edit(header, number):
        header.FrameOfReferenceUID = f"1.2.3.{number}"

    series = edited(shared_data / "dicom_seg" / "ct-3slice", tmp_path / "series", edit)
    (repair,) = write_dicom_seg(segmentation_of(series), tmp_path / "seg.dcm")
    assert "name 3 frames of reference" in repair
    assert hd.seg.segread(tmp_path / "seg.dcm").FrameOfReferenceUID.startswith("1.2.3.")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the character sets
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO 2022 IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        ("ISO 2022 IR 100", "Müller^Anna"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "山田^太郎"),
        ("NONSENSE", "Smith^John"),
    ],
)
def test_a_patients_name_in_any_character_set_is_kept(shared_data, tmp_path, charset, name):
    def edit(header, number):
        header.SpecificCharacterSet = charset
        header.PatientName = name

    series = edited(shared_data / "dicom_seg" / "ct-3slice", tmp_path / "series", edit)
    write_dicom_seg(segmentation_of(series), tmp_path / "seg.dcm")
    assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == name


def test_a_disk_that_refuses_a_dicom_seg_is_not_taken_for_a_fault_of_the_series(shared_data, tmp_path):
    (tmp_path / "seg.dcm").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        write_dicom_seg(segmentation_of(shared_data / "dicom_seg" / "ct-3slice"), tmp_path / "seg.dcm")


def raw(tag: int, representation: str, value: bytes):
    """A change of a header: an element with a value that pydicom would not write."""

    def edit(header, number):
        header[tag] = RawDataElement(
            Tag(tag), representation, len(value), value, 0, is_implicit_VR=False, is_little_endian=True
        )

    return edit


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of these values
@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda header, number: setattr(header, "StudyInstanceUID", f"1.2.{number}"), "4 studies"),
        (raw(0x00100030, "DA", b"unknown "), "PatientBirthDate 'unknown' is left out"),
        (raw(0x00080030, "TM", b"12:30:70"), "StudyTime '12:30:70' is left out"),
        (raw(0x00100040, "CS", b"U "), "PatientSex 'U' is left out"),
        (raw(0x00200011, "IS", b"abc "), ""),
        (raw(0x00180050, "DS", b"3mm "), ""),
        (lambda header, number: setattr(header, "ImageOrientationPatient", [1, 1e-5 * number, 0, 0, 1, 0]), ""),
    ],
    ids=["study", "date", "time", "sex", "series number", "thickness", "orientation"],
)
def test_odd_values_of_a_series_are_repaired_and_named(tmp_path, edit, word):
    write_series(tmp_path / "plain", [0, 3, 6, 9])
    series = edited(tmp_path / "plain", tmp_path / "odd", edit)
    check_series(series, "dicom")
    repairs = write_dicom_seg(segmentation_of(series), tmp_path / "seg.dcm")
    assert hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True).array.any()
    assert word in " ".join(repairs)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of these values
@pytest.mark.parametrize(
    ("keyword", "value", "written", "said"),
    [
        ("PatientID", "1" * 80, "1" * 80, f"PatientID '{'1' * 31}…{'1' * 32}' of 80 characters stays as it is"),
        ("AccessionNumber", "2" * 40, "2" * 40, f"AccessionNumber '{'2' * 40}' of 40 characters stays as it is"),
        ("PatientAge", "64", "", "PatientAge '64' is left out"),
        ("PatientWeight", "70,5", None, "PatientWeight '70,5' is left out"),
        ("StudyDate", "2008.09.13", "20080913", "StudyDate '2008.09.13' is written 20080913"),
        ("StudyTime", "12:30:10", "123010", "StudyTime '12:30:10' is written 123010"),
        ("StudyInstanceUID", "not.a.uid", "2.25.*", "StudyInstanceUID 'not.a.uid' is left out"),
        ("StudyInstanceUID", "1.2.03", "1.2.03", "StudyInstanceUID '1.2.03' stays as it is"),
    ],
)
def test_values_that_dicom_does_not_allow_are_named_with_what_was_written(tmp_path, keyword, value, written, said):
    write_series(tmp_path / "plain", [0, 3, 6])
    edit = raw(tag_for_keyword(keyword), dictionary_VR(keyword), value.encode().ljust(len(value) + len(value) % 2))
    series = edited(tmp_path / "plain", tmp_path / "odd", edit)
    first, *others = write_dicom_seg(segmentation_of(series), tmp_path / "seg.dcm")
    assert first == f"its header has values that DICOM does not allow; in the DICOM SEG {said}"
    found = pydicom.dcmread(tmp_path / "seg.dcm").get(keyword)
    assert found == written or fnmatch(str(found), str(written))
    assert (keyword in " ".join(others)) == (written == "2.25.*")


@pytest.mark.parametrize("spacing_mm", [5.0, 0.5, -2.5])
def test_frames_lie_as_far_apart_as_the_slices_whatever_a_header_says_of_their_spacing(tmp_path, spacing_mm):
    write_series(tmp_path / "plain", [0, 2.5, 5, 7.5])
    series = edited(
        tmp_path / "plain", tmp_path / "series", lambda part, _: setattr(part, "SpacingBetweenSlices", spacing_mm)
    )
    segmentation = segmentation_of(series)
    write_dicom_seg(segmentation, tmp_path / "seg.dcm")
    theirs = hd.seg.segread(tmp_path / "seg.dcm")
    volume = theirs.get_volume(combine_segments=True, allow_missing_positions=True)
    assert sorted(volume.spacing) == [2, 2, 2.5]
    measures = theirs.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5


@pytest.mark.parametrize(("number", "expected"), [(3, 1003), (2**31 - 1, 2**31 - 1)])
def test_a_series_number_is_one_that_dicom_can_hold(tmp_path, number, expected):
    write_series(tmp_path / "plain", [0, 3, 6])
    series = edited(tmp_path / "plain", tmp_path / "odd", lambda header, _: setattr(header, "SeriesNumber", number))
    write_dicom_seg(segmentation_of(series), tmp_path / "seg.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").SeriesNumber == expected


def test_slices_that_share_one_uid_are_refused_before_anything_is_computed(tmp_path):
    write_series(tmp_path / "plain", [0, 3, 6])
    series = edited(tmp_path / "plain", tmp_path / "odd", lambda header, _: setattr(header, "SOPInstanceUID", "1.2.3"))
    with pytest.raises(SegmentationError, match="by SOPInstanceUID, found 1 for 3 slices; choose the format nifti"):
        check_series(series, "dicom")


def test_what_highdicom_refuses_is_known_before_anything_is_computed(tmp_path, monkeypatch):
    def refuse(**arguments):
        raise IndexError("no such frame")

    write_series(tmp_path / "series", [0, 3, 6])
    check_series(tmp_path / "series", "dicom")
    monkeypatch.setattr(hd.seg, "Segmentation", refuse)
    with pytest.raises(SegmentationError, match=r"this series \(.*no such frame.*\); choose the format"):
        check_series(tmp_path / "series", "dicom")
