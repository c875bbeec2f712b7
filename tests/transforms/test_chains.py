"""Chains from file to network grid: orientation, geometry in world mm, arguments, seeds; on real scans too."""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor, set_track_meta
from monai.transforms import Compose, Orientation, Resize
from scipy import ndimage

from transforms.chains import (
    ChainError,
    augmentation_chain,
    inference_chain,
    preprocessing_arguments,
    preprocessing_chain,
    training_chain,
    validation_chain,
)
from transforms.io.errors import VolumeError

NAMES = ["background", "kidney_left", "kidney_right"]
ORIENTATIONS = [
    "".join(side[flip] for side, flip in zip(axes, flips, strict=True))
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for flips in itertools.product((0, 1), repeat=3)
]
LEFT_MM, RIGHT_MM, RADIUS_MM = np.array([-21.0, 9, -14]), np.array([19.0, -7, 12]), 12.0


def markers(folder, *, axcodes="RAS", turn_deg=0.0, size=(46, 40, 31), spacing_mm=(1.5, 1.7, 2.3)):
    """A case with two balls about the world's origin, class 1 on the patient's left, written as NIfTI.

    Returns (item, centroid in mm of the image's intensity and of the drawn voxels of either class).
    """
    turn = np.eye(4)
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    turn[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    centre = np.eye(4)
    centre[:3, 3] = -(np.array(size) - 1) / 2
    affine = turn @ np.diag([*spacing_mm, 1.0]) @ centre
    points = np.moveaxis(np.indices(size), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    label = np.zeros(size, np.uint8)
    for value, place in ((1, LEFT_MM), (2, RIGHT_MM)):
        label[np.linalg.norm(points - place, axis=-1) <= RADIUS_MM] = value
    weights = label * 0.2 + 0.5 * (label > 0)  # 400 and 800 HU in a window of −1000…1000
    drawn = [np.average(points.reshape(-1, 3), axis=0, weights=w.ravel()) for w in (weights, label == 1, label == 2)]
    image = np.where(label == 0, -1000, label * np.int16(400)).astype(np.int16)
    item = {"case": f"{axcodes}{turn_deg:g}"}
    for key, array in (("image", image), ("label", label)):
        ornt = nib.orientations.axcodes2ornt(axcodes)
        nifti = nib.Nifti1Image(array, affine).as_reoriented(
            nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], ornt)
        )
        item[key] = str(folder / f"{item['case']}_{key}.nii")
        nib.save(nifti, item[key])
    return item, drawn


def centroid_mm(weights, affine):
    return (np.asarray(affine) @ [*ndimage.center_of_mass(np.asarray(weights)), 1])[:3]


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_from_all_48_orientations_and_oblique_scans_nothing_moves_and_left_stays_left(tmp_path, keep_aspect):
    chain = validation_chain((64, 58, 72), keep_aspect=keep_aspect)
    assert len(set(ORIENTATIONS)) == 48
    shifts = []
    for n, axcodes in enumerate(ORIENTATIONS):
        item, drawn = markers(tmp_path, axcodes=axcodes, turn_deg=(0, 11, 20)[n % 3])
        out = chain(item)
        assert nib.aff2axcodes(out["image"].affine.numpy()) == ("R", "A", "S"), axcodes
        np.testing.assert_array_equal(out["image"].affine, out["label"].affine)
        left, right = (ndimage.center_of_mass(out["label"][0].numpy() == value) for value in (1, 2))
        assert left[0] < right[0], axcodes  # axis 0 runs from the patient's left to the right
        weights = (out["image"][0] + 1, out["label"][0] == 1, out["label"][0] == 2)
        shifts.append([centroid_mm(w, out["image"].affine) - mm for w, mm in zip(weights, drawn, strict=True)])
    distance = np.linalg.norm(shifts, axis=-1)
    assert distance[:, 0].max() < 0.03
    assert distance[:, 1:].max() < 0.2  # a ball of a few hundred voxels is no better than that
    assert np.abs(np.mean(np.array(shifts)[:, 1:], axis=(0, 1))).max() < 0.05


def test_image_and_label_have_the_documented_shape_dtype_and_range(tmp_path):
    out = preprocessing_chain((24, 24, 32))(markers(tmp_path)[0])
    assert out["image"].shape == out["label"].shape == (1, 24, 24, 32)
    assert out["image"].dtype == torch.float32
    assert out["label"].dtype == torch.uint8
    assert out["image"].min() == -1
    assert out["image"].max() == pytest.approx(0.8, abs=1e-4)
    assert out["label"].unique().tolist() == [0, 1, 2]
    assert out["case"] == "RAS0"


