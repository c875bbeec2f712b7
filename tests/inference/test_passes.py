"""Passes through networks: windows, mirrored passes and ensembles equal what torch computes."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from networks.checkpoint import load_network
from networks.errors import NetworkError
from networks.sliding_window import gaussian_weights
from pipeline.compute.devices import choose_device
from pipeline.inference.model import load_models
from pipeline.inference.passes import InferenceOptions, choose_mirrored, exchanged_in_words, prepare, scan_features
from tests.support.tiny_prediction import LOGITS_ONLY, checkpoint, logits_by_torch, predicted, scan, voxels
from transforms.io.errors import VolumeError
from transforms.restore import FeatureMap, FeatureStream, restore


def test_an_ensemble_takes_the_mean_of_the_probabilities(run, tmp_path):
    path = scan(tmp_path / "in" / "case.nii.gz")
    other = checkpoint(tmp_path / "other.ckpt", seed=1, target=(10, 14, 12))
    predicted([run, other], [path], tmp_path / "out", probabilities=("liver",))
    chances = [logits_by_torch(c, path).softmax(0) for c in (run / "checkpoints" / "best_model.ckpt", other)]
    expected = (chances[0] + chances[1]) / 2
    first, second = expected.topk(2, 0).values
    sure = (first - second > 1e-5).numpy()
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "case.nii.gz")[sure], expected.argmax(0).numpy()[sure])
    liver = nib.load(tmp_path / "out" / "case" / "probabilities" / "liver.nii.gz").get_fdata()
    np.testing.assert_allclose(liver, expected[1], atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize("network", [None, LOGITS_ONLY], ids=["head", "logits"])
def test_a_mirrored_pass_exchanges_left_and_right_by_name(tmp_path, network):
    path = scan(tmp_path / "case.nii.gz")
    ckpt = checkpoint(tmp_path / "m.ckpt", network=network, target=(16, 16, 32))
    assert (load_network(ckpt).head is None) == (network is not None)
    predicted([ckpt], [path], tmp_path / "out", tta="x", probabilities=("kidney_left",))
    plain = logits_by_torch(ckpt, path)
    mirrored = logits_by_torch(ckpt, path, flip=[0])
    expected = ((plain + mirrored[[0, 1, 3, 2]]) / 2).softmax(0)
    found = nib.load(tmp_path / "out" / "case" / "probabilities" / "kidney_left.nii.gz").get_fdata()
    np.testing.assert_allclose(found, expected[2], atol=0.5 / 255 + 1e-4)


@pytest.mark.parametrize("tta", ["auto", "xy"])
def test_mirroring_left_and_right_without_a_partner_is_refused_before_anything_is_written(tmp_path, tta):
    ckpt = checkpoint(tmp_path / "m.ckpt", names=["background", "kidney_left"], extra={"flips": [0, 1]})
    with pytest.raises(NetworkError, match="kidney_right"):
        predicted([ckpt], [scan(tmp_path / "case.nii.gz")], tmp_path / "out", tta=tta)
    assert not (tmp_path / "out").exists()


def test_nan_is_filled_as_in_the_training_and_refused_where_that_did_not(tmp_path):
    path, filled = scan(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz"
    image = nib.load(path)
    array = image.get_fdata(dtype=np.float32)
    array[:4] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), path)
    nib.save(nib.Nifti1Image(np.nan_to_num(array, nan=-1024), image.affine), filled)
    (model,) = load_models([checkpoint(tmp_path / "m.ckpt", fill_nan=-1024)], torch.device("cpu"))
    one, other = (prepare([model], [each], "case").inputs[0].image for each in (path, filled))
    assert torch.equal(one, other)
    (model,) = load_models([checkpoint(tmp_path / "n.ckpt")], torch.device("cpu"))
    with pytest.raises(VolumeError, match=r"NaN or infinite voxels; .* data\.fill_nan"):
        prepare([model], [path], "case")


@pytest.mark.parametrize(("trained", "mirrored"), [([0], "x"), ([0, 1], "xy"), ([2], "z")])
def test_tta_without_axes_mirrors_as_the_training_did(tmp_path, caplog, trained, mirrored):
    ckpt = checkpoint(tmp_path / "m.ckpt", extra={"flips": trained})
    path = scan(tmp_path / "case.nii.gz")
    predicted([ckpt], [path], tmp_path / "a", tta="auto", probabilities=("liver",))
    predicted([ckpt], [path], tmp_path / "b", tta=mirrored, probabilities=("liver",))
    predicted([ckpt], [path], tmp_path / "c", probabilities=("liver",))
    auto, named, plain = (voxels(tmp_path / f / "case" / "probabilities" / "liver.nii.gz") for f in "abc")
    np.testing.assert_array_equal(auto, named)
    assert not np.array_equal(auto, plain)
    assert caplog.text == ""


@pytest.mark.parametrize("flips", [[], None], ids=["none", "unsaid"])
def test_tta_mirrors_nothing_and_says_so_where_the_training_did_not_mirror(tmp_path, caplog, flips):
    ckpt = checkpoint(tmp_path / "m.ckpt", extra={"flips": flips})
    path = scan(tmp_path / "case.nii.gz")
    predicted([ckpt], [path], tmp_path / "a", tta="auto", probabilities=("liver",))
    assert "--tta mirrors nothing: training did not mirror (data.flips)" in caplog.text
    predicted([ckpt], [path], tmp_path / "b", probabilities=("liver",))
    auto, plain = (voxels(tmp_path / f / "case" / "probabilities" / "liver.nii.gz") for f in "ab")
    np.testing.assert_array_equal(auto, plain)


def test_an_ensemble_mirrors_only_what_all_its_trainings_mirrored(tmp_path, caplog):
    runs = [checkpoint(tmp_path / f"{n}.ckpt", extra={"flips": flips}) for n, flips in enumerate(([0, 1], [1, 2]))]
    models = load_models(runs, choose_device("cpu"))
    assert choose_mirrored("auto", models) == "y"
    assert choose_mirrored("auto", models[:1]) == "xy"
    assert caplog.text == ""
    other = load_models([checkpoint(tmp_path / "x.ckpt", extra={"flips": [0]})], choose_device("cpu"))
    assert choose_mirrored("auto", [models[1], *other]) == ""
    assert "no axis was mirrored in all trainings" in caplog.text


def test_asking_for_axes_that_the_training_did_not_mirror_warns(tmp_path, caplog):
    (model,) = load_models([checkpoint(tmp_path / "m.ckpt", extra={"flips": [0]})], choose_device("cpu"))
    assert choose_mirrored("xz", [model]) == "xz"
    assert "training did not mirror along z" in caplog.text


def monai_windows(model, image, roi):
    """MONAI's sliding window over the logits (C, I, J, K), with our weights: its own are cut off below 0.001."""
    weights = torch.einsum("i,j,k->ijk", *map(gaussian_weights, roi))
    with torch.no_grad():
        return sliding_window_inference(image[None], roi, 1, model.network, overlap=0.5, roi_weight_map=weights)[0]


