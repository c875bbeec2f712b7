"""Volumes on disk in every format, some with headers that no library writes."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from transforms.io.errors import VolumeError
from transforms.io.load import read_volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.8, 1.1, 2.5]), [-31.0, 12.5, 300.25]
)


ALL_ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume(shape=(5, 6, 7), dtype=np.int16, high=100):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def save(path: Path, array, affine=OBLIQUE, *, slope=None, change=None) -> Path:
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    if slope:
        image.header.set_slope_inter(*slope)
    if change:
        change(image.header)
    nib.save(image, path)
    return path


def patch(path: Path, offset: int, fmt: str, *values) -> Path:
    """Overwrite bytes of an uncompressed header: what libraries would not write."""
    content = bytearray(path.read_bytes())
    struct.pack_into(fmt, content, offset, *values)
    path.write_bytes(bytes(content))
    return path


def itk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def itk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_series(folder: Path, n=4, *, slope=1.0, intercept=0.0, modality="MR", signed=0, change=None) -> np.ndarray:
    """Write an oblique series, files named against the order of the slices; return stored values (I, J, K)."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(1).integers(-500 if signed else 0, 2000, (6, 5, n)).astype(np.int16)
    rotation = nib.eulerangles.euler2mat(0.3, 0.2, -0.1)
    for k in range(n):
        header = pydicom.Dataset()
        header.SOPClassUID = pydicom.uid.MRImageStorage if modality == "MR" else pydicom.uid.CTImageStorage
        header.SOPInstanceUID, header.SeriesInstanceUID = f"1.2.3.{k + 1}", "1.2.3"
        header.StudyInstanceUID, header.Modality, header.PatientID = "1.2", modality, "nobody"
        header.Rows, header.Columns, header.PixelSpacing = 5, 6, [0.9, 0.7]
        header.ImageOrientationPatient = [round(float(v), 9) for v in rotation[:, :2].T.ravel()]
        header.ImagePositionPatient = [round(float(v), 6) for v in rotation[:, 2] * 2.5 * k + [10, 20, 30]]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, signed
        header.RescaleSlope, header.RescaleIntercept = str(slope), str(intercept)
        header.PixelData = stored[:, :, k].T.tobytes()
        if change:
            change(header, k)
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.save_as(folder / f"slice{n - k}", enforce_file_format=True)
    return stored


def refused(path, *words):
    with pytest.raises(VolumeError) as error:
        read_volume(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
