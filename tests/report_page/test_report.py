"""The page of runs and scores: complete in itself, small, and safe to send."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from base64 import b64encode
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest

from pipeline.compare import compare
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import write_files
from pipeline.evaluation.options import EvaluationError, ScoringOptions
from pipeline.evaluation.scored_case import ScoredCase
from pipeline.files.atomic import FileError
from pipeline.report_page.case_volumes import MOST_VOXELS, viewer_data
from pipeline.report_page.report import report
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import TrainedWeights
from pipeline.runs.study import StudyFolder, StudyRecord
from tests.support.evaluation import three_cases
from tests.support.finished_run import documented_config
from tests.support.page_script import run_script, volumes_of
from tests.support.training_logs import a_log


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.first_text = ""
        self._open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "img", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if "body" in self._open and data.strip() and not self.first_text:
            self.first_text = data
        if self._open and self._open[-1] in ("script", "style"):
            kind = "data" if self.found[-1][1].get("type") else self._open[-1]
            self.inside.setdefault(kind, []).append(data)


@pytest.fixture
def scored(tmp_path):
    three_cases(tmp_path)
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "labels", ScoringOptions(surface=None, workers=1))
    return write_files(evaluation, tmp_path / "scores")[0]


def a_run(folder, name="first", n_epochs=4):
    run = RunFolder(folder, name)
    run.make_ready(keep=False)
    run.write_config({"system": {}} | documented_config())
    run.write_log(a_log(n_epochs))
    run.write_summary("completed", a_log(n_epochs))
    return run


def of_runs(scored, runs) -> str:
    """The scores as a metrics.json in the runs' folder has them."""
    best = [(run.name, run.read_log()) for run in runs]
    networks = [TrainedWeights(name, log.best_epoch, log.best_val_miou, "").to_document() for name, log in best]
    document = json.loads(scored.read_text("utf-8"))
    return json.dumps(document | {"networks": networks, "created": "9999-12-31 23:59:59"})