def test_enlarging_equals_monai_orientation_and_resize(tmp_path):
    item, _ = markers(tmp_path, axcodes="PIL", turn_deg=15)
    out = preprocessing_chain((60, 50, 40), intensity="none")(item)["image"]
    nifti = nib.load(item["image"])
    source = MetaTensor(torch.from_numpy(nifti.get_fdata(dtype=np.float32))[None], affine=nifti.affine)
    turned = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(source)
    expected = Resize((60, 50, 40), mode="trilinear")(turned)
    torch.testing.assert_close(out.as_tensor(), expected.as_tensor(), atol=1e-2, rtol=0)
    torch.testing.assert_close(out.affine, expected.affine)


@pytest.mark.parametrize("intensity", ["none", "mr", "ct"])
def test_equal_voxels_become_equal_bits_in_any_order_of_the_axes(tmp_path, intensity):
    """An image of one channel that was not scaled came out in the last digits of its file's order of axes."""
    image = nib.Nifti1Image(np.random.default_rng(0).normal(0, 300, (21, 17, 13)).astype(np.float32), np.eye(4))
    chain = preprocessing_chain((9, 12, 16), intensity=intensity, with_label=False)
    found = []
    for axcodes in ("RAS", "PSR", "SAR", "LPI"):
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axcodes))
        )
        nib.save(image.as_reoriented(turn), tmp_path / f"{axcodes}.nii")
        found.append(chain({"image": str(tmp_path / f"{axcodes}.nii")})["image"].as_tensor())
    assert all(torch.equal(found[0], other) for other in found)


def test_the_stored_arguments_build_the_same_chains_again(tmp_path):
    saved = preprocessing_arguments((20, 24, 28), intensity="mr", keep_aspect=True, label_values=(0, 1, 2))
    assert saved["percentiles"] == [0.5, 99.5]
    again = json.loads(json.dumps(saved))
    assert preprocessing_arguments(**again) == saved
    item, _ = markers(tmp_path)
    expected = preprocessing_chain((20, 24, 28), intensity="mr", keep_aspect=True, label_values=(0, 1, 2))(item)
    out = validation_chain(**again)(item)
    assert torch.equal(out["image"].as_tensor(), expected["image"].as_tensor())
    assert torch.equal(out["label"].as_tensor(), expected["label"].as_tensor())
    alone = inference_chain(**again)({"image": item["image"]})
    assert torch.equal(alone["image"].as_tensor(), expected["image"].as_tensor())
    assert "label" not in alone


def test_a_lazy_chain_of_monai_gives_the_same_as_any_other(tmp_path):
    item, _ = markers(tmp_path, axcodes="LPS")
    chain = validation_chain((16, 24, 32))
    expected, found = chain(item), Compose([chain], lazy=True)(item)
    assert found["label"].dtype == expected["label"].dtype == torch.uint8
    for key in ("image", "label"):
        assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())


def test_without_affines_a_chain_is_refused(tmp_path):
    item, _ = markers(tmp_path)
    set_track_meta(False)
    try:
        with pytest.raises(ChainError, match=r"call set_track_meta\(True\)"):
            inference_chain((16, 24, 32), spacing_mm=(4.0, 4.0, 4.0))(item)
    finally:
        set_track_meta(True)


def test_a_training_chain_is_decided_by_its_seed(tmp_path):
    item, _ = markers(tmp_path)
    arguments = {"class_names": NAMES, "flips": (0, 1), "intensity_probability": 1.0, "window": (-500, 500)}
    chain = training_chain((24, 24, 32), **arguments)
    assert isinstance(chain, Compose)
    one, two = chain.set_random_state(seed=3)(item), chain(item)
    again = training_chain((24, 24, 32), **arguments).set_random_state(seed=3)(item)
    assert torch.equal(one["image"].as_tensor(), again["image"].as_tensor())
    assert torch.equal(one["label"].as_tensor(), again["label"].as_tensor())
    assert not torch.equal(one["image"].as_tensor(), two["image"].as_tensor())
    plain = validation_chain((24, 24, 32), window=(-500, 500))(item)
    assert not torch.equal(one["image"].as_tensor(), plain["image"].as_tensor())


def test_chains_feed_a_monai_dataset(tmp_path):
    dataset = Dataset([markers(tmp_path)[0]], training_chain((16, 16, 16)))
    assert dataset[0]["image"].shape == (1, 16, 16, 16)


