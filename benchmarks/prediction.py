"""One scan from file to file through the same network with the same weights, by each program's own inference code.

MONAI's, nnU-Net's and ours read the same CT, resample it to the same grid, send the same windows through the network in
float32, bring the result back onto the scan's grid and write it as compressed NIfTI. The network is a U-Net from torch
alone with random weights, of three quarters of BodyNet's arithmetic. nnU-Net runs in an environment of its own, see
`nnunet_prediction`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Resized,
    SaveImaged,
    ScaleIntensityRanged,
)
from rich.console import Console

from benchmarks.first_result import held_against_first
from benchmarks.inputs import N_PHANTOM_CLASSES, phantom
from benchmarks.measure import resident_bytes
from benchmarks.measurement import Measurement
from benchmarks.nnunet_prediction import write_model
from benchmarks.plain_unet import PlainUNet
from networks.body_net import BodyNet
from networks.checkpoint import CHECKPOINT_FORMAT
from networks.registry import network_settings
from pipeline.compute.memory import forget_peak, peak_memory_bytes
from pipeline.predict import PredictionOptions, predict
from transforms.chains import RAS, preprocessing_arguments

SCAN, CASE = "phantom_0000.nii.gz", "phantom"
SOURCE_MM, NETWORK_MM = (1.0, 1.0, 1.28), 1.6
"""Spacing of the scan and of the network's grid: sizes that divide, so that all programs have the same grid."""
OVERLAP = 0.5
NOISE_HU = 0.0
HU, MEAN_STD = (-1000.0, 1000.0), (0.0, 400.0)
"""Where intensities are clipped, and what becomes 0 and a step of 1."""
CLASS_NAMES = ["background", *(f"structure_{n}" for n in range(1, N_PHANTOM_CLASSES))]


def prepare(
    folder: str, source_size: Sequence[int], window: Sequence[int], base_channels: int = 24, n_levels: int = 5
) -> None:
    """Write the scan, and the network as a checkpoint of ours and as a model folder of nnU-Net's."""
    _write_scan(folder, source_size)
    arguments = {"input_channels": 1, "base_channels": base_channels, "n_levels": n_levels}
    torch.manual_seed(0)
    network = PlainUNet(num_classes=N_PHANTOM_CLASSES, **arguments)
    torch.nn.init.zeros_(network.head.bias)  # type: ignore[arg-type]  # it has one
    spec = {"_target_": "benchmarks.plain_unet.PlainUNet", **arguments, "num_classes": N_PHANTOM_CLASSES}
    _write_checkpoint(folder, network, spec, window, spacing_mm=[NETWORK_MM] * 3)
    write_model(
        Path(folder, "nnunet"),
        network.state_dict(),
        arguments,
        class_names=CLASS_NAMES,
        window=window,
        spacing_mm=NETWORK_MM,
        intensity={"percentile_00_5": HU[0], "percentile_99_5": HU[1], "mean": MEAN_STD[0], "std": MEAN_STD[1]},
    )


def prepare_whole(folder: str, source_size: Sequence[int], size: Sequence[int], base_channels: int = 32) -> None:
    """Write the scan and a checkpoint of BodyNet, untrained, as a training on whole scans in bfloat16 leaves it."""
    _write_scan(folder, source_size)
    torch.manual_seed(0)
    network = BodyNet(1, N_PHANTOM_CLASSES, base_channels)
    _write_checkpoint(folder, network, network_settings(network), size, precision="bf16-mixed")


def _write_scan(folder: str, source_size: Sequence[int]) -> None:
    """Write a CT that lies RAS, as int16: nnU-Net leaves a scan's axes as they are."""
    scans = Path(folder, "scans")
    scans.mkdir()
    image = nib.Nifti1Image(phantom(source_size, noise_hu=NOISE_HU).image.astype(np.int16), np.diag([*SOURCE_MM, 1.0]))
    nib.save(image, scans / SCAN)


