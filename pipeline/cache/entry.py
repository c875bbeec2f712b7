"""One prepared case as one file: a small header and plain arrays, whole or absent.

Layout, little endian: 8 bytes magic, uint32 format version, uint32 length and uint32 CRC-32 of the JSON header, the
header, zeros up to the next multiple of 4096; then the payload: image uint16 (C, I, J, K) in C order, zeros up to a
multiple of 64, label uint8 or uint16 (1, I, J, K), zeros up to a multiple of 64, places uint32, zeros up to a multiple
of 4096. Nothing in it is ever executed.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from monai.data import MetaTensor

from pipeline.files.atomic import replace_durably
from pipeline.files.regular import open_regular
from transforms.io.grid import voxel_edges_mm
from transforms.patches import places_of
from transforms.slabs import segmentation_dtype

MAGIC = b"BODYCASE"
VERSION = 2
PREFIX = struct.Struct("<8sIII")
"""Magic, format version, length and CRC-32 of the header."""
PAGE = 4096
"""Bytes to a multiple of which header and payload are padded."""
_ALIGNMENT = 64
"""Bytes of the payload to a multiple of which the label starts."""
LARGEST_HEADER = 1 << 20
"""Bytes; a header takes about 3 kB, more is damage."""
LEVELS = 65535
"""Steps between a channel's least and greatest value."""


class CacheError(ValueError):
    """One line: which case, entry or folder, what was expected and found, what to do."""

    is_input_error = True


class DamagedEntryError(CacheError):
    """An entry that is truncated, altered or not ours: it is to be built again."""


class CannotWriteError(CacheError):
    """The cache's disk refuses: not a case's fault, and of no use to go on."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry's header; affines map voxel indices to mm, RAS+."""

    name: str
    """The file's name without its suffix."""
    case: str
    """Id of the case that was prepared first; other cases of the same content share the entry."""
    chain: dict[str, Any]
    """The chain's parameters."""
    image_shape: tuple[int, ...]
    """(C, I, J, K)."""
    minimum: tuple[float, ...]
    """Least value of every channel."""
    step: tuple[float, ...]
    """What one level of the stored integers stands for, for every channel."""
    label_dtype: str | None
    """uint8 or uint16; None where the case has no label."""
    affine: list[list[float]]
    """Of the prepared volume, 4×4."""
    source_affine: list[list[float]] | None
    """Of the source."""
    source_shape: tuple[int, ...] | None
    """Voxels (I, J, K) of the source."""
    notes: dict[str, str | int | float | bool]
    """Plain metadata of the image."""
    class_voxels: tuple[int, ...] | None
    """Voxels of every class in the prepared label; None where there is none."""
    n_places: tuple[tuple[int, int], ...] = ()
    """(class, number of voxels) of the places that follow the label, see `transforms.patches.places_of`."""
    checksum: str = ""
    """Of the payload."""

    @property
    def label_offset(self) -> int:
        """Byte of the payload at which the label starts."""
        return _round_up(2 * math.prod(self.image_shape), _ALIGNMENT)

    @property
    def places_offset(self) -> int:
        """Byte of the payload at which the places start, uint32."""
        width = np.dtype(self.label_dtype).itemsize if self.label_dtype else 0
        return _round_up(self.label_offset + width * math.prod(self.image_shape[1:]), _ALIGNMENT)

    @property
    def payload_bytes(self) -> int:
        """Length of the payload, padding included."""
        return _round_up(self.places_offset + 4 * sum(n for _, n in self.n_places), PAGE)


