"""metrics.json and metrics.csv: their schema, what they hold, and what is read again."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
import threading
from dataclasses import replace

import jsonschema
import nibabel as nib
import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import read_metrics, to_document, write_files
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.report import evaluation_text
from pipeline.files.json_files import LARGEST_JSON, null_for_undefined
from pipeline.runs.stored_scores import TrainedWeights
from tests.support.evaluation import SCHEMA, blobs, save, three_cases, write_names
from tests.support.killed_writer import KILLED
from tests.support.paths import ROOT


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "metrics.csv"])
def test_a_file_of_another_origin_is_not_replaced(folders, name, capsys):
    """The record of a case that is called metrics, or somebody's own table."""
    command = ["evaluate", "--predictions", str(folders / "predictions"), "--labels", str(folders / "labels")]
    assert main([*command, "--surface", "none"]) == main([*command, "--surface", "none"]) == 0
    theirs = folders / "predictions" / name
    theirs.write_text('{"case": "metrics", "status": "done"}')
    capsys.readouterr()
    assert main(command) == 2
    assert (
        "expected none or one of bodyseg evaluate, found another file; choose another --output"
        in capsys.readouterr().err
    )
    assert theirs.read_text() == '{"case": "metrics", "status": "done"}'


def test_metrics_json_fits_its_schema_and_repeats_bit_for_bit(folders):
    missed = blobs(1)
    missed[missed == 2] = 0
    save(missed, folders / "predictions" / "a.nii.gz")
    paths = []
    for workers in (1, 2):
        result = evaluate(folders / "predictions", folders / "labels", ScoringOptions(workers=workers))
        paths.append(write_files(result, folders)[0].read_text("utf-8"))
    documents = [json.loads(text) for text in paths]
    jsonschema.validate(documents[0], SCHEMA)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for document in documents:
        document.pop("created")
    assert documents[0] == documents[1]
    spleen = documents[0]["summary"]["left_out"]["classes"]["spleen"]["hd95_mm"]
    assert (spleen["n"], spleen["n_infinite"]) == (2, 1)
    rows = list(csv.DictReader(io.StringIO((folders / "metrics.csv").read_text("utf-8"))))
    assert rows[0]["case"] == "c"
    assert [row["hd95_mm"] for row in rows if (row["case"], row["class"]) == ("a", "spleen")] == ["inf"]


@pytest.mark.parametrize("surface", ["area", None])
def test_the_definition_of_surfaces_stands_in_the_file_and_none_leaves_them_out(folders, surface):
    by_voxels, result = (
        evaluate(folders / "predictions", folders / "labels", ScoringOptions(surface=s)) for s in ("voxels", surface)
    )
    path, csv_path = write_files(result, folders)
    document = json.loads(path.read_text("utf-8"))
    jsonschema.validate(document, SCHEMA)
    scores = document["cases"][0]["classes"]["liver"]
    assert scores["dice"] == by_voxels.cases[0].dice[1]
    if surface is None:
        assert document["settings"]["surface"] is scores["hd95_mm"] is scores["surface_dice"] is None
        assert document["summary"]["scored"]["classes"]["liver"]["hd95_mm"]["mean"] is None
        assert "left out (--surface none)" in evaluation_text(result)
    else:
        assert document["settings"]["surface"]["kind"] == "area"
        assert "Nikolov" in document["settings"]["surface"]["definition"]
        assert scores["surface_dice"] != by_voxels.cases[0].surface_dice[1]
        assert "weighted by area" in evaluation_text(result)
    assert csv_path.read_text("utf-8").count("\n") == 1 + sum(len(case["classes"]) for case in document["cases"])


def test_totals_are_the_sums_over_cases(folders):
    document = to_document(evaluate(folders / "predictions", folders / "labels"))
    pairs = [
        [np.asarray(nib.load(folders / kind / f"{case}.nii.gz").dataobj) for kind in ("labels", "predictions")]
        for case in "abc"
    ]
    spleen = document["totals"]["spleen"]
    assert spleen["true_positives"] == sum(np.sum((label == 2) & (pred == 2)) for label, pred in pairs)
    assert spleen["false_positives"] == sum(np.sum((label != 2) & (pred == 2)) for label, pred in pairs)
    assert spleen["false_negatives"] == sum(np.sum((label == 2) & (pred != 2)) for label, pred in pairs)
    ml = 0.9 * 1.1 * 2 / 1000
    assert spleen["reference_ml"] == pytest.approx(ml * sum(np.sum(label == 2) for label, _ in pairs))


def test_what_is_written_is_the_document_and_is_read_again(folders):
    evaluation = evaluate(folders / "predictions", folders / "labels")
    assert to_document(evaluation)["networks"] == []
    evaluation = replace(evaluation, networks=(TrainedWeights("run", 3, math.nan, "0" * 64),))
    path, _ = write_files(evaluation, folders)
    text = path.read_text("utf-8")
    document = null_for_undefined(to_document(evaluation))
    jsonschema.validate(document, SCHEMA)
    assert document["networks"] == [{"run": "run", "epoch": 3, "val_mIoU": None, "weights_id": "0" * 64}]
    assert json.loads(text) | {"created": ""} == document | {"created": ""}
    assert sum(line.lstrip().startswith('{"case": ') for line in text.splitlines()) == 3  # a line a case
    stored = read_metrics(path)
    assert (stored.class_names, stored.surface, stored.tolerance_mm) == (evaluation.class_names, "voxels", 2.0)
    assert {case: one.label_sha256 for case, one in stored.cases.items()} == {
        case.case: case.label_sha256 for case in evaluation.cases
    }


