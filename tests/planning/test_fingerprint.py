"""The fingerprint counts what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.checks.channel_check import Scaling
from pipeline.checks.modality import IntensityChoice
from pipeline.checks.screening import Screened
from pipeline.datasets.class_table import ClassTable
from pipeline.datasets.dataset import Dataset
from pipeline.planning.fingerprint import take_fingerprint
from tests.support.volumes import AFFINE, Folder, hounsfield, save


def test_the_fingerprint_counts_what_was_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    save(folder.image("a"), hounsfield("a").transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]])
    fingerprint = folder.check().fingerprint
    assert fingerprint is not None
    assert (fingerprint.n_cases, fingerprint.n_subjects) == (4, 4)
    assert fingerprint.splits == {"train": 2, "val": 2, "test": 0}
    assert fingerprint.orientations == {"RAS": 3, "SRA": 1}
    assert fingerprint.sizes.min == (12, 14, 12)
    assert fingerprint.spacings_mm.max == (3, 2, 3)
    liver = fingerprint.classes[3]
    assert (liver.name, liver.n_cases, liver.n_train, liver.n_val, liver.n_voxels) == ("liver", 4, 2, 2, 192)
    assert liver.median_ml == pytest.approx(48 * 12 / 1000)  # 48 voxels of 2×2×3 mm
    voxels = np.concatenate([hounsfield(name).ravel() for name in "abcd"])
    assert (fingerprint.channels[0].minimum, fingerprint.channels[0].maximum) == (voxels.min(), voxels.max())


def test_nothing_readable_gives_no_sizes() -> None:
    dataset = Dataset(Path("x"), "list", (), ClassTable(("background", "liver"), (0, 1)), ("CT",))
    intensity = IntensityChoice(("unknown",), "no image could be read")
    scaling = Scaling((-1000, 1000), (0.5, 99.5))
    fingerprint = take_fingerprint(Screened(dataset, None, None, (), intensity, scaling, ()))
    assert (fingerprint.sizes, fingerprint.spacings_mm, fingerprint.splits) == (None, None, {})
    assert [(c.name, c.n_cases, c.median_ml) for c in fingerprint.classes] == [
        ("background", 0, None),
        ("liver", 0, None),
    ]
