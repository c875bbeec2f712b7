"""The verb predict: every grid comes back, batches survive bad cases and kills, ensembles and mirrored passes agree."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
import torch
from matplotlib import image as mpl_image
from monai.inferers import sliding_window_inference
from rich.console import Console
from torch.nn import functional as F

from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.registry import build_network, network_settings
from pipeline.cli.main import main
from pipeline.compute.devices import choose_device, choose_precision
from pipeline.inference import batch
from pipeline.inference.inputs import list_inputs
from pipeline.inference.model import load_models
from pipeline.inference.passes import Passes, feature_maps, prepare
from pipeline.predict import predict, split_runs, to_text
from pipeline.writers.preview import write_preview
from pipeline.writers.segmentation import Segmentation, SegmentationError
from tests.support.paths import ROOT
from transforms.chains import inference_chain, preprocessing_arguments
from transforms.io.dicom import series_files
from transforms.io.load import read_geometry, read_volume

NAMES = ["background", "liver", "kidney_left", "kidney_right"]
TARGET = (16, 12, 20)
LOGITS_ONLY = {"_target_": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 2}
SMALL = {"device": "cpu", "precision": "32"}


def checkpoint(path, seed=0, names=NAMES, target=TARGET, network=None, flips=(), **chain):
    """A best_model.ckpt in the contract's form, with random weights that make every class occur."""
    torch.manual_seed(seed)
    model = build_network(network, n_classes=len(names), base_channels=4, light=network is None, target_size=target)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 1,
        "state_dict": model.state_dict(),
        "network": network_settings(model),
        "preprocessing": preprocessing_arguments(target, **chain),
        "class_names": list(names),
        "channel_names": ["CT"],
        "flips": list(flips),
        "run": f"run{seed}",
        "epoch": 1,
        "val_mIoU": 0.5,
    }
    torch.save(content, path)
    return path


def scan(path, shape=(14, 17, 11), affine=None, seed=0):
    values = np.random.default_rng(seed).normal(0, 300, shape)
    values = (values + 900 * np.sin(np.indices(shape).sum(0) / 3)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1, 2, 3, 1]) if affine is None else affine), path)
    return path


def result(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs") / "run"
    checkpoint(folder / "checkpoints" / "best_model.ckpt")
    return folder


def by_torch(ckpt, path, flip=()):
    """Full logits on the source's grid, made with torch's own interpolation."""
    saved = torch.load(ckpt, weights_only=True)
    image = inference_chain(**saved["preprocessing"])({"image": str(path), "case": "x"})["image"]
    with torch.no_grad():
        logits = load_network(ckpt)(image.as_tensor().flip([1 + a for a in flip])[None])[0].double()
    logits = logits.flip([1 + axis for axis in flip])
    source = nib.load(path)
    order = nib.io_orientation(source.affine)
    assert order[:, 0].tolist() == [0, 1, 2]
    logits = logits.flip([1 + int(axis) for axis, sign in order if sign < 0])
    return F.interpolate(logits[None], source.shape, mode="trilinear", align_corners=False)[0]


def test_a_prediction_equals_the_argmax_of_full_logits_on_the_scans_own_grid(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    document = predict([run], [path], tmp_path / "out", **SMALL)
    expected = by_torch(run / "checkpoints" / "best_model.ckpt", path)
    first, second = expected.topk(2, 0).values
    sure = (first - second > 1e-5).numpy()
    found = result(tmp_path / "out" / "case.nii.gz")
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], expected.argmax(0).numpy()[sure])
    assert len(np.unique(found)) > 1
    assert document["n_done"] == 1


