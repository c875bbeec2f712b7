"""Scans of bodies: orientation, resolution, partial volume, memory, seeds and grids that make no sense."""

from __future__ import annotations

import tracemalloc
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.phantoms import phantom
from pipeline.phantoms.anatomy import CLASS_NAMES, Body, Structure, draw_body
from pipeline.phantoms.balls import balls
from pipeline.phantoms.phantom import ORIENTATIONS, PhantomError, draw_grid, make_body
from pipeline.phantoms.shapes import Ellipsoid
from tests.support.phantoms import centroids_mm, tilted_affine, volumes_ml


def test_every_structure_survives_the_samples_coarse_grid() -> None:
    for seed in range(3):
        assert len(np.unique(make_body(seed).label)) == 71


def test_a_person_lies_the_same_way_in_the_world_on_every_orientation() -> None:
    assert len(set(ORIENTATIONS)) == 48
    rng = np.random.default_rng(5)
    person = draw_body(rng)
    for code in ORIENTATIONS:
        grid = draw_grid(person, rng, spacing_mm=14.0, orientation=code, oblique_deg=8)
        scan = phantom.render(person, *grid)
        assert "".join(nib.aff2axcodes(scan.affine)) == code
        at = centroids_mm(scan.label, scan.affine)
        for name in at:
            if name.endswith("_left") and name.replace("_left", "_right") in at:
                assert at[name][0] < at[name.replace("_left", "_right")][0], f"{name} in {code}"
        assert at["liver"][0] > 30 > -30 > at["spleen"][0]
        assert at["sternum"][1] > at["heart"][1] > at["vertebrae_T7"][1]
        assert at["brain"][2] > at["heart"][2] > at["urinary_bladder"][2]


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_body() -> None:
    first, again, other = make_body(1, voxel_mm=12), make_body(1, voxel_mm=12), make_body(2, voxel_mm=12)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.label.tobytes() == again.label.tobytes()
    assert first.affine.tobytes() == again.affine.tobytes()
    assert first.image.shape != other.image.shape or not np.array_equal(first.image, other.image)


def test_volumes_do_not_depend_on_the_resolution() -> None:
    coarse = volumes_ml(make_body(4, spacing_mm=4.4, orientation="RAS", oblique_deg=7))
    fine = volumes_ml(make_body(4, spacing_mm=3.0, orientation="PIL", oblique_deg=11))
    large = fine > 30
    large[0] = False  # the air around the body depends on the grid
    large[[CLASS_NAMES.index(f"femur_{side}") for side in ("left", "right")]] = False  # cut where the scan ends
    assert large.sum() > 25
    np.testing.assert_allclose(coarse[large], fine[large], rtol=0.04)


def test_boundary_voxels_hold_the_share_of_each_tissue() -> None:
    """A ball of water in air, without noise: the summed HU give the ball's volume far better than counting voxels."""
    solid = Ellipsoid(np.zeros(3), np.full(3, 20.0), np.eye(3))
    water = Structure(1, (solid,), 0.0, 0.0, 4.0)
    affine = tilted_affine((3.0, 4.0, 5.0), (40.0, -45.0, -50.0))
    scan = phantom.render(Body((water,), np.zeros((1, 3))), (26, 24, 22), affine, noise_hu=0.0)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert (scan.image.astype(float) + 1000).sum() / 1000 * voxel_ml == pytest.approx(33.5103, rel=0.015)
    mixed = (scan.image > -990) & (scan.image < -10)
    assert mixed.sum() > 50
    np.testing.assert_array_equal(scan.label, balls((26, 24, 22), affine, [(0, 0, 0)], [20.0]))
    assert ((scan.image >= -500) == (scan.label == 1)).all()


def test_a_volume_rendered_in_slabs_is_the_same_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_body(6, voxel_mm=11)
    monkeypatch.setattr(phantom, "SLAB_VOXELS", 5000)
    slabs = make_body(6, voxel_mm=11)
    np.testing.assert_array_equal(whole.label, slabs.label)
    np.testing.assert_array_equal(whole.image, slabs.image)


def test_memory_beyond_the_result_does_not_grow_with_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "SLAB_VOXELS", 1 << 16)
    extra = []
    for planes in (16, 48):
        tracemalloc.start()
        scan = make_body(6, spacing_mm=(900 / planes, 5.0, 4.0), shape=(planes, 64, 128), orientation="SAR")
        extra.append(tracemalloc.get_traced_memory()[1] - scan.image.nbytes - scan.label.nbytes)
        tracemalloc.stop()
    assert extra[1] < 1.2 * extra[0]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm: expected positive numbers"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "spacing_mm: expected positive numbers"),
        ({"shape": (10, 10)}, "shape: expected three positive counts"),
        ({"orientation": "RRS"}, "orientation: expected three axis codes"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused_by_field(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(PhantomError, match=message):
        make_body(0, **wish)
