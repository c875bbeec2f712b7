"""data.label_remap from what check suggests to training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from pipeline.checks.findings import errors
from pipeline.checks.screening import screen
from pipeline.cli.main import main
from pipeline.datasets.errors import DatasetError
from pipeline.evaluate import evaluate_run
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.scored_case import read_scored_case
from pipeline.training.prepared_data import prepare_data
from tests.support.screening import arguments, record_of, run_of, settings
from tests.support.volumes import Folder, configured, hounsfield, organs, save


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def strange_labels(folder: Folder) -> None:
    """Case b has the liver under 255, and case c a value too many."""
    save(folder.label("b"), np.where(organs() == 3, 255, organs()).astype(np.uint8))
    label = organs()
    label[0, 0, 0] = 77
    save(folder.label("c"), label)


def suggestion(folder: Folder) -> str:
    remedies = {finding.remedy for finding in folder.check().findings if finding.kind == "label_unknown_values"}
    (remedy,) = remedies  # one table for all labels
    return remedy[remedy.index("label_remap: ") :]


def test_the_suggested_remap_can_be_pasted(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    strange_labels(folder)
    table = suggestion(folder)
    assert table == "label_remap: {77: background, 255: liver}"
    pasted = folder.root.parent / "settings.yaml"
    pasted.write_text(f"data:\n  dataset_root: {folder.root / 'cases.json'}\n  {table}\n")
    assert main(["check", "--config", str(pasted), "--no_measure", "--data.cache_dir", "none", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert [c["n_voxels"] for c in report["fingerprint"]["classes"][1:]] == [4 * 27, 4 * 27, 4 * 48]
    assert main(arguments(folder)) == 2
    capsys.readouterr()
    assert main([*arguments(folder), "--config", str(pasted)]) == 0
    assert record_of(folder)["label_remap"] == {"77": "background", "255": "liver"}


def test_remapped_labels_are_prepared_as_if_they_had_been_right(folder: Folder) -> None:
    right = prepare_data(settings(folder)).class_voxels
    strange_labels(folder)
    config = settings(folder, label_remap={"255": "liver", 77: 0})
    prepared = prepare_data(config)
    assert np.array_equal(prepared.class_voxels, right)
    assert prepared.preprocessing.label_remap == {255: 3, 77: 0}


def test_a_run_with_a_remap_evaluates_its_labels_with_it(folder: Folder) -> None:
    strange_labels(folder)
    assert main(arguments(folder, "--data.label_remap", "{255: liver, 77: background}")) == 0
    scores = evaluate_run(run_of(folder), "train", output=folder.root.parent / "scores")
    assert scores.refused == {}
    hashes = {case.pair.case: case.label_sha256 for case in scores.cases}
    assert hashes.keys() == {"a", "b"}
    assert hashes["a"] == hashes["b"]  # the same label but for the value of its liver
    document = to_document(scores)
    assert document["label_remap"] == {"255": "liver", "77": "background"}
    shown = {case["case"]: read_scored_case(case, document).label for case in document["cases"]}
    assert np.array_equal(shown["b"], organs())


def test_no_remap_keeps_the_names_of_cache_entries(folder: Folder) -> None:
    prepared = prepare_data(settings(folder))
    assert "label_remap" not in prepared.preprocessing.arguments()
    before = sorted(path.name for path in (folder.root.parent / "cache").glob("*.bodycase"))
    prepare_data(settings(folder, label_remap={255: "liver"}))
    after = sorted(path.name for path in (folder.root.parent / "cache").glob("*.bodycase"))
    assert len(after) == 2 * len(before) == 8


def test_values_can_be_exchanged_and_many_become_one_class(folder: Folder) -> None:
    swapped = np.array([0, 2, 1, 3], np.uint8)[organs()]
    save(folder.label("c"), swapped)
    facts = screen(settings(folder, label_remap={1: 2, 2: 1})).cases
    sizes = {case.case: case.label.class_voxels.tolist() for case in facts if case.label is not None}
    places = {case.case: case.label.centroids_mm for case in facts if case.label is not None}
    assert sizes["a"] == sizes["c"]
    assert np.array_equal(places["c"][1], places["c"][1])
    assert places["c"][1, 0] < places["c"][2, 0]
    assert places["a"][1, 0] > places["a"][2, 0]
    facts = screen(settings(folder, label_remap={1: 3, 2: "liver"})).cases
    assert facts[0].label is not None
    assert facts[0].label.class_voxels[1:].tolist() == [0, 0, 27 + 27 + 48]
    inverted = screen(settings(folder, label_remap={0: 3, 3: 0})).cases[0].label
    assert inverted is not None
    image = nib.load(folder.label("a"))
    voxels = np.argwhere(np.asanyarray(image.dataobj) == 0)
    assert inverted.centroids_mm[3] == pytest.approx(nib.affines.apply_affine(image.affine, voxels).mean(axis=0))


@pytest.mark.parametrize(
    ("remap", "words"),
    [
        (
            {7: "livr"},
            "data.label_remap: 7: expected a class, ignore, or an index of 0 to 3, found 'livr'; choose one of back",
        ),
        ({7: 4}, "found 4"),
        ({7: -1}, "found -1"),
    ],
)
def test_a_remap_to_no_class_is_refused(folder: Folder, remap: dict, words: str) -> None:
    with pytest.raises(DatasetError) as refused:
        screen(settings(folder, label_remap=remap))
    assert words in str(refused.value)


def test_a_remap_of_masks_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        masks = tmp_path / name / "segmentations"
        masks.mkdir(parents=True)
        save(tmp_path / name / "ct.nii.gz", hounsfield(name))
        save(masks / "liver.nii.gz", (organs() == 3).astype(np.uint8))
    with pytest.raises(DatasetError, match="one mask a structure"):
        screen(configured(tmp_path, data={"label_remap": {7: "liver"}}))


def test_awkward_class_names_survive_the_paste(folder: Folder) -> None:
    folder.labels = {"background": 0, "no": 1, "5": 2, "liver: left, [upper]": 3}
    for index, name in enumerate("abc", start=1):  # one class in each label: two at once could be either
        save(folder.label(name), np.where(organs() == index, 10 * index, organs()).astype(np.uint8))
    table = yaml.safe_load(suggestion(folder))["label_remap"]
    assert table == {10: "no", 20: "5", 30: "liver: left, [upper]"}
    assert errors(screen(settings(folder, label_remap=table)).findings) == ()
