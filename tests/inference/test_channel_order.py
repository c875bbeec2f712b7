"""A network gets the channels it was trained on, in its order, however a data set orders them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.datasets.errors import DatasetError
from pipeline.inference.channel_order import channel_order
from pipeline.inference.inputs import list_inputs
from tests.support.datasets import volume, write_json
from tests.support.tiny_prediction import checkpoint, predicted, scan, voxels


def nnunet(root: Path) -> Path:
    names = {"channel_names": {"0": "FLAIR", "1": "T2"}, "labels": {"background": 0, "liver": 1}}
    write_json(root / "dataset.json", names | {"file_ending": ".nii.gz"})
    for number in (0, 1):
        (root / "imagesTs").mkdir(exist_ok=True)
        shutil.copy(root.parent / "c" / f"{('FLAIR', 'T2')[number]}.nii.gz", root / f"imagesTs/c_{number:04d}.nii.gz")
    return root


def brats(root: Path) -> Path:
    for name in ("FLAIR", "T2"):  # the layout sorts them
        (root / "c").mkdir(parents=True, exist_ok=True)
        shutil.copy(root.parent / "c" / f"{name}.nii.gz", root / f"c/c-{name.lower()}.nii.gz")
    volume(root / "c/c-seg.nii.gz")
    return root


def case_list(path: Path) -> Path:
    images = [str(path.parent / "c" / f"{name}.nii.gz") for name in ("FLAIR", "T2")]
    return write_json(path, {"channel_names": ["FLAIR", "T2"], "cases": [{"case": "c", "image": images}]})


def test_a_scan_has_one_segmentation_whatever_the_order_in_which_its_channels_are_named(tmp_path):
    trained = checkpoint(tmp_path / "m.ckpt", channels=("T2", "FLAIR"))
    files = [scan(tmp_path / "c" / f"{name}.nii.gz", seed=seed) for seed, name in enumerate(("T2", "FLAIR"))]
    folder = nnunet(tmp_path / "nnunet")
    for source in (folder, folder / "imagesTs", brats(tmp_path / "brats"), case_list(tmp_path / "list.json")):
        (case,) = list_inputs([source], ["T2", "FLAIR"])
        assert [path.read_bytes() for path in case.images] == [path.read_bytes() for path in files]
    predicted([trained], [tmp_path / "c"], tmp_path / "plain")
    predicted([trained], [folder], tmp_path / "out")
    assert (voxels(tmp_path / "out" / "c.nii.gz") == voxels(tmp_path / "plain" / "c.nii.gz")).all()


def test_channels_with_other_names_are_refused_in_one_line(tmp_path, capsys):
    trained = checkpoint(tmp_path / "m.ckpt", channels=("T1", "T2"))
    for name in ("T2", "FLAIR"):
        scan(tmp_path / "c" / f"{name}.nii.gz")
    source = nnunet(tmp_path / "nnunet")
    assert main(["predict", str(trained), str(source), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{source}: expected the run's image channels, T1, T2, found FLAIR, T2; " in line
    assert "cases.csv" in line
    assert not (tmp_path / "out").exists()
    # what the line advises
    (tmp_path / "cases.csv").write_text("case,image\nc,nnunet/imagesTs/c_0001.nii.gz|nnunet/imagesTs/c_0000.nii.gz\n")
    (case,) = list_inputs([tmp_path / "cases.csv"], ["T1", "T2"])
    assert [path.name for path in case.images] == ["c_0001.nii.gz", "c_0000.nii.gz"]


def test_names_count_only_where_there_are_some_to_match(caplog):
    here = Path("scans")
    assert channel_order(["MR"], ["CT"], here) == (0,)
    assert channel_order(["image", "image1"], ["T1", "T2"], here) == (0, 1)
    assert channel_order(["T1", "T2", "PD"], ["T1", "T2"], here) == (0, 1, 2)  # refused case by case
    assert channel_order(["MRI", "MRI"], ["MRI", "MRI"], here) == (0, 1)
    with pytest.raises(DatasetError, match="MRI"):
        channel_order(["CT", "MRI", "MRI"], ["MRI", "MRI", "CT"], here)
    assert not caplog.records
    assert channel_order(["T2", "T1"], ["image", "image1"], here) == (0, 1)
    assert "scans: its channels are taken in its own order (T2, T1)" in caplog.text


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_a_folder_of_images_has_the_channels_that_the_dataset_json_above_names(tmp_path, key):
    for number in (0, 1):
        volume(tmp_path / f"imagesTs/c_{number:04d}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({key: {"0": "FLAIR", "1": "T2"}, "labels": {"liver": 1}}))
    (case,) = list_inputs([tmp_path / "imagesTs"], ["T2", "FLAIR"])
    assert [path.name for path in case.images] == ["c_0001.nii.gz", "c_0000.nii.gz"]