def all_logits(found):
    one = found.part(0, found.size[found.axis]) if isinstance(found, FeatureStream) else found
    if one.weight is None:
        return one.features
    return torch.einsum("cf,fijk->cijk", one.weight, one.features) + one.bias.view(-1, 1, 1, 1)


@pytest.mark.parametrize("network", [None, LOGITS_ONLY], ids=["head", "logits"])
@pytest.mark.parametrize("mirrored", ["", "x", "xyz"])
def test_windows_and_mirrored_passes_average_the_logits(tmp_path, mirrored, network):
    path, roi = scan(tmp_path / "case.nii.gz"), (8, 8, 12)
    ckpt = checkpoint(tmp_path / "m.ckpt", network=network, target=(16, 16, 24))  # where both sides' windows agree
    (model,) = load_models([ckpt], choose_device("cpu"))
    (prepared,) = prepare([model], [path], "case").inputs
    found = scan_features(
        model, prepared, InferenceOptions(mirrored, roi, precision="32"), ((14, 17, 11), nib.load(path).affine)
    )
    expected = []
    axes = ["xyz".index(letter) + 1 for letter in mirrored]
    for flipped in (subset for n in range(len(axes) + 1) for subset in itertools.combinations(axes, n)):
        logits = monai_windows(model, prepared.image.flip(flipped), roi).flip(flipped)
        expected.append(logits[[0, 1, 3, 2]] if 1 in flipped else logits)
    assert isinstance(found, FeatureStream)
    torch.testing.assert_close(all_logits(found), torch.stack(expected).mean(0), atol=1e-4, rtol=1e-3)


