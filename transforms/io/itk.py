"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files through SimpleITK, LPS turned to RAS+ here.

ITK fills in what a header lacks (orientation, voxel size), follows a detached header to any file of the machine, and
dies of a MetaImage that claims too many axes (ITK 5.4). So the text header is read here first: what it names, claims,
says twice or leaves out is judged before ITK sees it, and a header that ITK could read in another way is refused.
Packed voxels are read here, too, to the end of their stream: ITK hands on what is damaged or missing.
"""

from __future__ import annotations

import math
import os
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
from isal import isal_zlib

from transforms.io.detached import beside
from transforms.io.errors import VolumeError
from transforms.io.grid import (
    LPS_TO_RAS,
    Affine,
    Geometry,
    OpenVolume,
    check_affine,
    check_data_size,
    check_memory,
    check_shape,
)
from transforms.io.itk_header import header_end, is_nrrd, read_header

# The signs that turn a space of NRRD to RAS+. ITK passes every other one on as if it were LPS, and until 2025 it
# turned the wrong axis of "left-anterior-superior" (its issue 5207): the vectors are taken from the header itself.
_NRRD_SPACES = {
    "lps": (-1, -1, 1), "ras": (1, 1, 1), "las": (-1, 1, 1), "left-posterior-superior": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "left-anterior-superior": (-1, 1, 1),
}  # fmt: skip
# MetaImage's fields of numbers: how many there are, as a power of the number of axes.
_META_LISTS = {
    "ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Position": 1, "Origin": 1, "CenterOfRotation": 1,
    "TransformMatrix": 2, "Rotation": 2, "Orientation": 2,
}  # fmt: skip
_TRUE = ("T", "t", "1")  # MetaIO looks at the first letter alone
_SKIPS = ("HeaderSize", "lineskip", "byteskip")
"""Fields that say where in a data file the voxels begin."""
_MAX_AXES = 5
_ANY_HEADER = isal_zlib.MAX_WBITS | 32  # zlib's or gzip's
_BLOCK = 2**16  # packed bytes unpacked at once: at most 67 MB
_DTYPES = {
    sitk.sitkUInt8: np.uint8, sitk.sitkInt8: np.int8, sitk.sitkUInt16: np.uint16, sitk.sitkInt16: np.int16,
    sitk.sitkUInt32: np.uint32, sitk.sitkInt32: np.int32, sitk.sitkUInt64: np.uint64, sitk.sitkInt64: np.int64,
    sitk.sitkFloat32: np.float32, sitk.sitkFloat64: np.float64,
}  # fmt: skip


class _Claims(NamedTuple):
    """What a header claims of its voxels."""

    sizes: tuple[int, ...]
    n_bytes: int
    """Bytes of the voxels, at least."""
    data_path: Path
    """The file that holds them."""
    compressed: bool
    is_big_endian: bool
    start: int = 0
    """Byte of that file at which packed voxels begin."""
    packed_bytes: int | None = None
    """Bytes that these take where the header says so."""
    skip: int = 0
    """Unpacked bytes before the first voxel; -1: the voxels are the last ones, -2: but for one byte, and so on."""


def name_for_itk(path: Path) -> str:
    """The path as a text. Raises VolumeError for bytes that are no UTF-8: SimpleITK would end the process (2.5)."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        expected, found = "a path whose names are UTF-8", "bytes that are none"
        remedy = "rename what has them, or set LC_ALL=C.UTF-8 where it is the locale that lacks their letters"
        raise VolumeError("unreadable", path, expected, found, remedy) from error
    return str(path)


