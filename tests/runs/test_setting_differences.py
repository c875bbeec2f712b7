"""Settings that differ are found under their whole names."""

from __future__ import annotations

import pytest

from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, DataConfig, TrainingConfig
from pipeline.runs.setting_differences import changed_settings, differing_settings, flat_settings


def test_only_settings_that_differ_and_are_no_names_or_facts_are_listed():
    first = dict(flat_settings({"training": {"lr": 1, "seed": 2}, "experiment": {"name": "a"}, "data": {"list": {}}}))
    second = dict(flat_settings({"training": {"lr": 3, "seed": 2}, "experiment": {"name": "b"}, "loss": {"x": None}}))
    assert first["data.list"] == {}
    assert differing_settings([first, second]) == ["training.lr", "data.list"]


def test_a_setting_that_the_version_of_then_did_not_have_counts_as_its_default():
    now = as_mapping(Config(data=DataConfig(dataset_root="."), training=TrainingConfig(lr=0.1, seed=3, max_epochs=7)))
    before = {group: dict(values) for group, values in as_mapping(Config(data=DataConfig(dataset_root="."))).items()}
    before["training"]["lr"] = 0.2
    del before["training"]["seed"]
    found = {changed.name: changed for changed in changed_settings(before, now, {"training.max_epochs"})}
    assert found.keys() == {"training.lr", "training.seed"}
    assert found["training.lr"][1:] == (0.2, 0.1, True)
    assert found["training.seed"][1:] == (TrainingConfig().seed, 3, False)


@pytest.mark.parametrize(
    ("recorded", "now", "words"),
    [
        ({"augment_on_device": False}, None, []),  # as versions wrote that could not leave it open
        ({"augment_on_device": True}, None, []),
        ({}, None, []),
        ({}, False, []),
        ({}, True, ["data.augment_on_device false (the version of then had no such setting), now true"]),
        ({"augment_on_device": False}, True, ["data.augment_on_device false, now true"]),
        ({"augment_on_device": None}, True, ["data.augment_on_device null, now true"]),
    ],
)
def test_who_augments_is_as_it_was_where_it_is_left_open_now(recorded, now, words):
    settings = as_mapping(Config(data=DataConfig(dataset_root=".", data_aug=True, augment_on_device=now)))
    data = {key: value for key, value in settings["data"].items() if key != "augment_on_device"}
    before = settings | {"data": data | recorded}
    assert [changed.in_words for changed in changed_settings(before, settings, ())] == words
