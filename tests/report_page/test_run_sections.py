"""Runs are described beside each other, with what differs and how to repeat them."""

from __future__ import annotations

from html.parser import HTMLParser

from pipeline.report_page.run_sections import RunFacts, sections_after_scores, sections_before_scores
from tests.support.finished_run import documented_config
from tests.support.training_logs import a_log


class Words(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(content)

    def handle_data(self, data):
        self.words.append(data.strip())


def run(name: str, **changes) -> RunFacts:
    summary = {"status": "failed", "reason": "disk <full>", "completion_time": "2024-01-15 10:36:00"}
    summary |= {"peak_memory_gb": 4.25, "peak_memory_of": "NVIDIA H200"}
    return RunFacts(name, documented_config(**changes), a_log(6), summary, f"logs/{name}")


def said(*runs: RunFacts) -> list[str]:
    return Words(sections_before_scores(runs) + sections_after_scores(runs)).words


def after(words: list[str], word: str) -> str:
    return words[words.index(word) + 1]


def test_a_run_is_described_with_how_it_ended_and_how_long_it_took():
    words = said(run("first"))
    assert after(words, "how it ended") == "failed: disk <full>"
    assert after(words, "parameters") == "20,458,391"
    assert after(words, "from start to end") == "00:06:00"
    assert after(words, "for each epoch") == "60.0 s"
    assert after(words, "most memory of a process") == "4.25 GB of the GPU, NVIDIA H200"
    assert after(words, "size of the network's input") == "160 × 160 × 256 voxels"
    assert after(words, "cuda version") == "12.7"
    assert "validation mIoU (ringed: the best)" in words
    assert "bodyseg train --config logs/first/training_config.json --exp_name again" in words


def test_of_several_runs_the_settings_that_differ_are_listed():
    words = said(run("first"), run("second", **{"training.lr": 0.5}))
    assert "What differs between the runs" in words
    assert words[words.index("training.lr") + 2] == "0.5"


def test_what_all_runs_share_is_said_once():
    words = said(run("first"), run("second", **{"training.max_epochs": 9}))
    assert words.count("20,458,391") == 1
    assert [words[words.index("epochs") + step] for step in (1, 2)] == ["6 of 6", "6 of 9"]


def test_patches_and_joined_data_sets_are_described():
    changes = {
        "data.mode": "patch",
        "data.spacing_mm": [1.5, 1.5, 3.0],
        "data.data_sets": [{"root": "/data/a"}, {"root": "/data/b"}],
        "data.annotated": {"train": {"liver": 3}},
        "data.skipped_cases": {"case_7": "no label"},
        "data.intensity_found": {"intensity": ["ct", "mr"], "because": "their names say so"},
    }
    words = said(run("first", **changes))
    size = "patches of 160 × 160 × 256 voxels, resampled to 1.5 × 1.5 × 3 mm"
    assert after(words, "size of the network's input") == size
    assert after(words, "data sets") == "/data/a, /data/b"
    assert after(words, "cases that annotate a structure") == "train: liver: 3"
    assert after(words, "Cases that were left out") == "case_7: no label"
    assert after(words, "modality, intensities") == "ct, mr, because their names say so"


def test_folds_are_repeated_together():
    folds = [run(f"fold_{n}", **{"data.cross_validation": {"fold": n}, "data.dataset_root": "/data/x"}) for n in (0, 1)]
    commands = [word for word in said(*folds) if word.startswith("bodyseg")]
    assert commands == [
        "bodyseg cross-validate --config logs/fold_0/training_config.json --data.fold 0 --exp_name again"
    ]
    assert not any("relative" in word for word in said(*folds))
    assert any("Start it where merged_data lies" in word for word in said(run("first")))
