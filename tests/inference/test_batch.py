"""Batches: bad cases and kills lose nothing else, and reading and writing happen while a network works."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from functools import partial
from io import StringIO

import pytest
import torch
from rich.console import Console

from pipeline.cli.main import main
from pipeline.inference.batch import overlapped, segment_cases
from pipeline.inference.inputs import list_inputs
from pipeline.inference.model import load_models
from pipeline.inference.passes import InferenceOptions
from pipeline.writers.outputs import OutputOptions
from pipeline.writers.segmentation import SegmentationError
from tests.support.paths import ROOT
from tests.support.small_disk import small_disk
from tests.support.tiny_prediction import NAMES, checkpoint, predicted, scan, scans
from tests.support.tiny_training import LIMIT_S, SERVER, ended, go_on, is_paused, start, wait_until


def test_the_folder_has_a_colour_table_and_takes_no_other_classes(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    report = predicted([run], [path], out)
    lines = [line.split() for line in (out / "labels.ctbl").read_text().splitlines() if not line.startswith("#")]
    assert [int(line[0]) for line in lines] == [0, 1, 2, 3]
    assert [line[1] for line in lines] == NAMES
    colours = [list(one.colour) for one in report.cases[0].classes]
    assert [[int(part) for part in line[2:5]] for line in lines] == colours
    assert [line[5] for line in lines] == ["0", "255", "255", "255"]
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "left lung", "right lung"])
    with pytest.raises(SegmentationError, match="other classes"):
        predicted([other], [path], out)
    predicted([other], [path], out, overwrite=True)
    assert "left_lung" in (out / "labels.ctbl").read_text()


def test_overwriting_gives_no_other_meaning_to_the_values_of_other_cases(run, tmp_path):
    first, second, out = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz"), tmp_path / "out"
    predicted([run], [first, second], out)
    before = (out / "labels.ctbl").read_bytes()
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "left lung", "right lung"])
    with pytest.raises(SegmentationError, match=r"b\.json: case b was segmented with other classes"):
        predicted([other], [first], out, overwrite=True)
    assert (out / "labels.ctbl").read_bytes() == before
    # Nothing is made of either scan, so nothing may get another name.
    assert predicted([other], [first, second], out, overwrite=True, formats=("dicom",)).n_failed == 2
    assert (out / "labels.ctbl").read_bytes() == before
    assert predicted([other], [first, second], out, overwrite=True).n_done == 2
    assert (out / "labels.ctbl").read_bytes() != before


def test_a_format_that_a_scan_does_not_allow_does_not_lose_the_others(run, tmp_path, capsys):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    command = ["predict", str(run), str(path), "--output", str(out), "--device", "cpu", "--formats", "dicom,nifti"]
    for outcome in ("1 done, 0 skipped, 0 failed", "0 done, 1 skipped, 0 failed"):
        assert main(command) == 1
        counts, heading, line, *_ = capsys.readouterr().out.splitlines()
        assert (counts, heading) == (outcome, "Formats that were not written:")
        assert line.startswith("  case: dicom: ")
        assert "DICOM series" in line
        assert sorted(file.name for file in out.iterdir()) == ["case.json", "case.nii.gz", "labels.ctbl"]


def test_a_scan_that_allows_none_of_the_formats_keeps_its_earlier_result(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predicted([run], [path], out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    other = checkpoint(tmp_path / "other.ckpt", seed=1)
    report = predicted([other], [path], out, formats=("dicom",), overwrite=True)
    assert "DICOM series" in report.cases[0].error
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


WRITES = """
import sys, time
from pathlib import Path
from pipeline.files.atomic import write_atomically
def write(stream):
    stream.write(b"half")
    stream.flush()
    print("half", flush=True)
    sys.stdin.read()
write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.parametrize("name", ["case", "c" * 180])
def test_only_dead_processes_files_in_progress_are_removed(run, tmp_path, name):
    path, out, root = scan(tmp_path / f"{name}.nii.gz"), tmp_path / "out", ROOT
    out.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": root}
    with subprocess.Popen([sys.executable, "-c", WRITES, out / f"{name}.nii.gz"], **pipes) as alive:
        assert alive.stdout.readline() == b"half\n"
        with subprocess.Popen([sys.executable, "-c", WRITES, out / f"{name}.nii.gz"], **pipes) as killed:
            assert killed.stdout.readline() == b"half\n"
            killed.kill()
        assert len(list(out.glob(".*"))) == 2
        predicted([run], [path], out)
        (left,) = out.glob(".*")
        assert f".{alive.pid}." in left.name
        alive.stdin.close()
        assert alive.wait() == 0
    assert (out / f"{name}.nii.gz").read_bytes() == b"half"
    assert list(out.glob(".*")) == []


