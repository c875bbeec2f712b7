"""DICOM SEG files as label maps (PS3.3, A.51): segment numbers, their names, and the grid of the frames they hold."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from jaxtyping import Float64, Integer
from pydicom.uid import SegmentationStorage

from transforms.io.dicom import STEP_TOLERANCE, are_even
from transforms.io.errors import VolumeError
from transforms.io.grid import LPS_TO_RAS, check_affine, check_memory, check_shape


class SegmentMap(NamedTuple):
    """A DICOM SEG in memory."""

    array: Integer[np.ndarray, "I J K"]
    """Segment numbers; 0 where there is no segment. Slices that hold no segment at the ends may be absent."""
    affine: Float64[np.ndarray, "4 4"]
    """Voxel index to world mm, RAS+."""


def is_dicom_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG, by its header alone; False for a file that cannot be read."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except Exception:  # whatever a damaged header makes of it
        return False
    return header.get("SOPClassUID") == SegmentationStorage


def segment_numbers(path: Path) -> dict[str, int]:
    """Return the number of each segment by its label.

    Raises:
        VolumeError: the header cannot be read, or two segments have one label.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SegmentSequence"])
        pairs = [(str(one.SegmentLabel), int(one.SegmentNumber)) for one in header.SegmentSequence]
    except Exception as error:
        raise _unreadable(path, error) from error
    numbers = dict(pairs)
    if len(numbers) < len(pairs):
        expected = "segments with labels of their own"
        raise VolumeError("segments", path, expected, ", ".join(label for label, _ in pairs), "name each segment once")
    return numbers


def read_dicom_seg(path: Path) -> SegmentMap:
    """Read a DICOM SEG as one label map on the lattice of its frames.

    Raises:
        VolumeError: the file cannot be read, its segments overlap, or its frames form no volume.
    """
    from highdicom.seg import segread  # takes a second to import, and few evaluations meet such a file

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values elsewhere in the header; the geometry is checked below
            segmentation = segread(path)
            rows, columns = int(segmentation.Rows), int(segmentation.Columns)
            shape = check_shape((int(segmentation.NumberOfFrames), rows, columns), str(path))
            check_memory(2 * math.prod(shape), str(path))
            volume = _volume(segmentation)
    except VolumeError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return SegmentMap(np.asarray(volume.array), check_affine(LPS_TO_RAS @ volume.affine, str(path)))


def _volume(segmentation: Any) -> Any:
    """The frames as a volume: gaps between even ones filled; without gaps as uneven as slices of a series may be."""
    tolerance: dict[str, Any] = {"rtol": STEP_TOLERANCE}
    if segmentation.get_volume_geometry(**tolerance) is None and are_even(_heights(segmentation)):
        # Without gaps each step may be off by what both of its slices may be.
        tolerance = {"rtol": 2 * STEP_TOLERANCE, "allow_missing_positions": False}
    return segmentation.get_volume(combine_segments=True, relabel=False, **tolerance)


def _heights(segmentation: Any) -> Float64[np.ndarray, " n"]:
    """Where the frames lie along their normal in mm, ascending, each place once."""
    frames, shared = segmentation.PerFrameFunctionalGroupsSequence, segmentation.SharedFunctionalGroupsSequence[0]
    holder = shared if "PlaneOrientationSequence" in shared else frames[0]
    orientation = holder.PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(orientation[:3], orientation[3:])
    places = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    return np.sort(np.unique(np.asarray(places, np.float64), axis=0) @ normal)


def _unreadable(path: Path, error: Exception) -> VolumeError:
    expected = "a DICOM SEG whose segments make one label map"
    found = " ".join(f"{error}".split()) or type(error).__name__
    return VolumeError("unreadable", path, expected, found, "export it again, or as NIfTI")