def test_the_half_of_a_file_that_a_killed_process_left_is_removed(folders):
    (folders / "out").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(folders / "out" / "metrics.json")], cwd=ROOT, check=False)
    assert [path.suffix for path in (folders / "out").iterdir()] == [".writing"]
    write_files(evaluate(folders / "predictions", folders / "labels", ScoringOptions(surface=None)), folders / "out")
    assert {path.name for path in (folders / "out").iterdir()} == {"metrics.json", "metrics.csv"}


def test_a_file_larger_than_those_of_a_run_is_read(folders):
    """Ten thousand cases of 118 structures take 270 MB; a run's files may have 64 MB."""
    path, _ = write_files(evaluate(folders / "predictions", folders / "labels"), folders)
    with path.open("a", encoding="utf-8") as file:
        file.write(" " * (LARGEST_JSON + 1))
    assert len(read_metrics(path).cases) == 3


def test_subjects_of_a_data_set_lie_beside_their_cases(folders):
    rows = ["case,image,label,subject"]
    for case, subject in zip("abc", ("p1", "p1", "p2"), strict=True):
        save(blobs(9).astype(np.int16), folders / "images" / f"{case}.nii.gz")
        rows.append(f"{case},images/{case}.nii.gz,labels/{case}.nii.gz,{subject}")
    (folders / "cases.csv").write_text("\n".join(rows))
    (folders / "labels" / "labels.json").rename(folders / "labels.json")
    path, csv_path = write_files(evaluate(folders / "predictions", folders / "cases.csv"), folders)
    document = json.loads(path.read_text("utf-8"))
    jsonschema.validate(document, SCHEMA)
    assert (document["n_cases"], document["n_subjects"]) == (3, 2)
    assert {case["case"]: case["subject"] for case in document["cases"]} == {"a": "p1", "b": "p1", "c": "p2"}
    liver = document["summary"]["left_out"]["classes"]["liver"]["dice"]
    assert (liver["n"], liver["n_subjects"]) == (3, 2)
    found = {row["case"]: row["subject"] for row in csv.DictReader(io.StringIO(csv_path.read_text("utf-8")))}
    assert found == {"a": "p1", "b": "p1", "c": "p2"}
    assert read_metrics(path).cases["b"].subject == "p1"


HOLDER = """
import sys
from pathlib import Path
from pipeline.files.lock import take_lock
lock = take_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.mark.fault(
    "two `evaluate` that write into one folder at a time",
    "one after the other: metrics.json and metrics.csv are of the same evaluation",
)
def test_an_evaluation_waits_until_another_has_written_both_of_its_files(folders, tmp_path):
    result = evaluate(folders / "predictions", folders / "labels", ScoringOptions(surface=None, workers=1))
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", HOLDER, str(out / ".metrics.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        ours = threading.Thread(target=write_files, args=(result, out))
        ours.start()
        ours.join(0.2)
        assert [path.name for path in out.iterdir()] == [".metrics.lock"]
        other.stdin.close()
        ours.join(240)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "metrics.json"]


@pytest.mark.fault(
    "class names that are formulas or hold control characters, in metrics.csv",
    "no cell that a spreadsheet would compute, no control character; metrics.json has the names as they are",
)
def test_no_cell_of_the_csv_is_a_formula_or_steers_a_terminal(folders):
    names = ["background", '=HYPERLINK("http://x","y")', "@SUM(1+1)*cmd|' /C calc'!A0", "-2+3", "a\x1b[2J\tb"]
    write_names(folders / "labels", {name: value for value, name in enumerate(names)})
    path, csv_path = write_files(evaluate(folders / "predictions", folders / "labels"), folders)
    assert json.loads(path.read_text("utf-8"))["class_names"] == names
    rows = list(csv.reader(io.StringIO(csv_path.read_text("utf-8"))))
    assert len(rows) > 4
    for cell in (cell for row in rows[1:] for cell in row):
        is_number = cell.removeprefix("-").replace(".", "").replace("e-", "").isdecimal()
        assert is_number or not cell.startswith(("=", "@", "+", "-")), cell
        assert cell.isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", r"expected a metrics\.json of format 2 or 3"),
        ('{"format": 1, "class_names": [], "cases": []}', r"expected a metrics\.json of format 2 or 3"),
        ('{"format": 3, "class_names": [], "cases": [{"case": 1}]}', "expected cases with case, label_sha256"),
        ('{"format": 3, "class_names": [], "cases": 3}', "expected cases with case, label_sha256 and classes"),
    ],
)
def test_another_file_is_refused(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EvaluationError, match=words):
        read_metrics(tmp_path / "x.json")
