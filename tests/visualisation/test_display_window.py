"""A CT is drawn in the soft tissue window, anything else from its dark to its bright end."""

from __future__ import annotations

import numpy as np

from pipeline.visualisation.display_window import SOFT_TISSUE, display_window


def test_a_ct_is_known_by_its_format_or_its_air():
    assert display_window(np.full((4, 4, 4), 40.0), "CT") == SOFT_TISSUE
    scan = np.full((4, 4, 4), 40, np.int16)
    assert display_window(scan) != SOFT_TISSUE
    scan[0] = -1000
    assert display_window(scan) == SOFT_TISSUE
    assert display_window(scan, "MR") != SOFT_TISSUE


def test_one_bright_voxel_and_nan_do_not_make_an_mr_dark():
    image = np.zeros((20, 20, 20), np.float32)
    image[5:15, 5:15, 5:15] = np.linspace(100, 200, 1000).reshape(10, 10, 10)
    image[7, 7, 7], image[8, 8, 8] = 50_000, np.nan
    low, high, words = display_window(image)
    assert 95 < low < 110
    assert 190 < high < 205
    assert words.startswith("intensities 10")


def test_an_even_image_has_a_window_too():
    assert display_window(np.full((2, 2, 2), 7.0))[:2] == (0, 1)
    assert display_window(np.full((2, 2, 2), np.nan))[:2] == (0, 1)
