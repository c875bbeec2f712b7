"""The colours of known anatomy: organs in the hues that 3D Slicer and atlases give them, and all far enough apart.

Arteries are red, veins blue, muscles dark red, bones yellowish, airways light blue, the liver salmon, the spleen
violet, the spinal cord yellow; left and right are shades of one hue. There are more vertebrae and ribs than shades of
ivory that can be told apart: they take what colours are left, neighbours at least 20 apart.

Chosen once by a search for the greatest smallest distance (`visualisation.colour_distance`), each structure within a
distance of its usual colour. Between any two of the table it is 6.8, and 3.3 as people without one kind of cone see it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import MappingProxyType

Colour = tuple[int, int, int]
"""Red, green, blue, 0…255."""

_HEX = {
    "spleen": "a55ac3", "kidney_right": "965a4b", "kidney_left": "c38787", "gallbladder": "4b8700",
    "liver": "ff9669", "stomach": "a5875a", "pancreas": "e19600", "adrenal_gland_right": "a596a5",
    "adrenal_gland_left": "e1a5c3", "lung_upper_lobe_left": "c3c3e1", "lung_lower_lobe_left": "e1d2f0",
    "lung_upper_lobe_right": "876987", "lung_middle_lobe_right": "c3965a", "lung_lower_lobe_right": "9678a5",
    "esophagus": "a5a5c3", "trachea": "69c3ff", "thyroid_gland": "69d296", "small_bowel": "e1c3c3",
    "duodenum": "ffe1b4", "colon": "967869", "urinary_bladder": "e1f087", "prostate": "e1c3ff",
    "kidney_cyst_left": "b4f0e1", "kidney_cyst_right": "0fa569", "sacrum": "a5d24b", "vertebrae_S1": "a5963c",
    "vertebrae_L5": "00784b", "vertebrae_L4": "004b78", "vertebrae_L3": "2d5a00", "vertebrae_L2": "2d8778",
    "vertebrae_L1": "a5b4e1", "vertebrae_T12": "5a8787", "vertebrae_T11": "4b5a69", "vertebrae_T10": "0f695a",
    "vertebrae_T9": "2da5b4", "vertebrae_T8": "4b3c96", "vertebrae_T7": "3c78d2", "vertebrae_T6": "1e7878",
    "vertebrae_T5": "a500c3", "vertebrae_T4": "4be1c3", "vertebrae_T3": "4b5aa5", "vertebrae_T2": "9600ff",
    "vertebrae_T1": "00a596", "vertebrae_C7": "968778", "vertebrae_C6": "1e782d", "vertebrae_C5": "788796",
    "vertebrae_C4": "5a785a", "vertebrae_C3": "0000f0", "vertebrae_C2": "d2f0ff", "vertebrae_C1": "b4ffc3",
    "heart": "96002d", "aorta": "e1695a", "pulmonary_vein": "d269e1", "brachiocephalic_trunk": "c33c78",
    "subclavian_artery_right": "a51e00", "subclavian_artery_left": "e1004b",
    "common_carotid_artery_right": "874b5a", "common_carotid_artery_left": "ff0f1e",
    "brachiocephalic_vein_left": "7887ff", "brachiocephalic_vein_right": "2d3ce1",
    "atrial_appendage_left": "c3a5b4", "superior_vena_cava": "785aff", "inferior_vena_cava": "4b96b4",
    "portal_vein_and_splenic_vein": "4b6969", "iliac_artery_left": "ff4b78", "iliac_artery_right": "c36987",
    "iliac_vena_left": "0f5ac3", "iliac_vena_right": "69a5ff", "humerus_left": "e1ff00", "humerus_right": "ffc369",
    "scapula_left": "b4e196", "scapula_right": "a5b469", "clavicula_left": "b4a578", "clavicula_right": "fff069",
    "femur_left": "a5c3a5", "femur_right": "d2d2b4", "hip_left": "fff0a5", "hip_right": "d2b487",
    "spinal_cord": "ffd200", "gluteus_maximus_left": "870f69", "gluteus_maximus_right": "c300a5",
    "gluteus_medius_left": "964b87", "gluteus_medius_right": "871e4b", "gluteus_minimus_left": "5a4b5a",
    "gluteus_minimus_right": "f02d96", "autochthon_left": "784b3c", "autochthon_right": "b42d2d",
    "iliopsoas_left": "b45a5a", "iliopsoas_right": "966969", "brain": "e1f0d2", "skull": "ffb478",
    "rib_left_1": "8787d2", "rib_left_2": "e1782d", "rib_left_3": "5a693c", "rib_left_4": "b4d2d2",
    "rib_left_5": "e196a5", "rib_left_6": "69b4a5", "rib_left_7": "a52d69", "rib_left_8": "0f6987",
    "rib_left_9": "96782d", "rib_left_10": "786978", "rib_left_11": "96693c", "rib_left_12": "c3f0f0",
    "rib_right_1": "694b78", "rib_right_2": "784b1e", "rib_right_3": "3c4b3c", "rib_right_4": "87c3c3",
    "rib_right_5": "f0b4b4", "rib_right_6": "69a587", "rib_right_7": "c387c3", "rib_right_8": "0078b4",
    "rib_right_9": "786900", "rib_right_10": "b496e1", "rib_right_11": "f0784b", "rib_right_12": "1ee1ff",
    "sternum": "f0964b", "carpal": "d2b400", "costal_cartilages": "3cd2d2", "heart_myocardium": "b46900",
    "heart_atrium_left": "f05ab4", "heart_atrium_right": "d200e1", "heart_ventricle_left": "f07896",
    "heart_ventricle_right": "787896", "pulmonary_artery": "6900b4", "face": "c3693c",
}  # fmt: skip

_LIKE = {
    "ribs_left": "rib_left_6", "ribs_right": "rib_right_6",
    "lung_left": "lung_lower_lobe_left", "lung_right": "lung_lower_lobe_right",
}  # fmt: skip
"""Structures that take the colour of one of their parts."""

SAME_WORDS = MappingProxyType(
    {
        "vertebrae": "vertebra", "vena": "vein", "clavicula": "clavicle", "bowel": "intestine",
        "suprarenal": "adrenal", "postcava": "inferior vein cava", "atrial": "auricular", "bronchi": "bronchus",
        "coeliac": "celiac", "coeliacus": "celiac", "truncus": "trunk", "oesophagus": "esophagus",
        "tumour": "tumor", "oedema": "edema", "haemorrhage": "hemorrhage", "haematoma": "hematoma",
        "caecum": "cecum", "grey": "gray", "gland": "", "structure": "", "of": "", "the": "",
    }
)  # fmt: skip
"""Words of anatomical names that say the same; "" for words that say nothing."""

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")

TABLE = MappingProxyType({name: (int(rgb[:2], 16), int(rgb[2:4], 16), int(rgb[4:], 16)) for name, rgb in _HEX.items()})
"""Structure -> its colour; TotalSegmentator's names."""


def name_words(name: str) -> frozenset[str]:
    """The words of a class name in any spelling, lower case, without plurals and words that say nothing.

    >>> name_words("Left Kidneys") == name_words("kidney_left")
    True
    """
    words = (SAME_WORDS.get(word, word).split() for word in map(str.lower, _WORD.findall(name)))
    return frozenset(word.removesuffix("s") for same in words for word in same)


@lru_cache(maxsize=1)
def colours_by_words() -> dict[frozenset[str], Colour]:
    """Colour of each known structure by the words of its name, see `name_words`."""
    return {name_words(name): TABLE[_LIKE.get(name, name)] for name in [*TABLE, *_LIKE]}
