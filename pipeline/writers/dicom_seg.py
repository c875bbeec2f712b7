"""Write segmentations as DICOM SEG of the series they were made from, by highdicom.

A Segmentation Storage object (DICOM PS3.3, A.51) with one binary segment for each structure that occurs, in class
order, and frames that refer to the source instances. Frames are (k, j, i) of the label map: the source's slices along
its normal, rows, columns; world coordinates are LPS in DICOM. Where an anonymiser blanked the instances' own UIDs, the
copies in the files' meta information are taken: those are what a SEG refers to. Blank UIDs of study, series and frame
of reference are made from them, the same ones every time. What else highdicom takes over from the first slice's header
is checked by pydicom: see `_mend`.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import threading
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import DA, STR_VR, TM, validate_value

from pipeline.console.text import one_line, shortened
from pipeline.files.atomic import write_atomically
from pipeline.writers.segmentation import Segmentation, SegmentationError, segment_label
from pipeline.writers.terminology import Term, terms
from transforms.io.dicom import series_files

_HUSHED = threading.Lock()

UTF8 = "ISO_IR 192"
"""DICOM's name of UTF-8 (PS3.3, C.12.1.1.2)."""

LARGEST_INTEGER = 2**31 - 1
"""Of an integer string (PS3.5, 6.2), as a series' number is."""

SHARED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_REFUSALS = (LookupError, ValueError, ArithmeticError, AttributeError, TypeError, NotImplementedError, struct.error)

MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip

TEXTS = ("LO", "LT", "PN", "SH", "ST")
"""Value representations of texts whose length is limited."""

ACR_NEMA_MARKS = {"DA": ".", "TM": ":"}
"""What DICOM's predecessor had between the numbers of dates and times; without it they are DICOM's (PS3.5, 6.2)."""


def write_dicom_seg(segmentation: Segmentation, path: Path) -> list[str]:
    """Write the structures as a DICOM SEG that refers to the source series.

    Returns:
        What of the series' headers was repaired for it, in words.

    Raises:
        SegmentationError: the source is no DICOM series, or its slices have no UIDs that a SEG could refer to.
        FileError: the disk refuses.
    """
    with _without_words_of_others():
        instances = _instances(segmentation.source, segmentation.source_kind)
        odd, repairs = _complete_all(instances, segmentation.affine)
        content, copied = _encoded(segmentation, instances)
    if found := ", ".join((odd | copied).values()):
        repairs.insert(0, f"its header has values that DICOM does not allow; in the DICOM SEG {found}")
    write_atomically(path, lambda stream: stream.write(content.getbuffer()))
    return repairs


def check_series(source: Path, source_kind: str) -> None:
    """Check before anything is computed that a DICOM SEG can be written of a source, by trying with one voxel.

    Raises SegmentationError: the source is no DICOM series, or one that a SEG cannot refer to.
    """
    with _without_words_of_others():
        instances = _instances(source, source_kind)
        _complete_all(instances, np.eye(4))
        array = np.zeros((int(instances[0].Columns), int(instances[0].Rows), 2), np.uint8, order="F")
        array[0, 0, 0] = 1
        tried = Segmentation(array, np.eye(4), ("background", "structure"), source, source_kind)
        _encoded(tried, instances[:2])


@contextmanager
def _without_words_of_others() -> Iterator[None]:
    """Keep pydicom and highdicom from speaking of odd values once for every slice: `_mend` does, once for all.

    Filters and levels are the whole process's, and one case is checked while another is written: one at a time.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    with _HUSHED:
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            with warnings.catch_warnings(), pydicom.config.disable_value_validation():
                warnings.simplefilter("ignore", UserWarning)
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _encoded(segmentation: Segmentation, instances: Sequence[pydicom.Dataset]) -> tuple[io.BytesIO, dict[str, str]]:
    """The file's content, and what `_mend` found in it. Raises SegmentationError where highdicom or pydicom refuse."""
    content = io.BytesIO()
    try:
        document = _document(segmentation, instances)
        odd = _mend(document, [keyword for keyword in document.dir() if keyword in instances[0]])
        document.save_as(content, enforce_file_format=True)
    except _REFUSALS as error:
        raise SegmentationError(
            f"{segmentation.source}: a DICOM SEG cannot refer to this series ({one_line(error, 300)}); "
            "choose the format nifti or nrrd"
        ) from error
    return content, odd


