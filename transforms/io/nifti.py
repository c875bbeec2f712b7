"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz, .hdr/.img): header through nibabel, voxels bounded by the header.

nibabel repairs odd headers in silence (negative pixdim, missing orientation) and stops reading before gzip's check
sum; so the header is taken unrepaired and judged here, and the voxels are read here to the stream's end. They are
unpacked by Intel's ISA-L, in less than half of zlib's time.
"""

from __future__ import annotations

import gzip
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from transforms.io.detached import beside
from transforms.io.errors import VolumeError
from transforms.io.grid import Affine, Geometry, OpenVolume, check_affine, check_data_size, check_memory, check_shape

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MAGIC = {b"n+1\0": True, b"n+2\0": True, b"ni1\0": False, b"ni2\0": False}  # whether voxels follow in the same file
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
_DAMAGED: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, isal_zlib.error)  # type: ignore[assignment]
_TRAILING_LIMIT = 2**20
_OFFSET_LIMIT = 2**28  # bytes of header extensions: a DICOM header or a protocol takes under a megabyte


def open_nifti(path: Path) -> OpenVolume:
    """Read and check the header of a NIfTI file.

    The affine is the sform where its code is above 0, else the qform; scaled to mm where the header says metre or
    micron, as ITK does. A file with both codes 0 has no orientation and is refused: the fallbacks of nibabel and
    ITK disagree about left and right, so either would be a guess.

    Raises:
        VolumeError: not a NIfTI file, truncated, no orientation, singular or not finite affine, no real numbers.
        OSError: the file cannot be opened.
    """
    header_path, data_path = _pair(path)
    header, single = _read_header(header_path)
    where = str(path)
    data_path = header_path if single else data_path
    stored = _stored_dtype(header, where)
    shape = check_shape(_claimed_shape(header, where), where)
    affine, form_gap_mm = _affine(header, shape, where)
    offset, scale = _offset(header, single, where), _scale(header, where)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * stored.itemsize
    check_data_size(offset + n_bytes, data_path.stat().st_size, compressed=_is_gzip(data_path), where=where)
    dtype = np.dtype(np.float32) if scale else stored.newbyteorder("=")
    geometry = Geometry(shape, check_affine(affine, where), dtype, "nifti", form_gap_mm=form_gap_mm)
    return OpenVolume(geometry, partial(_read_voxels, data_path, shape, stored, offset, scale))


def stored_header(path: Path) -> nib.Nifti1Header:
    """Return the header of a NIfTI file (of either file of a pair) as it is stored, nothing repaired.

    Raises:
        VolumeError: not a NIfTI file.
        OSError: the file cannot be opened.
    """
    return _read_header(_pair(path)[0])[0]


def _pair(path: Path) -> tuple[Path, Path]:
    suffixes = {".hdr": ".img", ".img": ".hdr"}
    other = suffixes.get(path.suffix.lower())
    if other is None:
        return path, path
    partner = beside(path, path.with_suffix(other).name)
    return (partner, path) if other == ".hdr" else (path, partner)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read_header(path: Path) -> tuple[nib.Nifti1Header, bool]:
    """Return the header, unrepaired, and whether the voxels are in the same file."""
    opened = gzip.open if _is_gzip(path) else Path.open  # ISA-L's reads half a megabyte at once
    try:
        with opened(path, "rb") as file:
            block = file.read(540)
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    for size, header_class in _HEADERS.items():
        if size in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")) and len(block) >= size:
            magic = block[344:348] if size == 348 else block[4:8]
            if magic not in _MAGIC:
                found = "an ANALYZE 7.5 file, which has no orientation"
                raise VolumeError("no_orientation", path, "a NIfTI file", found, "convert it to NIfTI")
            return _parse(header_class, block[:size], path), _MAGIC[magic]
    found = f"something else (its first bytes are {block[:4]!r})"
    raise VolumeError("unreadable", path, "a NIfTI file", found, "copy it again, or give it the suffix of its format")


def _parse(header_class: type[nib.Nifti1Header], block: bytes, path: Path) -> nib.Nifti1Header:
    try:
        return header_class(block, check=False)
    except (WrapStructError, HeaderDataError) as error:
        raise VolumeError("unreadable", path, "a NIfTI header", f"a damaged one ({error})", "copy it again") from error


def _stored_dtype(header: nib.Nifti1Header, where: str) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        found = f"an unknown voxel type ({error})"
        raise VolumeError("unreadable", where, "one real number a voxel", found, "export it again") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError("not_grey_scale", where, "one real number a voxel", str(dtype), "export a grey-scale volume")
    return dtype


def _claimed_shape(header: nib.Nifti1Header, where: str) -> tuple[int, ...]:
    n_axes = int(header["dim"][0])
    if not 1 <= n_axes <= 7:
        found = f"{n_axes} in a damaged header"
        raise VolumeError("unreadable", where, "3 axes", found, "copy it again")
    return tuple(int(n) for n in header["dim"][1 : n_axes + 1])


def _affine(header: nib.Nifti1Header, shape: tuple[int, ...], where: str) -> tuple[Affine, float]:
    """Return the affine, and how many mm sform and qform lie apart at the far corner (0 where one is missing)."""
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        found = f"sform_code {sform_code} and qform_code {qform_code}: left and right are unknown"
        remedy = "set the affine with a code (nibabel: set_sform(affine, 1)), save again"
        raise VolumeError("no_orientation", where, "an orientation", found, remedy)
    to_mm = np.diag([*[_unit_mm(header)] * 3, 1.0])
    if sform_code <= 0:
        return to_mm @ _qform(header, where), 0.0
    sform = to_mm @ header.get_sform()
    if qform_code <= 0:
        return sform, 0.0
    try:
        qform = to_mm @ _qform(header, where)
    except VolumeError:
        return sform, 0.0  # an unusable qform beside a good sform harms nobody who reads the sform
    far_corner = np.array([n - 1 for n in shape[:3]] + [1.0])
    return sform, float(np.linalg.norm((sform - qform) @ far_corner))


def _qform(header: nib.Nifti1Header, where: str) -> Affine:
    """Return the quaternion's affine, in the header's unit. Raises VolumeError if it is unusable."""
    spacing = header["pixdim"][1:4].astype(float)
    problem = "" if np.isfinite(spacing).all() and spacing.min() > 0 else f"spacing {spacing.tolist()}"
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # NIfTI-1 standard: qfac 0 counts as 1
    if not problem:
        try:
            return header.get_qform()
        except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
            problem = str(error)
    raise VolumeError("bad_affine", where, "a positive spacing and a unit quaternion", problem, "repair the header")


def _unit_mm(header: nib.Nifti1Header) -> float:
    try:
        return _MM.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:  # a code outside the standard
        return 1.0


def _offset(header: nib.Nifti1Header, single: bool, where: str) -> int:
    """Return where the voxels begin; a single file puts them behind its own header (`single_vox_offset`: 352, 544).

    At a lower offset, which some writers leave at 0, nibabel reads the header as voxels and ITK reads at byte 348.
    """
    offset = float(header["vox_offset"])
    least = header.single_vox_offset if single else 0
    expected, remedy = f"the voxels at byte {least} or later", "correct vox_offset, or export the volume again"
    if not 0 <= offset <= _OFFSET_LIMIT:
        raise VolumeError("unreadable", where, expected, f"vox_offset {offset:g}", remedy)
    if offset < least:
        found = f"vox_offset {offset:g} inside it"
        raise VolumeError("unreadable", where, f"the voxels behind the header, at byte {least} or later", found, remedy)
    return int(offset)


def _scale(header: nib.Nifti1Header, where: str) -> tuple[float, float] | None:
    """Return slope and intercept; None where the stored numbers are the values (slope 0 or none: NIfTI-1 standard)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return None
    if not np.isfinite(intercept):
        expected = f"a finite scl_inter beside scl_slope {slope:g}"
        raise VolumeError("unreadable", where, expected, f"{intercept}", "correct the header, or export it again")
    return slope, intercept


