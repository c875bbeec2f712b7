"""The steps of one case: what runs out of memory says so; what was repaired for a DICOM SEG is in the record."""

from __future__ import annotations

import json
import resource
from functools import partial

import psutil
import pytest

from tests.support.tiny_prediction import predicted, scan
from tests.support.tiny_training import ended, start
from tests.support.volumes import write_series


def leave_little_memory(megabytes):
    """Take no more memory than this, once everything is imported."""
    import pipeline.inference.batch  # noqa: F401

    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))


@pytest.mark.fault("memory runs out while a scan is read or prepared", "its line says memory, and what helps")
def test_memory_that_runs_out_while_a_scan_is_prepared_is_said_with_a_remedy(run, tmp_path):
    path, output = scan(tmp_path / "big.nii.gz", shape=(260, 260, 260)), tmp_path / "said.txt"
    command = ["predict", str(run), str(path), "--output", str(tmp_path / "out"), "--device", "cpu", "--threads", "1"]
    said = ended(start(command, output, partial(leave_little_memory, 100)), None, output, code=1)
    (line,) = (line for line in said.splitlines() if line.startswith("  big: "))
    assert "memory" in line
    assert "applying transform" not in line
    assert ";" in line


def test_a_new_study_uid_of_a_dicom_seg_is_told_to_scripts(run, tmp_path):
    write_series(tmp_path / "series", [0, 3, 6, 9])  # without the UIDs of study and frame of reference
    (case,) = predicted([run], [tmp_path / "series"], tmp_path / "out", formats=("dicom",)).to_document()["cases"]
    record = json.loads((tmp_path / "out" / "series.json").read_text())
    assert record["warnings"] == case["warnings"]
    assert any("StudyInstanceUID and FrameOfReferenceUID blank" in text for text in record["warnings"])
