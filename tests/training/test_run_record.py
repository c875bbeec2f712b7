"""training_config.json: what a run says of itself, and that it repeats the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from pipeline.checks.findings import Finding
from pipeline.checks.modality import IntensityChoice
from pipeline.compute.devices import choose_devices
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, DataConfig, LossConfig, TrainingConfig
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Dataset, Folds, Split
from pipeline.planning.fingerprint import ClassCount, Fingerprint, Spread
from pipeline.training.prepared_data import Preprocessing
from pipeline.training.run_record import run_document, weight_stats

CONFIG = Config(data=DataConfig(dataset_root="scans"), loss=LossConfig(use_class_weights=True))
WEIGHTS = np.array([0.5, 0.0, 2.0])


NOTHING_THERE = Fingerprint(
    n_cases=3, n_subjects=3, n_unlabelled=0, layout="pairs", data_sets=(), splits={}, split_source="none", sizes=None,
    spacings_mm=Spread((1, 1, 2), (1, 1, 2.5), (1, 1, 3)), orientations={"RAS": 3}, formats={"nifti": 3},
    dtypes={}, intensity=IntensityChoice(("ct",), "so"), window_use="", channels=(), classes=(), ignored_values=(),
    n_ignored_voxels=0,
)  # fmt: skip


def document_of(config=CONFIG, class_weights=WEIGHTS, before=None, epoch=0, **changes):
    dataset = Dataset(
        root=Path("scans"),
        layout="pairs",
        cases=(),
        classes=ClassTable(names=("background", "liver", "spleen"), values=(0, 1, 2)),
        channel_names=("CT", "PET"),
    )
    facts = {
        "dataset": dataset,
        "split": Split(train=("a", "b"), val=("c",), test=(), source="80/10/10"),
        "folds": None,
        "intensity": IntensityChoice(("ct", "zscore"), "data.intensity says so"),
        "preprocessing": Preprocessing((16, 16, 16), ("ct", "zscore"), (-20.0, 150.0), (0.5, 99.5), False, (0, 1, 2)),
        "augmented_on_device": None,
        "skipped": {"d": "unreadable"},
        "findings": (Finding("warning", "odd_spacing", "a", "a.nii", "1 mm", "9 mm", "look"),),
        "fingerprint": replace(NOTHING_THERE, n_subjects=2, classes=(ClassCount("liver", 1, 3, 2, 1, 1, 5, 0.25),)),
        "class_voxels": np.array([[5, 0, 1], [7, 0, 0]]),
    }
    network = torch.nn.Linear(3, 3)
    network.settings = {"_target_": "x"}
    prepared = SimpleNamespace(**facts | changes)
    return run_document(
        config, prepared, network, choose_devices(0, None, "32"), class_weights, before=before, epoch=epoch
    )


def test_the_document_holds_every_setting_and_what_the_run_found():
    started = {"start_time": "2024-01-15 10:30:00"}
    document = document_of(before={"experiment": started, "training": {"max_epochs": 100, "n_gpus": 0}}, epoch=3)
    assert json.loads(json.dumps(document)) == document
    for group, settings in as_mapping(CONFIG).items():
        kept = {
            key: document[group][key] for key in settings if key not in ("n_classes", "n_gpus", "window", "mean_std")
        }
        assert kept.items() <= settings.items()
    assert document["experiment"]["start_time"] == "2024-01-15 10:30:00"
    assert document["model"]["n_classes"] == 3
    assert document["model"]["total_parameters"] == 12
    assert document["data"]["split"]["sizes"] == {"train": 2, "val": 1, "test": 0}
    assert document["data"]["split"]["train"] == ["a", "b"]
    assert document["data"]["window"] == [-20, 150]  # what "auto" was found to be
    assert document["data"]["mean_std"] == "none"
    assert document["data"]["intensity_scaling"] == "centred"
    assert document["data"]["intensity_found"]["intensity"] == ["ct", "zscore"]
    assert document["training"]["n_gpus"] == 0
    assert document["training"]["n_processes"] is None
    assert document["loss"]["classes_that_never_occur"] == ["liver"]
    check = document["data"]["check"]
    assert (check["n_subjects"], check["size_voxels"], check["spacing_mm"]["max"]) == (2, None, [1, 1, 3])
    assert check["classes"] == [{"name": "liver", "n_cases": 2, "n_train": 1, "n_val": 1, "median_ml": 0.25}]
    assert [(one["kind"], one["cases"]) for one in check["findings"]] == [("odd_spacing", ["a"])]
    assert document["system"]["threads"] == torch.get_num_threads()
    assert "skipped_cases" not in document["data"]
    assert "resumed" not in document["training"]


def test_the_document_of_a_resumed_run_says_from_which_epoch_on_which_settings_held():
    then = document_of()
    held = {"n_gpus": 0, "n_nodes": 1, "n_processes": 1}
    for epoch, max_epochs, expected in (
        (2, 6, {0: 100, 2: 6}),
        (2, 9, {0: 100, 2: 9}),  # no epoch was trained with 6
        (5, 9, {0: 100, 2: 9}),
        (7, 8, {0: 100, 2: 9, 7: 8}),
        (2, 100, None),  # as where the state of an earlier epoch was put back
    ):
        then = document_of(replace(CONFIG, training=TrainingConfig(max_epochs=max_epochs)), before=then, epoch=epoch)
        parts = expected and [{"epoch": first, "max_epochs": last} | held for first, last in expected.items()]
        assert then["training"].get("resumed") == parts


def test_the_document_says_which_fold_of_which_division_a_run_trains():
    assert "cross_validation" not in document_of()["data"]
    splits = {0: Split(("c",), ("a", "b"), (), "x"), 1: Split(("a", "b"), ("c",), (), "y")}
    folds = Folds(splits, "2 folds by subject, seed 42")
    config = Config(data=DataConfig(dataset_root="scans", folds=2, fold=1))
    document = document_of(config, folds=folds, split=splits[1])
    assert document["data"]["cross_validation"] == {
        "source": "2 folds by subject, seed 42", "numbers": [0, 1], "fold": 1, "hash": folds.hash,
    }  # fmt: skip


def test_statistics_of_the_weights_leave_out_classes_that_never_occur():
    used = WEIGHTS[[0, 2]]
    assert weight_stats(WEIGHTS) == {"min": 0.5, "max": 2.0, "mean": used.mean(), "std": used.std()}
    plain = document_of(Config(data=DataConfig(dataset_root="scans")), None)
    assert plain["loss"]["class_weights_stats"] is None
    assert plain["loss"]["classes_that_never_occur"] == ["liver"]
