"""Segmentations on disk: nibabel, SimpleITK and highdicom read the same voxels at the same place as the source's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.files.atomic import FileError
from pipeline.inference.postprocessing import clean
from pipeline.writers.dicom_seg import structure_code, write_dicom_seg
from pipeline.writers.nifti import GRID_FIELDS, write_mask, write_nifti, write_probabilities
from pipeline.writers.outputs import Wanted, check_no_source_is_overwritten, write_files
from pipeline.writers.seg_nrrd import write_seg_nrrd
from pipeline.writers.segmentation import Segmentation, SegmentationError, file_names
from transforms.io.load import read_geometry, read_volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAMES = ("background", "liver", "kidney_left", "../../evil\nname", "kidney left", "Kidney_Left")

REAL = [
    "awkward_nifti/CT_AVM.nii.gz", "awkward_nifti/CT_pitch.nii.gz", "awkward_nifti/anatomical.nii",
    "awkward_nifti/reoriented_anat_moved.nii", "awkward_nifti/example_nifti2.nii.gz", "awkward_nifti/t2.nii.gz",
    "abdomen_ct/example_ct.nii.gz", "spine_crops/sample_mri/sub-mri_label-6_T2w.nii.gz",
    "mismatched_pair/ct_cropped.nii.gz", "hippocampus/imagesTr/hippocampus_003_0000.nii.gz",
    "nrrd/brain1_image.nrrd", "abdomen_ct_dicom/series",
]  # fmt: skip


def segmentation_of(source: Path, names=NAMES) -> Segmentation:
    geometry = read_geometry(source)
    array = np.zeros(geometry.shape[:3], np.uint8, order="F")
    i, j, k = (n // 3 for n in array.shape)
    array[: i + 1, : j + 1, : k + 1] = 1
    array[i + 2 :, j:, k:] = 2
    array[0, 0, -1] = 3
    return Segmentation(array, geometry.affine, names, source, geometry.kind)


def save_source(path: Path, affine=None, shape=(6, 7, 8)) -> Path:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([1, 2, 3, 1]) if affine is None else affine), path)
    return path


def itk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


@pytest.mark.parametrize("name", REAL)
def test_every_real_grid_is_written_so_that_nibabel_and_simpleitk_agree_with_the_source(shared_data, tmp_path, name):
    source = shared_data / name
    if not source.exists():
        source = next(iter(sorted((shared_data / "nrrd").glob("*image*.nrrd"))))
    segmentation = segmentation_of(source)
    write_nifti(segmentation, tmp_path / "a.nii.gz")
    write_seg_nrrd(segmentation, tmp_path / "a.seg.nrrd")
    theirs = nib.load(tmp_path / "a.nii.gz")
    assert theirs.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), segmentation.array)
    np.testing.assert_allclose(read_geometry(tmp_path / "a.nii.gz").affine, segmentation.affine, atol=1e-4)
    second = isinstance(theirs, nib.Nifti2Image)  # which SimpleITK cannot read, neither the source's nor ours
    assert second == (name == "awkward_nifti/example_nifti2.nii.gz")
    for file in ("a.seg.nrrd",) if second else ("a.nii.gz", "a.seg.nrrd"):
        image = sitk.ReadImage(tmp_path / file)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, segmentation.array)
        np.testing.assert_allclose(itk_affine(image), segmentation.affine, atol=2e-3)
    if segmentation.source_kind == "nifti":
        before, after = nib.load(source), theirs
        np.testing.assert_array_equal(after.affine, before.affine)
        for field in GRID_FIELDS:
            np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)
        if not second:
            spacings = [sitk.ReadImage(path).GetSpacing()[:3] for path in (source, tmp_path / "a.nii.gz")]
            assert spacings[0] == spacings[1]


def test_codes_and_units_of_the_source_come_back_as_they_were(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_qform(np.diag([0.001, 0.002, 0.003, 1]), 2)
    image.set_sform(np.diag([0.001, 0.002, 0.003, 1]), 4)
    image.header.set_xyzt_units("meter", "sec")
    nib.save(image, tmp_path / "source.nii")
    write_nifti(segmentation_of(tmp_path / "source.nii"), tmp_path / "out.nii.gz")
    header = nib.load(tmp_path / "out.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (2, 4)
    assert header.get_xyzt_units() == ("meter", "sec")
    np.testing.assert_allclose(read_geometry(tmp_path / "out.nii.gz").spacing_mm, (1, 2, 3), rtol=1e-6)


def test_class_names_and_colours_travel_inside_the_nifti(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "source.nii.gz"))
    write_nifti(segmentation, tmp_path / "out.nii.gz")
    (extension,) = nib.load(tmp_path / "out.nii.gz").header.extensions
    labels = ElementTree.fromstring(extension.content.rstrip(b"\x00")).findall(".//Label")
    assert [label.text for label in labels][:3] == ["background", "liver", "kidney_left"]
    assert [round(255 * float(labels[1].get(c))) for c in ("Red", "Green", "Blue")] == list(segmentation.colours[1])


def test_equal_segmentations_are_equal_files(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "source.nii.gz"))
    for write, suffix in [(write_nifti, ".nii.gz"), (write_seg_nrrd, ".seg.nrrd")]:
        write(segmentation, tmp_path / f"a{suffix}")
        write(segmentation, tmp_path / f"b{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_seg_nrrd_has_slicers_fields(tmp_path):
    write_seg_nrrd(segmentation_of(save_source(tmp_path / "s.nii.gz")), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(tmp_path / "a.seg.nrrd")
    field = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert (field["Segment0_Name"], field["Segment0_LabelValue"], field["Segment0_Layer"]) == ("liver", "1", "0")
    assert field["Segment0_Extent"] == "0 2 0 2 0 2"
    assert field["Segment2_Name"] == "../../evil name"
    assert field["Segment4_Extent"] == "0 -1 0 -1 0 -1"
    assert len({field[f"Segment{n}_ID"] for n in range(5)}) == 5


def test_a_mask_and_probabilities_lie_on_the_grid_too(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"))
    write_mask(segmentation, [1, 3], tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "m.nii.gz").get_fdata(), np.isin(segmentation.array, (1, 3)))
    chances = np.random.default_rng(0).integers(0, 256, segmentation.array.shape).astype(np.uint8)
    write_probabilities(segmentation, chances, tmp_path / "p.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "p.nii.gz").get_fdata(), chances / 255, atol=1e-6)
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "p.nii.gz")).T, chances / 255, atol=1e-6
    )


def test_above_255_classes_are_written_in_16_bits(tmp_path):
    source = save_source(tmp_path / "s.nii.gz")
    array = np.asfortranarray(np.arange(6 * 7 * 8).reshape(6, 7, 8).astype(np.uint16))
    names = tuple(f"class {c}" for c in range(336))
    segmentation = Segmentation(array, read_geometry(source).affine, names, source, "nifti")
    write_nifti(segmentation, tmp_path / "a.nii.gz")
    write_seg_nrrd(segmentation, tmp_path / "a.seg.nrrd")
    for file in ("a.nii.gz", "a.seg.nrrd"):
        np.testing.assert_array_equal(read_volume(tmp_path / file).array, array)


def test_no_class_name_leaves_the_folder_or_collides():
    names = file_names([*NAMES, "", "..", "a/b", "a\\b", "x" * 500, "CON:", "-rf"])
    assert len({name.lower() for name in names}) == len(names)
    assert all(name and not set(name) & set("/\\.:\n ") and len(name) < 100 for name in names)


def test_every_structure_becomes_a_mask_as_totalsegmentator_has_them(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"))
    write_files(segmentation, {}, "case", Wanted(tmp_path / "out", NAMES, (), per_structure=True))
    found = sorted(path.name for path in (tmp_path / "out" / "case" / "segmentations").iterdir())
    assert found == sorted(
        f"{n}.nii.gz" for n in ("liver", "kidney_left", "evil_name", "kidney_left_2", "Kidney_Left_3")
    )
    assert [path.name for path in tmp_path.iterdir() if "evil" in path.name] == []


def test_an_output_never_overwrites_an_input(tmp_path):
    source = save_source(tmp_path / "case.nii.gz")
    with pytest.raises(SegmentationError, match="is an input"):
        check_no_source_is_overwritten({"case": [source]}, Wanted(tmp_path, NAMES))


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.writers.nifti._stream", full)
    with pytest.raises(FileError, match="free space"):
        write_nifti(segmentation, tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["s.nii.gz"]


# --- DICOM SEG


def test_a_dicom_seg_is_read_back_by_highdicom_on_the_source_slices(shared_data, tmp_path):
    segmentation = segmentation_of(shared_data / "dicom_seg" / "ct-3slice")
    write_dicom_seg(segmentation, tmp_path / "seg.dcm")
    theirs = hd.seg.segread(tmp_path / "seg.dcm")
    assert [theirs.get_segment_description(n).segment_label for n in theirs.segment_numbers] == [
        "liver", "kidney_left", "../../evil name",
    ]  # fmt: skip
    volume = theirs.get_volume(combine_segments=True)
    to_ours = np.linalg.solve(LPS @ segmentation.affine, volume.affine)
    ours = np.zeros_like(segmentation.array)
    for index in np.argwhere(volume.array):
        ours[tuple(np.rint(to_ours @ [*index, 1])[:3].astype(int))] = volume.array[tuple(index)]
    np.testing.assert_array_equal(ours, segmentation.array)
    assert len(theirs.get_source_image_uids()) == 3


def test_a_dicom_seg_of_an_anonymised_series_refers_to_the_uids_in_the_files_meta_information(
    shared_data, tmp_path, caplog
):
    series = shared_data / "abdomen_ct_dicom" / "series"
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in series.iterdir()]
    assert {str(header.SOPInstanceUID) + str(header.StudyInstanceUID) for header in headers} == {""}
    for name in ("a.dcm", "b.dcm"):
        write_dicom_seg(segmentation_of(series), tmp_path / name)
    first, second = (hd.seg.segread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    referred = {str(instance) for _, _, instance in first.get_source_image_uids()}
    assert referred == {str(header.file_meta.MediaStorageSOPInstanceUID) for header in headers}
    assert first.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.StudyInstanceUID.is_valid
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert "StudyInstanceUID and SeriesInstanceUID blank" in caplog.text


@pytest.mark.parametrize("series", ["dicom_seg/ct-3slice", "abdomen_ct_dicom/series", "dicom_compressed/rle"])
def test_dciodvfy_finds_no_error_in_a_dicom_seg(shared_data, tmp_path, series):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    write_dicom_seg(segmentation_of(shared_data / series), tmp_path / "seg.dcm")

    def errors(path):
        said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        return {line for line in said.stderr.splitlines() if line.startswith("Error")}

    # What is repeated from the source as it stands (a PatientAge of "0Y") is the source's error.
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


def test_structures_that_snomed_knows_have_its_code():
    assert structure_code("liver").value == "10200004"
    assert structure_code("kidney_left").value == "64033007"
    assert structure_code("lobule of nothing").scheme_designator == "99BODYSEG"


# --- cleaning


def test_only_the_largest_piece_and_no_speck_stays():
    label = np.zeros((20, 20, 20), np.uint8)
    label[1:5, 1:5, 1:5] = 1
    label[10:13, 10:13, 10:13] = 1
    label[18, 18, 18] = 2
    label[8:10, 8:10, 8:10] = 2
    removed = clean(label, 0.001, keep_largest=[1], min_volume_ml=0.002)
    assert removed == 27 + 1
    assert [int((label == c).sum()) for c in (1, 2)] == [64, 8]
    assert clean(label, 0.001) == 0