def _document(segmentation: Segmentation, instances: Sequence[pydicom.Dataset]) -> hd.seg.Segmentation:
    present = [int(c) for c in np.flatnonzero(segmentation.voxels) if c > 0] or [1]
    numbers = np.zeros(len(segmentation.class_names), segmentation.array.dtype)
    numbers[present] = np.arange(1, len(present) + 1)
    found = terms(segmentation.class_names)
    return hd.seg.Segmentation(
        source_images=instances,
        pixel_array=numbers[np.ascontiguousarray(segmentation.array.T)],  # frames, rows (j), columns (i)
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(segmentation, c, number, found[c]) for number, c in enumerate(present, 1)],
        series_instance_uid=hd.UID(),
        series_number=_series_number(instances[0]),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="bodyseg",
        manufacturer_model_name="bodyseg",
        software_versions=version("bodyseg"),
        device_serial_number="1",
        series_description="Segmentation",
        omit_empty_frames=bool(np.any(segmentation.voxels[1:])),  # of no structure at all every frame is kept
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )


def _series_number(instance: pydicom.Dataset) -> int:
    try:
        return min(int(instance.get("SeriesNumber") or 0) + 1000, LARGEST_INTEGER)
    except (TypeError, ValueError):
        return 1000


def _instances(source: Path, source_kind: str) -> list[pydicom.Dataset]:
    """The headers of a source's slices, in the order of the volume's k, if a DICOM SEG could refer to them.

    Raises SegmentationError: the source is no DICOM series, or its slices have no UIDs of their own.
    """
    if source_kind != "dicom":
        raise SegmentationError(
            f"{source}: a DICOM SEG refers to a DICOM series, found {source_kind}; choose the format nifti or nrrd"
        )
    instances: list[pydicom.Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in series_files(source)]
    uids = [_instance_uid(instance) for instance in instances]
    if len(set(uids)) < len(uids) and "" not in uids:
        raise SegmentationError(
            f"{source}: a DICOM SEG refers to its slices by SOPInstanceUID, found {len(set(uids))} for "
            f"{len(instances)} slices; choose the format nifti or nrrd"
        )
    if n_blank := uids.count(""):
        raise SegmentationError(
            f"{source}: a DICOM SEG refers to its slices by SOPInstanceUID, found none in {n_blank} of "
            f"{len(instances)} files, nor in their meta information; choose the format nifti or nrrd"
        )
    return instances


def _complete_all(instances: Sequence[pydicom.Dataset], affine: np.ndarray) -> tuple[dict[str, str], list[str]]:
    """Fill in what a reference needs, and repair what DICOM SEG does not allow.

    Returns what `_mend` found in the headers, and what else was repaired, in words.
    """
    step_mm = round(float(np.linalg.norm(affine[:3, 2])), 6)
    odd: dict[str, str] = {}
    for instance in instances:
        _complete(instance, step_mm)
        odd = _mend(instance, (*SHARED_UIDS, "SOPInstanceUID")) | odd
    odd |= _mend(instances[0], MAY_BE_EMPTY)
    repairs = []
    for keyword, name in (("FrameOfReferenceUID", "frames of reference"), ("StudyInstanceUID", "studies")):
        found = [str(instance.get(keyword)) for instance in instances if instance.get(keyword)]
        if len(set(found)) > 1:  # the slices lie on one regular grid, or the series would have been refused
            repairs.append(
                f"its slices name {len(set(found))} {name} ({keyword}), expected one; the DICOM SEG has the first"
            )
            for instance in instances:
                setattr(instance, keyword, found[0])
    for instance in instances:  # equal up to what reading a series tolerates
        instance.ImageOrientationPatient = instances[0].ImageOrientationPatient
    if made := [keyword for keyword in SHARED_UIDS if _share(keyword, instances)]:
        repairs.append(
            f"{' and '.join(made)} blank (anonymised?); the DICOM SEG has new ones, and refers to the slices by "
            "SOPInstanceUID alone"
        )
    return odd, repairs


def _instance_uid(instance: pydicom.Dataset) -> str:
    """A slice's own UID, or its copy in the file's meta information (DICOM PS3.10, 7.1); "" where it has none."""
    return str(instance.get("SOPInstanceUID") or instance.file_meta.get("MediaStorageSOPInstanceUID") or "")


def _complete(instance: pydicom.Dataset, step_mm: float) -> None:
    """Fill in what anonymisers empty and a reference needs. What cannot be known is left to highdicom to refuse."""
    meta = instance.file_meta
    usual = MRImageStorage if instance.Modality == "MR" else CTImageStorage
    instance.SOPClassUID = instance.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or usual
    instance.SOPInstanceUID = _instance_uid(instance)
    _write_in_utf8(instance)
    if not _is_positive(instance.get("SliceThickness")):
        instance.SliceThickness = step_mm  # a voxel of the segmentation is as thick as that, whatever the beam was
    if "SpacingBetweenSlices" in instance:  # some headers have the gap or a rounded number; readers place frames by it
        instance.SpacingBetweenSlices = step_mm
    for keyword in MAY_BE_EMPTY:
        if keyword not in instance:
            setattr(instance, keyword, "")


