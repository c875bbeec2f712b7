"""Signals that stop a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from pipeline.compute.signals import STOPPING, Stopped, handling, stop_at_once_on_signals
from tests.support.paths import ROOT


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_raised_where_the_command_works_and_its_blocks_end_in_order(number):
    before, ended = signal.getsignal(number), []

    def work():
        try:
            os.kill(os.getpid(), number)
        finally:
            ended.append("cleaned up")

    with pytest.raises(Stopped, match=number.name) as stopped, stop_at_once_on_signals():
        work()
    assert stopped.value.exit_code == 128 + number
    assert ended == ["cleaned up"]
    assert signal.getsignal(number) == before


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_at_once_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault(
    "Ctrl-C a second time, while the process ends after the first",
    "it ends at once, without a traceback",
)
def test_a_second_interrupt_while_the_process_ends_is_no_traceback():
    code = (
        "import atexit, os, signal, sys\n"
        "def slow_end():\n    os.kill(os.getpid(), signal.SIGINT)\n    raise RuntimeError('went on')\n"
        "atexit.register(slow_end)\n"
        "from pipeline.cli.main import main\nsys.exit(main(['compare', 'nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.startswith("bodyseg: nowhere: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_thread_leaves_the_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside():
        with handling(lambda number, frame: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
