"""Several processes that train together: their places, their common loss, one and the same training, common ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.cli.main import main
from pipeline.compute import launcher as companions_room
from pipeline.compute.devices import Devices, choose_devices
from pipeline.compute.ranks import Place, ProcessError, first_node, gathered, highest, place, tell_failure
from pipeline.config.files import to_yaml
from pipeline.config.settings import (
    Config,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
)
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.runs.run_folder import RunFolder
from pipeline.train import name_of, train
from tests.support.paths import ROOT

FORK = multiprocessing.get_context("fork")
GRID = (9, 10, 11)
N_CLASSES = 7


# ---- where a process stands

BY_TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2",
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[07-08]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        (BY_TORCHRUN, Place(5, 8, 1, 4, 1, "node1", 29500, "torchrun")),
        (SLURM, Place(3, 4, 1, 2, 1, "gpu07", 15000 + 4567, "SLURM")),
        # torchrun in a job step of one task a node
        (SLURM | {"SLURM_NTASKS": "2"} | BY_TORCHRUN, Place(5, 8, 1, 4, 1, "node1", 29500, "torchrun")),
        # a batch script itself is no task of a step, whatever SLURM_NTASKS says
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}, Place()),
        # a step of one task in a job of several
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, Place()),
        (SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}, Place(3, 4, 1, 2, 1, "head", 4000, "SLURM")),
    ],
)
def test_a_process_knows_its_place_from_what_torchrun_and_slurm_set(environment, expected):
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu1", "gpu07"), ("gpu3", "gpu3"), ("a1,a2", "a1"), ("n[1,3].cluster", "n1.cluster"), ("", "")],
)
def test_the_first_host_of_a_node_list_is_found(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (BY_TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is missing; torchrun sets it"),
        (BY_TORCHRUN | {"LOCAL_RANK": "one"}, "LOCAL_RANK: expected a number of 0 or more, found 'one'"),
        (SLURM | {"SLURM_NTASKS": "3"}, "SLURM runs 3 tasks on 2 nodes.*--ntasks-per-node"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(environment, message):
    with pytest.raises(ProcessError, match=message):
        place(environment)


# ---- the loss


N_SAMPLES = (4, 3, 1)


class Training(nn.Module):
    """A network and its loss, as Lightning wraps them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, N_CLASSES, 1)
        weights = torch.linspace(0.2, 2, N_CLASSES)
        self.loss = SlabDiceCELoss(weights, ignore_index=255, memory_budget_mb=0.01)

    def forward(self, image, label, counted=None):
        return self.loss(self.body(image), self.head, label, across_processes=True, counted=counted)


def batch_of(n_samples):
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(n_samples, 1, *GRID, generator=generator)
    label = torch.randint(0, N_CLASSES, (n_samples, 1, *GRID), generator=generator)
    label[-1][label[-1] > 2] = 0  # classes that one process never sees
    label[:, :, 0] = 255
    return image, label


def train_a_step(rank, world_size, rendezvous, queue):
    """Take every world_size-th of four samples; those beyond `n_samples` only fill up, in the last case all of a
    process."""
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    try:
        results = []
        for n_samples in N_SAMPLES:
            torch.manual_seed(1)
            network = Training()
            wrapped = DistributedDataParallel(network)
            image, label = batch_of(n_samples)
            mine = [index % n_samples for index in range(rank, 4, world_size)]
            counted = [index < n_samples for index in range(rank, 4, world_size)]
            result = wrapped(image[mine], label[mine], counted)
            result.loss.backward()
            counts = [int(gathered(n[None]).sum()) for n in (result.n_correct, result.n_voxels)]
            gradients = [p.grad.numpy() for p in network.parameters()]
            results.append((float(result.loss.detach()), gradients, counts))
        queue.put((rank, results, highest(10 * rank, torch.device("cpu"))))
    finally:
        dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one_with_all_samples(tmp_path):
    queue = FORK.Queue()
    processes = [FORK.Process(target=train_a_step, args=(r, 2, tmp_path / "rendezvous", queue)) for r in range(2)]
    for process in processes:
        process.start()
    got = sorted((queue.get(timeout=60) for _ in processes), key=lambda one: one[0])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [highest for *_, highest in got] == [10, 10]
    for case, n_samples in enumerate(N_SAMPLES):
        torch.manual_seed(1)
        alone = Training()
        image, label = batch_of(n_samples)
        expected = alone(image, label)
        expected.loss.backward()
        for _, results, _ in got:
            loss, gradients, counts = results[case]
            assert loss == pytest.approx(float(expected.loss.detach()), rel=1e-6)
            for gradient, parameter in zip(gradients, alone.parameters(), strict=True):
                assert torch.allclose(torch.from_numpy(gradient), parameter.grad, rtol=1e-5, atol=1e-6)
            assert counts == [int(expected.n_correct), int(expected.n_voxels)]
        logits = alone.head(alone.body(image))[:, :, 1:]  # the first plane is ignored
        theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=alone.loss.class_weights)
        assert got[0][1][case][0] == pytest.approx(float(theirs(logits, label[:, :, 1:]).detach()), rel=1e-5)


