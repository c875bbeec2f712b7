"""best_model.ckpt: what is written is what a plain torch.load gives back."""

from __future__ import annotations

import pytest
import torch

from pipeline.files.atomic import FileError
from pipeline.training.checkpoint import CheckpointDescription, write_best, write_tensors
from pipeline.training.prepared_data import Preprocessing
from transforms.chains import preprocessing_arguments

PREPROCESSING = Preprocessing(
    target_size=(16, 24, 32),
    intensity="ct",
    window=(-160.0, 240.0),
    percentiles=(0.5, 99.5),
    keep_aspect=True,
    label_values=(0, 3, 207),
    label_remap={5: 1},
)


def test_the_file_holds_the_weights_and_all_that_prediction_asks_for(tmp_path):
    network = torch.nn.Conv3d(1, 3, 1)
    description = CheckpointDescription(
        "run", {"_target_": "x"}, PREPROCESSING, ("background", "liver", "spleen"), ("CT",), (0,)
    )
    write_best(tmp_path / "best_model.ckpt", network, description, epoch=7, val_miou=None)
    found = torch.load(tmp_path / "best_model.ckpt", weights_only=True)
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in network.state_dict().items())
    assert (found["format"], found["epoch"], found["val_mIoU"], found["run"]) == (1, 7, None, "run")
    assert found["class_names"] == ["background", "liver", "spleen"]
    assert (found["channel_names"], found["flips"], found["network"]) == (["CT"], [0], {"_target_": "x"})
    # The chain itself takes what was stored, and stores nothing else.
    assert preprocessing_arguments(**found["preprocessing"]).items() >= found["preprocessing"].items()


def test_what_changes_nothing_leaves_no_key():
    plain = Preprocessing((16, 24, 32), "ct", (-160.0, 240.0), (0.5, 99.5), False, (0, 1))
    assert not {"label_remap", "fill_nan"} & plain.arguments().keys()
    assert PREPROCESSING.arguments()["label_remap"] == {5: 1}


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.ckpt"
    write_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    class Unwritable:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match=r"state.ckpt: cannot be written \(No space left"):
        write_tensors(path, {"a": Unwritable()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
