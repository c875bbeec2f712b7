"""Bodies against anatomy: names, sides of a real scan, order of vertebrae, volumes and intensities of organs."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.phantoms.phantom import Phantom, make_body
from tests.support.phantoms import centroids_mm, volumes_ml

SPACING_MM = (3.7, 4.0, 4.4)


@pytest.fixture(scope="module")
def body() -> Phantom:
    """One person on an oblique, left-handed, anisotropic grid."""
    return make_body(11, spacing_mm=SPACING_MM, orientation="SLP", oblique_deg=9)


def test_there_are_70_structures_and_a_background() -> None:
    assert len(CLASS_NAMES) == 71
    assert len(set(CLASS_NAMES)) == 71
    assert CLASS_NAMES[0] == "background"
    assert {f"vertebrae_{level}" for level in ("C1", "C7", "T1", "T12", "L1", "L5")} <= set(CLASS_NAMES)


def test_every_left_structure_has_a_right_one() -> None:
    lefts = {name for name in CLASS_NAMES if name.endswith("_left")}
    assert len(lefts) == 13
    assert all(name.replace("_left", "_right") in CLASS_NAMES for name in lefts)


def test_the_names_are_those_of_real_label_maps(shared_data: Path) -> None:
    known = set().union(*json.loads((shared_data / "class_names.json").read_text()).values())
    ours_alone = set(CLASS_NAMES) - known
    assert ours_alone == {"ribs_left", "ribs_right"}  # all ribs of a side are one class here


def test_every_structure_is_in_the_body(body: Phantom) -> None:
    counts = np.bincount(body.label.ravel(), minlength=71)
    assert counts.min() >= 40
    assert counts[0] == counts.max()


def test_left_and_right_are_those_of_a_real_scan(shared_data: Path, body: Phantom) -> None:
    real = nib.Nifti1Image.from_filename(shared_data / "abdomen_ct" / "example_seg_fast_force_split.nii.gz")
    ids = json.loads((shared_data / "class_names.json").read_text())
    ids = ids["abdomen_ct and abdomen_ct_dicom (ids of the 117-structure map)"]
    data, ours = np.asarray(real.dataobj), centroids_mm(body.label, body.affine)
    pairs = [("liver", "spleen"), ("kidney_right", "kidney_left"), ("hip_right", "hip_left")]
    pairs += [("inferior_vena_cava", "aorta"), ("autochthon_right", "autochthon_left")]
    for right, left in pairs:
        real_x = [nib.affines.apply_affine(real.affine, np.argwhere(data == ids[n]).mean(0))[0] for n in (right, left)]
        assert np.sign(ours[right][0] - ours[left][0]) == np.sign(real_x[0] - real_x[1]), (right, left)


def test_vertebrae_lie_above_each_other_in_order(body: Phantom) -> None:
    at = centroids_mm(body.label, body.affine)
    order = [*(f"C{n}" for n in range(1, 8)), *(f"T{n}" for n in range(1, 13)), *(f"L{n}" for n in range(1, 6))]
    heights = np.array([at[f"vertebrae_{level}"][2] for level in order])
    assert (np.diff(heights) < -8).all()


def test_organs_have_plausible_volumes() -> None:
    """Adult reference volumes in ml, with margin for small and large people (ICRP 89, rounded)."""
    expected = {"liver": (800, 2400), "spleen": (80, 400), "kidney_left": (80, 250), "heart": (250, 900)}
    expected |= {"brain": (800, 1800), "vertebrae_L3": (25, 90), "adrenal_gland_left": (2, 14), "pancreas": (25, 140)}
    for seed in range(4):
        found = volumes_ml(make_body(seed, spacing_mm=5.0))
        for name, (low, high) in expected.items():
            assert low < found[CLASS_NAMES.index(name)] < high, (seed, name)


def test_intensities_are_those_of_a_ct(body: Phantom) -> None:
    """Median HU by class, in ranges that hold with little and with much contrast agent; outside the patient is air."""
    expected = {"lung_lower_lobe_left": (-900, -700), "liver": (40, 130), "aorta": (60, 320), "brain": (10, 60)}
    expected |= {"femur_right": (200, 900), "trachea": (-1000, -500), "urinary_bladder": (-15, 35)}
    for name, (low, high) in expected.items():
        assert low < np.median(body.image[body.label == CLASS_NAMES.index(name)]) < high, name
    corner = body.image[:5, :5, :5]
    assert abs(corner.mean() + 1000) < 5
    assert 8 < corner.std() < 16
    assert body.image.min() >= -1024
