"""Processes started together: one and the same training, common ends, one sentence about the cause."""

from __future__ import annotations

import contextlib
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

from pipeline.cli.main import main
from pipeline.compute.launcher import EXIT_LOST, launch, others_ready
from pipeline.compute.ranks import ProcessError, highest, report_failure
from pipeline.config.files import to_yaml
from pipeline.config.settings import (
    Config,
    DataConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
)
from pipeline.phantoms.sample_dataset import write_dataset
from pipeline.runs.run_folder import RunFolder, run_name
from pipeline.train import train
from tests.support.paths import ROOT
from tests.support.tiny_training import LIMIT_S, SERVER

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
        training=TrainingConfig(
            lr=1e-5, max_epochs=N_EPOCHS, warmup_epochs=1, n_gpus=0, precision="32", overlay_every=0
        ),
        loss=LossConfig(use_class_weights=True),
    )


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


PAUSE = """
import os, signal, sys
written = []

def watch(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("training_log.json"):
        written.append(True)
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(watch)
"""
"""Run as Python starts, see the module site: a training stops itself when it is about to log its second epoch.

The log is written for the first time before the first epoch.
"""


def start(config, *flags, launcher=()):
    """Start a training as a person does, or a launcher of one; FORCE_COLOR shows a bar as on a terminal."""
    (settings := write_settings(config)).with_name("sitecustomize.py").write_text(PAUSE)
    path = os.pathsep.join([str(settings.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *launcher, str(ROOT / "train_body.py"), "--config", str(settings), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": path}
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
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not started by a server
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
        tasks.append(SERVER.Process(target=run_task, args=(arguments, environment, output)))
        tasks[-1].start()
    return tasks, outputs


def folder_of(config):
    return RunFolder(Path(config.experiment.log_dir), run_name(config))


def history(config):
    return json.loads(folder_of(config).log.read_text())["training_history"]


def weights(config):
    return torch.load(folder_of(config).best_checkpoint, weights_only=True)["state_dict"]


def wait_for_an_epoch(started):
    """Wait until the process of rank 0 has stopped itself after an epoch; that process, to be resumed."""
    began, family = time.monotonic(), psutil.Process(started.pid)
    while time.monotonic() - began < LIMIT_S and started.poll() is None:
        for process in (family, *family.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    return process
        time.sleep(0.02)
    started.terminate()
    raise AssertionError(started.communicate(timeout=LIMIT_S))


def process_of_rank(first, rank):
    """The process of that rank among the ones that `first` has started."""
    (found,) = [p for p in psutil.Process(first.pid).children() if p.environ().get("RANK") == str(rank)]
    return found


def files_of(config):
    folder = folder_of(config).path
    return sorted(p.relative_to(folder).as_posix().split(".tfevents")[0] for p in folder.rglob("*") if p.is_file())


def test_two_processes_stopped_and_resumed_train_as_one_does_with_the_same_batches(config, shared_spec):
    two = in_two(config, "two")
    process = start(two, launcher=TORCHRUN)
    first = wait_for_an_epoch(process)
    process_of_rank(process, 1).send_signal(signal.SIGUSR1)  # to one of them; both must end
    first.resume()
    said, complaint = process.communicate(timeout=LIMIT_S)
    assert complaint.count("waits for another one that prepares the data") <= 1  # none where one started late
    assert complaint.count("training stopped by SIGUSR1; go on with --resume") == 1
    assert said.count("Starting training...") == 1
    summary = folder_of(two).read_summary()
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by SIGUSR1")
    n_before = len(history(two)["epoch"])
    assert 1 <= n_before < N_EPOCHS

    tasks, outputs = start_tasks(two, "--resume")
    for task, output in zip(tasks, outputs, strict=True):
        task.join(LIMIT_S)
        assert task.exitcode == 0, output.read_text()
    assert f"Resuming after {n_before} finished epochs" in outputs[0].read_text()
    assert "Starting training" not in outputs[1].read_text()
    checker = [sys.executable, str(shared_spec / "check_run.py"), str(folder_of(two).path), "--no-torch"]
    checked = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    records = [f"training_{part}.json" for part in ("config", "log", "summary")]
    events = [f"version_{n}/events.out" for n in range(2)]
    assert files_of(two) == ["checkpoints/best_model.ckpt", "console.log", *records, *events]

    train(config)
    alone, together = history(config), history(two)
    assert alone["epoch"] == together["epoch"] == list(range(N_EPOCHS))
    for key in ("train_loss", "train_accuracy", "val_loss", "val_mIoU", "learning_rate"):
        assert together[key] == pytest.approx(alone[key], rel=1e-5, abs=1e-8), key
    pairs = zip(weights(config).values(), weights(two).values(), strict=True)
    assert all(torch.allclose(a, b, atol=2 * config.training.lr) for a, b in pairs)


def test_a_killed_process_ends_the_other_with_a_message(config):
    killed = in_two(config, "killed", n_processes=2)
    process = start(killed)
    first = wait_for_an_epoch(process)
    process_of_rank(process, 1).kill()
    first.resume()
    _, complaint = process.communicate(timeout=LIMIT_S)  # gloo alone would wait for half an hour
    assert process.returncode == 2
    told = "process 1 was ended by SIGKILL, as the kernel does when memory runs out; the training of 2 processes ended"
    assert f"bodyseg: {told}" in complaint
    assert "Traceback" not in complaint
    summary = folder_of(killed).read_summary()
    assert summary["status"] == "failed"
    assert summary["reason"].startswith(told)
    assert summary["total_epochs"] == len(history(killed)["epoch"]) >= 1
    assert folder_of(killed).resume_checkpoint.exists()


def lose_the_second(rank, port, reason, queue):
    """The second process ends, after telling its reason if it has one, while the first waits for its share."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with launch(None, print):
            dist.init_process_group("gloo")
            if rank == 1:
                if reason:
                    report_failure(reason)
                os._exit(2)
            highest(0, torch.device("cpu"))
    except ProcessError as error:
        queue.put(str(error))


@contextlib.contextmanager
def reserved_port():
    """A socket with a port that no other program gets, and where torch may listen: both ask for SO_REUSEADDR."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held


def told_by_the_first(reason):
    """What the first of two processes says of the second's end; nobody here has started it."""
    queue = SERVER.Queue()
    with reserved_port() as held:
        for rank in range(2):
            SERVER.Process(target=lose_the_second, args=(rank, held.getsockname()[1], reason, queue)).start()
        return queue.get(timeout=LIMIT_S)


def test_the_reason_of_another_process_is_told():
    assert told_by_the_first("case body_07: the file has gone") == (
        "process 1: case body_07: the file has gone; the training of 2 processes ended with it; fix the cause, then "
        "continue with --resume (a cross-validation: repeat its command)"
    )


def wait_for_nobody(told):
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    with others_ready(2, command=command) as others, launch(others, told.write_text, grace_s=0.5):
        time.sleep(600)  # as in a rendezvous, or for a GPU


def test_a_process_that_waits_for_one_that_never_came_is_ended(tmp_path):
    told = tmp_path / "told.txt"
    process = SERVER.Process(target=wait_for_nobody, args=(told,))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == EXIT_LOST
    assert told.read_text().startswith("process 1 ended with exit code 3; the training of 2 processes ended with it")


@pytest.fixture
def rendezvous(monkeypatch):
    """Be the first of two processes that somebody else has started; the socket that has the port they meet at."""
    with reserved_port() as held:
        port = str(held.getsockname()[1])
        here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in here.items():
            monkeypatch.setenv(name, value)
        yield held


def meet(timeout_s):
    with launch(None, print):
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))


@pytest.mark.fault("MASTER_PORT is taken by another program", "one line with the port and what to set, exit 2")
def test_a_port_that_is_taken_is_said_with_the_remedy(rendezvous):
    rendezvous.listen()
    port = rendezvous.getsockname()[1]
    with pytest.raises(ProcessError) as told:
        meet(60)
    assert str(told.value) == (
        f"port {port} of 127.0.0.1 is taken, perhaps by another training; "
        "start all of them again with another MASTER_PORT"
    )


@pytest.mark.fault("processes that never come to the meeting point", "one line with how many came and where, exit 2")
def test_processes_that_never_joined_are_counted(rendezvous):
    port = rendezvous.getsockname()[1]
    with pytest.raises(ProcessError, match=rf"only 1 of 2 processes came to 127\.0\.0\.1:{port}, where"):
        meet(3)


def test_a_lost_connection_says_what_the_connection_said_where_nothing_else_is_known():
    told = told_by_the_first(None)
    assert told.startswith("another process has ended or cannot be reached (")
    assert "gloo" in told or "Connection" in told


def test_a_program_that_is_no_file_cannot_be_started_again(monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["-c"])
    with (
        pytest.raises(ProcessError, match="starts its program again, and '-c' is not a file; use `bodyseg train`"),
        others_ready(2),
    ):
        pass


CHILD = """
import os, sys, time
from pipeline.compute.launcher import end_with_parent
end_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""


def test_a_child_ends_with_its_parent_however_that_ends():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    assert child.wait(timeout=LIMIT_S) is None  # not our child: its exit code is not ours to know
    assert not child.is_running()