def test_the_next_is_read_and_the_last_is_written_while_one_is_computed():
    steps = [f"{step} {item}" for step in ("read", "write") for item in range(3)]
    begun = {step: threading.Event() for step in steps}
    needed = {0: ["read 1"], 1: ["read 2", "write 0"], 2: ["write 1"]}
    in_vain = []

    def read(item):
        begun[f"read {item}"].set()
        return item

    def compute(item, read_item):
        # If any of these began only after the computation, the wait would be in vain.
        in_vain.extend(step for step in needed[item] if not begun[step].wait(timeout=240))
        return read_item

    def write(item):
        begun[f"write {item}"].set()
        return f"written {item}"

    assert list(overlapped(range(3), read, compute, write)) == [(n, f"written {n}") for n in range(3)]
    assert in_vain == []


@pytest.mark.parametrize("broken", ["read", "compute", "write"])
def test_an_item_that_fails_in_any_step_is_yielded_with_its_error_and_the_others_are_finished(broken):
    def step(name, item):
        if (name, item) == (broken, 1):
            raise ValueError(name)
        return item

    def compute(item, _):
        return step("compute", item)

    outcomes = dict(overlapped(range(3), partial(step, "read"), compute, partial(step, "write")))
    assert outcomes.keys() == {0, 1, 2}
    assert str(outcomes[1]) == broken
    assert (outcomes[0], outcomes[2]) == (0, 2)


def test_a_terminal_shows_a_bar_over_the_batch_and_one_for_the_case(run, tmp_path):
    scans(tmp_path / "in", 2)
    console = Console(file=StringIO(), force_terminal=True, width=80)
    predicted([run], [tmp_path / "in"], tmp_path / "out", tta="x", console=console)
    whole, part = console.file.getvalue().splitlines()[-3:-1]
    assert "Predicting" in whole
    assert "2/2" in whole
    assert "case1" in part
    assert "100%" in part


def die_of_a_large_file(limit, run, folder, out):
    """Predict, and be ended in the middle of a file that grows beyond the limit (Python itself ignores that signal)."""
    sys.dont_write_bytecode = True  # Python 3.13.0 leaves half a file where the limit cuts it, and fails to import it
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    predicted([run], [folder], out, threads=1)


@pytest.mark.fault(
    "the process is killed in the middle of writing a prediction",
    "no half file under a result's name; the same command goes on with that case, and the results are the same",
)
def test_a_batch_killed_while_it_writes_leaves_whole_files_and_goes_on(run, tmp_path):
    scans(tmp_path / "in", 3)
    scan(tmp_path / "in" / "case1.nii.gz", shape=(80, 81, 82))  # larger than the others
    at_once, out = tmp_path / "at once", tmp_path / "out"
    predicted([run], [tmp_path / "in"], at_once)
    sizes = [(at_once / f"case{number}.nii.gz").stat().st_size for number in range(3)]
    records = max(path.stat().st_size for path in at_once.glob("*.json"))
    limit = sizes[1] - 50
    assert limit > max(sizes[0], records)
    process = SERVER.Process(target=die_of_a_large_file, args=(limit, run, tmp_path / "in", out))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == -signal.SIGXFSZ
    assert {path.name for path in out.glob("[!.]*")} == {"labels.ctbl", "case0.nii.gz", "case0.json"}
    assert len(list(out.glob(".case1*.writing"))) == 1  # the half file, under a name of its own
    again = predicted([run], [tmp_path / "in"], out)
    assert [record.status for record in again.cases] == ["skipped", "done", "done"]
    assert list(out.glob(".*")) == []
    for number in range(3):
        name = f"case{number}.nii.gz"
        assert (out / name).read_bytes() == (at_once / name).read_bytes()


@pytest.mark.fault("a truncated scan in a batch", "named at the end with the reason; all the others are segmented")
def test_a_batch_goes_on_after_a_bad_case_and_says_which_and_why(run, tmp_path):
    scans(tmp_path / "in", 3)
    damaged = tmp_path / "in" / "case1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    report = predicted([run], [tmp_path / "in"], tmp_path / "out")
    assert [record.status for record in report.cases] == ["done", "failed", "done"]
    assert report.to_text().splitlines()[:2] == ["2 done, 0 skipped, 1 failed", "Scans that failed:"]
    assert report.to_text().splitlines()[2].startswith("  case1: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case0.json", "case0.nii.gz", "case2.json", "case2.nii.gz", "labels.ctbl",
    ]  # fmt: skip


