"""The comparison of runs: the same numbers in every form, only what differs, and nothing hidden."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cli.main import main
from pipeline.compare import compare, to_csv, to_json, to_text
from pipeline.files.atomic import FileError
from pipeline.runs.history import TrainingLog
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.stored_scores import TrainedWeights, weights_id
from pipeline.runs.study import StudyFolder, StudyRecord

BASE = ["run", "best_val_mIoU", "best_epoch", "total_epochs", "status", "base_channels", "total_parameters", "time"]


def a_run(log_dir: Path, name: str, scores=(0.1, 0.3, 0.2), *, status="completed", **settings) -> RunFolder:
    folder, log = RunFolder(log_dir, name), TrainingLog()
    config = {
        "experiment": {"name": name, "start_time": "2024-01-15 10:30:00"},
        "data": {"target_size": [64, 64, 64], "split": {"hash": "ab", "train": [name]}},
        "model": {"base_channels": 32, "total_parameters": 20458391, "network": None},
        "training": {"lr": 1e-4, "seed": 42},
        "loss": {"use_class_weights": True, "class_weights_stats": {"min": len(name)}},
        "system": {"pytorch_version": name},
    }
    for key, value in settings.items():
        group, _, setting = key.partition("__")
        config[group][setting] = value
    folder.make_ready(keep=False)
    folder.write_config(config)
    for epoch, score in enumerate(scores):
        values = {"train_loss": 1, "train_accuracy": 1, "val_loss": 1, "learning_rate": 1e-4}
        log.append_epoch(epoch, val_mIoU=score, **values)
    log.last_update = "2024-01-15 11:00:01"
    folder.write_log(log)
    if status:
        folder.write_summary(status, log, reason="because")
        summary = folder.read_summary() | {"completion_time": "2024-01-17 14:33:09"}
        folder.summary.write_text(json.dumps(summary))
    return folder


def test_runs_are_sorted_by_their_best_miou_and_show_what_differs(tmp_path):
    a_run(tmp_path, "a", (0.1, 0.2), training__lr=1e-3, data__target_size=[32, 32, 32])
    a_run(tmp_path, "b", (None, None), training__lr=1e-4)
    a_run(tmp_path, "c", (0.7, 0.6), model__base_channels=16)
    table = compare([tmp_path])
    assert [row["run"] for row in table.rows] == ["c", "a", "b"]
    assert table.settings == ("data.target_size", "training.lr")
    assert [row["training.lr"] for row in table.rows] == [1e-4, 1e-3, 1e-4]
    assert table.rows[0] == {
        "run": "c",
        "best_val_mIoU": 0.7,
        "best_epoch": 0,
        "total_epochs": 2,
        "status": "completed",
        "base_channels": 16,
        "total_parameters": 20458391,
        "time": "52:03:09",
        "data.target_size": [64, 64, 64],
        "training.lr": 1e-4,
    }


def test_the_time_of_a_run_is_that_of_its_epochs_without_pauses(tmp_path):
    folder = a_run(tmp_path, "a")
    log = folder.read_log()
    log.training_seconds = 3725.9
    folder.write_log(log)
    a_run(tmp_path, "earlier")
    assert [row["time"] for row in compare([tmp_path]).rows] == ["01:02:05", "52:03:09"]


def test_a_group_of_settings_that_one_run_lacks_differs_key_by_key(tmp_path):
    a_run(tmp_path, "a", model__network={"_target_": "SegResNet", "init_filters": 8}, training__clip=None)
    a_run(tmp_path, "b")
    table = compare([tmp_path])
    assert table.settings == ("model.network._target_", "model.network.init_filters")
    assert [row["model.network.init_filters"] for row in table.rows] == [8, None]


def test_csv_and_json_hold_the_same_as_pandas_reads_them(tmp_path):
    a_run(tmp_path, "a", training__lr=1 / 3, data__target_size=[1, 2, 3])
    a_run(tmp_path, "b", (None,), training__schedule='po"ly, x')
    table = compare([tmp_path])
    from_csv, document = pd.read_csv(io.StringIO(to_csv(table))), json.loads(to_json(table))
    from_json = pd.DataFrame(document["runs"])
    assert from_csv.columns.tolist() == from_json.columns.tolist() == [*BASE, *document["settings"]]
    from_csv["data.target_size"] = from_csv["data.target_size"].map(json.loads)
    pd.testing.assert_frame_equal(from_csv, from_json, check_dtype=False)
    assert from_csv["training.lr"][0] == 1 / 3
    assert pd.to_timedelta(from_csv.time)[0] == pd.Timestamp("2024-01-17 14:33:09") - pd.Timestamp(
        "2024-01-15 10:30:00"
    )


def test_unfinished_runs_stand_in_the_table_with_their_state(tmp_path):
    a_run(tmp_path, "running", status=None)
    a_run(tmp_path, "failed", status="failed")
    a_run(tmp_path, "stopped", status="interrupted")
    a_run(tmp_path, "fresh", (), status=None).log.unlink()
    rows = {row["run"]: row for row in compare([tmp_path]).rows}
    states = {"running": "unfinished", "failed": "failed", "stopped": "interrupted", "fresh": "unfinished"}
    assert {name: row["status"] for name, row in rows.items()} == states
    assert rows["running"]["time"] == "00:30:01"
    assert (rows["fresh"]["total_epochs"], rows["fresh"]["best_val_mIoU"]) == (0, None)


def test_a_damaged_run_is_named_at_the_end_and_the_others_are_compared(tmp_path):
    good = a_run(tmp_path, "good", experiment__start_time="yesterday")
    for name, text in [
        ("bad1", "{"),
        ("bad2", "[]"),
        ("bad3", '{"model": 3}'),
        ("bad4", '{"a":' * 900 + "1" + "}" * 900),
    ]:
        a_run(tmp_path, name).config.write_text(text)
    table = compare([tmp_path])
    assert [row["run"] for row in table.rows] == ["good"]
    assert table.rows[0]["time"] is None
    assert [next(name for name in line.split("/") if name.startswith("bad")) for line in table.skipped] == [
        "bad1",
        "bad2",
        "bad3",
        "bad4",
    ]
    assert to_text(table).splitlines()[-1].startswith(f"skipped: {tmp_path / 'bad4'}")
    good.config.unlink()
    with pytest.raises(FileError, match=r"none of the 5 runs can be read; the first: .*bad1"):
        compare([tmp_path])


@pytest.mark.parametrize("depth", [50, 300, 600])
@pytest.mark.parametrize(("opening", "closing"), [('{"x":', "}"), ("[", "]")])
def test_a_deeply_nested_setting_is_shown_or_skipped_and_never_fatal(tmp_path, depth, opening, closing):
    a_run(tmp_path, "a")
    nested = a_run(tmp_path, "b", model__network="DEEP")
    nested.config.write_text(nested.config.read_text().replace('"DEEP"', opening * depth + "1" + closing * depth))
    table = compare([tmp_path])
    assert len(table.rows) + len(table.skipped) == 2
    assert all(str(nested.config) in line for line in table.skipped)
    assert to_csv(table)
    assert json.loads(to_json(table))
    assert max(map(len, to_text(table, 100).splitlines())) <= max(100, *map(len, (*table.skipped, ""))) + 9


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    one, two = a_run(tmp_path / "x", "run"), a_run(tmp_path / "y", "run")
    table = compare([one.path, two.path, one.path])
    assert [row["run"] for row in table.rows] == [str(one.path), str(two.path)]


@pytest.mark.parametrize("n_runs", [1, 2, 12])
@pytest.mark.parametrize("width", [80, 100, 300])
def test_the_text_fits_the_screen_and_keeps_every_name_and_number(tmp_path, n_runs, width):
    names = [f"body_unet_bs2_lr{1e-4 * (i + 1):.5f}_ch32_cw0.5_aug" for i in range(n_runs)]
    for i, name in enumerate(names):
        network = {"_target_": "monai.networks.nets.SegResNet", "init_filters": i}
        a_run(
            tmp_path, name, (0.1 * i / n_runs,), training__lr=1e-4 / (i + 3), model__network=network, training__seed=i
        )
    table = compare([tmp_path])
    text = to_text(table, width)
    assert max(map(len, text.splitlines())) <= width
    for row in table.rows:
        assert row["run"] in text
        assert f"{row['best_val_mIoU']:.4f}" in text
    assert "20,458,391" in text


def test_plain_text_has_one_line_a_run_however_wide(tmp_path):
    for i in range(3):
        a_run(tmp_path, f"run{i}", model__note=f"{i}" * 70, training__lr=1e-4 / (i + 3))
    lines = to_text(compare([tmp_path])).splitlines()
    assert len(lines) == 2 + 3
    assert all(sum(f"run{i}" in line for line in lines) == 1 for i in range(3))


def test_a_config_cannot_steer_the_terminal(tmp_path):
    a_run(tmp_path, "a", training__note="\x1b[2J[red]")
    a_run(tmp_path, "b", **{"training__\x1b]0;evil\x07": 1})
    text = to_text(compare([tmp_path]))
    assert all(line.isprintable() for line in text.splitlines())
    assert "[2J[red]" in text


def test_a_cross_validation_is_a_row_of_its_own(tmp_path):
    """The mean of its folds' best, 0.3 and 0.7; epochs and time in all; what differs between folds is none."""
    study = StudyFolder(tmp_path, "study")
    study.path.mkdir()
    folds = {number: {"train": (), "val": (), "test": ()} for number in (0, 1, 2)}
    study.write_record(StudyRecord({}, "3 folds", "ab", folds))
    a_run(study.path, "fold_0", data__fold=0, training__lr=0.5)
    a_run(study.path, "fold_1", (0.7,), data__fold=1, training__lr=0.5)
    a_run(tmp_path, "alone", data__fold=0)
    for paths in ([tmp_path], [tmp_path / "alone", study.path]):
        table = compare(paths)
        assert [(row["run"], row["best_val_mIoU"]) for row in table.rows] == [("study", 0.5), ("alone", 0.3)]
        row = table.rows[0]
        assert (row["total_epochs"], row["status"], row["best_epoch"]) == (4, "2 of 3 folds", None)
        assert row["time"] == "104:06:18"  # twice 52:03:09
        assert row["training.lr"] == 0.5
        assert "data.fold" not in row or row["data.fold"] is None
    assert [row["run"] for row in compare([study.path / "fold_0", study.path / "fold_1"]).rows] == ["fold_1", "fold_0"]
    study.write_record(StudyRecord({}, "3 folds", "ab", {0: folds[0]}))
    assert compare([tmp_path]).rows[1]["data.fold"] is None  # where one fold alone was begun
    study.record.unlink()
    study.write_record(StudyRecord({}, "3 folds", "ab", {9: folds[0]}))
    (line,) = compare([tmp_path]).skipped
    assert "expected a fold that was begun, found none" in line


