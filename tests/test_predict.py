"""The command predict: every grid comes back, flags reach the batch, what cannot be done is refused at once."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
import torch
from rich.console import Console

from networks.errors import NetworkError
from pipeline.cli.main import main
from pipeline.compute.devices import choose_device
from pipeline.config.settings import ConfigError
from pipeline.predict import PredictionOptions, predict, split_runs
from pipeline.writers.segmentation import SegmentationError
from tests.support.tiny_prediction import NAMES, checkpoint, logits_by_torch, predicted, run_folder, scan, scans, voxels
from transforms.io.dicom import series_files
from transforms.io.load import read_geometry, read_volume


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("logs") / "run")


def test_a_prediction_equals_the_argmax_of_full_logits_on_the_scans_own_grid(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    report = predicted([run], [path], tmp_path / "out")
    expected = logits_by_torch(run / "checkpoints" / "best_model.ckpt", path)
    first, second = expected.topk(2, 0).values
    sure = (first - second > 1e-5).numpy()
    found = voxels(tmp_path / "out" / "case.nii.gz")
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], expected.argmax(0).numpy()[sure])
    assert len(np.unique(found)) > 1
    assert report.n_done == 1


def test_the_network_is_read_once_for_all_scans_of_a_command(run, tmp_path, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: read.append(options) or load(*args, **options))
    assert predicted([run], [scans(tmp_path / "in", 3)], tmp_path / "out").n_done == 3
    assert [options["weights_only"] for options in read] == [True]


def test_results_hold_the_label_values_of_the_training_or_the_class_indices_on_request(tmp_path, capsys):
    path = scan(tmp_path / "case.nii.gz")
    run = str(checkpoint(tmp_path / "m.ckpt", label_values=[0, 3, 207, 300]))
    command = ["predict", run, str(path), "--device", "cpu", "--output"]
    assert main([*command, str(tmp_path / "index"), "--label_values", "index"]) == 0
    assert main([*command, str(tmp_path / "data")]) == 0
    indices = voxels(tmp_path / "index" / "case.nii.gz")
    assert len(np.unique(indices)) > 1
    assert indices.max() == 3
    np.testing.assert_array_equal(voxels(tmp_path / "data" / "case.nii.gz"), np.array([0, 3, 207, 300])[indices])
    record = json.loads((tmp_path / "data" / "case.json").read_text())
    assert [one["value"] for one in record["classes"]] == [0, 3, 207, 300]
    capsys.readouterr()
    # One colour table serves a folder: values are not mixed in it.
    assert main([*command, str(tmp_path / "data"), "--label_values", "index"]) == 2
    assert "other classes" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "data"), "--label_values", "names"]) == 2
    assert "expected data or index" in capsys.readouterr().err


def test_an_ensemble_over_data_sets_with_other_values_asks_for_class_indices(tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    runs = [
        checkpoint(tmp_path / f"{n}.ckpt", label_values=values) for n, values in enumerate(([0, 1, 2, 3], [0, 4, 5, 6]))
    ]
    with pytest.raises(SegmentationError, match="--label_values index"):
        predicted(runs, [path], tmp_path / "out")
    assert predicted(runs, [path], tmp_path / "out", label_values="index").n_done == 1


def test_a_checkpoint_alone_predicts_as_its_run_folder_does(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    predicted([run], [path], tmp_path / "a")
    predicted([run / "checkpoints" / "best_model.ckpt"], [path], tmp_path / "b", threads=2)
    assert (tmp_path / "a" / "case.nii.gz").read_bytes() == (tmp_path / "b" / "case.nii.gz").read_bytes()


def test_threads_are_those_of_torch_and_more_than_none(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    predicted([run], [path], tmp_path / "out", threads=2)
    assert torch.get_num_threads() == 2
    with pytest.raises(NetworkError, match="threads: expected 1 or more, found 0"):
        predicted([run], [path], tmp_path / "out", threads=0)


def test_formats_preview_structures_and_cleaning_go_together(run, tmp_path):
    report = predicted(
        [run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", formats=("nifti", "nrrd",), per_structure=True,
        preview=True, keep_largest=("liver",), min_volume_ml=0.02,
    )  # fmt: skip
    assert report.n_failed == 0, report
    out = tmp_path / "out"
    np.testing.assert_array_equal(
        voxels(out / "case.nii.gz"), sitk.GetArrayFromImage(sitk.ReadImage(out / "case.seg.nrrd")).T
    )
    for value, name in enumerate(NAMES[1:], start=1):
        mask = voxels(out / "case" / "segmentations" / f"{name}.nii.gz")
        np.testing.assert_array_equal(mask, voxels(out / "case.nii.gz") == value)
    assert (out / "case.png").read_bytes().startswith(b"\x89PNG")
    assert all((out / name).exists() for name in report.cases[0].files)


def test_the_command_ends_with_1_and_the_list_of_failed_cases(run, tmp_path, capsys):
    scans(tmp_path / "in", 2)
    (tmp_path / "in" / "case1.nii.gz").write_bytes(b"no NIfTI")
    paths = [str(run), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--report", str(tmp_path / "r.json")]
    command = ["predict", "--device", "cpu", "--tta", *paths]
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 done, 0 skipped, 1 failed"
    assert lines[1] == "Scans that failed:"
    assert lines[2].startswith("  case1: ")
    assert lines[-1] == "1 scan failed, see above: case1"
    assert lines[-2].endswith(f"Results in {tmp_path / 'out'}: case0.nii.gz, with its record case0.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["cases"][0]["made_by"]["settings"]["passes"]["mirrored"] == ""
    (tmp_path / "in" / "case1.nii.gz").unlink()
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("0 done, 1 skipped, 0 failed\n")


@pytest.mark.parametrize(
    ("tta", "mirrored"), [("--tta", "y"), ("--tta auto", "y"), ("--tta zx", "xz"), ("--tta y,z", "yz"), ("", "")]
)
def test_flags_reach_the_batch(tmp_path, tta, mirrored):
    run = checkpoint(tmp_path / "m.ckpt", extra={"flips": [1]})
    path = scan(tmp_path / "case.nii.gz")
    flags = "--roi 12 12 16 --step 0.8 --keep_largest liver,kidney_left --min_volume_ml 0.5 --precision 32 "
    flags += "--device cpu --threads 1"
    paths = [str(run), str(path), "--output", str(tmp_path / "out")]
    assert main(["predict", *flags.split(), *paths, *tta.split()]) == 0
    settings = json.loads((tmp_path / "out" / "case.json").read_text())["made_by"]["settings"]
    assert settings["passes"] == {"mirrored": mirrored, "roi": [12, 12, 16], "step": 0.8, "precision": "32"}
    assert (settings["keep_largest"], settings["min_volume_ml"]) == ([1, 2], 0.5)


def test_a_command_lines_paths_are_runs_then_scans(run, tmp_path):
    (tmp_path / "set").mkdir()
    runs, inputs = split_runs([run, tmp_path / "m.ckpt", tmp_path / "set"])
    assert (len(runs), len(inputs)) == (2, 1)
    with pytest.raises(NetworkError, match="first"):
        split_runs([tmp_path / "set", run])
    with pytest.raises(SegmentationError, match="expected scans"):
        split_runs([run])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output file", "expected a folder"),
        ("--output file/deeper", "expected a folder"),
        ("--output out --report file/r.json", "expected a folder"),
        ("--output out --report folder", "expected a file, found a folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_before_the_network_works(
    run, tmp_path, monkeypatch, capsys, flags, words
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    assert main(["predict", "--device", "cpu", str(run), str(scan(tmp_path / "case.nii.gz")), *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("out").exists()


def test_the_report_makes_its_folder(run, tmp_path):
    predicted([run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out").write(tmp_path / "new" / "r.json")
    assert json.loads((tmp_path / "new" / "r.json").read_text())["n_done"] == 1


@pytest.mark.parametrize("name", ["case.nii.gz", "out/case.json", "out/labels.ctbl"])
def test_a_report_replaces_no_scan_and_no_result(run, tmp_path, capsys, name):
    path = scan(tmp_path / "case.nii.gz")
    command = ["predict", "--device", "cpu", str(run), str(path), "--output", str(tmp_path / "out"), "--report"]
    before = path.read_bytes()
    assert main([*command, str(tmp_path / name)]) == 2
    assert "found another; name a new one" in capsys.readouterr().err.splitlines()[-1]
    assert path.read_bytes() == before
    for _ in range(2):  # an earlier report is replaced, and the results are those of a finished case
        assert main([*command, str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["n_skipped"] == 1


@pytest.mark.fault("the disk of `--report` refuses it", "the table is printed all the same, then one line; exit 2")
def test_a_report_that_the_disk_refuses_does_not_lose_the_table(run, tmp_path, capsys):
    command = ["predict", "--device", "cpu", str(run), str(scan(tmp_path / "case.nii.gz"))]
    report = tmp_path / "out" / "case.nii.gz" / "r.json"  # a folder to be made that becomes a file meanwhile
    assert main([*command, "--output", str(tmp_path / "out"), "--report", str(report)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("1 done, 0 skipped, 0 failed\n")
    assert f"{report.parent}: cannot be written" in said.err.splitlines()[-1]


def test_what_the_whole_batch_cannot_do_is_refused_at_once(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    with pytest.raises(SegmentationError, match="spleen"):
        predicted([run], [path], tmp_path / "out", keep_largest=("spleen",))
    with pytest.raises(SegmentationError, match="keep_largest: expected structures, found the background 'backgr"):
        predicted([run], [path], tmp_path / "out", keep_largest=("liver", "background"))
    with pytest.raises(SegmentationError, match="min_volume_ml: expected 0 or more, found -1"):
        predicted([run], [path], tmp_path / "out", min_volume_ml=-1)
    with pytest.raises(NetworkError, match="letters x, y and z"):
        predicted([run], [path], tmp_path / "out", tta="q")
    with pytest.raises(NetworkError, match="step: expected a share"):
        predicted([run], [path], tmp_path / "out", step=0)
    with pytest.raises(SegmentationError, match="is an input"):
        predicted([run], [path], tmp_path)
    with pytest.raises(ConfigError, match="cuda:99 does not exist"):
        choose_device("cuda:99")
    with pytest.raises(ConfigError, match="auto, 32, bf16 or 16"):
        predicted([run], [path], tmp_path / "out", precision="64")
    assert not (tmp_path / "out").exists()


REFUSED = {
    "awkward_nifti/example4d.nii.gz": "frames",
    "awkward_nifti/example_nifti2.nii.gz": "frames",
    "ct_head_tilted_dicom": "gantry tilt",
    "ct_lung_dicom": "missing",
    "dicom_series_faults/gantry_tilt": "gantry tilt",
    "dicom_series_faults/uneven_spacing": "not evenly spaced",
}


READ = [
    "abdomen_ct/example_ct.nii.gz", "abdomen_ct_dicom/series", "awkward_nifti/CT_AVM.nii.gz",
    "awkward_nifti/CT_pitch.nii.gz", "awkward_nifti/anatomical.nii", "awkward_nifti/reoriented_anat_moved.nii",
    "awkward_nifti/t2.nii.gz", "chest_ct/cxr.nii.gz", "dicom_compressed/jpeg2000", "dicom_compressed/rle",
    "dicom_seg/ct-3slice", "hippocampus/imagesTr/hippocampus_003_0000.nii.gz",
    "hippocampus/imagesTr/hippocampus_017_0000.nii.gz", "mismatched_pair/ct_cropped.nii.gz", "nrrd/brain1_image.nrrd",
    "spine_crops/sample_ct/sub-ct_label-22_ct.nii.gz", "spine_crops/sample_mri/sub-mri_label-6_T2w.nii.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", [*READ, *REFUSED])
def test_every_real_file_lands_on_its_exact_grid_or_is_refused_with_a_sentence(shared_data, run, tmp_path, name):
    (record,) = predicted([run], [shared_data / name], tmp_path / "out").cases
    if name in REFUSED:
        assert record.status == "failed"
        assert str(shared_data) in record.error
        assert REFUSED[name] in record.error
        assert "\n" not in record.error
        assert "Error:" not in record.error
        return
    assert record.status == "done", record
    source, written = shared_data / name, tmp_path / "out" / f"{record.case}.nii.gz"
    before, after = read_geometry(source), read_volume(written)
    assert after.array.dtype == np.uint8
    assert after.array.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    by_itk = itk_corners(written)
    np.testing.assert_allclose(by_itk, corners(nib.load(written).affine, before.shape), atol=5e-3)
    np.testing.assert_allclose(by_itk, itk_corners(*series_files(source) if source.is_dir() else [source]), atol=5e-3)


def corners(affine, shape):
    """The eight corner voxels' centres in RAS mm."""
    return [(affine @ [*index, 1])[:3] for index in itertools.product(*((0, n - 1) for n in shape))]


