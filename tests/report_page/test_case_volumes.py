"""The viewer shows the voxels that are in the files, turned as radiologists look at them."""

from __future__ import annotations

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from pipeline.evaluation.scored_case import ScoredCase
from pipeline.report_page.case_volumes import MOST_VOXELS, viewer_data
from pipeline.visualisation.class_colours import class_colours
from tests.support.page_script import run_script

NAMES = ["background", "liver", "spleen"]
COLOURS = class_colours(NAMES)


def case_in(codes: str) -> ScoredCase:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (30, 34, 38)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[10:18, 12:20, 14:24] = 1
    label[20:24, 12:20, 14:24] = 2
    prediction = np.roll(label, 1, 1)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    parts = [nib.Nifti1Image(array, affine).as_reoriented(turn) for array in (image, label, prediction)]
    return ScoredCase(*(np.asarray(part.dataobj) for part in parts), parts[0].affine)


def unpacked(text: str, dtype: str, shape) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype).reshape(shape, order="F")


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_native_voxels_around_the_structure_are_kept_in_ras(codes):
    found = viewer_data(case_in(codes), 1, COLOURS, NAMES)
    truth = case_in("RAS")
    cut = np.s_[0:30, 4:29, 9:29]  # 15 mm around liver, in label or prediction
    assert found["shape"] == [30, 25, 20]
    assert found["edges_mm"] == [1, 2, 3]
    assert np.array_equal(unpacked(found["label"], "<u2", found["shape"]), truth.label[cut])
    assert np.array_equal(unpacked(found["prediction"], "<u2", found["shape"]), truth.prediction[cut])
    grey = unpacked(found["image"], "u1", found["shape"]).astype(float)
    shown = truth.image[cut]
    middle = (shown > 20) & (shown < 180)
    assert np.corrcoef(grey[middle], shown[middle])[0, 1] > 0.9999
    assert [one[1] for one in found["classes"]] == ["liver", "spleen"]
    assert found["start"] == [13, 12, 9]


def test_the_viewer_starts_on_the_structure():
    """Of a ring, whose middle is empty."""
    label = np.zeros((20, 20, 9), np.uint8)
    label[2:18, 2:18, 4] = 1
    label[4:16, 4:16, 4] = 0
    found = viewer_data(ScoredCase(None, label, label, np.eye(4)), 1, COLOURS, NAMES)
    assert unpacked(found["label"], "<u2", found["shape"])[tuple(found["start"])] == 1
    assert found["focus"] == 1


def test_large_structures_are_thinned_out_and_that_is_said():
    shape = (300, 300, 60)
    label = np.ones(shape, np.uint8)
    volumes = ScoredCase(None, label, label, np.diag([0.5, 0.5, 2.0, 1.0]))
    found = viewer_data(volumes, 1, COLOURS, NAMES)
    assert np.prod(found["shape"]) <= MOST_VOXELS
    assert found["edges_mm"] == [1.5, 1.5, 2]
    assert "every 3 × 3 × 1th voxel" in found["about"]
    assert "no image was found" in found["about"]
    assert "image" not in found


def test_voxels_are_painted_in_cells_with_contours_inside_and_one_structure_alone():
    found = viewer_data(case_in("RAS"), 1, COLOURS, NAMES)
    height, width, values = run_script(
        """
        const volume = await page.unpackCase(packed);
        const shown = { label: true, prediction: false, only: 2 };
        const slice = page.paintSlice(volume, page.PLANES[0], packed.start[2], shown, [4, 8]);
        return [slice.height, slice.width, Array.from(slice.bytes)];
        """,
        packed=found,
    )
    shape = found["shape"]
    assert (height, width) == (8 * shape[1], 4 * shape[0])
    picture = np.array(values).reshape(height, width, 4)[:, :, :3]
    label = unpacked(found["label"], "<u2", shape)[::-1, ::-1, found["start"][2]].T
    image = unpacked(found["image"], "u1", shape)[::-1, ::-1, found["start"][2]].T
    spleen = np.repeat(np.repeat(label == 2, 8, 0), 4, 1)
    inside = spleen.copy()
    for step in (1, 2):  # two pixels wide
        inside &= (
            np.roll(spleen, step, 0) & np.roll(spleen, -step, 0) & np.roll(spleen, step, 1) & np.roll(spleen, -step, 1)
        )
    contour = spleen & ~inside
    assert contour.any()
    assert (picture[contour] == COLOURS[2]).all()
    grey = np.repeat(np.repeat(image, 8, 0), 4, 1)
    assert np.array_equal(picture[~contour], np.repeat(grey[~contour][:, None], 3, 1))


@pytest.mark.parametrize("codes", ["RAS", "LPS"])
def test_the_script_paints_these_voxels(codes):
    """Each plane against numpy: right, or front, on the left, the head, or the front, at the top."""
    found = viewer_data(case_in(codes), 1, COLOURS, NAMES)
    painted = run_script(
        """
        const volume = await page.unpackCase(packed);
        return page.PLANES.map((plane) => {
          const slice = page.paintSlice(volume, plane, packed.start[plane.on], { label: true, prediction: true });
          return [slice.height, slice.width, Array.from(slice.bytes)];
        });
        """,
        packed=found,
    )
    arrays = [
        unpacked(found[part], kind, found["shape"])
        for part, kind in (("image", "u1"), ("label", "<u2"), ("prediction", "<u2"))
    ]
    for (height, width, values), axis in zip(painted, (2, 1, 0), strict=True):
        picture = np.array(values).reshape(height, width, 4)
        grey, label, prediction = (array.take(found["start"][axis], axis)[::-1, ::-1].T for array in arrays)
        background = (label == 0) & (prediction == 0)
        assert np.array_equal(picture[background][:, :3], np.repeat(grey[background][:, None], 3, 1))
        filled = (prediction == 1) & (label == 0)
        expected = np.round(0.62 * grey[filled][:, None] + 0.38 * COLOURS[1])
        assert np.abs(picture[filled][:, :3] - expected).max(initial=0) <= 1
        padded = np.pad(label, 1)
        same = [np.roll(padded, step, axis)[1:-1, 1:-1] == label for step in (1, -1) for axis in (0, 1)]
        contour = (label == 1) & ~np.all(same, axis=0)
        assert contour.any()
        assert (picture[contour][:, :3] == COLOURS[1]).all()
