"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files through SimpleITK, LPS turned to RAS+ here.

ITK fills in what a header lacks (orientation, voxel size) and follows a detached header to any file of the machine.
So the text header is read here first: what it names, claims or leaves out is judged before ITK sees it.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from transforms.grid import Geometry, OpenVolume, VolumeError, check_affine, check_data_size, check_shape

_HEADER_LIMIT = 2**20
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# The spaces that ITK's NRRD reader turns to LPS; every other one it passes on as if it were LPS.
_NRRD_SPACES = {
    "lps", "ras", "las", "left-posterior-superior", "right-anterior-superior", "left-anterior-superior",
}  # fmt: skip
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
    fields = _text_header(path)
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    sizes, n_bytes, data_path, compressed = _nrrd(fields, path) if is_nrrd else _meta(fields, path)
    check_shape(sizes, str(path))
    check_data_size(n_bytes, data_path.stat().st_size, compressed=compressed, name=str(path))
    reader = sitk.ImageFileReader()
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
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise VolumeError(f"{path}: truncated or damaged ({_reason(error)}); copy it again") from error
    return array.T.reshape(shape, order="F")  # ITK's arrays are (K, J, I)


def _reason(error: RuntimeError) -> str:
    """Return the last line of ITK's message, which is the one that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"


def _text_header(path: Path) -> dict[str, str]:
    """Return the header's fields, names in lower case; where a field stands twice, the last."""
    fields: dict[str, str] = {}
    n_read = 0
    with path.open("rb") as file:
        while n_read < _HEADER_LIMIT and (line := file.readline(_HEADER_LIMIT)).strip():
            n_read += len(line)
            field = re.match(r"([^:=#]+?)\s*[:=]=?\s*(.*)", line.decode("latin-1").strip())
            if field:
                fields[field[1].lower()] = field[2]
                if field[1] == "ElementDataFile":  # a MetaImage header ends with it, a NRRD header with an empty line
                    break
    return fields


def _nrrd(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], int, Path, bool]:
    """Return what a NRRD header claims: sizes, bytes of voxels at least, where they are, whether compressed."""
    space = fields.get("space", "").lower()
    if space not in _NRRD_SPACES or "space directions" not in fields:
        raise VolumeError(
            f"{path}: expected a space ({', '.join(sorted(_NRRD_SPACES))}) and space directions, "
            f"found {space or 'none'}: left and right are unknown; save it again with its orientation"
        )
    sizes, item = _integers(fields, "sizes", path), _item_size(fields.get("type", ""), path)
    encoding = fields.get("encoding", "").lower()
    least = {"raw": item, "gzip": item, "gz": item, "hex": 2 * item, "ascii": 2, "text": 2, "txt": 2}
    if encoding not in least:
        raise VolumeError(f"{path}: expected the encoding raw, gzip, hex or ascii, found {encoding or 'none'}")
    n_bytes = least[encoding] * _product(sizes)
    data_path = _data_path(fields.get("data file", fields.get("datafile", "LOCAL")), path)
    return sizes, n_bytes, data_path, encoding.startswith("gz")


def _meta(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], int, Path, bool]:
    """Return what a MetaImage header claims: sizes, bytes of voxels, where they are, whether compressed."""
    if "elementspacing" not in fields and "elementsize" not in fields:
        raise VolumeError(f"{path}: expected ElementSpacing in the header, found none: the voxel size is unknown")
    sizes = _integers(fields, "dimsize", path)
    n_bytes = _product(sizes) * _item_size(fields.get("elementtype", ""), path)
    compressed = fields.get("compresseddata", "").lower() in ("true", "1", "yes")
    return sizes, n_bytes, _data_path(fields.get("elementdatafile", ""), path), compressed


def _integers(fields: dict[str, str], field: str, path: Path) -> tuple[int, ...]:
    words = fields.get(field, "").split()
    if not words or not all(re.fullmatch(r"[0-9]{1,18}", word) for word in words):
        raise VolumeError(f"{path}: expected whole numbers in the header's {field}, found {fields.get(field)!r}")
    return tuple(int(word) for word in words)


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:  # Python's integers, which do not overflow on a hostile header
        product *= size
    return product


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
    if name.upper() == "LOCAL":
        return path
    if not name or name.upper().startswith("LIST") or "%" in name:
        raise VolumeError(f"{path}: expected the voxels in one file, the header names {name!r}; save it as one file")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise VolumeError(
            f"{path}: the header names voxels outside its own folder ({name}); put them beside the header"
        )
    if not (path.parent / name).is_file():
        raise VolumeError(f"{path}: its voxels, {name}, are missing beside it")
    return path.parent / name