# ---- one and the same training

N_EPOCHS = 3
N_TRAIN, N_VAL = 5, 3  # odd: on two processes each side has to be filled up


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One process with batch size 2; the learning rate is so low that float32 has no time to drift apart."""
    work = tmp_path_factory.mktemp("work")
    write_dataset(work / "phantoms", n_cases=N_TRAIN + N_VAL, seed=1, voxel_mm=16.0)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (work / "phantoms" / "labelsTr").iterdir())
    described = json.loads((work / "phantoms" / "dataset.json").read_text())
    cases = [
        {
            "case": name,
            "image": f"imagesTr/{name}_0000.nii.gz",
            "label": f"labelsTr/{name}.nii.gz",
            "split": "train" if number < N_TRAIN else "val",
        }
        for number, name in enumerate(names)
    ]
    listed = {"labels": described["labels"], "channel_names": ["CT"], "cases": cases}
    (work / "phantoms" / "list.json").write_text(json.dumps(listed))
    return Config(
        experiment=ExperimentConfig(name="alone", log_dir=str(work / "logs")),
        data=DataConfig(
            dataset_root=str(work / "phantoms" / "list.json"),
            target_size=(24, 20, 40),
            batch_size=2,
            num_workers=0,
            data_aug=True,
            cache_dir=str(work / "cache"),
        ),
        model=ModelConfig(base_channels=4),
        training=TrainingConfig(lr=1e-5, max_epochs=N_EPOCHS, warmup_epochs=1, n_gpus=0, precision="32"),
        loss=LossConfig(use_class_weights=True),
    )


def devices_of(config: Config) -> Devices:
    return choose_devices(config.training.n_gpus, config.training.n_processes, config.training.precision)


def in_two(config, name, **training):
    """The same training for two processes: each with half of the batch."""
    return replace(
        config,
        experiment=replace(config.experiment, name=name),
        data=replace(config.data, batch_size=1),
        training=replace(config.training, **training),
    )


def write_settings(config):
    path = Path(config.experiment.log_dir).parent / f"{config.experiment.name}.yaml"
    path.write_text(to_yaml(config))
    return path


def start(config, *flags, launcher=()):
    """Start a training as a person does, or a launcher of one; FORCE_COLOR shows a bar as on a terminal."""
    command = [sys.executable, *launcher, str(ROOT / "train_body.py"), "--config", str(write_settings(config)), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1", "COLUMNS": "200"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--nproc_per_node",
    "2",
    "--rdzv_backend=c10d",
    "--rdzv_endpoint=localhost:0",
)


def run_task(arguments, environment, output):
    """What one task of srun does, in a process that has imported everything already."""
    os.environ.update(environment)
    sys.stdout = sys.stderr = output.open("w")  # multiprocessing flushes them
    sys.exit(main(arguments))


def start_tasks(config, *flags):
    """Two tasks of one node, as srun starts them, as far as a task can see."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    nodes = {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    arguments = ["train", "--config", str(write_settings(config)), *flags]
    outputs = [Path(config.experiment.log_dir).parent / f"{config.experiment.name}_{rank}.txt" for rank in range(2)]
    tasks = []
    for rank, output in enumerate(outputs):
        environment = job | nodes | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        tasks.append(FORK.Process(target=run_task, args=(arguments, environment, output)))
        tasks[-1].start()
    return tasks, outputs


def folder_of(config):
    return RunFolder(Path(config.experiment.log_dir), name_of(config))


def history(config):
    return json.loads(folder_of(config).log.read_text())["training_history"]


def weights(config):
    return torch.load(folder_of(config).best_checkpoint, weights_only=True)["state_dict"]


