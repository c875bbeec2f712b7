"""A folder with a CT or MR series in DICOM: headers by pydicom, checked to be one regular volume; pixels by SimpleITK.

Readers commonly drop a gantry tilt and average uneven slice steps in silence. Here a series is a volume only if
its slices lie where one affine says they lie. Multi-frame objects are refused.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)
from jaxtyping import Float64
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

from transforms.io.errors import VolumeError
from transforms.io.grid import LPS_TO_RAS, Affine, Geometry, OpenVolume, check_affine, check_memory, check_shape
from transforms.io.itk import name_for_itk

logger = logging.getLogger(__name__)

STEP_TOLERANCE = 0.1
"""How far a slice may lie from its regular place, as a share of the slice step; positions are often rounded."""

TILT_TOLERANCE_PIXELS = 0.5
"""How far the last slice may have drifted sideways from the first one's normal (a sheared stack: gantry tilt), and any
slice from the line between the two."""

_DIRECTION_TOLERANCE = 1e-3  # of a direction cosine between slices, 0.06 degrees
_SUFFIXES = {".dcm", ".dicom", ".ima"}  # names that promise DICOM: any other content is an error
# What pydicom raises on damaged headers, at reading or when a value is first read.
_DAMAGE = (
    InvalidDicomError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError,
    BytesLengthException, struct.error, zlib.error, RecursionError, MemoryError,
)  # fmt: skip
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC", "DICOMDIR"}
"""Modalities of objects that hold no picture of a patient."""
_COLOURS = ("PALETTE", "RGB", "YBR", "HSV", "ARGB", "CMYK")
"""Beginnings of the values of PhotometricInterpretation that make colours of a sample."""
_REQUIRED = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
_MAX_SLICE_PIXELS = 2**26  # 8192 × 8192; what a header claims beyond, the decoder would allocate first
_META_START = 144  # preamble, "DICM", and the element with the length of the file meta information (DICOM PS3.10, 7.1)
_MAX_INFLATED = 2**28  # bytes of a deflated file, which pydicom unpacks as a whole


@dataclass(frozen=True, eq=False)
class _Slice:
    """What one file's header says of its slice; lengths in mm, positions and directions in LPS."""

    path: Path
    series: str
    modality: str
    size: tuple[int, int]  # columns, rows
    spacing: tuple[float, float]  # along a row, along a column
    position: np.ndarray
    directions: np.ndarray  # (2, 3): along a row, along a column
    tilt: str
    lowest: float
    highest: float
    scale: tuple[float, float]  # slope, intercept
    inverted_about: int | None  # MONOCHROME1 (the lowest value is white): what GDCM subtracts the stored values from


def holds_dicom(folder: Path) -> bool:
    """Say whether any file of the folder starts as DICOM does. Raises OSError if none does and one cannot be read."""
    unreadable: OSError | None = None
    for path in _files(folder):
        try:
            if is_dicom(path):
                return True
        except OSError as error:
            unreadable = unreadable or error
    if unreadable is not None:
        raise unreadable
    return False


def holds_pictures(folder: Path) -> bool:
    """Say whether any DICOM file of the folder may be a slice: all but segmentations, reports, plans and the like."""
    for path in _files(folder):
        try:
            with pydicom.config.disable_value_validation():
                if not is_dicom(path):
                    continue
                header = pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True)
                if header.get("Modality") not in _NO_IMAGES:
                    return True
        except (OSError, *_DAMAGE):
            return True  # reading it as a series says what is wrong
    return False


def series_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of the folder's one series, sorted along its normal. Raises as `open_series` does."""
    return tuple(part.path for part in _sorted_series(folder))


def open_series(folder: Path) -> OpenVolume:
    """Read the headers of a DICOM series and check that its slices make one volume.

    Axis i runs along the rows, j along the columns, k along the normal; the third column of the affine is the mean step
    between slices. Values are rescaled (HU for a CT); the dtype is the smallest integer type that holds every possible
    value, float32 where slope or intercept is not integral. MONOCHROME1, which tells viewers to show low values
    white, changes nothing. Files that are not DICOM and objects that are neither CT nor MR are passed over.

    Raises:
        VolumeError: no or several series, slices missing, double, unevenly spaced or sheared (gantry tilt), of several
            sizes or orientations, multi-frame or colour objects; a damaged file.
    """
    slices = _sorted_series(folder)
    for part in slices:
        name_for_itk(part.path)
    affine = check_affine(_affine(slices), str(folder))
    columns, rows = slices[0].size
    shape = check_shape((columns, rows, len(slices)), str(folder))
    geometry = Geometry(shape, affine, _dtype(slices), "dicom", slices[0].modality)
    return OpenVolume(geometry, partial(_read_voxels, slices, shape, geometry.dtype))


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # says what an entry is without a question for each
        found = [entry for entry in entries if not entry.name.startswith(".")]
    paths = {folder / entry.name: entry for entry in found}
    return sorted(path for path, entry in paths.items() if (path if entry.is_symlink() else entry).is_file())


