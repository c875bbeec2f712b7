"""The cache of prepared cases: held against the chain itself, numpy, nibabel and the files' own bytes."""

from __future__ import annotations

import errno
import gzip
import io
import json
import multiprocessing
import os
import shutil
import signal
import struct
import time
import zlib
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import monai.data
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    Orientationd,
    RandFlipd,
    RandGaussianNoised,
    Resized,
    ScaleIntensityRanged,
)

from pipeline.cache import cached_dataset as cache
from pipeline.cache import entry as cache_entry
from pipeline.cache import folder as cache_folder
from pipeline.cache import key as cache_key
from pipeline.cache.cached_dataset import CacheBuildError, CachedDataset
from pipeline.cache.entry import CacheError
from pipeline.cache.folder import cache_info, prune
from transforms.io.load import LoadVolumed

N_CLASSES = 5
SIZE = (12, 10, 14)
FORK = multiprocessing.get_context("fork")


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


@pytest.fixture
def items(tmp_path) -> list[dict]:
    return [write_case(tmp_path, f"body_{n:02d}", n) for n in range(5)]


class Met:
    """The cases that went through the chain, as often as they did."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> list[str]:
        return sorted(self.path.read_text().split()) if self.path.exists() else []


@pytest.fixture
def met(tmp_path) -> Met:
    return Met(tmp_path / "met.txt")


@pytest.fixture
def make(tmp_path, items, met):
    def dataset(given=None, *, note=None, folder="cache", key=None, **more) -> CachedDataset:
        chain = make_chain(note or Note(met.path))
        options = {"key": key or {"size": SIZE}, "n_classes": N_CLASSES, **more}
        return CachedDataset(items if given is None else given, chain, folder=tmp_path / folder, **options)

    return dataset


def entries(dataset: CachedDataset) -> list[Path]:
    return sorted(dataset.folder.glob("*.bodycase"))


def noisy() -> Compose:
    return Compose([RandGaussianNoised("image", prob=1.0), RandFlipd(["image", "label"], prob=0.5, spatial_axis=2)])


def image_of(array: np.ndarray) -> dict:
    return {"image": MetaTensor(torch.from_numpy(array.astype(np.float32)))}


def encode(prepared: dict, name: str = "0" * 16 + "-" + "0" * 32):
    return cache_entry.encode(prepared, name=name, case="a", chain={}, n_classes=N_CLASSES)


# ---- what is read back


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


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).random((1, 8, 9, 10)),
        np.random.default_rng(1).normal(0, 1, (3, 8, 9, 10)) * np.array([1, 40, 1e-3]).reshape(3, 1, 1, 1),
        np.random.default_rng(2).normal(1e3, 2, (1, 8, 9, 10)),
        np.random.default_rng(3).normal(0, 1e30, (1, 8, 9, 10)),
        np.full((1, 8, 9, 10), -0.37),
    ],
    ids=["ct", "channels", "far from zero", "huge", "constant"],
)
def test_the_error_is_at_most_half_a_step_of_65535_and_below_that_of_float16(tmp_path, array):
    array = array.astype(np.float32)
    entry, payload = encode(image_of(array))
    path = tmp_path / f"{entry.name}.bodycase"
    cache_entry.write_entry(path, entry, payload)
    _, image, label = cache_entry.read_entry(path)
    assert label is None
    for channel, found in zip(array, image.numpy(), strict=True):
        span = float(channel.max()) - float(channel.min())
        error = np.abs(found.astype(np.float64) - channel)
        assert error.max() <= span / 131070 + 2.0**-23 * np.abs(channel).max()
        assert found.flat[channel.argmin()] == channel.min()
        with np.errstate(over="ignore"):
            assert error.max() <= np.abs(channel.astype(np.float16).astype(np.float64) - channel).max()


def test_zero_and_one_of_a_windowed_ct_stay_exact(tmp_path):
    entry, payload = encode(image_of(np.linspace(0, 1, 1000).reshape(1, 10, 10, 10)))
    cache_entry.write_entry(tmp_path / f"{entry.name}.bodycase", entry, payload)
    image = cache_entry.read_entry(tmp_path / f"{entry.name}.bodycase")[1]
    assert image.min() == 0
    assert image.max() == 1


def test_a_case_of_the_documented_size_takes_less_than_20_mb(tmp_path):
    shape = (1, 160, 160, 256)
    prepared = image_of(np.random.default_rng(0).random(shape, np.float32))
    entry, payload = encode({**prepared, "label": torch.zeros(shape, dtype=torch.uint8)})
    cache_entry.write_entry(tmp_path / f"{entry.name}.bodycase", entry, payload)
    assert (tmp_path / f"{entry.name}.bodycase").stat().st_size < 20e6


def test_labels_above_255_classes_stay_uint16(tmp_path):
    label = torch.from_numpy(np.arange(1000, dtype=np.uint16).reshape(1, 10, 10, 10))
    prepared = {**image_of(np.zeros((1, 10, 10, 10))), "label": label}
    entry, payload = cache_entry.encode(prepared, name="0", case="a", chain={}, n_classes=1000)
    cache_entry.write_entry(tmp_path / "0.bodycase", entry, payload)
    found = cache_entry.read_entry(tmp_path / "0.bodycase")[2]
    assert found is not None
    assert found.dtype == torch.uint16
    assert np.array_equal(found.numpy(), label.numpy())


def test_class_voxels_are_those_of_the_prepared_label(make, items):
    dataset = make()
    for index, item in enumerate(items):
        label = make_chain()(item)["label"].numpy()
        counts = dataset.class_voxels(index)
        assert counts.dtype == np.int64
        assert counts.tolist() == [int((label == value).sum()) for value in range(N_CLASSES)]


def test_ignored_voxels_are_kept_and_not_counted():
    label = torch.tensor([0, 1, 255, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    entry, _ = encode({**image_of(np.zeros((1, 1, 2, 2))), "label": label})
    assert entry.class_voxels == (1, 1, 0, 0, 0)


def test_a_case_without_label_has_none(make, items):
    image_only = Compose([load_with_nibabel, CastToTyped("image", torch.float32)])
    dataset = make([{key: items[0][key] for key in ("image", "case")} | {"label": None}])
    dataset.chain = image_only
    assert set(dataset[0]) == {"image", "case"}
    with pytest.raises(CacheError, match="case body_00: it has no label"):
        dataset.class_voxels(0)


def test_equal_voxels_have_equal_hashes_whatever_file_holds_them(make, items, tmp_path):
    other = tmp_path / "other.nii.gz"
    other.write_bytes(gzip.compress(gzip.decompress(items[0]["image"].read_bytes()), 1))
    dataset = make([items[0], {**items[0], "image": other, "case": "again"}, items[1]])
    dataset.build()
    assert len(entries(dataset)) == 3
    assert dataset.voxel_hash(0) == dataset.voxel_hash(1) != dataset.voxel_hash(2)


def test_constant_images_of_other_values_have_other_hashes():
    hashes = {encode(image_of(np.full((1, 4, 4, 4), value)))[0].voxel_hash for value in (0.0, 0.5)}
    assert len(hashes) == 2


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


# ---- when an entry is built again


def test_the_second_start_builds_nothing_and_reads_no_source(make, met, items, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    make().build()
    assert met() == sorted(item["case"] for item in items)
    monkeypatch.setattr(cache_key.hashlib, "file_digest", lambda *_: pytest.fail("a source was read again"))
    dataset = make()
    dataset.build()
    assert dataset[3]["case"] == "body_03"
    assert len(met()) == len(items)


def test_a_changed_file_is_prepared_again_even_with_its_old_time_and_size(make, met, items, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    path = items[0]["label"].with_suffix("")
    read(items[0]["label"]).to_filename(path)
    items[0]["label"] = path
    before = make(items[:1])[0]["label"]
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[352:] = bytes((value + 1) % N_CLASSES for value in raw[352:])  # in place, behind the header
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = make(items[:1])[0]["label"]
    assert torch.equal(after.as_tensor(), (before.as_tensor() + 1) % N_CLASSES)
    assert met() == ["body_00", "body_00"]


def test_a_touched_or_moved_file_of_the_same_content_is_not(make, met, items, tmp_path):
    make().build()
    os.utime(items[0]["image"])
    shutil.move(items[1]["image"], tmp_path / "moved.nii.gz")
    items[1]["image"] = tmp_path / "moved.nii.gz"
    make(items).build()
    assert len(met()) == len(items)


@pytest.mark.parametrize("change", [{"key": {"size": SIZE, "window": [0, 1]}}, {"n_classes": 6}])
def test_other_parameters_are_another_entry(make, met, change):
    make().build()
    make(**change).build()
    assert len(met()) == 10
    make().build()
    assert len(met()) == 10


def test_other_code_is_another_entry_but_another_comment_is_not(make, met, monkeypatch):
    plain = "def half(x):\n    return x / 2\n"
    said = '"""Halving."""\n\n\ndef half(x):\n    """Halve."""\n    return (x\n            / 2)  # why not\n'
    assert cache_key.without_comments(plain) == cache_key.without_comments(said)
    assert cache_key.without_comments(plain) != cache_key.without_comments(plain.replace("2", "3"))
    make().build()
    monkeypatch.setattr(cache_key, "code_version", lambda: "other")
    make().build()
    assert len(met()) == 10


def test_a_folder_of_slices_counts_by_content_and_a_header_with_its_data(tmp_path):
    (tmp_path / "series").mkdir()
    for n in range(3):
        (tmp_path / "series" / f"{n}.dcm").write_bytes(bytes([n]))
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "b.nhdr").write_text("NRRD0004\ndata file: LIST\na.raw\n")
    (tmp_path / "a.raw").write_bytes(b"1")
    (tmp_path / "c.hdr").write_bytes(b"header")
    (tmp_path / "c.img").write_bytes(b"2")

    def contents():
        sources = cache_key.SourceIndex(tmp_path)
        return [sources.content(tmp_path / name) for name in ("series", "a.mhd", "b.nhdr", "c.hdr")]

    before = contents()
    (tmp_path / "series" / "2.dcm").rename(tmp_path / "series" / "z.dcm")
    assert contents() == before
    (tmp_path / "series" / "1.dcm").write_bytes(b"x")
    (tmp_path / "a.raw").write_bytes(b"3")
    (tmp_path / "c.img").write_bytes(b"3")
    assert all(old != new for old, new in zip(before, contents(), strict=True))


# ---- damage and hostility


def bomb() -> bytes:
    """A pickle that would make a folder; protocol 0, written by hand."""
    return b"cos\nmkdir\n(S'exploded'\ntR."


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, image=np.zeros((1, 4, 4, 4)))
    return file.getvalue()


def claim(**fields) -> bytes:
    """An entry whose header is well formed, checksum and all, but says what it likes."""
    header = json.dumps(fields).encode()
    return cache_entry.PREFIX.pack(b"BODYCASE", 1, len(header), zlib.crc32(header)) + header


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


@pytest.mark.parametrize(
    "fields",
    [
        {"image_shape": [1, 10**6, 10**6, 10**6]},
        {"image_shape": [1, -12, -10, 14]},
        {"image_shape": [1.0, 12, 10, 14]},
        {"label_dtype": "object"},
        {"affine": [[1]]},
        {"step": ["x"]},
        {"name": "../../etc/passwd"},
    ],
)
def test_a_header_that_lies_is_refused(make, fields):
    dataset = make()
    dataset[0]
    path = entries(dataset)[0]
    raw = path.read_bytes()
    length = struct.unpack_from("<I", raw, 12)[0]
    header = json.loads(raw[20 : 20 + length]) | fields
    path.write_bytes(claim(**header).ljust(4096, b"\0") + raw[4096:])
    with pytest.raises(cache_entry.DamagedEntryError, match=str(path)):
        cache_entry.read_entry(path)


def test_a_truncated_or_lengthened_entry_is_noticed_before_training(make, met):
    dataset = make()
    dataset.build()
    short, long, *_ = entries(dataset)
    os.truncate(short, short.stat().st_size - 1)
    os.truncate(long, long.stat().st_size + 4096)
    make().build()
    assert len(met()) == 7


def test_any_flipped_bit_of_header_or_voxels_is_noticed(make):
    dataset = make()
    expected = dataset[0]
    path = entries(dataset)[0]
    raw = path.read_bytes()
    length = struct.unpack_from("<I", raw, 12)[0]
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, 20 + length, 40), *rng.integers(4096, len(raw), 80)]:
        flipped = bytearray(raw)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(cache_entry.DamagedEntryError):
            cache_entry.read_entry(path)
    assert torch.equal(dataset[0]["image"], expected["image"])
    assert path.read_bytes() == raw


def test_a_lost_page_and_exchanged_pages_are_noticed(tmp_path):
    entry, payload = encode(image_of(np.random.default_rng(0).random((1, 20, 20, 20))))
    path = tmp_path / f"{entry.name}.bodycase"
    cache_entry.write_entry(path, entry, payload)
    raw = path.read_bytes()
    for damaged in (raw[:4096] + bytes(4096) + raw[8192:], raw[:4096] + raw[8192:12288] + raw[4096:8192] + raw[12288:]):
        path.write_bytes(damaged)
        with pytest.raises(cache_entry.DamagedEntryError, match="checksum"):
            cache_entry.read_entry(path)


# ---- cases that fail


def test_every_failing_case_is_named_and_the_others_are_kept(make, met):
    dataset = make(note=Note(met.path, bad=("body_01", "body_03")))
    with pytest.raises(CacheBuildError, match="2 of 5 cases could not be prepared: case body_01: exp") as caught:
        dataset.build(workers=2)
    assert [case for case, _ in caught.value.failures] == ["body_01", "body_03"]
    assert "\n" not in str(caught.value)
    assert len(entries(dataset)) == 3
    make().build()
    assert len(met()) == 7


def test_an_item_that_fails_raises_the_chains_own_error(make, met):
    with pytest.raises(ValueError, match=r"^case body_01: expected a body, found a cat; rescan$"):
        make(note=Note(met.path, bad=("body_01",)))[1]


def test_a_missing_source_is_named_with_its_case(make, items):
    items[2]["image"].unlink()
    with pytest.raises(CacheBuildError, match=r"1 of 5 .*case body_02: .*body_02_image.nii.gz: No such file"):
        make().build()


def test_a_class_that_the_data_set_does_not_have_is_refused(make):
    with pytest.raises(CacheBuildError, match=r"5 of 5 .*body_00: the label holds class 3, but the classes are 0 to 2"):
        make(n_classes=3).build()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_refused(value):
    array = np.zeros((1, 3, 3, 3), np.float32)
    array[0, 1, 1, 1] = value
    with pytest.raises(CacheError, match="NaN or infinite"):
        encode(image_of(array))


def test_a_label_of_another_type_or_grid_is_refused():
    image = image_of(np.zeros((1, 3, 3, 3)))
    for label in (torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3, 4, dtype=torch.uint8)):
        with pytest.raises(CacheError, match=r"expected uint8 or uint16 \(1, 3, 3, 3\)"):
            encode({**image, "label": label})


def test_a_key_that_json_cannot_hold_is_refused(make):
    with pytest.raises(CacheError, match=r"cache key: .*plain numbers"):
        make(key={"chain": object()})


# ---- several processes, kills, disks


def build_in_process(dataset: CachedDataset, workers: int):
    process = FORK.Process(target=dataset.build, kwargs={"workers": workers})
    process.start()
    return process


def test_processes_that_build_at_once_share_the_work(make, met, items):
    processes = [build_in_process(make(note=Note(met.path, seconds=0.1)), 1) for _ in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert met() == sorted(item["case"] for item in items)
    dataset = make()
    dataset.build()
    assert len(met()) == len(items)
    assert {path.suffix for path in dataset.folder.iterdir()} - {".jsonl"} == {".TAG", ".bodycase"}  # and its index


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_midway_continues_where_it_stood(make, met, items, workers):
    dataset = make(note=Note(met.path, seconds=0.3))
    process = build_in_process(dataset, workers)
    while len(entries(dataset)) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in entries(dataset)}
    for path in kept:
        cache_entry.read_entry(path)
    make(note=Note(met.path)).build()
    assert len(entries(dataset)) == len(items)
    # what was being prepared at the kill is prepared twice, what was finished once
    assert len(items) <= len(met()) <= len(items) + workers
    assert not list(dataset.folder.glob("*.tmp"))


def test_a_kill_while_an_entry_is_written_leaves_no_half_of_it(make, monkeypatch):
    dataset = make()
    monkeypatch.setattr(cache_entry.os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    process = build_in_process(dataset, 1)
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    assert entries(dataset) == []
    assert len(list(dataset.folder.glob("*.tmp"))) == 1
    removed = prune(dataset.folder, 10**12)
    assert [path.suffix for path in removed.files] == [".tmp"]
    dataset.build()
    assert {path.suffix for path in dataset.folder.iterdir()} - {".jsonl"} == {".TAG", ".bodycase"}  # and its index


class Fatal:
    """Kills the process that prepares this case, as the kernel does when memory runs out."""

    def __call__(self, item: dict) -> dict:
        if item["case"] == "body_03":
            os.kill(os.getpid(), signal.SIGKILL)
        return item


def test_the_death_of_a_building_process_ends_in_a_sentence(make):
    dataset = make(note=Fatal())
    with pytest.raises(CacheError, match=r"a process that prepares cases died .*what is done is kept"):
        dataset.build(workers=2)
    assert entries(dataset)


def test_a_full_disk_ends_the_build_without_blaming_a_case(make, monkeypatch):
    dataset = make()
    dataset.build(workers=1)
    shutil.rmtree(dataset.folder)
    cache_folder.open_folder(dataset.folder)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_entry.os, "fsync", full)
    with pytest.raises(CacheError, match="No space left on device; free the disk") as caught:
        dataset.build()
    assert not isinstance(caught.value, CacheBuildError)
    assert [path.name for path in dataset.folder.iterdir()] == ["CACHEDIR.TAG"]


def test_a_disk_that_is_too_small_is_refused_before_the_work(make, met, monkeypatch):
    size = 4096 * 3
    usage = shutil.disk_usage("/")._replace(free=size)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"for 4 cases, its disk has 0\.00 GB free; free some"):
        make().build()
    assert len(met()) == 1


# ---- as a data set


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


def test_building_draws_nothing_from_the_generators_that_training_uses(make):
    before = torch.get_rng_state(), repr(np.random.get_state())
    make().build(workers=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == repr(np.random.get_state())


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


def test_progress_counts_every_case_once(make):
    seen = []
    make().build(lambda *state: seen.append(state), workers=2)
    for stage in ("hashing sources", "preparing cases"):
        assert [state for state in seen if state[0] == stage] == [(stage, n, 5) for n in range(1, 6)]


# ---- the folder


def test_the_size_limit_removes_other_chains_first_used_longest_ago(make):
    for n, key in enumerate(({"n": 0}, {"n": 1})):
        dataset = make(key=key)
        dataset.build()
        for path in dataset.folder.glob(f"{dataset.chain_id}-*"):
            os.utime(path, (1000 + n, 1000 + n))
    size = cache_info(dataset.folder).n_bytes // 10
    third = make(key={"n": 2}, max_bytes=12 * size)
    third.build()
    left = {(chain.parameters or {})["n"]: chain.n_entries for chain in cache_info(dataset.folder).chains}
    assert left == {2: 5, 1: 5} | ({0: left[0]} if 0 in left else {})
    assert left.get(0, 0) <= 2
    assert cache_info(dataset.folder).n_bytes <= 12 * size


def test_a_limit_below_what_the_chain_itself_needs_is_refused(make, met):
    make(key={"n": 0}).build()
    with pytest.raises(CacheError, match=r"of this chain and needs .* more; its limit is"):
        make(max_bytes=30_000).build()
    assert cache_info(make().folder).chains[-1].n_entries == 5


def test_a_lowered_limit_holds_although_nothing_is_built(make):
    make(key={"n": 0}).build()
    make().build()
    make(max_bytes=1).build()
    assert [chain.parameters for chain in cache_info(make().folder).chains] == [{"size": [12, 10, 14]}]


def test_info_says_what_the_folder_holds(make):
    make().build()
    dataset = make(key={"window": [-1000, 1000]})
    dataset.build()
    info = cache_info(dataset.folder)
    assert info.n_entries == 10
    assert info.n_bytes == sum(path.stat().st_size for path in entries(dataset))
    assert {json.dumps(chain.parameters) for chain in info.chains} == {
        '{"size": [12, 10, 14]}',
        '{"window": [-1000, 1000]}',
    }
    assert info.free_bytes > 0


def test_prune_touches_nothing_that_is_not_recognisably_ours(make, tmp_path):
    dataset = make()
    dataset.build()
    theirs = [dataset.folder / name for name in ("notes.txt", "x.bodycase", "sub")]
    theirs[0].write_text("mine")
    theirs[1].write_text("mine")
    theirs[2].mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    link = dataset.folder / f"{'a' * 16}-{'b' * 32}.bodycase"
    link.symlink_to(target)
    removed = prune(dataset.folder, 0)
    assert len(removed.files) == 5
    assert removed.n_bytes > 0
    assert sorted(dataset.folder.iterdir()) == sorted([*theirs, link, dataset.folder / "CACHEDIR.TAG"])
    assert target.read_text() == "precious"


def test_a_folder_without_our_tag_is_left_alone(tmp_path, make):
    name = f"{'a' * 16}-{'b' * 32}.bodycase"
    (tmp_path / name).write_text("mine")
    for function in (lambda: prune(tmp_path, 0), lambda: cache_info(tmp_path)):
        with pytest.raises(CacheError, match="not a cache folder of bodyseg"):
            function()
    assert (tmp_path / name).exists()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# cargo\n")
    with pytest.raises(CacheError, match="another program's cache"):
        make(folder="foreign")


def test_prune_leaves_alone_what_another_process_is_writing(make):
    dataset = make()
    dataset.build()
    name = entries(dataset)[0].stem
    temporary = dataset.folder / f"{name}.tmp"
    temporary.write_bytes(b"half")
    with cache_folder.locked(dataset.folder / f"{name}.lock", wait=False) as alone:
        assert alone
        assert prune(dataset.folder, 10**12).files == ()
    assert prune(dataset.folder, 10**12).files == (temporary,)


def test_an_unreadable_line_of_the_source_index_is_passed_over(make, met, monkeypatch):
    monkeypatch.setattr(cache_key, "SETTLED_NS", 0)
    make().build()
    index = make().folder / "sources.jsonl"
    lines = index.read_text().splitlines()
    broken = [lines[4][:30], '["a"]', "nonsense", "[" * 9000, "7"]
    index.write_text("\n".join([*lines[:4], *broken, *lines[5:]]) + "\n\0\xff")
    make().build()
    assert len(met()) == 5
