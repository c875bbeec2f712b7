"""What a training leaves at its very end: its summary, whatever ended it."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from pipeline.runs.run_folder import RunFolder
from tests.support.tiny_training import (
    EPOCHS,
    WHOLE,
    complaint,
    differences,
    ended,
    ending_of,
    n_epochs,
    resumed,
    summary,
    train,
)


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
    assert n_epochs(run) == EPOCHS
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
    assert differences(work / "logs" / WHOLE, run) == []


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


def test_a_connection_lost_after_a_signal_is_an_interruption(work):
    from pipeline.compute.ranks import ProcessError
    from pipeline.training.signals import RunStopped

    def lose():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ProcessError("process 1 was ended by SIGTERM")

    with pytest.raises(RunStopped, match="SIGTERM"), ending_of(work, "preempted") as (_, run):
        lose()
    assert (summary(run)["status"], summary(run)["reason"]) == ("interrupted", "stopped by SIGTERM")
