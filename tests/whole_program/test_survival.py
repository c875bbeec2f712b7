"""Trainings that are killed, stopped, starved and hindered: what is left, what is said, and how they go on.

The faults are real: processes are killed, disks fill up, memory runs out. Where only one line of our own code can be
the moment (the very end of a training), the process kills itself there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.config.settings import ConfigError
from pipeline.files.atomic import FileError
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.runs.run_folder import RunFolder
from pipeline.training.lightning_module import TrainingError
from tests import soak

EPOCHS = 4
INTERRUPTED = 'stops after the batch at hand as "interrupted", exit {}; `--resume` ends bit for bit alike'
FAILED = 'one line, exit 2, "failed" with the reason; old files whole'


@pytest.fixture(scope="module")
def work():
    """A folder that other users can enter, with a finished training "whole" in it."""
    with tempfile.TemporaryDirectory(prefix="survival-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        ended(*train(folder, "whole", max_epochs=EPOCHS), code=0)
        yield folder


@pytest.fixture(autouse=True)
def _no_training_outlives_its_test():
    yield
    for process in multiprocessing.active_children():
        if process.is_alive():
            process.kill()
            process.join()


def train(work, name, *more, max_epochs=EPOCHS, before=None, **settings):
    """Start a training; its process, run folder and the file with what it says."""
    command, run = soak.tiny_training(work, name, max_epochs=max_epochs, **settings)
    output = work / f"{name}.txt"
    output.unlink(missing_ok=True)
    return soak.start([*command, *more], output, before), run, output


def ended(process, run, output, *, code):
    """Wait for the end; what was said."""
    process.join(60)
    said = output.read_text()
    assert process.exitcode == code, said
    return said


def complaint(said):
    """The one line after "bodyseg:", which must be the last."""
    assert "Traceback" not in said, said
    line = said.splitlines()[-1]
    assert line.startswith("bodyseg: "), said
    return line


def after_epochs(count, process, run, output):
    """Wait until so many epochs are finished."""
    assert soak.wait_until(lambda: soak.n_epochs(run) >= count, process), output.read_text()


def summary(run):
    return soak.strict_json(run / "training_summary.json")


def resumed(work, name, **settings):
    """Resume to the end; how it differs from the training that nothing happened to."""
    process, run, output = train(work, name, "--resume", **settings)
    ended(process, run, output, code=0)
    return soak.differences(work / "logs" / "whole_bs1_lr0.003_ch2_aug", run)


# Kills and signals -----------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "five SIGKILLs at random moments, each followed by `--resume`, a reader parsing the three files all the time",
    "no unparsable read, arrays of equal length, weights and history bit for bit those of an uninterrupted run",
)
def test_a_training_killed_five_times_ends_as_one_never_interrupted(tmp_path):
    figures = soak.soak(tmp_path, kills=5, max_epochs=10, seed=3)
    assert (figures.kills, figures.faults, figures.differences) == (5, [], [])
    assert figures.reads > 100


def be_a_slurm_job():
    """Set what SLURM sets, by which Lightning would requeue and save by itself."""
    os.environ |= {f"SLURM_{name}": "0" for name in ("PROCID", "LOCALID", "NODEID")}
    os.environ |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"}


@pytest.mark.parametrize(
    ("name", "in_slurm", "code"),
    [
        pytest.param("SIGINT", False, 130, marks=pytest.mark.fault("SIGINT (Ctrl-C)", INTERRUPTED.format(130))),
        pytest.param(
            "SIGTERM", True, 143, marks=pytest.mark.fault("SIGTERM, as SLURM preempts", INTERRUPTED.format(143))
        ),
        pytest.param(
            "SIGUSR1",
            True,
            138,
            marks=pytest.mark.fault("SIGUSR1, as `sbatch --signal` warns", INTERRUPTED.format(138)),
        ),
    ],
)
def test_a_signal_interrupts_between_two_batches_and_resuming_ends_as_if_there_had_been_none(
    work, name, in_slurm, code
):
    process, run, output = train(work, name, before=be_a_slurm_job if in_slurm else None)
    after_epochs(1, process, run, output)
    os.kill(process.pid, signal.Signals[name])
    said = ended(process, run, output, code=code)
    assert complaint(said) == f"bodyseg: training stopped by {name}; go on with --resume"
    found = summary(run)
    assert (found["status"], found["reason"]) == ("interrupted", f"stopped by {name}")
    assert found["total_epochs"] == soak.n_epochs(run) < EPOCHS
    assert resumed(work, name) == []


@pytest.mark.fault("SIGTERM, and SIGKILL before it could end", "the log is whole; `--resume` ends bit for bit alike")
def test_a_preemption_without_grace_costs_one_epoch_at_most(work):
    process, run, output = train(work, "graceless")
    after_epochs(2, process, run, output)
    os.kill(process.pid, signal.SIGTERM)
    process.kill()
    ended(process, run, output, code=-signal.SIGKILL)
    assert soak.n_epochs(run) >= 2
    assert resumed(work, "graceless") == []


@pytest.mark.fault("SIGTERM while cases are still prepared", "exit 143; nothing was written")
def test_a_signal_before_the_first_batch_leaves_nothing_behind(work):
    process, run, output = train(work, "early", **{"data.cache_dir": str(work / "cold")})
    lock = run / "resume" / "lock"
    assert soak.wait_until(lock.exists, process)
    assert soak.wait_until(lambda: "Setting up data" in output.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    ended(process, run, output, code=143)
    assert not run.exists()


def kill_itself_in(method):
    """Die by SIGKILL where a method of the run folder would begin."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(RunFolder, method, die)