def is_dicom(path: Path) -> bool:
    """Say whether a file starts as DICOM files do (PS3.10, 7.1). Raises OSError."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _sorted_series(folder: Path) -> list[_Slice]:
    others: Counter[str] = Counter()
    slices = list(_slices(folder, others))
    if len(slices) < 2:
        raise _too_few(slices, others, folder)
    _same_series(slices, folder)
    _same("picture size", [part.size for part in slices], slices, folder)
    _same("pixel spacing", [tuple(round(s, 4) for s in part.spacing) for part in slices], slices, folder)
    directions = np.stack([part.directions for part in slices])
    odd = np.abs(directions - np.median(directions, axis=0)).max(axis=(1, 2)) > _DIRECTION_TOLERANCE
    _same(
        "orientation",
        [str(np.round(d, 3).tolist()) if o else "" for d, o in zip(directions, odd, strict=True)],
        slices,
        folder,
    )
    normal = _normal(slices[0], folder)
    slices.sort(key=lambda part: (float(part.position @ normal), part.path.name))
    _check_steps(slices, normal, folder)
    return slices


def _too_few(slices: Sequence[_Slice], others: Counter[str], folder: Path) -> VolumeError:
    if not slices and not others:
        found = "a folder without DICOM files"
        return VolumeError("unreadable", folder, "a DICOM folder", found, "convert it, or name the volume itself")
    found = f"one slice, {slices[0].path.name}" if slices else "none"
    passed_over = ", ".join(f"{count} of modality {modality}" for modality, count in others.most_common())
    if passed_over:
        found += f", and {passed_over}" if slices else f", but {passed_over}"
    remedy = "export the whole series, or name the folder that holds it"
    if others and not slices:
        remedy = "name the folder of a CT or MR series"
        if not others.keys() <= _NO_IMAGES:
            remedy = f"convert it to NIfTI (dcm2niix does), or {remedy}"
    return VolumeError("dicom_too_few_slices", folder, "a CT or MR series of at least two slices", found, remedy)


def _slices(folder: Path, others: Counter[str]) -> Iterator[_Slice]:
    """Yield the slices of a folder; objects that are neither CT nor MR are counted by modality."""
    for path in _files(folder):
        if not is_dicom(path):
            if path.suffix.lower() in _SUFFIXES:
                raise VolumeError("unreadable", path, "a DICOM file", "something else", "copy it again or remove it")
            logger.debug("%s: not DICOM, passed over", path)
            continue
        found = _read_slice(path)
        if isinstance(found, _Slice):
            yield found
        else:
            others[found] += 1
    if others:
        logger.debug("%s: objects that are neither CT nor MR passed over: %s", folder, dict(others))


def _read_slice(path: Path) -> _Slice | str:
    """Return what the header says, or just the modality of an object that is neither CT nor MR."""
    try:
        # Odd values in elements that are not used do no harm.
        with path.open("rb") as file, pydicom.config.disable_value_validation():
            _refuse_bomb(file, path)
            header = pydicom.dcmread(file, stop_before_pixels=True)
            if header.get("Modality") not in ("CT", "MR"):
                return str(header.get("Modality", "DICOMDIR"))
            _check_single_grey_slice(header, path)
            if "ModalityLUTSequence" in header:
                expected, remedy = "rescale slope and intercept", "convert it to NIfTI with its table applied"
                raise VolumeError("unreadable", path, expected, "a modality lookup table", remedy)
            _check_structure(header, path)
            _check_pixels(header, file, path)
            return _parsed(header, path)
    except VolumeError:
        raise
    except _DAMAGE as error:
        found = f"an unreadable element ({' '.join(str(error).split())})"
        raise VolumeError("unreadable", path, "a DICOM header", found, "export the series again") from error


def refuse_many_frames(path: Path) -> None:
    """Raise VolumeError for a DICOM file of several frames: no folder makes a series of it."""
    try:
        with pydicom.config.disable_value_validation():
            header = pydicom.dcmread(path, specific_tags=["NumberOfFrames"], stop_before_pixels=True)
            n_frames = int(header.get("NumberOfFrames") or 1)
    except (OSError, *_DAMAGE):
        return
    if n_frames > 1:
        raise _many_frames(path, n_frames)


def _many_frames(path: Path, n_frames: int) -> VolumeError:
    found, remedy = f"a multi-frame object of {n_frames} frames", "convert it to NIfTI (dcm2niix does)"
    return VolumeError("not_grey_scale", path, "one grey-scale slice a file", found, remedy)


def _check_single_grey_slice(header: pydicom.Dataset, path: Path) -> None:
    """Raise VolumeError for several frames, for colour, and where an element that places the slice is missing."""
    n_frames = int(header.get("NumberOfFrames") or 1)
    n_samples = int(header.get("SamplesPerPixel") or 1)
    expected = "one grey-scale slice a file"
    if n_frames > 1:
        raise _many_frames(path, n_frames)
    if n_samples > 1:
        found = f"a colour picture ({n_samples} samples a pixel), such as a screenshot"
        raise VolumeError("not_grey_scale", path, expected, found, "remove it, or export the grey-scale series")
    if (meaning := str(header.get("PhotometricInterpretation"))).startswith(_COLOURS):
        found = f"a picture whose stored values are colours (PhotometricInterpretation {meaning:.40})"
        raise VolumeError("not_grey_scale", path, expected, found, "remove it, or export the grey-scale series")
    missing = [keyword for keyword in _REQUIRED if header.get(keyword) in (None, "")]
    if missing:
        expected, found = "a slice whose header says where it lies", f"no {', '.join(missing)}"
        raise VolumeError("unreadable", path, expected, found, "export the series again")


def _refuse_bomb(file: BinaryIO, path: Path) -> None:
    """Refuse a deflated file that unpacks to more than any slice has, before pydicom unpacks it."""
    deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(4096)  # the file meta information comes first
    if deflated:
        meta = pydicom.filereader.read_file_meta_info(path)
        file.seek(_META_START + int(meta.FileMetaInformationGroupLength))
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), _MAX_INFLATED)
        if len(unpacked) == _MAX_INFLATED:
            raise VolumeError("unreadable", path, "one slice", f"over {_MAX_INFLATED >> 20} MiB in it", "copy it again")
    file.seek(0)


def _check_structure(header: pydicom.Dataset, path: Path) -> None:
    """Refuse unknown value representations: GDCM reads on from there at random, and allocates what it reads."""
    used = {part.get_item(tag).VR for part in (header, header.file_meta) for tag in part.keys()}  # noqa: SIM118
    if unknown := used - set(VR) - {None}:  # None: implicit
        found = f"a damaged one (value representation {min(unknown)!r})"
        raise VolumeError("unreadable", path, "a DICOM header", found, "copy it again")


def _check_pixels(header: pydicom.Dataset, file: BinaryIO, path: Path) -> None:
    """Refuse pixels that are cut short or missing; GDCM would first allocate what the header claims, up to 4 GB."""
    n_pixels = int(header.Rows) * int(header.Columns)
    if n_pixels > _MAX_SLICE_PIXELS:
        found = f"a header that claims {header.Columns}×{header.Rows} pixels"
        raise VolumeError("unreadable", path, f"at most {_MAX_SLICE_PIXELS}", found, "copy it again; it is damaged")
    if header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return  # the place in the file says nothing
    implicit, little = header.original_encoding
    start = file.read(12)  # pydicom stops in front of the pixels: tag, then (VR and padding and) length
    order = "<" if little else ">"
    tag, length = (
        struct.unpack(f"{order}HH", start[:4]),
        struct.unpack(f"{order}I", start[4:8] if implicit else start[8:])[0],
    )
    held = path.stat().st_size - file.tell() + (4 if implicit else 0)
    if tag != (0x7FE0, 0x0010) or (length != 0xFFFFFFFF and length > held):  # all ones: compressed, of no stated length
        raise VolumeError(
            "unreadable", path, f"{length} bytes of pixels", f"{held} in a truncated file", "copy it again"
        )
    needed = math.ceil(n_pixels * int(header.BitsAllocated) / 8)
    if length < needed:
        raise VolumeError(
            "unreadable", path, f"{needed} bytes of pixels", f"{length} in a truncated file", "copy it again"
        )


def _parsed(header: pydicom.Dataset, path: Path) -> _Slice:
    between_rows, between_columns = (float(value) for value in header.PixelSpacing)
    position = np.array(header.ImagePositionPatient, dtype=np.float64).reshape(3)
    directions = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if min(between_rows, between_columns) <= 0 or not np.isfinite([*position, *directions.flat]).all():
        raise ValueError(f"spacing {header.PixelSpacing}, position {header.ImagePositionPatient}")
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation)
    if header.get("HighBit", bits - 1) != bits - 1:
        # pixels not in the lowest bits: retired in DICOM PS3.5, 8.1.1; GDCM and pydicom read the lowest all the same
        expected, found = f"HighBit {bits - 1} for {bits} bits stored", f"HighBit {header.HighBit}"
        raise VolumeError("unreadable", path, expected, found, "export the series again")
    slope = float(1 if header.get("RescaleSlope") is None else header.RescaleSlope)
    intercept = float(header.get("RescaleIntercept") or 0)
    if slope == 0 or not math.isfinite(slope * intercept):
        found = f"RescaleSlope {header.RescaleSlope}, RescaleIntercept {header.get('RescaleIntercept')}"
        raise VolumeError("bad_rescale", path, "a rescale slope and intercept", found, "export the series again")
    inverted_about = None
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        inverted_about = -1 if signed else 2**bits - 1
    ends = [
        slope * stored + intercept
        for stored in ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    ]
    return _Slice(
        path, str(header.get("SeriesInstanceUID")), str(header.Modality), (int(header.Columns), int(header.Rows)),
        (between_columns, between_rows), position, directions, str(header.get("GantryDetectorTilt") or 0),
        min(ends), max(ends), (slope, intercept), inverted_about,
    )  # fmt: skip


def _same_series(slices: Sequence[_Slice], folder: Path) -> None:
    counts: dict[str, list[Path]] = {}
    for part in slices:
        counts.setdefault(part.series, []).append(part.path)
    if len(counts) > 1:
        listed = "; ".join(
            f"{uid} ({len(paths)} files, {paths[0].name} first)" for uid, paths in list(counts.items())[:4]
        )
        found, remedy = f"{len(counts)}: {listed}", "put each in a folder of its own, or remove what is not needed"
        raise VolumeError("dicom_mixed_series", folder, "one series", found, remedy)


def _same(what: str, values: Sequence[object], slices: Sequence[_Slice], folder: Path) -> None:
    usual = Counter(values).most_common(1)[0][0]
    odd = [part.path.name for part, value in zip(slices, values, strict=True) if value != usual]
    if odd:
        found = f"another in {len(odd)} of {len(slices)} slices, {odd[0]} for one"
        remedy = "remove what does not belong to the series (a localiser, another stack)"
        raise VolumeError("dicom_mixed_series", folder, f"one {what} in a series", found, remedy)


def _normal(part: _Slice, folder: Path) -> np.ndarray:
    normal = np.cross(*part.directions)
    lengths = np.linalg.norm([*part.directions, normal], axis=1)
    if np.abs(lengths - 1).max() > 1e-2:
        expected = "two perpendicular unit directions in ImageOrientationPatient"
        found = str(np.round(part.directions, 4).tolist())
        raise VolumeError("bad_affine", folder, expected, found, "export the series again")
    return normal / lengths[2]


def _check_line(slices: Sequence[_Slice], heights: np.ndarray, folder: Path) -> None:
    """Refuse a slice beside the line from the first slice to the last, on which the affine has all of them."""
    positions = np.array([part.position for part in slices])
    share = (heights - heights[0]) / (heights[-1] - heights[0])
    aside = np.linalg.norm(positions - positions[0] - share[:, None] * (positions[-1] - positions[0]), axis=1)
    worst = int(aside.argmax())
    if aside[worst] > TILT_TOLERANCE_PIXELS * min(slices[0].spacing):
        found = f"{slices[worst].path.name} {aside[worst]:.1f} mm aside"
        remedy = "remove what does not belong to the series, or export it again"
        raise VolumeError("dicom_shifted_slice", folder, "slices in one straight stack", found, remedy)


def _check_steps(slices: Sequence[_Slice], normal: np.ndarray, folder: Path) -> None:
    heights = np.array([part.position @ normal for part in slices])
    steps = np.diff(heights)
    for step, (first, second) in zip(steps, pairwise(slices), strict=True):
        if step < 1e-3:
            place = f"at the same place, {first.position.tolist()} mm"
            found = f"{first.path.name} and {second.path.name} {place}"
            remedy = "remove the duplicates, or put each phase or echo in a folder of its own"
            raise VolumeError("dicom_duplicate_slices", folder, "one slice at a place", found, remedy)
    sideways = slices[-1].position - slices[0].position - normal * (heights[-1] - heights[0])
    if np.linalg.norm(sideways) > TILT_TOLERANCE_PIXELS * min(slices[0].spacing):
        angle = np.degrees(np.arctan2(np.linalg.norm(sideways), heights[-1] - heights[0]))
        found = (
            f"slices sheared by {angle:.1f} degrees (gantry tilt, header says {slices[0].tilt}), "
            f"{np.linalg.norm(sideways):.1f} mm over the stack"
        )
        if not are_even(heights):
            found += f", and {steps.min():.4g} to {steps.max():.4g} mm apart"
        remedy = (
            "export an upright reconstruction; of the files that dcm2niix makes of it only the one with _Tilt in its "
            "name (_Tilt_Eq where there is one) is upright, and that may lie centimetres away from the scanner's place"
        )
        raise VolumeError("dicom_gantry_tilt", folder, "an upright stack of slices", found, remedy)
    _check_line(slices, heights, folder)
    if not are_even(heights):
        raise _uneven(steps, slices, folder)


def are_even(heights: Float64[np.ndarray, " n"]) -> bool:
    """Whether slices at ascending heights in mm lie where even steps would have them, to `STEP_TOLERANCE`."""
    off = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights)))
    return bool(off.max() <= STEP_TOLERANCE * np.median(np.diff(heights)))


def _uneven(steps: np.ndarray, slices: Sequence[_Slice], folder: Path) -> VolumeError:
    usual = float(np.median(steps))
    worst = int(np.abs(steps - usual).argmax())
    pair = f"{slices[worst].path.name} and {slices[worst + 1].path.name}"
    n_missing = max(round(float(steps[worst]) / usual) - 1, 0)
    guess = f", {n_missing} missing?" if n_missing else ""
    found = (
        f"slices that are not evenly spaced: usually {usual:.4g} mm, {steps[worst]:.4g} mm between {pair}{guess}; "
        f"steps are {steps.min():.4g} to {steps.max():.4g} mm"
    )
    remedy = "export the whole series again"
    if n_missing:
        return VolumeError("dicom_missing_slices", folder, "every slice of the series", found, remedy)
    return VolumeError("dicom_uneven_slices", folder, "evenly spaced slices", found, remedy)


def _affine(slices: Sequence[_Slice]) -> Affine:
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[0]
    affine[:3, 1] = first.directions[1] * first.spacing[1]
    affine[:3, 2] = (last.position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _dtype(slices: Sequence[_Slice]) -> np.dtype:
    if not all(value.is_integer() for part in slices for value in part.scale):
        return np.dtype(np.float32)
    lowest, highest = min(part.lowest for part in slices), max(part.highest for part in slices)
    fits = (t for t in (np.int16, np.uint16, np.int32) if np.iinfo(t).min <= lowest and highest <= np.iinfo(t).max)
    return np.dtype(next(fits, np.float32))


def _read_voxels(slices: Sequence[_Slice], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    check_memory(math.prod(shape) * dtype.itemsize, str(slices[0].path.parent))
    array = np.empty(shape, dtype=dtype, order="F")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for k, part in enumerate(slices):  # one by one: a series reader takes the type of the first file for all
        path = part.path
        reader.SetFileName(str(path))
        try:
            picture = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            found = "some that cannot be decoded"
            raise VolumeError("unreadable", path, "readable pixels", found, "copy it again or convert it") from error
        if part.inverted_about is not None:
            # GDCM turns MONOCHROME1 over, so that it looks as on a viewer; the values, in a CT HU, are those stored.
            slope, intercept = part.scale
            picture = slope * part.inverted_about + 2 * intercept - picture.astype(np.float64)
        if dtype.kind in "iu" and not np.iinfo(dtype).min <= picture.min() <= picture.max() <= np.iinfo(dtype).max:
            expected, found = f"values that {dtype} can hold", f"{picture.min()} to {picture.max()}"
            raise VolumeError("bad_rescale", path, expected, found, "export the series again")
        array[:, :, k] = picture.reshape(shape[1], shape[0]).T
    return array
