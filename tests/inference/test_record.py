"""Records of cases: what they say, and whether an earlier result still holds."""

from __future__ import annotations

import contextlib
import hashlib
import json

import numpy as np
import pytest

from pipeline.inference.record import CaseRecord
from pipeline.writers.segmentation import SegmentationError
from tests.support.tiny_prediction import NAMES, predicted, scan, voxels


def test_the_record_states_volumes_and_geometry(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    report = predicted([run], [path], tmp_path / "out")
    report.write(tmp_path / "report.json")
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    assert json.loads((tmp_path / "report.json").read_text())["cases"] == [record] == report.to_document()["cases"]
    assert record["geometry"]["shape"] == [14, 17, 11]
    assert record["geometry"]["spacing_mm"] == [1, 2, 3]
    assert record["geometry"]["orientation"] == "LAS"
    counts = np.bincount(voxels(tmp_path / "out" / "case.nii.gz").ravel(), minlength=4)
    assert [c["volume_ml"] for c in record["classes"]] == pytest.approx(counts * 0.006)
    assert [c["name"] for c in record["classes"]] == NAMES
    assert set(record["seconds"]) == {"read", "network", "restore", "write"}
    assert record["peak_memory_mb"] > 50
    files = [("case.nii.gz", hashlib.sha256(path.read_bytes()).hexdigest())]
    assert record["source_content"] == hashlib.sha256(repr(files).encode()).hexdigest()
    content = (tmp_path / "out" / "case.nii.gz").read_bytes()
    assert record["contents"] == {"case.nii.gz": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}


@pytest.mark.parametrize("odd", [float("inf"), None, "x", -1, [], {}, True], ids=str)
def test_a_damaged_record_is_refused_or_read_and_never_ends_the_program(run, tmp_path, odd):
    predicted([run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out")
    document = json.loads((tmp_path / "out" / "case.json").read_text())
    for key in document:
        with contextlib.suppress(SegmentationError):
            CaseRecord.from_document(document | {key: odd})