@pytest.mark.fault(
    "SIGKILL after the last epoch, before the summary", "`--resume` trains nothing and writes the ending"
)
def test_a_kill_before_the_summary_leaves_only_the_ending_to_write(work):
    process, run, output = train(work, "endless", before=partial(kill_itself_in, "write_summary"))
    ended(process, run, output, code=-signal.SIGKILL)
    assert soak.n_epochs(run) == EPOCHS
    assert not (run / "training_summary.json").exists()
    assert resumed(work, "endless") == []


@pytest.mark.fault(
    "SIGKILL at the very end, the summary written", "the run is complete; the next start removes resume/"
)
def test_a_kill_at_the_very_end_leaves_a_complete_run_which_the_next_start_tidies(work):
    process, run, output = train(work, "last", before=partial(kill_itself_in, "_remove_resume"))
    ended(process, run, output, code=-signal.SIGKILL)
    assert (summary(run)["status"], (run / "resume" / "last.ckpt").exists()) == ("completed", True)
    process, run, output = train(work, "last", "--resume")
    assert "nothing is left to --resume" in complaint(ended(process, run, output, code=2))
    assert not (run / "resume").exists()
    assert soak.differences(work / "logs" / "whole_bs1_lr0.003_ch2_aug", run) == []


def lose_every_reader():
    """Be followed by a `head` that has ended already: nobody reads either stream any more."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


@pytest.mark.fault("`bodyseg train 2>&1 | head`", "the training goes on to its end, exit 0")
def test_a_training_whose_reader_has_gone_trains_on(work):
    process, run, output = train(work, "unread", max_epochs=2, before=lose_every_reader)
    ended(process, run, output, code=0)
    assert (summary(run)["status"], summary(run)["total_epochs"]) == ("completed", 2)


@contextlib.contextmanager
def ending_of(work, name, **settings):
    """The end of a training in this process, whose epochs are up to the caller; (recorder, folder)."""
    from pipeline.train import _memory_settings
    from pipeline.training.ending import record_ending
    from pipeline.training.recorder import RunRecorder

    config, run = in_process(work, name, **settings)
    folder = RunFolder.at(run)
    folder.make_ready(keep=False)
    recorder = RunRecorder(folder, description=None)
    with record_ending(folder, recorder, _memory_settings(config)):
        yield recorder, run


def test_a_connection_lost_after_a_signal_is_an_interruption(work):
    from pipeline.compute.ranks import ProcessError
    from pipeline.training.signals import RunStopped

    def lose():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ProcessError("process 1 was ended by SIGTERM")

    with pytest.raises(RunStopped, match="SIGTERM"), ending_of(work, "preempted") as (_, run):
        lose()
    assert (summary(run)["status"], summary(run)["reason"]) == ("interrupted", "stopped by SIGTERM")


def open_one_too_many():
    """Meet the system's own refusal of one more file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        Path(os.devnull).open().close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_one_too_many_as_torch():
    """As a DataLoader does it (torch 2.13, _try_get_data)."""
    try:
        open_one_too_many()
    except OSError:
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.") from None


