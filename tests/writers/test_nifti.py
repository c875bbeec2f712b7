"""NIfTI results: nibabel and SimpleITK read the same voxels in the same positions as the source's."""

from __future__ import annotations

import resource
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.files.atomic import FileError
from pipeline.writers.nifti import GRID_FIELDS, write_mask, write_nifti, write_probabilities
from pipeline.writers.seg_nrrd import write_seg_nrrd
from pipeline.writers.segmentation import Segmentation
from tests.support.segmentations import save_source, segmentation_of
from tests.support.volume_files import itk_affine
from transforms.io.load import read_geometry, read_volume

REAL = [
    "awkward_nifti/CT_AVM.nii.gz", "awkward_nifti/CT_pitch.nii.gz", "awkward_nifti/anatomical.nii",
    "awkward_nifti/reoriented_anat_moved.nii", "awkward_nifti/example_nifti2.nii.gz", "awkward_nifti/t2.nii.gz",
    "abdomen_ct/example_ct.nii.gz", "spine_crops/sample_mri/sub-mri_label-6_T2w.nii.gz",
    "mismatched_pair/ct_cropped.nii.gz", "hippocampus/imagesTr/hippocampus_003_0000.nii.gz",
    "nrrd/brain1_image.nrrd", "abdomen_ct_dicom/series",
]  # fmt: skip


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


def test_a_mask_and_probabilities_lie_on_the_grid_too(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"))
    write_mask(segmentation, 1, tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "m.nii.gz").get_fdata(), segmentation.array == 1)
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


def test_a_full_disk_leaves_no_half_file(tmp_path):
    source = save_source(tmp_path / "s.nii.gz", shape=(40, 41, 42))
    segmentation = segmentation_of(source)
    segmentation.array[:] = np.random.default_rng(0).integers(0, 5, segmentation.array.shape)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # bytes: answered as a full quota is
    try:
        with pytest.raises(FileError, match="ulimit -f"):
            write_nifti(segmentation, tmp_path / "a.nii.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["s.nii.gz"]


def test_itk_reads_results_of_a_sheared_scan_as_warnings_say(tmp_path):
    """`SHEAR_IN_ITK`: by the qform, without shear; not at all without one; .seg.nrrd as it is."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 2] = 0.3
    for name, code in (("with", 1), ("without", 0)):
        source = nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), affine)
        source.set_sform(affine, 1)
        source.header.set_qform(affine, code, strip_shears=True)
        nib.save(source, tmp_path / f"{name}.nii.gz")
        segmentation = segmentation_of(tmp_path / f"{name}.nii.gz")
        write_nifti(segmentation, tmp_path / f"{name}_seg.nii.gz")
        write_seg_nrrd(segmentation, tmp_path / f"{name}.seg.nrrd")
        np.testing.assert_allclose(itk_affine(sitk.ReadImage(tmp_path / f"{name}.seg.nrrd")), affine, atol=1e-6)
    seen = itk_affine(sitk.ReadImage(tmp_path / "with_seg.nii.gz"))[:3, :3]
    axes = seen / np.linalg.norm(seen, axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(tmp_path / "without_seg.nii.gz")
