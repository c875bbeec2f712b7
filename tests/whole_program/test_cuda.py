"""Values and gradients on a GPU against a CPU's, for every operation that is ours; skipped where there is no GPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from networks import gpu_kernels
from networks.body_net import BodyNet
from networks.deep_supervision import Level
from networks.norm_act import norm_act, norm_act_conv
from networks.onednn_workaround import SafeConv3d
from networks.sliding_window import SlidingWindow
from pipeline.losses.deep_supervision import label_at_level
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.metrics.slab_argmax import segment_in_slabs
from pipeline.training.lightning_module import SegmentationModule, TrainingError
from pipeline.training.muon import hidden_matrices
from pipeline.training.optimisation import Optimisation
from pipeline.training.schedule import Schedule
from transforms.augment import RandomAugmentd, Strengths
from transforms.restore import FeatureMap, restore

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
# What rounding leaves: relative to the value, and to the largest value of the tensor
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def _exact_float32():
    """Without TF32: its ten bits of mantissa would hide what the tests are after."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def computed(device, dtypes, operation, *tensors):
    """The operation's result and the gradients for its inputs, in float64 on the CPU."""
    inputs = [t.to(device, dtype).requires_grad_() for t, dtype in zip(tensors, dtypes, strict=True)]
    result = operation(*inputs)
    weight = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view(result.shape).to(device, result.dtype)
    gradients = torch.autograd.grad((result * weight).sum(dtype=torch.float32), inputs)
    return [value.detach().double().cpu() for value in (result, *gradients)]


def assert_as_on_a_cpu(operation, dtype, *tensors, single=()):
    """Hold values and gradients against the CPU's in float64, from the same rounded inputs.

    Inputs whose positions are in `single` are float32 in half precision, as a layer's scale and shift are.
    """
    dtypes = [torch.float32 if i in single and dtype.itemsize < 4 else dtype for i in range(len(tensors))]
    rounded = [t.to(d).double() for t, d in zip(tensors, dtypes, strict=True)]
    expected = computed("cpu", [torch.float64] * len(tensors), operation, *rounded)
    for found, right in zip(computed(DEVICE, dtypes, operation, *rounded), expected, strict=True):
        rest = TOLERANCE[dtype]
        torch.testing.assert_close(found, right, rtol=rest, atol=rest * float(right.abs().max()))


def inputs_of_norm_act(layout):
    """Inputs whose normalised values keep away from 0: there rounding decides which slope the gradient has."""
    x = 3 * torch.randn(2, 8, 9, 12, 7, dtype=torch.float64) + 5
    scale, shift = torch.rand(8, dtype=torch.float64) + 0.5, torch.randn(8, dtype=torch.float64)
    normalised = partial(F.instance_norm, weight=scale, bias=shift)
    x[normalised(x).abs() < 0.03] += 0.5
    assert normalised(x).abs().min() > 0.02
    return x.contiguous(memory_format=layout), scale, shift


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS])
def test_norm_act_has_the_cpus_values_and_gradients(dtype, layout):
    assert_as_on_a_cpu(norm_act, dtype, *inputs_of_norm_act(layout), single=(1, 2))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2))])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS])
def test_norm_act_conv_has_the_cpus_values_and_gradients(dtype, layout, kernel, stride):
    tensors = (*inputs_of_norm_act(layout), torch.randn(4, 8, *kernel, dtype=torch.float64))

    def operation(*inputs):
        return norm_act_conv(*inputs, stride)

    assert_as_on_a_cpu(operation, dtype, *tensors, single=(1, 2))