def test_at_most_two_sets_of_features_are_kept_for_any_number_of_mirrored_passes(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz")
    (model,) = load_models([run], choose_device("cpu"))
    (prepared,) = prepare([model], [path], "case").inputs
    grid = ((14, 17, 11), nib.load(path).affine)
    n_features = model.network.head.in_channels
    for mirrored, n_sets in (("", 1), ("yz", 1), ("x", 2), ("xyz", 2)):
        found = scan_features(model, prepared, InferenceOptions(mirrored, precision="32"), grid)
        assert found.features.shape == (n_sets * n_features, *prepared.image.shape[1:])


def test_windows_that_come_slice_by_slice_segment_as_all_at_once(run, tmp_path):
    path = scan(tmp_path / "case.nii.gz", shape=(14, 17, 70))
    (model,) = load_models([run], choose_device("cpu"))
    (prepared,) = prepare([model], [path], "case").inputs
    affine, roi = nib.load(path).affine, (12, 12, 8)
    predicted([run], [path], tmp_path / "out", roi=roi)
    logits = monai_windows(model, prepared.image, roi)
    expected = restore([FeatureMap(logits, prepared.affine)], (14, 17, 70), affine).segmentation
    assert np.mean(voxels(tmp_path / "out" / "case.nii.gz") != expected) < 0.02  # MONAI's last window lies elsewhere


@pytest.mark.parametrize("where", ["features", "head"])
def test_a_network_that_yields_nan_fails_the_case_instead_of_finding_only_background(tmp_path, where):
    path = checkpoint(tmp_path / "nan.ckpt")
    saved = torch.load(path, weights_only=True)
    names = [name for name in saved["state_dict"] if name.endswith("weight")]
    name = names[0] if where == "features" else next(n for n in names if n.startswith("head"))
    saved["state_dict"][name].view(-1)[0] = torch.nan
    torch.save(saved, path)
    report = predicted([path], [scan(tmp_path / "case.nii.gz")], tmp_path / "out")
    assert report.n_failed == 1
    assert f"{path}: its network gives NaN or infinite values" in report.cases[0].error
    assert not (tmp_path / "out" / "case.nii.gz").exists()


def test_what_a_mirror_exchanges_is_said(run):
    models = load_models([run], choose_device("cpu"))
    assert "kidney_left with kidney_right" in exchanged_in_words("xy", models)
    assert exchanged_in_words("y", models) == ""


def test_a_window_that_pooling_leaves_nothing_of_is_refused_with_one_that_the_network_takes(tmp_path):
    network = {"_target_": "BasicUNet", "features": [4, 4, 4, 8, 8, 4]}
    run = checkpoint(tmp_path / "m.ckpt", network=network, target=(32, 32, 32))
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    with pytest.raises(NetworkError, match=r"roi 8 32 24: .* network of run0 takes, such as 16 32 24, found"):
        predicted([run], [path], out, roi=(8, 32, 24))
    assert predicted([run], [path], out, roi=[16, 32, 24]).n_done == 1  # a list, too, from Python