def test_settings_that_seldom_explain_a_score_are_counted_and_shown_on_request(tmp_path, capsys):
    for i, name in enumerate("ab"):
        more = {"data__cache_dir": f"cache{i}", "data__num_workers": i, "training__overlay_every": i}
        a_run(tmp_path, name, training__lr=1e-4 * (i + 1), data__split={"hash": name}, **more)
    assert main(["compare", str(tmp_path)]) == 0
    short = capsys.readouterr().out
    assert "training.lr" in short
    assert "num_workers  " not in short
    assert "the runs divided the cases in different ways" in short
    assert "4 more settings (data.num_workers, " in short or "4 more settings (data.split.hash, " in short
    assert main(["compare", str(tmp_path), "--all"]) == 0
    whole = capsys.readouterr().out
    assert {"data.cache_dir", "data.num_workers", "training.overlay_every", "training.lr"} <= set(whole.split())
    assert "more setting" not in whole
    assert main(["compare", str(tmp_path), "--csv"]) == 0
    assert "data.cache_dir" in capsys.readouterr().out


def test_runs_that_were_evaluated_show_their_dice(tmp_path):
    a_run(tmp_path, "a")
    run = a_run(tmp_path, "b")
    for split, dice in (("val", 0.75), ("test", None), ("train", "x")):
        scored(run, dice, split)
    table = compare([tmp_path])
    assert table.scores == ("val_dice",)
    assert {row["run"]: row["val_dice"] for row in table.rows} == {"a": None, "b": 0.75}
    assert pd.read_csv(io.StringIO(to_csv(table))).set_index("run").val_dice["b"] == 0.75
    heading, _, *lines = to_text(table).splitlines()
    assert heading.split()[:5] == ["run", "best", "mIoU", "val", "Dice"]
    assert [line.split()[:3] for line in lines] == [["a", "0.3000", "–"], ["b", "0.3000", "0.7500"]]
    (run.evaluation("val") / "metrics.json").write_text("{")
    damaged = compare([tmp_path])
    assert damaged.scores == ()
    assert "metrics.json: is not valid JSON" in damaged.left_out[0]