def wait_for_an_epoch(process, config, limit_s=240):
    began = time.monotonic()
    while time.monotonic() - began < limit_s and process.poll() is None:
        log = folder_of(config).log
        if log.exists() and json.loads(log.read_text())["training_history"]["epoch"]:
            return
        time.sleep(0.02)
    process.terminate()
    raise AssertionError(process.communicate(timeout=60))


def process_of_rank(first, rank):
    """The process of that rank among the ones that `first` has started."""
    (found,) = [p for p in psutil.Process(first.pid).children() if p.environ().get("RANK") == str(rank)]
    return found


def files_of(config):
    folder = folder_of(config).path
    return sorted(p.relative_to(folder).as_posix().split(".tfevents")[0] for p in folder.rglob("*") if p.is_file())


@pytest.mark.timeout(600)  # five starts of Python on a machine that may be busy
def test_two_processes_stopped_and_resumed_train_as_one_does_with_the_same_batches(config, shared_spec):
    two = in_two(config, "two")
    process = start(two, launcher=TORCHRUN)
    wait_for_an_epoch(process, two)
    process_of_rank(process, 1).send_signal(signal.SIGUSR1)  # to one of them; both must end
    said, complaint = process.communicate(timeout=240)
    assert complaint.count("waits for another one that prepares the data") == 1
    assert complaint.count("training stopped by SIGUSR1; go on with --resume") == 1
    assert said.count("Starting training...") == 1
    summary = folder_of(two).read_summary()
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by SIGUSR1")
    n_before = len(history(two)["epoch"])
    assert 1 <= n_before < N_EPOCHS

    tasks, outputs = start_tasks(two, "--resume")
    for task, output in zip(tasks, outputs, strict=True):
        task.join(240)
        assert task.exitcode == 0, output.read_text()
    assert f"Resuming after {n_before} finished epochs" in outputs[0].read_text()
    assert "Starting training" not in outputs[1].read_text()
    checker = [sys.executable, str(shared_spec / "check_run.py"), str(folder_of(two).path), "--no-torch"]
    checked = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    documented = ["checkpoints/best_model.ckpt", *(f"training_{part}.json" for part in ("config", "log", "summary"))]
    assert files_of(two) == [*documented, "version_0/events.out", "version_1/events.out"]

    train(config)
    alone, together = history(config), history(two)
    assert alone["epoch"] == together["epoch"] == list(range(N_EPOCHS))
    for key in ("train_loss", "train_accuracy", "val_loss", "val_mIoU", "learning_rate"):
        assert together[key] == pytest.approx(alone[key], rel=1e-5), key
    pairs = zip(weights(config).values(), weights(two).values(), strict=True)
    assert all(torch.allclose(a, b, atol=2 * config.training.lr) for a, b in pairs)


@pytest.mark.timeout(600)
def test_a_killed_process_ends_the_other_with_a_message(config):
    killed = in_two(config, "killed", max_epochs=500, n_processes=2)
    process = start(killed)
    wait_for_an_epoch(process, killed)
    other = process_of_rank(process, 1)
    other.kill()
    began = time.monotonic()
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 2
    assert time.monotonic() - began < 60
    told = "process 1 was ended by SIGKILL, as the kernel does when memory runs out; the training of 2 processes ended"
    assert f"bodyseg: {told}" in complaint
    assert "Traceback" not in complaint
    summary = folder_of(killed).read_summary()
    assert summary["status"] == "failed"
    assert summary["reason"].startswith(told)
    assert summary["total_epochs"] == len(history(killed)["epoch"]) >= 1
    assert folder_of(killed).resume_checkpoint.exists()


# ---- common ends


def lose_the_second(rank, port, reason, queue):
    """The second process ends, after telling its reason if it has one, while the first waits for its share."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    if rank == 1:
        if reason:
            tell_failure(reason)
        os._exit(2)
    try:
        with companions_room._in_words([]):
            highest(0, torch.device("cpu"))
    except ProcessError as error:
        queue.put(str(error))


def told_by_the_first(reason):
    """What the first of two processes says of the second's end; nobody here has started it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = FORK.Queue()
    for rank in range(2):
        FORK.Process(target=lose_the_second, args=(rank, port, reason, queue)).start()
    return queue.get(timeout=60)


def test_the_reason_of_another_process_is_told():
    assert told_by_the_first("case body_07: the file has gone") == (
        "process 1: case body_07: the file has gone; the training of 2 processes ended with it; see to its cause and "
        "go on with --resume"
    )


