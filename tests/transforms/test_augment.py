"""Augmentation: what is drawn and replayed, sides after a mirror, and each change against scipy or a closed form."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AdjustContrast
from scipy import ndimage
from torch.utils._python_dispatch import TorchDispatchMode

from transforms.augment import PART, Draw, RandomAugmentd, Strengths, change_intensity
from transforms.io.errors import VolumeError

SIZE = (22, 26, 30)
SPACING = (2.0, 1.5, 1.0)
NAMES = ["background", "kidney_left", "kidney_right", "liver"]
DRAW = Draw(rotation_deg=(9, -14, 21), scale=(1.1, 0.9, 1.2), translation=(0.06, -0.04, 0.03), flips=(1,))


def blocks(n_classes, size=SIZE):
    """A label map of coherent regions, (1, I, J, K) uint8."""
    noise = np.random.default_rng(3).normal(size=(n_classes, *size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 2, 2, 2)).argmax(0).astype(np.uint8))[None]


def case(n_channels=1):
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    image = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(n_channels, *SIZE)), 1.5))
    return {
        "image": MetaTensor(image.float(), affine=affine),
        "label": MetaTensor(blocks(4), affine=affine),
        "case": "c1",
    }


@pytest.mark.parametrize("moves", [False, True])
def test_a_marker_on_the_patients_left_stays_labelled_left_after_a_mirror(moves):
    """In RAS, axis 0 runs from left to right."""
    d = case()
    label = torch.zeros(1, *SIZE, dtype=torch.uint8)
    label[:, 3:7, 8:14, 8:14], label[:, 15:19, 8:14, 8:14], label[:, 12:14, 2:5, 3:9] = 1, 2, 3
    d["image"], d["label"] = MetaTensor(label.float() * 10), MetaTensor(label)
    part = RandomAugmentd(SIZE, class_names=NAMES, flips=(0,))
    out = part.apply(d, Draw(flips=(0,), rotation_deg=(0, 0, 5) if moves else (0, 0, 0)))
    centre = {c: ndimage.center_of_mass(out["label"][0].numpy() == c) for c in (1, 2, 3)}
    assert centre[1][0] < 8
    assert centre[2][0] > 13
    assert centre[3][0] == pytest.approx(SIZE[0] - 1 - 12.5, abs=1)
    assert (out["image"][0, 15:19, 9:13, 9:13] > 5).all()  # the mirrored picture: what was left lies on the right
    np.testing.assert_array_equal(out["label"].affine, d["label"].affine)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["background", "Parotid_L", "Parotid_R"], None),
        (["background", "lkid", "rkid"], None),
        (["background", "LeftKidney", "RightKidney"], None),
        (["background", "Niere_a", "Niere_b"], [("Niere_a", "Niere_b")]),
    ],
)
def test_a_mirrored_body_has_its_sides_exchanged_however_they_are_written(names, pairs):
    """At the first index along axis 0 lies the patient's left, before and after."""
    label = torch.zeros(1, *SIZE, dtype=torch.uint8)
    label[:, 1:4] = 1
    label[:, -4:-1] = 2
    part = RandomAugmentd(SIZE, class_names=names, flips=(0,), sided_pairs=pairs)
    out = part.apply({"label": label}, Draw(flips=(0,)))["label"]
    assert (out[:, 1:4] == 1).all()
    assert (out[:, -4:-1] == 2).all()


def test_mirroring_alone_is_exact_and_swaps_nothing_but_sides():
    d = case()
    part = RandomAugmentd(SIZE, class_names=NAMES, flips=(0, 1, 2))
    out = part.apply(d, Draw(flips=(1, 2)))
    assert torch.equal(out["label"].as_tensor(), d["label"].as_tensor().flip(2, 3))
    assert torch.equal(out["image"].as_tensor(), d["image"].as_tensor().flip(2, 3))
    back = part.apply(part.apply(d, Draw(flips=(0,))), Draw(flips=(0,)))
    assert torch.equal(back["label"].as_tensor(), d["label"].as_tensor())