def _write_checkpoint(
    folder: str,
    network: torch.nn.Module,
    spec: dict[str, Any],
    size: Sequence[int],
    *,
    spacing_mm: Sequence[float] | None = None,
    precision: str = "32-true",
) -> None:
    preprocessing = preprocessing_arguments(
        tuple(size), intensity="ct", window=HU, mean_std=MEAN_STD, spacing_mm=spacing_mm, with_label=False
    )
    del preprocessing["with_label"]
    content = {
        "format": CHECKPOINT_FORMAT,
        "state_dict": network.state_dict(),
        "network": spec,
        "preprocessing": preprocessing | {"label_values": list(range(N_PHANTOM_CLASSES))},
        "class_names": CLASS_NAMES,
        "channel_names": ["CT"],
        "precision": precision,
        "run": "untrained",
    }
    torch.save(content, Path(folder, "best_model.ckpt"))


@torch.no_grad()
def plain(folder: str, source_size: Sequence[int], window: Sequence[int]) -> Measurement:
    """MONAI's transforms, inferer and writer, as its bundles compose them."""
    checkpoint = torch.load(Path(folder, "best_model.ckpt"), weights_only=True)
    arguments = {name: value for name, value in checkpoint["network"].items() if name != "_target_"}
    network = PlainUNet(**arguments)
    network.load_state_dict(checkpoint["state_dict"])
    network.eval()
    keys, output = ["image"], Path(folder, "monai")
    size = [round(n * mm / NETWORK_MM) for n, mm in zip(source_size, SOURCE_MM, strict=True)]
    low, high = ((hu - MEAN_STD[0]) / MEAN_STD[1] for hu in HU)
    before = Compose(
        [
            LoadImaged(keys, reader="NibabelReader"),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=RAS),
            ScaleIntensityRanged(keys, HU[0], HU[1], low, high, clip=True),
            Resized(keys, size, mode="trilinear", align_corners=False),  # Spacingd's grid lies half a voxel off
        ]
    )
    after = Compose(
        [
            Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=output, output_postfix="", separate_folder=False, output_dtype=np.uint8),
        ]
    )
    with _measured() as (measured, clock):
        item: dict[str, Any] = before({"image": str(Path(folder, "scans", SCAN))})
        clock("read")
        logits = sliding_window_inference(
            item["image"][None], tuple(window), 1, network, overlap=OVERLAP, mode="gaussian", sigma_scale=0.125
        )
        assert isinstance(logits, MetaTensor)
        clock("network")
        after({"image": item["image"], "pred": logits[0]})
        del logits
        clock("export")
    return held_against_first(measured, folder, output / SCAN)


def ours(folder: str, precision: str = "auto", device: str = "cpu", **_: Any) -> Measurement:
    """What `bodyseg predict` does: in windows, or the whole scan at once, as the checkpoint says."""
    output = Path(folder, f"ours_{precision}")
    options = PredictionOptions(device=device, precision=precision, trust=True)
    with _measured() as (measured, _):
        report = predict(
            [Path(folder, "best_model.ckpt")], [Path(folder, "scans")], output, options, console=Console(quiet=True)
        )
    (record,) = report.cases
    if record.status != "done":
        raise RuntimeError(record.error)
    took = record.seconds or {}
    parts = {"read_s": took["read"], "network_s": took["network"], "export_s": took["restore"] + took["write"]}
    # The others have their network before the clock runs.
    measured.facts |= parts | {"load_s": measured.seconds[0] - sum(parts.values())}
    measured.seconds = [sum(parts.values())]
    return held_against_first(measured, folder, next(output.glob("*.nii.gz")))


@contextmanager
def _measured() -> Iterator[tuple[Measurement, Callable[[str], None]]]:
    """Measure what is done inside; calling what comes with it notes the seconds since it was called last."""
    forget_peak()
    before, found = resident_bytes(), Measurement([])
    started = last = time.perf_counter()

    def clock(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        found.facts[f"{name}_s"] = now - last
        last = now

    yield found, clock
    found.seconds = [time.perf_counter() - started]
    found.peak_bytes = peak_memory_bytes()
    found.extra_bytes = max(0, found.peak_bytes - before)
