"""Class names have SNOMED CT's codes where pydicom knows them; no two structures have one code and side."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from pipeline.writers.terminology import PRIVATE_SCHEME, terms

VERTEBRAE = [*(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13)), *(f"L{n}" for n in range(1, 6))]
SIDED = (
    "kidney adrenal_gland lung_upper_lobe lung_lower_lobe subclavian_artery common_carotid_artery brachiocephalic_vein "
    "iliac_artery iliac_vena humerus scapula clavicula femur hip"
).split()
ALONE = (
    "spleen gallbladder liver stomach pancreas lung_middle_lobe_right esophagus trachea thyroid_gland small_bowel "
    "duodenum colon urinary_bladder prostate sacrum heart aorta pulmonary_vein brachiocephalic_trunk "
    "atrial_appendage_left superior_vena_cava inferior_vena_cava spinal_cord brain skull sternum"
).split()
KNOWN = [
    *ALONE,
    *(f"{name}_{side}" for name in SIDED for side in ("left", "right")),
    *(f"vertebrae_{level}" for level in VERTEBRAE),
]
UNKNOWN = [
    *(f"{name}_{side}" for name in ("gluteus_maximus", "gluteus_medius", "autochthon") for side in ("left", "right")),
    *(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)),
    "costal_cartilages", "portal_vein_and_splenic_vein", "vertebrae_S1", "background",
]  # fmt: skip


def test_the_names_of_totalsegmentator_that_snomed_knows_have_its_codes():
    found = dict(zip(KNOWN, terms(KNOWN), strict=True))
    assert {name: term.code.scheme_designator for name, term in found.items()} == dict.fromkeys(KNOWN, "SCT")
    assert found["liver"].code == codes.SCT.Liver
    assert found["iliac_vena_left"].code == codes.SCT.IliacVein
    assert found["clavicula_right"].code == codes.SCT.Clavicle
    assert found["vertebrae_T11"].code == codes.SCT.T11Vertebra
    assert found["small_bowel"].code == codes.SCT.SmallIntestine


@pytest.mark.parametrize(
    "pair", [("kidney_left", "kidney_right"), ("Parotid_L", "Parotid_R"), ("rib_left_3", "rib_right_3")]
)
def test_left_and_right_share_the_structures_code_and_differ_by_a_modifier(pair):
    left, right = terms(pair)
    assert left.code == right.code
    assert (left.laterality, right.laterality) == (codes.SCT.Left, codes.SCT.Right)


@pytest.mark.parametrize("names", [[*KNOWN, *UNKNOWN], ["liver", "Liver", "the liver", "liver structure"]])
def test_no_two_structures_have_the_same_code_and_side(names):
    found = terms(names)
    assert len({(term.code.value, term.code.scheme_designator, term.laterality) for term in found}) == len(names)
    for term in found:
        assert len(term.code.value) <= 16
        assert 0 < len(term.code.meaning) <= 64


@pytest.mark.parametrize("names", [["lung", "lung_left"], ["kidney", "kidney_left", "kidney_right", "Kidney left"]])
def test_a_structure_and_one_side_of_it_share_a_code_and_differ_by_the_side(names):
    whole, left, *_ = found = terms(names)
    assert whole.code == left.code
    assert (whole.laterality, left.laterality) == (None, codes.SCT.Left)
    assert len({(term.code.value, term.laterality and term.laterality.value) for term in found}) == len(names)


@pytest.mark.parametrize(
    ("left", "right", "code"),
    [
        ("leftlung", "rightlung", codes.SCT.Lung),
        ("lliver", "rliver", codes.SCT.Liver),
        ("lkid", "rkid", None),
        ("lhip_bone", "rhip_bone", None),  # a bone, but not any
    ],
)
def test_a_side_joined_to_a_word_leaves_the_word(left, right, code):
    one, other = terms([left, right])
    assert one.code == other.code
    assert (one.laterality, other.laterality) == (codes.SCT.Left, codes.SCT.Right)
    assert one.code == code if code else one.code.scheme_designator == PRIVATE_SCHEME


@pytest.mark.parametrize("names", [["L", "R"], ["left", "right"], ["left", "liver"], ["Parotid_L", "L"]])
def test_a_side_alone_is_no_structure(names):
    for term in terms(names):
        assert term.code not in (codes.SCT.Left, codes.SCT.Right)


def test_what_snomed_does_not_know_has_a_private_code_with_its_name():
    (term,) = terms(["lobule of nothing"])
    assert (term.code.scheme_designator, term.code.meaning) == (PRIVATE_SCHEME, "lobule nothing")


def test_names_that_would_break_the_formats_are_made_harmless():
    for term in terms(["a^b~c|d\\e", "\x1b[2J", "", "é" * 100]):
        assert not set(term.code.meaning) & set("^~|\\\x1b")
        assert term.code.value.isascii()


def test_tumours_are_abnormal_structures():
    organ, tumour = terms(["liver", "liver_tumour"])
    assert organ.category == codes.SCT.AnatomicalStructure
    assert tumour.category == codes.SCT.MorphologicallyAbnormalStructure
