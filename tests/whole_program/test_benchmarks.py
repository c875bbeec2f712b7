"""The benchmarks: every row runs at toy size and its methods agree; processes, ratios, goals and tables are right."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import deadline, gpu, loading, report, runner, scale, way_back
from benchmarks.__main__ import main
from benchmarks.measure import measure
from benchmarks.measurement import Measurement
from benchmarks.rows import FULL, REDUCED, ROWS, TOY, Places
from benchmarks.runner import Comparison, Goal, Job, Row, largest_difference, run_comparison, run_job, run_row
from benchmarks.worker import call
from pipeline.cache import key

IN_PROCESS = (
    "losses", "metric", "surfaces", "restore", "window", "prediction", "large_scan", "step", "step_loss",
    "loading", "patches", "augmentation", "curve",
)  # fmt: skip
PEERS_WARNINGS = (
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*isinstance\\(treespec, LeafSpec\\).*",
    "ignore:.*have no `val_dataloader`.*",
    "ignore:.*is all 0, this may result in nan/inf distance",  # a tiny volume does not hold all structures
    "ignore:NvImgCodecPydicomReader.*",  # MONAI asks for every reader it could have
    "ignore:.*always_return_as_numpy.*:FutureWarning",  # inside MONAI 1.6
)


@pytest.fixture
def in_this_process(monkeypatch):
    """Run jobs here: a process for each would take seconds to import the libraries."""
    monkeypatch.setattr(runner, "run_job", lambda job: json.loads(json.dumps(call(job.function, job.arguments))))


def scripted(monkeypatch, *found):
    """Let the jobs find these in turn; what was asked for comes back as a list."""
    asked, answers = [], iter(found)
    monkeypatch.setattr(runner, "run_job", lambda job: asked.append(job) or next(answers))
    return asked


def measured(seconds, extra=None, value=()):
    return {"seconds": [seconds], "extra_bytes": extra, "peak_bytes": extra, "value": list(value), "facts": {}}


A_AND_B = {"A": Job("row.a"), "B": Job("row.b")}


# The rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(*PEERS_WARNINGS)
@pytest.mark.parametrize("name", IN_PROCESS)
def test_both_methods_of_every_row_run_and_agree(name, in_this_process):
    row = ROWS[name](TOY, Places())
    found = run_row(row, lambda line: None)
    assert len(found["comparisons"]) == len(row.comparisons)
    for comparison, asked in zip(found["comparisons"], row.comparisons, strict=True):
        assert all(method["seconds"] > 0 for method in comparison["methods"].values())
        if name not in ("augmentation", "patches", "large_scan"):  # random draws, or only one program
            assert asked.same_value or asked.name == "MONAI's UNet, batch 2"
        if asked.same_value:
            assert comparison["difference"] <= asked.tolerance


@pytest.mark.parametrize("axis", range(3))
def test_a_flipped_way_back_does_not_agree(axis):
    sizes = {"source_size": (20, 24, 28), "size": (16, 16, 16)}
    label = way_back._our_way(**sizes, n_classes=5, noise=True)()
    right, flipped = (way_back.agreement(voxels, 5) for voxels in (label, np.flip(label, axis)))
    assert largest_difference(right[:5], flipped[:5]) == 0
    assert largest_difference(right, flipped) > 0.05  # fifty times what the row tolerates


@pytest.mark.filterwarnings(*PEERS_WARNINGS)
def test_loading_is_timed_without_the_summary_of_what_was_loaded(monkeypatch, tmp_path):
    loading.prepare(str(tmp_path), (24, 24, 30), (16, 16, 32))
    summed, times, summary = [], [], loading.summary_of
    monkeypatch.setattr(loading, "summary_of", lambda case: summed.append(1) or summary(case))

    def timed(work, n, value):
        work()
        times.append(len(summed))
        return measure(work, n=n, value=value)

    monkeypatch.setattr(loading, "measure", timed)
    for method in (loading.plain, loading.uncached, loading.second_epoch):
        assert method(str(tmp_path), (16, 16, 32), n=2).value
    assert times == [0, 1, 2]  # one summary a method, none while the work runs


@pytest.mark.filterwarnings(*PEERS_WARNINGS)
def test_a_whole_epoch_of_both_loops_on_real_scans(shared_data, tmp_path):
    from benchmarks import epoch

    root, few = shared_data / "hippocampus", tmp_path / "few"
    for folder in ("imagesTr", "labelsTr"):
        (few / folder).mkdir(parents=True)
        for path in sorted((root / folder).iterdir())[:10]:
            shutil.copy(path, few / folder)
    (few / "dataset.json").write_text(
        json.dumps(json.loads((root / "dataset.json").read_text()) | {"numTraining": 10}), encoding="utf-8"
    )
    for method in (epoch.plain, epoch.ours):
        found = method(str(tmp_path / "runs"), str(few), n_epochs=2, base_channels=2)
        assert len(found.seconds) == 1
        assert found.seconds[0] > 0
        assert found.facts["precision"] in ("32-true", "bf16-mixed")
        assert 0 <= found.facts["val_mIoU"] <= 1
    (config,) = tmp_path.glob("runs/*/logs/*/training_config.json")
    split = json.loads(config.read_text())["data"]["split"]
    for path in tmp_path.glob("runs/*/cases.json"):  # the plain loop read one of these lists, ours the other
        cases = json.loads(path.read_text())["cases"]
        for part in ("train", "val"):
            assert sorted(case["case"] for case in cases if case["split"] == part) == sorted(split[part])
    # A second repeat in the same folder finds neither the first one's log nor its cache.
    again = epoch._config(str(tmp_path / "runs"), str(few), 2, 2)
    assert not Path(again.experiment.log_dir).exists()
    assert not Path(again.data.cache_dir).exists()


def test_an_epoch_that_was_not_seen_to_end_is_no_time():
    from benchmarks import epoch

    assert epoch._measurement({1: 10.0, 2: 11.0, 3: 13.0}, 0, {}).seconds == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"found \[5, 1, 2\]"):
        epoch._measurement({5: 9.0, 1: 10.0, 2: 11.0}, 0, {})


@pytest.mark.filterwarnings(*PEERS_WARNINGS)
def test_what_a_gpu_row_counts_can_be_counted_on_a_cpu(tmp_path):
    gpu.prepare(str(tmp_path), [24, 24, 30], [16, 16, 32])
    small = {"base_channels": 2, "n_steps": 4, "device": "cpu", "precision": "32-true", "matrix_size": 64}
    found = gpu.ours(str(tmp_path), [16, 16, 32], **small)
    assert isinstance(found, Measurement)
    assert len(found.seconds) == 2  # between the ends of four steps, of which the first quarter warms up
    assert 0 < found.facts["share_of_matrix_rate"] < 1000
    assert math.isfinite(found.facts["data_s"])


def test_operations_of_a_step_are_three_times_those_of_the_forward_convolutions():
    from benchmarks.inputs import N_PHANTOM_CLASSES

    class OneConvolution(gpu.torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = gpu.torch.nn.Conv3d(1, 4, 3, padding=1, bias=False)
            self.head = gpu.torch.nn.Conv3d(4, N_PHANTOM_CLASSES, 1)

    voxels = 32 * 32 * 32
    convolution, head = 2 * 27 * 4 * voxels, 2 * 4 * N_PHANTOM_CLASSES * voxels
    # The image needs no gradient; the head runs forward twice (once more in the loss's backward pass).
    expected = 2 * convolution + 4 * head
    # Products with vectors, a few percent, come on top.
    assert gpu._operations(OneConvolution(), [32, 32, 32], 1) == pytest.approx(expected, rel=0.1)


def test_no_time_is_taken_where_gradients_are_wrong(tmp_path, monkeypatch):
    class TwiceTheGradient(gpu.SlabDiceCELoss):
        calls = 0

        def forward(self, *arguments, **named):
            TwiceTheGradient.calls += 1
            found = super().forward(*arguments, **named)
            return found._replace(loss=found.loss * TwiceTheGradient.calls)

    monkeypatch.setattr(gpu, "SlabDiceCELoss", TwiceTheGradient)
    found = gpu.ours(str(tmp_path), [16, 16, 32], base_channels=4, device="cpu", precision="32-true")
    assert found.reason == "gradients on cpu differ from the CPU's by 100.0%: no time is worth taking"


def test_a_start_asks_at_most_twice_about_each_file_of_a_further_case(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SETTLED_S", 0.0)
    monkeypatch.setattr(key, "SETTLED_NS", 0)
    asked = {n: scale.second_start(str(tmp_path), n, 3).facts["stat_calls_a_file"] * n * 4 for n in (5, 10)}
    assert 5 * 4 <= asked[10] - asked[5] <= 5 * (2 * 4 + 4)  # each of four files twice, and the case's own entry


def test_without_a_gpu_the_row_says_so_and_nothing_else(in_this_process, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    found = run_row(ROWS["gpu"](FULL, Places()), lambda line: None)
    assert found["comparisons"] == []
    assert report.lines_of(found)[0][1:] == ("", "", "", "", "", "no GPU: not measured")


@pytest.mark.parametrize("size", [FULL, REDUCED])
def test_every_row_names_functions_that_exist(size):
    import importlib

    for make in ROWS.values():
        for comparison in make(size, Places("anywhere", "anywhere")).comparisons:
            for job in (*comparison.methods.values(), *filter(None, [comparison.prepare])):
                module, name = job.function.split(".")
                assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), name))


def test_the_documented_size_is_the_full_one():
    assert all(c.settings[0]["size"] == [160, 160, 256] for c in ROWS["step"](FULL, Places()).comparisons[:3])
    assert [c.settings[0]["n_classes"] for c in ROWS["losses"](FULL, Places()).comparisons] == [2, 16, 71, 118]


# Processes --------------------------------------------------------------------------------------------------------


def test_a_process_of_its_own_measures():
    found = run_job(Job("startup._seconds", {"command": [sys.executable, "-c", "pass"], "n": 2}))
    assert len(found["seconds"]) == 2


def test_another_program_is_measured_by_its_own_interpreter(monkeypatch, tmp_path):
    started = []
    start = runner.subprocess.Popen
    monkeypatch.setattr(
        runner.subprocess,
        "Popen",
        lambda command, **options: started.append(command) or start(["echo", "{}"], **options),
    )
    (comparison,) = ROWS["prediction"](TOY, Places(nnunet=str(tmp_path))).comparisons
    job = comparison.methods["nnU-Net"]
    assert run_job(job) == {}
    assert started[0][:3] == [str(tmp_path / "python"), "-m", "benchmarks.worker"]


def test_what_runs_in_another_programs_environment_needs_none_of_ours():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['monai', 'psutil', 'jaxtyping', 'pytorch_lightning', 'pipeline']);"
        "import benchmarks.worker, benchmarks.nnunet_prediction, benchmarks.plain_unet"
    )
    subprocess.run([sys.executable, "-c", code], cwd=runner.ROOT, check=True)


def test_a_process_that_takes_too_much_memory_is_killed_and_said_so(monkeypatch):
    memory = SimpleNamespace(available=runner.SPARE_BYTES + (100 << 20))  # whatever other programs take meanwhile
    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: memory)
    hungry = [sys.executable, "-c", "pass"]
    monkeypatch.setattr(
        runner.subprocess, "Popen", _instead(hungry, "import time; x = b'1' * 300_000_000; time.sleep(600)")
    )
    assert run_job(Job("any.thing"))["killed"].startswith("killed for memory at 0.")


def _instead(command, code, start=runner.subprocess.Popen):
    return lambda _, **options: start([*command[:2], code], **options)


@pytest.mark.parametrize(
    ("code", "killed"),
    [
        ("import os; os.kill(os.getpid(), 9)", True),
        ("raise MemoryError", True),
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes")', True),
        ("raise ValueError('no such size')", False),
    ],
)
def test_the_kernels_kill_and_an_allocators_refusal_count_as_killed_and_nothing_else(monkeypatch, code, killed):
    monkeypatch.setattr(runner.subprocess, "Popen", _instead([sys.executable, "-c"], code))
    if killed:
        assert "killed for memory" in run_job(Job("any.thing"))["killed"]
    else:
        with pytest.raises(runner.BenchmarkError, match=r"any\.thing ended with code 1: ValueError: no such size"):
            run_job(Job("any.thing"))


def test_the_peak_is_that_of_the_work_alone():
    # A process of its own, as the benchmarks have: one that has trained keeps what it frees (pipeline.allocator).
    code = """