def itk_corners(*files):
    """The same by SimpleITK, which thinks in LPS; of a series from its files in order."""
    image = sitk.ReadImage([str(file) for file in files] if len(files) > 1 else str(files[0]))
    indices = itertools.product(*((0, n - 1) for n in image.GetSize()[:3]))
    rest = (0,) * (image.GetDimension() - 3)
    return [np.array(image.TransformIndexToPhysicalPoint(index + rest)[:3]) * [-1, -1, 1] for index in indices]


def test_an_oblique_scan_in_any_order_of_axes_gives_the_same_segmentation_of_the_body(run, tmp_path):
    oblique = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([1.5, 2, 2.5]), [5, 6, 7])
    path = scan(tmp_path / "a.nii.gz", affine=oblique)
    turned = nib.load(path).as_reoriented([[2, -1], [0, 1], [1, -1]])
    nib.save(turned, tmp_path / "b.nii.gz")
    report = predicted([run], [path, tmp_path / "b.nii.gz"], tmp_path / "out")
    assert report.n_failed == 0
    back = nib.as_closest_canonical(nib.load(tmp_path / "out" / "b.nii.gz"))
    straight = nib.as_closest_canonical(nib.load(tmp_path / "out" / "a.nii.gz"))
    np.testing.assert_allclose(back.affine, straight.affine, atol=1e-5)
    assert (np.asarray(back.dataobj) == np.asarray(straight.dataobj)).mean() > 0.999