def open_itk(path: Path) -> OpenVolume:
    """Read and check the header of a NRRD or MetaImage file.

    Raises:
        VolumeError: not such a file, truncated, no orientation or voxel size, more than one number a voxel, or voxels
            kept in a file outside the header's folder.
        OSError: the file cannot be opened.
    """
    kind = "nrrd" if is_nrrd(path) else "metaimage"
    fields, data_file = read_header(path)
    claims = (_nrrd if kind == "nrrd" else _meta)(fields, data_file, path)
    where = name_for_itk(path)
    check_shape(claims.sizes, where)
    check_data_size(claims.n_bytes, claims.data_path.stat().st_size, compressed=claims.compressed, where=where)
    reader = sitk.ImageFileReader()
    # By name: ITK would otherwise try every format it knows on the content.
    reader.SetImageIO("NrrdImageIO" if kind == "nrrd" else "MetaImageIO")
    reader.SetFileName(where)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        found = f"a damaged one ({_reason(error)})"
        raise VolumeError("unreadable", where, "a header that ITK can read", found, "save it again") from error
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _DTYPES:
        found = f"{reader.GetNumberOfComponents()} of {sitk.GetPixelIDValueAsString(reader.GetPixelID())}"
        raise VolumeError("not_grey_scale", where, "one real number a voxel", found, "export a grey-scale volume")
    shape = check_shape(reader.GetSize(), where)
    if math.prod(shape) != math.prod(claims.sizes):
        expected, found = f"the size {claims.sizes} of the header", f"{shape} as ITK reads it"
        raise VolumeError("unreadable", where, expected, found, "save it again")
    affine = _nrrd_affine(fields, where) if kind == "nrrd" else _affine(reader, where)
    geometry = Geometry(shape, affine, np.dtype(_DTYPES[reader.GetPixelID()]), kind)
    return OpenVolume(geometry, partial(_read_voxels, reader, shape, path, claims))


def _affine(reader: sitk.ImageFileReader, where: str) -> Affine:
    n_axes = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(n_axes, n_axes)
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return check_affine(LPS_TO_RAS @ affine, where)


def _nrrd_affine(fields: dict[str, str], where: str) -> Affine:
    """The affine that the header's own vectors make, see `_NRRD_SPACES`."""
    written = f"{fields['spacedirections']} {fields.get('spaceorigin', '(0,0,0)')}"
    vectors = [_numbers(words.replace(",", " ")) for words in re.findall(r"\(([^()]*)\)", written)]
    if [len(vector) for vector in vectors] != [3] * 4:
        expected = "three space directions and a space origin of three numbers each"
        raise VolumeError("unreadable", where, expected, repr(written[:80]), "save it again")
    affine = np.eye(4)
    affine[:3] = np.array(vectors).T
    signs = _NRRD_SPACES[fields["space"].strip().lower()]
    return check_affine(np.diag([*signs, 1.0]) @ affine, where)


def _read_voxels(reader: sitk.ImageFileReader, shape: tuple[int, ...], path: Path, claims: _Claims) -> np.ndarray:
    dtype, n_voxels = np.dtype(_DTYPES[reader.GetPixelID()]), math.prod(shape)
    n_bytes = n_voxels * dtype.itemsize
    check_memory(2 * n_bytes + abs(claims.skip), str(path))  # ITK's own and the array
    if claims.compressed:
        stored = dtype.newbyteorder(">" if claims.is_big_endian else "<")
        voxels = np.frombuffer(_unpacked(claims, n_bytes, path), stored, n_voxels, offset=max(0, claims.skip))
        return np.require(voxels, dtype, "A").reshape(shape, order="F")
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        found = f"a truncated or damaged one ({_reason(error)})"
        raise VolumeError("unreadable", path, "a whole, readable volume", found, "copy it again") from error
    return array.T.reshape(shape, order="F")  # ITK's arrays are (K, J, I)


def _unpacked(claims: _Claims, n_bytes: int, path: Path) -> bytearray:
    """Unpack voxels, and what is skipped before or behind them, to the end of their stream, where its check sum is.

    As ITK takes them: zlib or gzip, of a NRRD one gzip behind the other, too.

    Raises:
        VolumeError: it is truncated or damaged.
    """
    stream, unpacked, several = isal_zlib.decompressobj(_ANY_HEADER), bytearray(), is_nrrd(path)
    from_end = claims.skip < 0
    n_wanted = n_bytes + (-claims.skip - 1 if from_end else claims.skip)
    left = claims.data_path.stat().st_size if claims.packed_bytes is None else claims.packed_bytes
    try:
        with claims.data_path.open("rb") as file:
            file.seek(claims.start)
            while (not stream.eof or from_end or len(unpacked) < n_wanted) and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                while block:
                    if stream.eof:
                        if not several or (len(unpacked) >= n_wanted and not from_end):
                            break
                        stream = isal_zlib.decompressobj(_ANY_HEADER)
                    piece = stream.decompress(block)
                    unpacked += piece if from_end else piece[: n_wanted - len(unpacked)]
                    if from_end:
                        del unpacked[:-n_wanted]
                    block = stream.unused_data
    except isal_zlib.error as error:  # type: ignore[misc]
        found = f"a damaged one ({error})"
        raise VolumeError("unreadable", path, "a whole, readable volume", found, "copy it again") from error
    if not stream.eof or len(unpacked) < n_wanted:
        expected, found = f"{n_wanted} bytes of voxels", f"{len(unpacked)} in a truncated file"
        raise VolumeError("unreadable", path, expected, found, "copy it again")
    return unpacked