def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        part = RandomAugmentd(SIZE, Strengths(intensity_probability=1)).set_random_state(seed=7)
        results.append([part(case(2)) for _ in range(2)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one["image"].as_tensor(), other["image"].as_tensor())
        assert torch.equal(one["label"].as_tensor(), other["label"].as_tensor())
    first, second = results[0]
    assert not torch.equal(first["image"].as_tensor(), second["image"].as_tensor())


class _NobodyWaits(TorchDispatchMode):
    """Inside it no operation may ask for a value, for which the host would wait until a GPU has computed it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_no_host_waits_for_a_batch_that_is_augmented_on_the_device():
    draw = replace(DRAW, flips=(0,), gamma=1.3, gain=1.2, shift=0.1, noise=0.1)  # a blur's matrix is the host's own
    batch = {key: volume.as_tensor()[None].clone() for key, volume in case().items() if key != "case"}
    part = RandomAugmentd(SIZE, class_names=NAMES, flips=(0, 1), on_device=True)
    with _NobodyWaits():
        part.apply_to_batch(batch | {"draw": [asdict(draw)]})


def test_what_was_drawn_can_be_replayed():
    part = RandomAugmentd(SIZE, Strengths(intensity_probability=1), flips=(1,)).set_random_state(seed=1)
    out = part(case())
    again = RandomAugmentd(SIZE).apply(case(), Draw(**vars(part.drawn)))
    assert torch.equal(out["image"].as_tensor(), again["image"].as_tensor())
    assert torch.equal(out["label"].as_tensor(), again["label"].as_tensor())


def test_draws_stay_within_their_strengths_and_use_them():
    part = RandomAugmentd(SIZE, Strengths(intensity_probability=0.5, spatial_probability=0.5), flips=(1, 2))
    draws = [part.set_random_state(seed=seed).draw() for seed in range(400)]
    assert 0.4 < np.mean([draw.moves for draw in draws]) < 0.6
    turns = np.abs([draw.rotation_deg for draw in draws])
    assert 11 < turns.max() <= 12
    factors = np.array([draw.scale for draw in draws])
    assert 1 / 1.15 <= factors.min() < 0.9
    assert 1.1 < factors.max() <= 1.15
    assert {draw.flips for draw in draws} == {(), (1,), (2,), (1, 2)}
    assert 0.4 < np.mean([draw.noise > 0 for draw in draws]) < 0.6
    assert max(draw.noise for draw in draws) <= 0.15
    assert 1 < max(max(draw.low_resolution) for draw in draws) <= 2


def test_no_strength_changes_nothing_and_nothing_is_changed_in_place():
    d = case()
    before = {key: d[key].clone() for key in ("image", "label")}
    zeros = dict.fromkeys(vars(Strengths()), 0.0)
    out = RandomAugmentd(SIZE, Strengths(**{**zeros, "low_resolution": 1.0})).set_random_state(seed=0)(d)
    varied = RandomAugmentd(SIZE, Strengths(intensity_probability=1)).set_random_state(seed=0)(d)
    for key, kept in before.items():
        assert torch.equal(out[key].as_tensor(), kept.as_tensor())
        assert torch.equal(d[key].as_tensor(), kept.as_tensor())
        assert varied[key].shape == kept.shape
        assert varied[key].dtype == kept.dtype
        np.testing.assert_array_equal(varied[key].affine, kept.affine)


def test_blur_equals_scipy_gaussian_away_from_the_border():
    image = torch.rand(1, *SIZE)
    theirs = ndimage.gaussian_filter(image[0].numpy(), 0.9, truncate=4)
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(change_intensity(image, Draw(blur_sigma=0.9))[0][inner], theirs[inner], atol=2e-4)


def test_low_resolution_along_one_axis_leaves_the_others_sharp():
    image = torch.rand(1, *SIZE)
    out = change_intensity(image, Draw(low_resolution=(1.0, 1.0, 2.0)))
    fine, coarse = torch.diff(out, dim=1).std(), torch.diff(out, dim=3).std()
    assert coarse < 0.4 * fine
    assert out.mean() == pytest.approx(image.mean().item(), rel=1e-2)


def test_gamma_gain_shift_and_noise_are_what_they_say():
    image = torch.rand(2, 30, 30, 30) * 3 - 1
    theirs = torch.stack([AdjustContrast(1.3, retain_stats=True)(channel[None])[0] for channel in image])
    torch.testing.assert_close(change_intensity(image, Draw(gamma=1.3)), theirs.as_tensor(), atol=1e-4, rtol=0)
    stretched = change_intensity(image, Draw(gain=1.2, shift=0.5))
    assert stretched[0].std().item() == pytest.approx(1.2 * image[0].std().item(), rel=1e-4)
    assert stretched[0].mean().item() == pytest.approx((image[0].mean() + 0.5 * image[0].std()).item(), abs=1e-4)
    noise = change_intensity(image, Draw(noise=0.1, noise_seed=5)) - image
    assert noise.std().item() == pytest.approx(0.1 * image.std().item(), rel=0.02)
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("beyond", [0, 3, 17], ids=["whole parts", "a rest below 16", "a rest"])
def test_noise_is_one_normal_draw_of_the_whole_channel(beyond):
    image = torch.rand(1, 2, 2, PART // 2 + beyond)
    drawn = torch.randn(image.numel(), generator=torch.Generator().manual_seed(5)).view(image.shape)
    noise = change_intensity(image, Draw(noise=0.1, noise_seed=5)) - image
    torch.testing.assert_close(noise, drawn * (0.1 * image.std(correction=0)), atol=1e-6, rtol=0)


def test_intensities_change_in_place_where_asked_to_and_alike():
    image, draw = torch.rand(2, 9, 10, 11), Draw(gamma=1.3, gain=1.2, shift=0.5, noise=0.1)
    kept = image.clone()
    new = change_intensity(image, draw)
    assert torch.equal(image, kept)
    assert change_intensity(image, draw, in_place=True) is image
    assert torch.equal(image, new)


@pytest.mark.parametrize("gamma", [1 / 1.4, 1.4])
def test_gamma_moves_calibrated_soft_tissue_by_tens_of_hu_not_by_hundreds(gamma):
    """A body of 0 to 80 HU with bone in air, at −1000…1000 HU: without keeping the mean 40 HU went to −199 or 254."""
    random = np.random.default_rng(0)
    hu = np.full((24, 24, 24), -1000.0)
    hu[4:20, 4:20, 4:20] = random.uniform(0, 80, (16, 16, 16))
    hu[10:12, 10:12, 4:20] = 1000
    image = torch.from_numpy(hu / 1000)[None].float()
    bent = change_intensity(image, Draw(gamma=gamma))
    assert bent.mean().item() == pytest.approx(image.mean().item(), abs=1e-4)
    assert bent.std().item() == pytest.approx(image.std().item(), rel=1e-4)
    tissue = (hu >= 0) & (hu <= 80)
    assert np.abs(1000 * (bent - image)[0].numpy()[tissue]).max() < 120


def test_a_constant_image_stays_finite():
    draw = Draw(gamma=1.3, gain=1.2, shift=0.3, noise=0.2, blur_sigma=1, low_resolution=(2, 2, 2))
    out = change_intensity(torch.full((1, 9, 9, 9), 5.0), draw)
    torch.testing.assert_close(out, torch.full((1, 9, 9, 9), 5.0))


def test_labels_above_255_classes_and_cases_without_label_are_augmented_alike():
    d, part = case(), RandomAugmentd(SIZE, class_names=NAMES, flips=(0,))
    wide = {**d, "label": d["label"].to(torch.uint16)}
    for draw in (replace(DRAW, flips=(0,)), Draw(flips=(0,))):
        narrow_out, wide_out = part.apply(d, draw)["label"], part.apply(wide, draw)["label"]
        assert wide_out.dtype == torch.uint16
        assert torch.equal(wide_out.as_tensor().int(), narrow_out.as_tensor().int())
        alone = part.apply({"image": d["image"]}, draw)["image"]
        assert torch.equal(alone.as_tensor(), part.apply(d, draw)["image"].as_tensor())


def test_a_volume_of_another_size_is_refused_by_case():
    with pytest.raises(
        VolumeError, match=r"case c1: image: expected \(8, 8, 8\) voxels, .* found \(22, 26, 30\) voxels"
    ):
        RandomAugmentd((8, 8, 8))(case())


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_volume_of_another_type_is_refused_whatever_is_drawn(key):
    part = RandomAugmentd(SIZE)
    odd = {"image": [torch.float16, torch.float64, torch.int16], "label": [torch.float32, torch.bool]}[key]
    for dtype in odd:
        for draw in (DRAW, Draw(), Draw(flips=(0,))):
            with pytest.raises(VolumeError, match=rf"case c1: {key}: expected a .*, found {dtype}, .*; convert it"):
                part.apply(case() | {key: case()[key].to(dtype)}, draw)
    with pytest.raises(VolumeError, match="expected a float32 tensor, found float32"):
        part.apply(case() | {"image": case()["image"].numpy()}, DRAW)
    with pytest.raises(VolumeError, match=r"\(1, I, J, K\), found torch.uint8, \(2, 22"):
        part.apply(case() | {"label": torch.cat([blocks(4)] * 2)}, DRAW)
