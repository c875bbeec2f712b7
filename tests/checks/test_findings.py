"""Findings: their kind comes from the error, never from the words or paths in its message."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pipeline.check import check
from pipeline.checks.findings import HEADINGS, BadDataError, Finding, findings_document, from_error, refuse_errors
from tests.support.paths import ROOT
from tests.support.volumes import Folder
from transforms.io.errors import VolumeError

PLAIN = ["plain", "affine_registered", "sheared_tests", "quaternion, expected 3 axes", "no orientation"]


def test_the_name_of_a_folder_does_not_change_what_is_found(tmp_path: Path) -> None:
    """Registered data often lie in folders with "affine" in the name: one list, one fault, five folders."""
    found = []
    for name in PLAIN:
        data = tmp_path / name
        data.mkdir()
        folder = Folder(data)
        folder.write()
        (data / "b.txt").write_text("no volume")
        folder["c"]["image"] = "b.txt"
        folder.write()
        (finding,) = check(data).findings
        found.append((finding.kind, finding.case, finding.expected, finding.found, finding.remedy))
        assert finding.file == str(data / "b.txt")
    assert len(set(found)) == 1
    assert found[0][:2] == ("not_a_volume", "c")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_no_gantry_tilt(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "sheared_tests")
    folder.image("a").chmod(0)
    (finding,) = (finding for finding in check(folder.root).findings if finding.case == "a")
    assert finding.kind == "unreadable"


def test_an_error_becomes_a_finding_field_by_field() -> None:
    error = VolumeError("bad_affine", "/data/sheared_tests/a.nii", "a finite affine", "nan", "repair the header")
    assert from_error(error, case="a") == Finding(
        "error", "bad_affine", "a", "/data/sheared_tests/a.nii", "a finite affine", "nan", "repair the header"
    )
    assert from_error(error.of_case("b"), case="a").case == "b"


def test_a_refusal_has_a_line_for_every_error_and_one_that_sums_up() -> None:
    bad = [Finding("error", "unreadable", str(n), "a.nii", "a file", "none", "copy it") for n in range(103)]
    warning = Finding("warning", "odd_spacing", "w", "w.nii", "mm", "cm", "correct it")
    refuse_errors([warning], "repair them")  # warnings refuse nothing
    with pytest.raises(BadDataError) as refused:
        refuse_errors([warning, *bad], "repair them")
    lines = refused.value.lines
    assert lines[0] == "case 0: a.nii: expected a file, found none; copy it"
    assert lines[100:] == (
        "and 3 more errors; bodyseg check lists all",
        "103 errors in the data in 103 cases; repair them",
    )


def test_every_kind_of_error_has_a_heading() -> None:
    """The kinds that source files raise, read from their text."""
    kinds = set()
    for folder in ("transforms/io", "pipeline/checks", "pipeline/datasets"):
        for source in (ROOT / folder).glob("*.py"):
            text = source.read_text(encoding="utf-8")
            kinds |= set(re.findall(r'(?:VolumeError|DatasetError)\(\s*"(\w+)"', text))
            kinds |= set(re.findall(r'(?:Finding|notes\.add)\(\s*"(?:error|warning)",\s*"(\w+)"', text))
    assert kinds - HEADINGS.keys() == set()


def test_a_record_has_an_entry_for_each_cause_and_counts_its_findings() -> None:
    """Numbers make no other cause, but for label values."""
    spacings = [Finding("warning", "odd_spacing", f"c{n}", f"{n}.nii", "1 mm", f"{n} mm", "look") for n in range(30)]
    values = [Finding("warning", "label_unknown_values", "a", "a.nii", "0-3", f"{n}", "remap") for n in (7, 8)]
    whole, seven, eight = findings_document([spacings[0], values[0], *spacings[1:], values[1]])
    assert (whole["n_findings"], whole["found"], whole["file"]) == (30, "0 mm", "0.nii")
    assert whole["cases"] == [f"c{n}" for n in range(20)]
    assert (whole["numbers_differ"], seven["numbers_differ"]) == (True, False)
    assert (seven["found"], eight["found"], eight["n_findings"]) == ("7", "8", 1)


def test_a_case_with_many_findings_of_one_cause_is_recorded_once() -> None:
    """As of the masks of a case, of each of which the header describes two positions."""
    masks = [
        Finding("warning", "sform_qform", f"s{case:02d}", f"organ{mask}.nii", "one position", "two", "look")
        for case in range(23)
        for mask in range(31)
    ]
    (three,) = findings_document(masks[: 3 * 31])
    assert (three["n_findings"], three["n_cases"], three["cases"]) == (93, 3, ["s00", "s01", "s02"])
    (many,) = findings_document(masks)
    assert (many["n_findings"], many["n_cases"], many["cases"]) == (23 * 31, 23, [f"s{case:02d}" for case in range(20)])
    (of_the_set,) = findings_document([Finding("warning", "setting", "", "data", "one", "two", "look")])
    assert (of_the_set["n_cases"], of_the_set["cases"]) == (0, [])
