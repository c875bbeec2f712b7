"""The data set on disk, as nibabel and SimpleITK read it, and what a second write does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from pipeline.phantoms import sample_dataset
from pipeline.phantoms.anatomy import CLASS_NAMES
from pipeline.phantoms.phantom import PhantomError, make_body
from tests.support.paths import ROOT
from tests.support.phantoms import centroids_mm


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    assert sample_dataset.write_dataset(folder, n_cases=4, seed=3, voxel_mm=10)
    return folder


def test_the_data_set_is_in_the_nnunet_raw_layout(dataset: Path) -> None:
    said = json.loads((dataset / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "CT"}
    assert said["numTraining"] == 4
    assert said["file_ending"] == ".nii.gz"
    assert list(said["labels"].items()) == [(name, n) for n, name in enumerate(CLASS_NAMES)]
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    assert [f"{case}_0000.nii.gz" for case in cases] == sorted(path.name for path in (dataset / "imagesTr").iterdir())
    assert len(cases) == 4


def test_nibabel_reads_back_what_was_drawn(dataset: Path) -> None:
    for n in range(4):
        image = nib.Nifti1Image.from_filename(dataset / "imagesTr" / f"body_{n:03d}_0000.nii.gz")
        label = nib.Nifti1Image.from_filename(dataset / "labelsTr" / f"body_{n:03d}.nii.gz")
        scan = make_body([3, n], voxel_mm=10, orientation="".join(nib.aff2axcodes(image.affine)))
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj), scan.image)
        np.testing.assert_array_equal(np.asarray(label.dataobj), scan.label)
        np.testing.assert_array_equal(image.affine, scan.affine)
        for header in (image.header, label.header):
            assert (header["sform_code"], header["qform_code"]) == (1, 1)
            np.testing.assert_allclose(header.get_qform(), scan.affine, atol=1e-3)


def test_cases_differ_in_size_spacing_orientation_and_tilt(dataset: Path) -> None:
    scans = [nib.Nifti1Image.from_filename(path) for path in sorted((dataset / "labelsTr").iterdir())]
    assert len({scan.shape for scan in scans}) == 4
    assert len({nib.aff2axcodes(scan.affine) for scan in scans}) == 4
    assert len({scan.header.get_zooms() for scan in scans}) == 4
    tilts = [np.degrees(nib.affines.obliquity(scan.affine)).max() for scan in scans]
    assert min(tilts) > 0.5
    assert all(max(scan.header.get_zooms()) > 1.09 * min(scan.header.get_zooms()) for scan in scans)


def test_simpleitk_and_nibabel_agree_where_an_organ_lies(dataset: Path) -> None:
    liver = CLASS_NAMES.index("liver")
    for path in sorted((dataset / "labelsTr").iterdir()):
        statistics = SimpleITK.LabelShapeStatisticsImageFilter()
        statistics.Execute(SimpleITK.ReadImage(str(path)))
        itk_mm = np.array(statistics.GetCentroid(liver)) * (-1, -1, 1)  # ITK's world is LPS
        scan = nib.Nifti1Image.from_filename(path)
        ours = centroids_mm(np.asarray(scan.dataobj), scan.affine)["liver"]
        np.testing.assert_allclose(ours, itk_mm, atol=0.01)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_data_set_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert not sample_dataset.write_dataset(dataset, n_cases=4, seed=3, voxel_mm=10)
    assert before == {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}


def test_an_interrupted_write_is_seen_and_done_again(dataset: Path, tmp_path: Path) -> None:
    """The writer is killed in mid-write, as a process of its own; the second write leaves the same bytes."""
    code = "import os, sys; from pipeline.phantoms import sample_dataset\n"
    code += "stop = lambda done, total, *_: done == 2 and os.kill(os.getpid(), 9)\n"
    code += "sample_dataset.write_dataset(sys.argv[1], n_cases=4, seed=3, voxel_mm=10, progress=stop)"
    root = ROOT
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "dataset.json").exists()
    assert sample_dataset.write_dataset(tmp_path, n_cases=4, seed=3, voxel_mm=10)
    assert snapshot(tmp_path) == snapshot(dataset)


def test_a_missing_case_or_another_recipe_is_written_again(tmp_path: Path) -> None:
    small: dict[str, Any] = {"seed": 1, "voxel_mm": 16.0}
    sample_dataset.write_dataset(tmp_path, n_cases=2, **small)
    whole = snapshot(tmp_path)
    (tmp_path / "labelsTr" / "body_001.nii.gz").unlink()
    assert sample_dataset.write_dataset(tmp_path, n_cases=2, **small)
    assert snapshot(tmp_path) == whole
    assert sample_dataset.write_dataset(tmp_path, n_cases=1, **small)
    assert len(snapshot(tmp_path)) == 3
    assert snapshot(tmp_path)["labelsTr/body_000.nii.gz"] == whole["labelsTr/body_000.nii.gz"]


def test_somebody_elses_data_set_is_not_touched(tmp_path: Path) -> None:
    for content in ('{"labels": {"background": 0}}', "not json"):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(PhantomError, match=r"holds another data set's dataset\.json"):
            sample_dataset.write_dataset(tmp_path, n_cases=1)
        assert snapshot(tmp_path) == {"dataset.json": content.encode()}
    (tmp_path / "dataset.json").unlink()
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(PhantomError, match=r"holds another data set's dataset\.json"):
        sample_dataset.write_dataset(tmp_path, n_cases=1)


def test_scans_of_somebody_else_are_not_removed(tmp_path: Path) -> None:
    theirs = tmp_path / "imagesTr" / "body_001_0000.nii.gz"
    theirs.parent.mkdir()
    theirs.write_bytes(b"mine")
    with pytest.raises(PhantomError, match="found body_001_0000"):
        sample_dataset.write_dataset(tmp_path, n_cases=1, voxel_mm=20)
    assert theirs.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [theirs.parent]


def test_progress_counts_every_case(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sample_dataset.write_dataset(tmp_path, n_cases=3, voxel_mm=20, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"voxel_mm": float("inf")}, {"n_cases": 0}])
def test_numbers_that_make_no_data_set_leave_the_one_that_is_there(dataset: Path, wrong: dict[str, Any]) -> None:
    before = sorted(dataset.rglob("*"))
    with pytest.raises(PhantomError, match="expected"):
        sample_dataset.write_dataset(dataset, **{"n_cases": 4, "seed": 3, "voxel_mm": 10, **wrong})
    assert sorted(dataset.rglob("*")) == before
