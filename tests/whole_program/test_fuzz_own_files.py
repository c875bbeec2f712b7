"""Files that we write ourselves, mutated at random: a result, one line that names the file, or the work done again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from pipeline.cache.folder import INSPECTIONS, SOURCES
from pipeline.cache.key import SourceIndex
from pipeline.checks.remembered_checks import check_changed_cases
from pipeline.cli.main import main
from pipeline.compare import compare
from pipeline.config.files import as_mapping
from pipeline.config.settings import Config, DataConfig
from pipeline.cross_validate import of_fold
from pipeline.datasets.listing import list_cases
from pipeline.evaluate import evaluate
from pipeline.evaluation.comparison import compare_metrics
from pipeline.evaluation.metrics_file import write_files
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.records import notes_on_networks, read_records, table_of_records
from pipeline.files.checked_lines import checked_line, whole_lines
from pipeline.files.json_files import read_json
from pipeline.inference.record import CaseRecord
from pipeline.report_page.report import report
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.study import StudyFolder, StudyRecord
from tests.support.evaluation import three_cases
from tests.support.finished_run import documented_config, finished_run
from tests.support.mutations import EXAMPLES, FUZZ, changed, expected_or, mutated, within_limits
from tests.support.screening import plain
from tests.support.volumes import Folder


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.fault("the JSON files of a run mutated at random", "plot, compare and report name the file, or work")
@pytest.mark.parametrize("name", ["training_config.json", "training_log.json", "training_summary.json"])
def test_a_mutated_run_is_read_or_refused(tmp_path: Path, name: str) -> None:
    more = {
        "model.class_names": ["background", "liver"],
        "data.channel_names": ["CT"],
        "data.split": {"sizes": {"val": 1}},
    }
    config = json.loads(json.dumps(documented_config(**more)))
    first = finished_run(tmp_path / "logs", config)
    shutil.copytree(first.path, tmp_path / "logs" / "second")
    path = tmp_path / "logs" / "second" / name
    whole = path.read_bytes()

    def read_all() -> None:
        second = RunFolder.at(tmp_path / "logs" / "second")
        second.read_log(), second.read_config(), second.read_summary()

    @FUZZ
    @given(changed(json.loads(whole)).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        expected_or(read_all)
        with within_limits(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["compare", str(tmp_path / "logs")]) in (0, 2)
            assert main(["report", str(path.parent), "--output", str(tmp_path / "page.html")]) in (0, 2)
            if name == "training_log.json" and EXAMPLES:  # a picture takes half a second
                assert main(["plot", str(path.parent)]) in (0, 2)

    try_one()


@pytest.mark.fault("the JSON files of a run mutated at random", "plot, compare and report name the file, or work")
def test_mutated_metrics_are_compared_and_reported_or_refused(tmp_path: Path) -> None:
    three_cases(tmp_path)
    options = ScoringOptions(surface=None, workers=1)
    scores = evaluate(tmp_path / "predictions", tmp_path / "labels", options)
    first, _ = write_files(scores, tmp_path / "scores")
    whole = first.read_bytes()

    @FUZZ
    @given(changed(json.loads(whole)).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        second = tmp_path / "second.json"
        second.write_bytes(content)
        expected_or(lambda: compare_metrics(first, second))
        expected_or(lambda: report([second], tmp_path / "page.html", n_cases=1))

    try_one()


@pytest.mark.fault("the record of a cross-validation mutated at random", "read, or refused in one line that names it")
def test_a_mutated_record_of_a_study_is_read_or_refused(tmp_path: Path) -> None:
    config = Config(data=DataConfig(dataset_root="."))
    study = StudyFolder(tmp_path, "study")
    study.path.mkdir()
    folds = {n: {"train": ("a",), "val": (case,), "test": ()} for n, case in enumerate("bc")}
    names = {n: f"fold_{n}_bs2" for n in folds}
    shared = {"window": [-100.0, 200.0], "mean_std": "none"}
    study.write_record(StudyRecord(as_mapping(config), "2 folds", "ab12", folds, shared, ("a note",), run_names=names))
    whole = study.record.read_bytes()

    def read_all() -> None:
        record = study.read_record()
        for number in study.runs_of(record):
            of_fold(config, record, number)

    read_all()

    @FUZZ
    @given(changed(json.loads(whole)).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        study.record.write_bytes(content)
        expected_or(read_all)
        expected_or(lambda: compare([study.path]))

    try_one()


MEMORY = pytest.mark.fault(
    "the cache's own lists (sources.jsonl, inspections.jsonl) mutated at random",
    "a bad line is passed over, and what it was about is hashed or opened again",
)


@MEMORY
def test_a_mutated_memory_of_hashes_costs_hashing_again_at_most(tmp_path: Path) -> None:
    sources, lines = [], []
    for name in "abc":
        path = tmp_path / name
        path.write_bytes(name.encode() * 100)
        status = path.stat()
        stamp = (str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        sources.append(path)
        lines.append([*stamp, hashlib.sha256(path.read_bytes()).hexdigest()])
    whole = b"".join(checked_line(json.dumps(line)) for line in lines)

    def forged(document: Any) -> tuple[bytes, bool]:
        entries = document if isinstance(document, list) else [document]
        return b"".join(checked_line(json.dumps(entry)) for entry in entries), False

    @FUZZ
    @given(changed(lines).map(forged)
           | mutated(whole, len(whole)).map(lambda content: (content, True)))  # fmt: skip
    def try_one(given: tuple[bytes, bool]) -> None:
        content, is_damage = given
        (tmp_path / SOURCES).write_bytes(content)
        with within_limits():
            index = SourceIndex(tmp_path)
            found = [index.content(path) for path in sources]
        if is_damage:  # and no forgery, with a checksum of its own
            assert found == [line[-1] for line in lines]
        assert all(len(one) == 64 for one in found)

    try_one()


@MEMORY
def test_a_mutated_memory_of_inspections_costs_opening_again_at_most(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    folder = Folder(tmp_path / "data")
    folder.write()
    dataset = list_cases(tmp_path / "data" / "cases.json")
    cache = tmp_path / "cache"
    fresh = check_changed_cases(dataset, cache)
    whole = (cache / INSPECTIONS).read_bytes()
    first, *others = whole_lines(cache / INSPECTIONS)
    key, _, document = first.partition(" ")
    rest = b"".join(map(checked_line, others))

    @FUZZ
    @given(changed(json.loads(document)).map(lambda d: (checked_line(f"{key} {json.dumps(d)}") + rest, False))
           | mutated(whole, len(whole)).map(lambda content: (content, True)))  # fmt: skip
    def try_one(given: tuple[bytes, bool]) -> None:
        content, is_damage = given
        (cache / INSPECTIONS).write_bytes(content)
        with within_limits():
            found = check_changed_cases(dataset, cache)
        if is_damage:  # and no forgery, with a checksum of its own
            assert plain(found) == plain(fresh)
        assert len(found) == len(fresh)

    try_one()


@pytest.mark.fault("the record of a segmented case mutated at random", "read, or refused in one line that names it")
def test_a_mutated_record_of_a_prediction_is_read_or_refused(tmp_path: Path) -> None:
    grid = {"shape": [2, 3, 4], "spacing_mm": [1.0, 1.0, 2.0], "orientation": "RAS", "affine": [[1.0] * 4] * 4}
    document = {
        "case": "a",
        "status": "done",
        "source": ["scan.nii.gz"],
        "source_state": "1-2-3",
        "source_content": "0" * 64,
        "files": ["a.nii.gz"],
        "contents": {"a.nii.gz": {"bytes": 3, "sha256": "0" * 64}},
        "not_written": {},
        "geometry": grid | {"kind": "nifti"},
        "classes": [{"value": v, "name": n, "colour": [0, 0, 0], "volume_ml": 1.0} for v, n in enumerate(("b", "c"))],
        "voxels_removed": 0,
        "precision": ["32"],
        "seconds": {"read": 0.1},
        "peak_memory_mb": 100.0,
        "made_by": {"runs": []},
    }
    path = tmp_path / "a.json"
    whole = json.dumps(document).encode()
    path.write_bytes(whole)
    assert CaseRecord.from_document(read_json(path)).case == "a"

    @FUZZ
    @given(changed(document).map(lambda d: json.dumps(d).encode()) | mutated(whole, len(whole)))
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        expected_or(lambda: table_of_records(read_records(tmp_path, ["a"])))
        expected_or(lambda: notes_on_networks(read_records(tmp_path, ["a", "a"]), "prediction"))
        expected_or(lambda: CaseRecord.from_document(read_json(path)))

    try_one()
