"""BodyNet against torch's own layers: size, values, gradients, memory kept, memory layouts and odd image sizes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, Resized, SaveImage
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from networks.body_net import BodyNet
from networks.errors import NetworkError
from networks.registry import build_network
from tests.support.like_cuda import LikeCuda


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def gradients(network, x, **autocast):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
        network.features(x).float().square().mean().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_the_documented_network_has_the_documented_size():
    n = parameters(BodyNet(in_channels=1, n_classes=71, base_channels=32, light=False))
    assert 20.4e6 < n < 20.6e6
    assert 75 < n * 4 / 2**20 < 85  # MB of a checkpoint


def test_the_light_form_costs_less_than_a_third():
    full, light = BodyNet(), BodyNet(light=True)
    assert parameters(light) < parameters(full) / 3
    flops = []
    for network in (full, light):
        with FlopCounterMode(display=False) as counter:
            network.features(torch.rand(1, 1, 16, 16, 32)).mean().backward()
        flops.append(counter.get_total_flops())
    assert flops[1] < flops[0] / 4


@pytest.mark.parametrize("size", [(24, 24, 24), (37, 41, 29), (32, 33, 64), (5, 1, 7)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_any_image_size_comes_out_as_it_went_in(size, precision):
    network = BodyNet(in_channels=2, n_classes=3, base_channels=4)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        features = network.features(torch.rand(2, 2, *size))
        logits = network(torch.rand(1, 2, *size))
    assert features.shape == (2, 4, *size)
    assert features.dtype == getattr(torch, precision)
    assert logits.shape == (1, 3, *size)
    features.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_the_network_is_its_head_on_its_features():
    network, x = BodyNet(n_classes=5, base_channels=8).eval(), torch.rand(2, 1, 17, 20, 33)
    assert torch.equal(network(x), network.head(network.features(x)))
    assert network.head.kernel_size == (1, 1, 1)


def test_every_parameter_is_trained():
    network = BodyNet(n_classes=2, base_channels=4)
    network(torch.rand(1, 1, 64, 64, 64)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


STRIDES = [[1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]


def test_strides_and_kernels_decide_depth_and_sizes():
    network, seen = BodyNet(base_channels=4, strides=STRIDES, kernels=KERNELS), []
    for level in network.encoder:
        level.register_forward_hook(lambda module, inputs, result: seen.append(tuple(result.shape[2:])))
    assert network.features(torch.rand(1, 1, 9, 21, 16)).shape == (1, 4, 9, 21, 16)
    assert seen == [(9, 11, 8), (5, 6, 4)]
    assert network.stem.kernel_size == network.decoder[-1].block.convolutions[0].conv.kernel_size == (1, 3, 3)


def test_a_stride_of_one_and_a_kernel_of_one_let_slices_apart():
    # Without a step along I and with kernels 1×3×3 everywhere, slices are only joined by the norms' statistics
    network = BodyNet(base_channels=4, strides=[[1, 2, 2]], kernels=[[1, 3, 3], [1, 3, 3]]).eval()
    x = torch.rand(1, 1, 6, 16, 16)
    mirrored = network.features(x.flip(2)).flip(2)
    torch.testing.assert_close(mirrored, network.features(x))


def test_strides_travel_with_the_settings_and_the_default_has_none():
    settings = BodyNet(base_channels=4, strides=STRIDES, kernels=KERNELS).settings
    again = build_network(dict(settings), base_channels=4, target_size=(16, 32, 32))
    assert again.settings == settings == settings | {"strides": STRIDES, "kernels": KERNELS}
    assert not {"strides", "kernels"} & BodyNet().settings.keys()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"strides": [[3, 2, 2]]}, r"strides holds \[3, 2, 2\]; expected three numbers out of \(1, 2\)"),
        ({"strides": [[2, 2]]}, r"strides holds \[2, 2\]"),
        ({"strides": [[2, 2, 2]], "kernels": [[3, 3, 3]]}, "1 strides and 1 kernels"),
        ({"strides": [[2, 2, 2]] * 6}, "expected at most 5 strides"),
    ],
)
def test_impossible_strides_are_refused_by_name(arguments, text):
    with pytest.raises(NetworkError, match=text):
        BodyNet(**arguments)


def test_samples_of_a_batch_do_not_meet():
    network, x = BodyNet(base_channels=4), torch.rand(3, 1, 16, 24, 16)
    alone = torch.cat([network.features(x[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(network.features(x), alone)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_has_the_same_gradients_where_batch_norm_works_as_on_cuda(channels_last, checkpointing):
    network = BodyNet(base_channels=4, checkpointing=checkpointing, channels_last=channels_last).double()
    x = torch.rand(2, 1, 34, 40, 36, dtype=torch.float64)  # two voxels a side at the bottom: one has no deviation
    expected = gradients(network, x)
    with LikeCuda() as cuda:
        found = gradients(network, x)
    assert cuda.n_normalised > 0
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_layout_does_not_change_the_values(channels_last):
    network, x = BodyNet(base_channels=8), torch.rand(2, 1, 24, 33, 40)
    expected = network.features(x)
    network.channels_last = channels_last
    found = network.features(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)


def test_half_precision_runs_channels_last_from_the_stem_on():
    network = BodyNet(base_channels=4)
    with torch.autocast("cpu", torch.bfloat16):
        features = network.features(torch.rand(1, 1, 40, 40, 40))
    assert features.is_contiguous(memory_format=torch.channels_last_3d)


def test_bfloat16_is_close_to_float32():
    network, x = BodyNet(base_channels=8), torch.rand(1, 1, 32, 40, 48)
    with torch.autocast("cpu", torch.bfloat16):
        features = network.features(x).float()
    expected = network.features(x)
    assert (features - expected).norm() / expected.norm() < 0.03
    exact, rounded = gradients(network, x), gradients(network, x, bfloat16=True)
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.99


@pytest.mark.parametrize("autocast", [{}, {"bfloat16": True}])
def test_checkpointing_changes_no_gradient(autocast):
    network, x = BodyNet(base_channels=8), torch.rand(1, 1, 20, 32, 24)
    plain = gradients(network, x, **autocast)
    network.checkpointing = True
    assert torch.equal(gradients(network, x, **autocast), plain)


def kept_for_backward(network, x):
    """Voxels × channels that autograd keeps, in tensors of the image's full resolution."""
    kept = {}

    def keep(tensor):
        if tensor.shape[2:] == x.shape[2:]:
            kept[tensor.data_ptr()] = tensor.shape[1]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network.features(x)
    del features
    return sum(kept.values())