@pytest.mark.fault("too many open files", "one line with the limit to raise, exit 2")
@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (
            partial(open, "/no/such/scan.nii.gz"),
            r"No such file or directory \(/no/such/scan.nii.gz\) in epoch 0; fix the",
        ),
        (open_one_too_many, r"^too many open files in epoch 0; raise the limit with `ulimit -n`, or lower --num_"),
        (open_one_too_many_as_torch, r"^too many open files in epoch 0; raise the limit with `ulimit -n`, or lower"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_said_to_be_unwritable(work, raised, words):
    with pytest.raises(TrainingError, match=words) as told, ending_of(work, "unreadable", num_workers="2") as (_, run):
        raised()
    assert summary(run)["reason"] == str(told.value)
    assert "written" not in str(told.value)


def kill_itself_before_writing(file):
    """Die by SIGKILL where a file of the given name would be written for the second time."""
    from pipeline.training import checkpoint

    write, times = checkpoint.write_atomically, []

    def write_or_die(path, content):
        times.extend([path.name] * (path.name == file))
        if len(times) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)

    checkpoint.write_atomically = write_or_die


@pytest.mark.fault(
    "SIGKILL between the state of an epoch and its best weights", "`--resume` publishes the weights that the log names"
)
@pytest.mark.parametrize("file", ["last.ckpt", "best_model.ckpt"])
def test_the_best_weights_are_those_of_the_log_also_where_no_epoch_is_trained_again(work, file):
    name = f"torn_{file.partition('.')[0]}"
    process, run, output = train(work, name, before=partial(kill_itself_before_writing, file))
    ended(process, run, output, code=-signal.SIGKILL)
    finished = torch.load(run / "resume" / "last.ckpt", weights_only=True)["epochs_finished"]
    process, run, output = train(work, name, "--resume", max_epochs=finished)
    ended(process, run, output, code=0)
    best = soak.strict_json(run / "training_log.json")["best_metrics"]
    published = torch.load(run / "checkpoints" / "best_model.ckpt", weights_only=True)
    assert (published["epoch"], published["val_mIoU"]) == (best["best_epoch"], best["best_val_mIoU"])
    if file == "best_model.ckpt":
        assert best["best_epoch"] == finished - 1  # it was about to be written


# Disks -----------------------------------------------------------------------------------------------------------


def hindered(work, name, hinder, *, before=None, **settings):
    """Train one epoch, hinder the disk, and let it go on; the run, its complaint, and best_model.ckpt before."""
    process, run, output = train(work, name, max_epochs=500, before=before, **settings)
    after_epochs(1, process, run, output)
    os.kill(process.pid, signal.SIGSTOP)  # so that the file read here is the one that must stay
    best = (run / "checkpoints" / "best_model.ckpt").read_bytes()
    hinder(process, run)
    os.kill(process.pid, signal.SIGCONT)
    return run, complaint(ended(process, run, output, code=2)), best


def unharmed(run, best):
    """The old weights are there, whole, and nothing half written is beside them; the log is valid."""
    checkpoint = run / "checkpoints" / "best_model.ckpt"
    assert checkpoint.read_bytes() == best
    assert torch.load(checkpoint, weights_only=True)["format"] == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best_model.ckpt"]
    assert soak.n_epochs(run) >= 1