from benchmarks.measure import measure
bytearray(300_000_000)  # before the work: must not count
found = measure(lambda: [float(len(bytearray(100_000_000)))])
print(found.extra_bytes, found.value[0])
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=runner.ROOT, capture_output=True, text=True, check=True)
    extra, value = map(float, run.stdout.split())
    assert extra == pytest.approx(100e6, rel=0.05)
    assert value == 1e8


# Comparisons ------------------------------------------------------------------------------------------------------


def test_methods_are_measured_in_turn_and_medians_compared(monkeypatch):
    times = (6, 1, 8, 2, 40, 4)
    asked = scripted(monkeypatch, *[measured(t, extra=t * 10) for t in times])
    found = run_comparison(Comparison("c", A_AND_B, repeats=3), lambda line: None)
    assert [job.function for job in asked] == ["row.a", "row.b"] * 3
    assert found["methods"]["A"]["seconds"] == 8
    assert found["ratios"] == {"B": {"faster": 4.0, "memory": 0.25}}


def test_a_killed_method_is_not_tried_again_and_has_no_ratio_but_is_beaten(monkeypatch):
    asked = scripted(monkeypatch, {"killed": "killed for memory after 3 s"}, measured(1, 7), measured(3, 7))
    goal = Goal(faster=5, memory=0.2, peak_gb=1e-9)
    found = run_comparison(Comparison("c", A_AND_B, repeats=2, goal=goal), lambda line: None)
    assert [job.function for job in asked] == ["row.a", "row.b", "row.b"]
    assert found["ratios"] == {}
    assert list(found["goals"].values()) == [True, True, False]


