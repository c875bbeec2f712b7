"""Load trained networks from runs."""

from __future__ import annotations

import pytest

from networks.errors import NetworkError
from tests.support.tiny_prediction import checkpoint, predicted, run_folder, scan


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("logs") / "run")


def test_runs_of_other_classes_cannot_be_joined(run, tmp_path):
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "liver", "spleen"])
    with pytest.raises(NetworkError, match="4 and 3 classes"):
        predicted([run, other], [scan(tmp_path / "case.nii.gz")], tmp_path / "out")
