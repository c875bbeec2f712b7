"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files through SimpleITK, LPS turned to RAS+ here.

ITK fills in what a header lacks (orientation, voxel size), follows a detached header to any file of the machine, and
dies of a MetaImage that claims too many axes (ITK 5.4). So the text header is read here first: what it names, claims,
says twice or leaves out is judged before ITK sees it, and a header that ITK could read in another way is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from transforms.io.detached import beside
from transforms.io.grid import (
    Geometry,
    OpenVolume,
    VolumeError,
    check_affine,
    check_data_size,
    check_memory,
    check_shape,
)

_HEADER_LIMIT = 2**20
# NRRD ends a line at a lone carriage return, C a text at a zero byte; nobody writes them, or other control characters.
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
# NRRD: a name up to the first ": ", in any case; "key:=value" and "# …" are remarks, "NRRD0004" is the first line.
_NRRD_FIELD = re.compile(r"([^:#][^:]*): [ \t]*(.*)")
_NRRD_REMARK = re.compile(r"NRRD\d{4}$|#|[^:]+:=|[^:]+:[^ ].*:=")
# MetaImage: both signs separate, and any number of them does; an empty value would be filled from the next line.
_META_FIELD = re.compile(r"([^=: \t][^=:]{0,199}?)[ \t]*[=:][ \t]*([^=: \t].*)")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The spaces that ITK's NRRD reader turns to LPS; every other one it passes on as if it were LPS.
_NRRD_SPACES = {
    "lps", "ras", "las", "left-posterior-superior", "right-anterior-superior", "left-anterior-superior",
}  # fmt: skip
# MetaImage's fields of numbers: how many there are, as a power of the number of axes.
_META_LISTS = {
    "ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Position": 1, "Origin": 1, "CenterOfRotation": 1,
    "TransformMatrix": 2, "Rotation": 2, "Orientation": 2,
}  # fmt: skip
_META_LOCAL = ("LOCAL", "Local", "local")  # no other spelling: ITK takes that for a file's name
_MAX_AXES = 5
_DTYPES = {
    sitk.sitkUInt8: np.uint8, sitk.sitkInt8: np.int8, sitk.sitkUInt16: np.uint16, sitk.sitkInt16: np.int16,
    sitk.sitkUInt32: np.uint32, sitk.sitkInt32: np.int32, sitk.sitkUInt64: np.uint64, sitk.sitkInt64: np.int64,
    sitk.sitkFloat32: np.float32, sitk.sitkFloat64: np.float64,
}  # fmt: skip


def open_itk(path: Path) -> OpenVolume:
    """Read and check the header of a NRRD or MetaImage file.

    Raises:
        VolumeError: not such a file, truncated, no orientation or voxel size, more than one number a voxel, or voxels
            kept in a file outside the header's folder.
    """
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    claims = _nrrd(_nrrd_header(path), path) if is_nrrd else _meta(_meta_header(path), path)
    sizes, n_bytes, data_path, compressed = claims
    check_shape(sizes, str(path))
    check_data_size(n_bytes, data_path.stat().st_size, compressed=compressed, name=str(path))
    reader = sitk.ImageFileReader()
    # By name: ITK would otherwise try every format it knows on the content.
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(f"{path}: the header is damaged ({_reason(error)})") from error
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _DTYPES:
        found = f"{reader.GetNumberOfComponents()} of {sitk.GetPixelIDValueAsString(reader.GetPixelID())}"
        raise VolumeError(f"{path}: expected one real number a voxel, found {found}; export a grey-scale volume")
    kind = "nrrd" if is_nrrd else "metaimage"
    shape = check_shape(reader.GetSize(), str(path))
    if math.prod(shape) != math.prod(sizes):
        raise VolumeError(f"{path}: expected the size {sizes} of the header, ITK reads {shape}; save it again")
    geometry = Geometry(shape, _affine(reader, str(path)), np.dtype(_DTYPES[reader.GetPixelID()]), kind)
    return OpenVolume(geometry, None, partial(_read_voxels, reader, shape, path))


def _affine(reader: sitk.ImageFileReader, name: str) -> np.ndarray:
    n_axes = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(n_axes, n_axes)
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return check_affine(_LPS_TO_RAS @ affine, name)


