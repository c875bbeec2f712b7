"""Labels are integer all the way: values, masks and tables."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Orientationd

from tests.support.volume_files import (
    patch,
    save,
    volume,
)
from transforms.io.errors import VolumeError
from transforms.io.label_values import LabelLookup, MergedMasks, count_values, mask_of
from transforms.io.load import LoadVolumed


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
    wide = ([2**63, 2**63 + 1], None), ([-(2**63), 1 - 2**63], None)  # -2⁶³ was taken for 2⁶³
    for values, ignored in (([0, 1, 1], None), ([0, 1], 1), ([0, 2**30], None), ([], None), *wide):
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


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("high", [5, 100_000])
def test_values_are_counted_as_numpy_counts_them(dtype, high):
    array = np.random.default_rng(1).integers(0, min(high, np.iinfo(np.uint8).max), (7, 6, 5)).astype(dtype)
    is_wide = np.dtype(dtype).itemsize > 2
    array[0, 0, :] = high if is_wide else 250
    values, counts = np.unique(array, return_counts=True)
    assert count_values(array, "x") == dict(zip(values.astype(int).tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("shape", [(7, 6, 5), (7, 1, 5)])
def test_values_mean_the_same_however_they_lie_in_memory(axes, shape):
    array = np.random.default_rng(1).choice([-128, 0, 127], shape).astype(np.int8).transpose(axes)[::-1]
    assert count_values(array, "x") == count_values(np.ascontiguousarray(array), "x")
    assert np.array_equal(mask_of(np.abs(array // 2) // 63, "x"), array != 0)
    classes = LabelLookup([-128, 0, 127], ignore_value=None).indices(array, "x")
    assert np.array_equal(classes, np.searchsorted([-128, 0, 127], array))


@pytest.mark.parametrize("value", [2**64 - 1, 2**63])
def test_a_label_of_64_unsigned_bits_beyond_what_is_signed_is_refused(tmp_path, value):
    """The value that fills a slice ended `check` in an OverflowError, and the loader read it as -1."""
    array = np.zeros((5, 6, 7), np.uint64)
    array[:, :, 3] = value
    with pytest.raises(VolumeError, match="found 30 voxels that are not") as error:
        count_values(array, "x")
    assert error.value.kind == "label_not_integral"
    with pytest.raises(VolumeError, match="whole numbers as label values"):
        LabelLookup([0, 1], None).indices(array, "x")


def test_a_mask_of_several_values_is_refused_with_their_counts():
    array = np.zeros((4, 4, 4), np.uint8)
    array[0, 0, :2], array[1, 1, :3] = 1, 2
    with pytest.raises(VolumeError, match=r"found 0 \(59 voxels\), 1 \(2 voxels\), 2 \(3 voxels\)"):
        mask_of(array, "x")
    assert np.array_equal(mask_of(array * (array == 2), "x"), array == 2)


def test_merged_masks_say_which_class_lost_voxels_to_which():
    merged = MergedMasks((4, 4, 4), n_classes=4)
    boxes = {1: np.s_[:2], 2: np.s_[1:3], 3: np.s_[:, :1]}
    for index, box in boxes.items():
        inside = np.zeros((4, 4, 4), bool)
        inside[box] = True
        merged.add(index, inside)
    assert merged.overlaps == {(1, 2): 16, (1, 3): 4, (2, 3): 8}
    assert merged.labels[1, 1, 1] == 2
    assert (merged.labels[:, 0] == 3).all()
