"""Write segmentations, masks and probabilities as NIfTI, on the source's grid to the last bit of its header.

World coordinates are RAS+ in NIfTI as in this pipeline. A NIfTI source hands on its qform, sform, their codes and its
units as stored; others get their affine with code 1 (scanner coordinates). Class names and colours travel inside the
file as a label table in the Caret extension (NIfTI extension code 30), which readers that do not know it skip.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray

from pipeline.files.atomic import write_atomically
from pipeline.writers.segmentation import Segmentation, header_text, packed
from transforms.io.grid import SHEAR_TOLERANCE, skew, voxel_edges_mm
from transforms.io.nifti import stored_header

CARET = 30
"""Extension code of Caret, whose label tables Connectome Workbench and others read."""

GRID_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def write_nifti(segmentation: Segmentation, path: Path) -> None:
    """Write the label map with class names and colours inside, as .nii.gz or .nii by the path's suffix.

    Raises FileError if the disk refuses.
    """
    header = _header(segmentation, segmentation.values.dtype)
    header.extensions.append(Nifti1Extension(CARET, _label_table(segmentation)))
    _write(path, header, segmentation.slices())


def write_mask(segmentation: Segmentation, class_index: int, path: Path) -> None:
    """Write where one class is: uint8, 0 and 1. Raises FileError if the disk refuses."""
    mask = (segmentation.array == class_index).view(np.uint8)
    _write(path, _header(segmentation, mask.dtype), np.moveaxis(mask, 2, 0))


def write_probabilities(segmentation: Segmentation, probabilities: NDArray[np.uint8], path: Path) -> None:
    """Write one class's probabilities, (I, J, K) uint8 with 255 for certain, scaled so that readers see 0 to 1.

    Raises FileError if the disk refuses.
    """
    header = _header(segmentation, np.dtype(np.uint8))
    header["scl_slope"], header["scl_inter"] = 1 / 255, 0
    header["cal_max"] = 1
    _write(path, header, np.moveaxis(probabilities, 2, 0))


def _write(path: Path, header: nib.Nifti1Header, slices: Iterable[NDArray]) -> None:
    def stream_out(stream: BinaryIO) -> None:
        with packed(stream) if path.name.endswith(".gz") else nullcontext(stream) as file:
            header.write_to(file)
            file.writelines(plane.tobytes(order="F") for plane in slices)

    write_atomically(path, stream_out)


def _header(segmentation: Segmentation, dtype: np.dtype) -> nib.Nifti1Header:
    """A fresh little-endian header on the segmentation's grid."""
    source = stored_header(segmentation.source) if segmentation.source_kind == "nifti" else None
    header = (nib.Nifti1Header if source is None else type(source))(endianness="<")
    header.set_data_shape(segmentation.array.shape)
    header.set_data_dtype(dtype.newbyteorder("<"))
    header["scl_slope"], header["scl_inter"] = 1, 0
    if source is None:
        _set_affine(header, segmentation.affine)
    else:
        for field in GRID_FIELDS:
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
    return header


def _set_affine(header: nib.Nifti1Header, affine: NDArray[np.float64]) -> None:
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    if skew(affine) < SHEAR_TOLERANCE:
        header.set_qform(affine, 1)
    else:  # a quaternion cannot hold a shear
        header["pixdim"][1:4] = voxel_edges_mm(affine)


def _label_table(segmentation: Segmentation) -> bytes:
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    classes = zip(segmentation.values.tolist(), segmentation.class_names, segmentation.colours, strict=True)
    for index, (value, name, colour) in enumerate(classes):
        red, green, blue = (f"{part / 255:.4f}" for part in colour)
        label = ElementTree.SubElement(
            table, "Label", Key=str(value), Red=red, Green=green, Blue=blue, Alpha="1" if index else "0"
        )
        label.text = header_text(name)
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