def _read_voxels(
    path: Path, shape: tuple[int, ...], stored: np.dtype, offset: int, scale: tuple[float, float] | None
) -> np.ndarray:
    n_voxels = int(np.prod(shape, dtype=np.int64))
    check_memory(n_voxels * (stored.itemsize + (4 if scale else 0)), str(path))
    array = np.empty(shape, dtype=stored, order="F")
    _fill(array.reshape(-1, order="F").view(np.uint8).data, path, offset)
    if scale is None:
        return array if stored.isnative else array.astype(stored.newbyteorder("="))
    slope, intercept = scale
    scaled = np.empty(shape, dtype=np.float32, order="F")
    for k in range(shape[2]):  # slice by slice in float64, rounded once: exact, and no float64 copy of the volume
        scaled[:, :, k] = array[:, :, k].astype(np.float64) * slope + intercept
    return scaled


def _fill(target: memoryview, path: Path, offset: int) -> None:
    opened = igzip.open if _is_gzip(path) else Path.open
    try:
        with opened(path, "rb") as file:
            file.seek(offset)
            filled = 0
            while filled < len(target):
                n_bytes = file.readinto(target[filled : filled + 2**22])
                if not n_bytes:
                    found = f"{filled} in a truncated file"
                    raise VolumeError("unreadable", path, f"{len(target)} bytes of voxels", found, "copy it again")
                filled += n_bytes
            # gzip compares its check sum only at the end of the stream, which lies behind the last voxel.
            if len(file.read(_TRAILING_LIMIT)) == _TRAILING_LIMIT and opened is igzip.open:
                expected = f"the {len(target)} bytes of voxels that its header claims"
                raise VolumeError("unreadable", path, expected, "more: the header is damaged", "export it again")
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> VolumeError:
    found = f"a truncated or damaged one ({error})"
    return VolumeError("unreadable", path, "a whole, readable volume", found, "copy it again")