@pytest.mark.parametrize("edge", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_small_volumes_are_convolved_rightly(dtype, edge):
    # What needs a workaround on a CPU is left to cuDNN here
    def operation(x, kernel):
        with torch.autocast(DEVICE, enabled=False):
            convolution = SafeConv3d(8, 4, 3, padding=1, bias=False, device=x.device, dtype=x.dtype)
            return convolution._conv_forward(x, kernel, None)

    x, kernel = torch.randn(1, 8, edge, edge + 1, 9, dtype=torch.float64), torch.randn(4, 8, 3, 3, 3).double()
    assert_as_on_a_cpu(operation, dtype, x, kernel)


def features_and_gradients(network, x, dtype):
    network.zero_grad()
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(x.device.type, dtype)
    with autocast:
        features = network.features(x)
    features.float().square().mean().backward()
    gradients = [p.grad.flatten().float().cpu() for p in network.parameters() if p.grad is not None]
    return features.detach().float().cpu(), torch.cat(gradients)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_body_net_has_the_cpus_values_and_gradients(dtype, channels_last, checkpointing):
    network = BodyNet(base_channels=8, checkpointing=checkpointing, channels_last=channels_last)
    x = torch.rand(2, 1, 40, 48, 33)
    # Reference: the CPU in float32. Half precision is held to what its mantissa leaves after thirty layers.
    expected = features_and_gradients(network, x, torch.float32)
    found = features_and_gradients(copy.deepcopy(network).to(DEVICE), x.to(DEVICE), dtype)
    rest = 1e-3 if dtype == torch.float32 else 0.05
    assert (found[0] - expected[0]).norm() < rest * expected[0].norm()
    assert (found[1] - expected[1]).norm() < 4 * rest * expected[1].norm()
    assert F.cosine_similarity(found[1], expected[1], dim=0) > 1 - rest


def loss_and_gradients(device, features, head, label, **options):
    head, leaf = copy.deepcopy(head).to(device), features.to(device, copy=True).requires_grad_()
    options = {"class_weights": [1, 2, 3, 4, 5]} | options
    loss = SlabDiceCELoss(memory_budget_mb=0.02, **options).to(device)
    found = loss(leaf, head, label.to(device))
    found.loss.backward()
    values = (found.loss, leaf.grad, head.weight.grad, head.bias.grad)
    return [value.detach().double().cpu() for value in values], (int(found.n_correct), int(found.n_voxels))


@pytest.mark.parametrize("label_type", [torch.uint8, torch.uint16, torch.int64])
@pytest.mark.parametrize("ignore_index", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS])
def test_the_slab_loss_has_the_cpus_value_gradients_and_counts(dtype, layout, ignore_index, label_type):
    features = torch.randn(2, 6, 11, 9, 13, dtype=dtype).contiguous(memory_format=layout)
    head = torch.nn.Conv3d(6, 5, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    label = torch.randint(0, 5, (2, 1, 11, 9, 13)).to(label_type)
    found, counts = loss_and_gradients(DEVICE, features, head, label, ignore_index=ignore_index)
    expected, right = loss_and_gradients("cpu", features, head, label, ignore_index=ignore_index)
    for value, reference in zip(found, expected, strict=True):
        rest = 1e-4 if dtype.itemsize > 2 else 2**-7  # features' gradients are rounded to their dtype
        torch.testing.assert_close(value, reference, rtol=rest, atol=rest * float(reference.abs().max()))
    assert counts == right


@pytest.mark.parametrize(("n_features", "n_classes"), [(32, 71), (16, 118), (60, 40), (3, 100), (64, 100)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_loss_of_many_classes_has_the_cpus_value_and_gradients(dtype, layout, n_features, n_classes):
    features = torch.randn(2, n_features, 11, 9, 13).to(dtype).contiguous(memory_format=layout)
    head = torch.nn.Conv3d(n_features, n_classes, 1)
    label = torch.randint(0, n_classes, (2, 1, 11, 9, 13))
    label[torch.rand(label.shape) < 0.1] = 255
    given = {"class_weights": torch.rand(n_classes), "ignore_index": 255}
    found, counts = loss_and_gradients(DEVICE, features, head, label.to(torch.uint8), **given)
    expected, right = loss_and_gradients("cpu", features, head, label.to(torch.uint8), **given)
    for value, reference in zip(found, expected, strict=True):
        rest = 1e-4 if value.ndim != features.ndim or dtype.itemsize > 2 else 2**-7  # only these are rounded to dtype
        torch.testing.assert_close(value, reference, rtol=rest, atol=rest * float(reference.abs().max()))
    assert counts == right


def test_kernels_of_ours_run_where_triton_compiles():
    pytest.importorskip("triton")
    if torch.cuda.get_device_capability() < gpu_kernels.OLDEST:
        pytest.skip("an older GPU than the kernels are made for")
    assert gpu_kernels.run_on(torch.zeros(1, device=DEVICE))
    assert not gpu_kernels.run_on(torch.zeros(1, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize("n_classes", [71, 300])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_argmax_in_slabs_is_the_cpus(dtype, layout, n_classes):
    features = torch.randn(2, 6, 11, 9, 13, dtype=dtype).contiguous(memory_format=layout)
    head = torch.nn.Conv3d(6, n_classes, 1)
    expected = segment_in_slabs(features, head).int()
    found = segment_in_slabs(features.to(DEVICE), copy.deepcopy(head).to(DEVICE)).cpu().int()
    assert (found != expected).float().mean() < 1e-3  # ties in rounding alone


@pytest.mark.parametrize("n_maps", [1, 2])  # logits; and sums of probabilities, of which softmax overwrites its input
@pytest.mark.parametrize("n_classes", [71, 300])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_restoring_from_features_of_a_gpu_gives_the_cpus_segmentation(dtype, n_classes, n_maps):
    affine, source = np.diag([2.0, 2, 2, 1]), np.diag([0.9, 1.1, 2.5, 1])
    maps = [
        (torch.randn(6, 10, 12, 9).to(dtype), torch.randn(n_classes, 6), torch.randn(n_classes)) for _ in range(n_maps)
    ]

    def restored(device):
        on_device = [[value.to(device) for value in one] for one in maps]
        found = [FeatureMap(features.to(dtype), affine, *head) for features, *head in on_device]
        return restore(found, (20, 19, 7), source, probabilities_of=[1] if n_maps > 1 else [])

    found, expected = restored(DEVICE), restored("cpu")
    assert np.mean(found.segmentation != expected.segmentation) < 1e-3
    for c, probability in expected.probabilities.items():
        assert np.abs(found.probabilities[c].astype(int) - probability.astype(int)).max() <= 1


def test_windows_on_a_gpu_give_the_cpus_features():
    network, image = BodyNet(base_channels=8).eval(), torch.rand(1, 40, 36, 50)

    def blended(device):
        on_device = copy.deepcopy(network).to(device)
        window = SlidingWindow(torch.no_grad()(on_device.features), image, (32, 32, 32), device=torch.device(device))
        return torch.cat([window.slices(k, k + 10) for k in range(0, 50, 10)], dim=-1).cpu()

    torch.testing.assert_close(blended(DEVICE), blended("cpu"), rtol=1e-3, atol=1e-3)


def test_augmentation_on_the_device_is_the_cpus_but_for_the_noise():
    size = (20, 24, 18)
    augment = RandomAugmentd(
        size,
        Strengths(spatial_probability=1, intensity_probability=1, noise=0),
        class_names=["background", "kidney_left", "kidney_right"],
        flips=(0, 1, 2),
        on_device=True,
    )
    augment.set_random_state(5)
    case = {"image": torch.rand(1, *size), "label": torch.randint(0, 3, (1, *size), dtype=torch.uint8)}
    drawn = [augment(case)["draw"] for _ in range(4)]
    batch = {key: torch.stack([value] * 4) for key, value in case.items()}
    expected = augment.apply_to_batch({**{key: value.clone() for key, value in batch.items()}, "draw": drawn})
    found = augment.apply_to_batch({**{key: value.to(DEVICE) for key, value in batch.items()}, "draw": drawn})
    torch.testing.assert_close(found["image"].cpu(), expected["image"], rtol=1e-3, atol=1e-4)
    assert (found["label"].cpu() != expected["label"]).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
def test_labels_at_a_coarse_level_are_the_cpus(dtype):
    label = torch.randint(0, 200, (2, 1, 13, 8, 10)).to(dtype)
    level = Level(torch.empty(2, 4, 4, 2, 4), None, (4, 4, 4), (-1, 0, -3))
    found = label_at_level(label.to(DEVICE), level)
    assert found.dtype == dtype
    assert torch.equal(found.cpu(), label_at_level(label, level))


@pytest.mark.parametrize("matmul_precision", ["highest", "high"])
def test_muon_steps_as_on_a_cpu(matmul_precision):
    """Also where TF32 is allowed, whose rounded products would let small singular values explode."""
    network = BodyNet(1, 5, base_channels=8)
    gradients = [[torch.randn_like(p) for p in network.parameters()] for _ in range(3)]

    def stepped(device):
        trained = copy.deepcopy(network).to(device)
        optimiser = Optimisation("muon", weight_decay=0.1).build(
            trained.parameters(), lr=0.02, fused=device == DEVICE, matrices=hidden_matrices(trained, trained.head)
        )
        for drawn in gradients:
            for parameter, gradient in zip(trained.parameters(), drawn, strict=True):
                parameter.grad = gradient.to(device)
            optimiser.step()
        return [parameter.detach().cpu() for parameter in trained.parameters()]

    expected = stepped("cpu")
    torch.set_float32_matmul_precision(matmul_precision)
    for found, right in zip(stepped(DEVICE), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*(many workers|no `val_dataloader`|isinstance\\(treespec)")
@pytest.mark.parametrize("broken", ["label", "image"])
def test_what_makes_a_loss_undefined_is_said_on_a_gpu_too(broken, tmp_path):
    """There the loss is looked at after the backward pass, and an unknown label when the loss is NaN."""
    batch = {"image": torch.rand(1, 1, 16, 16, 16), "label": torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)}
    if broken == "label":
        batch["label"][0, 0, 3, 4, 5] = 200
    else:
        batch["image"][0, 0, 3, 4, 5] = torch.nan
    module = SegmentationModule(BodyNet(1, 2, base_channels=4), n_classes=2, schedule=Schedule(1e-3))
    before = copy.deepcopy(module.state_dict())
    loader = DataLoader([batch | {"case": ["body_7"]}], batch_size=None)
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    expected = (ValueError, "found 200") if broken == "label" else (TrainingError, r"the loss is nan .*body_7")
    with pytest.raises(expected[0], match=expected[1]):
        trainer.fit(module, loader)
    for name, weights in module.state_dict().items():
        assert torch.equal(weights.cpu(), before[name])