def scored(run: RunFolder, dice: float | str | None, split: str = "val", **more) -> Path:
    """Write what an evaluation of the run's present weights is known by; a file of earlier versions with networks=[]"""
    log = run.read_log()
    best = TrainedWeights(run.name, log.best_epoch, log.best_val_miou, weights_id(run.best_checkpoint))
    document = {
        "created": "2024-01-15 11:30:00",
        "networks": [best.to_document()],
        "summary": {"left_out": {"mean_over_classes": {"dice": dice}}},
    }
    path = run.evaluation(split) / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | more))
    return path


def test_scores_of_weights_that_were_replaced_are_left_out_in_every_form(tmp_path, capsys):
    run = a_run(tmp_path / "logs", "a run")
    scored(run, 0.75)
    run.make_ready(keep=False)  # --overwrite, and a failure in its first epoch
    a_run(tmp_path / "logs", "a run", (), status="failed")
    table = compare([tmp_path / "logs"])
    assert (table.scores, table.rows[0]["total_epochs"]) == ((), 0)
    (line,) = table.left_out
    assert "metrics.json: its scores are left out, since a run no longer has the weights" in line
    assert line.endswith(f"score these by bodyseg evaluate '{run.path}' --split val --overwrite")
    assert json.loads(to_json(table))["left_out"] == [line]
    assert line in to_text(table)
    assert main(["compare", str(tmp_path / "logs"), "--csv"]) == 0
    assert capsys.readouterr().err == f"bodyseg: warning: {line}\n"


