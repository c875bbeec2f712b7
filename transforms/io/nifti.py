"""NIfTI-1 and NIfTI-2 files (.nii, .nii.gz, .hdr/.img): header through nibabel, voxels bounded by the header.

nibabel repairs odd headers in silence (negative pixdim, missing orientation) and stops reading before gzip's check
sum; so the header is taken unrepaired and judged here, and the voxels are read here to the stream's end.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

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

logger = logging.getLogger(__name__)

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MAGIC = {b"n+1\0": True, b"n+2\0": True, b"ni1\0": False, b"ni2\0": False}  # whether voxels follow in the same file
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
_TRAILING_LIMIT = 2**20
_OFFSET_LIMIT = 2**28  # bytes of header extensions: a DICOM header or a protocol takes under a megabyte


def open_nifti(path: Path) -> OpenVolume:
    """Read and check the header of a NIfTI file.

    The affine is the sform where its code is above 0, else the qform; scaled to mm where the header says metre or
    micron, as ITK does. A file with both codes 0 has no orientation and is refused: the fallbacks of nibabel and
    ITK disagree about left and right, so either would be a guess.

    Raises:
        VolumeError: not a NIfTI file, truncated, no orientation, singular or not finite affine, no real numbers.
    """
    header_path, data_path = _pair(path)
    header, single = _read_header(header_path)
    name = str(path)
    data_path = header_path if single else data_path
    stored = _stored_dtype(header, name)
    shape = check_shape(_claimed_shape(header, name), name)
    affine = check_affine(_affine(header, shape, name), name)
    offset, scale = _offset(header, single, name), _scale(header, name)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * stored.itemsize
    check_data_size(offset + n_bytes, data_path.stat().st_size, compressed=_is_gzip(data_path), name=name)
    dtype = np.dtype(np.float32) if scale else stored.newbyteorder("=")
    read = partial(_read_voxels, data_path, shape, stored, offset, scale)
    return OpenVolume(Geometry(shape, affine, dtype, "nifti"), None, read)


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
    opened = gzip.open if _is_gzip(path) else Path.open
    try:
        with opened(path, "rb") as file:
            block = file.read(540)
    except (EOFError, OSError, zlib.error) as error:
        raise VolumeError(f"{path}: expected a NIfTI file, found damaged gzip ({error}); copy it again") from error
    for size, header_class in _HEADERS.items():
        if size in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")) and len(block) >= size:
            magic = block[344:348] if size == 348 else block[4:8]
            if magic not in _MAGIC:
                raise VolumeError(f"{path}: an ANALYZE 7.5 file, which has no orientation; convert it to NIfTI")
            return _parse(header_class, block[:size], path), _MAGIC[magic]
    raise VolumeError(f"{path}: expected a NIfTI file, found something else (its first bytes are {block[:4]!r})")


def _parse(header_class: type[nib.Nifti1Header], block: bytes, path: Path) -> nib.Nifti1Header:
    try:
        return header_class(block, check=False)
    except (WrapStructError, HeaderDataError) as error:
        raise VolumeError(f"{path}: the NIfTI header is damaged ({error})") from error


def _stored_dtype(header: nib.Nifti1Header, name: str) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise VolumeError(f"{name}: unknown voxel type ({error})") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise VolumeError(f"{name}: expected one real number a voxel, found {dtype}; export a grey-scale volume")
    return dtype


def _claimed_shape(header: nib.Nifti1Header, name: str) -> tuple[int, ...]:
    n_axes = int(header["dim"][0])
    if not 1 <= n_axes <= 7:
        raise VolumeError(f"{name}: expected 3 axes, the header claims {n_axes}; it is damaged")
    return tuple(int(n) for n in header["dim"][1 : n_axes + 1])


def _affine(header: nib.Nifti1Header, shape: tuple[int, ...], name: str) -> np.ndarray:
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        raise VolumeError(
            f"{name}: expected an orientation, found sform_code {sform_code} and qform_code {qform_code}: "
            "left and right are unknown; set the affine with a code (nibabel: set_sform(affine, 1)), save again"
        )
    sform = header.get_sform() if sform_code > 0 else None
    qform = _qform(header, name, needed=sform is None) if qform_code > 0 else None
    if sform is not None and qform is not None:
        _warn_if_apart(sform, qform, shape, name)
    affine = qform if sform is None else sform
    assert affine is not None  # one of the codes is positive
    return np.diag([*[_unit_mm(header)] * 3, 1.0]) @ affine


def _qform(header: nib.Nifti1Header, name: str, *, needed: bool) -> np.ndarray | None:
    """Return the quaternion's affine; None if it is unusable and not needed."""
    spacing = header["pixdim"][1:4].astype(float)
    problem = "" if np.isfinite(spacing).all() and spacing.min() > 0 else f"spacing {spacing.tolist()}"
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # NIfTI-1 standard: qfac 0 counts as 1
    try:
        affine = None if problem else header.get_qform()
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        affine, problem = None, str(error)
    if affine is None and needed:
        raise VolumeError(f"{name}: expected a positive spacing and a unit quaternion, found {problem}")
    return affine


def _warn_if_apart(sform: np.ndarray, qform: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    far = np.array([n - 1 for n in shape[:3]] + [1.0])
    distance, edge = np.linalg.norm((sform - qform) @ far), np.linalg.norm(sform[:3, :3], axis=0).min()
    if distance > edge:
        logger.warning("%s: sform and qform differ by %.3g mm at the far corner; the sform is used", name, distance)


def _unit_mm(header: nib.Nifti1Header) -> float:
    try:
        return _MM.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:  # a code outside the standard
        return 1.0


def _offset(header: nib.Nifti1Header, single: bool, name: str) -> int:
    """Return where the voxels begin; a single file puts them behind its own header (`single_vox_offset`: 352, 544).

    At a lower offset, which some writers leave at 0, nibabel reads the header as voxels and ITK reads at byte 348.
    """
    offset = float(header["vox_offset"])
    least = header.single_vox_offset if single else 0
    if not 0 <= offset <= _OFFSET_LIMIT:
        raise VolumeError(f"{name}: expected the voxels at a byte of the file, the header puts them at {offset:g}")
    if offset < least:
        raise VolumeError(
            f"{name}: expected the voxels behind the header, at byte {least} or later, found vox_offset {offset:g} "
            "inside it; correct vox_offset, or export the volume again"
        )
    return int(offset)


def _scale(header: nib.Nifti1Header, name: str) -> tuple[float, float] | None:
    """Return slope and intercept; None where the stored numbers are the values (slope 0 or none: NIfTI-1 standard)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return None
    if not np.isfinite(intercept):
        raise VolumeError(f"{name}: expected a finite scl_inter beside scl_slope {slope:g}, found {intercept}")
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
    opened = gzip.open if _is_gzip(path) else Path.open
    try:
        with opened(path, "rb") as file:
            file.seek(offset)
            filled = 0
            while filled < len(target):
                n_bytes = file.readinto(target[filled : filled + 2**22])
                if not n_bytes:
                    raise VolumeError(f"{path}: truncated, {len(target)} bytes of voxels expected, {filled} found")
                filled += n_bytes
            # gzip compares its check sum only at the end of the stream, which lies behind the last voxel.
            if len(file.read(_TRAILING_LIMIT)) == _TRAILING_LIMIT and opened is gzip.open:
                raise VolumeError(f"{path}: more data than its header claims; the header is damaged")
    except (EOFError, OSError, zlib.error) as error:
        raise VolumeError(f"{path}: truncated or damaged ({error}); copy it again") from error
