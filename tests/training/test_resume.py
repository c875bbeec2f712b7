"""Interrupted runs that are continued: what may change, what is refused, what is left untouched."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from networks.deep_supervision import CoarseHeads
from pipeline.config.files import as_mapping, load_mapping
from pipeline.config.settings import ConfigError
from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.train import train as run_training
from pipeline.training.checkpoint import write_tensors
from pipeline.training.resume import (
    read_resume,
    refuse_changed_data,
    refuse_interrupted_neighbours,
    restore,
    resume_state,
)
from tests.support import tiny_module
from tests.support.tiny_module import loader, module
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    complaint,
    differences,
    ended,
    interrupted_run,
    n_epochs,
    settings_of,
    start,
    strict_json,
    summary,
    tiny_training,
    train,
)


def kill_itself_before_writing(file):
    """Die by SIGKILL where a file of the given name would be written for the second time."""
    from pipeline.training import checkpoint

    write, times = checkpoint.write_atomically, []

    def write_or_die(path, content):
        times.extend([path.name] * (path.name == file))
        if len(times) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)

    checkpoint.write_atomically = write_or_die


@pytest.mark.fault(
    "SIGKILL between the state of an epoch and its best weights", "`--resume` publishes the weights that the log names"
)
@pytest.mark.parametrize("file", ["last.ckpt", "best_model.ckpt"])
def test_the_best_weights_are_those_of_the_log_also_where_no_epoch_is_trained_again(work, file):
    name = f"torn_{file.partition('.')[0]}"
    with_pictures = {"training.overlay_every": "9" if file == "last.ckpt" else "0"}
    process, run, output = train(work, name, before=partial(kill_itself_before_writing, file), **with_pictures)
    ended(process, run, output, code=-signal.SIGKILL)
    finished = torch.load(run / "resume" / "last.ckpt", weights_only=True)["epochs_finished"]
    process, run, output = train(work, name, "--resume", max_epochs=finished, **with_pictures)
    ended(process, run, output, code=0)
    best = strict_json(run / "training_log.json")["best_metrics"]
    published = torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True)
    assert (published["epoch"], published["val_mIoU"]) == (best["best_epoch"], best["best_val_mIoU"])
    if file == "best_model.ckpt":
        assert best["best_epoch"] == finished - 1  # it was about to be written
    else:
        events = EventAccumulator(str(run / "version_1"))
        events.Reload()
        tags = ("validation/best", "validation/label_and_segmentation")
        steps = [[picture.step for picture in events.Images(tag)] for tag in tags]
        assert steps == [[best["best_epoch"]], [finished - 1]]


@pytest.mark.fault(
    "a second training in the same run folder", "one line with the process that has it, exit 2; the first goes on"
)
def test_two_trainings_never_share_a_run_folder_and_a_dead_one_hinders_nobody(work):
    first, run, output = train(work, "shared", num_workers="1", pause=1)
    for more in (["--resume"], ["--overwrite"], []):
        second = start([*tiny_training(work, "shared", max_epochs=EPOCHS)[0], *more], work / "second.txt")
        said = complaint(ended(second, run, work / "second.txt", code=2))
        assert f"process {first.pid} on " in said
        assert "is training there now" in said
    assert first.is_alive()
    workers = psutil.Process(first.pid).children()
    for worker in workers:
        worker.suspend()  # it would notice only seconds later that it is alone, and holds no lock
    try:
        first.kill()
        first.join()
        second, run, output = train(work, "shared", "--resume", max_epochs=n_epochs(run) + 1)
        ended(second, run, output, code=0)
        assert workers
        assert all(worker.is_running() for worker in workers)
    finally:
        for worker in workers:
            worker.kill()


@pytest.mark.fault(
    "`--overwrite` with settings that cannot be trained", "one line, exit 2; the earlier run is not touched"
)
def test_a_training_that_cannot_begin_removes_and_writes_nothing(work):
    ended(*train(work, "precious", max_epochs=1), code=0)
    run = work / "logs" / "precious_bs1_lr0.003_ch2_aug"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process, _, output = train(work, "precious", "--overwrite", dataset_root=str(work / "typing_error"))
    complaint(ended(process, run, output, code=2))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    process, run, output = train(work, "never", dataset_root=str(work / "typing_error"))
    complaint(ended(process, run, output, code=2))
    assert not run.exists()


@pytest.fixture(scope="session")
def interrupted(work):
    return interrupted_run(work, "pause")


def moved(interrupted, tmp_path):
    """A copy of it in another log folder."""
    shutil.copytree(interrupted, tmp_path / interrupted.name)
    return {"log_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"num_workers": "1"}, True),
        ({"n_gpus": "null"}, True),
        ({"model.checkpointing": "true"}, True),
        ({"max_epochs": "5"}, False),
    ],
)
def test_what_may_change_on_resuming_is_applied_also_in_a_moved_log_folder(work, interrupted, tmp_path, settings, kept):
    place = moved(interrupted, tmp_path)
    process, run, output = train(work, "pause", "--resume", **place, **settings)
    ended(process, run, output, code=0)
    record, (name, value) = strict_json(run / "training_config.json"), next(iter(settings.items()))
    assert summary(run)["total_epochs"] == int(settings.get("max_epochs", EPOCHS))
    assert summary(run)["best_checkpoint"] == str(run / "checkpoints" / "best_model.ckpt")
    if name != "n_gpus":
        group = {"num_workers": "data", "max_epochs": "training"}.get(name, "model")
        assert json.dumps(record[group][name.split(".")[-1]]) == value
    parts = record["training"].get("resumed", [{"epoch": 0, "max_epochs": EPOCHS}])
    assert [(part["epoch"], part["max_epochs"]) for part in parts] == [(0, EPOCHS), (2, 5)][: 1 if kept else 2]
    for epoch, rate in enumerate(strict_json(run / "training_log.json")["training_history"]["learning_rate"]):
        last = [part["max_epochs"] for part in parts if part["epoch"] <= epoch][-1]  # cosine after one warm-up epoch
        assert rate == pytest.approx(0.003 * (1 + math.cos(math.pi * max(0, epoch - 1) / (last - 1))) / 2)
    load_mapping(run / "training_config.json")
    if kept:
        assert differences(work / "logs" / WHOLE, run) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.network._target_": "monai.networks.nets.BasicUNet"}, r"model\.network null, now \{"),
        ({"data.class_names": "background a"}, r'data\.class_names .*, now \["background", "a"\]'),
        ({"target_size": "16 16 32"}, r"data\.target_size \[16, 16, 24\], now \[16, 16, 32\]"),
        ({"seed": "7"}, r"begun with other settings: training\.seed 42, now 7; a resumed run keeps them"),
        ({"data.fold": "1"}, r"data\.fold 0, now 1"),
        ({"weight_decay": "0.1", "seed": "7"}, r"training\.weight_decay 0\.0, now 0\.1; training\.seed 42, now 7"),
        ({"training.optimizer": "sgd"}, r'training\.optimizer "adamw", now "sgd"'),
    ],
)
def test_what_may_not_change_on_resuming_is_refused_by_name(work, interrupted, tmp_path, settings, words):
    place = moved(interrupted, tmp_path)
    network = settings.pop("model.network._target_", None)
    config, run = settings_of(work, "pause", max_epochs=EPOCHS, **place, **settings)
    if network:
        config = replace(config, model=replace(config.model, network={"_target_": network}))
    before = (run / "training_summary.json").read_bytes()
    with pytest.raises(ConfigError, match=words):
        run_training(config, resume=True)
    assert (run / "training_summary.json").read_bytes() == before


NEW_SETTINGS = {
    "data": (
        "mode spacing_mm patches_per_case foreground patch_growth sided_pairs split_shares subject_pattern fill_nan "
        "mean_std"
    ).split(),
    "training": ["validate_every"],
}
"""What training_config.json of version 0.1.0 of 23 November 2026 (ea97f9d) did not have."""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"data.mode": "patch", "data.spacing_mm": "24 24 24"},
            r'data\.mode "resize" \(the version of then had no such setting\), now "patch"; data\.spacing_mm',
        ),
        (
            {"training.validate_every": "2"},
            r"training\.validate_every 1 \(the version of then had no such setting\), now 2",
        ),
        ({"data.split_shares": "60 30 10"}, r"data\.split_shares \[80\.0, 10\.0, 10\.0\] \(the .*, now \[60"),
        ({}, None),
    ],
)
def test_a_run_of_an_earlier_version_goes_on_as_it_began(work, interrupted, tmp_path, settings, words):
    config, run = settings_of(work, "pause", max_epochs=EPOCHS, **moved(interrupted, tmp_path), **settings)
    record = strict_json(run / "training_config.json")
    for group, names in NEW_SETTINGS.items():
        for name in names:
            del record[group][name]
    record["data"]["window"] = [-1000.0, 1000.0]  # the default of then
    record["data"]["augment_on_device"] = False  # likewise
    record["data"]["intensity_found"] = {"intensity": "ct", "because": "the version of then said so"}
    (run / "training_config.json").write_text(json.dumps(record))
    if words:
        with pytest.raises(ConfigError, match=words):
            run_training(config, resume=True)
        return
    lines = []
    run_training(config, resume=True, say=lines.append)
    assert "CT window: -1000 to 1000 HU" in lines
    assert "Intensities: ct (the version of then said so)" in lines
    kept = strict_json(run / "training_config.json")["data"]
    assert kept["window"] == [-1000.0, 1000.0]
    assert kept["mean_std"] == "none"
    assert kept["augment_on_device"] is False
    assert kept["intensity_found"] == record["data"]["intensity_found"]


def test_other_folds_are_refused_also_where_this_fold_is_the_same(tmp_path):
    folder = RunFolder(tmp_path, "run")
    folder.path.mkdir()
    data = {"split": {"train": ["a"]}, "channel_names": ["CT"], "intensity_found": {}}
    document = {key: {} for key in ("experiment", "training", "loss", "system")}
    document |= {"data": data, "model": {"class_names": ["background"], "network_settings": {}}}
    folds = {"source": "5 folds by subject, seed 42", "numbers": [0, 1, 2, 3, 4], "fold": 1, "hash": "12"}
    begun = document | {"data": data | {"cross_validation": folds}}
    folder.write_config(begun)
    refuse_changed_data(folder, begun)
    others = begun | {"data": data | {"cross_validation": folds | {"hash": "34"}}}
    with pytest.raises(ConfigError, match=r"data.cross_validation: the division into folds .*hash: was '12', is '34'"):
        refuse_changed_data(folder, others)
    folder.write_config(document)  # of an earlier version, which recorded the split alone
    refuse_changed_data(folder, begun)


@pytest.mark.parametrize(("damage", "found"), [("gone", "no file"), ("cut", "a damaged file"), ("older", "epoch 9")])
def test_best_weights_that_are_not_the_logs_are_refused_when_resuming(work, interrupted, tmp_path, damage, found):
    config, run = settings_of(work, "pause", max_epochs=EPOCHS, **moved(interrupted, tmp_path))
    best, last = run / "checkpoints" / "best_model.ckpt", run / "resume" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["log"]["training_history"]["val_mIoU"][0] = 1.0  # the first epoch was the best
    torch.save(state, last)
    if damage == "gone":
        best.unlink()
    elif damage == "cut":
        best.write_bytes(best.read_bytes()[:1000])
    else:
        torch.save(torch.load(best, weights_only=True) | {"epoch": 9}, best)
    before = (run / "training_summary.json").read_bytes()
    with pytest.raises(
        FileError, match=rf"best_model.ckpt: expected the weights of epoch 0, .* found {found}; restore"
    ):
        run_training(config, resume=True)
    assert (run / "training_summary.json").read_bytes() == before


def test_a_case_that_is_gone_is_named_when_the_division_is_no_longer_the_runs(work, interrupted, tmp_path):
    """The settings are the same, the data are not."""
    place = moved(interrupted, tmp_path)
    gone = strict_json(interrupted / "training_config.json")["data"]["split"]["train"][0]
    data = tmp_path / "data"
    shutil.copytree(work / "data", data)
    for path in (data / "imagesTr" / f"{gone}_0000.nii.gz", data / "labelsTr" / f"{gone}.nii.gz"):
        path.unlink()
    hidden = work / "hidden"
    (work / "data").rename(hidden)
    try:
        data.rename(work / "data")
        config, run = settings_of(work, "pause", max_epochs=EPOCHS, **place)
        with pytest.raises(ConfigError, match=rf"data\.split: the division .* changed .*gone {gone}"):
            run_training(config, resume=True)
        assert summary(run)["status"] == "interrupted"
    finally:
        shutil.rmtree(work / "data")
        hidden.rename(work / "data")


@pytest.mark.fault(
    "`--resume` with another batch size or learning rate", "one line that names the interrupted run and what differs"
)
def test_resuming_under_another_name_is_refused_and_names_what_differs(work, interrupted, tmp_path):
    place = moved(interrupted, tmp_path)
    config, run = settings_of(work, "pause", max_epochs=EPOCHS, **place, batch_size="2", lr="0.001", seed="7")
    changes = "data.batch_size 1, now 2; training.lr 0.003, now 0.001; training.seed 42, now 7"
    words = rf"no run in {run}, but .*{interrupted.name} \({changes}\)"
    with pytest.raises(ConfigError, match=words):
        run_training(config, resume=True)
    assert not run.exists()
    ending = tmp_path / interrupted.name / "training_summary.json"
    stopped = strict_json(ending)
    ending.write_text(json.dumps(stopped | {"status": "failed", "reason": "out of memory"}))
    with pytest.raises(ConfigError, match=words):  # it can be resumed as well
        run_training(config, resume=True)
    ending.write_text(json.dumps(stopped | {"stopped_early": True}))
    refuse_interrupted_neighbours(RunFolder.at(run), as_mapping(config))  # nothing is left to resume: this may begin
    other, begun = settings_of(work, "another", max_epochs="1", **place)
    run_training(other, resume=True)  # a job that repeats its command line begins, whatever lies beside it
    assert summary(begun)["status"] == "completed"


def test_the_memory_of_a_resumed_training_is_the_most_of_all_its_parts(work, interrupted, tmp_path):
    place = moved(interrupted, tmp_path)
    config, run = settings_of(work, "pause", max_epochs=n_epochs(interrupted), **place)
    before = summary(interrupted)
    assert before["peak_memory_of"] == "CPU"
    assert 0.1 < before["peak_memory_gb"] < psutil.virtual_memory().total / 1e9
    state = torch.load(run / "resume" / "last.ckpt", weights_only=True)
    assert state["peak_memory"]["n_bytes"] / 1e9 <= before["peak_memory_gb"] + 0.001
    write_tensors(run / "resume" / "last.ckpt", state | {"peak_memory": {"n_bytes": 5 * 10**15, "device": "another"}})
    run_training(config, resume=True)
    assert (summary(run)["peak_memory_gb"], summary(run)["peak_memory_of"]) == (5e6, "another")


@pytest.mark.fault(
    "a data set that was moved, or whose labels changed, before `--resume`",
    "moved data go on bit for bit; changed ones are refused by case",
)
def test_moved_data_are_resumed_by_content_and_changed_ones_refused(work, interrupted, tmp_path):
    place = moved(interrupted, tmp_path)
    shutil.copytree(work / "data", tmp_path / "elsewhere")
    config, run = settings_of(work, "pause", max_epochs=EPOCHS, **place, dataset_root=str(tmp_path / "elsewhere"))
    trained = strict_json(run / "training_config.json")["data"]["split"]["train"][0]
    path = tmp_path / "elsewhere" / "labelsTr" / f"{trained}.nii.gz"
    whole = path.read_bytes()
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[::-1].copy(), label.affine), path)
    with pytest.raises(
        ConfigError, match=rf"case {trained}: image, label or annotated classes changed since the run in "
    ):
        run_training(config, resume=True)
    path.write_bytes(whole)
    run_training(config, resume=True)
    assert differences(work / "logs" / WHOLE, run) == []
    assert strict_json(run / "training_config.json")["data"]["dataset_root"] == str(tmp_path / "elsewhere")


@pytest.mark.fault(
    "`--resume` with another number of threads",
    "a line says so, since the last bits depend on it",
)
def test_another_number_of_threads_is_said_when_resuming(work, interrupted, tmp_path):
    config, run = settings_of(work, "pause", max_epochs=EPOCHS, **moved(interrupted, tmp_path))
    record, lines = strict_json(run / "training_config.json"), []
    record["system"]["threads"] = (
        torch.get_num_threads() + 1
    )  # more threads here would spin on the cores of other tests
    (run / "training_config.json").write_text(json.dumps(record))
    run_training(config, resume=True, say=lines.append)
    assert f"Started with {torch.get_num_threads() + 1} threads, now {torch.get_num_threads()}: " in "\n".join(lines)


def test_a_state_holds_the_heads_of_deep_supervision_and_one_without_them_is_refused(tmp_path):
    runs = []
    for _ in range(2):
        plain = module()
        runs.append((module(coarse_heads=CoarseHeads(plain.network, 2)), tiny_module.trainer(tmp_path)))
        deep, training = runs[-1]
        training.strategy.connect(deep)
        training.strategy.optimizers = [torch.optim.AdamW(deep.parameters())]
    (first, before), (second, after) = runs
    state = resume_state(before, first, TrainingLog())
    write_tensors(tmp_path / "last.ckpt", state.to_dict())
    restore(read_resume(tmp_path / "last.ckpt"), after, second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(FileError, match=r"does not fit the network .*Missing key.*start again with --overwrite"):
        restore(replace(state, coarse_heads={}), after, second)


@pytest.fixture
def trainer(tmp_path):
    return partial(tiny_module.trainer, tmp_path)


@pytest.mark.filterwarnings(*[mark.args[0] for mark in tiny_module.QUIET])
@pytest.mark.parametrize(("half_before", "half_now"), [(False, True), (True, False), (True, True)])
def test_a_run_goes_on_where_gradients_are_scaled_and_where_they_are_not(trainer, half_before, half_now):
    first, before = module(), trainer(half=half_before)
    before.fit(first, loader(3))
    state = resume_state(before, first, TrainingLog())
    second, after = module(), trainer(half=half_now)
    after.strategy.connect(second)
    after.strategy.optimizers = [torch.optim.AdamW(second.parameters())]
    restore(state, after, second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    if half_before and half_now:
        assert after.precision_plugin.state_dict() == before.precision_plugin.state_dict()
        with pytest.raises(FileError, match=r"gradient scaler's state .*expected scale, .*found scales; restore"):
            restore(replace(state, precision={"scales": 1.0}), after, second)
