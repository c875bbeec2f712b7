"""On a GPU: step time, peak memory, share of the chip's measured bfloat16 matrix rate, and the wait for data."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import N_PHANTOM_CLASSES, image_and_label
from benchmarks.loading import cached, prepare
from benchmarks.measurement import Measurement, Skipped
from benchmarks.steps import FullLogitsLoss, fit, plain_network
from networks import gpu_kernels
from networks.body_net import BodyNet
from pipeline.compute.measuring import clock_s
from pipeline.losses.dice_ce import SlabDiceCELoss
from pipeline.training.data_workers import DataWorkers
from pipeline.training.datamodule import BodyData
from transforms.chains import augmentation_chain

NO_GPU = "no GPU: not measured"
WORST_DIFFERENCE = 1e-2
"""Greatest |difference| / |value| of float32 gradients on the device from a CPU's, both without TF32."""


def prepare_if_gpu(folder: str, source_size: Sequence[int], size: Sequence[int]) -> Skipped | None:
    """Write the scan and its cache entry; without a GPU nothing is measured."""
    if not torch.cuda.is_available():
        return Skipped(NO_GPU)
    prepare(folder, source_size, size)
    return None


def ours(
    folder: str,
    size: Sequence[int],
    batch: int = 1,
    base_channels: int = 32,
    n_steps: int = 24,
    device: str = "cuda",
    precision: str = "bf16-mixed",
    matrix_size: int = 8192,
    loss: Literal["slabs", "full logits"] = "slabs",
) -> Measurement | Skipped:
    """Train BodyNet as `bodyseg train` does: from the cache, read by as many workers as there are cores, augmented on
    the device; the first quarter warms up. With the loss on full logits everything but the loss is the same.

    "data_s" is what a step takes beyond one whose batch stays on the device, augmented.
    """
    torch.manual_seed(0)
    difference = gradient_difference(device)
    if not difference < WORST_DIFFERENCE:
        return Skipped(f"gradients on {device} differ from the CPU's by {difference:.1%}: no time is worth taking")
    network = BodyNet(1, N_PHANTOM_CLASSES, base_channels)
    operations = _operations(network, size, batch)
    rate = _matrix_rate(device, matrix_size)
    cases = [f"phantom_{i}" for i in range(n_steps * batch)]
    dataset = cached(folder, size, cases, transform=augmentation_chain(size, on_device=True))
    workers = (os.cpu_count() or 1) if device == "cuda" else 0
    prepared: Any = SimpleNamespace(train=dataset, patches=None)
    data = BodyData(prepared, batch_size=batch, seed=0, workers=DataWorkers(workers))
    machine: dict[str, Any] = {"accelerator": "gpu" if device == "cuda" else "cpu", "precision": precision}
    ends = _Ends()

    def seconds(batches: Any) -> list[float]:
        """From the end of a step to that of the next."""
        ends.s.clear()
        criterion = FullLogitsLoss() if loss == "full logits" else None
        fit(network, batches, n_classes=N_PHANTOM_CLASSES, criterion=criterion, callbacks=[ends], **machine)
        return [end - start for start, end in pairwise(ends.s)][n_steps // 4 :]

    taken = seconds(data)
    staying = seconds(DataLoader([ends.batch] * n_steps, batch_size=None))  # type: ignore[arg-type]
    each_s = statistics.median(taken)
    facts = {
        "matrix_tflops": rate / 1e12,
        "share_of_matrix_rate": operations / each_s / rate,
        "data_s": each_s - statistics.median(staying),
        "workers": workers,
        "kernels_of_ours": gpu_kernels.run_on(torch.zeros((), device=device)),
        "gradient_difference": difference,
    }
    return _measurement(taken, device, facts)


class _Ends(pl.Callback):
    """Notes when each step has ended, as a training sees it: the GPU may still be at its last kernels."""

    def __init__(self) -> None:
        self.s: list[float] = []
        self.batch: Any = None
        """The last batch, as the network gets it."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.s.append(time.perf_counter())
        self.batch = batch


def plain(
    network: str,
    folder: str,
    size: Sequence[int],
    batch: int = 1,
    base_channels: int = 32,
    n_steps: int = 20,
    device: str = "cuda",
) -> Measurement:
    """Train a MONAI network as its tutorials do, in bfloat16: logits, DiceCELoss, AdamW.

    The batch lies on the device and is the same in each step: nothing is loaded or augmented.
    """
    net = plain_network(network, N_PHANTOM_CLASSES, base_channels)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step(image: torch.Tensor, label: torch.Tensor) -> None:
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = criterion(net(image), label)
        loss.backward()
        optimiser.step()

    return _steps(net, step, cached(folder, size)[0], batch, n_steps, device)


def nnunet(
    folder: str, size: Sequence[int], batch: int = 1, base_channels: int = 32, n_steps: int = 20, device: str = "cuda"
) -> Measurement:
    """Train nnU-Net's network with its loss, optimiser, precision and settings of cuDNN, in this size and not compiled.

    PlainConvUNet of six levels (32 to 320 channels) with deep supervision, as its planner makes them for isotropic
    voxels; Dice + cross entropy at five levels, SGD with momentum, float16 with scaled gradients (nnUNetTrainer of
    nnunetv2 2.8). The batch lies on the device and is the same in each step.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    torch.backends.cudnn.benchmark = True
    net = PlainConvUNet(
        1,
        6,
        [min(320, base_channels * 2**level) for level in range(6)],
        nn.Conv3d,
        3,
        [1, 2, 2, 2, 2, 2],
        2,
        N_PHANTOM_CLASSES,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    criterion = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    weights = [2.0**-level for level in range(5)]
    weights[-1] = 0.0
    supervised = DeepSupervisionWrapper(criterion, [weight / sum(weights) for weight in weights])
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    scaler = torch.amp.GradScaler(device)

    def step(image: torch.Tensor, label: torch.Tensor) -> None:
        labels = [label.float()[..., :: 2**n, :: 2**n, :: 2**n] for n in range(5)]
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.float16):
            loss = supervised(net(image), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 12)
        scaler.step(optimiser)
        scaler.update()

    return _steps(net, step, cached(folder, size)[0], batch, n_steps, device)


def _steps(
    network: nn.Module,
    step: Callable[[torch.Tensor, torch.Tensor], None],
    case: dict[str, Any],
    batch: int,
    n_steps: int,
    device: str,
) -> Measurement:
    """Time steps on a batch of the same case, all together, so that none waits for the one before; the first quarter
    warms up."""
    network.to(device)
    image, label = (torch.stack([case[key].as_tensor()] * batch).to(device) for key in ("image", "label"))
    warm = n_steps // 4

    def take(n: int) -> None:
        for _ in range(n):
            step(image, label)

    take(warm)
    (seconds,) = _seconds(lambda: take(n_steps - warm), 1)
    return _measurement([seconds / (n_steps - warm)], device, {})


def _measurement(seconds: list[float], device: str, facts: dict[str, Any]) -> Measurement:
    on_gpu = device == "cuda"
    named = {"device": torch.cuda.get_device_name() if on_gpu else device}
    return Measurement(seconds, None, torch.cuda.max_memory_allocated() if on_gpu else None, [], named | facts)


def _seconds(work: Callable[[], Any], n: int) -> list[float]:
    seconds = []
    for _ in range(n):
        start = clock_s()
        work()
        seconds.append(clock_s() - start)
    return seconds


def gradient_difference(device: str) -> float:
    """|g − g_cpu| / |g_cpu| over all parameters of a BodyNet with its loss in slabs, in float32.

    Without TF32, whose ten bits of mantissa grow to 3.7 % through the layers and would hide what is looked for.
    """
    image, label = image_and_label([40, 48, 36], N_PHANTOM_CLASSES)
    network = BodyNet(1, N_PHANTOM_CLASSES, base_channels=8)

    def gradients(where: str) -> torch.Tensor:
        network.to(where).zero_grad()
        SlabDiceCELoss()(network.features(image.to(where)), network.head, label.to(where)).loss.backward()
        return torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = gradients("cpu")
        return float((gradients(device) - expected).norm() / expected.norm())


def _operations(network: BodyNet, size: Sequence[int], batch: int) -> float:
    """Floating-point operations of a step's convolutions and products, counted at an eighth of each edge's length.

    All of them run over voxels, so that they grow with the volume.
    """
    small = [max(16, n // 8) for n in size]
    image, label = image_and_label(small, N_PHANTOM_CLASSES)
    with FlopCounterMode(display=False) as counter:
        SlabDiceCELoss()(network.features(image), network.head, label).loss.backward()
    network.zero_grad()
    voxels = [torch.Size(shape).numel() for shape in (size, small)]
    return counter.get_total_flops() * batch * voxels[0] / voxels[1]


def _matrix_rate(device: str, n: int) -> float:
    """Best of ten bfloat16 products of square matrices, in operations a second."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(_seconds(lambda: a @ b, 10))