def encode(
    prepared: Mapping[str, Any],
    *,
    name: str,
    case: str,
    chain: dict[str, Any],
    n_classes: int,
    with_places: bool = False,
) -> tuple[Entry, np.ndarray]:
    """Turn what the chain returned into a header and a payload (uint8, one dimension).

    `prepared["image"]` is float (C, I, J, K) and finite, stored as uint16 with a least value and a step per channel, so
    that what is read back differs by at most (greatest − least) / 131070, beside float32 rounding. `prepared["label"]`,
    if there is one, is uint8 or uint16 (1, I, J, K), stored as it is; the dtype's greatest value means "ignore". With
    `with_places`, voxels of every foreground class are drawn, for placing patches.

    Raises CacheError for NaN, infinity, other shapes or dtypes, and label values outside the classes.
    """
    image, label = prepared["image"], prepared.get("label")
    stored, minimum, step = _quantised(_plain(image))
    if label is not None:
        label = _checked_label(_plain(label), stored.shape[1:])
    places: dict[int, np.ndarray] = {}
    if with_places and label is not None:
        # By what the files hold alone, the end of the name: another version of the code draws the same patches.
        contents = name.rpartition("-")[2].encode()
        places = places_of(label[0], range(1, n_classes), seed=int(hashlib.sha256(contents).hexdigest()[:8], 16))
    meta = image.meta if isinstance(image, MetaTensor) else {}
    entry = Entry(
        name=name,
        case=case,
        chain=chain,
        image_shape=stored.shape,
        minimum=minimum,
        step=step,
        label_dtype=None if label is None else label.dtype.name,
        affine=_matrix(meta.get("affine", np.eye(4))),
        source_affine=_matrix(meta["original_affine"]) if "original_affine" in meta else None,
        source_shape=tuple(int(n) for n in meta["spatial_shape"]) if "spatial_shape" in meta else None,
        notes={key: value for key, value in meta.items() if _is_note(key, value)},
        class_voxels=None if label is None else _class_voxels(label, n_classes),
        n_places=tuple((c, len(chosen)) for c, chosen in places.items()),
    )
    payload = np.zeros(entry.payload_bytes, np.uint8)
    payload[: stored.nbytes] = stored.reshape(-1).view(np.uint8)
    if label is not None:
        payload[entry.label_offset :][: label.nbytes] = label.reshape(-1).view(np.uint8)
    if places:
        chosen = np.concatenate(list(places.values())).astype("<u4")
        payload[entry.places_offset :][: chosen.nbytes] = chosen.view(np.uint8)
    return dataclasses.replace(entry, checksum=_checksum(payload)), payload


def write_entry(path: Path, entry: Entry, payload: np.ndarray) -> None:
    """Write an entry whole or not at all. The caller holds its lock: the temporary name is free. Raises OSError."""
    header = json.dumps(dataclasses.asdict(entry), allow_nan=False).encode()
    head = PREFIX.pack(MAGIC, VERSION, len(header), zlib.crc32(header)) + header
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)

    def write(file: BinaryIO) -> None:
        file.write(head.ljust(_round_up(len(head), PAGE), b"\0"))
        file.write(payload.data)

    replace_durably(path, temporary, write)


def read_header(path: Path) -> Entry:
    """Read an entry's header and hold the file's size against it. Raises DamagedEntryError, FileNotFoundError."""
    with _opened(path) as file:
        return _read_header(file, path)[0]


class StoredEntry:
    """An entry of which any part can be read: a `transforms.patches.StoredCase`.

    Args:
        path: the entry's file.
        verify: hold all voxels against their checksum, which reads the whole file once.

    Raises:
        DamagedEntryError: see `read_entry`.
        FileNotFoundError: there is no such entry.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        with _opened(path) as file:
            self.entry, offset = _read_header(file, path)
            self.payload = np.memmap(file, np.uint8, mode="r", offset=offset, shape=(self.entry.payload_bytes,)).view(
                np.ndarray
            )
        if verify and _checksum(self.payload) != self.entry.checksum:
            raise DamagedEntryError(f"cache entry {path}: the voxels do not match their checksum")

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels (I, J, K)."""
        i, j, k = self.entry.image_shape[1:]
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k."""
        return voxel_edges_mm(np.array(self.entry.affine))

    @property
    def lowest(self) -> tuple[float, ...]:
        """The lowest value of each channel."""
        return self.entry.minimum

    @property
    def image(self) -> np.ndarray:
        """(C, I, J, K) uint16 as stored, a view of the file."""
        shape = self.entry.image_shape
        return self.payload[: 2 * math.prod(shape)].view("<u2").reshape(shape)

    @property
    def label(self) -> np.ndarray | None:
        """(1, I, J, K), a view of the file; None where the case has none."""
        if self.entry.label_dtype is None:
            return None
        stored = self.payload[self.entry.label_offset :].view(self.entry.label_dtype)
        return stored[: math.prod(self.size)].reshape(1, *self.size)

    @property
    def places(self) -> dict[int, np.ndarray]:
        """Voxels of every class, see `transforms.patches.places_of`."""
        total = sum(n for _, n in self.entry.n_places)
        flat = self.payload[self.entry.places_offset :][: 4 * total].view("<u4")
        ends = np.cumsum([n for _, n in self.entry.n_places])
        return dict(zip((c for c, _ in self.entry.n_places), np.split(flat, ends[:-1]), strict=True)) if total else {}

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float32 (C, i, j, k) and label (1, i, j, k) of the voxels start … stop; nothing else is read.

        Raises CacheError where the case has no label.
        """
        label = self.label
        if label is None:
            raise CacheError(f"case {self.entry.case}: it has no label, so no patches for training can be cut")
        box = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
        return _decoded(self.image[box], self.entry), torch.from_numpy(label[box].copy())