def test_the_record_states_volumes_and_geometry(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    document = predict([run], [path], tmp_path / "out", report=tmp_path / "report.json", **SMALL)
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    assert json.loads((tmp_path / "report.json").read_text())["cases"] == [record] == document["cases"]
    assert record["geometry"]["shape"] == [14, 17, 11]
    assert record["geometry"]["spacing_mm"] == [1, 2, 3]
    assert record["geometry"]["orientation"] == "LAS"
    counts = np.bincount(result(tmp_path / "out" / "case.nii.gz").ravel(), minlength=4)
    assert [c["volume_ml"] for c in record["classes"]] == pytest.approx(counts * 0.006)
    assert [c["name"] for c in record["classes"]] == NAMES
    assert set(record["seconds"]) == {"read", "network", "restore", "write"}
    assert record["peak_memory_mb"] > 50


def test_a_checkpoint_alone_predicts_as_its_run_folder_does(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    predict([run], [path], tmp_path / "a", **SMALL)
    predict([run / "checkpoints" / "best_model.ckpt"], [path], tmp_path / "b", threads=2, **SMALL)
    assert (tmp_path / "a" / "case.nii.gz").read_bytes() == (tmp_path / "b" / "case.nii.gz").read_bytes()


def test_an_ensemble_takes_the_mean_of_the_probabilities(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    other = checkpoint(tmp_path / "other.ckpt", seed=1, target=(10, 14, 12))
    predict([run, other], [path], tmp_path / "out", probabilities=["liver"], **SMALL)
    chances = [by_torch(c, path).softmax(0) for c in (run / "checkpoints" / "best_model.ckpt", other)]
    expected = (chances[0] + chances[1]) / 2
    first, second = expected.topk(2, 0).values
    sure = (first - second > 1e-5).numpy()
    np.testing.assert_array_equal(result(tmp_path / "out" / "case.nii.gz")[sure], expected.argmax(0).numpy()[sure])
    liver = nib.load(tmp_path / "out" / "case" / "probabilities" / "liver.nii.gz").get_fdata()
    np.testing.assert_allclose(liver, expected[1], atol=0.5 / 255 + 1e-5)


def test_runs_of_other_classes_cannot_be_joined(run, tmp_path):
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "liver", "spleen"])
    with pytest.raises(NetworkError, match="4 and 3 classes"):
        predict([run, other], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", **SMALL)


@pytest.mark.parametrize("network", [None, LOGITS_ONLY], ids=["head", "logits"])
def test_a_mirrored_pass_exchanges_left_and_right_by_name(tmp_path, network):
    path = scan(tmp_path / "case.nii.gz")
    ckpt = checkpoint(tmp_path / "m.ckpt", network=network, target=(16, 16, 32))
    assert (load_network(ckpt).head is None) == (network is not None)
    predict([ckpt], [path], tmp_path / "out", tta="x", probabilities=["kidney_left"], **SMALL)
    plain, mirrored = by_torch(ckpt, path).softmax(0), by_torch(ckpt, path, flip=[0]).softmax(0)
    expected = (plain + mirrored[[0, 1, 3, 2]]) / 2
    found = nib.load(tmp_path / "out" / "case" / "probabilities" / "kidney_left.nii.gz").get_fdata()
    np.testing.assert_allclose(found, expected[2], atol=0.5 / 255 + 1e-4)


@pytest.mark.parametrize("tta", ["auto", "xy"])
def test_mirroring_left_and_right_without_a_partner_is_refused_before_anything_is_written(tmp_path, tta):
    ckpt = checkpoint(tmp_path / "m.ckpt", names=["background", "kidney_left"])
    with pytest.raises(NetworkError, match="kidney_right"):
        predict([ckpt], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", tta=tta, **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("trained", "mirrored"), [([], "x"), ([0, 1], "xy"), ([2], "z")])
def test_tta_without_axes_mirrors_as_the_training_did(tmp_path, trained, mirrored):
    ckpt = checkpoint(tmp_path / "m.ckpt", flips=trained)
    path = scan(tmp_path / "case.nii.gz")
    predict([ckpt], [path], tmp_path / "a", tta="auto", probabilities=["liver"], **SMALL)
    predict([ckpt], [path], tmp_path / "b", tta=mirrored, probabilities=["liver"], **SMALL)
    predict([ckpt], [path], tmp_path / "c", probabilities=["liver"], **SMALL)
    auto, named, plain = (result(tmp_path / f / "case" / "probabilities" / "liver.nii.gz") for f in "abc")
    np.testing.assert_array_equal(auto, named)
    assert not np.array_equal(auto, plain)


def test_a_sliding_window_averages_the_logits_of_its_windows(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    (model,) = load_models([run], choose_device("cpu"))
    (prepared,) = prepare([model], [path], "case")
    (one,) = feature_maps(model, prepared, Passes(roi=(12, 12, 16)))
    ours = torch.einsum("cf,fijk->cijk", one.weight, one.features) + one.bias.view(-1, 1, 1, 1)
    with torch.no_grad():
        theirs = sliding_window_inference(
            prepared.image[None], (12, 12, 16), 1, model.network, overlap=0.5, mode="gaussian"
        )
    torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=1e-4)


def test_threads_are_those_of_torch_and_more_than_none(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    predict([run], [path], tmp_path / "out", threads=2, **SMALL)
    assert torch.get_num_threads() == 2
    with pytest.raises(NetworkError, match="threads: expected 1 or more, found 0"):
        predict([run], [path], tmp_path / "out", threads=0, **SMALL)


def pieces(path, value):
    """Sizes of a class's connected pieces in voxels, by SimpleITK, largest first."""
    components = sitk.ConnectedComponent(sitk.ReadImage(path) == value, True)
    return sorted(np.bincount(sitk.GetArrayFromImage(components).ravel())[1:], reverse=True)


def test_the_largest_piece_of_named_classes_stays_and_specks_go_by_their_volume_in_ml(tmp_path):
    path = scan(tmp_path / "case.nii.gz", shape=(34, 29, 31))
    noisy = checkpoint(tmp_path / "m.ckpt", network=LOGITS_ONLY, target=(16, 16, 32))
    predict([noisy], [path], tmp_path / "all", **SMALL)
    counts = {value: pieces(tmp_path / "all" / "case.nii.gz", value) for value in (1, 2, 3)}
    assert min(len(sizes) for sizes in counts.values()) > 10  # else little is shown below
    predict([noisy], [path], tmp_path / "largest", keep_largest=["kidney_right"], **SMALL)
    for value, before in counts.items():
        kept = before[:1] if NAMES[value] == "kidney_right" else before
        assert pieces(tmp_path / "largest" / "case.nii.gz", value) == kept
    # A voxel has 1 · 2 · 3 mm³ = 0.006 ml.
    document = predict([noisy], [path], tmp_path / "specks", min_volume_ml=0.057, **SMALL)
    for value, before in counts.items():
        assert pieces(tmp_path / "specks" / "case.nii.gz", value) == [n for n in before if n >= 10]
    removed = sum(n for sizes in counts.values() for n in sizes if n < 10)
    assert document["cases"][0]["voxels_removed"] == removed > 0


def test_the_folder_has_a_colour_table_and_takes_no_other_classes(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    document = predict([run], [path], out, **SMALL)
    lines = [line.split() for line in (out / "labels.ctbl").read_text().splitlines() if not line.startswith("#")]
    assert [int(line[0]) for line in lines] == [0, 1, 2, 3]
    assert [line[1] for line in lines] == NAMES
    colours = [c["colour"] for c in document["cases"][0]["classes"]]
    assert [[int(part) for part in line[2:5]] for line in lines] == colours
    assert [line[5] for line in lines] == ["0", "255", "255", "255"]
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "left lung", "right lung"])
    with pytest.raises(SegmentationError, match="other classes"):
        predict([other], [path], out, **SMALL)
    predict([other], [path], out, overwrite=True, **SMALL)
    assert "left_lung" in (out / "labels.ctbl").read_text()


def test_overwriting_gives_no_other_meaning_to_the_values_of_other_cases(run, tmp_path):
    first, second, out = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz"), tmp_path / "out"
    predict([run], [first, second], out, **SMALL)
    before = (out / "labels.ctbl").read_bytes()
    other = checkpoint(tmp_path / "other.ckpt", names=["background", "left lung", "right lung"])
    with pytest.raises(SegmentationError, match=r"b\.json: case b was segmented with other classes"):
        predict([other], [first], out, overwrite=True, **SMALL)
    assert (out / "labels.ctbl").read_bytes() == before
    # Nothing is made of either scan, so nothing may get another name.
    assert predict([other], [first, second], out, overwrite=True, formats=["dicom"], **SMALL)["n_failed"] == 2
    assert (out / "labels.ctbl").read_bytes() == before
    assert predict([other], [first, second], out, overwrite=True, **SMALL)["n_done"] == 2
    assert (out / "labels.ctbl").read_bytes() != before


def test_a_format_that_a_scan_does_not_allow_leaves_its_earlier_result_as_it_was(run, tmp_path):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    predict([run], [path], out, **SMALL)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    other = checkpoint(tmp_path / "other.ckpt", seed=1)
    document = predict([other], [path], out, formats=["nifti", "dicom"], overwrite=True, **SMALL)
    assert "DICOM series" in document["cases"][0]["error"]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_result_that_was_replaced_only_in_part_is_never_called_finished(run, tmp_path, monkeypatch):
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    formats = ["nifti", "nrrd"]
    predict([run], [path], out, formats=formats, **SMALL)
    before = (out / "case.nii.gz").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("pipeline.writers.seg_nrrd._grid", full)  # after the NIfTI has been written
        other = checkpoint(tmp_path / "other.ckpt", seed=1)
        assert predict([other], [path], out, formats=formats, overwrite=True, **SMALL)["n_failed"] == 1
    assert (out / "case.nii.gz").read_bytes() != before
    assert predict([run], [path], out, formats=formats, **SMALL)["n_done"] == 1
    assert (out / "case.nii.gz").read_bytes() == before


@pytest.mark.parametrize("where", ["features", "head"])
def test_a_network_that_yields_nan_fails_the_case_instead_of_finding_only_background(tmp_path, where):
    path = checkpoint(tmp_path / "nan.ckpt")
    saved = torch.load(path, weights_only=True)
    names = [name for name in saved["state_dict"] if name.endswith("weight")]
    name = names[0] if where == "features" else next(n for n in names if n.startswith("head"))
    saved["state_dict"][name].view(-1)[0] = torch.nan
    torch.save(saved, path)
    document = predict([path], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", **SMALL)
    assert document["n_failed"] == 1
    assert f"{path}: its network gives NaN or infinite values" in document["cases"][0]["error"]
    assert not (tmp_path / "out" / "case.nii.gz").exists()


WRITES = """
import sys, time
from pathlib import Path
from pipeline.files.atomic import write_atomically
def write(stream):
    stream.write(b"half")
    stream.flush()
    print("half", flush=True)
    sys.stdin.read()
write_atomically(Path(sys.argv[1]), write)
"""


@pytest.mark.parametrize("name", ["case", "c" * 180])
def test_only_dead_processes_files_in_progress_are_removed(run, tmp_path, name):
    path, out, root = scan(tmp_path / f"{name}.nii.gz"), tmp_path / "out", ROOT
    out.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": root}
    with subprocess.Popen([sys.executable, "-c", WRITES, out / f"{name}.nii.gz"], **pipes) as alive:
        assert alive.stdout.readline() == b"half\n"
        with subprocess.Popen([sys.executable, "-c", WRITES, out / f"{name}.nii.gz"], **pipes) as killed:
            assert killed.stdout.readline() == b"half\n"
            killed.kill()
        assert len(list(out.glob(".*"))) == 2
        predict([run], [path], out, **SMALL)
        (left,) = out.glob(".*")
        assert f".{alive.pid}." in left.name
        alive.stdin.close()
        assert alive.wait() == 0
    assert (out / f"{name}.nii.gz").read_bytes() == b"half"
    assert list(out.glob(".*")) == []


def test_reading_the_next_and_writing_the_last_happen_while_the_network_works(run, tmp_path, monkeypatch):
    for number in range(3):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    begun = {what: threading.Event() for what in ("read case1", "read case2", "write case0", "write case1")}
    waited_for = {0: ["read case1"], 1: ["read case2", "write case0"], 2: ["write case1"]}
    networks, in_vain = itertools.count(), []

    def announced(function, what):
        def call(models_or_segmentation, images_or_probabilities, case, *rest):
            if event := begun.get(f"{what} {case}"):
                event.set()
            return function(models_or_segmentation, images_or_probabilities, case, *rest)

        return call

    def network_that_waits(*arguments, true=batch.feature_maps):
        # Would any of these begin only after the network, the wait would be in vain.
        in_vain.extend(name for name in waited_for[next(networks)] if not begun[name].wait(timeout=20))
        return true(*arguments)

    monkeypatch.setattr(batch, "prepare", announced(batch.prepare, "read"))
    monkeypatch.setattr(batch, "write_files", announced(batch.write_files, "write"))
    monkeypatch.setattr(batch, "feature_maps", network_that_waits)
    assert predict([run], [tmp_path / "in"], tmp_path / "out", **SMALL)["n_done"] == 3
    assert in_vain == []


def test_a_terminal_shows_a_bar_over_the_batch_and_one_for_the_case(run, tmp_path):
    for number in range(2):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    console = Console(file=StringIO(), force_terminal=True, width=80)
    predict([run], [tmp_path / "in"], tmp_path / "out", tta="x", console=console, **SMALL)
    whole, part = console.file.getvalue().splitlines()[-3:-1]
    assert "Predicting" in whole
    assert "2/2" in whole
    assert "case1" in part
    assert "100%" in part


def test_the_command_ends_with_1_and_the_list_of_failed_cases(run, tmp_path, capsys):
    for number in range(2):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    (tmp_path / "in" / "case1.nii.gz").write_bytes(b"no NIfTI")
    paths = [str(run), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--report", str(tmp_path / "r.json")]
    command = ["predict", "--device", "cpu", "--tta", *paths]
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 done, 0 skipped, 1 failed"
    assert lines[1].startswith("  case1: ")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["cases"][0]["made_by"]["settings"]["passes"]["mirrored"] == "x"
    (tmp_path / "in" / "case1.nii.gz").unlink()
    assert main(command) == 0
    assert capsys.readouterr().out == "0 done, 1 skipped, 0 failed\n"


@pytest.mark.parametrize(
    ("tta", "mirrored"), [("--tta", "x"), ("--tta auto", "x"), ("--tta zx", "xz"), ("--tta y,z", "yz"), ("", "")]
)
def test_flags_reach_the_batch(run, tmp_path, tta, mirrored):
    path = scan(tmp_path / "case.nii.gz")
    flags = (
        "--roi 12 12 16 --keep_largest liver,kidney_left --min_volume_ml 0.5 --precision 32 --device cpu --threads 1"
    )
    paths = [str(run), str(path), "--output", str(tmp_path / "out")]
    assert main(["predict", *flags.split(), *paths, *tta.split()]) == 0
    settings = json.loads((tmp_path / "out" / "case.json").read_text())["made_by"]["settings"]
    assert settings["passes"] == {"mirrored": mirrored, "roi": [12, 12, 16], "precision": "32"}
    assert (settings["keep_largest"], settings["min_volume_ml"]) == ([1, 2], 0.5)


def test_a_scan_that_was_replaced_is_done_again(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    predict([run], [path], tmp_path / "out", **SMALL)
    before = result(tmp_path / "out" / "case.nii.gz")
    assert predict([run], [path], tmp_path / "out", **SMALL)["n_skipped"] == 1
    scan(path, seed=5)
    assert predict([run], [path], tmp_path / "out", **SMALL)["n_done"] == 1
    assert not np.array_equal(result(tmp_path / "out" / "case.nii.gz"), before)


KILLED = """
import os, signal, sys
from pipeline.writers import nifti
from pipeline.predict import predict
true = nifti._stream
def stream(file, header, array, written=[]):
    if written:  # in the middle of the second case's file
        file.write(b"half a file")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(true(file, header, array))
nifti._stream = stream
predict([sys.argv[1]], [sys.argv[2]], sys.argv[3], device="cpu", precision="32", threads=1)
"""


@pytest.mark.fault(
    "SIGKILL in the middle of writing a prediction",
    "no half file under a result's name; the same command goes on with that case, and the results are the same",
)
def test_a_batch_killed_while_it_writes_leaves_whole_files_and_goes_on(run, tmp_path):
    for number in range(3):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    out, root = tmp_path / "out", ROOT
    ended = subprocess.run([sys.executable, "-c", KILLED, run, tmp_path / "in", out], check=False, cwd=root)
    assert ended.returncode == -signal.SIGKILL
    assert {path.name for path in out.glob("[!.]*")} == {"labels.ctbl", "case0.nii.gz", "case0.json"}
    assert len(list(out.glob(".case1*"))) == 1  # the half file, under a name of its own
    again = predict([run], [tmp_path / "in"], out, **SMALL)
    assert [record["status"] for record in again["cases"]] == ["skipped", "done", "done"]
    assert list(out.glob(".*")) == []
    predict([run], [tmp_path / "in"], tmp_path / "at once", **SMALL)
    for number in range(3):
        name = f"case{number}.nii.gz"
        assert (out / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


@pytest.mark.fault("a truncated scan in a batch", "named at the end with the reason; all the others are segmented")
def test_a_batch_goes_on_after_a_bad_case_and_says_which_and_why(run, tmp_path):
    for number in range(3):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    damaged = tmp_path / "in" / "case1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    document = predict([run], [tmp_path / "in"], tmp_path / "out", **SMALL)
    assert [record["status"] for record in document["cases"]] == ["done", "failed", "done"]
    assert to_text(document).splitlines()[0] == "2 done, 0 skipped, 1 failed"
    assert "case1" in to_text(document).splitlines()[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case0.json", "case0.nii.gz", "case2.json", "case2.nii.gz", "labels.ctbl",
    ]  # fmt: skip


def test_a_repeated_batch_skips_what_is_finished_and_an_interrupted_case_is_done_again(run, tmp_path):
    for number in range(2):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    predict([run], [tmp_path / "in"], tmp_path / "out", **SMALL)
    before = (tmp_path / "out" / "case1.nii.gz").read_bytes()
    (tmp_path / "out" / "case1.json").unlink()  # as a kill before the record leaves it
    (tmp_path / "out" / "case1.nii.gz").write_bytes(b"half")
    again = predict([run], [tmp_path / "in"], tmp_path / "out", **SMALL)
    assert [record["status"] for record in again["cases"]] == ["skipped", "done"]
    assert (tmp_path / "out" / "case1.nii.gz").read_bytes() == before
    other = checkpoint(tmp_path / "other.ckpt", seed=1)
    document = predict([other], [tmp_path / "in"], tmp_path / "out", **SMALL)
    assert "another run" in document["cases"][0]["error"]
    assert predict([other], [tmp_path / "in"], tmp_path / "out", overwrite=True, **SMALL)["n_done"] == 2


def test_formats_preview_structures_and_cleaning_go_together(run, tmp_path):
    document = predict(
        [run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", formats=["nifti", "nrrd"], per_structure=True,
        preview=True, keep_largest=["liver"], min_volume_ml=0.02, **SMALL,
    )  # fmt: skip
    assert document["n_failed"] == 0, document
    out = tmp_path / "out"
    np.testing.assert_array_equal(
        result(out / "case.nii.gz"), sitk.GetArrayFromImage(sitk.ReadImage(out / "case.seg.nrrd")).T
    )
    for value, name in enumerate(NAMES[1:], start=1):
        mask = result(out / "case" / "segmentations" / f"{name}.nii.gz")
        np.testing.assert_array_equal(mask, result(out / "case.nii.gz") == value)
    assert (out / "case.png").read_bytes().startswith(b"\x89PNG")
    assert all((out / name).exists() for name in document["cases"][0]["files"])


def test_the_preview_shows_the_patients_right_on_the_left_and_the_structures_where_they_are(tmp_path):
    label = np.zeros((40, 40, 40), np.uint8)
    label[4:16, 4:16, 22:38] = 1  # i runs to the left, j to the front, k to the feet
    affine = np.diag([-2.0, 2.0, -2.0, 1.0])
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(label.astype(np.int16) * 500, affine), path)
    image = inference_chain((20, 20, 20))({"image": str(path), "case": "x"})["image"]
    segmentation = Segmentation(label, affine, ("background", "liver"), path, "nifti")
    write_preview(segmentation, image[0].numpy(), image.affine.numpy(), tmp_path / "a.png")
    picture = mpl_image.imread(tmp_path / "a.png")[..., :3]
    coloured = np.ptp(picture, axis=2) > 0.2  # all the rest is grey
    third = picture.shape[1] // 3
    centres = [np.argwhere(part).mean(0) / part.shape for part in np.split(coloured[:, : 3 * third], 3, axis=1)]
    # (from the top, from the left): the structure lies towards the patient's right, back and feet.
    for down, across in centres:
        assert down > 0.55
        assert across < 0.45


def test_a_dicom_seg_of_a_nifti_fails_that_case_only(run, tmp_path):
    document = predict([run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", formats=["dicom"], **SMALL)
    assert "DICOM series" in document["cases"][0]["error"]


def test_inputs_are_data_sets_trees_and_files(run, tmp_path):
    for case in ("s1", "s2"):
        scan(tmp_path / "set" / case / "ct.nii.gz")
        scan(tmp_path / "set" / case / "segmentations" / "liver.nii.gz")
    cases = list_inputs([tmp_path / "set", scan(tmp_path / "single.nii.gz")])
    assert sorted(case.id for case in cases) == ["s1", "s2", "single"]
    with pytest.raises(SegmentationError, match="both would be called"):
        list_inputs([tmp_path / "set", scan(tmp_path / "S1.nii.gz")])
    runs, inputs = split_runs([run, tmp_path / "m.ckpt", tmp_path / "set"])
    assert (len(runs), len(inputs)) == (2, 1)
    with pytest.raises(NetworkError, match="first"):
        split_runs([tmp_path / "set", run])
    with pytest.raises(SegmentationError, match="expected scans"):
        split_runs([run])


def test_a_scan_that_cannot_be_looked_at_is_named_and_the_others_are_done(run, tmp_path, monkeypatch):
    for name in ("a", "b"):
        scan(tmp_path / "in" / name / f"{name}.nii.gz")

    def closed(folder, true=Path.iterdir):
        if folder.name == "a":
            raise PermissionError(13, "Permission denied", str(folder))
        return true(folder)

    monkeypatch.setattr(Path, "iterdir", closed)
    document = predict([run], [tmp_path / "in"], tmp_path / "out", **SMALL)
    assert [(record["case"], record["status"]) for record in document["cases"]] == [("a", "failed"), ("b", "done")]
    assert f"{tmp_path / 'in' / 'a'}: cannot be read (Permission denied)" in document["cases"][0]["error"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output file", "expected a folder"),
        ("--output file/deeper", "expected a folder"),
        ("--output out --report file/r.json", "expected a folder"),
        ("--output out --report folder", "expected a file, found a folder"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_said_before_the_network_works(
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
    predict([run], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", report=tmp_path / "new" / "r.json", **SMALL)
    assert json.loads((tmp_path / "new" / "r.json").read_text())["n_done"] == 1


def test_what_the_whole_batch_cannot_do_is_refused_at_once(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    with pytest.raises(SegmentationError, match="spleen"):
        predict([run], [path], tmp_path / "out", keep_largest=["spleen"], **SMALL)
    with pytest.raises(NetworkError, match="letters x, y and z"):
        predict([run], [path], tmp_path / "out", tta="q", **SMALL)
    with pytest.raises(SegmentationError, match="is an input"):
        predict([run], [path], tmp_path, **SMALL)
    with pytest.raises(NetworkError, match="is not there"):
        choose_device("cuda:99")
    with pytest.raises(NetworkError, match="auto, 32 or bf16"):
        choose_precision("16", torch.device("cpu"))
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
    (record,) = predict([run], [shared_data / name], tmp_path / "out", **SMALL)["cases"]
    if name in REFUSED:
        assert record["status"] == "failed"
        assert str(shared_data) in record["error"]
        assert REFUSED[name] in record["error"]
        assert "\n" not in record["error"]
        assert "Error:" not in record["error"]
        return
    assert record["status"] == "done", record
    source, written = shared_data / name, tmp_path / "out" / f"{record['case']}.nii.gz"
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
    document = predict([run], [path, tmp_path / "b.nii.gz"], tmp_path / "out", **SMALL)
    assert document["n_failed"] == 0
    back = nib.as_closest_canonical(nib.load(tmp_path / "out" / "b.nii.gz"))
    straight = nib.as_closest_canonical(nib.load(tmp_path / "out" / "a.nii.gz"))
    np.testing.assert_allclose(back.affine, straight.affine, atol=1e-5)
    assert (np.asarray(back.dataobj) == np.asarray(straight.dataobj)).mean() > 0.999
