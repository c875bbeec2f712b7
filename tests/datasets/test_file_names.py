"""What names of image and label files say."""

from __future__ import annotations

import pytest

from pipeline.datasets.file_names import case_of, image_keys, label_key


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("volume-12", "segmentation-12"),
        ("img0001", "label0001"),
        ("P1 CT", "P1 mask"),
        ("c_MR", "c.gt"),
        ("ct_train_1001_image", "ct_train_1001_label"),  # MM-WHS
        ("volume-covid19-A-0003_ct", "volume-covid19-A-0003_seg"),  # COVID-19-20
        ("img_1_ct", "label_1_ct"),
    ],
)
def test_image_and_label_of_a_case_have_one_key(image, label):
    assert label_key(label) in image_keys(image)
    assert image not in image_keys(image)


@pytest.mark.parametrize("name", ["liver", "segment", "labelled", "ctr", "octopus", "seg", "t12", "T2001", "t1"])
def test_words_that_only_begin_alike_say_nothing(name):
    assert [case_of(name), label_key(name)] == [*image_keys(name), name] == [name, name]
