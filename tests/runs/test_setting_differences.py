"""Settings that differ are found under their whole names."""

from __future__ import annotations

from pipeline.runs.setting_differences import differing_settings, flat_settings


def test_only_settings_that_differ_and_are_no_names_or_facts_are_listed():
    first = dict(flat_settings({"training": {"lr": 1, "seed": 2}, "experiment": {"name": "a"}, "data": {"list": {}}}))
    second = dict(flat_settings({"training": {"lr": 3, "seed": 2}, "experiment": {"name": "b"}, "loss": {"x": None}}))
    assert first["data.list"] == {}
    assert differing_settings([first, second]) == ["training.lr", "data.list"]
