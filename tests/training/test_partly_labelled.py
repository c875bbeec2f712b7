"""Cases that annotate a part of the classes: what is carried along, trained, validated, recorded and resumed."""

from __future__ import annotations

import json
import os
import runpy
import signal
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.check import check, to_text
from pipeline.compute.signals import Stopped
from pipeline.config.files import from_mapping, load_mapping
from pipeline.config.settings import ConfigError
from pipeline.cross_validate import cross_validate
from pipeline.evaluate import evaluate_run
from pipeline.losses.dice_ce import SlabDiceCELoss, VolumeDiceCE
from pipeline.report_page.report import report
from pipeline.runs.run_folder import RunFolder
from pipeline.train import train
from pipeline.training.datamodule import BodyData
from pipeline.training.prepared_data import prepare_data
from pipeline.training.resume import refuse_changed_cases
from tests.support.tiny_module import module
from tests.support.tiny_training import differences
from tests.support.volumes import CLASSES, Folder, configured, hounsfield, organs, save

LABELLED = {"a": ("kidney_left",), "b": ("kidney_right", "liver"), "c": ("liver",), "d": None}
"""What the cases annotate of kidney_left, kidney_right and liver; a and b train, c and d validate."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    made = Folder(tmp_path / "data")
    for name, shown in LABELLED.items():
        if shown:
            made[name]["labelled"] = list(shown)
            kept = [made.labels[structure] for structure in shown]
            save(made.label(name), np.where(np.isin(organs(), kept), organs(), 0).astype(np.uint8))
    return made


def settings(folder, **groups):
    augmented = {"data_aug": True, "flips": (0,), "num_workers": 0}
    data = augmented | {"cache_dir": str(folder.root / "cache")} | groups.pop("data", {})
    return configured(folder.write(), data=data, **groups)


PATCHES = {"mode": "patch", "target_size": (12, 12, 8), "spacing_mm": (2.0, 2.0, 3.0), "patches_per_case": 2.0}


@pytest.mark.parametrize("data", [{}, {"augment_on_device": True}, PATCHES], ids=["resize", "on device", "patch"])
def test_a_mirror_takes_the_annotated_sides_along(folder, data):
    """A label holds no class that its case does not annotate, and each kidney is annotated in some epoch."""
    prepared = prepare_data(settings(folder, data=data))
    batches = BodyData(prepared, batch_size=1, seed=0)
    loader, seen = batches.train_dataloader(), set()
    for epoch in range(8):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for drawn in loader:
            batch = batches.on_after_batch_transfer(drawn, 0)
            for label, annotated, case in zip(batch["label"], batch["annotated"], batch["case"], strict=True):
                assert set(label.unique().tolist()) <= {0, *annotated}
                seen.add((case, annotated))
    assert seen == {("a", (1,)), ("a", (2,)), ("b", (2, 3)), ("b", (1, 3))}
    assert [batch["annotated"] for batch in batches.val_dataloader()] == [[(3,)], [(1, 2, 3)]]


def test_the_losses_of_training_and_validation_are_those_of_the_merged_classes(folder):
    network = module()
    image, label = torch.rand(2, 1, 16, 16, 16), torch.zeros(2, 1, 16, 16, 16, dtype=torch.uint8)
    label[1, :, :8] = 1
    features = network.network.features(image)
    expected = SlabDiceCELoss()(features, network.head, label, annotated=[(), (1,)]).loss
    seen = []
    network.log = lambda *args, **kwargs: None
    network.criterion.register_forward_hook(lambda *call: seen.append(call[-1].loss), with_kwargs=False)
    batch = {"image": image, "label": label, "case": ["a", "b"], "annotated": [(), (1,)]}
    network._trainer = type("Trainer", (), {"accumulate_grad_batches": 1, "world_size": 1})()
    network.training_step(batch, 0)
    assert torch.equal(seen[0], expected)
    network.eval()
    with torch.no_grad():
        volume = VolumeDiceCE(network.head, annotated=())
        volume.add(network.network.features(image[:1])[0], label[0, 0])
        network._validate({key: value[:1] for key, value in batch.items()}, keep_sample=False)
    assert float(volume.loss()) == pytest.approx(0, abs=1e-6)  # a label that annotates nothing says nothing
    assert float(network.val_loss.compute()) == pytest.approx(0, abs=1e-6)


def another(root):
    """Four cases of the same names: a spleen at 1 where the others have the left kidney, a liver at 7, 9 to ignore."""
    root.mkdir()
    made = Folder(root)
    made.labels = {"spleen": 1, "liver": 7, "ignore": 9}
    for name, seed in zip("abcd", "efgh", strict=True):
        save(made.image(name), hounsfield(seed))
        label = np.array([0, 1, 9, 7], np.uint8)[organs()]
        save(made.label(name), label)
    return made


def test_labels_of_two_data_sets_are_read_by_their_own_values(folder, tmp_path):
    """Prepared at the labels' own spacing, so that nothing is resampled: voxels are those of the files."""
    two = another(tmp_path / "two")
    data = {"dataset_root": [str(folder.write()), str(two.write())], "cache_dir": str(tmp_path / "cache")}
    config = configured(folder.root, data=PATCHES | {"num_workers": 0} | data)
    prepared = prepare_data(config)
    assert prepared.dataset.classes.names == ("background", "kidney_left", "kidney_right", "liver", "spleen")
    assert prepared.split.val == ("data_c", "data_d", "two_c", "two_d")
    items = {item["case"]: item for item in prepared.val}
    assert {case: item["annotated"] for case, item in items.items()} == {
        "data_c": (3,), "data_d": (1, 2, 3), "two_c": (3, 4), "two_d": (3, 4)
    }  # fmt: skip
    assert np.array_equal(items["data_d"]["label"][0], organs())
    assert np.array_equal(items["two_d"]["label"][0], np.array([0, 4, 255, 3], np.uint8)[organs()])
    found = check(config, measure=False)
    assert [finding.kind for finding in found.findings] == ["case_renamed"]
    counts = {c.name: (c.n_annotated, c.n_cases) for c in found.fingerprint.classes}
    assert counts["liver"] == (7, 7)
    assert counts["spleen"] == (4, 4)
    assert counts["kidney_left"] == (2, 2)
    assert "two: 4 cases, layout list, split the data set's own; names spleen, liver" in to_text(found)


