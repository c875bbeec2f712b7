"""Reading volumes of every format, and loading image and label of a case."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
import torch
from isal import igzip
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from tests.support.volume_files import (
    ALL_ORIENTATIONS,
    OBLIQUE,
    itk_image,
    patch,
    refused,
    save,
    volume,
    write_series,
)
from transforms.io.errors import VolumeError
from transforms.io.load import Frames, LoadVolumed, n_frames, read_geometry, read_volume, volume_tensor


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
    assert np.can_cast(case["image"].numpy().dtype, np.float32)  # without loss
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
    liver, hu = case["label"][0] == 5, case["image"][0].float()
    assert 70 < hu[liver].median() < 120  # an enhanced liver; shifted or flipped it would hold air or bone
    assert hu[liver].std() < 40


def test_a_real_mismatched_pair_is_refused_by_name(shared_data):
    folder = shared_data / "mismatched_pair"
    with pytest.raises(VolumeError) as error:
        LoadVolumed()({"image": folder / "ct_cropped.nii.gz", "label": folder / "heart.nii.gz", "case": "heart_01"})
    for word in ("case heart_01", "heart.nii.gz", "(233, 167, 191)", "(122, 102, 112)", "mm apart"):
        assert word in str(error.value)


def test_monai_orients_the_tensors_as_nibabel_does(tmp_path):
    flipped = nib.Nifti1Image(volume(dtype=np.uint8), OBLIQUE).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    path = save(tmp_path / "a.nii", np.asarray(flipped.dataobj), flipped.affine)
    case = LoadVolumed()({"image": path, "label": path, "case": "x"})
    ras = nib.as_closest_canonical(flipped)
    turned = Orientationd(("image", "label"), "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(case)
    for key in ("image", "label"):
        assert np.array_equal(turned[key][0].numpy(), np.asarray(ras.dataobj))
        np.testing.assert_allclose(turned[key].affine.numpy(), ras.affine, atol=1e-5)


def flipped(n_voxels: int) -> np.ndarray:
    """The first axis of so many voxels the other way round."""
    return np.array([[-1, 0, 0, n_voxels - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


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


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader.*")  # MONAI asks for every reader it could have
@pytest.mark.parametrize(("dtype", "slope"), [(np.float32, None), (np.int16, None), (np.int16, (0.5, -3))])
def test_frames_are_channels_where_they_are_said_to_be_as_monai_has_them(tmp_path, dtype, slope):
    path = save(tmp_path / "a.nii.gz", volume((5, 6, 7, 3), dtype), slope=slope)
    label = save(tmp_path / "label.nii.gz", volume(dtype=np.uint8, high=3)[::-1], OBLIQUE @ flipped(5))
    found = LoadVolumed()({"image": Frames(str(path), (0, 1, 2)), "label": label})
    monai = Compose([LoadImaged("image", reader="NibabelReader"), EnsureChannelFirstd("image")])
    theirs = monai({"image": path})["image"]
    assert found["image"].dtype == theirs.dtype
    assert torch.equal(found["image"].as_tensor(), theirs.as_tensor())
    np.testing.assert_allclose(found["image"].affine, theirs.affine, atol=1e-5)
    assert np.array_equal(found["label"][0], volume(dtype=np.uint8, high=3))
    assert found["image"].meta["filename_or_obj"] == str(path)
    turned = LoadVolumed("image")({"image": Frames(str(path), (2, 0, 1))})["image"]
    assert torch.equal(turned.as_tensor(), theirs.as_tensor()[[2, 0, 1]])


def test_the_file_of_the_frames_is_unpacked_once(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", volume((5, 6, 7, 3)))
    opened = []
    for module in (gzip, igzip):
        real = module.open
        monkeypatch.setattr(module, "open", lambda *given, real=real: (opened.append(given), real(*given))[1])
    LoadVolumed("image")({"image": Frames(str(path), (0, 1, 2))})
    assert len(opened) == 2  # the header, and all voxels


def test_a_file_of_other_frames_or_with_nan_in_one_is_refused_by_name(tmp_path):
    array = volume((5, 6, 7, 3), np.float32)
    array[1, 2, 3, 2] = np.nan
    path = save(tmp_path / "a.nii", array)
    for order, words in (
        ((0, 1), r"case c7: .*a.nii: expected 2 frames of a NIfTI file, .*, found 3 frames, shape \(5, 6, 7, 3\)"),
        ((0, 1, 2), r"case c7: .*a.nii: expected finite intensities, found 1 NaN"),
    ):
        with pytest.raises(VolumeError, match=words):
            LoadVolumed("image")({"image": Frames(str(path), order), "case": "c7"})
    filled = LoadVolumed("image", fill_nan=[0, 0, -7])({"image": Frames(str(path), (0, 1, 2))})["image"]
    assert filled[2, 1, 2, 3] == -7
    other = tmp_path / "a.mha"
    sitk.WriteImage(sitk.JoinSeries([itk_image(array[..., n], OBLIQUE) for n in range(3)]), str(other))
    assert (n_frames(path), n_frames(other)) == (3, 1)
    with pytest.raises(VolumeError, match=r"a.mha: expected 3 frames of a NIfTI file, .*; save each frame"):
        LoadVolumed("image")({"image": Frames(str(other), (0, 1, 2))})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_nan_or_infinite_voxels_is_refused(tmp_path, value):
    array = volume(dtype=np.float32)
    array[1, 2, 3] = value
    remedy = r"repair the file; a training with data\.fill_nan" if np.isnan(value) else "repair the file$"
    with pytest.raises(VolumeError, match=f"found 1 NaN or infinite voxels; {remedy}"):
        LoadVolumed("image")({"image": save(tmp_path / "a.nii", array)})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_one_small_channel_stays_as_it_is_stored_and_others_become_float32(tmp_path, dtype):
    path = save(tmp_path / "a.nii", array := volume(dtype=dtype), np.eye(4))
    one, two = (LoadVolumed(["image"])({"image": image})["image"].numpy() for image in (path, [path, path]))
    assert one.dtype == (dtype if dtype in (np.int8, np.uint8, np.int16) else np.float32)
    assert two.dtype == np.float32
    np.testing.assert_array_equal(one[0], array.astype(np.float32))
    np.testing.assert_array_equal(two[1], one[0])


@pytest.mark.parametrize("suffix", [".nii", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_nan_voxels_become_the_number_that_is_given_and_no_others_change(tmp_path, suffix, dtype):
    array, path = volume(dtype=dtype), tmp_path / f"a{suffix}"
    if array.dtype.kind == "f":
        array[1, 2, 3] = array[0] = np.nan
    if suffix == ".nii":
        save(path, array)
    else:
        sitk.WriteImage(itk_image(array, OBLIQUE), str(path))
    found = LoadVolumed("image", fill_nan=-1024)({"image": [path, path]})["image"]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, np.stack([np.nan_to_num(array, nan=-1024)] * 2).astype(np.float32))


def test_each_channel_has_a_number_for_nan_of_its_own(tmp_path):
    array = volume(dtype=np.float32)
    array[0] = np.nan
    path = save(tmp_path / "a.nii", array)
    filled = np.stack([np.nan_to_num(array, nan=-1024), np.nan_to_num(array, nan=0)])
    found = LoadVolumed("image", fill_nan=[-1024, 0])({"image": [path, path]})["image"]
    np.testing.assert_array_equal(found, filled)
    np.testing.assert_array_equal(volume_tensor(np.stack([array] * 2), OBLIQUE, fill_nan=(-1024, 0)), filled)
    with pytest.raises(VolumeError, match="case a: image: expected 2 channels, as fill_nan has numbers, found 1;"):
        LoadVolumed("image", fill_nan=[-1024, 0])({"image": path, "case": "a"})


def test_infinite_voxels_are_refused_also_where_nan_is_filled(tmp_path):
    array = volume(dtype=np.float32)
    array[1, 2, 3], array[2, 2, 2] = np.inf, np.nan
    with pytest.raises(VolumeError, match=r"found 1 NaN or infinite voxels; repair the file$"):
        LoadVolumed("image", fill_nan=0)({"image": save(tmp_path / "a.nii", array)})


def test_only_image_and_label_are_loaded(tmp_path):
    with pytest.raises(ValueError, match="mask"):
        LoadVolumed(("image", "mask"))
    with pytest.raises(KeyError):
        LoadVolumed()({"image": save(tmp_path / "a.nii", volume())})
    assert "label" not in LoadVolumed(allow_missing_keys=True)({"image": tmp_path / "a.nii"})
