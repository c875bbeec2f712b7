"""The verb predict: every grid comes back, batches survive bad cases and kills, ensembles and mirrored passes agree."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
import torch
from monai.inferers import sliding_window_inference
from torch.nn import functional as F

from networks.registry import NetworkError, build_network, load_network, network_settings
from pipeline.inference import Passes, choose_device, choose_precision, feature_maps, load_models, prepare
from pipeline.predict import predict, split_runs, to_text
from pipeline.scans import list_inputs
from pipeline.segmentation import SegmentationError
from transforms.chains import inference_chain, preprocessing_arguments
from transforms.load import read_geometry, read_volume

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


REAL = [
    "awkward_nifti/CT_AVM.nii.gz", "awkward_nifti/CT_pitch.nii.gz", "awkward_nifti/anatomical.nii",
    "awkward_nifti/reoriented_anat_moved.nii", "awkward_nifti/example4d.nii.gz", "awkward_nifti/example_nifti2.nii.gz",
    "awkward_nifti/t2.nii.gz", "abdomen_ct/example_ct.nii.gz", "spine_crops/sample_mri/sub-mri_label-6_T2w.nii.gz",
    "abdomen_ct_dicom/series", "ct_head_tilted_dicom", "ct_lung_dicom", "dicom_seg/ct-3slice",
    "dicom_series_faults/gantry_tilt", "dicom_series_faults/uneven_spacing", "dicom_compressed/jpeg2000",
]  # fmt: skip
REFUSED = {
    "awkward_nifti/example4d.nii.gz", "awkward_nifti/example_nifti2.nii.gz", "ct_head_tilted_dicom", "ct_lung_dicom",
    "dicom_series_faults/gantry_tilt",
    "dicom_series_faults/uneven_spacing",
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_every_real_file_lands_on_its_exact_grid_or_is_refused_with_a_sentence(shared_data, run, tmp_path, name):
    document = predict([run], [shared_data / name], tmp_path / "out", **SMALL)
    for record in document["cases"]:
        assert (record["status"] == "failed") == (name in REFUSED), record
        if record["status"] == "failed":
            assert str(shared_data) in record["error"]
            assert "\n" not in record["error"]
            assert "Error:" not in record["error"]
            continue
        (source,) = record["source"]
        before, after = read_geometry(source), read_volume(tmp_path / "out" / f"{record['case']}.nii.gz")
        assert after.array.shape == before.shape
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
        assert after.array.dtype == np.uint8


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