@pytest.mark.fault("a checkpoint that the disk refuses (file size limit)", FAILED)
def test_a_refused_checkpoint_ends_the_training_as_failed_with_the_old_one_untouched(work):
    def limit(process, run):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    run, said, best = hindered(work, "limited", limit)
    assert "ckpt: cannot be written (File too large); free space on that disk; the old file is untouched" in said
    unharmed(run, best)
    assert (summary(run)["status"], f"bodyseg: {summary(run)['reason']}") == ("failed", said)
    settings = {"max_epochs": str(soak.n_epochs(run) + 1)}
    command, _ = soak.tiny_training(work, "limited", max_epochs=1)
    process = soak.start([*command, "--resume", "--max_epochs", settings["max_epochs"]], work / "limited.txt")
    ended(process, run, work / "limited.txt", code=0)
    assert summary(run)["total_epochs"] == int(settings["max_epochs"])


@pytest.fixture
def small_disk(work, request):
    """A disk of 4 MiB, where this user may mount one."""
    disk = work / request.node.name
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes an administrator")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.fault(
    "a disk that is full to the last byte", "one line, exit 2; old files whole; `--resume` after freeing space"
)
def test_a_full_disk_ends_the_training_clearly_and_it_goes_on_once_there_is_space(work, small_disk):
    ballast = small_disk / "ballast"

    def fill(process, run):
        with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))

    run, said, best = hindered(work, "full", fill, log_dir=str(small_disk))
    assert "cannot be written (No space left on device); free space on that disk" in said
    unharmed(run, best)
    assert not (run / "training_summary.json").exists()  # there was no byte for it
    ballast.unlink()
    last = soak.n_epochs(run) + 1
    process, run, output = train(work, "full", "--resume", max_epochs=last, log_dir=str(small_disk))
    ended(process, run, output, code=0)
    assert summary(run)["status"] == "completed"


@pytest.mark.fault("a disk that becomes read-only", "one line, exit 2; old files whole")
def test_a_disk_that_becomes_read_only_ends_the_training_clearly(work, small_disk):
    def freeze(process, run):
        # files open for writing would keep the disk busy: a bind mount over the checkpoints turns alone
        folder = str(run / "checkpoints")
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)

    run, said, best = hindered(work, "frozen", freeze, log_dir=str(small_disk))
    try:
        assert "best_model.ckpt: cannot be written (Read-only file system); make the folder writable" in said
        unharmed(run, best)
        assert (summary(run)["status"], f"bodyseg: {summary(run)['reason']}") == ("failed", said)
    finally:
        subprocess.run(["umount", "-l", str(run / "checkpoints")], check=True)


