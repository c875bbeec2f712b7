"""Scores of one case against MONAI, SimpleITK and closed forms, on files on disk and on real labels."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.metrics import DiceMetric
from scipy import ndimage

from pipeline.datasets.class_table import ClassTable
from pipeline.evaluation import case_scores
from pipeline.evaluation.case_scores import Pair
from pipeline.evaluation.class_matching import CommonClasses
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.summary import CONVENTIONS
from pipeline.metrics.overlap import class_scores, joint_histogram
from pipeline.phantoms.balls import balls
from tests.support.evaluation import AFFINE, SHAPE, TABLE, blobs, save
from tests.support.label_maps import monai_surfaces
from transforms.io.errors import VolumeError


def score_case(pair, table, options=None):
    """Score a case of which both files hold the same values."""
    return case_scores.score_case(pair, CommonClasses.same(table), options)


def test_a_real_label_against_its_shifted_and_eroded_copy_agrees_with_simpleitk_and_monai(shared_data, tmp_path):
    path = shared_data / "abdomen_ct" / "example_seg_fast_force_split.nii.gz"
    source = nib.load(path)
    label = np.asarray(source.dataobj).astype(np.uint8)
    moved = np.roll(label, (1, -1, 1), (0, 1, 2))
    moved[ndimage.grey_erosion(moved, size=3) != moved] = 0
    prediction = save(moved, tmp_path / "abdomen.nii.gz", source.affine)
    values = tuple(int(v) for v in np.unique(label))
    table = ClassTable(tuple(f"class_{v}" for v in values), values)
    ours = score_case(Pair("abdomen", prediction, path), table, ScoringOptions(tolerance_mm=3.0))

    images = [sitk.Cast(sitk.ReadImage(str(p)), sitk.sitkUInt16) for p in (path, prediction)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(images[0])
    for c, value in enumerate(values[1:], start=1):
        assert ours.dice[c] == pytest.approx(overlap.GetDiceCoefficient(value), abs=1e-6)
        assert ours.iou[c] == pytest.approx(overlap.GetJaccardCoefficient(value), abs=1e-6)
        assert ours.reference_ml[c] == pytest.approx(shape.GetPhysicalSize(value) / 1000, rel=1e-5)
    chosen = [values.index(v) for v in (1, 5, 10)]  # MONAI takes a second a class
    small = [np.zeros_like(label), np.zeros_like(label)]
    for n, c in enumerate(chosen, start=1):
        for out, full in zip(small, (label, moved), strict=True):
            out[full == values[c]] = n
    distance, dice = monai_surfaces(*small, len(chosen) + 1, 3.0, ours.spacing_mm)
    assert ours.hd95_mm[chosen] == pytest.approx(distance, rel=1e-5)
    assert ours.surface_dice[chosen] == pytest.approx(dice, rel=1e-5)


def test_a_ball_has_its_volume_and_a_larger_one_its_distance(tmp_path):
    affine = np.diag([0.5, 0.5, 0.5, 1])
    label = balls((60, 60, 60), affine, [(15, 15, 15)], [10])
    grown = balls((60, 60, 60), affine, [(15, 15, 15)], [12])
    pair = Pair("ball", save(grown, tmp_path / "p.nii", affine), save(label, tmp_path / "l.nii", affine))
    scores = score_case(pair, ClassTable(("background", "ball"), (0, 1)))
    small, large = (4 / 3 * np.pi * r**3 / 1000 for r in (10, 12))
    assert scores.reference_ml[1] == pytest.approx(small, rel=0.005)
    assert scores.volume_difference_ml[1] == pytest.approx(large - small, rel=0.01)
    assert scores.dice[1] == pytest.approx(2 * small / (small + large), abs=0.003)
    assert scores.hd95_mm[1] == pytest.approx(2, abs=0.26)
    assert (scores.true_positives[1], scores.false_negatives[1]) == (np.count_nonzero(label), 0)
    assert scores.false_positives[1] == np.count_nonzero(grown) - np.count_nonzero(label)


def test_the_labels_hash_tells_grids_apart_and_not_the_files_rounding(tmp_path):
    label = blobs(1)
    prediction = save(label, tmp_path / "prediction.nii")

    def hashed(name, affine):
        path = save(label, tmp_path / name, affine)
        return score_case(Pair("x", prediction, path), TABLE, ScoringOptions(resample=True, surface=None)).label_sha256

    wider, moved = AFFINE @ np.diag([1, 1, 1.01, 1]), AFFINE.copy()
    moved[0, 3] += 1
    grids = {"a.nii": AFFINE, "wider.nii": wider, "moved.nii": moved}
    hashes = {name: hashed(name, affine) for name, affine in grids.items()}
    assert len(set(hashes.values())) == 3
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / "a.mha"))
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / "a.nrrd"))
    for name in ("a.mha", "a.nrrd"):
        again = score_case(Pair("x", prediction, tmp_path / name), TABLE, ScoringOptions(resample=True, surface=None))
        assert again.label_sha256 == hashes["a.nii"]


def test_both_conventions_for_absent_classes_are_monais(tmp_path):
    label, prediction = np.zeros((2, *SHAPE), np.uint8)
    label[2:8, 2:8, 2:8], prediction[3:9, 2:8, 2:8] = 1, 1
    label[20:25, 20:25, 10:15] = 2  # missed
    prediction[20:25, 2:8, 2:8] = 3  # wrongly predicted; 4 is in neither
    scores = score_case(Pair("x", save(prediction, tmp_path / "p.nii"), save(label, tmp_path / "l.nii")), TABLE)
    maps = [torch.from_numpy(v)[None, None] for v in (prediction, label)]
    for absent in CONVENTIONS:
        theirs = DiceMetric(reduction="none", num_classes=5, ignore_empty=absent == "left_out")(*maps)[0]
        np.testing.assert_allclose(scores.score("dice", absent)[1:], theirs[1:], rtol=1e-6)
        np.testing.assert_allclose(scores.score("iou", absent)[1:], theirs[1:] / (2 - theirs[1:]), rtol=1e-6)
    for metric, wrong, right in (("hd95_mm", np.inf, 0), ("surface_dice", 0, 1)):
        missed = 0 if metric == "surface_dice" else np.inf
        assert scores.score(metric, "left_out")[2:] == pytest.approx([missed, np.nan, np.nan], nan_ok=True)
        assert scores.score(metric, "scored")[2:].tolist() == [missed, wrong, right]
        assert scores.score(metric, "left_out")[1] == scores.score(metric, "scored")[1]
    ml = np.prod(scores.spacing_mm) / 1000
    assert np.isnan(scores.score("volume_difference_ml", "left_out")[3:]).all()
    assert scores.score("volume_difference_ml", "scored")[1:] == pytest.approx([0, -125 * ml, 180 * ml, 0])
    assert scores.score("prediction_ml", "scored")[1:] == pytest.approx([216 * ml, 0, 180 * ml, 0])
    assert scores.score("prediction_ml", "left_out")[1:] == pytest.approx([216 * ml, 0, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize(("code", "n_slices"), [("SPL", 20), ("IAL", 1)])
def test_a_prediction_stored_along_other_axes_scores_the_same(tmp_path, code, n_slices):
    label, prediction = (blobs(seed)[:, :, :n_slices] for seed in (1, 2))
    paths = [save(v, tmp_path / f"{n}.nii.gz") for n, v in enumerate((label, prediction))]
    image = nib.load(paths[1])
    ornt = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(code)
    )
    nib.save(image.as_reoriented(ornt), tmp_path / "turned.nii.gz")
    plain = score_case(Pair("x", paths[1], paths[0]), TABLE)
    other = score_case(Pair("x", tmp_path / "turned.nii.gz", paths[0]), TABLE)
    assert not other.resampled
    assert np.array_equal(plain.dice, other.dice, equal_nan=True)
    assert np.array_equal(plain.hd95_mm, other.hd95_mm, equal_nan=True)


def test_another_grid_is_refused_by_name_or_resampled_as_simpleitk_does(tmp_path):
    label = save(blobs(1), tmp_path / "label.nii.gz")
    coarse = AFFINE @ np.diag([1.7, 1.6, 1.3, 1])
    coarse[:3, 3] += 0.3
    prediction = save(blobs(1)[::2, ::2, :15], tmp_path / "prediction.nii.gz", coarse)
    pair = Pair("liver_07", prediction, label)
    with pytest.raises(VolumeError, match=r"case liver_07: .*prediction\.nii\.gz: .* on the grid.*shape"):
        score_case(pair, TABLE)
    scores = score_case(pair, TABLE, ScoringOptions(resample=True))
    assert scores.resampled
    moved = sitk.Resample(
        sitk.ReadImage(str(prediction)), sitk.ReadImage(str(label)), sitk.Transform(), sitk.sitkNearestNeighbor
    )
    theirs = sitk.GetArrayFromImage(moved).transpose(2, 1, 0)
    histogram = joint_histogram(torch.from_numpy(blobs(1)), torch.from_numpy(theirs.copy()), 5)
    assert scores.true_positives == pytest.approx(class_scores(histogram, 1.0).true_positives, abs=3)


@pytest.mark.parametrize(("shift", "outside"), [(-8, 0.6), (3, 0.0), (30, 0.2)])
def test_what_a_prediction_holds_outside_the_labels_grid_is_said(tmp_path, shift, outside):
    """A cube of 1 ml of which that share lies before the label's first slice, or behind its last."""
    cube = np.zeros((40, 40, 40), np.uint8)
    cube[2:12, 10:20, 10:20] = 1
    label = save(cube, tmp_path / "label.nii.gz", np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = shift
    prediction = save(cube, tmp_path / "prediction.nii.gz", moved)
    scores = score_case(Pair("x", prediction, label), TABLE, ScoringOptions(resample=True))
    assert scores.outside_ml == pytest.approx(outside)
    assert scores.prediction_ml[1] == pytest.approx(1 - outside)


def test_grids_that_lie_apart_are_not_advised_to_be_resampled(tmp_path):
    label = save(blobs(1), tmp_path / "label.nii.gz")
    for mm, advised in ((5, True), (3000, False)):
        moved = AFFINE.copy()
        moved[0, 3] += mm
        prediction = save(blobs(1), tmp_path / "prediction.nii.gz", moved)
        with pytest.raises(VolumeError) as error:
            score_case(Pair("x", prediction, label), TABLE)
        assert ("--resample" in str(error.value)) == advised


def test_the_mismatched_real_pair_is_refused_by_name(shared_data):
    folder = shared_data / "mismatched_pair"
    table = ClassTable(tuple(f"c{n}" for n in range(255)), tuple(range(255)))
    with pytest.raises(VolumeError, match="case heart"):
        score_case(Pair("heart", folder / "ct_cropped.nii.gz", folder / "heart.nii.gz"), table)


def test_ignored_voxels_count_for_nothing(tmp_path):
    label, prediction = blobs(1), blobs(2)
    marked = label.copy()
    marked[:10] = 200
    cut = score_case(Pair("x", save(prediction[10:], tmp_path / "a.nii"), save(label[10:], tmp_path / "b.nii")), TABLE)
    table = ClassTable(TABLE.names, TABLE.values, 200)
    ours = score_case(Pair("x", save(prediction, tmp_path / "c.nii"), save(marked, tmp_path / "d.nii")), table)
    assert np.array_equal(ours.dice, cut.dice)
    assert np.array_equal(ours.false_positives, cut.false_positives)


def test_voxels_of_a_class_that_is_said_not_to_be_annotated_refuse_the_case(tmp_path):
    """Its Dice would be counted although nobody vouches for it; a training refuses such a label, too."""
    files = save(blobs(2), tmp_path / "prediction.nii"), save(blobs(1), tmp_path / "label.nii")
    with pytest.raises(VolumeError, match=r"case x: .*label\.nii.*alone \(liver, left, right\).* of spleen"):
        score_case(Pair("x", *files, annotated=frozenset(TABLE.names) - {"spleen"}), TABLE)
    assert np.isfinite(score_case(Pair("x", *files, annotated=frozenset(TABLE.names)), TABLE).dice).all()
