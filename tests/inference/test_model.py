"""Load trained networks from runs."""

from __future__ import annotations

import pytest
import torch

from networks.errors import NetworkError
from pipeline.inference.model import load_models
from tests.support.tiny_prediction import NAMES, checkpoint, predicted, scan


def test_runs_of_other_classes_cannot_be_joined(run, tmp_path):
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "liver", "spleen"])
    with pytest.raises(NetworkError, match="equal class names, found 4 and 3;"):
        predicted([run, other], [scan(tmp_path / "case.nii.gz")], tmp_path / "out")


@pytest.mark.parametrize(
    ("others", "words"),
    [(("PET", "CT"), "channel 0 'CT' and 'PET'"), (("CT",), "2 and 1;")],
    ids=["another order", "fewer"],
)
def test_runs_of_other_channels_cannot_be_joined(tmp_path, others, words):
    runs = [
        checkpoint(tmp_path / f"{number}.ckpt", seed=number, channels=channels)
        for number, channels in enumerate([("CT", "PET"), others])
    ]
    with pytest.raises(NetworkError, match=f"cannot be joined: expected equal channels, found {words}"):
        load_models(runs, torch.device("cpu"))


@pytest.mark.parametrize("key", ["channel_names", "flips", "precision", "scans", "run"])
def test_a_checkpoint_of_an_earlier_version_loads(tmp_path, key):
    (model,) = load_models([checkpoint(tmp_path / "m.ckpt", extra={key: None})], torch.device("cpu"))
    assert model.n_channels == 1
    assert model.class_names == tuple(NAMES)
