"""A small data set on disk, and every way to spoil a case of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pipeline.check import Report, check
from pipeline.config.files import from_mapping

SHAPE = (16, 14, 12)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
CLASSES = {"background": 0, "kidney_left": 1, "kidney_right": 2, "liver": 3}


class Folder:
    """A data set of four good cases, two to train and two to validate, in an explicit list; each may be spoiled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.labels = dict(CLASSES)
        self.channel_names = ["CT"]
        self.cases = [
            self._case(name, side) for name, side in zip("abcd", ("train", "train", "val", "val"), strict=True)
        ]

    def _case(self, name: str, side: str) -> dict:
        save(self.image(name), hounsfield(name))
        save(self.label(name), organs())
        return {
            "case": name,
            "image": f"{name}.nii.gz",
            "label": f"{name}_label.nii.gz",
            "split": side,
            "subject": f"p{name}",
        }

    def image(self, name: str = "c") -> Path:
        return self.root / f"{name}.nii.gz"

    def label(self, name: str = "c") -> Path:
        return self.root / f"{name}_label.nii.gz"

    def __getitem__(self, name: str) -> dict:
        return next(case for case in self.cases if case["case"] == name)

    def write(self) -> Path:
        path = self.root / "cases.json"
        path.write_text(json.dumps({"cases": self.cases, "labels": self.labels, "channel_names": self.channel_names}))
        return path

    def check(self) -> Report:
        return check(self.write(), workers=1)


def hounsfield(name: str) -> np.ndarray:
    return np.random.default_rng(ord(name)).integers(-1000, 1000, SHAPE, dtype=np.int16)


def organs() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:5, 4:7, 4:7], label[11:14, 4:7, 4:7], label[6:10, 8:12, 7:10] = 1, 2, 3  # RAS+: left is where x is small
    return label


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = AFFINE, qform: np.ndarray | None = None) -> None:
    image = nib.Nifti1Image(array, AFFINE if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine if qform is None else qform, 1)
    if affine is None:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nib.save(image, path)


def shifted(*mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] = mm
    return affine


