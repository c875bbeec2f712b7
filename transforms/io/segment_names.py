"""The names of segments in the header of a .seg.nrrd file, as 3D Slicer writes them. Reads no voxels."""

from __future__ import annotations

import re
from pathlib import Path

from transforms.io.errors import VolumeError
from transforms.io.itk_header import header_lines, is_nrrd

_FIELD = re.compile(r"Segment(\d+)_(Name|LabelValue):=(.*)")
_UNNAMED = re.compile(r"segment[ _]?\d*", re.IGNORECASE)
"""What Slicer calls a segment that nobody has named."""

LARGEST_VALUE = 65535
"""Of a segment: what an unsigned short holds, the largest type that Slicer chooses by itself."""


def segment_values(path: Path) -> dict[str, int] | None:
    """Return the value of each named segment of a NRRD file, by its header; None where the header names none.

    The fields are those of Slicer's developer guide ("Segmentations", section "Segmentation file format"):
    Segment0_Name:=liver, Segment0_LabelValue:=1. They hold for their own file: the same segment may have another value
    in the next one.

    Raises:
        VolumeError: the header cannot be read; two segments share a name or a value.
    """
    if not is_nrrd(path):
        return None
    names: dict[str, str] = {}
    values: dict[str, int] = {}
    try:
        for line in header_lines(path):
            if not line:
                break
            field = _FIELD.fullmatch(line)
            if field is None:
                continue
            number, what, text = field.groups()
            if what == "Name":
                names[number] = text.strip()
            elif text.strip().isascii() and text.strip().isdecimal():
                values[number] = int(text)
    except OSError as error:
        raise VolumeError("unreadable", path, "a header", error.strerror or str(error), "check the file") from error
    found = {number: name for number, name in names.items() if name and number in values}
    if all(_UNNAMED.fullmatch(name) for name in found.values()):
        return None
    of_name = {name: values[number] for number, name in found.items()}
    if len(of_name) < len(found) or len(set(of_name.values())) < len(of_name):
        expected = "segments with names and values of their own in the header"
        raise VolumeError("segments", path, expected, f"{found} with {values}", "export one layer without overlaps")
    if max(of_name.values()) > LARGEST_VALUE:
        found_value = f"LabelValue {max(of_name.values())}"
        raise VolumeError(
            "segments", path, f"values up to {LARGEST_VALUE} in the header", found_value, "export it again"
        )
    return of_name
