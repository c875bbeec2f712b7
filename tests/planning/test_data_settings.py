"""Settings that describe a data set are kept as they were given; those that a plan chooses are refused by name."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from pipeline.config.files import from_mapping
from pipeline.config.settings import ConfigError, DataConfig
from pipeline.planning.data_settings import DESCRIBING, described, refuse_chosen
from pipeline.planning.machine import Machine
from pipeline.planning.plan import make_plan
from tests.support.plans import HIPPOCAMPUS, Measured

GIVEN = {
    "layout": ("nnunet", "pairs"),
    "missing_masks": "absent",
    "subject_pattern": "(.+)_t[0-9]+",
    "intensity": "ct",
    "window": (-100.0, 300.0),
    "mean_std": "none",
    "fill_nan": -1024.0,
}


def test_what_was_said_about_a_data_set_is_read_back_from_what_is_written():
    data = DataConfig(("a", "b"), **GIVEN)
    written = described(data)
    assert set(written) == set(GIVEN)
    assert asdict(from_mapping({"data": {"dataset_root": ["a", "b"], **written}}).data) == asdict(data)


def test_nothing_that_a_plan_chooses_can_be_given_to_it():
    plan = make_plan(HIPPOCAMPUS, Machine("gpu", 8, 24 * 10**9), 3600, Measured())
    chosen = [name for name in plan.because if name.startswith("data.")]
    chosen.remove("data.split_shares")  # the plan's own where none are given
    assert {"data.mode", "data.spacing_mm", "data.target_size", "data.batch_size", "data.patch_growth"} <= set(chosen)
    for name in chosen:
        with pytest.raises(ConfigError, match=f"^{name}: bodyseg plan takes settings that describe the data set"):
            refuse_chosen([name])
    refuse_chosen(f"data.{name}" for name in DESCRIBING)
