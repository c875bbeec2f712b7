"""Load trained networks from runs."""

from __future__ import annotations

import hashlib

import pytest
import torch

from networks.errors import NetworkError
from pipeline.compare import compare
from pipeline.files import regular
from pipeline.files.atomic import FileError
from pipeline.inference import model as models_module
from pipeline.inference.model import load_models
from pipeline.inference.passes import InferenceOptions
from pipeline.inference.postprocessing import PostprocessingOptions
from pipeline.inference.record import provenance
from pipeline.inference.segmenter import Segmenter
from pipeline.predict import predict
from pipeline.report_page.report import report
from pipeline.runs.stored_scores import weights_id
from pipeline.writers.outputs import OutputOptions
from tests.support.tiny_prediction import NAMES, checkpoint, predicted, scan


def test_runs_of_other_classes_cannot_be_joined(run, tmp_path):
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "liver", "spleen"])
    with pytest.raises(NetworkError, match="equal class names, found 4 and 3;"):
        predicted([run, other], [scan(tmp_path / "case.nii.gz")], tmp_path / "out")


@pytest.mark.parametrize(
    ("others", "words"),
    [(("PET", "CT"), "channel 0 'CT' and 'PET'"), (("CT",), "2 and 1;")],
    ids=["another order", "fewer"],
)
def test_runs_of_other_channels_cannot_be_joined(tmp_path, others, words):
    runs = [
        checkpoint(tmp_path / f"{number}.ckpt", seed=number, channels=channels)
        for number, channels in enumerate([("CT", "PET"), others])
    ]
    with pytest.raises(NetworkError, match=f"cannot be joined: expected equal channels, found {words}"):
        load_models(runs, torch.device("cpu"))


@pytest.mark.parametrize("key", ["channel_names", "flips", "precision", "scans", "run"])
def test_a_checkpoint_of_an_earlier_version_loads(tmp_path, key):
    (model,) = load_models([checkpoint(tmp_path / "m.ckpt", extra={key: None})], torch.device("cpu"))
    assert model.n_channels == 1
    assert model.class_names == tuple(NAMES)


@pytest.mark.parametrize(
    "more", [{"comment": "fold 2"}, {"optimizer": {"step": torch.zeros(2)}}], ids=["words", "tensors"]
)
def test_a_checkpoint_to_which_somebody_added_something_loads(tmp_path, more):
    files = [checkpoint(tmp_path / f"{len(extra)}.ckpt", extra=extra) for extra in ({}, more)]
    first, second = (load_models([file], torch.device("cpu"))[0].results_id for file in files)
    assert (first == second != "") == ("comment" in more)


def test_weights_of_two_layers_in_each_others_place_give_other_results(tmp_path):
    first = checkpoint(tmp_path / "a.ckpt")
    content = torch.load(first, weights_only=True)
    weights = list(content["state_dict"].items())
    shapes = [value.shape for _, value in weights]
    one = next(n for n, shape in enumerate(shapes) if shape in shapes[n + 1 :])
    other = shapes.index(shapes[one], one + 1)
    names = [name for name, _ in weights]
    names[one], names[other] = names[other], names[one]
    content["state_dict"] = dict(zip(names, (value for _, value in weights), strict=True))
    torch.save(content, tmp_path / "b.ckpt")
    before, after = (load_models([tmp_path / f"{file}.ckpt"], torch.device("cpu"))[0].results_id for file in "ab")
    assert before != after


@pytest.mark.parametrize(
    "damaged",
    [
        {"run": torch.zeros(0)},
        {"precision": torch.zeros(2)},
        {"scans": {"orientations": ["\x1b[31m"], "spacing_mm": [[1, 1, 1]] * 2, "extent_mm": [[9, 9, 9]] * 2}},
    ],
    ids=["run", "precision", "scans"],
)
def test_a_checkpoint_whose_words_are_none_is_refused_by_file(tmp_path, damaged):
    path = checkpoint(tmp_path / "m.ckpt", extra=damaged)
    with pytest.raises(NetworkError, match=f"{path}: expected the"):
        load_models([path], torch.device("cpu"))


def replace(path, seed):
    """As a training does that finds a better epoch: at one stroke, by another file."""
    checkpoint(path.with_name("next"), seed=seed).replace(path)


def recorded(model, tmp_path) -> str:
    """The hash that the records of this model's results have."""
    outputs = OutputOptions(tmp_path / "out", model.class_names)
    document = provenance([model], InferenceOptions(), PostprocessingOptions(), outputs)
    return document["runs"][0]["checkpoint_sha256"]


def test_a_training_that_replaces_the_weights_changes_no_record_of_those_that_are_in_memory(tmp_path):
    path = checkpoint(tmp_path / "best_model.ckpt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (model,) = load_models([path], torch.device("cpu"))
    replace(path, seed=1)
    assert recorded(model, tmp_path) == digest != hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("when", ["read_checkpoint", "weights_id"])
def test_weights_that_are_replaced_while_they_are_read_are_read_again(tmp_path, monkeypatch, when):
    path, real, seeds = checkpoint(tmp_path / "best_model.ckpt"), getattr(models_module, when), [1]

    def then_replaced(path):
        found = real(path)
        if seeds:
            replace(path, seeds.pop())
        return found

    monkeypatch.setattr(models_module, when, then_replaced)
    (model,) = load_models([path], torch.device("cpu"))
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in model.network.state_dict().items())
    assert model.trained.weights_id == weights_id(path)
    assert recorded(model, tmp_path) == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(regular, "MOST_READS", 2)
    monkeypatch.setattr(models_module, when, lambda path: (replace(path, 2), real(path))[1])
    with pytest.raises(NetworkError, match="expected a file that stays, found another one after each reading"):
        load_models([path], torch.device("cpu"))


def test_a_list_without_runs_is_refused(tmp_path):
    for call, error in (
        (lambda: Segmenter([]), NetworkError),
        (lambda: predict([], [tmp_path], tmp_path / "out"), NetworkError),
        (lambda: compare([]), FileError),
        (lambda: report([], tmp_path / "page.html"), FileError),
    ):
        with pytest.raises(error, match="found none; name one"):
            call()
    assert not list(tmp_path.iterdir())