def test_four_tensors_of_full_resolution_are_kept_and_two_with_checkpointing():
    x = torch.rand(1, 1, 16, 16, 16)
    # the image; then the stem's output, the sum with the skip, and what the two convolutions of the last block return
    assert kept_for_backward(BodyNet(base_channels=8), x) == 1 + 4 * 8
    assert kept_for_backward(BodyNet(base_channels=8, checkpointing=True), x) == 1 + 2 * 8


def test_the_same_seed_gives_the_same_bits():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        network = BodyNet(base_channels=8)
        found.append(gradients(network, torch.rand(2, 1, 24, 24, 32), bfloat16=True))
    assert torch.equal(*found)


def test_without_gradients_the_values_are_the_same():
    network, x = BodyNet(base_channels=8), torch.rand(1, 1, 16, 20, 24)
    with torch.inference_mode():
        found = network.features(x)
    assert torch.equal(found, network.features(x))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"base_channels": 0}, "base_channels is 0; expected a whole number of at least 2"),
        ({"n_classes": 0}, "n_classes is 0"),
    ],
)
def test_impossible_sizes_are_refused_by_name(arguments, text):
    with pytest.raises(NetworkError, match=text):
        BodyNet(**arguments)


def test_a_metatensor_from_monais_chains_goes_in_like_a_tensor():
    network = BodyNet(n_classes=3, base_channels=4).eval()
    image = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        assert torch.equal(network(MetaTensor(image)), network(image))
        assert type(network(image)) is torch.Tensor
        assert type(network.features(MetaTensor(image))) is torch.Tensor


@pytest.fixture
def scan(tmp_path):
    """A small oblique volume on disk, and its affine."""
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.diag([-1.2, 0.9, 2.5])
    affine = np.block([[turn, np.array([[10.0], [-20], [30]])], [np.zeros((1, 3)), np.ones((1, 1))]])
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 24, 14), np.float32), affine), tmp_path / "ct.nii")
    return tmp_path / "ct.nii", affine


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader.*")  # MONAI asks for every reader it could have
def test_monais_invertd_and_saver_put_its_prediction_back_onto_the_scan(scan, tmp_path):
    path, affine = scan
    keys = ["image"]
    chain = Compose(
        [
            LoadImaged(keys, reader="NibabelReader"),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Resized(keys, (16, 16, 32)),
        ]
    )
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False)
    saved = SaveImage(tmp_path, output_postfix="pred", output_ext=".nii", separate_folder=False, print_log=False)
    network = BodyNet(n_classes=3, base_channels=4).eval()
    for batch in DataLoader(Dataset([{"image": str(path)}], chain), batch_size=1):
        with torch.no_grad():
            logits = network(batch["image"])
        plain = network(batch["image"].as_tensor()).detach()
        # What a network of MONAI's own layers would have returned: the tensor, its affine and its history
        right = MetaTensor(plain[0], meta=decollate_batch(batch["image"])[0].meta)
        right.applied_operations = decollate_batch(batch["image"])[0].applied_operations
        (restored,) = [back(item)["pred"] for item in decollate_batch({**batch, "pred": logits})]
        expected = back({"image": decollate_batch(batch["image"])[0], "pred": right})["pred"]
    assert restored.shape == (3, 20, 24, 14)
    assert torch.equal(restored.as_tensor(), expected.as_tensor())
    np.testing.assert_allclose(restored.affine, affine, atol=1e-5)
    saved(restored)
    written = nib.load(tmp_path / "ct_pred.nii")
    assert written.shape[:3] == (20, 24, 14)
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)


def test_it_can_be_exported_as_torchs_own_operations():
    network, image = BodyNet(n_classes=3, base_channels=4).eval(), torch.rand(1, 1, 20, 24, 33)
    exported = torch.export.export(network, (image,))
    torch.testing.assert_close(exported.module()(image), network(image))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "aten.instance_norm.default" in names
    assert not any("native_batch_norm" in name for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_it_can_be_traced_as_torchs_own_operations():
    """As torch.onnx does without dynamo, its default before torch 2.9, and MONAI for its bundles.

    The deepest level has a single voxel.
    """
    network, image, other = BodyNet(n_classes=3, base_channels=4).eval(), *torch.rand(2, 1, 1, 16, 16, 16)
    traced = torch.jit.trace(network, image, check_trace=False)
    torch.testing.assert_close(traced(other), network(other))
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert {"aten::instance_norm", "aten::_convolution"} <= kinds
    assert not any("Python" in kind for kind in kinds)
