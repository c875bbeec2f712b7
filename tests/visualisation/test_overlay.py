"""A segmentation laid over a slice: the scan below stays visible, and every structure has its contour."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pipeline.visualisation.overlay import contours, enlarged, overlay_slice

COLOURS = np.array([[0, 0, 0], [200, 0, 100]], np.uint8)


def test_the_background_stays_grey_and_a_class_takes_a_part_of_its_colour():
    image = np.array([[0.0, 50.0, 100.0, np.nan, 400.0]])
    picture = overlay_slice(image, np.array([[0, 0, 1, 0, 0]]), COLOURS, (0, 100), line=0)
    assert picture.dtype == np.uint8
    assert picture[0, [0, 1, 3, 4]].tolist() == [[0] * 3, [128] * 3, [0] * 3, [255] * 3]
    assert abs(picture[0, 2].astype(int) - (0.7 * 255 + 0.3 * COLOURS[1])).max() <= 1


def test_a_contour_is_what_an_erosion_takes_away():
    segmentation = np.zeros((12, 14), np.uint8)
    segmentation[2:9, 3:12] = 1
    picture = overlay_slice(np.zeros((12, 14)), segmentation, COLOURS, (0, 1), line=2)
    inside = ndimage.binary_erosion(segmentation, iterations=2)
    full = (picture == COLOURS[1]).all(-1)
    assert np.array_equal(full, (segmentation > 0) & ~inside)


def test_two_structures_that_touch_have_a_contour_between_them():
    assert contours(np.array([[1, 1, 1, 2, 2, 2]]), 1).tolist() == [[False, False, True, True, False, False]]


def test_a_class_without_a_colour_is_white():
    assert overlay_slice(np.zeros((1, 1)), np.array([[7]]), COLOURS, (0, 1), line=0)[0, 0].tolist() == [76] * 3


def test_an_enlarged_slice_repeats_its_voxels():
    plane = np.arange(6).reshape(2, 3)
    assert np.array_equal(enlarged(plane, (4, 9)), plane.repeat(2, 0).repeat(3, 1))