def _read_voxels(reader: sitk.ImageFileReader, shape: tuple[int, ...], path: Path) -> np.ndarray:
    n_bytes = math.prod(shape) * np.dtype(_DTYPES[reader.GetPixelID()]).itemsize
    check_memory(2 * n_bytes, str(path))  # ITK's own and the array
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise VolumeError(f"{path}: truncated or damaged ({_reason(error)}); copy it again") from error
    return array.T.reshape(shape, order="F")  # ITK's arrays are (K, J, I)


def _reason(error: RuntimeError) -> str:
    """Return the last line of ITK's message that says why; "Reason:" is an unrelated errno of the system."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Reason:")]
    # "ITK ERROR: MetaImageIO(0x55b2f12c4cd0): …": an address helps nobody
    return re.sub(r"^ITK ERROR: \w+\(\w+\): ", "", lines[-1])[:200] if lines else "no reason given"


def _nrrd_header(path: Path) -> dict[str, str]:
    """Return a NRRD header's fields, their names in lower case without spaces, as it takes "datafile", too."""
    fields: list[tuple[str, str]] = []
    for line in _header_lines(path):
        if not line:  # without one the file ends with its header: the voxels are elsewhere
            break
        field = _NRRD_FIELD.fullmatch(line)
        if field is not None:
            fields.append((field[1].lower().replace(" ", ""), field[2]))
        elif not _NRRD_REMARK.match(line):
            raise VolumeError(f'{path}: expected "name: value" in the header, found {line[:80]!r}; save it again')
    return _once(fields, path)


def _meta_header(path: Path) -> dict[str, str]:
    """Return a MetaImage header's fields; upper and lower case differ, as they do for ITK."""
    fields: list[tuple[str, str]] = []
    for line in _header_lines(path):
        field = _META_FIELD.fullmatch(line)
        if field is None:
            raise VolumeError(f'{path}: expected "name = value" in the header, found {line[:80]!r}; save it again')
        fields.append((field[1], field[2].rstrip(" \t")))
        if field[1] == "ElementDataFile":
            return _once(fields, path)
    raise VolumeError(f"{path}: expected ElementDataFile at the header's end, found none; it is truncated or damaged")


def _header_lines(path: Path) -> Iterator[str]:
    """Yield a header's lines, without their ends. Raises VolumeError for what programs end in different places."""
    n_read = 0
    with path.open("rb") as file:
        while raw := file.readline(_HEADER_LIMIT):
            n_read += len(raw)
            line = raw.removesuffix(b"\n").removesuffix(b"\r")
            if n_read >= _HEADER_LIMIT or _CONTROL.search(line):
                raise VolumeError(f"{path}: expected lines of text as a header, found {line[:80]!r}; it is damaged")
            yield os.fsdecode(line)  # as a file's name would be


def _once(fields: list[tuple[str, str]], path: Path) -> dict[str, str]:
    for name, count in Counter(name.lower() for name, _ in fields).items():
        if count > 1:  # which of them counts is not the same in every program
            raise VolumeError(f"{path}: expected {name} once in the header, found it twice; save it again")
    return dict(fields)


def _nrrd(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], int, Path, bool]:
    """Return what a NRRD header claims: sizes, bytes of voxels at least, where they are, whether compressed."""
    space = fields.get("space", "").strip().lower()
    if space not in _NRRD_SPACES or "spacedirections" not in fields:
        raise VolumeError(
            f"{path}: expected a space ({', '.join(sorted(_NRRD_SPACES))}) and space directions, "
            f"found {space or 'none'}: left and right are unknown; save it again with its orientation"
        )
    sizes, item = _integers(fields, "sizes", path), _item_size(fields.get("type", "").strip(), path)
    _check_axes(fields, "dimension", sizes, path)
    encoding = fields.get("encoding", "").strip().lower()
    least = {"raw": item, "gzip": item, "gz": item, "hex": 2 * item, "ascii": 2, "text": 2, "txt": 2}
    if encoding not in least:
        raise VolumeError(f"{path}: expected the encoding raw, gzip, hex or ascii, found {encoding or 'none'}")
    n_bytes = least[encoding] * math.prod(sizes)
    data_path = _data_path(fields["datafile"], path) if "datafile" in fields else path
    return sizes, n_bytes, data_path, encoding.startswith("gz")


