"""Many cases in several processes: one that is killed, and what is reported meanwhile."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.evaluate import evaluate
from pipeline.evaluation import scoring
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from tests.support.evaluation import three_cases


@pytest.fixture
def folders(tmp_path):
    return three_cases(tmp_path)


def killed(pair, **settings):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_reported_and_ends_the_evaluation(folders, monkeypatch):
    monkeypatch.setattr(scoring, "score_case", killed)
    with pytest.raises(EvaluationError, match=r"one of 2 processes that score was killed.*fewer --workers"):
        evaluate(folders / "predictions", folders / "labels", ScoringOptions(workers=2))


def test_the_share_of_a_case_that_is_done_grows_to_one(folders):
    seen = []
    evaluate(folders / "predictions", folders / "labels", case_progress=lambda *step: seen.append(step))
    for case in "abc":
        shares = [share for name, share in seen if name == case]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1], len(shares)) == (0.0, 1.0, 4)
