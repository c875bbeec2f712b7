"""One prepared case as a file: exact within the documented bound, and damage is noticed."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pipeline.cache import entry as cache_entry
from pipeline.cache.entry import CacheError, DamagedEntryError, StoredEntry, read_entry, write_entry
from tests.support.cached_cases import N_CLASSES, claim, entries


def image_of(array: np.ndarray) -> dict:
    return {"image": MetaTensor(torch.from_numpy(array.astype(np.float32)))}


def encode(prepared: dict, name: str = "0" * 16 + "-" + "0" * 32):
    return cache_entry.encode(prepared, name=name, case="a", chain={}, n_classes=N_CLASSES)


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


def test_a_large_case_is_encoded_and_read_in_parts_within_the_memory_of_what_is_asked_for(tmp_path):
    """Bytes a voxel beside the prepared case: 2 of the image and 3 of the payload; a patch costs what it holds."""
    shape = (1, 100, 128, 128)
    random = np.random.default_rng(0)
    n_voxels = np.prod(shape)
    prepared = image_of(random.normal(size=shape)) | {"label": random.integers(0, N_CLASSES, shape).astype(np.uint8)}
    tracemalloc.start()
    try:
        name = "0" * 16 + "-" + "0" * 32
        entry, payload = cache_entry.encode(
            prepared, name=name, case="a", chain={}, n_classes=N_CLASSES, with_places=True
        )
        assert tracemalloc.get_traced_memory()[1] < 7 * n_voxels
        path = tmp_path / f"{name}.bodycase"
        write_entry(path, entry, payload)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        image, label = StoredEntry(path).read((10, 20, 30), (42, 52, 62))
        assert tracemalloc.get_traced_memory()[1] - before < 10 * 32**3
    finally:
        tracemalloc.stop()
    part = (slice(None), slice(10, 42), slice(20, 52), slice(30, 62))
    np.testing.assert_allclose(image.numpy(), prepared["image"].numpy()[part], atol=1e-4)
    assert np.array_equal(label.numpy(), prepared["label"][part])


def test_labels_above_255_classes_stay_uint16(tmp_path):
    label = torch.from_numpy(np.arange(1000, dtype=np.uint16).reshape(1, 10, 10, 10))
    prepared = {**image_of(np.zeros((1, 10, 10, 10))), "label": label}
    entry, payload = cache_entry.encode(prepared, name="0", case="a", chain={}, n_classes=1000)
    cache_entry.write_entry(tmp_path / "0.bodycase", entry, payload)
    found = cache_entry.read_entry(tmp_path / "0.bodycase")[2]
    assert found is not None
    assert found.dtype == torch.uint16
    assert np.array_equal(found.numpy(), label.numpy())


def test_ignored_voxels_are_kept_and_not_counted():
    label = torch.tensor([0, 1, 255, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    entry, _ = encode({**image_of(np.zeros((1, 1, 2, 2))), "label": label})
    assert entry.class_voxels == (1, 1, 0, 0, 0)


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


@pytest.fixture
def stored(tmp_path):
    """Path of an entry with places, and what it holds."""
    label = np.zeros((1, 12, 10, 9), np.uint8)
    label[0, 2:9, 3:7, 1:8] = 1
    label[0, 11, 9, 8] = 2
    image = MetaTensor(
        torch.rand(2, 12, 10, 9), affine=torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64))
    )
    name = "0" * 16 + "-" + "0" * 32
    prepared = {"image": image, "label": torch.from_numpy(label)}
    entry, payload = cache_entry.encode(prepared, name=name, case="a", chain={}, n_classes=4, with_places=True)
    write_entry(tmp_path / f"{name}.case", entry, payload)
    return tmp_path / f"{name}.case", label


def test_a_part_of_an_entry_is_that_part_of_the_whole(stored):
    path, label = stored
    whole, part = read_entry(path), StoredEntry(path)
    image, cut = part.read((2, 0, 4), (9, 5, 9))
    assert torch.equal(image, whole[1].as_tensor()[:, 2:9, 0:5, 4:9])
    np.testing.assert_array_equal(cut.numpy(), label[:, 2:9, 0:5, 4:9])
    assert part.size == (12, 10, 9)
    assert part.spacing_mm == pytest.approx((0.5, 2.0, 3.0))
    assert part.lowest == pytest.approx(whole[1].as_tensor().flatten(1).amin(1).tolist())


def test_places_are_drawn_by_what_the_files_hold_whatever_version_prepared_them():
    label = np.random.default_rng(0).integers(0, 3, (1, 40, 40, 40), np.uint8)  # more voxels than are kept
    prepared = {"image": np.zeros(label.shape, np.float32), "label": label}

    def places(name):
        return cache_entry.encode(prepared, name=name, case="a", chain={}, n_classes=3, with_places=True)[1].tobytes()

    assert places("earlier-0123") == places("later-0123") != places("later-4567")


def test_places_are_voxels_of_their_class(stored):
    path, label = stored
    places = StoredEntry(path).places
    assert sorted(places) == [1, 2]
    assert set(label.reshape(-1)[places[1]]) == {1}
    assert places[2].tolist() == [label.size - 1]


def test_a_flipped_bit_is_noticed_by_parts_too_unless_it_was_checked_before(stored):
    path, _ = stored
    content = bytearray(path.read_bytes())
    content[-4096 + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedEntryError, match="checksum"):
        StoredEntry(path)
    assert StoredEntry(path, verify=False).size == (12, 10, 9)