def _meta(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], int, Path, bool]:
    """Return what a MetaImage header claims: sizes, bytes of voxels, where they are, whether compressed."""
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        raise VolumeError(f"{path}: expected ElementSpacing in the header, found none: the voxel size is unknown")
    sizes = _integers(fields, "DimSize", path)
    _check_axes(fields, "NDims", sizes, path)
    _check_meta_numbers(fields, len(sizes), path)
    n_bytes = math.prod(sizes) * _item_size(fields.get("ElementType", ""), path)
    compressed = fields.get("CompressedData", "").lower() in ("true", "1", "yes")
    name = fields["ElementDataFile"]
    data_path = path if name in _META_LOCAL else _data_path(name, path)
    if compressed and "CompressedDataSize" in fields:  # ITK allocates what stands there
        held = _integers(fields, "CompressedDataSize", path)[0]
        check_data_size(held, data_path.stat().st_size, compressed=False, name=str(path))
    return sizes, n_bytes, data_path, compressed


def _check_axes(fields: dict[str, str], field: str, sizes: tuple[int, ...], path: Path) -> None:
    n_axes = _integers(fields, field, path)[0]
    if n_axes != len(sizes) or n_axes > _MAX_AXES:
        raise VolumeError(f"{path}: expected 3 axes, the header claims {n_axes} and {len(sizes)} sizes; it is damaged")


def _check_meta_numbers(fields: dict[str, str], n_axes: int, path: Path) -> None:
    for field in _META_LISTS.keys() & fields.keys():
        numbers, expected = _numbers(fields[field]), n_axes ** _META_LISTS[field]
        if len(numbers) != expected or not all(map(math.isfinite, numbers)):
            raise VolumeError(
                f"{path}: expected {expected} numbers in the header's {field}, found {fields[field][:80]!r}; "
                "it is damaged"
            )
        if field in ("ElementSpacing", "ElementSize") and min(numbers) <= 0:
            raise VolumeError(f"{path}: expected a positive voxel size in mm, found {field} {numbers}; correct it")
    if fields.get("ElementNumberOfChannels", "1").strip() != "1":
        found = fields["ElementNumberOfChannels"][:40]
        raise VolumeError(f"{path}: expected one real number a voxel, found {found!r}; export a grey-scale volume")


def _numbers(words: str) -> list[float]:
    """Return the numbers of a field, NaN for what is none."""
    found = []
    for word in words.split():
        try:
            found.append(float(word) if re.fullmatch(r"[-+.0-9eE]+", word) else math.nan)
        except ValueError:
            found.append(math.nan)
    return found


def _integers(fields: dict[str, str], field: str, path: Path) -> tuple[int, ...]:
    words = fields.get(field, "").split()
    if not words or not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words):
        raise VolumeError(f"{path}: expected whole numbers in the header's {field}, found {fields.get(field)!r}")
    return tuple(int(word) for word in words)


def _item_size(word: str, path: Path) -> int:
    """Return the bytes of a voxel by NRRD's ("unsigned short", "int16") or MetaImage's ("MET_USHORT") type name."""
    plain = re.sub(r"unsigned|signed|met_|[ _]|(?<=\d)t$", "", word.lower()).lstrip("u") or "int"
    sizes = {"char": 1, "int8": 1, "short": 2, "shortint": 2, "int16": 2, "int": 4, "int32": 4, "float": 4,
             "long": 4, "longlong": 8, "longlongint": 8, "int64": 8, "double": 8}  # fmt: skip
    if plain not in sizes or not word:
        raise VolumeError(f"{path}: expected a number type in the header, found {word!r}")
    return sizes[plain]


def _data_path(name: str, path: Path) -> Path:
    """Return the file that holds the voxels; it has to lie in the header's folder or below."""
    if not name or name.upper().startswith("LIST") or "%" in name:
        raise VolumeError(f"{path}: expected the voxels in one file, the header names {name!r}; save it as one file")
    # NRRD keeps a space at the end and reads "-" from the terminal, MetaImage calls "~" the start of a whole path.
    if name != name.strip() or name == "-" or name.startswith("~"):
        raise VolumeError(f"{path}: expected a plain file name in the header, found {name!r}; rename the file")
    data_path = beside(path, name)
    if not os.access(data_path, os.R_OK):  # ITK would try NAME.gz and NAME.Z, which nobody has judged
        raise VolumeError(f"{path}: its other half {name} cannot be read; check its permissions")
    return data_path