def test_the_largest_volume_is_taken_where_no_method_is_killed(monkeypatch):
    asked = scripted(monkeypatch, {"killed": "…"}, measured(2, 8), {"killed": "…"}, measured(2, 8), measured(1, 2))
    sizes = [{"size": [n]} for n in (9, 8, 7)]
    found = run_comparison(Comparison("c", A_AND_B, sizes, repeats=1), lambda line: None)
    assert [job.arguments["size"] for job in asked] == [[9], [8], [8], [7], [7]]
    assert (found["settings"], found["too_large"]) == ({"size": [7]}, sizes[:2])


def test_methods_that_do_not_agree_are_refused(monkeypatch):
    scripted(monkeypatch, measured(1, 1, [1.0, 2.0]), measured(1, 1, [1.0, 2.1]))
    comparison = Comparison("c", A_AND_B, repeats=1, same_value=("A", "B"), tolerance=0.01)
    with pytest.raises(runner.BenchmarkError, match=r"the values of A, B differ by 0\.048, at most 0\.01 is allowed"):
        run_comparison(comparison, lambda line: None)


def test_differences_are_relative_and_undefined_values_agree_only_with_each_other():
    assert largest_difference([4.0, math.nan, math.inf, 0.0], [5.0, math.nan, math.inf, 0.0]) == pytest.approx(0.2)
    assert largest_difference([math.nan], [1.0]) == math.inf
    assert largest_difference([1.0], [1.0, 2.0]) == math.inf


