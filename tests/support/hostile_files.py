"""Kinds of bad files of our own: checkpoints, the files of a run, predictions, metrics.json, caches."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

from pipeline.cli.main import main
from tests.support.hostile import PREDICT, RESUME, RUN, Bomb, Row, write_json
from tests.support.volumes import cut, organs, save


def checkpoint(**changes: object) -> list[str]:
    path = Path("logs/run/checkpoints/best_model.ckpt")
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return PREDICT


def compressed_checkpoint() -> list[str]:
    path = Path("logs/run/checkpoints/best_model.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile("new.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/999", bytes(2**24))
    Path("new.zip").replace(path)
    return PREDICT


def bare_pickle(path: str, *arguments: str) -> list[str]:
    Path(path).write_bytes(pickle.dumps(Bomb()))
    return list(arguments)


def resumed(**changes: object) -> list[str]:
    run = Path("logs/run").rename(Path("logs") / RUN)
    path = run / "resume/last.ckpt"
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return RESUME


def resumed_file(name: str, content: bytes) -> list[str]:
    run = Path("logs/run").rename(Path("logs") / RUN)
    (run / name).write_bytes(content)
    return RESUME


def run_file(name: str, content: str, *arguments: str) -> list[str]:
    Path("logs/run", name).write_text(content)
    return list(arguments)


def log(**changes: object) -> list[str]:
    path = Path("logs/run/training_log.json")
    document = json.loads(path.read_text())
    document["training_history"] |= changes
    write_json(path, document)
    return ["plot", "logs/run"]


def evaluation(label: np.ndarray, prediction: np.ndarray | None, affine: np.ndarray | None = None) -> list[str]:
    for folder in ("labels", "predictions"):
        Path(folder).mkdir()
    save(Path("labels/a.nii.gz"), label)
    if prediction is not None:
        save(Path("predictions/a.nii.gz"), prediction, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    return "evaluate --predictions predictions --labels labels".split()


def compared(content: object) -> list[str]:
    arguments = evaluation(organs(), organs())
    assert main(arguments) == 0
    write_json(Path("other.json"), content)
    return [*arguments, "--output", "predictions", "--compare", "other.json"]


ROWS = [
    Row(
        "a pickle bomb in best_model.ckpt",
        lambda: checkpoint(more=Bomb()),
        ("best_model.ckpt", "refused", "could run code"),
    ),
    Row(
        "a bare pickle named best_model.ckpt",
        lambda: bare_pickle("logs/run/checkpoints/best_model.ckpt", *PREDICT),
        ("best_model.ckpt", "refused"),
    ),
    Row("a compressed checkpoint", compressed_checkpoint, ("best_model.ckpt", "compressed")),
    Row(
        "a truncated checkpoint",
        lambda: (cut(Path("logs/run/checkpoints/best_model.ckpt"), 9000), PREDICT)[1],
        ("best_model.ckpt", "damaged"),
    ),
    Row(
        "a checkpoint of a foreign class",
        lambda: checkpoint(network={"_target_": "foreign.Net"}),
        ("best_model.ckpt", "network foreign.Net", "--trust_config"),
    ),
    Row(
        "a checkpoint of a network that no machine holds",
        lambda: checkpoint(network={"_target_": "networks.body_net.BodyNet", "n_classes": 4, "base_channels": 40000}),
        ("best_model.ckpt", "expected weights for a network of"),
    ),
    Row(
        "a checkpoint with preprocessing of its own",
        lambda: checkpoint(preprocessing={"colour": "red"}),
        ("best_model.ckpt", "expected the preprocessing of a training", "colour"),
    ),
    Row("a checkpoint without class names", lambda: checkpoint(class_names=None), ("best_model.ckpt", "class_names")),
    Row("a checkpoint that is none", lambda: checkpoint(state_dict=7), ("best_model.ckpt", "no mapping state_dict")),
    Row("a checkpoint of another version", lambda: checkpoint(format=99), ("best_model.ckpt", "format 99")),
    Row(
        "a pickle bomb in the state to resume",
        lambda: resumed(more=Bomb()),
        ("last.ckpt", "cannot be resumed from", "--overwrite"),
    ),
    Row(
        "a truncated state to resume",
        lambda: resumed_file("resume/last.ckpt", b"PK\3\4"),
        ("last.ckpt", "cannot be resumed from"),
    ),
    Row(
        "a state to resume without a network",
        lambda: resumed(network=None),
        ("last.ckpt", "found no network", "--overwrite"),
    ),
    Row(
        "the config of a run that is no JSON, to resume",
        lambda: resumed_file("training_config.json", b"{"),
        ("training_config.json", "is not valid JSON", "restore the file"),
    ),
    Row(
        "another network than the run's, to resume",
        lambda: [*resumed(), "--model.network", '{"_target_": "SegResNet"}'],
        ("model.network", "another run"),
    ),
    Row(
        "a log that is no JSON",
        lambda: run_file("training_log.json", "{", "plot", "logs/run"),
        ("training_log.json", "is not valid JSON"),
    ),
    Row(
        "a log with NaN",
        lambda: run_file("training_log.json", '{"training_history": NaN}', "plot", "logs/run"),
        ("training_log.json", "NaN is not JSON"),
    ),
    Row("a log of unequal arrays", lambda: log(epoch=[0]), ("training_log.json", "equal length")),
    Row("a log of texts", lambda: log(val_loss=["x"]), ("training_log.json", "expected a number, found 'x'")),
    Row(
        "a summary of an unknown end",
        lambda: run_file("training_summary.json", '{"status": "lost"}', "compare", "logs"),
        ("training_summary.json", "status", "lost"),
    ),
    Row(
        "a config of a run without groups",
        lambda: run_file("training_config.json", "{}", "compare", "logs"),
        ("training_config.json", "expected a group"),
    ),
    Row("a folder without runs", lambda: ["compare", "new"], ("new", "expected a run folder")),
    # predicting and evaluating
    Row(
        "a scan that is not there", lambda: [*PREDICT[:2], "gone.nii.gz", *PREDICT[3:]], ("gone.nii.gz", "no such file")
    ),
    Row(
        "a folder without scans",
        lambda: (Path("empty").mkdir(), [*PREDICT[:2], "empty", *PREDICT[3:]])[1],
        ("empty", "found none"),
    ),
    Row(
        "a run that is none",
        lambda: ["predict", "new", *PREDICT[2:]],
        ("new", "expected a run folder or a best_model.ckpt"),
    ),
    Row(
        "an output over its input",
        lambda: [*PREDICT[:4], "new", *PREDICT[5:]],
        ("scan.nii.gz is an input", "choose another --output"),
    ),
    Row(
        "a class that the run does not know",
        lambda: [*PREDICT, "--keep_largest", "brain"],
        ("keep_largest", "unknown class 'brain'", "liver"),
    ),
    Row("a format that is none", lambda: [*PREDICT, "--formats", "jpeg"], ("formats", "jpeg", "nifti")),
    Row("an unknown axis to mirror", lambda: [*PREDICT, "--tta=xw"], ("tta", "x, y and z", "xw")),
    Row("a device that is not there", lambda: [*PREDICT, "--device", "cuda:7"], ("cuda:7", "does not exist")),
    Row(
        "a link that leaves the folder of scans",
        lambda: (Path("new/b.nii.gz").symlink_to("../data/labelsTr/a.nii.gz"), [*PREDICT[:2], "new", *PREDICT[3:]])[1],
        ("new/b.nii.gz", "leads out of new", "--follow_links"),
    ),
    Row(
        "a damaged scan",
        lambda: (cut(Path("new/scan.nii.gz"), 500), PREDICT)[1],
        ("scan", "truncated or damaged"),
        1,
        ("out",),
    ),
    Row(
        "predictions without labels",
        lambda: ["evaluate", "--predictions", "data/labelsTr"],
        ("--predictions DIR and --labels DIR",),
    ),
    Row(
        "predictions that are not there",
        lambda: ["evaluate", "--predictions", "nowhere", "--labels", "data"],
        ("nowhere", "no such file"),
    ),
    Row("a prediction on another grid", lambda: evaluation(organs(), organs(), np.diag([3.0, 2, 3, 1])), ("a", "grid")),
    Row("a prediction of no label", lambda: evaluation(organs(), None), ("predictions",)),
    Row(
        "a metrics.json of something else",
        lambda: compared({"format": 0}),
        ("other.json", "metrics.json"),
        2,
        ("predictions",),
    ),
    Row(
        "a metrics.json of other cases",
        lambda: compared({"format": 1, "class_names": ["background", "1"], "cases": []}),
        ("other.json",),
        2,
        ("predictions",),
    ),
    Row("a cache that is none", lambda: ["cache", "info", "--cache_dir", "new"], ("new",)),
]
