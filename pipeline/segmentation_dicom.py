"""Segmentations as DICOM SEG of the series they were made from, by highdicom.

One binary segment for each structure that occurs, in class order, with frames that refer to the source instances.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from pipeline.run_folder import write_atomically
from pipeline.segmentation import Segmentation, SegmentationError, printable
from transforms.dicom import series_files

PRIVATE_SCHEME = "99BODYSEG"
"""Coding scheme of structures that pydicom's part of SNOMED CT has no word for (DICOM PS3.3, 8.2: 99 is private)."""

PLACE_WORDS = {"left", "right", "upper", "lower", "middle", "lobe"}
NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
LONGEST_LABEL = 64
"""Characters of a DICOM long string."""


def write_dicom_seg(segmentation: Segmentation, path: Path) -> None:
    """Write the structures as a DICOM SEG that refers to the source series.

    Raises:
        SegmentationError: the source is no DICOM series, or its headers lack what a SEG must repeat.
        RunFolderError: the disk refuses.
    """
    if segmentation.source_kind != "dicom":
        raise SegmentationError(
            f"{segmentation.source}: a DICOM SEG refers to a DICOM series, found {segmentation.source_kind}; "
            "choose the format nifti or nrrd"
        )
    instances = _instances(segmentation.source)
    try:
        with warnings.catch_warnings():
            # The source's odd values (a name of one part, say) are repeated as they are.
            warnings.simplefilter("ignore", UserWarning)
            document = _document(segmentation, instances)
            write_atomically(path, lambda stream: document.save_as(stream, enforce_file_format=True))
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise SegmentationError(
            f"{segmentation.source}: a DICOM SEG cannot refer to this series ({' '.join(str(error).split())[:300]}); "
            "choose the format nifti or nrrd"
        ) from error


def _document(segmentation: Segmentation, instances: Sequence[pydicom.Dataset]) -> hd.seg.Segmentation:
    present = [int(c) for c in np.flatnonzero(segmentation.voxels) if c > 0] or [1]
    numbers = np.zeros(len(segmentation.class_names), segmentation.array.dtype)
    numbers[present] = np.arange(1, len(present) + 1)
    return hd.seg.Segmentation(
        source_images=instances,
        pixel_array=numbers[np.ascontiguousarray(segmentation.array.T)],  # frames, rows (j), columns (i)
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(segmentation, c, number) for number, c in enumerate(present, 1)],
        series_instance_uid=hd.UID(),
        series_number=int(instances[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="bodyseg",
        manufacturer_model_name="bodyseg",
        software_versions=version("bodyseg"),
        device_serial_number="1",
        series_description="Segmentation",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )


def _instances(folder: Path) -> list[pydicom.Dataset]:
    """Headers of the source's slices, in the order of the volume's k."""
    instances: list[pydicom.Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in series_files(folder)]
    for field in NEEDED:
        if not instances[0].get(field):
            raise SegmentationError(
                f"{folder}: a DICOM SEG repeats the source's {field}, found none; choose the format nifti or nrrd"
            )
    for instance in instances:
        _complete(instance)
    return instances


def _complete(instance: pydicom.Dataset) -> None:
    """Fill in what anonymisers empty and a reference needs; what cannot be known is left to highdicom to refuse."""
    if not instance.get("SOPClassUID"):
        instance.SOPClassUID = MRImageStorage if instance.Modality == "MR" else CTImageStorage
    if not instance.get("SpecificCharacterSet", "present"):
        del instance.SpecificCharacterSet
    for keyword in MAY_BE_EMPTY:
        if keyword not in instance:
            setattr(instance, keyword, "")


def _describe(segmentation: Segmentation, value: int, number: int) -> hd.seg.SegmentDescription:
    name = printable(segmentation.class_names[value])
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:LONGEST_LABEL],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=structure_code(name),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="bodyseg", family=codes.DCM.ArtificialIntelligence, version=version("bodyseg")
        ),
        tracking_uid=hd.UID(),
        tracking_id=name[:LONGEST_LABEL],
    )
    description.RecommendedDisplayCIELabValue = list(hd.color.CIELabColor.from_rgb(*_rgb(segmentation, value)).value)
    return description


def _rgb(segmentation: Segmentation, value: int) -> Sequence[int]:
    return [int(part) for part in segmentation.colours[value]]


def structure_code(name: str) -> Code:
    """SNOMED CT's code of a structure, where pydicom knows the name without its side ("kidney_left": Kidney); else a
    private code with the class name. The segment's label says the side."""
    words = [word for word in re.findall(r"[A-Za-z]+", name.lower()) if word not in PLACE_WORDS]
    keyword = "".join(word.capitalize() for word in words)
    if keyword and keyword in dir(codes.SCT):
        return getattr(codes.SCT, keyword)
    meaning = name[:LONGEST_LABEL]
    return Code(re.sub(r"[^A-Za-z0-9_]+", "_", name)[:16] or "structure", PRIVATE_SCHEME, meaning)
