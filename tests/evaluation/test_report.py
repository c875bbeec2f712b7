"""The table of an evaluation: what it counts, names and leaves out."""

from __future__ import annotations

import csv
import io
import itertools

import nibabel as nib
import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import to_document, write_files
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.report import evaluation_text
from tests.support.evaluation import blobs, save, three_cases, write_names


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


def test_labels_without_a_prediction_are_counted(folders):
    (folders / "predictions" / "b.nii.gz").unlink()
    result = evaluate(folders / "predictions", folders / "labels")
    assert result.labels_without_prediction == ("b",)
    assert "labels without a prediction: 1 (b)" in evaluation_text(result)
    _, csv_path = write_files(result, folders)
    assert {row["case"] for row in csv.DictReader(io.StringIO(csv_path.read_text("utf-8")))} == {"a", "c"}


def test_predictions_without_a_label_are_left_out_and_named(folders):
    save(blobs(1), folders / "predictions" / "d.nii.gz")
    result = evaluate(folders / "predictions", folders / "labels")
    assert (result.predictions_without_label, result.exit_code) == (("d",), 0)
    assert "predictions without a label, left out: 1 (d)" in evaluation_text(result)


def test_the_mean_distance_says_how_many_structures_it_leaves_out(folders):
    missed = blobs(1)
    missed[missed == 2] = 0
    save(missed, folders / "predictions" / "a.nii.gz")
    assert " mm without 1 missed" in evaluation_text(evaluate(folders / "predictions", folders / "labels"))


def test_small_scans_have_as_many_decimals_as_their_numbers_need(folders):
    for path in [*folders.glob("*/*.nii.gz")]:
        array = np.asarray(nib.load(path).dataobj).copy()
        array[:, :9] *= path.parent.name == "labels"  # predicted too small
        save(array, path, np.diag([0.15, 0.15, 0.15, 1]))
    result = evaluate(folders / "predictions", folders / "labels")
    liver = result.summaries["left_out"]["liver"]
    assert 0 < abs(liver["volume_difference_ml"].mean) < 0.02
    assert "error µl" in evaluation_text(result)
    line = next(line for line in evaluation_text(result).splitlines() if line.startswith("liver"))
    assert float(line.split()[-2]) == pytest.approx(1000 * liver["volume_difference_ml"].mean, abs=0.005)
    assert float(line.split()[-4]) == pytest.approx(liver["hd95_mm"].mean, abs=0.005)


def columns_of(text):
    """The table of the text, whatever parts it has: {heading: {structure: cell}}, by the places of its cells."""
    found, lines = {}, text.splitlines()
    for number, line in enumerate(lines):
        if not line or set(line) != {"─"}:
            continue
        above = next(n for n in range(number, -1, -1) if not lines[n])
        below = next(n for n in range(number, len(lines) + 1) if n == len(lines) or not lines[n])
        block = lines[above + 1 : number] + lines[number + 1 : below]
        width = max(map(len, block))
        blank = [all(row.ljust(width)[c] == " " for row in block) for c in range(width)]
        edges = [0, *(c for c in range(1, width) if blank[c - 1] and not blank[c]), width]
        cells = [[row[i:j].strip() for i, j in itertools.pairwise(edges)] for row in block]
        n_headings = number - above - 1
        headings = [" ".join(filter(None, part)) for part in zip(*cells[:n_headings], strict=True)]
        for c, heading in enumerate(headings[1:], start=1):
            found[heading] = {row[0]: row[c] for row in cells[n_headings:]}
    return found


@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_at_any_width_the_table_says_the_same_and_nothing_is_broken(folders, width):
    missed = blobs(1)
    missed[missed == 2] = 0
    save(missed, folders / "predictions" / "a.nii.gz")
    result = evaluate(folders / "predictions", folders / "labels")
    text = evaluation_text(result, width)
    assert max(map(len, text.splitlines())) <= (width or 1000)
    table = columns_of(text)
    for name, metrics in result.summaries["left_out"].items():
        assert table["Dice"][name] == f"{metrics['dice'].mean:.4f}"
        assert table["cases"][name] == str(metrics["dice"].n)
        assert float(table["volume error ml"][name]) == pytest.approx(metrics["volume_difference_ml"].mean, abs=0.005)
        assert table["surface Dice"][name] == f"{metrics['surface_dice'].mean:.4f}"
        assert table["cases missed"][name] == str(metrics["hd95_mm"].n_infinite or "")
    assert "95 % interval" not in table  # of three cases there is none
    unbroken = " ".join(evaluation_text(result).split())
    assert all(word in unbroken.split() for word in text.split() if "─" not in word)


def test_a_missed_structure_is_counted_where_no_distance_is_measured(folders):
    missed, sheared = blobs(1), np.diag([1.0, 1, 1, 1])
    sheared[0, 2] = 0.3
    missed[missed == 2] = 0
    save(missed, folders / "predictions" / "a.nii.gz", sheared)
    save(blobs(1), folders / "labels" / "a.nii.gz", sheared)
    for surface in ("voxels", None):
        result = evaluate(folders / "predictions", folders / "labels", ScoringOptions(surface=surface))
        counted = columns_of(evaluation_text(result))["cases missed"]
        assert counted == {"liver": "", "spleen": "1", "left": "", "right": ""}
        summary = to_document(result)["summary"]
        assert [summary[absent]["mean_over_classes"]["n_missed"] for absent in ("left_out", "scored")] == [1, 1]


def test_a_name_from_a_file_cannot_steer_the_terminal(folders):
    write_names(folders / "labels", {"background": 0, "a\x1b[2J": 1, "spleen": 2, "left": 3, "right": 4})
    text = evaluation_text(evaluate(folders / "predictions", folders / "labels"))
    assert "\x1b" not in text
    assert "a\N{REPLACEMENT CHARACTER}[2J" in text
