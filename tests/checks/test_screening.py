"""Every case is looked at before a training: errors refuse it or leave their cases out, and no case is opened twice."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from pipeline.check import check
from pipeline.checks import case_check
from pipeline.checks.case_check import CheckedCase, check_cases
from pipeline.checks.findings import BadDataError, errors
from pipeline.checks.remembered_checks import check_changed_cases
from pipeline.checks.screening import list_configured, screen
from pipeline.cli.main import main
from pipeline.datasets.errors import DatasetError
from pipeline.evaluate import evaluate_run
from pipeline.training.lightning_module import SegmentationModule, TrainingError
from pipeline.training.prepared_data import prepare_data
from tests.support.volumes import CLASSES, Folder, configured, cut, hounsfield, organs, save, with_value, write_series


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def arguments(folder: Folder, *more: str) -> list[str]:
    """A tiny training as somebody types it."""
    folder.write()
    work = folder.root.parent
    return [
        *f"train --dataset_root {folder.root / 'cases.json'} --log_dir {work}/logs --data.cache_dir {work}/cache"
        " --target_size 16 24 16 --batch_size 1 --num_workers 0 --base_channels 4 --max_epochs 1 --n_gpus 0"
        " --precision 32".split(),
        *more,
    ]  # fmt: skip


def settings(folder: Folder, **data: object) -> object:
    folder.write()
    return configured(folder.root / "cases.json", data={"cache_dir": str(folder.root.parent / "cache"), **data})


def run_of(folder: Folder) -> Path:
    (run,) = (folder.root.parent / "logs").iterdir()
    return run


def record_of(folder: Folder) -> dict:
    return json.loads((run_of(folder) / "training_config.json").read_text())["data"]


def plain(facts: list[CheckedCase]) -> list[str]:
    return [json.dumps(dataclasses.asdict(case), default=lambda v: getattr(v, "tolist", v.__str__)()) for case in facts]


def refusals(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was refused, a line for each; warnings about settings aside."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("bodyseg: ") and not line.startswith("bodyseg: warning: ")]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that inspections open from now on."""
    names: list[str] = []
    real = case_check.read_volume

    def read(path: Path) -> object:
        names.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(case_check, "read_volume", read)
    return names


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


