"""Options of scoring that cannot be meant."""

from __future__ import annotations

import pytest

from pipeline.evaluation.options import EvaluationError, ScoringOptions


@pytest.mark.parametrize("tolerance_mm", [-1, float("nan"), float("inf")])
def test_a_tolerance_is_a_distance(tolerance_mm):
    with pytest.raises(EvaluationError, match=f"tolerance_mm is {tolerance_mm:g}, expected a distance of 0 mm or more"):
        ScoringOptions(tolerance_mm=tolerance_mm)
    assert ScoringOptions(tolerance_mm=0).tolerance_mm == 0


def test_a_seed_is_not_negative():
    with pytest.raises(EvaluationError, match="seed is -1, expected 0 or more"):
        ScoringOptions(seed=-1)
