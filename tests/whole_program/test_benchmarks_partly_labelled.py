"""The benchmark of partly labelled cases keeps the results of earlier trainings."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.partly_labelled import TRAININGS, merged

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "partly_labelled.json"


def test_new_results_are_added_and_replace_the_same_training_alone():
    earlier = json.loads(RESULTS.read_text())["trainings"]
    again = earlier[1] | {"mean_iou": 0.5}
    other = earlier[1] | {"epochs": earlier[1]["epochs"] + 1}
    assert merged(earlier, [again, other]) == [earlier[0], again, *earlier[2:], other]


def test_the_documents_quote_what_the_file_holds():
    said = (RESULTS.parents[2] / "docs" / "measurements.md").read_text()
    (said,) = re.findall(r"- \*\*Partly labelled cases\*\*.*?(?=\n- )", said, re.DOTALL)
    found = {
        (one["n_train"], one["epochs"], one["training"]): f"{one['mean_iou']:.3f}"
        for one in json.loads(RESULTS.read_text())["trainings"]
    }
    everything, known, taken = TRAININGS[:3]
    quoted = [(96, 60, known), (96, 60, everything), (24, 45, known), (24, 45, everything), (24, 45, taken)]
    assert re.findall(r"\b0\.\d{3}\b", said) == [found[training] for training in quoted]
