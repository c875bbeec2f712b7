"""Surface distances against MONAI's, a brute force from the definition, closed forms and real scans."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from monai.metrics.utils import get_mask_edges
from monai.networks import one_hot
from scipy import ndimage

from pipeline.metrics import surface_distance
from pipeline.metrics.surface_distance import surface_scores
from tests.support.label_maps import blobs, monai_surfaces

SPACING_MM = (0.7, 1.1, 2.9)


def monai_area_dice(reference, prediction, n_classes, tolerance_mm, spacing_mm=SPACING_MM):
    maps = [one_hot(torch.from_numpy(v.astype(np.int64))[None, None], n_classes) for v in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return compute_surface_dice(*maps, [tolerance_mm] * (n_classes - 1), spacing=spacing_mm, use_subvoxels=True)[
            0
        ].numpy()


def deepmind_hd95(reference, prediction, spacing_mm=SPACING_MM):
    """The 95 % distance of surface-distance's compute_robust_hausdorff for two masks, by distance transforms.

    The surface elements and their areas are MONAI's, the distances scipy's.
    """
    masks = [torch.from_numpy(np.pad(mask, 1)) for mask in (reference, prediction)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        *edges, area_first, area_second = get_mask_edges(*masks, crop=False, spacing=spacing_mm)
    edges, areas = [e.numpy().astype(bool) for e in edges], [a.numpy() for a in (area_first, area_second)]
    found = []
    for one, other, area in zip(edges, edges[::-1], areas, strict=True):
        distances = ndimage.distance_transform_edt(~other, sampling=spacing_mm)[one]
        order = np.argsort(distances)
        share = np.cumsum(area[one][order]) / area[one].sum()
        found.append(distances[order][np.searchsorted(share, 0.95)])
    return max(found)


def brute_force(reference, prediction, tolerance_mm):
    """Compute both scores of class 1 from their definition, comparing every surface voxel with every other."""
    cross = ndimage.generate_binary_structure(3, 1)
    points = []
    for mask in (reference == 1, prediction == 1):
        surface = mask & ~ndimage.binary_erosion(mask, cross, border_value=0)
        points.append(np.argwhere(surface) * SPACING_MM)
    distances = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1))
    both = [distances.min(1), distances.min(0)]
    # Differences of world coordinates carry rounding errors of about 1e-15 mm.
    near = sum((d <= tolerance_mm + 1e-9).sum() for d in both) / sum(map(len, both))
    return max(np.percentile(d, 95) for d in both), near


@pytest.mark.parametrize("n_neighbours", [1, 100])
@pytest.mark.parametrize("seed", range(3))
def test_all_classes_equal_monai(seed, n_neighbours, monkeypatch):
    monkeypatch.setattr(surface_distance, "N_NEIGHBOURS", n_neighbours)
    reference, prediction = blobs(seed), np.roll(blobs(seed), (1, 2, -1), (0, 1, 2))
    prediction[3:6, 3:6, 3:6] = 4
    scores = surface_scores(reference, prediction, SPACING_MM, 5, tolerance_mm=1.5)
    distance, dice = monai_surfaces(reference, prediction, 5, 1.5, SPACING_MM)
    assert np.allclose(scores.hd95_mm[1:], distance, rtol=1e-6)
    assert np.allclose(scores.surface_dice[1:], dice, rtol=1e-6)
    assert np.isnan([scores.hd95_mm[0], scores.surface_dice[0]]).all()


@pytest.mark.parametrize("n_neighbours", [1, 100])
@pytest.mark.parametrize("seed", range(3))
def test_surfaces_by_area_equal_monai_and_the_distance_transform(seed, n_neighbours, monkeypatch):
    monkeypatch.setattr(surface_distance, "N_NEIGHBOURS", n_neighbours)
    reference, prediction = blobs(seed), np.roll(blobs(seed), (1, 2, -1), (0, 1, 2))
    prediction[3:6, 3:6, 3:6] = 4
    scores = surface_scores(reference, prediction, SPACING_MM, 5, tolerance_mm=1.5, surface="area")
    assert np.allclose(scores.surface_dice[1:], monai_area_dice(reference, prediction, 5, 1.5), rtol=1e-5)
    distances = [deepmind_hd95(reference == c, prediction == c) for c in range(1, 5)]
    assert np.allclose(scores.hd95_mm[1:], distances, rtol=1e-6)
    voxels = surface_scores(reference, prediction, SPACING_MM, 5, tolerance_mm=1.5)
    assert not np.allclose(scores.surface_dice[1:], voxels.surface_dice[1:], rtol=1e-3)


def test_surfaces_by_area_give_the_figures_published_with_surface_distance():
    # SurfaceDistance3DTest in surface_distance_test.py of google-deepmind/surface-distance, tolerance 1 mm.
    apart = np.zeros((2, 60, 70, 80), bool)
    apart[0, 50, 60, 70] = apart[1, 50, 60, 72] = True
    scores = surface_scores(*apart.astype(np.uint8), (3, 2, 1), 2, tolerance_mm=1, surface="area")
    assert (scores.hd95_mm[1], scores.surface_dice[1]) == pytest.approx((2.0, 0.5))
    cubes = np.zeros((2, 100, 100, 100), np.uint8)
    cubes[0, :50], cubes[1, :51] = 1, 1
    scores = surface_scores(*cubes, (2, 1, 1), 2, tolerance_mm=1, surface="area")
    assert (scores.hd95_mm[1], scores.surface_dice[1]) == pytest.approx((2.0, 0.836), abs=5e-4)


@pytest.mark.parametrize("tolerance_mm", [0.0, 0.7, 2.2, 5.0])
def test_scores_follow_from_the_definition(tolerance_mm):
    reference, prediction = blobs(7, n_classes=2), blobs(8, n_classes=2)
    scores = surface_scores(reference, prediction, SPACING_MM, 2, tolerance_mm=tolerance_mm)
    assert (scores.hd95_mm[1], scores.surface_dice[1]) == pytest.approx(
        brute_force(reference, prediction, tolerance_mm)
    )


@pytest.mark.parametrize(("kind", "steps"), [("voxels", (39, 29, 19)), ("area", (39, 29, 19))])
def test_far_apart_surfaces_are_measured_too(kind, steps):
    reference, prediction = np.zeros((2, 40, 30, 20), np.uint16)
    reference[0, 0, 0], prediction[39, 29, 19] = 300, 300
    scores = surface_scores(reference, prediction, SPACING_MM, 301, surface=kind)
    assert scores.hd95_mm[300] == pytest.approx(np.linalg.norm(np.array(steps) * SPACING_MM))
    assert scores.surface_dice[300] == 0


def test_a_slab_moved_by_three_voxels_is_exactly_three_voxels_away():
    reference, prediction = np.zeros((2, 20, 6, 6), np.uint8)
    reference[4:8], prediction[7:11] = 1, 1
    thin = surface_scores(reference[:, :1, :1], prediction[:, :1, :1], SPACING_MM, 2, tolerance_mm=2.1)
    # Every voxel of so thin a bar is surface: both 95th percentiles lie between the distances 2 and 3 voxels.
    assert thin.hd95_mm[1] == pytest.approx(0.7 * (2 + 0.85))
    # 3 × 0.7 mm counts as within 2.1 mm, though it is 2.0999999999999996 in floating point and may be above elsewhere.
    assert thin.surface_dice[1] == 1


def test_a_class_that_one_map_lacks_is_infinitely_far_or_has_no_distance():
    reference, prediction = np.zeros((2, 5, 6, 7), np.uint8)
    reference[1:3, 1:3, 1:3] = 1  # missed
    prediction[1:3, 1:3, 4:6] = 2  # falsely predicted; 3 is in neither
    scores = surface_scores(reference, prediction, SPACING_MM, 4)
    assert np.array_equal(scores, [[np.nan, np.inf, np.nan, np.nan], [np.nan, 0, np.nan, np.nan]], equal_nan=True)


@pytest.mark.parametrize("kind", ["voxels", "area"])
def test_two_empty_maps_have_no_surface(kind):
    empty = np.zeros((4, 5, 6), np.uint8)
    assert np.isnan(surface_scores(empty, empty, SPACING_MM, 2, surface=kind)).all()


@pytest.mark.parametrize("kind", ["voxels", "area"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_type_and_memory_order_do_not_matter_and_the_label_maps_stay_as_they_are(order, dtype, kind):
    reference, prediction = blobs(4), blobs(5)
    reference[:2] = 200
    expected = surface_scores(reference, prediction, SPACING_MM, 5, ignore_index=200, surface=kind)
    given = [v.astype(dtype, order=order) for v in (reference, prediction)]
    found = surface_scores(*given, SPACING_MM, 5, ignore_index=200, surface=kind)
    assert np.array_equal(expected, found, equal_nan=True)
    assert all(np.array_equal(one, other) for one, other in zip(given, (reference, prediction), strict=True))


def test_ignored_voxels_are_background_in_both_maps():
    reference, prediction = blobs(1), blobs(2)
    ignored = blobs(3) == 1
    marked = np.where(ignored, 255, reference).astype(np.uint8)
    ours = surface_scores(marked, prediction, SPACING_MM, 5, ignore_index=255)
    theirs = surface_scores(reference * ~ignored, prediction * ~ignored, SPACING_MM, 5)
    assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prediction": np.zeros((3, 3, 4), np.uint8)}, r"prediction: expected the reference's shape \(3, 3, 3\)"),
        ({"prediction": np.full((3, 3, 3), 9)}, "prediction: expected classes 0 … 1, found 9 … 9"),
        ({"spacing_mm": (1, 1, 0)}, "spacing_mm: expected three positive numbers"),
        ({"spacing_mm": (1, 1)}, "spacing_mm: expected three positive numbers"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    empty = np.zeros((3, 3, 3), np.uint8)
    arguments = {"reference": empty, "prediction": empty, "spacing_mm": SPACING_MM, "n_classes": 2, **changed}
    with pytest.raises(ValueError, match=message):
        surface_scores(**arguments)


def test_organs_of_a_real_scan_score_as_monai_scores_them(shared_data):
    scan = nib.load(shared_data / "abdomen_ct" / "example_seg_fast_force_split.nii.gz")
    reference = np.asarray(scan.dataobj).astype(np.uint8)
    spacing_mm = [float(s) for s in scan.header.get_zooms()]
    prediction = np.roll(ndimage.median_filter(reference, 3), 1, 2)
    # Every tenth class is enough of MONAI's time; they become 1, 2, … here.
    kept = np.unique(reference)[1::10]
    n_classes = len(kept) + 1
    new_class = np.zeros(256, np.uint8)
    new_class[kept] = np.arange(1, n_classes)
    reference, prediction = new_class[reference], new_class[prediction]
    scores = surface_scores(reference, prediction, spacing_mm, n_classes, tolerance_mm=3)
    distance, dice = monai_surfaces(reference, prediction, n_classes, 3, spacing_mm)
    assert np.allclose(scores.hd95_mm[1:], distance, rtol=1e-6)
    assert np.allclose(scores.surface_dice[1:], dice, rtol=1e-6)
    by_area = surface_scores(reference, prediction, spacing_mm, n_classes, tolerance_mm=3, surface="area")
    dice = monai_area_dice(reference, prediction, n_classes, 3, spacing_mm)
    assert np.allclose(by_area.surface_dice[1:], dice, rtol=1e-5)
    organ = [reference == 1, prediction == 1]
    assert by_area.hd95_mm[1] == pytest.approx(deepmind_hd95(*organ, spacing_mm), rel=1e-6)