def _reason(error: RuntimeError) -> str:
    """Return the last line of ITK's message that says why; "Reason:" is an unrelated errno of the system."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Reason:")]
    # "ITK ERROR: MetaImageIO(0x55b2f12c4cd0): …": an address helps nobody
    return re.sub(r"^ITK ERROR: \w+\(\w+\): ", "", lines[-1])[:200] if lines else "no reason given"


def _nrrd(fields: dict[str, str], data_file: str | None, path: Path) -> _Claims:
    space = fields.get("space", "").strip().lower()
    if space not in _NRRD_SPACES or "spacedirections" not in fields:
        expected = f"a space ({', '.join(sorted(_NRRD_SPACES))}) and space directions"
        found = f"{space or 'none'}: left and right are unknown"
        raise VolumeError("no_orientation", path, expected, found, "save it again with its orientation")
    sizes = _integers(fields, "sizes", path)
    _check_axes(fields, "dimension", sizes, path)
    item = _item_size(fields.get("type", "").strip(), path)
    encoding = fields.get("encoding", "").strip().lower()
    least = {"raw": item, "gzip": item, "gz": item, "hex": 2 * item, "ascii": 2, "text": 2, "txt": 2}
    if encoding not in least:
        expected, remedy = "the encoding raw, gzip, hex or ascii", "save it again"
        raise VolumeError("unreadable", path, expected, encoding or "none", remedy)
    n_bytes = least[encoding] * math.prod(sizes)
    data_path, is_big = _data_path(data_file, fields, path), fields.get("endian", "").lower() == "big"
    if not encoding.startswith("gz"):
        return _Claims(sizes, n_bytes, data_path, False, is_big)
    (n_lines, *_), (skip, *_) = (
        _integers({name: "0"} | fields, name, path, r"-?[0-9]{1,18}") for name in ("lineskip", "byteskip")
    )
    with data_path.open("rb") as file:
        file.seek(header_end(path) if data_path == path else 0)
        while n_lines > 0 and file.readline():
            n_lines -= 1
        return _Claims(sizes, n_bytes, data_path, True, is_big, file.tell(), skip=skip)


def _meta(fields: dict[str, str], data_file: str | None, path: Path) -> _Claims:
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        found, remedy = "none: the voxel size is unknown", "save it again with its voxel size"
        raise VolumeError("bad_affine", path, "ElementSpacing in the header", found, remedy)
    sizes = _integers(fields, "DimSize", path)
    _check_axes(fields, "NDims", sizes, path)
    _check_meta_numbers(fields, len(sizes), path)
    n_bytes = math.prod(sizes) * _item_size(fields.get("ElementType", ""), path)
    compressed = fields.get("CompressedData", "").startswith(_TRUE)
    data_path = _data_path(data_file, fields, path)
    packed_bytes = None
    if compressed and "CompressedDataSize" in fields:  # ITK allocates as much
        packed_bytes = _integers(fields, "CompressedDataSize", path)[0] or None
        check_data_size(packed_bytes or 0, data_path.stat().st_size, compressed=False, where=str(path))
    start = 0
    if compressed:
        start = _integers({"HeaderSize": "0"} | fields, "HeaderSize", path)[0]  # MetaIO counts from the file's start
        start = header_end(path) if start == 0 and data_path == path else start
        if packed_bytes is None and start:  # ITK would take the whole file for them, from there on or with the header
            expected, remedy = "CompressedDataSize in the header of packed voxels", "save it again"
            raise VolumeError("unreadable", path, expected, "none", remedy)
    is_big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "")).startswith(_TRUE)
    return _Claims(sizes, n_bytes, data_path, compressed, is_big, start, packed_bytes)


def _check_axes(fields: dict[str, str], field: str, sizes: tuple[int, ...], path: Path) -> None:
    n_axes = _integers(fields, field, path)[0]
    if n_axes != len(sizes) or n_axes > _MAX_AXES:
        found = f"a header that claims {n_axes} and {len(sizes)} sizes"
        raise VolumeError("unreadable", path, "3 axes", found, "copy it again; it is damaged")


def _check_meta_numbers(fields: dict[str, str], n_axes: int, path: Path) -> None:
    for field in _META_LISTS.keys() & fields.keys():
        numbers, n_expected = _numbers(fields[field]), n_axes ** _META_LISTS[field]
        if len(numbers) != n_expected or not all(map(math.isfinite, numbers)):
            expected, remedy = f"{n_expected} numbers in the header's {field}", "copy it again; it is damaged"
            raise VolumeError("unreadable", path, expected, repr(fields[field][:80]), remedy)
        if field in ("ElementSpacing", "ElementSize") and min(numbers) <= 0:
            raise VolumeError("bad_affine", path, "a positive voxel size in mm", f"{field} {numbers}", "correct it")
    channels = fields.get("ElementNumberOfChannels", "1").strip()
    if channels != "1":
        remedy = "export a grey-scale volume"
        raise VolumeError("not_grey_scale", path, "one real number a voxel", repr(channels[:40]), remedy)


def _numbers(words: str) -> list[float]:
    """Return the numbers of a field, NaN for a word that is not a number."""
    numbers = []
    for word in words.split():
        try:
            numbers.append(float(word) if re.fullmatch(r"[-+.0-9eE]+", word) else math.nan)
        except ValueError:
            numbers.append(math.nan)
    return numbers


def _integers(fields: dict[str, str], field: str, path: Path, form: str = r"[0-9]{1,18}") -> tuple[int, ...]:
    words = fields.get(field, "").split()
    if not words or not all(re.fullmatch(form, word) for word in words):
        expected = f"whole numbers in the header's {field}"
        raise VolumeError("unreadable", path, expected, repr(fields.get(field)), "save it again")
    return tuple(int(word) for word in words)


def _item_size(word: str, path: Path) -> int:
    """Return the bytes of a voxel by NRRD's ("unsigned short", "int16") or MetaImage's ("MET_USHORT") type name."""
    plain = re.sub(r"unsigned|signed|met_|(?<=\d)_t$|[ _]", "", word.lower()).lstrip("u") or "int"
    sizes = {"char": 1, "int8": 1, "short": 2, "shortint": 2, "int16": 2, "int": 4, "int32": 4, "float": 4,
             "long": 4, "longlong": 8, "longlongint": 8, "int64": 8, "double": 8}  # fmt: skip
    if plain not in sizes or not word:
        remedy = "export a grey-scale volume"
        raise VolumeError("not_grey_scale", path, "a number type in the header", repr(word), remedy)
    return sizes[plain]


def _data_path(name: str | None, fields: dict[str, str], path: Path) -> Path:
    """Return the file that holds the voxels: the header's own, or one in its folder or below."""
    if name is None:
        return path
    if not name or name.upper().startswith("LIST") or "%" in name:
        found = f"a header that names {name!r}"
        raise VolumeError("unreadable", path, "the voxels in one file", found, "save it as one file")
    # NRRD keeps a space at the end and reads "-" from the terminal, MetaImage calls "~" the start of a whole path.
    if name != name.strip() or name == "-" or name.startswith("~"):
        raise VolumeError("unreadable", path, "a plain file name in the header", repr(name), "rename the file")
    data_path = beside(path, name)
    if not os.access(data_path, os.R_OK):  # ITK would try NAME.gz and NAME.Z, which nobody has judged
        found = f"its data file {name} without read permission"
        raise VolumeError("unreadable", path, "files that can be read", found, "check its permissions")
    # From its first byte on ITK would take the header for voxels.
    if data_path.samefile(path) and all(fields.get(skip, "0") == "0" for skip in _SKIPS):
        expected, remedy = "voxels behind the header, or in a file of their own", "save it again"
        raise VolumeError("unreadable", path, expected, f"a header that names itself, {name}", remedy)
    return data_path
