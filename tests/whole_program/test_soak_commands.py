"""What is killed and started again ends as what nobody disturbed: one round of `make soak`."""

from __future__ import annotations

import pytest

from tests import soak_commands


@pytest.mark.fault(
    "SIGKILL at random moments while cases are cached, while every format of prediction is written, and while results "
    "are scored",
    "what lies there is whole at any moment; the same command ends with the results of an undisturbed one",
)
def test_what_was_killed_ends_as_what_nobody_disturbed(tmp_path):
    for figures in soak_commands.soak(tmp_path, seconds=0, kills_a_round=1, seed=2):
        assert figures.kills >= 1
        assert (figures.faults, figures.differences) == ([], []), str(figures)
