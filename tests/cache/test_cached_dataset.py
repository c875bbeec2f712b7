"""The cache as a data set: items are held against the chain itself, nibabel and torch's loaders."""

from __future__ import annotations

import io
import struct
import zlib
from multiprocessing.reduction import ForkingPickler

import monai.data
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    RandFlipd,
    RandGaussianNoised,
)

from pipeline.cache import entry as cache_entry
from pipeline.cache.cached_dataset import CachedDataset
from pipeline.cache.entry import CacheError
from tests.support.cached_cases import N_CLASSES, SIZE, Note, claim, entries, load_with_nibabel, make_chain, read
from transforms.io.load import LoadVolumed


def noisy() -> Compose:
    return Compose([RandGaussianNoised("image", prob=1.0), RandFlipd(["image", "label"], prob=0.5, spatial_axis=2)])


def test_an_item_is_what_the_chain_returns(make, items):
    dataset = make()
    dataset.build()
    for index, item in enumerate(items):
        expected, found = make_chain()(item), dataset[index]
        assert set(found) == {"image", "label", "case"}
        assert found["case"] == item["case"]
        assert isinstance(found["image"], MetaTensor)
        assert found["image"].dtype == torch.float32
        assert found["label"].dtype == torch.uint8
        span = float(expected["image"].max() - expected["image"].min())
        torch.testing.assert_close(found["image"], expected["image"], rtol=0, atol=span / 131070 + 1e-7)
        torch.testing.assert_close(found["label"], expected["label"], rtol=0, atol=0)
        assert np.array_equal(found["image"].affine, expected["image"].affine)
        assert np.array_equal(found["label"].affine, expected["image"].affine)


def test_the_geometry_of_the_source_travels_with_the_item(make, items):
    image = make()[1]["image"]
    source = read(items[1]["image"])
    assert image.meta["modality"] == "CT"
    np.testing.assert_array_equal(image.meta["spatial_shape"], source.shape)
    np.testing.assert_allclose(image.meta["original_affine"], source.affine)


def test_class_voxels_are_those_of_the_prepared_label(make, items):
    dataset = make()
    for index, item in enumerate(items):
        label = make_chain()(item)["label"].numpy()
        counts = dataset.class_voxels(index)
        assert counts.dtype == np.int64
        assert counts.tolist() == [int((label == value).sum()) for value in range(N_CLASSES)]


def test_a_case_without_label_has_none(make, items):
    image_only = Compose([load_with_nibabel, CastToTyped("image", torch.float32)])
    dataset = make([{key: items[0][key] for key in ("image", "case")} | {"label": None}], chain=image_only)
    assert set(dataset[0]) == {"image", "case"}
    with pytest.raises(CacheError, match="case body_00: it has no label"):
        dataset.class_voxels(0)


def test_real_scans_come_back_as_nibabel_reads_them(shared_data, tmp_path):
    folder = shared_data / "hippocampus"
    names = sorted(path.name for path in (folder / "labelsTr").glob("*.nii.gz"))[:3]
    items = [
        {
            "image": folder / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz"),
            "label": folder / "labelsTr" / name,
            "case": name,
        }
        for name in names
    ]
    dataset = CachedDataset(items, LoadVolumed(), folder=tmp_path / "cache", key={}, n_classes=3)
    dataset.build(workers=1)
    for index, item in enumerate(items):
        image, label = read(item["image"]), np.asarray(read(item["label"]).dataobj)
        voxels = image.get_fdata()
        bound = np.ptp(voxels) / 131070 + 2.0**-23 * np.abs(voxels).max()
        assert np.abs(dataset[index]["image"].numpy()[0] - voxels).max() <= bound
        assert np.array_equal(dataset[index]["label"].numpy()[0], label)
        assert dataset.class_voxels(index).tolist() == np.bincount(label.astype(int).ravel(), minlength=3).tolist()
        np.testing.assert_allclose(dataset[index]["image"].affine, image.affine)


def bomb() -> bytes:
    """A pickle that would make a folder; protocol 0, written by hand."""
    return b"cos\nmkdir\n(S'exploded'\ntR."


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, image=np.zeros((1, 4, 4, 4)))
    return file.getvalue()