def test_nothing_is_fetched_and_the_policy_forbids_it(scored, tmp_path):
    """No element names another file, and all that the policy lets run is what lies in the page, by its hash."""
    page = Elements(report([scored], tmp_path / "page.html").read_text("utf-8"))
    names = {name for _, attributes in page.found for name in attributes}
    assert not names & {"src", "href", "srcset", "action", "background", "style", "data"}
    assert not [name for name in names if name.startswith("on")]
    assert not {tag for tag, _ in page.found} & {"link", "iframe", "img", "object", "embed", "base", "form", "a"}
    (policy,) = [
        a["content"] for tag, a in page.found if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == parts["base-uri"] == parts["form-action"] == "'none'"
    for kind in ("script", "style"):
        digests = [b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in page.inside[kind]]
        assert parts[f"{kind}-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert "@import" not in page.inside["style"][0]
    assert "url(" not in page.inside["style"][0]
    assert len(page.inside["script"]) == 2
    for script in page.inside["script"]:
        assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|eval\(|innerHTML", script)


def test_the_first_line_says_what_the_file_holds_and_images_can_be_left_out(scored, tmp_path):
    with_images = report([scored], tmp_path / "a.html")
    assert Elements(with_images.read_text("utf-8")).first_text.startswith("This file holds images of 3 cases, and")
    assert len(volumes_of(with_images)) == 3
    without = report([scored], tmp_path / "b.html", images=False)
    assert Elements(without.read_text("utf-8")).first_text.startswith("This file holds no images")
    assert volumes_of(without) == []
    assert len(volumes_of(report([scored], tmp_path / "c.html", n_cases=1))) == 1


def test_a_runs_evaluations_are_found_and_the_worst_case_comes_first(scored, tmp_path, caplog):
    run = a_run(tmp_path / "logs")
    folder = run.path / "evaluation" / "val"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(of_runs(scored, [run]))
    content = report([run.path], tmp_path / "page.html").read_text("utf-8")
    headings = re.findall(r"<h2>(.*?)</h2>", content)
    assert [heading.split(":")[0] for heading in headings] == [
        "Runs", "Curves", "Scores by structure", "Distribution of Dice", "Worst cases first", "Data",
        "Time, memory and machine", "How to repeat it",
    ]  # fmt: skip
    shown = [float(dice) for dice in re.findall(r"<h3>\w+: \w+, Dice ([\d.]+)</h3>", content)]
    assert len(shown) == 3
    assert "cases alone" not in content + caplog.text
    some = json.loads(of_runs(scored, [run])) | {"refused": [{"case": "other", "reason": "no scan"}]}
    (folder / "metrics.json").write_text(json.dumps(some))
    line = "first: val Dice is the mean of 3 of 4 cases alone: other could not be scored"
    for source in (run.path, folder, folder / "metrics.json"):
        caplog.clear()
        content = report([source], tmp_path / "page.html", images=False).read_text("utf-8")
        assert re.search(rf"</table>.*<p>[^<]*{line}[^<]*</p></section>", content)
        assert line in caplog.text
    run.make_ready(keep=False)  # --overwrite, and a failure in its first epoch
    run = a_run(tmp_path / "logs", n_epochs=0)
    content = report([run.path], tmp_path / "page.html").read_text("utf-8")
    assert "Scores by structure" not in content
    assert "metrics.json: its scores are left out, since first no longer has the weights that were" in caplog.text
    caplog.clear()
    for source in (folder, folder / "metrics.json"):
        content = report([scored, source], tmp_path / "page.html", images=False).read_text("utf-8")
        assert content.count("Scores by structure") == 1
        assert "scores are left out, since first no longer has the weights" in caplog.text
        with pytest.raises(EvaluationError, match=r"nothing is left for the page; .*: its scores are left out, since"):
            report([source], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("said", [True, False])
def test_page_and_table_show_the_same_scores_of_a_study_whatever_lies_beside_its_folds(scored, tmp_path, said, caplog):
    study, folds = StudyFolder(tmp_path, "study"), {n: {"train": (), "val": (), "test": ()} for n in (0, 1)}
    runs = [a_run(study.path, f"fold_{number}") for number in folds]
    study.write_record(StudyRecord({}, "2 folds", "ab", folds))
    study.metrics.write_text(of_runs(scored, runs if said else []))

    def shown() -> tuple[float | None, bool]:
        content = report([study.path], tmp_path / "page.html", images=False).read_text("utf-8")
        return compare([study.path]).rows[0].get("val_dice"), "Scores by structure" in content

    mean = json.loads(scored.read_text("utf-8"))["summary"]["left_out"]["mean_over_classes"]["dice"]
    assert shown() == (mean, True)
    beside = a_run(study.path, "again")  # bodyseg train --config fold_0…/training_config.json --exp_name again
    beside.best_checkpoint.touch()
    os.utime(beside.best_checkpoint, (4e9, 4e9))
    assert shown() == (mean, True)
    shutil.rmtree(runs[1].path)  # "start again … (a fold of a cross-validation: remove its folder)"
    assert shown() == (None, False)
    assert compare([study.path]).left_out[0] in caplog.text


def test_page_and_table_show_what_a_study_scored_on_cases_of_no_fold(scored, tmp_path):
    study, folds = StudyFolder(tmp_path, "study"), {n: {"train": (), "val": (), "test": ()} for n in (0, 1)}
    runs = [a_run(study.path, f"fold_{number}") for number in folds]
    study.write_record(StudyRecord({}, "2 folds", "ab", folds))
    study.metrics.write_text(of_runs(scored, runs))
    of_test = study.path / "evaluation" / "test" / "metrics.json"  # bodyseg evaluate STUDY --split test
    of_test.parent.mkdir(parents=True)
    of_test.write_text(of_runs(scored, runs))
    row = compare([study.path]).rows[0]
    assert row["test_dice"] == row["val_dice"] > 0
    content = report([study.path], tmp_path / "page.html", images=False).read_text("utf-8")
    assert content.count("Scores by structure") == 2
    assert str(of_test.parent) in content


def test_a_shown_case_has_the_dice_that_is_written_beside_it(scored, tmp_path):
    """What the page's own script unpacks, against the score."""
    page = report([scored], tmp_path / "page.html")
    (dice, *_), (packed, *_) = re.findall(r", Dice ([\d.]+)</h3>", page.read_text("utf-8")), volumes_of(page)
    found = run_script(
        """
        const volume = await page.unpackCase(packed);
        const scores = {};
        for (const [value, name] of volume.classes) {
          let both = 0, all = 0;
          volume.label.forEach((label, n) => {
            both += label === value && volume.prediction[n] === value;
            all += (label === value) + (volume.prediction[n] === value);
          });
          scores[name] = (2 * both) / all;
        }
        return scores;
        """,
        packed=packed,
    )
    (structure, *_) = re.findall(r"<h3>\w+: (\w+), Dice", page.read_text("utf-8"))
    assert found[structure] == pytest.approx(float(dice), abs=1e-4)


def test_foreign_names_are_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    for part, shift in (("labels", 0), ("predictions", 1)):
        (tmp_path / part).mkdir()
        array = np.roll(np.pad(np.ones((6, 6, 6), np.uint8), 4), shift, 0)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / part / "a&b<script>.nii.gz")
    options = ScoringOptions(surface=None, workers=1)
    scores = evaluate(tmp_path / "predictions", tmp_path / "labels", options, class_names={"background": 0, evil: 1})
    metrics, _ = write_files(scores, tmp_path / "scores")
    content = report([metrics], tmp_path / "page.html").read_text("utf-8")
    page = Elements(content)
    assert not {tag for tag, _ in page.found} & {"img", "b<script"}
    assert "&lt;img src=x onerror=alert(1)&gt;" in content
    assert content.count("<script") == 3  # one volume, and the page's own two
    assert volumes_of(tmp_path / "page.html")[0]["classes"][0][1] == evil


def test_six_large_cases_stay_below_15_mb_and_are_made_fast(tmp_path):
    """Noise in 8 bits is the worst there is to pack."""
    edge = round(MOST_VOXELS ** (1 / 3))
    rng = np.random.default_rng(0)
    label = np.ones((edge, edge, edge), np.uint8)
    start = time.process_time()
    one = viewer_data(
        ScoredCase(rng.integers(0, 3000, label.shape), label, label, np.eye(4)), 1, np.zeros((2, 3), np.uint8), "ab"
    )
    assert time.process_time() - start < 5
    assert 6 * sum(len(one[part]) for part in ("image", "label", "prediction")) < 14e6


def test_wrong_sources_are_refused_by_name(scored, tmp_path):
    with pytest.raises(FileError, match=r"--output .*: expected a file ending in .html"):
        report([scored], tmp_path / "page.pdf")
    (tmp_path / "other.json").write_text('{"format": 3, "class_names": ["a"], "cases": []}')
    with pytest.raises(EvaluationError, match=r"other.json: expected a metrics.json of bodyseg evaluate"):
        report([tmp_path / "other.json"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("group", "name"), [("model", "class_names"), ("data", "channel_names")])
def test_a_run_with_facts_of_another_kind_is_refused_by_name(tmp_path, group, name):
    run = a_run(tmp_path / "logs")
    run.write_config({"system": {}} | documented_config(**{f"{group}.{name}": 5}))
    with pytest.raises(FileError, match=r"training_config.json: expected the settings and facts of a training, found"):
        report([run.path], tmp_path / "page.html")


@pytest.mark.parametrize("name", ["dice", "true_positives"])
def test_scores_beyond_any_number_of_a_computer_are_refused_by_name(scored, tmp_path, name):
    document = json.loads(scored.read_text("utf-8"))
    document["cases"][0]["classes"]["liver"][name] = 10**400
    scored.write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match=r"metrics.json: expected a metrics.json of bodyseg evaluate, found anot"):
        report([scored], tmp_path / "page.html")


@pytest.mark.fault(
    "names of classes, cases and subjects with control characters or marks that reorder text, in a report's page",
    "replaced everywhere, also in what the page's script shows",
)
def test_no_name_reorders_or_steers_what_the_page_shows(scored, tmp_path):
    odd = "\x1b\x9b\u202e\u2066"
    text = scored.read_text("utf-8").replace('"liver"', json.dumps(f"liver{odd}"))
    document = json.loads(text)
    document["cases"][0] |= {"case": f"a{odd}", "subject": f"s{odd}"}
    document["notes"] = [f"n{odd}"]
    scored.write_text(json.dumps(document))
    page = report([scored], tmp_path / "page.html")
    assert not set(odd) & set(page.read_text("utf-8"))
    names = {name for volume in volumes_of(page) for _, name, _ in volume["classes"]}
    assert "liver\ufffd\ufffd\ufffd\ufffd" in names
    assert not set(odd) & set("".join(names))


def test_volumes_of_a_mouse_have_digits_too(scored, tmp_path):
    document = json.loads(scored.read_text("utf-8"))
    for one in document["summary"]["left_out"]["classes"].values():
        one["reference_ml"]["mean"] = one["prediction_ml"]["mean"] = 0.00123
    scored.write_text(json.dumps(document))
    content = report([scored], tmp_path / "page.html", images=False).read_text("utf-8")
    assert content.count(">1.23</td>") == 2 * len(document["summary"]["left_out"]["classes"])
    assert all(f">{name} µl</button>" in content for name in ("reference", "predicted", "difference"))