# Results ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(monkeypatch, tmp_path):
    found = [measured(8, 4e9), measured(2, 1e9), {"killed": "killed for memory after 3 s"}, measured(0.25, 1.02e9)]
    scripted(monkeypatch, *found)
    goal = Goal(faster=5)
    row = Row("loss", [Comparison(f"{n} classes", A_AND_B, repeats=1, goal=goal) for n in (2, 118)], flat_method="B")
    monkeypatch.setitem(ROWS, "losses", lambda scale, data: row)
    assert main(["--rows", "losses", "--hippocampus", "/home/me/scans", "--full", "--output", str(tmp_path)]) == 0
    return tmp_path


def test_results_tell_machine_versions_command_and_date_but_no_path(results):
    text = (results / "losses.json").read_text()
    found = json.loads(text)
    assert found["command"] == "python -m benchmarks --full --rows losses --hippocampus DIR"
    assert str(Path.home()) not in text
    assert "/home/me" not in text
    assert set(found["machine"]) >= {"cpu", "cores", "memory_gib"}
    assert found["versions"]["torch"] == gpu.torch.__version__
    assert found["memory_spread"] == pytest.approx(1.02)


def test_the_table_is_made_from_the_files(results, capsys):
    capsys.readouterr()
    assert main(["--table", "--output", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("`python -m benchmarks --full --rows losses --hippocampus DIR`: ")
    assert "| loss: 2 classes | A | 8 s | +4.00 GB |  |  |  |" in lines
    assert "| loss: 2 classes | B | 2 s | +1.00 GB | 4× | 0.25 | MISSED: at least 5× faster |" in lines
    assert "| loss: 118 classes | A | killed for memory after 3 s |  |  |  |  |" in lines
    assert "| loss: 118 classes | B | 250 ms | +1.02 GB |  |  | met: at least 5× faster |" in lines
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_an_unknown_row_lists_the_known_ones(capsys):
    assert main(["--rows", "speed"]) == 2
    assert "unknown row 'speed'; known are losses, metric" in capsys.readouterr().err


def test_a_failed_row_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def fail(job):
        raise runner.BenchmarkError("row.a ended with code 1: ValueError: no")

    monkeypatch.setattr(runner, "run_job", fail)
    assert main(["--rows", "curve,epoch", "--output", str(tmp_path)]) == 1
    assert "row curve: row.a ended with code 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["epoch.reduced.json"]


# Accuracy by the clock --------------------------------------------------------------------------------------------


def test_held_out_cases_are_in_no_training(tmp_path):
    for case in range(12):
        for name in (
            f"imagesTr/c{case:02}_0000.nii.gz",
            f"imagesTr/c{case:02}_0001.nii.gz",
            f"labelsTr/c{case:02}.nii.gz",
        ):
            path = tmp_path / "all" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    names = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "all" / "dataset.json").write_text(json.dumps(names))
    train, test = deadline.hold_out(tmp_path / "all", tmp_path / "work")
    labels = {part: sorted(path.name[:3] for path in part.glob("labelsTr/*")) for part in (train, test)}
    assert labels == {train: [f"c{i:02}" for i in range(12) if i not in (2, 7)], test: ["c02", "c07"]}
    for part, cases in labels.items():
        assert sorted(path.name for path in part.glob("imagesTr/*")) == [
            f"{c}_000{k}.nii.gz" for c in cases for k in (0, 1)
        ]