def test_a_run_that_began_with_weights_that_had_seen_its_cases_says_so_in_every_form(tmp_path, capsys):
    split = {"hash": "ab", "train": ["a"], "val": ["b"], "test": ["c"]}
    run = a_run(tmp_path, "tuned", data__split=split, training__started_from={"run": "old", "trained_on": ["b", "c"]})
    lines = compare([run.path]).seen
    assert [line.partition(" cases")[0] for line in lines] == ["tuned: 1 of 1 validation", "tuned: 1 of 1 test"]
    outputs = {}
    for flag in ("--json", "--csv", "--all"):
        assert main(["compare", str(run.path), flag]) == 0
        outputs[flag] = capsys.readouterr()
    assert json.loads(outputs["--json"].out)["seen"] == list(lines)
    assert outputs["--csv"].err.splitlines() == [f"bodyseg: warning: {line}" for line in lines]
    assert all(line in outputs["--all"].out for line in lines)


def test_means_over_different_structures_are_told_from_the_same_ones_in_another_order(tmp_path):
    for name, structures in (("a", ["liver", "spleen"]), ("b", ["spleen", "liver"]), ("c", ["liver", "heart"])):
        a_run(tmp_path, name, model__class_names=["background", *structures])
    said = "the runs segment different structures: their scores are means over different ones"
    assert said in to_text(compare([tmp_path]))
    assert said not in to_text(compare([tmp_path / "a", tmp_path / "b"]))


