"""Every class has a colour that can be told from all others, known anatomy the one that people expect."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.visualisation.anatomy_colours import TABLE
from pipeline.visualisation.class_colours import class_colours
from pipeline.visualisation.colour_distance import VISIONS, ciede2000, lab

TOTALSEGMENTATOR = [name for name in TABLE if not name.startswith(("heart_", "face"))]
UNKNOWN = [f"structure {number}" for number in range(118)]


def smallest(colours: np.ndarray, vision: str) -> float:
    seen = lab(colours, vision)
    distances = ciede2000(seen[:, None], seen[None])
    return float(distances[np.triu_indices(len(colours), 1)].min())


@pytest.mark.parametrize(
    "names", [CLASS_NAMES[1:], UNKNOWN[:70], TOTALSEGMENTATOR[:118], UNKNOWN, [*TOTALSEGMENTATOR[:60], *UNKNOWN[:58]]],
    ids=["70 known", "70 unknown", "118 known", "118 unknown", "mixed"],
)  # fmt: skip
def test_no_two_of_71_or_119_classes_look_alike_whatever_cones_the_eye_has(names):
    colours = class_colours(["background", *names])[1:]
    assert len(colours) in (70, 118)
    assert smallest(colours, "normal") > 6.8
    assert min(smallest(colours, vision) for vision in VISIONS) > 3.3


def test_more_classes_than_the_table_has_still_differ():
    colours = class_colours(["background", *(f"parcel {number}" for number in range(254))])[1:]
    assert smallest(colours, "normal") > 3


def test_known_anatomy_has_its_colour_in_any_spelling_and_data_set():
    small = class_colours(["background", "Left Kidney", "tumour", "Right Kidney", "LIVER", "vertebra L1"])
    assert small[1].tolist() == list(TABLE["kidney_left"])
    assert small[3].tolist() == list(TABLE["kidney_right"])
    assert small[4].tolist() == list(TABLE["liver"])
    assert small[5].tolist() == list(TABLE["vertebrae_L1"])
    assert class_colours(["background", "kidney_l", "kidney_r"])[1].tolist() == list(TABLE["kidney_left"])
    assert class_colours(["background", "kidneys"])[1].tolist() == list(TABLE["kidney_right"])


def test_the_same_names_have_the_same_colours_and_few_ones_are_far_apart():
    names = ["background", "anterior", "posterior", "cyst", "edema"]
    colours = class_colours(names)
    assert colours[0].tolist() == [0, 0, 0]
    assert np.array_equal(colours, class_colours(names))
    assert smallest(colours[1:], "normal") > 30


def hue(rgb: np.ndarray) -> float:
    return 360 * colorsys.rgb_to_hsv(*(np.asarray(rgb) / 255))[0]


def test_organs_have_the_hues_that_people_expect():
    def between(name: str, low: float, high: float) -> bool:
        return low <= (hue(np.array(TABLE[name])) + 60) % 360 <= high

    assert all(between(name, 20, 80) for name in ("aorta", "subclavian_artery_left", "iliac_artery_right", "heart"))
    assert all(between(name, 250, 320) for name in ("inferior_vena_cava", "brachiocephalic_vein_left", "trachea"))
    assert between("spleen", 320, 360)
    assert between("spinal_cord", 100, 120)
    assert all(between(name, 80, 150) for name in ("hip_left", "femur_right", "scapula_right", "sternum"))


@pytest.mark.parametrize("names", [TABLE, ["Left-Putamen", "Right-Putamen", "Left-Amygdala", "Right-Amygdala"]])
def test_left_and_right_are_shades_of_one_hue_and_distinct(names):
    colours = dict(zip(names, class_colours(["background", *names])[1:], strict=True))
    for name, colour in colours.items():
        partner = name.replace("left", "right").replace("Left", "Right")
        if partner != name and partner in colours and not name.startswith("heart"):
            seen = lab(np.array([colour, colours[partner]]))
            assert 6.8 < ciede2000(*seen) < 33, name
            turn = np.subtract(*np.degrees(np.arctan2(seen[:, 2], seen[:, 1])))
            assert abs((turn + 180) % 360 - 180) < 36, name
