"""A tiny trained network, a scan for it, and what torch's own operations make of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from networks.checkpoint import load_network
from networks.registry import build_network, network_settings
from pipeline.predict import PredictionOptions, PredictionReport, predict
from transforms.chains import inference_chain, preprocessing_arguments

NAMES = ["background", "liver", "kidney_left", "kidney_right"]
TARGET = (16, 12, 20)
LOGITS_ONLY = {"_target_": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 2}
"""A network whose logits are its features: it has no head."""


def checkpoint(path: Path, seed=0, names=NAMES, target=TARGET, network=None, channels=("CT",), extra=None, **chain):
    """Write a best_model.ckpt in the contract's form, with random weights that make every class occur.

    `extra` replaces or adds entries; None removes one.
    """
    torch.manual_seed(seed)
    model = build_network(
        network,
        in_channels=len(channels),
        n_classes=len(names),
        base_channels=4,
        light=network is None,
        target_size=target,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": 1,
        "state_dict": model.state_dict(),
        "network": network_settings(model),
        "preprocessing": preprocessing_arguments(target, **chain),
        "class_names": list(names),
        "channel_names": list(channels),
        "flips": [],
        "run": f"run{seed}",
        "epoch": 1,
        "val_mIoU": 0.5,
    } | (extra or {})
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def run_folder(folder: Path) -> Path:
    """Make a run folder with no more than a checkpoint."""
    checkpoint(folder / "checkpoints" / "best_model.ckpt")
    return folder


def scan(path: Path, shape=(14, 17, 11), affine=None, seed=0) -> Path:
    """Write a scan with waves and noise, so that many classes occur."""
    values = np.random.default_rng(seed).normal(0, 300, shape)
    values = (values + 900 * np.sin(np.indices(shape).sum(0) / 3)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([-1, 2, 3, 1]) if affine is None else affine), path)
    return path


def scans(folder: Path, n: int) -> Path:
    """Write case0.nii.gz, case1.nii.gz, … into a folder."""
    for number in range(n):
        scan(folder / f"case{number}.nii.gz", seed=number)
    return folder


def predicted(runs, inputs, output: Path, console: Console | None = None, **options: Any) -> PredictionReport:
    """Predict on the CPU in float32, unless `options` say otherwise."""
    return predict(
        runs, inputs, output, PredictionOptions(**{"device": "cpu", "precision": "32", **options}), console=console
    )


def voxels(path: Path) -> np.ndarray:
    """What nibabel reads from a result."""
    return np.asarray(nib.load(path).dataobj)


def logits_by_torch(ckpt: Path, path: Path, flip=()) -> Tensor:
    """Full logits (C, I, J, K) on the source's grid, made with torch's own interpolation."""
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