def test_a_run_on_two_data_sets_says_what_was_annotated_and_is_evaluated_by_it(folder, tmp_path, shared_spec):
    two = another(tmp_path / "two")
    roots = {"dataset_root": [str(folder.write()), str(two.write())], "cache_dir": str(tmp_path / "cache")}
    groups = {"experiment": {"log_dir": str(tmp_path / "logs")}, "model": {"base_channels": 2}}
    training = {"max_epochs": 1, "overlay_every": 0}
    said = []
    run = train(settings(folder, data=roots, training=training, **groups), say=said.append)
    counts = "kidney_left in 1, kidney_right in 1, liver in 3, spleen in 2"
    assert f"Partly labelled: the training cases annotate {counts}" in said
    record = json.loads((run / "training_config.json").read_text())
    assert record["data"]["annotated"]["val"] == {"kidney_left": 1, "kidney_right": 1, "liver": 4, "spleen": 2}
    assert [part["name"] for part in record["data"]["data_sets"]] == ["data", "two"]
    assert from_mapping(load_mapping(run / "training_config.json")).data.dataset_roots == tuple(roots["dataset_root"])
    assert runpy.run_path(str(shared_spec / "check_run.py"))["faults"](run, True)[0] == []
    page = report([run], tmp_path / "r.html", images=False).read_text()
    assert f"<dd>{' and '.join(roots['dataset_root'])} (" in page
    result = evaluate_run(run, "val", device="cpu")
    names = np.array(result.class_names)
    assert {case.case: names[~case.annotated].tolist() for case in result.cases} == {
        "data_c": ["kidney_left", "kidney_right", "spleen"], "data_d": ["spleen"],
        "two_c": ["kidney_left", "kidney_right"], "two_d": ["kidney_left", "kidney_right"],
    }  # fmt: skip
    predicted = nib.load(run / "evaluation/val/predictions/two_d.nii.gz").get_fdata()
    scored = next(case for case in result.cases if case.case == "two_d")
    here = organs() != 2  # ignored voxels do not count
    for index, value in ((3, 3), (4, 1)):
        overlap = 2 * np.sum((predicted == index) & (organs() == value))
        assert scored.dice[index] == pytest.approx(
            overlap / (np.sum((predicted == index) & here) + np.sum(organs() == value))
        )


def test_a_resumed_run_refuses_another_annotation(folder):
    before = prepare_data(settings(folder)).contents()
    assert before["a"].endswith(" annotates 1")
    assert "annotates" not in before["d"]
    folder["a"]["labelled"] = ["kidney_left", "liver"]
    after = prepare_data(settings(folder)).contents()
    assert [case for case in before if before[case] != after[case]] == ["a"]
    run, state = SimpleNamespace(path="logs/run"), SimpleNamespace(contents=before)
    with pytest.raises(ConfigError, match="case a: image, label or annotated classes changed"):
        refuse_changed_cases(run, state, after)


def test_folds_of_two_data_sets_in_patches_are_scored_by_what_each_case_annotates_also_when_stopped(
    folder, tmp_path, monkeypatch, shared_spec
):
    """Then fold 1 alone, stopped by a signal and called again."""
    two = another(tmp_path / "two")
    for case in (*folder.cases, *two.cases):
        del case["split"]
    roots = {"dataset_root": [str(folder.write()), str(two.write())], "cache_dir": str(tmp_path / "cache"), "folds": 2}
    training = {"max_epochs": 2, "overlay_every": 0}

    def study(name, folds="all"):
        experiment = {"name": name, "log_dir": str(tmp_path / "logs")}
        groups = {"experiment": experiment, "model": {"base_channels": 2}, "training": training}
        return cross_validate(settings(folder, data=PATCHES | roots, **groups), folds=folds)

    whole = study("whole")
    names = np.array(whole.evaluation.class_names)
    shown = {case.case: {*names[case.annotated]} - {"background"} for case in whole.evaluation.cases}
    expected = {f"data_{name}": {*(classes or CLASSES)} - {"background"} for name, classes in LABELLED.items()}
    assert shown == expected | {f"two_{name}": {"spleen", "liver"} for name in "abcd"}
    write = RunFolder.write_log

    def write_and_stop(run, log):
        write(run, log)
        if len(log) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "write_log", write_and_stop)
    with pytest.raises(Stopped, match="SIGTERM"):
        study("stopped", [1])
    monkeypatch.setattr(RunFolder, "write_log", write)
    assert study("stopped", [1]).unfinished == (0,)
    run = whole.folds[1].run.path
    assert differences(run, tmp_path / "logs" / "stopped" / run.name) == []
    assert runpy.run_path(str(shared_spec / "check_run.py"))["faults"](run, True)[0] == []