HOSTILE = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 100,
    "pickle": bomb(),
    "npz": npz(),
    "magic alone": b"BODYCASE",
    "a header of 4 GB": struct.pack("<8sIII", b"BODYCASE", 1, 2**32 - 1, 0),
    "a later format": struct.pack("<8sIII", b"BODYCASE", 9, 2, 0) + b"{}",
    "no fields": claim(),
    "a list": cache_entry.PREFIX.pack(b"BODYCASE", 1, 2, zlib.crc32(b"[]")) + b"[]",
    "deep nesting": cache_entry.PREFIX.pack(b"BODYCASE", 1, 90000, zlib.crc32(b"[" * 90000)) + b"[" * 90000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_entry_is_refused_and_prepared_again(make, met, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    dataset = make()
    expected = dataset[0]["image"]
    entries(dataset)[0].write_bytes(content)
    assert torch.equal(dataset[0]["image"], expected)
    assert met() == ["body_00", "body_00"]
    assert not (tmp_path / "exploded").exists()


def test_an_item_that_fails_raises_the_chains_own_error(make, met):
    with pytest.raises(ValueError, match=r"^case body_01: expected a body, found a cat; rescan$"):
        make(note=Note(met.path, bad=("body_01",)))[1]


def order(dataset: CachedDataset, epoch: int) -> list[tuple[int, int]]:
    return [(epoch, int(index)) for index in np.random.default_rng(epoch).permutation(len(dataset))]


def gathered(loader) -> dict:
    """{case: voxels} of all batches."""
    found = {}
    for batch in loader:
        for case, image, label in zip(batch["case"], batch["image"], batch["label"], strict=True):
            found[case] = image.numpy().tobytes() + label.numpy().tobytes()
    return found


@pytest.mark.parametrize("loader", [monai.data.DataLoader, torch.utils.data.DataLoader])
def test_workers_and_order_change_no_bit_of_the_augmentation(make, loader):
    dataset = make(transform=noisy(), seed=7)
    dataset.build()
    for epoch in (0, 1):
        alone = gathered(loader(dataset, batch_size=2, sampler=[(epoch, i) for i in range(5)], num_workers=0))
        shared = gathered(loader(dataset, batch_size=2, sampler=order(dataset, epoch), num_workers=2))
        assert alone == shared
        assert len(alone) == 5


def test_epochs_seeds_and_cases_are_augmented_differently(make):
    dataset = make(transform=noisy(), seed=7)
    noise = [dataset[epoch, index]["image"] - make()[index]["image"] for epoch in (0, 1) for index in (0, 1)]
    noise.append(make(transform=noisy(), seed=8)[0, 0]["image"] - make()[0]["image"])
    assert len({round(float(one.abs().sum()), 5) for one in noise}) == 5
    assert torch.equal(dataset[1, 0]["image"], dataset[1, 0]["image"])


def test_a_plain_index_draws_from_torchs_generator(make):
    dataset = make(transform=noisy())
    torch.manual_seed(3)
    first, second = dataset[0]["image"], dataset[0]["image"]
    torch.manual_seed(3)
    assert torch.equal(first, dataset[0]["image"])
    assert not torch.equal(first, second)


def test_a_batch_has_images_labels_affines_and_cases(make):
    batch = next(iter(monai.data.DataLoader(make(), batch_size=3, num_workers=0)))
    assert batch["image"].shape == batch["label"].shape == (3, 1, *SIZE)
    assert batch["image"].affine.shape == (3, 4, 4)
    assert batch["label"].dtype == torch.uint8
    assert batch["case"] == ["body_00", "body_01", "body_02"]


def test_workers_build_what_nobody_built_before(make, met):
    loader = monai.data.DataLoader(make(), sampler=[(0, i) for i in (4, 0, 4, 1)], num_workers=2)
    assert [batch["case"][0] for batch in loader] == ["body_04", "body_00", "body_04", "body_01"]
    assert met() == ["body_00", "body_01", "body_04"]


def test_what_is_returned_is_the_callers_own(make):
    dataset = make()
    before = dataset[0]
    dataset[0]["image"].zero_()
    dataset[0]["label"].zero_()
    assert torch.equal(dataset[0]["image"], before["image"])
    assert torch.equal(dataset[0]["label"], before["label"])


def test_the_data_set_can_be_sent_to_another_process_and_sliced(make):
    dataset = make()
    dataset.build()
    assert len(ForkingPickler.dumps(dataset)) < 20_000
    assert [item["case"] for item in dataset[1:3]] == ["body_01", "body_02"]
