"""Sided pairs of class names in the spellings of the field, and the swap."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.phantoms.anatomy import CLASS_NAMES
from transforms.left_right import find_sides, mirror_partners, swap_sides


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
    assert mirror_partners(names) == (0, 3, 2, 1, 5, 4, 7, 6)
    assert find_sides(names).pairs == ((1, 3), (5, 4), (6, 7))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Parotid_L", "Parotid_R"),  # AAPM TG-263
        ("OpticNrv_L", "OpticNrv_R"),
        ("A_Carotid_L", "A_Carotid_R"),
        ("kidney_l", "kidney_r"),
        ("Lung L", "Lung R"),
        ("EyeL", "EyeR"),
        ("L_Kidney", "R_Kidney"),
        ("Eye_Lt", "Eye_Rt"),
        ("LeftKidney", "RightKidney"),
        ("leftKidney", "rightKidney"),
        ("KidneyLeft", "KidneyRight"),
        ("LKidney", "RKidney"),
        ("leftlung", "rightlung"),
        ("LEFT_KIDNEY", "RIGHT_KIDNEY"),
        ("lkid", "rkid"),  # BTCV
        ("Left-Hippocampus", "Right-Hippocampus"),  # FreeSurfer
        ("ctx-lh-precuneus", "ctx-rh-precuneus"),
        ("lh.V1", "rh.V1"),
        ("kidney (left)", "kidney (right)"),
        ("rib_L1", "rib_R1"),
        ("LUL", "RUL"),
        ("ren_sin", "ren_dex"),
        ("Niere_links", "Niere_rechts"),
        ("linke Niere", "rechte Niere"),
        ("linker Vorhof", "rechter Vorhof"),
        ("Rein gauche", "Rein droit"),
        ("rene_sinistro", "rene_destro"),
        ("mama_esquerda", "mama_direita"),
        ("rinon_izq", "rinon_der"),
        ("R1_L", "R1_R"),
        ("L_L", "L_R"),
        ("R_L", "R_R"),
    ],
)
def test_the_spellings_of_the_field_are_recognised(left, right):
    assert find_sides(["background", left, "liver", right]).pairs == ((1, 3),)
    assert find_sides([right, left]).pairs == ((1, 0),)
    assert mirror_partners(["background", left, "liver", right]) == (0, 3, 2, 1)


@pytest.mark.parametrize(
    "names",
    [
        ["background", "cleft", "bright_spot"],
        ["background", "L1", "L2", "T1", "S1"],  # vertebrae
        ["background", "LV", "RV", "Myo"],  # chambers of a heart are no mirror images of each other
        ["background", "LVM", "RVM", "LVmyo", "RVmyo", "LVBP", "RVBP", "LVOT", "RVOT", "LV_wall", "RV_wall"],
        ["background", "C1", "T1", "L1", "L2", "R1", "R2"],  # vertebrae and ribs
        ["background", "L1", "L2", "L3", "R1", "R2"],
        ["background", "rib", "liver", "rectum", "colon"],
    ],
)
def test_names_without_a_side_have_no_partner(names):
    assert find_sides(names).pairs == find_sides(names).without_partner == ()
    assert mirror_partners(names) == tuple(range(len(names)))


@pytest.mark.parametrize(
    ("names", "found"),
    [(["background", "kidney_left"], "no class"), (["bg", "a_left", "a_right", "A-Right"], "2 classes")],
)
def test_a_sided_name_without_its_one_partner_is_named(names, found):
    with pytest.raises(ValueError, match=rf"class 1 '\w+_left' has a side, but {found} named '\w+_right' exist"):
        mirror_partners(names)
    assert 1 in find_sides(names).without_partner


def test_lists_of_one_letter_sides_pair_within_the_same_word():
    assert find_sides(["background", "L_L", "L_R", "R_L", "R_R"]).pairs == ((1, 2), (3, 4))
    assert find_sides(["background", "L1", "L2", "R1", "R2"]).pairs == ((1, 3), (2, 4))


def test_a_letter_without_a_partner_is_said_and_taken_as_it_is():
    names = ["background", "Parotid_L", "Brain", "Eye_L", "Eye_R"]
    assert find_sides(names).without_partner == (1,)
    assert mirror_partners(names) == (0, 1, 2, 4, 3)
    assert find_sides(names).in_words(names) == (
        "1 pair of classes is exchanged (Eye_L with Eye_R); without a partner: Parotid_L; without a side: Brain"
    )


def test_pairs_that_a_person_gives_are_the_only_ones():
    names = ["background", "Niere_a", "Niere_b", "lung_left", "lung_right", "lobe_right"]
    given = find_sides(names, [("Niere_a", "Niere_b")])
    assert given.pairs == ((1, 2),)
    assert given.without_partner == ()
    assert mirror_partners(names, [("Niere_a", "Niere_b")]) == (0, 2, 1, 3, 4, 5)
    assert mirror_partners(names, []) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "c")], "'c' which is not a class"),
        ([("a", "b"), ("b", "background")], "'b' twice"),
        ([("a", "a")], "'a' twice"),
        ([("a",)], "expected pairs of a left and a right class name"),
        (["ab"], "expected pairs of a left and a right class name"),
    ],
)
def test_given_pairs_that_cannot_be_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        mirror_partners(["background", "a", "b"], pairs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_swapping_twice_is_nothing_and_ignored_voxels_stay(dtype):
    ignore = 255 if dtype == torch.uint8 else 65535
    label = torch.tensor([[0, 1, 2, 3, ignore]], dtype=torch.int32).to(dtype)
    partners = mirror_partners(["background", "hip_left", "bone", "hip_right"])
    assert swap_sides(label, partners).tolist() == [[0, 3, 2, 1, ignore]]
    assert swap_sides(label, partners).dtype == dtype
    assert torch.equal(swap_sides(swap_sides(label, partners), partners), label)


def test_of_the_117_structures_two_have_no_partner_and_the_rest_pair_up(shared_data):
    classes = list(json.loads((shared_data / "class_names.json").read_text())["chest_ct"])
    single = {"lung_middle_lobe_right", "atrial_appendage_left"}
    for name in single:
        with pytest.raises(ValueError, match=repr(name)):
            mirror_partners([other for other in classes if other not in single - {name}])
    assert {classes[index] for index in find_sides(classes).without_partner} == single
    names = [name for name in classes if name not in single]
    for index, partner in enumerate(mirror_partners(names)):
        assert names[partner] == names[index].replace("left", "?").replace("right", "left").replace("?", "right")


def test_the_phantoms_pairs_are_those_named_left_and_right():
    pairs = find_sides(CLASS_NAMES).pairs
    assert len(pairs) == 13
    assert all(CLASS_NAMES[left].replace("left", "right") == CLASS_NAMES[right] for left, right in pairs)
