"""Balls against their volume and centre in world millimetres."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.phantoms.anatomy import draw_body
from pipeline.phantoms.balls import around_ball, balls, geometry_proof
from pipeline.phantoms.phantom import PhantomError, draw_grid
from tests.support.phantoms import tilted_affine


def test_a_ball_of_10_mm_has_4_19_ml() -> None:
    for spacing in ((1.0, 1.0, 1.0), (0.8, 0.8, 2.5)):
        affine = tilted_affine(spacing, (30.0, -30.0, -35.0))
        label = balls((66, 70, 70), affine, [(0.3, 1.1, -0.7)], [10.0])
        assert label.sum() * np.prod(spacing) / 1000 == pytest.approx(4 / 3 * np.pi, rel=0.01)
        np.testing.assert_allclose(
            nib.affines.apply_affine(affine, np.argwhere(label).mean(0)), (0.3, 1.1, -0.7), atol=0.1
        )


def test_a_ball_that_leaves_the_grid_is_refused_with_its_position() -> None:
    with pytest.raises(PhantomError, match=r"ball of 10 mm at \(25\.0, 0\.0, 0\.0\) mm: leaves the grid"):
        balls((30, 30, 30), np.eye(4), [(25, 0, 0)], [10])


@pytest.mark.parametrize("code", ["RAS", "LPS", "SPL", "AIR"])
def test_the_geometry_proof_has_its_balls_where_it_says(code: str) -> None:
    rng = np.random.default_rng(0)
    wishes: dict[str, Any] = {
        "spacing_mm": (1.6, 2.0, 2.5),
        "shape": (171, 131, 125),
        "orientation": code,
        "oblique_deg": 12,
    }
    shape, affine = draw_grid(draw_body(rng), rng, **wishes)
    proof = geometry_proof(shape, affine)
    assert set(np.unique(proof.label)) == set(range(len(proof.names) + 1))
    for n, (name, centre, radius) in enumerate(zip(proof.names, proof.centres_mm, proof.radii_mm, strict=True)):
        found = np.argwhere(proof.label == n + 1)
        np.testing.assert_allclose(nib.affines.apply_affine(affine, found.mean(0)), centre, atol=0.6, err_msg=name)
        assert len(found) * 1.6 * 2.0 * 2.5 == pytest.approx(
            4 / 3 * np.pi * radius**3, rel=0.2 if radius < 10 else 0.02
        )
    at = dict(zip(proof.names, proof.centres_mm, strict=True))
    assert at["marker_left"][0] < at["ball_60"][0] < at["marker_right"][0]


def test_the_voxels_around_a_ball_know_their_distance_in_world_millimetres() -> None:
    affine = tilted_affine((3.0, 4.0, 5.0), (40.0, -45.0, -50.0))
    centre = np.array([2.0, -3.0, 1.0])
    around = around_ball(centre, 12.0, (26, 24, 22), affine)
    index = np.moveaxis(np.indices((26, 24, 22)), 0, -1)
    distance_mm = np.linalg.norm(nib.affines.apply_affine(affine, index) - centre, axis=-1)
    np.testing.assert_allclose(around.distance_mm, distance_mm[around.box], atol=1e-9)
    assert (around.distance_mm <= 12).sum() == (distance_mm <= 12).sum() > 50
    corner = around_ball(np.array([0.0, 0, 0]), 2.0, (5, 5, 5), np.eye(4))
    assert corner.box == (slice(0, 3),) * 3