def wait_for_nobody(told):
    companions_room._command = lambda n: [sys.executable, "-c", "import sys; sys.exit(3)"]
    companions_room.GRACE_S = 0.5
    with companions_room.companions(2, told.write_text):
        time.sleep(60)  # as in a rendezvous, or for a GPU


def test_a_process_that_waits_for_one_that_never_came_is_ended(tmp_path):
    told = tmp_path / "told.txt"
    process = FORK.Process(target=wait_for_nobody, args=(told,))
    process.start()
    process.join(50)
    assert process.exitcode == companions_room.EXIT_LOST
    assert told.read_text().startswith("process 1 ended with exit code 3; the training of 2 processes ended with it")


@pytest.fixture
def rendezvous(monkeypatch):
    """Be the first of two processes that somebody else has started; the socket that has the port they meet at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in here.items():
            monkeypatch.setenv(name, value)
        yield taken


def meet(timeout_s):
    with companions_room.companions(2, print):
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))


@pytest.mark.fault("MASTER_PORT is taken by another program", "one line with the port and what to set, exit 2")
def test_a_port_that_is_taken_is_said_with_the_remedy(rendezvous):
    port = rendezvous.getsockname()[1]
    with pytest.raises(ProcessError) as told:
        meet(5)
    assert str(told.value) == (
        f"port {port} of 127.0.0.1 is taken, perhaps by another training; "
        "start all of them again with another MASTER_PORT"
    )


@pytest.mark.fault("processes that never come to the meeting point", "one line with how many came and where, exit 2")
def test_processes_that_never_joined_are_counted(rendezvous):
    port = rendezvous.getsockname()[1]
    rendezvous.close()
    with pytest.raises(ProcessError, match=rf"only 1 of 2 processes came to 127\.0\.0\.1:{port}, where"):
        meet(1)


def test_a_lost_connection_says_what_the_connection_said_where_nothing_else_is_known():
    told = told_by_the_first(None)
    assert told.startswith("another process has ended or cannot be reached (")
    assert "gloo" in told or "Connection" in told


def test_a_program_that_is_no_file_cannot_be_started_again(monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["-c"])
    with (
        pytest.raises(ProcessError, match="starts its program again, and '-c' is no file; use `bodyseg train`"),
        companions_room.companions(2, print),
    ):
        pass


@pytest.mark.parametrize(
    ("training", "started", "message"),
    [
        ({"n_gpus": 0, "n_processes": 3}, 2, r"training.n_processes is 3, but torchrun started 2 .*n_processes 2"),
        ({"n_gpus": 64}, 1, r"training.n_gpus is 64, but this machine has \d+; lower --n_gpus"),
    ],
)
def test_settings_that_contradict_the_launcher_are_refused(config, monkeypatch, training, started, message):
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": started,
        "MASTER_ADDR": "a",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=message):
        devices_of(in_two(config, "refused", **training))


@pytest.mark.parametrize(
    ("launcher", "n_gpus", "words"),
    [
        ("SLURM", None, "SLURM started 4 .* this one sees 1 .* as with --gpus-per-task .* use --gpus-per-node=4"),
        ("SLURM", 4, "SLURM started 4 .* this one sees 1 .* as with --gpus-per-task .* use --gpus-per-node=4"),
        ("torchrun", None, "torchrun started 4 .* sees 1 of its GPUs; have torchrun start 1, or give --n_gpus 0"),
    ],
)
def test_processes_that_see_too_few_gpus_are_told_one_cause_and_one_remedy(
    config, monkeypatch, launcher, n_gpus, words
):
    slurm = SLURM | {"SLURM_NNODES": "1"}
    torchrun = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in (slurm if launcher == "SLURM" else torchrun).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # what CUDA_VISIBLE_DEVICES leaves of four
    settings = in_two(config, "refused", n_gpus=n_gpus, n_processes=None)
    with pytest.raises(ConfigError, match=words):
        devices_of(settings)
    on_cpus = replace(settings, training=replace(settings.training, n_gpus=0))
    assert devices_of(on_cpus).per_machine == 4


def test_a_number_of_cpu_processes_beside_gpus_is_refused():
    with pytest.raises(ConfigError, match=r"training\.n_processes is 3, but 2 GPUs make 2 processes; leave it out"):
        TrainingConfig(n_gpus=2, n_processes=3)
