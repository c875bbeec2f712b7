"""What the records of predict say of its results: classes of masks, networks; cases called as other files are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import EvaluationError
from pipeline.evaluation.records import notes_on_networks, read_records, table_of_records
from pipeline.evaluation.report import evaluation_text
from pipeline.writers.segmentation import file_names
from tests.support.evaluation import blobs, save, three_cases, write_names
from tests.support.tiny_prediction import checkpoint, predicted, scan

ALIKE = ["background", "kidney (left)", "kidney left", "kidney left 2"]
"""Names of which two make one file name, and the third is what the second of them was once called."""


def test_masks_are_of_the_classes_that_their_record_says_whatever_their_files_are_called(tmp_path):
    source = scan(tmp_path / "in" / "a.nii.gz")
    predicted([checkpoint(tmp_path / "m.ckpt", names=ALIKE)], [source], tmp_path / "masks", per_structure=True)
    (tmp_path / "truth" / "maps").mkdir(parents=True)
    (tmp_path / "masks" / "a.nii.gz").rename(tmp_path / "truth" / "maps" / "a.nii.gz")
    write_names(tmp_path / "truth", {name: value for value, name in enumerate(ALIKE)})
    for path in ("masks", "masks/a", "masks/a/segmentations"):
        result = evaluate(tmp_path / path, tmp_path / "truth" / "maps")
        assert (result.class_names, result.notes) == (
            tuple(ALIKE),
            ("the predictions were made by run0, in precision 32",),
        )
        assert np.array_equal(result.cases[0].prediction_ml, result.cases[0].reference_ml)
        assert result.cases[0].mean_dice == 1
    # Earlier versions gave the files other names, and their records say which.
    folder, record = tmp_path / "masks" / "a" / "segmentations", tmp_path / "masks" / "a.json"
    renamed = dict(zip(file_names(ALIKE)[1:], ("kidney_left", "kidney_left_2", "kidney_left_2_2"), strict=True))
    document = json.loads(record.read_text())
    document["files"] = [f"a/segmentations/{name}.nii.gz" for name in renamed.values()]
    record.write_text(json.dumps(document))
    contents = {name: (folder / f"{name}.nii.gz").read_bytes() for name in renamed}
    for new, old in renamed.items():
        (folder / f"{new}.nii.gz").unlink(missing_ok=True)
        (folder / f"{old}.nii.gz").write_bytes(contents[new])
    earlier = evaluate(tmp_path / "masks", tmp_path / "truth" / "maps").cases[0]
    assert np.array_equal(earlier.prediction_ml, earlier.reference_ml)


def write_record(folder, case, names, *, run="run0"):
    """As much of a record as decides; value and name of each class, and the run."""
    document = {
        "case": case,
        "classes": [{"value": value, "name": name} for value, name in names.items()],
        "made_by": {"runs": [{"name": run, "checkpoint_sha256": run}], "settings": {"passes": {"flip": []}}},
    }
    (folder / f"{case}.json").write_text(json.dumps(document))


@pytest.mark.parametrize("case", ["labels", "class_names"])
def test_the_record_of_a_case_called_labels_is_no_table_of_classes(tmp_path, case):
    save(blobs(1, n_classes=3), tmp_path / "truth" / "maps" / f"{case}.nii.gz")
    save(np.array([0, 7, 5], np.uint8)[blobs(1, n_classes=3)], tmp_path / "predictions" / f"{case}.nii.gz")
    write_names(tmp_path / "truth", {"background": 0, "liver": 1, "spleen": 2})
    write_record(tmp_path / "predictions", case, {0: "background", 5: "spleen", 7: "liver"})
    result = evaluate(tmp_path / "predictions", tmp_path / "truth" / "maps")
    assert result.class_names == ("background", "liver", "spleen")
    assert result.cases[0].mean_dice == 1


def test_results_of_two_networks_in_one_folder_are_noted(tmp_path):
    folders = three_cases(tmp_path)
    names = {0: "background", 1: "liver", 2: "spleen", 3: "left", 4: "right"}
    for case in "abc":
        write_record(folders / "predictions", case, names)
    assert evaluate(folders / "predictions", folders / "labels").notes == ("the predictions were made by run0",)
    write_record(folders / "predictions", "c", names, run="run1")
    result = evaluate(folders / "predictions", folders / "labels")
    wanted = (
        "the predictions were made by 2 different networks or settings, and are scored as if by one",
        "the predictions of a, b were made by run0",
        "the predictions of c were made by run1",
    )
    assert (result.notes, tuple(to_document(result)["notes"])) == (wanted, wanted)
    assert all(line in evaluation_text(result) for line in wanted)


def test_a_record_that_does_not_say_what_made_it_is_of_a_network_without_name(tmp_path):
    names = {0: "background", 1: "liver"}
    for case in "ab":
        write_record(tmp_path, case, names)
    (tmp_path / "a.json").write_text(json.dumps({"classes": [{"value": v, "name": name} for v, name in names.items()]}))
    records = read_records(tmp_path, "ab")
    assert "the predictions of a were made by a network without name" in notes_on_networks(records, "prediction")
    assert notes_on_networks(records[:1], "prediction") == ()


def test_scores_say_how_the_predictions_were_made(tmp_path):
    source, out = scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    runs = [checkpoint(tmp_path / f"{seed}.ckpt", seed) for seed in (3, 4)]
    unusual = {"tta": "xz", "roi": (16, 12, 16), "step": 0.8, "keep_largest": ("liver",), "min_volume_ml": 0.1}
    said = []
    for how in ({"precision": "auto"}, unusual):
        predicted(runs, [source], out, overwrite=True, **how)
        said.append(evaluate(out / "a.nii.gz", out / "a.nii.gz").notes[0])
    assert said == [
        "the predictions were made by run3 + run4",
        "the predictions were made by run3 + run4, mirrored along xz, in windows of 16×12×16 voxels, windows 0.8 of "
        "their size apart, in precision 32, only the largest piece of liver, without pieces below 0.1 ml",
    ]


def test_a_record_without_classes_is_passed_over_and_one_with_strange_ones_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"RepetitionTime": 2}))
    assert table_of_records(read_records(tmp_path, ["a", "b"])) is None
    (tmp_path / "b.json").write_text(json.dumps({"classes": [{"name": "liver"}]}))
    with pytest.raises(EvaluationError, match=r"b\.json: expected classes with value and name"):
        read_records(tmp_path, ["a", "b"])