def test_left_and_right_are_mirrored_only_with_both_sides_named():
    with pytest.raises(ChainError, match="flips mirrors left and right, but class_names is None"):
        augmentation_chain((16, 16, 16), flips=(0,))
    with pytest.raises(ChainError, match="class 1 'kidney_left' has a side, but no class named 'kidney_right'"):
        training_chain((16, 16, 16), flips=(0,), class_names=["background", "kidney_left"])
    augmentation_chain((16, 16, 16), flips=(1, 2))
    augmentation_chain((16, 16, 16), flips=(0,), class_names=["background", "kidney_left"], sided_pairs=[])
    with pytest.raises(ChainError, match="'c' which is not a class"):
        augmentation_chain((16, 16, 16), flips=(0,), class_names=["background", "a", "b"], sided_pairs=[("a", "c")])
    augmentation_chain((16, 16, 16), flips=(0,), class_names=NAMES)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (preprocessing_chain, {"target_size": (16, 16)}, r"target_size is \(16, 16\), expected three whole numbers"),
        (preprocessing_chain, {"target_size": (16, 16, 0)}, "target_size"),
        (preprocessing_chain, {"target_size": (16, 16.5, 16)}, "target_size"),
        (preprocessing_chain, {"target_size": 16}, "target_size"),
        (preprocessing_chain, {"target_size": (2000, 2000, 2000)}, "target_size .* expected at most 2147483648 voxels"),
        (
            preprocessing_chain,
            {"intensity": "auto"},
            "intensity is 'auto', expected one of ct, mr, zscore",
        ),
        (preprocessing_chain, {"intensity": ["ct", "pet"]}, "intensity is 'pet', expected one of"),
        (preprocessing_chain, {"intensity": []}, r"intensity is \[\], expected one of"),
        (preprocessing_chain, {"scaling": "wide"}, "scaling is 'wide', expected one of centred, unit"),
        (preprocessing_chain, {"window": (400, -160)}, r"window is \(400, -160\), expected a lower and a higher"),
        (preprocessing_chain, {"window": (0, float("nan"))}, "window"),
        (preprocessing_chain, {"fill_nan": float("inf")}, "fill_nan is inf, expected a number"),
        (inference_chain, {"percentiles": (5, 101)}, "percentiles .* within 0 and 100"),
        (augmentation_chain, {"flips": (3,)}, r"flips is \[3\], expected different axes"),
        (augmentation_chain, {"gamma": -1.0}, r"gamma is -1.0, expected a number of at least 0"),
        (augmentation_chain, {"noise": "0.1"}, "noise is '0.1'"),
        (augmentation_chain, {"low_resolution": 0.5}, "low_resolution is 0.5, expected a number of at least 1"),
        (augmentation_chain, {"spatial_probability": 2}, "spatial_probability is 2, expected a number between 0 and 1"),
        (augmentation_chain, {"rotation": 5}, "unknown augmentation rotation; known: .*rotation_deg"),
    ],
)
def test_an_impossible_argument_is_refused_by_name(build, arguments, message):
    with pytest.raises(ChainError, match=message):
        build(**arguments)


def test_a_broken_case_raises_its_own_error_through_the_chain(tmp_path):
    item, _ = markers(tmp_path)
    with pytest.raises(VolumeError, match=r"case p7: .*absent\.nii"):
        training_chain((16, 16, 16))({**item, "case": "p7", "image": str(tmp_path / "absent.nii")})


def test_the_structures_of_a_real_ct_stay_where_they_were(shared_data):
    folder = shared_data / "abdomen_ct"
    path = str(folder / "example_seg_fast_force_split.nii.gz")
    nifti = nib.load(path)
    label = np.asarray(nifti.dataobj).astype(np.uint8)
    out = validation_chain((96, 80, 112))(
        {"image": str(folder / "example_ct.nii.gz"), "label": path, "case": "abdomen"}
    )
    assert -1 - 1e-5 <= out["image"].min() < out["image"].max() <= 1 + 1e-5
    values, counts = np.unique(label, return_counts=True)
    shifts = []
    for value in values[(counts > 4000) & (values > 0)]:
        found = out["label"][0] == value
        ml = found.sum().item() * abs(np.linalg.det(out["label"].affine.numpy())) / 1000
        assert ml == pytest.approx((label == value).sum() * 0.027, rel=0.04), value
        shifts.append(centroid_mm(found, out["label"].affine) - centroid_mm(label == value, nifti.affine))
    assert len(shifts) > 15
    # The labels are staircases of 6 mm, so that one organ's centroid moves by tenths of a mm; all together must not.
    assert np.abs(np.median(shifts, axis=0)).max() < 0.15
    assert set(values[counts > 100]) <= set(out["label"].unique().tolist())


def test_a_real_mr_crop_is_scaled_by_its_percentiles(shared_data):
    folder = shared_data / "hippocampus"
    image = sorted((folder / "imagesTr").glob("*.nii.gz"))[0]
    label = folder / "labelsTr" / image.name.replace("_0000", "")
    item = {"image": str(image), "label": str(label), "case": image.name}
    out = validation_chain((40, 56, 40), intensity="mr", keep_aspect=True)(item)
    assert out["image"].min() == -1
    assert 0.9 < out["image"].max() <= 1
    assert out["label"].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spacing_mm": (1, 1)}, "expected three numbers of mm above 0"),
        ({"spacing_mm": (1, 0, 1)}, "expected three numbers of mm above 0"),
        ({"spacing_mm": (1, 1, 1), "keep_aspect": True}, "leave it out"),
    ],
)
def test_an_impossible_spacing_is_refused_by_name(arguments, words):
    with pytest.raises(ChainError, match=words):
        preprocessing_chain((16, 16, 16), **arguments)
