"""On a GPU: step time, peak memory, share of the chip's measured bfloat16 matrix rate, and the wait for data."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

import torch
from monai.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import N_PHANTOM_CLASSES, image_and_label
from benchmarks.loading import cached, prepare
from benchmarks.measurement import Measurement, Skipped
from benchmarks.steps import fit
from networks.body_net import BodyNet
from pipeline.losses.dice_ce import SlabDiceCELoss
from transforms.chains import augmentation_chain

NO_GPU = "no GPU: not measured"
WORST_DIFFERENCE = 1e-2
"""Greatest |difference| / |value| of float32 gradients on the device from a CPU's, both without TF32."""


def prepare_if_gpu(folder: str, source_size: Sequence[int], size: Sequence[int]) -> None:
    """Write the scan and its cache entry, where there is a GPU to be kept busy."""
    if torch.cuda.is_available():
        prepare(folder, source_size, size)


def ours(
    folder: str,
    size: Sequence[int],
    batch: int = 1,
    base_channels: int = 32,
    n_steps: int = 20,
    device: str = "cuda",
    precision: str = "bf16-mixed",
    matrix_size: int = 8192,
) -> Measurement | Skipped:
    """Train BodyNet from the cache, augmented, in as many workers as there are cores; the first quarter warms up."""
    if device == "cuda" and not torch.cuda.is_available():
        return Skipped(NO_GPU)
    torch.manual_seed(0)
    difference = gradient_difference(device)
    if not difference < WORST_DIFFERENCE:
        return Skipped(f"gradients on {device} differ from the CPU's by {difference:.1%}: no time is worth taking")
    network = BodyNet(1, N_PHANTOM_CLASSES, base_channels)
    operations = _operations(network, size, batch)
    rate = _matrix_rate(device, matrix_size)
    cases = [f"phantom_{i}" for i in range(n_steps * batch)]
    dataset = cached(folder, size, cases, transform=augmentation_chain(size))
    workers = (os.cpu_count() or 1) if device == "cuda" else 0
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers, pin_memory=device == "cuda")
    accelerator = "gpu" if device == "cuda" else "cpu"
    clock = fit(network, loader, n_classes=N_PHANTOM_CLASSES, accelerator=accelerator, precision=precision)
    warm = len(clock.seconds) // 4
    seconds = statistics.median(clock.seconds[warm:])
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "matrix_tflops": rate / 1e12,
        "share_of_matrix_rate": operations / seconds / rate,
        "data_wait_s": statistics.median(clock.waits[warm:]),
        "workers": workers,
        "gradient_difference": difference,
    }
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return Measurement(clock.seconds[warm:], None, peak, [], facts)


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
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)