def test_a_mean_of_some_of_the_cases_says_so_in_every_form(tmp_path, capsys):
    run = a_run(tmp_path / "logs", "a")
    scored(run, 0.75, n_cases=2, refused=[{"case": "x", "reason": "y"}], labels_without_prediction=["z"])
    (line,) = compare([run.path]).incomplete
    assert line.startswith(
        "a: val: 1 label has no prediction (z); of the others Dice is the mean of 2 of 3 cases alone: x could not be "
        "scored"
    )
    assert line.endswith(f"score all by bodyseg evaluate {run.path} --split val")
    assert main(["compare", str(run.path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert main(["compare", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["incomplete"] == [line]
    assert main(["compare", str(run.path), "--csv"]) == 0
    printed = capsys.readouterr()
    assert "0.75" in printed.out
    assert printed.err == f"bodyseg: warning: {line}\n"
    scored(run, 0.75, n_cases=4, refused=[], labels_without_prediction=[])
    assert compare([run.path]).incomplete == ()


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("n_runs", [2, 9])
def test_a_narrow_screen_breaks_no_word_and_no_number(tmp_path, width, n_runs):
    for i in range(n_runs):
        more = {"training__warmup_epochs": i, "data__target_size": [160, 160, 16 * i], "training__lr": 1e-5 / (i + 3)}
        a_run(tmp_path, f"run_{i}", (i / 10,), **more)
    table = compare([tmp_path])
    whole, narrow = to_text(table).split(), to_text(table, width).split()
    assert {word for word in whole if not word.startswith("─")} <= {*narrow, *(f"#{n}" for n in range(1, 10))}


def test_memory_is_shown_on_request_and_of_a_study_the_largest(tmp_path, capsys):
    """And of runs of earlier versions, which measured none, there is no column."""
    a_run(tmp_path, "old")
    assert "peak_memory_gb" not in compare([tmp_path]).rows[0]
    study = StudyFolder(tmp_path, "study")
    study.path.mkdir()
    study.write_record(StudyRecord({}, "2 folds", "ab", {n: {"train": (), "val": (), "test": ()} for n in (0, 1)}))
    for number, n_gb in enumerate((4.25, 3.5)):
        fold = a_run(study.path, f"fold_{number}", data__fold=number)
        found = {"peak_memory_gb": n_gb, "peak_memory_of": "NVIDIA H200"}
        fold.summary.write_text(json.dumps(fold.read_summary() | found))
    table = compare([tmp_path])
    assert [row["peak_memory_gb"] for row in table.rows] == [None, 4.25]
    assert pd.read_csv(io.StringIO(to_csv(table))).peak_memory_gb[1] == 4.25
    assert "memory" not in to_text(table)
    assert main(["compare", str(tmp_path), "--all"]) == 0
    heading, _, old, folds, *_ = capsys.readouterr().out.splitlines()
    assert "memory GB  memory of" in heading
    assert "4.25  NVIDIA H200" in folds
    assert "NVIDIA" not in old


def test_the_names_of_settings_stay_whole_beside_long_values_of_several_runs(tmp_path):
    for i in range(3):
        more = {"data__dataset_root": f"/data/projects/{'x' * 60}/set_{i}", "training__skip_undefined_steps": i}
        a_run(tmp_path, f"run_{i}", training__warmup_epochs=i, data__split={"hash": f"{i}" * 64}, **more)
    lines = to_text(compare([tmp_path]), 80, all_settings=True).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if "undefined" in line] == ["training.skip_undefined_steps"] * 2
    roots = [line for line in lines if line.startswith("data.dataset_root")]
    assert all(f"set_{i}" in "".join(roots) for i in range(3))  # values differ in their ends
    assert sum("setting" in line.split() for line in lines) == 2  # two parts, not one a run


@pytest.mark.parametrize("n_more", [0, 3])
@pytest.mark.parametrize("width", [60, 80, None])
def test_values_that_differ_are_never_shortened_to_the_same_text(tmp_path, width, n_more):
    """With a line a setting, a line a run, and on a screen of any width."""
    roots = [f"/data/hospital/{year}/{'labels_v1/' * 5}nnUNet_raw" for year in (2019, 2021)]
    for i, root in enumerate(roots):
        more = {f"training__setting_{n}": i for n in range(n_more)}
        a_run(tmp_path, f"run_{i}", data__dataset_root=root, **more)
    text = to_text(compare([tmp_path]), width)
    shown = [word for word in text.split() if "…" in word]
    assert len(shown) == 2
    assert all(f"/{year}/" in word for year, word in zip((2019, 2021), shown, strict=True))
    assert width is None or max(map(len, text.splitlines())) <= width
