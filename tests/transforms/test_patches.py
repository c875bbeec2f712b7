"""Where patches lie: inside the case, over rare classes as often as asked, everywhere with equal probability."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from transforms.augment import Draw, RandomAugmentd, Strengths
from transforms.patches import RandomPatchd, cut, draw_patch_start, places_of
from transforms.warp import affine_map

SIZE = (30, 40, 50)
PATCH = (8, 10, 12)


@pytest.fixture(scope="module")
def label():
    """A large class 1 and a class 2 of two voxels."""
    label = np.zeros(SIZE, np.uint8)
    label[5:25, 10:30, 10:40] = 1
    label[3, 35, 45:47] = 2
    return label


def starts(n, **changes):
    random = np.random.RandomState(0)
    settings = {"size": SIZE, "patch": PATCH, "places": {}, "weights": [0, 1, 1], "foreground": 0.5} | changes
    return np.array([draw_patch_start(random, **settings) for _ in range(n)])


def test_places_are_voxels_of_their_class_and_no_more_than_asked(label):
    places = places_of(label, [1, 2, 3], seed=0, most=100)
    assert sorted(places) == [1, 2]
    assert len(np.unique(places[1])) == 100
    assert (label.reshape(-1)[places[1]] == 1).all()
    assert places[2].tolist() == np.flatnonzero(label == 2).tolist()


def test_places_are_drawn_from_all_voxels_of_their_class_alike_whatever_order_they_lie_in(label):
    mixed = np.random.default_rng(3).permutation(label.reshape(-1)).reshape(SIZE)
    for volume in (mixed, np.asfortranarray(mixed), mixed[::-1, :, ::2]):
        places = places_of(volume, [2, 1], seed=5, most=50)
        random = np.random.default_rng(5)
        for c in (2, 1):
            voxels = np.flatnonzero(volume == c)
            chosen = random.choice(len(voxels), min(50, len(voxels)), replace=False)
            assert places[c].tolist() == np.sort(voxels[chosen]).tolist()
    assert places_of(label, [], seed=0) == {}


def test_places_are_spread_over_the_whole_class(label):
    i, j, k = np.unravel_index(places_of(label, [1], seed=1)[1], SIZE)
    expected = np.argwhere(label == 1)
    np.testing.assert_allclose([i.mean(), j.mean(), k.mean()], expected.mean(0), atol=1)
    np.testing.assert_allclose([i.std(), j.std(), k.std()], expected.std(0), rtol=0.1)


def test_the_seed_decides_the_places(label):
    one, same, other = (places_of(label, [1], seed=seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_patches_lie_inside_the_case_and_begin_everywhere_equally_often():
    found = starts(20000, foreground=0.0)
    last_start = np.array(SIZE) - PATCH
    assert (found >= 0).all()
    assert (found <= last_start).all()
    for axis in range(3):
        counts = np.bincount(found[:, axis], minlength=last_start[axis] + 1)
        expected = 20000 / (last_start[axis] + 1)
        # Chi-square: its mean is the number of bins less one, its standard deviation the root of twice that
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - last_start[axis]) < 4 * np.sqrt(2 * last_start[axis])


def test_half_of_the_patches_have_a_voxel_of_a_class_in_their_middle_half(label):
    places = places_of(label, [1, 2], seed=0)
    found = starts(4000, places=places)
    holds_rare = np.array(
        [(label[tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))] == 2).any() for start in found]
    )
    # A quarter of all patches is placed over class 2; the rest meets its two voxels in a corner hardly ever
    assert 0.22 < holds_rare.mean() < 0.32


def test_classes_are_chosen_by_their_weights(label):
    places = places_of(label, [1, 2], seed=0)
    found = starts(4000, places=places, weights=[0, 3, 1], foreground=1.0)
    holds_rare = [
        (label[tuple(slice(s, s + p) for s, p in zip(start, PATCH, strict=True))] == 2).any() for start in found
    ]
    assert 0.22 < np.mean(holds_rare) < 0.30


def test_the_chosen_voxel_lies_in_the_middle_half_where_the_case_leaves_room():
    places = {1: np.array([np.ravel_multi_index((15, 20, 25), SIZE)], np.uint32)}
    inside = (np.array([15, 20, 25]) - starts(2000, places=places, foreground=1.0)) / np.array(PATCH)
    assert inside.min() >= 0.25 - 1 / 8
    assert inside.max() <= 0.75
    assert inside.std(0).min() > 0.1


def test_a_case_smaller_than_the_patch_lies_wholly_within_it():
    found = starts(2000, size=(5, 40, 12), places={1: np.array([7], np.uint32)})
    assert set(found[:, 0]) == set(range(-3, 1))
    assert set(found[:, 2]) == {0}


def test_equally_many_random_numbers_are_taken_whatever_comes_out(label):
    places = places_of(label, [1, 2], seed=0)
    after = []
    for changes in (
        {"places": {}},
        {"places": places, "foreground": 1.0},
        {"size": (4, 4, 4), "places": places, "foreground": 0.0},
    ):
        random = np.random.RandomState(3)
        settings = {"size": SIZE, "patch": PATCH, "weights": [0, 1, 1], "foreground": 0.5} | changes
        draw_patch_start(random, **settings)
        after.append(random.uniform())
    assert len(set(after)) == 1


class InMemory:
    """A stored case in memory, which notes how much of it is read."""

    def __init__(self, image, label, spacing_mm=(1.0, 1.0, 1.0)):
        self.image, self.label, self.spacing_mm = image, label, spacing_mm
        self.size = tuple(image.shape[1:])
        self.lowest = image.flatten(1).amin(1).tolist()
        self.places = places_of(label[0].numpy(), [1, 2], seed=0)
        self.n_read = []

    def read(self, start, stop):
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        self.n_read.append(np.prod(np.subtract(stop, start)))
        return self.image[(slice(None), *box)].clone(), self.label[(slice(None), *box)].clone()


@pytest.fixture
def stored(label):
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=SIZE), 1.5).astype(np.float32)
    return InMemory(torch.from_numpy(np.stack([image, 2 * image + 1])), torch.from_numpy(label[None]), (0.8, 0.8, 2.0))


MOVED = Draw(rotation_deg=(8.0, -12.0, 20.0), scale=(1.1, 0.9, 1.05), translation=(0.02, 0.0, -0.05), flips=(0, 2))


@pytest.mark.parametrize("start", [(10, 12, 20), (0, 0, 0), (22, 30, 38), (-3, 5, 44)])
def test_a_moved_patch_is_what_scipy_samples_from_the_whole_case(stored, start):
    image, label = cut(stored, start, PATCH, MOVED)
    matrix = affine_map(
        PATCH, stored.spacing_mm, rotation_deg=MOVED.rotation_deg, scale=MOVED.scale, translation=MOVED.translation,
        flips=MOVED.flips,
    )  # fmt: skip
    matrix[:3, 3] += start
    for channel, lowest, found in zip(stored.image.numpy(), stored.lowest, image.numpy(), strict=True):
        expected = ndimage.affine_transform(
            channel, matrix[:3, :3], matrix[:3, 3], PATCH, order=1, mode="grid-constant", cval=lowest
        )
        np.testing.assert_allclose(found, expected, atol=2e-5)
    nearest = ndimage.affine_transform(
        stored.label[0].numpy(), matrix[:3, :3], matrix[:3, 3], PATCH, order=0, mode="grid-constant"
    )
    assert (label[0].numpy() != nearest).mean() < 0.002  # ties
    assert stored.n_read[0] < 0.2 * np.prod(SIZE)


@pytest.mark.parametrize("start", [(10, 12, 20), (-3, -2, 44)])
@pytest.mark.parametrize("flips", [(), (1,), (0, 2)])
def test_an_unmoved_patch_is_a_slice_of_the_case_padded_with_its_lowest_value(stored, start, flips):
    image, label = cut(stored, start, PATCH, Draw(flips=flips))
    pad = [(20, 20)] * 3
    for channel, lowest, found in zip(stored.image.numpy(), stored.lowest, image.numpy(), strict=True):
        padded = np.pad(channel, pad, constant_values=lowest)
        box = tuple(slice(s + 20, s + 20 + p) for s, p in zip(start, PATCH, strict=True))
        np.testing.assert_array_equal(found, np.flip(padded[box], flips))
    np.testing.assert_array_equal(label[0].numpy(), np.flip(np.pad(stored.label[0].numpy(), pad)[box], flips))
    assert stored.n_read[0] <= np.prod(PATCH)


def test_the_random_state_and_the_case_decide_a_patch(stored):
    augment = RandomAugmentd(PATCH, Strengths(), class_names=["background", "a", "b"])
    patches = RandomPatchd(lambda epoch: PATCH, weights=[0, 1, 1], augment=augment)
    found = []
    for seed in (3, 3, 4):
        patches.set_random_state(seed)
        found.append(patches({"stored": stored, "epoch": 0, "case": "a"}))
    assert set(found[0]) == {"image", "label", "case"}
    assert torch.equal(found[0]["image"], found[1]["image"])
    assert torch.equal(found[0]["label"], found[1]["label"])
    assert not torch.equal(found[0]["image"], found[2]["image"])


def test_the_epoch_decides_the_size(stored):
    patches = RandomPatchd(lambda epoch: (4, 4, 4) if epoch < 5 else PATCH, weights=[0, 1, 1])
    assert patches({"stored": stored, "epoch": 4})["label"].shape == (1, 4, 4, 4)
    assert patches({"stored": stored, "epoch": 5})["image"].shape == (2, *PATCH)


def test_sided_classes_are_exchanged_in_a_patch_mirrored_left_to_right(stored):
    augment = RandomAugmentd(
        PATCH, Strengths(spatial_probability=0, intensity_probability=0), flips=(0,),
        class_names=["background", "kidney_left", "kidney_right"],
    )  # fmt: skip
    patches = RandomPatchd(lambda epoch: PATCH, weights=[0, 1, 0], foreground=1.0, augment=augment)
    seen = set()
    for seed in range(20):
        patches.set_random_state(seed)
        seen |= set(np.unique(patches({"stored": stored, "epoch": 0})["label"]).tolist()) - {0}
    assert seen == {1, 2}  # class 2 alone is far from where these patches lie
