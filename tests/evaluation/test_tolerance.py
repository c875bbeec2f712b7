"""The distance up to which surfaces agree follows the voxels, and it is said where it tells nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.evaluate import evaluate
from pipeline.evaluation.metrics_file import to_document
from pipeline.evaluation.options import ScoringOptions
from pipeline.evaluation.report import evaluation_text
from pipeline.evaluation.tolerance import default_tolerance_mm, default_tolerance_of
from tests.support.evaluation import blobs, save, save_masks, write_names
from tests.support.label_maps import monai_surfaces

NAMES = ("background", "liver", "spleen")


def label_map():
    label = blobs(1, n_classes=3)
    label[:4] = label[-4:] = 0
    return label


def folders(root, edge_mm):
    """A case whose voxels are cubes, its prediction shifted by three of them."""
    affine = np.diag([edge_mm, edge_mm, edge_mm, 1])
    label = label_map()
    save(label, root / "labels" / "a.nii.gz", affine)
    save(np.roll(label, 3, 0), root / "predictions" / "a.nii.gz", affine)
    for kind in ("labels", "predictions"):
        write_names(root / kind, {name: value for value, name in enumerate(NAMES)})
    return root / "predictions", root / "labels"


@pytest.mark.parametrize(("edge_mm", "tolerance_mm"), [(0.15, 0.3), (0.49, 0.98), (0.5, 2.0), (1.0, 2.0), (5.0, 2.0)])
def test_the_default_is_2_mm_or_two_voxels_of_much_finer_scans(tmp_path, edge_mm, tolerance_mm):
    result = evaluate(*folders(tmp_path, edge_mm))
    assert to_document(result)["settings"]["tolerance_mm"] == tolerance_mm
    assert f"(within {tolerance_mm:g} mm)" in evaluation_text(result)
    assert any("instead of 2 mm" in note for note in result.notes) == (tolerance_mm != 2)
    label = label_map()
    _, theirs = monai_surfaces(label, np.roll(label, 3, 0), 3, tolerance_mm, (edge_mm,) * 3)
    assert result.cases[0].surface_dice[1:] == pytest.approx(theirs)


def test_a_tolerance_over_many_voxels_is_warned_of(tmp_path):
    paths = folders(tmp_path, 0.15)
    (note,) = evaluate(*paths, ScoringOptions(tolerance_mm=2.0)).notes
    assert note.startswith("surface Dice within 2 mm tells little of 1 cases, whose voxels are as small as 0.15 mm (a)")
    assert evaluate(*paths, ScoringOptions(tolerance_mm=0.3)).notes == ()
    assert evaluate(*paths, ScoringOptions(tolerance_mm=2.0, surface=None)).notes == ()


def test_a_surface_dice_of_1_everywhere_tells_nothing_where_dice_differs(tmp_path):
    paths = folders(tmp_path, 0.6)
    (note,) = evaluate(*paths, ScoringOptions(tolerance_mm=2.4)).notes
    assert "surface Dice within 2.4 mm is 1 for every structure though their mean Dice is 0." in note


def test_the_median_of_the_longest_edges_decides_and_masks_have_one_too(tmp_path):
    assert default_tolerance_mm([]) == 2.0
    assert default_tolerance_mm([(0.1, 0.1, 0.2), (0.2, 0.1, 0.1), (3, 3, 3)]) == 0.4
    save_masks(blobs(1, n_classes=3), tmp_path, NAMES)
    fine = save(blobs(1), tmp_path / "fine.nii.gz", np.diag([0.2, 0.2, 0.2, 1]))
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"")
    assert default_tolerance_of([(damaged, fine), (fine, damaged), (damaged, damaged)]) == 0.4
    assert default_tolerance_of([(((1, tmp_path / "liver.nii.gz"),), fine)]) == 2.0  # 2 mm slices


def test_surface_dice_is_compared_at_the_baselines_tolerance_where_none_is_named(tmp_path, capsys):
    predictions, labels = folders(tmp_path, 0.15)
    base = ["evaluate", "--predictions", str(predictions), "--labels", str(labels), "--workers", "1"]
    assert main([*base, "--output", str(tmp_path / "one"), "--tolerance_mm", "0.5"]) == 0
    compare = ["--compare", str(tmp_path / "one" / "metrics.json"), "--compare_by", "surface_dice"]
    assert main([*base, "--output", str(tmp_path / "two"), *compare]) == 0
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["settings"]["tolerance_mm"] == 0.5
    assert main([*base, "--output", str(tmp_path / "three"), *compare, "--tolerance_mm", "1"]) == 2
    assert "surface Dice at 1.0 mm" in capsys.readouterr().err