def test_a_second_start_opens_no_case(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(folder.root / "series", [3.0 * k for k in range(12)])
    save(folder.label("c"), organs()[::-1], np.diag([-2.0, -2.0, 3.0, 1.0]))
    folder["c"]["image"] = "series"
    names = opened(monkeypatch)
    first = prepare_data(settings(folder))
    assert sorted(names) == sorted(
        ["a.nii.gz", "a_label.nii.gz", "b.nii.gz", "b_label.nii.gz", "c_label.nii.gz", "d.nii.gz", "d_label.nii.gz",
         "series"]
    )  # fmt: skip
    names.clear()
    second = prepare_data(settings(folder))
    assert names == []
    assert (second.split, second.preprocessing) == (first.split, first.preprocessing)
    save(folder.image("b"), hounsfield("x"))
    prepare_data(settings(folder))
    assert names == ["b.nii.gz", "b_label.nii.gz"]
    names.clear()
    folder.labels["spleen"] = 4
    prepare_data(settings(folder))
    assert len(names) == 8  # with other classes other values are known


def test_what_is_remembered_is_what_was_found(folder: Folder, tmp_path: Path) -> None:
    save(folder.image("a"), np.full(organs().shape, -1000, np.int16))
    save(folder.label("b"), 0 * organs())
    config = settings(folder)
    dataset, _ = list_configured(config)
    fresh = check_cases(dataset.cases, dataset)
    for _ in range(2):
        assert plain(check_changed_cases(dataset.cases, dataset, tmp_path / "cache")) == plain(fresh)
    assert {finding.kind for case in fresh for finding in case.findings} == {"constant_image", "empty_label"}
    text = [str(finding) for finding in screen(config).findings]
    assert text == [str(finding) for finding in screen(config).findings]
    assert text == [str(finding) for finding in check(folder.root / "cases.json").findings]


def test_a_repaired_case_is_seen(folder: Folder) -> None:
    whole = folder.image("b").read_bytes()
    cut(folder.image("b"), 2000)
    with pytest.raises(BadDataError, match="case b"):
        screen(settings(folder))
    folder.image("b").write_bytes(whole)
    assert screen(settings(folder)).skipped == {}


@pytest.mark.fault("a damaged memory of inspections", "the cases are opened again")
def test_a_damaged_memory_is_not_believed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(folder)
    expected = screen(config)
    memory = folder.root.parent / "cache" / "inspections.jsonl"
    lines = memory.read_text().splitlines()
    assert len(lines) == 4
    torn = [lines[0][:300], re.sub(r'"shape": \[\d+', '"shape": "x', lines[1]), lines[2].replace('"images"', '"pics"')]
    memory.write_bytes("\n".join([*torn, lines[3]]).encode() + b"\n\xff\xfe no text")
    names = opened(monkeypatch)
    assert plain(screen(config).cases) == plain(expected.cases)
    assert len(names) == 6


def test_processes_that_start_together_open_every_case_once(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(folder)
    names = opened(monkeypatch)
    found: list[list[str]] = []
    starts = [threading.Thread(target=lambda: found.append(plain(list(screen(config).cases)))) for _ in range(3)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    assert len(names) == 8
    assert list((folder.root.parent / "cache").glob("*.lock")) == []


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


# A remap of label values ------------------------------------------------------------------------------------------


def strange_labels(folder: Folder) -> None:
    """Case b has the liver under 255, and case c a value too many."""
    save(folder.label("b"), np.where(organs() == 3, 255, organs()).astype(np.uint8))
    label = organs()
    label[0, 0, 0] = 77
    save(folder.label("c"), label)


def suggestion(folder: Folder) -> str:
    remedies = {finding.remedy for finding in folder.check().findings if finding.kind == "label_unknown_values"}
    (remedy,) = remedies  # one table for all labels
    return remedy[remedy.index("label_remap: ") :]


def test_the_suggested_remap_can_be_pasted(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    strange_labels(folder)
    table = suggestion(folder)
    assert table == "label_remap: {77: background, 255: liver}"
    pasted = folder.root.parent / "settings.yaml"
    pasted.write_text(f"data:\n  dataset_root: {folder.root / 'cases.json'}\n  {table}\n")
    assert main(["check", "--config", str(pasted), "--no_measure", "--data.cache_dir", "none", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    assert [c["n_voxels"] for c in report["fingerprint"]["classes"][1:]] == [4 * 27, 4 * 27, 4 * 48]
    assert main(arguments(folder)) == 2
    capsys.readouterr()
    assert main([*arguments(folder), "--config", str(pasted)]) == 0
    assert record_of(folder)["label_remap"] == {"77": "background", "255": "liver"}


def test_remapped_labels_are_prepared_as_if_they_had_been_right(folder: Folder) -> None:
    right = prepare_data(settings(folder)).class_voxels()
    strange_labels(folder)
    config = settings(folder, label_remap={"255": "liver", 77: 0})
    prepared = prepare_data(config)
    assert np.array_equal(prepared.class_voxels(), right)
    assert prepared.preprocessing.label_remap == {255: 3, 77: 0}


def test_a_run_with_a_remap_evaluates_its_labels_with_it(folder: Folder) -> None:
    strange_labels(folder)
    assert main(arguments(folder, "--data.label_remap", "{255: liver, 77: background}")) == 0
    scores = evaluate_run(run_of(folder), "train", output=folder.root.parent / "scores")
    assert scores.refused == {}
    hashes = {case.pair.case: case.label_sha256 for case in scores.cases}
    assert hashes.keys() == {"a", "b"}
    assert hashes["a"] == hashes["b"]  # the same label but for the value of its liver


def test_no_remap_keeps_the_names_of_cache_entries(folder: Folder) -> None:
    prepared = prepare_data(settings(folder))
    assert "label_remap" not in prepared.preprocessing.arguments()
    before = sorted(path.name for path in (folder.root.parent / "cache").glob("*.bodycase"))
    prepare_data(settings(folder, label_remap={255: "liver"}))
    after = sorted(path.name for path in (folder.root.parent / "cache").glob("*.bodycase"))
    assert len(after) == 2 * len(before) == 8


def test_values_can_be_exchanged_and_many_become_one_class(folder: Folder) -> None:
    swapped = np.array([0, 2, 1, 3], np.uint8)[organs()]
    save(folder.label("c"), swapped)
    facts = screen(settings(folder, label_remap={1: 2, 2: 1})).cases
    sizes = {case.case: case.label.class_voxels.tolist() for case in facts if case.label is not None}
    places = {case.case: case.label.centroids_mm for case in facts if case.label is not None}
    assert sizes["a"] == sizes["c"]
    assert np.array_equal(places["c"][1], places["c"][1])
    assert places["c"][1, 0] < places["c"][2, 0]
    assert places["a"][1, 0] > places["a"][2, 0]
    facts = screen(settings(folder, label_remap={1: 3, 2: "liver"})).cases
    assert facts[0].label is not None
    assert facts[0].label.class_voxels[1:].tolist() == [0, 0, 27 + 27 + 48]
    inverted = screen(settings(folder, label_remap={0: 3, 3: 0})).cases[0].label
    assert inverted is not None
    image = nib.load(folder.label("a"))
    voxels = np.argwhere(np.asanyarray(image.dataobj) == 0)
    assert inverted.centroids_mm[3] == pytest.approx(nib.affines.apply_affine(image.affine, voxels).mean(axis=0))


@pytest.mark.parametrize(
    ("remap", "words"),
    [
        (
            {7: "livr"},
            "data.label_remap: 7: expected a class, ignore, or an index of 0 to 3, found 'livr'; choose one of back",
        ),
        ({7: 4}, "found 4"),
        ({7: -1}, "found -1"),
    ],
)
def test_a_remap_to_no_class_is_refused(folder: Folder, remap: dict, words: str) -> None:
    with pytest.raises(DatasetError) as refused:
        screen(settings(folder, label_remap=remap))
    assert words in str(refused.value)


def test_a_remap_of_masks_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        masks = tmp_path / name / "segmentations"
        masks.mkdir(parents=True)
        save(tmp_path / name / "ct.nii.gz", hounsfield(name))
        save(masks / "liver.nii.gz", (organs() == 3).astype(np.uint8))
    with pytest.raises(DatasetError, match="one mask a structure"):
        screen(configured(tmp_path, data={"label_remap": {7: "liver"}}))


def test_awkward_class_names_survive_the_paste(folder: Folder) -> None:
    folder.labels = {"background": 0, "no": 1, "5": 2, "liver: left, [upper]": 3}
    save(folder.label("b"), np.array([0, 10, 20, 30], np.uint8)[organs()])
    table = yaml.safe_load(suggestion(folder))["label_remap"]
    assert table == {10: "no", 20: "5", 30: "liver: left, [upper]"}
    assert errors(screen(settings(folder, label_remap=table)).findings) == ()


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
        settings = configured(folder.root / "cases.json", data={"data_aug": True, "flips": (0,), **data})
        return [finding.found for finding in list_configured(settings)[1] if finding.kind == "sides_unknown"]

    assert warned("background", "Parotid_L", "Parotid_R", "Brain") == []
    assert warned("background", "liver", "spleen", "aorta") == ["no class is exchanged with another"]
    (found,) = warned("background", "Parotid_L", "Parotid_R", "Eye_L")
    assert found == "1 pair of classes is exchanged (Parotid_L with Parotid_R); without a partner: Eye_L"
    assert warned("background", "liver", "spleen", "aorta", sided_pairs=[]) == []
    assert warned("background", "liver", "a", "b", sided_pairs=[["a", "b"]]) == []
    assert warned("background", "liver", "spleen", "aorta", flips=(1,)) == []
