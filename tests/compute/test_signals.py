"""Signals that stop a command."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pipeline.compute.signals import STOPPING, Stopped, handling, stop_at_once_on_signals


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


def test_a_thread_leaves_the_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside():
        with handling(lambda number, frame: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
