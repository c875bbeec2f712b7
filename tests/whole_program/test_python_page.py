"""The program of docs/python.md, run as it stands in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np

from tests.support.paths import ROOT


def test_the_program_of_the_page_runs_and_a_segmenter_gives_what_predict_writes(tmp_path):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    program = "".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    (tmp_path / "program.py").write_text(f"{program}    nib.save(nib.Nifti1Image(labels, scan.affine), 'labels.nii')\n")
    there = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, env=there, check=True)
    files = "labels.nii", "predictions/body_000.nii.gz"
    labels, written = (np.asarray(nib.load(tmp_path / name).dataobj) for name in files)
    np.testing.assert_array_equal(labels, written)
