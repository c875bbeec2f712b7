"""The other processes of a training import while the first one sets up, and train only if it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from pipeline.compute.launcher import launch, others_ready
from pipeline.phantoms.sample_dataset import write_dataset

LIMIT_S = 120


def test_the_others_wait_until_the_training_begins_and_end_where_it_does_not(tmp_path):
    """Each leaves a file when it comes to wait, and another one when it goes on."""
    program = """
import os, pathlib, sys
from pipeline.compute.launcher import launch, others_ready
here = pathlib.Path(sys.argv[1], os.environ["RANK"])
here.with_suffix(".came").touch()
with others_ready(3) as others, launch(others, print):
    here.with_suffix(".trained").write_text(os.environ["MASTER_PORT"])
"""
    command = [sys.executable, "-c", program, str(tmp_path)]

    def left():
        return sorted(path.name for path in tmp_path.iterdir())

    with others_ready(3, command=command) as others:
        while left() != ["1.came", "2.came"]:
            assert [child.poll() for child in others.children] == [None, None]
            time.sleep(0.05)
    assert [child.poll() for child in others.children] == [-signal.SIGKILL] * 2
    assert left() == ["1.came", "2.came"]
    with others_ready(3, command=command) as others, launch(others, print):
        for child in others.children:
            assert child.wait(LIMIT_S) == 0
    assert left() == ["1.came", "1.trained", "2.came", "2.trained"]
    assert (tmp_path / "1.trained").read_text() == (tmp_path / "2.trained").read_text()


def test_a_signal_while_they_are_started_leaves_none_of_them():
    program = """
import os, signal, sys, psutil
from pipeline.compute.launcher import others_ready
from pipeline.compute.signals import Stopped, stop_at_once_on_signals
sys.addaudithook(lambda event, _: event == "subprocess.Popen" and os.kill(os.getpid(), signal.SIGTERM))
try:
    with stop_at_once_on_signals(), others_ready(3, command=["sleep", "20"]):
        print("trains")
except Stopped as stop:
    print(stop, len(psutil.Process().children()))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout == "SIGTERM 0\n"


def test_a_process_whose_starter_is_gone_before_the_training_ends_quietly():
    program = "from pipeline.compute.launcher import others_ready\nwith others_ready(2): print('trains')"
    environment = os.environ | {"BODYSEG_STARTED_BY": str(os.getpid()), "RANK": "1", "WORLD_SIZE": "2"}
    process = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, env=environment, capture_output=True, check=True
    )
    assert (process.stdout, process.stderr) == (b"", b"")


def test_ctrl_c_while_the_data_are_prepared_is_told_once(tmp_path):
    """It goes to every process of a terminal's command."""
    write_dataset(tmp_path / "set", n_cases=3, seed=1, voxel_mm=24.0)
    settings = ["--dataset_root", str(tmp_path / "set"), "--data.cache_dir", str(tmp_path / "cache")]
    settings += ["--log_dir", str(tmp_path / "logs"), "--n_gpus", "0", "--training.n_processes", "2"]
    command = [sys.executable, "-m", "pipeline", "train", *settings]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("Setting up data"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert complaint.count("stopped") == 1
    assert "nothing was trained yet" in complaint
    assert "Traceback" not in complaint
