"""Solids against closed forms."""

from __future__ import annotations

import numpy as np

from pipeline.phantoms.shapes import Ellipsoid, Loft, Shape, Tube, Warp


def test_a_mirrored_solid_is_as_far_from_a_point_as_the_solid_from_the_mirrored_point() -> None:
    still = Warp(np.ones(3), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
    tube = Tube(np.array([(10.0, 0, 0), (60, 20, 30), (90, -10, 80)]), np.array([5.0, 9, 7]), np.array([2.0, 1, 1]))
    levels, plane = np.array([(0.0, 40, 0, 30, 20), (90, 50, 5, 20, 15)]), np.array([(45.0, 0, 0, 1, 0.5, -0.2)])
    turn = np.array([(0.6, 0.8, 0), (-0.8, 0.6, 0), (0, 0, 1.0)])
    x, y, z = np.random.default_rng(0).uniform(-150, 150, (3, 1, 1, 500)).astype(np.float32)
    blob = Ellipsoid(np.array([50.0, 10, 5]), np.array([30.0, 10, 20]), turn)
    solids: tuple[Tube | Loft | Ellipsoid, ...] = (tube, Loft(levels, plane), blob)
    for solid in solids:
        pieces: tuple[Shape, ...] = solid.placed(still, np.zeros(3), 1.0)
        twins: tuple[Shape, ...] = solid.mirrored().placed(still, np.zeros(3), 1.0)
        for piece, twin in zip(pieces, twins, strict=True):
            np.testing.assert_allclose(piece.distance(-x, y, z), twin.distance(x, y, z), rtol=1e-4, atol=1e-3)


def test_a_sphere_is_as_far_as_its_radius_says() -> None:
    ball = Ellipsoid(np.array([1.0, 2, 3]), np.full(3, 20.0), np.eye(3))
    x, y, z = np.random.default_rng(1).uniform(-60, 60, (3, 1, 1, 500)).astype(np.float32)
    expected = np.sqrt((x - 1) ** 2 + (y - 2) ** 2 + (z - 3) ** 2) - 20
    np.testing.assert_allclose(ball.distance(x, y, z), expected, atol=1e-3)
    np.testing.assert_allclose(ball.box_mm(), [[-19, -18, -17], [21, 22, 23]])


def test_a_tubes_capsule_is_cut_round_at_its_ends() -> None:
    still = Warp(np.ones(3), np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
    (capsule,) = Tube(np.array([(0.0, 0, 0), (30, 0, 0)]), np.array([5.0, 5]), np.ones(3)).placed(still, np.zeros(3), 1)
    x, y, z = (np.array([v], np.float32) for v in (33.0, 4.0, 0.0))
    np.testing.assert_allclose(capsule.distance(x, y, z), 0, atol=1e-5)
