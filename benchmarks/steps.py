"""Full training steps: a plain float32 loop with MONAI's loss against Lightning, autocast and the loss in slabs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.inputs import image_and_label
from benchmarks.measure import resident_bytes
from benchmarks.measurement import Measurement
from networks.body_net import BodyNet
from networks.registry import build_network
from pipeline.compute.devices import cpu_computes_in_bfloat16
from pipeline.compute.measuring import clock_s
from pipeline.compute.memory import forget_peak, peak_memory_bytes
from pipeline.config.settings import TrainingConfig
from pipeline.losses.dice_ce import DiceCE
from pipeline.training.lightning_module import SegmentationModule
from pipeline.training.schedule import Schedule

LR = 1e-4


def plain(
    network: str,
    size: Sequence[int],
    batch: int = 1,
    n_classes: int = 71,
    base_channels: int = 32,
    n_steps: int = 2,
) -> Measurement:
    """Steps of logits, MONAI's DiceCELoss and AdamW, in float32 and the default memory layout; the value is the first
    loss. The first step's time is left out: it warms up."""
    torch.manual_seed(0)
    net = plain_network(network, n_classes, base_channels)
    criterion, optimiser = (
        DiceCELoss(to_onehot_y=True, softmax=True, batch=True),
        torch.optim.AdamW(net.parameters(), lr=LR),
    )
    image, label = image_and_label(size, n_classes, batch)
    seconds, losses, peaks = [], [], []
    forget_peak()
    before = resident_bytes()
    for _ in range(n_steps):
        start = time.perf_counter()
        optimiser.zero_grad()
        loss = criterion(net(image), label)
        loss.backward()
        optimiser.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        peaks.append(peak_memory_bytes())
    facts = {"parameters": _n_parameters(net), "precision": "float32"}
    return _measurement(seconds, before, losses, peaks, facts)


def ours(
    network: str,
    size: Sequence[int],
    batch: int = 1,
    n_classes: int = 71,
    base_channels: int = 32,
    n_steps: int = 2,
    precision: str | None = None,
    compiled: bool = False,
    loss: Literal["slabs", "full logits"] = "slabs",
) -> Measurement:
    """The same steps as `bodyseg train` takes them, in bfloat16 where the processor has it (None).

    With the loss on full logits everything but the loss is the same.
    """
    torch.manual_seed(0)
    net = _our_network(network, n_classes, base_channels, size)
    image, label = image_and_label(size, n_classes, batch)
    batches: Any = [{"image": image, "label": label, "case": ["noise"] * batch}] * n_steps
    precision = precision or ("bf16-mixed" if cpu_computes_in_bfloat16() else "32-true")
    forget_peak()
    before = resident_bytes()
    machine = {"accelerator": "cpu", "precision": precision}
    loader = DataLoader(batches, batch_size=None)
    criterion = FullLogitsLoss() if loss == "full logits" else None
    clock = Clock()
    fit(net, loader, n_classes=n_classes, compiled=compiled, criterion=criterion, callbacks=[clock], **machine)
    facts = {"parameters": _n_parameters(net), "precision": precision}
    return _measurement(clock.seconds, before, clock.losses, clock.peaks, facts)


def _measurement(
    seconds: list[float], before: int, losses: list[float], peaks: list[int], facts: dict[str, Any]
) -> Measurement:
    peak = peak_memory_bytes()
    facts |= {"steps": len(seconds), "GB_after_2_steps": peaks[min(1, len(peaks) - 1)] / 1e9}
    return Measurement(seconds[1:] or seconds, max(0, peak - before), peak, losses[:1], facts)


def plain_network(name: str, n_classes: int, base_channels: int) -> nn.Module:
    """BodyNet, or MONAI's residual UNet of about its size."""
    if name == "body_net":
        return BodyNet(1, n_classes, base_channels)
    return UNet(in_channels=1, out_channels=n_classes, **_unet(base_channels))


def _our_network(name: str, n_classes: int, base_channels: int, size: Sequence[int]) -> nn.Module:
    """The same network as the registry builds it, of the same weights at the same seed."""
    spec = None if name == "body_net" else {"_target_": "UNet", **_unet(base_channels)}
    return build_network(spec, n_classes=n_classes, base_channels=base_channels, target_size=size)


def _unet(base_channels: int) -> dict[str, Any]:
    """MONAI's residual UNet that is as large as BodyNet: 19.5 million parameters at 32 channels and 71 classes."""
    channels = [base_channels * 2**level for level in range(5)]
    return {"spatial_dims": 3, "channels": channels, "strides": [2, 2, 2, 2], "num_res_units": 2}


def _n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


class FullLogitsLoss(nn.Module):
    """MONAI's DiceCELoss on full-size logits, called as the loss in slabs; without the accuracy, which costs nothing
    there and an argmax here."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)

    def forward(self, features: Tensor, head: nn.Module | None, label: Tensor, **_: Any) -> DiceCE:
        loss = self.criterion(features if head is None else head(features), label)
        n_voxels = torch.tensor(label.numel(), device=loss.device)
        return DiceCE(loss, torch.zeros_like(n_voxels), n_voxels)


class Clock(pl.Callback):
    """Takes every step's time and loss, and the peak of memory until its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peaks: list[int] = []
        self._started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = clock_s()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.seconds.append(clock_s() - self._started)
        self.losses.append(float(outputs["loss"]))
        self.peaks.append(peak_memory_bytes())


def fit(
    network: nn.Module,
    batches: Iterable | pl.LightningDataModule,
    *,
    n_classes: int,
    accelerator: str,
    precision: Any,
    compiled: bool = False,
    criterion: nn.Module | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train through Lightning and SegmentationModule for one epoch of `batches`; a `criterion` replaces its loss."""
    source = "datamodule" if isinstance(batches, pl.LightningDataModule) else "train_dataloaders"
    module = SegmentationModule(
        network,
        n_classes=n_classes,
        schedule=Schedule(LR),
        compile_features=compiled,
    )
    if criterion is not None:
        module.criterion = criterion
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        max_epochs=1,
        gradient_clip_val=TrainingConfig().gradient_clip or None,
        callbacks=[*callbacks],
        logger=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, **{source: batches})
