"""Classes of predictions and labels matched by name: what is common, what is left out, and how indices follow."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.errors import DatasetError
from pipeline.evaluation.class_matching import CommonClasses, match_by_name
from transforms.io.label_values import ignore_index


def table(*names, ignore_value=None):
    return ClassTable(("background", *names), tuple(10 * n for n in range(len(names) + 1)), ignore_value)


def test_common_classes_keep_the_labels_order_and_names_and_the_others_are_named():
    classes = match_by_name(table("liver", "spleen", "aorta"), table("stomach", "aorta", "liver"))
    assert classes.names == ("background", "liver", "aorta")
    assert (classes.only_in_labels, classes.only_in_predictions) == (("spleen",), ("stomach",))
    assert classes.label_lookup().tolist() == [0, 1, 0, 2]
    assert classes.prediction_lookup().tolist() == [0, 0, 2, 1]


def test_equal_tables_need_no_lookup():
    classes = match_by_name(table("liver", "spleen"), table("liver", "spleen"))
    assert classes.label_lookup() is None
    assert classes.prediction_lookup() is None
    assert CommonClasses.same(table("liver")).names == ("background", "liver")


def test_case_blanks_and_punctuation_are_forgiven_where_the_name_in_full_is_missing():
    classes = match_by_name(table("Left kidney", "lung_upper-lobe"), table("lung upper lobe", "left_kidney"))
    assert classes.names == ("background", "Left kidney", "lung_upper-lobe")
    assert classes.of_prediction == (0, 2, 1)


def test_a_name_in_full_goes_before_one_that_resembles_it():
    classes = match_by_name(table("Liver", "liver"), table("liver", "spleen"))
    assert (classes.names, classes.of_prediction) == (("background", "liver"), (0, 1))
    # Two names that are the same but for punctuation say nothing about a third.
    with pytest.raises(DatasetError, match="no class in common"):
        match_by_name(table("rib 1"), table("rib_1", "rib-1"))


def test_a_background_is_common_whatever_it_is_called():
    label = ClassTable(("air", "liver", "spleen"), (0, 1, 2))
    classes = match_by_name(label, ClassTable(("background", "spleen"), (0, 1)))
    assert (classes.names, classes.of_prediction) == (("air", "spleen"), (0, 1))
    assert classes.only_in_predictions == ()


def test_nothing_in_common_is_refused_with_both_lists():
    with pytest.raises(DatasetError, match=r"predictions hold stomach, aorta, the labels liver.*labels\.json"):
        match_by_name(table("liver"), table("stomach", "aorta"))


def test_what_a_prediction_would_ignore_is_background():
    classes = match_by_name(table("liver"), table("liver", ignore_value=9))
    lookup = classes.prediction_lookup()
    assert (lookup[[0, 1]].tolist(), lookup[ignore_index(2)], classes.ignored) == ([0, 1], 0, None)


@pytest.mark.parametrize("n_left_out", [1, 254])
def test_ignored_voxels_stay_ignored_where_classes_are_left_out(n_left_out):
    # With 254 more classes a label is read with 65535 for ignored voxels, and scored with 255.
    label = table("liver", *(f"class_{n}" for n in range(n_left_out)), ignore_value=9999)
    classes = match_by_name(label, table("liver"))
    lookup = classes.label_lookup()
    assert lookup[ignore_index(len(label.names))] == classes.ignored == 255
    assert np.array_equal(np.unique(lookup), [0, 1, 255])