def read_entry(path: Path) -> tuple[Entry, MetaTensor, MetaTensor | None]:
    """Return header, image float32 (C, I, J, K) and label uint8/uint16 (1, I, J, K), both with affine and our own copy.

    The payload is checked at every read, since that costs a tenth of decoding it.

    Raises DamagedEntryError, FileNotFoundError.
    """
    stored = StoredEntry(path)
    entry, label = stored.entry, stored.label
    image = _with_geometry(_decoded(stored.image, entry), entry)
    image.meta.update(entry.notes)
    return entry, image, None if label is None else _with_geometry(torch.from_numpy(label.copy()), entry)


def _opened(path: Path) -> BufferedReader:
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise DamagedEntryError(f"cache entry {path}: {error.strerror}") from error
        raise


def _read_header(file: BinaryIO, path: Path) -> tuple[Entry, int]:
    """The header and the byte at which the payload starts."""
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
        raise DamagedEntryError(f"cache entry {path}: not an entry of this cache")
    _, version, length, crc = PREFIX.unpack(prefix)
    if version != VERSION or length > LARGEST_HEADER:
        raise DamagedEntryError(
            f"cache entry {path}: format {version}, header of {length} bytes; format {VERSION} is read"
        )
    header = file.read(length)
    if zlib.crc32(header) != crc:
        raise DamagedEntryError(f"cache entry {path}: the header does not match its checksum")
    entry = _parsed(header, path)
    offset = _round_up(PREFIX.size + length, PAGE)
    found, expected = os.fstat(file.fileno()).st_size, offset + entry.payload_bytes
    if found != expected:
        raise DamagedEntryError(f"cache entry {path}: {found} bytes long, expected {expected}")
    return entry, offset


