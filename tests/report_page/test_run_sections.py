"""Runs are described beside each other, with what differs and how to repeat them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from html.parser import HTMLParser

from pipeline import cross_validate
from pipeline.cli.main import main
from pipeline.report_page.run_sections import RunFacts, sections_after_scores, sections_before_scores
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.study import StudyFolder
from tests.support.finished_run import documented_config
from tests.support.tiny_study import study_command
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


def test_the_time_in_training_is_that_of_the_epochs_where_the_run_says_it_and_no_end_is_said_of_one_that_has_none():
    paused = run("first")
    paused.log.training_seconds = 4.8
    words = said(paused)
    assert after(words, "time in training") == "00:00:04"
    assert after(words, "for each epoch") == "0.8 s"
    assert after(words, "ended") == "2024-01-15 10:36:00"
    assert not {"from start to end", "last epoch"} & set(words)
    words = said(replace(paused, summary={}))
    assert after(words, "how it ended") == "unfinished"
    assert after(words, "last epoch") == paused.log.last_update
    assert "ended" not in words


def test_what_a_run_began_with_and_which_of_its_cases_had_been_seen_stand_beside_its_score():
    split = {"train": ["a"], "val": ["b", "c"], "test": ["d"]}
    started = {"run": "old", "trained_on": ["b", "d"]}
    words = said(run("tuned", **{"training.started_from": started, "data.split": split}))
    assert after(words, "began with the weights of") == "old"
    seen = after(words, "seen before")
    assert seen.startswith("1 of 2 validation cases bear names of cases that old was trained on (b): ")
    assert "; 1 of 1 test cases bear names of cases that old was trained on (d): " in seen
    assert not {"began with the weights of", "seen before"} & set(said(run("first")))


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


def test_what_a_resumed_run_does_not_repeat_is_said_beside_the_command():
    parts = [{"epoch": 0, "max_epochs": 3, "n_gpus": 1}, {"epoch": 2, "max_epochs": 6, "n_gpus": 1}]
    (about,) = [word for word in said(run("a"), run("b", **{"training.resumed": parts})) if "every setting and" in word]
    held = "from epoch 0 on max_epochs 3; from epoch 2 on max_epochs 6"
    assert about.count("resumed") == 1
    assert f"b was resumed with other settings ({held}): repeated, it has the last ones throughout." in about


def test_folds_are_repeated_together():
    def fold(n: int, study: str = "my logs/study") -> RunFacts:
        place = {"experiment.name": f"fold_{n}", "experiment.log_dir": study}
        return run(f"fold_{n}", **{"data.cross_validation": {"fold": n}, "data.dataset_root": "/data/x"}, **place)

    folds = [fold(0), fold(1)]
    config = "--config logs/fold_{}/training_config.json"
    whole = f"bodyseg cross-validate --data.fold 0 {config.format(0)} --log_dir 'my logs' --exp_name again"
    alone = f"bodyseg train {config.format(1)} --log_dir 'my logs' --exp_name again"
    other = f"bodyseg train {config.format(0)} --log_dir . --exp_name again_2"
    for runs, expected in ((folds, [whole]), ([fold(1)], [alone]), ([*folds, fold(0, "other")], [whole, other])):
        assert [word for word in said(*runs) if word.startswith("bodyseg")] == expected
    by_hand = run("by_hand", **{"data.cross_validation": {"fold": 0}})
    assert "bodyseg train --config logs/by_hand/training_config.json --exp_name again" in said(by_hand)
    assert not any("relative" in word for word in said(*folds))
    assert any("Start it where merged_data lies" in word for word in said(run("first")))


def test_the_command_for_folds_begins_another_study_of_the_same_folds(tmp_path, monkeypatch):
    """As it is printed, through the command line; no network is trained."""
    monkeypatch.setattr(cross_validate, "_train_folds", lambda *_, **__: None)
    assert main(study_command(tmp_path, max_epochs="1")) == 0
    study = StudyFolder(tmp_path / "logs", "study")
    before = study.read_record()
    folds = []
    for number in before.folds:
        folder = RunFolder(study.path, f"fold_{number}")
        folder.make_ready(keep=False)
        facts = {"cross_validation": {"fold": number}, "split": {"hash": "ab"}, "fold": number}
        place = {"name": folder.name, "log_dir": str(study.path)}
        document = before.settings | {"data": before.settings["data"] | facts, "experiment": place, "system": {}}
        folder.write_config(document)
        folds.append(RunFacts(folder.name, folder.read_config(), a_log(1), {}, str(folder.path)))
    (line,) = [word for word in said(*folds) if word.startswith("bodyseg")]
    assert main(shlex.split(line)[1:]) == 0
    again = StudyFolder(tmp_path / "logs", "again").read_record()
    assert (again.folds, again.settings["training"]) == (before.folds, before.settings["training"])
