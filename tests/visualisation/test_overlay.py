"""A segmentation laid over a slice."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.visualisation.class_colours import class_colours
from pipeline.visualisation.overlay import overlay_picture, overlay_slice


def test_the_background_stays_grey_and_a_class_takes_half_of_its_colour():
    image = np.array([[0.0, 50.0, 100.0]])
    colours = np.array([[0, 0, 0], [200, 0, 100]], np.uint8)
    picture = overlay_slice(image, np.array([[0, 0, 1]]), colours)
    assert picture.dtype == np.uint8
    grey, middle, coloured = picture[0].astype(int)
    assert grey.tolist() == [0, 0, 0]
    assert abs(middle - 127).max() <= 1
    assert abs(coloured - (255 + np.array([200, 0, 100])) / 2).max() <= 1


def test_the_patients_right_and_head_are_left_and_up_in_both_pictures():
    image = torch.zeros(1, 8, 5, 6)  # RAS+: index 7 of the first axis is the rightmost
    label, segmentation = torch.zeros((2, 8, 5, 6), dtype=torch.uint8)
    label[7, 2, 5] = 1
    segmentation[0, 2, 0] = 1
    picture = overlay_picture(image, label, segmentation, class_colours(["background", "liver"]))
    assert picture.shape == (6, 16, 3)
    coloured = np.argwhere(picture.any(axis=2)).tolist()
    assert coloured == [[0, 0], [5, 15]]  # right and up in the label, left and down in the segmentation