def _is_positive(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False


def _mend(header: pydicom.Dataset, keywords: Iterable[str]) -> dict[str, str]:
    """Leave out values that DICOM does not allow, but for texts and what can be written as DICOM has it.

    Texts stay, too long ones too: archives know patient and study by them, and a part of an ID may be another's. So do
    UIDs whose only fault is a number such as 03, and those of the slices.

    Returns:
        What was found and what is there now, in words, by keyword.
    """
    odd = {}
    for keyword in keywords:
        kind, value = dictionary_VR(keyword), header.get(keyword)
        if kind not in STR_VR or value is None or _is_allowed(keyword, value):
            continue
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
        plain = text.replace(ACR_NEMA_MARKS.get(kind, ""), "")
        is_kept = kind in TEXTS or (kind == "UI" and re.fullmatch(r"\d+(\.\d+)*", text) and len(text) <= 64)
        found = f"{keyword} {shortened(text, 64)!r}" + (f" of {len(text)} characters" if kind in TEXTS else "")
        if is_kept or keyword == "SOPInstanceUID":
            odd[keyword] = f"{found} stays as it is"
        elif kind in ACR_NEMA_MARKS and _is_allowed(keyword, plain):
            setattr(header, keyword, plain)
            odd[keyword] = f"{found} is written {plain}"
        else:
            setattr(header, keyword, "")
            odd[keyword] = f"{found} is left out"
    return odd


def _is_allowed(keyword: str, value: Any) -> bool:
    """Whether a value is one that DICOM allows (PS3.5, 6.2), and of a sex, one that highdicom takes."""
    kind = dictionary_VR(keyword)
    texts = [str(one) for one in value] if isinstance(value, MultiValue) else [str(value)]
    try:
        for text in texts:
            validate_value(kind, text, pydicom.config.RAISE)
            {"DA": DA, "TM": TM}.get(kind, str)(text)  # the validators also allow the ranges of queries
    except ValueError:
        return False
    is_sex = keyword != "PatientSex" or texts[0] in ("", "M", "F", "O")
    return is_sex and (len(texts) < 2 or dictionary_VM(keyword) != "1")


def _write_in_utf8(instance: pydicom.Dataset) -> None:
    """Turn texts to UTF-8: highdicom refuses character sets that scanners write, such as "ISO 2022 IR 13" alone."""
    if not instance.get("SpecificCharacterSet", "absent"):
        del instance.SpecificCharacterSet
    elif instance.get("SpecificCharacterSet"):
        instance.decode()
        instance.SpecificCharacterSet = UTF8


def _share(keyword: str, instances: Sequence[pydicom.Dataset]) -> bool:
    """Give slices without this UID that of the others; where none has one, a new one. Returns whether it is new."""
    known = next((str(instance.get(keyword)) for instance in instances if instance.get(keyword)), "")
    uid = known or _made_uid(keyword, [str(instance.SOPInstanceUID) for instance in instances])
    for instance in instances:
        if not instance.get(keyword):
            setattr(instance, keyword, uid)
    return not known


def _made_uid(keyword: str, instance_uids: Sequence[str]) -> str:
    """A UID that is the same whenever it is made for these slices, so that their SEGs come to lie in one study."""
    name = " ".join([keyword, *sorted(instance_uids)])
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"  # UIDs from UUIDs: DICOM PS3.5, B.2


def _describe(segmentation: Segmentation, index: int, number: int, term: Term) -> hd.seg.SegmentDescription:
    name = segment_label(segmentation.class_names[index])
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=term.category,
        segmented_property_type=term.code,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="bodyseg", family=codes.DCM.ArtificialIntelligence, version=version("bodyseg")
        ),
        tracking_uid=hd.UID(),
        tracking_id=name,
        anatomic_regions=None if term.region is None else [term.region],
    )
    if term.laterality is not None:
        modifier = hd.sr.CodedConcept.from_code(term.laterality)
        if term.region is None:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        else:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [modifier]
    # A segment's number only counts (PS3.3, C.8.20.2); what the label map's value is must be said in words.
    description.SegmentDescription = f"Label value {segmentation.values[index]}"
    colour = hd.color.CIELabColor.from_rgb(*segmentation.colours[index].tolist())
    description.RecommendedDisplayCIELabValue = list(colour.value)
    return description
