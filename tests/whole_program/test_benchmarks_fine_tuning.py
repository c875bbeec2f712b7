"""The fine-tuning benchmark: no case is on two sides, and what one structure teaches knows no other."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.fine_tuning import SCRATCH, Study, Training, divide, spread, table
from pipeline.datasets.listing import list_cases

ROOT = Path(__file__).parents[2]


def test_cases_that_are_scored_or_fine_tuned_on_are_on_one_side_alone():
    cases = [f"case{number:03}" for number in range(120)]
    held_out, sources, targets = divide(cases)
    assert sorted(held_out + sources + targets) == cases
    assert (len(held_out), len(sources), len(targets)) == (24, 48, 48)
    for number in (5, 15, 48):
        assert len(set(spread(targets, number))) == number


def test_lists_hold_the_training_cases_and_the_held_out_and_one_structure_hides_the_others(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    label = np.zeros((4, 4, 4), np.uint8)
    label[0], label[1] = 1, 2
    for case in ("a", "b", "c", "d", "ab"):  # the last name begins with another
        for path in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"):
            nib.Nifti1Image(label, np.eye(4)).to_filename(tmp_path / "data" / path)
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "head": 1, "tail": 2}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
    study = Study(tmp_path / "data", tmp_path / "work", ".nii.gz", ["d"], 0)

    def listed(only):
        training = Training(str(only), ("a", "c"), only, 1, SCRATCH, None)
        path = study.case_list(training)
        images = [[Path(image).name for image in entry["image"]] for entry in json.loads(path.read_text())["cases"]]
        assert images == [[f"{case}_0000.nii.gz"] for case in "acd"]
        dataset = list_cases(path)
        labels = {case.id: np.unique(nib.load(case.label).dataobj).tolist() for case in dataset.cases}
        held_out = [entry["case"] for entry in json.loads(path.read_text())["cases"] if entry.get("split") == "test"]
        return dataset.classes.names, labels, held_out

    names, labels, held_out = listed(None)
    assert (tuple(names), labels) == (("background", "head", "tail"), {case: [0, 1, 2] for case in "acd"})
    assert held_out == ["d"]
    names, labels, _ = listed("tail")
    assert (tuple(names), labels) == (("background", "tail"), {case: [0, 2] for case in "acd"})


def test_the_table_has_a_line_for_each_length_and_number_of_cases():
    results = [
        {"start": start, "n_cases": n, "n_steps": steps, "seconds": 90, "dice": {"mean": dice}}
        for steps in (10, 40)
        for n in (5, 48)
        for start, dice in ((SCRATCH, 0.5), ("from one structure", 0.6), ("from other cases", 0.7))
    ]
    _, *lines = table(results).splitlines()
    assert [line.split() for line in lines] == [["1.5", str(n), "0.500", "0.600", "0.700"] for n in (5, 48, 5, 48)]


def test_the_documents_quote_what_the_file_holds():
    results = json.loads((ROOT / "benchmarks" / "results" / "fine_tuning.json").read_text())["trainings"]
    _, *lines = table(results).splitlines()
    expected = [line.split() for line in lines]
    _, _, section = (ROOT / "docs" / "training.md").read_text().partition("| minutes | cases | from scratch |")
    said = [row.strip("| ").split(" | ") for row in section.partition("\n\n")[0].splitlines()[2:]]
    assert said == expected
