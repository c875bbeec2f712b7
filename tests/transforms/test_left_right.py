"""Sided pairs of class names, and the swap."""

from __future__ import annotations

import json

import pytest
import torch

from transforms.left_right import SwapSidedClassesd, sided_pairs, swap_sides


def test_left_and_right_find_each_other_wherever_the_word_stands():
    names = [
        "background",
        "kidney_left",
        "liver",
        "kidney_right",
        "rib_right_1",
        "rib_left_1",
        "Left Lung",
        "Right lung",
    ]
    assert sided_pairs(names) == (0, 3, 2, 1, 5, 4, 7, 6)


def test_a_word_that_only_contains_left_or_right_has_no_side():
    assert sided_pairs(["background", "cleft", "bright_spot"]) == (0, 1, 2)


@pytest.mark.parametrize(
    ("names", "found"),
    [(["background", "kidney_left"], "no class"), (["bg", "a_left", "a_right", "A-Right"], "2 classes")],
)
def test_a_sided_name_without_its_one_partner_is_named(names, found):
    with pytest.raises(ValueError, match=rf"class 1 '\w+_left' has a side, but {found} named '\w+_right'"):
        sided_pairs(names)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_swapping_twice_is_nothing_and_ignored_voxels_stay(dtype):
    ignore = 255 if dtype == torch.uint8 else 65535
    label = torch.tensor([[0, 1, 2, 3, ignore]], dtype=torch.int32).to(dtype)
    partners = sided_pairs(["background", "hip_left", "bone", "hip_right"])
    assert swap_sides(label, partners).tolist() == [[0, 3, 2, 1, ignore]]
    assert swap_sides(label, partners).dtype == dtype
    assert torch.equal(swap_sides(swap_sides(label, partners), partners), label)


def test_the_dictionary_transform_swaps_its_keys_only():
    d = {"label": torch.tensor([1, 2], dtype=torch.uint8), "image": torch.tensor([1, 2], dtype=torch.uint8)}
    out = SwapSidedClassesd("label", ["background", "hip_left", "hip_right"])(d)
    assert out["label"].tolist() == [2, 1]
    assert out["image"].tolist() == [1, 2]


def test_of_the_117_structures_two_have_no_partner_and_the_rest_pair_up(shared_data):
    classes = list(json.loads((shared_data / "class_names.json").read_text())["chest_ct"])
    single = {"lung_middle_lobe_right", "atrial_appendage_left"}
    for name in single:
        with pytest.raises(ValueError, match=repr(name)):
            sided_pairs([other for other in classes if other not in single - {name}])
    names = [name for name in classes if name not in single]
    for index, partner in enumerate(sided_pairs(names)):
        assert names[partner] == names[index].replace("left", "?").replace("right", "left").replace("?", "right")
