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
    "atrial_appendage_left superior_vena_cava inferior_vena_cava spinal_cord brain skull sternum costal_cartilages "
    "kidney_cyst_left kidney_cyst_right"
).split()
KNOWN = [
    *ALONE,
    *(f"{name}_{side}" for name in SIDED for side in ("left", "right")),
    *(f"vertebrae_{level}" for level in VERTEBRAE),
]
UNKNOWN = [
    *(f"{name}_{side}" for name in ("gluteus_maximus", "gluteus_medius", "autochthon") for side in ("left", "right")),
    *(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)),
    "portal_vein_and_splenic_vein", "vertebrae_S1", "background",
]  # fmt: skip
PUBLISHED = {
    "adrenal_gland_left": "23451007", "aorta": "15825003", "brachiocephalic_trunk": "12691009",
    "brachiocephalic_vein_left": "8887007", "brain": "12738006", "clavicula_left": "51299004", "colon": "71854001",
    "common_carotid_artery_left": "32062004", "costal_cartilages": "50016007", "duodenum": "38848004",
    "esophagus": "32849002", "femur_left": "71341001", "gallbladder": "28231008", "heart": "80891009",
    "hip_left": "29836001", "humerus_left": "85050009", "inferior_vena_cava": "64131007", "kidney_left": "64033007",
    "kidney_cyst_left": "367643001", "liver": "10200004", "lung_lower_lobe_left": "90572001",
    "lung_upper_lobe_left": "45653009", "pancreas": "15776009", "prostate": "41216001", "pulmonary_vein": "122972007",
    "sacrum": "54735007", "scapula_left": "79601000", "skull": "89546000", "small_bowel": "30315005",
    "spinal_cord": "2748008", "spleen": "78961009", "sternum": "56873002", "stomach": "69695003",
    "superior_vena_cava": "48345005", "thyroid_gland": "69748006", "trachea": "44567001", "urinary_bladder": "89837001",
    "vertebrae_C1": "14806007", "vertebrae_T12": "23215003", "vertebrae_L5": "49668003", "patella": "64234005",
    "tibia": "12611008", "ulna": "23416004", "radius": "62413002", "skeletal_muscle": "127954009",
    "coronary_arteries": "41801008", "pulmonary_artery": "81040000", "face": "89545001",
}  # fmt: skip
"""SNOMED CT's codes of these names in TotalSegmentator's own table (totalsegmentator_snomed_mapping.csv)."""


def test_codes_are_those_that_totalsegmentator_publishes():
    found = dict(zip(PUBLISHED, terms(list(PUBLISHED)), strict=True))
    assert {name: term.code.value for name, term in found.items()} == PUBLISHED


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
    keys = {(term.code.value, term.code.scheme_designator, term.laterality, term.region) for term in found}
    assert len(keys) == len(names)
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


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("kidneys", codes.SCT.Kidney),
        ("coronary arteries", codes.SCT.CoronaryArtery),
        ("brainstem", codes.SCT.BrainStem),
        ("gall_bladder", codes.SCT.Gallbladder),
        ("postcava", codes.SCT.InferiorVenaCava),
        ("hyoid", codes.SCT.HyoidBone),
        ("fat", codes.SCT.AdiposeTissue),
        ("grey_matter", codes.SCT.GrayMatter),
        ("suprarenal gland", codes.SCT.AdrenalGland),
    ],
)
def test_other_words_for_a_structure_have_its_code(name, code):
    assert terms([name])[0].code.value == code.value


@pytest.mark.parametrize("name", ["Anterior", "Posterior", "portal", "body", "normal", "ventricle"])
def test_words_that_are_no_structure_alone_get_no_code_of_snomed(name):
    assert terms([name])[0].code.scheme_designator == PRIVATE_SCHEME


def test_the_radius_is_a_bone_not_a_length():
    (radius,) = terms(["radius"])
    assert radius.code == codes.SCT.RadiusBone


def test_an_abnormal_structure_says_in_which_organ_it_lies():
    liver, tumour, left, right = terms(["liver", "liver_tumor", "kidney_cyst_left", "kidney_cyst_right"])
    assert (tumour.code, tumour.region, tumour.laterality) == (codes.SCT.Neoplasm, liver.code, None)
    assert left.code == right.code == codes.SCT.Cyst
    assert left.region == right.region == codes.SCT.Kidney
    assert (left.laterality, right.laterality) == (codes.SCT.Left, codes.SCT.Right)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("edema", codes.SCT.MorphologicallyAbnormalStructure),
        ("liver tumours", codes.SCT.MorphologicallyAbnormalStructure),
        ("colon_cancer", codes.SCT.MorphologicallyAbnormalStructure),
        ("fat", codes.SCT.Tissue),
        ("lymph_node", codes.SCT.AnatomicalStructure),
    ],
)
def test_the_category_is_that_of_dicoms_lists(name, category):
    assert terms([name])[0].category == category


def test_a_side_counts_without_its_partner():
    (lung,) = terms(["Lung_L"])
    assert (lung.code, lung.laterality) == (codes.SCT.Lung, codes.SCT.Left)


@pytest.mark.parametrize("name", ["left and right kidney", "kidneys_left_right", "lung_right_tumor_left"])
def test_a_name_of_both_sides_is_of_neither(name):
    (term,) = terms([name])
    assert term.laterality is None
    assert term.code.scheme_designator == PRIVATE_SCHEME
    assert {"left", "right"} <= set(term.code.meaning.split())
