"""Devices: what the settings, the machine and a launcher allow together."""

from __future__ import annotations

import pytest
import torch

from pipeline.compute.devices import (
    Devices,
    choose_device,
    choose_devices,
    choose_precision,
    cpu_computes_in_bfloat16,
    shared_threads,
)
from pipeline.config.settings import ConfigError, TrainingConfig

BY_TORCHRUN = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
BY_SLURM = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "1",
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu07",
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """Take this process for one that a launcher started: a function of the launcher's variables."""

    def launch(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("n_gpus", "n_processes", "started", "message"),
    [
        (0, 3, "2", r"training.n_processes is 3, but torchrun started 2 .*n_processes 2"),
        (64, None, "1", r"training.n_gpus is 64, but this machine has \d+; lower --n_gpus"),
    ],
)
def test_settings_that_contradict_the_launcher_are_refused(launched, n_gpus, n_processes, started, message):
    launched(BY_TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": started})
    with pytest.raises(ConfigError, match=message):
        choose_devices(n_gpus, n_processes, "32")


@pytest.mark.parametrize(
    ("launcher", "n_gpus", "words"),
    [
        (BY_SLURM, None, "SLURM started 4 .* this one sees 1 .* as with --gpus-per-task .* use --gpus-per-node=4"),
        (BY_SLURM, 4, "SLURM started 4 .* this one sees 1 .* as with --gpus-per-task .* use --gpus-per-node=4"),
        (BY_TORCHRUN, None, "torchrun started 4 .* sees 1 of its GPUs; have torchrun start 1, or give --n_gpus 0"),
    ],
)
def test_processes_that_see_too_few_gpus_are_told_one_cause_and_one_remedy(
    launched, monkeypatch, launcher, n_gpus, words
):
    launched(launcher)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # what CUDA_VISIBLE_DEVICES leaves of four
    with pytest.raises(ConfigError, match=words):
        choose_devices(n_gpus, None, "32")
    assert choose_devices(0, None, "32") == Devices("cpu", per_machine=4, n_machines=1, precision="32-true")


@pytest.mark.parametrize(
    ("present", "n_gpus", "n_processes", "expected"),
    [
        (0, None, None, ("cpu", 1)),
        (2, None, None, ("gpu", 1)),
        (2, 2, None, ("gpu", 2)),
        (2, 0, None, ("cpu", 1)),
        (2, None, 3, ("cpu", 3)),
    ],
)
def test_alone_one_gpu_is_taken_where_there_is_one_and_otherwise_what_was_asked_for(
    monkeypatch, present, n_gpus, n_processes, expected
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    devices = choose_devices(n_gpus, n_processes, "16")
    assert (devices.accelerator, devices.per_machine) == expected
    assert devices.n_processes == expected[1]
    assert devices.n_gpus == (expected[1] if expected[0] == "gpu" else 0)
    on_cpu = "bf16-mixed" if cpu_computes_in_bfloat16() else "32-true"
    assert devices.precision == ("16-mixed" if devices.n_gpus else on_cpu)
    assert devices.trainer_arguments()["strategy"] == ("ddp" if devices.n_processes > 1 else "auto")


def test_a_number_of_cpu_processes_beside_gpus_is_refused():
    with pytest.raises(ConfigError, match=r"training\.n_processes is 3, but 2 GPUs make 2 processes; leave it out"):
        TrainingConfig(n_gpus=2, n_processes=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:99", "device cuda:99 does not exist; this machine has"),
        ("gpu", "expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        ("meta", "device meta does not exist"),
        ("", "expected auto, cpu, cuda or cuda:N, found ''"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        choose_device(name)


def test_a_prediction_computes_in_bfloat16_where_the_device_does():
    cpu = torch.device("cpu")
    assert choose_precision("32", cpu) == "32"
    assert choose_precision("bf16", cpu) == "bf16"
    fast = "bf16" if cpu_computes_in_bfloat16() else "32"
    assert choose_precision("auto", cpu) == choose_precision("auto", cpu, "bf16-mixed") == fast
    assert choose_precision("auto", cpu, "32-true") == choose_precision("auto", cpu, "16-mixed") == "32"
    assert choose_precision("auto", torch.device("cuda"), "16-mixed") == "16"
    with pytest.raises(ConfigError, match="expected auto, 32, bf16 or 16, found '64'"):
        choose_precision("64", cpu)
    with pytest.raises(ConfigError, match=r"16 \(float16\) needs a GPU"):
        choose_precision("16", cpu)


@pytest.mark.parametrize(
    ("environment", "n", "inside"),
    [
        ({}, 2, 3),
        ({}, 8, 1),
        ({}, 1, 5),
        ({"OMP_NUM_THREADS": "5"}, 2, 5),
        (BY_TORCHRUN, 2, 5),
        (BY_TORCHRUN | {"BODYSEG_STARTED_BY": "1"}, 2, 3),
        (BY_SLURM, 2, 5),
    ],
    ids=["two", "many", "alone", "OMP_NUM_THREADS", "torchrun", "started by this program", "SLURM"],
)
def test_processes_of_a_machine_share_its_cores_as_threads(launched, monkeypatch, environment, n, inside):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launched(environment)
    monkeypatch.setattr("pipeline.compute.devices.available_cores", lambda: 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        with shared_threads(n):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)
