"""Classes that will be lost or are covered are named; what is lost is decided by the real resizing of labels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.check import check, to_text
from pipeline.checks.case_check import check_case
from pipeline.checks.class_check import TargetGrid, shares_at_target_size
from pipeline.config.settings import Config, DataConfig
from pipeline.datasets.listing import list_cases
from tests.support.volumes import AFFINE, SHAPE, Folder, configured, hounsfield, organs, save
from transforms.chains import preprocessing_chain

SIZE = (102, 102, 32)
SPACING = np.diag([0.8, 0.8, 2.0, 1.0])


def data_set(root: Path, label: np.ndarray, affine: np.ndarray, names: dict[str, int]) -> Path:
    """Four cases of one label, each with noise of its own."""
    folder = Folder(root)
    folder.labels = names
    for seed, name in enumerate("abcd"):
        noise = np.random.default_rng(seed).integers(-1000, 1000, label.shape).astype(np.int16)
        save(folder.image(name), noise, affine)
        save(folder.label(name), label, affine)
    return folder.write()


def vessel(width: int) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    label[20:60, 20:60, 5:25] = 1
    label[70 : 70 + width, 70 : 70 + width, :] = 2
    return label


@pytest.mark.parametrize(("width", "is_lost"), [(1, True), (2, True), (4, False), (6, False)])
def test_a_vessel_thinner_than_a_target_voxel_is_named(tmp_path: Path, width: int, is_lost: bool) -> None:
    """The vessel of 1.6 mm that 512 → 160 loses in every case; what is left is counted in the prepared label."""
    names = {"background": 0, "liver": 1, "vessel": 2}
    data_set(tmp_path, vessel(width), SPACING, names)
    target = (32, 32, 32)
    config = configured(tmp_path / "cases.json", data={"target_size": target})
    found = {finding.kind: finding.found for finding in check(config, measure=False).findings}
    chain = preprocessing_chain(target, label_values=[0, 1, 2])
    prepared = chain({"image": tmp_path / "a.nii.gz", "label": tmp_path / "a_label.nii.gz", "case": "a"})["label"]
    assert (int((prepared == 2).sum()) == 0) == is_lost
    assert ("class_lost" in found) == is_lost
    if is_lost:
        assert found["class_lost"] == "none that is likely to be left of vessel (in 4 cases)"


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("target", [(16, 16, 16), (24, 20, 12), (40, 40, 40)])
def test_what_is_estimated_is_what_resizing_leaves(tmp_path: Path, target: tuple, keep_aspect: bool) -> None:
    """Boxes of every thickness, turned axes: estimated to vanish only if the chain leaves none of them."""
    label = np.zeros((60, 50, 40), np.uint8)
    for n in range(1, 7):
        label[8 * n : 9 * n, 5:9, 3 : 3 + 2 * n] = n  # n × 4 × 2n voxels
    affine = AFFINE[:, [2, 0, 1, 3]]
    names = {"background": 0} | {f"box_{n}": n for n in range(1, 7)}
    dataset = list_cases(data_set(tmp_path, label, affine, names))
    case = check_case(dataset.cases[0], dataset)
    assert case.label is not None
    shares = shares_at_target_size(case, case.label, TargetGrid(target, keep_aspect))
    chain = preprocessing_chain(target, label_values=list(range(7)), keep_aspect=keep_aspect)
    prepared = chain({"image": tmp_path / "a.nii.gz", "label": tmp_path / "a_label.nii.gz", "case": "a"})["label"]
    for n in range(1, 7):
        if shares[n] < 0.5:
            assert int((prepared == n).sum()) == 0
        if shares[n] > 0.95:
            assert int((prepared == n).sum()) > 0


def masks(root: Path, name: str, **structures: np.ndarray) -> None:
    folder = root / name / "segmentations"
    folder.mkdir(parents=True)
    save(root / name / "ct.nii.gz", hounsfield(name))
    for structure, mask in structures.items():
        save(folder / f"{structure}.nii.gz", mask.astype(np.uint8))


def test_overlapping_masks_are_named_with_the_one_that_wins(tmp_path: Path) -> None:
    """A lesion inside the liver, whose mask comes later in the alphabet, vanishes: never advise to drop it."""
    for name in "abcd":
        lesion = np.zeros(SHAPE, bool)
        lesion[7:9, 9:11, 8:9] = True
        masks(tmp_path, name, lesion=lesion, liver=organs() == 3, kidney=organs() == 1)
    (finding,) = check(tmp_path, workers=1).findings
    assert (finding.severity, finding.kind) == ("warning", "masks_overlap")
    assert "lesion gives 16 voxels in 4 cases to liver; nothing is left of lesion" in finding.found
    assert "leave" not in finding.remedy
    assert "drop" not in finding.remedy
    for names in (["kidney", "lesion", "liver"], ["kidney", "liver", "lesion"]):  # the advice, followed
        (tmp_path / "labels.json").write_text(json.dumps(["background", *names]))
        (finding,) = check(tmp_path, workers=1).findings
    assert "liver gives 16 voxels in 4 cases to lesion" in finding.found
    assert "nothing is left" not in finding.found


def test_of_data_sets_that_are_joined_the_table_of_the_first_says_which_mask_wins(tmp_path: Path) -> None:
    lesion = np.zeros(SHAPE, bool)
    lesion[7:9, 9:11, 8:9] = True
    for root, names in (("one", "ab"), ("two", "cd")):
        for name in names:
            masks(tmp_path / root, name, lesion=lesion, liver=organs() == 3)
    data = DataConfig((str(tmp_path / "one"), str(tmp_path / "two")))
    for root, won in (("two", False), ("one", True)):  # the second alone does not help: the advice is the first
        (tmp_path / root / "labels.json").write_text(json.dumps(["background", "liver", "lesion"]))
        findings = check(Config(data=data), costs=False, workers=1).findings
        (finding,) = (finding for finding in findings if finding.kind == "masks_overlap")
        assert f"labels.json of {tmp_path / 'one'}" in finding.remedy
        assert ("liver gives 16 voxels in 4 cases to lesion" in finding.found) == won


def test_masks_that_do_not_overlap_are_not_complained_of(tmp_path: Path) -> None:
    for name in "abcd":
        masks(tmp_path, name, liver=organs() == 3, kidney=organs() == 1)
    assert check(tmp_path, workers=1).findings == ()


def test_a_label_along_other_axes_than_all_others_is_named(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    flipped = AFFINE @ nib.orientations.inv_ornt_aff(np.array([[0, -1], [1, 1], [2, 1]]), SHAPE)
    save(folder.label("b"), organs()[::-1], flipped)
    (finding,) = folder.check().findings
    assert (finding.severity, finding.kind, finding.case) == ("warning", "label_axes", "b")
    assert finding.file == str(folder.label("b"))
    save(folder.label("c"), organs()[::-1], flipped)  # two of four: a habit, no accident
    assert folder.check().findings == ()


def test_absent_and_not_annotated_are_told_apart(tmp_path: Path) -> None:
    """Case b annotates the left kidney alone, d all but it, and c's body has no liver."""
    folder = Folder(tmp_path)
    for name, kept, labelled in (("b", [1], ["kidney_left"]), ("d", [2, 3], ["kidney_right", "liver"])):
        save(folder.label(name), np.where(np.isin(organs(), kept), organs(), 0).astype(np.uint8))
        folder[name]["labelled"] = labelled
    save(folder.label("c"), np.where(organs() == 3, 0, organs()).astype(np.uint8))
    report = folder.check()
    counts = {c.name: (c.n_annotated, c.n_cases, c.n_train, c.n_val) for c in report.fingerprint.classes}
    assert counts == {
        "background": (4, 4, 2, 2), "kidney_left": (3, 3, 2, 1), "kidney_right": (3, 3, 1, 2), "liver": (3, 2, 1, 1)
    }  # fmt: skip
    assert not report.findings
    assert "value  class         annotated  cases  train  val" in to_text(report)
    folder["c"]["labelled"] = ["kidney_right"]
    folder["d"]["labelled"] = ["kidney_right"]
    found = {finding.kind: finding for finding in folder.check().findings}
    assert (found["not_annotated"].case, found["not_annotated"].severity) == ("d", "error")
    assert found["not_annotated"].found == "48 of liver"
    assert found["class_not_annotated"].found == "none that annotates kidney_left, liver"
    assert "every class annotated in some val case" in found["class_not_annotated"].expected
    assert "class_absent" not in found
