"""Cases that the weights with which a training began were trained on are named wherever their scores are shown."""

from __future__ import annotations

import pytest

from pipeline.runs.seen_cases import seen_at_start, seen_before


def config_of(val: list[str], test: list[str], **started) -> dict:
    return {"training": {"started_from": started}, "data": {"split": {"train": ["a"], "val": val, "test": test}}}


def test_the_validation_must_not_be_what_was_trained_on():
    said = "1 of 2 validation cases bear names of cases that old was trained on (b): "
    assert seen_before("old", {"a", "b"}, ["b", "c"]).startswith(said)
    assert seen_before("old", {"a", "b"}, ["c"]) == ""


def test_cases_are_looked_up_and_not_each_compared_with_all():
    class Name(str):
        n_compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Name.n_compared += 1
            return str.__eq__(self, other)

    trained_on = [Name(f"old_{number}") for number in range(100)]
    assert seen_before("old", trained_on, [f"new_{number}" for number in range(100)]) == ""
    assert Name.n_compared < 100


def test_a_run_and_all_folds_of_a_cross_validation_say_what_was_seen_before():
    folds = [config_of(val, ["e"], run="old", trained_on=["b", "c", "e"]) for val in (["b", "d"], ["c", "f"])]
    assert seen_at_start(folds[:1], "val").startswith("1 of 2 validation cases bear names of cases that old was")
    assert "2 of 4 validation cases" in seen_at_start(folds, "val")
    assert "1 of 1 test cases" in seen_at_start(folds, "test")
    del folds[0]["training"]["started_from"]["trained_on"]  # trained by an earlier version, from the same weights
    assert "2 of 4 validation cases" in seen_at_start(folds, "val")


@pytest.mark.parametrize("started", [None, {}, {"run": "of an earlier version"}, {"run": 1, "trained_on": 5}, "x"])
def test_what_began_with_no_weights_or_with_unknown_ones_says_nothing(started):
    config = config_of(["b"], []) | {"training": {"started_from": started}}
    assert seen_at_start([config], "val") == seen_at_start([{**config, "data": {"split": 3}}], "test") == ""
