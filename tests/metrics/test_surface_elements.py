"""Surface elements against the faces of a box."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.metrics.surface_elements import area_of_code, find_surface
from tests.support.label_maps import blobs

SPACING_MM = (0.7, 1.1, 2.9)


def test_a_box_has_the_area_of_its_faces_and_the_table_knows_the_voxels_size():
    labels = np.zeros((60, 50, 40), np.uint8)
    labels[5:55, 5:45, 5:35] = 3
    faces_mm2 = 2 * sum(a * b for a, b in ((50 * 0.7, 40 * 1.1), (50 * 0.7, 30 * 2.9), (40 * 1.1, 30 * 2.9)))
    # Marching cubes cuts the edges and corners off, half a voxel deep.
    assert find_surface(labels, "area", SPACING_MM).weights.sum() == pytest.approx(faces_mm2, rel=0.03)
    assert area_of_code(SPACING_MM)[0b11110000] == pytest.approx(1.1 * 2.9)  # a wall across the first axis
    assert area_of_code(SPACING_MM)[0b10101010] == pytest.approx(0.7 * 1.1)  # across the last


def test_surface_voxels_are_what_an_erosion_takes_away():
    labels = np.pad(blobs(0), 1)
    surface = find_surface(labels, "voxels", SPACING_MM)
    for c in range(1, 5):
        mask = labels == c
        expected = np.flatnonzero(mask & ~ndimage.binary_erosion(mask))
        assert np.array_equal(surface.positions[surface.classes == c], expected)
