"""Every case is checked before a training: errors refuse it or leave their cases out; the split is the training's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.check import check, to_text
from pipeline.checks.findings import BadDataError, errors
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.screening import list_configured, screen
from pipeline.cli.main import main
from pipeline.datasets.errors import DatasetError
from pipeline.training.lightning_module import SegmentationModule, TrainingError
from pipeline.training.prepared_data import prepare_data
from tests.support.screening import arguments, record_of, refusals, run_of, settings
from tests.support.volumes import CLASSES, Folder, configured, cut, hounsfield, organs, save, with_value, write_series


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def test_a_resumed_run_scales_intensities_as_it_began(folder: Folder) -> None:
    config = settings(folder)
    before = IntensityChoice(("rescale",), "an earlier version said so")
    assert prepare_data(config, kept=before).preprocessing.intensity == "rescale"
    of_two_channels = IntensityChoice(("ct", "rescale"), "the data had another channel")
    assert screen(config, kept=of_two_channels).intensity.by_channel == ("ct",)


def test_numbers_for_nan_are_one_a_channel(folder: Folder) -> None:
    with pytest.raises(
        DatasetError, match=r"data\.fill_nan: expected .* each of 1 channels \(CT\), found \[-1024, 0\];"
    ):
        list_configured(settings(folder, fill_nan=[-1024, 0]))


@pytest.mark.fault("bad cases in the data of a training", "refused before anything is prepared, a line for every error")
def test_bad_cases_refuse_a_training_with_a_line_for_every_error(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(folder.image("a"), 2000)
    save(folder.label("c"), with_value(organs(), 7, np.uint8))
    folder.label("d").unlink()
    assert main(arguments(folder)) == 2
    missing = refusals(capsys)
    assert missing[0].startswith("bodyseg: case d: ")
    assert "does not exist" in missing[0]
    folder.cases = [case for case in folder.cases if case["case"] != "d"]
    save(folder.image("e"), hounsfield("e"))
    save(folder.label("e"), organs())
    folder.cases.append({"case": "e", "image": "e.nii.gz", "label": "e_label.nii.gz", "split": "val"})
    assert main(arguments(folder)) == 2
    lines = refusals(capsys)
    assert lines[0].startswith(f"bodyseg: case a: {folder.image('a')}: expected a whole, readable volume, found ")
    assert lines[1].startswith(
        f"bodyseg: case c: {folder.label('c')}: expected the label values 0-3, found 7 (1 voxels)"
    )
    assert lines[2].startswith("bodyseg: 2 errors in the data in 2 cases; repair them, or train without")
    assert "--skip_bad_cases" in lines[2]
    assert len(lines) == 3
    work = folder.root.parent
    assert [path.name for path in (work / "logs").rglob("*") if path.is_file()] == []
    assert list((work / "cache").glob("*.bodycase")) == []


@pytest.mark.parametrize(("shares", "n_warnings"), [((100, 0, 0), 1), ((90, 10, 0), 1), ((80, 10, 10), 0)])
def test_a_split_of_the_data_sets_own_is_named_where_another_was_asked_for(folder, shares, n_warnings) -> None:
    root = folder.write().parent
    found = check(configured(root / "cases.json", data={"split_shares": shares}), measure=False).findings
    named = [finding for finding in found if finding.kind == "setting"]
    assert [(f.severity, f.found) for f in named] == [
        ("warning", "2 and 2 cases: the data set's own split comes first")
    ] * n_warnings


@pytest.mark.parametrize(
    ("channel", "settings", "unused"),
    [
        ("MR", {"window": (-100, 300)}, ["data.window"]),
        ("MR", {"mean_std": (10, 20), "percentiles": (1, 99)}, ["data.mean_std"]),
        ("CT", {"window": (-100, 300), "percentiles": (1, 99)}, ["data.percentiles"]),
        ("CT", {"mean_std": "none"}, []),
    ],
)
def test_numbers_for_intensities_that_the_data_have_none_of_are_named(folder, channel, settings, unused) -> None:
    folder.channel_names = [channel]
    root = folder.write().parent
    found = check(configured(root / "cases.json", data=settings), measure=False).findings
    assert [f.found.partition(",")[0] for f in found if f.kind == "setting"] == unused


@pytest.mark.fault(
    "bad cases, and --skip_bad_cases", "they are left out by name and stand with their reason in the record"
)
def test_bad_cases_are_left_out_by_name_and_recorded(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    cut(folder.image("b"), 2000)
    folder.label("d").unlink()
    assert main(arguments(folder, "--skip_bad_cases")) == 0
    said = capsys.readouterr().out
    record = record_of(folder)
    assert list(record["skipped_cases"]) == ["b", "d"]
    assert str(folder.image("b")) in record["skipped_cases"]["b"]
    assert "does not exist" in record["skipped_cases"]["d"]
    assert (record["split"]["train"], record["split"]["val"]) == (["a"], ["c"])
    for case, reason in record["skipped_cases"].items():
        assert f"Skipping case {case}: {reason}" in said
    assert "Train samples: 1" in said
    # The record is a valid --config that repeats the run.
    run = run_of(folder)
    again = ["train", "--config", str(run / "training_config.json"), "--overwrite"]
    assert main(again) == 0
    assert record_of(folder)["skipped_cases"] == record["skipped_cases"]


def test_a_resumed_run_leaves_out_what_it_left_out_when_it_began(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = folder.image("b").read_bytes()
    cut(folder.image("b"), 2000)
    command = arguments(folder, "--skip_bad_cases", "--max_epochs", "2")
    start = SegmentationModule.on_train_epoch_start

    def interrupted(module: SegmentationModule) -> None:
        if module.current_epoch == 1:
            raise TrainingError("a power cut")
        start(module)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_train_epoch_start", interrupted)
        assert main(command) == 2
    folder.image("b").write_bytes(whole)  # repaired meanwhile: still another data set than the run began with
    lost = folder.image("a").read_bytes()
    save(folder.image("e"), hounsfield("e"))
    folder.cases.append({"case": "e", "image": "e.nii.gz", "label": "a_label.nii.gz", "split": "train"})
    cut(folder.image("a"), 2000)
    before = record_of(folder)
    folder.write()
    assert main([*command, "--resume"]) == 2
    assert "the run that is resumed began with these cases" in capsys.readouterr().err
    folder.image("a").write_bytes(lost)
    folder.cases.pop()
    folder.write()
    assert main([*command, "--resume"]) == 0
    assert record_of(folder) == before
    assert "b" in before["skipped_cases"]


@pytest.mark.parametrize("own_split", [True, False])
def test_a_side_left_without_a_case_refuses(folder: Folder, own_split: bool) -> None:
    for name in "cd" if own_split else "bcd":
        cut(folder.image(name), 2000)
    if not own_split:
        for case in folder.cases:
            del case["split"]
    with pytest.raises(DatasetError) as refused:
        screen(settings(folder, skip_bad_cases=True))
    expected = "every val case has errors" if own_split else "expected at least two subjects to divide"
    assert expected in str(refused.value)


def test_a_copy_of_a_bad_case_is_kept(folder: Folder) -> None:
    spoiled = with_value(hounsfield("a"), np.nan)
    save(folder.image("a"), spoiled)
    save(folder.image("c"), hounsfield("d"))
    screened = screen(settings(folder, skip_bad_cases=True))
    # c and d are equal, both of them validate: only a warning; of a and its copy on the other side one may stay.
    assert list(screened.skipped) == ["a"]
    save(folder.image("c"), hounsfield("b"))
    screened = screen(settings(folder, skip_bad_cases=True))
    assert list(screened.skipped) == ["a", "c"]
    assert "exactly the voxels of case b" in screened.skipped["c"]
    assert errors(screened.findings) == ()


def test_what_no_case_can_be_blamed_for_is_refused_all_the_same(folder: Folder) -> None:
    folder["c"]["subject"] = "pa"
    with pytest.raises(DatasetError, match="subject pa in two"):
        screen(settings(folder, skip_bad_cases=True))
    folder["c"]["subject"] = "pc"
    folder.write()
    wrong = configured(folder.root / "cases.json", model={"n_classes": 9}, data={"skip_bad_cases": True})
    folder.label("d").unlink()  # this case could be left out, but not the contradiction
    with pytest.raises(BadDataError, match=r"expected 9 classes .* found 4 .*\n.*--skip_bad_cases cannot help here"):
        screen(wrong)


def test_folds_divide_all_cases_but_those_that_test_and_leave_out_bad_ones(folder: Folder) -> None:
    folder["a"]["split"] = "test"
    every = screen(settings(folder, folds=3, fold=1))
    assert every.folds is not None
    assert every.split == every.folds.splits[1]
    assert sorted(split.val for split in every.folds.splits.values()) == [("b",), ("c",), ("d",)]
    assert {split.test for split in every.folds.splits.values()} == {("a",)}
    folder.image("d").write_bytes(b"no volume")
    good = screen(settings(folder, folds=2, skip_bad_cases=True))
    assert good.folds is not None
    assert sorted(split.val for split in good.folds.splits.values()) == [("b",), ("c",)]
    own = folder.root / "folds.json"
    own.write_text(json.dumps([{"train": ["b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["b"]}]))
    named = screen(settings(folder, fold=1, split_file=str(own), skip_bad_cases=True))
    assert named.folds is not None
    assert [split.val for split in named.folds.splits.values()] == [("c",), ("b",)]
    assert named.split == named.folds.splits[1]


def test_a_training_is_divided_as_the_check_says(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES))
    for number in range(9):
        save(tmp_path / "images" / f"{number}.nii.gz", hounsfield(str(number)))
        label = organs()
        if number not in (4, 7):
            label[label == 3] = 0  # one voxel of liver in two cases, which the prepared size would lose
        else:
            label[(label == 3).nonzero()[0][0], 8, 7] = 3
        save(tmp_path / "labels" / f"{number}.nii.gz", label)
    config = configured(tmp_path, data={"target_size": (8, 8, 8)})
    prepared = prepare_data(config)
    report = check(config, measure=False)
    assert report.fingerprint is not None
    liver = report.fingerprint.classes[3]
    assert (liver.n_train, liver.n_val) == (1, 1)
    assert len(set(prepared.split.train) & {"4", "7"}) == len(set(prepared.split.val) & {"4", "7"}) == 1
    # Cases that neither train nor validate are not prepared.
    assert len(list((tmp_path / "cache").glob("*.bodycase"))) == len(prepared.split.train) + len(prepared.split.val)
    assert report.estimate is not None
    assert report.estimate.cache_bytes == sum(f.stat().st_size for f in (tmp_path / "cache").glob("*.bodycase"))


@pytest.mark.parametrize(
    ("channel", "image", "expected"),
    [
        ("image", lambda: hounsfield("a"), "ct"),
        ("image", lambda: np.abs(hounsfield("a")), "mr"),
        ("T2w", lambda: hounsfield("a"), "mr"),
        ("CT", lambda: np.abs(hounsfield("a")), "ct"),
    ],
)
def test_the_modality_is_told_by_names_or_else_by_air(
    folder: Folder, channel: str, image: object, expected: str
) -> None:
    folder.channel_names = [channel]
    for name in "abcd":
        save(folder.image(name), image() + np.int16(ord(name) - 97))
    assert screen(settings(folder)).intensity.intensity == expected


def test_a_dicom_header_tells_the_modality(folder: Folder) -> None:
    folder.channel_names = ["image"]
    write_series(folder.root / "series", [3.0 * k for k in range(12)])
    save(folder.label("c"), organs()[::-1], np.diag([-2.0, -2.0, 3.0, 1.0]))
    folder["c"]["image"] = "series"
    intensity = screen(settings(folder)).intensity
    assert intensity.to_document() == {"intensity": "ct", "because": "the DICOM headers say CT"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"augmentation": {"rotaton_deg": 5}}, "rotaton_deg"),
        ({"augmentation": {"gamma": -1}}, "gamma"),
        ({"augmentation": {"gamma": "much"}}, "gamma"),
        ({"flips": (0,)}, "lung_middle_lobe_right"),
    ],
)
def test_augmentation_is_judged_before_any_file_is_opened(folder: Folder, data: dict, words: str) -> None:
    folder.labels = {"background": 0, "kidney_left": 1, "kidney_right": 2, "lung_middle_lobe_right": 3}
    config = settings(folder, data_aug=True, **data)
    with pytest.raises(BadDataError, match=words):
        screen(config)
    assert not (folder.root.parent / "cache").exists()
    report = check(config, costs=False)
    assert [finding.severity for finding in report.findings if words in finding.found] == ["error"]


def test_mirrored_classes_without_partners_are_warned_of(folder: Folder) -> None:
    def warned(*names: str, **data: object) -> list[str]:
        folder.labels = {name: value for value, name in enumerate(names)}
        folder.write()
        config = configured(folder.root / "cases.json", data={"data_aug": True, "flips": (0,), **data})
        return [finding.found for finding in list_configured(config)[1] if finding.kind == "sides_unknown"]

    assert warned("background", "Parotid_L", "Parotid_R", "Brain") == []
    assert warned("background", "liver", "spleen", "aorta") == ["no class is exchanged with another"]
    (found,) = warned("background", "Parotid_L", "Parotid_R", "Eye_L")
    assert found == "1 pair of classes is exchanged (Parotid_L with Parotid_R); without a partner: Eye_L"
    found = screen(settings(folder, data_aug=True, flips=(0,))).findings  # a training counts it, too
    assert [finding.kind for finding in found].count("sides_unknown") == 1
    assert warned("background", "liver", "spleen", "aorta", sided_pairs=[]) == []
    assert warned("background", "liver", "a", "b", sided_pairs=[["a", "b"]]) == []
    assert warned("background", "liver", "spleen", "aorta", flips=(1,)) == []


def test_who_has_to_mend_the_settings_too_is_not_told_to_leave_cases_out(folder: Folder) -> None:
    folder.write()
    folder.label("d").unlink()
    wrong = configured(folder.root / "cases.json", model={"n_classes": 9})
    with pytest.raises(BadDataError, match=r"case d: (?s:.*)--skip_bad_cases cannot help here"):
        screen(wrong)


def test_who_has_bad_cases_alone_is_not_told_to_leave_them_out(folder: Folder) -> None:
    for case in "abcd":
        save(folder.label(case), with_value(organs(), 7, np.uint8))
    folder.write()
    everything = check(configured(folder.root / "cases.json"), measure=False)
    assert "--skip_bad_cases" not in to_text(everything)
    save(folder.label("a"), organs())
    assert "--skip_bad_cases" in to_text(check(configured(folder.root / "cases.json"), measure=False))
