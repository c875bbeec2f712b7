"""The program of docs/python.md, run as it stands in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np

from tests.support.paths import ROOT
from transforms.io.grid import voxel_ml

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


SAVE = """
    nib.save(nib.Nifti1Image(labels, scan.affine), "labels.nii")
    train_on.set_random_state(seed=0)
    for item in (case, train_on(files)):
        assert item["image"].shape == item["label"].shape == (1, 160, 160, 256)
        assert [str(item[key].dtype) for key in ("image", "label")] == ["torch.float32", "torch.uint8"]
    assert -1 <= float(case["image"].min()) < float(case["image"].max()) <= 1
    assert (infer_on({"image": files["image"]})["image"] == case["image"]).all()
    assert not model.training
"""
"""What is added to the program of the page: it writes and asserts what the page says of its results."""


def test_the_program_of_the_page_runs_and_a_segmenter_gives_what_predict_writes(tmp_path):
    program = "".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    (tmp_path / "program.py").write_text(f"{program}{SAVE}")
    there = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=there, check=True)
    files = "labels.nii", "predictions/body_000.nii.gz"
    labels, written = (np.asarray(nib.load(tmp_path / name).dataobj) for name in files)
    np.testing.assert_array_equal(labels, written)


def test_the_volume_of_the_page_is_right_whichever_way_the_voxel_axes_run():
    """50 voxels of 2 × 3 × 4 mm, sagittal slices of a head that is turned by 20 degrees."""
    turn = np.radians(20)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, 0, 4], [2, 0, 0], [0, 3, 0]])
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:5, :5, :2] = 7
    found = eval(  # noqa: S307 - a line of our own page
        re.search(r"liver_ml = (.*)", PAGE)[1],
        {
            "labels": labels,
            "segmenter": SimpleNamespace(values={"liver": 7}),
            "scan": SimpleNamespace(affine=affine),
            "voxel_ml": voxel_ml,
        },
    )
    np.testing.assert_allclose(found, 50 * 2 * 3 * 4 / 1000)
