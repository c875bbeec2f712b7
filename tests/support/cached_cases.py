"""Small cases, a chain of MONAI's own transforms that prepares them, and what a cache made of them."""

from __future__ import annotations

import json
import multiprocessing
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
)

from pipeline.cache import entry as cache_entry
from pipeline.cache.cached_dataset import CachedDataset

N_CLASSES = 5


SIZE = (12, 10, 14)


class Note:
    """A chain's first part that writes down every case it meets, in whichever process, and fails where told to."""

    def __init__(self, path: Path, bad: tuple[str, ...] = (), seconds: float = 0.0) -> None:
        self.path, self.bad, self.seconds = path, bad, seconds

    def __call__(self, item: dict) -> dict:
        time.sleep(self.seconds)
        with self.path.open("a") as file:
            file.write(f"{item['case']}\n")
        if item["case"] in self.bad:
            raise ValueError(f"case {item['case']}: expected a body, found a cat; rescan")
        return item


def load_with_nibabel(item: dict) -> dict:
    loaded = dict(item)
    for kind in ("image", "label"):
        if item.get(kind) is not None:
            volume = read(item[kind])
            affine = torch.from_numpy(volume.affine)
            meta = {"original_affine": affine.clone(), "spatial_shape": volume.shape, "modality": "CT"}
            loaded[kind] = MetaTensor(torch.from_numpy(volume.get_fdata())[None], affine=affine, meta=meta)
    return loaded


def read(path: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def make_chain(*first) -> Compose:
    keys = ["image", "label"]
    return Compose(
        [
            *first,
            load_with_nibabel,
            Orientationd(keys, "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True),
            Resized(keys, SIZE, mode=("trilinear", "nearest-exact")),
            CastToTyped(keys, (torch.float32, torch.uint8)),
        ]
    )


def write_case(folder: Path, name: str, seed: int) -> dict:
    """An oblique, flipped, anisotropic volume of its own size."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(9, 17, 3))
    affine = np.array([[-0.8, 0.1, 0, 40], [0.1, 0.8, 0.2, -30], [0, -0.2, 2.5, 7], [0, 0, 0, 1.0]])
    item: dict = {"case": name}
    for kind, array in (("image", rng.normal(0, 600, shape)), ("label", rng.integers(0, N_CLASSES, shape))):
        item[kind] = folder / f"{name}_{kind}.nii.gz"
        nib.Nifti1Image(array.astype(np.int16 if kind == "image" else np.uint8), affine).to_filename(item[kind])
    return item


class Met:
    """The cases that went through the chain, as often as they did."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> list[str]:
        return sorted(self.path.read_text().split()) if self.path.exists() else []


def entries(dataset: CachedDataset) -> list[Path]:
    return sorted(dataset.store.folder.glob("*.bodycase"))


def claim(**fields) -> bytes:
    """An entry whose header is well formed, checksum and all, but says what it likes."""
    header = json.dumps(fields).encode()
    return cache_entry.PREFIX.pack(b"BODYCASE", 1, len(header), zlib.crc32(header)) + header


FORK = multiprocessing.get_context("fork")


def build_in_process(dataset: CachedDataset, workers: int):
    process = FORK.Process(target=dataset.build, kwargs={"workers": workers})
    process.start()
    return process