def turned_by_degrees(angle: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def edit_header(path: Path, **fields: object) -> None:
    """Write header fields as they are: nibabel itself would refuse or repair them."""
    block = bytearray(gzip.decompress(path.read_bytes()))
    header = nib.Nifti1Header(bytes(block[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(gzip.compress(header.binaryblock + bytes(block[348:])))


def with_value(array: np.ndarray, value: float, dtype: type = np.float32) -> np.ndarray:
    array = array.astype(dtype)
    array[3, 4, 5] = value
    return array


def write_series(folder: Path, heights: list[float], *, shear_mm: float = 0.0, series: str | None = None) -> None:
    """Write a CT series of 16×14 pixels, 2 mm, one slice a height."""
    folder.mkdir(exist_ok=True)
    series = series or generate_uid()
    for number, height in enumerate(heights):
        uid = generate_uid()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        part = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        part.SOPClassUID, part.SOPInstanceUID, part.SeriesInstanceUID, part.Modality = CTImageStorage, uid, series, "CT"
        part.Rows, part.Columns, part.PixelSpacing, part.SamplesPerPixel = 14, 16, [2, 2], 1
        part.PhotometricInterpretation, part.BitsAllocated, part.BitsStored, part.HighBit = "MONOCHROME2", 16, 16, 15
        part.PixelRepresentation, part.RescaleSlope, part.RescaleIntercept = 1, 1, 0
        part.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        part.ImagePositionPatient = [0, shear_mm * number, height]
        part.PixelData = hounsfield("c")[:, :, number % 12].T.tobytes()
        part.save_as(folder / f"{series[-6:]}_{number:02d}.dcm", enforce_file_format=True)


def use_series(folder: Folder, heights: list[float], **options: float) -> None:
    write_series(folder.root / "series", heights, **options)
    folder["c"]["image"] = "series"


class Bad(NamedTuple):
    """A way to spoil the data set, and the finding it must give."""

    name: str
    spoil: Callable[[Folder], object]
    severity: str
    kind: str
    case: str
    expected: str
    found: str
    remedy: str = ""


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def break_check_sum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(bytes(content))


def as_nrrd_with_other_axes(folder: Folder) -> None:
    """Case c becomes case a's voxels in another format, dtype and axis order."""
    turned = hounsfield("a").transpose(2, 0, 1)[:, ::-1].astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(turned.T))
    image.SetSpacing((3.0, 2.0, 2.0))
    image.SetOrigin((-30.0, 0.0, 0.0))  # LPS: voxel i = 15 of the RAS volume
    # columns: voxel axes k, -i, j of the RAS volume in LPS
    image.SetDirection((0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0))
    sitk.WriteImage(image, folder.root / "again.nrrd")
    folder["c"]["image"] = "again.nrrd"


def two_series(folder: Folder) -> None:
    use_series(folder, [0, 3, 6, 9])
    write_series(folder.root / "series", [0, 3, 6, 9])


def two_channels(folder: Folder) -> None:
    folder.channel_names = ["CT", "PET"]
    for case in folder.cases:
        name = case["case"]
        save(folder.root / f"{name}_pet.nii.gz", hounsfield(name) // 2, shifted(0, 0, 9) if name == "c" else AFFINE)
        case["image"] = [f"{name}.nii.gz", f"{name}_pet.nii.gz"]


def without_class(folder: Folder, value: int, names: str) -> None:
    for name in names:
        save(folder.label(name), np.where(organs() == value, 0, organs()).astype(np.uint8))


def as_mr(folder: Folder, spoiled: np.ndarray) -> None:
    folder.channel_names = ["T1"]
    for name in "abcd":
        save(folder.image(name), spoiled if name == "c" else np.abs(hounsfield(name)))


def without_split_column(folder: Folder) -> None:
    for case in folder.cases:
        del case["split"]


def without_split(folder: Folder) -> None:
    save(folder.image("c"), hounsfield("a"))
    without_split_column(folder)


def rgb(path: Path) -> None:
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), path)


BAD = [
    Bad("a truncated image", lambda f: cut(f.image(), 2000), "error", "unreadable", "c",
        "a whole, readable volume", "truncated or damaged", "copy it again"),
    Bad("a gzip whose check sum is wrong", lambda f: break_check_sum(f.image()), "error", "unreadable", "c",
        "a whole, readable volume", "CRC check failed", "copy it again"),
    Bad("a text file named .nii.gz", lambda f: f.image().write_text("patient left"), "error", "unreadable", "c",
        "a NIfTI file", "something else"),
    Bad("an empty file", lambda f: f.image().write_bytes(b""), "error", "unreadable", "c", "a NIfTI file", "b''"),
    Bad("a truncated label", lambda f: cut(f.label(), 60), "error", "unreadable", "c",
        "a whole, readable volume", "damaged", "copy it again"),
    Bad("a header that claims a million million voxels",
        lambda f: edit_header(f.image(), dim=[3, 10000, 10000, 10000, 1, 1, 1, 1]), "error", "unreadable", "c",
        "at most 2.15e+09", "a header that claims 1e+12 voxels"),
    Bad("a colour picture", lambda f: rgb(f.image()), "error", "not_grey_scale", "c", "one real number a voxel", "R",
        "grey-scale"),
    Bad("an image that is not there", lambda f: f.image().unlink(), "error", "missing_file", "c", "a file",
        "does not exist"),
    Bad("two frames in one file", lambda f: save(f.image(), np.stack([hounsfield("c"), hounsfield("e")], -1)),
        "error", "not_3d", "c", "one 3-D volume", "2 frames, shape (16, 14, 12, 2)", "a file of its own"),
    Bad("a flat picture", lambda f: save(f.image(), hounsfield("c")[:, :, 0]), "error", "not_3d", "c",
        "three axes of at least one voxel", "shape (16, 14)"),
    Bad("a singular affine", lambda f: edit_header(f.image(), srow_z=[0, 0, 0, 0]), "error", "bad_affine", "c",
        "an affine that spans three dimensions", "singular", "repair the header"),
    Bad("an affine with NaN", lambda f: edit_header(f.image(), srow_x=[np.nan, 0, 0, 0]), "error", "bad_affine", "c",
        "a finite affine", "nan", "repair the header"),
    Bad("no orientation at all", lambda f: save(f.image(), hounsfield("c"), None), "error", "no_orientation", "c",
        "an orientation", "sform_code 0 and qform_code 0"),
    Bad("a NaN voxel", lambda f: save(f.image(), with_value(hounsfield("c"), np.nan)), "error", "not_finite", "c",
        "finite intensities", "1 voxels that are NaN, infinite or beyond float32"),
    Bad("an infinite voxel", lambda f: save(f.image(), with_value(hounsfield("c"), -np.inf)), "error", "not_finite",
        "c", "finite intensities", "1 voxels that are NaN, infinite or beyond float32"),
    Bad("a label one voxel away", lambda f: save(f.label(), organs(), shifted(0, 0, 3)), "error", "grid_mismatch",
        "c", "every corner within 0.2 mm", "3 mm apart at the furthest corner", "resample"),
    Bad("a label of another size", lambda f: save(f.label(), organs()[:, :, :-1], shifted(0, 0, 1)), "error",
        "grid_mismatch", "c", "the label on its image's voxel grid", "shape (16, 14, 11) against (16, 14, 12)"),
    Bad("a label of a part of its image", lambda f: save(f.label(), organs()[:, :, :-1]), "warning", "label_cropped",
        "c", "a label of its image's whole grid", "(16, 14, 11) of (16, 14, 12) voxels", "nothing, if it was cropped"),
    Bad("a label of another spacing", lambda f: save(f.label(), organs(), np.diag([2, 2, 2.5, 1])), "error",
        "grid_mismatch", "c", "voxel grid", "5.5 mm apart", "resample"),
    Bad("a second channel on another grid", two_channels, "error", "grid_mismatch", "c",
        "the channel on its image's voxel grid", "9 mm apart"),
    Bad("a label resampled with linear interpolation", lambda f: save(f.label(), with_value(organs(), 1.5)), "error",
        "label_not_integral", "c", "whole numbers", "1 voxels that are not, 1.5 for one", "nearest neighbour"),
    Bad("a label value of no class", lambda f: save(f.label(), with_value(organs(), 7, np.uint8)), "error",
        "label_unknown_values", "c", "the label values 0-3", "7 (1 voxels)", "label_remap: {7: background}"),
    Bad("a class stored under another value",
        lambda f: save(f.label(), np.where(organs() == 3, 255, organs()).astype(np.uint8)), "error",
        "label_unknown_values", "c", "the label values 0-3", "255 (48 voxels)", "label_remap: {255: liver}"),
    Bad("a label with NaN", lambda f: save(f.label(), with_value(organs(), np.nan)), "error", "label_not_integral", "c",
        "whole numbers", "1 voxels that are not, nan for one"),
    Bad("a label with two frames", lambda f: save(f.label(), np.stack([organs(), organs()], -1)), "error", "not_3d",
        "c", "one 3-D volume", "2 frames, shape (16, 14, 12, 2)"),
    Bad("a label on a turned grid", lambda f: save(f.label(), organs(), turned_by_degrees(3)), "error",
        "grid_mismatch", "c", "every corner within 0.2 mm, 0.1 of a voxel edge", "mm apart at the furthest corner"),
    Bad("a negative label value", lambda f: save(f.label(), with_value(organs(), -1, np.int16)), "error",
        "label_unknown_values", "c", "the label values 0-3", "-1 (1 voxels)"),
    Bad("an image instead of a label", lambda f: save(f.label(), hounsfield("c")), "error",
        "label_unknown_values", "c", "the label values 0-3", "more values", "an image instead of a label"),
    Bad("a case without a label", lambda f: f["c"].pop("label"), "error", "missing_label", "c",
        "a label beside the image", "none"),
    Bad("an empty label", lambda f: save(f.label(), 0 * organs()), "warning", "empty_label", "c",
        "a voxel of some class", "background only"),
    Bad("a class that no validation case holds", lambda f: without_class(f, 3, "cd"), "warning", "class_absent", "",
        "3 classes in train and in validation", "no val case holds liver (1 classes)", "val_mIoU"),
    Bad("a class that no training case holds", lambda f: without_class(f, 1, "ab"), "warning", "class_absent", "",
        "3 classes in train and in validation", "no train case holds kidney_left (1 classes)", "cannot learn"),
    Bad("a class that no case holds", lambda f: f.labels.update(spleen=4), "warning", "class_absent", "",
        "4 classes in train and in validation", "no case holds spleen (1 classes)"),
    Bad("a constant image", lambda f: save(f.image(), np.full(SHAPE, -1000, np.int16)), "warning", "constant_image",
        "c", "an image", "-1000 in every voxel"),
    Bad("a CT without its intercept", lambda f: save(f.image(), hounsfield("c") + np.int16(1024)), "warning",
        "odd_intensities", "c", "Hounsfield units", "none below 0: the intercept (often -1024) is missing"),
    Bad("a CT scaled to 0…1", lambda f: save(f.image(), (hounsfield("c") / 2000 + 0.5).astype(np.float32)), "warning",
        "odd_intensities", "c", "Hounsfield units", "scaled already?"),
    Bad("a CT among MR", lambda f: as_mr(f, hounsfield("c")), "warning", "odd_intensities", "c", "MR intensities",
        "looks like a CT in HU"),
    Bad("voxels of 30 mm", lambda f: (save(f.image(), hounsfield("c"), np.diag([2, 2, 30, 1])),
                                      save(f.label(), organs(), np.diag([2, 2, 30, 1]))), "warning", "odd_spacing",
        "c", "voxel edges of 0.05 to 15 mm", "2 × 2 × 30 mm"),
    Bad("voxels of 0.01 mm", lambda f: (save(f.image(), hounsfield("c"), np.diag([2, 2, 0.01, 1])),
                                         save(f.label(), organs(), np.diag([2, 2, 0.01, 1]))), "warning",
        "odd_spacing", "c", "voxel edges of 0.05 to 15 mm", "2 × 2 × 0.01 mm"),
    Bad("a volume as small as a pea", lambda f: (save(f.image(), hounsfield("c"), np.diag([0.1, 0.1, 0.1, 1])),
                                                 save(f.label(), organs(), np.diag([0.1, 0.1, 0.1, 1]))), "warning",
        "odd_spacing", "c", "a longest side of 10 to 2500 mm", "1.6 mm"),
    Bad("left and right swapped", lambda f: save(f.label(), organs()[::-1]), "warning", "sides_swapped", "c",
        "left classes on the patient's left", "1 of 1 pairs the other way round: kidney_left at x = 24 mm"),
    Bad("sform and qform in different places", lambda f: save(f.image(), hounsfield("c"), qform=shifted(0, 40, 0)),
        "warning", "sform_qform", "c", "sform and qform that agree", "40 mm between them", "the sform is used"),
    Bad("the same voxels in two splits, in another format", as_nrrd_with_other_axes, "error", "voxels_in_two_splits",
        "c", "no volume in two splits", "in val exactly the voxels of case a", "drop one of them"),
    Bad("the same volume twice in training", lambda f: save(f.image("b"), hounsfield("a")), "warning",
        "equal_volumes", "b", "every volume once", "exactly the voxels of case a"),
    Bad("the same volume under two subjects", without_split, "error", "", "c", "", "exactly the voxels of case a"),
    Bad("a subject in two splits", lambda f: f["c"].update(subject="pa"), "error", "subject_in_two_splits", "",
        "every subject in one split", "subject pa in two", "correct the split"),
    Bad("a DICOM series with a slice missing", lambda f: use_series(f, [0, 3, 6, 12, 15]), "error",
        "dicom_missing_slices", "c", "every slice of the series", "6 mm between", "export the whole series"),
    Bad("a DICOM series with a slice twice", lambda f: use_series(f, [0, 3, 3, 6, 9]), "error",
        "dicom_duplicate_slices", "c", "one slice at a place", "at the same place"),
    Bad("a DICOM series with uneven steps", lambda f: use_series(f, [0, 3, 6, 10, 13]), "error",
        "dicom_uneven_slices", "c", "evenly spaced slices", "4 mm between"),
    Bad("a DICOM series with gantry tilt", lambda f: use_series(f, [0, 3, 6, 9], shear_mm=1), "error",
        "dicom_gantry_tilt", "c", "an upright stack", "sheared by 18.4 degrees"),
    Bad("two series in one folder", two_series, "error", "dicom_mixed_series", "c", "one series", "2: ",
        "a folder of its own"),
    Bad("a DICOM series of one slice", lambda f: use_series(f, [0]), "error", "dicom_too_few_slices", "c",
        "at least two slices", "one slice"),
]  # fmt: skip


def configured(root: Path, **groups: dict) -> object:
    data = {"dataset_root": str(root), "target_size": (16, 24, 16), "cache_dir": str(root / "cache"), "batch_size": 1}
    groups["data"] = data | groups.get("data", {})
    groups["training"] = {"precision": "32", "n_gpus": 0} | groups.get("training", {})
    return from_mapping({"model": {"base_channels": 4}} | groups)