def heed_permissions():
    """Give up the privilege of an administrator to write where nobody may (CAP_DAC_OVERRIDE, capabilities(7))."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: the lower 32 bits, then the upper
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1)
    assert libc.capset(header, sets) == 0


@pytest.mark.fault("a checkpoint folder that loses its write permission", FAILED)
def test_a_lost_permission_is_not_swallowed(work):
    def forbid(process, run):
        (run / "checkpoints").chmod(0o555)

    run, said, best = hindered(work, "forbidden", forbid, before=heed_permissions)
    assert "best_model.ckpt: cannot be written (Permission denied); make the folder writable" in said
    unharmed(run, best)
    assert (summary(run)["status"], f"bodyseg: {summary(run)['reason']}") == ("failed", said)


# Memory, workers, numbers ----------------------------------------------------------------------------------------


def starve():
    """Leave this process 48 MiB beyond what it has."""
    limit = psutil.Process().memory_info().vms + 48 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.fault(
    "a training that needs more memory than it may have",
    "one line with the memory asked for and there, and three settings that help",
)
def test_running_out_of_memory_is_said_with_the_numbers_and_the_settings_that_help(work):
    settings = {"base_channels": "8", "target_size": "64 64 64", "batch_size": "2"}
    process, run, output = train(work, "starved", before=starve, **settings)
    said = complaint(ended(process, run, output, code=2))
    assert "the memory of this process ran out in epoch 0: " in said
    assert " GB asked for, 0.0" in said
    assert "(batch_size 2, target_size 64×64×64, num_workers 0)" in said
    assert "lower --batch_size, or set --model.checkpointing true, or choose a smaller --target_size" in said
    found = summary(run)
    assert (found["status"], f"bodyseg: {found['reason']}") == ("failed", said)


@pytest.mark.fault(
    "a data worker killed by the kernel", "one line that says so and what helps, exit 2; `--resume` goes on"
)
def test_a_killed_data_worker_ends_the_training_and_says_what_helps(work):
    process, run, output = train(work, "bereft", max_epochs=500, num_workers="1")
    after_epochs(1, process, run, output)
    for worker in psutil.Process(process.pid).children():
        worker.kill()
    said = complaint(ended(process, run, output, code=2))
    assert re.search(r"data worker \d+ (is killed by signal: Killed|exited) in epoch \d+, as happens when memory", said)
    assert "lower --num_workers" in said
    assert summary(run)["status"] == "failed"


@pytest.mark.fault(
    "a case that disappears, read by a data worker", "one line with the case; the worker's own traceback under --debug"
)
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_in_a_data_worker_reaches_the_top_with_the_case(work, tmp_path, debug):
    shutil.copytree(work / "data", tmp_path / "data")
    shutil.copytree(work / "cache", tmp_path / "cache")
    places = {"dataset_root": str(tmp_path / "data"), "data.cache_dir": str(tmp_path / "cache")}
    name = f"lost{debug}"
    process, run, output = train(work, name, *["--debug"] * debug, max_epochs=500, num_workers="1", **places)
    after_epochs(1, process, run, output)
    shutil.rmtree(tmp_path / "data")
    for entry in (path for path in (tmp_path / "cache").rglob("*") if path.is_file()):
        entry.unlink()
    said = ended(process, run, output, code=1 if debug else 2)
    reason = summary(run)["reason"]
    assert "case body_0" in reason
    if debug:
        assert "in DataLoader worker process 0" in said
        assert 'cached_dataset.py", line' in said
    else:
        assert complaint(said) == f"bodyseg: {reason}"


def in_process(work, name, **settings):
    """Settings of the tiny training, for calls in this process."""
    from jsonargparse import ArgumentParser

    from pipeline.cli.setting_flags import add_settings, parse

    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    add_settings(parser)
    command, run = soak.tiny_training(work, name, **({"max_epochs": 2} | settings))
    return parse(parser, command[1:])[0], run


@pytest.fixture
def losses(monkeypatch):
    """Spoil the losses of training steps by number: a function of (loss, a parameter) for each."""
    spoilt, whole, steps = {}, SlabDiceCELoss.forward, iter(range(1000))

    def forward(self, features, *rest, **more):
        result = whole(self, features, *rest, **more)
        spoil = spoilt.get(next(steps)) if features.requires_grad else None
        return result if spoil is None else result._replace(loss=spoil(result.loss, features))

    monkeypatch.setattr(SlabDiceCELoss, "forward", forward)
    return spoilt


def undefined_loss(loss, features):
    return loss * torch.nan


def undefined_gradient(loss, features):
    return loss + torch.sqrt((0 * features).sum())  # the root's slope at 0 is infinite


@pytest.mark.parametrize(("spoil", "what"), [(undefined_loss, "loss"), (undefined_gradient, "gradient")])
@pytest.mark.fault(
    "a loss or gradient that is NaN",
    'one line with case and step, exit 2, "failed"; with `on_nan_loss: skip` left out and counted',
)
def test_a_number_that_is_none_stops_the_training_or_is_skipped_and_counted(work, losses, spoil, what, shared_spec):
    from pipeline.train import train as verb

    losses[4] = spoil  # three cases an epoch: the second step of epoch 1
    config, run = in_process(work, f"stop_{what}")
    with pytest.raises(TrainingError, match=rf"the {what} is nan in epoch 1, step 1 \(cases body_\d+\)"):
        verb(config)
    assert summary(run)["status"] == "failed"
    assert soak.n_epochs(run) == 1

    losses.clear()
    losses[6 + 4] = spoil
    config, run = in_process(work, f"skip_{what}", **{"training.on_nan_loss": "skip"})
    verb(config)
    assert (summary(run)["status"], summary(run)["skipped_steps"]) == ("completed", 1)
    assert None not in soak.strict_json(run / "training_log.json")["training_history"]["train_loss"]
    checker = [sys.executable, str(shared_spec / "check_run.py"), str(run)]
    check = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout


def test_steps_that_are_all_skipped_end_the_training(work, losses):
    from pipeline.train import train as verb

    losses.update(dict.fromkeys(range(10), undefined_loss))
    config, run = in_process(work, "hopeless", **{"training.on_nan_loss": "skip"})
    with pytest.raises(TrainingError, match="like all of the 3 steps"):
        verb(config)
    assert summary(run)["skipped_steps"] == 3


# Starting and resuming -------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "a second training in the same run folder", "one line with the process that has it, exit 2; the first goes on"
)
def test_two_trainings_never_share_a_run_folder_and_a_dead_one_hinders_nobody(work):
    first, run, output = train(work, "shared", max_epochs=500, num_workers="1")
    after_epochs(1, first, run, output)
    for more in (["--resume"], ["--overwrite"], []):
        second = soak.start([*soak.tiny_training(work, "shared", max_epochs=500)[0], *more], work / "second.txt")
        said = complaint(ended(second, run, work / "second.txt", code=2))
        assert f"process {first.pid} on " in said
        assert "is training there now" in said
    assert first.is_alive()
    workers = psutil.Process(first.pid).children()
    first.kill()
    first.join()
    assert any(worker.is_running() for worker in workers)  # they notice only seconds later, and hold no lock
    second, run, output = train(work, "shared", "--resume", max_epochs=soak.n_epochs(run) + 1)
    ended(second, run, output, code=0)


@pytest.mark.fault(
    "`--overwrite` with settings that cannot be trained", "one line, exit 2; the earlier run is not touched"
)
def test_a_training_that_cannot_begin_removes_and_writes_nothing(work):
    ended(*train(work, "precious", max_epochs=1), code=0)
    run = work / "logs" / "precious_bs1_lr0.003_ch2_aug"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process, _, output = train(work, "precious", "--overwrite", dataset_root=str(work / "typing_error"))
    complaint(ended(process, run, output, code=2))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    process, run, output = train(work, "never", dataset_root=str(work / "typing_error"))
    complaint(ended(process, run, output, code=2))
    assert not run.exists()


@pytest.fixture(scope="module")
def interrupted(work):
    """A training stopped after its second epoch or a little later."""
    process, run, output = train(work, "pause")
    after_epochs(2, process, run, output)
    os.kill(process.pid, signal.SIGTERM)
    ended(process, run, output, code=143)
    return run


def moved(interrupted, tmp_path):
    """A copy of it in another log folder."""
    shutil.copytree(interrupted, tmp_path / interrupted.name)
    return {"log_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"num_workers": "1"}, True),
        ({"n_gpus": "null"}, True),
        ({"model.checkpointing": "true"}, True),
        ({"max_epochs": "5"}, False),
    ],
)
def test_what_may_change_on_resuming_is_applied_also_in_a_moved_log_folder(work, interrupted, tmp_path, settings, kept):
    place = moved(interrupted, tmp_path)
    process, run, output = train(work, "pause", "--resume", **place, **settings)
    ended(process, run, output, code=0)
    record, (name, value) = soak.strict_json(run / "training_config.json"), next(iter(settings.items()))
    assert summary(run)["total_epochs"] == int(settings.get("max_epochs", EPOCHS))
    assert summary(run)["best_checkpoint"] == str(run / "checkpoints" / "best_model.ckpt")
    if name != "n_gpus":
        group = {"num_workers": "data", "max_epochs": "training"}.get(name, "model")
        assert json.dumps(record[group][name.split(".")[-1]]) == value
    if kept:
        assert soak.differences(work / "logs" / "whole_bs1_lr0.003_ch2_aug", run) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.network._target_": "monai.networks.nets.BasicUNet"}, r"model\.network is"),
        ({"data.class_names": "background a"}, r"data\.class_names is \['background', 'a'\]"),
        ({"target_size": "16 16 32"}, r"data\.target_size is \[16, 16, 32\].*was started with \[16, 16, 24\]"),
        ({"seed": "7"}, r"training\.seed is 7, but the run in .* was started with 42"),
        ({"data.fold": "1"}, r"data\.fold is 1"),
        ({"weight_decay": "0.1"}, r"training\.weight_decay is 0\.1"),
    ],
)
def test_what_may_not_change_on_resuming_is_refused_by_name(work, interrupted, tmp_path, settings, words):
    from pipeline.train import train as verb

    place = moved(interrupted, tmp_path)
    network = settings.pop("model.network._target_", None)
    config, run = in_process(work, "pause", max_epochs=EPOCHS, **place, **settings)
    if network:
        from dataclasses import replace

        config = replace(config, model=replace(config.model, network={"_target_": network}))
    before = (run / "training_summary.json").read_bytes()
    with pytest.raises(ConfigError, match=words):
        verb(config, resume=True)
    assert (run / "training_summary.json").read_bytes() == before


@pytest.mark.parametrize(("damage", "found"), [("gone", "no file"), ("cut", "a damaged file"), ("older", "epoch 9")])
def test_best_weights_that_are_not_the_logs_are_refused_when_resuming(work, interrupted, tmp_path, damage, found):
    from pipeline.train import train as verb

    config, run = in_process(work, "pause", max_epochs=EPOCHS, **moved(interrupted, tmp_path))
    best, last = run / "checkpoints" / "best_model.ckpt", run / "resume" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["log"]["training_history"]["val_mIoU"][0] = 1.0  # the first epoch was the best
    torch.save(state, last)
    if damage == "gone":
        best.unlink()
    elif damage == "cut":
        best.write_bytes(best.read_bytes()[:1000])
    else:
        torch.save(torch.load(best, weights_only=True) | {"epoch": 9}, best)
    before = (run / "training_summary.json").read_bytes()
    with pytest.raises(
        FileError, match=rf"best_model.ckpt: expected the weights of epoch 0, .* found {found}; restore"
    ):
        verb(config, resume=True)
    assert (run / "training_summary.json").read_bytes() == before


def test_a_case_that_is_gone_is_named_when_the_division_is_no_longer_the_runs(work, interrupted, tmp_path):
    """The settings are the same, the data are not."""
    from pipeline.train import train as verb

    place = moved(interrupted, tmp_path)
    gone = soak.strict_json(interrupted / "training_config.json")["data"]["split"]["train"][0]
    data = tmp_path / "data"
    shutil.copytree(work / "data", data)
    for path in (data / "imagesTr" / f"{gone}_0000.nii.gz", data / "labelsTr" / f"{gone}.nii.gz"):
        path.unlink()
    hidden = work / "hidden"
    (work / "data").rename(hidden)
    try:
        data.rename(work / "data")
        config, run = in_process(work, "pause", max_epochs=EPOCHS, **place)
        with pytest.raises(ConfigError, match=rf"data\.split: the division .* changed .*gone {gone}"):
            verb(config, resume=True)
        assert summary(run)["status"] == "interrupted"
    finally:
        shutil.rmtree(work / "data")
        hidden.rename(work / "data")


def test_the_files_of_a_run_are_readable_by_the_group(work):
    process, run, output = train(work, "group", max_epochs=1, before=partial(os.umask, 0o027))
    ended(process, run, output, code=0)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.rglob("*")}
    folders = {path.name for path in run.rglob("*") if path.is_dir()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o750 if name in folders else 0o640)} == {}
