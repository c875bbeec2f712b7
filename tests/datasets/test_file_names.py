"""What names of image and label files say."""

from __future__ import annotations

import pytest

from pipeline.datasets.file_names import case_of, image_key, label_key


@pytest.mark.parametrize(
    ("image", "label"),
    [("volume-12", "segmentation-12"), ("img0001", "label0001"), ("P1 CT", "P1 mask"), ("c_MR", "c.gt")],
)
def test_image_and_label_of_a_case_have_one_key(image, label):
    assert image_key(image) == label_key(label)
    assert image_key(image) != image


@pytest.mark.parametrize("name", ["liver", "segment", "labelled", "ctr", "octopus", "seg", "t12", "T2001", "t1"])
def test_words_that_only_begin_alike_say_nothing(name):
    assert case_of(name) == label_key(name) == image_key(name) == name