def test_a_dicom_seg_of_a_nifti_fails_that_case_only(run, tmp_path):
    report = predicted([run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", formats=("dicom",))
    assert "DICOM series" in report.cases[0].error


def test_a_scan_that_cannot_be_accessed_is_named_and_the_others_are_done(run, tmp_path):
    scan(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "unmounted")
    report = predicted([run], [tmp_path / "in"], tmp_path / "out")
    assert [(record.case, record.status) for record in report.cases] == [("a", "failed"), ("b", "done")]
    assert f"{tmp_path / 'in' / 'a'}: cannot be read (a link to" in report.cases[0].error


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


@pytest.mark.fault(
    "the disk of the results is full", "the batch ends after the first refusal: no further scan is computed; exit 1"
)
def test_a_full_disk_ends_the_batch_after_the_first_refusal(run, tmp_path, disk):
    scans(tmp_path / "in", 12)
    for number in range(12):
        scan(tmp_path / "in" / f"case{number}.nii.gz", shape=(80, 81, 82), seed=number)
    computed = []
    models = load_models([run], torch.device("cpu"))
    records = segment_cases(
        models,
        list_inputs([tmp_path / "in"]),
        OutputOptions(disk, models[0].class_names),
        InferenceOptions(precision="32"),
        case_progress=lambda case, share: computed.append(case),
    )
    n_done = sum(record.status == "done" for record in records)
    errors = [record.error for record in records if record.status == "failed"]
    assert n_done >= 1
    assert len(errors) >= 4
    # the disk itself refuses the case that is written first, and at most the one computed and the two read meanwhile
    assert 1 <= sum("not segmented" not in error for error in errors) <= 4
    assert all("No space left on device" in error for error in errors)
    assert "not segmented, since the results of another case could not be written" in errors[-1]
    assert len(set(computed)) <= n_done + 3  # those in progress when the disk refused, not all


def pause_at_the_second_record():
    """Be a prediction that stops itself (SIGSTOP) when the record of its second case is about to be there."""

    def watch(event, arguments):
        if event == "os.rename" and str(arguments[1]).endswith("case1.json"):
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(watch)


@pytest.mark.fault(
    "SIGTERM or SIGHUP during a prediction",
    "the result being written is finished, one line says how many are done; the same command goes on",
)
@pytest.mark.parametrize(
    ("number", "code", "flags", "advice"),
    [
        (signal.SIGTERM, 143, [], "the same command goes on with the others"),
        (
            signal.SIGHUP,
            129,
            ["--overwrite"],
            "the same command does all of them again, and without --overwrite goes on",
        ),
    ],
)
def test_a_batch_that_is_asked_to_stop_ends_orderly_and_goes_on(run, tmp_path, number, code, flags, advice):
    scans(tmp_path / "in", 12)
    out, output = tmp_path / "out", tmp_path / "said.txt"
    arguments = [
        "predict",
        str(run),
        str(tmp_path / "in"),
        "--output",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "32",
        *flags,
    ]
    process = start(arguments, output, pause_at_the_second_record)
    assert wait_until(lambda: is_paused(process), process), output.read_text()
    go_on(process, number)
    said = ended(process, None, output, code=code)
    n_finished = len(list(out.glob("*.json")))
    assert 2 <= n_finished < 12
    line = f"stopped by {signal.Signals(number).name}; {n_finished} of 12 scans are finished; {advice}"
    assert line in said.splitlines()[-1]
    assert list(out.glob(".*")) == []
    assert len(list(out.glob("*.nii.gz"))) == n_finished
    report = predicted([run], [tmp_path / "in"], out)
    assert (report.n_skipped, report.n_done) == (n_finished, 12 - n_finished)


def test_how_often_the_output_folder_is_listed_does_not_grow_with_the_number_of_scans(run, tmp_path):
    asked: list[str] = []
    seen = asked.append  # pathlib has its own name for os.scandir from Python 3.13 on: every listing is audited instead
    sys.addaudithook(lambda event, args: seen(str(args[0])) if event in ("os.scandir", "os.listdir") else None)
    listed = {}
    for n_scans in (1, 4):
        out, paths = tmp_path / f"out{n_scans}", [scan(tmp_path / f"{n_scans}_{n}.nii.gz") for n in range(n_scans)]
        asked.clear()
        assert predicted([run], paths, out, per_structure=True).n_done == n_scans
        listed[n_scans] = asked.count(str(out))
        assert all(asked.count(str(out / path.name[:3] / "segmentations")) <= 4 for path in paths)
    assert listed[1] == listed[4] > 0
    seen = lambda path: None  # noqa: E731 - a hook cannot be taken away