def _parsed(header: bytes, path: Path) -> Entry:
    try:
        fields = json.loads(header)
        for key in ("image_shape", "minimum", "step", "source_shape", "class_voxels"):
            fields[key] = None if fields[key] is None else tuple(fields[key])
        fields["n_places"] = tuple((int(c), int(n)) for c, n in fields.get("n_places", ()))
        entry = Entry(**fields)
        shape = entry.image_shape
        whole = (
            len(shape) == 4
            and all(type(n) is int and n > 0 for n in shape)
            and entry.label_dtype in (None, "uint8", "uint16")
            and np.asarray(entry.minimum, float).shape == np.asarray(entry.step, float).shape == shape[:1]
            and np.asarray(entry.affine, float).shape == (4, 4)
            and all(n >= 0 for _, n in entry.n_places)
            and path.stem == entry.name
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedEntryError(f"cache entry {path}: its header cannot be understood") from error
    if not whole:
        raise DamagedEntryError(f"cache entry {path}: its header contradicts itself or belongs to {entry.name}")
    return entry


def _checksum(payload: np.ndarray) -> str:
    """SHA-256 of every page's sum (64-bit words, modulo 2**64).

    It notices any flipped bit, a lost page and exchanged pages at the speed of memory: 0.6 ms for 19.7 MB, where CRC-32
    takes 7 ms. It is no defence against a forger, who could write a valid checksum of any kind.
    """
    sums = np.add.reduce(payload.view("<u8").reshape(-1, PAGE // 8), axis=1)
    return hashlib.sha256(sums.tobytes()).hexdigest()


def _quantised(image: np.ndarray) -> tuple[np.ndarray, tuple[float, ...], tuple[float, ...]]:
    if image.ndim != 4 or 0 in image.shape:
        raise CacheError(f"the chain returned an image of shape {image.shape}, expected (C, I, J, K)")
    stored = np.empty(image.shape, "<u2")
    minimum, step = [], []
    for channel, target in zip(image, stored, strict=True):
        ends = np.array([(plane.min(), plane.max()) for plane in channel], np.float64)  # in one pass through memory
        least, greatest = float(ends[:, 0].min()), float(ends[:, 1].max())
        if not (math.isfinite(least) and math.isfinite(greatest)):
            raise CacheError("the image holds NaN or infinite voxels after preprocessing; repair or drop the case")
        width = (greatest - least) / LEVELS
        # float64: in float32 the rounding here would cost half a percent of a step. Plane by plane: the temporaries of
        # a case of 10 GB would be another 40.
        for plane, found in zip(channel, target, strict=True):
            found[...] = np.rint((plane.astype(np.float64) - least) / (width or 1.0))
        minimum.append(least)
        step.append(width)
    return stored, tuple(minimum), tuple(step)


def _decoded(stored: np.ndarray, entry: Entry) -> torch.Tensor:
    """float32 values of a part (C, i, j, k) of the stored image."""
    image = np.empty(stored.shape, np.float32)
    for channel, target, least, step in zip(stored, image, entry.minimum, entry.step, strict=True):
        np.multiply(channel, np.float32(step), out=target)
        if least != 0:
            np.add(target, np.float32(least), out=target)
    return torch.from_numpy(image)


def _checked_label(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if label.dtype not in (np.uint8, np.uint16) or label.shape != (1, *shape):
        expected = f"uint8 or uint16 {(1, *shape)}"
        raise CacheError(
            f"the chain returned a label {label.dtype} {label.shape}, expected {expected} as the image's grid"
        )
    return np.ascontiguousarray(label)


def _class_voxels(label: np.ndarray, n_classes: int) -> tuple[int, ...]:
    ignore = int(np.iinfo(label.dtype).max)
    counts = np.zeros(ignore + 1, np.int64)
    for plane in label[0]:  # bincount makes 64-bit integers of what it counts
        counts += np.bincount(plane.reshape(-1), minlength=len(counts))
    strange = [value for value in np.flatnonzero(counts).tolist() if value >= n_classes and value != ignore]
    if strange:
        raise CacheError(
            f"the label holds class {strange[0]}, but the classes are 0 to {n_classes - 1}; map or drop it"
        )
    return tuple(counts[:n_classes].tolist())


def _plain(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(tensor, MetaTensor):
        tensor = tensor.as_tensor()
    return tensor.detach().cpu().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def _with_geometry(tensor: torch.Tensor, entry: Entry) -> MetaTensor:
    meta: dict[str, Any] = {}
    if entry.source_affine is not None:
        meta["original_affine"] = torch.tensor(entry.source_affine, dtype=torch.float64)
    if entry.source_shape is not None:
        meta["spatial_shape"] = torch.tensor(entry.source_shape)
    return MetaTensor(tensor, affine=torch.tensor(entry.affine, dtype=torch.float64), meta=meta)


def _is_note(key: str, value: object) -> bool:
    """Whether metadata travels with the entry: plain values, but no path, since entries are shared by content."""
    finite = math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int)
    return finite and key != "filename_or_obj"


def _matrix(affine: Any) -> list[list[float]]:
    return np.asarray(affine, dtype=np.float64).tolist()


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def entry_bytes(size: Sequence[int], *, in_channels: int, n_classes: int) -> int:
    """Size of the file of a case with image and label, where the chain ends in `size` voxels.

    Args:
        size: voxels (I, J, K).
        in_channels: channels of the image, stored as uint16.
        n_classes: background included; up to 255 are stored as uint8, more as uint16.
    """
    n_voxels = math.prod(size)
    label_offset = _round_up(2 * in_channels * n_voxels, _ALIGNMENT)
    payload = label_offset + n_voxels * segmentation_dtype(n_classes).itemsize
    return PAGE + _round_up(payload, PAGE)