def test_a_network_with_two_channels_is_applied_to_the_two_files_of_a_new_patient(tmp_path):
    run = checkpoint(tmp_path / "m.ckpt", channels=("CT", "PET"))
    files = [scan(tmp_path / "in" / f"pat_000{number}.nii.gz", seed=number) for number in (0, 1)]
    by_hand = predicted([run], files[::-1], tmp_path / "a")
    assert [(record.case, record.status) for record in by_hand.cases] == [("pat", "done")]
    predicted([run], [tmp_path / "in"], tmp_path / "b")
    np.testing.assert_array_equal(voxels(tmp_path / "a" / "pat.nii.gz"), voxels(tmp_path / "b" / "pat.nii.gz"))
    report = predicted([run], files[:1], tmp_path / "c")
    assert "expected an image of each channel (CT, PET), found pat_0000.nii.gz in" in report.cases[0].error
    report = predicted([run], [scan(tmp_path / "other.nii.gz")], tmp_path / "d")
    assert report.cases[0].error.startswith("run0 takes 2 channels (CT, PET), found 1; name the files CASE_0000")


@pytest.mark.parametrize("width", [40, 80, None])
def test_the_volumes_at_the_end_are_those_of_the_label_maps(run, tmp_path, width):
    scans(tmp_path / "in", 3)
    text = predicted([run], [tmp_path / "in"], tmp_path / "out").to_text(width)
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= (width or 80)
    maps = [nib.load(tmp_path / "out" / f"case{number}.nii.gz") for number in range(3)]
    unit = 1000.0 if "µl" in text else 1.0
    for value, name in enumerate(NAMES[1:], start=1):
        ml = [np.sum(np.asarray(m.dataobj) == value) * abs(np.linalg.det(m.affine[:3, :3])) / 1000 for m in maps]
        ml = [volume for volume in ml if volume]
        cells = [cell for line in text.splitlines() if line.split()[:1] == [name] for cell in line.split()[1:]]
        if not ml:
            assert name in text.split("in no scan:")[1]
            continue
        assert cells[0] == str(len(ml)) == "3"
        assert [float(cell) for cell in cells[1:]] == pytest.approx(
            [unit * np.median(ml), unit * min(ml), unit * max(ml)], rel=1e-3
        )


def test_several_networks_are_announced_before_they_compute_and_one_is_not(run, tmp_path):
    other = run_folder(tmp_path / "logs" / "other")
    path = scan(tmp_path / "case.nii.gz")
    for width, is_terminal in ((200, False), (60, True)):
        said = io.StringIO()
        console = Console(file=said, width=width, force_terminal=is_terminal, color_system=None)
        predict([run, other], [path], tmp_path / f"out{width}", PredictionOptions(device="cpu"), console=console)
        first = " ".join(said.getvalue().split()).split("Predicting")[0]
        expected = f"Averaging the probabilities of 2 networks: {run.parent.name}/run, logs/other"
        assert expected in first
    said = io.StringIO()
    predict([run], [path], tmp_path / "alone", PredictionOptions(device="cpu"), console=Console(file=said))
    assert "Averaging" not in said.getvalue()
