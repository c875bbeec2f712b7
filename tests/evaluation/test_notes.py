"""What is said of scores by structure and case."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from pipeline.evaluation.notes import score_notes
from pipeline.evaluation.options import ScoringOptions

NAMES = ("background", "liver", "spleen")


def scores(case, **facts):
    usual = {"annotated": [True] * 3, "overlapping": {}, "shear_degrees": 0.0, "surface": "voxels"}
    dice = np.array([np.nan, 0.9, 0.8])
    return SimpleNamespace(case=case, spacing_mm=(1.0, 1.0, 1.0), dice=dice, surface_dice=dice, **usual | facts)


def test_what_is_not_scored_or_counts_otherwise_is_said_by_structure_and_case():
    found = [
        scores("b", shear_degrees=20.0, surface=None),
        scores("a", annotated=[True, True, False], overlapping={("cyst", "liver"): 7}),
    ]
    missing, overlapping, sheared = score_notes(found, NAMES, ScoringOptions(2.0), 2.0)
    assert missing == "not annotated, so not scored, in some of 2 cases: spleen in 1"
    assert "cyst loses 7 voxels to liver in 1 case; name an inner structure behind" in overlapping
    assert sheared.startswith("case b: the axes of its voxels are 20° off right angles")


def test_a_tolerance_that_nobody_chose_is_named_unless_it_is_the_usual_one():
    assert score_notes([scores("a")], NAMES, ScoringOptions(), 2.0) == []
    (note,) = score_notes([scores("a")], NAMES, ScoringOptions(), 0.5)
    assert note == "surfaces agree within 0.5 mm, two voxels of these scans, instead of 2 mm"
    assert score_notes([scores("a")], NAMES, ScoringOptions(surface=None), 0.5) == []
    assert score_notes([scores("a")], NAMES, ScoringOptions(0.5), 0.5) == []
